//! A timeline's history: which timelines came before it, and where each was left.
//!
//! Pure. The file's format is `timeline.c`'s: a line for each ancestor with its number, the position
//! at which it was left, and a reason; comments begin with `#`.

use crate::pg::Lsn;

/// A history file's size at most, bytes: a line is about 60, and a promotion adds one.
pub const HISTORY_BYTES_MAX: usize = 1 << 20;

/// A timeline with its ancestors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: u32,
    /// The oldest first.
    ancestors: Vec<Switch>,
}

/// The end of an ancestor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    pub timeline: u32,
    /// Where it was left: WAL up to here is shared with the timeline that followed.
    pub at: Lsn,
}

/// The content of a history file is not what PostgreSQL writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimelineError {
    #[error("the history of timeline {timeline} is {bytes} bytes long, more than {HISTORY_BYTES_MAX}")]
    TooLarge { timeline: u32, bytes: usize },
    #[error("line {line} of the history of timeline {timeline} does not hold {expected}")]
    Line { timeline: u32, line: usize, expected: &'static str },
}

impl TimelineHistory {
    /// A timeline without ancestors.
    #[must_use]
    pub const fn first(timeline: u32) -> Self {
        Self { timeline, ancestors: Vec::new() }
    }

    /// Parses the content of a history file.
    ///
    /// # Errors
    /// More than [`HISTORY_BYTES_MAX`], or a line that is not a timeline's end.
    pub fn parse(timeline: u32, content: &[u8]) -> Result<Self, TimelineError> {
        if content.len() > HISTORY_BYTES_MAX {
            return Err(TimelineError::TooLarge { timeline, bytes: content.len() });
        }
        // The reason may be in any encoding; what comes before it is ASCII.
        let text = String::from_utf8_lossy(content);
        let mut ancestors: Vec<Switch> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |expected| TimelineError::Line { timeline, line: index + 1, expected };
            let mut fields = line.split_ascii_whitespace();
            let number: Option<u32> = fields.next().and_then(|field| field.parse().ok());
            let number = number.ok_or_else(|| wrong("a timeline's number"))?;
            let at: Option<Lsn> = fields.next().and_then(|field| field.parse().ok());
            let at = at.ok_or_else(|| wrong("the position of a switch"))?;
            let after_the_last = ancestors.last().is_none_or(|last| last.timeline < number);
            if !after_the_last || number >= timeline {
                return Err(wrong("a later timeline than the line before, and an earlier one than its own"));
            }
            ancestors.push(Switch { timeline: number, at });
        }
        Ok(Self { timeline, ancestors })
    }

    #[must_use]
    pub const fn timeline(&self) -> u32 {
        self.timeline
    }

    /// Where `timeline` was left; none if it is no ancestor.
    #[must_use]
    pub fn left_at(&self, timeline: u32) -> Option<Lsn> {
        self.ancestors.iter().find(|ancestor| ancestor.timeline == timeline).map(|ancestor| ancestor.at)
    }

    /// Where `timeline`, this one or an ancestor, began: where the one before it was left. None for the
    /// oldest.
    #[must_use]
    pub fn began_at(&self, timeline: u32) -> Option<Lsn> {
        self.ancestors.iter().rev().find(|ancestor| ancestor.timeline < timeline).map(|ancestor| ancestor.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &[u8] = b"1\t0/3000148\tno recovery target specified\n\n# a comment\n\
        2\t1/A\tbefore 2026-01-01 00:00:00+00 \xff\n";

    #[test]
    fn ancestors_and_their_ends_are_found() {
        let history = TimelineHistory::parse(5, FILE).unwrap();
        let lsn = |text: &str| Some(text.parse::<Lsn>().unwrap());
        assert_eq!(history.timeline(), 5);
        assert_eq!([1, 2, 3, 5].map(|t| history.left_at(t)), [lsn("0/3000148"), lsn("1/A"), None, None]);
        assert_eq!([1, 2, 5].map(|t| history.began_at(t)), [None, lsn("0/3000148"), lsn("1/A")]);
        assert_eq!(TimelineHistory::first(1).began_at(1), None);
    }

    #[test]
    fn anything_else_is_refused() {
        let check = |timeline: u32, content: &[u8], expected: &str| {
            let error = TimelineHistory::parse(timeline, content).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(2, b"one\t0/1", "line 1 of the history of timeline 2 does not hold a timeline's number");
        check(2, b"\n1\t0:1\tx", "line 2");
        check(2, b"1", "the position of a switch");
        check(3, b"2\t0/1\n1\t0/2\n", "a later timeline");
        check(2, b"2\t0/1\n", "an earlier one");
        check(2, &vec![b' '; HISTORY_BYTES_MAX + 1], "bytes long");
    }

    #[test]
    fn no_content_makes_it_panic() {
        for seed in 0..2_000_u32 {
            let bytes: Vec<u8> = (0..seed % 64)
                .map(|n| b"01\t/\n#A\xff"[(seed.wrapping_mul(2_654_435_761).rotate_left(n) % 8) as usize])
                .collect();
            let _ = TimelineHistory::parse(seed, &bytes);
        }
    }
}
