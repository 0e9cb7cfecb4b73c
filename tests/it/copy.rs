//! The formats of the initial copy: binary where both sides have the same types, text elsewhere, with
//! the same rows in both.

use crate::support::clusters::publisher_binaries;
use crate::support::service::Service;
use crate::support::wait::until;
use crate::support::world::{Servers, World};
use crate::values::{KINDS, rows_of_kinds, table_of_kinds};

/// Types that are copied as text whatever the target's column is.
const TEXT_ONLY: &[&str] = &["money", "xml", "regclass", "jsonpath", "interval"];

/// Types that older publishers lack, whose values they do not know, or that they print with fewer
/// digits.
const SINCE_15: &[&str] = &["nummultirange", "numeric", "numeric[]", "numeric(3,-2)", "float4", "float8"];

/// Waits until the table is copied; the log must name this format each time.
async fn wait_format(service: &Service, table: &str, format: &str) {
    until(&format!("{table} is copied"), async || service.log().contains(&line(table))).await;
    let log = service.log();
    let copied: Vec<&str> = log.lines().filter(|logged| logged.contains(&line(table))).collect();
    let expected = format!("format={format}");
    assert!(copied.iter().all(|logged| logged.contains(&expected)), "{copied:?} lack {expected}");
}

fn line(table: &str) -> String {
    format!("COPY to COPY relation=public.{table} ")
}

async fn rows_copied(world: &World, table: &str) -> Option<String> {
    let sql = format!("SELECT rows_copied FROM pgsluice.table_sync WHERE source_table = '{table}'");
    world.target.value(&sql).await
}

#[tokio::test]
async fn equal_types_are_copied_in_binary_and_all_others_as_text() {
    let mut left_out = TEXT_ONLY.to_vec();
    if publisher_binaries().major() < 15 {
        left_out.extend(SINCE_15);
    }
    let kinds: Vec<_> = KINDS.iter().filter(|(ty, _)| !left_out.contains(ty)).copied().collect();
    let world = World::builder()
        .both_sql(&table_of_kinds("kinds", &kinds, "id int PRIMARY KEY"))
        .both_sql("CREATE TABLE nothing (id int PRIMARY KEY)")
        .both_sql("CREATE DOMAIN price AS numeric(12,2) CHECK (VALUE > 0)")
        .publisher_sql(&rows_of_kinds("kinds", &kinds, 0))
        // A domain is sent and received as the type below it.
        .publisher_sql("CREATE TABLE from_domain (id int PRIMARY KEY, p price)")
        .target_sql("CREATE TABLE from_domain (note text, p numeric(12,2), id int PRIMARY KEY)")
        .publisher_sql("CREATE TABLE into_domain (id int PRIMARY KEY, p numeric(12,2))")
        .target_sql("CREATE TABLE into_domain (id int PRIMARY KEY, p price)")
        // Both types have eight bytes, so in binary one would be taken for the other.
        .publisher_sql("CREATE TABLE wider (id int PRIMARY KEY, n int8, m int4)")
        .target_sql("CREATE TABLE wider (id int PRIMARY KEY, n numeric, m int8)")
        .both_sql("CREATE TABLE cash (id int PRIMARY KEY, m money)")
        .publisher_sql("INSERT INTO from_domain VALUES (1, 1.50); INSERT INTO into_domain VALUES (1, 1.50)")
        .publisher_sql("INSERT INTO wider VALUES (1, 9007199254740993, 7); INSERT INTO cash VALUES (1, 2.50)")
        .start()
        .await;
    let service = world.run();
    world.wait_state("streaming").await;
    for (table, format, rows) in [
        ("kinds", "binary", "8"),
        ("nothing", "binary", "0"),
        ("from_domain", "binary", "1"),
        ("into_domain", "binary", "1"),
        ("wider", "text", "1"),
        ("cash", "text", "1"),
    ] {
        wait_format(&service, table, format).await;
        assert_eq!(rows_copied(&world, table).await.as_deref(), Some(rows), "{table}");
    }
    for table in ["kinds", "nothing", "into_domain", "wider", "cash"] {
        world.assert_same_rows(table).await;
    }
    let from_domain = "SELECT id, p FROM from_domain";
    assert_eq!(world.target.lines(from_domain).await, world.publisher.lines(from_domain).await);
}

/// Both servers convert the encoding of the values, in binary as in text.
#[tokio::test]
async fn binary_copies_convert_between_encodings() {
    let table = "CREATE TABLE words (id int PRIMARY KEY, word text, code char(4), many varchar(8)[])";
    let world = World::builder()
        .servers(Servers::Separate)
        .encodings("LATIN1", "UTF8")
        .both_sql(table)
        .publisher_sql("INSERT INTO words VALUES (1, 'ünïcödé', 'äö', ARRAY['ß', NULL, 'é'])")
        .start()
        .await;
    let service = world.run();
    world.wait_same_rows("words").await;
    wait_format(&service, "words", "binary").await;
}

#[tokio::test]
async fn binary_can_be_turned_off() {
    let world = World::builder()
        .subscription_line("binary = \"off\"")
        .both_sql("CREATE TABLE plain (id int PRIMARY KEY, note text)")
        .publisher_sql("INSERT INTO plain SELECT n, 'row ' || n FROM generate_series(1, 1000) n")
        .start()
        .await;
    let service = world.run();
    world.wait_same_rows("plain").await;
    wait_format(&service, "plain", "text").await;
}

/// A type modifier limits binary values, too. A copy that fails leaves nothing behind, and succeeds
/// once its reason is gone.
#[tokio::test]
async fn a_value_that_the_target_refuses_fails_the_copy_whole() {
    let world = World::builder()
        .publisher_sql("CREATE TABLE words (id int PRIMARY KEY, word varbit(20))")
        .target_sql("CREATE TABLE words (id int PRIMARY KEY, word varbit(6))")
        .publisher_sql("INSERT INTO words SELECT n, (n % 64)::bit(6) FROM generate_series(1, 5000) n")
        .publisher_sql("INSERT INTO words VALUES (0, B'1010101')")
        .start()
        .await;
    let service = world.run();
    until("the copy is refused", async || service.log().contains("SQLSTATE 22001")).await;
    let told = "SELECT count(*) FROM pgsluice.table_sync \
        WHERE error->>'detail' LIKE '%bit string too long for type bit varying(6)%'";
    until("the refusal is told", async || world.target.value(told).await.as_deref() == Some("1")).await;
    assert_eq!(world.target.value("SELECT count(*) FROM words").await.as_deref(), Some("0"));
    wait_format(&service, "words", "binary").await;
    world.target.exec("ALTER TABLE words ALTER word TYPE varbit(20)").await;
    world.wait_same_rows("words").await;
    assert_eq!(rows_copied(&world, "words").await.as_deref(), Some("5001"));
}

/// When a failed copy is repeated, the table's earlier comparison may be outdated.
#[tokio::test]
async fn the_format_follows_a_column_that_is_altered_between_two_attempts() {
    let world = World::builder()
        .both_sql("CREATE TABLE counters (id int PRIMARY KEY, n int8)")
        .publisher_sql("INSERT INTO counters VALUES (1, 9007199254740993), (2, -1)")
        .target_sql("INSERT INTO counters VALUES (2, 0)")
        .start()
        .await;
    let service = world.run();
    until("somebody's row is in the way", async || service.log().contains("counters_pkey")).await;
    let formats = || {
        let log = service.log();
        let lines = log.lines().filter(|logged| logged.contains(&line("counters")));
        lines.map(|line| line.contains("format=binary")).collect::<Vec<_>>()
    };
    // After the first failure a second attempt follows at once.
    assert_eq!(formats().first(), Some(&true));
    world.target.exec("ALTER TABLE counters ALTER n TYPE numeric; DELETE FROM counters").await;
    world.wait_same_rows("counters").await;
    assert_eq!(formats().last(), Some(&false));
}

/// Both workers are held up by large tables, so that the third's snapshot is old when its turn comes.
#[tokio::test]
async fn a_table_that_is_rewritten_before_its_turn_keeps_its_rows() {
    let tables = |ty: &str| {
        format!(
            "CREATE TABLE first (a int); CREATE TABLE second (a int); CREATE TABLE plain (id int PRIMARY KEY, a {ty}); \
             CREATE TABLE parted (id int, a {ty}) PARTITION BY LIST (id); \
             CREATE TABLE part PARTITION OF parted FOR VALUES IN (1);"
        )
    };
    let world = World::builder()
        .servers(Servers::Separate)
        .publisher_sql(&tables("int"))
        .publisher_sql(
            "CREATE PUBLICATION my_publication FOR TABLE first, second, plain, parted \
             WITH (publish_via_partition_root = true)",
        )
        .publisher_sql(
            "INSERT INTO first SELECT n FROM generate_series(1, 5000) n; INSERT INTO second SELECT * FROM first; \
             INSERT INTO plain SELECT n, n FROM generate_series(1, 100) n; \
             INSERT INTO parted SELECT 1, n FROM generate_series(1, 100) n; ANALYZE",
        )
        .target_sql(&tables("bigint"))
        .start()
        .await;
    let blocker = world.target.session().await;
    blocker.batch("BEGIN; LOCK TABLE first, second").await.unwrap();
    let service = world.run();
    let waiting = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{} copy' AND wait_event_type = 'Lock'",
        world.subscription
    );
    until("both workers wait", async || world.target.value(&waiting).await.as_deref() == Some("2")).await;
    for table in ["plain", "parted"] {
        world.publisher.exec(format!("ALTER TABLE {table} ALTER COLUMN a TYPE bigint")).await;
    }
    blocker.batch("COMMIT").await.unwrap();
    for table in ["first", "second", "plain", "parted"] {
        world.wait_same_rows(table).await;
    }
    world.wait_state("streaming").await;
    assert!(service.log().contains("was rewritten on the publisher"));
    assert_eq!(service.sigterm().await, 0);
}
