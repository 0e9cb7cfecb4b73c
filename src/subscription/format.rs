//! What the publisher is asked to send: text or binary values, transactions whole or in progress.
//!
//! Binary is cheaper for everybody: neither side's output and input functions run. It is for streams all
//! of whose columns the target can read it for (`schema::binary`), and only as long as nothing has to be
//! judged row by row for a person's eyes: evidence is text, so a transaction that met a conflict is
//! streamed again as text.
//!
//! Transactions in progress are taken as `apply::intake` tells; where that goes wrong, they are asked
//! for whole for some time, longer each time. Whatever had to be given up is taken up again by an
//! attempt that begins anew once the reason has passed.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Auto;
use crate::error::Diagnosis;
use crate::pg::{Lsn, QualifiedName};
use crate::pgoutput::Format;
use crate::schema::binary::first_unusable;
use crate::schema::{PublishedRelation, catalog};
use crate::target::TargetSession;

use super::attempt::Context;
use super::failure::Failure;
use super::publisher::Publisher;

/// The first version whose `pgoutput` sends binary values and transactions in progress.
const SINCE: u32 = 140_000;

/// How long a stream that gave something up goes on without, at least.
const WITHOUT_AT_LEAST: Duration = Duration::from_secs(10);
/// How long transactions are sent whole after one in progress had to be sent again…
const WHOLE_MIN: Duration = Duration::from_secs(10);
/// …at most: doubled each time, until it has gone well for ten times as long.
const WHOLE_MAX: Duration = Duration::from_hours(1);

/// The publisher sends pieces once a transaction's changes fill this memory, 64 MB by default: it and the
/// target would take turns rather than work at the same time.
pub(super) const STREAM_EARLY: &str = "SET logical_decoding_work_mem = '8MB'";

/// How transactions are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transactions {
    Whole,
    /// Large ones in pieces, before they end.
    InProgress,
}

/// What an attempt asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) format: Format,
    pub(super) transactions: Transactions,
    /// More could be asked for once this has passed.
    pub(super) better_after: Option<Better>,
}

/// When a stream could do with more than it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Better {
    at: Instant,
    /// And this transaction is through.
    lsn: Lsn,
}

impl Better {
    /// Whether an attempt that begins now, with everything up to `applied` done, would have more.
    pub(super) fn is_due(self, now: Instant, applied: Lsn) -> bool {
        now >= self.at && applied > self.lsn
    }
}

/// Until when transactions are sent whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whole {
    until: Instant,
    span: Duration,
}

impl Whole {
    /// A transaction in progress had to be sent again, `before` being the last time.
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

/// All that may be streamed, with its targets.
pub(super) type Relations<'a> = [(&'a PublishedRelation, &'a QualifiedName)];

/// What the two servers and the configuration allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Possible {
    formats: Format,
    transactions: Transactions,
}

/// Finds out what is possible. What keeps something that was asked for with "on" from being had is
/// said in `warnings`.
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
    /// Chooses for a stream that begins at `from`. Up to `known_at_end`, which changes apply is known at
    /// the end of their transaction only: a transaction is to be passed over, or a table was synchronised
    /// later.
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
        // The same goes for a table that is still being copied.
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

/// The first column that binary values are not used for.
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
