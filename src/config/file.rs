//! Reads the TOML file as a tree of values with the place of every key.

use std::collections::BTreeMap;

use config::{Map, Value, ValueKind};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Position;
use super::path::KeyPath;
use crate::error::Diagnosis;

/// The content of a file.
pub(super) struct Document {
    /// The root value, which is always a table.
    pub(super) root: Value,
    pub(super) positions: BTreeMap<KeyPath, Position>,
}

/// Reads a whole file. Only the first syntax error is reported, since what follows it cannot be parsed
/// reliably.
pub(super) fn parse(text: &str) -> Result<Document, (Position, Diagnosis)> {
    let lines = Lines::of(text);
    let (root, errors) = DeTable::parse_recoverable(text);
    let place = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
    if let Some(first) = errors.iter().min_by_key(|error| place(error)) {
        return Err((lines.position(place(first)), syntax_error(first)));
    }
    let mut positions = BTreeMap::new();
    let root = table(root.get_ref(), &KeyPath::default(), &mut |path, at| {
        positions.insert(path, lines.position(at));
    });
    Ok(Document { root, positions })
}

/// Reads one value in TOML notation, for the environment.
pub(super) fn parse_value(text: &str) -> Result<Value, Diagnosis> {
    let parsed = DeValue::parse(text).map_err(|error| syntax_error(&error))?;
    Ok(value(parsed.get_ref(), &KeyPath::default(), &mut |_, _| ()))
}

/// Takes only the error's message: its `Display` repeats the line, which may hold a password.
fn syntax_error(error: &toml::de::Error) -> Diagnosis {
    Diagnosis::new(format!("this is not TOML: {}", error.message().trim_end()))
}

type Note<'a> = &'a mut dyn FnMut(KeyPath, usize);

fn table(from: &DeTable<'_>, path: &KeyPath, note: Note<'_>) -> Value {
    let mut entries = Map::new();
    for (key, entry) in from {
        let path = path.key(key.get_ref().as_ref());
        note(path.clone(), key.span().start);
        entries.insert(key.get_ref().clone().into_owned(), value(entry.get_ref(), &path, note));
    }
    entries.into()
}

fn value(from: &DeValue<'_>, path: &KeyPath, note: Note<'_>) -> Value {
    let kind = match from {
        DeValue::String(text) => ValueKind::String(text.clone().into_owned()),
        DeValue::Boolean(flag) => ValueKind::Boolean(*flag),
        // No key takes a fraction or a date. They are told apart only for the text of a problem.
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(ValueKind::Float(f64::NAN), ValueKind::I64),
        DeValue::Float(_) => ValueKind::Float(f64::NAN),
        DeValue::Datetime(_) => ValueKind::Nil,
        DeValue::Table(entries) => return table(entries, path, note),
        DeValue::Array(elements) => {
            let element = |(i, element): (usize, &Spanned<DeValue<'_>>)| {
                let path = path.index(i);
                note(path.clone(), element.span().start);
                value(element.get_ref(), &path, note)
            };
            ValueKind::Array(elements.iter().enumerate().map(element).collect())
        }
    };
    Value::new(None, kind)
}

/// Maps byte offsets to lines and columns.
struct Lines<'a> {
    text: &'a str,
    /// Byte offset at which each line starts.
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        let after_newlines =
            text.bytes().enumerate().filter(|&(_, byte)| byte == b'\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(after_newlines).collect() }
    }

    fn position(&self, at: usize) -> Position {
        let line = self.starts.partition_point(|&start| start <= at);
        let start = self.starts[line - 1];
        let column = self.text.get(start..at).map_or(0, |before| before.chars().count());
        (line, column + 1)
    }
}
