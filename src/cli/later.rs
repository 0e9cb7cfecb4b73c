//! Commands that are parsed but not supported yet; each one reports that.

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

/// The failure of a command that a later version will carry out.
pub(super) fn not_supported(what: &str) -> Failure {
    Failure::new(Exit::Usage, Diagnosis::new(format!("\"{what}\" is not supported yet")))
}
