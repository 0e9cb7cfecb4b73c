//! Records the gaps that an attempt finds, and tells about each one once.

use crate::gap::{Gap, GapKind, NewGap};
use crate::store::OpenedGap;
use crate::telemetry::GapFound;

use super::attempt::Context;
use super::failure::{About, Failure};

/// Records a gap, and pauses its table if it holds it. Returns none if the table is still to be copied, or not
/// one of the subscription's: there is no gap then.
///
/// The stream must not run: it would go on to apply the table's changes.
pub(super) async fn open(context: &Context, gap: &NewGap) -> Result<Option<Gap>, Failure> {
    Ok(match context.store.open_gap(&context.owner, gap).await? {
        Some(OpenedGap::New(gap)) => {
            GapFound { gap: &gap }.emit();
            Some(gap)
        }
        Some(OpenedGap::Known(gap)) => Some(gap),
        None => None,
    })
}

/// Records the gap that a failure of an attempt leaves, and returns the failure with the ways out.
///
/// # Errors
/// The gap could not be recorded. The next attempt finds it again.
pub(super) async fn record(context: &Context, mut failure: Failure) -> Result<Failure, Failure> {
    let Some(About::Gap(mut gap)) = failure.about.as_deref().cloned() else { return Ok(failure) };
    failure.about = None;
    let Some(recorded) = context.positions.borrow().applied else { return Ok(failure) };
    gap.from = gap.from.or_else(|| (gap.kind != GapKind::Diverged).then_some(recorded));
    open(context, &gap).await?;
    Ok(failure)
}
