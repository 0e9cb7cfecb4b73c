//! Carries out operators' commands other than pause and resume.

use serde_json::Value;
use tracing::info;

use crate::conflict::Resolution;
use crate::error::{Diagnosis, PauseReason};
use crate::net::places;
use crate::pg::QualifiedName;
use crate::schema::catalog;
use crate::store::{Answer, Command, Ownership, Refresh, Resync, ResyncWish, Settlement, Store};
use crate::target::TargetSession;

use super::context::Context;
use super::failure::Failure;
use super::sharing;

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

/// Records that tables are to be synchronised again.
pub(super) async fn resync(context: &Context, command: &Command) -> Result<Answer, Failure> {
    let name = |value: &Value| {
        let part = |at| value.get(at).and_then(Value::as_str);
        Some(QualifiedName::new(part(0)?, part(1)?))
    };
    let tables = command.args.get("tables").and_then(Value::as_array);
    let tables: Option<Vec<QualifiedName>> = tables.and_then(|tables| tables.iter().map(name).collect());
    let how = command.args.get("how").and_then(Value::as_str).and_then(|word| word.parse::<Resync>().ok());
    let (Some(tables), Some(how)) = (tables.filter(|tables| !tables.is_empty()), how) else {
        return Err(unreadable("it names no table, or no way to synchronise it that is known here"));
    };
    let _place = places::moment().await;
    let session = TargetSession::open(&context.target, &format!("{} commands", context.name())).await?;
    if how == Resync::Merge {
        refuse_without_key(context, &session, &tables).await?;
    }
    let left = sharing::of_resync(context, &session, &tables).await?;
    let wish = ResyncWish { tables: &tables, left: &left, how, by: &command.created_by };
    Ok(context.store.resync_tables(&context.owner, command.id, wish).await?)
}

/// Refuses a merge of a table without a unique key before anything is recorded: the table would be held back for
/// nothing. Whether the key's columns are published is seen once the table is compared.
async fn refuse_without_key(
    context: &Context,
    session: &TargetSession,
    tables: &[QualifiedName],
) -> Result<(), Failure> {
    let row = context.store.subscription(context.name()).await?;
    let rows = row.map(|row| row.tables).unwrap_or_default();
    let targets: Vec<QualifiedName> =
        rows.into_iter().filter(|row| tables.contains(&row.source)).map(|row| row.target).collect();
    let described = catalog::target_tables(&***session.client(), &targets).await?;
    for (target, table) in targets.iter().zip(&described) {
        if table.as_ref().is_some_and(|table| table.unique_keys.is_empty()) {
            let refusal = Diagnosis::new(format!("the rows of {target} cannot be merged"))
                .detail("the target table has no unique key, so a row cannot be found again")
                .hint(
                    "resync without --merge, or add a key to the target table (ALTER TABLE … ADD PRIMARY KEY)",
                );
            return Err(Failure::pause(PauseReason::TargetError, refusal));
        }
    }
    Ok(())
}

/// Accepts a gap.
pub(super) async fn accept(context: &Context, command: &Command) -> Result<Answer, Failure> {
    let Some(id) = command.args.get("gap_id").and_then(Value::as_i64) else {
        return Err(unreadable("it names no gap"));
    };
    let (store, owner) = (&context.store, &context.owner);
    let up_to = command.args.get("up_to").and_then(Value::as_str).and_then(|lsn| lsn.parse().ok());
    let accepted = store.accept_gap(owner, command.id, id, up_to, &command.created_by).await;
    let (answer, gap) = accepted?;
    info!(
        subscription = context.name(), gap = id, kind = %gap.kind, by = command.created_by,
        "gap accepted: {}", gap.may_be_missing()
    );
    Ok(answer)
}

/// Records that the published tables are to be taken up.
pub(super) async fn refresh(context: &Context, command: &Command) -> Result<Answer, Failure> {
    let refresh = match command.args.get("copy").and_then(Value::as_bool) {
        Some(false) => Refresh::NoCopy,
        Some(true) | None => Refresh::Copy,
    };
    Ok(context.store.refresh_tables(&context.owner, command.id, refresh).await?)
}

fn unreadable(why: &str) -> Failure {
    let refusal = Diagnosis::new("the command cannot be carried out")
        .detail(why)
        .hint("use the same version of pgsluice for the command line and the service");
    Failure::pause(PauseReason::TargetError, refusal)
}
