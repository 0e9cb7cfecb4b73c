//! Counts of what a stream, or a part of it, holds.

use super::message::Message;

/// Row changes by operation, and transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    pub inserts: u64,
    pub updates: u64,
    pub deletes: u64,
    /// Tables truncated.
    pub truncates: u64,
    pub transactions: u64,
}

impl Tally {
    /// Row changes of all kinds.
    #[must_use]
    pub const fn rows(&self) -> u64 {
        self.inserts + self.updates + self.deletes + self.truncates
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            inserts: self.inserts + other.inserts,
            updates: self.updates + other.updates,
            deletes: self.deletes + other.deletes,
            truncates: self.truncates + other.truncates,
            transactions: self.transactions + other.transactions,
        }
    }

    /// Counts what the stream has brought.
    pub fn count(&mut self, message: &Message) {
        match message {
            Message::Insert(_) => self.inserts += 1,
            Message::Update(_) => self.updates += 1,
            Message::Delete(_) => self.deletes += 1,
            Message::Truncate(truncate) => self.truncates += truncate.relation_oids.len() as u64,
            Message::Commit(_) | Message::StreamCommit(_) => self.transactions += 1,
            Message::Begin(_)
            | Message::Relation(_)
            | Message::Type(_)
            | Message::Origin(_)
            | Message::Logical(_)
            | Message::StreamStart(_)
            | Message::StreamStop
            | Message::StreamAbort(_) => {}
        }
    }

    /// The row changes, each with its operation's name.
    #[must_use]
    pub const fn by_operation(&self) -> [(&'static str, u64); 4] {
        [
            ("insert", self.inserts),
            ("update", self.updates),
            ("delete", self.deletes),
            ("truncate", self.truncates),
        ]
    }
}
