//! Finds out for whom the creation of a replication slot waits.

use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Row};

use super::error::CatalogError;
use super::publisher::publisher_query;
use crate::error::Diagnosis;
use crate::pg::{SlotName, quote_literal};

/// The transaction that the creation of slot `$1` waits for, and whose it is. A session's role and application can
/// be read by everybody, its other facts by its own role and with pg_read_all_stats.
const WAITED_FOR: &str = "SELECT w.transactionid::pg_catalog.text AS xid, h.pid, a.usename::pg_catalog.text AS role, \
        a.application_name, a.datname::pg_catalog.text AS database, a.state, \
        pg_catalog.to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS \"UTC\"') AS since, \
        x.gid, x.owner::pg_catalog.text AS owner, x.database::pg_catalog.text AS prepared_in, \
        pg_catalog.to_char(x.prepared AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS \"UTC\"') AS prepared, \
        pg_catalog.pg_is_in_recovery() AS in_recovery \
    FROM pg_catalog.pg_replication_slots s \
    LEFT JOIN pg_catalog.pg_locks w ON w.pid = s.active_pid AND NOT w.granted AND w.locktype = 'transactionid' \
    LEFT JOIN pg_catalog.pg_prepared_xacts x ON x.transaction = w.transactionid \
    LEFT JOIN pg_catalog.pg_locks h ON h.locktype = 'transactionid' AND h.transactionid = w.transactionid \
        AND h.granted AND h.pid IS NOT NULL \
    LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = h.pid \
    WHERE s.slot_name = $1 AND s.confirmed_flush_lsn IS NULL LIMIT 1";

/// Describes for whom the creation of `slot` waits; none if it does not.
///
/// # Errors
///
/// A query failed.
pub async fn slot_waits_for<C: GenericClient + Sync>(
    client: &C,
    slot: &SlotName,
) -> Result<Option<Diagnosis>, CatalogError> {
    let rows = client.query_typed(WAITED_FOR, &[(&slot.as_str(), Type::TEXT)]).await;
    let rows = rows.map_err(publisher_query("for whom the slot waits"))?;
    Ok(rows.first().and_then(waited_for))
}

fn waited_for(row: &Row) -> Option<Diagnosis> {
    let text = |column: &str| row.try_get::<_, Option<String>>(column).ok().flatten();
    let Some(xid) = text("xid") else {
        let in_recovery = row.try_get("in_recovery").unwrap_or(false);
        return in_recovery.then(waits_for_primary);
    };
    if let Some(gid) = text("gid") {
        return Some(waits_for_prepared(&gid, &xid, [text("owner"), text("prepared_in"), text("prepared")]));
    }
    let pid = row.try_get::<_, Option<i32>>("pid").ok().flatten();
    Some(waits_for_session(
        &xid,
        pid,
        &[
            ("role", text("role")),
            ("application", text("application_name").filter(|name| !name.is_empty())),
            ("database", text("database")),
            ("state", text("state")),
            ("open since", text("since")),
        ],
    ))
}

fn waits_for_primary() -> Diagnosis {
    Diagnosis::new("the new replication slot waits for the publisher's primary")
        .detail("the publisher is a standby, and a slot begins at the next list of running transactions")
        .hint("on the primary: SELECT pg_log_standby_snapshot();")
}

fn waits_for_prepared(gid: &str, xid: &str, [owner, database, since]: [Option<String>; 3]) -> Diagnosis {
    let known = |what: &str, value: Option<String>| value.map(|value| format!(", {what} {value}"));
    let facts: String = [known("role", owner), known("database", database), known("prepared at", since)]
        .into_iter()
        .flatten()
        .collect();
    let gid_sql = quote_literal(gid);
    Diagnosis::new(format!(
        "the new replication slot waits for prepared transaction {gid_sql} of the publisher"
    ))
    .detail(format!("transaction {xid}{facts}"))
    .hint(format!(
        "on the publisher, in that database: COMMIT PREPARED {gid_sql}; or ROLLBACK PREPARED {gid_sql};"
    ))
}

fn waits_for_session(xid: &str, pid: Option<i32>, facts: &[(&str, Option<String>)]) -> Diagnosis {
    let mut detail = format!("transaction {xid}");
    if let Some(pid) = pid {
        detail = format!("{detail} of process {pid}");
    }
    for (what, value) in facts {
        if let Some(value) = value {
            detail = format!("{detail}, {what} {value}");
        }
    }
    let hint = match pid {
        Some(pid) => format!(
            "it goes on by itself once that transaction has ended; to end it, on the publisher: SELECT \
             pg_terminate_backend({pid});"
        ),
        None => "it goes on by itself once that transaction has ended".to_owned(),
    };
    Diagnosis::new("the new replication slot waits for an older transaction of the publisher")
        .detail(detail)
        .hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_who_is_waited_for_and_what_ends_it() {
        let some = |text: &str| Some(text.to_owned());
        insta::assert_snapshot!(
            waits_for_session("747", Some(4711), &[("role", some("app")), ("application", None), ("database", some("shop"))]),
            @"
        the new replication slot waits for an older transaction of the publisher
          detail: transaction 747 of process 4711, role app, database shop
          hint: it goes on by itself once that transaction has ended; to end it, on the publisher: SELECT pg_terminate_backend(4711);
        "
        );
        insta::assert_snapshot!(
            waits_for_prepared("o'clock", "748", [some("app"), some("shop"), None]),
            @"
        the new replication slot waits for prepared transaction 'o''clock' of the publisher
          detail: transaction 748, role app, database shop
          hint: on the publisher, in that database: COMMIT PREPARED 'o''clock'; or ROLLBACK PREPARED 'o''clock';
        "
        );
    }
}
