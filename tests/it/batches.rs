//! Batches are an optimisation: they give the same rows as applying row by row, and a conflict in the
//! middle of a thousand good transactions is found at the change that causes it.

use std::time::Duration;

use crate::support::proxy::DelayingProxy;
use crate::support::world::{Servers, TARGET_ROLE, World, conninfo_through};

/// Number of transactions in a batch, including the offending one.
const TRANSACTIONS: u32 = 1000;
const OFFENDER: u32 = 500;

/// A conflict, its set-up and its resolution.
struct Case {
    kind: &'static str,
    /// Columns beside `id int primary key`.
    columns: &'static str,
    /// Constraints that only the target has.
    target_only: &'static str,
    /// Rows that exist before the changes.
    rows: &'static str,
    /// Statements that change the target's rows without the publisher.
    diverge: &'static str,
    /// The transaction that changes row `i` (a PL/pgSQL variable).
    change: &'static str,
    fix: &'static str,
}

const CASES: &[Case] = &[
    Case {
        kind: "insert_exists",
        columns: "a text",
        target_only: "",
        rows: "SELECT WHERE false",
        diverge: "INSERT INTO t VALUES (500, 'local')",
        change: "INSERT INTO t VALUES (i, 'remote')",
        fix: "DELETE FROM t WHERE id = 500",
    },
    Case {
        kind: "update_missing",
        columns: "a text",
        target_only: "",
        rows: "SELECT g, 'old' FROM generate_series(1, 1000) g",
        diverge: "DELETE FROM t WHERE id = 500",
        change: "UPDATE t SET a = 'new' WHERE id = i",
        fix: "INSERT INTO t VALUES (500, 'back')",
    },
    Case {
        kind: "delete_missing",
        columns: "a text",
        target_only: "",
        rows: "SELECT g, 'old' FROM generate_series(1, 1000) g",
        diverge: "DELETE FROM t WHERE id = 500",
        change: "DELETE FROM t WHERE id = i",
        fix: "INSERT INTO t VALUES (500, 'back')",
    },
    Case {
        kind: "update_exists",
        columns: "a text",
        target_only: "ALTER TABLE t ADD UNIQUE (a)",
        rows: "SELECT g, 'old ' || g FROM generate_series(1, 1000) g",
        diverge: "INSERT INTO t VALUES (5000, 'new 500')",
        change: "UPDATE t SET a = 'new ' || i WHERE id = i",
        fix: "DELETE FROM t WHERE id = 5000",
    },
    Case {
        kind: "multiple_unique_conflicts",
        columns: "a text",
        target_only: "ALTER TABLE t ADD UNIQUE (a)",
        rows: "SELECT WHERE false",
        diverge: "INSERT INTO t VALUES (500, 'one'), (5000, 'new 500')",
        change: "INSERT INTO t VALUES (i, 'new ' || i)",
        fix: "DELETE FROM t WHERE id IN (500, 5000)",
    },
    Case {
        kind: "constraint_violation",
        columns: "n int",
        target_only: "ALTER TABLE t ADD CONSTRAINT no_round_number CHECK (n <> 500)",
        rows: "SELECT WHERE false",
        diverge: "SELECT",
        change: "INSERT INTO t VALUES (i, i)",
        fix: "ALTER TABLE t DROP CONSTRAINT no_round_number",
    },
    Case {
        kind: "value_error",
        columns: "a text",
        target_only: "ALTER TABLE t ALTER COLUMN a TYPE varchar(8)",
        rows: "SELECT WHERE false",
        diverge: "SELECT",
        change: "INSERT INTO t VALUES (i, repeat('x', CASE i WHEN 500 THEN 9 ELSE 8 END))",
        fix: "ALTER TABLE t ALTER COLUMN a TYPE text",
    },
];

#[tokio::test]
async fn a_conflict_within_a_batch_commits_what_came_before_and_names_its_change() {
    for case in CASES {
        println!("{}", case.kind);
        within_a_batch(case).await;
    }
}

async fn within_a_batch(case: &Case) {
    let create = format!("CREATE TABLE t (id int PRIMARY KEY, {})", case.columns);
    let world = World::builder()
        .both_sql(&create)
        .target_sql(case.target_only)
        .publisher_sql(&if case.rows.starts_with("SELECT WHERE") {
            "SELECT".to_owned()
        } else {
            format!("INSERT INTO t {}", case.rows)
        })
        .start()
        .await;
    let service = world.run();
    world.wait_state("streaming").await;
    // Changes made while the service is stopped arrive together, and are applied as sets.
    assert_eq!(service.sigterm().await, 0);
    world.target.exec(case.diverge).await;
    world
        .publisher
        .exec(format!(
            "DO $$ BEGIN FOR i IN 1..{TRANSACTIONS} LOOP {}; COMMIT; END LOOP; END $$",
            case.change
        ))
        .await;
    let _service = world.run();

    let conflict = world.wait_conflict().await;
    assert_eq!(conflict["kind"], case.kind, "{conflict:#}");
    assert_eq!(conflict["change_index"], 1, "{conflict:#}");
    assert_eq!(conflict["change_count"], 1, "{conflict:#}");
    assert_eq!(conflict["key"]["id"], OFFENDER.to_string(), "{conflict:#}");
    let applied = world
        .target
        .value("SELECT transactions FROM pgsluice.progress")
        .await
        .and_then(|count| count.parse::<u32>().ok());
    assert_eq!(applied, Some(OFFENDER - 1), "everything before the offender is committed, nothing after");

    world.target.exec(case.fix).await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_caught_up().await;
    if case.kind == "update_missing" {
        world.target.exec("UPDATE t SET a = 'new' WHERE id = 500 AND a = 'back'").await;
    }
    world.wait_same_rows("t").await;
    let applied = world.target.value("SELECT transactions FROM pgsluice.progress").await;
    assert_eq!(applied, Some(TRANSACTIONS.to_string()), "{}: each transaction once", case.kind);
}

#[tokio::test]
async fn a_transaction_too_large_to_keep_is_all_or_nothing_and_its_offender_is_found() {
    let world = World::builder().both_sql("CREATE TABLE t (id int PRIMARY KEY, a text)").start().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    world.target.exec("INSERT INTO t VALUES (20000, 'local')").await;
    world.publisher.exec("INSERT INTO t VALUES (0, 'before')").await;
    world.publisher.exec("INSERT INTO t SELECT g, repeat('x', 40) FROM generate_series(1, 30000) g").await;
    world.publisher.exec("INSERT INTO t VALUES (30001, 'after')").await;

    let conflict = world.wait_conflict().await;
    assert_eq!(conflict["kind"], "insert_exists");
    assert_eq!(conflict["change_index"], 20000, "{conflict:#}");
    assert_eq!(conflict["change_count"], 30000, "{conflict:#}");
    assert_eq!(
        world.target.lines("SELECT id, a FROM t ORDER BY id").await,
        ["0|before", "20000|local"],
        "all before it, nothing of it"
    );

    world.target.exec("DELETE FROM t WHERE id = 20000").await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_same_rows("t").await;
}

/// Number of rows of a transaction that is copied, unless the target seems to be far away.
const MANY: u32 = 15_000;

/// Environment of a service that logs how new rows are written.
const TELLING: &[(&str, &str)] = &[("RUST_LOG", "info,pgsluice::apply=trace")];

fn went_by_copy(log: &str, format: &str) -> bool {
    log.lines().any(|line| line.contains("new rows go by COPY") && line.contains(&format!("format={format}")))
}

/// New rows may be in either format and hold special characters. A row that exists already is found,
/// and everything before its transaction is committed.
#[tokio::test]
async fn many_new_rows_go_by_copy_and_one_that_conflicts_is_found() {
    for (binary, format) in [("auto", "binary"), ("off", "text")] {
        let world = World::builder()
            .both_sql("CREATE TABLE t (id int PRIMARY KEY, a text, at timestamptz, tags text[])")
            .subscription_line(&format!("binary = \"{binary}\""))
            .start()
            .await;
        world.take_up().await;
        world.target.exec("INSERT INTO t VALUES (34567, 'local')").await;
        world
            .publisher
            .exec(format!(
                "DO $$ BEGIN FOR i IN 0..3 LOOP INSERT INTO t SELECT i * {MANY} + n, \
                     CASE n % 3 WHEN 0 THEN E'a\\tb\\nc\\\\N\\r' WHEN 1 THEN '' END, now(), ARRAY['x,y', NULL, n::text] \
                     FROM generate_series(1, {MANY}) n; COMMIT; END LOOP; END $$"
            ))
            .await;
        let service = world.run_with(TELLING);
        let conflict = world.wait_conflict().await;
        assert!(went_by_copy(&service.log(), format), "{}", service.log());
        assert_eq!(conflict["kind"], "insert_exists", "{conflict:#}");
        assert_eq!(conflict["key"]["id"], "34567", "{conflict:#}");
        assert_eq!(conflict["change_index"], 4567, "{conflict:#}");
        let before = world
            .target
            .value("SELECT count(*) || ' ' || max(id) FROM t WHERE a IS DISTINCT FROM 'local'")
            .await;
        assert_eq!(before.as_deref(), Some("30000 30000"), "all before its transaction, nothing of it");
        world.target.exec("DELETE FROM t WHERE id = 34567").await;
        world.pgsluice(&["resume", &world.subscription]).await.expect(0);
        world.wait_same_rows("t").await;
    }
}

/// A text may enter a column of another type, but not in that type's binary form, so such rows are
/// passed as arrays.
#[tokio::test]
async fn many_new_rows_that_no_copy_takes_still_go_in_sets() {
    let world = World::builder()
        .publisher_sql("CREATE TABLE t (id int PRIMARY KEY, mood text)")
        .target_sql(
            "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE TABLE t (id int PRIMARY KEY, mood mood)",
        )
        .start()
        .await;
    let service = world.run_with(TELLING);
    world.wait_state("streaming").await;
    world
        .publisher
        .exec(format!(
            "INSERT INTO t SELECT n, CASE n % 2 WHEN 0 THEN 'glad' ELSE 'sad' END \
             FROM generate_series(1, {MANY}) n"
        ))
        .await;
    world.wait_same_rows("t").await;
    let log = service.log();
    assert!(log.contains("values=Binary") && !log.contains("row by row"), "{log}");
}

/// A statement that fails before a COPY in its transaction keeps the server from beginning the COPY.
#[tokio::test]
async fn a_copy_that_is_not_begun_loses_nothing() {
    for binary in ["auto", "off"] {
        let world = World::builder()
            .both_sql("CREATE TABLE t (id int PRIMARY KEY, a text)")
            .publisher_sql("INSERT INTO t VALUES (0, 'old')")
            .subscription_line(&format!("binary = \"{binary}\""))
            .start()
            .await;
        world.take_up().await;
        world.target.exec("DELETE FROM t WHERE id = 0").await;
        world.publisher.exec("INSERT INTO t VALUES (1, 'before')").await;
        world
            .publisher
            .exec(format!(
                "BEGIN; DELETE FROM t WHERE id = 0; INSERT INTO t SELECT n, 'new' FROM generate_series(2, {MANY}) n; \
                 COMMIT; INSERT INTO t SELECT n, 'after' FROM generate_series({MANY} + 1, 2 * {MANY}) n"
            ))
            .await;
        let service = world.run_with(TELLING);
        let conflict = world.wait_conflict().await;
        assert!(service.log().contains("new rows go by COPY"), "{}", service.log());
        assert_eq!(conflict["kind"], "delete_missing", "{conflict:#}");
        assert_eq!(world.target.lines("SELECT id, a FROM t").await, ["1|before"]);
        world.target.exec("INSERT INTO t VALUES (0, 'back')").await;
        world.pgsluice(&["resume", &world.subscription]).await.expect(0);
        world.wait_same_rows("t").await;
    }
}

/// Rows with neighbouring keys are found by one range scan of the index, in slices and in whole
/// transactions, for each integer type and each format. A row that is missing among them is found.
#[tokio::test]
async fn neighbouring_rows_are_found_as_one_range_and_one_that_is_missing_is_told() {
    for binary in ["auto", "off"] {
        let world = World::builder()
            .both_sql("CREATE TABLE big (id bigint PRIMARY KEY, a text, n int)")
            .both_sql("CREATE TABLE small (id smallint PRIMARY KEY, a text, n int)")
            .both_sql("CREATE TABLE ours (id int PRIMARY KEY, a text, n int)")
            .publisher_sql(
                "INSERT INTO big SELECT n, 'a', n FROM generate_series(-25000, 25000) n WHERE n % 4 <> 0",
            )
            .publisher_sql(
                "INSERT INTO small SELECT n, 'a', n FROM generate_series(1, 3000) n WHERE n % 4 <> 0",
            )
            .publisher_sql(
                "INSERT INTO ours SELECT n, 'a', n FROM generate_series(1, 3000) n WHERE n % 4 <> 0",
            )
            .subscription_line(&format!("binary = \"{binary}\""))
            .start()
            .await;
        let service = world.run();
        world.wait_state("streaming").await;
        let publisher = &world.publisher;
        for table in ["big", "small", "ours"] {
            for change in [
                format!("UPDATE {table} SET a = 'b', n = n + 1"),
                format!("UPDATE {table} SET a = NULL WHERE id % 4 <> 1"),
                format!("DELETE FROM {table} WHERE id < 2000"),
                format!(
                    "BEGIN; INSERT INTO {table} VALUES (4, 'new'); UPDATE {table} SET n = 0 WHERE id > 4; COMMIT"
                ),
            ] {
                publisher.exec(change).await;
                world.wait_caught_up().await;
            }
        }
        for table in ["big", "small", "ours"] {
            world.wait_same_rows(table).await;
            let told = "SELECT CASE WHEN n_tup_del > 0 THEN idx_scan END FROM pg_stat_user_tables WHERE relname = 'TABLE'"
                .replace("TABLE", table);
            let scans = crate::support::wait::until("the target counts its scans", async || {
                // Before 15, a session reports its statistics only with its next transaction.
                publisher.exec("UPDATE big SET n = n WHERE id = 4").await;
                world.target.value(&told).await.ok_or("not yet")
            })
            .await;
            let scans: u32 = scans.parse().unwrap();
            assert!(scans < 1000, "rows of {table} were found by {scans} looks into its index");
        }

        world.target.exec("DELETE FROM ours WHERE id = 2601").await;
        publisher.exec("UPDATE small SET n = -1").await;
        publisher.exec("UPDATE ours SET n = -1").await;
        let conflict = world.wait_conflict().await;
        assert_eq!(conflict["kind"], "update_missing", "{conflict:#}");
        assert_eq!(conflict["key"]["id"], "2601", "{conflict:#}");
        assert_eq!(
            world.target.value("SELECT count(*) FROM small WHERE n <> -1").await.as_deref(),
            Some("0")
        );
        assert_eq!(world.target.value("SELECT count(*) FROM ours WHERE n = -1").await.as_deref(), Some("0"));
        drop(service);
    }
}

/// Order matters among rows that share a unique value, within one batch, too.
#[tokio::test]
async fn values_that_move_between_rows_end_where_the_publisher_has_them() {
    let world = World::builder()
        .both_sql("CREATE TABLE t (id int PRIMARY KEY, a text UNIQUE, n int)")
        .both_sql("CREATE TABLE plain (id int PRIMARY KEY, a text, n int)")
        .publisher_sql("INSERT INTO t SELECT g, 'v' || g, 0 FROM generate_series(1, 100) g")
        .publisher_sql("INSERT INTO plain SELECT g, 'v' || g, 0 FROM generate_series(1, 100) g")
        .start()
        .await;
    world.take_up().await;
    for table in ["t", "plain"] {
        let publisher = &world.publisher;
        // A unique value is freed by an update and by a delete, and taken by an insert.
        publisher.exec(format!("BEGIN; UPDATE {table} SET a = 'free' WHERE id = 1; INSERT INTO {table} VALUES (201, 'v1', 1); COMMIT")).await;
        publisher
            .exec(format!(
                "BEGIN; DELETE FROM {table} WHERE id = 2; INSERT INTO {table} VALUES (202, 'v2', 1); COMMIT"
            ))
            .await;
        // Two rows exchange their values through a third one.
        publisher.exec(format!("BEGIN; UPDATE {table} SET a = 'x' WHERE id = 3; UPDATE {table} SET a = 'v3' WHERE id = 4; UPDATE {table} SET a = 'v4' WHERE id = 3; COMMIT")).await;
        // One key goes through every kind of change, keys move, and a deleted row is inserted again.
        publisher.exec(format!("BEGIN; INSERT INTO {table} VALUES (300, 'p', 1); UPDATE {table} SET n = 2 WHERE id = 300; DELETE FROM {table} WHERE id = 300; INSERT INTO {table} VALUES (300, 'q', 3); COMMIT")).await;
        publisher.exec(format!("BEGIN; DELETE FROM {table} WHERE id = 5; INSERT INTO {table} VALUES (5, 'v5', 9); UPDATE {table} SET n = n + 1 WHERE id = 5; COMMIT")).await;
        publisher.exec(format!("UPDATE {table} SET id = id + 1000 WHERE id BETWEEN 50 AND 60")).await;
        publisher
            .exec(format!("INSERT INTO {table} VALUES (400, 'gone', 1); DELETE FROM {table} WHERE id = 400"))
            .await;
        publisher
            .exec(format!("UPDATE {table} SET n = n + 1; UPDATE {table} SET n = n * 2 WHERE id % 2 = 0"))
            .await;
    }
    let _service = world.run();
    world.wait_same_rows("t").await;
    world.wait_same_rows("plain").await;
}

/// Of several equal rows each change affects one, NULL equals NULL, and a row that a change produces is
/// found by the next change. This holds with sets and for tables to which sets do not apply.
#[tokio::test]
async fn rows_without_a_key_are_found_by_all_they_hold() {
    let tables = ["whole", "watched"];
    let columns = "(a int, b text, c numeric(6,2), d timestamptz)";
    let mut builder = World::builder();
    for table in tables {
        builder = builder
            .both_sql(&format!("CREATE TABLE {table} {columns}"))
            .publisher_sql(&format!("ALTER TABLE {table} REPLICA IDENTITY FULL"))
            .publisher_sql(&format!(
                "INSERT INTO {table} SELECT g % 500, CASE WHEN g % 3 > 0 THEN 'b' || g % 7 END, \
                    CASE WHEN g % 4 > 0 THEN g % 10 END, CASE WHEN g % 5 > 0 THEN timestamptz '2024-01-01' END \
                 FROM generate_series(1, 3000) g; INSERT INTO {table} VALUES (NULL, NULL, NULL, NULL), \
                    (NULL, NULL, NULL, NULL), (NULL, NULL, NULL, NULL)"
            ));
    }
    let world = builder.target_sql("CREATE UNIQUE INDEX ON watched ((a + 1)) WHERE a > 100000").start().await;
    world.take_up().await;
    for table in tables {
        let one = |condition: &str| {
            format!("ctid = (SELECT ctid FROM {table} WHERE {condition} ORDER BY ctid LIMIT 1)")
        };
        for sql in [
            format!("DELETE FROM {table} WHERE a % 10 = 3"),
            format!("DELETE FROM {table} WHERE {}", one("a IS NULL")),
            format!("UPDATE {table} SET b = 'first' WHERE {}", one("a IS NULL")),
            format!("UPDATE {table} SET b = 'second' WHERE {}", one("b = 'first'")),
            format!("UPDATE {table} SET c = c + 1, d = NULL WHERE a % 2 = 0"),
            format!("BEGIN; UPDATE {table} SET a = a + 1; UPDATE {table} SET a = a - 1; COMMIT"),
            format!("INSERT INTO {table} VALUES (7, 'x', 1, NULL), (7, 'x', 1, NULL), (7, 'x', 1.00, NULL)"),
            format!("DELETE FROM {table} WHERE {}", one("b = 'x'")),
            format!("UPDATE {table} SET c = 2 WHERE {}", one("b = 'x'")),
        ] {
            world.publisher.exec(sql).await;
        }
    }
    let service = world.run();
    for table in tables {
        world.wait_same_rows(table).await;
    }
    assert!(!service.log().contains("batch rolled back"), "{}", service.log());
    let view = world.status().await.unwrap();
    let because = |table: &str| {
        let tables = view.json["tables"].as_array().unwrap();
        let found = tables.iter().find(|status| status["source"] == format!("public.{table}")).unwrap();
        found["exact_because"].as_str().map(str::to_owned)
    };
    assert_eq!(because("whole"), None);
    assert!(because("watched").is_some_and(|because| because.contains("no key")), "{:#}", view.json);
}

/// Batches are sent while earlier ones are being applied, so the distance to the target costs latency
/// and not speed.
///
/// The time is measured on the target between the first and the last row. This is not a benchmark
/// (`scripts/bench` is): the bound is wide for busy machines, and only detects that every transaction
/// or batch waited for the target's answer (10,000 transactions would then take minutes).
#[tokio::test]
async fn a_distant_target_costs_latency_but_hardly_speed() {
    let world = World::builder()
        .servers(Servers::Separate)
        .publisher_sql("CREATE TABLE t (id int PRIMARY KEY, a text)")
        .target_sql("CREATE TABLE t (id int PRIMARY KEY, a text, at timestamptz DEFAULT clock_timestamp())")
        .start()
        .await;
    let near = catch_up(&world, 0, None).await;
    let proxy = DelayingProxy::start(world.target.port, Duration::from_millis(10)).await;
    let far = catch_up(&world, 1, Some(&proxy)).await;
    println!("10,000 transactions went in within {near} s near by, {far} s with a round trip of 20 ms");
    assert!(far < near * 3.0 + 4.0, "{near} s near by, {far} s far away");
}

/// Seconds from the first row of 10,000 transactions to the last.
async fn catch_up(world: &World, run: u32, through: Option<&DelayingProxy>) -> f64 {
    world.take_up().await;
    let (first, last) = (run * 10_000 + 1, (run + 1) * 10_000);
    world
        .publisher
        .exec(format!(
            "DO $$ BEGIN FOR i IN {first}..{last} LOOP INSERT INTO t VALUES (i, repeat('x', 30)); COMMIT; \
             END LOOP; END $$"
        ))
        .await;
    let url = through.map(|proxy| conninfo_through(&world.target, TARGET_ROLE, proxy.port()));
    let environment: Vec<(&str, &str)> =
        url.iter().map(|url| ("PGSLUICE__TARGET__URL", url.as_str())).collect();
    let service = world.run_with(&environment);
    world.wait_same_rows("t").await;
    assert_eq!(service.sigterm().await, 0);
    let span = format!(
        "SELECT extract(epoch FROM max(at) - min(at))::float8 FROM t WHERE id BETWEEN {first} AND {last}"
    );
    world.target.value(&span).await.and_then(|seconds| seconds.parse().ok()).expect("rows were inserted")
}

/// A batch that cannot be built (an update that sets nothing, of a row that only has a GENERATED ALWAYS key) and
/// one that only checks that rows are there (a no-op upsert into a table that is all key) come behind batches
/// whose COMMITs are on their way. These land, and are not applied again.
#[tokio::test]
async fn batches_under_way_are_not_applied_again_when_a_later_one_cannot_be_built() {
    for binary in ["auto", "off"] {
        let world = World::builder()
            .both_sql("CREATE TABLE log (n int, a text)")
            .both_sql("CREATE TABLE keys (a int, b int, PRIMARY KEY (a, b))")
            .publisher_sql("CREATE TABLE tick (id int PRIMARY KEY)")
            .target_sql("CREATE TABLE tick (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)")
            .subscription_line(&format!("binary = \"{binary}\""))
            .start()
            .await;
        let service = world.run();
        world.wait_state("streaming").await;
        world.publisher.exec("INSERT INTO tick VALUES (1), (2)").await;
        let upsert = "INSERT INTO keys VALUES (i % 5, 1) ON CONFLICT (a, b) DO UPDATE SET a = excluded.a";
        let load = format!(
            "DO $$ BEGIN FOR i IN 1..400 LOOP \
                 INSERT INTO log SELECT i, 'row' FROM generate_series(1, 300); COMMIT; {upsert}; COMMIT; \
                 IF i % 10 = 0 THEN UPDATE tick SET id = id WHERE id = 1 + i % 2; COMMIT; END IF; \
             END LOOP; END $$"
        );
        tokio::join!(world.publisher.exec(load.as_str()), world.publisher.exec(load.as_str()));
        world.wait_caught_up().await;
        let log = "SELECT count(*), count(DISTINCT n), sum(n) FROM log";
        assert_eq!(world.target.lines(log).await, world.publisher.lines(log).await, "binary = {binary}");
        world.assert_same_rows("keys").await;
        world.assert_same_rows("tick").await;
        assert_eq!(world.target.value("SELECT count(*) FROM pgsluice.conflict").await.as_deref(), Some("0"));
        assert_eq!(service.sigterm().await, 0);
    }
}
