//! The publisher's side of an attempt: connections, settings, what is published.
//!
//! All that needs nothing of each other is asked for at once: this is what every start, fail-over and
//! reconnect waits for.

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
use crate::schema::PublishedTable;
use crate::schema::catalog::{self, CatalogError, PublisherSettings};
use crate::target::TargetSession;

use super::failure::Failure;
use super::format::Transactions;

/// Values on a publisher session must look as PostgreSQL's own subscriber asks for them
/// (EDGE_CASES 11), in the copy as in the stream.
const VALUE_SETTINGS: &[(&str, &str)] = &[
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    // Money is text in a locale: both sides use the one that every server has.
    ("lc_monetary", "C"),
];

/// The slot may still be active for a walsender that has not noticed yet that we went away.
const SLOT_RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
const SLOT_RELEASE_POLL: Duration = Duration::from_millis(100);
const OBJECT_IN_USE: &str = "55006";

/// What `pgoutput` decodes here.
const PROTO_VERSION: u32 = 2;

/// The publisher, reached by an ordinary session.
#[derive(Debug)]
pub(super) struct Publisher {
    pub(super) client: PgClient,
    pub(super) settings: PublisherSettings,
    pub(super) encoding: Encoding,
}

/// What values are encoded in on the way: both ends' sessions agree on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Utf8,
    /// One side has no encoding (`SQL_ASCII`): bytes pass as they are, and the target judges them.
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

/// All that an attempt asks the publisher before anything is decided. None of it changes anything there.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) publisher: Publisher,
    pub(super) replication: ReplicationConnection,
    pub(super) identity: SystemIdentity,
    /// Judged only once it is certain that this is the right publisher, with its slot.
    pub(super) published: Result<Published, CatalogError>,
}

/// What is published now.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) tables: Vec<PublishedTable>,
    /// From before the tables were read: what changes in between will look changed.
    pub(super) fingerprint: String,
}

/// A way to the publisher that may have been begun before the attempt that needs it. Dropped, it ends.
#[derive(Debug, Default)]
pub(super) struct Reaching(JoinSet<Result<Reached, Failure>>);

impl Reaching {
    pub(super) fn begin(subscription: Arc<Subscription>, session: &TargetSession) -> Self {
        let target_encoding = target_encoding(session).map(str::to_owned);
        let mut task = JoinSet::new();
        task.spawn(async move { reach(&subscription, target_encoding.as_deref()).await });
        Self(task)
    }

    /// Where it has led to; begins here if it has not been begun.
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

/// Reaches the publisher with both its connections. What is wrong with the ordinary session is told first.
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
    // Sent in this order, which the session keeps.
    let (fingerprint, tables) = tokio::try_join!(
        catalog::publications_fingerprint(&**client, publications),
        catalog::published_tables(&**client, client.server_version_num(), publications),
    )?;
    Ok(Published { tables, fingerprint })
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

impl Publisher {
    pub(super) fn wal_sender_timeout(&self) -> Option<Duration> {
        let timeout = Duration::from_millis(self.settings.wal_sender_timeout_ms.into());
        (!timeout.is_zero()).then_some(timeout)
    }

    /// Starts the stream of `slot` at `from`. A slot that is still active is waited for, shortly:
    /// it is most often our own former connection.
    pub(super) async fn start(
        &self,
        subscription: &Subscription,
        mut connection: ReplicationConnection,
        slot: &SlotName,
        from: Lsn,
        format: Format,
        transactions: Transactions,
    ) -> Result<ReplicationStream, Failure> {
        let options = StartOptions {
            slot: slot.clone(),
            start: from,
            proto_version: PROTO_VERSION,
            publications: subscription.publications.clone(),
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
                Ok(stream) => return Ok(stream),
                Err(error) if is_in_use(&error) && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(SLOT_RELEASE_POLL).await;
                    connection = replication(subscription, self.encoding).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Options for sessions that copy rows.
pub(super) fn copy_options(subscription: &Subscription, encoding: Encoding) -> ClientOptions {
    let mut settings: Vec<_> =
        VALUE_SETTINGS.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    settings.push(("client_encoding".to_owned(), encoding.client_encoding().to_owned()));
    ClientOptions {
        application_name: Some(format!("{} copy", subscription.name)),
        settings,
        limits: TimeLimits::NONE,
    }
}

/// Options for the session that watches slot and publications.
pub(super) fn monitor_options(subscription: &Subscription) -> ClientOptions {
    ClientOptions {
        application_name: Some(format!("{} monitor", subscription.name)),
        ..ClientOptions::default()
    }
}

fn is_in_use(error: &CommandError) -> bool {
    matches!(&error.kind, CommandErrorKind::Server(error) if error.code == OBJECT_IN_USE)
}
