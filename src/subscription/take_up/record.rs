//! Records the tables that an attempt follows: their identity on both sides, and what has happened to them.

use serde_json::json;
use tracing::info;

use crate::error::{Diagnosis, PauseReason};
use crate::pg::{QualifiedName, quote_ident};
use crate::schema::{Mapping, catalog};
use crate::store::{Members, NewTables, TableNote, TableRecord};
use crate::subscription::context::Context;
use crate::subscription::failure::Failure;
use crate::subscription::followed::{
    Recording, Waiting, identify, is_as_recorded, recordings, targets_to_look_up,
};
use crate::subscription::membership::{Change, Judged, Judgement, TargetOids};
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
    let mut tables = recordings(judged, &mapping, &known.tables);
    if known.is_same_database != Some(true) {
        for recording in &mut tables {
            recording.table.target_oid = None;
        }
    }
    identify_targets(session, &mut tables).await?;
    let tables: Vec<TableRecord> = tables.into_iter().map(|recording| recording.table).collect();
    let is_as_recorded = is_as_recorded(&tables, &known.tables) && publications == known.publications;
    if is_as_recorded && known.is_same_database == Some(true) {
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

/// Looks up the targets that are to be identified.
async fn identify_targets(session: &TargetSession, tables: &mut [Recording<'_>]) -> Result<(), Failure> {
    let (names, oids) = targets_to_look_up(tables);
    if names.is_empty() {
        return Ok(());
    }
    let found: TargetOids =
        catalog::target_oids(&***session.client(), &names, &oids).await?.into_iter().collect();
    let waiting = identify(tables, &found);
    if waiting.is_empty() { Ok(()) } else { Err(renamed_on_the_publisher(&waiting, &found)) }
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
