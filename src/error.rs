//! What every failure tells an operator, and what the service does about it.
//!
//! Modules have their own error types, which keep context and source. Each one provides a [`Diagnosis`]
//! (primary, detail, hint) and a [`Disposition`] (retry, pause or exit). Nothing here logs; an error is
//! logged where it is handled.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text::shown;

/// An operator's text, in PostgreSQL's three parts. `primary` is one sentence without a full stop;
/// `detail` holds facts; `hint` says what to do next: a command, a configuration line or DDL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    pub primary: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// Text for the log if the other fields may quote a row's values. Operators with access to the
    /// target see those in `status`; logs are passed on to other systems.
    #[serde(skip)]
    pub logged_as: Option<String>,
}

/// A diagnosis in the form that may be logged ([`Diagnosis::told_to_log`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told<'a> {
    pub primary: &'a str,
    pub detail: Option<&'a str>,
    pub hint: Option<&'a str>,
}

const WITHHELD: &str = "withheld, it may quote row values; \"pgsluice status\" shows it";

impl Diagnosis {
    pub fn new(primary: impl Into<String>) -> Self {
        Self { primary: primary.into(), detail: None, hint: None, logged_as: None }
    }

    /// Returns the diagnosis without anything that may be a row's value.
    #[must_use]
    pub fn told_to_log(&self) -> Told<'_> {
        match &self.logged_as {
            Some(primary) => Told { primary, detail: Some(WITHHELD), hint: None },
            None => {
                Told { primary: &self.primary, detail: self.detail.as_deref(), hint: self.hint.as_deref() }
            }
        }
    }

    /// Sets `primary` as the only text for the log, because the other fields may quote a row's values.
    #[must_use]
    pub fn logged_as(mut self, primary: impl Into<String>) -> Self {
        self.logged_as = Some(primary.into());
        self
    }

    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.primary)?;
        if let Some(detail) = &self.detail {
            write!(f, "\n  detail: {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// Why a subscription waits for a person. The names are part of the interface (`status --json`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseReason {
    /// A change met data or a constraint that it does not fit.
    Conflict,
    /// The target's tables do not have every published column with a fitting type.
    Schema,
    /// An operator paused it (`pgsluice pause`).
    Operator,
    /// The slot is missing, or the publisher has removed WAL that the slot needs.
    SlotLost,
    /// Positions of publisher, slot and target contradict each other: one of them has been made again,
    /// restored or replaced.
    Diverged,
    /// The target refuses for a reason that waiting does not cure.
    TargetError,
    /// The publisher refuses for a reason that does not pass by waiting.
    PublisherError,
    /// The stream holds something that this version cannot apply faithfully.
    Protocol,
    /// A row is larger than the subscription's `max_value_bytes`.
    ValueTooLarge,
}

impl PauseReason {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Schema => "schema",
            Self::Operator => "operator",
            Self::SlotLost => "slot_lost",
            Self::Diverged => "diverged",
            Self::TargetError => "target_error",
            Self::PublisherError => "publisher_error",
            Self::Protocol => "protocol",
            Self::ValueTooLarge => "value_too_large",
        }
    }
}

/// What the service does about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// The failure is transient: wait, reconnect and try again.
    Retry,
    /// The failure does not pass by waiting: keep the evidence and wait for a person.
    Pause(PauseReason),
}

/// The process's exit codes, which are part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: success.
    Fine,
    /// 1: the answer is no: something is paused, refused or not running.
    No,
    /// 2: the command line or the configuration is wrong, or names what does not exist.
    Usage,
    /// 3: publisher or target could not be reached.
    Unreachable,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Fine => 0,
            Exit::No => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
        })
    }
}

/// The failure of a command or of the service: the operator's text and the exit code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{diagnosis}")]
pub struct Failure {
    pub diagnosis: Diagnosis,
    pub exit: Exit,
}

impl Failure {
    #[must_use]
    pub const fn new(exit: Exit, diagnosis: Diagnosis) -> Self {
        Self { diagnosis, exit }
    }
}

/// An error response of a PostgreSQL server, with every field that an operator can use
/// (PostgreSQL's `protocol.sgml`, "Error and Notice Message Fields").
///
/// Its texts are as long as they are kept ([`crate::text::kept`]); what is logged and shown is shorter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ServerError {
    /// `ERROR`, `FATAL` or `PANIC`.
    pub severity: String,
    /// The five-character SQLSTATE.
    pub code: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    pub context: Option<String>,
    pub schema: Option<String>,
    pub table: Option<String>,
    pub column: Option<String>,
    pub data_type: Option<String>,
    pub constraint: Option<String>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.primary())
    }
}

impl std::error::Error for ServerError {}

/// Joins a detail and a context.
fn joined(detail: Option<String>, context: Option<String>) -> Option<String> {
    let context = context.map(|context| format!("context: {context}"));
    let parts: Vec<String> = detail.into_iter().chain(context).collect();
    (!parts.is_empty()).then(|| parts.join("\n"))
}

impl ServerError {
    /// What to do about [`Self::is_name_lost_in_function`].
    pub const NAME_LOST: &'static str = "functions of the target run here with an empty search_path: qualify \
        the names in it with their schemas, or run ALTER FUNCTION … SET search_path = …";

    /// Returns primary, detail and hint as the server sent them. The context, such as the function in which it
    /// failed, is part of the detail.
    #[must_use]
    pub fn diagnosis(&self) -> Diagnosis {
        let hint = if self.is_name_lost_in_function() {
            Some(Self::NAME_LOST.to_owned())
        } else {
            self.hint.as_deref().map(shown)
        };
        let primary = self.primary();
        let logged_as = match &self.context {
            _ if self.may_quote_values() => Some(self.to_code()),
            // A context may quote statements with their values.
            Some(_) => Some(primary.clone()),
            None => None,
        };
        let detail = joined(self.detail.as_deref().map(shown), self.context.as_deref().map(shown));
        Diagnosis { primary, detail, hint, logged_as }
    }

    /// The message with its SQLSTATE, as it is logged and shown.
    #[must_use]
    pub fn primary(&self) -> String {
        format!("{} (SQLSTATE {})", shown(&self.message), self.code)
    }

    /// The detail, and where it failed, as they are kept as evidence.
    #[must_use]
    pub fn detail_with_context(&self) -> Option<String> {
        joined(self.detail.clone(), self.context.clone())
    }

    /// Whether a function or trigger of the target did not find a name (a function, operator, table, type or
    /// schema), which it may find with another `search_path`.
    #[must_use]
    pub fn is_name_lost_in_function(&self) -> bool {
        let in_function = self.context.as_ref().is_some_and(|context| context.contains("function "));
        in_function && matches!(self.code.as_str(), "42883" | "42P01" | "42704" | "3F000")
    }

    /// Returns the SQLSTATE and the constraint's name without the server's texts.
    #[must_use]
    pub fn to_code(&self) -> String {
        let constraint =
            self.constraint.as_ref().map(|name| format!(", constraint \"{name}\"")).unwrap_or_default();
        format!("the server refused with SQLSTATE {}{constraint}", self.code)
    }

    /// Whether message, detail or hint may quote a row's values. Data exceptions, constraint violations
    /// and errors that functions and triggers raise may. Of the other classes, only those about
    /// connections, privileges, names and resources are known not to (PostgreSQL's `errcodes.txt`).
    #[must_use]
    pub fn may_quote_values(&self) -> bool {
        const FREE_OF_VALUES: &[&str] =
            &["08", "0A", "25", "26", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "F0", "XX"];
        !FREE_OF_VALUES.contains(&self.class())
    }

    /// The class of the SQLSTATE: its first two characters.
    #[must_use]
    pub fn class(&self) -> &str {
        self.code.get(..2).unwrap_or("")
    }

    /// Whether the same request may succeed a moment later: connection exceptions (08), serialization
    /// failures and deadlocks (40), insufficient resources (53), operator intervention (57), system
    /// errors (58), and objects or locks in use (55006, 55P03).
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self.class(), "08" | "40" | "53" | "57" | "58")
            || matches!(self.code.as_str(), "55006" | "55P03")
    }
}
