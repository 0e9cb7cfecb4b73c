//! Options that are parsed but not supported yet; each one reports that.

use crate::error::{Diagnosis, Exit, Failure};

/// The failure of a command that a later version will carry out.
pub(super) fn not_supported(what: &str) -> Failure {
    Failure::new(Exit::Usage, Diagnosis::new(format!("\"{what}\" is not supported yet")))
}
