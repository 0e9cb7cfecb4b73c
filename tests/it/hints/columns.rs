//! Hints for columns that the publisher has changed again since, and for those of partitions.

use crate::support::wait::until;
use crate::support::world::World;

use super::{Older, check, statements, streaming};

/// Waits for a pause whose hint has these statements.
async fn hint(world: &World, expected: &str) -> String {
    until(&format!("the hint has {expected}"), async || {
        let view = world.status().await?;
        let ddl = statements(&view);
        if view.state == "paused" && ddl.contains(expected) {
            Ok(ddl)
        } else {
            Err(format!("{:#}", view.json))
        }
    })
    .await
}

/// The stream means a column that the publisher has replaced by one of another type since then.
#[tokio::test]
async fn a_column_that_was_replaced_since_gets_nothing_of_the_other_one() {
    let (world, service) = streaming().await;
    assert_eq!(service.sigterm().await, 0);
    for sql in [
        "ALTER TABLE t ADD COLUMN a int",
        "INSERT INTO t VALUES (10, 'x', 1)",
        "ALTER TABLE t DROP COLUMN a, ADD COLUMN a text COLLATE \"C\" NOT NULL DEFAULT 'new'",
        "INSERT INTO t VALUES (11, 'y', 'own')",
    ] {
        world.publisher.exec(sql).await;
    }
    let _service = world.run();
    for expected in ["ADD COLUMN \"a\" integer;", "ALTER COLUMN \"a\" TYPE text USING"] {
        let ddl = hint(&world, expected).await;
        assert!(ddl.contains(&format!("pgsluice resync {} public.t", world.subscription)), "{ddl}");
        world.target.exec(&ddl).await;
    }
    world.wait_state("streaming").await;
    world.wait_caught_up().await;
    let gaps = "SELECT kind FROM pgsluice.gap WHERE settled_at IS NULL";
    until("the gap is on record", async || world.target.lines(gaps).await == ["redefined"]).await;
    world.pgsluice(&["resync", &world.subscription, "public.t", "--merge"]).await.expect(0);
    world.wait_same_rows("t").await;
}

/// Partitions that are published one by one: PostgreSQL refuses to alter the columns of a partition alone.
#[tokio::test]
async fn columns_of_partitions_are_altered_in_their_root() {
    let partitioned = |columns: &str| {
        format!(
            "CREATE TABLE p (id int PRIMARY KEY, v {columns}) PARTITION BY RANGE (id); \
             CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); \
             CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200) PARTITION BY RANGE (id); \
             CREATE TABLE p21 PARTITION OF p2 FOR VALUES FROM (100) TO (200)"
        )
    };
    let world = World::builder()
        .publisher_sql(&partitioned("text"))
        .target_sql(&partitioned("text, own int NOT NULL DEFAULT 1"))
        .publisher_sql("INSERT INTO p VALUES (1, 'a'), (101, 'b')")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    for (id, (change, expected, older)) in (10..).zip([
        ("ADD COLUMN a int NOT NULL DEFAULT 7", "ALTER TABLE public.p ADD COLUMN \"a\"", Older::Equal),
        ("ADD COLUMN b text", "ALTER TABLE public.p ADD COLUMN \"b\" text;", Older::Equal),
        (
            "ALTER COLUMN a TYPE text",
            "ALTER TABLE public.p ALTER COLUMN \"a\" DROP DEFAULT, ",
            Older::MayDiffer,
        ),
    ]) {
        let change = format!(
            "ALTER TABLE p {change}; INSERT INTO p (id, v) VALUES ({id}, 'c'); INSERT INTO p (id, v) VALUES ({}, 'd')",
            id + 100
        );
        check(&world, "p1", &change, expected, older).await;
        world.wait_same_rows("p21").await;
        if older == Older::Equal {
            assert_eq!(world.target.lines("SELECT detail FROM pgsluice.gap").await, [""; 0], "{change}");
        }
    }
    world.target.exec("ALTER TABLE p ALTER own DROP DEFAULT").await;
    let change = "INSERT INTO p (id, v) VALUES (20, 'e')";
    check(&world, "p1", change, "ALTER TABLE public.p ALTER COLUMN \"own\" DROP NOT NULL;", Older::Equal)
        .await;
}
