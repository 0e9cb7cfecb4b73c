//! The stream's messages as apply sees them: relations resolved, changes numbered, transactions told
//! apart.

pub(in crate::apply) mod event;
pub(in crate::apply) mod intake;
pub(in crate::apply) mod tables;
