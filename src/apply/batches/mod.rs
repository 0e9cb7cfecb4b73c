//! Batches: gathered transactions on their way to the target, several at a time.

pub(crate) mod copy_in;
pub(crate) mod gathered;
pub(crate) mod pipeline;
pub(crate) mod prepared;
pub(crate) mod single_statement;
