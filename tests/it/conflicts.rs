//! Every failure that stops apply: what is rolled back, what the evidence holds, how replication
//! resumes.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::service::Service;
use crate::support::wait::until;
use crate::support::world::{PASSWORD, ReplicaRole, World};

/// A table into which every test's transactions insert first, so that there is something to roll back.
const BYSTANDER: &str = "CREATE TABLE bystander (id int PRIMARY KEY)";
/// Long enough to notice a retry loop.
const A_WHILE: Duration = Duration::from_secs(3);
/// Log lines at level info or above that a paused subscription may write in [`A_WHILE`].
const LINES_MAX: usize = 2;
/// A value that only rows hold: it must be in the evidence and never in the log.
const SECRET: &str = "s3cr3t-row-value";

/// One conflict and how a test provokes it.
struct Case {
    name: &'static str,
    /// Statements for both sides.
    tables: &'static str,
    /// Rows that the publisher has before the initial copy.
    rows: &'static str,
    /// A change on the publisher while it streams, after which the service knows the table.
    known: &'static str,
    /// Statements for the target after that, which cause the conflict.
    provoke: &'static str,
    /// The offending change on the publisher.
    change: &'static str,
    expected: Expected,
    /// Statements for the target that make a retry succeed.
    fix: &'static str,
    /// A table to compare at the end.
    table: &'static str,
}

/// The expected evidence.
struct Expected {
    kind: &'static str,
    operation: &'static str,
    key: Value,
    /// Part of the incoming row.
    incoming: Value,
    /// Part of each local row, in any order.
    local: &'static [(&'static str, &'static str)],
    constraint: Value,
    sqlstate: Value,
}

/// Runs the cases one after the other against one world.
async fn check(world: &World, service: &Service, cases: &[Case]) {
    for case in cases {
        println!("-- {}", case.name);
        check_one(world, service, case).await;
    }
    let log = service.log();
    assert!(!log.contains(SECRET), "a row's value is in the log");
    assert!(!log.contains(PASSWORD) && !log.contains("pa'ss"), "the password is in the log");
}

async fn check_one(world: &World, service: &Service, case: &Case) {
    world.publisher.exec(case.known).await;
    world.wait_same_rows(case.table).await;
    world.target.exec(case.provoke).await;
    let next = "SELECT coalesce(max(id), 0) + 1 FROM bystander";
    let first: i32 = world.publisher.value(next).await.unwrap().parse().unwrap();
    let (within, after) = (first + 1, first + 2);
    world.publisher.exec(format!("INSERT INTO bystander VALUES ({first})")).await;
    let change = format!(
        "BEGIN; INSERT INTO bystander VALUES ({within}); {}; INSERT INTO bystander VALUES (-{within}); COMMIT",
        case.change
    );
    world.publisher.exec(change).await;
    world.publisher.exec(format!("INSERT INTO bystander VALUES ({after})")).await;

    let view = world.wait_paused("conflict").await;
    let id = view.conflict_id().unwrap_or_else(|| panic!("{}: no conflict_id: {:#}", case.name, view.json));
    assert!(view.told().contains(case.expected.kind), "{}: {:#}", case.name, view.json);
    // Everything before the transaction is committed, and nothing of it or after it.
    let there = format!("SELECT id FROM bystander WHERE abs(id) >= {first} ORDER BY id");
    assert_eq!(world.target.lines(&there).await, [first.to_string()], "{}", case.name);
    check_evidence(world, case, &id).await;
    quiet(world, service, &id).await;

    world.target.exec(case.fix).await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_same_rows("bystander").await;
    world.wait_same_rows(case.table).await;
    world.wait_state("streaming").await;
    let settled = show(world, &id).await;
    assert_eq!(settled["settled"]["resolution"], "retry", "{}: {settled:#}", case.name);
}

async fn show(world: &World, id: &str) -> Value {
    world.pgsluice(&["conflicts", "show", id, "--json"]).await.expect(0).json()
}

async fn check_evidence(world: &World, case: &Case, id: &str) {
    let found = show(world, id).await;
    let of = &case.expected;
    let name = case.name;
    assert_eq!(found["kind"], of.kind, "{name}: {found:#}");
    assert_eq!(found["operation"], of.operation, "{name}: {found:#}");
    assert_eq!(found["subscription"], world.subscription.as_str(), "{name}: {found:#}");
    assert_eq!(found["source"], format!("public.{}", case.table), "{name}: {found:#}");
    assert_eq!(found["target"], format!("public.{}", case.table), "{name}: {found:#}");
    assert_eq!(found["key"], of.key, "{name}: {found:#}");
    assert_eq!(found["constraint"], of.constraint, "{name}: {found:#}");
    assert_eq!(found["sqlstate"], of.sqlstate, "{name}: {found:#}");
    assert!(found["message"].as_str().is_some_and(|text| text.len() > 10), "{name}: {found:#}");
    if let Some(fields) = of.incoming.as_object() {
        for (field, value) in fields {
            assert_eq!(&found["incoming"][field], value, "{name}, incoming {field}: {found:#}");
        }
    } else {
        assert!(found["incoming"].is_null(), "{name}: {found:#}");
    }
    let local = found["local_rows"].as_array().unwrap();
    assert_eq!(local.len(), of.local.len(), "{name}, local rows: {found:#}");
    for (field, value) in of.local {
        assert!(local.iter().any(|row| row[field] == *value), "{name}, local {field} = {value}: {found:#}");
    }
    assert!(found["xid"].as_u64().is_some_and(|xid| xid > 0), "{name}: {found:#}");
    assert!(found["commit_lsn"].as_str().is_some_and(|lsn| lsn.contains('/')), "{name}: {found:#}");
    assert!(found["commit_time"].as_str().is_some_and(|time| time.starts_with("20")), "{name}: {found:#}");
    assert_eq!(found["change_count"], 3, "{name}: {found:#}");
    // A COMMIT comes after all changes.
    let index = if of.operation == "commit" { 3 } else { 2 };
    assert_eq!(found["change_index"], index, "{name}: {found:#}");

    // The text output holds the same evidence.
    let text = world.pgsluice(&["conflicts", "show", id]).await.expect(0).stdout;
    for part in [of.kind, case.table, "pgsluice resume", "skip-transaction"] {
        assert!(text.contains(part), "{name}, {part}: {text}");
    }
    let list = world.pgsluice(&["conflicts"]).await.expect(0).stdout;
    assert!(list.contains(of.kind) && list.contains("open"), "{name}: {list}");
}

/// While the conflict waits, nothing is tried again and hardly anything is logged.
async fn quiet(world: &World, service: &Service, id: &str) {
    static CHECKED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    // One conflict suffices for this slow check, since the code is the same for all.
    if CHECKED.swap(true, std::sync::atomic::Ordering::Relaxed) {
        return;
    }
    let loud =
        |log: &str| log.lines().filter(|line| line.contains(" INFO ") || line.contains(" WARN ")).count();
    let (before, total) = (loud(&service.log()), service.log().lines().count());
    // This is not synchronisation: the test measures a span of time.
    tokio::time::sleep(A_WHILE).await;
    let log = service.log();
    assert!(loud(&log) - before <= LINES_MAX, "too much is said while paused:\n{log}");
    assert!(log.lines().count() - total < 20, "too much is said while paused:\n{log}");
    let occurrences = format!("SELECT occurrences FROM pgsluice.conflict WHERE id = {id}");
    assert_eq!(world.target.value(&occurrences).await.as_deref(), Some("1"), "it is not tried again");
}

async fn world(tables: &[Case], replica_role: ReplicaRole) -> World {
    let mut builder = World::builder().replica_role(replica_role).both_sql(BYSTANDER);
    for case in tables {
        builder = builder.both_sql(case.tables).publisher_sql(case.rows);
    }
    builder.start().await
}

async fn run(cases: &[Case], replica_role: ReplicaRole) {
    let world = world(cases, replica_role).await;
    let service = world.run();
    world.wait_state("streaming").await;
    check(&world, &service, cases).await;
    let all = world.pgsluice(&["conflicts", "list", "--all", "--json"]).await.expect(0).json();
    assert_eq!(all["conflicts"].as_array().unwrap().len(), cases.len(), "each was met once: {all:#}");
    let open = world.pgsluice(&["conflicts", "--json"]).await.expect(0).json();
    assert_eq!(open["conflicts"], json!([]));
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn rows_that_are_there_or_missing() {
    let cases = [
        Case {
            name: "an inserted key is there",
            tables: "CREATE TABLE t_insert (id int PRIMARY KEY, v text)",
            rows: "",
            known: "",
            provoke: "INSERT INTO t_insert VALUES (1, 'local')",
            change: "INSERT INTO t_insert VALUES (1, 's3cr3t-row-value')",
            expected: Expected {
                kind: "insert_exists",
                operation: "insert",
                key: json!({ "id": "1" }),
                incoming: json!({ "id": "1", "v": SECRET }),
                local: &[("v", "local")],
                constraint: json!("t_insert_pkey"),
                sqlstate: json!("23505"),
            },
            fix: "DELETE FROM t_insert",
            table: "t_insert",
        },
        Case {
            name: "an update runs into another row's key",
            tables: "CREATE TABLE t_update (id int PRIMARY KEY, u text UNIQUE)",
            rows: "INSERT INTO t_update VALUES (1, 'one')",
            known: "",
            provoke: "INSERT INTO t_update VALUES (2, 'two')",
            change: "UPDATE t_update SET u = 'two' WHERE id = 1",
            expected: Expected {
                kind: "update_exists",
                operation: "update",
                key: json!({ "id": "1" }),
                incoming: json!({ "u": "two" }),
                local: &[("id", "2")],
                constraint: json!("t_update_u_key"),
                sqlstate: json!("23505"),
            },
            fix: "DELETE FROM t_update WHERE id = 2",
            table: "t_update",
        },
        Case {
            name: "an updated row has gone",
            tables: "CREATE TABLE t_gone (id int PRIMARY KEY, v text)",
            rows: "INSERT INTO t_gone VALUES (1, 'one')",
            known: "",
            provoke: "DELETE FROM t_gone",
            change: "UPDATE t_gone SET v = 's3cr3t-row-value' WHERE id = 1",
            expected: Expected {
                kind: "update_missing",
                operation: "update",
                key: json!({ "id": "1" }),
                incoming: json!({ "v": SECRET }),
                local: &[],
                constraint: Value::Null,
                sqlstate: Value::Null,
            },
            fix: "INSERT INTO t_gone VALUES (1, 'put back')",
            table: "t_gone",
        },
        Case {
            name: "an update that changes the key has gone",
            tables: "CREATE TABLE t_moved (id int PRIMARY KEY, v text)",
            rows: "INSERT INTO t_moved VALUES (1, 'one')",
            known: "",
            provoke: "DELETE FROM t_moved",
            change: "UPDATE t_moved SET id = 2 WHERE id = 1",
            expected: Expected {
                kind: "update_missing",
                operation: "update",
                key: json!({ "id": "1" }),
                incoming: json!({ "id": "2" }),
                local: &[],
                constraint: Value::Null,
                sqlstate: Value::Null,
            },
            fix: "INSERT INTO t_moved VALUES (1, 'put back')",
            table: "t_moved",
        },
        Case {
            name: "a deleted row has gone",
            tables: "CREATE TABLE t_delete (id int PRIMARY KEY, v text)",
            rows: "INSERT INTO t_delete VALUES (1, 'one')",
            known: "",
            provoke: "DELETE FROM t_delete",
            change: "DELETE FROM t_delete WHERE id = 1",
            expected: Expected {
                kind: "delete_missing",
                operation: "delete",
                key: json!({ "id": "1" }),
                incoming: Value::Null,
                local: &[],
                constraint: Value::Null,
                sqlstate: Value::Null,
            },
            fix: "INSERT INTO t_delete VALUES (1, 'put back')",
            table: "t_delete",
        },
        Case {
            name: "two keys at once",
            tables: "CREATE TABLE t_multi (id int PRIMARY KEY, u text UNIQUE)",
            rows: "",
            known: "",
            provoke: "INSERT INTO t_multi VALUES (1, 'a'), (2, 'b')",
            change: "INSERT INTO t_multi VALUES (1, 'b')",
            expected: Expected {
                kind: "multiple_unique_conflicts",
                operation: "insert",
                key: json!({ "id": "1" }),
                incoming: json!({ "u": "b" }),
                local: &[("id", "1"), ("id", "2")],
                constraint: json!("t_multi_pkey"),
                sqlstate: json!("23505"),
            },
            fix: "TRUNCATE t_multi",
            table: "t_multi",
        },
    ];
    run(&cases, ReplicaRole::Granted).await;
}

#[tokio::test]
async fn constraints_and_values_that_the_target_does_not_take() {
    let insert = |kind, constraint: Value, sqlstate: &str| Expected {
        kind,
        operation: "insert",
        key: json!({ "id": "1" }),
        incoming: json!({ "id": "1" }),
        local: &[],
        constraint,
        sqlstate: json!(sqlstate),
    };
    let cases = [
        Case {
            name: "not null",
            tables: "CREATE TABLE c_null (id int PRIMARY KEY, v text)",
            rows: "",
            known: "",
            provoke: "ALTER TABLE c_null ALTER v SET NOT NULL",
            change: "INSERT INTO c_null VALUES (1, NULL)",
            expected: insert("constraint_violation", Value::Null, "23502"),
            fix: "ALTER TABLE c_null ALTER v DROP NOT NULL",
            table: "c_null",
        },
        Case {
            name: "check",
            tables: "CREATE TABLE c_check (id int PRIMARY KEY, v text)",
            rows: "",
            known: "",
            provoke: "ALTER TABLE c_check ADD CONSTRAINT short CHECK (length(v) < 5)",
            change: "INSERT INTO c_check VALUES (1, 's3cr3t-row-value')",
            expected: insert("constraint_violation", json!("short"), "23514"),
            fix: "ALTER TABLE c_check DROP CONSTRAINT short",
            table: "c_check",
        },
        Case {
            name: "exclusion",
            tables: "CREATE TABLE c_exclude (id int PRIMARY KEY, during int4range)",
            rows: "",
            known: "",
            provoke: "ALTER TABLE c_exclude ADD CONSTRAINT apart EXCLUDE USING gist (during WITH &&); \
                      INSERT INTO c_exclude VALUES (9, '[1,5)')",
            change: "INSERT INTO c_exclude VALUES (1, '[4,8)')",
            expected: insert("constraint_violation", json!("apart"), "23P01"),
            fix: "DELETE FROM c_exclude",
            table: "c_exclude",
        },
        Case {
            name: "too long",
            tables: "CREATE TABLE v_long (id int PRIMARY KEY, v varchar(30))",
            rows: "",
            known: "",
            provoke: "ALTER TABLE v_long ALTER v TYPE varchar(4)",
            change: "INSERT INTO v_long VALUES (1, 's3cr3t-row-value')",
            expected: insert("value_error", Value::Null, "22001"),
            fix: "ALTER TABLE v_long ALTER v TYPE varchar(30)",
            table: "v_long",
        },
        Case {
            name: "out of range",
            tables: "CREATE TABLE v_range (id int PRIMARY KEY, v bigint)",
            rows: "",
            known: "",
            provoke: "ALTER TABLE v_range ALTER v TYPE int",
            change: "INSERT INTO v_range VALUES (1, 5000000000)",
            expected: insert("value_error", Value::Null, "22003"),
            fix: "ALTER TABLE v_range ALTER v TYPE bigint",
            table: "v_range",
        },
        Case {
            name: "no privilege",
            tables: "CREATE TABLE p_denied (id int PRIMARY KEY, v text)",
            rows: "INSERT INTO p_denied VALUES (1, 'x')",
            known: "INSERT INTO p_denied VALUES (2, 'y')",
            provoke: "REVOKE UPDATE ON p_denied FROM pgsluice_apply",
            change: "UPDATE p_denied SET v = 's3cr3t-row-value' WHERE id = 1",
            expected: Expected {
                kind: "permission_denied",
                operation: "update",
                key: json!({ "id": "1" }),
                incoming: json!({ "v": SECRET }),
                local: &[("v", "x")],
                constraint: Value::Null,
                sqlstate: json!("42501"),
            },
            fix: "GRANT UPDATE ON p_denied TO pgsluice_apply",
            table: "p_denied",
        },
        Case {
            name: "a truncated table is referenced",
            tables: "CREATE TABLE k_truncate (id int PRIMARY KEY)",
            rows: "",
            known: "",
            provoke: "CREATE TABLE referrer (id int REFERENCES k_truncate)",
            change: "TRUNCATE k_truncate",
            expected: Expected {
                kind: "constraint_violation",
                operation: "truncate",
                key: Value::Null,
                incoming: Value::Null,
                local: &[],
                constraint: Value::Null,
                sqlstate: json!("0A000"),
            },
            fix: "DROP TABLE referrer",
            table: "k_truncate",
        },
    ];
    run(&cases, ReplicaRole::Granted).await;
}

/// If the role may not set `session_replication_role`, foreign keys act, and deferred constraints fail
/// at COMMIT.
#[tokio::test]
async fn foreign_keys_and_deferred_constraints_where_the_session_is_no_replica() {
    let cases = [
        Case {
            name: "foreign key",
            tables: "CREATE TABLE f_parent (id int PRIMARY KEY); CREATE TABLE f_child (id int PRIMARY KEY, parent int)",
            rows: "",
            known: "",
            provoke: "ALTER TABLE f_child ADD CONSTRAINT has_parent FOREIGN KEY (parent) REFERENCES f_parent",
            change: "INSERT INTO f_child VALUES (1, 5)",
            expected: Expected {
                kind: "constraint_violation",
                operation: "insert",
                key: json!({ "id": "1" }),
                incoming: json!({ "parent": "5" }),
                local: &[],
                constraint: json!("has_parent"),
                sqlstate: json!("23503"),
            },
            fix: "INSERT INTO f_parent VALUES (5)",
            table: "f_child",
        },
        Case {
            name: "deferred foreign key",
            tables: "CREATE TABLE d_parent (id int PRIMARY KEY); CREATE TABLE d_child (id int PRIMARY KEY, parent int)",
            rows: "",
            known: "",
            provoke: "ALTER TABLE d_child ADD CONSTRAINT later FOREIGN KEY (parent) REFERENCES d_parent \
                      DEFERRABLE INITIALLY DEFERRED",
            change: "INSERT INTO d_child VALUES (1, 5)",
            expected: Expected {
                kind: "constraint_violation",
                operation: "commit",
                key: Value::Null,
                incoming: Value::Null,
                local: &[],
                constraint: json!("later"),
                sqlstate: json!("23503"),
            },
            fix: "INSERT INTO d_parent VALUES (5)",
            table: "d_child",
        },
    ];
    run(&cases, ReplicaRole::Withheld).await;
}

#[tokio::test]
async fn a_table_that_goes_while_it_is_replicated_waits_for_its_return() {
    let world = World::builder().both_sql("CREATE TABLE passing (id int PRIMARY KEY, v text)").start().await;
    let service = world.run();
    world.wait_state("streaming").await;
    // The service now has a plan and a prepared statement for the table.
    world.publisher.exec("INSERT INTO passing VALUES (1, 'x')").await;
    world.wait_same_rows("passing").await;
    world.target.exec("ALTER TABLE passing RENAME TO elsewhere").await;
    world.publisher.exec("INSERT INTO passing VALUES (2, 's3cr3t-row-value')").await;
    world.publisher.exec("UPDATE passing SET v = 'y' WHERE id = 1").await;
    let view = world.wait_state("paused").await;
    let reason = view.reason.clone().unwrap_or_default();
    assert!(["conflict", "schema"].contains(&reason.as_str()), "{:#}", view.json);
    assert!(view.told().contains("passing"), "{:#}", view.json);
    if let Some(id) = view.conflict_id() {
        let found = show(&world, &id).await;
        assert_eq!(
            (&found["kind"], &found["operation"]),
            (&json!("table_missing"), &json!("insert")),
            "{found:#}"
        );
        assert_eq!(found["target"], "public.passing", "{found:#}");
        assert_eq!(found["incoming"]["v"], SECRET, "{found:#}");
    }
    world.target.exec("ALTER TABLE elsewhere RENAME TO passing").await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_same_rows("passing").await;
    world.wait_state("streaming").await;
    assert!(!service.log().contains(SECRET), "a row's value is in the log");
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn skip_transaction_passes_over_exactly_that_one() {
    let world = World::builder().both_sql("CREATE TABLE item (id int PRIMARY KEY, v text)").start().await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.target.exec("INSERT INTO item VALUES (2, 'local'), (20, 'local')").await;
    world.publisher.exec("INSERT INTO item VALUES (1, 'a')").await;
    world
        .publisher
        .exec("BEGIN; INSERT INTO item VALUES (3, 'a'); INSERT INTO item VALUES (2, 'a'); COMMIT")
        .await;
    world.publisher.exec("INSERT INTO item VALUES (4, 'a')").await;
    world.publisher.exec("INSERT INTO item VALUES (20, 'a')").await;
    world.publisher.exec("INSERT INTO item VALUES (5, 'a')").await;

    let view = world.wait_paused("conflict").await;
    let id = view.conflict_id().unwrap();
    let finish = show(&world, &id).await["commit_lsn"].as_str().unwrap().to_owned();
    // Any other position is refused, even one nearby.
    let (high, low) = finish.split_once('/').unwrap();
    let low = u32::from_str_radix(low, 16).unwrap();
    for other in [low - 1, low + 1, low + 8] {
        let lsn = format!("{high}/{other:X}");
        let refused = world.pgsluice(&["skip", &world.subscription, "--lsn", &lsn]).await.expect(1);
        assert!(refused.stderr.contains(&finish), "{refused:#?}");
    }
    for how in ["apply-remote", "keep-local"] {
        world.pgsluice(&["conflicts", "resolve", &id, "--with", how]).await.expect(2);
    }
    assert_eq!(world.wait_paused("conflict").await.conflict_id().as_deref(), Some(id.as_str()));

    let skipped =
        world.pgsluice(&["conflicts", "resolve", &id, "--with", "skip-transaction"]).await.expect(0);
    assert!(skipped.stdout.contains("passed over"), "{skipped:#?}");
    // Replication continues up to the next conflict, which is another one.
    let next = until("the second conflict holds it", async || {
        let view = world.status().await?;
        match view.conflict_id() {
            Some(next) if next != id => Ok(next),
            _ => Err(format!("{:#}", view.json)),
        }
    })
    .await;
    let there = "SELECT id || ' ' || v FROM item ORDER BY id";
    assert_eq!(world.target.lines(there).await, ["1 a", "2 local", "4 a", "20 local"]);
    assert_eq!(show(&world, &id).await["settled"]["resolution"], "skip-transaction");
    world.pgsluice(&["conflicts", "resolve", &id, "--with", "retry"]).await.expect(1);

    // A skip by position without a running service survives a kill.
    service.kill9().await;
    let finish = show(&world, &next).await["commit_lsn"].as_str().unwrap().to_owned();
    world.pgsluice(&["skip", &world.subscription, "--lsn", &finish]).await.expect(0);
    let service = world.run();
    until("row 5 is in the target", async || world.target.value("SELECT 1 FROM item WHERE id = 5").await)
        .await;
    world.wait_state("streaming").await;
    assert_eq!(world.target.lines(there).await, ["1 a", "2 local", "4 a", "5 a", "20 local"]);
    assert_eq!(show(&world, &next).await["settled"]["resolution"], "skip-transaction");
    assert!(world.status().await.unwrap().json["skip_lsn"].is_null());
    assert_eq!(service.sigterm().await, 0);
}

/// The skip is recorded in the transaction of the rows; the note beside it may follow after a crash.
#[tokio::test]
async fn a_skip_is_settled_after_a_crash_that_followed_its_commit() {
    let world = World::builder().both_sql("CREATE TABLE item (id int PRIMARY KEY, v text)").start().await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.target.exec("INSERT INTO item VALUES (1, 'local')").await;
    world.publisher.exec("INSERT INTO item VALUES (1, 'a')").await;
    let id = world.wait_paused("conflict").await.conflict_id().unwrap();
    world.pgsluice(&["conflicts", "resolve", &id, "--with", "skip-transaction"]).await.expect(0);
    world.wait_state("streaming").await;
    world.wait_caught_up().await;
    service.kill9().await;
    // The state that such a crash leaves.
    world
        .target
        .exec(
            "UPDATE pgsluice.subscription s SET skip_lsn = c.commit_lsn FROM pgsluice.conflict c;
             UPDATE pgsluice.conflict SET resolved_at = NULL, resolution = NULL, resolved_by = NULL",
        )
        .await;
    let service = world.run();
    until("the skip is settled", async || {
        let settled = show(&world, &id).await["settled"]["resolution"].clone();
        if settled == "skip-transaction" { Ok(()) } else { Err(format!("{settled}")) }
    })
    .await;
    world.wait_state("streaming").await;
    assert!(world.status().await.unwrap().json["skip_lsn"].is_null());
    assert!(service.log().contains("was passed over before the service ended"), "{}", service.log());
    assert!(!service.log().contains("the skip is over"), "{}", service.log());
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn a_conflict_waits_through_restarts_and_resolve_retry_tries_again() {
    let world = World::builder().both_sql("CREATE TABLE item (id int PRIMARY KEY, v text)").start().await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.target.exec("INSERT INTO item VALUES (1, 'local')").await;
    world.publisher.exec("INSERT INTO item VALUES (1, 'a'), (2, 'b')").await;
    let before = world.wait_paused("conflict").await;
    let id = before.conflict_id().unwrap();

    service.kill9().await;
    let service = world.run();
    until("it runs, paused as before", async || {
        let view = world.status().await?;
        if view.json["running"] == true && view.json["state"] == "paused" {
            Ok(())
        } else {
            Err(format!("{:#}", view.json))
        }
    })
    .await;
    let after = world.wait_paused("conflict").await;
    assert_eq!(after.conflict_id().as_deref(), Some(id.as_str()));
    assert_eq!(after.told(), before.told());
    let occurrences = format!("SELECT occurrences FROM pgsluice.conflict WHERE id = {id}");
    assert_eq!(world.target.value(&occurrences).await.as_deref(), Some("1"), "a restart is no retry");

    world.target.exec("DELETE FROM item WHERE id = 1").await;
    world.pgsluice(&["conflicts", "resolve", &id, "--with", "retry"]).await.expect(0);
    world.wait_same_rows("item").await;
    world.wait_state("streaming").await;
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn a_retry_interval_heals_by_itself_and_says_the_same_thing_once() {
    let world = World::builder()
        .both_sql("CREATE TABLE item (id int PRIMARY KEY, v text)")
        .subscription_line("retry_conflict_interval = \"2s\"")
        .start()
        .await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.target.exec("INSERT INTO item VALUES (1, 'local')").await;
    world.publisher.exec("INSERT INTO item VALUES (1, 'a')").await;
    world.wait_paused("conflict").await;
    let occurrences = "SELECT max(occurrences) >= 3 FROM pgsluice.conflict";
    until("it has been tried again and again", async || {
        world.target.value(occurrences).await.as_deref() == Some("t")
    })
    .await;
    assert_eq!(service.log().matches("paused on a conflict").count(), 1, "{}", service.log());
    world.target.exec("DELETE FROM item").await;
    world.wait_same_rows("item").await;
    world.wait_state("streaming").await;
    assert_eq!(world.target.value("SELECT count(*) FROM pgsluice.conflict").await.as_deref(), Some("1"));
    assert_eq!(service.sigterm().await, 0);
}

/// Seen: equal values of these types were marked as different, because a cast to text has another form, or because the
/// role had settings of its own.
#[tokio::test]
async fn equal_values_look_equal_in_the_evidence() {
    let world = World::builder()
        .both_sql(
            "CREATE TYPE pair AS (at timestamptz, raw bytea);
             CREATE TABLE t (id int PRIMARY KEY, bo boolean, ch char(5), ine inet, at timestamptz, ats timestamptz[], \
                 raw bytea, p pair, none text, r tstzrange)",
        )
        .target_sql("ALTER ROLE pgsluice_apply SET timezone = 'Asia/Kathmandu'; ALTER ROLE pgsluice_apply SET bytea_output = 'escape'")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let row = "INSERT INTO t VALUES (1, true, 'ab', '10.0.0.1', '2024-01-01 12:00+00', '{2024-01-01 12:00+00}', '\\x00ff', \
        ROW('2024-01-01 12:00+00', '\\x00ff'), NULL, '[2024-01-01 12:00+00,)')";
    world.target.exec(row).await;
    world.publisher.exec(row).await;
    let conflict = world.wait_conflict().await;
    assert_eq!(conflict["kind"], "insert_exists", "{conflict:#}");
    assert_eq!(conflict["incoming"], conflict["local_rows"][0], "{conflict:#}");
}
