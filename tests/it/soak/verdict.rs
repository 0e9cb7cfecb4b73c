//! The end of a round: everything is cured, the stream catches up, and both sides must hold the same.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::support::database::Database;
use crate::support::world::World;

/// How long catching up may take after the faults of a round. The suite's short run tells so before the test
/// runner ends it.
const CATCH_UP: Duration = Duration::from_secs(150);
/// A pause that lasts so long does not end by itself.
const PAUSE_MAX: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Sessions that one instance may have on one side.
const SESSIONS_MAX: u64 = 12;
const SETTLE: Duration = Duration::from_secs(40);

/// Transactions that are not on the target as often as on the publisher.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) transactions: u64,
    pub(super) lost: u64,
    pub(super) twice: u64,
}

/// Waits until the target has all that is committed on the publisher now, and the tables that have left
/// are let go of. An error tells where it stands.
pub(super) async fn caught_up(world: &World, left: &[String]) -> Result<Duration, String> {
    let began = Instant::now();
    let goal = world.publisher.try_value("SELECT pg_current_wal_lsn()").await?;
    let mut paused_since: Option<Instant> = None;
    loop {
        let seen = match behind(world, &goal, left).await {
            Ok(None) => return Ok(began.elapsed()),
            Ok(Some(seen)) | Err(seen) => seen,
        };
        let state = state(world).await;
        if !state.starts_with("paused") {
            paused_since = None;
        } else if paused_since.get_or_insert_with(Instant::now).elapsed() > PAUSE_MAX {
            return Err(paused(world).await);
        }
        if began.elapsed() > CATCH_UP {
            return Err(format!("not caught up with {goal} in {CATCH_UP:?}: {seen}; state {state}"));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn state(world: &World) -> String {
    let sql = "SELECT state, reason, detail, hint FROM pgsluice.subscription";
    world.target.try_lines(sql).await.unwrap_or_else(|error| vec![error]).concat()
}

/// Why it is paused, and on what.
pub(super) async fn paused(world: &World) -> String {
    format!("it is paused: {}\n{}", state(world).await, conflicts(world).await)
}

/// What is still missing, `None` if nothing is.
async fn behind(world: &World, goal: &str, left: &[String]) -> Result<Option<String>, String> {
    let slot = format!(
        "SELECT confirmed_flush_lsn, confirmed_flush_lsn >= '{goal}' FROM pg_replication_slots \
         WHERE slot_name = '{}'",
        world.subscription
    );
    let slot = world.publisher.try_lines(&slot).await?.concat();
    if !slot.ends_with("|t") {
        return Ok(Some(format!("the slot is at {slot}")));
    }
    let tables =
        "SELECT source_table, state, error FROM pgsluice.table_sync WHERE state <> 'ready' ORDER BY 1";
    let waiting = world.target.try_lines(tables).await?;
    if !waiting.is_empty() {
        return Ok(Some(format!("these tables are not ready: {waiting:?}")));
    }
    let followed = "SELECT source_table FROM pgsluice.table_sync WHERE let_go_at IS NULL";
    let known = world.target.try_lines(followed).await?;
    let kept: Vec<&String> = left.iter().filter(|table| known.contains(table)).collect();
    if !kept.is_empty() {
        return Ok(Some(format!("these tables have left, and are not let go: {kept:?}")));
    }
    let state = world.target.try_value("SELECT state FROM pgsluice.subscription").await?;
    Ok((state != "streaming").then(|| format!("the state is {state}")))
}

async fn conflicts(world: &World) -> String {
    let sql = "SELECT kind, operation, target_table, constraint_name, message, key, commit_lsn, change_index, \
               occurrences FROM pgsluice.conflict ORDER BY id LIMIT 5";
    world.target.try_lines(sql).await.unwrap_or_else(|error| vec![error]).join("\n")
}

/// Compares these tables row for row, and what else must hold. Every difference is told.
pub(super) async fn compare(world: &World, tables: &[String]) -> Result<Counted, String> {
    let mut differences = Vec::new();
    let counted = counted(world).await;
    if counted.lost + counted.twice > 0 {
        differences.push(format!("{} transactions lost, {} twice", counted.lost, counted.twice));
    }
    for table in tables {
        if let Err(difference) = world.same_rows(table).await {
            differences.push(difference);
        }
    }
    let uneven = "SELECT a.writer, a.count, count(c.number) FROM applied a \
                  LEFT JOIN transaction_counter c USING (writer) GROUP BY 1, 2 HAVING a.count <> count(c.number)";
    for (side, database) in [("publisher", &world.publisher), ("target", &world.target)] {
        let uneven = database.lines(uneven).await;
        if !uneven.is_empty() {
            differences.push(format!("counts and rows of writers differ on the {side}: {uneven:?}"));
        }
    }
    let conflicts = conflicts(world).await;
    if !conflicts.is_empty() {
        differences.push(format!("conflicts are recorded:\n{conflicts}"));
    }
    if let Err(left) = nothing_left(world).await {
        differences.push(left);
    }
    if differences.is_empty() { Ok(counted) } else { Err(differences.join("\n")) }
}

/// Each transaction's row in `transaction_counter`, told apart on both sides.
async fn counted(world: &World) -> Counted {
    let rows = async |database: &Database| -> BTreeMap<String, u64> {
        let sql = "SELECT writer, number, count(*) FROM transaction_counter GROUP BY 1, 2";
        let lines = database.lines(sql).await;
        let parsed = lines.iter().filter_map(|line| line.rsplit_once('|'));
        parsed.map(|(transaction, count)| (transaction.to_owned(), count.parse().unwrap_or(0))).collect()
    };
    let (publisher, target) = (rows(&world.publisher).await, rows(&world.target).await);
    let lost = publisher.keys().filter(|transaction| !target.contains_key(*transaction)).count();
    let surplus = |(transaction, count): (&String, &u64)| {
        count.saturating_sub(publisher.get(transaction).copied().unwrap_or(0))
    };
    Counted {
        transactions: publisher.values().sum(),
        lost: lost as u64,
        twice: target.iter().map(surplus).sum(),
    }
}

/// Waits until no slot but ours and only a few sessions are left.
async fn nothing_left(world: &World) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let slots = world.publisher.lines("SELECT slot_name FROM pg_replication_slots").await;
        let sessions = async |database: &Database| {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename IN ('sammy', 'pgsluice_apply')";
            database.value(sql).await.and_then(|count| count.parse::<u64>().ok()).unwrap_or(0)
        };
        let counts = [sessions(&world.publisher).await, sessions(&world.target).await];
        if slots == [world.subscription.clone()] && counts.iter().all(|count| *count <= SESSIONS_MAX) {
            return Ok(());
        }
        if began.elapsed() > SETTLE {
            return Err(format!(
                "after {SETTLE:?}: slots {slots:?}, sessions {counts:?} on publisher and target"
            ));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
