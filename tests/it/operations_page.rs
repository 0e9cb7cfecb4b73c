//! docs/operations.md has a heading for every state, reason, type, exit code and alert of the code, and
//! no others.

use std::collections::BTreeSet;

use pgsluice::conflict::ConflictKind;
use pgsluice::gap::GapKind;
use pgsluice::store::State;

fn read(path: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the headings of the third level below `## SECTION`; each must have a text.
fn headings(section: &str) -> BTreeSet<String> {
    let page = read("docs/operations.md");
    let start = format!("\n## {section}\n");
    let (_, after) = page.split_once(&start).unwrap_or_else(|| panic!("no section {section}"));
    let section_text = after.split("\n## ").next().unwrap();
    let mut found = BTreeSet::new();
    for part in section_text.split("\n### ").skip(1) {
        let (heading, text) = part.split_once('\n').unwrap();
        assert!(text.trim().len() > 10, "{section}, {heading}: nothing is said");
        assert!(found.insert(heading.to_owned()), "{section}: {heading} twice");
    }
    found
}

/// Returns all words that `as_str` of a type returns, read from its source.
fn words(path: &str, of: &str) -> BTreeSet<String> {
    let source = read(path);
    let (_, after) = source.split_once(&format!("impl {of} {{")).unwrap_or_else(|| panic!("no impl {of}"));
    let (_, after) = after.split_once("fn as_str(self)").unwrap_or_else(|| panic!("no {of}::as_str"));
    let body = after.split("\n    }\n").next().unwrap();
    let arms: Vec<&str> = body.split(" => ").skip(1).collect();
    assert!(arms.len() >= 4, "{of}: {body}");
    let word = |arm: &&str| arm.strip_prefix('"').map(|rest| rest.split('"').next().unwrap().to_owned());
    arms.iter().filter_map(word).collect()
}

fn set<'a>(words: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    words.into_iter().map(str::to_owned).collect()
}

#[test]
fn every_state_is_explained() {
    assert_eq!(headings("States"), set(State::ALL.map(State::as_str)));
    assert_eq!(headings("Table states"), words("src/store/state.rs", "TableState"));
    assert_eq!(headings("Gaps"), set(GapKind::ALL.map(GapKind::as_str)));
}

#[test]
fn every_reason_is_explained() {
    assert_eq!(headings("Reasons of paused"), words("src/error.rs", "PauseReason"));
    let mut retrying = words("src/subscription/failure.rs", "Cause");
    // A cause that is a step of the connection has the step's name.
    assert!(read("src/subscription/failure.rs").contains("Self::Connect(step) => step.as_str()"));
    retrying.extend(words("src/net/error.rs", "Step"));
    // One reason is not a `Cause`: the stream goes on, but the copy of one table does not.
    let because = "because(\"";
    for word in read("src/subscription/worker/report.rs").split(because).skip(1) {
        retrying.insert(word.split('"').next().unwrap().to_owned());
    }
    assert_eq!(headings("Reasons of retrying"), retrying);
    let source = read("src/store/status.rs");
    let shown = ["NOT_RUNNING", "SILENT"].map(|name| {
        let (_, word) = source.split_once(&format!("const {name}: &str = \"")).unwrap();
        word.split('"').next().unwrap()
    });
    assert_eq!(headings("Other reasons"), set(shown));
}

#[test]
fn every_conflict_type_is_explained() {
    assert_eq!(headings("Conflict types"), set(ConflictKind::ALL.map(ConflictKind::as_str)));
}

#[test]
fn every_exit_code_is_explained() {
    let source = read("src/error.rs");
    let (_, after) = source.split_once("impl From<Exit> for std::process::ExitCode").unwrap();
    let codes: BTreeSet<String> = after
        .split("\n}\n")
        .next()
        .unwrap()
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Exit::")?.split(" => ").nth(1))
        .map(|code| code.trim_end_matches(',').to_owned())
        .collect();
    assert_eq!(headings("Exit codes"), codes);
}

#[test]
fn every_alert_is_explained() {
    let rules = read("docker/prometheus-rules.yaml");
    let alerts = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    assert_eq!(headings("Alerts"), set(alerts));
}

/// The events of the page's table are messages of the source, word for word.
#[test]
fn the_events_are_logged() {
    let page = read("docs/operations.md");
    let (_, table) = page.split_once("| event | when |").unwrap();
    let cells = table.lines().skip(2).map_while(|line| line.strip_prefix("| `")?.split(" | ").next());
    let events: Vec<&str> = cells.flat_map(|cell| cell.trim_end_matches('`').split("`, `")).collect();
    assert!(events.len() > 10, "{events:?}");
    let sources: String = ["src/runtime.rs", "src/runtime/side.rs", "src/telemetry/event.rs"]
        .into_iter()
        .chain(["src/cli/run.rs", "src/copy/initial.rs", "src/subscription/attempt.rs"])
        .chain(["src/subscription/stream.rs", "src/subscription/worker.rs"])
        .chain(["src/subscription/worker/lock.rs", "src/subscription/worker/waiting.rs"])
        .map(read)
        .collect();
    for event in events {
        assert!(sources.contains(&format!("\"{event}\"")), "{event:?} is no message of the log");
    }
}

/// Links within the documentation lead to existing files and headings.
#[test]
fn links_lead_somewhere() {
    for page in ["README.md", "docs/operations.md", "docs/security.md", "docs/configuration.md"] {
        let text = read(page);
        let folder = std::path::Path::new(page).parent().unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.starts_with("http") {
                continue;
            }
            let (file, anchor) = link.split_once('#').map_or((link, None), |(file, a)| (file, Some(a)));
            let linked =
                if file.is_empty() { page.to_owned() } else { folder.join(file).display().to_string() };
            let linked = read(&linked);
            if let Some(anchor) = anchor {
                let known =
                    linked.lines().filter(|line| line.starts_with('#')).any(|line| slug(line) == anchor);
                assert!(known, "{page}: {link} leads to no heading");
            }
        }
    }
}

/// Returns the anchor of a heading.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
