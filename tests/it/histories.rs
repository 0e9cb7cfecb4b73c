//! Random histories over tables of many shapes, applied in batches, end with the same rows on both
//! sides, and none has to be applied again row by row.
//!
//! `PGSLUICE_SEED` replays a run's history, `PGSLUICE_TRANSACTIONS` sets its length.

use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::support::service::Service;
use crate::support::world::World;

const TRANSACTIONS_DEFAULT: u64 = 400;
/// The range of keys is small, so that transactions change the same rows.
const KEYS: std::ops::Range<u32> = 0..24;

/// A table with the statements that change it.
struct Shape {
    name: &'static str,
    /// Columns on both sides.
    columns: &'static str,
    /// Statements for the target only.
    target: &'static str,
    /// Statements for the publisher only.
    publisher: &'static str,
    /// Templates with key `$k` and a random number `$n`: a row, the condition that finds it, and
    /// changes of it.
    row: &'static str,
    condition: &'static str,
    changes: &'static [&'static str],
    /// A change of the key to `$k`, if that is free.
    moves: &'static str,
}

const SHAPES: &[Shape] = &[
    Shape {
        name: "plain",
        columns: "id int PRIMARY KEY, a text, n int",
        target: "ALTER TABLE plain ADD note text DEFAULT 'local'; CREATE INDEX ON plain (a)",
        publisher: "",
        row: "$k, 'a' || $n, $n",
        condition: "id = $k",
        changes: &["n = n + 1", "a = NULL, n = $n", "a = repeat('long ', 1 + $n * 3)"],
        moves: "id = $k",
    },
    Shape {
        name: "composite",
        columns: "part text, id int, a text, PRIMARY KEY (part, id)",
        target: "",
        publisher: "",
        row: "'p' || $k % 3, $k, 'a' || $n",
        condition: "id = $k AND part = 'p' || $k % 3",
        changes: &["a = a || $n", "a = $n"],
        moves: "id = $k, part = 'p' || $k % 3",
    },
    Shape {
        name: "keyless",
        columns: "id int, a text",
        target: "",
        publisher: "ALTER TABLE keyless REPLICA IDENTITY FULL",
        row: "$k, NULLIF('a' || $n % 3, 'a0')",
        condition: "ctid = (SELECT ctid FROM keyless WHERE id = $k LIMIT 1)",
        changes: &["a = 'b' || $n % 3", "a = NULL"],
        moves: "id = $k",
    },
    Shape {
        name: "whole",
        columns: "id int PRIMARY KEY, a text, n int",
        target: "",
        publisher: "ALTER TABLE whole REPLICA IDENTITY FULL",
        row: "$k, 'a' || $n, $n",
        condition: "id = $k",
        changes: &["n = n + 1", "a = NULL"],
        moves: "id = $k",
    },
    Shape {
        name: "second",
        columns: "id int PRIMARY KEY, u int UNIQUE, a text",
        target: "",
        publisher: "",
        row: "$k, $n, 'a'",
        condition: "id = $k",
        changes: &["u = $n", "u = NULL", "a = $n"],
        moves: "id = $k",
    },
    Shape {
        name: "checked",
        columns: "id int PRIMARY KEY, n int, a varchar(9)",
        target: "ALTER TABLE checked ADD CHECK (n >= 0), ALTER a TYPE varchar(8)",
        publisher: "",
        row: "$k, $n, 'a' || $n",
        condition: "id = $k",
        changes: &["n = $n", "n = n + 1, a = NULL"],
        moves: "id = $k",
    },
    Shape {
        name: "generated",
        columns: "id int PRIMARY KEY, n int",
        target: "ALTER TABLE generated ADD twice int GENERATED ALWAYS AS (n * 2) STORED",
        publisher: "",
        row: "$k, $n",
        condition: "id = $k",
        changes: &["n = $n", "n = n + 1"],
        moves: "id = $k",
    },
    Shape {
        name: "toasted",
        columns: "id int PRIMARY KEY, big text, other text, n int",
        target: "",
        publisher: "ALTER TABLE toasted ALTER big SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL",
        row: "$k, repeat('b' || $n, 1200), repeat('o' || $n, 1200), $n",
        condition: "id = $k",
        changes: &["n = $n", "big = repeat('c' || $n, 1200)", "other = NULL", "n = n + 1"],
        moves: "id = $k",
    },
    Shape {
        name: "amounts",
        columns: "id numeric PRIMARY KEY, a text",
        target: "",
        publisher: "",
        row: "$k::numeric(9, 2), 'a' || $n",
        condition: "id = $k",
        changes: &["a = $n", "id = id::numeric(9, 2)", "id = id::numeric(9, 4)"],
        moves: "id = $k",
    },
    Shape {
        name: "labels",
        columns: "id uuid PRIMARY KEY, mood mood, at timestamptz",
        target: "",
        publisher: "",
        row: "md5('$k')::uuid, 'ok', timestamptz '2024-01-01' + make_interval(days => $n)",
        condition: "id = md5('$k')::uuid",
        changes: &["mood = 'sad'", "mood = 'ok', at = NULL"],
        moves: "id = md5('$k')::uuid",
    },
    Shape {
        name: "parted",
        columns: "id int, region int, a text, PRIMARY KEY (id, region)",
        target: "ALTER TABLE parted RENAME TO p0;
                 CREATE TABLE parted (LIKE p0 INCLUDING INDEXES) PARTITION BY LIST (region); DROP TABLE p0;
                 CREATE TABLE parted_0 PARTITION OF parted FOR VALUES IN (0);
                 CREATE TABLE parted_rest PARTITION OF parted DEFAULT",
        publisher: "CREATE UNIQUE INDEX ON parted (id)",
        row: "$k, $k % 3, 'a' || $n",
        condition: "id = $k",
        changes: &["a = $n", "region = $n % 3"],
        moves: "id = $k",
    },
];

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {value}")))
}

#[tokio::test]
async fn random_histories_end_alike_on_both_sides() {
    let seed = number("PGSLUICE_SEED").unwrap_or_else(rand::random);
    let transactions = number("PGSLUICE_TRANSACTIONS").unwrap_or(TRANSACTIONS_DEFAULT);
    println!("PGSLUICE_SEED={seed} PGSLUICE_TRANSACTIONS={transactions} replays this history");
    let mut random = StdRng::seed_from_u64(seed);
    let mut builder = World::builder().both_sql("CREATE TYPE mood AS ENUM ('sad', 'ok')");
    for shape in SHAPES {
        let table = shape.name;
        builder = builder
            .both_sql(&format!("CREATE TABLE {table} ({})", shape.columns))
            .publisher_sql(&format!("{}; {}", shape.publisher, shape.insert(&mut random, 12)))
            .target_sql(shape.target);
    }
    let world = builder.start().await;
    let service = world.run();
    world.wait_state("streaming").await;
    for shape in SHAPES {
        world.wait_same_rows(shape.name).await;
    }
    assert_eq!(service.sigterm().await, 0);
    // Changes made while the service is stopped arrive together, and are applied in batches.
    let mut script = String::new();
    for _ in 0..transactions {
        script.push_str(&transaction(&mut random));
    }
    world.publisher.exec(script).await;
    let service = world.run();
    world.wait_caught_up().await;
    for shape in SHAPES {
        world.assert_same_rows(shape.name).await;
    }
    let wrong = "SELECT id FROM generated WHERE twice IS DISTINCT FROM n * 2";
    assert_eq!(world.target.lines(wrong).await, [""; 0], "generated columns follow");
    assert_never_fell_back(&service);
    assert_eq!(service.sigterm().await, 0);
}

/// Checks that no batch was replayed, since nothing here is a conflict.
fn assert_never_fell_back(service: &Service) {
    assert!(!service.log().contains("replayed row by row"), "{}", service.log());
}

/// Returns a few statements over a few tables; some are rolled back.
fn transaction(random: &mut StdRng) -> String {
    let mut text = "BEGIN;\n".to_owned();
    for _ in 0..random.random_range(1..6) {
        let shape = &SHAPES[random.random_range(0..SHAPES.len())];
        if shape.name == "keyless" && random.random_ratio(4, 5) {
            // The table's updates are applied row by row, with everything else of their transaction.
            continue;
        }
        text.push_str(&shape.statement(random));
    }
    text.push_str(if random.random_ratio(1, 20) { "ROLLBACK;\n" } else { "COMMIT;\n" });
    text
}

impl Shape {
    fn insert(&self, random: &mut StdRng, rows: u32) -> String {
        let mut text = String::new();
        for _ in 0..rows {
            let row = fill(self.row, random.random_range(KEYS), random);
            let _ = writeln!(text, "INSERT INTO {} VALUES ({row}) ON CONFLICT DO NOTHING;", self.name);
        }
        text
    }

    fn statement(&self, random: &mut StdRng) -> String {
        let (table, key) = (self.name, random.random_range(KEYS));
        let condition = fill(self.condition, key, random);
        match random.random_range(0..100) {
            0 => format!("TRUNCATE {table};\n"),
            1..30 => self.insert(random, 1),
            30..45 => format!("DELETE FROM {table} WHERE {condition};\n"),
            45..60 => {
                let to = random.random_range(KEYS);
                let (moves, free) = (fill(self.moves, to, random), fill(self.condition, to, random));
                tolerant(&format!(
                    "UPDATE {table} SET {moves} WHERE {condition} AND NOT EXISTS (SELECT FROM {table} WHERE {free})"
                ))
            }
            _ => {
                let change = self.changes[random.random_range(0..self.changes.len())];
                tolerant(&format!("UPDATE {table} SET {} WHERE {condition}", fill(change, key, random)))
            }
        }
    }
}

/// Wraps a statement in a subtransaction, which is rolled back if its values exist already.
fn tolerant(statement: &str) -> String {
    format!("DO $$ BEGIN {statement}; EXCEPTION WHEN unique_violation THEN NULL; END $$;\n")
}

fn fill(template: &str, key: u32, random: &mut StdRng) -> String {
    template.replace("$k", &key.to_string()).replace("$n", &random.random_range(0..90).to_string())
}
