//! Several instances of one configuration share its subscriptions, and lose and double nothing by that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::database::Database;
use crate::support::service::Service;
use crate::support::wait::{until, until_within};
use crate::support::world::{PUBLICATION, Servers, World};

/// Tables, each with a subscription of its own. They have no key, so that a row that came twice would be there twice.
const SUBSCRIPTIONS: usize = 10;
const QUICKLY: [(&str, &str); 1] = [("PGSLUICE__SERVICE__SHARE_AFTER", "2s")];
/// Five seconds on a machine that is not busy.
const SOON: Duration = Duration::from_secs(12);
/// For how long the table of instances is locked.
const LOCKED: Duration = Duration::from_secs(12);
/// Five hand-overs, one after the other.
const SHARED: Duration = Duration::from_mins(2);

async fn world() -> World {
    let tables: Vec<_> = (0..SUBSCRIPTIONS).map(|i| format!("CREATE TABLE t{i} (id int, v text)")).collect();
    let publications: Vec<_> =
        (0..SUBSCRIPTIONS).map(|i| format!("CREATE PUBLICATION {} FOR TABLE t{i}", publication(i))).collect();
    let world = World::builder()
        .servers(Servers::Separate)
        .both_sql(&tables.join("; "))
        .publisher_sql(&publications.join("; "))
        .start()
        .await;
    for i in 1..SUBSCRIPTIONS {
        world.subscribe(&publication(i));
    }
    world
}

fn publication(i: usize) -> String {
    if i == 0 { PUBLICATION.to_owned() } else { format!("publication_{i}") }
}

/// The number of subscriptions that stream, by the process that owns them.
async fn owned(world: &World) -> BTreeMap<u32, usize> {
    let is_made = world.target.value("SELECT to_regclass('pgsluice.instance') IS NOT NULL").await;
    if is_made.as_deref() != Some("t") {
        return BTreeMap::new();
    }
    let sql = "SELECT o.instance, count(*) FROM pgsluice.owner o JOIN pgsluice.subscription s ON s.name = o.subscription \
        WHERE s.state = 'streaming' GROUP BY 1";
    let pid = |line: &str| {
        let (instance, count) = line.rsplit_once('|').unwrap();
        let pid = instance.rsplit_once("(pid ").unwrap().1.trim_end_matches(')').parse().unwrap();
        (pid, count.parse().unwrap())
    };
    world.target.lines(sql).await.iter().map(|line| pid(line)).collect()
}

async fn wait_owned(world: &World, within: Duration, what: &str, expected: &[(u32, usize)]) {
    let expected = expected.iter().copied().collect();
    until_within(within, what, async || {
        let found = owned(world).await;
        if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

/// Writes into all tables until it is told to stop.
struct Writer {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u32>,
}

impl Writer {
    async fn start(publisher: &Database) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (session, asked) = (publisher.session().await, Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let mut row = 0;
            while !asked.load(Ordering::Relaxed) {
                row += 1;
                for i in 0..SUBSCRIPTIONS {
                    session.batch(&format!("INSERT INTO t{i} VALUES ({row}, 'x')")).await.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            row
        });
        Self { stop, task }
    }

    /// Stops it, and compares all tables.
    async fn end(self, world: &World) {
        self.stop.store(true, Ordering::Relaxed);
        let rows = self.task.await.unwrap();
        assert!(rows > 10, "{rows}");
        for i in 0..SUBSCRIPTIONS {
            world.wait_same_rows(&format!("t{i}")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_instances_share_ten_subscriptions_and_take_all_when_the_other_goes() {
    let world = world().await;
    let first = world.run_with(&QUICKLY);
    wait_owned(&world, SHARED, "one owns all", &[(first.pid(), SUBSCRIPTIONS)]).await;
    let writer = Writer::start(&world.publisher).await;
    let second = world.run_with(&QUICKLY);
    let began = Instant::now();
    let half = SUBSCRIPTIONS / 2;
    let shared = [(first.pid(), half), (second.pid(), half)];
    wait_owned(&world, SHARED, "they share them", &shared).await;
    println!("shared after {:?}", began.elapsed());
    let status = world.pgsluice(&["status", "--json"]).await.expect(0).json();
    for (pid, count) in shared {
        let owner = format!("(pid {pid})");
        let subscriptions = status["subscriptions"].as_array().unwrap();
        let theirs = subscriptions.iter().filter(|one| one["instance"].as_str().unwrap().ends_with(&owner));
        assert_eq!(theirs.count(), count, "{status:#}");
        let text = world.pgsluice(&["status"]).await.expect(0).stdout;
        assert_eq!(text.matches(&owner).count(), count, "{text}");
    }
    // Nothing goes back and forth.
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(owned(&world).await, shared.into_iter().collect());
    assert_eq!(first.log().matches("handed over").count(), half, "{}", first.log());
    assert_eq!(second.log().matches("handed over").count(), 0, "{}", second.log());

    let (gone, began) = (second.pid(), Instant::now());
    second.kill9().await;
    let all = [(first.pid(), SUBSCRIPTIONS)];
    wait_owned(&world, SOON, "the other one has all", &all).await;
    println!("{gone} was replaced after {:?}", began.elapsed());
    let second = world.run_with(&QUICKLY);
    wait_owned(&world, SHARED, "they share again", &[(first.pid(), half), (second.pid(), half)]).await;
    let began = Instant::now();
    let all = [(second.pid(), SUBSCRIPTIONS)];
    assert_eq!(first.sigterm().await, 0);
    wait_owned(&world, SOON, "the other one has all", &all).await;
    println!("replaced after {:?}", began.elapsed());
    let left = "SELECT count(*) FROM pgsluice.instance WHERE renewed_at > now() - interval '4 seconds'";
    until("it has withdrawn", async || world.target.value(left).await.as_deref() == Some("1")).await;
    writer.end(&world).await;
    assert_eq!(second.sigterm().await, 0);
}

/// How long a row of each table took, for some time.
async fn rows_arrive(world: &World, services: [&Service; 2], from: usize) {
    let began = Instant::now();
    let mut row = from;
    while began.elapsed() < LOCKED {
        row += 1;
        let table = format!("t{}", row % SUBSCRIPTIONS);
        let asked = Instant::now();
        world.publisher.exec(format!("INSERT INTO {table} VALUES ({row}, 'x')")).await;
        let there = format!("SELECT count(*) FROM {table} WHERE id = {row}");
        until("the row arrives", async || world.target.value(&there).await.as_deref() == Some("1")).await;
        let logs = services.map(Service::log);
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}: {}{}", asked.elapsed(), logs[0], logs[1]);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_table_of_instances_stops_nothing_but_sharing() {
    let world = world().await;
    let first = world.run_with(&QUICKLY);
    wait_owned(&world, SHARED, "one owns all", &[(first.pid(), SUBSCRIPTIONS)]).await;
    let locker = world.target.session().await;
    locker.batch("BEGIN; LOCK TABLE pgsluice.instance IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let second = world.run_with(&QUICKLY);
    until("it stands by", async || second.log().matches("standby: another").count() == SUBSCRIPTIONS).await;
    rows_arrive(&world, [&first, &second], 0).await;
    assert_eq!(owned(&world).await, [(first.pid(), SUBSCRIPTIONS)].into());
    locker.close().await;
    let half = SUBSCRIPTIONS / 2;
    wait_owned(&world, SHARED, "they share them", &[(first.pid(), half), (second.pid(), half)]).await;
    let locker = world.target.session().await;
    locker.batch("BEGIN; LOCK TABLE pgsluice.instance IN ACCESS EXCLUSIVE MODE").await.unwrap();
    rows_arrive(&world, [&first, &second], 1_000_000).await;
    let began = Instant::now();
    second.kill9().await;
    wait_owned(&world, SOON, "the other one has all", &[(first.pid(), SUBSCRIPTIONS)]).await;
    println!("replaced after {:?}", began.elapsed());
    locker.close().await;
    for i in 0..SUBSCRIPTIONS {
        world.wait_same_rows(&format!("t{i}")).await;
    }
}

/// The second one runs three of the ten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_gets_only_what_it_runs() {
    let world = world().await;
    let text = std::fs::read_to_string(&world.config).unwrap();
    let (before, some) = (text.split("[[subscriptions]]"), 3);
    let kept: Vec<&str> = before.take(1 + some).collect();
    let config = world.dir().join("some.toml");
    std::fs::write(&config, kept.join("[[subscriptions]]")).unwrap();
    let first = world.run_with(&QUICKLY);
    wait_owned(&world, SHARED, "one owns all", &[(first.pid(), SUBSCRIPTIONS)]).await;
    let writer = Writer::start(&world.publisher).await;
    // A third one takes no part.
    let off = world.run_with(&[("PGSLUICE__SERVICE__SHARE_AFTER", "off")]);
    let second = Service::start(&config, world.dir().join("some.log"), &QUICKLY);
    let shared = [(first.pid(), SUBSCRIPTIONS - some), (second.pid(), some)];
    wait_owned(&world, SHARED, "they share what they have in common", &shared).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(owned(&world).await, shared.into_iter().collect());
    assert_eq!(off.log().matches("taking over").count(), 0, "{}", off.log());
    writer.end(&world).await;
}

/// A pause, and what is not caught up, stay where they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_person_stays() {
    let world = world().await;
    let first = world.run_with(&QUICKLY);
    wait_owned(&world, SHARED, "one owns all", &[(first.pid(), SUBSCRIPTIONS)]).await;
    let names = world.target.lines("SELECT name FROM pgsluice.subscription ORDER BY name").await;
    let (streams, paused) = names.split_at(2);
    for name in paused {
        world.pgsluice(&["pause", name]).await.expect(0);
    }
    let second = world.run_with(&QUICKLY);
    wait_owned(&world, SHARED, "the other one gets what streams", &[(second.pid(), streams.len())]).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let sql = "SELECT count(*) FROM pgsluice.subscription WHERE state = 'paused' AND instance LIKE '%(pid '";
    let of_first = sql.replace("(pid '", &format!("(pid {})'", first.pid()));
    assert_eq!(world.target.value(&of_first).await, Some(paused.len().to_string()));
    for name in paused {
        world.pgsluice(&["resume", name]).await.expect(0);
    }
    let half = SUBSCRIPTIONS / 2;
    wait_owned(&world, SHARED, "they share them", &[(first.pid(), half), (second.pid(), half)]).await;
}
