//! The record of which tables a subscription follows, and what identifies them.
//!
//! `subscription::membership` decides; here its verdict is written, as one transaction.

use std::collections::HashSet;

use serde_json::{Value, json};
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::boundary;
use crate::gap::{Gap, NewGap};
use crate::pg::{Lsn, QualifiedName};
use crate::schema::Marks;
use crate::subscription::membership::{Left, LetGo};
use crate::subscription::publication_record::PublicationRecord;

use super::columns::saturate;
use super::subscription::unknown;
use super::{
    EventKind, OpenedGap, Ownership, Store, StoreError, StoreErrorKind, TableState, event, gap, lost, owner,
};

/// A table of the subscription as it is to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRecord {
    /// The name that it is recorded under; none for a new table.
    pub recorded: Option<QualifiedName>,
    pub source: QualifiedName,
    pub target: QualifiedName,
    pub source_oid: Option<u32>,
    pub target_oid: Option<u32>,
    pub marks: Option<Marks>,
    pub left: Option<Left>,
    /// A new table that is not to be copied is held by this gap.
    pub held: Option<NewGap>,
}

/// How tables that join a subscription begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewTables {
    /// `pending`: their rows are to be copied.
    Copy,
    /// `ready`: not copied (`copy_data = false`); changes that commit beyond the position apply.
    Ready { synced_lsn: Lsn },
}

/// Something that happened to a table, for the audit of events.
#[derive(Debug, Clone, PartialEq)]
pub struct TableNote {
    pub message: String,
    pub facts: Value,
}

/// Everything about the tables and publications of a subscription.
#[derive(Debug, Clone, Copy)]
pub struct Members<'a> {
    /// All tables; recorded ones that are not among them are deleted.
    pub tables: &'a [TableRecord],
    pub new: NewTables,
    pub publications: &'a [PublicationRecord],
    pub notes: &'a [TableNote],
}

/// A table of another subscription of this database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableOfOther {
    pub subscription: String,
    pub source: QualifiedName,
    pub target: QualifiedName,
    pub target_oid: Option<u32>,
}

/// The result of [`Store::record_members`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableChanges {
    pub added: Vec<QualifiedName>,
    pub removed: Vec<QualifiedName>,
    /// The gaps that hold new tables.
    pub held: Vec<Gap>,
}

impl Store {
    /// The tables that other subscriptions write to this database.
    pub async fn tables_of_others(&self, name: &str) -> Result<Vec<TableOfOther>, StoreError> {
        self.run("read the tables of other subscriptions", async {
            let rows: Vec<(String, String, String, String, String, Option<i64>)> = sqlx::query_as(
                "SELECT subscription, source_schema, source_table, target_schema, target_table, target_oid \
                 FROM pgsluice.table_sync WHERE subscription <> $1 AND let_go_at IS NULL ORDER BY 1, 2, 3",
            )
            .bind(name)
            .fetch_all(&self.pool)
            .await?;
            let table =
                |(subscription, ss, st, ts, tt, oid): (_, String, String, String, String, Option<i64>)| {
                    TableOfOther {
                        subscription,
                        source: QualifiedName::new(ss, st),
                        target: QualifiedName::new(ts, tt),
                        target_oid: oid.and_then(|oid| u32::try_from(oid).ok()),
                    }
                };
            Ok(rows.into_iter().map(table).collect())
        })
        .await
    }

    /// Makes the subscription's tables exactly these: inserts new ones, deletes missing ones, updates the others.
    /// The state of tables that stay is not changed. A table that is renamed keeps its gaps.
    pub async fn record_members(
        &self,
        owner: &Ownership,
        members: &Members<'_>,
    ) -> Result<TableChanges, StoreError> {
        self.run("take up the published tables", async {
            let (name, mut tx) = (owner.name(), self.pool.begin().await?);
            owner::require(&mut tx, owner).await?;
            let known: Option<i32> = sqlx::query_scalar(
                "UPDATE pgsluice.subscription SET publication_record = $2, \
                 record_oid = 'pgsluice.table_sync'::pg_catalog.regclass WHERE name = $1 RETURNING 1",
            )
            .bind(name)
            .bind(Json(members.publications))
            .fetch_optional(&mut *tx)
            .await?;
            known.ok_or_else(|| unknown(name))?;
            let removed = remove_absent(&mut tx, name, members.tables).await?;
            rename(&mut tx, name, members.tables).await?;
            let added = write(&mut tx, name, members).await?;
            let changes = TableChanges { removed, held: hold(&mut tx, name, members.tables).await?, added };
            if changes != TableChanges::default() {
                let message =
                    format!("{} tables added, {} let go", changes.added.len(), changes.removed.len());
                let facts = json!({ "added": changes.added, "removed": changes.removed });
                event::insert(&mut tx, Some(name), EventKind::Table, &message, Some(facts)).await?;
            }
            for note in members.notes {
                event::insert(&mut tx, Some(name), EventKind::Table, &note.message, Some(note.facts.clone()))
                    .await?;
            }
            boundary::deed!("table::take_up", tx.commit().await, Err(lost()))?;
            Ok(changes)
        })
        .await
    }
}

async fn remove_absent(
    session: &mut PgConnection,
    name: &str,
    tables: &[TableRecord],
) -> Result<Vec<QualifiedName>, StoreErrorKind> {
    // A new table may have the name of one that goes.
    let kept: Vec<&QualifiedName> = tables.iter().filter_map(|table| table.recorded.as_ref()).collect();
    let rows: Vec<(String, String)> = sqlx::query_as(
        "DELETE FROM pgsluice.table_sync t WHERE t.subscription = $1 AND NOT EXISTS \
         (SELECT FROM unnest($2::pg_catalog.text[], $3::pg_catalog.text[]) AS w (s, t) \
          WHERE w.s = t.source_schema AND w.t = t.source_table) RETURNING source_schema, source_table",
    )
    .bind(name)
    .bind(kept.iter().map(|table| table.schema.as_str()).collect::<Vec<_>>())
    .bind(kept.iter().map(|table| table.name.as_str()).collect::<Vec<_>>())
    .fetch_all(session)
    .await?;
    Ok(names(rows))
}

/// The name that the record has before it is written.
fn recorded(table: &TableRecord) -> &QualifiedName {
    table.recorded.as_ref().unwrap_or(&table.source)
}

/// Renames rows of the record, in two steps, because tables may have exchanged their names. No schema has an empty
/// name.
async fn rename(
    session: &mut PgConnection,
    name: &str,
    tables: &[TableRecord],
) -> Result<(), StoreErrorKind> {
    let renamed: Vec<&TableRecord> = tables.iter().filter(|table| *recorded(table) != table.source).collect();
    if renamed.is_empty() {
        return Ok(());
    }
    let between: Vec<QualifiedName> =
        (0..renamed.len()).map(|at| QualifiedName::new("", at.to_string())).collect();
    let former: Vec<&QualifiedName> = renamed.iter().map(|table| recorded(table)).collect();
    let now: Vec<&QualifiedName> = renamed.iter().map(|table| &table.source).collect();
    for (from, to) in [(former, between.iter().collect()), (between.iter().collect(), now)] {
        for statement in [
            "UPDATE pgsluice.table_sync t SET source_schema = w.ts, source_table = w.tt FROM unnest( \
             $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[], $5::pg_catalog.text[]) AS w (fs, ft, ts, tt) \
             WHERE t.subscription = $1 AND t.source_schema = w.fs AND t.source_table = w.ft",
            "UPDATE pgsluice.gap t SET source_schema = w.ts, source_table = w.tt FROM unnest( \
             $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[], $5::pg_catalog.text[]) AS w (fs, ft, ts, tt) \
             WHERE t.subscription = $1 AND t.source_schema = w.fs AND t.source_table = w.ft AND t.settled_at IS NULL",
        ] {
            sqlx::query(statement)
                .bind(name)
                .bind(schemas(&from))
                .bind(tables_of(&from))
                .bind(schemas(&to))
                .bind(tables_of(&to))
                .execute(&mut *session)
                .await?;
        }
    }
    Ok(())
}

fn schemas<'a>(names: &[&'a QualifiedName]) -> Vec<&'a str> {
    names.iter().map(|name| name.schema.as_str()).collect()
}

fn tables_of<'a>(names: &[&'a QualifiedName]) -> Vec<&'a str> {
    names.iter().map(|name| name.name.as_str()).collect()
}

/// Writes all rows; returns the new tables.
async fn write(
    session: &mut PgConnection,
    name: &str,
    members: &Members<'_>,
) -> Result<Vec<QualifiedName>, StoreErrorKind> {
    let tables = members.tables;
    let begin = |table: &TableRecord| match (&table.held, members.new) {
        (Some(_), _) => (TableState::Paused, None),
        (None, NewTables::Copy) => (TableState::Pending, None),
        (None, NewTables::Ready { synced_lsn }) => (TableState::Ready, Some(synced_lsn.to_string())),
    };
    let (states, synced): (Vec<TableState>, Vec<Option<String>>) = tables.iter().map(begin).unzip();
    let sources: Vec<&QualifiedName> = tables.iter().map(|table| &table.source).collect();
    let targets: Vec<&QualifiedName> = tables.iter().map(|table| &table.target).collect();
    let lsn = |pick: fn(&Left) -> Option<Lsn>| -> Vec<Option<String>> {
        tables.iter().map(|table| table.left.as_ref().and_then(pick).map(|lsn| lsn.to_string())).collect()
    };
    // xmax is 0 in a row that was inserted rather than updated.
    let rows: Vec<(String, String, bool)> = sqlx::query_as(WRITE)
        .bind(name)
        .bind(schemas(&sources))
        .bind(tables_of(&sources))
        .bind(schemas(&targets))
        .bind(tables_of(&targets))
        .bind(states.iter().map(|state| state.as_str()).collect::<Vec<_>>())
        .bind(synced)
        .bind(tables.iter().map(|table| table.source_oid.map(i64::from)).collect::<Vec<_>>())
        .bind(tables.iter().map(|table| table.target_oid.map(i64::from)).collect::<Vec<_>>())
        .bind(tables.iter().map(|table| table.marks.as_ref().map(Json)).collect::<Vec<_>>())
        .bind(lsn(|left| left.from))
        .bind(lsn(|left| Some(left.lsn)))
        .bind(tables.iter().map(|table| table.left.map(|left| saturate(left.xid))).collect::<Vec<_>>())
        .bind(
            tables
                .iter()
                .map(|table| table.left.is_some_and(|left| left.gone == LetGo::Done))
                .collect::<Vec<_>>(),
        )
        .fetch_all(session)
        .await?;
    let known: HashSet<&QualifiedName> =
        tables.iter().filter(|table| table.recorded.is_some()).map(|table| &table.source).collect();
    let mut added =
        names(rows.into_iter().filter(|(.., inserted)| *inserted).map(|(schema, name, _)| (schema, name)));
    added.retain(|table| !known.contains(table));
    Ok(added)
}

/// Records the gaps of new tables; returns those that were not recorded before.
async fn hold(
    session: &mut PgConnection,
    name: &str,
    tables: &[TableRecord],
) -> Result<Vec<Gap>, StoreErrorKind> {
    let mut held = Vec::new();
    for gap in tables.iter().filter_map(|table| table.held.as_ref()) {
        if let OpenedGap::New(gap) = gap::insert(session, name, gap).await? {
            held.push(gap);
        }
    }
    Ok(held)
}

const WRITE: &str = "INSERT INTO pgsluice.table_sync AS t \
    (subscription, source_schema, source_table, target_schema, target_table, state, synced_lsn, \
     source_oid, target_oid, marks, left_from, left_lsn, left_xid, let_go_at) \
    SELECT $1, w.ss, w.st, w.ts, w.tt, w.state, w.synced::pg_catalog.pg_lsn, w.so, w.tgt, w.marks, \
        w.lf::pg_catalog.pg_lsn, \
        w.ll::pg_catalog.pg_lsn, w.lx, CASE WHEN w.gone THEN now() END \
    FROM unnest($2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[], $5::pg_catalog.text[], \
        $8::pg_catalog.int8[], $9::pg_catalog.int8[], $10::pg_catalog.jsonb[], $11::pg_catalog.text[], \
        $12::pg_catalog.text[], $13::pg_catalog.int8[], $14::pg_catalog.bool[], $6::pg_catalog.text[], \
        $7::pg_catalog.text[]) \
        AS w (ss, st, ts, tt, so, tgt, marks, lf, ll, lx, gone, state, synced) \
    ON CONFLICT (subscription, source_schema, source_table) DO UPDATE \
    SET target_schema = excluded.target_schema, target_table = excluded.target_table, \
        source_oid = excluded.source_oid, target_oid = excluded.target_oid, marks = excluded.marks, \
        left_from = excluded.left_from, left_lsn = excluded.left_lsn, left_xid = excluded.left_xid, \
        let_go_at = CASE WHEN excluded.let_go_at IS NULL THEN NULL ELSE coalesce(t.let_go_at, excluded.let_go_at) END, \
        updated_at = now() \
    WHERE (t.target_schema, t.target_table, t.source_oid, t.target_oid, t.marks, t.left_lsn, t.left_xid, t.let_go_at IS NULL) \
        IS DISTINCT FROM (excluded.target_schema, excluded.target_table, excluded.source_oid, excluded.target_oid, \
        excluded.marks, excluded.left_lsn, excluded.left_xid, excluded.let_go_at IS NULL) \
    RETURNING source_schema, source_table, xmax = 0";

fn names(rows: impl IntoIterator<Item = (String, String)>) -> Vec<QualifiedName> {
    let mut names: Vec<_> = rows.into_iter().map(|(schema, name)| QualifiedName::new(schema, name)).collect();
    names.sort();
    names
}
