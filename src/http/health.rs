//! `/healthz` answers while the process runs. `/readyz` answers whether every subscription works.

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Sources;
use super::answer::Json;
use super::guard::Guard;
use crate::subscription::Snapshot;

/// Answers 200 for as long as the process runs.
pub(super) async fn healthz() -> impl IntoResponse {
    Json(Health { status: "ok" })
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    /// Why the service is not ready; empty if it is.
    reasons: Vec<Unwell>,
}

/// A subscription that is not ready.
#[derive(Serialize)]
struct Unwell {
    subscription: String,
    state: &'static str,
    reason: Option<String>,
    /// Present only for requests that may see everything: it may name hosts and quote keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// Whether details are part of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Everything,
    Words,
}

/// Answers 200 if every enabled subscription streams, copies or stands by, else 503 with the reasons.
pub(super) async fn readyz(
    State(sources): State<Sources>,
    Extension(guard): Extension<Guard>,
    headers: HeaderMap,
) -> Response {
    let told = if guard.admits(&headers) { Told::Everything } else { Told::Words };
    let snapshots = sources.view.snapshots();
    let unwell = snapshots.iter().filter(|(_, snapshot)| !snapshot.is_well());
    let reasons: Vec<Unwell> = unwell.map(|(name, snapshot)| reason(name.as_str(), snapshot, told)).collect();
    let ready = reasons.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, reasons })).into_response()
}

fn reason(name: &str, snapshot: &Snapshot, told: Told) -> Unwell {
    let shown = &snapshot.shown;
    let text = |part: &Option<String>| part.clone().filter(|_| told == Told::Everything);
    Unwell {
        subscription: name.to_owned(),
        state: shown.state.as_str(),
        reason: shown.reason.clone(),
        detail: text(&shown.detail),
        hint: text(&shown.hint),
    }
}
