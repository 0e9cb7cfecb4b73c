//! Decides for every error what is done about it and what operators are told.

use jiff::Timestamp;

use crate::apply::ApplyError;
use crate::apply::end::{End, Unfit};
use crate::copy::CopyError;
use crate::error::{Diagnosis, Disposition, PauseReason, ServerError};
use crate::gap::{GapKind, NewGap};
use crate::net::{ConnectError, Ended, Step};
use crate::pg::{Lsn, QualifiedName};
use crate::pgoutput::DecodeError;
use crate::replication::{CommandError, Fault};
use crate::schema::catalog::{CatalogError, Side};
use crate::schema::{Misfit, MisfitFacts};
use crate::store::{StoreError, StoreErrorKind};
use crate::target::{OpenError, TargetError};

use super::findings;

mod reading;

/// The failure of an attempt, with what is done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub disposition: Disposition,
    pub diagnosis: Diagnosis,
    pub target: TargetLink,
    /// If set, a new attempt begins at once, and nothing is reported.
    pub restart: Option<Box<Restart>>,
    pub cause: Cause,
    pub about: Option<Box<About>>,
}

/// What a failure is about that its caller does something about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// The gap that it leaves, which is to be recorded.
    Gap(NewGap),
    /// Misfits that can be described again once more is known of them ([`Failure::with_facts`]).
    Misfits(Vec<Misfit>),
}

/// Why a new attempt begins at once, from the durable position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restart {
    /// Transactions have to be streamed again, and are applied row by row up to the one that finishes here.
    SendAgain { until: Lsn },
    /// A transaction in progress could not be applied before its end was known: for some time, transactions
    /// are sent after their commit.
    SendWhole,
    /// A publication did not exist at the moment of a change. The walsender's message names it.
    PublicationMissing(String),
    /// DDL has changed this table of the target, so it has to be planned again.
    TargetChanged(QualifiedName),
}

/// The cause of a failure, which `status` shows as the reason of `retrying`. If `check` has a step for it,
/// the word is that step's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The publisher cannot be reached, with the step that failed.
    Connect(Step),
    WalLevel,
    /// No replication slot is free.
    Slots,
    /// The subscription's slot is in use.
    Slot,
    Publications,
    /// An open connection was lost.
    Connection,
    Target,
    /// The record of a table is not as expected and has to be read again.
    Record,
    /// Another instance has taken the subscription over.
    Owner,
}

impl Cause {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect(step) => step.as_str(),
            Self::WalLevel => "wal_level",
            Self::Slots => "slots",
            Self::Slot => "slot",
            Self::Publications => "publications",
            Self::Connection => "connection",
            Self::Target | Self::Record => "target",
            Self::Owner => "standby",
        }
    }

    fn of(fault: Option<Fault>) -> Self {
        match fault {
            Some(Fault::WalLevel) => Self::WalLevel,
            Some(Fault::NoSlotFree) => Self::Slots,
            Some(
                Fault::SlotInUse
                | Fault::SlotExists
                | Fault::SlotElsewhere
                | Fault::SlotMissing
                | Fault::SlotInvalidated,
            ) => Self::Slot,
            Some(Fault::PublicationMissing) => Self::Publications,
            Some(Fault::Privilege) => Self::Connect(Step::Replication),
            Some(Fault::Transient | Fault::Other) | None => Self::Connection,
        }
    }
}

/// Whether the target session, which holds the lock, is still open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetLink {
    Kept,
    Lost,
}

impl Failure {
    pub fn retry(diagnosis: Diagnosis) -> Self {
        Self::of(Disposition::Retry, diagnosis, Cause::Connection)
    }

    pub fn pause(reason: PauseReason, diagnosis: Diagnosis) -> Self {
        Self::of(Disposition::Pause(reason), diagnosis, Cause::Connection)
    }

    /// Adds the cause.
    #[must_use]
    pub(super) fn because_of(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }

    /// Adds the gap of the subscription that it leaves.
    #[must_use]
    pub(super) fn with_gap(self, kind: GapKind, from: Option<Lsn>, to: Option<Lsn>) -> Self {
        let gap = NewGap { table: None, kind, from, to, since: None, detail: None };
        Self { about: Some(Box::new(About::Gap(gap))), ..self }
    }

    /// Adds when the recorded position was reached, from which a gap of the slot goes on.
    #[must_use]
    pub(super) fn with_gap_since(mut self, at: Option<Timestamp>) -> Self {
        if let Some(About::Gap(gap)) = self.about.as_deref_mut()
            && gap.kind != GapKind::Diverged
        {
            gap.since = at;
        }
        self
    }

    /// As [`Self::with_gap`], if the publisher refused because of the subscription's slot.
    fn with_gap_of(self, fault: Option<Fault>) -> Self {
        match fault {
            Some(Fault::SlotMissing) => self.with_gap(GapKind::SlotGone, None, None),
            Some(Fault::SlotInvalidated) => self.with_gap(GapKind::SlotLost, None, None),
            _ => self,
        }
    }

    fn of(disposition: Disposition, diagnosis: Diagnosis, cause: Cause) -> Self {
        Self { disposition, diagnosis, target: TargetLink::Kept, restart: None, cause, about: None }
    }

    /// Converts the error of a table's copy; `role` reads the table on the publisher.
    pub(super) fn of_copy(error: &CopyError, source: &QualifiedName, role: &str) -> Self {
        let cause = match error {
            // The next attempt looks at the tables again.
            CopyError::Unsettled(_) | CopyError::Superseded(_) | CopyError::Changed(_) => Cause::Record,
            CopyError::ConnectPublisher(_)
            | CopyError::OpenTarget(_)
            | CopyError::Connection(..)
            | CopyError::Server(..)
            | CopyError::TooLarge { .. }
            | CopyError::IgnoredValue { .. }
            | CopyError::Existing(_)
            | CopyError::Rewritten(_) => Cause::Connection,
        };
        Self::of(Disposition::Retry, error.diagnosis(source, role), cause)
    }

    pub(super) fn has_misfits(&self) -> bool {
        matches!(self.about.as_deref(), Some(About::Misfits(_)))
    }

    /// Describes the misfits again, with the DDL that the facts allow.
    #[must_use]
    pub(super) fn with_facts(mut self, facts: &MisfitFacts) -> Self {
        if let Some(About::Misfits(misfits)) = self.about.as_deref_mut() {
            for misfit in &mut *misfits {
                misfit.complete(facts);
            }
            self.diagnosis.hint = schema_failure(misfits).diagnosis.hint;
        }
        self
    }

    /// Whether a failure of one table ends the attempt: its record is not as expected, or another instance
    /// owns the subscription.
    pub(super) fn ends_attempt(&self) -> bool {
        matches!(self.cause, Cause::Record | Cause::Owner)
    }

    /// The publisher is shutting down, and waits for changes that the target does not get done.
    pub(super) fn publisher_waits() -> Self {
        Self::retry(
            Diagnosis::new("the publisher is shutting down")
                .detail("it waits for changes that the target has not applied, and apply makes no progress")
                .hint("streaming goes on by itself, from the recorded position, once the publisher is back"),
        )
    }

    pub(super) fn target_changed(table: QualifiedName) -> Self {
        let diagnosis = Diagnosis::new(format!("target table {table} has been changed by DDL"))
            .detail("nothing of this transaction was applied; it is tried again with the table as it is now")
            .hint("apply goes on by itself once the table is no longer being changed");
        Self { restart: Some(Box::new(Restart::TargetChanged(table))), ..Self::retry(diagnosis) }
    }

    /// The failure if the target session has ended, and with it the lock.
    pub(super) fn target_ended(ended: &Ended) -> Self {
        let why = match (ended.server_error(), &ended.error) {
            (Some(server), _) => server.to_string(),
            (None, Some(error)) => chain(&**error),
            (None, None) => "it was closed".to_owned(),
        };
        Self::target_lost(connection_lost(why))
    }

    pub(super) fn target_lost(diagnosis: Diagnosis) -> Self {
        Self { target: TargetLink::Lost, ..Self::of(Disposition::Retry, diagnosis, Cause::Target) }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::of(error.disposition(), error.diagnosis(), Cause::Connect(error.step))
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Connect(error) => Self {
                target: TargetLink::Lost,
                ..Self::of(error.disposition(), error.diagnosis(), Cause::Target)
            },
            OpenError::Prepare(error) => error.into(),
            OpenError::TooOld(diagnosis) => Self::pause(PauseReason::TargetError, diagnosis),
        }
    }
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        let fault = error.fault();
        Self::of(error.disposition(), error.diagnosis(), Cause::of(fault)).with_gap_of(fault)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let (disposition, diagnosis) = (error.disposition(), error.diagnosis());
        match error.kind() {
            StoreErrorKind::NotOwner { .. } => Self::target_lost(diagnosis).because_of(Cause::Owner),
            StoreErrorKind::CopySuperseded { .. } => Self::of(disposition, diagnosis, Cause::Record),
            _ => Self::of(disposition, diagnosis, Cause::Target),
        }
    }
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Self {
        Self::pause(
            PauseReason::Protocol,
            Diagnosis::new("the publisher sent a message that cannot be understood")
                .detail(error.to_string())
                .hint("nothing of this transaction was applied; please report this with the publisher's version"),
        )
    }
}

impl From<ApplyError> for Failure {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Connection(source) => Self::target_lost(connection_lost(chain(&source))),
            ApplyError::Unresponsive(waited) => Self::target_lost(
                Diagnosis::new(format!("the target has not answered for {} s", waited.as_secs()))
                    .detail("a statement may be waiting for a lock that another session holds")
                    .hint("see pg_stat_activity and pg_locks on the target; apply goes on by itself"),
            ),
            ApplyError::NotASet | ApplyError::SetMissed => Self::retry(Diagnosis::new(error.to_string())),
            ApplyError::TargetChanged(ref table) => Self::target_changed(table.clone()),
            ApplyError::Server(error) | ApplyError::CopyRefused(error) => of_target(&error, None),
            ApplyError::Refused { error, change } => of_target(
                &error,
                Some(format!("{} on {}", change.change.operation(), change.table.plan.target)),
            ),
            ApplyError::RowCount { found, change } => Self::pause(
                PauseReason::TargetError,
                Diagnosis::new(format!(
                    "{} of one row in {} met {found} rows",
                    change.change.operation(),
                    change.table.plan.target
                ))
                .hint("check the unique indexes of the table (amcheck), then \"pgsluice resume\""),
            ),
            ApplyError::ProgressMoved { expected } => another_writer(expected),
            ApplyError::TakenOver => Self::target_lost(
                Diagnosis::new("another instance has taken over the subscription")
                    .detail("it has made the progress row its own; nothing was applied here since")
                    .hint("this instance lets go of the subscription and asks for it again"),
            )
            .because_of(Cause::Owner),
            ApplyError::Catalog(error) => error.into(),
            ApplyError::Open(error) => (*error).into(),
            ApplyError::Plan(error) => protocol(&error),
            ApplyError::Ended(end) => end.into(),
        }
    }
}

impl From<End> for Failure {
    fn from(end: End) -> Self {
        match end {
            End::SendAgain { until } => {
                let restart = Some(Box::new(Restart::SendAgain { until }));
                Self { restart, ..Self::retry(Diagnosis::new(end.to_string())) }
            }
            End::SendWhole => {
                let restart = Some(Box::new(Restart::SendWhole));
                Self { restart, ..Self::retry(Diagnosis::new(end.to_string())) }
            }
            End::AnotherWriter { expected } => another_writer(expected),
            End::Unfit(unfit) => change_does_not_fit(&unfit),
            End::TooLarge(row) => Self::pause(PauseReason::ValueTooLarge, findings::too_large(&row)),
            End::Relation(error) => protocol(&error),
            end @ (End::OutOfOrder(_) | End::Invariant(_)) => protocol(&end),
        }
    }
}

impl From<TargetError> for Failure {
    fn from(error: TargetError) -> Self {
        ApplyError::from(error).into()
    }
}

impl From<CatalogError> for Failure {
    fn from(error: CatalogError) -> Self {
        let cause = match &error {
            CatalogError::Query { side: Side::Publisher, .. } => Cause::Connection,
            CatalogError::Query { side: Side::Target, .. } => Cause::Target,
            CatalogError::MissingPublications { .. }
            | CatalogError::DifferentColumnLists { .. }
            | CatalogError::DifferentGeneratedColumns { .. } => Cause::Publications,
        };
        Self::of(error.disposition(), error.diagnosis(), cause)
    }
}

/// A pause that lists every misfit, with the DDL that removes them.
pub(crate) fn schema_failure(misfits: &[Misfit]) -> Failure {
    let diagnoses: Vec<Diagnosis> = misfits.iter().map(Misfit::diagnosis).collect();
    let primary = match diagnoses.as_slice() {
        [one] => one.primary.clone(),
        many => format!("{} problems keep published tables from fitting into the target", many.len()),
    };
    let mut details: Vec<String> = Vec::new();
    for diagnosis in &diagnoses {
        let mut line = String::new();
        if diagnoses.len() > 1 {
            line.clone_from(&diagnosis.primary);
        }
        if let Some(detail) = &diagnosis.detail {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(detail);
        }
        if !line.is_empty() {
            details.push(line);
        }
    }
    let mut hints: Vec<String> = Vec::new();
    for (misfit, diagnosis) in misfits.iter().zip(&diagnoses) {
        if let Some(hint) = misfit.ddl().or_else(|| diagnosis.hint.clone())
            && !hints.contains(&hint)
        {
            hints.push(hint);
        }
        if misfit.ddl().is_some() {
            let notes = misfit.notes().into_iter().map(|note| format!("-- {note}"));
            let new: Vec<String> = notes.filter(|note| !hints.contains(note)).collect();
            hints.extend(new);
        }
    }
    let mut diagnosis = Diagnosis::new(primary);
    if !details.is_empty() {
        diagnosis = diagnosis.detail(details.join("\n"));
    }
    let hint = format!("on the target, then it goes on by itself:\n{}", hints.join("\n"));
    let about = Some(Box::new(About::Misfits(misfits.to_vec())));
    Failure { about, ..Failure::pause(PauseReason::Schema, diagnosis.hint(hint)) }
}

/// As [`schema_failure`], for a change that has come.
fn change_does_not_fit(unfit: &Unfit) -> Failure {
    let mut failure = schema_failure(&unfit.misfits);
    let command = unfit.command;
    let article = if command.starts_with(['I', 'U']) { "An" } else { "A" };
    let of = unfit.finish.map(|lsn| format!(" of the transaction that finishes at {lsn}"));
    let arrived = format!("{article} {command}{} needs it.", of.unwrap_or_default());
    let detail = failure.diagnosis.detail.take();
    failure.diagnosis.detail = Some(detail.map_or(arrived.clone(), |detail| format!("{detail}\n{arrived}")));
    failure
}

fn another_writer(expected: Lsn) -> Failure {
    Failure::target_lost(
        Diagnosis::new(format!("another writer has moved the subscription on from {expected}"))
            .detail("nothing of this transaction was applied here")
            .hint("this instance lets go of the subscription and asks for it again"),
    )
}

fn connection_lost(why: String) -> Diagnosis {
    Diagnosis::new("the connection to the target was lost")
        .detail(why)
        .hint("apply goes on by itself, from the last committed transaction, once the target is back")
}

fn of_target(error: &ServerError, doing: Option<String>) -> Failure {
    let mut diagnosis = error.diagnosis();
    if let Some(doing) = doing {
        diagnosis.primary = format!("{doing} failed: {}", diagnosis.primary);
        diagnosis.logged_as = diagnosis.logged_as.map(|logged| format!("{doing} failed: {logged}"));
    }
    if error.is_transient() {
        // The session stays usable after a deadlock or a cancelled statement, but not after a shutdown.
        let target = if matches!(error.class(), "40" | "55") { TargetLink::Kept } else { TargetLink::Lost };
        return Failure { target, ..Failure::of(Disposition::Retry, diagnosis, Cause::Target) };
    }
    if diagnosis.hint.is_none() {
        diagnosis.hint = Some("fix the cause on the target, then \"pgsluice resume\"".to_owned());
    }
    Failure::pause(PauseReason::TargetError, diagnosis)
}

fn protocol(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::pause(
        PauseReason::Protocol,
        Diagnosis::new("the stream holds something that cannot be applied faithfully")
            .detail(chain(error))
            .hint("nothing of this transaction was applied; please report this with the publisher's version"),
    )
}

/// Returns an error and its sources in one line.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
