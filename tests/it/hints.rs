//! The DDL that a pause prints is run as it is, and both sides are compared including the rows that were there
//! before. Where they may differ, the hint says so.

mod columns;

use crate::support::cli::StateView;
use crate::support::clusters::publisher_binaries;
use crate::support::service::Service;
use crate::support::wait::until;
use crate::support::world::{PUBLICATION, PUBLISHER_ROLE, TARGET_ROLE, World};

/// Returns the statements of a pause's hint; notes are comments in them.
fn statements(view: &StateView) -> String {
    let hint = view.json["hint"].as_str().unwrap_or_default();
    hint.lines().skip(1).collect::<Vec<_>>().join("\n")
}

/// Whether the rows that were there before are equal once the hint has been followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Older {
    Equal,
    MayDiffer,
}

async fn check(world: &World, table: &str, change: &str, expected: &str, older: Older) {
    world.publisher.exec(change).await;
    let view = world.wait_paused("schema").await;
    let ddl = statements(&view);
    assert!(ddl.contains(expected), "{change}: {ddl}");
    let resync = format!("pgsluice resync {} public.{table}", world.subscription);
    assert_eq!(ddl.contains(&resync), older == Older::MayDiffer, "{change}: {ddl}");
    world.target.exec(&ddl).await;
    world.wait_state("streaming").await;
    world.wait_caught_up().await;
    if older == Older::Equal {
        world.same_rows(table).await.unwrap_or_else(|difference| panic!("{change}: {difference}"));
    }
}

fn with_rows(columns: &str) -> String {
    format!(
        "CREATE TABLE t (id int PRIMARY KEY, v text{columns}); INSERT INTO t (id, v) VALUES (1, 'a'), (2, NULL)"
    )
}

/// A stream of `t`, which had rows before and has got one since.
async fn streaming() -> (World, Service) {
    let world = World::builder()
        .publisher_sql(&with_rows(""))
        .target_sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .start()
        .await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO t VALUES (3, 'streamed')").await;
    world.wait_same_rows("t").await;
    (world, service)
}

#[tokio::test]
async fn a_new_column_leaves_equal_rows_or_says_that_it_may_not() {
    let (world, _service) = streaming().await;
    let change = |column: &str, id: u32| {
        format!("ALTER TABLE t ADD COLUMN {column}; INSERT INTO t (id) VALUES ({id})")
    };
    for (id, (column, expected, older)) in (10..).zip([
        ("a text NOT NULL DEFAULT 'it''s \\new'", "NOT NULL DEFAULT", Older::Equal),
        ("b int", "ADD COLUMN \"b\" integer;", Older::Equal),
        ("c timestamptz DEFAULT now()", "DEFAULT '", Older::Equal),
        ("d text[] DEFAULT '{a,\"b c\"}'", "DEFAULT '{a", Older::Equal),
        ("e varchar(9) COLLATE \"C\" DEFAULT 'x'", "COLLATE \"pg_catalog\".\"C\" DEFAULT 'x'", Older::Equal),
        ("f numeric(12,4) NOT NULL DEFAULT 1.5", "DEFAULT '1.5000'", Older::Equal),
        // Each row has its own value, and the table is written anew.
        ("g uuid DEFAULT gen_random_uuid()", "ADD COLUMN \"g\" uuid;", Older::MayDiffer),
        ("h int GENERATED ALWAYS AS IDENTITY", "ADD COLUMN \"h\" integer;", Older::MayDiffer),
    ]) {
        check(&world, "t", &change(column, id), expected, older).await;
        if older == Older::MayDiffer {
            // A person resynchronises the table; here it is done by hand.
            world.publisher.exec("UPDATE t SET v = v").await;
            world.wait_same_rows("t").await;
        }
    }
    let collation = "SELECT collname FROM pg_attribute a JOIN pg_collation c ON c.oid = attcollation \
                     WHERE attrelid = 't'::regclass AND attname = 'e'";
    assert_eq!(world.target.value(collation).await.as_deref(), Some("C"));
}

/// The value that older rows were given is written as the type's own text, whatever it holds.
#[tokio::test]
async fn a_default_of_any_type_fills_older_rows_alike() {
    const COLUMNS: &[&str] = &[
        "c_quotes text DEFAULT E'it''s \\\\ \"new\"\\n{},NULL'",
        "c_null text DEFAULT 'NULL'",
        "c_empty text DEFAULT ''",
        "c_blanks char(5) DEFAULT 'a b '",
        "c_varchar varchar(9) DEFAULT 'x   '",
        "c_char \"char\" DEFAULT 'x'",
        "c_bytea bytea DEFAULT '\\x00ff5c27'",
        "c_numeric numeric DEFAULT 'NaN'",
        "c_round numeric(6,2) DEFAULT 1.005",
        "c_float float8 DEFAULT '-Infinity'",
        "c_tenth float4 DEFAULT 0.1",
        "c_bits varbit DEFAULT B'0101'",
        "c_date date DEFAULT 'infinity'",
        "c_time timestamptz(0) DEFAULT '2024-02-29 12:00:00.7+05:45'",
        "c_now timestamp DEFAULT now()",
        "c_interval interval DEFAULT '1 year 2 mons -3 days 04:05:06.789'",
        r#"c_json jsonb DEFAULT '{"a": [1, "\""]}'"#,
        "c_array int[] DEFAULT '[0:1]={1,NULL}'",
        r#"c_texts text[] DEFAULT '{"NULL",NULL,"a\"b"}'"#,
        "c_money money DEFAULT '1234.5'",
        "c_mood mood DEFAULT 'so so'",
        "c_pair pair DEFAULT '(1,\"a,b\")'",
        "c_code code DEFAULT 'x'",
        "c_range int4range DEFAULT '[1,5)'",
        "c_box box DEFAULT '(2,2),(1,1)'",
        "c_boxes box[] DEFAULT '{(2,2),(1,1);(4,4),(3,3)}'",
        "\"C d\" bool DEFAULT true",
        "c_expression text DEFAULT upper('a') || 'b'",
        "c_collated text COLLATE \"POSIX\" DEFAULT 'ä'",
    ];
    let world = World::builder()
        .both_sql("CREATE TYPE mood AS ENUM ('so so'); CREATE TYPE pair AS (a int, b text); CREATE DOMAIN code AS varchar(5)")
        .publisher_sql(&with_rows(""))
        .publisher_sql(&format!("ALTER ROLE {PUBLISHER_ROLE} SET datestyle = 'German, DMY'"))
        .publisher_sql(&format!("ALTER ROLE {PUBLISHER_ROLE} SET timezone = 'Asia/Kathmandu'"))
        .target_sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO t VALUES (3, 'streamed')").await;
    world.wait_same_rows("t").await;
    let added = COLUMNS.iter().map(|column| format!("ADD COLUMN {column}")).collect::<Vec<_>>().join(", ");
    let change =
        format!("ALTER TABLE t {added}; INSERT INTO t (id) VALUES (4); UPDATE t SET v = 'u' WHERE id = 1");
    check(&world, "t", &change, "ADD COLUMN \"C d\" boolean DEFAULT 't'", Older::Equal).await;
}

/// Values that cannot be known, and a collation that the target lacks.
#[tokio::test]
async fn what_cannot_be_known_is_said() {
    let world = World::builder()
        .publisher_sql(&with_rows(""))
        .publisher_sql("CREATE COLLATION ours (locale = 'C')")
        .publisher_sql("VACUUM FULL t")
        .publisher_sql("CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)")
        .publisher_sql("CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100)")
        .publisher_sql("INSERT INTO p VALUES (1, 'a')")
        .publisher_sql(&format!(
            "CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES WITH (publish_via_partition_root = true)"
        ))
        .target_sql(
            "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE p (id int PRIMARY KEY, v text)",
        )
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    world.wait_same_rows("p").await;
    let mut id = 10;
    for (table, column, expected, older) in [
        ("t", "a float8 DEFAULT random()", "\"a\" double precision;", Older::MayDiffer),
        ("t", "b timestamptz NOT NULL DEFAULT clock_timestamp()", "\"b\" timestamptz;", Older::MayDiffer),
        ("t", "c serial", "\"c\" integer;", Older::MayDiffer),
        // The table was written anew before, so that nothing is known of a column without a value.
        ("t", "d int", "\"d\" integer;", Older::MayDiffer),
        ("t", "e text COLLATE ours DEFAULT 'x'", "\"e\" text DEFAULT 'x';", Older::Equal),
        ("p", "a int DEFAULT 7", "\"a\" integer DEFAULT '7';", Older::Equal),
        ("p", "b int", "\"b\" integer;", Older::Equal),
    ] {
        id += 1;
        let change =
            format!("ALTER TABLE {table} ADD COLUMN {column}; INSERT INTO {table} (id) VALUES ({id})");
        world.publisher.exec(&change).await;
        let view = world.wait_paused("schema").await;
        let ddl = statements(&view);
        assert!(ddl.contains(expected), "{change}: {ddl}");
        assert_eq!(ddl.contains("pgsluice resync"), older == Older::MayDiffer, "{change}: {ddl}");
        assert_eq!(
            ddl.contains("the target has no collation"),
            column.contains("COLLATE"),
            "{change}: {ddl}"
        );
        // The check says the same.
        let checked = world.pgsluice(&["check", &world.subscription]).await;
        assert!(checked.stdout.contains(expected), "{change}: {}", checked.stdout);
        world.target.exec(&ddl).await;
        world.wait_state("streaming").await;
        if older == Older::MayDiffer {
            world.publisher.exec(format!("UPDATE {table} SET v = v")).await;
        }
        world.wait_same_rows(table).await;
    }
}

/// Rows from before the column come in the same transaction, and have no value for it.
#[tokio::test]
async fn rows_before_and_after_the_column_come_in_one_transaction() {
    let (world, _service) = streaming().await;
    let change =
        "BEGIN; INSERT INTO t VALUES (4, 'before'); ALTER TABLE t ADD COLUMN a text NOT NULL DEFAULT 'new';
                  INSERT INTO t VALUES (5, 'after', 'own'); COMMIT";
    check(&world, "t", change, "NOT NULL DEFAULT 'new'", Older::Equal).await;
    assert_eq!(world.target.lines("SELECT a FROM t ORDER BY id").await, ["new", "new", "new", "new", "own"]);
}

#[tokio::test]
async fn a_column_that_the_target_has_lost_may_differ() {
    let world = World::builder()
        .publisher_sql(&with_rows(", a int DEFAULT 7"))
        .target_sql("CREATE TABLE t (id int PRIMARY KEY, v text, a int)")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    world.wait_same_rows("t").await;
    world.target.exec("ALTER TABLE t DROP COLUMN a").await;
    check(&world, "t", "INSERT INTO t VALUES (3, 'c', 8)", "ADD COLUMN \"a\" integer", Older::MayDiffer)
        .await;
    world
        .target
        .exec("ALTER TABLE t ALTER v TYPE varchar(7)[] USING NULL; ALTER TABLE t ALTER v SET DEFAULT '{}'")
        .await;
    let change = "INSERT INTO t VALUES (4, 'd', 9)";
    check(
        &world,
        "t",
        change,
        "ALTER COLUMN \"v\" DROP DEFAULT, ALTER COLUMN \"v\" TYPE text",
        Older::MayDiffer,
    )
    .await;
}

/// A column list that grows shows a column that older rows have values in. Whether it is the last one does not matter.
#[tokio::test]
async fn a_column_that_was_not_published_may_differ() {
    if publisher_binaries().major() < 15 {
        return;
    }
    let world = World::builder()
        .publisher_sql(&with_rows(", kept text DEFAULT 'k'"))
        .publisher_sql(&format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE t (id, v)"))
        .target_sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let change = format!("ALTER PUBLICATION {PUBLICATION} SET TABLE t; INSERT INTO t VALUES (3, 'c', 'own')");
    check(&world, "t", &change, "ADD COLUMN \"kept\" text", Older::MayDiffer).await;
    world.publisher.exec("UPDATE t SET v = v").await;
    world.wait_same_rows("t").await;
    // The next column is new, though the list has changed.
    let change = "ALTER TABLE t ADD COLUMN fresh int DEFAULT 7; INSERT INTO t VALUES (4, 'd', 'own', 8)";
    check(&world, "t", change, "ADD COLUMN \"fresh\" integer DEFAULT '7';", Older::Equal).await;
}

/// DDL for every other misfit. The target is changed while nothing runs, and the hint corrects it.
#[tokio::test]
async fn every_hint_can_be_run_and_leaves_the_rows() {
    let world = World::builder()
        .both_sql("CREATE TABLE t (id int PRIMARY KEY, v text, n int NOT NULL)")
        .publisher_sql("INSERT INTO t SELECT n, n::text, n FROM generate_series(1, 9) n")
        .target_sql("CREATE DOMAIN filled AS int NOT NULL DEFAULT 1")
        .start()
        .await;
    let role = format!("\"{TARGET_ROLE}\"");
    let mut service = world.run();
    world.wait_state("streaming").await;
    world.wait_same_rows("t").await;
    let steps = [
        (
            format!("REVOKE UPDATE, TRUNCATE ON t FROM {role}"),
            "UPDATE t SET v = v || 'a' WHERE id = 1",
            format!("GRANT UPDATE ON TABLE public.t TO {role};"),
            Older::Equal,
        ),
        (
            format!("REVOKE USAGE ON SCHEMA public FROM PUBLIC, {role}"),
            "UPDATE t SET v = v || 'b' WHERE id = 2",
            format!("GRANT USAGE ON SCHEMA \"public\" TO {role};"),
            Older::Equal,
        ),
        (
            "ALTER TABLE t ENABLE ROW LEVEL SECURITY".to_owned(),
            "DELETE FROM t WHERE id = 3",
            format!("ALTER ROLE {role} BYPASSRLS;"),
            Older::Equal,
        ),
        (
            "ALTER TABLE t DROP CONSTRAINT t_pkey".to_owned(),
            "UPDATE t SET v = v || 'c' WHERE id = 4",
            "ALTER TABLE public.t ADD PRIMARY KEY (\"id\");".to_owned(),
            Older::Equal,
        ),
        (
            "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD COLUMN own int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"
                .to_owned(),
            "DELETE FROM t WHERE id = 5",
            "CREATE UNIQUE INDEX ON public.t (\"id\");".to_owned(),
            Older::Equal,
        ),
        (
            "ALTER TABLE t ALTER own DROP IDENTITY".to_owned(),
            "INSERT INTO t VALUES (20, 'new', 20)",
            "ALTER COLUMN \"own\" ADD GENERATED BY DEFAULT AS IDENTITY;".to_owned(),
            Older::Equal,
        ),
        (
            "ALTER TABLE t ADD COLUMN need int NOT NULL DEFAULT 1; ALTER TABLE t ALTER need DROP DEFAULT".to_owned(),
            "INSERT INTO t VALUES (21, 'new', 21)",
            "ALTER COLUMN \"need\" DROP NOT NULL;".to_owned(),
            Older::Equal,
        ),
        (
            "ALTER TABLE t ADD COLUMN filled filled; ALTER DOMAIN filled DROP DEFAULT; \
             ALTER TABLE t ALTER filled DROP DEFAULT"
                .to_owned(),
            "INSERT INTO t VALUES (22, 'new', 22)",
            "ALTER DOMAIN \"public\".\"filled\" DROP NOT NULL;".to_owned(),
            Older::Equal,
        ),
        (
            "ALTER TABLE t ALTER n ADD GENERATED ALWAYS AS IDENTITY".to_owned(),
            "UPDATE t SET n = -n WHERE id = 6",
            "ALTER COLUMN \"n\" SET GENERATED BY DEFAULT;".to_owned(),
            Older::Equal,
        ),
        (
            "UPDATE t SET v = '7'; ALTER TABLE t ALTER v TYPE int USING v::int, ALTER v SET DEFAULT 0".to_owned(),
            "UPDATE t SET v = 'all'",
            "DROP DEFAULT, ALTER COLUMN \"v\" TYPE text USING \"v\"::text::text;".to_owned(),
            Older::MayDiffer,
        ),
        (
            "ALTER TABLE t DROP COLUMN v, ADD COLUMN v text GENERATED ALWAYS AS ('x') STORED".to_owned(),
            "UPDATE t SET v = 'again'",
            "ALTER COLUMN \"v\" DROP EXPRESSION;".to_owned(),
            Older::MayDiffer,
        ),
    ];
    for (behind, change, expected, older) in steps {
        // A privilege that a planned table loses is named by the server.
        assert_eq!(service.sigterm().await, 0);
        world.target.exec(&behind).await;
        service = world.run();
        world.wait_state("streaming").await;
        check(&world, "t", change, &expected, older).await;
        world.same_rows("t").await.unwrap_or_else(|difference| panic!("{behind}: {difference}"));
    }
}

/// The target's column takes the new type's values, so that nothing would tell.
#[tokio::test]
async fn a_type_that_changed_on_the_publisher_is_told_also_after_a_stop() {
    let world = World::builder()
        .publisher_sql(
            "CREATE TABLE t (id int PRIMARY KEY, price int, note varchar(9), old text);
             INSERT INTO t VALUES (1, 5, 'a', '1'), (2, 6, 'b', '2')",
        )
        .target_sql("CREATE TABLE t (id int PRIMARY KEY, price bigint, note text, old text)")
        .start()
        .await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.wait_same_rows("t").await;
    let gap = async |what: &str| {
        let sql = "SELECT kind, source_table, holds, to_lsn IS NOT NULL, detail FROM pgsluice.gap WHERE settled_at IS NULL";
        until(&format!("{what} is on record"), async || {
            let gaps = world.target.lines(sql).await;
            let [gap] = gaps.as_slice() else { return Err(format!("{gaps:?}")) };
            if gap.starts_with("redefined|t|f|t|") && gap.contains(what) { Ok(()) } else { Err(gap.clone()) }
        })
        .await;
        let warnings = world.status().await.unwrap().json["warnings"].to_string();
        assert!(warnings.contains(&format!("pgsluice resync {} public.t", world.subscription)), "{warnings}");
    };
    // A relaxed limit changes no row.
    world
        .publisher
        .exec("ALTER TABLE t ALTER note TYPE varchar(20); INSERT INTO t VALUES (3, 7, 'c', '3')")
        .await;
    world.wait_same_rows("t").await;
    assert!(!service.log().contains("may differ"), "{}", service.log());
    world
        .publisher
        .exec(
            "ALTER TABLE t ALTER price TYPE bigint USING price * 100; INSERT INTO t VALUES (4, 8, 'd', '4')",
        )
        .await;
    gap("was integer and is bigint").await;
    assert!(service.log().contains("public.t may differ: a column has changed"), "{}", service.log());
    assert_eq!(service.sigterm().await, 0);
    world
        .publisher
        .exec("ALTER TABLE t DROP old, ADD old date; INSERT INTO t VALUES (5, 9, 'e', '2024-01-01')")
        .await;
    let _service = world.run();
    gap("was text and is date").await;
    // A column that is added again comes after those that it stood before.
    world
        .publisher
        .exec("ALTER TABLE t DROP note, ADD note varchar(20) DEFAULT 'n'; INSERT INTO t VALUES (6, 9, '2024-01-02', 'f')")
        .await;
    gap("\"note\" was dropped and added again").await;
}

/// The hints for a table whose schema is missing lead to a stream without anything else.
#[tokio::test]
async fn a_table_in_a_missing_schema_needs_the_hint_only() {
    let world = World::builder()
        .publisher_sql(
            r#"CREATE SCHEMA "New schema"; CREATE TABLE "New schema"."user" (id int PRIMARY KEY, v text NOT NULL COLLATE "C");
               INSERT INTO "New schema"."user" VALUES (1, 'a')"#,
        )
        .start()
        .await;
    let _service = world.run();
    let view = world.wait_paused("schema").await;
    let ddl = statements(&view);
    assert!(ddl.contains(r#"CREATE SCHEMA "New schema";"#) && !ddl.contains("resync"), "{ddl}");
    world.target.exec(&ddl).await;
    world.wait_same_rows(r#""New schema"."user""#).await;
    world.wait_state("streaming").await;
}
