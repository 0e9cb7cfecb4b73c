//! Values arrive unchanged, whatever their type, name or encoding and whatever the sessions' settings.
//!
//! PostgreSQL itself is the oracle: after each step both sides print their rows, and the texts are
//! equal.

use std::fmt::Write as _;

use crate::support::wait::until;
use crate::support::world::{Servers, World};

/// Each type with values that are easily lost: extremes, special values, padding.
pub(crate) const KINDS: &[(&str, &[&str])] = &[
    ("bool", &["true", "false"]),
    ("int2", &["-32768", "32767"]),
    ("int8", &["-9223372036854775808", "9223372036854775807"]),
    (
        "numeric",
        &["'NaN'", "'Infinity'", "'-Infinity'", "1.0", "1.00", "1e-40", "12345678901234567890.123456789"],
    ),
    ("numeric(12,2)", &["'NaN'", "0.10", "-1234567890.12"]),
    ("numeric(3,-2)", &["12300"]),
    ("float4", &["'NaN'", "'-Infinity'", "1e-45", "3.4028235e38", "0.1", "-0.0"]),
    (
        "float8",
        &["'NaN'", "'Infinity'", "5e-324", "1.7976931348623157e308", "0.1", "0.30000000000000004", "'-0'"],
    ),
    ("money", &["12.34", "-92233720368547758.08", "1234567.89"]),
    ("bit(5)", &["B'10101'"]),
    ("varbit", &["B''", "B'1011001'"]),
    ("bytea", &["''", r"'\x00ff5c27'", r"'\x5c7830'"]),
    (
        "text",
        &[
            "''",
            "'NULL'",
            r"'\N'",
            r"'\.'",
            "E'tab\\tline\\nback\\\\slash'",
            "'ünï\u{1F980}ćode'",
            "' padded '",
        ],
    ),
    ("varchar(20)", &["'trailing  '"]),
    ("char(6)", &["'ab'", "''"]),
    ("\"char\"", &["'x'", "''"]),
    ("name", &["'Name'"]),
    ("uuid", &["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"]),
    ("json", &[r#"'{"b": 1,  "a":[1,null], "b": 2}'"#, "'null'", r#"'"\u0041"'"#]),
    ("jsonb", &[r#"'{"b": 1e400, "a": [1, null], "": {}}'"#, "'null'"]),
    ("xml", &["'<a b=\"c\">d</a>'", "'fragment <b/> of content'"]),
    ("date", &["'0044-03-15 BC'", "'infinity'", "'-infinity'", "'5874897-12-31'"]),
    ("time", &["'24:00'", "'00:00:00.000001'"]),
    ("timetz", &["'12:34:56.789+05:45'"]),
    ("timestamp", &["'4713-01-01 00:00:00 BC'", "'infinity'", "'294276-12-31 23:59:59.999999'"]),
    ("timestamptz", &["'-infinity'", "'0001-01-01 00:00:00+00 BC'", "'2024-03-31 02:30:00.123456+02'"]),
    ("interval", &["'-1 year 2 mons -3 days 04:05:06.7'", "'P1Y2M3DT4H5M6.789S'", "'00:00:00.000001'"]),
    ("inet", &["'192.168.1.5/24'", "'::1'"]),
    ("cidr", &["'10.0.0.0/8'", "'2001:db8::/32'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("tsvector", &["$$'a':1A 'b c':2,3B$$"]),
    ("tsquery", &["$$'fat' & ( 'rat' | !'cat':A )$$"]),
    ("point", &["'(1.5,-0)'", "'(Infinity,NaN)'"]),
    ("line", &["'{1,-2,3}'"]),
    ("lseg", &["'[(0,0),(1,1e-300)]'"]),
    ("box", &["'(2,2),(0,0.1)'"]),
    ("path", &["'[(0,0),(1,1)]'", "'((0,0),(1,1))'"]),
    ("polygon", &["'((0,0),(1,1),(2,0))'"]),
    ("circle", &["'<(1,2),3.3>'"]),
    ("pg_lsn", &["'16/B374D848'"]),
    ("int4range", &["'empty'", "'[1,10)'", "'(,)'"]),
    ("tstzrange", &["'[2024-01-01 00:00+00, infinity)'"]),
    ("nummultirange", &["'{}'", "'{[1.0,2.50),(3,)}'"]),
    ("int4[]", &["'{}'", "'{1,NULL,3}'", "'[0:1][2:3]={{1,2},{3,4}}'"]),
    ("text[]", &[r#"'{"NULL",NULL,"a,b","q\"\\",""}'"#]),
    ("numeric[]", &["'{NaN,1.00,-Infinity}'"]),
    ("timestamptz[]", &["'{infinity,\"2024-01-01 00:00+00\"}'"]),
    ("oid", &["4294967295"]),
    ("regclass", &["'pg_catalog.pg_class'"]),
    ("jsonpath", &["'$.\"a\"[*] ? (@ > 1)'"]),
];

/// Types without an equality operator, which cannot be part of a row that is found by all columns.
const UNEQUAL: &[&str] =
    &["json", "xml", "point", "line", "path", "polygon", "jsonpath", "box", "circle", "lseg"];

fn column(at: usize) -> String {
    format!("c{at}")
}

/// Statement for a table with one column of each of these types.
pub(crate) fn table_of_kinds(name: &str, kinds: &[(&str, &[&str])], id: &str) -> String {
    let columns: Vec<String> =
        kinds.iter().enumerate().map(|(at, (ty, _))| format!("{} {ty}", column(at))).collect();
    format!("CREATE TABLE {name} ({id}, {})", columns.join(", "))
}

/// Statements for rows that hold every value once, NULL where a type has no more, beginning at this id.
pub(crate) fn rows_of_kinds(name: &str, kinds: &[(&str, &[&str])], first_id: usize) -> String {
    let rows = kinds.iter().map(|(_, values)| values.len()).max().unwrap();
    let mut sql = String::new();
    for row in 0..=rows {
        let values: Vec<String> = kinds
            .iter()
            .map(|(ty, values)| {
                values.get(row).map_or("NULL".to_owned(), |value| format!("CAST({value} AS {ty})"))
            })
            .collect();
        let _ = write!(sql, "INSERT INTO {name} VALUES ({}, {});", first_id + row, values.join(", "));
    }
    sql
}

/// Statement that moves each column's values by one row, so that every value of the table changes.
fn turned(kinds: &[(&str, &[&str])], name: &str) -> String {
    let columns: Vec<String> = (0..kinds.len()).map(column).collect();
    let from: Vec<String> = columns.iter().map(|column| format!("o.{column}")).collect();
    format!(
        "UPDATE {name} t SET ({}) = (SELECT {} FROM {name} o WHERE o.id = \
         CASE WHEN t.id % 100 = 0 THEN t.id + 7 ELSE t.id - 1 END)",
        columns.join(", "),
        from.join(", ")
    )
}

#[tokio::test]
async fn every_type_goes_through_copy_and_stream_unchanged() {
    let kinds: Vec<_> = KINDS.iter().filter(|(ty, _)| *ty != "money").copied().collect();
    assert_eq!(kinds.iter().map(|(_, values)| values.len()).max(), Some(7), "rows 0 to 7, see turned()");
    let comparable: Vec<_> = kinds.iter().filter(|(ty, _)| !UNEQUAL.contains(ty)).copied().collect();
    let world = World::builder()
        .both_sql("CREATE TABLE cash (id int PRIMARY KEY, amount money)")
        .both_sql(&table_of_kinds("kinds", &kinds, "id int PRIMARY KEY"))
        .both_sql(&table_of_kinds("whole", &comparable, "id int"))
        .publisher_sql("ALTER TABLE whole REPLICA IDENTITY FULL")
        .publisher_sql("INSERT INTO cash VALUES (1, 12.34), (2, -92233720368547758.08)")
        .publisher_sql(&rows_of_kinds("kinds", &kinds, 0))
        .publisher_sql(&rows_of_kinds("whole", &comparable, 0))
        .start()
        .await;
    let _service = world.run();
    let tables = ["kinds", "whole", "cash"];
    for table in tables {
        world.wait_same_rows(table).await;
    }
    world.wait_state("streaming").await;

    let same_again = async |what: &str| {
        world.wait_caught_up().await;
        for table in tables {
            world.same_rows(table).await.unwrap_or_else(|difference| panic!("{what}: {difference}"));
        }
    };
    world.publisher.exec("INSERT INTO cash VALUES (3, 1234567.89)").await;
    world.publisher.exec(rows_of_kinds("kinds", &kinds, 100)).await;
    world.publisher.exec(rows_of_kinds("whole", &comparable, 100)).await;
    same_again("INSERT").await;
    world.publisher.exec("UPDATE cash SET amount = amount / 2").await;
    world.publisher.exec(turned(&kinds, "kinds")).await;
    world.publisher.exec(turned(&comparable, "whole")).await;
    same_again("UPDATE").await;
    world.publisher.exec("UPDATE whole SET id = id + 1000 WHERE id % 2 = 0").await;
    world.publisher.exec("DELETE FROM whole WHERE id % 4 = 1; DELETE FROM kinds WHERE id > 103").await;
    same_again("DELETE").await;
    assert_eq!(world.target.value("SELECT count(*) FROM whole").await.as_deref(), Some("12"));
}

#[tokio::test]
async fn very_wide_tables_and_rows_without_columns_fit() {
    const COLUMNS: usize = 1599;
    let columns: Vec<String> = (0..COLUMNS).map(|at| format!("c{at} int2")).collect();
    let narrow: Vec<String> = (0..700).map(|at| format!("c{at} int")).collect();
    let world = World::builder()
        .both_sql(&format!("CREATE TABLE wide (id int PRIMARY KEY, {})", columns.join(", ")))
        .both_sql(&format!("CREATE TABLE whole (id int, {})", narrow.join(", ")))
        .both_sql("CREATE TABLE empty ()")
        .publisher_sql("ALTER TABLE whole REPLICA IDENTITY FULL; ALTER TABLE empty REPLICA IDENTITY FULL")
        .publisher_sql(
            "INSERT INTO wide (id, c0, c1598) VALUES (1, 1, 2); INSERT INTO whole (id, c699) VALUES (1, 2)",
        )
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let values: Vec<String> = (0..COLUMNS).map(|at| (at % 30000).to_string()).collect();
    world.publisher.exec(format!("INSERT INTO wide VALUES (2, {})", values.join(","))).await;
    world.publisher.exec(format!("INSERT INTO whole VALUES (2, {})", values[..700].join(","))).await;
    world.publisher.exec("UPDATE wide SET c7 = -7, c1598 = NULL; UPDATE whole SET c7 = -7").await;
    world.publisher.exec("DELETE FROM whole WHERE id = 1; INSERT INTO empty DEFAULT VALUES").await;
    world.wait_caught_up().await;
    world.assert_same_rows("wide").await;
    world.assert_same_rows("whole").await;
    assert_eq!(world.target.value("SELECT count(*) FROM empty").await.as_deref(), Some("1"));
}

/// An unchanged TOAST value is kept. The values are stored out of line and incompressible, so an update
/// that leaves them alone does not send them.
#[tokio::test]
async fn unchanged_toast_values_are_kept_also_when_the_row_moves_to_another_partition() {
    let world = World::builder()
        .publisher_sql(
            "CREATE TABLE docs (id int PRIMARY KEY, region text NOT NULL, body text, note text);
             ALTER TABLE docs ALTER body SET STORAGE EXTERNAL",
        )
        .target_sql(
            "CREATE TABLE docs (id int, region text NOT NULL, body text, note text, PRIMARY KEY (id, region))
                PARTITION BY LIST (region);
             CREATE TABLE docs_eu PARTITION OF docs FOR VALUES IN ('eu');
             CREATE TABLE docs_us (note text, body text, region text NOT NULL, id int NOT NULL);
             ALTER TABLE docs ATTACH PARTITION docs_us FOR VALUES IN ('us');
             CREATE UNIQUE INDEX ON docs_eu (id); CREATE UNIQUE INDEX ON docs_us (id)",
        )
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let body = "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 3000) n)";
    world
        .publisher
        .exec(format!("INSERT INTO docs VALUES (1, 'eu', {body}, 'a'), (2, 'eu', {body}, 'b')"))
        .await;
    world.publisher.exec("UPDATE docs SET note = 'kept' WHERE id = 1").await;
    world.publisher.exec("UPDATE docs SET region = 'us' WHERE id = 2").await;
    world.publisher.exec("UPDATE docs SET region = 'us', id = 3, note = NULL WHERE id = 1").await;
    world.wait_caught_up().await;
    world.assert_same_rows("docs").await;
    let lengths = "SELECT id, length(body) FROM docs_us ORDER BY id";
    assert_eq!(world.target.lines(lengths).await, ["2|96000", "3|96000"]);
}

/// Names are used exactly as they are, with any characters and case.
#[tokio::test]
async fn names_are_taken_as_they_are() {
    let tables = r#"
        CREATE SCHEMA "Odd ""schema""";
        CREATE TABLE "Odd ""schema"""."tab'le" ("B" int PRIMARY KEY, "b" int, "a'" text, "q""uote" text,
            "select" text, "back\slash" text, "grün🦀" text, "%s $1" text);
        CREATE TABLE "Case" (id int PRIMARY KEY, v text);
        CREATE TABLE "case" (id int PRIMARY KEY, v text);
        CREATE TABLE "dotted.name" ("x.y" int, v text)"#;
    let world = World::builder()
        .both_sql(tables)
        .publisher_sql(r#"ALTER TABLE "dotted.name" REPLICA IDENTITY FULL"#)
        .publisher_sql(
            r#"INSERT INTO "Odd ""schema"""."tab'le" VALUES (1, 2, 'a', 'q', 's', '\', 'g', '%');
               INSERT INTO "Case" VALUES (1, 'upper'); INSERT INTO "case" VALUES (1, 'lower')"#,
        )
        .start()
        .await;
    let _service = world.run();
    let odd = r#""Odd ""schema"""."tab'le""#;
    let all = [odd, r#""Case""#, r#""case""#, r#""dotted.name""#];
    for table in all {
        world.wait_same_rows(table).await;
    }
    world
        .publisher
        .exec(format!(
            r#"INSERT INTO {odd} VALUES (2, 2, 'a', 'q', 's', '\', 'g', '%'), (3, 3, 'c', NULL, 's', '\', 'g', '%');
               UPDATE {odd} SET "B" = 20, "a'" = 'it''s', "grün🦀" = 'grün' WHERE "B" = 2;
               DELETE FROM {odd} WHERE "B" = 3;
               UPDATE "Case" SET v = 'UPPER'; UPDATE "case" SET id = 2;
               INSERT INTO "dotted.name" VALUES (1, NULL), (2, 'b'); UPDATE "dotted.name" SET v = 'a' WHERE v IS NULL"#
        ))
        .await;
    world.wait_caught_up().await;
    for table in all {
        world.assert_same_rows(table).await;
    }
}

/// Columns that only the target has take their defaults on insert, and updates leave them alone.
#[tokio::test]
async fn columns_of_the_target_alone_take_their_defaults_and_are_left_alone() {
    let world = World::builder()
        .publisher_sql("CREATE TABLE t (id int PRIMARY KEY, a int, b text)")
        .publisher_sql("INSERT INTO t VALUES (1, 10, 'copied')")
        .target_sql("CREATE SEQUENCE tickets; GRANT USAGE ON SEQUENCE tickets TO pgsluice_apply")
        .target_sql(
            "CREATE TABLE t (note text DEFAULT 'new', b text, a int, id int PRIMARY KEY,
                ticket int NOT NULL DEFAULT nextval('tickets'), twice int GENERATED ALWAYS AS (a * 2) STORED,
                serial bigint GENERATED ALWAYS AS IDENTITY, nothing text)",
        )
        .start()
        .await;
    let _service = world.run();
    world.wait_same_rows("t").await;
    let all = "SELECT id, a, b, note, ticket, twice, serial, nothing FROM t ORDER BY id";
    assert_eq!(world.target.lines(all).await, ["1|10|copied|new|1|20|1|∅"]);
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO t VALUES (2, 20, 'streamed')").await;
    world.wait_same_rows("t").await;
    world.target.exec("UPDATE t SET note = 'ours', nothing = 'ours'").await;
    world.publisher.exec("UPDATE t SET a = a + 1; UPDATE t SET id = 3 WHERE id = 2").await;
    world.wait_caught_up().await;
    let expected = ["1|11|copied|ours|1|22|1|ours", "3|21|streamed|ours|2|42|2|ours"];
    assert_eq!(world.target.lines(all).await, expected);
}

/// A value that the publisher publishes cannot be stored in a generated column of the target.
#[tokio::test]
async fn a_published_value_for_a_generated_column_pauses_with_the_cure() {
    let world = World::builder()
        .publisher_sql("CREATE TABLE t (id int PRIMARY KEY, a int, twice int)")
        .publisher_sql("INSERT INTO t VALUES (1, 1, 3)")
        .target_sql(
            "CREATE TABLE t (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED)",
        )
        .start()
        .await;
    let _service = world.run();
    let view = world.wait_paused("schema").await;
    assert!(view.told().contains("twice") && view.told().contains("DROP EXPRESSION"), "{}", view.told());
    assert_eq!(world.target.lines("SELECT * FROM t").await, [""; 0]);
    world.target.exec("ALTER TABLE t ALTER COLUMN twice DROP EXPRESSION").await;
    world.wait_same_rows("t").await;
}

/// User-defined types are resolved by name. Their OIDs differ between servers; on this target, on
/// purpose.
#[tokio::test]
async fn types_that_users_create_go_by_name() {
    let types = "
        CREATE SCHEMA shop;
        CREATE EXTENSION hstore SCHEMA public;
        CREATE TYPE shop.mood AS ENUM ('sad', 'o''k', 'very \"happy\"');
        CREATE DOMAIN shop.price AS numeric(12,2) CHECK (value >= 0);
        CREATE DOMAIN shop.prices AS shop.price[];
        CREATE TYPE shop.item AS (name text, mood shop.mood, price shop.price, tags text[]);
        CREATE TYPE shop.span AS RANGE (subtype = float8);
        CREATE DOMAIN shop.good AS shop.item CHECK ((value).name <> '')";
    let table = "
        CREATE TABLE shop.t (id int PRIMARY KEY, mood shop.mood, moods shop.mood[], price shop.price,
            prices shop.prices, item shop.item, items shop.item[], good shop.good, span shop.span,
            multi shop.span_multirange, h public.hstore, hs public.hstore[]);
        CREATE TABLE shop.whole (mood shop.mood, price shop.price, item shop.item, items shop.item[],
            span shop.span, h public.hstore)";
    let world = World::builder()
        .target_sql("CREATE TYPE public.shift_oids AS ENUM ('x'); CREATE TABLE shift_more (a int, b text)")
        .both_sql(types)
        .both_sql(table)
        .publisher_sql("ALTER TABLE shop.whole REPLICA IDENTITY FULL")
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLES IN SCHEMA shop")
        .start()
        .await;
    let oid = "SELECT 'shop.mood'::regtype::oid";
    assert_ne!(
        world.publisher.value(oid).await,
        world.target.value(oid).await,
        "the test needs them to differ"
    );
    let values = r#"'very "happy"', ARRAY['sad', NULL, 'o''k']::shop.mood[], 12.30, '{1.10,2.25}',
        ROW('a "b", (c)', 'o''k', 9.99, '{x,"y,z",NULL}'),
        ARRAY[ROW(NULL, 'sad', NULL, '{}')::shop.item, NULL], ROW('good', NULL, 0, NULL),
        '[1.5,2)', '{[1,2),[3,4.25]}', 'a=>"1 \" 2", b=>NULL, ""=>x', ARRAY['k=>v'::public.hstore]"#;
    let whole = "'sad', 1.50, ROW('a', 'sad', 1, '{x}'), ARRAY[ROW('a', 'sad', 1, '{x}')::shop.item], '(0,1]', 'a=>1, b=>2'";
    let insert = |id: u32| {
        format!(
            "INSERT INTO shop.t VALUES ({id}, {values}); INSERT INTO shop.whole VALUES ({whole}), ({whole})"
        )
    };
    world.publisher.exec(insert(1)).await;
    let _service = world.run();
    world.wait_same_rows("shop.t").await;
    world.wait_state("streaming").await;
    world.publisher.exec(insert(2)).await;
    world
        .publisher
        .exec(r"UPDATE shop.t SET mood = 'sad', item.mood = 'sad', h = h || 'n=>1', prices[2] = 7")
        .await;
    world
        .publisher
        .exec("UPDATE shop.t SET id = 5, items = items || item, good.name = 'better' WHERE id = 1")
        .await;
    world.publisher.exec("UPDATE shop.whole SET price = 2.5, h = 'b=>2' WHERE ctid = '(0,1)'").await;
    world.publisher.exec("DELETE FROM shop.whole WHERE ctid IN ('(0,2)', '(0,3)')").await;
    world.wait_caught_up().await;
    world.assert_same_rows("shop.t").await;
    world.assert_same_rows("shop.whole").await;
    // A label that the target does not know is refused, together with its transaction.
    world.publisher.exec("ALTER TYPE shop.mood ADD VALUE 'new'").await;
    world
        .publisher
        .exec("BEGIN; UPDATE shop.t SET price = 1; INSERT INTO shop.t (id, mood) VALUES (9, 'new'); COMMIT")
        .await;
    let view = world.wait_paused("conflict").await;
    assert!(view.told().contains("shop.t"), "{}", view.told());
    assert_eq!(
        world.target.value("SELECT count(*) FROM shop.t WHERE price = 1 OR id = 9").await.as_deref(),
        Some("0")
    );
    world.target.exec("ALTER TYPE shop.mood ADD VALUE 'new'").await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_same_rows("shop.t").await;
}

/// Settings of servers, databases or roles must not change a value.
#[tokio::test]
async fn settings_of_either_side_change_no_value() {
    let hostile = "
        ALTER DATABASE DB SET datestyle = 'SQL, DMY'; ALTER DATABASE DB SET intervalstyle = 'sql_standard';
        ALTER DATABASE DB SET extra_float_digits = -15; ALTER DATABASE DB SET bytea_output = 'escape';
        ALTER DATABASE DB SET timezone = 'Asia/Kathmandu'; ALTER DATABASE DB SET array_nulls = off;
        ALTER DATABASE DB SET xmloption = 'document'; ALTER DATABASE DB SET standard_conforming_strings = off;
        ALTER DATABASE DB SET search_path = shadow, public; ALTER DATABASE DB SET client_encoding = 'LATIN1';
        ALTER DATABASE DB SET default_transaction_read_only = READ_ONLY;
        ALTER DATABASE DB SET transform_null_equals = on; ALTER DATABASE DB SET backslash_quote = off;
        ALTER DATABASE DB SET default_transaction_isolation = 'serializable'";
    let table = "CREATE TABLE t (id int PRIMARY KEY, d date, ts timestamptz, i interval, f8 float8, f4 float4,
        b bytea, a text[], x xml, n text);
        CREATE TABLE whole (d date, ts timestamptz, i interval, f8 float8, f4 float4, b bytea, a text[], n text)";
    let world = World::builder()
        .both_sql(table)
        .publisher_sql("ALTER TABLE whole REPLICA IDENTITY FULL")
        .publisher_sql(&hostile.replace("DB", "publisher").replace("READ_ONLY", "off"))
        .target_sql(&hostile.replace("DB", "target").replace("READ_ONLY", "on"))
        .start()
        .await;
    let fields = r"'2024-02-01'::date, '2024-02-01 03:04:05.678901+00'::timestamptz, '-1 mon 2 days -03:04:05.6'::interval,
        0.1::float8 + 0.2, 16777217.1::float4, decode('00ff5c27', 'hex'), ARRAY[NULL, 'NULL', E'back\\slash'],";
    let insert = |id: u32| {
        format!(
            r"SET xmloption = content; SET datestyle = ISO; SET intervalstyle = postgres;
              INSERT INTO t VALUES ({id}, {fields} '<a/>tail', E'ü \\');
              INSERT INTO whole VALUES ({fields} NULL), ({fields} E'ü \\')"
        )
    };
    world.publisher.exec(insert(1)).await;
    let _service = world.run();
    let settings = "SET datestyle = ISO; SET intervalstyle = postgres; SET extra_float_digits = 3; SET bytea_output = hex;";
    let same = async |table: &str| {
        let sql = format!("{settings} SELECT x.*::text FROM {table} x ORDER BY 1");
        let (publisher, target) = (world.publisher.lines(&sql).await, world.target.lines(&sql).await);
        if publisher == target && !publisher.is_empty() {
            Ok(())
        } else {
            Err(format!("{publisher:#?} {target:#?}"))
        }
    };
    for table in ["t", "whole"] {
        until(&format!("{table} is copied"), async || same(table).await).await;
    }
    world.wait_state("streaming").await;
    world.publisher.exec(insert(2)).await;
    world.publisher.exec("UPDATE whole SET i = i * 2, n = 'twice' WHERE n IS NULL").await;
    world.publisher.exec("DELETE FROM whole WHERE n <> 'twice'; UPDATE t SET f8 = f8 / 3").await;
    world.wait_caught_up().await;
    for table in ["t", "whole"] {
        same(table).await.unwrap();
    }
}

/// Text is converted between encodings. `convert_to` shows each side's bytes in its own encoding.
#[tokio::test]
async fn text_is_converted_between_encodings_and_refused_where_it_cannot_be() {
    for (publisher, target) in [("LATIN1", "UTF8"), ("UTF8", "LATIN1")] {
        let world = World::builder()
            .servers(Servers::Separate)
            .encodings(publisher, target)
            .both_sql("CREATE TABLE \"größe\" (id int PRIMARY KEY, \"süß\" text)")
            .publisher_sql("INSERT INTO \"größe\" VALUES (1, 'naïve £')")
            .start()
            .await;
        let _service = world.run();
        world.wait_same_rows("\"größe\"").await;
        world.wait_state("streaming").await;
        world
            .publisher
            .exec(
                "INSERT INTO \"größe\" VALUES (2, 'Ærø ÿ'); UPDATE \"größe\" SET \"süß\" = 'é' WHERE id = 1",
            )
            .await;
        world.wait_same_rows("\"größe\"").await;
        let bytes = "SELECT octet_length(\"süß\") FROM \"größe\" ORDER BY id";
        let width = |encoding| if encoding == "UTF8" { ["2", "8"] } else { ["1", "5"] };
        assert_eq!(world.publisher.lines(bytes).await, width(publisher));
        assert_eq!(world.target.lines(bytes).await, width(target));
        if target == "LATIN1" {
            world.publisher.exec("INSERT INTO \"größe\" VALUES (3, 'снег')").await;
            let view = world.wait_paused("conflict").await;
            let id = view.conflict_id().unwrap();
            let shown = world.pgsluice(&["conflicts", "show", &id]).await;
            assert!(
                shown.stdout.contains("value_error") && shown.stdout.contains(r"\xd181d0bdd0b5d0b3"),
                "{shown:#?}"
            );
        }
    }
}

/// Without an encoding, bytes are passed unchanged.
#[tokio::test]
async fn bytes_without_an_encoding_pass_as_they_are() {
    for (publisher, target) in [("SQL_ASCII", "SQL_ASCII"), ("SQL_ASCII", "UTF8"), ("LATIN1", "SQL_ASCII")] {
        let world = World::builder()
            .servers(Servers::Separate)
            .encodings(publisher, target)
            .both_sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
            .start()
            .await;
        // The bytes are written with functions, because the test's session uses UTF-8.
        let text = |hex: &str| format!("convert_from(decode('{hex}', 'hex'), '{publisher}')");
        let (utf8, latin1) = (text("c3bc"), text("fc"));
        world.publisher.exec(format!("INSERT INTO t VALUES (1, {utf8})")).await;
        let _service = world.run();
        let bytes = "SELECT id, encode(textsend(v), 'hex') FROM t ORDER BY id";
        let settings = format!("SET client_encoding = '{target}'; {bytes}");
        until("the row is copied", async || {
            let seen = world.target.lines(&settings).await;
            if seen == ["1|c3bc"] { Ok(()) } else { Err(format!("{publisher} -> {target}: {seen:?}")) }
        })
        .await;
        world.wait_state("streaming").await;
        world.publisher.exec(format!("INSERT INTO t VALUES (2, {utf8})")).await;
        world.publisher.exec(format!("INSERT INTO t VALUES (3, {latin1})")).await;
        if target == "SQL_ASCII" {
            world.wait_caught_up().await;
            assert_eq!(world.target.lines(&settings).await, ["1|c3bc", "2|c3bc", "3|fc"]);
        } else {
            world.wait_paused("conflict").await;
            assert_eq!(world.target.lines(&settings).await, ["1|c3bc", "2|c3bc"]);
        }
    }
}

/// A role that may create functions in `public` must not get pgsluice's privileges.
#[tokio::test]
async fn functions_and_operators_planted_in_public_never_run() {
    let planted = "
        CREATE TABLE public.caught (what text);
        GRANT INSERT ON public.caught TO PUBLIC;
        CREATE FUNCTION public.trap(a text, b text) RETURNS bool LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO public.caught VALUES ('operator by ' || current_user); RETURN true; END $$;
        CREATE FUNCTION public.trap(a int, b int) RETURNS bool LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO public.caught VALUES ('operator by ' || current_user); RETURN true; END $$;
        CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.trap);
        CREATE OPERATOR public.= (LEFTARG = int, RIGHTARG = int, FUNCTION = public.trap);
        CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO public.caught VALUES ('now'); RETURN NULL; END $$;
        CREATE FUNCTION public.pg_try_advisory_lock(bigint) RETURNS bool LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO public.caught VALUES ('lock'); RETURN true; END $$;
        CREATE FUNCTION public.format_type(oid, int) RETURNS text LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO public.caught VALUES ('format_type'); RETURN 'x'; END $$;
        CREATE FUNCTION public.unnest(int[]) RETURNS SETOF int LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO public.caught VALUES ('unnest'); END $$;
        CREATE TABLE public.pg_class (oid oid, relname name);
        CREATE TYPE public.text AS ENUM ('trap');
        ALTER DATABASE DB SET search_path = public, pg_catalog";
    let tables = "CREATE TABLE keyed (id int PRIMARY KEY, v pg_catalog.text);
                  CREATE TABLE whole (id int, v pg_catalog.text)";
    let world = World::builder()
        .both_sql(tables)
        .publisher_sql("ALTER TABLE whole REPLICA IDENTITY FULL; CREATE PUBLICATION my_publication FOR TABLE keyed, whole WHERE (id > 0 AND v <> 'x')")
        .publisher_sql(&planted.replace("DB", "publisher"))
        .target_sql(&planted.replace("DB", "target"))
        .publisher_sql("INSERT INTO keyed VALUES (1, 'a'); INSERT INTO whole VALUES (1, 'a'), (1, 'a'), (2, 'b')")
        .start()
        .await;
    let _service = world.run();
    let same = async |table: &str| world.wait_same_rows(&format!("public.{table}")).await;
    same("keyed").await;
    same("whole").await;
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO keyed VALUES (2, 'b'); UPDATE keyed SET v = 'c'; DELETE FROM keyed WHERE id OPERATOR(pg_catalog.=) 2").await;
    world.publisher.exec("UPDATE whole SET v = 'c' WHERE id OPERATOR(pg_catalog.=) 2; DELETE FROM whole WHERE ctid OPERATOR(pg_catalog.=) '(0,1)'").await;
    world.wait_caught_up().await;
    same("keyed").await;
    same("whole").await;
    world.publisher.exec("INSERT INTO keyed VALUES (3, 'c')").await;
    world.target.exec("INSERT INTO keyed VALUES (4, 'local')").await;
    world.publisher.exec("INSERT INTO keyed VALUES (4, 'd')").await;
    world.wait_paused("conflict").await;
    for side in [&world.publisher, &world.target] {
        assert_eq!(side.lines("SELECT DISTINCT what FROM public.caught").await, [""; 0], "{}", side.name);
    }
}
