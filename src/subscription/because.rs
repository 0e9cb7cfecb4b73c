//! The reason behind `retrying` and `paused`, as the worker reports it.

use crate::error::{Diagnosis, PauseReason};

/// A reason's word, its text for operators, and the conflict's number if there is one.
#[derive(Debug, Clone)]
pub(super) struct Because {
    pub(super) reason: String,
    pub(super) diagnosis: Diagnosis,
    pub(super) conflict_id: Option<i64>,
}

impl Because {
    pub(super) fn operator() -> Self {
        Self {
            reason: PauseReason::Operator.as_str().to_owned(),
            diagnosis: Diagnosis::new("paused by an operator").hint("\"pgsluice resume\" goes on"),
            conflict_id: None,
        }
    }
}
