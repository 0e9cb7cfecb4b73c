//! Looks for followed tables whose target is no longer the table that has their rows: it was dropped and made again, or
//! the configuration names another one.

use std::collections::HashMap;

use crate::pg::QualifiedName;
use crate::schema::{Mapping, catalog};
use crate::store::TableRow;
use crate::subscription::context::Context;
use crate::subscription::failure::Failure;
use crate::subscription::membership::{Recorded, Seen, TargetOids, other_target};
use crate::target::TargetSession;

use super::Known;

/// Notes the tables that go into another target than before. Usually there are none, and that takes one query.
pub(super) async fn note(
    context: &Context,
    session: &TargetSession,
    known: &Known,
    seen: &[Seen],
    recorded: &mut [Recorded],
) -> Result<(), Failure> {
    if known.is_same_database != Some(true) {
        return Ok(());
    }
    let seen: HashMap<u32, &Seen> = seen.iter().map(|seen| (seen.oid, seen)).collect();
    let (mapping, _) = Mapping::new(&context.subscription.tables, seen.values().map(|seen| &seen.name));
    let followed: Vec<Followed<'_>> =
        known.tables.iter().filter_map(|row| Followed::of(row, &seen, &mapping)).collect();
    let oids: Vec<u32> = followed.iter().map(|table| table.oid).collect();
    if oids.is_empty() {
        return Ok(());
    }
    let mut found = look_up(session, &[], &oids).await?;
    let elsewhere: Vec<&Followed<'_>> =
        followed.iter().filter(|table| found.get(table.target) != Some(&table.oid)).collect();
    if elsewhere.is_empty() {
        return Ok(());
    }
    let names: Vec<QualifiedName> = elsewhere.iter().map(|table| table.target.clone()).collect();
    found.extend(look_up(session, &names, &[]).await?);
    for table in elsewhere {
        let facts = other_target(table.oid, table.target, table.is_renamed, &found);
        if let Some(recorded) = recorded.iter_mut().find(|recorded| recorded.source == *table.source) {
            recorded.other_target = facts;
        }
    }
    Ok(())
}

async fn look_up(
    session: &TargetSession,
    names: &[QualifiedName],
    oids: &[u32],
) -> Result<TargetOids, Failure> {
    Ok(catalog::target_oids(&***session.client(), names, oids).await?.into_iter().collect())
}

/// A table whose rows are in a target that is known.
struct Followed<'a> {
    /// Its recorded name.
    source: &'a QualifiedName,
    /// The recorded OID of its target.
    oid: u32,
    /// Where it goes.
    target: &'a QualifiedName,
    /// Whether it has another name on the publisher than the record says.
    is_renamed: bool,
}

impl<'a> Followed<'a> {
    fn of(row: &'a TableRow, seen: &HashMap<u32, &Seen>, mapping: &'a Mapping) -> Option<Self> {
        let name = &seen.get(&row.source_oid?)?.name;
        let (oid, target) = (row.target_oid?, mapping.target(name)?);
        (!row.is_to_be_copied()).then_some(Self {
            source: &row.source,
            oid,
            target,
            is_renamed: row.source != *name,
        })
    }
}
