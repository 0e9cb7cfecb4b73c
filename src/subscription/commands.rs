//! Carries out operators' commands other than pause and resume.

use serde_json::Value;

use crate::conflict::Resolution;
use crate::error::Diagnosis;
use crate::store::{Answer, Ownership, Settlement, Store, Verb};

/// Resolves a conflict: checks that it is open and belongs to this subscription, and records the resolution.
/// The caller goes on with the stream.
pub(super) async fn resolve(
    store: &Store,
    owner: &Ownership,
    args: &Value,
    by: &str,
) -> Result<Answer, Diagnosis> {
    let subscription = owner.name();
    let id = args.get("conflict_id").and_then(Value::as_i64);
    let resolution: Option<Resolution> =
        args.get("resolution").and_then(Value::as_str).and_then(|word| word.parse().ok());
    let (Some(id), Some(resolution)) = (id, resolution) else {
        return Err(Diagnosis::new("the command names no conflict, or no resolution that is known here")
            .hint("use the same version of pgsluice for the command line and the service"));
    };
    let conflict = store.conflict(id).await.map_err(|error| error.diagnosis())?;
    if conflict.report.subscription != subscription {
        return Err(Diagnosis::new(format!("conflict {id} is not one of {subscription}"))
            .hint("\"pgsluice conflicts\" lists them with their subscriptions"));
    }
    if conflict.settled.is_some() {
        return Err(Diagnosis::new(format!("conflict {id} has been settled already"))
            .hint(format!("see \"pgsluice conflicts show {id}\"")));
    }
    match resolution {
        Resolution::Retry => Ok(Answer::done(format!(
            "the transaction of conflict {id} is tried again; \"pgsluice status {subscription}\" shows the outcome"
        ))),
        Resolution::SkipTransaction => {
            let lsn = conflict.report.commit_lsn;
            if let Err(error) = store.resolve_conflict(owner, id, resolution, by).await {
                // Only the answer may have been lost, so the record is read.
                let record = store.conflict(id).await.map_err(|error| error.diagnosis())?;
                let is_ours = |s: &Settlement| s.resolution == resolution && s.by.as_deref() == Some(by);
                if !record.settled.as_ref().is_some_and(is_ours) {
                    return Err(error.diagnosis());
                }
            }
            Ok(Answer::done(format!("the transaction that finishes at {lsn} is passed over")))
        }
        Resolution::ApplyRemote | Resolution::KeepLocal => {
            Err(Diagnosis::new(format!("{resolution} is not supported yet"))
                .hint("fix the target's row and use retry, or use skip-transaction"))
        }
    }
}

pub(super) fn not_supported(verb: Verb) -> Answer {
    Answer::refused(Diagnosis::new(format!("{verb} is not supported yet")))
}
