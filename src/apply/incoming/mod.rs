//! The incoming stream: messages become events, and Relation messages are compared with the target.

pub mod ahead;
pub mod event;
pub mod intake;
pub mod tables;
