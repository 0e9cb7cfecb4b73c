//! Every durability boundary, broken in every way: the process dies before it or after it, or what was done
//! there was done and its answer is lost. Whatever happens, everything ends right, and nothing is left behind.
//!
//! `src/boundary.rs` says how a boundary is broken. The tables have no key where it matters, so that a row that
//! is applied twice shows.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::process::Command;

use crate::support::cli;
use crate::support::database::Looks;
use crate::support::service::Service;
use crate::support::wait::{until, until_within};
use crate::support::world::{Builder, Servers, World};

/// A crash, or a failed attempt, and all that follows.
const SOON: Duration = Duration::from_secs(40);
const COMMAND_PATIENCE: Duration = Duration::from_secs(40);

/// How a boundary is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    CrashBefore,
    CrashAfter,
    LostAfter,
}

impl Fault {
    const ALL: [Self; 3] = [Self::CrashBefore, Self::CrashAfter, Self::LostAfter];

    fn place_and_action(self) -> (&'static str, &'static str) {
        match self {
            Self::CrashBefore => ("before", "crash"),
            Self::CrashAfter => ("after", "crash"),
            Self::LostAfter => ("after", "lost"),
        }
    }
}

/// What leads to a boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    /// The first start, with a copy.
    FirstStart,
    /// The first start with `copy_data = false`.
    WithoutCopy,
    /// A table that joins.
    Join,
    /// A transaction of two tables, and one of one row, go as sets.
    Sets,
    /// A transaction is larger than a batch.
    Slices,
    /// A trigger of the target makes a transaction go row by row.
    Rows,
    /// A conflict is met.
    Conflict,
    /// The transaction of a conflict is tried again, and applied.
    Retry,
    /// The transaction of a conflict is passed over.
    Skip,
    /// The command line asks for that.
    AskToSkip,
    /// The command line names the transaction to pass over by its position.
    SkipByPosition,
    /// The slot has gone, and comes back with what it had.
    SlotGone,
    /// A gap that holds a table is accepted.
    Accept,
    /// The slot has gone, and that is accepted.
    PassGap,
    /// The publisher has given the slot up, and that is accepted.
    PassLost,
    /// A table is synchronised again.
    Resync,
    /// The published tables are taken up on request.
    Refresh,
    /// The subscription is dropped.
    Drop,
}

/// Every boundary, and what leads to it; each is a test.
macro_rules! boundaries {
    ($($test:ident: $name:literal $scenario:ident;)*) => {
        const ALL: &[&str] = &[$($name),*];
        $(
            #[tokio::test]
            async fn $test() {
                for fault in Fault::ALL {
                    Case { boundary: $name, fault, scenario: Scenario::$scenario }.check().await;
                }
            }
        )*
    };
}

boundaries! {
    schema_is_migrated: "migrate::run" FirstStart;
    subscription_is_claimed: "subscription::claim" FirstStart;
    publisher_is_recorded: "subscription::publisher" FirstStart;
    tables_are_taken_up: "table::take_up" FirstStart;
    slot_is_created: "slot::create" FirstStart;
    progress_is_created: "progress::create" FirstStart;
    copy_begins: "table::begin_copy" FirstStart;
    copy_is_committed: "copy::commit" FirstStart;
    table_is_ready_without_copy: "table::ready" WithoutCopy;
    temporary_slot_is_created: "slot::create" Join;
    copy_of_a_joining_table_begins: "table::begin_copy" Join;
    joining_table_is_committed: "table_sync::commit" Join;
    batch_is_committed: "apply::batch" Sets;
    transaction_that_is_passed_over_is_recorded: "apply::batch" Skip;
    slice_is_applied: "apply::slice" Slices;
    last_slice_is_committed: "apply::batch" Slices;
    rows_are_committed: "apply::rows" Rows;
    conflict_is_recorded: "conflict::open" Conflict;
    conflict_is_settled_by_a_retry: "conflict::applied" Retry;
    command_is_taken: "command::take" Retry;
    skip_is_asked_for: "command::submit" AskToSkip;
    skip_is_armed: "skip::arm" SkipByPosition;
    conflict_is_resolved: "conflict::resolve" Skip;
    command_is_answered: "command::answer" Skip;
    skip_is_finished: "skip::finish" Skip;
    gap_is_recorded: "gap::open" SlotGone;
    gap_is_accepted: "gap::accept" Accept;
    held_table_goes_on: "gap::release" Accept;
    slot_is_created_again: "slot::create" PassGap;
    lost_slot_is_dropped: "slot::drop_lost" PassLost;
    gap_of_the_slot_is_passed: "progress::pass_gap" PassGap;
    tables_to_synchronise_again_are_recorded: "table::resync" Resync;
    table_is_synchronised_again: "table_sync::commit" Resync;
    wish_to_take_up_tables_is_recorded: "table::refresh" Refresh;
    removal_is_begun: "drop::begin" Drop;
    slot_is_dropped: "drop::slot" Drop;
    state_is_removed: "drop::state" Drop;
}

/// One boundary, broken in one way.
#[derive(Debug, Clone, Copy)]
struct Case {
    boundary: &'static str,
    fault: Fault,
    scenario: Scenario,
}

const TABLES: &str = "\
    CREATE TABLE log (id int, note text); ALTER TABLE log REPLICA IDENTITY FULL; \
    CREATE TABLE late (id int, note text); ALTER TABLE late REPLICA IDENTITY FULL; \
    CREATE TABLE keyed (id int PRIMARY KEY, note text)";
const ROWS: &str = "\
    INSERT INTO log SELECT n, 'copied' FROM generate_series(1, 50) n; \
    INSERT INTO late SELECT n, 'copied' FROM generate_series(1, 50) n; \
    CREATE PUBLICATION my_publication FOR TABLE log, keyed";
/// Meets a conflict where the target has the key; `log` shows whether it is applied, and how often.
const CONFLICTING: &str = "BEGIN; INSERT INTO log VALUES (1000, 'with the conflict'); \
    INSERT INTO keyed VALUES (1, 'remote'); INSERT INTO log VALUES (1001, 'with the conflict'); COMMIT";

impl Case {
    async fn check(self) {
        println!("{self:?}");
        let world = self.world().start().await;
        self.prepare(&world).await;
        match self.scenario {
            Scenario::Drop => self.break_command(&world, &["drop", &world.subscription]).await,
            Scenario::AskToSkip | Scenario::SkipByPosition => {
                let service = world.run();
                world.wait_paused("conflict").await;
                self.break_command(&world, &self.skip(&world).await).await;
                self.settle(&world).await;
                service.kill9().await;
            }
            _ => self.break_service(&world).await,
        }
        if self.scenario != Scenario::Drop {
            self.go_on(&world).await;
        }
        self.nothing_is_left(&world).await;
    }

    fn world(self) -> Builder {
        let mut world = World::builder().servers(Servers::Shared).both_sql(TABLES);
        if self.scenario == Scenario::PassLost {
            world = world.publisher_setting("max_slot_wal_keep_size", "1MB");
        }
        if self.scenario == Scenario::Refresh {
            world = world.subscription_line("auto_refresh = false");
        }
        if self.scenario == Scenario::WithoutCopy {
            let publication = "CREATE PUBLICATION my_publication FOR TABLE log, keyed";
            return world.publisher_sql(publication).subscription_line("copy_data = false");
        }
        world.publisher_sql(ROWS)
    }

    /// Up to where the boundary comes next.
    async fn prepare(self, world: &World) {
        if matches!(self.scenario, Scenario::FirstStart | Scenario::WithoutCopy) {
            return;
        }
        world.take_up().await;
        match self.scenario {
            Scenario::Join => {
                world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE late").await;
                world.publisher.exec("INSERT INTO late VALUES (60, 'before the copy')").await;
            }
            Scenario::Sets => {
                let both = "BEGIN; INSERT INTO log VALUES (1, 'new'), (1, 'new'); INSERT INTO keyed VALUES (1, 'remote'); COMMIT";
                world.publisher.exec(both).await;
                world.publisher.exec("INSERT INTO log VALUES (2, 'alone')").await;
            }
            Scenario::Slices => {
                let many = "INSERT INTO log SELECT n, 'one of many' FROM generate_series(1, 70000) n";
                world.publisher.exec(many).await;
            }
            Scenario::Rows => {
                let trigger = "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
                    CREATE TRIGGER see AFTER INSERT ON log FOR EACH ROW EXECUTE FUNCTION see(); \
                    ALTER TABLE log ENABLE ALWAYS TRIGGER see";
                world.target.exec(trigger).await;
                world
                    .publisher
                    .exec("INSERT INTO log SELECT n, 'one by one' FROM generate_series(1, 9) n")
                    .await;
            }
            Scenario::Conflict
            | Scenario::Retry
            | Scenario::Skip
            | Scenario::AskToSkip
            | Scenario::SkipByPosition => {
                world.target.exec("INSERT INTO keyed VALUES (1, 'local')").await;
                world.publisher.exec(CONFLICTING).await;
            }
            Scenario::SlotGone => {
                let sql =
                    "SELECT pg_copy_logical_replication_slot($1, 'spare'), pg_drop_replication_slot($1)";
                world.publisher.exec(sql.replace("$1", &format!("'{}'", world.subscription))).await;
            }
            Scenario::PassGap => {
                let sql = format!("SELECT pg_drop_replication_slot('{}')", world.subscription);
                world.publisher.exec(sql).await;
            }
            Scenario::PassLost => lose_slot(world).await,
            Scenario::Accept => hold(world, "log").await,
            Scenario::Resync => world.target.exec("UPDATE log SET note = 'wrong' WHERE id < 9").await,
            Scenario::Refresh => {
                world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE late").await;
            }
            Scenario::FirstStart | Scenario::WithoutCopy | Scenario::Drop => {}
        }
        if matches!(self.scenario, Scenario::Retry | Scenario::Skip | Scenario::PassGap | Scenario::PassLost)
        {
            let service = world.run();
            world.wait_state("paused").await;
            assert_eq!(service.sigterm().await, 0);
            if self.scenario == Scenario::Retry {
                world.target.exec("DELETE FROM keyed").await;
            }
        }
    }

    fn armed(self) -> String {
        let (place, action) = self.fault.place_and_action();
        format!("{}::{place}=1*return({action})", self.boundary)
    }

    fn told(self) -> String {
        let (place, action) = self.fault.place_and_action();
        format!("boundary {}::{place}: {action}", self.boundary)
    }

    /// A service meets the fault. One that goes on must end right by itself.
    async fn break_service(self, world: &World) {
        let mut service = world.run_with(&[("FAILPOINTS", &self.armed())]);
        let asking = match self.scenario {
            Scenario::Retry => Some(vec!["resume".to_owned(), world.subscription.clone()]),
            Scenario::Skip => Some(self.skip(world).await),
            Scenario::Accept
            | Scenario::PassGap
            | Scenario::PassLost
            | Scenario::Resync
            | Scenario::Refresh => Some(asked(self.scenario, world).await),
            _ => None,
        };
        if let Some(asking) = asking {
            until("it runs", async || service.log().contains("Locked")).await;
            // It may die before it answers.
            let _ = command(world, &asking, None).await;
        }
        self.wait_hit(&mut service).await;
        if self.fault == Fault::LostAfter {
            self.settle(world).await;
            service.kill9().await;
        } else {
            assert_eq!(service.ended().await, -1, "{self:?}: it dies");
        }
    }

    async fn wait_hit(self, service: &mut Service) {
        until_within(SOON, &format!("{self:?} is met"), async || {
            if service.log().contains(&self.told()) { Ok(()) } else { Err("not yet") }
        })
        .await;
    }

    /// A command meets the fault.
    async fn break_command(self, world: &World, arguments: &[impl AsRef<str>]) {
        let (code, told) = command(world, arguments, Some(&self.armed())).await;
        assert!(told.contains(&self.told()), "{self:?} has not been met: {told}");
        let expected =
            if self.fault == Fault::LostAfter { code.is_some_and(|code| code != 0) } else { code.is_none() };
        assert!(expected, "{self:?}: {code:?} {told}");
    }

    /// Waits until all is as it should be, doing what a person would do who sees what `status` says.
    async fn settle(self, world: &World) {
        match self.scenario {
            Scenario::FirstStart
            | Scenario::WithoutCopy
            | Scenario::Join
            | Scenario::Sets
            | Scenario::Slices
            | Scenario::Rows
            | Scenario::Accept
            | Scenario::PassGap
            | Scenario::PassLost
            | Scenario::Resync
            | Scenario::Refresh
            | Scenario::Drop => {}
            Scenario::SlotGone => self.bring_the_slot_back(world).await,
            Scenario::Conflict => {
                world.wait_paused("conflict").await;
                let open =
                    "SELECT count(*), sum(change_count) FROM pgsluice.conflict WHERE resolved_at IS NULL";
                assert_eq!(world.target.lines(open).await, ["1|3"], "{self:?}");
                world.target.exec("DELETE FROM keyed").await;
                world.pgsluice(&["resume", &world.subscription]).await.expect(0);
            }
            Scenario::Retry => {
                self.ask_again(world, &["resume".to_owned(), world.subscription.clone()]).await;
            }
            Scenario::Skip | Scenario::AskToSkip | Scenario::SkipByPosition => {
                self.ask_again(world, &self.skip(world).await).await;
            }
        }
        world.wait_state_within(SOON, "streaming").await;
        self.wait_settled(world, "all is settled").await;
    }

    /// A command that was not taken up has to be given again; one that was is not needed.
    async fn ask_again(self, world: &World, arguments: &[String]) {
        until_within(SOON, &format!("{self:?}: it goes on"), async || {
            let view = world.status().await?;
            if view.state == "paused" {
                let (code, told) = command(world, arguments, None).await;
                return Err(format!("{code:?} {told}"));
            }
            if view.state == "streaming" { Ok(()) } else { Err(view.state) }
        })
        .await;
    }

    async fn wait_settled(self, world: &World, what: &str) {
        let mut sides = world.looks();
        let what = format!("{self:?}: {what}");
        until_within(SOON, &what, async || self.is_settled(world, &mut sides).await).await;
        for side in sides {
            side.close().await;
        }
    }

    async fn is_settled(self, world: &World, [publisher, target]: &mut [Looks; 2]) -> Result<(), String> {
        let skipped = self.skips();
        let joins = matches!(self.scenario, Scenario::Join | Scenario::Refresh);
        let tables: &[&str] = if joins { &["log", "late"] } else { &["log"] };
        for table in tables {
            let all = format!("SELECT id, note FROM {table} ORDER BY 1, 2");
            let expected = if skipped {
                publisher.lines(&all.replace("ORDER", "WHERE note <> 'with the conflict' ORDER")).await?
            } else {
                publisher.lines(&all).await?
            };
            let found = target.lines(&all).await?;
            if found != expected {
                return Err(format!("{table}: {} rows, expected {}", found.len(), expected.len()));
            }
        }
        let keyed = target.lines("SELECT note FROM keyed").await?;
        let expected: &[&str] = match self.scenario {
            Scenario::Skip | Scenario::AskToSkip | Scenario::SkipByPosition => &["local"],
            Scenario::Conflict | Scenario::Retry | Scenario::Sets => &["remote"],
            _ => &[],
        };
        if keyed != expected {
            return Err(format!("keyed: {keyed:?}"));
        }
        let unsettled = "\
            SELECT 'table', source_table, state FROM pgsluice.table_sync WHERE state <> 'ready' \
            UNION ALL SELECT 'conflict', id::text, resolution FROM pgsluice.conflict WHERE resolved_at IS NULL \
            UNION ALL SELECT 'gap', id::text, kind FROM pgsluice.gap WHERE settled_at IS NULL AND kind <> 'passed_over' \
            UNION ALL SELECT 'refresh', name, refresh FROM pgsluice.subscription WHERE refresh IS NOT NULL \
            UNION ALL SELECT 'skip', skip_lsn::text, state FROM pgsluice.subscription WHERE skip_lsn IS NOT NULL \
            UNION ALL SELECT 'command', verb, taken_at::text FROM pgsluice.command WHERE done_at IS NULL";
        let unsettled = target.lines(unsettled).await?;
        let slots = publisher.lines("SELECT slot_name FROM pg_replication_slots").await?;
        if unsettled.is_empty() && slots == [world.subscription.as_str()] {
            Ok(())
        } else {
            Err(format!("{unsettled:?}, slots {slots:?}"))
        }
    }

    /// A service without faults ends it, and streams on.
    async fn go_on(self, world: &World) {
        let service = world.run();
        if self.fault == Fault::LostAfter {
            world.wait_state_within(SOON, "streaming").await;
        } else {
            self.settle(world).await;
        }
        world.publisher.exec("INSERT INTO log VALUES (2000, 'after it all')").await;
        self.wait_settled(world, "it streams on").await;
        let log = service.log();
        assert!(!log.contains("panicked"), "{log}");
        assert_eq!(service.sigterm().await, 0, "{self:?}");
    }

    /// The gap is recorded once. A slot that has everything is put in the place of the one that has gone.
    async fn bring_the_slot_back(self, world: &World) {
        if self.is_settled(world, &mut world.looks()).await.is_ok() {
            return;
        }
        world.wait_paused("slot_lost").await;
        let gaps =
            "SELECT kind, source_table, from_lsn = applied_lsn, to_lsn FROM pgsluice.gap, pgsluice.progress";
        assert_eq!(world.target.lines(gaps).await, ["slot_gone|∅|t|∅"], "{self:?}");
        let sql = "SELECT pg_copy_logical_replication_slot('spare', $1), pg_drop_replication_slot('spare')";
        world.publisher.exec(sql.replace("$1", &format!("'{}'", world.subscription))).await;
        world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    }

    fn skips(self) -> bool {
        matches!(self.scenario, Scenario::Skip | Scenario::AskToSkip | Scenario::SkipByPosition)
    }

    /// What an operator says to pass over the transaction of the open conflict.
    async fn skip(self, world: &World) -> Vec<String> {
        let open = "SELECT max(id), max(commit_lsn) FROM pgsluice.conflict";
        let open = world.target.lines(open).await;
        let (id, lsn) = open.first().and_then(|open| open.split_once('|')).unwrap_or_default();
        if self.scenario == Scenario::SkipByPosition {
            return ["skip", &world.subscription, "--lsn", lsn].map(str::to_owned).to_vec();
        }
        ["conflicts", "resolve", id, "--with", "skip-transaction"].map(str::to_owned).to_vec()
    }

    /// A drop, or a second one, leaves nothing behind.
    async fn nothing_is_left(self, world: &World) {
        let (code, told) = command(world, &["drop", &world.subscription], None).await;
        let done_before = self.scenario == Scenario::Drop && told.contains("nothing to drop");
        assert!(code == Some(0) || done_before, "{self:?}: {code:?} {told}");
        let left = "SELECT 'subscription', name FROM pgsluice.subscription \
            UNION ALL SELECT 'progress', subscription FROM pgsluice.progress \
            UNION ALL SELECT 'table', source_table FROM pgsluice.table_sync \
            UNION ALL SELECT 'conflict', subscription FROM pgsluice.conflict \
            UNION ALL SELECT 'origin', roname FROM pg_replication_origin \
            UNION ALL SELECT 'slot', slot_name FROM pg_replication_slots";
        assert_eq!(world.target.lines(left).await, [""; 0], "{self:?}");
    }
}

/// Holds a table by a gap, while no service runs.
async fn hold(world: &World, table: &str) {
    let sql = "UPDATE pgsluice.table_sync SET state = 'paused', attempt = attempt + 1 WHERE source_table = $1; \
        INSERT INTO pgsluice.gap (subscription, source_schema, source_table, kind, holds, from_lsn, to_lsn) \
        SELECT subscription, 'public', $1, 'returned', true, applied_lsn, applied_lsn FROM pgsluice.progress";
    world.target.exec(sql.replace("$1", &format!("'{table}'"))).await;
}

/// Makes the publisher give the slot up.
async fn lose_slot(world: &World) {
    until_within(SOON, "the publisher has given the slot up", async || {
        world.publisher.exec("INSERT INTO late VALUES (1, 'WAL')").await;
        world.publisher.exec("SELECT pg_switch_wal()").await;
        world.publisher.exec("CHECKPOINT").await;
        let status = world.publisher.value("SELECT wal_status FROM pg_replication_slots").await;
        if status.as_deref() == Some("lost") { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
}

/// What an operator says.
async fn asked(scenario: Scenario, world: &World) -> Vec<String> {
    let gap = world.target.value("SELECT max(id) FROM pgsluice.gap").await.unwrap_or_default();
    let words: &[&str] = match scenario {
        Scenario::Accept | Scenario::PassGap | Scenario::PassLost => {
            &["accept", &world.subscription, "--gap", &gap]
        }
        Scenario::Refresh => &["refresh", &world.subscription],
        _ => &["resync", &world.subscription, "public.log"],
    };
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A command's exit code (none if it was killed), and all that it said.
async fn command(world: &World, arguments: &[impl AsRef<str>], armed: Option<&str>) -> (Option<i32>, String) {
    let mut command = Command::from(cli::executable());
    command.arg("--config").arg(&world.config).args(arguments.iter().map(AsRef::as_ref)).kill_on_drop(true);
    if let Some(armed) = armed {
        command.env("FAILPOINTS", armed);
    }
    let output = tokio::time::timeout(COMMAND_PATIENCE, command.output()).await;
    let output = output.expect("a command ends").expect("a command runs");
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    (output.status.code(), said.concat())
}

/// The boundaries that the sources have are the ones that are broken above.
#[test]
fn every_boundary_of_the_sources_is_broken() {
    let mut found = BTreeSet::new();
    let mut folders = vec![std::path::PathBuf::from("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("boundary.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let marked = ["boundary::deed!(", "boundary::is_lost!("];
                let places = marked.iter().flat_map(|mark| text.split(mark).skip(1));
                let names = places.map(|rest| {
                    let name = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
                    name.unwrap_or_else(|| panic!("a boundary without a name in {path:?}")).to_owned()
                });
                found.extend(names);
            }
        }
    }
    let broken: BTreeSet<String> = ALL.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(found, broken);
}
