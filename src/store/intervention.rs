//! Commands that change the record of tables: synchronise them again, accept a gap, take up what is published.
//!
//! # Invariants
//! - The change, its event and the command's answer are one transaction. So a command is carried out once, also
//!   if the service dies before or after it.
//! - A table that is to be synchronised again gets the next copy's number: no running copy can be committed.

use std::fmt::Write as _;

use serde_json::json;
use sqlx::{PgConnection, Row as _};

use crate::boundary;
use crate::error::Diagnosis;
use crate::gap::{Gap, Hold, WayOut};
use crate::pg::{Lsn, QualifiedName, as_owner};

use super::command::answer;
use super::gap::{decode, record};
use super::table::unknown_table;
use super::{
    Answer, EventKind, Ownership, Refresh, Resync, Store, StoreError, StoreErrorKind, event, lost, owner,
};

/// A table without a copy number would be made `ready` without a copy if `copy_data` is off.
const BEGIN_AGAIN: &str = "UPDATE pgsluice.table_sync t SET state = 'pending', attempt = t.attempt + 1, \
    resync = $4, resync_by = $5, synced_lsn = NULL, copied_lsn = NULL, error = NULL, rows_copied = 0, updated_at = now() \
    WHERE t.subscription = $1 AND t.source_schema = $2 AND t.source_table = $3 \
    RETURNING t.left_lsn IS NOT NULL";

const FORGET: &str = "DELETE FROM pgsluice.table_sync t WHERE t.subscription = $1 AND t.source_schema = $2 \
    AND t.source_table = $3 AND t.left_lsn IS NOT NULL";

const FORGET_GAPS: &str = "UPDATE pgsluice.gap g SET settled_at = now(), settled_by = $4, settlement = 'resynced' \
    WHERE g.subscription = $1 AND g.source_schema = $2 AND g.source_table = $3 AND g.settled_at IS NULL";

/// Without a position from the command, the gap is accepted up to the recorded one.
const ACCEPT: &str = "UPDATE pgsluice.gap g SET accepted_at = now(), accepted_by = $2, settled_at = now(), \
    settled_by = $2, settlement = 'accepted', accepted_lsn = coalesce($3, (SELECT p.applied_lsn \
        FROM pgsluice.progress p WHERE p.subscription = g.subscription)) WHERE g.id = $1";

/// A gap of the slot is settled once the stream can go on behind it (`progress::pass_gap`).
const ACCEPT_LATER: &str =
    "UPDATE pgsluice.gap SET accepted_at = now(), accepted_by = $2, accepted_lsn = $3 WHERE id = $1";

const REFRESH: &str = "UPDATE pgsluice.subscription SET refresh = $2, refresh_command = $3 WHERE name = $1";

const END_REFRESH: &str = as_owner!(
    " UPDATE pgsluice.subscription s SET refresh = NULL, refresh_command = NULL FROM owner \
     WHERE s.name = owner.name AND s.refresh_command = $3"
);

/// The tables that an operator wants to be synchronised again.
#[derive(Debug, Clone, Copy)]
pub struct ResyncWish<'a> {
    pub tables: &'a [QualifiedName],
    /// Tables that have left, and whose rows are replaced with theirs. They are deleted from the record.
    pub left: &'a [QualifiedName],
    pub how: Resync,
    pub by: &'a str,
}

impl Store {
    /// Records that tables are to be synchronised again, and answers the command. A command that has been
    /// answered changes nothing.
    ///
    /// # Errors
    /// Also [`StoreErrorKind::UnknownTable`], and [`StoreErrorKind::CommandRefused`] for a table that is not published.
    pub async fn resync_tables(
        &self,
        owner: &Ownership,
        command: i64,
        wish: ResyncWish<'_>,
    ) -> Result<Answer, StoreError> {
        let ResyncWish { tables, left, how, by } = wish;
        self.run("record the tables to synchronise again", async {
            let (name, mut tx) = (owner.name(), self.pool.begin().await?);
            owner::require(&mut tx, owner).await?;
            let mut text = format!("{} will be synchronised again ({how}); ", listed(tables));
            if !left.is_empty() {
                let _ = write!(text, "what the target has of {} goes with that; ", listed(left));
            }
            let reply = Answer::done(format!("{text}\"pgsluice status {name}\" shows how far it has come"));
            if !answer(&mut tx, command, &reply).await? {
                return Ok(reply);
            }
            for table in tables {
                let left: Option<bool> = sqlx::query_scalar(BEGIN_AGAIN)
                    .bind(name)
                    .bind(&table.schema)
                    .bind(&table.name)
                    .bind(how.as_str())
                    .bind(by)
                    .fetch_optional(&mut *tx)
                    .await?;
                match left {
                    Some(false) => {}
                    Some(true) => return Err(StoreErrorKind::CommandRefused(not_published(table))),
                    None => return Err(unknown_table(name, table)),
                }
                let message = format!("{table} is to be synchronised again ({how}), asked by {by}");
                let facts = json!({ "table": table, "how": how, "by": by });
                event::insert(&mut tx, Some(name), EventKind::Table, &message, Some(facts)).await?;
            }
            for table in left {
                forget(&mut tx, name, table, by).await?;
            }
            boundary::deed!("table::resync", tx.commit().await, Err(lost()))?;
            Ok(reply)
        })
        .await
    }

    /// Settles a gap of a table as accepted, and answers the command. A held table goes on when tables are
    /// taken up next ([`Store::release_tables`]). A gap of the slot is settled by the attempt that passes it.
    /// `up_to` is the position up to which the gap was shown.
    ///
    /// # Errors
    /// Also [`StoreErrorKind::CommandRefused`].
    pub async fn accept_gap(
        &self,
        owner: &Ownership,
        command: i64,
        id: i64,
        up_to: Option<Lsn>,
        by: &str,
    ) -> Result<(Answer, Gap), StoreError> {
        self.run("accept the gap", async {
            let mut tx = self.pool.begin().await?;
            owner::require(&mut tx, owner).await?;
            let gap = lock_gap(&mut tx, owner.name(), id).await?;
            let range = gap.range();
            let text = match (gap.hold, &gap.table) {
                (Hold::Until, Some(table)) => format!(
                    "gap {id} is accepted: {table} goes on from here, without what may be missing {range} and without \
                     what was passed over since"
                ),
                (Hold::Until, None) => format!(
                    "gap {id} is accepted: the stream goes on from where a slot can, without what may be missing {range}"
                ),
                (Hold::Nothing, _) => format!("gap {id} is accepted: what may be missing {range} stays so"),
            };
            let reply = Answer::done(text);
            if !answer(&mut tx, command, &reply).await? {
                return Ok((reply, gap));
            }
            if let Some(refusal) = refuse(&mut tx, &gap).await?.or_else(|| has_grown(&gap, up_to)) {
                return Err(StoreErrorKind::CommandRefused(refusal));
            }
            let accept = if gap.holds_all() { ACCEPT_LATER } else { ACCEPT };
            sqlx::query(accept).bind(id).bind(by).bind(up_to).execute(&mut *tx).await?;
            record(&mut tx, &gap, &format!("gap {id} was accepted by {by}: {}", gap.may_be_missing()))
                .await?;
            boundary::deed!("gap::accept", tx.commit().await, Err(lost()))?;
            Ok((reply, gap))
        })
        .await
    }

    /// Records that the published tables are to be taken up, and answers the command.
    pub async fn refresh_tables(
        &self,
        owner: &Ownership,
        command: i64,
        refresh: Refresh,
    ) -> Result<Answer, StoreError> {
        self.run("record the wish to take up tables", async {
            let mut tx = self.pool.begin().await?;
            owner::require(&mut tx, owner).await?;
            let reply = Answer::done(match refresh {
                Refresh::Copy => "takes up its publications, and copies tables that join",
                Refresh::NoCopy => "takes up its publications without copying",
            });
            if !answer(&mut tx, command, &reply).await? {
                return Ok(reply);
            }
            sqlx::query(REFRESH)
                .bind(owner.name())
                .bind(refresh.as_str())
                .bind(command)
                .execute(&mut *tx)
                .await?;
            boundary::deed!("table::refresh", tx.commit().await, Err(lost()))?;
            Ok(reply)
        })
        .await
    }

    /// Notes that the tables have been taken up that the command with this number asked for.
    pub async fn end_refresh(&self, owner: &Ownership, command: i64) -> Result<(), StoreError> {
        self.run("note that tables were taken up", async {
            let done = sqlx::query(END_REFRESH)
                .bind(owner.name())
                .bind(owner.term().as_i64())
                .bind(command)
                .execute(&self.pool)
                .await?;
            if done.rows_affected() > 0 { Ok(()) } else { owner::still(&self.pool, owner).await }
        })
        .await
    }
}

fn listed(tables: &[QualifiedName]) -> String {
    tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Deletes a table that has left from the record, and settles its gaps: another table's copy brings its rows.
async fn forget(
    session: &mut PgConnection,
    name: &str,
    table: &QualifiedName,
    by: &str,
) -> Result<(), StoreErrorKind> {
    let forget = sqlx::query(FORGET).bind(name).bind(&table.schema).bind(&table.name);
    forget.execute(&mut *session).await?;
    let settle = sqlx::query(FORGET_GAPS).bind(name).bind(&table.schema).bind(&table.name).bind(by);
    settle.execute(&mut *session).await?;
    let message = format!("{table} has left, and its rows come with another table's from now on");
    event::insert(session, Some(name), EventKind::Table, &message, Some(json!({ "table": table }))).await
}

fn not_published(table: &QualifiedName) -> Diagnosis {
    Diagnosis::new(format!("{table} is not published any more, so it cannot be synchronised again"))
        .hint("publish it again, and then ask for it")
}

/// Reads the subscription's gap with this number, and locks it.
async fn lock_gap(session: &mut PgConnection, name: &str, id: i64) -> Result<Gap, StoreErrorKind> {
    let row = sqlx::query(super::gap::LOCK_ONE).bind(id).bind(name).fetch_optional(session).await?;
    Ok(decode(&row.ok_or_else(|| no_gap(name, id))?)?)
}

pub(super) fn no_gap(name: &str, id: i64) -> StoreErrorKind {
    let refusal = Diagnosis::new(format!("there is no gap {id} of {name}"))
        .hint(format!("\"pgsluice status {name}\" lists its gaps"));
    StoreErrorKind::CommandRefused(refusal)
}

/// Why a gap cannot be accepted that reaches further than it did when it was shown. One of the slot ends where a slot can go
/// on; what is missing behind the position that was shown is a gap of its own then.
fn has_grown(gap: &Gap, shown: Option<Lsn>) -> Option<Diagnosis> {
    let (to, shown) = gap.to.zip(shown).filter(|(to, shown)| to > shown && !gap.holds_all())?;
    let (id, name) = (gap.id, &gap.subscription);
    Some(
        Diagnosis::new(format!("gap {id} reaches further than it did when it was shown"))
            .detail(format!(
                "it was shown up to {shown}, and reaches up to {to}: what was not shown is not accepted"
            ))
            .hint(format!("look at it again (pgsluice status {name}), then ask again")),
    )
}

/// Why the gap cannot be accepted; none if it can.
async fn refuse(session: &mut PgConnection, gap: &Gap) -> Result<Option<Diagnosis>, StoreErrorKind> {
    let (id, name) = (gap.id, &gap.subscription);
    if let Some(settled) = &gap.settled {
        let by = settled.by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
        return Ok(Some(Diagnosis::new(format!("gap {id} has been settled already")).detail(format!(
            "it was {} at {:.0}{by}",
            settled.how.as_str(),
            settled.at
        ))));
    }
    let Some(table) = &gap.table else {
        if gap.ways_out().contains(&WayOut::Accept) {
            return Ok(None);
        }
        let hint = gap.diagnosis().hint.unwrap_or_default();
        return Ok(Some(
            Diagnosis::new(format!("gap {id} concerns all of {name}, and cannot be accepted"))
                .detail("there is no position up to which publisher and target have the same history")
                .hint(hint),
        ));
    };
    if gap.hold == Hold::Nothing {
        return Ok(None);
    }
    let row = sqlx::query(
        "SELECT state FROM pgsluice.table_sync WHERE subscription = $1 AND source_schema = $2 \
         AND source_table = $3 FOR UPDATE",
    )
    .bind(name)
    .bind(&table.schema)
    .bind(&table.name)
    .fetch_optional(session)
    .await?;
    let state = row.map(|row| row.try_get::<String, _>("state")).transpose()?;
    Ok(match state.as_deref() {
        Some("paused") => None,
        Some(_) => Some(
            Diagnosis::new(format!("{table} is not held by gap {id} any more"))
                .detail("it is being synchronised again, which settles the gap")
                .hint(format!("\"pgsluice status {name}\" shows how far it has come")),
        ),
        None => Some(
            Diagnosis::new(format!("{table} is no longer a table of {name}"))
                .detail("it has left the publications")
                .hint("publish it again; it is copied then"),
        ),
    })
}
