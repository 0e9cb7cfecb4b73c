//! Tables of both sides: described, compared, mapped.
//!
//! ```text
//! publisher's catalog ─▶ publication (names, columns, rows) ─▶ mapping ─┐
//!                                                                       ├─▶ diff ─▶ misfits | plan
//! target's catalog ─────────────────────────────────────────────────────┘
//! ```
//! `catalog` is the shell that reads; everything else is pure and decides. Nobody here pauses: a
//! comparison says what does not fit and how to cure it, `subscription` decides what follows.

pub mod binary;
mod canonical;
pub mod catalog;
mod copy;
mod desc;
pub mod diff;
pub mod fit;
mod identity;
pub mod mapping;
pub mod misfit;
pub mod plan;
pub mod publication;
pub mod render;
pub mod warning;

pub use binary::BinaryForm;
pub use copy::{CopyFormat, copy_in_sql};
pub use desc::*;
pub use diff::{Comparison, Pairing, ReplicationRole, compare};
pub use mapping::{Mapping, MappingNote};
pub use misfit::{Misfit, MisfitKind};
pub use plan::{ColumnPlan, KeyScope, RowIdentity, TablePlan};
pub use publication::copy_query;
pub use warning::{Warning, WarningKind};

/// The schema of this program's own tables: never published, never a target (EDGE_CASES 21).
pub const OWN_SCHEMA: &str = "pgsluice";
