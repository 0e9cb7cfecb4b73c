//! Row by row: one publisher transaction is one target transaction, every change a statement of its
//! own, so that the first one that cannot be applied is known, with the evidence.

pub(crate) mod catch_up;
pub(crate) mod evidence;
pub(crate) mod executor;
pub mod facts;
pub mod plan;
pub(crate) mod writer;
