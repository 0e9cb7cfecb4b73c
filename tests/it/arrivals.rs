//! What arrives is applied with the operations that arrive: publications whose operations change, privileges and
//! keys that are there, or not, when an operation needs them.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::support::beside::Beside;
use crate::support::clusters::{publisher_binaries, target_binaries};
use crate::support::service::Service;
use crate::support::wait::until;
use crate::support::world::{Builder, Servers, TARGET_ROLE, World};

/// Returns how often the service has paused a subscription.
fn pauses(service: &Service) -> usize {
    service.log().matches("paused").count()
}

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text);";

/// Everything in the stream was published when it was written: neither a publication that is wider by now nor one that
/// is narrower says more about it.
#[tokio::test]
async fn operations_apply_as_they_were_published() {
    for (publications, names, widen, narrow) in [
        (
            "CREATE PUBLICATION p FOR TABLE t WITH (publish = 'insert')",
            &["p"][..],
            "ALTER PUBLICATION p SET (publish = 'insert, update, delete, truncate')",
            "ALTER PUBLICATION p SET (publish = 'insert')",
        ),
        (
            "CREATE PUBLICATION p FOR TABLE t WITH (publish = 'insert');
             CREATE PUBLICATION q FOR TABLE t WITH (publish = 'truncate')",
            &["p", "q"][..],
            "ALTER PUBLICATION q SET (publish = 'update, delete, truncate')",
            "ALTER PUBLICATION q SET (publish = 'update')",
        ),
    ] {
        let beside = Beside::new(TABLE, publications, names).await;
        let world = &beside.world;
        let service = world.run();
        world.wait_state("streaming").await;
        let filled = "INSERT INTO t SELECT g, 'new' FROM generate_series(1, 20) g";
        beside.publish(&[filled, "UPDATE t SET v = 'not published' WHERE id = 1"]).await;
        beside.wait_like_builtin("t").await;
        beside
            .publish(&[
                widen,
                "DELETE FROM t WHERE id = 2",
                "UPDATE t SET v = 'changed' WHERE id < 5",
                "UPDATE t SET id = 100 WHERE id = 5",
            ])
            .await;
        let rows = beside.wait_like_builtin("t").await;
        assert_eq!(rows.len(), 19);
        assert_eq!(pauses(&service), 0, "{}", service.log());
        assert_eq!(service.sigterm().await, 0);

        // Older changes of every kind are still to come when the publication is narrower.
        beside
            .publish(&[
                "DELETE FROM t WHERE id = 7",
                "UPDATE t SET v = 'stopped' WHERE id = 8",
                "TRUNCATE t",
                "INSERT INTO t VALUES (1, 'again'), (2, 'again')",
                "DELETE FROM t WHERE id = 2",
                narrow,
                "INSERT INTO t VALUES (3, 'narrow')",
                "DELETE FROM t WHERE id = 1",
            ])
            .await;
        let service = world.run();
        let rows = beside.wait_like_builtin("t").await;
        assert_eq!(rows, ["1|again", "3|narrow"]);
        beside
            .publish(&[widen, "DELETE FROM t WHERE id = 3", narrow, "INSERT INTO t VALUES (4, 'last')"])
            .await;
        assert_eq!(beside.wait_like_builtin("t").await, ["1|again", "4|last"]);
        assert_eq!(pauses(&service), 0, "{}", service.log());
        drop(service);
        beside.end().await;
    }
}

/// Publications whose operations change at random, a service that is killed and starts, privileges that come and go meanwhile:
/// the rows end as those of the built-in subscriber. Inserts are always published and no key changes or is used twice, because the
/// built-in subscriber passes over an update whose row is missing, which pauses here. `PGSLUICE_SEED` replays a run.
#[tokio::test]
async fn operations_that_change_at_random_end_like_the_built_in_subscriber() {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = number("PGSLUICE_SEED").unwrap_or_else(rand::random);
    let statements = number("PGSLUICE_TRANSACTIONS").unwrap_or(120);
    println!("PGSLUICE_SEED={seed} PGSLUICE_TRANSACTIONS={statements} replays this run");
    let mut random = StdRng::seed_from_u64(seed);
    let publications = "CREATE PUBLICATION p FOR TABLE t; CREATE PUBLICATION q FOR TABLE t";
    let beside = Beside::new(TABLE, publications, &["p", "q"]).await;
    let world = &beside.world;
    let all = ["update", "delete", "truncate"];
    let (mut service, mut rows) = (Some(world.run()), 0);
    world.wait_state("streaming").await;
    for _ in 0..statements {
        let some: Vec<&str> = all.into_iter().filter(|_| random.random_bool(0.5)).collect();
        let at = random.random_range(0..=rows);
        let sql = match random.random_range(0..100) {
            0..30 => {
                rows += 3;
                format!("INSERT INTO t SELECT g, 'new' FROM generate_series({}, {rows}) g", rows - 2)
            }
            30..65 => format!("UPDATE t SET v = 'changed {at}' WHERE id BETWEEN {at} AND {at} + 2"),
            65..78 => format!("DELETE FROM t WHERE id = {at}"),
            78..82 => "TRUNCATE t".to_owned(),
            82..88 => {
                let published: Vec<&str> = ["insert"].into_iter().chain(some).collect();
                format!("ALTER PUBLICATION p SET (publish = '{}')", published.join(", "))
            }
            88..94 => format!("ALTER PUBLICATION q SET (publish = '{}')", some.join(", ")),
            _ => {
                let Some(running) = service.take() else {
                    service = Some(world.run());
                    continue;
                };
                running.kill9().await;
                if !some.is_empty() {
                    let revoke = format!("REVOKE {} ON t FROM {TARGET_ROLE}", some.join(", "));
                    world.target.exec(revoke).await;
                }
                continue;
            }
        };
        world.publisher.exec(sql).await;
    }
    world.target.exec(format!("GRANT ALL ON t TO {TARGET_ROLE}")).await;
    let service = service.unwrap_or_else(|| world.run());
    beside.wait_like_builtin("t").await;
    let conflicts = world.target.value("SELECT count(*) FROM pgsluice.conflict").await;
    assert_eq!(conflicts.as_deref(), Some("0"));
    drop(service);
    beside.end().await;
}

/// Keys of the target come and go under load, and privileges while the service is down; large transactions are sent in
/// progress; the service is killed. Nothing is lost, applied twice, or met as a conflict. `PGSLUICE_SEED` replays a run.
/// (GRANT and TRUNCATE update the same catalog row, so a GRANT takes the table's lock first.)
#[tokio::test]
async fn keys_and_privileges_that_come_and_go_lose_nothing() {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = number("PGSLUICE_SEED").unwrap_or_else(rand::random);
    let rounds = number("PGSLUICE_TRANSACTIONS").unwrap_or(60);
    println!("PGSLUICE_SEED={seed} PGSLUICE_TRANSACTIONS={rounds} replays this run");
    let mut random = StdRng::seed_from_u64(seed);
    let world = builder()
        .servers(Servers::Separate)
        .publisher_setting("logical_decoding_work_mem", "64kB")
        .both_sql("CREATE TABLE done (n bigint)")
        .start()
        .await;
    let mut service = world.run();
    world.wait_state("streaming").await;
    let mut row = 100;
    for n in 0..rounds {
        row += 3_000;
        let at = random.random_range(0..row);
        let change = match random.random_range(0..20) {
            0..8 => format!("UPDATE t SET v = 'changed {n}' WHERE id BETWEEN {at} AND {at} + 50"),
            8..12 => format!("DELETE FROM t WHERE id BETWEEN {at} AND {at} + 50"),
            12..15 => format!(
                "INSERT INTO t SELECT g, repeat('x', 90) FROM generate_series({}, {row}) g; DELETE FROM t WHERE id = {row}",
                row - 2_500
            ),
            15 => "TRUNCATE t".to_owned(),
            _ => format!("INSERT INTO t VALUES ({row}, 'one')"),
        };
        world.publisher.exec(format!("BEGIN; INSERT INTO done VALUES ({n}); {change}; COMMIT")).await;
        match random.random_range(0..12) {
            0 | 1 => world.target.exec("ALTER TABLE t DROP CONSTRAINT IF EXISTS t_pkey").await,
            2 | 3 => restore_key(&world).await,
            4 => {
                service.kill9().await;
                let privilege = ["INSERT", "UPDATE", "DELETE", "TRUNCATE"][random.random_range(0..4)];
                world.target.exec(format!("LOCK TABLE t; REVOKE {privilege} ON t FROM {TARGET_ROLE}")).await;
                service = world.run();
            }
            5 => world.target.exec(format!("LOCK TABLE t; GRANT ALL ON t TO {TARGET_ROLE}")).await,
            6 => {
                service.kill9().await;
                service = world.run();
            }
            _ => {}
        }
    }
    world.target.exec(format!("LOCK TABLE t; GRANT ALL ON t TO {TARGET_ROLE}")).await;
    restore_key(&world).await;
    for table in ["t", "done"] {
        world.wait_same_rows(table).await;
    }
    world.wait_state("streaming").await;
    let conflicts = world.target.value("SELECT count(*) FROM pgsluice.conflict").await;
    assert_eq!(conflicts.as_deref(), Some("0"));
    assert_eq!(service.sigterm().await, 0);
}

async fn restore_key(world: &World) {
    let restore = "DO $$ BEGIN ALTER TABLE t ADD CONSTRAINT t_pkey PRIMARY KEY (id); \
                   EXCEPTION WHEN invalid_table_definition THEN NULL; END $$";
    world.target.exec(restore).await;
}

/// The tables of [`wait_hindered`]'s tests.
fn builder() -> Builder {
    World::builder()
        .both_sql(TABLE)
        .publisher_sql("INSERT INTO t SELECT g, 'old' FROM generate_series(1, 9) g")
}

/// Waits until the subscription is paused because this operation lacks something, and checks the text.
async fn wait_hindered(world: &World, command: &str, primary: &str, hint: &str) {
    let view = world.wait_paused("schema").await;
    let told = view.told();
    for part in [primary, hint, &format!("{command} of the transaction that finishes at")] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
}

/// A privilege is needed by an operation that comes, and by no other. What came before is applied, and the stream goes
/// on by itself after the GRANT.
#[tokio::test]
async fn privileges_are_needed_by_what_comes() {
    let world = builder().both_sql("CREATE TABLE other (id int PRIMARY KEY)").start().await;
    let service = world.run();
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
    world.target.exec(format!("REVOKE UPDATE, DELETE, TRUNCATE ON t FROM {TARGET_ROLE}")).await;
    assert_eq!(service.sigterm().await, 0);

    let service = world.run();
    world.publisher.exec("INSERT INTO t VALUES (10, 'new')").await;
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
    assert_eq!(pauses(&service), 0, "{}", service.log());

    // The table was described without the privilege, which has been granted since.
    world.target.exec(format!("GRANT UPDATE ON t TO {TARGET_ROLE}")).await;
    world.publisher.exec("UPDATE t SET v = 'changed' WHERE id = 1").await;
    world.wait_same_rows("t").await;
    assert_eq!(pauses(&service), 0, "{}", service.log());

    for (change, command, privilege) in
        [("DELETE FROM t WHERE id = 2", "DELETE", "DELETE"), ("TRUNCATE t", "TRUNCATE", "TRUNCATE")]
    {
        let before = world.publisher.sorted("t", &["id".to_owned()]).await;
        world.publisher.exec(change).await;
        world
            .publisher
            .exec("INSERT INTO t VALUES (20, 'after') ON CONFLICT (id) DO UPDATE SET v = 'x'")
            .await;
        let primary = format!("role \"{TARGET_ROLE}\" lacks {privilege} on target table public.t");
        let grant = format!("GRANT {privilege} ON TABLE public.t TO \"{TARGET_ROLE}\"");
        wait_hindered(&world, command, &primary, &grant).await;
        assert_eq!(
            world.target.sorted("t", &["id".to_owned()]).await,
            before,
            "the transaction is rolled back"
        );
        world.target.exec(grant).await;
        world.wait_same_rows("t").await;
        world.wait_state("streaming").await;
    }

    // What several tables of one TRUNCATE lack is told at once.
    assert_eq!(service.sigterm().await, 0);
    world.target.exec(format!("REVOKE TRUNCATE ON t, other FROM {TARGET_ROLE}")).await;
    let service = world.run();
    world.publisher.exec("TRUNCATE t, other").await;
    let grants = |table| format!("GRANT TRUNCATE ON TABLE public.{table} TO \"{TARGET_ROLE}\";");
    let grants = format!("{}\n{}", grants("t"), grants("other"));
    wait_hindered(&world, "TRUNCATE", "2 problems", &grants).await;
    world.target.exec(grants).await;
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
    drop(service);
}

/// The same is told again after a restart, and the GRANT is noticed that was made in between.
#[tokio::test]
async fn a_restart_finds_the_same() {
    let world = builder().start().await;
    world.take_up().await;
    world.target.exec(format!("REVOKE DELETE ON t FROM {TARGET_ROLE}")).await;
    world.publisher.exec("INSERT INTO t VALUES (10, 'new')").await;
    world.publisher.exec("DELETE FROM t WHERE id = 1").await;
    for _ in 0..2 {
        let service = world.run();
        // The record of the first run would answer for the second one, which may not take signals yet.
        until("it is there", async || service.log().contains("listening")).await;
        wait_hindered(&world, "DELETE", "lacks DELETE", "GRANT DELETE").await;
        assert_eq!(service.sigterm().await, 0);
    }
    let found = world.target.value("SELECT count(*) FROM t").await;
    assert_eq!(found.as_deref(), Some("10"), "everything before is applied");
    world.target.exec(format!("GRANT DELETE ON t TO {TARGET_ROLE}")).await;
    let _service = world.run();
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
}

/// The first start and `check` tell what today's publication will need, before anything is copied.
#[tokio::test]
async fn a_first_start_asks_for_what_is_published() {
    let world = builder()
        .target_sql("ALTER TABLE t DROP CONSTRAINT t_pkey")
        .publisher_sql(
            "CREATE PUBLICATION my_publication FOR TABLE t WITH (publish = 'insert, delete, truncate')",
        )
        .start()
        .await;
    world.target.exec(format!("REVOKE UPDATE, DELETE, TRUNCATE ON t FROM {TARGET_ROLE}")).await;
    let checked = world.pgsluice(&["check"]).await.expect(1);
    let _service = world.run();
    let view = world.wait_paused("schema").await;
    for text in [&checked.stdout, &view.told()] {
        assert!(text.contains("GRANT DELETE, TRUNCATE ON TABLE public.t"), "{text}");
        assert!(text.contains("ALTER TABLE public.t ADD PRIMARY KEY"), "{text}");
    }
    assert_eq!(world.target.lines("SELECT * FROM t").await, [""; 0]);
    world
        .target
        .exec(format!("GRANT DELETE, TRUNCATE ON t TO {TARGET_ROLE}; ALTER TABLE t ADD PRIMARY KEY (id)"))
        .await;
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
}

/// A key is needed by the first update or delete, and not before.
#[tokio::test]
async fn a_key_is_needed_by_what_looks_for_rows() {
    let world = builder().start().await;
    let service = world.run();
    world.wait_same_rows("t").await;
    world.target.exec("ALTER TABLE t DROP CONSTRAINT t_pkey").await;
    world.publisher.exec("INSERT INTO t VALUES (10, 'new')").await;
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
    assert_eq!(pauses(&service), 0, "{}", service.log());
    world.publisher.exec("UPDATE t SET v = 'changed' WHERE id = 10").await;
    let key = "ALTER TABLE public.t ADD PRIMARY KEY (\"id\");";
    wait_hindered(&world, "UPDATE", "has no unique key on the replica identity (id)", key).await;
    world.target.exec(key).await;
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
    drop(service);
}

/// Everything before the transaction that does not fit is applied, however it is applied: gathered behind a lock, row
/// by row, and after or within a transaction of many slices.
#[tokio::test]
async fn everything_before_is_applied() {
    let world = World::builder()
        .both_sql(TABLE)
        .both_sql("CREATE TABLE fired (id int PRIMARY KEY, v text); CREATE TABLE busy (id int PRIMARY KEY)")
        .target_sql(
            "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
             CREATE TRIGGER fires AFTER INSERT ON fired FOR EACH ROW EXECUTE FUNCTION nothing();
             ALTER TABLE fired ENABLE ALWAYS TRIGGER fires",
        )
        .subscription_line("streaming = \"off\"")
        .start()
        .await;
    world.take_up().await;
    let revoke = format!("REVOKE UPDATE, DELETE ON t, fired FROM {TARGET_ROLE}");
    let grant = format!("GRANT UPDATE, DELETE ON t, fired TO {TARGET_ROLE}");
    let large = "INSERT INTO t SELECT g, 'large' FROM generate_series(1000, 80000) g";
    for (round, (last, table)) in [
        ("DELETE FROM t WHERE v = 'small'", "t"),
        ("DELETE FROM fired", "fired"),
        ("BEGIN; INSERT INTO t SELECT g, 'rolled back' FROM generate_series(100000, 180000) g; DELETE FROM t; COMMIT", "t"),
    ]
    .into_iter()
    .enumerate()
    {
        world.target.exec(&revoke).await;
        let locks = world.target.session().await;
        locks.batch("BEGIN; LOCK TABLE busy").await.unwrap();
        world.publisher.exec(format!("INSERT INTO busy VALUES ({round})")).await;
        for id in 0..50 {
            let id = round * 50 + id;
            world.publisher.exec(format!("INSERT INTO t VALUES ({id}, 'small')")).await;
            world.publisher.exec(format!("INSERT INTO fired VALUES ({id}, 'small')")).await;
        }
        if round == 0 {
            world.publisher.exec(large).await;
        }
        let counts = "SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM fired), (SELECT count(*) FROM busy)";
        let before = world.publisher.lines(counts).await;
        world.publisher.exec(last).await;
        let service = world.run();
        world.wait_state("streaming").await;
        locks.batch("COMMIT").await.unwrap();
        let target = format!("DELETE on target table public.{table}");
        wait_hindered(&world, "DELETE", &target, "GRANT ").await;
        assert_eq!(world.target.lines(counts).await, before, "{last}");
        world.target.exec(&grant).await;
        for table in ["t", "fired", "busy"] {
            world.wait_same_rows(table).await;
        }
        world.wait_state("streaming").await;
        assert_eq!(service.sigterm().await, 0);
    }
}

/// In a transaction in progress, the change ends the piecewise sending, and is met again once the transaction is sent
/// whole.
#[tokio::test]
async fn a_transaction_in_progress_is_told_once_it_has_committed() {
    if publisher_binaries().major() < 14 {
        return;
    }
    let world = builder().start().await;
    let _service = world.run();
    world.wait_same_rows("t").await;
    world.target.exec(format!("REVOKE DELETE ON t FROM {TARGET_ROLE}")).await;
    let open = world.publisher.session().await;
    open.batch("BEGIN; INSERT INTO t SELECT g, repeat('x', 250) FROM generate_series(100, 80000) g")
        .await
        .unwrap();
    open.batch("DELETE FROM t WHERE id = 1").await.unwrap();
    world.publisher.exec("INSERT INTO t VALUES (50, 'meanwhile')").await;
    until("what commits in between is applied", async || {
        let found = world.target.value("SELECT v FROM t WHERE id = 50").await;
        if found.is_some() { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    open.batch("COMMIT").await.unwrap();
    wait_hindered(&world, "DELETE", "lacks DELETE", "GRANT DELETE").await;
    assert_eq!(world.target.value("SELECT count(*) FROM t").await.as_deref(), Some("10"));
    world.target.exec(format!("GRANT DELETE ON t TO {TARGET_ROLE}")).await;
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
}

/// The transaction that does not fit can be passed over by the position that the pause names.
#[tokio::test]
async fn the_pause_names_the_position_for_a_skip() {
    let world = builder().start().await;
    let _service = world.run();
    world.wait_same_rows("t").await;
    world.target.exec("ALTER TABLE t DROP COLUMN v").await;
    world.publisher.exec("INSERT INTO t VALUES (10, 'skipped')").await;
    let told = world.wait_paused("schema").await.told();
    let (_, rest) = told.split_once("An INSERT of the transaction that finishes at ").expect("a position");
    let lsn = rest.split(' ').next().unwrap();
    world.pgsluice(&["skip", &world.subscription, "--lsn", lsn]).await.expect(0);
    world.wait_caught_up().await;
    world.wait_state("streaming").await;
    let count = "SELECT count(*) FROM t";
    assert_eq!(world.target.value(count).await.as_deref(), Some("9"));
    world.target.exec("ALTER TABLE t ADD v text").await;
    world.publisher.exec("INSERT INTO t VALUES (11, 'applied')").await;
    until("the next one is applied", async || {
        let found = world.target.value(count).await;
        if found.as_deref() == Some("10") { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

/// A table that joins meets operations in its catch-up, too: a wider publication does not stop it, and a lacking
/// privilege holds back that table alone.
#[tokio::test]
async fn a_table_that_joins_goes_by_what_arrives() {
    let world = World::builder()
        .both_sql(TABLE)
        .both_sql("CREATE TABLE joins (id int PRIMARY KEY, v text)")
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE t WITH (publish = 'insert')")
        .publisher_sql("INSERT INTO joins SELECT g, 'old' FROM generate_series(1, 100) g")
        .start()
        .await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.target.exec(format!("REVOKE DELETE ON joins FROM {TARGET_ROLE}")).await;
    let locks = world.target.session().await;
    locks.batch("BEGIN; LOCK TABLE joins IN SHARE MODE").await.unwrap();
    world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE joins").await;
    until("the copy waits for the lock", async || {
        let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'joins'::regclass";
        let waiting = world.target.value(waits).await;
        if waiting.as_deref() == Some("1") { Ok(()) } else { Err(format!("{waiting:?}")) }
    })
    .await;
    world
        .publisher
        .exec("ALTER PUBLICATION my_publication SET (publish = 'insert, update, delete, truncate')")
        .await;
    world.publisher.exec("UPDATE joins SET v = 'changed' WHERE id <= 20").await;
    world.publisher.exec("DELETE FROM joins WHERE id <= 10").await;
    world.publisher.exec("INSERT INTO joins VALUES (7, 'after')").await;
    locks.batch("COMMIT").await.unwrap();
    let lacks = "lacks DELETE on target table public.joins";
    until("the table is held back", async || {
        let log = service.log();
        if log.contains(lacks) { Ok(()) } else { Err(log) }
    })
    .await;
    world.publisher.exec("INSERT INTO t VALUES (1, 'goes on')").await;
    world.wait_same_rows("t").await;
    world.target.exec(format!("GRANT DELETE ON joins TO {TARGET_ROLE}")).await;
    world.wait_same_rows("joins").await;
    world.wait_state("streaming").await;
    drop(service);
}

/// GENERATED ALWAYS AS IDENTITY on the target: inserts override it, and an update that leaves the value as it is leaves the
/// column out. PostgreSQL refuses an UPDATE that sets it, which the built-in subscriber, working below SQL, does.
#[tokio::test]
async fn identity_columns_take_what_sql_allows() {
    // The key, another column, a table without a key, and the row-by-row path.
    let columns = "id int PRIMARY KEY, n int NOT NULL, v text";
    let full = "n int NOT NULL, v text";
    let always = |columns: &str, column: &str| {
        columns.replace(&format!("{column} int"), &format!("{column} int GENERATED ALWAYS AS IDENTITY"))
    };
    let world = World::builder()
        .publisher_sql(&format!(
            "CREATE TABLE keyed ({columns}); CREATE TABLE beside ({columns}); CREATE TABLE fired ({columns});
             CREATE TABLE whole ({full}); ALTER TABLE whole REPLICA IDENTITY FULL;
             CREATE TABLE filled ({columns}); ALTER TABLE filled REPLICA IDENTITY FULL;
             INSERT INTO beside VALUES (1, 11, 'copied'); INSERT INTO whole VALUES (11, 'copied')"
        ))
        .target_sql(&format!(
            "CREATE TABLE keyed ({}); CREATE TABLE beside ({}); CREATE TABLE fired ({}); CREATE TABLE whole ({});
             CREATE TABLE filled ({});
             CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE TRIGGER fires BEFORE INSERT OR UPDATE ON fired FOR EACH ROW EXECUTE FUNCTION nothing();
             ALTER TABLE fired ENABLE ALWAYS TRIGGER fires",
            always(columns, "id"),
            always(columns, "n"),
            always(columns, "n"),
            always(full, "n"),
            always(columns, "n"),
        ))
        .start()
        .await;
    let tables = ["keyed", "beside", "fired", "filled", "whole"];
    let service = world.run();
    for table in tables {
        world.wait_same_rows(table).await;
    }
    for table in &tables[..4] {
        let rows = format!("INSERT INTO {table} SELECT g, 100 + g, 'new' FROM generate_series(2, 30) g");
        for sql in [
            rows,
            format!("UPDATE {table} SET v = 'changed' WHERE id % 2 = 0"),
            format!("UPDATE {table} SET n = n"),
            format!("DELETE FROM {table} WHERE id = 5"),
            format!(
                "BEGIN; INSERT INTO {table} VALUES (40, 1, 'a'); UPDATE {table} SET v = 'b' WHERE id = 40; COMMIT"
            ),
        ] {
            world.publisher.exec(sql).await;
        }
    }
    world
        .publisher
        .exec("UPDATE beside SET id = 50 WHERE id = 30; UPDATE fired SET id = 50 WHERE id = 30")
        .await;
    world.publisher.exec("INSERT INTO whole SELECT g, NULL FROM generate_series(1, 5) g").await;
    world.publisher.exec("UPDATE whole SET v = 'changed'; DELETE FROM whole WHERE n = 2").await;
    for table in tables {
        world.wait_same_rows(table).await;
    }
    world.wait_state("streaming").await;
    assert_eq!(pauses(&service), 0, "{}", service.log());
    assert_eq!(world.target.value("SELECT count(*) FROM pgsluice.conflict").await.as_deref(), Some("0"));

    for (table, column, change) in [
        ("keyed", "id", "UPDATE keyed SET id = 99 WHERE id = 3"),
        ("beside", "n", "UPDATE beside SET n = 99 WHERE id = 3"),
        ("fired", "n", "UPDATE fired SET n = 99, v = 'x' WHERE id = 3"),
        ("filled", "n", "UPDATE filled SET n = 99 WHERE id = 3"),
        ("whole", "n", "UPDATE whole SET n = 99 WHERE n = 3"),
    ] {
        world.publisher.exec(format!("DELETE FROM {table} WHERE {column} = 8")).await;
        let before = world.publisher.sorted(table, &[column.to_owned()]).await;
        world.publisher.exec(change).await;
        let told = world.wait_paused("schema").await.told();
        assert!(told.contains("An UPDATE of the transaction that finishes at "), "{told}");
        let cure = format!("ALTER TABLE public.{table} ALTER COLUMN \"{column}\" SET GENERATED BY DEFAULT;");
        assert!(told.contains("is GENERATED ALWAYS AS IDENTITY and cannot be updated"), "{told}");
        assert!(told.contains(&cure), "{told}");
        assert_eq!(world.target.sorted(table, &[column.to_owned()]).await, before);
        world.target.exec(cure).await;
        world.wait_same_rows(table).await;
        world.wait_state("streaming").await;
    }
    // A row that is missing is a conflict as ever.
    world.target.exec("ALTER TABLE fired ALTER n SET GENERATED ALWAYS; DELETE FROM fired WHERE id = 4").await;
    world.publisher.exec("UPDATE fired SET v = 'missing' WHERE id = 4").await;
    let told = world.wait_paused("conflict").await.told();
    assert!(told.contains("update_missing"), "{told}");
    drop(service);
}

/// A column that the target generates cannot be given a value by SQL, nor by the built-in subscriber, which stops at the
/// table's first message. Here, deletes and TRUNCATE go on, which give it none.
#[tokio::test]
async fn generated_columns_are_needed_by_inserts_and_updates_only() {
    if target_binaries().major() < 12 {
        return;
    }
    let world = World::builder()
        .publisher_sql("CREATE TABLE t (id int PRIMARY KEY, v int, w int)")
        .publisher_sql("INSERT INTO t SELECT g, g, g FROM generate_series(1, 9) g")
        .target_sql("CREATE TABLE t (id int PRIMARY KEY, v int, w int)")
        .start()
        .await;
    let service = world.run();
    world.wait_same_rows("t").await;
    world.target.exec("ALTER TABLE t DROP COLUMN w, ADD w int GENERATED ALWAYS AS (v) STORED").await;
    world.publisher.exec("DELETE FROM t WHERE id = 1").await;
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
    assert_eq!(pauses(&service), 0, "{}", service.log());
    world.publisher.exec("UPDATE t SET w = 0 WHERE id = 2").await;
    let cure = "ALTER TABLE public.t ALTER COLUMN \"w\" DROP EXPRESSION;";
    wait_hindered(&world, "UPDATE", "column \"w\" of target table public.t is generated", cure).await;
    if target_binaries().major() >= 13 {
        world.target.exec(cure).await;
        world.wait_same_rows("t").await;
        world.wait_state("streaming").await;
    }
    drop(service);
}

/// A column's domain of today says nothing of the type that it had when a change was made: a value with more digits than
/// the target keeps is not rounded.
#[tokio::test]
async fn a_domain_of_today_does_not_limit_values_of_yesterday() {
    let world = World::builder()
        .both_sql("CREATE DOMAIN price AS numeric(12,2)")
        .publisher_sql("CREATE TABLE t (id int PRIMARY KEY, d price)")
        .target_sql("CREATE TABLE t (id int PRIMARY KEY, d numeric(12,2))")
        .start()
        .await;
    let service = world.run();
    world.publisher.exec("INSERT INTO t VALUES (1, 1.25)").await;
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
    assert_eq!(service.sigterm().await, 0);
    world.publisher.exec("ALTER TABLE t ALTER d TYPE numeric").await;
    world.publisher.exec("INSERT INTO t VALUES (2, 1.2345)").await;
    world.publisher.exec("ALTER TABLE t ALTER d TYPE price").await;
    let _service = world.run();
    let conflict = world.wait_conflict().await;
    assert_eq!(conflict["message"], "the value for column \"d\" has more than 2 digits after the point");
    assert_eq!(world.target.lines("SELECT * FROM t").await, ["1|1.25"]);
    world.target.exec("ALTER TABLE t ALTER d TYPE numeric").await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    until("the value is there with all its digits", async || {
        let rows = world.target.lines("SELECT * FROM t ORDER BY id").await;
        if rows == ["1|1.25", "2|1.2345"] { Ok(()) } else { Err(format!("{rows:?}")) }
    })
    .await;
    world.publisher.exec("INSERT INTO t VALUES (3, 3.50)").await;
    world.wait_caught_up().await;
    world.wait_state("streaming").await;
}

/// Binary values are chosen by the types of today. Changes of yesterday, whose types cannot be sent in binary, are sent
/// again as text.
#[tokio::test]
async fn types_of_yesterday_travel_as_they_must() {
    let world = World::builder()
        .publisher_sql("CREATE TABLE t (id int PRIMARY KEY, v interval)")
        .target_sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .start()
        .await;
    world.take_up().await;
    for id in 0..3 {
        world.publisher.exec(format!("INSERT INTO t VALUES ({id}, '{id} days 01:00')")).await;
    }
    world.publisher.exec("ALTER TABLE t ALTER v TYPE text").await;
    world.publisher.exec("UPDATE t SET v = 'changed' WHERE id = 1").await;
    let service = world.run();
    world.wait_same_rows("t").await;
    world.publisher.exec("INSERT INTO t VALUES (9, 'binary')").await;
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
    assert_eq!(pauses(&service), 0, "{}", service.log());
    drop(service);
}

/// With `publish_via_partition_root`, the publisher accepts updates of a partition that has a key, and marks none in what it
/// sends of the root. The built-in subscriber stops at the update, too.
#[tokio::test]
async fn an_update_without_a_published_identity_says_so() {
    if publisher_binaries().major() < 13 {
        return;
    }
    let world = World::builder()
        .publisher_sql(
            "CREATE TABLE t (id int, v text) PARTITION BY RANGE (id);
             CREATE TABLE leaf PARTITION OF t (PRIMARY KEY (id)) FOR VALUES FROM (1) TO (100);
             CREATE PUBLICATION my_publication FOR TABLE t WITH (publish_via_partition_root = true)",
        )
        .target_sql(TABLE)
        .start()
        .await;
    let service = world.run();
    world.publisher.exec("INSERT INTO t VALUES (1, 'new'), (2, 'new')").await;
    world.wait_same_rows("t").await;
    assert_eq!(pauses(&service), 0, "{}", service.log());
    world.publisher.exec("UPDATE t SET v = 'changed' WHERE id = 1").await;
    world.publisher.exec("INSERT INTO t VALUES (3, 'after')").await;
    let hint = "a replica identity on the publisher";
    wait_hindered(&world, "UPDATE", "no replica identity was published", hint).await;
    let told = world.wait_paused("schema").await.told();
    let (_, rest) = told.split_once("finishes at ").expect("a position");
    world.pgsluice(&["skip", &world.subscription, "--lsn", rest.split(' ').next().unwrap()]).await.expect(0);
    world.target.exec("UPDATE t SET v = 'changed' WHERE id = 1").await;
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
    drop(service);
}
