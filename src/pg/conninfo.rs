//! Where and how to reach a server: libpq's connection parameters, parsed and checked.
//!
//! Pure: environment variables and the password file are read by `config`, which passes what it
//! found. Follows libpq (PostgreSQL's `libpq.sgml`, "Database Connection Control Functions").

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::Secret;

/// One server (or several alternatives, tried in order) and how to authenticate there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnInfo {
    /// Never empty. Tried in order; names are resolved anew at every connection.
    pub hosts: Vec<Host>,
    pub user: String,
    pub password: Option<Secret>,
    pub dbname: String,
    pub tls: TlsSettings,
    /// Bounds each host's name resolution, TCP, TLS and authentication together.
    pub connect_timeout: Duration,
    pub application_name: Option<String>,
    /// `options`: command-line options for the server, such as `-c geqo=off`.
    pub options: Option<String>,
    pub keepalives: Option<Keepalives>,
    /// `tcp_user_timeout`: how long sent data may stay unacknowledged.
    pub tcp_user_timeout: Option<Duration>,
    pub target_session_attrs: TargetSessionAttrs,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub address: HostAddress,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostAddress {
    /// A DNS name or an address in text; what TLS verifies. `hostaddr` spares the look-up.
    Tcp { name: String, hostaddr: Option<IpAddr> },
    /// A directory that holds the server's Unix-domain socket (`.s.PGSQL.port`).
    Unix(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    pub mode: SslMode,
    pub negotiation: SslNegotiation,
    pub root_cert: RootCert,
    /// Client certificate and key, PEM files. Both or none.
    pub client_cert: Option<(PathBuf, PathBuf)>,
    pub channel_binding: ChannelBinding,
}

/// `sslrootcert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootCert {
    /// Not given: nothing to verify against (verify-ca and verify-full are refused while parsing).
    None,
    /// `sslrootcert=system`: the operating system's trust store.
    System,
    File(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslNegotiation {
    Postgres,
    Direct,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

/// TCP keepalive settings; `None` leaves the operating system's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keepalives {
    pub idle: Option<Duration>,
    pub interval: Option<Duration>,
    pub count: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetSessionAttrs {
    Any,
    ReadWrite,
    Primary,
}
