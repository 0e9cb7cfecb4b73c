//! Batches: gathered transactions on their way to the target, several at a time.

pub(crate) mod copy_in;
pub(crate) mod prepared;
pub(crate) mod sender;
pub(crate) mod single_statement;
