//! Establishes a session: tries hosts in order, addresses in order, and encryption as `sslmode` says.
//!
//! ```text
//! for host:  name ─▶ for address:  for wish in sslmode's order:  TCP ─▶ TLS ─▶ log in
//! ```
//! Logging in is part of the loop, because its outcome decides what comes next: with `allow` and
//! `prefer`, pg_hba.conf may admit the other kind of connection; a server that is starting up, or a
//! standby where a primary is wanted, makes the next host be tried; a refused password ends the search
//! (libpq.sgml, "Specifying Multiple Hosts").
//!
//! # Invariants
//! - Where a password needs TLS (`service.password_requires_tls`), no log-in begins without.
//! - `connect_timeout` bounds each host as a whole. Several addresses share it evenly, so that one that
//!   drops packets does not use up the time of the next.
//! - The error returned is that of the attempt that got furthest; it lists the others.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::error::{ConnectError, ConnectErrorKind, Facts, Purpose, Step};
use super::paced::PacedTcp;
use super::socket::{connect_tcp, connect_unix, resolve};
use super::stream::{Encryption, NetStream};
use super::tls::{Wish, negotiate};
use super::{Dialed, explain};
use crate::pg::conninfo::{ConnInfo, Host, HostAddress, SslMode, SslNegotiation};

/// Replaces a `connect_timeout` of zero, which means "wait for ever" in libpq; here every wait is
/// bounded.
const CONNECT_TIMEOUT_FALLBACK: Duration = Duration::from_mins(1);

/// Turns a fresh stream into a session.
pub(crate) trait Login {
    type Session;

    fn purpose(&self) -> Purpose;

    /// Starts up and authenticates. The caller bounds the time and drops the future when it is over.
    fn log_in(&self, dialed: Dialed) -> impl Future<Output = Result<Self::Session, LoginError>> + Send;
}

/// A failure to log in, without the host and address.
#[derive(Debug)]
pub(crate) struct LoginError {
    pub(crate) step: Step,
    pub(crate) kind: Box<ConnectErrorKind>,
}

impl LoginError {
    pub(crate) fn new(step: Step, kind: ConnectErrorKind) -> Self {
        Self { step, kind: Box::new(kind) }
    }

    /// An error response of the server; the step follows from its SQLSTATE.
    pub(crate) fn server(error: crate::error::ServerError) -> Self {
        Self::new(super::error::step_of(&error), ConnectErrorKind::Server(Box::new(error)))
    }
}

/// Finds a host that admits this role.
pub(crate) async fn establish<L: Login>(info: &ConnInfo, login: &L) -> Result<L::Session, ConnectError> {
    let mut failures = Vec::new();
    for host in &info.hosts {
        let mut attempt = Attempt::new(info, host, login.purpose());
        match attempt.host(login, &mut failures).await {
            Some(session) => return Ok(session),
            None if failures.last().is_none_or(ConnectError::may_try_next) => {}
            None => break,
        }
    }
    Err(furthest(failures).unwrap_or_else(|| no_hosts(info, login.purpose())))
}

/// The attempt on one host, and what is known of it so far.
struct Attempt<'a> {
    info: &'a ConnInfo,
    host: &'a Host,
    facts: Facts,
    limit: Duration,
    /// Each address's share of `limit`, which is also reported as the time waited: a measured time
    /// would make each repetition of the same failure a new diagnosis.
    share: Duration,
}

impl<'a> Attempt<'a> {
    fn new(info: &'a ConnInfo, host: &'a Host, purpose: Purpose) -> Self {
        let limit = match info.connect_timeout {
            Duration::ZERO => CONNECT_TIMEOUT_FALLBACK,
            limit => limit,
        };
        Self { info, host, facts: Facts::new(info, purpose), limit, share: limit }
    }

    /// Tries every address of the host and appends the failures in order.
    async fn host<L: Login>(&mut self, login: &L, failures: &mut Vec<ConnectError>) -> Option<L::Session> {
        let deadline = Instant::now() + self.limit;
        let (name, hostaddr) = match &self.host.address {
            HostAddress::Unix(directory) => {
                let outcome = self.unix(directory, login, deadline).await;
                return outcome.map_err(|error| failures.push(error)).ok();
            }
            HostAddress::Tcp { name, hostaddr } => (name, *hostaddr),
        };
        let looked_up = timeout_at(deadline, resolve(name, hostaddr, self.host.port)).await;
        let addresses = match looked_up.unwrap_or(Err(ConnectErrorKind::TimedOut(self.limit))) {
            Ok(addresses) => addresses,
            Err(kind) => {
                failures.push(self.error(Step::Name, kind));
                return None;
            }
        };
        self.share = self.limit / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
        for (index, &address) in addresses.iter().enumerate() {
            let left = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            match self.address(name, address, login, Instant::now() + share).await {
                Ok(session) => return Some(session),
                Err(error) => {
                    let go_on = error.may_try_next();
                    failures.push(error);
                    if !go_on {
                        return None;
                    }
                }
            }
        }
        None
    }

    /// Tries one address, with and without encryption as `sslmode` says.
    async fn address<L: Login>(
        &mut self,
        name: &str,
        address: SocketAddr,
        login: &L,
        deadline: Instant,
    ) -> Result<L::Session, ConnectError> {
        self.facts.address = Some(address.ip());
        let (first, second) = wishes(self.info);
        let error = match self.wish(name, address, first, login, deadline).await {
            Ok(session) => return Ok(session),
            Err(error) => error,
        };
        // If the server offered no TLS, the attempt was already unencrypted.
        let was_plain = self.facts.encryption == Encryption::None
            && !matches!(*error.kind, ConnectErrorKind::TlsHandshake(_));
        match second {
            Some(second) if error.may_try_other_encryption() && (second != Wish::Plain || !was_plain) => {
                match self.wish(name, address, second, login, deadline).await {
                    Ok(session) => Ok(session),
                    Err(other) if other.step > error.step => Err(other),
                    Err(_) => Err(error),
                }
            }
            _ => Err(error),
        }
    }

    async fn wish<L: Login>(
        &mut self,
        name: &str,
        address: SocketAddr,
        wish: Wish,
        login: &L,
        deadline: Instant,
    ) -> Result<L::Session, ConnectError> {
        self.facts.encryption = Encryption::None;
        let share = self.share;
        let late = || ConnectErrorKind::TimedOut(share);
        let tcp = match timeout_at(deadline, connect_tcp(address, self.info)).await {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(error)) => return Err(self.error(step_of_io(&error), ConnectErrorKind::Connect(error))),
            Err(_) => return Err(self.error(Step::Port, late())),
        };
        let negotiated =
            timeout_at(deadline, negotiate(PacedTcp::new(tcp), wish, name, &self.info.tls)).await;
        let stream =
            negotiated.unwrap_or_else(|_| Err(late())).map_err(|kind| self.error(Step::Tls, kind))?;
        self.log_in(stream, login, deadline).await
    }

    async fn unix<L: Login>(
        &mut self,
        directory: &Path,
        login: &L,
        deadline: Instant,
    ) -> Result<L::Session, ConnectError> {
        let connected = timeout_at(deadline, connect_unix(directory, self.host.port)).await;
        let stream = match connected {
            Ok(Ok(stream)) => NetStream::Unix(stream),
            Ok(Err(error)) => return Err(self.error(Step::Port, ConnectErrorKind::Connect(error))),
            Err(_) => return Err(self.error(Step::Port, ConnectErrorKind::TimedOut(self.limit))),
        };
        self.log_in(stream, login, deadline).await
    }

    async fn log_in<L: Login>(
        &mut self,
        stream: NetStream,
        login: &L,
        deadline: Instant,
    ) -> Result<L::Session, ConnectError> {
        self.facts.encryption = stream.encryption();
        if self.facts.encryption == Encryption::None && self.info.requires_tls(self.host) {
            return Err(self.error(Step::Tls, ConnectErrorKind::PasswordWithoutTls));
        }
        let dialed = Dialed { stream, host: self.host.clone() };
        match timeout_at(deadline, login.log_in(dialed)).await {
            Ok(Ok(session)) => Ok(session),
            Ok(Err(error)) => Err(self.error(error.step, *error.kind)),
            Err(_) => Err(self.error(Step::Authentication, ConnectErrorKind::TimedOut(self.share))),
        }
    }

    fn error(&self, step: Step, kind: ConnectErrorKind) -> ConnectError {
        let host = match &self.host.address {
            HostAddress::Tcp { name, .. } => name.clone(),
            HostAddress::Unix(directory) => directory.display().to_string(),
        };
        ConnectError {
            step,
            host,
            port: self.host.port,
            kind: Box::new(kind),
            facts: Box::new(self.facts.clone()),
            others: Vec::new(),
        }
    }
}

/// Returns the encryption to try first, and the one to fall back to.
fn wishes(info: &ConnInfo) -> (Wish, Option<Wish>) {
    match (info.tls.mode, info.tls.negotiation) {
        (SslMode::Disable, _) => (Wish::Plain, None),
        (_, SslNegotiation::Direct) => (Wish::Tls, None),
        (SslMode::Allow, SslNegotiation::Postgres) => (Wish::Plain, Some(Wish::Tls)),
        (SslMode::Prefer, SslNegotiation::Postgres) => (Wish::TlsIfOffered, Some(Wish::Plain)),
        (SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull, SslNegotiation::Postgres) => {
            (Wish::Tls, None)
        }
    }
}

/// A missing route is another step than a missing listener.
fn step_of_io(error: &std::io::Error) -> Step {
    match error.kind() {
        std::io::ErrorKind::NetworkUnreachable | std::io::ErrorKind::HostUnreachable => Step::Route,
        _ => Step::Port,
    }
}

/// Returns the error of the first attempt that got furthest, with the others listed in it.
fn furthest(failures: Vec<ConnectError>) -> Option<ConnectError> {
    let best = failures.iter().enumerate().max_by_key(|(index, e)| (e.step, std::cmp::Reverse(*index)))?.0;
    let mut others = Vec::new();
    let mut chosen = None;
    for (index, failure) in failures.into_iter().enumerate() {
        if index == best {
            chosen = Some(failure);
        } else {
            others.push(explain::one_line(&failure));
        }
    }
    chosen.map(|error| ConnectError { others, ..error })
}

/// The error for an empty list of hosts. `ConnInfo` always has one, but an error is better than a
/// panic.
fn no_hosts(info: &ConnInfo, purpose: Purpose) -> ConnectError {
    ConnectError {
        step: Step::Name,
        host: String::new(),
        port: 0,
        kind: Box::new(ConnectErrorKind::NoAddress),
        facts: Box::new(Facts::new(info, purpose)),
        others: Vec::new(),
    }
}
