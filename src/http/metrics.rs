//! `/metrics` returns the text exposition with current gauges.

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use super::Sources;
use crate::telemetry;

const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn metrics(State(sources): State<Sources>) -> impl IntoResponse {
    let snapshots = sources.view.snapshots();
    let gauges: Vec<_> = snapshots.iter().map(|(name, snapshot)| snapshot.gauges(name.as_str())).collect();
    ([(header::CONTENT_TYPE, TEXT_FORMAT)], telemetry::render(&gauges))
}
