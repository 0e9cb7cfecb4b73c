//! Finds all unknown keys and wrong types, and removes them so that the rest can be validated.

use config::{Value, ValueKind};

use super::error::Report;
use super::keys::{Key, Shape};
use super::path::{KeyPath, Segment};
use crate::error::Diagnosis;
use crate::pg::nearest;

/// Whether a value stays in the tree.
enum Verdict {
    Keep,
    Discard,
}

/// Reports each value in the table `root` that does not fit `shape`, and removes it.
pub(super) fn prune(root: &mut Value, shape: &Shape, report: &mut Report) {
    if let Verdict::Discard = check(root, shape, &KeyPath::default(), report) {
        *root = config::Map::<String, Value>::new().into();
    }
}

fn check(value: &mut Value, shape: &Shape, path: &KeyPath, report: &mut Report) -> Verdict {
    match (shape, &mut value.kind) {
        (Shape::Text | Shape::TextOrTable(_), ValueKind::String(_))
        | (Shape::Flag, ValueKind::Boolean(_))
        | (Shape::Number, ValueKind::I64(_)) => Verdict::Keep,
        (Shape::TextList, ValueKind::Array(elements)) => {
            let mut verdict = Verdict::Keep;
            for (i, element) in elements.iter_mut().enumerate() {
                if let Verdict::Discard = check(element, &Shape::Text, &path.index(i), report) {
                    verdict = Verdict::Discard;
                }
            }
            verdict
        }
        (Shape::Table(keys) | Shape::TextOrTable(keys), ValueKind::Table(entries)) => {
            entries.retain(|name, value| {
                let path = path.key(name);
                match keys.iter().find(|key| key.name == name) {
                    Some(key) => matches!(check(value, &key.shape, &path, report), Verdict::Keep),
                    None => {
                        unknown_key(name, keys, &path, report);
                        false
                    }
                }
            });
            Verdict::Keep
        }
        (Shape::Map(shape), ValueKind::Table(entries)) => {
            entries
                .retain(|name, value| matches!(check(value, shape, &path.key(name), report), Verdict::Keep));
            Verdict::Keep
        }
        (Shape::Tables(keys), ValueKind::Array(elements)) => {
            for (i, element) in elements.iter_mut().enumerate() {
                // An empty table takes its place, so that the following elements keep their indexes.
                if let Verdict::Discard = check(element, &Shape::Table(keys), &path.index(i), report) {
                    *element = config::Map::<String, Value>::new().into();
                }
            }
            Verdict::Keep
        }
        (shape, found) => {
            let found = described(found);
            let mut problem = Diagnosis::new(format!("expected {}, found {found}", shape.expected()));
            if let Shape::Tables(_) = shape {
                problem = problem.hint(format!("head each table with [[{}]]", without_indexes(path)));
            }
            report.problem(path, problem);
            report.discard(path.clone());
            Verdict::Discard
        }
    }
}

fn unknown_key(name: &str, keys: &[Key], path: &KeyPath, report: &mut Report) {
    let suggestion = nearest(name, keys.iter().map(|key| key.name));
    let problem = Diagnosis::new("there is no such key");
    report.problem(
        path,
        match suggestion {
            Some(suggestion) => problem.hint(format!("did you mean \"{suggestion}\"?")),
            None => {
                let known: Vec<_> = keys.iter().map(|key| key.name).collect();
                problem.hint(format!("known keys here: {}", known.join(", ")))
            }
        },
    );
    // The misspelt key was meant to be this one, so it is not reported as missing as well.
    if let (Some(suggestion), Some(parent)) = (suggestion, path.up().nth(1)) {
        report.discard(parent.key(suggestion));
    }
}

fn described(kind: &ValueKind) -> &'static str {
    match kind {
        // TOML has no null: `file::value` uses `Nil` for dates and times.
        ValueKind::Nil => "a date or time",
        ValueKind::Boolean(true) => "true",
        ValueKind::Boolean(false) => "false",
        ValueKind::String(_) => "a string",
        ValueKind::Table(_) => "a table",
        ValueKind::Array(_) => "a list",
        ValueKind::I64(_)
        | ValueKind::I128(_)
        | ValueKind::U64(_)
        | ValueKind::U128(_)
        | ValueKind::Float(_) => "a number",
    }
}

fn without_indexes(path: &KeyPath) -> String {
    let keys = path.segments().iter().filter_map(|segment| match segment {
        Segment::Key(name) => Some(name.as_str()),
        Segment::Index(_) => None,
    });
    keys.collect::<Vec<_>>().join(".")
}
