//! Which tables sets suit.
//!
//! Pure.

use super::full_row;
use crate::apply::table::ExactBecause;
use crate::schema::{ReplicationRole, RowIdentity, TablePlan};

/// Returns why a table's changes are applied row by row in a session with this replication role; none if they
/// can be applied as sets.
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
