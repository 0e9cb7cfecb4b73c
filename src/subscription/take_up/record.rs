//! Records the tables that an attempt follows: their identity on both sides, and what has happened to them.

use serde_json::json;
use tracing::info;

use crate::error::{Diagnosis, PauseReason};
use crate::pg::{QualifiedName, quote_ident};
use crate::schema::{Mapping, catalog};
use crate::store::{Members, NewTables, TableNote, TableRecord, TableRow};
use crate::subscription::context::Context;
use crate::subscription::failure::Failure;
use crate::subscription::membership::{
    Change, Judged, Judgement, LetGo, Renamed, TargetOids, called, renamed,
};
use crate::subscription::publication_record::PublicationRecord;
use crate::target::TargetSession;
use crate::telemetry::GapFound;

use super::Known;

/// Whether the record has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    Changed,
    /// It was as it should be, which is the usual case.
    AsItWas,
}

/// Records the tables, unless that would change nothing.
///
/// # Errors
/// Also if a table was renamed on the publisher and its target was not.
pub(super) async fn write(
    context: &Context,
    session: &TargetSession,
    judged: &Judged,
    known: &Known,
    publications: &[PublicationRecord],
    new: NewTables,
    warnings: &mut Vec<Diagnosis>,
) -> Result<Written, Failure> {
    let subscription = &context.subscription;
    let followed = judged.tables.iter().filter(|table| table.left.is_none()).map(|table| &table.source);
    let (mapping, notes) = Mapping::new(&subscription.tables, followed);
    warnings.extend(notes.iter().map(|note| note.diagnosis(&subscription.publications)));
    let mut tables: Vec<(TableRecord, Option<&TableRow>)> =
        judged.tables.iter().map(|table| of(table, &mapping, &known.tables)).collect();
    identify_targets(session, &mut tables).await?;
    let tables: Vec<TableRecord> = tables.into_iter().map(|(table, _)| table).collect();
    let is_recorded = |table: &TableRecord| known.tables.iter().any(|row| is(row, table));
    if tables.len() == known.tables.len()
        && tables.iter().all(is_recorded)
        && publications == known.publications
    {
        return Ok(Written::AsItWas);
    }
    let notes: Vec<TableNote> =
        judged.tables.iter().zip(&tables).filter_map(|(judgement, table)| note(judgement, table)).collect();
    let members = Members { tables: &tables, new, publications, notes: &notes };
    let changes = context.store.record_members(&context.owner, &members).await?;
    for gap in &changes.held {
        GapFound { gap }.emit();
    }
    for note in &notes {
        info!(subscription = context.name(), "{}", note.message);
    }
    Ok(Written::Changed)
}

fn of<'a>(table: &Judgement, mapping: &Mapping, rows: &'a [TableRow]) -> (TableRecord, Option<&'a TableRow>) {
    let row = table.recorded.as_ref().and_then(|recorded| rows.iter().find(|row| row.source == *recorded));
    // The target of a table that has left is the one that it had.
    let mapped = mapping.target(&table.source).filter(|_| table.left.is_none());
    let target = mapped.or(row.map(|row| &row.target)).unwrap_or(&table.source);
    let record = TableRecord {
        recorded: table.recorded.clone(),
        source: table.source.clone(),
        target: target.clone(),
        source_oid: table.oid,
        target_oid: row.and_then(|row| row.target_oid),
        marks: table.marks.clone(),
        left: table.left,
        held: table.gaps.first().filter(|_| table.recorded.is_none()).cloned(),
    };
    (record, row)
}

/// Whether the record has the table so.
fn is(row: &TableRow, table: &TableRecord) -> bool {
    row.source == table.source
        && row.target == table.target
        && row.source_oid == table.source_oid
        && row.target_oid == table.target_oid
        && row.marks == table.marks
        && row.left == table.left
}

/// Looks up the targets whose OIDs are not on record, and those of tables that were renamed on the publisher. A table
/// that leaves keeps its target, whatever that is called now.
async fn identify_targets(
    session: &TargetSession,
    tables: &mut [(TableRecord, Option<&TableRow>)],
) -> Result<(), Failure> {
    let is_renamed = |table: &TableRecord| table.recorded.as_ref().is_some_and(|name| *name != table.source);
    let (mut names, mut oids) = (Vec::new(), Vec::new());
    for (table, row) in tables.iter() {
        if leaves(table) {
            names.push(table.target.clone());
            oids.extend(table.target_oid);
        }
        let moved = row.is_some_and(|row| row.target != table.target);
        if table.left.is_none() && (table.target_oid.is_none() || moved) {
            names.push(table.target.clone());
            if moved && is_renamed(table) {
                names.extend(row.map(|row| row.target.clone()));
                oids.extend(table.target_oid);
            }
        }
    }
    if names.is_empty() {
        return Ok(());
    }
    let found: TargetOids =
        catalog::target_oids(&***session.client(), &names, &oids).await?.into_iter().collect();
    for (table, _) in tables.iter_mut().filter(|(table, _)| leaves(table)) {
        if let Some(name) = table.target_oid.and_then(|oid| called(&found, oid)) {
            table.target.clone_from(name);
        }
    }
    let mut waiting = Vec::new();
    for (table, row) in tables.iter_mut().filter(|(table, _)| table.left.is_none()) {
        if let Some(row) = row.filter(|row| is_renamed(table) && row.target != table.target)
            && let Renamed::NotYet(at) = renamed((&row.target, row.target_oid), &table.target, &found)
        {
            waiting.push(Waiting { source: table.source.clone(), at, to: table.target.clone() });
        }
        if let Some(&oid) = found.get(&table.target) {
            table.target_oid = Some(oid);
        }
    }
    if waiting.is_empty() { Ok(()) } else { Err(renamed_on_the_publisher(&waiting, &found)) }
}

/// Whether the table has left, and its changes may still come.
fn leaves(table: &TableRecord) -> bool {
    table.left.is_some_and(|left| left.gone == LetGo::NotYet)
}

/// A table that was renamed on the publisher, while its target was not.
struct Waiting {
    source: QualifiedName,
    at: QualifiedName,
    to: QualifiedName,
}

fn renamed_on_the_publisher(waiting: &[Waiting], found: &TargetOids) -> Failure {
    let primary = match waiting {
        [one] => {
            format!("table {} was renamed on the publisher, and its target {} was not", one.source, one.at)
        }
        many => format!("{} tables were renamed on the publisher, and their targets were not", many.len()),
    };
    let lines: Vec<String> =
        waiting.iter().map(|one| format!("{} goes into {}", one.source, one.at)).collect();
    // A name that is taken is made free first; that of a table which is renamed as well, for a moment.
    let mut first = Vec::new();
    let mut then = Vec::new();
    for one in waiting {
        let exchanged = waiting.iter().any(|other| other.at == one.to);
        if exchanged {
            let between = QualifiedName::new(&one.at.schema, format!("{}_renamed", one.at.name));
            first.push(rename(&one.at, &between));
            then.push(rename(&between, &one.to));
        } else {
            if found.contains_key(&one.to) {
                let former = QualifiedName::new(&one.to.schema, format!("{}_former", one.to.name));
                first.push(rename(&one.to, &former));
            }
            then.push(rename(&one.at, &one.to));
        }
    }
    first.extend(then);
    let diagnosis = Diagnosis::new(primary)
        .detail(lines.join("\n"))
        .hint(format!("on the target, then it goes on by itself:\n{}", first.concat().trim_end()));
    Failure::pause(PauseReason::Schema, diagnosis)
}

/// The statements that give a table another name and schema.
fn rename(from: &QualifiedName, to: &QualifiedName) -> String {
    let mut sql = String::new();
    if from.schema != to.schema {
        sql += &["ALTER TABLE ", &from.quoted(), " SET SCHEMA ", &quote_ident(&to.schema), ";\n"].concat();
    }
    if from.name != to.name {
        let moved = QualifiedName::new(&to.schema, &from.name);
        sql += &["ALTER TABLE ", &moved.quoted(), " RENAME TO ", &quote_ident(&to.name), ";\n"].concat();
    }
    sql
}

/// What people are told about a table.
fn note(judgement: &Judgement, table: &TableRecord) -> Option<TableNote> {
    let source = &table.source;
    let was = judgement.recorded.as_ref().filter(|recorded| *recorded != source);
    let message = match (judgement.change, judgement.left, was) {
        (Change::Leaves, Some(left), _) => format!(
            "table {source} is not published any more: it is let go once the stream has passed {}",
            left.lsn
        ),
        (Change::LetGo, Some(left), _) => format!(
            "table {source} has been let go: the stream has passed {}, and {} keeps its rows",
            left.lsn, table.target
        ),
        (Change::Replaced, None, Some(was)) => format!(
            "table {source} would go into {}, the target of table {was}, which is not published any more",
            table.target
        ),
        (_, None, Some(was)) => format!("table {was} is now called {source} on the publisher"),
        _ => return None,
    };
    let facts = json!({ "table": source, "was": was, "left_lsn": judgement.left.map(|left| left.lsn) });
    Some(TableNote { message, facts })
}
