//! What follows from the end of a stream that was read.

use super::{Cause, Failure, Restart};
use crate::apply::end::{End, LargeRow};
use crate::error::Diagnosis;
use crate::replication::{Fault, StreamError};
use crate::subscription::findings;
use crate::subscription::reader::ReadError;

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Stream(error) => {
                let fault = error.fault();
                let restart = match (&error, fault) {
                    (StreamError::Server(server), Some(Fault::PublicationMissing)) => {
                        Some(Box::new(Restart::PublicationMissing(server.message.clone())))
                    }
                    _ => None,
                };
                let failure = Self::of(error.disposition(), error.diagnosis(), Cause::of(fault));
                Self { restart, ..failure.with_gap_of(fault) }
            }
            ReadError::Decode(error) => error.into(),
            // Which row it is has not been found out.
            ReadError::TooLarge(message) => {
                End::TooLarge(LargeRow { message, table: None, column: None }).into()
            }
            ReadError::Stalled(waited) => {
                Self { cause: Cause::Target, ..Self::retry(findings::stalled(waited)) }
            }
            ReadError::Silent(waited) => {
                Self::retry(findings::silent_publisher(waited)).because_of(Cause::Connection)
            }
            ReadError::Ended => Self::retry(
                Diagnosis::new("the publisher ended the replication stream")
                    .detail("it may be shutting down or restarting")
                    .hint("streaming goes on by itself once the publisher is back"),
            ),
        }
    }
}
