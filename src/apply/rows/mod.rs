//! Row-by-row apply: one publisher transaction is one target transaction, and each change is a statement of
//! its own. So the first change that is refused is known.

pub(crate) mod catch_up;
pub(crate) mod evidence;
pub(crate) mod executor;
pub mod facts;
pub mod plan;
pub(crate) mod writer;
