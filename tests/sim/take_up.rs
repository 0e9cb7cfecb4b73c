//! What an attempt follows, as `subscription::take_up`: the real code judges the recorded tables by a look at the
//! publications. Here are the questions and the writes between which it decides.

use pgsluice::gap::{GapKind, NewGap};
use pgsluice::pg::Lsn;
use pgsluice::schema::{Mapping, Marks};
use pgsluice::store::TableRow;
use pgsluice::subscription::followed;
use pgsluice::subscription::membership::{
    self, Judged, LetGo, Observed, Recorded, Seen, TargetOids, heirs, judge,
};
use pgsluice::subscription::publication_record::{self, Named, PublicationRecord, Sight};

use crate::catalog::{Catalog, PUBLICATIONS, Published};
use crate::link::{Connection, Link, Look};
use crate::mutants::{Fault, has};
use crate::ops::{Op, Reply};
use crate::service::{Ended, Memory, owned, records};
use crate::target::Meta;

/// What an attempt has found out before.
pub(crate) struct Ground<'a> {
    pub(crate) term: i64,
    pub(crate) catalog: &'a Catalog,
    /// The slot, read after the publications.
    pub(crate) view: &'a Look,
    /// The position from which on the stream goes on; none before the slot exists.
    pub(crate) applied: Option<Lsn>,
    /// Whether that is a recorded one.
    pub(crate) continues: bool,
}

pub(crate) struct TakenUp {
    pub(crate) meta: Meta,
    pub(crate) published: Vec<Published>,
    pub(crate) publications: Vec<PublicationRecord>,
    /// Once the stream has passed this position, tables are let go.
    pub(crate) let_go_at: Option<Lsn>,
}

pub(crate) fn configured() -> Vec<String> {
    PUBLICATIONS.iter().map(|&name| name.to_owned()).collect()
}

pub(crate) async fn take_up(
    link: &Link,
    main: &Connection,
    ground: &Ground<'_>,
    meta: Meta,
    memory: &mut Memory,
) -> Result<TakenUp, Ended> {
    let Ground { term, catalog, view, applied, .. } = *ground;
    let fingerprint = catalog.fingerprint();
    memory.publications.taken_up = Some(fingerprint.clone());
    let published = catalog.published();
    let seen: Vec<Seen> = published.iter().map(|table| table.seen.clone()).collect();
    let Reply::Oids(oids) = main.ask(Op::TargetOids).await? else {
        return Err(Ended::Retry("the target's tables"));
    };
    let oids: TargetOids = oids.into_iter().collect();
    let rows: Vec<TableRow> = meta.tables.values().cloned().collect();
    let gaps = meta.open_gaps();
    let refused = memory.refused_at(applied);
    let publications = sighted(link, &meta, catalog, (view.wal, applied), &refused);
    let known: &[PublicationRecord] = if has(Fault::LeftOutIsForgotten) { &[] } else { &meta.publications };
    let unsent = publication_record::unsent(known, applied, &refused);
    let judged = {
        let others = others(catalog, &rows, &seen);
        let targets: Vec<_> = rows.iter().map(|row| (&row.source, row.source_oid, row.target_oid)).collect();
        let heirs = heirs(&targets, &seen, |source| oids.get(source).copied());
        let unasked = publication_record::unasked(&publications, &configured(), version(link), applied);
        let observed = Observed {
            published: &seen,
            others: &others,
            heirs: &heirs,
            occupied: &[],
            end: if has(Fault::GapEndsEarly) { applied.unwrap_or(view.wal) } else { view.wal },
            unused_xid: u64::from(view.unused_xid),
            seen: if has(Fault::LookProvesItself) { Some(view.wal) } else { unsent.bound(meta.seen) },
            applied,
            refused: &unsent.names,
            unasked: &unasked,
            restart: view.restart,
        };
        let auto_refresh = link.world.borrow().config.auto_refresh;
        let recorded: Vec<Recorded> =
            rows.iter().map(|row| mistaken(followed::recorded(row, &gaps), &seen)).collect();
        judge(&recorded, &observed, followed::new_tables(ground.continues, auto_refresh, meta.refresh))
    };
    let judged = forgotten(judged);
    let late = has(Fault::GapsBehindTheRecord);
    if !late {
        open_gaps(link, term, &judged).await?;
    }
    record(link, term, &judged, &rows, &oids, &publications, &meta).await?;
    if late {
        open_gaps(link, term, &judged).await?;
    }
    if meta.refresh {
        owned(&link.store(Op::EndRefresh { term }).await?)?;
    }
    memory.publications.recorded = Some(fingerprint.clone());
    let mut meta = records(link.store(Op::EndCopies { term }).await?)?;
    let open = meta.open_gaps();
    if let Some(position) = applied
        && followed::is_any_released(meta.tables.values(), &open, &refused)
    {
        owned(&link.store(Op::Release { term, position }).await?)?;
        meta = records(link.store(Op::EndCopies { term }).await?)?;
    }
    note_taken_up(link, term, fingerprint);
    let let_go = meta.tables.values().filter_map(|row| row.left).filter(|left| left.gone == LetGo::NotYet);
    let let_go_at = let_go.map(|left| left.lsn).max();
    Ok(TakenUp { meta, published, publications, let_go_at })
}

/// What a former owner took up before it was frozen says nothing of the present.
fn note_taken_up(link: &Link, term: i64, fingerprint: String) {
    let mut world = link.world.borrow_mut();
    if world.target.meta.term == term {
        world.history.taken_up = Some(fingerprint);
    }
}

/// The recorded tables that are not published, as far as they exist.
fn others(catalog: &Catalog, rows: &[TableRow], seen: &[Seen]) -> Vec<(u32, pgsluice::pg::QualifiedName)> {
    let oids = rows.iter().filter_map(|row| row.source_oid);
    let gone = oids.filter(|oid| !seen.iter().any(|seen| seen.oid == *oid));
    let named = |oid: u32| {
        let slot = catalog.slot_of(oid)?;
        Some((oid, crate::tables::named(slot, catalog.tables[slot].number)))
    };
    gone.filter_map(named).collect()
}

fn sighted(
    link: &Link,
    meta: &Meta,
    catalog: &Catalog,
    (end, applied): (Lsn, Option<Lsn>),
    refused: &[String],
) -> Vec<PublicationRecord> {
    let found: Vec<(u32, &str, String)> = PUBLICATIONS
        .iter()
        .filter_map(|name| catalog.publication(name))
        .map(|one| (one.oid, one.name.as_str(), one.version.to_string()))
        .collect();
    let sights: Vec<Sight<'_>> =
        found.iter().map(|(oid, name, version)| (*oid, *name, version.as_str())).collect();
    publication_record::update(
        &meta.publications,
        &configured(),
        &sights,
        end,
        applied,
        refused,
        version(link),
    )
}

fn version(link: &Link) -> u32 {
    if link.world.borrow().config.strict { 170_000 } else { 180_000 }
}

async fn open_gaps(link: &Link, term: i64, judged: &Judged) -> Result<(), Ended> {
    let told = |gap: &&NewGap| gap.kind != GapKind::LastChanges || !has(Fault::LastChangesUntold);
    for gap in judged.tables.iter().flat_map(|table| &table.gaps).filter(told) {
        owned(&link.store(Op::OpenGap { term, gap: gap.clone() }).await?)?;
    }
    Ok(())
}

/// Records the tables, unless that would change nothing.
async fn record(
    link: &Link,
    term: i64,
    judged: &Judged,
    rows: &[TableRow],
    oids: &TargetOids,
    publications: &[PublicationRecord],
    meta: &Meta,
) -> Result<(), Ended> {
    let sources = judged.tables.iter().filter(|table| table.left.is_none()).map(|table| &table.source);
    let (mapping, _) = Mapping::new(&[], sources);
    let mut recordings = followed::recordings(judged, &mapping, rows);
    if !followed::identify(&mut recordings, oids).is_empty() {
        return Err(Ended::Retry("a target has not been renamed"));
    }
    let tables: Vec<_> = recordings.into_iter().map(|recording| recording.table).collect();
    if followed::is_as_recorded(&tables, rows) && publications == meta.publications {
        return Ok(());
    }
    let publications = publications.to_vec();
    owned(&link.store(Op::RecordMembers { term, tables, publications }).await?)
}

/// Chooses the publications for a stream that begins at `from`.
pub(crate) fn named(link: &Link, taken: &TakenUp, from: Lsn, refused: &[String]) -> Named {
    publication_record::named(&taken.publications, &configured(), version(link), from, refused)
}

// --- mutants ------------------------------------------------------------------------------------

fn forgotten(mut judged: Judged) -> Judged {
    if has(Fault::ForgottenAtTheLook) {
        let (left, stay) =
            std::mem::take(&mut judged.tables).into_iter().partition(|table| table.left.is_some());
        judged.tables = stay;
        let left: Vec<membership::Judgement> = left;
        judged.removed.extend(left.into_iter().filter_map(|table| table.recorded));
    }
    judged
}

/// The record as a mutant reads it.
fn mistaken(mut recorded: Recorded, seen: &[Seen]) -> Recorded {
    let named = seen.iter().find(|seen| seen.name == recorded.source);
    if has(Fault::SameByName)
        && let Some(named) = named
    {
        (recorded.oid, recorded.marks) = (Some(named.oid), Some(named.marks.clone()));
    }
    let same = seen.iter().find(|seen| Some(seen.oid) == recorded.oid);
    if let (Some(Marks(marks)), Some(same)) = (&mut recorded.marks, same) {
        for was in marks {
            let Some(is) = same.marks.0.iter().find(|is| is.name == was.name) else { continue };
            let made_again = is.publication != was.publication;
            if made_again && has(Fault::MadeAgainIsTheSame) {
                was.clone_from(is);
            }
            if !made_again && has(Fault::ReturnedIsTheSame) {
                was.rows.clone_from(&is.rows);
            }
            if has(Fault::AlteredBackIsTheSame) {
                was.version.clone_from(&is.version);
            }
        }
        if has(Fault::ReturnedIsTheSame) {
            recorded.left = None;
        }
    }
    recorded
}
