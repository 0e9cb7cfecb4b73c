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
    /// A pause that an operator asked for. If the subscription was paused already, `before` says why, and that
    /// stays visible, because it is met again after the pause.
    pub(super) fn operator(before: Option<&Self>) -> Self {
        let reason = PauseReason::Operator.as_str().to_owned();
        let resume = "\"pgsluice resume\" goes on";
        match before {
            Some(before) if before.reason == reason => before.clone(),
            Some(before) => Self {
                reason,
                diagnosis: Diagnosis {
                    primary: format!(
                        "paused by an operator; before that ({}): {}",
                        before.reason, before.diagnosis.primary
                    ),
                    hint: Some(match &before.diagnosis.hint {
                        Some(hint) => format!("{resume}; before that: {hint}"),
                        None => resume.to_owned(),
                    }),
                    ..before.diagnosis.clone()
                },
                conflict_id: before.conflict_id,
            },
            None => Self {
                reason,
                diagnosis: Diagnosis::new("paused by an operator").hint(resume),
                conflict_id: None,
            },
        }
    }
}
