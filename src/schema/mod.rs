//! Tables of both sides: described, compared, mapped.

mod desc;

pub use desc::*;
