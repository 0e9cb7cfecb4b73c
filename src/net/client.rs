//! The tokio-postgres client over this crate's stream.
//!
//! ```text
//! establish ─▶ NetStream (TLS already agreed) ─▶ tokio_postgres start-up ─▶ no pooler ─▶ session set-up
//!                                                        │
//!                              driver task ◀── connection ┘   owned by PgClient, ends with it
//! ```
//! tokio-postgres would negotiate TLS itself, but `establish` has already done so. To tokio-postgres,
//! an encrypted stream looks like direct TLS whose handshake does nothing and which offers channel
//! binding.
//!
//! # Invariants
//! - `search_path` is empty before a caller can run anything, so that a function that was created in
//!   `public` is never called by an unqualified name.
//! - The driver task never outlives its `PgClient`, which can tell afterwards why the task ended.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::{self, Ready};
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::config::{ChannelBinding, SslMode, SslNegotiation};
use tokio_postgres::tls::TlsConnect;
use tokio_postgres::{Client, Config, SimpleQueryMessage};
use tracing::debug;

use super::activity::Activity;
use super::driver::{Driver, Ended, drive};
use super::error::{ConnectError, ConnectErrorKind, Purpose, Step};
use super::establish::{Login, LoginError, establish};
use super::metered::{Meter, Metered};
use super::server_error::server_error;
use super::shutdown::Watched;
use super::stream::Encryption;
use super::{Dialed, pooler, server_version_num};
use crate::pg::conninfo::{self, ConnInfo, Host, TargetSessionAttrs};
use crate::pg::{ImposedLimit, Secret, TimeLimits, quote_literal};

/// Longest time for a graceful [`PgClient::close`].
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The parameters that servers report at start-up (`GUC_REPORT`; protocol.sgml, "Asynchronous
/// Operations"). The driver cannot list them; it only returns them by name.
const REPORTED: [&str; 15] = [
    "server_version",
    "server_encoding",
    "client_encoding",
    "application_name",
    "default_transaction_read_only",
    "in_hot_standby",
    "is_superuser",
    "session_authorization",
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "integer_datetimes",
    "standard_conforming_strings",
    "scram_iterations",
    "search_path",
];

/// Options of a session in addition to the connection string.
#[derive(Debug, Clone, Default)]
pub struct ClientOptions {
    /// Replaces the connection string's `application_name`.
    pub application_name: Option<String>,
    /// Run-time parameters to set after connecting: name and value, as in `SET name = value`.
    pub settings: Vec<(String, String)>,
    /// Time-outs of the session's own; all others are lifted.
    pub limits: TimeLimits,
    /// Largest row of a COPY that is taken, bytes. The session then has a [`PgClient::meter`].
    pub copied_row_bytes_max: Option<usize>,
}

/// A tokio-postgres client that owns its connection. Dropping it closes the socket at once;
/// [`close`](Self::close) sends a Terminate message first.
#[derive(Debug)]
pub struct PgClient {
    client: Client,
    driver: Driver,
    ended: watch::Receiver<Option<Ended>>,
    parameters: Vec<(&'static str, String)>,
    server_version_num: u32,
    host: Host,
    encryption: Encryption,
    meter: Option<Arc<Meter>>,
    activity: Arc<Activity>,
}

/// Connects, authenticates and sets the session up, on the first host that satisfies
/// `target_session_attrs`. `connect_timeout` bounds the time for each host.
pub async fn client(info: &ConnInfo, options: &ClientOptions) -> Result<PgClient, ConnectError> {
    establish(info, &SqlLogin(StartUp { info, options, watching: Watching::Yes })).await
}

impl PgClient {
    /// Returns the server's version as a number: 150018 for 15.18.
    #[must_use]
    pub fn server_version_num(&self) -> u32 {
        self.server_version_num
    }

    /// Returns a run-time parameter as the server reported it at start-up, by its exact name
    /// (`server_encoding`, `TimeZone`, …). Later changes are not seen.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// Returns the configured host that this session is connected to.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Whether TLS protects the session.
    #[must_use]
    pub fn encryption(&self) -> Encryption {
        self.encryption
    }

    /// Returns the meter of the rows that a COPY reads, if the session has one.
    #[must_use]
    pub fn meter(&self) -> Option<&Meter> {
        self.meter.as_deref()
    }

    /// For how long nothing has been sent or received.
    #[must_use]
    pub fn quiet_for(&self) -> Duration {
        self.activity.quiet_for()
    }

    /// How many bytes have been sent and received.
    #[must_use]
    pub fn bytes_moved(&self) -> u64 {
        self.activity.bytes()
    }

    /// Returns why the connection ended; `None` while it lasts.
    #[must_use]
    pub fn closed_error(&self) -> Option<Ended> {
        self.ended.borrow().clone()
    }

    /// Waits until the connection ends and returns the reason. Cancel-safe.
    pub async fn closed(&self) -> Ended {
        let mut ended = self.ended.clone();
        let outcome = ended.wait_for(Option::is_some).await;
        outcome.ok().and_then(|ended| ended.clone()).unwrap_or_default()
    }

    /// Sets the session's time-outs. One that the server does not let go of stays, and is what
    /// [`PgClient::imposed_limits`] finds.
    async fn lift_time_limits(&self, limits: TimeLimits) -> Result<(), tokio_postgres::Error> {
        let statements = limits.statements(self.server_version_num);
        match self.batch_execute(&statements.join("; ")).await {
            Err(error) if server_error(&error).is_some() => {}
            done => return done,
        }
        for statement in &statements {
            let Err(error) = self.batch_execute(statement).await else { continue };
            match server_error(&error) {
                Some(refusal) => debug!(error = %refusal, "refused: {statement}"),
                None => return Err(error),
            }
        }
        Ok(())
    }

    /// The time-outs that hold although the session, opened with `limits`, has set them otherwise.
    pub async fn imposed_limits(
        &self,
        limits: TimeLimits,
    ) -> Result<Vec<ImposedLimit>, tokio_postgres::Error> {
        let rows = self.query_typed(&limits.imposed(self.server_version_num), &[]).await?;
        let limit = |row: &tokio_postgres::Row| {
            Ok(ImposedLimit { name: row.try_get(0)?, milliseconds: row.try_get(1)? })
        };
        rows.iter().map(limit).collect()
    }

    /// Closes the socket at once, also for other holders of the client: later requests fail.
    pub fn hang_up(&self) {
        self.driver.abort.abort();
    }

    /// Loses the connection, and returns the error of a request that meets that.
    pub(crate) async fn lose(&self) -> tokio_postgres::Error {
        self.hang_up();
        loop {
            // Fails as soon as the driver has gone, which is when it is next polled.
            if let Err(error) = self.batch_execute("").await {
                return error;
            }
        }
    }

    /// Ends the session with a Terminate message, for a few seconds at most.
    pub async fn close(self) {
        let Self { client, mut driver, .. } = self;
        drop(client);
        // After the time-out, dropping the driver closes the socket without further messages.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, &mut driver.task).await;
    }
}

impl Deref for PgClient {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for PgClient {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// Starts a session up, and sets nothing in it.
pub(super) struct StartUp<'a> {
    pub(super) info: &'a ConnInfo,
    pub(super) options: &'a ClientOptions,
    pub(super) watching: Watching,
}

/// Whether the session ends once its server waits for its clients to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watching {
    Yes,
    /// It is open for a moment only.
    No,
}

impl Login for StartUp<'_> {
    type Session = PgClient;

    fn purpose(&self) -> Purpose {
        Purpose::Sql
    }

    async fn log_in(&self, dialed: Dialed) -> Result<PgClient, LoginError> {
        let Dialed { stream, host } = dialed;
        let password = self.info.password_for(&host);
        let encryption = stream.encryption();
        let config = driver_config(self.info, password, self.options, encryption);
        let meter = self.options.copied_row_bytes_max.map(|max| Arc::new(Meter::new(max)));
        let activity = Arc::<Activity>::default();
        let stream = Metered::new(stream, meter.clone(), Arc::clone(&activity));
        let (client, connection) =
            config.connect_raw(stream, Negotiated).await.map_err(|error| login_error(error, password))?;
        let parameters: Vec<(&'static str, String)> = REPORTED
            .iter()
            .filter_map(|&name| Some((name, connection.parameter(name)?.to_owned())))
            .collect();
        let version = connection.parameter("server_version").unwrap_or("");
        let server_version_num = server_version_num(version).ok_or_else(|| {
            let what = format!("server_version is \"{}\"", version.escape_debug());
            LoginError::new(Step::Database, ConnectErrorKind::Protocol(what))
        })?;
        let watched = (self.watching == Watching::Yes).then(|| Watched::new(self.info, &host));
        let (driver, ended) = drive(connection, watched);
        Ok(PgClient {
            client,
            driver,
            ended,
            parameters,
            server_version_num,
            host,
            encryption,
            meter,
            activity,
        })
    }
}

struct SqlLogin<'a>(StartUp<'a>);

impl Login for SqlLogin<'_> {
    type Session = PgClient;

    fn purpose(&self) -> Purpose {
        self.0.purpose()
    }

    async fn log_in(&self, dialed: Dialed) -> Result<PgClient, LoginError> {
        let StartUp { info, options, .. } = self.0;
        let client = self.0.log_in(dialed).await?;
        // It is boxed because it is large, and rarely runs.
        let second = Box::pin(second(info, options, &client.host));
        pooler::require_one_backend(&client, second).await?;
        set_up(&client, options).await?;
        check_session(&client, info.target_session_attrs).await?;
        Ok(client)
    }
}

/// Opens another session on a host, with nothing set in it.
async fn second(info: &ConnInfo, options: &ClientOptions, host: &Host) -> Result<PgClient, LoginError> {
    let info = ConnInfo { hosts: vec![host.clone()], ..info.clone() };
    let opened = establish(&info, &StartUp { info: &info, options, watching: Watching::No }).await;
    opened.map_err(|ConnectError { step, kind, .. }| LoginError { step, kind })
}

fn driver_config(
    info: &ConnInfo,
    password: Option<&Secret>,
    options: &ClientOptions,
    encryption: Encryption,
) -> Config {
    let mut config = Config::new();
    config.user(&info.user).dbname(&info.dbname);
    if let Some(password) = password {
        config.password(password.expose());
    }
    if let Some(name) = options.application_name.as_ref().or(info.application_name.as_ref()) {
        config.application_name(name);
    }
    if let Some(options) = &info.options {
        config.options(options);
    }
    match encryption {
        Encryption::None => config.ssl_mode(SslMode::Disable),
        Encryption::Tls => config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct),
    };
    config.channel_binding(match info.tls.channel_binding {
        conninfo::ChannelBinding::Disable => ChannelBinding::Disable,
        conninfo::ChannelBinding::Prefer => ChannelBinding::Prefer,
        conninfo::ChannelBinding::Require => ChannelBinding::Require,
    });
    config
}

/// One round trip: nothing is found by its unqualified name, nothing is compiled, the settings asked for hold, and
/// time-outs of the role or the database do not.
async fn set_up(client: &PgClient, options: &ClientOptions) -> Result<(), LoginError> {
    let refused = |error: tokio_postgres::Error| {
        let kind = match server_error(&error) {
            Some(server) => ConnectErrorKind::Setting(Box::new(server)),
            None => ConnectErrorKind::Driver(error),
        };
        LoginError::new(Step::Database, kind)
    };
    if client.parameter("standard_conforming_strings") == Some("off") {
        // The literals below are quoted by the standard's rules. A batch is parsed as a whole, so this
        // has to be set before.
        client.batch_execute("SET standard_conforming_strings = on").await.map_err(refused)?;
    }
    let mut batch = String::from("SELECT pg_catalog.set_config('search_path', '', false)");
    // Queries of the catalogs take less time than compiling them would, which servers do from version 11 on.
    if client.server_version_num >= 110_000 {
        batch.push_str(", pg_catalog.set_config('jit', 'off', false)");
    }
    for (name, value) in &options.settings {
        batch.push_str(", pg_catalog.set_config(");
        batch.push_str(&quote_literal(name));
        batch.push_str(", ");
        batch.push_str(&quote_literal(value));
        batch.push_str(", false)");
    }
    let (set, lifted) = tokio::join!(client.batch_execute(&batch), client.lift_time_limits(options.limits));
    set.and(lifted).map_err(refused)
}

/// Checks `target_session_attrs` against the server's current state (`fe-connect.c`,
/// CONNECTION_CHECK_*).
async fn check_session(client: &PgClient, wanted: TargetSessionAttrs) -> Result<(), LoginError> {
    let (question, unfit) = match wanted {
        TargetSessionAttrs::Any => return Ok(()),
        TargetSessionAttrs::Primary => ("SELECT pg_catalog.pg_is_in_recovery()", "t"),
        TargetSessionAttrs::ReadWrite => ("SHOW transaction_read_only", "on"),
    };
    let driver = |error| LoginError::new(Step::Database, ConnectErrorKind::Driver(error));
    let messages = client.simple_query(question).await.map_err(driver)?;
    let fits = messages.iter().any(
        |message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0).is_some_and(|v| v != unfit)),
    );
    if fits {
        return Ok(());
    }
    Err(LoginError::new(Step::Database, ConnectErrorKind::SessionAttrs(wanted)))
}

/// Classifies a failed start-up. The driver's error kinds are private, so errors that are neither a
/// server's nor an I/O error are recognised by their `Display`; `tests` checks its wording.
fn login_error(error: tokio_postgres::Error, password: Option<&Secret>) -> LoginError {
    use ConnectErrorKind as K;
    if let Some(server) = server_error(&error) {
        return LoginError::server(server);
    }
    if error.is_closed() {
        return LoginError::new(Step::Authentication, K::Closed);
    }
    let own = error.to_string();
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>()).is_some();
    let kind = match (own.as_str(), cause.as_str()) {
        ("authentication error", "server did not use channel binding") => K::ChannelBindingMissing,
        ("authentication error", "unsupported authentication method") => {
            K::AuthUnsupported("Kerberos, GSSAPI or SSPI".to_owned())
        }
        ("authentication error", "unsupported SASL mechanism") => {
            K::AuthUnsupported("another SASL".to_owned())
        }
        ("invalid configuration", "password missing") if password.is_none() => K::PasswordMissing,
        ("authentication error", _) if io => K::Scram(into_io(error)),
        _ if io => match into_io(error) {
            malformed if is_malformed(&malformed) => K::Protocol(malformed.to_string()),
            lost => K::Lost(lost),
        },
        ("unexpected message from server", _) => K::Protocol(own),
        _ => K::Driver(error),
    };
    LoginError::new(Step::Authentication, kind)
}

fn is_malformed(error: &io::Error) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    // The driver's framing reports bytes that are left over at the end as `Other`.
    let malformed = matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::Other
    );
    tls.is_none() && malformed
}

fn into_io(error: tokio_postgres::Error) -> io::Error {
    let Some(source) = error.into_source() else { return io::Error::other("no cause given") };
    source.downcast::<io::Error>().map_or_else(io::Error::other, |io| *io)
}

/// A TLS handshake that has already happened.
pub(super) struct Negotiated;

impl TlsConnect<Metered> for Negotiated {
    type Stream = Metered;
    type Error = Infallible;
    type Future = Ready<Result<Metered, Infallible>>;

    fn connect(self, stream: Metered) -> Self::Future {
        future::ready(Ok(stream))
    }
}
