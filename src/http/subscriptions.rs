//! `/api/v1/subscriptions[/NAME]` answers what `pgsluice status --json` shows.
//!
//! The target's rows include the subscriptions of other instances. While the target does not answer,
//! the answer holds only what this process knows, and says that tables are missing.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::Sources;
use super::answer::{Json, Refusal};
use crate::error::Diagnosis;
use crate::store::{SlotStatus, StatusDocument, SubscriptionRow, SubscriptionStatus};
use crate::subscription::Snapshot;

/// Longest wait for the target's answer.
const TARGET_TIMEOUT: Duration = Duration::from_secs(3);
const NO_TARGET: &str =
    "the target does not answer: this is what the service sees itself, without the tables";

pub(super) async fn list(State(sources): State<Sources>) -> Json<StatusDocument> {
    Json(document(&sources).await)
}

pub(super) async fn one(
    State(sources): State<Sources>,
    Path(name): Path<String>,
) -> Result<Json<SubscriptionStatus>, Refusal> {
    let mut statuses = document(&sources).await.subscriptions.into_iter();
    statuses.find(|status| status.name == name).map(Json).ok_or_else(|| {
        let diagnosis = Diagnosis::new("there is no subscription of that name")
            .hint("/api/v1/subscriptions lists those that the service and the target know");
        Refusal::new(StatusCode::NOT_FOUND, diagnosis)
    })
}

async fn document(sources: &Sources) -> StatusDocument {
    let snapshots = sources.view.snapshots();
    match rows(sources).await {
        Some(rows) => {
            let seen = snapshots.iter().map(|(name, snapshot)| (name.as_str(), snapshot.shown.state));
            StatusDocument::new(&rows, seen)
        }
        None => StatusDocument {
            subscriptions: snapshots.iter().map(|(name, seen)| status(name.as_str(), seen)).collect(),
        },
    }
}

/// Reads the rows of the target, if it answers.
async fn rows(sources: &Sources) -> Option<Vec<SubscriptionRow>> {
    let store = sources.store.borrow().clone()?;
    match tokio::time::timeout(TARGET_TIMEOUT, store.subscriptions()).await {
        Ok(Ok(rows)) => Some(rows),
        Ok(Err(error)) => {
            // The workers notice a lost target themselves and report it.
            tracing::debug!(%error, "the target's record was not read");
            None
        }
        Err(_) => None,
    }
}

/// The status of a subscription as far as this process knows it.
fn status(name: &str, seen: &Snapshot) -> SubscriptionStatus {
    let (shown, positions) = (seen.shown.clone(), seen.positions.clone());
    SubscriptionStatus {
        name: name.to_owned(),
        state: shown.state,
        reason: shown.reason,
        detail: shown.detail,
        hint: shown.hint,
        received_lsn: positions.received_lsn,
        applied_lsn: positions.flushed_lsn,
        flushed_lsn: positions.flushed_lsn,
        publisher_lsn: positions.publisher_lsn,
        lag_bytes: positions.lag_bytes,
        lag_seconds: positions.lag_seconds,
        slot: SlotStatus { wal_status: positions.wal_status, retained_bytes: positions.retained_bytes },
        tables: Vec::new(),
        gaps: Vec::new(),
        conflict_id: shown.conflict_id,
        since: None,
        running: true,
        instance: None,
        skip_lsn: None,
        warnings: vec![NO_TARGET.to_owned()],
    }
}
