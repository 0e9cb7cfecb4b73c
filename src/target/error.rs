//! Errors of a target session.

use std::time::Duration;

use crate::error::{Diagnosis, ServerError};
use crate::net::{ConnectError, server_error};

/// A request of the target session failed.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The connection broke or could not be used.
    #[error("the connection to the target was lost")]
    Connection(#[source] tokio_postgres::Error),
    /// The server refused the request.
    #[error("the target reported an error")]
    Server(#[source] Box<ServerError>),
    /// The server does not answer.
    #[error("the target has not answered for {} s", .0.as_secs())]
    Unresponsive(Duration),
}

impl TargetError {
    /// The server's error response, if there is one.
    #[must_use]
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            Self::Server(error) => Some(error),
            Self::Connection(_) | Self::Unresponsive(_) => None,
        }
    }
}

impl From<tokio_postgres::Error> for TargetError {
    fn from(error: tokio_postgres::Error) -> Self {
        match server_error(&error) {
            Some(server) => Self::Server(Box::new(server)),
            None => Self::Connection(error),
        }
    }
}

/// The session could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("could not connect to the target")]
    Connect(#[from] ConnectError),
    #[error("could not prepare the target session")]
    Prepare(#[from] TargetError),
    /// The server is too old: it lacks catalog columns that this program uses.
    #[error("{}", .0.primary)]
    TooOld(Diagnosis),
}

/// The oldest PostgreSQL that rows can be written to, as `server_version_num`.
const TARGET_VERSION_MIN: u32 = 120_000;

/// Describes a target that is too old; none if it is not.
#[must_use]
pub fn too_old(server_version_num: u32) -> Option<Diagnosis> {
    let major = |version| version / 10_000;
    (server_version_num < TARGET_VERSION_MIN).then(|| {
        let (found, needed) = (major(server_version_num), major(TARGET_VERSION_MIN));
        Diagnosis::new(format!("the target is PostgreSQL {found}, pgsluice needs {needed} or later"))
            .detail("Generated columns and collations are read from its catalog, which an older one lacks.")
            .hint(format!(
                "upgrade the target's server to {needed} or later, or name another one in [target] url"
            ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_is_too_old_is_told_which_version_it_takes() {
        assert_eq!(too_old(120_000), None);
        assert_eq!(too_old(180_001), None);
        insta::assert_snapshot!(too_old(110_022).expect("too old"), @r"
        the target is PostgreSQL 11, pgsluice needs 12 or later
          detail: Generated columns and collations are read from its catalog, which an older one lacks.
          hint: upgrade the target's server to 12 or later, or name another one in [target] url
        ");
        assert!(too_old(90_624).is_some());
    }
}
