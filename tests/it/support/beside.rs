//! A world with the built-in subscriber beside, in a database of its own on the target's server.
//!
//! The built-in subscriber has an operator's rights there, so it shows what the rows should be.

use super::database::{Database, compare};
use super::wait::{PATIENCE, until, until_within};
use super::world::{Builder, Servers, World};

/// A world with the built-in subscriber beside.
pub(crate) struct Beside {
    pub(crate) world: World,
    pub(crate) builtin: Database,
}

impl Beside {
    /// `tables` are created on all three sides, and `publications` on the publisher.
    pub(crate) async fn new(tables: &str, publications: &str, names: &[&str]) -> Self {
        Self::start(World::builder(), tables, publications, names).await
    }

    /// The same in a world with other properties.
    pub(crate) async fn start(builder: Builder, tables: &str, publications: &str, names: &[&str]) -> Self {
        let mut world = builder
            .servers(Servers::Separate)
            .both_sql(tables)
            .publisher_sql(publications)
            .publisher_sql("CREATE PUBLICATION my_publication")
            .start()
            .await;
        crate::publications::subscribe(&world, names);
        let builtin = Database::create(world.target_server(), "builtin").await;
        builtin.exec(tables).await;
        let connection = world.publisher.superuser().replace('\'', "''");
        let subscribe =
            format!("CREATE SUBSCRIPTION beside CONNECTION '{connection}' PUBLICATION {}", names.join(", "));
        builtin.exec(subscribe).await;
        until("the built-in subscriber streams", async || {
            let states = builtin.lines("SELECT DISTINCT srsubstate FROM pg_subscription_rel").await;
            if states == ["r"] { Ok(()) } else { Err(format!("{states:?}")) }
        })
        .await;
        Self { world, builtin }
    }

    /// Runs statements on the publisher, one transaction each.
    pub(crate) async fn publish(&self, statements: &[&str]) {
        for sql in statements {
            self.world.publisher.exec(*sql).await;
        }
    }

    /// Waits until the table is the same here and at the built-in subscriber, once that has applied everything, and
    /// checks that pgsluice streams.
    pub(crate) async fn wait_like_builtin(&self, table: &str) -> Vec<String> {
        let now = self.world.publisher.value("SELECT pg_current_wal_lsn()").await.unwrap();
        let slot = format!(
            "SELECT confirmed_flush_lsn >= '{now}' FROM pg_replication_slots WHERE slot_name = 'beside'"
        );
        until_within(PATIENCE, "the built-in subscriber has caught up", async || {
            let done = self.world.publisher.value(&slot).await;
            if done.as_deref() == Some("t") { Ok(()) } else { Err(format!("{done:?}")) }
        })
        .await;
        self.world.wait_caught_up().await;
        let columns = self.builtin.columns(table).await;
        let expected = self.builtin.sorted(table, &columns).await;
        let found = self.world.target.sorted(table, &columns).await;
        if let Err(difference) = compare(table, &expected, &found) {
            panic!("{difference}");
        }
        self.world.wait_state("streaming").await;
        found
    }

    pub(crate) async fn end(self) {
        self.builtin.exec("DROP SUBSCRIPTION beside").await;
    }
}
