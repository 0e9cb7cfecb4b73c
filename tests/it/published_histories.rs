//! Random histories of publications: tables leave and come back, are renamed and replaced, operations, filters and
//! columns change, publications are dropped and made again, while rows are written, the service is killed and the
//! publisher crashes. At the end each table that is published has the same rows on both sides, or a gap is on record
//! for it; once the gaps are settled by synchronising their tables again, all have the same rows.
//!
//! All histories of a run share the servers and one service, with a subscription and a database of the publisher for
//! each. In each history, only some of the kinds of steps happen: where all of them do, every table ends with a gap.
//!
//! - `PGSLUICE_HISTORIES`: how many histories. They run side by side.
//! - `PGSLUICE_SEED`: repeats the choices of an earlier run.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use pgsluice::demo::cluster::StopMode;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{RwLock, watch};
use tokio::task::JoinSet;

use crate::crash::number;
use crate::support::database::{Database, compare};
use crate::support::service::Service;
use crate::support::wait::until_within;
use crate::support::world::{PUBLISHER_ROLE, Servers, World, conninfo};

const HISTORIES_DEFAULT: u64 = 20;
/// Steps of one history.
const STEPS: u32 = 24;
/// With which a kind of step happens in a history.
const KIND_PROBABILITY: f64 = 0.3;
/// Longest pause between two steps, milliseconds.
const PAUSE_MAX_MS: u64 = 700;
/// Time in which the end of a history has to be explained: equal, or a gap on record.
const SETTLED_WITHIN: Duration = Duration::from_mins(3);
const KEYS: std::ops::Range<u32> = 0..40;
/// How often the service or the publisher fails.
const FAULT_EVERY: Duration = Duration::from_secs(4);

/// A table of a history. Its name may change; no other table ever gets one of its names.
#[derive(Debug, Clone)]
struct Table {
    name: String,
    former_names: Vec<String>,
    keyed: bool,
    /// Something has happened to it that may leave a gap.
    touched: bool,
}

impl Table {
    fn new(name: String, keyed: bool) -> Self {
        Self { name, former_names: Vec::new(), keyed, touched: false }
    }

    fn rename(&mut self, to: String) {
        let former = std::mem::replace(&mut self.name, to);
        self.former_names.push(former);
    }

    /// Whether a decision was made about it, under one of its names.
    fn is_decided(&self, schema: &str, decided: &BTreeSet<String>) -> bool {
        let names = self.former_names.iter().chain([&self.name]);
        names.map(|name| format!("{schema}.{name}")).any(|path| decided.contains(&path))
    }
}

/// What happens in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Write,
    Leave,
    Join,
    /// Leaves and comes back at once, with rows in between.
    LeaveAndReturn,
    Replace,
    RenameOnBothSides,
    RenameAndBack,
    MoveAndBack,
    Operations,
    Filter,
    Column,
    OtherPublication,
}

const STEPS_BY_WEIGHT: &[(Step, u32)] = &[
    (Step::Write, 12),
    (Step::Leave, 2),
    (Step::Join, 4),
    (Step::LeaveAndReturn, 2),
    (Step::Replace, 1),
    (Step::RenameOnBothSides, 2),
    (Step::RenameAndBack, 1),
    (Step::MoveAndBack, 1),
    (Step::Operations, 1),
    (Step::Filter, 1),
    (Step::Column, 1),
    (Step::OtherPublication, 1),
];

/// The kinds that happen in one history, with their weights.
fn some_kinds(random: &mut StdRng) -> Vec<(Step, u32)> {
    let mut kinds = STEPS_BY_WEIGHT.to_vec();
    kinds.retain(|(step, _)| *step == Step::Write || random.random_bool(KIND_PROBABILITY));
    kinds
}

fn any_step(kinds: &[(Step, u32)], random: &mut StdRng) -> Step {
    let all = kinds.iter().map(|(_, weight)| weight).sum();
    let mut at = random.random_range(0..all);
    for &(step, weight) in kinds {
        match at.checked_sub(weight) {
            Some(rest) => at = rest,
            None => return step,
        }
    }
    Step::Write
}

/// One history. Its name is that of the subscription, of the publisher's database, and of the schema on both sides.
struct History {
    name: String,
    random: StdRng,
    publisher: Database,
    target: Database,
    tables: Vec<Table>,
    next_name: u32,
    told: Vec<String>,
}

impl History {
    async fn create(number: u64, seed: u64, world: &mut World) -> Self {
        let name = format!("h{number}");
        let publisher = Database::create(world.publisher_server(), &name).await;
        let tables = (0..4).map(|at| Table::new(format!("t{at}"), at != 2)).collect();
        let history = Self {
            random: StdRng::seed_from_u64(seed.wrapping_add(number)),
            publisher,
            target: world.target.clone(),
            tables,
            next_name: 0,
            told: Vec::new(),
            name,
        };
        let schema = &history.name;
        let mut both = format!("CREATE SCHEMA {schema}; CREATE TABLE {schema}.marker (id int PRIMARY KEY);");
        for table in &history.tables {
            both.push_str(&history.create_table(table));
        }
        let publish = format!(
            "CREATE PUBLICATION p FOR TABLE {schema}.marker, {schema}.t0, {schema}.t1, {schema}.t2; \
             CREATE PUBLICATION q FOR TABLE {schema}.t0"
        );
        history.publisher.exec(format!("{both} {publish}")).await;
        history
            .target
            .exec(format!("{both} GRANT USAGE, CREATE ON SCHEMA {schema} TO pgsluice_apply;"))
            .await;
        history.own_target_tables().await;
        history
    }

    fn create_table(&self, table: &Table) -> String {
        let (schema, name) = (&self.name, &table.name);
        let key = if table.keyed { "PRIMARY KEY" } else { "NOT NULL" };
        let identity = if table.keyed {
            String::new()
        } else {
            format!("ALTER TABLE {schema}.{name} REPLICA IDENTITY FULL;")
        };
        format!("CREATE TABLE {schema}.{name} (id int {key}, v int, w text); {identity}")
    }

    async fn own_target_tables(&self) {
        let schema = &self.name;
        self.target.exec(format!("GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO pgsluice_apply")).await;
    }

    fn tell(&mut self, text: impl Into<String>) {
        self.told.push(text.into());
    }

    async fn run(mut self, stage: Arc<RwLock<()>>) -> Self {
        let kinds = some_kinds(&mut self.random);
        self.tell(format!("-- {kinds:?}"));
        for _ in 0..STEPS {
            let step = any_step(&kinds, &mut self.random);
            {
                // The publisher is not stopped within a step.
                let _stands = stage.read().await;
                self.step(step).await;
            }
            let pause = self.random.random_range(0..PAUSE_MAX_MS);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        let _stands = stage.read().await;
        if kinds.iter().any(|(step, _)| *step == Step::Operations) {
            self.restore_operations().await;
        }
        self.publisher.exec(format!("INSERT INTO {}.marker VALUES (1)", self.name)).await;
        self
    }

    /// What is not published can't be compared.
    async fn restore_operations(&mut self) {
        for table in &mut self.tables {
            table.touched = true;
        }
        for publication in ["p", "q"] {
            let all = "publish = 'insert, update, delete, truncate'";
            self.publish(&format!("ALTER PUBLICATION {publication} SET ({all})")).await;
        }
    }

    async fn publish(&mut self, sql: &str) {
        self.tell(sql);
        self.publisher.exec(sql).await;
    }

    async fn step(&mut self, step: Step) {
        let at = self.random.random_range(0..self.tables.len());
        match step {
            Step::Write => self.write_some().await,
            Step::Leave => self.leave(at).await,
            Step::Join => self.join(at).await,
            Step::LeaveAndReturn => {
                self.leave(at).await;
                self.write(at).await;
                self.join(at).await;
            }
            Step::Replace => self.replace(at).await,
            Step::RenameOnBothSides => self.rename_on_both_sides(at).await,
            Step::RenameAndBack => self.rename_and_back(at).await,
            Step::MoveAndBack => self.move_and_back(at).await,
            Step::Operations => self.operations().await,
            Step::Filter => self.filter(at).await,
            Step::Column => self.column(at).await,
            Step::OtherPublication => self.other_publication().await,
        }
    }

    fn path(&self, at: usize) -> String {
        format!("{}.{}", self.name, self.tables[at].name)
    }

    async fn write_some(&mut self) {
        for _ in 0..self.random.random_range(1..4) {
            let at = self.random.random_range(0..self.tables.len());
            self.write(at).await;
        }
    }

    /// Transactions that each write one table, so that a decision about one concerns no other.
    async fn write(&mut self, at: usize) {
        let path = self.path(at);
        for _ in 0..self.random.random_range(1..5) {
            let (key, value) = (self.random.random_range(KEYS), self.random.random_range(0..1000));
            let insert = if self.tables[at].keyed {
                format!(
                    "INSERT INTO {path} (id, v, w) VALUES ({key}, {value}, 'w{value}') ON CONFLICT DO NOTHING"
                )
            } else {
                format!("INSERT INTO {path} (id, v, w) VALUES ({key}, {value}, 'w{value}')")
            };
            let sql = match self.random.random_range(0..10) {
                0..6 => insert,
                6..8 => format!("UPDATE {path} SET v = {value} WHERE id = {key}"),
                _ => format!("DELETE FROM {path} WHERE id = {key}"),
            };
            self.tell(sql.clone());
            self.publisher.exec(sql).await;
        }
    }

    async fn is_in(&self, publication: &str, at: usize) -> bool {
        let sql = format!(
            "SELECT 1 FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid \
             WHERE p.pubname = '{publication}' AND r.prrelid = '{}'::regclass",
            self.path(at)
        );
        self.publisher.value(&sql).await.is_some()
    }

    async fn is_published(&self, at: usize) -> bool {
        self.is_in("p", at).await || self.is_in("q", at).await
    }

    async fn leave(&mut self, at: usize) {
        self.tables[at].touched = true;
        for publication in ["p", "q"] {
            if self.is_in(publication, at).await {
                let sql = format!("ALTER PUBLICATION {publication} DROP TABLE {}", self.path(at));
                self.publish(&sql).await;
            }
        }
    }

    async fn join(&mut self, at: usize) {
        if !self.is_in("p", at).await {
            let sql = format!("ALTER PUBLICATION p ADD TABLE {}", self.path(at));
            self.publish(&sql).await;
        }
    }

    async fn replace(&mut self, at: usize) {
        self.tables[at].touched = true;
        let (path, schema) = (self.path(at), self.name.clone());
        let fresh = Table { name: format!("fresh_{}", self.next()), ..self.tables[at].clone() };
        let name = &self.tables[at].name;
        let published = self.is_in("p", at).await;
        let add = if published { format!("ALTER PUBLICATION p ADD TABLE {path};") } else { String::new() };
        let sql = format!(
            "{} INSERT INTO {schema}.{} (id, v, w) SELECT n, n, 'fresh' FROM generate_series(100, 110) n; \
             DROP TABLE {path}; ALTER TABLE {schema}.{} RENAME TO {name}; {add}",
            self.create_table(&fresh),
            fresh.name,
            fresh.name,
        );
        self.publish(&sql).await;
        // The new table has the columns of the first version.
        self.target.exec(format!("ALTER TABLE {path} ADD COLUMN IF NOT EXISTS w text")).await;
    }

    fn next(&mut self) -> u32 {
        self.next_name += 1;
        self.next_name
    }

    async fn rename_on_both_sides(&mut self, at: usize) {
        let to = format!("r{}", self.next());
        let sql = format!("ALTER TABLE {} RENAME TO {to}", self.path(at));
        self.tell(format!("on both sides: {sql}"));
        if self.random.random_bool(0.5) {
            self.publisher.exec(sql.clone()).await;
            self.target.exec(sql).await;
        } else {
            self.target.exec(sql.clone()).await;
            self.publisher.exec(sql).await;
        }
        self.tables[at].rename(to);
    }

    async fn rename_and_back(&mut self, at: usize) {
        let (path, name) = (self.path(at), self.tables[at].name.clone());
        let to = format!("away{}", self.next());
        self.publish(&format!("ALTER TABLE {path} RENAME TO {to}")).await;
        self.tables[at].rename(to.clone());
        self.write(at).await;
        self.tables[at].rename(name.clone());
        self.publish(&format!("ALTER TABLE {}.{to} RENAME TO {name}", self.name)).await;
        self.write(at).await;
    }

    async fn move_and_back(&mut self, at: usize) {
        let (path, name, schema) = (self.path(at), self.tables[at].name.clone(), self.name.clone());
        self.publish(&format!("ALTER TABLE {path} SET SCHEMA public")).await;
        let key = 200 + self.next();
        self.publisher.exec(format!("INSERT INTO public.{name} (id, v, w) VALUES ({key}, 1, 'moved')")).await;
        self.publish(&format!("ALTER TABLE public.{name} SET SCHEMA {schema}")).await;
    }

    async fn operations(&mut self) {
        for table in &mut self.tables {
            table.touched = true;
        }
        let operations = ["insert", "insert, update", "insert, update, delete, truncate"];
        let operations = operations[self.random.random_range(0..operations.len())];
        self.publish(&format!("ALTER PUBLICATION p SET (publish = '{operations}')")).await;
    }

    async fn filter(&mut self, at: usize) {
        self.tables[at].touched = true;
        let path = self.path(at);
        self.leave(at).await;
        let filter = if self.random.random_bool(0.5) { " WHERE (id % 2 = 0)" } else { "" };
        self.publish(&format!("ALTER PUBLICATION p ADD TABLE {path}{filter}")).await;
    }

    async fn column(&mut self, at: usize) {
        let sql = format!("ALTER TABLE {} ADD COLUMN IF NOT EXISTS extra{} int", self.path(at), self.next());
        self.tell(format!("on both sides: {sql}"));
        self.target.exec(sql.clone()).await;
        self.publisher.exec(sql).await;
    }

    async fn other_publication(&mut self) {
        let mut tables = Vec::new();
        for at in 0..self.tables.len() {
            if self.is_in("q", at).await {
                self.tables[at].touched = true;
                tables.push(self.path(at));
            }
        }
        self.publish("DROP PUBLICATION q").await;
        self.write_some().await;
        let list =
            if tables.is_empty() { String::new() } else { format!(" FOR TABLE {}", tables.join(", ")) };
        self.publish(&format!("CREATE PUBLICATION q{list}")).await;
    }

    /// Whether each published table is equal or has a gap; the error tells which is neither.
    async fn verdict(&self, decided: &BTreeSet<String>) -> Result<Summary, String> {
        let marker = format!("SELECT id FROM {}.marker", self.name);
        if self.target.try_lines(&marker).await? != ["1"] {
            return Err("the marker has not come".to_owned());
        }
        let mut summary = Summary::default();
        for (at, table) in self.tables.iter().enumerate() {
            let published = self.is_published(at).await;
            let path = self.path(at);
            let is_decided = table.is_decided(&self.name, decided);
            if is_decided && !table.touched {
                return Err(format!("{path} had a conflict although nothing has happened to it"));
            }
            if !published || is_decided {
                continue;
            }
            let gaps = self.open_gaps(&table.name).await?;
            if !gaps.is_empty() {
                if !table.touched {
                    return Err(format!("{path} has a gap although nothing has happened to it: {gaps:?}"));
                }
                summary.gaps += 1;
                continue;
            }
            self.same_rows(at).await?;
            summary.equal += 1;
        }
        Ok(summary)
    }

    async fn open_gaps(&self, table: &str) -> Result<Vec<String>, String> {
        let sql = format!(
            "SELECT kind, from_lsn, to_lsn FROM pgsluice.gap WHERE subscription = '{0}' AND settled_at IS NULL \
             AND (source_table IS NULL OR (source_schema = '{0}' AND source_table = '{table}'))",
            self.name
        );
        self.target.try_lines(&sql).await
    }

    /// Numbers and tables of the open gaps.
    async fn all_open_gaps(&self) -> Result<Vec<String>, String> {
        let sql = format!(
            "SELECT id, source_table FROM pgsluice.gap WHERE subscription = '{}' AND settled_at IS NULL",
            self.name
        );
        self.target.try_lines(&sql).await
    }

    /// Has the tables of open gaps synchronised again, as an operator would, and what is not published any more
    /// accepted.
    async fn settle(&self, world: &World) -> Result<(), String> {
        for line in self.all_open_gaps().await? {
            let (id, table) = line.split_once('|').ok_or("no gap")?;
            match self.tables.iter().position(|known| known.name == table) {
                Some(at) if self.is_published(at).await => {
                    world.pgsluice(&["resync", &self.name, &self.path(at)]).await
                }
                _ => world.pgsluice(&["accept", &self.name, "--gap", id]).await,
            };
        }
        Ok(())
    }

    /// Whether no gap is left, and each table that is published has the same rows on both sides.
    async fn all_equal(&self) -> Result<(), String> {
        let open = self.all_open_gaps().await?;
        if !open.is_empty() {
            return Err(format!("gaps are left: {open:?}"));
        }
        for at in 0..self.tables.len() {
            if self.is_published(at).await {
                self.same_rows(at).await?;
            }
        }
        Ok(())
    }

    async fn same_rows(&self, at: usize) -> Result<(), String> {
        let path = self.path(at);
        let columns = self.publisher.columns(&path).await;
        let filters = format!(
            "SELECT pg_get_expr(prqual, prrelid) FROM pg_publication_rel WHERE prrelid = '{path}'::regclass"
        );
        let filters = self.publisher.query_text(filters).await;
        let filters: Option<Vec<String>> =
            filters.into_iter().map(|row| row.into_iter().next().flatten()).collect();
        let filtered =
            filters.map_or_else(|| path.clone(), |filters| format!("{path} WHERE {}", filters.join(" OR ")));
        let publisher = self.publisher.sorted(&filtered, &columns).await;
        let target = self.target.sorted(&path, &columns).await;
        compare(&path, &publisher, &target)
    }
}

/// How many tables ended in which way.
#[derive(Debug, Default, Clone, Copy)]
struct Summary {
    equal: u32,
    gaps: u32,
}

/// Kills or stops the service, or crashes the publisher, again and again until told to stop. Returns the service.
async fn fail(
    world: &mut World,
    mut service: Service,
    seed: u64,
    stage: &RwLock<()>,
    mut stop: watch::Receiver<()>,
) -> Service {
    let mut random = StdRng::seed_from_u64(seed ^ 0xfa17);
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => return service,
            () = tokio::time::sleep(FAULT_EVERY) => {}
        }
        match random.random_range(0..4) {
            0 => service.kill9().await,
            1 => assert_eq!(service.sigterm().await, 0),
            _ => {
                let _none_writes = stage.write().await;
                world
                    .publisher_server()
                    .restart(StopMode::Immediate)
                    .await
                    .expect("a publisher that crashes comes back");
                continue;
            }
        }
        let pause = random.random_range(0..2000);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        service = world.run();
    }
}

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

#[tokio::test]
async fn publications_that_change_at_random_leave_equal_rows_or_a_gap_on_record() {
    let seed = number("PGSLUICE_SEED").unwrap_or_else(rand::random);
    let histories = number("PGSLUICE_HISTORIES").unwrap_or(HISTORIES_DEFAULT);
    println!("PGSLUICE_SEED={seed} PGSLUICE_HISTORIES={histories} replays these histories");
    let slots = (histories * 3 + 10).to_string();
    let mut world = World::builder()
        .servers(Servers::Separate)
        .publisher_setting("max_replication_slots", &slots)
        .publisher_setting("max_wal_senders", &slots)
        .publisher_setting("max_connections", &(histories * 8 + 50).to_string())
        .target_setting("max_connections", &(histories * 8 + 50).to_string())
        .target_setting("max_replication_slots", &slots)
        .publisher_sql(&format!("GRANT pg_read_all_data TO {PUBLISHER_ROLE}"))
        .start()
        .await;
    let mut all = Vec::new();
    let mut config = std::fs::read_to_string(&world.config).unwrap();
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
    std::fs::write(&world.config, config).unwrap();
    let service = world.run();
    wait_all_streaming(&world, histories).await;

    let stage = Arc::new(RwLock::new(()));
    let (stop, stopped) = watch::channel(());
    let mut running = JoinSet::new();
    for history in all {
        running.spawn(history.run(Arc::clone(&stage)));
    }
    let end = async {
        let ended = running.join_all().await;
        stop.send(()).expect("the faults go on until now");
        ended
    };
    let (histories, service) = tokio::join!(end, fail(&mut world, service, seed, &stage, stopped));
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
        let what = format!("history {} is settled; it was\n  {}", history.name, history.told.join("\n  "));
        history.settle(&world).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        until_within(SETTLED_WITHIN, &what, async || {
            decide(&world, decided).await;
            history.all_equal().await
        })
        .await;
    }
    println!("{} tables are equal, {} have a gap, {decided:?} were decided", total.equal, total.gaps);
    assert!(total.equal > 0, "no table was compared");
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
