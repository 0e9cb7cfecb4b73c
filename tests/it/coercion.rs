//! Values that the target's types would change without an error pause replication as `value_error`, whatever
//! the way they take: copy, set, COPY of a set, or single row. PostgreSQL's own subscriber stores them changed.

use crate::support::wait::until;
use crate::support::world::{TARGET_ROLE, World};

/// A table whose target changes some values silently.
struct Case {
    name: &'static str,
    published: &'static str,
    target: &'static str,
    /// A value that arrives as it is, one that would be changed, and what is said of it.
    good: &'static str,
    bad: &'static str,
    sqlstate: &'static str,
    /// DDL for the target by which it takes the value.
    cure: &'static str,
}

const CASES: &[Case] = &[
    Case {
        name: "shorter",
        published: "varchar(10)",
        target: "varchar(5)",
        good: "'abc  '",
        bad: "'abc       '",
        sqlstate: "22001",
        cure: "ALTER TABLE shorter ALTER v TYPE varchar(10)",
    },
    Case {
        name: "of_text",
        published: "text",
        target: "varchar(5)",
        good: "'äöüäö'",
        bad: "'äöüäö '",
        sqlstate: "22001",
        cure: "ALTER TABLE of_text ALTER v TYPE text",
    },
    Case {
        name: "domain",
        published: "varchar(10)",
        target: "code",
        good: "'abc  '",
        bad: "'abc       '",
        sqlstate: "22001",
        cure: "ALTER TABLE domain ALTER v TYPE text",
    },
    Case {
        name: "padded",
        published: "text",
        target: "char(5)",
        good: "'abcde'",
        bad: "'ab '",
        sqlstate: "22001",
        cure: "ALTER TABLE padded ALTER v TYPE text",
    },
    Case {
        name: "keys",
        published: "json",
        target: "jsonb",
        good: r#"'{"a": 1, "b": {"a": 2}}'"#,
        bad: r#"'{"a": 1, "a": 2}'"#,
        sqlstate: "22030",
        cure: "ALTER TABLE keys ALTER v TYPE json",
    },
    Case {
        name: "scale",
        published: "numeric",
        target: "numeric(6,2)",
        good: "'1234.50'",
        bad: "'1.005'",
        sqlstate: "22003",
        cure: "ALTER TABLE scale ALTER v TYPE numeric",
    },
    Case {
        name: "single",
        published: "float8",
        target: "float4",
        good: "'0.1'",
        bad: "'0.123456789'",
        sqlstate: "22003",
        cure: "ALTER TABLE single ALTER v TYPE float8",
    },
    Case {
        name: "seconds",
        published: "timestamptz",
        target: "timestamptz(0)",
        good: "'2024-02-29 12:00:00+00'",
        bad: "'2024-02-29 12:00:00.4+00'",
        sqlstate: "22008",
        cure: "ALTER TABLE seconds ALTER v TYPE timestamptz",
    },
    Case {
        name: "fields",
        published: "interval",
        target: "interval day to minute",
        good: "'1 mon 2 days 03:04:00'",
        bad: "'03:04:05'",
        sqlstate: "22015",
        cure: "ALTER TABLE fields ALTER v TYPE interval",
    },
    Case {
        name: "elements",
        published: "text[]",
        target: "varchar(5)[]",
        good: "'{ab,\"c  \",NULL}'",
        bad: "'{ab,\"cdefg \"}'",
        sqlstate: "22001",
        cure: "ALTER TABLE elements ALTER v TYPE text[]",
    },
];

async fn world(triggers: &str) -> World {
    let mut builder = World::builder().target_sql(
        "CREATE DOMAIN code AS varchar(5);
         CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    );
    for case in CASES {
        let table = |ty: &str| format!("CREATE TABLE {} (id int PRIMARY KEY, v {ty})", case.name);
        builder = builder.publisher_sql(&table(case.published)).target_sql(&table(case.target));
        builder = builder.target_sql(&triggers.replace("$t", case.name));
    }
    builder.start().await
}

/// Passes over the transaction that is paused, and returns its evidence.
async fn refused(world: &World, what: &str) -> serde_json::Value {
    let conflict = world.wait_conflict().await;
    assert_eq!(conflict["kind"], "value_error", "{what}: {conflict:#}");
    pass_over(world, &conflict).await;
    conflict
}

async fn pass_over(world: &World, conflict: &serde_json::Value) {
    let id = conflict["id"].to_string();
    world.pgsluice(&["conflicts", "resolve", &id, "--with", "skip-transaction"]).await.expect(0);
    world.wait_state("streaming").await;
}

/// Sends bad values by each kind of change. The rows of `ids` are those that arrive.
async fn check_stream(world: &World) {
    for Case { name, published, good, bad, sqlstate, .. } in CASES {
        let insert =
            |id: &str, value: &str| format!("INSERT INTO {name} SELECT n, ({value})::{published} FROM {id}");
        // One row, a set, and so many rows that they go by COPY.
        for (rows, what) in [(1, "a row"), (50, "a set"), (3000, "a COPY")] {
            let ids = format!("generate_series(1, {rows}) n");
            world
                .publisher
                .exec(insert(&ids, &format!("CASE n WHEN {rows} THEN {bad} ELSE {good} END")))
                .await;
            let conflict = refused(world, &format!("{name}, {what}")).await;
            assert_eq!(conflict["sqlstate"], *sqlstate, "{name}, {what}: {conflict:#}");
            assert_eq!(conflict["change_index"], rows, "{name}, {what}: {conflict:#}");
            world.publisher.exec(format!("TRUNCATE {name}")).await;
            world.wait_caught_up().await;
        }
        let ids = "generate_series(1, 3000) n";
        world.publisher.exec(insert(ids, good)).await;
        world.wait_same_rows(name).await;
        // A state that a row only passes through is refused as well.
        world
            .publisher
            .exec(format!("BEGIN; UPDATE {name} SET v = {bad} WHERE id = 7; UPDATE {name} SET v = {good} WHERE id = 7; COMMIT"))
            .await;
        refused(world, &format!("{name}, an update")).await;
        world.wait_same_rows(name).await;
    }
}

#[tokio::test]
async fn a_value_that_would_be_changed_pauses_as_a_set() {
    let world = world("").await;
    let service = world.run();
    let view = world.wait_state("streaming").await;
    let warnings = view.json["warnings"].to_string();
    for case in CASES {
        assert!(warnings.contains(&format!("target table public.{}", case.name)), "{warnings}");
    }
    check_stream(&world).await;
    assert!(!service.log().contains("abc  "), "a row's value is in the log");
}

#[tokio::test]
async fn a_value_that_would_be_changed_pauses_row_by_row() {
    let world = world(
        "CREATE TRIGGER pass AFTER INSERT ON $t FOR EACH ROW EXECUTE FUNCTION pass();
         ALTER TABLE $t ENABLE ALWAYS TRIGGER pass",
    )
    .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    check_stream(&world).await;
}

#[tokio::test]
async fn a_value_that_would_be_changed_fails_the_copy_and_is_named() {
    let world = world("").await;
    for Case { name, published, good, bad, .. } in CASES {
        let sql = format!(
            "INSERT INTO {name} SELECT n, (CASE n WHEN 77 THEN {bad} ELSE {good} END)::{published} FROM generate_series(1, 100) n"
        );
        world.publisher.exec(sql).await;
    }
    let service = world.run();
    for Case { name, sqlstate, cure, .. } in CASES {
        let error = until(&format!("the copy of {name} is refused"), async || {
            let status = world.status().await?;
            let tables = status.json["tables"].as_array().cloned().unwrap_or_default();
            let table = tables.into_iter().find(|table| table["source"] == format!("public.{name}"));
            let error = table.ok_or("no table")?["error"].to_string();
            if error.contains("row 77 of the copy") { Ok(error) } else { Err(error) }
        })
        .await;
        assert!(error.contains(sqlstate), "{error}");
        assert_eq!(world.target.lines(&format!("SELECT id FROM {name}")).await, [""; 0]);
        world.target.exec(*cure).await;
        world.wait_same_rows(name).await;
    }
    assert!(!service.log().contains("abc  "), "a row's value is in the log");
}

/// A cast to a domain would cut an array's elements, without an error, to the domain's length.
#[tokio::test]
async fn elements_of_a_domains_arrays_are_refused_and_not_cut() {
    let world = World::builder()
        .publisher_sql("CREATE TABLE t (id int PRIMARY KEY, v varchar(5)[], b bit(5)[])")
        .target_sql(
            "CREATE DOMAIN codes AS varchar(5)[]; CREATE DOMAIN bits AS bit(5)[];
             CREATE TABLE t (id int PRIMARY KEY, v codes, b bits)",
        )
        .subscription_line("binary = \"off\"")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    world
        .publisher
        .exec("INSERT INTO t SELECT n, '{abcde,\"a b\"}', '{10101}' FROM generate_series(1, 9) n")
        .await;
    world.wait_same_rows("t").await;
    // The published columns get wider, which the target's domain does not.
    world.publisher.exec("ALTER TABLE t ALTER v TYPE varchar(9)[]").await;
    let insert = |elements: &str| format!("INSERT INTO t VALUES (10, '{elements}', '{{10101}}')");
    // The target refuses the first, and pgsluice the second.
    for elements in ["{abcdefghi}", "{\"abcde \"}"] {
        world.publisher.exec(insert(elements)).await;
        let conflict = refused(&world, elements).await;
        assert_eq!(conflict["sqlstate"], "22001", "{conflict:#}");
        world.publisher.exec("TRUNCATE t").await;
        world.wait_same_rows("t").await;
    }
    world.publisher.exec(insert("{\"abcde \"}")).await;
    world.wait_conflict().await;
    world.target.exec("ALTER TABLE t ALTER v TYPE varchar(9)[]").await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_same_rows("t").await;
}

/// What the mapping allows is stored as the target's type makes it, by every way and in both formats.
#[tokio::test]
async fn a_coerced_column_takes_what_the_target_makes_of_it() {
    for binary in ["auto", "off"] {
        let world = World::builder()
            .publisher_sql(
                "CREATE TABLE t (id numeric PRIMARY KEY, n numeric, s text, at timestamptz, day timestamp);
                 INSERT INTO t VALUES (0, 1.005, 'abc       ', '2024-02-29 12:00:00.5+00', '2024-02-29 23:00')",
            )
            .target_sql(
                "CREATE TABLE t (id numeric(9,2) PRIMARY KEY, n numeric(6,2), s varchar(5), at timestamptz(0), day date)",
            )
            .subscription_line(&format!("binary = \"{binary}\""))
            .subscription_line(
                "tables = [{ source = \"public.t\", columns = { id = { coerce = true }, n = { coerce = true }, \
                 s = { coerce = true }, at = { coerce = true }, day = { coerce = true }, typo = { coerce = true } } }]",
            )
            .start()
            .await;
        let _service = world.run();
        let view = world.wait_state("streaming").await;
        let warnings = view.json["warnings"].to_string();
        for said in [
            "coerce = true has no effect on column \\\"id\\\"",
            "the rule for column \\\"typo\\\" of public.t has no effect",
            "rounds away decimal digits",
            "drop the time of day",
        ] {
            assert!(warnings.contains(said), "{said}: {warnings}");
        }
        let insert = |ids: &str| {
            format!(
                "INSERT INTO t SELECT n, 2.675 + n, repeat(' ', n % 9), '2024-02-29 12:00:00.7+00', \
                 '2024-03-01 01:00' FROM generate_series({ids}) n"
            )
        };
        for ids in ["1, 1", "2, 50", "51, 3000"] {
            world.publisher.exec(insert(ids)).await;
        }
        world
            .publisher
            .exec("UPDATE t SET n = n + 0.001 WHERE id % 7 = 0; DELETE FROM t WHERE id % 11 = 0")
            .await;
        world.wait_caught_up().await;
        let coerced =
            "SELECT id, n::numeric(6,2), s::varchar(5), at::timestamptz(0), day::date FROM t ORDER BY id";
        let stored = "SELECT id::int, n, s, at, day FROM t ORDER BY id";
        assert_eq!(
            world.target.lines(stored).await,
            world.publisher.lines(coerced).await,
            "binary = {binary}"
        );
        // Rows are found by it.
        world.publisher.exec("INSERT INTO t (id) VALUES (3000.005)").await;
        assert_eq!(refused(&world, "a key").await["sqlstate"], "22003");
    }
}

/// Limits inside a user's type are not part of its name.
#[tokio::test]
async fn types_inside_a_users_type_need_the_publishers_limits() {
    let types = |length: u32, scale: u32| {
        format!(
            "CREATE DOMAIN code AS varchar({length}); CREATE TYPE pair AS (a varchar({length}), n numeric(9,{scale}));
             CREATE TYPE nest AS (p pair[], x int);"
        )
    };
    let table = "CREATE TABLE t (id int PRIMARY KEY, c code[], p pair, ps pair[], n nest)";
    let world = World::builder()
        .publisher_sql(&types(10, 4))
        .target_sql(&types(5, 2))
        .both_sql(table)
        .publisher_sql("INSERT INTO t VALUES (1, '{\"abc       \"}', '(\"abc       \",1.2345)', NULL, NULL)")
        .start()
        .await;
    let _service = world.run();
    let view = world.wait_paused("schema").await;
    let told = view.told();
    for column in ["c", "p", "ps", "n"] {
        assert!(told.contains(&format!("column \"{column}\" of target table public.t")), "{told}");
    }
    assert!(told.contains("ALTER ATTRIBUTE") && !told.contains("ALTER TABLE public.t ALTER"), "{told}");
    assert_eq!(world.target.lines("SELECT id FROM t").await, [""; 0]);
    world
        .target
        .exec(&format!("DROP TABLE t; DROP TYPE nest, pair; DROP DOMAIN code; {} {table}; GRANT ALL ON t TO {TARGET_ROLE}", types(12, 4)))
        .await;
    world.wait_same_rows("t").await;
    world
        .publisher
        .exec("INSERT INTO t SELECT n, '{a,\"b    \"}', '(\"x    \",0.0001)', '{\"(y,1)\"}', '(\"{\"\"(z,2)\"\"}\",3)' FROM generate_series(2, 60) n")
        .await;
    world.wait_same_rows("t").await;
}

/// A range takes what its bounds' type takes, and values of composite types go by the order of the type's columns.
#[tokio::test]
async fn types_inside_ranges_and_the_order_inside_composites_count() {
    let types = |length: u32, pair: &str| {
        format!(
            "CREATE DOMAIN code AS varchar({length}); CREATE TYPE codes AS RANGE (subtype = code);
             CREATE TYPE pair AS ({pair}); CREATE TYPE nest AS (p pair[], r codes);"
        )
    };
    let table = "CREATE TABLE t (id int PRIMARY KEY, r codes, rs codes[], p pair, n nest)";
    let world = World::builder()
        .publisher_sql(&types(10, "x int, y int"))
        .target_sql(&types(5, "y int, x int"))
        .both_sql(table)
        .publisher_sql("INSERT INTO t VALUES (1, '[a,\"b         \")', NULL, '(1,2)', NULL)")
        .start()
        .await;
    let _service = world.run();
    let view = world.wait_paused("schema").await;
    let told = view.told();
    for column in ["r", "rs", "p", "n"] {
        assert!(told.contains(&format!("column \"{column}\" of target table public.t")), "{told}");
    }
    for said in ["other limits", "another range type", "columns in another order", "in the publisher's order"]
    {
        assert!(told.contains(said), "{said}: {told}");
    }
    assert!(!told.contains("ALTER TABLE public.t ALTER"), "{told}");
    assert_eq!(world.target.lines("SELECT id FROM t").await, [""; 0]);
    // Names of the columns do not matter, only their places.
    let types = types(12, "x int, z int");
    world
        .target
        .exec(&format!(
            "DROP TABLE t; DROP TYPE nest, pair, codes; DROP DOMAIN code; {types} {table}; GRANT ALL ON t TO {TARGET_ROLE}"
        ))
        .await;
    world.wait_same_rows("t").await;
    let row = r#"'[a,"c         ")', '{"[d,e]"}', '(3,4)', '("{""(5,6)""}","[f,g]")'"#;
    world.publisher.exec(format!("INSERT INTO t SELECT n, {row} FROM generate_series(2, 60) n")).await;
    world.wait_same_rows("t").await;
}

/// Rows are found by what the target made of their keys.
#[tokio::test]
async fn rows_are_found_by_keys_of_type_char() {
    let keys = [
        ("wider", "char(5)", "char(9)"),
        ("as_text", "char(5)", "text"),
        ("as_varchar", "char(5)", "varchar(5)"),
        ("as_char", "varchar(5)", "char(5)"),
        ("fraction", "timestamptz", "timestamptz(0)"),
        ("scaled", "numeric", "numeric(9,2)"),
    ];
    let mut builder = World::builder();
    for (name, published, target) in keys {
        let table = |ty: &str| format!("CREATE TABLE {name} (k {ty} PRIMARY KEY, v int)");
        builder = builder.publisher_sql(&table(published)).target_sql(&table(target));
    }
    let world = builder.start().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    for (name, ..) in keys {
        let key = match name {
            "fraction" => "'2024-02-29'::timestamptz + n * interval '1 s'",
            "scaled" => "n / 4.0",
            _ => "'k' || n",
        };
        for rows in ["1, 1", "2, 90"] {
            let insert = format!("INSERT INTO {name} SELECT {key}, n FROM generate_series({rows}) n");
            world.publisher.exec(insert).await;
            world.publisher.exec(format!("UPDATE {name} SET v = -v WHERE v % 2 = 1")).await;
            world.publisher.exec(format!("UPDATE {name} SET v = v + 1 WHERE v = 20")).await;
        }
        world.publisher.exec(format!("DELETE FROM {name} WHERE v % 5 = 0")).await;
    }
    world.wait_caught_up().await;
    world.wait_state("streaming").await;
    for (name, ..) in keys {
        let rows = format!("SELECT v FROM {name} ORDER BY v");
        assert_eq!(world.target.lines(&rows).await, world.publisher.lines(&rows).await, "{name}");
    }
}

/// Values without digits or blanks to lose, and those that only the server refuses.
#[tokio::test]
async fn special_values_go_in_or_are_refused() {
    let world = World::builder()
        .publisher_sql("CREATE TABLE t (id int PRIMARY KEY, n numeric, f float8, d timestamptz, r real, s text, a float8[])")
        .target_sql("CREATE TABLE t (id int PRIMARY KEY, n numeric(5,2), f real, d timestamptz(0), r numeric(5,2), s varchar(3), a real[])")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let values = "'NaN', '-Infinity', 'infinity', 'NaN', E'\\u3042\\u3000 ', '{NaN,Infinity,-0,NULL}'";
    for rows in ["1, 1", "2, 50", "51, 3000"] {
        world
            .publisher
            .exec(format!("INSERT INTO t SELECT n, {values} FROM generate_series({rows}) n"))
            .await;
    }
    world.wait_same_rows("t").await;
    for (column, value, sqlstate) in [
        ("n", "'Infinity'", "22003"),
        ("n", "1000", "22003"),
        ("n", "0.001", "22003"),
        ("f", "1e300", "22003"),
        ("f", "1e-300", "22003"),
        ("f", "'0.3'::float8 + 0.00000000001", "22003"),
        ("r", "'Infinity'", "22003"),
        ("r", "0.125", "22003"),
        // Three characters are not cut off, and a blank that is none of ASCII is none here.
        ("s", "E'\\u3042\\u3042\\u3042 '", "22001"),
        ("s", "E'\\u3042\\u3042\\u3042\\u3000'", "22001"),
        ("a", "'{1,0.123456789}'", "22003"),
    ] {
        world.publisher.exec(format!("INSERT INTO t (id, {column}) VALUES (0, {value})")).await;
        let conflict = refused(&world, &format!("{column} = {value}")).await;
        assert_eq!(conflict["sqlstate"], sqlstate, "{column} = {value}: {conflict:#}");
        world.publisher.exec("DELETE FROM t WHERE id = 0").await;
        let conflict = world.wait_conflict().await;
        assert_eq!(conflict["kind"], "delete_missing");
        pass_over(&world, &conflict).await;
    }
    world.wait_same_rows("t").await;
}
