//! Crashes of the service: SIGKILL at random moments under load, and a transaction that is larger than
//! the memory limit.
//!
//! `PGSLUICE_SEED` replays a run's choices, `PGSLUICE_KILLS` sets the number of kills (few in the test
//! suite, many in `scripts/soak`), and `PGSLUICE_ROWS` the size of the large transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pgsluice::demo::Session;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::support::database::Database;
use crate::support::service::Service;
use crate::support::wait::until_within;
use crate::support::world::World;

const KILLS_DEFAULT: u64 = 8;
/// Sessions that write on the publisher.
pub(crate) const WRITERS: u64 = 2;
/// The service lives so long between two kills.
const LIFE_MS: std::ops::Range<u64> = 10..1_000;
/// Pause of a writer between two transactions, so that a debug build on a busy machine keeps up.
const PACE: Duration = Duration::from_millis(3);
const CATCH_UP: Duration = Duration::from_mins(3);

/// pgbench's tables, a table whose keys move, one without a key, and a counter: one row a
/// transaction, without a key, so that a second application would leave a second row.
pub(crate) const TABLES: &str = "\
    CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL, filler text); \
    CREATE TABLE teller (id int PRIMARY KEY, balance bigint NOT NULL, UNIQUE (balance, id)); \
    CREATE TABLE history (id bigint PRIMARY KEY, account int, delta int, at timestamptz DEFAULT now()); \
    CREATE TABLE moving (id int PRIMARY KEY, note text); \
    CREATE TABLE keyless (a int, b text); \
    ALTER TABLE keyless REPLICA IDENTITY FULL; \
    CREATE TABLE transaction_counter (writer int, number bigint); \
    CREATE TABLE applied (writer int PRIMARY KEY, count bigint NOT NULL)";
const COMPARED: [&str; 7] =
    ["account", "teller", "history", "moving", "keyless", "transaction_counter", "applied"];
pub(crate) const ROWS: &str = "\
    INSERT INTO account SELECT n, 1000, repeat('x', 80) FROM generate_series(1, 2000) n; \
    INSERT INTO teller SELECT n, n FROM generate_series(1, 50) n; \
    INSERT INTO moving SELECT n, 'start' FROM generate_series(1, 300) n; \
    INSERT INTO keyless SELECT n % 10, 'same' FROM generate_series(1, 60) n; \
    INSERT INTO applied SELECT n, 0 FROM generate_series(0, 9) n";

/// A number from the environment.
pub(crate) fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {value}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_by_kills_at_random_moments() {
    let seed = number("PGSLUICE_SEED").unwrap_or_else(rand::random);
    let kills = number("PGSLUICE_KILLS").unwrap_or(KILLS_DEFAULT);
    println!("PGSLUICE_SEED={seed} PGSLUICE_KILLS={kills} replays this run's choices");
    let world = World::builder().both_sql(TABLES).publisher_sql(ROWS).start().await;
    let load = Load::start(&world.publisher, seed);
    let mut random = StdRng::seed_from_u64(seed);
    for kill in 0..kills {
        // The first quarter of the kills falls into start-up, copy and catching up, the rest into
        // streaming.
        let service = world.run();
        if kill == kills / 4 {
            wait_tables_ready(&world).await;
        } else if kill > kills / 4 {
            until_within(CATCH_UP, "it streams", async || service.log().contains("streaming")).await;
        }
        // This is not synchronisation: the moment of the kill is random.
        tokio::time::sleep(Duration::from_millis(random.random_range(LIFE_MS))).await;
        service.kill9().await;
        assert!(load.is_running(), "a writer has ended early, at kill {kill}");
    }
    let (transactions, rolled_back) = load.stop().await;
    let began = Instant::now();
    let service = world.run();
    wait_tables_ready(&world).await;
    world.wait_caught_up_within(CATCH_UP).await;
    println!(
        "{kills} kills, {transactions} transactions ({rolled_back} rolled back), caught up in {:.1} s",
        began.elapsed().as_secs_f64()
    );
    for table in COMPARED {
        world.assert_same_rows(table).await;
    }
    assert_counted_once(&world).await;
    let conflicts = "SELECT count(*) FROM pgsluice.conflict";
    assert_eq!(world.target.value(conflicts).await.as_deref(), Some("0"));
    assert_eq!(service.sigterm().await, 0);
}

async fn wait_tables_ready(world: &World) {
    let waiting = "SELECT source_table, state, error FROM pgsluice.table_sync WHERE state <> 'ready'";
    world.wait_state_within(CATCH_UP, "streaming").await;
    until_within(CATCH_UP, "every table is synchronised", async || {
        let waiting = world.target.lines(waiting).await;
        if waiting.is_empty() { Ok(()) } else { Err(format!("{waiting:?}")) }
    })
    .await;
}

/// Checks that every transaction left one row in `transaction_counter` and increased its writer's count
/// by one.
async fn assert_counted_once(world: &World) {
    let doubled =
        "SELECT writer, number, count(*) FROM transaction_counter GROUP BY 1, 2 HAVING count(*) > 1";
    assert_eq!(world.target.lines(doubled).await, [""; 0], "a transaction was applied twice");
    let uneven = "SELECT a.writer, a.count, count(c.number) FROM applied a \
                  LEFT JOIN transaction_counter c USING (writer) GROUP BY 1, 2 HAVING a.count <> count(c.number)";
    assert_eq!(world.target.lines(uneven).await, [""; 0], "a transaction was lost");
}

/// Writers on the publisher.
struct Load {
    stop: Arc<AtomicBool>,
    transactions: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<u64>>,
}

impl Load {
    fn start(publisher: &Database, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let transactions = Arc::new(AtomicU64::new(0));
        let tasks = (0..WRITERS)
            .map(|writer| {
                let random = StdRng::seed_from_u64(seed ^ (writer + 1).rotate_left(32));
                let (publisher, stop) = (publisher.clone(), Arc::clone(&stop));
                let transactions = Arc::clone(&transactions);
                tokio::spawn(async move {
                    let session = publisher.session().await;
                    write(&session, writer, random, &stop, &transactions).await
                })
            })
            .collect();
        Self { stop, transactions, tasks }
    }

    fn is_running(&self) -> bool {
        self.tasks.iter().all(|task| !task.is_finished())
    }

    /// Ends the writers and returns the numbers of transactions that committed and that rolled back.
    async fn stop(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let mut rolled_back = 0;
        for task in self.tasks {
            rolled_back += task.await.unwrap();
        }
        (self.transactions.load(Ordering::Relaxed), rolled_back)
    }
}

async fn write(
    session: &Session,
    writer: u64,
    mut random: StdRng,
    stop: &AtomicBool,
    transactions: &AtomicU64,
) -> u64 {
    let (mut number, mut rolled_back) = (0_u64, 0_u64);
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        tokio::time::sleep(PACE).await;
        let mut sql = format!(
            "BEGIN; INSERT INTO transaction_counter VALUES ({writer}, {number}); \
             UPDATE applied SET count = count + 1 WHERE writer = {writer}; "
        );
        for step in 0..random.random_range(1..6) {
            sql.push_str(&change(writer, number * 10 + step, &mut random));
        }
        let ends_well = random.random_range(0..10) > 0;
        sql.push_str(if ends_well { "COMMIT" } else { "ROLLBACK" });
        match session.batch(&sql).await {
            Ok(()) if ends_well => {
                transactions.fetch_add(1, Ordering::Relaxed);
            }
            Ok(()) => rolled_back += 1,
            // Writers may deadlock or use the same keys, which is intended.
            Err(_) => {
                rolled_back += 1;
                session.batch("ROLLBACK").await.unwrap();
            }
        }
    }
    rolled_back
}

/// One statement. Writers share accounts and `keyless`; keys that must not clash are their own.
pub(crate) fn change(writer: u64, unique: u64, random: &mut StdRng) -> String {
    let id = unique * WRITERS + writer;
    let account = random.random_range(1..=2000);
    let delta: i32 = random.random_range(-500..500);
    match random.random_range(0..100) {
        0..30 => format!(
            "UPDATE account SET balance = balance + {delta} WHERE id = {account}; \
             INSERT INTO history VALUES ({id}, {account}, {delta}); "
        ),
        30..45 => format!("UPDATE teller SET balance = balance + {delta} WHERE id = {}; ", account % 50 + 1),
        45..60 => format!(
            "UPDATE moving SET id = {}, note = 'moved {id}' WHERE id = (SELECT min(id) FROM moving WHERE id % {WRITERS} = {writer}); ",
            1000 * WRITERS + id
        ),
        60..70 => format!(
            "DELETE FROM history WHERE id IN (SELECT id FROM history WHERE id % {WRITERS} = {writer} ORDER BY id LIMIT 3); "
        ),
        70..80 => format!(
            "DELETE FROM account WHERE id = {account}; INSERT INTO account VALUES ({account}, {delta}, 'new'); "
        ),
        80..90 => format!("INSERT INTO keyless VALUES ({}, 'same'); ", account % 10),
        90..95 => format!(
            "DELETE FROM keyless WHERE ctid = (SELECT ctid FROM keyless WHERE a = {} LIMIT 1); ",
            account % 10
        ),
        95..98 => format!(
            "INSERT INTO history SELECT {id} * 100000 + n, {account}, n FROM generate_series(1, 400) n; "
        ),
        _ => format!(
            "UPDATE account SET filler = repeat('y', 3000) WHERE id BETWEEN {account} AND {account} + 20; "
        ),
    }
}

const ROWS_DEFAULT: u64 = 200_000;
/// Limit of resident memory, which holds for transactions of any size.
const RSS_KIB_MAX: u64 = 128 * 1024;

#[tokio::test]
async fn a_large_transaction_streams_through_in_bounded_memory() {
    let rows = number("PGSLUICE_ROWS").unwrap_or(ROWS_DEFAULT);
    let world = World::builder()
        .both_sql("CREATE TABLE big (id bigint PRIMARY KEY, a int, b text, c timestamptz)")
        .start()
        .await;
    let service = world.run_with(&[("RUST_LOG", "info")]);
    world.wait_state("streaming").await;
    let before = peak_rss_kib(&service);
    let insert = format!(
        "INSERT INTO big SELECT n, n % 1000, 'row number ' || n || repeat('.', 60), now() FROM generate_series(1, {rows}) n"
    );
    world.publisher.exec(insert).await;
    let began = Instant::now();
    let count = "SELECT count(*) FROM big";
    // The rows become visible together, because they are one transaction on the target, too.
    until_within(Duration::from_mins(15), "the large transaction is applied", async || {
        let seen = world.target.value(count).await.unwrap();
        assert!(seen == "0" || seen == rows.to_string(), "{seen} of {rows} rows are visible");
        if seen == "0" { Err(seen) } else { Ok(()) }
    })
    .await;
    let took = began.elapsed().as_secs_f64();
    world.wait_caught_up().await;
    let peak = peak_rss_kib(&service);
    println!("{rows} rows in one transaction: {took:.1} s, peak RSS {peak} KiB ({before} KiB before)");
    assert!(peak < RSS_KIB_MAX, "{peak} KiB");
    let sum = "SELECT sum(id), sum(a), sum(length(b)), sum(extract(epoch FROM c)) FROM big";
    assert_eq!(world.target.lines(sum).await, world.publisher.lines(sum).await);
    assert_eq!(service.sigterm().await, 0);
}

/// `VmHWM`: the most that was ever resident.
pub(crate) fn peak_rss_kib(service: &Service) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
