//! A table whose target is another table than before lacks the rows that it had: that is on record.

use crate::membership::{gaps, resync, wait_gaps};
use crate::support::wait::until;
use crate::support::world::World;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text);";
const AGAIN: &str =
    "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text); GRANT ALL ON t TO pgsluice_apply";
const GAP: &[&str] = &["other_target|t|f|∅"];

async fn one_row() -> World {
    World::builder().both_sql(T).publisher_sql("INSERT INTO t VALUES (1, 'one')").start().await
}

async fn facts(world: &World) -> String {
    world.target.value("SELECT detail FROM pgsluice.gap WHERE settled_at IS NULL").await.unwrap_or_default()
}

#[tokio::test]
async fn a_target_that_was_made_again_is_a_gap() {
    let world = one_row().await;
    // While nothing runs.
    world.take_up().await;
    world.target.exec(AGAIN).await;
    world.publisher.exec("INSERT INTO t VALUES (2, 'two')").await;
    let service = world.run();
    wait_gaps(&world, GAP).await;
    assert_eq!(facts(&world).await, "public.t on the target was made again, and the former one was dropped");
    world.wait_caught_up().await;
    assert_eq!(world.target.lines("SELECT id FROM t").await, ["2"], "what arrives is applied");
    resync(&world, &["t"], None).await;
    world.wait_same_rows("t").await;

    // While it runs.
    world.target.exec(AGAIN).await;
    world.publisher.exec("INSERT INTO t VALUES (3, 'three')").await;
    wait_gaps(&world, GAP).await;
    resync(&world, &["t"], Some("--merge")).await;
    world.wait_same_rows("t").await;

    // It is missing for a while.
    world.target.exec("DROP TABLE t").await;
    world.publisher.exec("INSERT INTO t VALUES (4, 'four')").await;
    world.wait_state("paused").await;
    world.target.exec(format!("{T} GRANT ALL ON t TO pgsluice_apply")).await;
    wait_gaps(&world, GAP).await;
    world.wait_state("streaming").await;
    world.wait_caught_up().await;
    assert_eq!(world.target.lines("SELECT id FROM t").await, ["4"]);
    // Once it is accepted, it does not come again.
    let gap = world.target.value("SELECT max(id) FROM pgsluice.gap").await.unwrap();
    world.pgsluice(&["accept", &world.subscription, "--gap", &gap]).await.expect(0);
    wait_gaps(&world, &[]).await;
    assert_eq!(service.sigterm().await, 0);
    let _service = world.run();
    world.publisher.exec("INSERT INTO t VALUES (5, 'five')").await;
    until("it arrives", async || {
        let rows = world.target.lines("SELECT id FROM t ORDER BY 1").await;
        if rows == ["4", "5"] { Ok(()) } else { Err(format!("{rows:?}")) }
    })
    .await;
    assert_eq!(gaps(&world).await, [""; 0]);
}

/// The configuration names another target, or the target was renamed and the configuration follows.
#[tokio::test]
async fn a_target_that_the_configuration_changes_is_a_gap_unless_it_is_the_same_table() {
    let world = one_row().await;
    let rule = |target: &str| {
        let config = std::fs::read_to_string(&world.config).unwrap();
        let rest = config.split("[[subscriptions.tables]]").next().unwrap_or_default();
        let rule = format!("[[subscriptions.tables]]\nsource = \"public.t\"\ntarget = \"{target}\"\n");
        std::fs::write(&world.config, format!("{}\n{rule}", rest.trim_end())).unwrap();
    };
    world.take_up().await;
    world.target.exec("ALTER TABLE t RENAME TO u").await;
    rule("public.u");
    let service = world.run();
    world.publisher.exec("INSERT INTO t VALUES (2, 'two')").await;
    let rows = "SELECT id FROM u ORDER BY 1";
    until("it arrives", async || {
        let found = world.target.lines(rows).await;
        if found == ["1", "2"] { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    assert_eq!(gaps(&world).await, [""; 0]);
    assert_eq!(service.sigterm().await, 0);

    world.target.exec(format!("{T} GRANT ALL ON t TO pgsluice_apply")).await;
    rule("public.t");
    let _service = world.run();
    wait_gaps(&world, GAP).await;
    assert_eq!(facts(&world).await, "it goes into public.t now, and its rows are in public.u");
    resync(&world, &["t"], None).await;
    world.wait_same_rows("t").await;
    assert_eq!(world.target.lines(rows).await, ["1", "2"], "the former target is left alone");
}

/// In a dump that was restored, all tables have other OIDs, and nothing is missing.
#[tokio::test]
async fn a_target_that_was_restored_from_a_dump_is_not_another_one() {
    let world = one_row().await;
    world.take_up().await;
    world.target.exec("UPDATE pgsluice.subscription SET record_oid = 1").await;
    world.target.exec(format!("{AGAIN}; INSERT INTO t VALUES (1, 'one')")).await;
    let service = world.run();
    world.publisher.exec("INSERT INTO t VALUES (2, 'two')").await;
    world.wait_same_rows("t").await;
    assert_eq!(gaps(&world).await, [""; 0]);
    assert_eq!(service.sigterm().await, 0);
    // From then on, they are known.
    world.target.exec(AGAIN).await;
    let _service = world.run();
    wait_gaps(&world, GAP).await;
}

/// Statements find a table by its name: what has that name now is another table, whatever the plans were made for.
#[tokio::test]
async fn a_target_that_changes_places_with_another_table_gets_nothing_of_its_changes_unseen() {
    let world = World::builder()
        .both_sql("CREATE TABLE t (id int PRIMARY KEY, v numeric)")
        .target_sql("CREATE TABLE narrow (id int PRIMARY KEY, v numeric(12,0)); CREATE TABLE former (a int)")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO t VALUES (1, 1.25)").await;
    world.wait_same_rows("t").await;
    let swap = "BEGIN; DROP TABLE IF EXISTS former; ALTER TABLE t RENAME TO former; \
                ALTER TABLE narrow RENAME TO t; GRANT ALL ON t TO pgsluice_apply; COMMIT";
    world.target.exec(swap).await;
    for id in 2..=4 {
        world.publisher.exec(format!("INSERT INTO t VALUES ({id}, {id})")).await;
    }
    wait_gaps(&world, GAP).await;
    assert_eq!(facts(&world).await, "it goes into public.t now, and its rows are in public.former");
    world.wait_caught_up().await;
    assert_eq!(world.target.lines("SELECT id FROM former").await, ["1"]);
    assert_eq!(world.target.lines("SELECT id FROM t ORDER BY 1").await, ["2", "3", "4"]);
}

/// The rows that were copied are in the present table.
#[tokio::test]
async fn a_target_that_was_made_again_before_it_was_copied_into_is_no_gap() {
    let world = one_row().await;
    let service = world.run();
    world.wait_same_rows("t").await;
    world.pgsluice(&["pause", &world.subscription]).await.expect(0);
    world.target.exec(AGAIN).await;
    world.pgsluice(&["resync", &world.subscription, "public.t"]).await.expect(0);
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO t VALUES (2, 'two')").await;
    world.wait_same_rows("t").await;
    assert_eq!(service.sigterm().await, 0);
    let _service = world.run();
    world.publisher.exec("INSERT INTO t VALUES (3, 'three')").await;
    world.wait_same_rows("t").await;
    assert_eq!(world.target.lines("SELECT kind FROM pgsluice.gap").await, [""; 0]);
}
