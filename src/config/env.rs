//! Environment overrides: `PGSLUICE__TARGET__URL` sets `target.url`.
//!
//! Names are matched against [`keys`](super::keys), so that a misspelt one is an error and a value is
//! read with the type of its key. A subscription is named by its index or its name.

use std::collections::BTreeMap;

use config::{Value, ValueKind};

use super::error::{Place, Report};
use super::file;
use super::keys::{Key, ROOT, Shape};
use super::path::{KeyPath, Segment};
use crate::error::Diagnosis;
use crate::pg::nearest;

/// Prefix of every override's name.
pub(super) const PREFIX: &str = "PGSLUICE__";

/// Separator between the parts of a name.
const SEPARATOR: &str = "__";

/// Returns the file's values overridden by the environment's. An empty value counts as not set, so that
/// a compose file may pass on a variable that its own environment lacks.
pub(super) fn with_overrides(file: Value, env: &BTreeMap<String, String>, report: &mut Report) -> Value {
    let mut reader = Reader { root: file, report };
    let ours =
        env.iter().filter_map(|(name, value)| Some((name.as_str(), name.strip_prefix(PREFIX)?, value)));
    // Overrides by index come first, because they may set the names that other overrides refer to.
    let (by_name, by_number): (Vec<_>, Vec<_>) = ours.partition(|(_, rest, _)| goes_by_name(rest));
    reader.read_all(&by_number);
    reader.read_all(&by_name);
    reader.root
}

fn goes_by_name(rest: &str) -> bool {
    let mut parts = rest.split(SEPARATOR);
    let list = parts.next().is_some_and(|part| part.eq_ignore_ascii_case("subscriptions"));
    list && parts.next().is_some_and(|part| part.parse::<usize>().is_err())
}

/// Puts `value` at `path` and creates the tables on the way. An index may extend a list by one element.
///
/// # Errors
///
/// Returns the list's length if an index lies beyond its end.
fn set(root: &mut Value, path: &KeyPath, value: Value) -> Result<(), usize> {
    let mut at = root;
    for segment in path.segments() {
        at = match segment {
            Segment::Key(name) => {
                if !matches!(at.kind, ValueKind::Table(_)) {
                    at.kind = ValueKind::Table(config::Map::new());
                }
                let ValueKind::Table(entries) = &mut at.kind else { return Err(0) };
                entries.entry(name.clone()).or_insert_with(|| Value::new(None, ValueKind::Nil))
            }
            Segment::Index(index) => {
                if !matches!(at.kind, ValueKind::Array(_)) {
                    at.kind = ValueKind::Array(Vec::new());
                }
                let ValueKind::Array(elements) = &mut at.kind else { return Err(0) };
                if *index == elements.len() {
                    elements.push(config::Map::<String, Value>::new().into());
                }
                let length = elements.len();
                elements.get_mut(*index).ok_or(length)?
            }
        };
    }
    *at = value;
    Ok(())
}

fn get<'a>(root: &'a Value, path: &KeyPath) -> Option<&'a Value> {
    path.segments().iter().try_fold(root, |at, segment| match (segment, &at.kind) {
        (Segment::Key(name), ValueKind::Table(entries)) => entries.get(name),
        (Segment::Index(index), ValueKind::Array(elements)) => elements.get(*index),
        _ => None,
    })
}

struct Reader<'a> {
    /// The file's values with the overrides applied so far.
    root: Value,
    report: &'a mut Report,
}

impl Reader<'_> {
    fn read_all(&mut self, variables: &[(&str, &str, &String)]) {
        let mut found = Vec::new();
        for &(name, rest, text) in variables {
            match self.resolve(&ROOT, KeyPath::default(), rest) {
                Ok(_) if rest.is_empty() => {
                    let problem = Diagnosis::new("no key follows the prefix").hint("unset it");
                    self.report.problem_at(Some(place(name)), problem);
                }
                Ok((path, shape)) if !text.is_empty() => found.push((path, name, shape, text)),
                Ok(_) => (),
                Err(problem) => self.report.problem_at(Some(place(name)), problem),
            }
        }
        // Parents sort before their children, and elements by their index.
        found.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        for (path, name, shape, text) in found {
            self.take(path, name, shape, text);
        }
    }

    fn take(&mut self, path: KeyPath, name: &str, shape: &Shape, text: &str) {
        if let Some(other) = self.report.variables.get(&path) {
            let problem =
                Diagnosis::new(format!("{path} is set by {other} as well")).hint("unset one of them");
            return self.report.problem_at(Some(place(name)), problem);
        }
        let value = match read(shape, text) {
            Ok(value) => value,
            Err(problem) => {
                self.report.variables.insert(path.clone(), name.to_owned());
                self.report.problem(&path, problem);
                return self.report.discard(path);
            }
        };
        match set(&mut self.root, &path, value) {
            Ok(()) => {
                self.report.variables.insert(path, name.to_owned());
            }
            Err(length) => {
                let problem = Diagnosis::new(format!("{path} is beyond the end of its list"))
                    .hint(format!("the next number is {length}; counting starts at 0"));
                self.report.problem_at(Some(place(name)), problem);
            }
        }
    }

    /// Finds the key that `rest` stands for: a variable's name without the part that led to `path`.
    fn resolve(
        &self,
        shape: &'static Shape,
        path: KeyPath,
        rest: &str,
    ) -> Result<(KeyPath, &'static Shape), Diagnosis> {
        if rest.is_empty() {
            return Ok((path, shape));
        }
        match shape {
            Shape::Table(keys) | Shape::TextOrTable(keys) => self.resolve_in(keys, &path, rest),
            Shape::Tables(keys) => {
                let (part, after) = split_part(rest);
                let (index, after) = match part.parse() {
                    Ok(index) => (index, after),
                    Err(_) => self.element_named(&path, rest)?,
                };
                let path = path.index(index);
                if after.is_empty() {
                    return Err(Diagnosis::new(format!("the name stops at {path}, before any of its keys"))
                        .hint("append the key, such as __NAME"));
                }
                self.resolve_in(keys, &path, after)
            }
            Shape::Map(shape) => {
                let (name, after) = self.map_key(&path, rest);
                self.resolve(shape, path.key(name), after)
            }
            Shape::Text | Shape::Flag | Shape::Number | Shape::TextList => {
                Err(Diagnosis::new(format!("{path} has no keys of its own")).hint(format!("remove __{rest}")))
            }
        }
    }

    fn resolve_in(
        &self,
        keys: &'static [Key],
        path: &KeyPath,
        rest: &str,
    ) -> Result<(KeyPath, &'static Shape), Diagnosis> {
        let (part, after) = split_part(rest);
        match keys.iter().find(|key| key.name.eq_ignore_ascii_case(part)) {
            Some(key) => self.resolve(&key.shape, path.key(key.name), after),
            None => Err(unknown_part(part, keys.iter().map(|key| key.name))),
        }
    }

    /// Finds the element of the list at `path` whose name `rest` begins with, and returns the text that
    /// follows it.
    fn element_named<'a>(&self, path: &KeyPath, rest: &'a str) -> Result<(usize, &'a str), Diagnosis> {
        let elements = match get(&self.root, path).map(|list| &list.kind) {
            Some(ValueKind::Array(elements)) => elements.as_slice(),
            _ => &[],
        };
        let names: Vec<_> = elements
            .iter()
            .enumerate()
            .filter_map(|(index, element)| {
                let ValueKind::Table(entries) = &element.kind else { return None };
                let ValueKind::String(name) = &entries.get("name")?.kind else { return None };
                Some((index, name))
            })
            .collect();
        let matches = longest_matches(rest, names.iter().map(|(index, name)| (*index, name.as_str())));
        match matches.as_slice() {
            [(index, after)] => Ok((*index, after)),
            [] => {
                let known: Vec<_> = names.iter().map(|(_, name)| variable_part(name)).collect();
                let known = if known.is_empty() { "none has a name".to_owned() } else { known.join(", ") };
                Err(Diagnosis::new(format!("no element of {path} goes by this name"))
                    .detail(format!("known names: {known}"))
                    .hint("use one of them, or the element's number, counting from 0"))
            }
            _ => Err(Diagnosis::new(format!("several elements of {path} go by this name"))
                .hint("use the element's number, counting from 0")),
        }
    }

    /// Returns the key of the table at `path` that exists already, or a new one in lower case.
    fn map_key<'a>(&self, path: &KeyPath, rest: &'a str) -> (String, &'a str) {
        if let Some(ValueKind::Table(entries)) = get(&self.root, path).map(|table| &table.kind) {
            let names: Vec<_> = entries.keys().collect();
            let known = names.iter().enumerate().map(|(i, name)| (i, name.as_str()));
            if let [(i, after)] = longest_matches(rest, known).as_slice() {
                return (names[*i].clone(), after);
            }
        }
        let (part, after) = split_part(rest);
        (part.to_lowercase(), after)
    }
}

fn place(name: &str) -> Place {
    Place::Environment(name.to_owned())
}

/// Splits a name into its first part and the text after the separator.
fn split_part(rest: &str) -> (&str, &str) {
    rest.split_once(SEPARATOR).unwrap_or((rest, ""))
}

/// Returns the longest names that `rest` begins with, and the text that follows them. There are several
/// if names differ only in characters that a variable cannot hold.
fn longest_matches<'a, 'n>(
    rest: &'a str,
    names: impl Iterator<Item = (usize, &'n str)>,
) -> Vec<(usize, &'a str)> {
    let mut matches: Vec<(usize, &str)> = names
        .filter_map(|(index, name)| {
            let part = variable_part(name);
            let head = rest.get(..part.len()).filter(|head| head.eq_ignore_ascii_case(&part))?;
            let after = &rest[head.len()..];
            if after.is_empty() {
                Some((index, after))
            } else {
                Some((index, after.strip_prefix(SEPARATOR)?))
            }
        })
        .collect();
    let shortest_rest = matches.iter().map(|(_, after)| after.len()).min();
    matches.retain(|(_, after)| Some(after.len()) == shortest_rest);
    matches
}

/// Writes a name as it appears within a variable's name.
fn variable_part(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

fn unknown_part(part: &str, known: impl Iterator<Item = &'static str> + Clone) -> Diagnosis {
    let problem = Diagnosis::new(format!("\"{}\" in this name is not a key", part.escape_debug()));
    match nearest(part, known.clone()) {
        Some(suggestion) => problem.hint(format!("did you mean {}?", suggestion.to_uppercase())),
        None => problem.hint(format!(
            "known keys here: {}",
            known.map(str::to_uppercase).collect::<Vec<_>>().join(", ")
        )),
    }
}

/// Reads a variable's text with the type of its key.
fn read(shape: &Shape, text: &str) -> Result<Value, Diagnosis> {
    let trimmed = text.trim();
    let kind = match shape {
        Shape::Text => ValueKind::String(text.to_owned()),
        Shape::TextOrTable(_) if !trimmed.starts_with('{') => ValueKind::String(text.to_owned()),
        Shape::Flag => match trimmed.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" | "1" => ValueKind::Boolean(true),
            "false" | "off" | "no" | "0" => ValueKind::Boolean(false),
            _ => return Err(Diagnosis::new("expected true or false")),
        },
        Shape::Number => match trimmed.parse() {
            Ok(number) => ValueKind::I64(number),
            Err(_) => return Err(Diagnosis::new("expected a whole number")),
        },
        Shape::TextList if !trimmed.starts_with('[') => {
            let element = |part: &str| Value::new(None, ValueKind::String(part.trim().to_owned()));
            ValueKind::Array(trimmed.split(',').map(element).collect())
        }
        Shape::TextList | Shape::Table(_) | Shape::Tables(_) | Shape::Map(_) | Shape::TextOrTable(_) => {
            return file::parse_value(trimmed).map_err(|problem| {
                problem.hint(format!("give {} in TOML's inline notation, on one line", shape.expected()))
            });
        }
    };
    Ok(Value::new(None, kind))
}
