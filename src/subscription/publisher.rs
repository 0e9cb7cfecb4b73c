//! The publisher's side of an attempt: connections, facts, what is published.

use std::time::Duration;

use crate::apply::TargetSession;
use crate::config::Subscription;
use crate::net::{self, ClientOptions, PgClient};
use crate::pg::{Lsn, SlotName};
use crate::pgoutput::Format;
use crate::replication::{
    CommandError, CommandErrorKind, Origin, ReplicationConnection, ReplicationStream, SessionOptions,
    StartOptions, Streaming,
};
use crate::schema::catalog::{self, PublisherFacts};

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
    pub(super) facts: PublisherFacts,
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
    fn between(publisher: &str, target: Option<&str>) -> Self {
        if publisher == "SQL_ASCII" || target == Some("SQL_ASCII") { Self::Raw } else { Self::Utf8 }
    }

    fn client_encoding(self) -> &'static str {
        match self {
            Self::Utf8 => "UTF8",
            Self::Raw => "SQL_ASCII",
        }
    }
}

impl Publisher {
    pub(super) async fn connect(
        subscription: &Subscription,
        session: &TargetSession,
    ) -> Result<Self, Failure> {
        let client = net::client(&subscription.publisher, &monitor_options(subscription)).await?;
        let facts = catalog::publisher_facts(&*client).await?;
        let target_encoding = session.client().parameter("server_encoding");
        let encoding = Encoding::between(&facts.server_encoding, target_encoding);
        Ok(Self { client, facts, encoding })
    }

    pub(super) async fn replication(
        &self,
        subscription: &Subscription,
    ) -> Result<ReplicationConnection, Failure> {
        let application_name =
            subscription.publisher.application_name.clone().unwrap_or_else(|| subscription.name.to_string());
        let options =
            SessionOptions { application_name, client_encoding: self.encoding.client_encoding().to_owned() };
        Ok(ReplicationConnection::connect(&subscription.publisher, &options).await?)
    }

    pub(super) fn wal_sender_timeout(&self) -> Option<Duration> {
        let timeout = Duration::from_millis(self.facts.wal_sender_timeout_ms.into());
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
                    connection = self.replication(subscription).await?;
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
    settings.push(("statement_timeout".to_owned(), "0".to_owned()));
    ClientOptions { application_name: Some(format!("{} copy", subscription.name)), settings }
}

/// Options for the session that watches slot and publications.
pub(super) fn monitor_options(subscription: &Subscription) -> ClientOptions {
    ClientOptions { application_name: Some(format!("{} monitor", subscription.name)), settings: Vec::new() }
}

fn is_in_use(error: &CommandError) -> bool {
    matches!(&error.kind, CommandErrorKind::Server(error) if error.code == OBJECT_IN_USE)
}
