//! Errors of reading a catalog.

use std::fmt;

use crate::error::{Diagnosis, Disposition, PauseReason, ServerError};
use crate::net;
use crate::pg::{QualifiedName, quote_ident};

/// The server whose catalog was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Publisher,
    Target,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Publisher => "publisher",
            Self::Target => "target",
        })
    }
}

/// Publications of the subscription that do not exist on the publisher.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MissingPublications {
    pub missing: Vec<String>,
    /// All publications of the publisher's database.
    pub existing: Vec<String>,
}

impl MissingPublications {
    #[must_use]
    pub fn diagnosis(&self) -> Diagnosis {
        let create: Vec<String> = self
            .missing
            .iter()
            .map(|name| format!("CREATE PUBLICATION {} FOR TABLE …;", quote_ident(name)))
            .collect();
        let existing = if self.existing.is_empty() {
            "this database has no publications yet (is it the right database?)".to_owned()
        } else {
            format!("the existing ones are {}", self.existing.join(", "))
        };
        Diagnosis::new(format!("publications do not exist on the publisher: {}", self.missing.join(", ")))
            .hint(format!("run on the publisher: {} Or correct publications: {existing}", create.join(" ")))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// A query failed, or the connection was lost while it ran.
    #[error("could not read {what} from the {side}'s catalog")]
    Query { side: Side, what: &'static str, source: tokio_postgres::Error },
    /// None of the subscription's publications exists on the publisher.
    #[error("{}", .0.diagnosis().primary)]
    MissingPublications(MissingPublications),
    /// The publications have different column lists for these tables, at which the walsender would
    /// stop.
    #[error("cannot use different column lists for the same table in different publications")]
    DifferentColumnLists { tables: Vec<QualifiedName> },
    /// The publications disagree about publishing generated columns of these tables (18+).
    #[error("cannot use different values of publish_generated_columns for the same table")]
    DifferentGeneratedColumns { tables: Vec<QualifiedName> },
}

impl CatalogError {
    /// Returns the server's error, if the server refused.
    #[must_use]
    pub fn server_error(&self) -> Option<ServerError> {
        let Self::Query { source, .. } = self else { return None };
        net::server_error(source)
    }

    #[must_use]
    pub fn diagnosis(&self) -> Diagnosis {
        let primary = Diagnosis::new(self.to_string());
        match self {
            Self::Query { source, .. } => match self.server_error() {
                Some(error) => Diagnosis {
                    detail: Some(error.diagnosis().primary),
                    hint: error.hint,
                    ..primary
                },
                None => primary.detail(source.to_string()),
            },
            Self::MissingPublications(missing) => missing.diagnosis(),
            Self::DifferentColumnLists { tables } => primary
                .detail(format!("Tables: {}.", list(tables)))
                .hint("give the table the same column list in each publication (ALTER PUBLICATION … SET TABLE …), or subscribe to one of them only"),
            Self::DifferentGeneratedColumns { tables } => primary
                .detail(format!("Tables: {}.", list(tables)))
                .hint("ALTER PUBLICATION … SET (publish_generated_columns = …) to the same value in each"),
        }
    }

    /// A lost connection or a transient error is retried, and so are publications that an operator may
    /// correct meanwhile. Any other refusal needs a person.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Query { side, .. } => match (self.server_error(), side) {
                (Some(error), Side::Publisher) if !error.is_transient() => {
                    Disposition::Pause(PauseReason::PublisherError)
                }
                (Some(error), Side::Target) if !error.is_transient() => {
                    Disposition::Pause(PauseReason::TargetError)
                }
                (Some(_) | None, Side::Publisher | Side::Target) => Disposition::Retry,
            },
            Self::MissingPublications(_)
            | Self::DifferentColumnLists { .. }
            | Self::DifferentGeneratedColumns { .. } => Disposition::Retry,
        }
    }
}

fn list(tables: &[QualifiedName]) -> String {
    tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
