//! Batches: gathered transactions on their way to the target, several at a time.

pub(in crate::apply) mod copy_in;
pub(in crate::apply) mod gathered;
pub(in crate::apply) mod pipeline;
pub(in crate::apply) mod prepared;
pub(in crate::apply) mod single_statement;
