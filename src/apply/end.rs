//! Why a stream cannot be applied any further.
//!
//! Pure data. What follows from it (streaming again, a pause) is decided in `subscription`.

use crate::pg::{Lsn, QualifiedName};
use crate::pgoutput::{LargeMessage, RelationError};
use crate::schema::Misfit;

/// What keeps a change from being applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    pub misfits: Vec<Misfit>,
    /// The change's SQL command.
    pub command: &'static str,
    /// Where its transaction finishes, if that is known.
    pub finish: Option<Lsn>,
}

/// A row that is larger than the subscription takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LargeRow {
    pub message: LargeMessage,
    /// Its table, if it is known to be one of the subscription's.
    pub table: Option<QualifiedName>,
    /// The column of [`LargeMessage::value`].
    pub column: Option<String>,
}

/// Why nothing more can be applied, although both connections are open.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The publisher's messages do not follow the protocol.
    #[error("the stream is out of order: {0}")]
    OutOfOrder(String),
    #[error("a relation could not be understood")]
    Relation(#[from] RelationError),
    /// A change has come that the target cannot take as it is.
    #[error("{} problem(s) keep published tables from fitting into the target", .0.misfits.len())]
    Unfit(Unfit),
    #[error("a row has {} bytes, more than are taken", .0.message.bytes)]
    TooLarge(LargeRow),
    /// The publisher has to send everything from the recorded position again, to be applied row by row
    /// until the transaction that finishes here is through.
    #[error("the transaction that finishes at {until} has to be sent again")]
    SendAgain { until: Lsn },
    /// A transaction in progress cannot be applied before its end is known: the publisher has to send
    /// transactions after their commit.
    #[error("transactions have to be sent whole")]
    SendWhole,
    /// Another writer has moved the progress row.
    #[error("another writer has moved the progress row on from {expected}")]
    AnotherWriter { expected: Lsn },
    /// An invariant does not hold. Nothing more is applied.
    #[error("an invariant of apply does not hold: {0}")]
    Invariant(&'static str),
}
