//! Changes of tables while they are replicated: each of them fits, in the order in which it is made.

use std::sync::atomic::Ordering;

use rand::Rng as _;

use super::faults::{Done, LOCK_TIMEOUT};
use super::schema::{COMPARED, joining};
use super::stage::Stage;
use crate::support::database::Database;
use crate::support::world::PUBLICATION;

/// Columns that `wide` may get, tables that may have joined, indexes of ours on the target.
const COLUMNS_MAX: u32 = 60;
const JOINED_MAX: usize = 6;
const INDEXES_MAX: u64 = 3;
/// Columns of the target that may be indexed: several rows may hold the same value.
const INDEXED: &[&str] =
    &["account (balance)", "bulk (n)", "history (account, delta)", "wide (v)", "seat (place)"];
/// Wider types and back, all of which hold the publisher's values.
const TYPES: &[&str] =
    &["n TYPE bigint", "n TYPE int", "v TYPE text", "v TYPE varchar(60)", "v TYPE varchar(40)"];

/// Runs a statement with a bound on how long it waits for locks.
async fn with_timeout(database: &Database, sql: &str) -> Result<(), String> {
    let session = database.try_session().await?;
    for statement in [LOCK_TIMEOUT, sql] {
        session.batch(statement).await.map_err(|error| error.diagnosis().to_string())?;
    }
    session.close().await;
    Ok(())
}

fn told(sql: String, result: Result<(), String>) -> Done {
    match result {
        Ok(()) => Done::Over(sql),
        Err(error) => Done::Not(format!("{sql}: {error}")),
    }
}

impl Stage {
    pub(super) async fn vacuum_full(&mut self) -> Done {
        let table = COMPARED[self.random.random_range(0..COMPARED.len())];
        let sql = format!("VACUUM FULL {table}");
        let result = with_timeout(&self.world.target, &sql).await;
        told(sql, result)
    }

    /// On the target first: what the publisher sends always has its column.
    pub(super) async fn add_column(&mut self) -> Done {
        let column = self.load.shared.columns.load(Ordering::Relaxed) + 1;
        if column > COLUMNS_MAX {
            return Done::Not("there are enough columns".to_owned());
        }
        let sql = format!("ALTER TABLE wide ADD COLUMN IF NOT EXISTS c{column} int");
        for database in [&self.world.target, &self.world.publisher] {
            if let Err(error) = with_timeout(database, &sql).await {
                return Done::Not(error);
            }
        }
        self.load.shared.columns.store(column, Ordering::Relaxed);
        Done::Over(sql)
    }

    pub(super) async fn index(&mut self) -> Done {
        self.next += 1;
        let on = INDEXED[self.random.random_range(0..INDEXED.len())];
        let old = self.next.saturating_sub(INDEXES_MAX * 10);
        let sql = format!("DROP INDEX IF EXISTS soak_{old}; CREATE INDEX soak_{} ON {on}", self.next);
        let result = with_timeout(&self.world.target, &sql).await;
        told(sql, result)
    }

    pub(super) async fn retype(&mut self) -> Done {
        let change = TYPES[self.random.random_range(0..TYPES.len())];
        let sql = format!("ALTER TABLE wide ALTER {change}");
        let result = with_timeout(&self.world.target, &sql).await;
        told(sql, result)
    }

    /// A table that is made on both sides and joins, with rows from before, meanwhile and after.
    pub(super) async fn join(&mut self) -> Done {
        if self.load.shared.joined().len() >= JOINED_MAX {
            return Done::Not("enough tables have joined".to_owned());
        }
        self.next += 1;
        let name = format!("joined_{}", self.next);
        let rows = 10_u64.pow(self.random.random_range(0..5)) + self.random.random_range(0..100);
        let fill = |from: u64| {
            format!("INSERT INTO {name} SELECT -n - {from}, n, 'filled' FROM generate_series(1, {rows}) n;")
        };
        let create = joining(&name, self.next);
        let publish = format!("ALTER PUBLICATION {PUBLICATION} ADD TABLE {name}");
        let is_written_before = self.random.random_range(0..2) == 0;
        let made = async {
            with_timeout(&self.world.target, &create).await?;
            with_timeout(&self.world.publisher, &(create + &fill(0))).await?;
            if is_written_before {
                self.load.shared.change_joined(|tables| tables.push(name.clone()));
            }
            with_timeout(&self.world.publisher, &publish).await?;
            if !is_written_before {
                self.load.shared.change_joined(|tables| tables.push(name.clone()));
            }
            with_timeout(&self.world.publisher, &fill(1_000_000)).await
        };
        let result = made.await;
        if result.is_err() {
            // It may be in the publication or not: it takes no further part.
            self.load.shared.change_joined(|tables| tables.retain(|table| *table != name));
        }
        told(format!("{name} joins with {rows} rows, written before: {is_written_before}"), result)
    }

    /// A table leaves the publication for good. What the target holds of it means nothing any more.
    pub(super) async fn leave(&mut self) -> Done {
        let joined = self.load.shared.joined();
        if joined.is_empty() {
            return Done::Not("no table has joined".to_owned());
        }
        let name = joined[self.random.random_range(0..joined.len())].clone();
        let sql = format!("ALTER PUBLICATION {PUBLICATION} DROP TABLE {name}");
        let result = with_timeout(&self.world.publisher, &sql).await;
        if result.is_ok() {
            self.load.shared.change_joined(|tables| tables.retain(|table| *table != name));
            self.left.push(name);
        }
        told(sql, result)
    }
}
