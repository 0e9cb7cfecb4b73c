//! The workloads. The servers generate the rows, which are the same on every run.

use std::fmt::Write as _;

use crate::Result;
use crate::stand::{BUILTIN_DB, PUBLICATION, SLUICE_DB, Stand};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Workload {
    Inserts,
    Updates,
    Deletes,
    SmallTransactions,
    TpcB,
    Mixed,
    Toast,
    Copy,
    ManyTables,
}

/// The columns of the row that all workloads but e and g have.
const ORDER_COLUMNS: &str = "(id bigint PRIMARY KEY, customer_id int NOT NULL, status text NOT NULL, \
    amount numeric(12,2) NOT NULL, created_at timestamptz NOT NULL, note text)";

const MIXED_TABLES: u64 = 20;
/// Number of rows of a mixed table that are updated; as many again are deleted.
const MIXED_ROWS: u64 = 10_000;
const MANY_TABLES: u64 = 4000;
const TPCB_SCALE: u64 = 10;
const TOAST_ROWS: u64 = 20_000;
const TOAST_PASSES: u64 = 5;

impl Workload {
    pub(crate) const ALL: [Self; 9] = [
        Self::Inserts,
        Self::Updates,
        Self::Deletes,
        Self::SmallTransactions,
        Self::TpcB,
        Self::Mixed,
        Self::Toast,
        Self::Copy,
        Self::ManyTables,
    ];

    pub(crate) fn letter(self) -> &'static str {
        match self {
            Self::Inserts => "a",
            Self::Updates => "b",
            Self::Deletes => "c",
            Self::SmallTransactions => "d",
            Self::TpcB => "e",
            Self::Mixed => "f",
            Self::Toast => "g",
            Self::Copy => "h",
            Self::ManyTables => "i",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Inserts => "1,000,000 inserts in one transaction",
            Self::Updates => "500,000 updates in one transaction",
            Self::Deletes => "500,000 deletes in one transaction",
            Self::SmallTransactions => "100,000 transactions of one insert",
            Self::TpcB => "100,000 pgbench TPC-B transactions, scale 10",
            Self::Mixed => "200,000 transactions of 5 mixed changes over 20 tables",
            Self::Toast => "100,000 updates of wide rows, TOAST unchanged",
            Self::Copy => "initial copy of 5,000,000 rows",
            Self::ManyTables => "1,000 transactions that touch 100 of 4,000 tables each",
        }
    }

    /// Whether the contestants copy existing rows instead of streaming changes.
    pub(crate) fn copies(self) -> bool {
        self == Self::Copy
    }

    /// Creates tables on all sides, with the rows that the changes need.
    pub(crate) async fn prepare(self, stand: &Stand, scale: f64) -> Result<()> {
        let (schema, rows) = (self.schema(), self.rows(scale));
        let publisher = stand.at_publisher().await?;
        publisher.batch(&schema).await?;
        publisher.batch(&rows).await?;
        publisher.batch("VACUUM ANALYZE").await?;
        publisher.batch(&format!("CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES")).await?;
        for database in [BUILTIN_DB, SLUICE_DB] {
            let target = stand.at_target(database).await?;
            target.batch(&schema).await?;
            if !self.copies() {
                target.batch(&rows).await?;
            }
            target.batch("VACUUM ANALYZE").await?;
            target.close().await;
        }
        publisher.close().await;
        Ok(())
    }

    /// Commits the workload on the publisher.
    pub(crate) async fn change(self, stand: &Stand, scale: f64) -> Result<()> {
        let publisher = stand.at_publisher().await?;
        for sql in self.changes(scale) {
            publisher.batch(&sql).await?;
        }
        publisher.close().await;
        Ok(())
    }

    /// Compares every table's rows on all sides.
    pub(crate) async fn verify(self, stand: &Stand) -> Result<()> {
        let publisher = stand.at_publisher().await?;
        let (builtin, sluice) = (stand.at_target(BUILTIN_DB).await?, stand.at_target(SLUICE_DB).await?);
        for table in self.tables() {
            let sql = format!(
                "SELECT count(*) || ' rows, sum ' || coalesce(sum(hashtextextended(t::text, 0)), 0) \
                 FROM {table} AS t"
            );
            let expected = publisher.value(&sql).await?;
            for (name, side) in [(BUILTIN_DB, &builtin), (SLUICE_DB, &sluice)] {
                let found = side.value(&sql).await?;
                if found != expected {
                    return Err(format!(
                        "{name} is wrong after workload {}: {table} holds {found:?}, the publisher {expected:?}",
                        self.letter()
                    )
                    .into());
                }
            }
        }
        for session in [publisher, builtin, sluice] {
            session.close().await;
        }
        Ok(())
    }

    fn tables(self) -> Vec<String> {
        match self {
            Self::Inserts | Self::Updates | Self::Deletes | Self::SmallTransactions | Self::Copy => {
                vec!["orders".to_owned()]
            }
            Self::TpcB => {
                ["branches", "tellers", "accounts", "history"].map(|t| format!("pgbench_{t}")).into()
            }
            Self::Mixed => (0..MIXED_TABLES).map(|n| format!("orders_{n}")).collect(),
            Self::Toast => vec!["documents".to_owned()],
            Self::ManyTables => (0..MANY_TABLES).map(|n| format!("many_{n}")).collect(),
        }
    }

    fn schema(self) -> String {
        match self {
            Self::TpcB => "CREATE TABLE pgbench_branches \
                    (bid int PRIMARY KEY, bbalance int, filler char(88)) WITH (fillfactor = 100); \
                CREATE TABLE pgbench_tellers \
                    (tid int PRIMARY KEY, bid int, tbalance int, filler char(84)) WITH (fillfactor = 100); \
                CREATE TABLE pgbench_accounts \
                    (aid int PRIMARY KEY, bid int, abalance int, filler char(84)) WITH (fillfactor = 100); \
                CREATE TABLE pgbench_history \
                    (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22))"
                .to_owned(),
            Self::Toast => {
                "CREATE TABLE documents (id bigint PRIMARY KEY, views int NOT NULL, title text NOT NULL, \
                    author text, summary text, tags text[], meta jsonb, changed_at timestamptz, body text); \
                ALTER TABLE documents ALTER body SET STORAGE EXTERNAL"
                    .to_owned()
            }
            Self::ManyTables => for_many_tables(&format!("CREATE TABLE many_%s {ORDER_COLUMNS}")),
            _ => {
                let tables = self.tables();
                tables.iter().fold(String::new(), |mut sql, table| {
                    let _ = write!(sql, "CREATE TABLE {table} {ORDER_COLUMNS};");
                    sql
                })
            }
        }
    }

    /// Statements that create the rows before the changes.
    fn rows(self, scale: f64) -> String {
        match self {
            Self::Inserts | Self::SmallTransactions => String::new(),
            Self::Updates | Self::Deletes => orders("orders", scaled(500_000, scale)),
            Self::Copy => orders("orders", scaled(5_000_000, scale)),
            Self::Mixed => self.tables().iter().map(|table| orders(table, 2 * MIXED_ROWS)).collect(),
            Self::ManyTables => for_many_tables(
                "INSERT INTO many_%s VALUES (-1, 1, ''new'', 1.25, ''2024-01-01 12:00+00'', ''first'')",
            ),
            Self::TpcB => format!(
                "INSERT INTO pgbench_branches SELECT n, 0, '' FROM generate_series(1, {TPCB_SCALE}) n; \
                 INSERT INTO pgbench_tellers \
                     SELECT n, (n - 1) / 10 + 1, 0, '' FROM generate_series(1, {TPCB_SCALE} * 10) n; \
                 INSERT INTO pgbench_accounts SELECT n, (n - 1) / 100000 + 1, 0, '' \
                     FROM generate_series(1, {TPCB_SCALE} * 100000) n;"
            ),
            Self::Toast => format!(
                "INSERT INTO documents SELECT n, 0, 'title of document ' || n, 'author ' || n % 100, \
                    repeat(md5(n::text), 4), ARRAY['one', 'two, three', md5(n::text)], \
                    jsonb_build_object('n', n, 'kind', 'letter', 'pages', n % 30), \
                    '2024-01-01 12:00+00'::timestamptz + n * interval '1 second', \
                    (SELECT string_agg(md5((n * 128 + i)::text), '') FROM generate_series(1, 128) i) \
                 FROM generate_series(1, {}) n;",
                scaled(TOAST_ROWS, scale)
            ),
        }
    }

    /// Statements that make the changes; each string is sent separately.
    fn changes(self, scale: f64) -> Vec<String> {
        match self {
            Self::Inserts => vec![orders("orders", scaled(1_000_000, scale))],
            Self::Updates => vec!["UPDATE orders SET status = 'shipped', amount = amount + 1".to_owned()],
            Self::Deletes => vec!["DELETE FROM orders".to_owned()],
            Self::Copy => Vec::new(),
            Self::SmallTransactions => in_transactions(
                scaled(100_000, scale),
                "INSERT INTO orders VALUES (n, n % 1000, 'new', n % 100000 / 100.0, \
                     '2024-01-01 12:00+00'::timestamptz + n * interval '1 second', 'order number ' || n);",
                "",
            ),
            Self::TpcB => in_transactions(
                scaled(100_000, scale),
                &format!(
                    "aid := 1 + floor(random() * 100000 * {TPCB_SCALE}); tid := 1 + floor(random() * 10 * {TPCB_SCALE}); \
                     bid := 1 + floor(random() * {TPCB_SCALE}); delta := floor(random() * 10001) - 5000; \
                     UPDATE pgbench_accounts a SET abalance = abalance + delta WHERE a.aid = v.aid; \
                     PERFORM abalance FROM pgbench_accounts a WHERE a.aid = v.aid; \
                     UPDATE pgbench_tellers t SET tbalance = tbalance + delta WHERE t.tid = v.tid; \
                     UPDATE pgbench_branches b SET bbalance = bbalance + delta WHERE b.bid = v.bid; \
                     INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) \
                         VALUES (tid, bid, aid, delta, clock_timestamp());"
                ),
                "aid int; tid int; bid int; delta int;",
            ),
            Self::Mixed => in_transactions(scaled(200_000, scale), &mixed(), ""),
            Self::ManyTables => in_transactions(
                scaled(1000, scale),
                &format!(
                    "FOR k IN 0 .. 99 LOOP \
                        EXECUTE format(CASE k % 2 \
                            WHEN 0 THEN 'INSERT INTO many_%s VALUES ($1, $1 %% 1000, ''new'', $1 / 100.0, \
                                ''2024-06-01 12:00+00'', ''order number '' || $1)' \
                            ELSE 'UPDATE many_%s SET amount = amount + 1, note = ''changed by '' || $1 \
                                WHERE id = -1' END, (n * 7919 + k * 37) % {MANY_TABLES}) USING n; \
                     END LOOP;"
                ),
                "",
            ),
            Self::Toast => {
                let pass =
                    "UPDATE documents SET views = views + 1, changed_at = changed_at + interval '1 minute'";
                (0..TOAST_PASSES).map(|_| pass.to_owned()).collect()
            }
        }
    }
}

/// Runs a statement for each of the many tables, a few of them in each transaction: locks are limited.
fn for_many_tables(statement: &str) -> String {
    format!(
        "DO $$ BEGIN FOR i IN 0 .. {MANY_TABLES} - 1 LOOP EXECUTE format('{}', i); \
            IF i % 100 = 99 THEN COMMIT; END IF; END LOOP; END $$",
        statement.replace('\'', "''").replace("''''", "''")
    )
}

fn scaled(count: u64, scale: f64) -> u64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "row counts"
    )]
    let scaled = (count as f64 * scale).round() as u64;
    scaled.max(1)
}

fn orders(table: &str, count: u64) -> String {
    format!(
        "INSERT INTO {table} SELECT n, n % 1000, CASE n % 4 WHEN 0 THEN 'new' WHEN 1 THEN 'paid' \
            WHEN 2 THEN 'packed' ELSE 'returned' END, n % 1000000 / 100.0, \
            '2024-01-01 12:00+00'::timestamptz + n * interval '1 second', \
            CASE WHEN n % 3 = 0 THEN NULL ELSE 'order number ' || n END \
         FROM generate_series(1, {count}) n;"
    )
}

/// Returns a procedure that runs `count` transactions, each with `body` for n = 0, 1, …. A client would
/// spend most of the time on round trips.
fn in_transactions(count: u64, body: &str, declare: &str) -> Vec<String> {
    vec![
        format!(
            "CREATE PROCEDURE workload(count bigint) LANGUAGE plpgsql AS $$ <<v>> DECLARE n bigint; {declare} \
             BEGIN FOR i IN 0 .. count - 1 LOOP n := i; {body} COMMIT; END LOOP; END $$"
        ),
        "SELECT setseed(0.5)".to_owned(),
        format!("CALL workload({count})"),
    ]
}

/// Two inserts and two updates of random tables and keys, and a delete.
fn mixed() -> String {
    let pick = |table: &str, statement: &dyn Fn(u64) -> String| {
        let mut arms = String::new();
        for t in 0..MIXED_TABLES {
            let _ = write!(arms, "WHEN {t} THEN {} ", statement(t));
        }
        format!("CASE {table} {arms} END CASE; ")
    };
    let insert = |nth: u64| {
        // The factor is odd, so the keys are scattered and never repeat.
        let id = format!("1000000 + ((2 * n + {nth}) * 2654435761) % 4294967296");
        pick("floor(random() * 20)::int", &move |t| {
            format!(
                "INSERT INTO orders_{t} VALUES ({id}, n % 1000, 'new', n % 100000 / 100.0, \
                 '2024-06-01 12:00+00'::timestamptz + n * interval '1 second', 'late order ' || n);"
            )
        })
    };
    let update = |what: &'static str| {
        pick("floor(random() * 20)::int", &move |t| {
            format!("UPDATE orders_{t} SET {what} WHERE id = 1 + floor(random() * {MIXED_ROWS})::bigint;")
        })
        // The subquery is evaluated once instead of once per row.
        .replace("1 + floor(random() * 10000)::bigint", "(SELECT 1 + floor(random() * 10000)::bigint)")
    };
    let delete = pick("(n % 20)::int", &|t| {
        format!("DELETE FROM orders_{t} WHERE id = {MIXED_ROWS} + 1 + ((n / 20) * 7919) % {MIXED_ROWS};")
    });
    [insert(0), update("status = 'paid'"), delete, update("amount = amount + 1, note = 'changed'"), insert(1)]
        .concat()
}
