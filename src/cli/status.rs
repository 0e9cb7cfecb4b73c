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
mod tests {
    use super::*;
    use crate::gap::GapKind;
    use crate::pg::QualifiedName;
    use crate::store::SlotStatus;

    fn table(name: &str, state: TableState) -> TableStatus {
        TableStatus {
            source: QualifiedName::new("public", name),
            target: QualifiedName::new("public", name),
            state,
            rows_copied: 3,
            rows_estimated: Some(10),
            error: None,
            exact_because: None,
            resync: None,
            gap_id: None,
        }
    }

    fn streaming() -> SubscriptionStatus {
        let mut document = StatusDocument::new(&[], [("my_subscription", State::Disabled)]);
        SubscriptionStatus {
            state: State::Streaming,
            received_lsn: Some(Lsn::new(0x16B_3790)),
            applied_lsn: Some(Lsn::new(0x16B_3748)),
            flushed_lsn: Some(Lsn::new(0x16B_3748)),
            publisher_lsn: Some(Lsn::new(0x16B_3790)),
            lag_bytes: Some(72),
            lag_seconds: Some(0.25),
            slot: SlotStatus { wal_status: Some("reserved".into()), retained_bytes: Some(16 << 20) },
            since: Some("2024-02-29T12:00:00Z".parse().unwrap()),
            running: true,
            instance: Some("db-1/4711".into()),
            tables: vec![table("widgets", TableState::Ready), table("gadgets", TableState::Copying)],
            ..document.subscriptions.remove(0)
        }
    }

    fn check(subscriptions: Vec<SubscriptionStatus>, tables: Tables) -> String {
        output::uncoloured(&render(&StatusDocument { subscriptions }, tables))
    }

    #[test]
    fn a_streaming_subscription() {
        insta::assert_snapshot!(check(vec![streaming()], Tables::Notable), @r#"
        my_subscription: streaming since 2024-02-29 12:00:00 UTC
          received     0/16B3790
          applied      0/16B3748
          flushed      0/16B3748
          publisher    0/16B3790
          lag          72 B, 0.2 s
          slot         reserved, 16 MiB of WAL retained
          instance     db-1/4711
            table            state     rows copied     note
          ───────────────────────────────────────────────────
            public.widgets   ready     3
            public.gadgets   copying   3 of about 10
        "#);
    }

    #[test]
    fn a_paused_one_says_why_and_what_next() {
        let mut paused = streaming();
        paused.state = State::Paused;
        paused.reason = Some("schema".into());
        paused.detail = Some("column \"price\" is missing\x1b[31m".into());
        paused.hint = Some("run:\nALTER TABLE public.widgets ADD COLUMN price numeric;".into());
        paused.skip_lsn = Some(Lsn::new(0x16B_3800));
        paused.warnings = vec!["triggers cannot be suppressed".into()];
        paused.tables = vec![TableStatus {
            target: QualifiedName::new("reporting", "widget"),
            error: Some(Diagnosis::new("column \"price\" is missing").hint("add it")),
            ..table("widgets", TableState::Paused)
        }];
        assert_eq!(exit(&StatusDocument { subscriptions: vec![paused.clone()] }), Exit::No);
        insta::assert_snapshot!(check(vec![paused], Tables::Notable), @r#"
        my_subscription: paused (schema) since 2024-02-29 12:00:00 UTC
          detail       column "price" is missing\u{1b}[31m
          hint         run:
                       ALTER TABLE public.widgets ADD COLUMN price numeric;
          received     0/16B3790
          applied      0/16B3748
          flushed      0/16B3748
          publisher    0/16B3790
          lag          72 B, 0.2 s
          slot         reserved, 16 MiB of WAL retained
          skip         armed for the transaction that finishes at 0/16B3800
          instance     db-1/4711
          warning      triggers cannot be suppressed
            table                               state    rows copied   note
          ────────────────────────────────────────────────────────────────────────────────────────────────
            public.widgets → reporting.widget   paused   3             column "price" is missing; add it
        "#);
    }

    #[test]
    fn a_gap_says_what_may_be_missing_and_what_next() {
        let mut held = streaming();
        held.gaps = vec![GapStatus {
            id: 7,
            kind: GapKind::Returned,
            table: Some(QualifiedName::new("public", "widgets")),
            holds: true,
            from_lsn: Some(Lsn::new(0x10)),
            to_lsn: Some(Lsn::new(0x20)),
            since: None,
            opened_at: "2024-02-29T12:00:00Z".parse().unwrap(),
            message: "public.widgets may lack changes".into(),
            detail: Some("between 0/10 and 0/20".into()),
            hint: Some("pgsluice resync".into()),
        }];
        held.tables = vec![TableStatus { gap_id: Some(7), ..table("widgets", TableState::Paused) }];
        assert_eq!(exit(&StatusDocument { subscriptions: vec![held.clone()] }), Exit::No);
        assert!(
            lines(&StatusDocument { subscriptions: vec![held.clone()] }).ends_with("0 of 1 ready gaps 1\n")
        );
        insta::assert_snapshot!(check(vec![held], Tables::Notable), @r"
        my_subscription: streaming since 2024-02-29 12:00:00 UTC
          received     0/16B3790
          applied      0/16B3748
          flushed      0/16B3748
          publisher    0/16B3790
          lag          72 B, 0.2 s
          slot         reserved, 16 MiB of WAL retained
          instance     db-1/4711
          gap          7 (returned): public.widgets may lack changes
                       detail: between 0/10 and 0/20
                       hint: pgsluice resync
            table            state    rows copied   note
          ─────────────────────────────────────────────────────────
            public.widgets   paused   3             held by gap 7
        ");
    }

    #[test]
    fn where_nothing_can_be_drawn_a_subscription_is_a_line() {
        insta::assert_snapshot!(
            lines(&StatusDocument { subscriptions: vec![streaming()] }),
            @"my_subscription streaming applied 0/16B3748 lag 72 B 0.2 s tables 1 of 2 ready"
        );
    }

    #[test]
    fn many_tables_are_summed_up() {
        let mut many = streaming();
        many.tables = (0..20).map(|n| table(&format!("t{n:02}"), TableState::Ready)).collect();
        many.tables.push(TableStatus {
            exact_because: Some("a BEFORE trigger fires".into()),
            ..table("slow", TableState::Copying)
        });
        let text = check(vec![many.clone()], Tables::Notable);
        assert!(text.contains("20 more, ready") && text.contains("row by row: a BEFORE trigger"), "{text}");
        assert!(check(vec![many], Tables::All).contains("t19"));
    }

    #[test]
    fn nothing_runs() {
        let states = [("new", State::Starting), ("off", State::Disabled)];
        let document = StatusDocument::new(&[], states);
        assert_eq!(exit(&document), Exit::No);
        insta::assert_snapshot!(check(document.subscriptions, Tables::Notable), @r#"
        new: starting (not_running)
          detail       no service has run it yet
          hint         start it with "pgsluice run"

        off: disabled
        "#);
        assert_eq!(exit(&StatusDocument::new(&[], [("off", State::Disabled)])), Exit::Fine);
        insta::assert_snapshot!(
            check(vec![], Tables::All),
            @"no subscriptions: the configuration has none, and none has ever run"
        );
    }
}
