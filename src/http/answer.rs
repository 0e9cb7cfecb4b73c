//! Answers in JSON; those to refused requests have primary, detail and hint.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::error::Diagnosis;
use crate::text;

/// A JSON document. Characters that would not be shown as themselves are escaped in it, so that it can be printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        let json = [(header::CONTENT_TYPE, "application/json")];
        match serde_json::to_string(&self.0) {
            Ok(document) => (json, text::json(&document)).into_response(),
            Err(error) => {
                tracing::error!(%error, "an answer cannot be written as JSON");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}

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
