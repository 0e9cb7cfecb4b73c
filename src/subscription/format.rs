//! Chooses the stream's options: text or binary values, and whether large transactions are sent before they
//! commit.
//!
//! Binary values cost less, because no output and input functions run. They are used if the target can read
//! every column of the stream in binary (`schema::binary`). A transaction with a conflict is streamed again
//! as text, because its evidence is text.
//!
//! `apply::incoming::intake` describes how transactions in progress are applied. If that fails, transactions
//! are requested after their commit, for some time, which grows with each failure. An option that was given
//! up is requested again by a new attempt once the reason has passed.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Auto;
use crate::error::Diagnosis;
use crate::pg::{Lsn, QualifiedName};
use crate::pgoutput::Format;
use crate::schema::binary::first_unusable;
use crate::schema::{PublishedRelation, catalog};
use crate::target::TargetSession;

use super::context::Context;
use super::failure::Failure;
use super::publisher::Publisher;

/// The first version whose `pgoutput` sends binary values and transactions in progress.
const SINCE: u32 = 140_000;

/// Minimum time before binary values or transactions in progress are requested again.
const WITHOUT_AT_LEAST: Duration = Duration::from_secs(10);
/// How long transactions are sent after their commit once one in progress had to be sent again. It is doubled
/// each time.
const WHOLE_MIN: Duration = Duration::from_secs(10);
/// Maximum of that time. It begins again with the minimum if no transaction had to be sent again for ten
/// times as long.
const WHOLE_MAX: Duration = Duration::from_hours(1);

/// The publisher begins to send a transaction in progress when the changes that it decodes exceed this
/// memory. With the default of 64 MB, publisher and target would work by turns rather than at the same time.
pub(super) const STREAM_EARLY: &str = "SET logical_decoding_work_mem = '8MB'";

/// How transactions are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transactions {
    Whole,
    /// Large ones in pieces, before they commit.
    InProgress,
}

/// The options of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) format: Format,
    pub(super) transactions: Transactions,
    /// When better options can be requested; none if there are no better ones.
    pub(super) better_after: Option<Better>,
}

/// When a stream can get better options: after a time, and after a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Better {
    at: Instant,
    /// The transaction that finishes here has been applied.
    lsn: Lsn,
}

impl Better {
    /// Whether an attempt that begins now, with everything up to `applied` applied, would get better options.
    pub(super) fn is_due(self, now: Instant, applied: Lsn) -> bool {
        now >= self.at && applied > self.lsn
    }
}

/// Until when transactions are sent after their commit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whole {
    until: Instant,
    span: Duration,
}

impl Whole {
    /// Returns the next time, after a transaction in progress had to be sent again; `before` is the last one.
    pub(super) fn again(before: Option<Self>, now: Instant) -> Self {
        let span = match before {
            Some(before) if now < before.until + before.span * 10 => (before.span * 2).min(WHOLE_MAX),
            _ => WHOLE_MIN,
        };
        Self { until: now + span, span }
    }
}

/// Whether all tables are synchronised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ready {
    All,
    NotAll,
}

/// The tables that may be streamed, with their targets.
pub(super) type Relations<'a> = [(&'a PublishedRelation, &'a QualifiedName)];

/// The options that the two servers and the configuration allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Possible {
    formats: Format,
    transactions: Transactions,
}

/// Finds out which options are possible. If one is configured as "on" and is not possible, the reason is
/// added to `warnings`.
pub(super) async fn survey(
    context: &Context,
    publisher: &Publisher,
    session: &TargetSession,
    relations: &Relations<'_>,
    warnings: &mut Vec<Diagnosis>,
) -> Result<Possible, Failure> {
    let subscription = &context.subscription;
    let old = (publisher.client.server_version_num() < SINCE)
        .then(|| "the publisher is older than PostgreSQL 14".to_owned());
    let mut possible = Possible { formats: Format::Text, transactions: Transactions::Whole };
    if subscription.binary != Auto::Off {
        let why_not = match &old {
            Some(old) => Some(old.clone()),
            None => unusable_column(session, relations).await?,
        };
        match why_not {
            None => possible.formats = Format::Binary,
            Some(why_not) if subscription.binary == Auto::On => {
                warnings.push(without("values travel as text although binary = \"on\"", why_not));
            }
            Some(_) => {}
        }
    }
    match (subscription.streaming, old) {
        (Auto::Off, _) | (Auto::Auto, Some(_)) => {}
        (_, None) => possible.transactions = Transactions::InProgress,
        (Auto::On, Some(old)) => {
            warnings.push(without("transactions are sent whole although streaming = \"on\"", old));
        }
    }
    Ok(possible)
}

impl Possible {
    /// Chooses the options of a stream that begins at `from`. For transactions that finish up to
    /// `known_at_its_end`, it is known at their end only which changes apply, because a transaction is to be
    /// skipped or a table's position lies there.
    pub(super) fn choose(
        self,
        context: &Context,
        from: Lsn,
        known_at_end: Option<Lsn>,
        ready: Ready,
    ) -> Choice {
        let now = Instant::now();
        let exact = context.exact_until.filter(|until| *until >= from);
        let known_at_its_end = exact.max(known_at_end.filter(|known| *known > from));
        let whole = context.whole.map(|whole| whole.until).filter(|until| *until > now);
        // That is also so while a table is still being copied.
        let may_stream = known_at_its_end.is_none() && whole.is_none() && ready == Ready::All;
        let binary = self.formats == Format::Binary;
        let streaming = self.transactions == Transactions::InProgress;
        let lacks = (binary && exact.is_some()) || (streaming && !may_stream);
        Choice {
            format: if binary && exact.is_none() { Format::Binary } else { Format::Text },
            transactions: if streaming && may_stream {
                Transactions::InProgress
            } else {
                Transactions::Whole
            },
            better_after: lacks.then(|| Better {
                at: (now + WITHOUT_AT_LEAST).max(whole.unwrap_or(now)),
                lsn: known_at_its_end.unwrap_or(Lsn::ZERO),
            }),
        }
    }
}

/// Returns the first column for which binary values cannot be used.
async fn unusable_column(
    session: &TargetSession,
    relations: &Relations<'_>,
) -> Result<Option<String>, Failure> {
    let names: Vec<QualifiedName> = relations.iter().map(|&(_, target)| target.clone()).collect();
    let targets = catalog::target_column_types(&***session.client(), &names).await?;
    Ok(relations.iter().zip(&targets).find_map(|(&(published, _), target)| {
        let column = first_unusable(published, target)?;
        Some(format!(
            "column \"{}\" of {} is of type {}, which binary values are not used for here",
            column.name, published.name, column.ty.name
        ))
    }))
}

fn without(primary: &str, why_not: String) -> Diagnosis {
    Diagnosis::new(primary)
        .detail(why_not)
        .hint("nothing is lost by it but speed; \"auto\" says no more about it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_are_sent_whole_for_longer_each_time_until_it_goes_well() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let first = Whole::again(None, start);
        assert_eq!(first.until, at(10));
        let second = Whole::again(Some(first), at(60));
        assert_eq!(second.until, at(80));
        assert_eq!(Whole::again(Some(second), at(400)).span, WHOLE_MIN, "it has gone well for minutes");
        let mut whole = second;
        for _ in 0..20 {
            whole = Whole::again(Some(whole), whole.until);
        }
        assert_eq!(whole.span, WHOLE_MAX);
    }

    #[test]
    fn more_is_asked_for_once_the_reason_has_passed() {
        let now = Instant::now();
        let better = Better { at: now + Duration::from_secs(10), lsn: Lsn::new(100) };
        let later = now + Duration::from_secs(10);
        assert!(!better.is_due(now, Lsn::new(200)));
        assert!(!better.is_due(later, Lsn::new(100)));
        assert!(better.is_due(later, Lsn::new(101)));
    }
}
