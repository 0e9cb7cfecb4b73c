//! What ALTER TABLE does to rows that exist is not streamed. Where older rows may differ in a column, a gap is on record;
//! where both catalogs tell that they do not, there is none.

use crate::support::clusters::publisher_binaries;
use crate::support::wait::until;
use crate::support::world::World;

/// Waits until the last description of a table has been judged by the publisher's columns, `columns` of them.
async fn judged(world: &World, table: &str, columns: &str) {
    let sql = format!(
        "SELECT string_agg(c->>'name' || (c->>'number'), ' ') FROM pgsluice.table_sync, \
         jsonb_array_elements(described->'columns') c WHERE source_table = '{table}'"
    );
    until(&format!("{table} is recorded with {columns}"), async || {
        let found = world.target.value(&sql).await.unwrap_or_default();
        if found == columns { Ok(()) } else { Err(found) }
    })
    .await;
}

async fn gaps(world: &World, table: &str) -> Vec<String> {
    let sql = format!(
        "SELECT kind || ' ' || coalesce(detail, '') FROM pgsluice.gap WHERE settled_at IS NULL AND source_table = '{table}'"
    );
    world.target.lines(&sql).await
}

/// Waits for the gap, and lets a merge settle it.
async fn gap_and_merge(world: &World, table: &str, said: &str) {
    until(&format!("a gap of {table}: {said}"), async || {
        let gaps = gaps(world, table).await;
        let found = gaps.iter().any(|gap| gap.starts_with("redefined ") && gap.contains(said));
        if found { Ok(()) } else { Err(format!("{gaps:?}")) }
    })
    .await;
    world.wait_caught_up().await;
    world.same_rows(table).await.expect_err("the rows differ, so that the gap says the truth");
    let name = format!("public.{table}");
    world.pgsluice(&["resync", &world.subscription, &name, "--merge"]).await.expect(0);
    world.wait_same_rows(table).await;
    until("the gap is settled", async || {
        let gaps = gaps(world, table).await;
        if gaps.is_empty() { Ok(()) } else { Err(format!("{gaps:?}")) }
    })
    .await;
    world.wait_state("streaming").await;
}

/// A column of the publisher that is not the one it was before.
#[tokio::test]
async fn a_column_that_took_the_name_of_another_one_is_a_gap() {
    let mut builder = World::builder();
    for table in ["renamed", "swapped", "stopped"] {
        builder = builder
            .both_sql(&format!("CREATE TABLE {table} (id int PRIMARY KEY, a text, v text)"))
            .publisher_sql(&format!("INSERT INTO {table} VALUES (1, 'a1', 'v1'), (2, 'a2', 'v2')"));
    }
    let world = builder.start().await;
    let service = world.run();
    world.wait_state("streaming").await;
    let change = "ALTER TABLE renamed DROP COLUMN v; ALTER TABLE renamed RENAME COLUMN a TO v; \
                  INSERT INTO renamed VALUES (3, 'v3')";
    world.publisher.exec(change).await;
    gap_and_merge(&world, "renamed", "\"v\" was \"a\" on the publisher").await;
    judged(&world, "renamed", "id1 v2").await;
    let change = "BEGIN; ALTER TABLE swapped RENAME COLUMN a TO x; ALTER TABLE swapped RENAME COLUMN v TO a; \
                  ALTER TABLE swapped RENAME COLUMN x TO v; INSERT INTO swapped VALUES (3, 'v3', 'a3'); COMMIT";
    world.publisher.exec(change).await;
    gap_and_merge(&world, "swapped", "\"v\" was \"a\" on the publisher").await;

    // The last column is added again, and nothing that the stream says is different.
    world.publisher.exec("INSERT INTO stopped VALUES (3, 'a3', 'v3')").await;
    world.wait_same_rows("stopped").await;
    assert_eq!(service.sigterm().await, 0);
    let change = |id: u32| {
        format!(
            "ALTER TABLE stopped DROP COLUMN v; ALTER TABLE stopped ADD COLUMN v text; \
             INSERT INTO stopped VALUES ({id}, 'a', 'v')"
        )
    };
    world.publisher.exec(change(4)).await;
    let _service = world.run();
    gap_and_merge(&world, "stopped", "\"v\" was dropped and added again").await;
    judged(&world, "stopped", "id1 a2 v4").await;
    // The same while it runs.
    world.publisher.exec(change(5)).await;
    gap_and_merge(&world, "stopped", "\"v\" was dropped and added again").await;
}

/// Changes on both sides that leave equal rows; the target comes first, as docs/operations.md advises.
#[tokio::test]
async fn changes_that_leave_equal_rows_are_no_gap() {
    const CASES: &[(&str, &str, &str, &str)] = &[
        ("null", "ADD COLUMN c int", "ADD COLUMN c int", "id1 v2 c3"),
        (
            "constant",
            "ADD COLUMN c int NOT NULL DEFAULT 7",
            "ADD COLUMN c int NOT NULL DEFAULT 7",
            "id1 v2 c3",
        ),
        ("of_text", "ADD COLUMN c text DEFAULT 'it''s'", "ADD COLUMN c text DEFAULT 'it''s'", "id1 v2 c3"),
        ("wider", "ADD COLUMN c bigint DEFAULT 7", "ADD COLUMN c int DEFAULT 7", "id1 v2 c3"),
        ("flag", "ADD COLUMN c bool DEFAULT true", "ADD COLUMN c bool DEFAULT true", "id1 v2 c3"),
        (
            "scale",
            "ADD COLUMN c numeric(9,2) NOT NULL DEFAULT 0",
            "ADD COLUMN c numeric(9,2) NOT NULL DEFAULT 0",
            "id1 v2 c3",
        ),
        // Rows from before have NULL, whatever the default is now.
        ("later", "ADD COLUMN c int", "ADD COLUMN c int, ALTER COLUMN c SET DEFAULT 9", "id1 v2 c3"),
        ("renamed", "RENAME COLUMN v TO w", "RENAME COLUMN v TO w", "id1 w2"),
        ("again", "DROP COLUMN v, ADD COLUMN v text", "DROP COLUMN v, ADD COLUMN v text", "id1 v3"),
        ("relaxed", "ALTER COLUMN v TYPE text", "ALTER COLUMN v TYPE varchar(99)", "id1 v2"),
    ];
    let mut builder = World::builder()
        // The target's table has had the column from the beginning.
        .publisher_sql("CREATE TABLE created (id int PRIMARY KEY, v varchar(9))")
        .target_sql("CREATE TABLE created (id int PRIMARY KEY, v varchar(9), c int NOT NULL DEFAULT 7)")
        .publisher_sql("INSERT INTO created VALUES (1, 'a')");
    for (table, ..) in CASES {
        builder = builder
            .both_sql(&format!("CREATE TABLE \"{table}\" (id int PRIMARY KEY, v varchar(9))"))
            .publisher_sql(&format!("INSERT INTO \"{table}\" VALUES (1, 'a'), (2, NULL)"));
    }
    let world = builder.start().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    // A table that was truncated once has another file than it was created with.
    world.publisher.exec("TRUNCATE \"null\"; INSERT INTO \"null\" VALUES (3, 'c')").await;
    world.wait_same_rows("\"null\"").await;
    judged(&world, "null", "id1 v2").await;
    let file = world.publisher.value("SELECT pg_relation_filenode('\"null\"')").await.unwrap();
    let known = "SELECT described->'files' FROM pgsluice.table_sync WHERE source_table = 'null'";
    until("its file is known", async || {
        let files = world.target.value(known).await.unwrap_or_default();
        if files == format!("[{file}]") { Ok(()) } else { Err(files) }
    })
    .await;
    for (table, target, publisher, recorded) in CASES {
        // The publisher's columns are not looked at while the table is locked, so that no look comes between the two.
        let session = world.publisher.session().await;
        session.batch(&format!("BEGIN; ALTER TABLE \"{table}\" {publisher}")).await.unwrap();
        world.target.exec(format!("ALTER TABLE \"{table}\" {target}")).await;
        let id = if *table == "null" { 4 } else { 3 };
        session.batch(&format!("INSERT INTO \"{table}\" (id) VALUES ({id}); COMMIT")).await.unwrap();
        judged(&world, table, recorded).await;
        world.wait_same_rows(&format!("\"{table}\"")).await;
        assert_eq!(gaps(&world, table).await, [""; 0], "{table}");
    }
    world
        .publisher
        .exec(
            "ALTER TABLE created ADD COLUMN c int NOT NULL DEFAULT 7; INSERT INTO created VALUES (2, 'b', 8)",
        )
        .await;
    judged(&world, "created", "id1 v2 c3").await;
    world.wait_same_rows("created").await;
    assert_eq!(world.target.lines("SELECT detail FROM pgsluice.gap").await, [""; 0]);
}

/// A new column of the publisher.
struct Case {
    table: &'static str,
    published: &'static str,
    target: &'static str,
    change: &'static str,
    said: &'static str,
}

fn new_columns() -> Vec<Case> {
    let mut cases = vec![
        Case {
            table: "filled",
            published: "",
            target: ", c int",
            change: "ADD COLUMN c int DEFAULT 7",
            said: "rows from before have a default's value on the publisher, and NULL on the target",
        },
        Case {
            table: "volatile",
            published: "",
            target: ", c float8",
            change: "ADD COLUMN c float8 DEFAULT random()",
            said: "values that its catalog does not tell on the publisher, and NULL on the target",
        },
        Case {
            table: "other",
            published: "",
            target: ", c int DEFAULT 9",
            change: "ADD COLUMN c int DEFAULT 7",
            said: "a default's value on the publisher, and another one's on the target",
        },
        Case {
            table: "target_only",
            published: "",
            target: ", c int DEFAULT 9",
            change: "ADD COLUMN c int",
            said: "NULL on the publisher, and a default's value on the target",
        },
        Case {
            table: "renamed",
            published: ", a int DEFAULT 5",
            target: ", a int, c int",
            change: "RENAME COLUMN a TO c",
            said: "\"c\" was \"a\" on the publisher",
        },
    ];
    if publisher_binaries().major() >= 13 {
        cases.push(Case {
            table: "expression",
            published: ", c int GENERATED ALWAYS AS (id * 2) STORED",
            target: ", c int",
            change: "ALTER COLUMN c DROP EXPRESSION",
            said: "\"c\" was there before, but not published",
        });
    }
    cases
}

/// A column that the target had before it was published, and whose older rows differ.
#[tokio::test]
async fn a_new_column_whose_older_rows_may_differ_is_a_gap() {
    let cases = new_columns();
    let mut builder = World::builder();
    for Case { table, published, target, .. } in &cases {
        let create = |columns: &str| format!("CREATE TABLE {table} (id int PRIMARY KEY, v text{columns})");
        builder = builder
            .publisher_sql(&create(published))
            .target_sql(&create(target))
            .publisher_sql(&format!("INSERT INTO {table} (id, v) VALUES (1, 'a'), (2, NULL)"));
    }
    let world = builder.start().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    for Case { table, change, said, .. } in &cases {
        let change = format!("ALTER TABLE {table} {change}; INSERT INTO {table} (id, v) VALUES (3, 'c')");
        world.publisher.exec(change).await;
        gap_and_merge(&world, table, said).await;
    }
}
