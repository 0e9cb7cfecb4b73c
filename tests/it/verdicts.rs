//! Applying in sets and row by row has the same result: the same stream goes into two tables of the
//! same shape, one of which has a trigger that forces row by row, and ends with the same rows or with
//! the same conflict at the same change.
//!
//! The cases are those in which compaction could go wrong: keys that the target takes for equal
//! although their bytes differ, states that a row only passes through and that the target would refuse,
//! and tables that share rows.

use std::fmt::Write as _;

use crate::support::wait::until;
use crate::support::world::{PUBLISHER_ROLE, World, conninfo};

/// One history. `$` stands for a prefix that distinguishes its names from those of the others.
struct Case {
    name: &'static str,
    /// Published tables, without the prefix; the target's have the same names.
    sources: &'static [&'static str],
    /// Statements for the publisher's tables and their initial rows.
    publisher: &'static str,
    /// Statements for the target's tables and their initial rows. The test examines `$t`.
    target: &'static str,
    /// The transactions of the history.
    history: &'static [&'static str],
    /// The conflict that it ends with, and the number of the transaction, from 1; none if there is no
    /// conflict.
    conflict: Option<(&'static str, usize)>,
}

const CASE: Case = Case {
    name: "",
    sources: &["t"],
    publisher: "CREATE TABLE $t (id text PRIMARY KEY, a text)",
    target: "CREATE TABLE $t (id text PRIMARY KEY, a text)",
    history: &[],
    conflict: None,
};

/// The publisher distinguishes `a` from `A` and 1.0 from 1.00; the target does not.
const FOLDING: Case = Case {
    target: "CREATE TABLE $t (id text COLLATE folding PRIMARY KEY, a text); INSERT INTO $t VALUES ('a', 'old')",
    publisher: "CREATE TABLE $t (id text PRIMARY KEY, a text); INSERT INTO $t VALUES ('a', 'old')",
    ..CASE
};
const NUMERIC: Case = Case {
    target: "CREATE TABLE $t (id numeric PRIMARY KEY, a text); INSERT INTO $t VALUES (1.0, 'old')",
    publisher: "CREATE TABLE $t (id numeric, a text); ALTER TABLE $t REPLICA IDENTITY FULL;
                INSERT INTO $t VALUES (1.0, 'old'), (1.00, 'old')",
    ..CASE
};
const FLOAT: Case = Case {
    target: "CREATE TABLE $t (id float8 PRIMARY KEY, a text); INSERT INTO $t VALUES (0, 'old')",
    publisher: "CREATE TABLE $t (id float8, a text); ALTER TABLE $t REPLICA IDENTITY FULL;
                INSERT INTO $t VALUES (0, 'old')",
    ..CASE
};

const FOLDED_KEYS: &[Case] = &[
    Case {
        name: "folding_insert",
        history: &["INSERT INTO $t VALUES ('b', 'x')", "INSERT INTO $t VALUES ('B', 'y')"],
        conflict: Some(("insert_exists", 2)),
        ..FOLDING
    },
    Case {
        name: "folding_insert_then_delete",
        // If the deletes were applied first, there would be no conflict.
        history: &["INSERT INTO $t VALUES ('A', 'x')", "DELETE FROM $t WHERE id = 'a'"],
        conflict: Some(("insert_exists", 1)),
        ..FOLDING
    },
    Case {
        name: "folding_update_then_delete",
        history: &[
            "UPDATE $t SET a = 'x' WHERE id = 'a'",
            "DELETE FROM $t WHERE id = 'a'",
            "INSERT INTO $t VALUES ('A', 'y')",
            "UPDATE $t SET a = 'z' WHERE id = 'A'",
            "UPDATE $t SET id = 'a' WHERE id = 'A'",
        ],
        ..FOLDING
    },
];

const NUMERIC_KEYS: &[Case] = &[
    Case {
        name: "numeric_insert",
        history: &["INSERT INTO $t VALUES (2.0, 'x')", "INSERT INTO $t VALUES (2.00, 'y')"],
        conflict: Some(("insert_exists", 2)),
        ..NUMERIC
    },
    Case {
        name: "numeric_insert_then_delete",
        history: &["INSERT INTO $t VALUES (1.000, 'x')", "DELETE FROM $t WHERE id::text = '1.0'"],
        conflict: Some(("insert_exists", 1)),
        ..NUMERIC
    },
    Case {
        name: "numeric_updates",
        history: &[
            "UPDATE $t SET a = 'x' WHERE id::text = '1.00'",
            "UPDATE $t SET a = 'y' WHERE id::text = '1.0'",
            "UPDATE $t SET id = 1.000 WHERE id::text = '1.0'",
            "DELETE FROM $t WHERE id::text = '1.000'",
        ],
        ..NUMERIC
    },
    Case {
        name: "numeric_deletes",
        history: &["DELETE FROM $t WHERE id::text = '1.00'", "DELETE FROM $t WHERE id::text = '1.0'"],
        conflict: Some(("delete_missing", 2)),
        ..NUMERIC
    },
    Case {
        name: "float",
        history: &["INSERT INTO $t VALUES ('-0', 'x')", "DELETE FROM $t WHERE id::text = '0'"],
        conflict: Some(("insert_exists", 1)),
        ..FLOAT
    },
];

const LOOSE_KEYS: &[Case] = &[
    Case {
        name: "index_of_another_collation",
        target: "CREATE TABLE $t (id text NOT NULL, a text); CREATE UNIQUE INDEX ON $t (id COLLATE folding);
                 INSERT INTO $t VALUES ('a', 'old')",
        history: &["INSERT INTO $t VALUES ('A', 'x')", "DELETE FROM $t WHERE id = 'a'"],
        conflict: Some(("insert_exists", 1)),
        ..FOLDING
    },
    Case {
        name: "index_that_tells_more_apart",
        target: "CREATE TABLE $t (id text COLLATE folding NOT NULL, a text);
                 CREATE UNIQUE INDEX ON $t (id COLLATE \"C\"); INSERT INTO $t VALUES ('a', 'old'), ('A', 'old')",
        publisher: "CREATE TABLE $t (id text PRIMARY KEY, a text);
                    INSERT INTO $t VALUES ('a', 'old'), ('A', 'old'), ('b', 'old')",
        // One key matches two rows, the other none. The number of rows is as planned, but both changes
        // are wrong.
        history: &["DELETE FROM $t WHERE id IN ('a', 'b')"],
        conflict: Some(("target_error", 1)),
        ..CASE
    },
];

const PASSING_VALUES: &[Case] = &[
    Case {
        name: "check",
        target: "CREATE TABLE $t (id text PRIMARY KEY, a text CHECK (a <> 'bad'))",
        history: &["INSERT INTO $t VALUES ('1', 'bad')", "UPDATE $t SET a = 'good'"],
        conflict: Some(("constraint_violation", 1)),
        ..CASE
    },
    Case {
        name: "not_null",
        target: "CREATE TABLE $t (id text PRIMARY KEY, a text NOT NULL)",
        history: &["INSERT INTO $t VALUES ('1', 'good')", "UPDATE $t SET a = NULL", "DELETE FROM $t"],
        conflict: Some(("constraint_violation", 2)),
        ..CASE
    },
    Case {
        name: "length",
        target: "CREATE TABLE $t (id text PRIMARY KEY, a varchar(3))",
        history: &["INSERT INTO $t VALUES ('1', 'long')", "DELETE FROM $t"],
        conflict: Some(("value_error", 1)),
        ..CASE
    },
    Case {
        name: "label",
        publisher: "CREATE TYPE $mood AS ENUM ('sad', 'ok'); CREATE TABLE $t (id text PRIMARY KEY, a $mood)",
        target: "CREATE TYPE $mood AS ENUM ('ok'); CREATE TABLE $t (id text PRIMARY KEY, a $mood)",
        history: &["INSERT INTO $t VALUES ('1', 'ok')", "UPDATE $t SET a = 'sad'", "UPDATE $t SET a = 'ok'"],
        conflict: Some(("value_error", 2)),
        ..CASE
    },
    Case {
        name: "domain",
        target: "CREATE DOMAIN $code AS text CHECK (VALUE <> 'bad');
                 CREATE TABLE $t (id text PRIMARY KEY, a $code)",
        history: &["INSERT INTO $t VALUES ('1', 'bad')", "UPDATE $t SET a = 'good'"],
        conflict: Some(("constraint_violation", 1)),
        ..CASE
    },
];

const PASSING_ROWS: &[Case] = &[
    Case {
        name: "generated",
        target: "CREATE TABLE $t (id text PRIMARY KEY, a text,
                   g int GENERATED ALWAYS AS (1 / length(a)) STORED)",
        history: &["INSERT INTO $t VALUES ('1', 'x')", "UPDATE $t SET a = ''", "UPDATE $t SET a = 'y'"],
        conflict: Some(("value_error", 2)),
        ..CASE
    },
    Case {
        name: "index_expression",
        target: "CREATE TABLE $t (id text PRIMARY KEY, a text); CREATE INDEX ON $t ((1 / length(a)))",
        history: &["INSERT INTO $t VALUES ('1', '')", "DELETE FROM $t"],
        conflict: Some(("value_error", 1)),
        ..CASE
    },
    Case {
        name: "partition_bounds",
        target: "CREATE TABLE $whole (id text, a text, PRIMARY KEY (id, a)) PARTITION BY LIST (a);
                 CREATE TABLE $t PARTITION OF $whole FOR VALUES IN ('good')",
        publisher: "CREATE TABLE $t (id text, a text, PRIMARY KEY (id, a))",
        history: &["INSERT INTO $t VALUES ('1', 'bad')", "DELETE FROM $t"],
        conflict: Some(("constraint_violation", 1)),
        ..CASE
    },
];

#[tokio::test]
async fn texts_that_a_collation_folds_are_one_key() {
    both_ways(FOLDED_KEYS).await;
}

#[tokio::test]
async fn numbers_that_only_look_different_are_one_key() {
    both_ways(NUMERIC_KEYS).await;
}

#[tokio::test]
async fn an_index_may_tell_keys_apart_otherwise_than_its_column() {
    both_ways(LOOSE_KEYS).await;
}

/// One published table goes into a partition, the other one into the partitioned table.
const SHARED_ROWS: &[Case] = &[Case {
    name: "shared",
    sources: &["t", "leaf"],
    publisher: "CREATE TABLE $t (id text PRIMARY KEY, a text); CREATE TABLE $leaf (id text PRIMARY KEY, a text);
                INSERT INTO $t VALUES ('1', 'old'), ('2', 'old'); INSERT INTO $leaf VALUES ('1', 'old'), ('2', 'old')",
    target: "CREATE TABLE $t (id text PRIMARY KEY, a text) PARTITION BY LIST (id);
             CREATE TABLE $leaf PARTITION OF $t DEFAULT; INSERT INTO $t VALUES ('1', 'old'), ('2', 'old')",
    history: &[
        "UPDATE $leaf SET a = 'first' WHERE id = '2'",
        "UPDATE $t SET a = 'second' WHERE id = '1'",
        "UPDATE $leaf SET a = 'third' WHERE id = '1'",
    ],
    ..CASE
}];

/// The planner reads all of such a small table in the order of an index. Then the unique value that the
/// first change takes would already be free.
const SMALL_TABLES: &[Case] = &[Case {
    name: "small",
    publisher: "CREATE TABLE $t (id text PRIMARY KEY, a text); INSERT INTO $t VALUES ('1', 'x'), ('2', 'y')",
    target:
        "CREATE TABLE $t (id text PRIMARY KEY, a text UNIQUE); INSERT INTO $t VALUES ('1', 'x'), ('2', 'y');
             ANALYZE $t",
    history: &["UPDATE $t SET a = 'x' WHERE id = '2'", "UPDATE $t SET a = 'z' WHERE id = '1'"],
    conflict: Some(("update_exists", 1)),
    ..CASE
}];

#[tokio::test]
async fn rows_of_a_set_are_updated_in_their_order() {
    both_ways(SMALL_TABLES).await;
}

#[tokio::test]
async fn tables_that_share_rows_keep_their_order() {
    both_ways(SHARED_ROWS).await;
}

#[tokio::test]
async fn a_passing_value_that_is_refused_is_a_conflict() {
    both_ways(PASSING_VALUES).await;
}

#[tokio::test]
async fn a_passing_row_that_is_refused_is_a_conflict() {
    both_ways(PASSING_ROWS).await;
}

/// Prefixes of a case's tables for the two ways of applying.
const WAYS: [&str; 2] = ["sets", "rows"];

fn prefix(case: &Case, way: &str) -> String {
    format!("{}_{way}_", case.name)
}

const STREAMING: &str = "SELECT count(*) FROM pgsluice.subscription WHERE state = 'streaming'";

async fn both_ways(cases: &[Case]) {
    let mut builder = World::builder()
        .publisher_sql("CREATE PUBLICATION my_publication")
        .target_sql(
            "CREATE COLLATION folding (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
             CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        )
        .publisher_setting("max_replication_slots", "20")
        .publisher_setting("max_wal_senders", "20")
        .publisher_setting("max_connections", "200");
    for case in cases {
        let source = format!("{}_", case.name);
        let tables: Vec<String> = case.sources.iter().map(|table| format!("{source}{table}")).collect();
        builder = builder.publisher_sql(&case.publisher.replace('$', &source)).publisher_sql(&format!(
            "CREATE PUBLICATION \"{}\" FOR TABLE {}",
            case.name,
            tables.join(", ")
        ));
        for way in WAYS {
            builder = builder.target_sql(&case.target.replace('$', &prefix(case, way)));
        }
        for table in case.sources {
            builder = builder.target_sql(&format!(
                "CREATE TRIGGER keeps_it_exact AFTER INSERT ON {0}{table} EXECUTE FUNCTION nothing();
                 ALTER TABLE {0}{table} ENABLE ALWAYS TRIGGER keeps_it_exact",
                prefix(case, "rows")
            ));
        }
    }
    let world = builder.subscription_line("enabled = false").start().await;
    subscribe(&world, cases);
    let service = world.run();
    until("all are streaming", async || {
        let there = world.target.value("SELECT to_regclass('pgsluice.progress')").await;
        there.ok_or("no schema yet".to_owned())?;
        let others = "SELECT name, state, reason, detail FROM pgsluice.subscription
                       WHERE state NOT IN ('streaming', 'disabled')";
        let (others, streaming) = (world.target.lines(others).await, world.target.lines(STREAMING).await);
        if streaming == [(cases.len() * WAYS.len()).to_string()] { Ok(()) } else { Err(others.join("\n")) }
    })
    .await;
    assert_eq!(service.sigterm().await, 0);
    // Changes made while the service is stopped arrive together, and are applied as sets.
    for case in cases {
        for transaction in case.history {
            world.publisher.exec(transaction.replace('$', &format!("{}_", case.name))).await;
        }
    }
    let end = world.publisher.value("SELECT pg_current_wal_lsn()").await.expect("a position");
    let service = world.run();
    let mut wrong = String::new();
    for case in cases {
        let (sets, rows) =
            (outcome(&world, case, "sets", &end).await, outcome(&world, case, "rows", &end).await);
        let conflict = case.conflict.map_or("none".to_owned(), |(kind, at)| format!("{kind} at {at}"));
        if sets != rows || sets.verdict != conflict {
            let _ =
                write!(wrong, "\n{}, conflict {conflict}\nin sets: {sets:#?}\nby rows: {rows:#?}", case.name);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert_eq!(service.sigterm().await, 0);
}

/// Configures two subscriptions for a case, one for each way.
fn subscribe(world: &World, cases: &[Case]) {
    let mut config = std::fs::read_to_string(&world.config).expect("the configuration");
    let publisher = conninfo(&world.publisher, PUBLISHER_ROLE);
    for case in cases {
        for way in WAYS {
            let _ = write!(
                config,
                "[[subscriptions]]\nname = \"{name}_{way}\"\npublisher = '''{publisher}'''\n\
                 publications = [\"{name}\"]\ncopy_data = false\n",
                name = case.name,
            );
            for source in case.sources {
                let _ = write!(
                    config,
                    "[[subscriptions.tables]]\nsource = \"public.{}_{source}\"\ntarget = \"public.{}{source}\"\n",
                    case.name,
                    prefix(case, way)
                );
            }
        }
    }
    std::fs::write(&world.config, config).expect("the configuration");
}

#[derive(Debug, PartialEq)]
struct Outcome {
    /// The conflict's kind and the number of its transaction, such as `insert_exists at 2`.
    verdict: String,
    /// The position at which that transaction commits on the publisher, and the number of the change.
    place: Option<(String, String)>,
    rows: Vec<String>,
}

/// Returns how a case ended: paused on a conflict, or caught up to `end`.
async fn outcome(world: &World, case: &Case, way: &str, end: &str) -> Outcome {
    let name = format!("{}_{way}", case.name);
    let conflict = format!(
        "SELECT COALESCE(c.kind, s.reason), c.commit_lsn, c.change_index, p.transactions + 1
           FROM pgsluice.subscription s JOIN pgsluice.progress p ON p.subscription = s.name
           LEFT JOIN pgsluice.conflict c ON c.id = s.conflict_id
          WHERE s.name = '{name}' AND s.state = 'paused'"
    );
    let done =
        format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = '{name}'");
    let found = until(&format!("{name} is done"), async || {
        if let Some(conflict) = world.target.lines(&conflict).await.pop() {
            return Ok(Some(conflict));
        }
        if world.publisher.value(&done).await.as_deref() == Some("t") {
            return Ok(None);
        }
        let state = "SELECT name, state, reason, detail FROM pgsluice.subscription";
        Err(format!("{:#?}", world.target.lines(state).await))
    })
    .await;
    let rows = format!("SELECT id::text, a::text FROM {}t ORDER BY 1, 2", prefix(case, way));
    let rows = world.target.lines(&rows).await;
    let Some(conflict) = found else { return Outcome { verdict: "none".to_owned(), place: None, rows } };
    let [kind, commit_lsn, change_index, transaction] = conflict.split('|').collect::<Vec<_>>()[..] else {
        panic!("four columns: {conflict}");
    };
    let place = Some((commit_lsn.to_owned(), change_index.to_owned()));
    Outcome { verdict: format!("{kind} at {transaction}"), place, rows }
}
