//! Path of a value in the configuration: `subscriptions[0].tables[1].source`.

use std::fmt;

/// One step of a path: a key of a table or an index of a list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Segment {
    Key(String),
    Index(usize),
}

/// The segments from the root. A parent sorts before its children.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct KeyPath(Vec<Segment>);

impl KeyPath {
    pub(super) fn key(&self, name: impl Into<String>) -> Self {
        self.child(Segment::Key(name.into()))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.child(Segment::Index(index))
    }

    fn child(&self, segment: Segment) -> Self {
        let mut segments = self.0.clone();
        segments.push(segment);
        Self(segments)
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.0
    }

    /// Returns this path, its parent and so on up to the root.
    pub(super) fn up(&self) -> impl Iterator<Item = Self> + '_ {
        (0..=self.0.len()).rev().map(|length| Self(self.0[..length].to_vec()))
    }

    /// Whether one of the two paths equals or contains the other.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a == b)
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Key(name) => {
                    let dot = if i == 0 { "" } else { "." };
                    let bare = |c: char| c.is_ascii_alphanumeric() || "_-*".contains(c);
                    if !name.is_empty() && name.chars().all(bare) {
                        write!(f, "{dot}{name}")?;
                    } else {
                        write!(f, "{dot}\"{}\"", name.escape_debug())?;
                    }
                }
            }
        }
        Ok(())
    }
}
