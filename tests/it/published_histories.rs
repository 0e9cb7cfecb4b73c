//! Random histories of publications: tables leave and come back, are renamed and replaced, operations, filters and
//! columns change, publications are dropped and made again, while rows are written, the service is killed and servers
//! crash. At the end each table that is published has the same rows on both sides, or a gap is on record
//! for it; once the gaps are settled by synchronising their tables again, all have the same rows.
//!
//! All histories of a run share the servers and one service, with a subscription and a database of the publisher for
//! each. In each history, only some of the kinds of steps happen: where all of them do, every table ends with a gap.
//!
//! - `PGSLUICE_HISTORIES`: how many histories. They run side by side.
//! - `PGSLUICE_SEED`: repeats the choices of an earlier run.
//! - `PGSLUICE_DISASTER`: what a server loses at the end: `publisher-restored`, `target-restored` (both to the state of
//!   half-way), or `publisher-promoted` (a standby takes its place).

mod faults;
mod history;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{RwLock, watch};
use tokio::task::JoinSet;

use self::faults::{Disaster, fail};
use self::history::{History, Summary};
use crate::crash::number;
use crate::support::service::Service;
use crate::support::wait::until_within;
use crate::support::world::{PUBLISHER_ROLE, Servers, World, conninfo};

const HISTORIES_DEFAULT: u64 = 20;
/// Steps of one history.
const STEPS: u32 = 24;
/// Time in which the end of a history has to be explained: equal, or a gap on record.
const SETTLED_WITHIN: Duration = Duration::from_mins(3);

/// Passes over the transaction of each conflict, as an operator would who knows that a gap is its reason. Returns the
/// tables that this concerns.
async fn decide(world: &World, decided: &mut BTreeSet<String>) {
    let sql =
        "SELECT id, source_schema || '.' || source_table FROM pgsluice.conflict WHERE resolved_at IS NULL";
    for line in world.target.try_lines(sql).await.unwrap_or_default() {
        let Some((id, table)) = line.split_once('|') else { continue };
        decided.insert(table.to_owned());
        world.pgsluice(&["conflicts", "resolve", id, "--with", "skip-transaction"]).await;
    }
}

async fn start(seed: u64, histories: u64) -> (World, Vec<History>) {
    let slots = (histories * 3 + 10).to_string();
    let connections = (histories * 8 + 50).to_string();
    let mut world = World::builder()
        .servers(Servers::Separate)
        .publisher_setting("max_replication_slots", &slots)
        .publisher_setting("max_wal_senders", &slots)
        .publisher_setting("max_connections", &connections)
        .target_setting("max_connections", &connections)
        .target_setting("max_replication_slots", &slots)
        .publisher_sql(&format!("GRANT pg_read_all_data TO {PUBLISHER_ROLE}"))
        .start()
        .await;
    let mut all = Vec::new();
    let mut config = std::fs::read_to_string(&world.config).expect("the configuration is there");
    for number in 0..histories {
        let history = History::create(number, seed, &mut world).await;
        let publisher = conninfo(&history.publisher, PUBLISHER_ROLE).replace('\\', "\\\\");
        let name = &history.name;
        let _ = writeln!(
            config,
            "[[subscriptions]]\nname = \"{name}\"\npublisher = \"{publisher}\"\npublications = [\"p\", \"q\"]"
        );
        all.push(history);
    }
    std::fs::write(&world.config, config).expect("the configuration can be written");
    (world, all)
}

/// Some steps of every history, while servers and service fail.
async fn go_on(
    world: &mut World,
    service: Service,
    histories: Vec<History>,
    seed: u64,
    steps: u32,
) -> (Vec<History>, Service) {
    let stage = Arc::new(RwLock::new(()));
    let (stop, stopped) = watch::channel(());
    let mut running = JoinSet::new();
    for history in histories {
        running.spawn(history.run(Arc::clone(&stage), steps));
    }
    let end = async {
        let ended = running.join_all().await;
        stop.send(()).expect("the faults go on until now");
        ended
    };
    tokio::join!(end, fail(world, service, seed, &stage, stopped))
}

/// As [`go_on`] for all steps, with a disaster at their end.
async fn go_on_to(
    disaster: Disaster,
    world: &mut World,
    service: Service,
    histories: Vec<History>,
    seed: u64,
) -> (Vec<History>, Service) {
    let (mut histories, service) = go_on(world, service, histories, seed, STEPS / 2).await;
    let before = disaster.prepare(world, &mut histories).await;
    let (mut histories, service) = go_on(world, service, histories, seed + 1, STEPS / 2).await;
    service.kill9().await;
    disaster.strike(before, world, &mut histories).await;
    for history in &mut histories {
        history.write_some().await;
    }
    let service = world.run();
    for history in &mut histories {
        history.write_some().await;
    }
    (histories, service)
}

/// Lets subscriptions go on that are held as a whole, as an operator would.
async fn settle_held(world: &World, service: Service, histories: &mut [History]) -> Service {
    let mut diverged = Vec::new();
    for history in histories.iter_mut() {
        if history.has_diverged().await {
            diverged.push(history);
        }
    }
    if diverged.is_empty() {
        return service;
    }
    assert_eq!(service.sigterm().await, 0);
    for history in diverged {
        history.drop(world).await;
    }
    world.run()
}

#[tokio::test]
async fn publications_that_change_at_random_leave_equal_rows_or_a_gap_on_record() {
    let seed = number("PGSLUICE_SEED").unwrap_or_else(rand::random);
    let histories = number("PGSLUICE_HISTORIES").unwrap_or(HISTORIES_DEFAULT);
    let disaster = Disaster::asked_for();
    println!("PGSLUICE_SEED={seed} PGSLUICE_HISTORIES={histories} replays these histories; {disaster:?}");
    let (mut world, all) = start(seed, histories).await;
    let service = world.run();
    wait_all_streaming(&world, histories).await;
    let (mut histories, service) = match disaster {
        None => go_on(&mut world, service, all, seed, STEPS).await,
        Some(disaster) => go_on_to(disaster, &mut world, service, all, seed).await,
    };
    for history in &mut histories {
        history.finish().await;
    }
    let mut decided = vec![BTreeSet::new(); histories.len()];
    let mut total = Summary::default();
    for (history, decided) in histories.iter().zip(&mut decided) {
        let what = format!("history {} is explained; it was\n  {}", history.name, history.told.join("\n  "));
        let summary = until_within(SETTLED_WITHIN, &what, async || {
            decide(&world, decided).await;
            history.verdict(decided).await
        })
        .await;
        total.equal += summary.equal;
        total.gaps += summary.gaps;
        total.held += summary.held;
    }
    let service = settle_held(&world, service, &mut histories).await;
    for (history, decided) in histories.iter_mut().zip(&mut decided) {
        let what = format!("history {} is settled; it was\n  {}", history.name, history.told.join("\n  "));
        history.settle(&world).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        if history.is_resynced {
            until_within(SETTLED_WITHIN, &what, async || {
                let is_held = history.is_held().await?;
                if is_held { Err("the gap of the subscription is still open".to_owned()) } else { Ok(()) }
            })
            .await;
            history.resync_all(&world).await;
        }
        until_within(SETTLED_WITHIN, &what, async || {
            decide(&world, decided).await;
            // Behind a gap of the subscription, more may be found.
            history.settle(&world).await?;
            history.all_equal().await
        })
        .await;
    }
    let Summary { equal, gaps, held } = total;
    println!(
        "{equal} tables are equal, {gaps} have a gap, {held} subscriptions are held, {decided:?} were decided"
    );
    assert!(disaster.is_some() || (equal > 0 && held == 0), "no table was compared");
    assert_eq!(service.sigterm().await, 0);
}

async fn wait_all_streaming(world: &World, histories: u64) {
    let sql = "SELECT count(*) FROM pgsluice.subscription WHERE state = 'streaming'";
    until_within(SETTLED_WITHIN, "all subscriptions stream", async || {
        let streaming = world.target.try_value(sql).await?;
        // The world's own subscription is one of them.
        if streaming == (histories + 1).to_string() { Ok(()) } else { Err(format!("{streaming} stream")) }
    })
    .await;
}
