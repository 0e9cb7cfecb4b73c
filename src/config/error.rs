//! Errors of a configuration, reported all at once, each with its place.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::path::KeyPath;
use crate::error::Diagnosis;

/// All errors of a configuration (exit code 2). The list is never empty.
///
/// `Display` lists the problems in the order of their places, each as `place: key: primary`, then
/// detail and hint. No text holds a connection string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    problems: Vec<Problem>,
}

impl ConfigErrors {
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by(|a, b| a.place.cmp(&b.place));
        Self { problems }
    }

    /// The problems in the order of their places.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => f.write_str("the configuration has a problem")?,
            count => write!(f, "the configuration has {count} problems")?,
        }
        self.problems.iter().try_for_each(|problem| write!(f, "\n{problem}"))
    }
}

impl std::error::Error for ConfigErrors {}

/// One problem of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// None if there is no file and the problem is about the configuration as a whole.
    pub place: Option<Place>,
    /// The key, such as `subscriptions[0].tables[1].source`; empty if the problem is not about one key.
    pub key: String,
    pub diagnosis: Diagnosis,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        self.diagnosis.fmt(f)
    }
}

/// Where something was configured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The file as a whole.
    File(PathBuf),
    /// A place in the file; line and column (in characters) count from 1.
    Position { file: PathBuf, line: usize, column: usize },
    /// The environment variable of this name.
    Environment(String),
}

/// Writes `config/pgsluice.toml:14:1` or `environment variable PGSLUICE__TARGET__URL`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Position { file, line, column } => write!(f, "{}:{line}:{column}", file.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// Line and column in the file, counted from 1.
pub(super) type Position = (usize, usize);

/// Collects problems and knows where each key was set.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) file: Option<PathBuf>,
    pub(super) positions: BTreeMap<KeyPath, Position>,
    /// Names of environment variables by the key that they override.
    pub(super) variables: BTreeMap<KeyPath, String>,
    problems: Vec<Problem>,
    /// Keys whose values were discarded, so that they are not reported as missing as well.
    discarded: Vec<KeyPath>,
}

impl Report {
    /// Adds a problem with the value at `path`, or with its absence.
    pub(super) fn problem(&mut self, path: &KeyPath, diagnosis: Diagnosis) {
        let place = self.place_of(path);
        self.problems.push(Problem { place, key: path.to_string(), diagnosis });
    }

    /// Adds a problem that has a place but is not about one key.
    pub(super) fn problem_at(&mut self, place: Option<Place>, diagnosis: Diagnosis) {
        self.problems.push(Problem { place, key: String::new(), diagnosis });
    }

    /// Records that the value at `path` is unusable and has been reported.
    pub(super) fn discard(&mut self, path: KeyPath) {
        self.discarded.push(path);
    }

    /// Whether a value at `path` was discarded as unusable.
    pub(super) fn is_discarded(&self, path: &KeyPath) -> bool {
        self.discarded.iter().any(|discarded| discarded.overlaps(path))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    pub(super) fn into_errors(self) -> ConfigErrors {
        ConfigErrors::new(self.problems)
    }

    /// Returns the nearest known place: that of the key, else of its table, and so on up to the file.
    fn place_of(&self, path: &KeyPath) -> Option<Place> {
        let variable = |name: &String| Place::Environment(name.clone());
        let known = |path: &KeyPath| {
            let position = || {
                let &(line, column) = self.positions.get(path)?;
                Some(Place::Position { file: self.file.clone()?, line, column })
            };
            self.variables.get(path).map(variable).or_else(position)
        };
        // A table may exist only because a variable sets one of its keys.
        let below = || {
            let (child, name) = self.variables.range(path..).next()?;
            child.overlaps(path).then(|| variable(name))
        };
        known(path)
            .or_else(below)
            .or_else(|| path.up().skip(1).find_map(|path| known(&path)))
            .or_else(|| self.file.clone().map(Place::File))
    }
}
