//! Texts about a publisher that is not ready, which attempts and `check` share.
//!
//! Pure. The caller decides what follows: an attempt ends or warns, `check` lists the finding.

use std::time::Duration;

use crate::apply::end::LargeRow;
use crate::error::Diagnosis;
use crate::pg::{Lsn, QualifiedName, SubscriptionName, quote_ident, quote_literal};
use crate::pgoutput::{LargeMessage, LargeValue};
use crate::schema::catalog::MissingPublications;
use crate::target::Outsider;

/// The publisher did not say in time what columns its tables have.
pub(crate) fn no_look(within: Duration) -> Diagnosis {
    Diagnosis::new(format!(
        "the publisher did not describe its tables' columns within {} s",
        within.as_secs()
    ))
}

/// The target kept the publisher waiting.
pub(crate) fn stalled(waited: Duration) -> Diagnosis {
    Diagnosis::new(format!("the target has got nothing done for {} s", waited.as_secs()))
        .detail("the stream was closed, so that the publisher does not wait in a write")
        .hint(
            "it goes on by itself once the target answers; look for what holds it up in pg_stat_activity and \
             pg_blocking_pids() there",
        )
}

/// Nothing has come from the publisher, not even a keepalive that was asked for.
pub(crate) fn silent_publisher(waited: Duration) -> Diagnosis {
    Diagnosis::new(format!("the publisher has sent nothing for {} s", waited.as_secs()))
        .detail(
            "it did not answer a request for a keepalive, so the connection counts as dead (peer_timeout)",
        )
        .hint("streaming goes on by itself once the publisher answers; look at the network between")
}

/// What is left of a former session on the target.
pub(crate) fn former_session(pid: i32) -> Diagnosis {
    Diagnosis::new("a former session of this process still holds the lock on the subscription")
        .detail(format!("its backend on the target has process ID {pid}, and was told to end (pg_terminate_backend)"))
        .hint("it goes on by itself once that backend has ended; if its process is stopped, let it go on or kill it")
}

/// Sessions and prepared transactions that are not pgsluice's hold all locks of the subscription.
pub(crate) fn obstructed(outsider: &Outsider) -> Diagnosis {
    let (one, end) = match outsider {
        Outsider::Session { role, pid } => (
            format!(
                "one is of role \"{role}\", with process ID {pid} on the target, which has called pg_advisory_lock"
            ),
            format!("SELECT pg_terminate_backend({pid})"),
        ),
        Outsider::Prepared { transaction } => (
            format!("one is held by a prepared transaction on the target, \"{transaction}\""),
            format!("ROLLBACK PREPARED {}", quote_literal(transaction)),
        ),
    };
    Diagnosis::new("the locks of the subscription are held by sessions that are not pgsluice's")
        .detail(one)
        .hint(format!("end those sessions, for example by {end}; it goes on by itself after that"))
}

/// `wal_level` on the publisher, unless it is what logical decoding needs.
pub(crate) fn wal_level(wal_level: &str) -> Option<Diagnosis> {
    if wal_level == "logical" {
        return None;
    }
    let diagnosis = Diagnosis::new(format!(
        "wal_level is \"{wal_level}\" on the publisher, not \"logical\""
    ))
    .detail("its WAL does not hold what changes of rows are decoded from")
    .hint("on the publisher: ALTER SYSTEM SET wal_level = logical; then restart it (a reload is not enough)");
    Some(diagnosis)
}

/// The publications hold no table at all.
pub(crate) fn nothing_published(publications: &[String]) -> Diagnosis {
    let first = publications.first().map_or("", String::as_str);
    Diagnosis::new("nothing is published: the publications hold no table")
        .detail(format!("publications: {}", publications.join(", ")))
        .hint(format!("on the publisher: ALTER PUBLICATION {} ADD TABLE …;", quote_ident(first)))
}

/// Some of the publications do not exist, and the stream goes on without them.
pub(crate) fn missing_publications(missing: &MissingPublications) -> Diagnosis {
    missing.diagnosis().detail("the others are streamed; tables that only these published are let go")
}

/// No publication that the stream could be asked for exists at its position.
pub(crate) fn no_publication(from: Lsn) -> Diagnosis {
    Diagnosis::new(format!("none of the publications exists where the stream is to go on, at {from}"))
        .detail("before PostgreSQL 18, a publisher sends nothing of a moment at which a publication did not exist")
        .hint("create the publications again on the publisher; the stream then goes on behind that moment, and the tables are held until they are resynchronised")
}

/// A table is published, and tables join only when an operator asks for it.
pub(crate) fn not_followed(table: &QualifiedName, subscription: &SubscriptionName) -> Diagnosis {
    Diagnosis::new(format!("table {table} is published, and not followed"))
        .detail("auto_refresh is false, so that tables join only when that is asked for")
        .hint(format!("pgsluice refresh {subscription}"))
}

/// A row has more bytes than are taken.
pub(crate) fn too_large(row: &LargeRow) -> Diagnosis {
    let LargeMessage { bytes, bytes_max, value } = row.message;
    let table = row.table.as_ref().map_or_else(|| "a table".to_owned(), QualifiedName::to_string);
    let diagnosis = Diagnosis::new(format!(
        "a row of {table} has {bytes} bytes as the publisher sends it, more than max_value_bytes ({bytes_max})"
    ));
    let diagnosis = match (value, &row.column) {
        (Some(LargeValue { bytes, .. }), Some(column)) => {
            diagnosis.detail(format!("the value of column \"{column}\" has {bytes} bytes"))
        }
        _ => diagnosis,
    };
    diagnosis.hint(
        "raise max_value_bytes of the subscription, which is a quarter of the memory that the process may use if it \
         is not set, and reload the configuration (SIGHUP); everything before was applied, and nothing is lost",
    )
}

/// The server is not the recorded publisher.
pub(crate) fn other_publisher(found: &str, recorded: &str, subscription: &SubscriptionName) -> Diagnosis {
    Diagnosis::new("the publisher is not the server that this subscription was created from")
        .detail(format!(
            "its system identifier is {found}, the recorded one is {recorded}: positions of one mean nothing on \
             the other"
        ))
        .hint(format!(
            "point \"publisher\" back at the right server, or start over with \"pgsluice drop {subscription}\""
        ))
}

/// A table is recorded as `ready` from a position before the stream's, but the stream has not applied its
/// changes.
pub(crate) fn passed_over(
    table: &QualifiedName,
    position: Lsn,
    subscription: &SubscriptionName,
) -> Diagnosis {
    Diagnosis::new(format!("table {table} was marked as synchronised while the stream was past its position"))
        .detail(format!(
            "its record says {position}; the changes that the stream has brought since then were passed over"
        ))
        .hint(format!(
            "compare the table on both sides and correct the target's rows, then \"pgsluice resume {subscription}\""
        ))
}

/// All sessions on the target that copies may have are in use.
pub(super) fn no_session_for_a_copy() -> Diagnosis {
    Diagnosis::new("the copy waits for a session on the target")
        .detail("all that target.max_connections leaves for copies are in use by other copies")
        .hint("it goes on by itself; a larger target.max_connections lets more tables be copied at a time")
}
