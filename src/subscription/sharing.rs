//! Reads which tables share rows of the target, for warnings and for `resync`. `schema::sharing` judges.

use crate::error::{Diagnosis, PauseReason};
use crate::pg::QualifiedName;
use crate::schema::catalog;
use crate::schema::sharing::{self, Place, Sharing, Writer};
use crate::store::{TableOfOther, TableRow};
use crate::target::TargetSession;

use super::context::Context;
use super::failure::Failure;
use super::membership::LetGo;
use super::take_up::PreparedTable;
use super::trust::start_over;

/// Tables that write to targets: those of the subscription in question, and of the others of this database.
pub(crate) struct Rows<'a>(Vec<Row<'a>>);

/// Its subscription (none for the one in question), source, target, and the target's OID if it is on record.
type Row<'a> = (Option<&'a str>, &'a QualifiedName, &'a QualifiedName, Option<u32>);

impl<'a> Rows<'a> {
    pub(crate) fn new(
        own: impl IntoIterator<Item = (&'a QualifiedName, &'a QualifiedName, Option<u32>)>,
        others: &'a [TableOfOther],
    ) -> Self {
        let own = own.into_iter().map(|(source, target, oid)| (None, source, target, oid));
        let others = others.iter().map(|table| -> Row<'_> {
            (Some(&table.subscription), &table.source, &table.target, table.target_oid)
        });
        Self(own.chain(others).collect())
    }

    /// The targets, to be looked up ([`catalog::places_of`]).
    pub(crate) fn targets(&self) -> Vec<(&'a QualifiedName, Option<u32>)> {
        self.0.iter().map(|&(_, _, target, oid)| (target, oid)).collect()
    }

    fn writer(&self, at: usize, place: &Place) -> Option<Writer> {
        let &(subscription, source, ..) = self.0.get(at)?;
        let (subscription, source) = (subscription.map(str::to_owned), source.clone());
        Some(Writer { subscription, source, target: place.clone() })
    }

    /// Warns of tables that share rows. `places` has where the targets are.
    pub(crate) fn warnings(&self, places: &[Option<Place>], publications: &[String]) -> Vec<Diagnosis> {
        let writers = places.iter().enumerate().filter_map(|(at, place)| self.writer(at, place.as_ref()?));
        sharing::warnings(&writers.collect::<Vec<_>>(), publications)
    }
}

/// Warns of tables of an attempt that share rows with each other, or with tables of other subscriptions.
pub(super) async fn warn(
    context: &Context,
    session: &TargetSession,
    tables: &[PreparedTable],
) -> Result<Vec<Diagnosis>, Failure> {
    let others = context.store.tables_of_others(context.name()).await?;
    let followed = tables.iter().filter(|table| table.row.left.is_none());
    let rows = Rows::new(followed.map(|table| (&table.row.source, &table.target, None)), &others);
    let places = catalog::places_of(&***session.client(), &rows.targets()).await?;
    Ok(rows.warnings(&places, &context.subscription.publications))
}

/// Refuses to synchronise tables that share rows with others, because it would take the others' rows with them.
/// Returns the tables that have left, and whose rows the synchronisation brings, too.
pub(super) async fn of_resync(
    context: &Context,
    session: &TargetSession,
    tables: &[QualifiedName],
) -> Result<Vec<QualifiedName>, Failure> {
    let row = context.store.subscription(context.name()).await?;
    let own = row.map(|row| row.tables).unwrap_or_default();
    let others = context.store.tables_of_others(context.name()).await?;
    let rows = Rows::new(own.iter().map(|row| (&row.source, &row.target, row.target_oid)), &others);
    let placed = catalog::places_of(&***session.client(), &rows.targets()).await?;
    let mut left = Vec::new();
    for (at, row) in own.iter().enumerate().filter(|(_, row)| tables.contains(&row.source)) {
        let Some(place) = placed.get(at).and_then(Option::as_ref) else { continue };
        for (other, found) in placed.iter().enumerate().filter(|(other, _)| *other != at) {
            let Some(found) = found else { continue };
            let Some(sharing) = place.shares_with(found) else { continue };
            match (own.get(other).and_then(|other| other.left), sharing) {
                // The copy has its rows, and what is still to come of it.
                (Some(_), Sharing::Same | Sharing::Holds) => {
                    left.extend(own.get(other).map(|row| row.source.clone()));
                }
                (Some(left), Sharing::PartOf) if left.gone == LetGo::Done => {}
                (gone, sharing) => {
                    let with = rows.writer(other, found).map(|with| with.in_words(sharing));
                    let with = with.unwrap_or_default();
                    let refusal = if gone.is_some() {
                        not_yet(context, &row.source, &with)
                    } else {
                        refused(context, row, &with)
                    };
                    return Err(Failure::pause(PauseReason::TargetError, refusal));
                }
            }
        }
    }
    left.sort();
    left.dedup();
    Ok(left)
}

fn refused(context: &Context, row: &TableRow, with: &str) -> Diagnosis {
    let name = &context.subscription.name;
    Diagnosis::new(format!("{} cannot be synchronised again: {} has rows of other tables", row.source, row.target))
        .detail(format!(
            "{with}; all rows of {} that the publisher's {} does not have would be deleted, those of the other table \
             among them",
            row.target, row.source
        ))
        .hint(format!(
            "correct the rows on the target by hand, and accept the table's gap if it has one (pgsluice accept); or give \
             each table a target of its own (\"target\" in [[subscriptions.tables]]) and {}",
            start_over(name)
        ))
}

fn not_yet(context: &Context, table: &QualifiedName, with: &str) -> Diagnosis {
    let name = &context.subscription.name;
    Diagnosis::new(format!("{table} cannot be synchronised again yet"))
        .detail(format!("{with}, has left the publications, and changes of it may still come"))
        .hint(format!("ask again once \"pgsluice status {name}\" shows that table as left"))
}
