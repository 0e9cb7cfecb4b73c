//! Answers to refused requests: one JSON document with primary, detail and hint.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::error::Diagnosis;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) diagnosis: Diagnosis,
}

impl Refusal {
    pub(super) const fn new(status: StatusCode, diagnosis: Diagnosis) -> Self {
        Self { status, diagnosis }
    }
}

#[derive(Serialize)]
struct Body {
    error: Diagnosis,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(Body { error: self.diagnosis })).into_response()
    }
}

pub(super) async fn no_such_resource() -> Refusal {
    let diagnosis = Diagnosis::new("there is no such resource")
        .hint("there are /healthz, /readyz, /metrics, /api/v1/subscriptions and /api/v1/subscriptions/NAME");
    Refusal::new(StatusCode::NOT_FOUND, diagnosis)
}

pub(super) async fn no_such_method() -> Refusal {
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Diagnosis::new("this resource does not know that method"))
}
