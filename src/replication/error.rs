//! Errors of an established replication connection, and what follows from them.
//!
//! The publisher's errors are classified into [`Fault`]s by SQLSTATE first, by wording second (a
//! publisher may use another language), and by the moment third: before streaming, a missing object is
//! the slot; while streaming, it is a publication, which pgoutput looks up with the first change.

use std::io;

use bytes::Bytes;

use super::channel::ChannelError;
use super::command::Unsupported;
use super::frame::{self, Frame, FrameError};
use super::wire::WireError;
use crate::error::{Diagnosis, Disposition, PauseReason, ServerError};
use crate::pg::TimelineError;

/// A command on the replication connection failed.
#[derive(Debug, thiserror::Error)]
#[error("{command} failed")]
pub struct CommandError {
    /// The first words of the command.
    pub command: &'static str,
    #[source]
    pub kind: CommandErrorKind,
}

#[derive(Debug, thiserror::Error)]
pub enum CommandErrorKind {
    #[error(transparent)]
    Server(Box<ServerError>),
    #[error("the publisher closed the connection")]
    Closed,
    #[error("the connection broke")]
    Io(#[source] io::Error),
    #[error("the publisher's answer is malformed")]
    Wire(#[source] WireError),
    #[error(transparent)]
    Unsupported(Unsupported),
    #[error("an earlier command was abandoned half-way")]
    Abandoned,
    #[error("the answer is larger than {} MiB", .0 / (1024 * 1024))]
    TooLarge(usize),
    #[error(transparent)]
    Timeline(TimelineError),
    #[error("the command could not be sent")]
    Encode(#[source] io::Error),
}

/// Why the stream ended without CopyDone.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error(transparent)]
    Server(Box<ServerError>),
    /// The connection ended without an error; the last notice, if there was one, may say why.
    #[error("the publisher closed the connection")]
    Closed(Option<Box<ServerError>>),
    #[error("the connection broke")]
    Io(#[source] io::Error),
    #[error("the publisher's stream is malformed")]
    Frame(#[source] FrameError),
    #[error("the publisher's messages are malformed")]
    Wire(#[source] WireError),
    /// The rest of the message has not been read.
    #[error("the publisher sends a message of {bytes} bytes, more than {bytes_max}")]
    TooLarge {
        bytes: usize,
        bytes_max: usize,
        /// The beginning of its pgoutput message.
        head: Bytes,
    },
}

/// An error of the publisher, by its meaning for a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The slot does not exist.
    SlotMissing,
    /// The slot exists, but WAL that it needs was removed.
    SlotInvalidated,
    /// The slot belongs to another database or plugin.
    SlotElsewhere,
    /// Another session streams from the slot.
    SlotInUse,
    /// A slot of that name exists already.
    SlotExists,
    /// `max_replication_slots` is reached.
    NoSlotFree,
    /// A publication does not exist.
    PublicationMissing,
    /// `wal_level` is not `logical`.
    WalLevel,
    /// The role lacks a privilege.
    Privilege,
    /// The fault is transient.
    Transient,
    /// Any other error.
    Other,
}

/// The moment of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Command,
    Streaming,
}

fn classify(error: &ServerError, moment: Moment) -> Fault {
    let says = |text: &str| error.message.contains(text);
    match error.code.as_str() {
        "42704" if says("publication") => Fault::PublicationMissing,
        "42704" if says("replication slot") => Fault::SlotMissing,
        "42704" => match moment {
            Moment::Command => Fault::SlotMissing,
            Moment::Streaming => Fault::PublicationMissing,
        },
        "42710" => Fault::SlotExists,
        "53400" => Fault::NoSlotFree,
        "55006" => Fault::SlotInUse,
        "55000" if says("wal_level") => Fault::WalLevel,
        // The messages of 14 to 17, of 18, and of 13, in this order (`slot.c`, `walsender.c`,
        // `logicalfuncs.c`).
        "55000"
            if says("can no longer get changes from replication slot")
                || says("can no longer access replication slot")
                || says("cannot read from logical replication slot") =>
        {
            Fault::SlotInvalidated
        }
        "55000" | "0A000" if says("replication slot") => Fault::SlotElsewhere,
        // This SQLSTATE otherwise means an I/O error (`XLogRead…`, `wal_segment_open`).
        "58P01" if says("has already been removed") => Fault::SlotInvalidated,
        "42501" => Fault::Privilege,
        _ if error.is_transient() => Fault::Transient,
        _ => Fault::Other,
    }
}

impl Fault {
    /// Retry a fault that an operator can remove (by a grant or a restart, which only another attempt
    /// would notice), and pause on one that needs a decision.
    #[must_use]
    pub fn disposition(self) -> Disposition {
        match self {
            Self::SlotMissing | Self::SlotInvalidated => Disposition::Pause(PauseReason::SlotLost),
            Self::SlotElsewhere | Self::SlotExists | Self::PublicationMissing | Self::Other => {
                Disposition::Pause(PauseReason::PublisherError)
            }
            Self::SlotInUse | Self::NoSlotFree | Self::WalLevel | Self::Privilege | Self::Transient => {
                Disposition::Retry
            }
        }
    }

    fn hint(self) -> Option<&'static str> {
        match self {
            Self::SlotMissing => Some(
                "changes since the slot was dropped cannot be had any more: drop the subscription and create it again, or copy its tables again",
            ),
            Self::SlotInvalidated => Some(
                "the publisher has removed WAL that the slot stood for: drop the subscription and create it again; to prevent it, raise max_slot_wal_keep_size on the publisher",
            ),
            Self::SlotElsewhere => {
                Some("the slot is for another database or output plugin: name another slot, or drop that one")
            }
            Self::SlotInUse => Some(
                "another session streams from this slot (pg_replication_slots.active_pid); pgsluice waits for it to end",
            ),
            Self::SlotExists => Some(
                "set create_slot = false to use it, name another slot, or drop it: SELECT pg_drop_replication_slot('…')",
            ),
            Self::NoSlotFree => Some(
                "raise max_replication_slots on the publisher (a restart), or drop slots that are not needed",
            ),
            Self::PublicationMissing => Some(
                "the publisher decodes each change with the publications of its moment, and this one did not exist then, even if it does now: compare publications in the configuration with SELECT pubname FROM pg_publication; if they are as they should be, drop the subscription and create it again",
            ),
            Self::WalLevel => Some("on the publisher: ALTER SYSTEM SET wal_level = logical, then restart it"),
            Self::Privilege => {
                Some("on the publisher, ALTER ROLE … REPLICATION, and grant what the message names")
            }
            Self::Transient | Self::Other => None,
        }
    }
}

fn server_diagnosis(error: &ServerError, moment: Moment) -> Diagnosis {
    let said = error.diagnosis();
    match classify(error, moment).hint() {
        Some(hint) => said.hint(hint),
        None => said,
    }
}

impl CommandError {
    pub(super) fn new(command: &'static str, kind: CommandErrorKind) -> Self {
        Self { command, kind }
    }

    pub(super) fn channel(command: &'static str, error: ChannelError) -> Self {
        Self::new(
            command,
            match error {
                ChannelError::Closed => CommandErrorKind::Closed,
                ChannelError::Io(error) => CommandErrorKind::Io(error),
                ChannelError::Wire(error) => CommandErrorKind::Wire(error),
                ChannelError::TooLarge { bytes, .. } => CommandErrorKind::TooLarge(bytes),
            },
        )
    }

    /// Returns the meaning of the publisher's error, if there is one.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        match &self.kind {
            CommandErrorKind::Server(error) => Some(classify(error, Moment::Command)),
            _ => None,
        }
    }

    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match &self.kind {
            CommandErrorKind::Server(error) => classify(error, Moment::Command).disposition(),
            CommandErrorKind::Closed | CommandErrorKind::Io(_) | CommandErrorKind::Abandoned => {
                Disposition::Retry
            }
            CommandErrorKind::Unsupported(_) => Disposition::Pause(PauseReason::PublisherError),
            CommandErrorKind::Wire(_)
            | CommandErrorKind::TooLarge(_)
            | CommandErrorKind::Timeline(_)
            | CommandErrorKind::Encode(_) => Disposition::Pause(PauseReason::Protocol),
        }
    }

    #[must_use]
    pub fn diagnosis(&self) -> Diagnosis {
        let command = self.command;
        match &self.kind {
            CommandErrorKind::Server(error) => server_diagnosis(error, Moment::Command),
            CommandErrorKind::Unsupported(unsupported) => Diagnosis::new(unsupported.to_string())
                .hint("upgrade the publisher, or change the subscription's configuration"),
            CommandErrorKind::Closed
            | CommandErrorKind::Abandoned
            | CommandErrorKind::Timeline(_)
            | CommandErrorKind::TooLarge(_) => Diagnosis::new(format!("{command} failed: {}", self.kind)),
            CommandErrorKind::Io(source) | CommandErrorKind::Encode(source) => {
                Diagnosis::new(format!("{command} failed: {}", self.kind)).detail(source.to_string())
            }
            CommandErrorKind::Wire(source) => {
                Diagnosis::new(format!("{command} failed: {}", self.kind)).detail(source.to_string())
            }
        }
    }
}

impl StreamError {
    pub(super) fn channel(error: ChannelError, notice: Option<ServerError>) -> Self {
        match error {
            ChannelError::Closed => Self::Closed(notice.map(Box::new)),
            ChannelError::Io(error) => Self::Io(error),
            ChannelError::Wire(error) => Self::Wire(error),
            ChannelError::TooLarge { bytes, bytes_max, head } => {
                let payload = match frame::parse(head) {
                    Ok(Frame::XLogData { payload, .. }) => payload,
                    Ok(_) | Err(_) => Bytes::new(),
                };
                Self::TooLarge { bytes, bytes_max, head: payload }
            }
        }
    }

    /// Returns the meaning of the publisher's error, if there is one.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::Server(error) => Some(classify(error, Moment::Streaming)),
            _ => None,
        }
    }

    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Server(error) => classify(error, Moment::Streaming).disposition(),
            Self::Closed(_) | Self::Io(_) => Disposition::Retry,
            Self::Frame(_) | Self::Wire(_) => Disposition::Pause(PauseReason::Protocol),
            Self::TooLarge { .. } => Disposition::Pause(PauseReason::ValueTooLarge),
        }
    }

    #[must_use]
    pub fn diagnosis(&self) -> Diagnosis {
        let own = Diagnosis::new(self.to_string());
        match self {
            Self::Server(error) => server_diagnosis(error, Moment::Streaming),
            Self::TooLarge { .. } => own.hint("raise max_value_bytes"),
            Self::Closed(None) => own.hint("the publisher's log says why; pgsluice connects again by itself"),
            Self::Closed(Some(notice)) => own.detail(format!("its last notice: {notice}")),
            Self::Io(source) => own.detail(source.to_string()),
            Self::Frame(source) => own.detail(source.to_string()),
            Self::Wire(source) => own.detail(source.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: &str, message: &str) -> ServerError {
        ServerError { code: code.to_owned(), message: message.to_owned(), ..ServerError::default() }
    }

    #[test]
    fn the_publishers_errors_are_told_apart() {
        let check = |code: &str, message: &str, expected: Fault| {
            let error = server(code, message);
            assert_eq!(classify(&error, Moment::Streaming), expected, "{error}");
        };
        check("42704", r#"replication slot "s" does not exist"#, Fault::SlotMissing);
        check("42704", r#"publication "p" does not exist"#, Fault::PublicationMissing);
        check("55000", r#"can no longer get changes from replication slot "s""#, Fault::SlotInvalidated);
        check("55000", r#"can no longer access replication slot "s""#, Fault::SlotInvalidated);
        check("55000", r#"cannot read from logical replication slot "s""#, Fault::SlotInvalidated);
        check("58P01", "requested WAL segment 0001 has already been removed", Fault::SlotInvalidated);
        check("58P01", "could not open file", Fault::Transient);
        check("55000", r#"replication slot "s" was not created in this database"#, Fault::SlotElsewhere);
        check("55000", "logical decoding requires wal_level >= logical", Fault::WalLevel);
        check("55006", r#"replication slot "s" is active for PID 1"#, Fault::SlotInUse);
        check("53400", "all replication slots are in use", Fault::NoSlotFree);
        check("57P01", "terminating connection due to administrator command", Fault::Transient);
        check("XX000", "internal", Fault::Other);
    }

    #[test]
    fn the_moment_decides_where_the_language_hides_the_object() {
        let error = server("42704", "das Objekt »x« existiert nicht");
        assert_eq!(classify(&error, Moment::Command), Fault::SlotMissing);
        assert_eq!(classify(&error, Moment::Streaming), Fault::PublicationMissing);
    }

    #[test]
    fn dispositions_follow_the_fault() {
        let pause =
            |code: &str, message: &str| StreamError::Server(Box::new(server(code, message))).disposition();
        assert_eq!(
            pause("55000", "can no longer get changes from replication slot \"s\""),
            Disposition::Pause(PauseReason::SlotLost)
        );
        assert_eq!(
            pause("42704", "publication \"p\" does not exist"),
            Disposition::Pause(PauseReason::PublisherError)
        );
        assert_eq!(pause("55006", "replication slot \"s\" is active for PID 1"), Disposition::Retry);
        assert_eq!(StreamError::Closed(None).disposition(), Disposition::Retry);
        assert_eq!(
            StreamError::Frame(FrameError::Empty).disposition(),
            Disposition::Pause(PauseReason::Protocol)
        );
    }
}
