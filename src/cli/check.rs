//! `pgsluice check [NAME] [--json]` prints the preflight as a table, a remedy for each failed step, and
//! the columns of tables that do not fit.

use std::fmt::Write as _;

use anstyle::Style;

use crate::check::{Document, Report, Status, TableReport};
use crate::config::Config;
use crate::error::{Diagnosis, Exit, Failure};
use crate::pg::SubscriptionName;

use super::CheckArgs;
use super::output::{self, BAD, BOLD, BUSY, DIM, GOOD, field, plain};

/// Largest number of tables whose columns are shown if no subscription was named.
const TABLES_MAX: usize = 5;

/// Selects the tables whose columns are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Columns {
    /// Columns of every table: one subscription was named.
    All,
    /// Columns of tables that do not fit.
    Unfit,
}

pub(super) async fn run(config: &Config, args: &CheckArgs) -> Result<Exit, Failure> {
    config
        .require_subscription()
        .map_err(|errors| Failure::new(Exit::Usage, Diagnosis::new(errors.to_string())))?;
    let name = args.name.as_ref();
    if let Some(name) = name.filter(|name| config.subscription(name).is_none()) {
        return Err(unknown(config, name));
    }
    for warning in &config.warnings {
        output::report_warning(warning);
    }
    let document = crate::check::check(config, name).await;
    let columns = if name.is_some() { Columns::All } else { Columns::Unfit };
    if args.json {
        output::print_json(&document)?;
    } else {
        output::print(&render(&document, columns))?;
    }
    Ok(document.exit())
}

fn unknown(config: &Config, name: &SubscriptionName) -> Failure {
    let known: Vec<&str> =
        config.subscriptions.iter().map(|subscription| subscription.name.as_str()).collect();
    let diagnosis = Diagnosis::new(format!("there is no subscription \"{name}\" in the configuration"))
        .hint(format!("there are: {}", known.join(", ")));
    Failure::new(Exit::Usage, diagnosis)
}

fn render(document: &Document, columns: Columns) -> String {
    let blocks: Vec<String> = document.subscriptions.iter().map(|report| block(report, columns)).collect();
    blocks.join("\n")
}

fn block(report: &Report, columns: Columns) -> String {
    let (style, verdict) = match (report.ok, count(report, Status::Warning)) {
        (false, _) => (BAD, "failed".to_owned()),
        (true, 0) => (GOOD, "ok".to_owned()),
        (true, 1) => (BUSY, "ok, with 1 warning".to_owned()),
        (true, warnings) => (BUSY, format!("ok, with {warnings} warnings")),
    };
    let mut text = format!("{BOLD}{}{BOLD:#}: {style}{verdict}{style:#}\n", plain(&report.name));
    let mut table = output::table(&["step", "status", "finding"]);
    for step in &report.steps {
        let finding = plain(&step.text.primary);
        table.add_row([step.step.as_str(), step.status.as_str(), finding.as_str()]);
    }
    let mut lines = String::new();
    output::push_table(&mut lines, &table);
    text.push_str(&coloured(&lines, report.steps.iter().map(|step| step.status)));
    for step in &report.steps {
        let worth_reading = matches!(step.status, Status::Warning | Status::Failed);
        if worth_reading || step.text.detail.is_some() || step.text.hint.is_some() {
            push_text(&mut text, step.step.as_str(), step.status, &step.text);
        }
    }
    push_tables(&mut text, &report.tables, columns);
    text
}

fn count(report: &Report, status: Status) -> usize {
    report.steps.iter().filter(|step| step.status == status).count()
}

const fn style(status: Status) -> Style {
    match status {
        Status::Ok => GOOD,
        Status::Warning => BUSY,
        Status::Failed => BAD,
        Status::NotReached => DIM,
    }
}

/// Returns a table's lines with each status coloured. `statuses` are the rows' statuses in order.
/// comfy-table would count escape sequences as width, so they are inserted afterwards. The further
/// lines of a row have an empty status column.
fn coloured(lines: &str, statuses: impl Iterator<Item = Status>) -> String {
    let mut statuses = statuses.peekable();
    let mut out = String::with_capacity(lines.len() * 2);
    // The first two lines are the headings and the rule below them.
    for (index, line) in lines.lines().enumerate() {
        let word =
            statuses.peek().filter(|_| index > 1).map(|status| (*status, format!("   {}", status.as_str())));
        match word.and_then(|(status, word)| Some((status, line.find(&word)? + 3))) {
            Some((status, at)) => {
                let (before, rest) = line.split_at(at);
                let (word, after) = rest.split_at(status.as_str().len());
                let style = style(status);
                let _ = writeln!(out, "{before}{style}{word}{style:#}{after}");
                statuses.next();
            }
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

/// Appends the full text of one finding.
fn push_text(text: &mut String, about: &str, status: Status, finding: &Diagnosis) {
    let style = style(status);
    let _ = writeln!(text, "\n  {style}{about}{style:#}: {}", plain(&finding.primary));
    for (name, part) in [("detail", &finding.detail), ("hint", &finding.hint)] {
        if let Some(part) = part {
            field(text, name, part);
        }
    }
}

fn push_tables(text: &mut String, tables: &[TableReport], columns: Columns) {
    let wanted = |table: &&TableReport| columns == Columns::All || table.status == Status::Failed;
    let all: Vec<&TableReport> = tables.iter().filter(wanted).collect();
    let shown = if columns == Columns::All { all.len() } else { all.len().min(TABLES_MAX) };
    for table in &all[..shown] {
        let style = style(table.status);
        let _ =
            writeln!(text, "\n  {BOLD}{}{BOLD:#}: {style}{}{style:#}", name(table), table.status.as_str());
        let mut compared = output::table(&["column", "status", "publisher", "target", "note"]);
        for column in &table.columns {
            let side = |ty: &Option<String>| ty.as_deref().map_or_else(|| "—".to_owned(), plain);
            compared.add_row([
                plain(&column.name),
                column.status.as_str().to_owned(),
                side(&column.publisher),
                side(&column.target),
                column.note.as_deref().map(plain).unwrap_or_default(),
            ]);
        }
        let mut lines = String::new();
        output::push_table(&mut lines, &compared);
        text.push_str(&coloured(&lines, table.columns.iter().map(|column| column.status)));
    }
    if shown < all.len() {
        let _ = writeln!(text, "\n  and {} more tables that do not fit", all.len() - shown);
    }
}

fn name(table: &TableReport) -> String {
    if table.source == table.target {
        plain(&table.source.to_string())
    } else {
        plain(&format!("{} → {}", table.source, table.target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{ColumnReport, Reach, Step, StepReport};

    fn step(step: Step, status: Status, text: Diagnosis) -> StepReport {
        StepReport { step, status, text }
    }

    fn unfit() -> Report {
        let column =
            |name: &str, publisher: Option<&str>, target: Option<&str>, status, note: Option<&str>| {
                ColumnReport {
                    name: name.to_owned(),
                    publisher: publisher.map(str::to_owned),
                    target: target.map(str::to_owned),
                    status,
                    note: note.map(str::to_owned),
                }
            };
        Report {
            name: "my_subscription".to_owned(),
            ok: false,
            reach: Reach::Reached,
            steps: vec![
                step(Step::Name, Status::Ok, Diagnosis::new("db-master")),
                step(
                    Step::ReplicaRole,
                    Status::Warning,
                    Diagnosis::new("the target role may not set session_replication_role").hint("GRANT …"),
                ),
                step(
                    Step::Tables,
                    Status::Failed,
                    Diagnosis::new(
                        "target table public.widgets lacks the published column \"price\"\x1b[31m",
                    )
                    .detail("Published as public.widgets.")
                    .hint("on the target:\nALTER TABLE public.widgets ADD COLUMN \"price\" numeric;"),
                ),
                step(Step::Versions, Status::NotReached, Diagnosis::new("needs target")),
            ],
            tables: vec![TableReport {
                source: "public.widgets".parse().unwrap(),
                target: "public.widgets".parse().unwrap(),
                status: Status::Failed,
                columns: vec![
                    column("id", Some("integer"), Some("integer"), Status::Ok, None),
                    column("price", Some("numeric"), None, Status::Failed, Some("missing in the target")),
                    column("note", None, Some("text"), Status::Ok, Some("the target's own: stays null")),
                ],
                findings: Vec::new(),
            }],
        }
    }

    #[test]
    fn a_check_reads_from_the_steps_to_the_remedy_to_the_columns() {
        let document = Document { subscriptions: vec![unfit()] };
        assert_eq!(document.exit(), Exit::No);
        insta::assert_snapshot!(output::uncoloured(&render(&document, Columns::Unfit)), @r#"
        my_subscription: failed
            step           status        finding
          ─────────────────────────────────────────────────────────────────────────────────────────────────────────
            name           ok            db-master
            replica_role   warning       the target role may not set session_replication_role
            tables         failed        target table public.widgets lacks the published column "price"\u{1b}[31m
            versions       not reached   needs target

          replica_role: the target role may not set session_replication_role
          hint         GRANT …

          tables: target table public.widgets lacks the published column "price"\u{1b}[31m
          detail       Published as public.widgets.
          hint         on the target:
                       ALTER TABLE public.widgets ADD COLUMN "price" numeric;

          public.widgets: failed
            column   status   publisher   target    note
          ────────────────────────────────────────────────────────────────────────
            id       ok       integer     integer
            price    failed   numeric     —         missing in the target
            note     ok       —           text      the target's own: stays null
        "#);
    }

    #[test]
    fn colours_do_not_move_anything() {
        let text = render(&Document { subscriptions: vec![unfit()] }, Columns::All);
        assert!(text.contains(&format!("{BAD}failed{BAD:#}")) && text.contains(&format!("{GOOD}ok{GOOD:#}")));
        let shown = output::uncoloured(&text);
        let at: Vec<_> = shown.lines().skip(3).take(4).map(|line| line.find("  ")).collect();
        assert_eq!(at, vec![Some(0); 4]);
    }

    #[test]
    fn exit_codes_follow_the_worst() {
        let mut report = unfit();
        report.ok = true;
        assert_eq!(Document { subscriptions: vec![report.clone()] }.exit(), Exit::Fine);
        report.reach = Reach::Unreachable;
        assert_eq!(Document { subscriptions: vec![unfit(), report] }.exit(), Exit::Unreachable);
    }
}
