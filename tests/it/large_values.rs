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
            "INSERT INTO docs VALUES (1, 'one'), (2, repeat('x', {LARGE})), (3, 'three')"
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
    const SMALL: &str = "max_value_bytes = 1048576";
    let world = World::builder()
        .both_sql(
            "CREATE TABLE docs (id int PRIMARY KEY, body text); CREATE TABLE others (id int PRIMARY KEY)",
        )
        .publisher_sql(
            "INSERT INTO docs VALUES (1, 'one'), (2, repeat('x', 2000000)); INSERT INTO others VALUES (1)",
        )
        .subscription_line(SMALL)
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
    let config = std::fs::read_to_string(&world.config).unwrap();
    std::fs::write(&world.config, config.replace(SMALL, "max_value_bytes = 10485760")).unwrap();
    service.signal(Signal::Reload);
    world.wait_same_rows("docs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_beyond_the_limit_pauses_and_goes_on_once_it_is_raised() {
    const SMALL: &str = "max_value_bytes = 1048576";
    let world = World::builder()
        .both_sql("CREATE TABLE docs (id int PRIMARY KEY, title text, body text)")
        .subscription_line("copy_data = false")
        .subscription_line(SMALL)
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
    let config = std::fs::read_to_string(&world.config).unwrap();
    std::fs::write(&world.config, config.replace(SMALL, "max_value_bytes = 10485760")).unwrap();
    service.signal(Signal::Reload);
    world.wait_same_rows("docs").await;
}
