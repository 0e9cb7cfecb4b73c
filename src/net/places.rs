//! Places for sessions on the target that can wait, where `target.max_connections` bounds them.
//!
//! Sessions that apply, and the store's, are bounded by their number, and wait for nobody here. There is one target for a
//! process, so the places are the process's. Without a bound there are always some.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// How long a session of a moment waits for its place, which others leave soon. A server that does not answer would keep it.
const MOMENT_PATIENCE: Duration = Duration::from_secs(3);

static COPIES: Semaphore = Semaphore::const_new(Semaphore::MAX_PERMITS);
static MOMENTS: Semaphore = Semaphore::const_new(Semaphore::MAX_PERMITS);

/// A place for one session, until dropped.
#[derive(Debug)]
pub(crate) struct Place(#[expect(dead_code, reason = "it is held")] SemaphorePermit<'static>);

/// Bounds the sessions of copies, and to one those that are open for a moment. To be called once, before there are any.
pub(crate) fn bound(copies: u32) {
    let copies = usize::try_from(copies).unwrap_or(Semaphore::MAX_PERMITS);
    COPIES.forget_permits(Semaphore::MAX_PERMITS.saturating_sub(copies));
    MOMENTS.forget_permits(Semaphore::MAX_PERMITS - 1);
}

/// A place for a copy's session, if there is one at once.
pub(crate) fn try_copy() -> Option<Place> {
    COPIES.try_acquire().ok().map(Place)
}

/// Waits for a place for a copy's session, in the order of asking. Cancel-safe.
pub(crate) async fn copy() -> Option<Place> {
    COPIES.acquire().await.ok().map(Place)
}

/// Waits for a place for a session that is open for a moment. None if those before it take too long: it is opened all the same,
/// because what has to be found out does not wait.
pub(crate) async fn moment() -> Option<Place> {
    timeout(MOMENT_PATIENCE, MOMENTS.acquire()).await.ok()?.ok().map(Place)
}
