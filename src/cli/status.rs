//! `pgsluice status [NAME] [--json] [--watch]` shows state, reason, positions, lag and tables.

use std::fmt::Write as _;
use std::time::Duration;

use anstyle::Style;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::error::{Diagnosis, Disposition, Exit, Failure};
use crate::pg::{Lsn, SubscriptionName};
use crate::store::{
    GapStatus, State, StatusDocument, Store, StoreError, SubscriptionStatus, TableState, TableStatus,
};

use super::StatusArgs;
use super::output::{self, BAD, BOLD, BUSY, DIM, GOOD, Screen, field, plain};

/// Interval between two looks of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Largest number of a subscription's tables in an overview; the others are only counted.
const TABLES_MAX: usize = 10;

/// What may be the matter if schema `pgsluice` is missing although a service runs.
const NO_SCHEMA: &str = "start it with \"pgsluice run\"; if it runs, it could not make schema pgsluice in the \
                         target yet, and its log and GET /readyz say why";

/// Selects the tables that are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tables {
    All,
    /// If there are many tables, only those that are not ready.
    Notable,
}

pub(super) async fn run(config: &Config, args: StatusArgs) -> Result<Exit, Failure> {
    let store = Store::connect(&config.target.conninfo).await?;
    let name = args.name.as_ref();
    let tables = if name.is_some() { Tables::All } else { Tables::Notable };
    let exit = if args.watch {
        watch(&store, config, name, tables).await
    } else {
        let document = look(&store, config, name).await?;
        if args.json { output::print_json(&document) } else { output::print(&render(&document, tables)) }
            .map(|()| exit(&document))
    };
    store.close().await;
    exit
}

async fn watch(
    store: &Store,
    config: &Config,
    name: Option<&SubscriptionName>,
    tables: Tables,
) -> Result<Exit, Failure> {
    // Interrupts are caught from here on, so that one that arrives while the target is being asked is
    // not lost.
    let mut interrupts = signal(SignalKind::interrupt()).map_err(|error| {
        Failure::new(Exit::No, Diagnosis::new("Ctrl-C cannot be caught").detail(error.to_string()))
    })?;
    let screen = Screen::of_stdout();
    screen.clear()?;
    let mut code = Exit::No;
    let mut shown = String::new();
    loop {
        let looked = tokio::select! {
            _ = interrupts.recv() => return Ok(code),
            looked = look(store, config, name) => looked,
        };
        let text = match looked {
            Ok(document) => {
                code = exit(&document);
                match screen {
                    Screen::Terminal => render(&document, tables),
                    Screen::Lines => lines(&document),
                }
            }
            // The target may come back, so `--watch` goes on.
            Err(LookError::Store(error)) if error.disposition() == Disposition::Retry => {
                code = error.exit();
                output::failure_text(&error.diagnosis())
            }
            Err(error) => return Err(error.into()),
        };
        // A pipe or a file gets only texts that differ from the previous one.
        if screen == Screen::Terminal || text != shown {
            screen.redraw(&text)?;
        }
        shown = text;
        tokio::select! {
            _ = interrupts.recv() => return Ok(code),
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
        }
    }
}

/// Formats each subscription as one line, for `--watch` where the screen cannot be redrawn.
fn lines(document: &StatusDocument) -> String {
    let mut text = String::new();
    for status in &document.subscriptions {
        let _ = write!(text, "{} {}", plain(&status.name), status.state);
        if let Some(reason) = &status.reason {
            let _ = write!(text, " ({})", plain(reason));
        }
        if let Some(lsn) = status.applied_lsn {
            let _ = write!(text, " applied {lsn}");
        }
        if let Some(bytes) = status.lag_bytes {
            let _ = write!(text, " lag {}", output::bytes(bytes));
        }
        if let Some(seconds) = status.lag_seconds {
            let _ = write!(text, " {}", output::seconds(seconds));
        }
        let waits = |table: &&TableStatus| !matches!(table.state, TableState::Ready | TableState::Left);
        let copying = status.tables.iter().filter(waits).count();
        if copying > 0 {
            let _ =
                write!(text, " tables {} of {} ready", status.tables.len() - copying, status.tables.len());
        }
        if !status.gaps.is_empty() {
            let _ = write!(text, " gaps {}", status.gaps.len());
        }
        text.push('\n');
    }
    text
}

enum LookError {
    Store(StoreError),
    Other(Failure),
}

impl From<StoreError> for LookError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<LookError> for Failure {
    fn from(error: LookError) -> Self {
        match error {
            LookError::Store(error) => error.into(),
            LookError::Other(failure) => failure,
        }
    }
}

/// Reads the current status of the subscriptions that the database knows and those that only the
/// configuration names.
async fn look(
    store: &Store,
    config: &Config,
    name: Option<&SubscriptionName>,
) -> Result<StatusDocument, LookError> {
    // Without schema `pgsluice` nothing is recorded, which is an answer and not a failure.
    let is_made = store.schema_version().await?.is_some();
    let rows = if is_made {
        store.require_schema().await?;
        store.subscriptions().await?
    } else {
        Vec::new()
    };
    let configured = config.subscriptions.iter().map(|subscription| {
        let state = if subscription.enabled { State::Starting } else { State::Disabled };
        (subscription.name.as_str(), state)
    });
    let mut document = StatusDocument::new(&rows, configured);
    if !is_made {
        for status in &mut document.subscriptions {
            status.hint = Some(NO_SCHEMA.to_owned());
        }
    }
    if let Some(name) = name {
        document.subscriptions.retain(|status| status.name == name.as_str());
        if document.subscriptions.is_empty() {
            return Err(LookError::Other(crate::runtime::unknown(name)));
        }
    }
    Ok(document)
}

fn exit(document: &StatusDocument) -> Exit {
    if document.is_well() { Exit::Fine } else { Exit::No }
}

fn render(document: &StatusDocument, tables: Tables) -> String {
    if document.subscriptions.is_empty() {
        return "no subscriptions: the configuration has none, and none has ever run\n".to_owned();
    }
    let blocks: Vec<_> = document.subscriptions.iter().map(|status| block(status, tables)).collect();
    blocks.join("\n")
}

fn block(status: &SubscriptionStatus, tables: Tables) -> String {
    let mut text = heading(status);
    for (name, value) in [("detail", &status.detail), ("hint", &status.hint)] {
        if let Some(value) = value {
            field(&mut text, name, value);
        }
    }
    positions(&mut text, status);
    if let Some(lsn) = status.skip_lsn {
        field(&mut text, "skip", &format!("armed for the transaction that finishes at {lsn}"));
    }
    if let Some(instance) = status.instance.as_ref().filter(|_| status.running) {
        field(&mut text, "instance", instance);
    }
    for warning in &status.warnings {
        field(&mut text, "warning", warning);
    }
    for gap in &status.gaps {
        push_gap(&mut text, gap);
    }
    push_tables(&mut text, &status.tables, tables);
    text
}

fn push_gap(text: &mut String, gap: &GapStatus) {
    let mut lines = format!("{} ({}): {}", gap.id, gap.kind, gap.message);
    for (name, value) in [("detail", &gap.detail), ("hint", &gap.hint)] {
        if let Some(value) = value {
            let _ = write!(lines, "\n{name}: {value}");
        }
    }
    field(text, "gap", &lines);
}

fn heading(status: &SubscriptionStatus) -> String {
    let style = style(status.state);
    let mut text = format!("{BOLD}{}{BOLD:#}: {style}{}{style:#}", plain(&status.name), status.state);
    if let Some(reason) = &status.reason {
        let _ = write!(text, " ({})", plain(reason));
    }
    if let Some(since) = status.since {
        let _ = write!(text, " {DIM}since {}{DIM:#}", output::time(since));
    }
    text.push('\n');
    text
}

const fn style(state: State) -> Style {
    match state {
        State::Streaming => GOOD,
        State::Starting | State::Copying | State::Retrying => BUSY,
        State::Paused => BAD,
        State::Standby | State::Disabled => DIM,
    }
}

fn positions(text: &mut String, status: &SubscriptionStatus) {
    let known: [(&str, Option<Lsn>); 4] = [
        ("received", status.received_lsn),
        ("applied", status.applied_lsn),
        ("flushed", status.flushed_lsn),
        ("publisher", status.publisher_lsn),
    ];
    for (name, lsn) in known {
        if let Some(lsn) = lsn {
            field(text, name, &lsn.to_string());
        }
    }
    let lag: Vec<_> = status
        .lag_bytes
        .map(output::bytes)
        .into_iter()
        .chain(status.lag_seconds.map(output::seconds))
        .collect();
    if !lag.is_empty() {
        field(text, "lag", &lag.join(", "));
    }
    let retained =
        status.slot.retained_bytes.map(|count| format!("{} of WAL retained", output::bytes(count)));
    let slot: Vec<_> = status.slot.wal_status.clone().into_iter().chain(retained).collect();
    if !slot.is_empty() {
        field(text, "slot", &slot.join(", "));
    }
}

fn push_tables(text: &mut String, rows: &[TableStatus], tables: Tables) {
    let notable = |row: &&TableStatus| row.state != TableState::Ready || row.error.is_some();
    let shown: Vec<_> = if tables == Tables::All || rows.len() <= TABLES_MAX {
        rows.iter().collect()
    } else {
        rows.iter().filter(notable).collect()
    };
    if !shown.is_empty() {
        let mut table = output::table(&["table", "state", "rows copied", "note"]);
        for row in &shown {
            table.add_row([name(row), row.state.to_string(), copied(row), note(row)]);
        }
        output::push_table(text, &table);
    }
    if shown.len() < rows.len() {
        field(text, "tables", &format!("{} more, ready", rows.len() - shown.len()));
    }
}

fn name(row: &TableStatus) -> String {
    if row.source == row.target {
        plain(&row.source.to_string())
    } else {
        plain(&format!("{} → {}", row.source, row.target))
    }
}

fn copied(row: &TableStatus) -> String {
    match row.rows_estimated {
        Some(estimated) if row.state == TableState::Copying => {
            format!("{} of about {estimated}", row.rows_copied)
        }
        _ => row.rows_copied.to_string(),
    }
}

fn note(row: &TableStatus) -> String {
    if let Some(id) = row.gap_id {
        return format!("held by gap {id}");
    }
    match (&row.error, &row.exact_because) {
        (Some(error), _) => {
            let parts = [Some(&error.primary), error.detail.as_ref(), error.hint.as_ref()];
            plain(&parts.into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join("; "))
        }
        (None, Some(reason)) => plain(&format!("row by row: {reason}")),
        (None, None) => row.resync.map(|how| format!("synchronised again ({how})")).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
