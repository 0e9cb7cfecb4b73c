//! Why a connection could not be made: the failed step, the place, and the underlying error.
//!
//! This module has types and classification; `explain` turns them into an operator's text. Every
//! failure's disposition is `Retry`, because the service recovers by itself once the fault is removed;
//! callers do the back-off. The chain of sources is `ConnectError` → kind → its source.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::explain;
use super::stream::Encryption;
use crate::error::{Diagnosis, Disposition, ServerError};
use crate::pg::conninfo::{ConnInfo, TargetSessionAttrs};

/// The steps of making a connection, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// The host's name is resolved to addresses.
    Name,
    /// The address is reachable.
    Route,
    /// A server listens on the port and answers.
    Port,
    /// Encryption is negotiated and certificates are verified.
    Tls,
    /// The server authenticates this role and admits it (pg_hba.conf, password, certificate).
    Authentication,
    /// The database exists and accepts this session.
    Database,
    /// The role may replicate and the server has a free WAL sender.
    Replication,
}

impl Step {
    /// Returns the step's name in machine-readable output: the reason in `status --json`, the step in
    /// `check --json`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Route => "route",
            Self::Port => "port",
            Self::Tls => "tls",
            Self::Authentication => "authentication",
            Self::Database => "database",
            Self::Replication => "replication",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls => "TLS",
            other => other.as_str(),
        })
    }
}

/// The purpose of a session, on which some remedies depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Ordinary SQL.
    Sql,
    /// `replication=database`.
    Replication,
}

/// A failure to connect, with everything that an operator needs to know about the attempt.
#[derive(Debug, thiserror::Error)]
#[error("could not connect to {} (step: {step})", endpoint(.host, *.port))]
pub struct ConnectError {
    pub step: Step,
    /// The host as configured: a name, an address, or a socket directory.
    pub host: String,
    pub port: u16,
    #[source]
    pub kind: Box<ConnectErrorKind>,
    pub(super) facts: Box<Facts>,
    /// Other hosts or addresses that also failed, one line each.
    pub(super) others: Vec<String>,
}

/// Facts about the attempt.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) user: String,
    pub(super) dbname: String,
    pub(super) purpose: Purpose,
    /// The address that was tried, once the name was resolved.
    pub(super) address: Option<IpAddr>,
    pub(super) encryption: Encryption,
    pub(super) sslmode: &'static str,
}

/// What went wrong. It never contains secrets.
#[derive(Debug, thiserror::Error)]
pub enum ConnectErrorKind {
    #[error("the host name could not be resolved")]
    Resolve(#[source] io::Error),
    #[error("the host name has no address")]
    NoAddress,
    #[error("the connection could not be established")]
    Connect(#[source] io::Error),
    #[error("no answer within {:.1} s", .0.as_secs_f32())]
    TimedOut(Duration),
    #[error("the server does not offer TLS")]
    TlsNotOffered,
    #[error("the server answered a request for TLS with something else")]
    TlsAnswer,
    #[error("TLS is not set up on this side")]
    TlsSetup(#[source] TlsSetupError),
    #[error("the TLS handshake failed")]
    TlsHandshake(#[source] io::Error),
    #[error("the server did not accept TLS without negotiation")]
    DirectTlsRefused(#[source] Option<io::Error>),
    #[error("the connection broke during start-up")]
    Lost(#[source] io::Error),
    #[error("the server closed the connection during start-up")]
    Closed,
    #[error(transparent)]
    Server(Box<ServerError>),
    /// The session was established, but a setting was refused.
    #[error("the server refused a session setting")]
    Setting(#[source] Box<ServerError>),
    #[error("the server asks for a password and none is configured")]
    PasswordMissing,
    /// Nothing was sent, because the log-in could show the password to others on the network.
    #[error("the password may only be used with TLS, and the connection has none")]
    PasswordWithoutTls,
    #[error("the server asks for {0} authentication, which is not supported")]
    AuthUnsupported(String),
    #[error("channel binding is required and was not used")]
    ChannelBindingMissing,
    #[error("the SCRAM exchange failed")]
    Scram(#[source] io::Error),
    #[error("the peer does not follow PostgreSQL's protocol: {0}")]
    Protocol(String),
    #[error("the server is not what target_session_attrs asks for")]
    SessionAttrs(TargetSessionAttrs),
    /// A connection pooler gives the session's statements to different backends.
    #[error("a connection pooler gives each transaction another session of the server")]
    Pooled,
    #[error("the database driver failed")]
    Driver(#[source] tokio_postgres::Error),
}

/// A file or trust store for TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    #[error("{what} {} could not be read", .path.display())]
    File { what: &'static str, path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("{what} {} holds no PEM section of that kind", .path.display())]
    Empty { what: &'static str, path: PathBuf },
    #[error("the system's trust store holds no certificate")]
    NoSystemRoots,
    #[error("nothing to verify the server's certificate against")]
    NoRoots,
    #[error("\"{0}\" is not a host name that a certificate can be verified for")]
    HostName(String),
    #[error("the certificate or key was not accepted")]
    Rustls(#[from] rustls::Error),
}

/// Formats `host:port`, with a socket's path written as PostgreSQL names it.
pub(super) fn endpoint(host: &str, port: u16) -> String {
    if host.starts_with('/') {
        format!("{host}/.s.PGSQL.{port}")
    } else if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

impl ConnectError {
    /// Returns primary, detail and hint for an operator.
    #[must_use]
    pub fn diagnosis(&self) -> Diagnosis {
        explain::diagnosis(self)
    }

    /// Whether the fault may pass without action: the network, a restart, a server without free
    /// connections. The others (passwords, pg_hba.conf, privileges, certificates) need a person, though
    /// not a restart of pgsluice.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        use ConnectErrorKind as K;
        match &*self.kind {
            K::Resolve(_)
            | K::NoAddress
            | K::Connect(_)
            | K::TimedOut(_)
            | K::Lost(_)
            | K::Closed
            | K::SessionAttrs(_) => true,
            K::Server(error) | K::Setting(error) => error.is_transient(),
            K::TlsHandshake(error) => {
                error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_none()
            }
            K::TlsNotOffered
            | K::TlsAnswer
            | K::TlsSetup(_)
            | K::DirectTlsRefused(_)
            | K::PasswordMissing
            | K::PasswordWithoutTls
            | K::AuthUnsupported(_)
            | K::ChannelBindingMissing
            | K::Scram(_)
            | K::Protocol(_)
            | K::Pooled
            | K::Driver(_) => false,
        }
    }

    /// Always `Retry`: the next attempt notices that the obstacle is gone.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        Disposition::Retry
    }

    /// Returns the server's own error, if the server refused.
    #[must_use]
    pub fn server_error(&self) -> Option<&ServerError> {
        match &*self.kind {
            ConnectErrorKind::Server(error) | ConnectErrorKind::Setting(error) => Some(error),
            _ => None,
        }
    }

    /// Whether another address or host should be tried. As in libpq, a server that rejects the role or
    /// password has decided for all hosts, but one that is starting up or is a standby has not.
    pub(super) fn may_try_next(&self) -> bool {
        use ConnectErrorKind as K;
        match &*self.kind {
            K::Server(error) => error.code == "57P03",
            K::PasswordMissing
            | K::AuthUnsupported(_)
            | K::ChannelBindingMissing
            | K::Scram(_)
            | K::TlsSetup(_)
            | K::Setting(_)
            | K::Pooled
            | K::Driver(_) => false,
            K::Resolve(_)
            | K::NoAddress
            | K::Connect(_)
            | K::TimedOut(_)
            | K::TlsNotOffered
            | K::TlsAnswer
            | K::TlsHandshake(_)
            | K::DirectTlsRefused(_)
            | K::PasswordWithoutTls
            | K::Lost(_)
            | K::Closed
            | K::Protocol(_)
            | K::SessionAttrs(_) => true,
        }
    }

    /// Whether `sslmode` allow or prefer should try again with or without encryption: the handshake
    /// failed, pg_hba.conf rejected this kind of connection, or the password may not be used with it.
    pub(super) fn may_try_other_encryption(&self) -> bool {
        match &*self.kind {
            ConnectErrorKind::TlsHandshake(_) | ConnectErrorKind::PasswordWithoutTls => true,
            ConnectErrorKind::Server(error) => error.code == "28000",
            _ => false,
        }
    }
}

impl Facts {
    pub(super) fn new(info: &ConnInfo, purpose: Purpose) -> Self {
        Self {
            user: info.user.clone(),
            dbname: info.dbname.clone(),
            purpose,
            address: None,
            encryption: Encryption::None,
            sslmode: info.tls.mode.as_str(),
        }
    }
}

/// Derives from the SQLSTATE the step at which a server refused.
pub(super) fn step_of(error: &ServerError) -> Step {
    let text = error.message.to_ascii_lowercase();
    let walsender = text.contains("walsender") || text.contains("wal sender");
    match error.code.as_str() {
        _ if error.class() == "28" => Step::Authentication,
        "42501" if walsender => Step::Replication,
        "53300" if walsender || text.contains("max_wal_senders") => Step::Replication,
        _ => Step::Database,
    }
}
