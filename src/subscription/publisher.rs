//! The publisher's side of an attempt: connections, settings, publications.
//!
//! Requests that do not depend on each other are sent at the same time, because every start, fail-over and
//! reconnect waits for them.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::config::Subscription;
use crate::net::{self, ClientOptions, PgClient};
use crate::pg::{Lsn, SlotName, TimeLimits};
use crate::pgoutput::Format;
use crate::replication::{
    CommandError, CommandErrorKind, Origin, ReplicationConnection, ReplicationStream, SessionOptions,
    StartOptions, Streaming, SystemIdentity,
};
use crate::schema::catalog::{self, CatalogError, PublisherSettings};
use crate::target::TargetSession;

use super::failure::Failure;
use super::format::Transactions;

/// Settings for the text form of values, as PostgreSQL's own subscriber sets them. They are the same for copy
/// and stream.
const VALUE_SETTINGS: &[(&str, &str)] = &[
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    // The text of type money depends on the locale. Every server has C, which the target uses, too.
    ("lc_monetary", "C"),
    // Columns of type text keep these forms of binary strings and times.
    ("bytea_output", "hex"),
    ("timezone", "UTC"),
];

/// The publisher refuses a copy from which row-level security would leave rows out.
const NO_HIDDEN_ROWS: (&str, &str) = ("row_security", "off");

/// Maximum time of waiting for a slot that a former walsender still holds.
const SLOT_RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
const SLOT_RELEASE_POLL: Duration = Duration::from_millis(100);
/// SQLSTATE of a slot that is still active.
pub(super) const OBJECT_IN_USE: &str = "55006";

/// The protocol version that the module `pgoutput` decodes.
const PROTO_VERSION: u32 = 2;

/// The publisher, reached by an ordinary session.
#[derive(Debug)]
pub(super) struct Publisher {
    pub(super) client: PgClient,
    pub(super) settings: PublisherSettings,
    pub(super) encoding: Encoding,
}

/// The `client_encoding` of the sessions on both servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Utf8,
    /// One server has the encoding `SQL_ASCII`: bytes are passed on unchanged, and the target checks them.
    Raw,
}

impl Encoding {
    fn between(publisher: Option<&str>, target: Option<&str>) -> Self {
        if publisher == Some("SQL_ASCII") || target == Some("SQL_ASCII") { Self::Raw } else { Self::Utf8 }
    }

    fn client_encoding(self) -> &'static str {
        match self {
            Self::Utf8 => "UTF8",
            Self::Raw => "SQL_ASCII",
        }
    }
}

/// Everything that an attempt reads from the publisher before it decides. Nothing is changed there.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) publisher: Publisher,
    pub(super) replication: ReplicationConnection,
    pub(super) identity: SystemIdentity,
    /// An error here is reported only after the publisher and its slot have been verified.
    pub(super) published: Result<Published, CatalogError>,
}

/// A look at the publications.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) found: catalog::Published,
    /// Read before the tables, so that a change in between is noticed later.
    pub(super) fingerprint: String,
}

/// A connection to the publisher that may have been begun before the attempt that needs it. Dropping it ends
/// the task.
#[derive(Debug, Default)]
pub(super) struct Reaching(JoinSet<Result<Reached, Failure>>);

impl Reaching {
    pub(super) fn begin(subscription: Arc<Subscription>, session: &TargetSession) -> Self {
        let target_encoding = target_encoding(session).map(str::to_owned);
        let mut task = JoinSet::new();
        task.spawn(async move { reach(&subscription, target_encoding.as_deref()).await });
        Self(task)
    }

    /// Waits for the connection; opens it if that has not been begun.
    pub(super) async fn done(
        mut self,
        subscription: &Subscription,
        session: &TargetSession,
    ) -> Result<Reached, Failure> {
        match self.0.join_next().await {
            Some(Ok(reached)) => reached,
            Some(Err(_)) | None => reach(subscription, target_encoding(session)).await,
        }
    }
}

fn target_encoding(session: &TargetSession) -> Option<&str> {
    session.client().parameter("server_encoding")
}

/// Opens both connections to the publisher. If both fail, the error of the ordinary session is returned.
async fn reach(subscription: &Subscription, target_encoding: Option<&str>) -> Result<Reached, Failure> {
    let client = net::client(&subscription.publisher, &monitor_options(subscription)).await?;
    let encoding = Encoding::between(client.parameter("server_encoding"), target_encoding);
    let identified = async {
        let mut replication = replication(subscription, encoding).await?;
        let identity = replication.identify_system().await?;
        Ok::<_, Failure>((replication, identity))
    };
    let (settings, identified, published) = tokio::join!(
        catalog::publisher_settings(&*client),
        identified,
        published(&client, &subscription.publications)
    );
    let settings = settings?;
    let (replication, identity) = identified?;
    Ok(Reached { publisher: Publisher { client, settings, encoding }, replication, identity, published })
}

async fn published(client: &PgClient, publications: &[String]) -> Result<Published, CatalogError> {
    // Both queries are sent in this order, and the server runs them in it.
    let version = client.server_version_num();
    let (look, found) = tokio::try_join!(
        catalog::look_at_publications(&**client, version, publications),
        catalog::published(&**client, version, publications),
    )?;
    Ok(Published { found, fingerprint: look.fingerprint })
}

pub(super) async fn replication(
    subscription: &Subscription,
    encoding: Encoding,
) -> Result<ReplicationConnection, Failure> {
    let application_name =
        subscription.publisher.application_name.clone().unwrap_or_else(|| subscription.name.to_string());
    let options = SessionOptions { application_name, client_encoding: encoding.client_encoding().to_owned() };
    Ok(ReplicationConnection::connect(&subscription.publisher, &options).await?)
}

/// What a stream is asked for.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) publications: Vec<String>,
    pub(super) format: Format,
    pub(super) transactions: Transactions,
}

impl Publisher {
    pub(super) fn wal_sender_timeout(&self) -> Option<Duration> {
        let timeout = Duration::from_millis(self.settings.wal_sender_timeout_ms.into());
        (!timeout.is_zero()).then_some(timeout)
    }

    /// Starts the stream of `slot` at `from`. If the slot is still active, it waits for a short time, because
    /// the slot is usually held by the former connection of this subscription.
    pub(super) async fn start(
        &self,
        subscription: &Subscription,
        mut connection: ReplicationConnection,
        slot: &SlotName,
        from: Lsn,
        wanted: Wanted,
    ) -> Result<ReplicationStream, Failure> {
        let Wanted { publications, format, transactions } = wanted;
        let options = StartOptions {
            slot: slot.clone(),
            start: from,
            proto_version: PROTO_VERSION,
            publications,
            binary: format == Format::Binary,
            streaming: match transactions {
                Transactions::Whole => Streaming::Off,
                Transactions::InProgress => Streaming::On,
            },
            two_phase: false,
            origin: Origin::Any,
            messages: false,
        };
        let deadline = tokio::time::Instant::now() + SLOT_RELEASE_TIMEOUT;
        loop {
            match connection.start(&options).await {
                Ok(mut stream) => {
                    stream.limit_messages(subscription.max_value_bytes);
                    return Ok(stream);
                }
                Err(error) if is_in_use(&error) && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(SLOT_RELEASE_POLL).await;
                    connection = replication(subscription, self.encoding).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// [`VALUE_SETTINGS`] in the form that a session takes.
pub(crate) fn value_settings() -> Vec<(String, String)> {
    VALUE_SETTINGS.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Options for sessions that copy rows.
pub(super) fn copy_options(subscription: &Subscription, encoding: Encoding) -> ClientOptions {
    let mut settings = value_settings();
    settings.push((NO_HIDDEN_ROWS.0.to_owned(), NO_HIDDEN_ROWS.1.to_owned()));
    settings.push(("client_encoding".to_owned(), encoding.client_encoding().to_owned()));
    ClientOptions {
        application_name: Some(format!("{} copy", subscription.name)),
        settings,
        limits: TimeLimits::NONE,
        copied_row_bytes_max: Some(subscription.max_value_bytes),
    }
}

/// Options for sessions that read the catalogs, in which defaults of columns are values, too.
pub(super) fn monitor_options(subscription: &Subscription) -> ClientOptions {
    ClientOptions {
        application_name: Some(format!("{} monitor", subscription.name)),
        settings: value_settings(),
        ..ClientOptions::default()
    }
}

fn is_in_use(error: &CommandError) -> bool {
    matches!(&error.kind, CommandErrorKind::Server(error) if error.code == OBJECT_IN_USE)
}
