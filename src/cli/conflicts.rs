//! `pgsluice conflicts [list|show|resolve]` shows what stopped a subscription and records decisions
//! about it.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::Serialize;
use serde_json::json;

use crate::config::Config;
use crate::conflict::{ConflictReport, FieldValue, Operation, Resolution, RowImage};
use crate::error::{Diagnosis, Exit, Failure};
use crate::store::{ConflictFilter, ConflictRow, Verb};

use super::output::{self, BAD, BOLD, GOOD, field, plain};
use super::{ConflictsArgs, ConflictsCommand, ResolveArgs, ask, context, later};

/// Largest number of local rows shown beside the incoming one; JSON has all of them.
const LOCAL_ROWS_MAX: usize = 4;
/// Largest number of a key's characters in a list.
const KEY_CHARS_MAX: usize = 60;

#[derive(Serialize)]
struct ConflictsDocument {
    conflicts: Vec<ConflictRow>,
}

/// Parser of `--with`; help and shell completions list its names.
pub(super) fn resolution_parser() -> impl TypedValueParser<Value = Resolution> {
    PossibleValuesParser::new(Resolution::ALL.map(Resolution::as_str))
        .try_map(|word| word.parse::<Resolution>())
}

pub(super) async fn run(config: &Config, args: ConflictsArgs) -> Result<Exit, Failure> {
    match args.command.unwrap_or(ConflictsCommand::List { all: false }) {
        ConflictsCommand::List { all } => {
            let filter = if all { ConflictFilter::All } else { ConflictFilter::Open };
            list(config, filter, args.json).await
        }
        ConflictsCommand::Show { id } => show(config, id, args.json).await,
        ConflictsCommand::Resolve(resolve_args) => resolve(config, &resolve_args).await,
    }
}

async fn list(config: &Config, filter: ConflictFilter<'_>, json: bool) -> Result<Exit, Failure> {
    let store = context::open(config).await?;
    let conflicts = store.conflicts(filter).await?;
    store.close().await;
    if json {
        output::print_json(&ConflictsDocument { conflicts })?;
    } else {
        output::print(&render_list(&conflicts))?;
    }
    Ok(Exit::Fine)
}

async fn show(config: &Config, id: i64, json: bool) -> Result<Exit, Failure> {
    let store = context::open(config).await?;
    let conflict = store.conflict(id).await?;
    store.close().await;
    if json {
        output::print_json(&conflict)?;
    } else {
        output::print(&render(&conflict))?;
    }
    Ok(Exit::Fine)
}

async fn resolve(config: &Config, args: &ResolveArgs) -> Result<Exit, Failure> {
    match args.with {
        _ if args.dry_run => return Err(later::not_supported("conflicts resolve --dry-run")),
        Resolution::ApplyRemote | Resolution::KeepLocal => {
            return Err(later::not_supported(&format!("conflicts resolve --with {}", args.with)));
        }
        Resolution::Retry | Resolution::SkipTransaction => {}
    }
    let store = context::open(config).await?;
    let conflict = store.conflict(args.id).await?;
    if conflict.settled.is_some() {
        let diagnosis = Diagnosis::new(format!("conflict {} has been settled already", args.id))
            .hint(format!("\"pgsluice conflicts show {}\" says how", args.id));
        return Err(Failure::new(Exit::No, diagnosis));
    }
    let wish = json!({ "conflict_id": args.id, "resolution": args.with });
    let exit = ask::ask(&store, &conflict.report.subscription, Verb::Resolve, &wish).await;
    store.close().await;
    exit
}

fn render_list(conflicts: &[ConflictRow]) -> String {
    if conflicts.is_empty() {
        return "no conflicts\n".to_owned();
    }
    let headings = ["id", "subscription", "type", "table", "key", "finish LSN", "first met", "state"];
    let mut table = output::table(&headings);
    for row in conflicts {
        let report = &row.report;
        table.add_row([
            row.id.to_string(),
            plain(&report.subscription),
            report.kind.to_string(),
            plain(&report.target.to_string()),
            report.key.as_ref().map_or_else(String::new, |key| short(&plain(&key.to_string()))),
            report.commit_lsn.to_string(),
            output::time(row.created_at),
            row.settled.as_ref().map_or_else(|| "open".to_owned(), |it| it.resolution.to_string()),
        ]);
    }
    // Each conflict keeps to one line, so that keys are not broken and can be searched for.
    table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    let mut text = String::new();
    output::push_table(&mut text, &table);
    text
}

/// Shortens a key to the width of a line in the list; `conflicts show` prints all of it.
fn short(key: &str) -> String {
    let cut = if key.chars().count() > KEY_CHARS_MAX { "…" } else { "" };
    key.chars().take(KEY_CHARS_MAX).chain(cut.chars()).collect()
}

fn render(row: &ConflictRow) -> String {
    let report = &row.report;
    let state = match &row.settled {
        None => format!("{BAD}open{BAD:#}"),
        Some(settled) => {
            let by = settled.by.as_deref().unwrap_or("unknown");
            format!(
                "{GOOD}settled{GOOD:#} {}: {} by {}",
                output::time(settled.at),
                settled.resolution,
                plain(by)
            )
        }
    };
    let mut text = format!("{BOLD}conflict {}{BOLD:#}: {} ({state})\n", row.id, report.kind);
    facts(&mut text, row);
    let rows = comparison(report);
    output::push_table(&mut text, &rows);
    if report.local_rows.len() > LOCAL_ROWS_MAX {
        let more = report.local_rows.len() - LOCAL_ROWS_MAX;
        field(&mut text, "more", &format!("{more} more of the target's rows; --json shows all"));
    }
    if row.settled.is_none() {
        field(&mut text, "next", &report.hint(row.id));
    }
    text
}

fn facts(text: &mut String, row: &ConflictRow) {
    let report = &row.report;
    field(text, "subscription", &report.subscription);
    let tables = if report.source == report.target {
        report.target.to_string()
    } else {
        format!("{} → {}", report.source, report.target)
    };
    field(text, "table", &tables);
    let count = report.change_count.map_or_else(String::new, |count| format!(" of {count}"));
    let place = match report.operation {
        Operation::Commit => format!("commit, after {} changes", report.change_index),
        other => format!("{other}, change {}{count}", report.change_index),
    };
    field(text, "operation", &place);
    let committed =
        report.commit_time.map_or_else(String::new, |at| format!(", committed {}", output::time(at)));
    let transaction = format!("{}, finishes at {}{committed}", report.xid, report.commit_lsn);
    field(text, "transaction", &transaction);
    if let Some(key) = &report.key {
        field(text, "key", &key.to_string());
    }
    if let Some(constraint) = &report.constraint {
        field(text, "constraint", constraint);
    }
    let code = report.sqlstate.as_ref().map_or_else(String::new, |code| format!(" (SQLSTATE {code})"));
    field(text, "message", &format!("{}{code}", report.message));
    if let Some(detail) = &report.server_detail {
        field(text, "detail", detail);
    }
    let met = match row.occurrences {
        1 => output::time(row.created_at),
        times => {
            format!(
                "{times} times, first {}, last {}",
                output::time(row.created_at),
                output::time(row.seen_at)
            )
        }
    };
    field(text, "met", &met);
}

/// Shows the rows side by side, one column of the table per line: the incoming row, the old row, the
/// target's rows. Columns whose target value differs from the incoming one are marked.
fn comparison(report: &ConflictReport) -> comfy_table::Table {
    let local: Vec<_> = report.local_rows.iter().take(LOCAL_ROWS_MAX).collect();
    let mut headings = vec!["column".to_owned(), String::new()];
    headings.extend(report.incoming.as_ref().map(|_| "incoming".to_owned()));
    headings.extend(report.old.as_ref().map(|_| "old".to_owned()));
    headings.extend((1..=local.len()).map(|number| match local.len() {
        1 => "target".to_owned(),
        _ => format!("target {number}"),
    }));
    let headings: Vec<_> = headings.iter().map(String::as_str).collect();
    let mut table = output::table(&headings);
    let images: Vec<&RowImage> =
        report.incoming.iter().chain(&report.old).chain(local.iter().copied()).collect();
    for column in columns(report.key.as_ref(), &images) {
        let incoming = report.incoming.as_ref().and_then(|row| row.get(column));
        let differs = incoming.is_some_and(|value| {
            *value != FieldValue::Unchanged
                && local.iter().any(|row| row.get(column).is_some_and(|here| here != value))
        });
        let mark = if differs { "≠" } else { "" };
        let mut cells = vec![plain(column), mark.to_owned()];
        cells.extend(images.iter().map(|row| cell(row.get(column))));
        table.add_row(cells);
    }
    table
}

/// Returns every column of any of the rows: first those of the key, then the others in the rows' order.
fn columns<'a>(key: Option<&'a RowImage>, images: &[&'a RowImage]) -> Vec<&'a str> {
    let mut seen: Vec<&str> = Vec::new();
    for (column, _) in key.into_iter().chain(images.iter().copied()).flat_map(RowImage::iter) {
        if !seen.contains(&column) {
            seen.push(column);
        }
    }
    seen
}

fn cell(value: Option<&FieldValue>) -> String {
    match value {
        None => "–".to_owned(),
        Some(FieldValue::Null) => "(null)".to_owned(),
        Some(value) => plain(&value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conflict::ConflictKind;
    use crate::pg::{Lsn, QualifiedName};
    use crate::store::Settlement;

    fn image(fields: &[(&str, FieldValue)]) -> RowImage {
        fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    fn text(value: &str) -> FieldValue {
        FieldValue::Text(value.to_owned())
    }

    fn conflict() -> ConflictRow {
        let at = |time: &str| time.parse().unwrap();
        ConflictRow {
            id: 7,
            report: ConflictReport {
                subscription: "my_subscription".into(),
                kind: ConflictKind::InsertExists,
                operation: Operation::Insert,
                source: QualifiedName::new("public", "widgets"),
                target: QualifiedName::new("reporting", "widget"),
                key: Some(image(&[("id", text("4"))])),
                incoming: Some(image(&[
                    ("name", text("Saw\x1b[2J")),
                    ("price", FieldValue::Null),
                    ("id", text("4")),
                ])),
                old: None,
                local_rows: vec![image(&[
                    ("id", text("4")),
                    ("loaded_at", text("2024-01-01")),
                    ("name", text("Drill")),
                    ("price", FieldValue::Null),
                ])],
                constraint: Some("widgets_pkey".into()),
                sqlstate: Some("23505".into()),
                message: "duplicate key value violates unique constraint \"widgets_pkey\"".into(),
                server_detail: Some("Key (id)=(4) already exists.".into()),
                xid: 731,
                commit_lsn: Lsn::new(0x16B_3748),
                commit_time: Some(at("2024-02-29T12:00:00Z")),
                change_count: Some(3),
                change_index: 2,
            },
            occurrences: 2,
            created_at: at("2024-02-29T12:00:01Z"),
            seen_at: at("2024-02-29T12:05:00Z"),
            settled: None,
        }
    }

    #[test]
    fn one_conflict_with_its_evidence() {
        insta::assert_snapshot!(output::uncoloured(&render(&conflict())), @r#"
        conflict 7: insert_exists (open)
          subscription my_subscription
          table        public.widgets → reporting.widget
          operation    insert, change 2 of 3
          transaction  731, finishes at 0/16B3748, committed 2024-02-29 12:00:00 UTC
          key          (id) = (4)
          constraint   widgets_pkey
          message      duplicate key value violates unique constraint "widgets_pkey" (SQLSTATE 23505)
          detail       Key (id)=(4) already exists.
          met          2 times, first 2024-02-29 12:00:01 UTC, last 2024-02-29 12:05:00 UTC
            column          incoming       target
          ─────────────────────────────────────────────
            id              4              4
            name        ≠   Saw\u{1b}[2J   Drill
            price           (null)         (null)
            loaded_at       –              2024-01-01
          next         see "pgsluice conflicts show 7"; remove or change the target's row that holds the key, then "pgsluice resume my_subscription", or pass over the transaction with "pgsluice conflicts resolve 7 --with skip-transaction"
        "#);
    }

    #[test]
    fn the_list() {
        let settled = ConflictRow {
            id: 6,
            settled: Some(Settlement {
                at: "2024-02-29T12:00:00Z".parse().unwrap(),
                resolution: Resolution::SkipTransaction,
                by: Some("ann@host".into()),
            }),
            ..conflict()
        };
        insta::assert_snapshot!(output::uncoloured(&render_list(&[conflict(), settled])), @r#"
          id   subscription      type            table              key          finish LSN   first met                 state
        ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
          7    my_subscription   insert_exists   reporting.widget   (id) = (4)   0/16B3748    2024-02-29 12:00:01 UTC   open
          6    my_subscription   insert_exists   reporting.widget   (id) = (4)   0/16B3748    2024-02-29 12:00:01 UTC   skip-transaction
        "#);
        insta::assert_snapshot!(render_list(&[]), @"no conflicts");
    }

    #[test]
    fn json_is_flat() {
        let document = serde_json::to_value(ConflictsDocument { conflicts: vec![conflict()] }).unwrap();
        let conflict = &document["conflicts"][0];
        assert_eq!(conflict["kind"], "insert_exists");
        assert_eq!(conflict["target"], "reporting.widget");
        assert_eq!(conflict["incoming"]["price"], serde_json::Value::Null);
        assert_eq!(conflict["commit_lsn"], "0/16B3748");
        assert_eq!(conflict["settled"], serde_json::Value::Null);
    }
}
