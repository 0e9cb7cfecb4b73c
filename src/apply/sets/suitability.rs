//! Which tables sets suit.
//!
//! Pure.

use super::full_row;
use crate::apply::table::ExactBecause;
use crate::schema::{ReplicationRole, RowIdentity, TablePlan};

/// Judges a table, for a session that writes as a replica or not; none if sets suit it.
#[must_use]
pub fn exact_because(table: &TablePlan, role: ReplicationRole) -> Option<ExactBecause> {
    let acts = role == ReplicationRole::Origin;
    if table.columns.is_empty() {
        Some(ExactBecause::NoColumns)
    } else if table.fires.any {
        Some(ExactBecause::TriggersFire)
    } else if acts && table.has_ordinary_triggers {
        Some(ExactBecause::TriggersAct)
    } else if acts && table.has_foreign_keys {
        Some(ExactBecause::ForeignKeysAct)
    } else if matches!(table.row_identity, RowIdentity::FullRow) && !full_row::suits(table) {
        Some(ExactBecause::NoKey)
    } else {
        None
    }
}
