//! The table of waits in ARCHITECTURE.md against the constants of the sources.

use super::{root, tracked_files};

/// Endings of the names of constants that bound a wait.
const ENDINGS: &[&str] = &[
    "TIMEOUT",
    "TIMEOUT_DEFAULT",
    "TIMEOUT_FALLBACK",
    "TIMEOUT_MIN",
    "PATIENCE",
    "LEASE",
    "LET_GO",
    "LET_GO_ANSWER",
    "SILENCE_MAX",
    "STALL_MAX",
];

fn is_source(path: &str) -> bool {
    path.strip_prefix("src/").is_some_and(|path| path.strip_suffix(".rs").is_some())
}

/// `module::NAME` and its value, for every constant of a source file that bounds a wait.
fn bounds_of(path: &str, text: &str) -> Vec<(String, String)> {
    let module =
        path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
    let parse = |line: &str| {
        let (name, value) = line.split_once("const ")?.1.split_once(": Duration = Duration::from_")?;
        let (unit, number) = value.trim_end_matches(");").split_once('(')?;
        let unit = match unit {
            "millis" => "ms",
            "secs" => "s",
            "mins" if number == "1" => return Some((name.to_owned(), "60 s".to_owned())),
            "mins" => "min",
            _ => return None,
        };
        Some((name.to_owned(), format!("{number} {unit}")))
    };
    let is_bound = |name: &str| ENDINGS.iter().any(|ending| name.ends_with(ending));
    let found = text.lines().filter_map(parse).filter(|(name, _)| is_bound(name));
    found.map(|(name, value)| (format!("{module}::{name}"), value)).collect()
}

#[test]
fn the_table_of_waits_is_that_of_the_sources() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, section) = page.split_once("## What is waited for").expect("the section is there");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| ")).collect();
    let mut wrong = Vec::new();
    let mut known = 0;
    for path in tracked_files().iter().filter(|path| is_source(path)) {
        // The demonstration is no part of the service.
        if path.starts_with("src/demo/") {
            continue;
        }
        for (name, value) in bounds_of(path, &std::fs::read_to_string(root().join(path)).unwrap()) {
            known += 1;
            let row = rows.iter().find(|row| row.contains(&format!("`{name}`")));
            if !row.is_some_and(|row| row.contains(&value)) {
                wrong.push(format!("{name} = {value} is not in the table: {row:?}"));
            }
        }
    }
    assert!(known > 30, "{known} constants were found");
    assert_eq!(wrong, Vec::<String>::new());
    let named =
        section.split('`').filter(|word| word.contains("::") && word.ends_with(|c: char| c.is_uppercase()));
    assert_eq!(named.count(), known, "the table names constants that are not there");
}
