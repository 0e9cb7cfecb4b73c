//! Batches: gathered transactions that are sent to the target as set statements, several at a time.

pub(crate) mod copy_in;
pub(crate) mod prepared;
pub(crate) mod sender;
pub(crate) mod single_statement;
