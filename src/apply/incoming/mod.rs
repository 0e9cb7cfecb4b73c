//! The stream's messages as apply sees them: relations resolved, changes numbered, transactions told
//! apart.

pub(crate) mod event;
pub(crate) mod intake;
pub(crate) mod tables;
