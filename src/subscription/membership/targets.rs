//! Whether a table's target is still the one that has its rows: it may have been renamed with it, or without it, and
//! another table may have its name. Pure.

use std::collections::HashMap;

use crate::pg::QualifiedName;

/// The target's tables, by name, as far as they matter.
pub type TargetOids = HashMap<QualifiedName, u32>;

/// The name of the target's table with this OID, if it was looked up.
#[must_use]
pub fn called(found: &TargetOids, oid: u32) -> Option<&QualifiedName> {
    found.iter().find(|(_, found)| **found == oid).map(|(name, _)| name)
}

/// Where the target has a table whose name on the publisher has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renamed {
    /// At its new name, or nowhere else.
    Followed,
    /// Still at this name.
    NotYet(QualifiedName),
}

/// Whether the target's table has been renamed as the publisher's was. `recorded` is the target's name and, if it is
/// known, its OID on record.
#[must_use]
pub fn renamed(
    recorded: (&QualifiedName, Option<u32>),
    target: &QualifiedName,
    found: &TargetOids,
) -> Renamed {
    let (former, oid) = recorded;
    match oid.and_then(|oid| called(found, oid)) {
        Some(name) if name == target => Renamed::Followed,
        Some(name) => Renamed::NotYet(name.clone()),
        None if !found.contains_key(target) && found.contains_key(former) => Renamed::NotYet(former.clone()),
        None => Renamed::Followed,
    }
}

/// Finds out that a table goes into another target than the one with this OID, which has its rows. `target` is the name of
/// the one that it is to go into. Returns the facts: a sentence without a full stop.
///
/// While a target has still to be renamed with its table, nothing goes into it.
#[must_use]
pub fn other_target(
    oid: u32,
    target: &QualifiedName,
    is_renamed: bool,
    found: &TargetOids,
) -> Option<String> {
    let now = found.get(target)?;
    match called(found, oid) {
        _ if *now == oid => None,
        Some(_) if is_renamed => None,
        Some(former) => Some(format!("it goes into {target} now, and its rows are in {former}")),
        None => Some(format!("{target} on the target was made again, and the former one was dropped")),
    }
}
