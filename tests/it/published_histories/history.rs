//! One history: the tables of one subscription, what happens to them, and how they ended.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::RwLock;

use crate::support::database::{Database, compare};
use crate::support::world::World;

/// With which a kind of step happens in a history.
const KIND_PROBABILITY: f64 = 0.3;
/// Longest pause between two steps, milliseconds.
const PAUSE_MAX_MS: u64 = 700;
const KEYS: std::ops::Range<u32> = 0..40;

/// A table of a history. Its name may change; no other table ever gets one of its names.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) name: String,
    former_names: Vec<String>,
    keyed: bool,
    /// Something has happened to it that may leave a gap.
    pub(super) touched: bool,
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
pub(super) struct History {
    pub(super) name: String,
    kinds: Vec<(Step, u32)>,
    random: StdRng,
    pub(super) publisher: Database,
    pub(super) target: Database,
    pub(super) tables: Vec<Table>,
    next_name: u32,
    pub(super) told: Vec<String>,
    /// The tables when a server's state was kept.
    remembered: Vec<Table>,
    /// Numbers of the gaps that were settled.
    settled: BTreeSet<String>,
    /// Every table was synchronised again, because changes of all of them may be missing.
    pub(super) is_resynced: bool,
}

async fn rename_on(target: &Database, schema: &str, from: &str, to: &str) {
    if from != to {
        target.exec(format!("ALTER TABLE {schema}.{from} RENAME TO {to}")).await;
    }
}

impl History {
    pub(super) async fn create(number: u64, seed: u64, world: &mut World) -> Self {
        let name = format!("h{number}");
        let publisher = Database::create(world.publisher_server(), &name).await;
        let tables = (0..4).map(|at| Table::new(format!("t{at}"), at != 2)).collect();
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(number));
        let kinds = some_kinds(&mut random);
        let history = Self {
            told: vec![format!("-- {kinds:?}")],
            kinds,
            random,
            remembered: Vec::new(),
            settled: BTreeSet::new(),
            is_resynced: false,
            publisher,
            target: world.target.clone(),
            tables,
            next_name: 0,
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

    pub(super) fn tell(&mut self, text: impl Into<String>) {
        self.told.push(text.into());
    }

    /// Some steps.
    pub(super) async fn run(mut self, stage: Arc<RwLock<()>>, steps: u32) -> Self {
        for _ in 0..steps {
            let step = any_step(&self.kinds, &mut self.random);
            {
                // No server is stopped within a step.
                let _stands = stage.read().await;
                self.step(step).await;
            }
            let pause = self.random.random_range(0..PAUSE_MAX_MS);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self
    }

    /// A server's state is kept, to go back to.
    pub(super) fn remember(&mut self) {
        self.remembered.clone_from(&self.tables);
        self.tell("-- a server's state is kept");
    }

    /// The publisher is as it was. Names on the target follow, as an operator would have them.
    pub(super) async fn publisher_went_back(&mut self) {
        let later = std::mem::replace(&mut self.tables, self.remembered.clone());
        self.tell("-- the publisher is as it was");
        for (later, now) in later.iter().zip(&mut self.tables) {
            rename_on(&self.target, &self.name, &later.name, &now.name).await;
            now.touched = true;
        }
    }

    /// The target is as it was. Its tables follow the publisher's, as an operator would have them.
    pub(super) async fn target_went_back(&mut self) {
        self.tell("-- the target is as it was");
        for at in 0..self.tables.len() {
            self.tables[at].touched = true;
            let now = &self.tables[at].name;
            rename_on(&self.target, &self.name, &self.remembered[at].name, now).await;
            let path = self.path(at);
            for column in self.publisher.columns(&path).await {
                let ty = if column == "w" { "text" } else { "int" };
                self.target.exec(format!("ALTER TABLE {path} ADD COLUMN IF NOT EXISTS {column} {ty}")).await;
            }
        }
    }

    /// The last changes: what the end is judged by.
    pub(super) async fn finish(&mut self) {
        if self.kinds.iter().any(|(step, _)| *step == Step::Operations) {
            self.restore_operations().await;
        }
        self.publisher.exec(format!("INSERT INTO {}.marker VALUES (1)", self.name)).await;
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

    pub(super) async fn write_some(&mut self) {
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
    pub(super) async fn verdict(&self, decided: &BTreeSet<String>) -> Result<Summary, String> {
        if self.is_held().await? {
            return Ok(Summary { held: 1, ..Summary::default() });
        }
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

    /// Whether a gap of the subscription holds all of it.
    pub(super) async fn is_held(&self) -> Result<bool, String> {
        Ok(self.all_open_gaps().await?.iter().any(|gap| gap.ends_with('|')))
    }

    async fn open_gaps(&self, table: &str) -> Result<Vec<String>, String> {
        let sql = format!(
            "SELECT kind, from_lsn, to_lsn, detail FROM pgsluice.gap WHERE subscription = '{0}' AND settled_at IS NULL \
             AND (source_table IS NULL OR (source_schema = '{0}' AND source_table = '{table}'))",
            self.name
        );
        self.target.try_lines(&sql).await
    }

    /// Whether it can only start over.
    pub(super) async fn has_diverged(&self) -> bool {
        let sql = format!(
            "SELECT 1 FROM pgsluice.gap WHERE subscription = '{}' AND kind = 'diverged' AND settled_at IS NULL",
            self.name
        );
        self.target.value(&sql).await.is_some()
    }

    /// Drops the subscription with the rows of its tables.
    pub(super) async fn drop(&mut self, world: &World) {
        self.tell("-- starts over");
        world.pgsluice(&["drop", &self.name]).await.expect(0);
        let paths: Vec<String> = (0..self.tables.len()).map(|at| self.path(at)).collect();
        self.target.exec(format!("TRUNCATE {}.marker, {}", self.name, paths.join(", "))).await;
    }

    /// Numbers and tables of the open gaps.
    pub(super) async fn all_open_gaps(&self) -> Result<Vec<String>, String> {
        let sql = format!(
            "SELECT id, coalesce(source_table, '') FROM pgsluice.gap WHERE subscription = '{}' AND settled_at IS NULL",
            self.name
        );
        self.target.try_lines(&sql).await
    }

    /// Has the tables of open gaps synchronised again, as an operator would, and what is not published any more
    /// accepted; each gap once.
    pub(super) async fn settle(&mut self, world: &World) -> Result<(), String> {
        for line in self.all_open_gaps().await? {
            let (id, table) = line.split_once('|').ok_or("no gap")?;
            if !self.settled.insert(id.to_owned()) {
                continue;
            }
            match self.tables.iter().position(|known| known.name == table) {
                Some(at) if self.is_published(at).await => self.resync(world, at).await,
                _ => {
                    world.pgsluice(&["accept", &self.name, "--gap", id]).await;
                    self.is_resynced |= table.is_empty();
                }
            }
        }
        Ok(())
    }

    async fn resync(&self, world: &World, at: usize) {
        world.pgsluice(&["resync", &self.name, &self.path(at)]).await;
    }

    /// Has every table that is published synchronised again.
    pub(super) async fn resync_all(&self, world: &World) {
        for at in 0..self.tables.len() {
            if self.is_published(at).await {
                self.resync(world, at).await;
            }
        }
    }

    /// Whether no gap is left, and each table that is published has the same rows on both sides.
    pub(super) async fn all_equal(&self) -> Result<(), String> {
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
pub(super) struct Summary {
    pub(super) equal: u32,
    pub(super) gaps: u32,
    /// Subscriptions that are held as a whole.
    pub(super) held: u32,
}
