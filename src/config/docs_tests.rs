//! The documentation, the example and the code name the same keys.

use std::collections::BTreeSet;

use super::keys::{ROOT, Shape};
use super::path::{KeyPath, Segment};
use super::*;
use crate::pg::conninfo::DefaultFiles;

const DOCS: &str = include_str!("../../docs/configuration.md");
const EXAMPLE: &str = include_str!("../../config/pgsluice.toml");

/// Collects every leaf key as the documentation writes it: `subscriptions[].tables[].columns.*.to`.
fn leaves(shape: &Shape, path: &str, found: &mut BTreeSet<String>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match shape {
        Shape::Text | Shape::Flag | Shape::Number | Shape::TextList => {
            found.insert(path.to_owned());
        }
        Shape::Table(keys) => keys.iter().for_each(|key| leaves(&key.shape, &below(key.name), found)),
        Shape::Tables(keys) => {
            keys.iter().for_each(|key| leaves(&key.shape, &format!("{path}[].{}", key.name), found));
        }
        Shape::Map(shape) => leaves(shape, &below("*"), found),
        Shape::TextOrTable(keys) => {
            found.insert(path.to_owned());
            keys.iter().for_each(|key| leaves(&key.shape, &below(key.name), found));
        }
    }
}

fn known() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    leaves(&ROOT, "", &mut found);
    found
}

/// Returns the example with all the keys that it shows behind "#".
fn full_example() -> String {
    let shown = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()) => rest.to_owned(),
        _ => line.to_owned(),
    };
    EXAMPLE.lines().map(|line| shown(line) + "\n").collect()
}

/// Writes a key of the example in the documentation's notation.
fn documented(path: &KeyPath) -> String {
    let mut written = String::new();
    let mut chosen_names = false;
    for segment in path.segments() {
        match segment {
            Segment::Index(_) => written.push_str("[]"),
            Segment::Key(_) if chosen_names => written.push_str(".*"),
            Segment::Key(name) if written.is_empty() => written.push_str(name),
            Segment::Key(name) => written = format!("{written}.{name}"),
        }
        chosen_names = matches!(segment, Segment::Key(name) if name == "columns" || name == "set");
    }
    written
}

#[test]
fn the_documentation_names_every_key_and_its_variable() {
    let rows: BTreeMap<String, String> = DOCS
        .lines()
        .filter_map(|line| {
            let cells: Vec<_> = line.strip_prefix("| `")?.split('|').map(str::trim).collect();
            let [key, kind, default, meaning, variable, ""] = cells.as_slice() else { return None };
            assert!(!kind.is_empty() && !default.is_empty() && !meaning.is_empty(), "{line}");
            Some((key.trim_matches('`').to_owned(), variable.trim_matches('`').to_owned()))
        })
        .collect();
    assert_eq!(rows.keys().cloned().collect::<BTreeSet<_>>(), known());
    for (key, variable) in rows {
        let expected = format!("PGSLUICE__{}", key.replace("[]", "__0").replace('.', "__").to_uppercase());
        assert_eq!(variable, expected, "{key}");
    }
}

#[test]
fn the_example_names_every_key() {
    let document = file::parse(&full_example()).unwrap_or_else(|_| panic!("the full example is not TOML"));
    let named: BTreeSet<_> = document.positions.keys().map(documented).collect();
    let unnamed: BTreeSet<_> = known().difference(&named).cloned().collect();
    // The example cannot show `on_delete.mark` beside `on_delete`, which is the same key.
    assert_eq!(unnamed, BTreeSet::from(["subscriptions[].tables[].on_delete.mark".to_owned()]));
}

#[test]
fn the_example_is_valid_and_the_full_one_only_ahead_of_its_time() {
    let (env, files) = (BTreeMap::new(), DefaultFiles::default());
    let surroundings = Surroundings { env, os_user: None, files, memory_bytes: None };
    let config = load_text(EXAMPLE, &surroundings, Report::default()).unwrap();
    assert_eq!(config.subscriptions.len(), 1);
    let full = load_text(&full_example(), &surroundings, Report::default()).unwrap_err();
    insta::assert_snapshot!(full, @r"
    the configuration has a problem
    subscriptions[0].tables[0].set: setting columns is not supported yet
      hint: leave set out
    ");
}
