//! Writers on the publisher: transactions at random from a seed, over tables of every kind.
//!
//! Each transaction leaves a row in `transaction_counter`, which has no key, and moves its writer's count
//! in `applied` by one: whatever is lost or applied twice is seen in both. Writers come back when the
//! publisher does; what became of a transaction whose answer they did not get, its rows tell.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pgsluice::demo::Session;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio_postgres::SimpleQueryMessage;

use super::kinds::{Selection, Work};
use super::schema::{BULK_WRITER, SAVEPOINT_WRITER};
use crate::crash;
use crate::support::database::Database;

/// A writer's rest between two transactions: a debug build on a busy machine has to keep up.
const PACE: Duration = Duration::from_millis(8);
/// The bulk writer's rest after a transaction, for each 1,000 rows of it.
const BULK_PACE_MS: std::ops::Range<u64> = 30..120;
const LINGER_SECONDS: std::ops::Range<f64> = 0.05..2.5;
/// A publisher reads spilled changes back in pieces of 4,096: most subtransactions have more.
const SAVEPOINT_ROWS_MAX: u64 = 20_000;
const SAVEPOINT_PACE: Duration = Duration::from_millis(150);
const RECONNECT_INTERVAL: Duration = Duration::from_millis(50);
/// A server that hangs must not hold the load's end up.
const STATEMENT_PATIENCE: Duration = Duration::from_mins(1);
/// Chunks of bulk rows that are kept.
const CHUNKS_KEPT: u64 = 3;

/// What the faults tell the writers.
#[derive(Debug, Default)]
pub(super) struct Shared {
    stop: AtomicBool,
    /// Tables that have joined, and are written.
    joined: Mutex<Vec<String>>,
    /// Columns that `wide` has got so far on the publisher.
    pub(super) columns: AtomicU32,
    pub(super) transactions: AtomicU64,
    pub(super) rows: AtomicU64,
    rolled_back: AtomicU64,
}

impl Shared {
    pub(super) fn joined(&self) -> Vec<String> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn change_joined(&self, change: impl FnOnce(&mut Vec<String>)) {
        change(&mut self.joined.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What a run's writers are like, and where each of them goes on.
#[derive(Debug)]
pub(super) struct Load {
    publisher: Database,
    selection: Selection,
    seed: u64,
    bulk_rows_max: u64,
    pub(super) shared: Arc<Shared>,
    /// The number of each writer's next transaction.
    next: BTreeMap<u64, u64>,
    tasks: JoinSet<(u64, u64)>,
}

impl Load {
    pub(super) fn new(publisher: &Database, selection: &Selection, seed: u64, bulk_rows_max: u64) -> Self {
        let next =
            (0..crash::WRITERS).chain([SAVEPOINT_WRITER, BULK_WRITER]).map(|writer| (writer, 1)).collect();
        Self {
            publisher: publisher.clone(),
            selection: selection.clone(),
            seed,
            bulk_rows_max,
            shared: Arc::default(),
            next,
            tasks: JoinSet::new(),
        }
    }

    /// Starts the writers, each at the transaction after its last.
    pub(super) fn start(&mut self) {
        self.shared.stop.store(false, Ordering::Relaxed);
        for (&writer, &number) in &self.next {
            let seed = self.seed ^ (writer + 1).rotate_left(32) ^ number;
            let writer = Writer {
                id: writer,
                number,
                random: StdRng::seed_from_u64(seed),
                publisher: self.publisher.clone(),
                selection: self.selection.clone(),
                bulk_rows_max: self.bulk_rows_max,
                shared: Arc::clone(&self.shared),
            };
            self.tasks.spawn(writer.run());
        }
    }

    /// Stops the writers, and waits until each has ended its transaction.
    pub(super) async fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            let (writer, number) = ended.expect("a writer has panicked");
            self.next.insert(writer, number);
        }
    }

    pub(super) fn told(&self) -> String {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        format!(
            "{} transactions, {} rows, {} rolled back",
            of(&self.shared.transactions),
            of(&self.shared.rows),
            of(&self.shared.rolled_back)
        )
    }
}

struct Writer {
    id: u64,
    /// Of its next transaction.
    number: u64,
    random: StdRng,
    publisher: Database,
    selection: Selection,
    bulk_rows_max: u64,
    shared: Arc<Shared>,
}

impl Writer {
    /// Writes until it is told to stop; returns its number and that of its next transaction.
    async fn run(mut self) -> (u64, u64) {
        let mut session = None;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let Some(connected) = &session else {
                session = self.publisher.try_session().await.ok();
                tokio::time::sleep(RECONNECT_INTERVAL).await;
                continue;
            };
            let (sql, rest) = match self.id {
                BULK_WRITER => self.bulk(),
                SAVEPOINT_WRITER => self.nested(),
                _ => (self.small(), PACE),
            };
            self.number += 1;
            let usable = tokio::time::timeout(STATEMENT_PATIENCE, self.write(connected, &sql)).await;
            if usable != Ok(true) {
                session = None;
            }
            self.rest(rest).await;
        }
        (self.id, self.number)
    }

    /// Rests, but not longer than until it is told to stop.
    async fn rest(&self, rest: Duration) {
        let until = tokio::time::Instant::now() + rest;
        while tokio::time::Instant::now() < until && !self.shared.stop.load(Ordering::Relaxed) {
            tokio::time::sleep(PACE.min(rest)).await;
        }
    }

    /// Runs a transaction; whether the session can be used further.
    async fn write(&self, session: &Session, sql: &str) -> bool {
        let shared = &self.shared;
        match session.client().simple_query(sql).await {
            Ok(messages) if sql.ends_with("COMMIT") => {
                let rows = messages.iter().map(|message| match message {
                    SimpleQueryMessage::CommandComplete(rows) => *rows,
                    _ => 0,
                });
                shared.transactions.fetch_add(1, Ordering::Relaxed);
                shared.rows.fetch_add(rows.sum(), Ordering::Relaxed);
                true
            }
            Ok(_) => {
                shared.rolled_back.fetch_add(1, Ordering::Relaxed);
                true
            }
            // Writers deadlock, run into each other's keys, or lose the server: that is part of the mix.
            Err(_) => {
                shared.rolled_back.fetch_add(1, Ordering::Relaxed);
                session.batch("ROLLBACK").await.is_ok()
            }
        }
    }

    fn begin(&self) -> String {
        let (writer, number) = (self.id, self.number);
        format!(
            "BEGIN; INSERT INTO transaction_counter VALUES ({writer}, {number}); \
             UPDATE applied SET count = count + 1 WHERE writer = {writer}; "
        )
    }

    fn small(&mut self) -> String {
        let mut sql = self.begin();
        for step in 0..self.random.random_range(1..6) {
            let rolls_back = self.random.random_range(0..20) == 0;
            let change = self.change(self.number * 10 + step);
            if rolls_back {
                let _ = write!(sql, "SAVEPOINT s; {change} ROLLBACK TO s; ");
            } else {
                sql.push_str(&change);
            }
        }
        sql.push_str(if self.random.random_range(0..10) > 0 { "COMMIT" } else { "ROLLBACK" });
        sql
    }

    /// One statement or a few. `unique` is this writer's alone.
    fn change(&mut self, unique: u64) -> String {
        let kinds = [
            Work::Mixed,
            Work::Mixed,
            Work::Mixed,
            Work::AllKey,
            Work::Upserts,
            Work::Doubles,
            Work::Zeros,
            Work::Unique,
            Work::Toast,
            Work::Wide,
            Work::Truncate,
            Work::Joined,
            Work::Joined,
        ];
        let kind = kinds[self.random.random_range(0..kinds.len())];
        if !self.selection.has(kind) {
            return String::new();
        }
        let id = unique * crash::WRITERS + self.id;
        let random = &mut self.random;
        match kind {
            Work::AllKey => all_key(id, random),
            Work::Upserts => upserts(self.id, unique, random),
            Work::Doubles => doubles(random),
            Work::Zeros => zeros(random),
            Work::Unique => unique_keys(id, random),
            Work::Toast => toast(random),
            Work::Wide => wide(self.shared.columns.load(Ordering::Relaxed), random),
            Work::Truncate => match random.random_range(0..30) {
                0 => "TRUNCATE cleared; ".to_owned(),
                _ => format!("INSERT INTO cleared VALUES ({id}, 'cleared soon'); "),
            },
            Work::Joined => joined(&self.shared.joined(), id, random),
            Work::Mixed | Work::Large | Work::Savepoints => crash::change(self.id, unique, random),
        }
    }

    /// A large transaction, and how long to rest after it.
    fn bulk(&mut self) -> (String, Duration) {
        let mut sql = self.begin();
        let chunk = self.chunk(self.number);
        let mut written = 0;
        if self.selection.has(Work::Large) {
            written = self.size();
            sql.push_str(&insert_bulk(chunk, 0, written));
            sql.push_str(&self.linger());
            match self.random.random_range(0..10) {
                0 => sql.push_str("TRUNCATE bulk_log; "),
                1..4 => {
                    let last = self.chunk(self.number.saturating_sub(1));
                    let _ = write!(sql, "UPDATE bulk SET n = n + 1 WHERE chunk = {last}; ");
                }
                _ => {}
            }
            sql.push_str(&self.delete_old());
        }
        let pace = self.random.random_range(BULK_PACE_MS);
        (self.end(sql), Duration::from_millis(200 + pace * written / 1000))
    }

    /// A transaction of subtransactions, one after the other or one within the other; two in three of them
    /// are rolled back.
    fn nested(&mut self) -> (String, Duration) {
        let mut sql = self.begin();
        if self.selection.has(Work::Savepoints) {
            let chunk = self.chunk(self.number);
            let mut written = self.random.random_range(0..2) * 2_000;
            sql.push_str(&insert_bulk(chunk, 0, written));
            let is_fat = self.random.random_range(0..2) == 0;
            let (insert, rows_max) = if is_fat {
                (insert_fat as Insert, 200)
            } else {
                (insert_bulk as Insert, SAVEPOINT_ROWS_MAX)
            };
            let is_nested = self.random.random_range(0..2) == 0;
            for savepoint in 0..self.random.random_range(1..4) {
                let rows = self.random.random_range(rows_max / 10..rows_max);
                let _ = write!(sql, "SAVEPOINT s{savepoint}; {}", insert(chunk, written, rows));
                written += rows;
                sql.push_str(&self.linger());
                if !is_nested {
                    sql.push_str(&self.end_savepoint(savepoint));
                }
            }
            if is_nested {
                sql.push_str(&self.end_savepoint(0));
            }
            sql.push_str(&insert_bulk(chunk, written, self.random.random_range(0..2_000)));
            sql.push_str(&self.delete_old());
        }
        (self.end(sql), SAVEPOINT_PACE)
    }

    /// The number that the rows of this writer's transaction have.
    fn chunk(&self, number: u64) -> u64 {
        number * 10 + self.id
    }

    fn delete_old(&self) -> String {
        let old = self.chunk(self.number.saturating_sub(CHUNKS_KEPT));
        let of = format!("WHERE chunk % 10 = {} AND chunk <= {old}", self.id);
        format!("DELETE FROM bulk {of}; DELETE FROM fat {of}; ")
    }

    fn end(&mut self, sql: String) -> String {
        sql + if self.random.random_range(0..8) > 0 { "COMMIT" } else { "ROLLBACK" }
    }

    /// Half of the time, the transaction stays open for a while: others commit, and faults strike within it.
    fn linger(&mut self) -> String {
        match self.random.random_range(0..2) {
            0 => String::new(),
            _ => format!("SELECT pg_sleep({:.2}); ", self.random.random_range(LINGER_SECONDS)),
        }
    }

    fn end_savepoint(&mut self, savepoint: u32) -> String {
        match self.random.random_range(0..3) {
            0 => format!("RELEASE s{savepoint}; "),
            _ => format!("ROLLBACK TO s{savepoint}; "),
        }
    }

    /// Rows of a large transaction: 2,000 to 200,000, small ones as likely as large ones.
    fn size(&mut self) -> u64 {
        let factor = 10_f64.powf(self.random.random_range(0.0..2.0));
        // Both ends are far from a float's limits.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 2,000 to 200,000")]
        let rows = (2_000.0 * factor) as u64;
        rows.min(self.bulk_rows_max)
    }
}

/// Makes the statement that inserts so many rows of a chunk, from a number on.
type Insert = fn(chunk: u64, from: u64, rows: u64) -> String;

fn insert_bulk(chunk: u64, from: u64, rows: u64) -> String {
    let (first, last) = (from + 1, from + rows);
    format!(
        "INSERT INTO bulk SELECT {chunk} * 1000000::bigint + n, {chunk}, n % 1000, repeat('b', (n % 50)::int) \
         FROM generate_series({first}, {last}) n; \
         INSERT INTO bulk_log SELECT {chunk}, n, 'log' FROM generate_series({first}, {last}, 20) n; "
    )
}

/// Rows of almost a page.
fn insert_fat(chunk: u64, from: u64, rows: u64) -> String {
    let (first, last) = (from + 1, from + rows);
    format!(
        "INSERT INTO fat SELECT {chunk} * 1000000::bigint + n, {chunk}, repeat('f', 7000) \
         FROM generate_series({first}, {last}) n; "
    )
}

fn all_key(id: u64, random: &mut StdRng) -> String {
    let a = random.random_range(1..200);
    match random.random_range(0..3) {
        0 => format!("INSERT INTO pair VALUES ({id}, {a}); "),
        1 => format!("UPDATE pair SET b = {id} WHERE a = {a}; "),
        _ => format!("DELETE FROM pair WHERE a > 200 AND a % 200 = {a}; "),
    }
}

/// An upsert that changes nothing: an UPDATE whose new row is the old one, on a table that is all key.
fn upserts(writer: u64, number: u64, random: &mut StdRng) -> String {
    let (a, rows) = (random.random_range(1..100), random.random_range(1..300));
    format!(
        "INSERT INTO upsert_log SELECT {writer}, {number}, n FROM generate_series(1, {rows}) n; \
         INSERT INTO upserted VALUES ({a}, {a}) ON CONFLICT (a, b) DO UPDATE SET a = excluded.a; "
    )
}

/// Rows without a key are told apart by all they hold, doubles included.
fn doubles(random: &mut StdRng) -> String {
    let value: f64 = random.random_range(-1.0..1.0);
    let offset = random.random_range(0..200);
    let some = format!("(SELECT ctid FROM measure OFFSET {offset} LIMIT 1)");
    match random.random_range(0..4) {
        0 => format!("INSERT INTO measure VALUES ({value:e}, {value:e}, 'new'), ({value:e}, 0, 'new'); "),
        1 => format!("UPDATE measure SET at = at / 3, small = small / 7 WHERE ctid = {some}; "),
        2 => format!("UPDATE measure SET note = note || '.' WHERE ctid = {some} AND length(note) < 20; "),
        _ => format!("DELETE FROM measure WHERE note = 'new' AND ctid = {some}; "),
    }
}

/// Zeros of both signs are equal to the server, and are not the same.
fn zeros(random: &mut StdRng) -> String {
    let zero = ["0", "-0"][random.random_range(0..2)];
    match random.random_range(0..3) {
        0 => format!("INSERT INTO measure VALUES ('{zero}', '{zero}', 'zero'); "),
        // The text tells the two apart, where comparison does not.
        1 => {
            format!("UPDATE measure SET note = note || '.' WHERE at::text = '{zero}' AND length(note) < 8; ")
        }
        _ => format!(
            "DELETE FROM measure WHERE ctid = (SELECT ctid FROM measure WHERE at::text = '{zero}' LIMIT 1); "
        ),
    }
}

/// Values that are unique go from one row to another within a transaction.
fn unique_keys(id: u64, random: &mut StdRng) -> String {
    let (a, b) = (random.random_range(1..100), random.random_range(1..100));
    match random.random_range(0..3) {
        0 if a != b => format!(
            "UPDATE seat SET place = -{id} WHERE id = {a}; \
             UPDATE seat SET place = {a} WHERE id = {b} AND NOT EXISTS (SELECT FROM seat WHERE place = {a}); \
             UPDATE seat SET place = {id} WHERE id = {a}; "
        ),
        1 => format!("UPDATE seat SET name = 'guest of {id}' WHERE id = {a}; "),
        _ => format!("DELETE FROM seat WHERE id = {a}; INSERT INTO seat VALUES ({a}, {id}, 'new {id}'); "),
    }
}

/// Large values, most of them left as they are.
fn toast(random: &mut StdRng) -> String {
    let id = random.random_range(1..=40);
    let words = random.random_range(1..600);
    let body = format!("(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, {words}))");
    match random.random_range(0..5) {
        0 => format!("UPDATE document SET body = {body} WHERE id = {id}; "),
        1 => format!("UPDATE document SET raw = decode({body}, 'hex') WHERE id = {id}; "),
        2 => format!(
            "DELETE FROM document WHERE id = {id}; INSERT INTO document VALUES ({id}, 'again', {body}, NULL); "
        ),
        _ => format!("UPDATE document SET title = 'title {words}' WHERE id = {id}; "),
    }
}

fn wide(columns: u32, random: &mut StdRng) -> String {
    let (id, value) = (random.random_range(1..=300), random.random_range(-1000..1000));
    if columns > 0 && random.random_range(0..2) == 0 {
        let column = random.random_range(1..=columns);
        return format!("UPDATE wide SET c{column} = {value} WHERE id = {id}; ");
    }
    format!("UPDATE wide SET n = {value}, v = 'v{value}' WHERE id = {id}; ")
}

fn joined(tables: &[String], id: u64, random: &mut StdRng) -> String {
    if tables.is_empty() {
        return String::new();
    }
    let table = &tables[random.random_range(0..tables.len())];
    let rows = random.random_range(1..20);
    match random.random_range(0..4) {
        0 => format!(
            "UPDATE {table} SET n = n + 1 WHERE ctid = (SELECT ctid FROM {table} OFFSET {rows} LIMIT 1); "
        ),
        1 => format!("DELETE FROM {table} WHERE ctid = (SELECT ctid FROM {table} LIMIT 1); "),
        _ => format!(
            "INSERT INTO {table} SELECT {id} * 1000 + n, n, 'written' FROM generate_series(1, {rows}) n; "
        ),
    }
}
