//! Rows of hundreds of megabytes: the memory that they take, and those that are refused.

use std::process::Command;
use std::time::Duration;

use pgsluice::demo::process::Signal;

use crate::support::service::Service;
use crate::support::wait::until;
use crate::support::world::World;

/// Size of the large values, bytes.
const LARGE: usize = 100 << 20;
/// What the process may take besides three times a value: messages that wait, statements, caches, and blocks of up
/// to 32 MiB that the allocator keeps after a buffer has grown.
const BESIDES: usize = 96 << 20;
/// The unoptimised program, under load, takes long for a hundred megabytes.
const PATIENCE: Duration = Duration::from_mins(2);

/// Reads a size from the process's status, in bytes.
fn memory(service: &Service, what: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_else(|| panic!("{status}"));
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// Limits the process's address space from now on. Returns whether it could be done.
fn limit(service: &Service, bytes: usize) -> bool {
    let limited = Command::new("prlimit")
        .args(["--pid", &service.pid().to_string(), &format!("--as={bytes}")])
        .status()
        .is_ok_and(|status| status.success());
    if !limited {
        println!("NOT TESTED: there is no prlimit here, so memory is only measured and not limited");
    }
    limited
}

/// The setting of the tests with refused rows, and its line.
const LIMIT: usize = 1 << 20;
const LIMIT_LINE: &str = "max_value_bytes = 1048576";

fn raise_limit(world: &World, service: &mut Service) {
    let config = std::fs::read_to_string(&world.config).unwrap();
    std::fs::write(&world.config, config.replace(LIMIT_LINE, "max_value_bytes = 10485760")).unwrap();
    service.signal(Signal::Reload);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_row_takes_three_times_its_size_at_most() {
    let world = World::builder()
        .both_sql("CREATE TABLE docs (id int PRIMARY KEY, body text, data bytea)")
        .publisher_sql("INSERT INTO docs VALUES (0, 'small', 'small')")
        .target_sql("INSERT INTO docs VALUES (0, 'small', 'small')")
        .subscription_line("copy_data = false")
        .start()
        .await;
    // Each arena of the allocator would reserve 64 MiB of address space.
    let service = world.run_with(&[("MALLOC_ARENA_MAX", "1")]);
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO docs VALUES (1, 'one', 'one')").await;
    world.wait_caught_up().await;
    let before = memory(&service, "VmRSS");
    println!("address space: {} MiB", memory(&service, "VmSize") >> 20);
    limit(&service, memory(&service, "VmSize") + 3 * LARGE + BESIDES);
    let body = format!("repeat('x', {LARGE})");
    for (what, sql) in [
        ("insert of text", format!("INSERT INTO docs VALUES (2, {body}, NULL)")),
        ("update of text", format!("UPDATE docs SET body = {body} WHERE id = 0")),
        ("insert of bytea", format!("INSERT INTO docs VALUES (3, 'x', {body}::bytea)")),
        (
            "several in one transaction",
            format!(
                "INSERT INTO docs SELECT n, left({body}, {LARGE} / 2), NULL FROM generate_series(4, 7) n"
            ),
        ),
    ] {
        world.publisher.exec(&sql).await;
        world.wait_caught_up_within(PATIENCE).await;
        let peak = memory(&service, "VmHWM");
        let space = memory(&service, "VmPeak") >> 20;
        println!(
            "{what}: {} MiB more than {} MiB, address space {space} MiB",
            (peak - before) >> 20,
            before >> 20
        );
        assert!(peak < before + 3 * LARGE + BESIDES, "{what}: {peak} after {before}");
    }
    let sums = "SELECT id, length(body), md5(body), md5(data) FROM docs ORDER BY id";
    assert_eq!(world.publisher.lines(sums).await, world.target.lines(sums).await);

    // The evidence of a conflict has the beginning of the values.
    world.target.exec(format!("INSERT INTO docs VALUES (8, {body}, NULL)")).await;
    world.publisher.exec(format!("INSERT INTO docs VALUES (8, {body}, NULL)")).await;
    world.wait_state_within(PATIENCE, "paused").await;
    let conflict = world.wait_conflict().await;
    let peak = memory(&service, "VmHWM");
    println!("conflict: {} MiB more", (peak - before) >> 20);
    assert!(peak < before + 3 * LARGE + BESIDES, "conflict: {peak} after {before}");
    let text = conflict.to_string();
    assert!(text.len() < 16_384, "{} bytes", text.len());
    assert_eq!(text.matches(&format!("\"size\":{LARGE}")).count(), 2, "incoming and local: {text}");
    world.target.exec("DELETE FROM docs WHERE id = 8").await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_caught_up_within(PATIENCE).await;
    assert_eq!(world.publisher.lines(sums).await, world.target.lines(sums).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_row_is_copied_without_copies_of_it() {
    let world = World::builder()
        .both_sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
        .publisher_sql(&format!(
            "INSERT INTO docs VALUES (1, 'one'), (2, repeat('x', {LARGE})), (3, 'three'), \
             (4, repeat('y', {LARGE})), (5, repeat('z', {LARGE}))"
        ))
        .start()
        .await;
    let service = world.run_with(&[("MALLOC_ARENA_MAX", "1")]);
    world.wait_state_within(PATIENCE, "streaming").await;
    let sums = "SELECT id, length(body), md5(body) FROM docs ORDER BY id";
    assert_eq!(world.publisher.lines(sums).await, world.target.lines(sums).await);
    let peak = memory(&service, "VmHWM");
    println!("copy: {} MiB", peak >> 20);
    assert!(peak < 3 * LARGE + 2 * BESIDES, "{peak}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_beyond_the_limit_holds_back_its_tables_copy_only() {
    let world = World::builder()
        .both_sql(
            "CREATE TABLE docs (id int PRIMARY KEY, body text); CREATE TABLE others (id int PRIMARY KEY)",
        )
        .publisher_sql(
            "INSERT INTO docs VALUES (1, 'one'), (2, repeat('x', 2000000)); INSERT INTO others VALUES (1)",
        )
        .subscription_line(LIMIT_LINE)
        .start()
        .await;
    let mut service = world.run();
    world.wait_same_rows("others").await;
    world.publisher.exec("INSERT INTO others VALUES (2)").await;
    world.wait_same_rows("others").await;
    let refused = "a row of public.docs has 20000";
    until("the copy has failed", async || {
        let text = world.status().await?.json.to_string();
        if text.contains(refused) && text.contains("raise max_value_bytes") { Ok(()) } else { Err(text) }
    })
    .await;
    raise_limit(&world, &mut service);
    world.wait_same_rows("docs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_beyond_the_limit_pauses_and_goes_on_once_it_is_raised() {
    let world = World::builder()
        .both_sql("CREATE TABLE docs (id int PRIMARY KEY, title text, body text)")
        .subscription_line("copy_data = false")
        .subscription_line(LIMIT_LINE)
        .start()
        .await;
    world.take_up().await;
    // All of this comes together when the service starts again.
    world
        .publisher
        .exec("INSERT INTO docs SELECT n, 'before', repeat('x', 1000) FROM generate_series(1, 50) n")
        .await;
    world.publisher.exec("INSERT INTO docs VALUES (51, 'fits', repeat('x', 1048000))").await;
    world
        .publisher
        .exec("INSERT INTO docs VALUES (52, 'same transaction', ''), (53, 'large', repeat('x', 2000000))")
        .await;
    world.publisher.exec("INSERT INTO docs VALUES (54, 'after', '')").await;
    let mut service = world.run();
    let paused = world.wait_paused("value_too_large").await;
    let text = paused.json.to_string();
    for part in [
        "a row of public.docs has 20000",
        "more than max_value_bytes (1048576)",
        "the value of column \\\"body\\\" has 2000000 bytes",
        "raise max_value_bytes",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let count = "SELECT count(*), max(id) FROM docs";
    assert_eq!(world.target.lines(count).await, ["51|51"], "everything before is applied");
    // It stays so as long as the setting does.
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    until("it has tried again", async || service.log().matches("value_too_large").count() >= 2).await;
    world.wait_paused("value_too_large").await;
    raise_limit(&world, &mut service);
    world.wait_same_rows("docs").await;
}

/// Whether the row's transaction commits is known at its end only, and others may commit before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_beyond_the_limit_pauses_only_if_its_transaction_commits() {
    const FILL: &str = "INSERT INTO docs SELECT g, repeat('x', 250) FROM generate_series(1, 80000) g";
    const HUGE: &str = "INSERT INTO docs VALUES (100000, repeat('x', 2000000))";
    let world = World::builder()
        .both_sql(
            "CREATE TABLE docs (id int PRIMARY KEY, body text); CREATE TABLE others (id int PRIMARY KEY)",
        )
        .subscription_line("copy_data = false")
        .subscription_line(LIMIT_LINE)
        .start()
        .await;
    let mut service = world.run();
    world.wait_state("streaming").await;
    for (id, end) in [(1, "ROLLBACK"), (2, "COMMIT")] {
        let open = world.publisher.session().await;
        open.batch("BEGIN").await.unwrap();
        open.batch(FILL).await.unwrap();
        open.batch(HUGE).await.unwrap();
        open.batch(&FILL.replace("(1, 80000)", "(100001, 180000)")).await.unwrap();
        world.publisher.exec(format!("INSERT INTO others VALUES ({id})")).await;
        world.wait_same_rows("others").await;
        assert!(!service.log().contains("value_too_large"), "it has not been committed");
        world.publisher.exec(format!("INSERT INTO others VALUES (10 + {id})")).await;
        open.batch(end).await.unwrap();
        if end == "ROLLBACK" {
            world.wait_same_rows("others").await;
            world.wait_caught_up().await;
            world.wait_state("streaming").await;
        }
    }
    let paused = world.wait_paused("value_too_large").await;
    assert!(paused.json.to_string().contains("a row of public.docs has 20000"), "{:#}", paused.json);
    assert_eq!(world.target.value("SELECT count(*) FROM docs").await.as_deref(), Some("0"));
    world.assert_same_rows("others").await;
    raise_limit(&world, &mut service);
    world.wait_caught_up().await;
    let sums = "SELECT count(*), sum(id), sum(length(body)) FROM docs";
    assert_eq!(world.publisher.lines(sums).await, world.target.lines(sums).await);
}

/// The limit is for the message as it is sent: rows up to it pass in a stream, the next larger one does not.
#[tokio::test(flavor = "multi_thread")]
async fn rows_at_the_limit_pass_and_the_next_larger_one_is_refused() {
    let world = World::builder()
        .both_sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
        .subscription_line("copy_data = false")
        .subscription_line(LIMIT_LINE)
        .start()
        .await;
    let mut service = world.run();
    world.wait_state("streaming").await;
    let mut length = LIMIT - 120;
    let paused = loop {
        world.publisher.exec(format!("INSERT INTO docs VALUES ({length}, repeat('x', {length}))")).await;
        let end = until("it has come, or is refused", async || {
            let state = world.status().await?;
            if state.state == "paused" {
                return Ok(Some(state));
            }
            let there = format!("SELECT length(body) FROM docs WHERE id = {length}");
            world.target.value(&there).await.map(|_| None).ok_or_else(|| state.json.to_string())
        })
        .await;
        match end {
            Some(paused) => break paused,
            None => length += 1,
        }
        assert!(length < LIMIT, "a row beyond the limit was taken");
    };
    assert_eq!(paused.reason.as_deref(), Some("value_too_large"));
    let text = paused.json.to_string();
    assert!(text.contains(&format!("a row of public.docs has {} bytes", LIMIT + 1)), "{text}");
    assert!(text.contains(&format!("the value of column \\\"body\\\" has {length} bytes")), "{text}");
    raise_limit(&world, &mut service);
    let sums = "SELECT id, length(body) FROM docs ORDER BY id";
    world.wait_caught_up().await;
    assert_eq!(world.publisher.lines(sums).await, world.target.lines(sums).await);
}

/// A value that is not sent does not count, however large it is; old rows do.
#[tokio::test(flavor = "multi_thread")]
async fn unchanged_values_beyond_the_limit_are_no_hindrance_unless_they_are_sent() {
    let world = World::builder()
        .both_sql("CREATE TABLE docs (id int PRIMARY KEY, n int, body text)")
        .both_sql("ALTER TABLE docs ALTER body SET STORAGE EXTERNAL")
        .both_sql("INSERT INTO docs VALUES (1, 1, repeat('x', 2000000))")
        .subscription_line("copy_data = false")
        .subscription_line(LIMIT_LINE)
        .start()
        .await;
    let mut service = world.run();
    world.wait_state("streaming").await;
    world.publisher.exec("UPDATE docs SET n = 2").await;
    world.wait_same_rows("docs").await;
    world.publisher.exec("ALTER TABLE docs REPLICA IDENTITY FULL").await;
    world.publisher.exec("INSERT INTO docs VALUES (2, 2, 'small'); UPDATE docs SET n = 3 WHERE id = 2").await;
    world.wait_same_rows("docs").await;
    for change in ["UPDATE docs SET n = 4 WHERE id = 1", "DELETE FROM docs WHERE id = 1"] {
        world.publisher.exec(change).await;
        let paused = world.wait_paused("value_too_large").await;
        let text = paused.json.to_string();
        assert!(text.contains("the value of column \\\"body\\\" has 2000000 bytes"), "{change}: {text}");
        if change.starts_with("UPDATE") {
            raise_limit(&world, &mut service);
            world.wait_same_rows("docs").await;
            let config = std::fs::read_to_string(&world.config).unwrap();
            std::fs::write(&world.config, config.replace("max_value_bytes = 10485760", LIMIT_LINE)).unwrap();
            service.signal(Signal::Reload);
            until("the limit holds again", async || service.log().matches("reload").count() >= 2).await;
            world.wait_state("streaming").await;
        }
    }
    raise_limit(&world, &mut service);
    world.wait_same_rows("docs").await;
}

/// A table that joins takes its changes from a stream of its own until it has caught up.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_beyond_the_limit_in_a_joining_tables_stream_is_named() {
    let world = World::builder()
        .both_sql(
            "CREATE TABLE docs (id int PRIMARY KEY, body text); CREATE TABLE others (id int PRIMARY KEY)",
        )
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE others")
        .publisher_sql("INSERT INTO docs SELECT g, 'there before' FROM generate_series(1, 3000) g")
        .target_sql(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
            'BEGIN PERFORM pg_catalog.pg_sleep(0.001); RETURN NEW; END'",
        )
        .target_sql("CREATE TRIGGER slow BEFORE INSERT ON docs FOR EACH ROW EXECUTE FUNCTION slow()")
        .target_sql("ALTER TABLE docs ENABLE ALWAYS TRIGGER slow")
        .subscription_line(LIMIT_LINE)
        .start()
        .await;
    let mut service = world.run();
    world.wait_state("streaming").await;
    world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE docs").await;
    until("it is being copied", async || {
        let copying = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%docs%FROM STDIN%'";
        world.target.value(copying).await.as_deref() != Some("0")
    })
    .await;
    world.publisher.exec("INSERT INTO docs VALUES (10000, repeat('x', 2000000))").await;
    until("it is named", async || {
        let text = world.status().await?.json.to_string();
        if text.contains("a row of public.docs has 20000") { Ok(()) } else { Err(text) }
    })
    .await;
    raise_limit(&world, &mut service);
    world.wait_same_rows("docs").await;
    world.publisher.exec("INSERT INTO others VALUES (1)").await;
    world.wait_same_rows("others").await;
}
