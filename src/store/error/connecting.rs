//! Errors of opening a session for the state.

use super::{StoreErrorKind, describe};
use crate::error::{Diagnosis, ServerError};
use crate::net::{self, ConnectError};

/// Converts an error of opening a session at `endpoint`.
pub(in crate::store) fn connecting(endpoint: &str, error: sqlx::Error) -> StoreErrorKind {
    let endpoint = endpoint.to_owned();
    match StoreErrorKind::from(error) {
        StoreErrorKind::Server(server) => StoreErrorKind::Refused { endpoint, server },
        StoreErrorKind::Lost(Some(source)) | StoreErrorKind::Undecodable(source) => {
            StoreErrorKind::Unreachable { endpoint, source }
        }
        other => other,
    }
}

/// Converts an error of the session that meets a server first.
pub(in crate::store) fn meeting(endpoint: &str, error: ConnectError) -> StoreErrorKind {
    use net::ConnectErrorKind as K;
    let endpoint = endpoint.to_owned();
    if let Some(server) = error.server_error() {
        return StoreErrorKind::Refused { endpoint, server: Box::new(server.clone()) };
    }
    let (step, is_transient, diagnosis) = (error.step, error.is_transient(), error.diagnosis());
    let told = || {
        std::io::Error::other(match &diagnosis.detail {
            Some(detail) => format!("{}: {detail}", diagnosis.primary),
            None => diagnosis.primary.clone(),
        })
    };
    let source = match *error.kind {
        K::Pooled => return StoreErrorKind::Unsupported(diagnosis),
        K::Connect(source) | K::Resolve(source) | K::Lost(source) => source.into(),
        K::TimedOut(_) => std::io::Error::from(std::io::ErrorKind::TimedOut).into(),
        _ if step == net::Step::Tls && !is_transient => sqlx::Error::Tls(Box::new(told())),
        _ => told().into(),
    };
    StoreErrorKind::Unreachable { endpoint, source }
}

/// Describes a server that was not reached.
pub(super) fn unreachable_diagnosis(endpoint: &str, source: &sqlx::Error) -> Diagnosis {
    let hint = match source {
        sqlx::Error::Tls(_) => {
            "check sslmode and sslrootcert in [target] url, and the server's ssl settings and certificate"
        }
        sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            "check that the server runs and listens there (listen_addresses, port), and [target] url"
        }
        sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            "no answer at all: check the address, the route to it and firewalls in between"
        }
        _ => "check [target] url, name resolution and the network to the server",
    };
    Diagnosis::new(format!("the target at {endpoint} could not be reached"))
        .detail(describe(source))
        .hint(hint)
}

/// Describes a server that let nobody in.
pub(super) fn refused_diagnosis(endpoint: &str, server: &ServerError) -> Diagnosis {
    let hint = match server.code.as_str() {
        "28P01" => "check user and password in [target] url (or the password file)",
        "28000" => "check the target's pg_hba.conf: role, database, address and whether TLS is asked for",
        "3D000" => "create the database, or correct dbname in [target] url",
        "42501" => "grant the role CONNECT on the database",
        "53300" if server.message.contains("for role") => {
            "on the target: raise the role's CONNECTION LIMIT (ALTER ROLE), or close its other sessions"
        }
        "53300" if server.message.contains("for database") => {
            "on the target: raise the database's CONNECTION LIMIT (ALTER DATABASE), or close other sessions"
        }
        "53300" => "raise max_connections on the target, or close other sessions",
        _ => "check [target] url and the target server's log",
    };
    Diagnosis::new(format!("the target at {endpoint} refused the connection"))
        .detail(server.primary())
        .hint(server.hint.as_deref().unwrap_or(hint))
}
