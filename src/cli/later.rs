//! Commands of the contract that are not built yet: they parse, and say so.

use crate::error::{Diagnosis, Exit, Failure};

use super::{RefreshArgs, ResyncArgs};

pub(super) fn refresh(args: &RefreshArgs) -> Result<Exit, Failure> {
    let RefreshArgs { name: _, no_copy: _ } = args;
    Err(not_supported("refresh"))
}

pub(super) fn resync(args: &ResyncArgs) -> Result<Exit, Failure> {
    let ResyncArgs { name: _, table: _ } = args;
    Err(not_supported("resync"))
}

/// The failure of what a later version will do.
pub(super) fn not_supported(what: &str) -> Failure {
    Failure::new(Exit::Usage, Diagnosis::new(format!("\"{what}\" is not supported yet")))
}
