//! Decides about the replication slot: create it, use it, or stop because it cannot be trusted.
//!
//! The decision is pure. A missing slot is not created again automatically, because everything that was
//! committed meanwhile would be missing on the target without an error.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use tracing::info;

use crate::boundary;
use crate::error::{Diagnosis, PauseReason};
use crate::gap::GapKind;
use crate::net::PgClient;
use crate::pg::{Lsn, SlotName, SubscriptionName, fnv1a};
use crate::schema::catalog::{self, CatalogError};
use crate::store::Walsender;

use super::failure::Failure;
use super::trust::{Role, SlotHealth, SlotSeen, start_over};

/// How often a slot is read that is still being created; the number of attempts is bounded, too.
const CREATION_POLL: Duration = Duration::from_millis(100);
const CREATION_POLLS_MAX: u32 = 30;
/// How often a former walsender is told to end, and the time between.
const ENDINGS_MAX: u32 = 20;
const ENDING_POLL: Duration = Duration::from_millis(50);

/// Columns of `pg_replication_slots`, as far as the publisher's version has them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct SlotInfo {
    pub slot_type: String,
    pub plugin: Option<String>,
    pub database: Option<String>,
    #[serde(default)]
    pub temporary: bool,
    pub active_pid: Option<i32>,
    pub restart_lsn: Option<String>,
    pub confirmed_flush_lsn: Option<String>,
    /// 13+: `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// 17+.
    pub invalidation_reason: Option<String>,
    /// 16+.
    #[serde(default)]
    pub conflicting: Option<bool>,
    /// 14+: prepared transactions are sent when they are prepared.
    #[serde(default)]
    pub two_phase: bool,
    /// 17+: the slot is synchronised from a primary.
    #[serde(default)]
    pub synced: bool,
}

/// The publisher's position and the slot's state, read together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlotView {
    pub publisher_lsn: Lsn,
    pub role: Role,
    /// The insert position, and its timeline; none on a standby.
    pub inserted: Option<Lsn>,
    pub timeline: Option<u32>,
    pub next_xid: u64,
    /// The next transaction identifier to be given out, with its epoch.
    pub unused_xid: u64,
    /// When the postmaster started.
    pub started_at: Timestamp,
    /// The OID of the database.
    pub database: u32,
    pub slot: Option<SlotInfo>,
}

/// The decision about the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotPlan {
    Create,
    /// Use an existing slot although nothing is recorded: an interrupted start has left it, or an operator
    /// has created it. It sends changes from this position on.
    Adopt {
        from: Lsn,
    },
    /// Go on from the recorded position.
    Continue {
        from: Lsn,
    },
}

impl SlotPlan {
    /// Returns this decision with the position that is recorded now.
    pub(super) fn from(self, recorded: Option<Lsn>) -> Self {
        match (self, recorded) {
            (Self::Continue { .. }, Some(from)) => Self::Continue { from },
            (plan, _) => plan,
        }
    }
}

impl SlotView {
    /// A position that every change lies before that could be seen on the publisher when it was read.
    pub(super) fn end(&self) -> Lsn {
        self.inserted.unwrap_or(self.publisher_lsn)
    }

    /// The slot's confirmed position; none if there is no slot, or none is known.
    pub(super) fn confirmed(&self) -> Option<Lsn> {
        self.slot.as_ref()?.confirmed()
    }

    /// The view with a slot that is not ahead of `position`.
    pub(super) fn not_ahead_of(mut self, position: Lsn) -> Self {
        let ahead = self.confirmed().is_some_and(|confirmed| confirmed > position);
        if let Some(slot) = self.slot.as_mut().filter(|_| ahead) {
            slot.confirmed_flush_lsn = Some(position.to_string());
        }
        self
    }
}

impl SlotInfo {
    /// Bytes of WAL that the publisher retains for the slot.
    pub(crate) fn retained_bytes(&self, publisher: Lsn) -> Option<u64> {
        Some(publisher.bytes_since(self.restart_lsn()?))
    }

    /// Whether a connection is still creating the slot, which waits for older transactions of the publisher.
    fn is_in_creation(&self) -> bool {
        self.confirmed_flush_lsn.is_none() && self.active_pid.is_some()
    }

    fn confirmed(&self) -> Option<Lsn> {
        self.confirmed_flush_lsn.as_ref()?.parse().ok()
    }

    pub(super) fn restart_lsn(&self) -> Option<Lsn> {
        self.restart_lsn.as_ref()?.parse().ok()
    }

    /// The facts that decide whether the slot can be trusted.
    pub(super) fn seen(&self) -> SlotSeen {
        let health = match (self.is_lost(), self.synced) {
            (true, _) => SlotHealth::Lost,
            (false, true) => SlotHealth::Synchronised,
            (false, false) => SlotHealth::Good,
        };
        let (confirmed, restart_lsn) = (self.confirmed(), self.restart_lsn());
        SlotSeen { confirmed, restart_lsn, health }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost")
            || self.invalidation_reason.is_some()
            || self.conflicting == Some(true)
    }
}

/// Reads the publisher's position and the slot.
pub(crate) async fn view(client: &PgClient, slot: &SlotName) -> Result<SlotView, CatalogError> {
    let row = catalog::slot_row(&**client, slot).await?;
    Ok(SlotView {
        publisher_lsn: row.position,
        role: if row.in_recovery { Role::Standby } else { Role::Primary },
        inserted: row.inserted,
        timeline: row.timeline,
        next_xid: row.next_xid,
        unused_xid: row.unused_xid,
        started_at: Timestamp::from_microsecond(row.started_us).unwrap_or_default(),
        database: row.database,
        slot: row.slot.and_then(|json| serde_json::from_str(&json).ok()),
    })
}

/// Reads which walsender uses the slot.
pub(super) async fn walsender(client: &PgClient, slot: &SlotName) -> Result<Option<Walsender>, CatalogError> {
    let user = catalog::slot_user(&**client, slot).await?;
    Ok(user.and_then(|(pid, started_us)| {
        Some(Walsender { pid, started_at: Timestamp::from_microsecond(started_us).ok()? })
    }))
}

/// Terminates walsenders of this role that are creating this slot, or one for a table of its subscription. A
/// walsender that waits for old transactions while it creates a slot does not notice that its client is gone
/// (`SnapBuildWaitSnapshot` in `snapbuild.c`). It and its slot would stay until those transactions end.
const END_CREATIONS: &str = "SELECT pg_catalog.pg_terminate_backend(a.pid) \
    FROM pg_catalog.pg_replication_slots s JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid \
    WHERE s.slot_type = 'logical' AND s.confirmed_flush_lsn IS NULL AND a.usename = session_user \
    AND s.database = pg_catalog.current_database() AND (s.slot_name = $1::pg_catalog.text \
        OR s.temporary AND pg_catalog.left(s.slot_name::pg_catalog.text, pg_catalog.length($2)) = $2 \
            AND pg_catalog.length(s.slot_name::pg_catalog.text) = pg_catalog.length($2) + $3)";

/// Terminates former connections of this subscription that are creating a slot. The caller must hold the
/// subscription's lock, so that no other instance creates one. Returns their number.
pub(crate) async fn end_abandoned_creations(client: &PgClient, slot: &SlotName) -> Result<u64, CatalogError> {
    let ended =
        client.execute(END_CREATIONS, &[&slot.as_str(), &sync_prefix(slot), &SYNC_SUFFIX_LENGTH]).await;
    ended.map_err(catalog::publisher_query("abandoned slots"))
}

/// Terminates a walsender of this role, if it uses the slot.
const END_WALSENDER: &str = "SELECT pg_catalog.pg_terminate_backend(a.pid) \
    FROM pg_catalog.pg_replication_slots s JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid \
    WHERE s.slot_name = $1::pg_catalog.text AND s.active_pid = $2 AND a.usename = session_user";

/// Ends the walsender of the subscription's last stream, if it still uses the slot: who used it may hang, and its host, or
/// the network between, may be gone without a word. The caller must hold the subscription's lock.
///
/// It is told to end until it has: if its client reads nothing, it stops at the message by which it says so.
pub(super) async fn end_former_walsender(
    client: &PgClient,
    slot: &SlotName,
    view: &SlotView,
    former: Option<Walsender>,
) -> Result<(), CatalogError> {
    let active = view.slot.as_ref().and_then(|slot| slot.active_pid);
    let Some(former) = former.filter(|former| active == Some(former.pid)) else { return Ok(()) };
    if walsender(client, slot).await? != Some(former) {
        return Ok(());
    }
    for asked in 0..ENDINGS_MAX {
        let ended = client.execute(END_WALSENDER, &[&slot.as_str(), &former.pid]).await;
        if ended.map_err(catalog::publisher_query("the former walsender"))? == 0 {
            break;
        }
        if asked == 0 {
            let pid = former.pid;
            info!(%slot, pid, "the walsender of the former stream still used the slot, and has been ended");
        }
        tokio::time::sleep(ENDING_POLL).await;
    }
    Ok(())
}

/// Reads the publisher's position and the slot, after a short time for former connections to finish creating
/// it.
pub(super) async fn settled_view(client: &PgClient, slot: &SlotName) -> Result<SlotView, CatalogError> {
    let abandoned = end_abandoned_creations(client, slot).await?;
    if abandoned > 0 {
        info!(%slot, abandoned, "a former connection was still creating a slot, and has been ended");
    }
    let mut seen = view(client, slot).await?;
    for _ in 0..CREATION_POLLS_MAX {
        if !seen.slot.as_ref().is_some_and(SlotInfo::is_in_creation) {
            break;
        }
        tokio::time::sleep(CREATION_POLL).await;
        seen = view(client, slot).await?;
    }
    Ok(seen)
}

/// Drops the slot if it is one of this database for pgoutput and nobody uses it.
const DROP_LOST: &str = "SELECT pg_catalog.pg_drop_replication_slot(s.slot_name) \
    FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1::pg_catalog.text AND NOT s.active \
    AND s.plugin = 'pgoutput' AND s.database = pg_catalog.current_database()";

/// Drops a slot that the publisher has invalidated.
pub(super) async fn drop_lost(client: &PgClient, slot: &SlotName) -> Result<(), CatalogError> {
    let dropped = boundary::deed!(
        "slot::drop_lost",
        client.execute(DROP_LOST, &[&slot.as_str()]).await,
        Err(client.lose().await)
    );
    dropped.map(drop).map_err(catalog::publisher_query("the lost slot"))
}

/// Number of characters of a temporary slot's name after its prefix.
const SYNC_SUFFIX_LENGTH: i32 = 8;

/// Returns the prefix of the temporary slots for tables of this slot's subscription. It has a hash of the
/// whole name, because a long name is cut off and one name may begin with another.
fn sync_prefix(slot: &SlotName) -> String {
    // With the hash and the suffix, a name has at most PostgreSQL's 63 bytes.
    const KEPT_MAX: usize = 40;
    let name = slot.as_str();
    let hash = fnv1a(name.as_bytes()) & 0xffff_ffff;
    // Slot names are ASCII, so any byte index is a character boundary.
    format!("{}_sync_{hash:08x}_", name.get(..KEPT_MAX).unwrap_or(name))
}

/// Returns the name of a temporary slot for a table of this slot's subscription. It is unique among the
/// processes that may use the publisher, and has this slot's prefix.
pub(super) fn temporary_name(slot: &SlotName) -> SlotName {
    let unique = format!("{}{:08x}", sync_prefix(slot), rand::random::<u32>());
    unique.parse().unwrap_or_else(|_| slot.clone())
}

/// Whether a missing slot is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnMissing {
    Create,
    Refuse,
}

/// Decides. `recorded` is the progress row's position.
pub(crate) fn plan(
    name: &SlotName,
    subscription: &SubscriptionName,
    recorded: Option<Lsn>,
    slot: Option<&SlotInfo>,
    on_missing: OnMissing,
    dbname: &str,
) -> Result<SlotPlan, Failure> {
    let Some(slot) = slot else {
        return match (recorded, on_missing) {
            (None, OnMissing::Create) => Ok(SlotPlan::Create),
            (None, OnMissing::Refuse) => Err(missing_and_not_to_be_made(name)),
            (Some(position), _) => Err(gone(name, subscription, position)),
        };
    };
    if slot.slot_type != "logical" || slot.plugin.as_deref() != Some("pgoutput") {
        return Err(foreign(
            name,
            format!(
                "it is a {} slot with plugin {}",
                slot.slot_type,
                slot.plugin.as_deref().unwrap_or("none")
            ),
        ));
    }
    if let Some(database) = slot.database.as_deref().filter(|database| *database != dbname) {
        return Err(foreign(name, format!("it belongs to database \"{database}\"")));
    }
    if slot.two_phase {
        return Err(sends_prepared(name));
    }
    if recorded.is_none() && slot.is_in_creation() {
        return Err(in_creation(name));
    }
    if slot.is_lost() {
        return Err(lost(name, subscription, slot, recorded));
    }
    match recorded {
        Some(from) => Ok(SlotPlan::Continue { from }),
        None => {
            let from = slot.confirmed();
            from.map(|from| SlotPlan::Adopt { from })
                .ok_or_else(|| foreign(name, "it has no confirmed position yet".to_owned()))
        }
    }
}

fn missing_and_not_to_be_made(name: &SlotName) -> Failure {
    Failure::pause(
        PauseReason::SlotLost,
        Diagnosis::new(format!("replication slot \"{name}\" does not exist on the publisher"))
            .detail("create_slot is false, so it is not created here")
            .hint(format!(
                "on the publisher: SELECT pg_create_logical_replication_slot('{name}', 'pgoutput'); or set \
                 create_slot = true; then \"pgsluice resume\""
            )),
    )
}

fn sends_prepared(name: &SlotName) -> Failure {
    Failure::pause(
        PauseReason::PublisherError,
        Diagnosis::new(format!("replication slot \"{name}\" was created with two_phase"))
            .detail(
                "it sends prepared transactions when they are prepared, which pgsluice does not apply yet",
            )
            .hint(format!(
                "use a slot without two_phase: drop this one and let pgsluice create it (SELECT \
                 pg_drop_replication_slot('{name}');), or, from version 18 on, in a replication connection: \
                 ALTER_REPLICATION_SLOT {name} (TWO_PHASE false)"
            )),
    )
}

fn in_creation(name: &SlotName) -> Failure {
    Failure::retry(
        Diagnosis::new(format!("replication slot \"{name}\" is still being created by another connection"))
            .detail("on the publisher, that waits for every transaction which is older than the slot to end")
            .hint(
                "look for old transactions in pg_stat_activity on the publisher; it is tried again by itself",
            ),
    )
}

fn gone(name: &SlotName, subscription: &SubscriptionName, position: Lsn) -> Failure {
    Failure::pause(
        PauseReason::SlotLost,
        Diagnosis::new(format!("replication slot \"{name}\" no longer exists on the publisher"))
            .detail(format!(
                "the target has everything up to {position}; whatever was committed after that can no longer \
                 be streamed, and a new slot would leave it out silently"
            ))
            .hint(start_over(subscription)),
    )
    .with_gap(GapKind::SlotGone, Some(position), None)
}

fn lost(name: &SlotName, subscription: &SubscriptionName, slot: &SlotInfo, recorded: Option<Lsn>) -> Failure {
    let why = slot.invalidation_reason.as_deref().unwrap_or("the WAL that it needs has been removed");
    Failure::pause(
        PauseReason::SlotLost,
        Diagnosis::new(format!("replication slot \"{name}\" has been invalidated by the publisher"))
            .detail(why.to_owned())
            .hint(format!(
                "{}; raise max_slot_wal_keep_size on the publisher so that it does not happen again",
                start_over(subscription)
            )),
    )
    .with_gap(GapKind::SlotLost, recorded, None)
}

fn foreign(name: &SlotName, detail: String) -> Failure {
    Failure::pause(
        PauseReason::PublisherError,
        Diagnosis::new(format!("replication slot \"{name}\" on the publisher is not this subscription's"))
            .detail(detail)
            .hint("choose another name with the key \"slot\", or drop that slot if nobody uses it"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Disposition;

    fn logical() -> SlotInfo {
        SlotInfo {
            two_phase: false,
            slot_type: "logical".into(),
            plugin: Some("pgoutput".into()),
            database: Some("example".into()),
            temporary: false,
            active_pid: None,
            restart_lsn: Some("0/100".into()),
            confirmed_flush_lsn: Some("0/200".into()),
            wal_status: Some("reserved".into()),
            invalidation_reason: None,
            conflicting: None,
            synced: false,
        }
    }

    fn check(
        recorded: Option<u64>,
        slot: Option<&SlotInfo>,
        on_missing: OnMissing,
        expected: Result<SlotPlan, PauseReason>,
    ) {
        let (name, subscription) = ("sub".parse().unwrap(), "sub".parse().unwrap());
        let planned = plan(&name, &subscription, recorded.map(Lsn::new), slot, on_missing, "example");
        match (planned, expected) {
            (Ok(plan), Ok(expected)) => assert_eq!(plan, expected),
            (Err(failure), Err(reason)) => assert_eq!(failure.disposition, Disposition::Pause(reason)),
            (planned, expected) => panic!("{planned:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_first_start_creates_or_adopts() {
        check(None, None, OnMissing::Create, Ok(SlotPlan::Create));
        check(None, None, OnMissing::Refuse, Err(PauseReason::SlotLost));
        check(None, Some(&logical()), OnMissing::Create, Ok(SlotPlan::Adopt { from: Lsn::new(0x200) }));
    }

    #[test]
    fn a_slot_that_has_gone_is_never_made_anew() {
        check(Some(7), None, OnMissing::Create, Err(PauseReason::SlotLost));
        check(Some(7), Some(&logical()), OnMissing::Create, Ok(SlotPlan::Continue { from: Lsn::new(7) }));
    }

    #[test]
    fn a_slot_in_creation_is_waited_for() {
        let half = SlotInfo { confirmed_flush_lsn: None, active_pid: Some(7), ..logical() };
        let (name, subscription) = ("sub".parse().unwrap(), "sub".parse().unwrap());
        let failure =
            plan(&name, &subscription, None, Some(&half), OnMissing::Create, "example").unwrap_err();
        assert_eq!(failure.disposition, Disposition::Retry);
    }

    #[test]
    fn slots_for_tables_are_recognizable_and_never_too_long() {
        let long: SlotName = "s".repeat(63).parse().unwrap();
        assert_eq!(sync_prefix(&"sub".parse().unwrap()), "sub_sync_5d0fc2f5_");
        assert_eq!(temporary_name(&long).as_str().len(), 63);
        let suffix = temporary_name(&long).as_str().len() - sync_prefix(&long).len();
        assert_eq!(i32::try_from(suffix), Ok(SYNC_SUFFIX_LENGTH));
    }

    #[test]
    fn slots_for_tables_are_told_apart_by_their_subscription() {
        let (one, other) = (format!("{}_one", "s".repeat(48)), format!("{}_other", "s".repeat(48)));
        for (slot, other) in [("sub", "sub_sync_1"), (one.as_str(), other.as_str())] {
            let (slot, other) = (slot.parse().unwrap(), other.parse().unwrap());
            assert!(!temporary_name(&other).as_str().starts_with(&sync_prefix(&slot)));
        }
    }

    #[test]
    fn a_slot_that_lost_wal_or_belongs_to_others_stops_it() {
        let lost = SlotInfo { wal_status: Some("lost".into()), ..logical() };
        check(Some(7), Some(&lost), OnMissing::Create, Err(PauseReason::SlotLost));
        let idle = SlotInfo { invalidation_reason: Some("idle_timeout".into()), ..logical() };
        check(Some(7), Some(&idle), OnMissing::Create, Err(PauseReason::SlotLost));
        let physical = SlotInfo { slot_type: "physical".into(), plugin: None, ..logical() };
        check(None, Some(&physical), OnMissing::Create, Err(PauseReason::PublisherError));
        let prepared = SlotInfo { two_phase: true, ..logical() };
        check(None, Some(&prepared), OnMissing::Create, Err(PauseReason::PublisherError));
        let elsewhere = SlotInfo { database: Some("other".into()), ..logical() };
        check(None, Some(&elsewhere), OnMissing::Create, Err(PauseReason::PublisherError));
    }
}
