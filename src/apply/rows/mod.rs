//! Row by row: one publisher transaction is one target transaction, every change a statement of its
//! own, so that the first one that cannot be applied is known, with the evidence.

pub(in crate::apply) mod catch_up;
pub(in crate::apply) mod evidence;
pub(in crate::apply) mod exact;
pub(in crate::apply) mod executor;
pub mod plan;
