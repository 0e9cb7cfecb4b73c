//! Looks at the targets of tables that are published and not recorded, and of those that are still to be copied and were
//! renamed, or come back: whether other tables have brought rows there.

use std::collections::HashMap;

use crate::pg::{Lsn, QualifiedName};
use crate::schema::sharing::Place;
use crate::schema::{Mapping, catalog};
use crate::store::TableRow;
use crate::subscription::context::Context;
use crate::subscription::failure::Failure;
use crate::subscription::membership::{self, Occupant, Occupied, Seen};
use crate::target::TargetSession;

use super::{Ground, Known};

/// The verdicts on new tables.
#[derive(Debug, Default)]
pub(super) struct Newcomers {
    /// As [`membership::Observed::heirs`].
    pub(super) heirs: Vec<(QualifiedName, u32)>,
    /// As [`membership::Observed::occupied`].
    pub(super) occupied: Vec<Occupied>,
}

/// Compares the targets of new tables with those of recorded ones. Usually there are none.
pub(super) async fn find(
    context: &Context,
    session: &TargetSession,
    ground: &Ground<'_>,
    known: &Known,
    seen: &[Seen],
) -> Result<Newcomers, Failure> {
    let rows = &known.tables;
    let recorded: HashMap<u32, &TableRow> =
        rows.iter().filter_map(|row| Some((row.source_oid?, row))).collect();
    let is_new = |seen: &&Seen| match recorded.get(&seen.oid) {
        Some(row) => row.is_to_be_copied() && (row.source != seen.name || row.left.is_some()),
        None => !rows.iter().any(|row| row.source_oid.is_none() && row.source == seen.name),
    };
    let new: Vec<&Seen> = seen.iter().filter(is_new).collect();
    if new.is_empty() || rows.is_empty() {
        return Ok(Newcomers::default());
    }
    let (mapping, _) = Mapping::new(&context.subscription.tables, new.iter().map(|seen| &seen.name));
    let mut names: Vec<QualifiedName> = mapping.iter().map(|(_, target)| target.clone()).collect();
    names.extend(rows.iter().filter(|row| row.target_oid.is_none()).map(|row| row.target.clone()));
    let oids: Vec<u32> = rows.iter().filter_map(|row| row.target_oid).collect();
    let places = catalog::target_places(&***session.client(), &names, &oids).await?;
    let by_name: HashMap<&QualifiedName, &Place> = places.iter().map(|place| (&place.name, place)).collect();
    let by_oid: HashMap<u32, &Place> = places.iter().map(|place| (place.oid, place)).collect();
    let place_of = |source: &QualifiedName| by_name.get(mapping.target(source)?).copied();

    let records: Vec<_> = rows.iter().map(|row| (&row.source, row.source_oid, row.target_oid)).collect();
    let heirs = membership::heirs(&records, seen, |source| Some(place_of(source)?.oid));

    let bounds = Bounds { seen: known.seen, applied: ground.applied() };
    let occupants: Vec<Occupant<'_>> = rows
        .iter()
        .filter_map(|row| {
            let place = match row.target_oid {
                Some(oid) => by_oid.get(&oid),
                None => by_name.get(&row.target),
            };
            let is_followed = seen.iter().any(|seen| row.source_oid == Some(seen.oid));
            bounds.occupant(row, place?, is_followed)
        })
        .collect();
    let own = |oid: u32| recorded.get(&oid).map(|row| &row.source);
    let judged =
        |seen: &&Seen| membership::occupied(seen.oid, place_of(&seen.name)?, own(seen.oid), &occupants);
    Ok(Newcomers { heirs, occupied: new.iter().filter_map(judged).collect() })
}

/// What is known of the publications' history.
struct Bounds {
    /// Up to here the publications are known to have been as recorded.
    seen: Option<Lsn>,
    /// The recorded position.
    applied: Option<Lsn>,
}

impl Bounds {
    /// A recorded table that has brought rows, or will; none if it never has.
    fn occupant<'a>(&self, row: &'a TableRow, place: &'a Place, followed: bool) -> Option<Occupant<'a>> {
        if row.is_to_be_copied() && row.resync.is_none() && !followed {
            return None;
        }
        let from = match row.left {
            Some(left) => left.from,
            // Since when the new table has been published besides is not known.
            None if followed => row.copied_lsn,
            None => self.seen.max(row.copied_lsn),
        };
        let from = from.zip(self.applied).map(|(from, applied)| from.min(applied));
        Some(Occupant { source: &row.source, place, from })
    }
}
