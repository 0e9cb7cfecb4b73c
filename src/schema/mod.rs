//! Tables of both sides: described, compared, mapped.
//!
//! ```text
//! publisher's catalog ─▶ publication (names, columns, rows) ─▶ mapping ─┐
//!                                                                       ├─▶ diff ─▶ misfits | plan
//! target's catalog ─────────────────────────────────────────────────────┘
//! ```
//! `catalog` reads; everything else is pure. A comparison reports what does not fit and how to correct
//! it; `subscription` decides whether to pause.

pub mod binary;
mod canonical;
pub mod catalog;
mod column_sql;
mod columns;
mod copy;
mod ddl;
pub mod definition;
mod desc;
pub mod diff;
pub mod fit;
pub mod guard;
mod identity;
pub mod mapping;
pub mod marks;
pub mod misfit;
pub mod older_rows;
mod operations;
pub mod plan;
pub mod publication;
pub mod redefined;
pub mod render;
mod rule_misfit;
mod rules;
mod seen;
pub mod sharing;
pub mod surroundings;
mod warning;

pub use binary::BinaryForm;
pub use copy::{CopyFormat, copy_in_sql, copy_query, has_value_query};
pub use definition::{MisfitFacts, Standing};
pub use desc::*;
pub use diff::{Comparison, Pairing, compare};
pub use guard::{LengthUnit, ValueGuard};
pub use mapping::{Mapping, MappingNote};
pub use marks::{Continuity, Mark, Marks, Redefined};
pub use misfit::{Misfit, MisfitKind};
pub use operations::Operations;
pub use plan::{ColumnPlan, KeyScope, RowIdentity, TablePlan};
pub use redefined::{Description, TableLook};
pub use rule_misfit::RuleMisfit;
pub use rules::{ColumnRule, Goes, Projection, TableRules};
pub use seen::{SeenColumn, SeenTable};
pub use surroundings::{ReplicationRole, RunAs, Surroundings};
pub use warning::{Warning, WarningKind};

/// Schema of pgsluice's own tables, which are never published and never a target.
pub const OWN_SCHEMA: &str = "pgsluice";
