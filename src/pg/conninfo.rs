//! libpq's connection parameters, parsed and checked.
//!
//! Pure: `config` finds the environment variables, the password file and libpq's files in the home
//! directory, and passes them in. It follows libpq (PostgreSQL's `libpq.sgml`, "Database Connection
//! Control Functions" and "The Password File"; `fe-connect.c`).
//!
//! ```text
//! text ─syntax─▶ settings ─keywords─▶ known, supported ─build─▶ ConnInfo ◀─passfile─ file's text
//! ```
//! # Invariants
//! - Every problem of a string is reported at once.
//! - No error text repeats the string or a part of it that could belong to a password: values are never
//!   repeated, and an unknown keyword only if it resembles a known one.
//!
//! # Intended differences from libpq
//! - Without a host, `localhost` over TCP is used: a static binary does not know the distribution's
//!   socket directory.
//! - `connect_timeout` is never unlimited: absent, 0 and negative mean [`CONNECT_TIMEOUT_DEFAULT`].
//! - `sslcert` and `sslkey` are given together or not at all.
//! - Known parameters that pgsluice does not support are refused, not ignored.

mod build;
mod keywords;
mod passfile;
mod syntax;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use build::{ConnInfoErrors, DefaultFiles, Defaults, Parsed, Passfile, parse};
pub use passfile::password_for;
pub use syntax::quote_value;

use super::Secret;

/// Default of `connect_timeout`: long enough for a TLS handshake with a distant server, short enough
/// that a firewall that drops packets is noticed soon.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// libpq's shortest `connect_timeout`.
pub const CONNECT_TIMEOUT_MIN: Duration = Duration::from_secs(2);

/// PostgreSQL's default port.
pub const PORT_DEFAULT: u16 = 5432;

/// One server (or several alternatives, tried in order) and how to authenticate there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnInfo {
    /// The hosts in the order in which they are tried; never empty. Names are resolved at every
    /// connection.
    pub hosts: Vec<Host>,
    pub user: String,
    pub password: Option<Secret>,
    pub dbname: String,
    pub tls: TlsSettings,
    /// Bounds each host's name resolution, TCP, TLS and authentication together.
    pub connect_timeout: Duration,
    /// Value of `application_name`, else of `fallback_application_name`.
    pub application_name: Option<String>,
    /// `options`: command-line options for the server, such as `-c geqo=off`.
    pub options: Option<String>,
    /// Keepalive settings; `None` means `keepalives=0`.
    pub keepalives: Option<Keepalives>,
    /// `tcp_user_timeout`: how long sent data may stay unacknowledged.
    pub tcp_user_timeout: Option<Duration>,
    pub target_session_attrs: TargetSessionAttrs,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub address: HostAddress,
    pub port: u16,
    /// The password file's entry for this host, if the hosts have different passwords; it overrides
    /// [`ConnInfo::password`]. Use [`ConnInfo::password_for`].
    pub password: Option<Secret>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostAddress {
    /// A DNS name or an address as text, which TLS verifies. With `hostaddr`, the name is not resolved.
    Tcp { name: String, hostaddr: Option<IpAddr> },
    /// A directory that holds the server's Unix-domain socket (`.s.PGSQL.port`).
    Unix(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// The mode. `require` with a root certificate file becomes `verify-ca`, as libpq documents it.
    pub mode: SslMode,
    pub negotiation: SslNegotiation,
    pub root_cert: RootCert,
    /// PEM files with the client's certificate and key.
    pub client_cert: Option<(PathBuf, PathBuf)>,
    pub channel_binding: ChannelBinding,
    pub passwords: Passwords,
}

/// Over which connections to other machines a password may be used. libpq has no such parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passwords {
    OverAnyConnection,
    OverTlsOnly,
}

/// Value of `sslrootcert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootCert {
    /// Not given. verify-ca and verify-full are refused while parsing.
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

/// Whether the time is bounded for which data that was sent may stay unacknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unacknowledged {
    Bounded,
    /// The system's limit holds. A server that reads nothing, because it waits for a lock, does acknowledge; but
    /// `TCP_USER_TIMEOUT` counts that as nothing once its window is full (`tcp_probe_timer` in Linux).
    Unbounded,
}

impl ConnInfo {
    /// Completes the TCP settings that the connection string does not have, so that a host that is gone is noticed within
    /// about `timeout`.
    #[must_use]
    pub fn noticing_within(mut self, timeout: Duration, unacknowledged: Unacknowledged) -> Self {
        const PROBES: u32 = 3;
        if let Some(keepalives) = &mut self.keepalives {
            keepalives.idle.get_or_insert(timeout / 2);
            keepalives.interval.get_or_insert((timeout / 2 / PROBES).max(Duration::from_secs(1)));
            keepalives.count.get_or_insert(PROBES);
        }
        if unacknowledged == Unacknowledged::Bounded {
            self.tcp_user_timeout.get_or_insert(timeout);
        }
        self
    }

    /// Returns the password for `host`.
    #[must_use]
    pub fn password_for<'a>(&'a self, host: &'a Host) -> Option<&'a Secret> {
        host.password.as_ref().or(self.password.as_ref())
    }

    /// Whether logging in on `host` without TLS would let others on the network learn the password. A server asks for
    /// it in clear text or as MD5, or lets it be guessed from the messages of SCRAM; a client cannot know which before.
    #[must_use]
    pub fn exposes_password(&self, host: &Host) -> bool {
        self.password_for(host).is_some() && !host.address.is_local()
    }

    /// Whether the connection to `host` must be encrypted because of its password.
    #[must_use]
    pub fn requires_tls(&self, host: &Host) -> bool {
        self.tls.passwords == Passwords::OverTlsOnly && self.exposes_password(host)
    }

    /// Returns the parts that may be logged and shown, never a password and never `options`, such as
    /// `host=db-master port=5432 user=sammy dbname=example sslmode=prefer`.
    pub fn redacted(&self) -> impl fmt::Display + '_ {
        Redacted(self)
    }
}

struct Redacted<'a>(&'a ConnInfo);

impl fmt::Display for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let conninfo = self.0;
        let list = |part: fn(&Host) -> String| {
            quote_value(&conninfo.hosts.iter().map(part).collect::<Vec<_>>().join(","))
        };
        write!(f, "host={}", list(|host| host.address.to_string()))?;
        let pinned = |host: &Host| match &host.address {
            HostAddress::Tcp { hostaddr: Some(ip), .. } => ip.to_string(),
            HostAddress::Tcp { hostaddr: None, .. } | HostAddress::Unix(_) => String::new(),
        };
        let adds = |pinned: &str, host: &Host| !pinned.is_empty() && pinned != host.address.to_string();
        if conninfo.hosts.iter().any(|host| adds(&pinned(host), host)) {
            write!(f, " hostaddr={}", list(pinned))?;
        }
        write!(
            f,
            " port={} user={} dbname={} sslmode={}",
            list(|host| host.port.to_string()),
            quote_value(&conninfo.user),
            quote_value(&conninfo.dbname),
            conninfo.tls.mode.as_str()
        )
    }
}

impl HostAddress {
    /// Whether what is sent there stays on this machine: a socket's directory, a loopback address, or `localhost`
    /// (RFC 6761). Other names are not looked up for this.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { hostaddr: Some(address), .. } => address.to_canonical().is_loopback(),
            Self::Tcp { name, hostaddr: None } => match name.parse::<IpAddr>() {
                Ok(address) => address.to_canonical().is_loopback(),
                Err(_) => name.strip_suffix('.').unwrap_or(name).eq_ignore_ascii_case("localhost"),
            },
        }
    }
}

/// Writes the host as a connection string gives it.
impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { name, .. } => f.write_str(name),
            Self::Unix(directory) => write!(f, "{}", directory.display()),
        }
    }
}

impl SslMode {
    /// Returns libpq's name of the mode.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

#[cfg(test)]
mod tests;
