//! Recorded gaps: found, accepted, settled.
//!
//! # Invariants
//! - A subscription has one open gap of a kind for a table, and one for itself.
//! - A gap that holds a table makes it `paused` in the transaction that records the gap. The stream that the
//!   owner runs still applies the table's changes, so the owner begins a new attempt.
//! - A table that is still to be copied has no gap: its copy brings everything.

use std::collections::HashMap;

use serde_json::json;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

use crate::boundary;
use crate::gap::{Accepted, Gap, GapKind, GapSettled, Hold, NewGap, Settlement};
use crate::pg::{Lsn, QualifiedName, as_owner};

use super::codec::Time;
use super::columns::{lsn, time, word};
use super::intervention::no_gap;
use super::{EventKind, Ownership, Store, StoreError, StoreErrorKind, event, lost, owner, spelling};

/// A gap that has been recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenedGap {
    /// It is recorded for the first time.
    New(Gap),
    /// It was open already; its range may have been widened.
    Known(Gap),
}

macro_rules! columns {
    () => {
        "g.id, g.subscription, g.source_schema, g.source_table, g.kind, g.holds, \
         g.from_lsn::pg_catalog.text, g.to_lsn::pg_catalog.text, g.since, g.detail, g.opened_at, \
         g.accepted_at, g.accepted_by, g.settled_at, g.settled_by, g.settlement, \
         g.resumed_lsn::pg_catalog.text"
    };
}

const SELECT_OPEN: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM pgsluice.gap g WHERE g.settled_at IS NULL \
     AND ($1::pg_catalog.text IS NULL OR g.subscription = $1) ORDER BY g.id"
);

/// One gap of a subscription, locked.
pub(super) const LOCK_ONE: &str =
    concat!("SELECT ", columns!(), " FROM pgsluice.gap g WHERE g.id = $1 AND g.subscription = $2 FOR UPDATE");

const SELECT_ONE: &str = concat!("SELECT ", columns!(), " FROM pgsluice.gap g WHERE g.id = $1");

/// `xmax` is 0 in a row that was inserted rather than updated. A gap without a known beginning or end stays so.
const OPEN: &str = concat!(
    "INSERT INTO pgsluice.gap AS g (subscription, source_schema, source_table, kind, holds, from_lsn, to_lsn, \
         since, detail) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
     ON CONFLICT (subscription, coalesce(source_schema, ''), coalesce(source_table, ''), kind) \
         WHERE settled_at IS NULL DO UPDATE \
     SET from_lsn = CASE WHEN g.from_lsn <= excluded.from_lsn THEN g.from_lsn \
             WHEN g.from_lsn > excluded.from_lsn THEN excluded.from_lsn END, \
         to_lsn = greatest(g.to_lsn, excluded.to_lsn), detail = coalesce(excluded.detail, g.detail) RETURNING ",
    columns!(),
    ", xmax = 0 AS is_new"
);

/// A table whose rows are here, or were.
const LOCK_TABLE: &str = "SELECT t.state FROM pgsluice.table_sync t WHERE t.subscription = $1 \
    AND t.source_schema = $2 AND t.source_table = $3 AND t.state IN ('ready', 'paused') FOR UPDATE";

/// The next copy's number makes sure that no copy of the table can be committed.
const HOLD_TABLE: &str = "UPDATE pgsluice.table_sync t SET state = 'paused', attempt = t.attempt + 1, \
    error = NULL, updated_at = now() WHERE t.subscription = $1 AND t.source_schema = $2 \
    AND t.source_table = $3 AND t.state = 'ready'";

impl Store {
    /// Records a gap, and pauses its table if it holds it. If a gap of this kind is open for the table, its
    /// end moves on. Returns none if the table is not one of the subscription's, or still to be copied.
    pub async fn open_gap(&self, owner: &Ownership, gap: &NewGap) -> Result<Option<OpenedGap>, StoreError> {
        self.run("record the gap", async {
            let opened = self.write_gap(owner, gap).await;
            if !spelling::is_untranslatable(&opened) {
                return opened;
            }
            let ascii = NewGap { detail: gap.detail.as_deref().map(spelling::text), ..gap.clone() };
            self.write_gap(owner, &ascii).await
        })
        .await
    }

    async fn write_gap(&self, owner: &Ownership, gap: &NewGap) -> Result<Option<OpenedGap>, StoreErrorKind> {
        let mut tx = self.pool.begin().await?;
        owner::require(&mut tx, owner).await?;
        if let Some(table) = &gap.table
            && sqlx::query(LOCK_TABLE)
                .bind(owner.name())
                .bind(&table.schema)
                .bind(&table.name)
                .fetch_optional(&mut *tx)
                .await?
                .is_none()
        {
            return Ok(None);
        }
        let opened = insert(&mut tx, owner.name(), gap).await?;
        let (OpenedGap::New(gap) | OpenedGap::Known(gap)) = &opened;
        if let (Hold::Until, Some(table)) = (gap.hold, &gap.table) {
            sqlx::query(HOLD_TABLE)
                .bind(owner.name())
                .bind(&table.schema)
                .bind(&table.name)
                .execute(&mut *tx)
                .await?;
        }
        boundary::deed!("gap::open", tx.commit().await, Err(lost()))?;
        Ok(Some(opened))
    }

    /// One gap, open or settled.
    pub async fn gap(&self, id: i64) -> Result<Option<Gap>, StoreError> {
        self.run("read the gap", async {
            let row = sqlx::query(SELECT_ONE).bind(id).fetch_optional(&self.pool).await?;
            Ok(row.as_ref().map(decode).transpose()?)
        })
        .await
    }

    /// The kinds of a subscription's open gaps, oldest gap first.
    pub async fn open_gap_kinds(&self, name: &str) -> Result<Vec<GapKind>, StoreError> {
        self.run("read the open gaps", async {
            let rows = sqlx::query(
                "SELECT kind FROM pgsluice.gap WHERE subscription = $1 AND settled_at IS NULL ORDER BY id",
            )
            .bind(name)
            .fetch_all(&self.pool)
            .await?;
            Ok(rows.iter().map(|row| word(row, "kind")).collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Settles the open gaps that hold the subscription, not its tables: the stream goes on from the recorded
    /// position, so nothing is missing. Returns their number.
    pub async fn heal_gaps(&self, owner: &Ownership) -> Result<usize, StoreError> {
        self.run("settle the subscription's gaps", async {
            let mut tx = self.pool.begin().await?;
            owner::require(&mut tx, owner).await?;
            let rows = sqlx::query(concat!(
                "UPDATE pgsluice.gap g SET settled_at = now(), settled_by = 'pgsluice', settlement = 'healed' \
                 WHERE g.subscription = $1 AND g.source_table IS NULL AND g.holds AND g.settled_at IS NULL RETURNING ",
                columns!()
            ))
            .bind(owner.name())
            .fetch_all(&mut *tx)
            .await?;
            for row in &rows {
                let gap = decode(row)?;
                let message = format!("gap {} has gone: the stream goes on from where the target is", gap.id);
                record(&mut tx, &gap, &message).await?;
            }
            tx.commit().await?;
            Ok(rows.len())
        })
        .await
    }

    /// The position up to which a gap is shown: the end of its range, or, if it has none, the publisher's as last seen.
    /// What was passed over of a held table up to the recorded position is shown, too.
    ///
    /// # Errors
    /// Also [`StoreErrorKind::CommandRefused`], for the number of a gap that the subscription does not have.
    pub async fn gap_shown_up_to(&self, name: &str, id: i64) -> Result<Option<Lsn>, StoreError> {
        self.run("look for the gap", async {
            let shown =
                sqlx::query_scalar(SHOWN_UP_TO).bind(id).bind(name).fetch_optional(&self.pool).await?;
            shown.ok_or_else(|| no_gap(name, id))
        })
        .await
    }

    /// Makes the tables `ready` that are held by nothing any more: their changes that commit from `position` on,
    /// the recorded one, apply. What was passed over of them after their gaps were accepted is recorded as another
    /// gap.
    pub async fn release_tables(
        &self,
        owner: &Ownership,
        position: Lsn,
        passed: &PassedOver,
    ) -> Result<Vec<ReleasedTable>, StoreError> {
        self.run("let held tables go on", async {
            let (names, latest): (Vec<&QualifiedName>, Vec<Lsn>) =
                passed.latest.iter().map(|(name, lsn)| (name, *lsn)).unzip();
            let rows = {
                let released = sqlx::query(RELEASE)
                    .bind(owner.name())
                    .bind(owner.term().as_i64())
                    .bind(position)
                    .bind(passed.known_from.unwrap_or(position))
                    .bind(names.iter().map(|name| name.schema.as_str()).collect::<Vec<_>>())
                    .bind(names.iter().map(|name| name.name.as_str()).collect::<Vec<_>>())
                    .bind(latest.iter().map(Lsn::to_string).collect::<Vec<_>>())
                    .fetch_all(&self.pool);
                boundary::deed!("gap::release", released.await, Err(lost()))?
            };
            if rows.is_empty() {
                owner::still(&self.pool, owner).await?;
            }
            let released = |row: &PgRow| {
                let source = QualifiedName::new(row.try_get::<String, _>(0)?, row.try_get::<String, _>(1)?);
                Ok(ReleasedTable { source, passed_over: lsn(row, "from_lsn")?.zip(lsn(row, "to_lsn")?) })
            };
            Ok(rows.iter().map(released).collect::<Result<_, sqlx::Error>>()?)
        })
        .await
    }
}

/// What a stream has passed over of tables that gaps hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PassedOver {
    /// What was passed over before this position is not known; none if nothing is known.
    pub known_from: Option<Lsn>,
    /// Where the latest of these changes committed, by table.
    pub latest: HashMap<QualifiedName, Lsn>,
}

/// A table that is held no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleasedTable {
    pub source: QualifiedName,
    /// Changes that committed between these positions may have been passed over after its gap was accepted.
    pub passed_over: Option<(Lsn, Lsn)>,
}

const SHOWN_UP_TO: &str = "SELECT CASE WHEN g.source_table IS NOT NULL THEN greatest(g.to_lsn, p.applied_lsn) \
        ELSE coalesce(g.to_lsn, greatest(s.publisher_lsn, p.applied_lsn)) END \
    FROM pgsluice.gap g JOIN pgsluice.subscription s ON s.name = g.subscription \
    LEFT JOIN pgsluice.progress p ON p.subscription = g.subscription WHERE g.id = $1 AND g.subscription = $2";

/// A table with an error is paused for that, and not for a gap.
const RELEASE: &str = as_owner!(
    ", released AS (\
        UPDATE pgsluice.table_sync t SET state = 'ready', synced_lsn = $3, attempt = t.attempt + 1, \
            updated_at = now() FROM owner \
        WHERE t.subscription = owner.name AND t.state = 'paused' AND t.error IS NULL AND NOT EXISTS (\
            SELECT FROM pgsluice.gap g WHERE g.subscription = t.subscription AND g.settled_at IS NULL \
            AND g.holds AND g.source_schema = t.source_schema AND g.source_table = t.source_table) \
        RETURNING t.subscription, t.source_schema, t.source_table\
    ), resumed AS (\
        UPDATE pgsluice.gap g SET resumed_lsn = $3 FROM released r \
        WHERE g.subscription = r.subscription AND g.source_schema = r.source_schema \
            AND g.source_table = r.source_table AND g.settlement = 'accepted' AND g.holds \
            AND g.resumed_lsn IS NULL \
        RETURNING g.subscription, g.source_schema, g.source_table, coalesce(g.accepted_lsn, $3) AS accepted_lsn\
    ), accepted AS (\
        SELECT DISTINCT ON (r.subscription, r.source_schema, r.source_table) \
            r.subscription, r.source_schema, r.source_table, r.accepted_lsn AS from_lsn, \
            least($3, greatest($4, w.lsn::pg_catalog.pg_lsn)) AS to_lsn \
        FROM resumed r LEFT JOIN ROWS FROM (pg_catalog.unnest($5::pg_catalog.text[]), \
            pg_catalog.unnest($6::pg_catalog.text[]), pg_catalog.unnest($7::pg_catalog.text[])) AS w (s, t, lsn) \
            ON w.s = r.source_schema AND w.t = r.source_table ORDER BY 1, 2, 3, 4 DESC\
    ), late AS (\
        INSERT INTO pgsluice.gap AS g \
            (subscription, source_schema, source_table, kind, holds, from_lsn, to_lsn, detail) \
        SELECT a.subscription, a.source_schema, a.source_table, 'passed_over', false, a.from_lsn, a.to_lsn, \
            'the gap had been shown up to ' || a.from_lsn FROM accepted a WHERE a.from_lsn < a.to_lsn \
        ON CONFLICT (subscription, coalesce(source_schema, ''), coalesce(source_table, ''), kind) \
            WHERE settled_at IS NULL DO UPDATE \
        SET from_lsn = least(g.from_lsn, excluded.from_lsn), to_lsn = greatest(g.to_lsn, excluded.to_lsn) \
        RETURNING g.id, g.subscription, g.source_schema, g.source_table, g.from_lsn, g.to_lsn\
    ), logged AS (\
        INSERT INTO pgsluice.event (subscription, kind, message, detail) \
        SELECT l.subscription, 'gap', 'gap ' || l.id || ' of ' || l.source_schema || '.' || l.source_table \
            || ': changes were passed over after its gap had been accepted', \
            pg_catalog.jsonb_build_object('gap_id', l.id, 'kind', 'passed_over', 'from_lsn', l.from_lsn, \
                'to_lsn', l.to_lsn) FROM late l\
    ) SELECT r.source_schema, r.source_table, l.from_lsn::pg_catalog.text, l.to_lsn::pg_catalog.text \
    FROM released r LEFT JOIN late l ON l.source_schema = r.source_schema AND l.source_table = r.source_table \
    ORDER BY 1, 2"
);

/// Records a gap, or that one of its kind that is open for the table goes on.
pub(super) async fn insert(
    session: &mut PgConnection,
    name: &str,
    gap: &NewGap,
) -> Result<OpenedGap, StoreErrorKind> {
    let row = sqlx::query(OPEN)
        .bind(name)
        .bind(gap.table.as_ref().map(|table| &table.schema))
        .bind(gap.table.as_ref().map(|table| &table.name))
        .bind(gap.kind.as_str())
        .bind(gap.kind.hold() == Hold::Until)
        .bind(gap.from)
        .bind(gap.to)
        .bind(gap.since.map(Time))
        .bind(gap.detail.as_deref())
        .fetch_one(&mut *session)
        .await?;
    let opened = decode(&row)?;
    if !row.try_get::<bool, _>("is_new")? {
        return Ok(OpenedGap::Known(opened));
    }
    record(session, &opened, &opened.diagnosis().primary).await?;
    Ok(OpenedGap::New(opened))
}

/// Records an event about a gap.
pub(super) async fn record(
    session: &mut PgConnection,
    gap: &Gap,
    message: &str,
) -> Result<(), StoreErrorKind> {
    let facts = json!({
        "gap_id": gap.id, "kind": gap.kind, "table": gap.table, "from_lsn": gap.from, "to_lsn": gap.to,
    });
    event::insert(session, Some(&gap.subscription), EventKind::Gap, message, Some(facts)).await
}

/// The open gaps of one subscription, or of all, by subscription.
pub(super) async fn load(
    session: &mut PgConnection,
    name: Option<&str>,
) -> Result<HashMap<String, Vec<Gap>>, StoreErrorKind> {
    let rows = sqlx::query(SELECT_OPEN).bind(name).fetch_all(session).await?;
    let mut gaps: HashMap<String, Vec<Gap>> = HashMap::new();
    for row in &rows {
        gaps.entry(row.try_get("subscription")?).or_default().push(decode(row)?);
    }
    Ok(gaps)
}

pub(super) fn decode(row: &PgRow) -> Result<Gap, sqlx::Error> {
    let (schema, name): (Option<String>, Option<String>) =
        (row.try_get("source_schema")?, row.try_get("source_table")?);
    let accepted = match (time(row, "accepted_at")?, row.try_get::<Option<String>, _>("accepted_by")?) {
        (Some(at), by) => Some(Accepted { at, by: by.unwrap_or_default() }),
        (None, _) => None,
    };
    let settled = match time(row, "settled_at")? {
        Some(at) => Some(GapSettled {
            at,
            by: row.try_get("settled_by")?,
            how: word::<Settlement>(row, "settlement")?,
            resumed: lsn(row, "resumed_lsn")?,
        }),
        None => None,
    };
    Ok(Gap {
        id: row.try_get("id")?,
        subscription: row.try_get("subscription")?,
        table: schema.zip(name).map(|(schema, name)| QualifiedName { schema, name }),
        kind: word(row, "kind")?,
        hold: if row.try_get("holds")? { Hold::Until } else { Hold::Nothing },
        from: lsn(row, "from_lsn")?,
        to: lsn(row, "to_lsn")?,
        since: time(row, "since")?,
        detail: row.try_get("detail")?,
        opened_at: row.try_get::<Time, _>("opened_at")?.0,
        accepted,
        settled,
    })
}
