//! The stream's messages as apply sees them: relations resolved, changes numbered, transactions told
//! apart.

pub mod event;
pub mod intake;
pub mod tables;
