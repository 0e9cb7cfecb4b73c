//! The rules: tables first, then one function for each rule.

use super::lexer::comments;
use super::source::{Path, SourceFile};

/// One finding, with the reason for the rule that it breaks.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Violation {
    pub(super) path: String,
    pub(super) line: usize,
    pub(super) what: String,
    pub(super) reason: &'static str,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {} ({})", self.path, self.line, self.what, self.reason)
    }
}

/// Modules without socket, clock, environment, driver or runtime, by their prefix.
const PURE: &[&str] = &[
    "pg",
    "pgoutput",
    "conflict",
    "schema",
    "apply::change",
    "apply::table",
    "apply::statement",
    "apply::end",
    "apply::sets::sql",
    "apply::sets::suitability",
    "apply::sets::fragments",
    "apply::sets::row_search",
    "apply::sets::full_row",
    "apply::sets::compact",
    "apply::core",
    "apply::incoming",
    "apply::outcome",
    "apply::rows::plan",
    "apply::rows::facts",
    "subscription::state",
    "subscription::balance",
    "subscription::membership",
    "subscription::publication_record",
    "subscription::trust",
    "check::report",
    "check::findings",
    "check::sessions",
    "check::verdict",
    "check::tables",
    "error",
    "gap",
    "text",
    "words",
];
/// Submodules of these that are not pure.
const IMPURE_PARTS: &[&str] = &["schema::catalog"];
/// Paths that the pure core must not use.
const IMPURE: &[&str] = &[
    "tokio",
    "tokio_postgres",
    "sqlx",
    "axum",
    "metrics",
    "jiff::Timestamp::now",
    "jiff::Zoned::now",
    "std::env",
    "std::time::Instant",
    "std::time::SystemTime",
];
const PURE_REASON: &str = "the pure core knows no socket, clock, environment, driver or runtime, so that \
                           it can be tested with plain values";

/// Crates, and the only modules that may use them.
const HOMES: &[(&[&str], &[&str])] = &[
    (&["axum"], &["http"]),
    (&["clap", "clap_complete"], &["cli", "main"]),
    (&["config"], &["config"]),
    (&["sqlx"], &["store"]),
    (&["postgres_protocol"], &["replication"]),
    (&["tokio_postgres"], &["net", "target", "apply", "copy", "schema::catalog", "demo"]),
    (&["metrics", "metrics_exporter_prometheus", "indicatif", "tracing_subscriber"], &["telemetry"]),
    (&["rustls", "tokio_rustls", "rustls_native_certs"], &["net"]),
];
const HOMES_REASON: &str = "one dependency has one home, so that replacing it touches one module";

/// The layers, lowest first. A module may use its own layer and those below.
const LAYERS: &[&[&str]] = &[
    &["pg", "error", "text", "words", "boundary", "mutation", "running"],
    &[
        "pgoutput",
        "conflict",
        "gap",
        "schema",
        "apply::change",
        "apply::table",
        "apply::statement",
        "apply::end",
        "apply::sets::sql",
        "apply::sets::suitability",
        "apply::sets::fragments",
        "apply::sets::row_search",
        "apply::sets::full_row",
        "apply::sets::compact",
        "apply::core",
        "apply::incoming",
        "apply::outcome",
        "apply::rows::plan",
        "apply::rows::facts",
        "subscription::state",
        "subscription::balance",
        "subscription::membership",
        "subscription::publication_record",
        "subscription::trust",
        "config",
    ],
    &["replication", "copy", "apply", "target", "store", "schema::catalog", "net", "telemetry"],
    &["http", "subscription", "check"],
    &["runtime"],
    &["demo"],
    &["cli"],
    &["main", "lib"],
];
const LAYERS_REASON: &str = "dependencies point down: main, cli, demo, runtime; http, subscription and check; the \
                             shell; the pure core; pg, error, text, words and boundary";

/// Paths that `http` must not use.
const WORKERS: &[&str] = &["subscription::worker", "subscription::Worker"];
const WORKERS_REASON: &str = "http records a command or reads a snapshot, it never touches a worker's state";

/// Statements that move progress, in lower case; only one module may contain them.
const PROGRESS_WRITES: &[&str] = &["update pgsluice.progress", "insert into pgsluice.progress"];
const PROGRESS_HOME: &str = "apply";
const PROGRESS_REASON: &str =
    "the progress row moves only inside the transaction of the rows, which is apply's";

/// Maximum length of a function's body.
const FUNCTION_LINES_MAX: usize = 70;
/// Maximum length of a file without its tests.
const FILE_LINES_MAX: usize = 500;
/// Files and functions (`path` or `path::function`) that may be longer, each with its reason.
const LENGTH_EXCEPTIONS: &[(&str, &str)] = &[];

/// Texts that name the machine on which a file was written. They are split, so that this file passes as
/// well.
const MACHINE_TEXTS: &[&str] =
    &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/Us", "ers/"), concat!("artif", "actory")];
/// The only registry that a tracked file may name after one of [`REGISTRY_SCHEMES`].
const REGISTRY: &str = "https://github.com/rust-lang/crates.io-index";
const REGISTRY_SCHEMES: &[&str] = &[concat!("registry", "+"), concat!("sparse", "+")];
const MACHINE_REASON: &str = "the repository builds anywhere and tells nothing of the machine it came from";

/// Documents that are not part of the repository, and which no comment may name.
const FOREIGN_DOCUMENTS: &[&str] = &["EDGE_CASES", "DESIGN", "STYLE", "BACKGROUND"];
/// A word that hides who does something.
const VAGUE_WORD: &str = "whoever";
const COMMENT_REASON: &str =
    "a comment states the fact itself, with PostgreSQL's terms, and needs no other document";

/// Returns all violations in these files of `src/`.
pub(super) fn check_sources(files: &[SourceFile]) -> Vec<Violation> {
    let is_test = |file: &&SourceFile| {
        files.iter().flat_map(|other| &other.test_modules).any(|tests| file.module.starts_with(tests))
    };
    let mut violations = Vec::new();
    for file in files {
        opens_with_purpose(file, &mut violations);
        no_allow(file, &mut violations);
    }
    for file in files.iter().filter(|file| !is_test(file)) {
        for (position, path) in file.paths() {
            let line = file.line_of(position);
            let mut report = |what: String, reason| {
                violations.push(Violation { path: file.path.clone(), line, what, reason });
            };
            match &path {
                Path::External(path) => dependency(file, path, &mut report),
                Path::Internal(path) => direction(file, path, &mut report),
            }
        }
        has_layer(file, &mut violations);
        progress(file, &mut violations);
        lengths(file, &mut violations);
    }
    violations.sort();
    violations.dedup();
    violations
}

/// Returns all violations in the text of a tracked file.
pub(super) fn check_text(path: &str, text: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut report = |what: String| {
            let violation =
                Violation { path: path.to_owned(), line: index + 1, what, reason: MACHINE_REASON };
            violations.push(violation);
        };
        for machine in MACHINE_TEXTS.iter().filter(|machine| line.contains(**machine)) {
            report(format!("names {machine}"));
        }
        for scheme in REGISTRY_SCHEMES {
            let named = line.match_indices(scheme).map(|(at, _)| &line[at + scheme.len()..]);
            for url in named.filter(|url| url.starts_with("http") && !url.starts_with(REGISTRY)) {
                report(format!("names the registry {}", url.split(['"', ' ']).next().unwrap_or(url)));
            }
        }
    }
    violations
}

/// Returns all violations in the comments of a Rust file.
pub(super) fn check_comments(path: &str, text: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (position, comment) in comments(text) {
        let first = text[..position].matches('\n').count() + 1;
        for (index, line) in comment.lines().enumerate() {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let words: Vec<_> = line.split(|c| !is_word(c)).filter(|word| !word.is_empty()).collect();
            let mut report = |what: String| {
                let line = first + index;
                violations.push(Violation { path: path.to_owned(), line, what, reason: COMMENT_REASON });
            };
            for word in &words {
                if FOREIGN_DOCUMENTS.contains(word) {
                    report(format!("a comment names {word}, which is not in the repository"));
                } else if word.eq_ignore_ascii_case(VAGUE_WORD) {
                    report(format!("a comment says \"{word}\""));
                }
            }
            for pair in words.windows(2) {
                let is_number = pair[1].bytes().all(|byte| byte.is_ascii_digit());
                if pair[0].eq_ignore_ascii_case("guarantee") && is_number {
                    report(format!(
                        "a comment names {} {}, which is not in the repository",
                        pair[0], pair[1]
                    ));
                }
            }
        }
    }
    violations
}

/// Whether `path` is `prefix` (`a::b`) or below it.
fn is_below(path: &[String], prefix: &str) -> bool {
    let mut segments = path.iter();
    prefix.split("::").all(|wanted| segments.next().is_some_and(|segment| segment == wanted))
}

/// Like [`is_below`], but also true for a glob import that brings `prefix` in.
fn brings_in(path: &[String], prefix: &str) -> bool {
    let globbed = match path.split_last() {
        Some((last, parents)) if last == "*" => {
            let wanted: Vec<&str> = prefix.split("::").collect();
            wanted.len() > parents.len() && parents.iter().zip(&wanted).all(|(a, b)| a == b)
        }
        _ => false,
    };
    is_below(path, prefix) || globbed
}

fn is_pure(module: &[String]) -> bool {
    let in_any = |prefixes: &[&str]| prefixes.iter().any(|prefix| is_below(module, prefix));
    in_any(PURE) && !in_any(IMPURE_PARTS)
}

/// Rules 1 and 2: what a module may use of other crates.
fn dependency(file: &SourceFile, path: &[String], report: &mut impl FnMut(String, &'static str)) {
    if is_pure(&file.module) && IMPURE.iter().any(|impure| brings_in(path, impure)) {
        report(format!("uses {}", path.join("::")), PURE_REASON);
    }
    for (crates, homes) in HOMES {
        let is_foreign = crates.iter().any(|name| is_below(path, name));
        if is_foreign && !homes.iter().any(|home| is_below(&file.module, home)) {
            report(format!("uses {}, whose home is {}", path.join("::"), homes.join(", ")), HOMES_REASON);
        }
    }
}

/// Rules 3 and 9: what a module may use of this crate.
fn direction(file: &SourceFile, path: &[String], report: &mut impl FnMut(String, &'static str)) {
    if is_below(&file.module, "http") && WORKERS.iter().any(|worker| brings_in(path, worker)) {
        report(format!("uses crate::{}", path.join("::")), WORKERS_REASON);
    }
    if let (Some((from, _)), Some((to, layer))) = (layer_of(&file.module), layer_of(path))
        && to > from
    {
        report(format!("uses crate::{}, and {layer} is above it", path.join("::")), LAYERS_REASON);
    }
}

/// Returns a module's layer, counted from the lowest, by the longest matching prefix.
fn layer_of(path: &[String]) -> Option<(usize, &'static str)> {
    let all =
        LAYERS.iter().enumerate().flat_map(|(layer, names)| names.iter().map(move |name| (layer, *name)));
    all.filter(|(_, name)| is_below(path, name)).max_by_key(|(_, name)| name.len())
}

fn has_layer(file: &SourceFile, violations: &mut Vec<Violation>) {
    if layer_of(&file.module).is_none() {
        let what = format!("module {} is in no layer of tests/it/tidy", file.module.join("::"));
        violations.push(Violation { path: file.path.clone(), line: 1, what, reason: LAYERS_REASON });
    }
}

/// Checks rule 4 in strings, with any line breaks and quotes.
fn progress(file: &SourceFile, violations: &mut Vec<Violation>) {
    if is_below(&file.module, PROGRESS_HOME) {
        return;
    }
    let mut text = String::new();
    let mut positions = Vec::new();
    for (position, c) in file.code_and_strings.char_indices() {
        let c = if c.is_whitespace() { ' ' } else { c.to_ascii_lowercase() };
        let skipped = matches!(c, '"' | '\\') || (c == ' ' && text.ends_with(' '));
        if c.is_ascii() && !skipped {
            text.push(c);
            positions.push(position);
        }
    }
    for write in PROGRESS_WRITES {
        for (at, _) in text.match_indices(write) {
            violations.push(Violation {
                path: file.path.clone(),
                line: file.line_of(positions[at]),
                what: format!("writes \"{write}\""),
                reason: PROGRESS_REASON,
            });
        }
    }
}

/// Checks rule 5.
fn opens_with_purpose(file: &SourceFile, violations: &mut Vec<Violation>) {
    let first = file.raw.lines().find(|line| !line.trim().is_empty());
    if !first.is_some_and(|line| line.starts_with("//!")) {
        violations.push(Violation {
            path: file.path.clone(),
            line: 1,
            what: "does not open with //!".to_owned(),
            reason: "every module says first what it is for, why it is so, and what it does not do",
        });
    }
}

/// Checks rule 6.
fn lengths(file: &SourceFile, violations: &mut Vec<Violation>) {
    let is_excepted = |what: &str| LENGTH_EXCEPTIONS.iter().any(|(excepted, _)| *excepted == what);
    let lines = file.lines_without_tests();
    if lines > FILE_LINES_MAX && !is_excepted(&file.path) {
        violations.push(Violation {
            path: file.path.clone(),
            line: 1,
            what: format!("has {lines} lines without tests, more than {FILE_LINES_MAX}"),
            reason: "a file tells one story",
        });
    }
    for function in file.functions() {
        let name = format!("{}::{}", file.path, function.name);
        if function.body_lines > FUNCTION_LINES_MAX && !is_excepted(&name) {
            violations.push(Violation {
                path: file.path.clone(),
                line: function.line,
                what: format!(
                    "the body of {} has {} lines, more than {FUNCTION_LINES_MAX}",
                    function.name, function.body_lines
                ),
                reason: "a function does one thing and fits a screen",
            });
        }
    }
}

/// Checks rule 7, in tests, too.
fn no_allow(file: &SourceFile, violations: &mut Vec<Violation>) {
    for position in file.allow_attributes() {
        violations.push(Violation {
            path: file.path.clone(),
            line: file.line_of(position),
            what: "has #[allow(…)]".to_owned(),
            reason: "#[expect(lint, reason = \"…\")] says why and goes stale loudly",
        });
    }
}
