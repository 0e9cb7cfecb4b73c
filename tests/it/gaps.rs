//! Gaps are recorded once, shown wherever a person looks, and kept until they are settled: a held table waits while
//! the others go on, and goes on as it is told to.

use serde_json::Value;

use crate::support::http::get;
use crate::support::wait::until;
use crate::support::world::{Builder, World};

fn builder() -> Builder {
    World::builder()
        .both_sql("CREATE TABLE t (id int PRIMARY KEY, note text); CREATE TABLE other (id int PRIMARY KEY)")
        .publisher_sql("INSERT INTO t SELECT n, 'copied' FROM generate_series(1, 100) n")
}

/// A subscription with a table that a gap holds, and no service. Returns the gap's number.
async fn held(world: &World) -> String {
    world.take_up().await;
    let sql = "UPDATE pgsluice.table_sync SET state = 'paused', attempt = attempt + 1 WHERE source_table = 't'; \
        INSERT INTO pgsluice.gap (subscription, source_schema, source_table, kind, holds, from_lsn, to_lsn) \
        SELECT subscription, 'public', 't', 'returned', true, applied_lsn, applied_lsn FROM pgsluice.progress";
    world.target.exec(sql).await;
    world.publisher.exec("INSERT INTO t VALUES (1000, 'missed'); INSERT INTO other VALUES (1)").await;
    world.target.value("SELECT id FROM pgsluice.gap").await.unwrap()
}

/// Every gap as it was settled.
async fn settled(world: &World) -> Vec<String> {
    let sql = "SELECT kind, settlement, settled_by IS NOT NULL AND settled_by <> 'pgsluice', resumed_lsn IS NOT NULL \
        FROM pgsluice.gap ORDER BY id";
    world.target.lines(sql).await
}

async fn wait_ready(world: &World) {
    until("the table is ready", async || {
        let rows = world.target.lines("SELECT state FROM pgsluice.table_sync WHERE source_table = 't'").await;
        if rows == ["ready"] { Ok(()) } else { Err(format!("{rows:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_held_table_is_shown_everywhere_and_goes_on_once_its_gap_is_accepted() {
    let world = builder().start().await;
    let gap = held(&world).await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.wait_same_rows("other").await;
    assert_eq!(world.target.value("SELECT count(*) FROM t").await.as_deref(), Some("100"));

    let document = world.pgsluice(&["status", "--json"]).await.expect(1).json();
    let status = &document["subscriptions"][0];
    assert_eq!(status["state"], "streaming", "{status:#}");
    let shown = &status["gaps"][0];
    assert_eq!(
        (&shown["kind"], &shown["table"], &shown["holds"]),
        (&"returned".into(), &"public.t".into(), &true.into())
    );
    assert_eq!(shown["id"].to_string(), gap);
    let tables = status["tables"].as_array().unwrap();
    let table = tables.iter().find(|table| table["source"] == "public.t").unwrap();
    assert_eq!((&table["state"], &table["gap_id"]), (&Value::from("paused"), &shown["id"]));
    let text = world.pgsluice(&["status"]).await.expect(1).stdout;
    for said in [
        "public.t may lack changes",
        "held by gap",
        "--merge",
        &format!("accept {} --gap {gap}", world.subscription),
    ] {
        assert!(text.contains(said), "{said} in {text}");
    }
    let told = get(service.http_port, "/api/v1/subscriptions").await.unwrap().expect(200).json();
    assert_eq!(told["subscriptions"][0]["gaps"], status["gaps"]);
    let metrics = get(service.http_port, "/metrics").await.unwrap().expect(200).body;
    assert!(metrics.contains("kind=\"returned\"} 1"), "{metrics}");

    for (id, told) in [("999", "there is no gap 999"), ("x", "invalid value")] {
        let outcome = world.pgsluice(&["accept", &world.subscription, "--gap", id]).await;
        assert!(outcome.code != 0 && outcome.stderr.contains(told), "{outcome:?}");
    }
    let told = world.pgsluice(&["accept", &world.subscription, "--gap", &gap]).await.expect(0).stdout;
    assert!(told.contains("public.t goes on from here, without what may be missing between"), "{told}");
    wait_ready(&world).await;
    world.publisher.exec("INSERT INTO t VALUES (2000, 'after')").await;
    until("changes arrive again", async || {
        let notes = world.target.lines("SELECT note FROM t WHERE id >= 1000").await;
        if notes == ["after"] { Ok(()) } else { Err(format!("{notes:?}")) }
    })
    .await;
    assert_eq!(settled(&world).await, ["returned|accepted|t|t"]);
    let outcome = world.pgsluice(&["accept", &world.subscription, "--gap", &gap]).await.expect(1);
    assert!(outcome.stderr.contains("has been settled already"), "{outcome:?}");
    until("nothing is held", async || world.pgsluice(&["status"]).await.code == 0).await;
    let metrics = get(service.http_port, "/metrics").await.unwrap().expect(200).body;
    assert!(metrics.contains("kind=\"returned\"} 0"), "{metrics}");
    let events = "SELECT message FROM pgsluice.event WHERE kind = 'gap'";
    let events = world.target.lines(events).await;
    assert!(events.len() == 1 && events[0].contains("was accepted by"), "{events:?}");
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn a_resync_settles_the_gap_with_the_rows() {
    for how in [None, Some("--merge")] {
        let world = builder().start().await;
        held(&world).await;
        // A service that is down finds the command when it runs.
        let mut command = vec!["resync", &world.subscription, "public.t"];
        command.extend(how);
        world.pgsluice(&command).await.expect(0);
        let service = world.run();
        world.wait_same_rows("t").await;
        wait_ready(&world).await;
        assert_eq!(settled(&world).await, ["returned|resynced|t|t"], "{how:?}");
        world.publisher.exec("UPDATE t SET note = 'after' WHERE id = 1000").await;
        world.wait_same_rows("t").await;
        until("nothing is held", async || world.pgsluice(&["status"]).await.code == 0).await;
        assert_eq!(service.sigterm().await, 0);
    }
}

#[tokio::test]
async fn a_slot_that_is_gone_or_ahead_is_a_gap_on_record() {
    let world = builder().start().await;
    world.take_up().await;
    let slot = &world.subscription;
    world.publisher.exec("INSERT INTO t VALUES (1000, 'passed over')").await;
    let spare = format!("SELECT pg_copy_logical_replication_slot('{slot}', 'spare')");
    world.publisher.exec(spare).await;
    let advance = format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())");
    world.publisher.exec(advance).await;
    let service = world.run();
    let paused = world.wait_paused("diverged").await;
    let gap = &paused.json["gaps"][0];
    assert_eq!(
        (&gap["kind"], &gap["table"], &gap["from_lsn"]),
        (&"slot_ahead".into(), &Value::Null, &paused.json["applied_lsn"])
    );
    assert!(!gap["to_lsn"].is_null() && !gap["since"].is_null(), "{gap:#}");
    // It is the same gap however often it is met, and told once.
    world.pgsluice(&["resume", slot]).await.expect(0);
    world.wait_paused("diverged").await;
    assert_eq!(
        service.log().matches("its replication slot is ahead of the target").count(),
        1,
        "{}",
        service.log()
    );
    assert!(paused.told().contains("pgsluice accept"), "{}", paused.told());

    world.publisher.exec(format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    world.pgsluice(&["resume", slot]).await.expect(0);
    let paused = world.wait_paused("slot_lost").await;
    let kinds: Vec<&Value> = paused.json["gaps"].as_array().unwrap().iter().map(|gap| &gap["kind"]).collect();
    assert_eq!(kinds, ["slot_ahead", "slot_gone"]);
    // A slot that has everything settles both, and nothing is missing.
    world.publisher.exec(format!("SELECT pg_copy_logical_replication_slot('spare', '{slot}')")).await;
    world.pgsluice(&["resume", slot]).await.expect(0);
    world.wait_state("streaming").await;
    world.wait_same_rows("t").await;
    assert_eq!(settled(&world).await, ["slot_ahead|healed|f|f", "slot_gone|healed|f|f"]);
    world.publisher.exec("SELECT pg_drop_replication_slot('spare')").await;
    assert_eq!(service.sigterm().await, 0);
}

/// A slot that is gone, lost or ahead is passed once somebody accepts that, while the publisher is written to:
/// everything after the position at which the stream goes on arrives once.
#[tokio::test]
async fn a_gap_of_the_slot_is_passed_once_it_is_accepted() {
    for loss in ["gone", "ahead", "lost"] {
        let world = builder().publisher_setting("max_slot_wal_keep_size", "1MB").start().await;
        world.take_up().await;
        let slot = &world.subscription;
        world.publisher.exec("INSERT INTO t VALUES (1000, 'missed')").await;
        let (reason, lose) = match loss {
            "gone" => ("slot_lost", format!("SELECT pg_drop_replication_slot('{slot}')")),
            "ahead" => {
                ("diverged", format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())"))
            }
            _ => ("slot_lost", "SELECT pg_switch_wal()".to_owned()),
        };
        world.publisher.exec(&lose).await;
        if loss == "lost" {
            until("the publisher has given the slot up", async || {
                let more = "INSERT INTO t VALUES (1001, 'missed'); DELETE FROM t WHERE id = 1001";
                world.publisher.exec(more).await;
                world.publisher.exec("SELECT pg_switch_wal()").await;
                world.publisher.exec("CHECKPOINT").await;
                world.publisher.value("SELECT wal_status FROM pg_replication_slots").await.as_deref()
                    == Some("lost")
            })
            .await;
        }
        let service = world.run();
        let paused = world.wait_paused(reason).await;
        let gap = &paused.json["gaps"][0];
        assert_eq!(gap["kind"], format!("slot_{loss}"), "{gap:#}");
        let writer = world.publisher.session().await;
        let writing = tokio::spawn(async move {
            for id in 1..300 {
                writer.batch(&format!("INSERT INTO other VALUES ({id})")).await.unwrap();
            }
        });
        world.pgsluice(&["accept", slot, "--gap", &gap["id"].to_string()]).await.expect(0);
        world.wait_state("streaming").await;
        writing.await.unwrap();
        world.publisher.exec("INSERT INTO t VALUES (2000, 'after')").await;
        until("changes arrive again", async || {
            let notes = world.target.lines("SELECT note FROM t WHERE id >= 1000").await;
            if notes == ["after"] { Ok(()) } else { Err(format!("{notes:?}")) }
        })
        .await;
        // What is missing was committed first. What was committed after the gap had been accepted, and before there was
        // a slot, is another gap.
        let complete = "SELECT count(*) = 299 - coalesce(min(id), 300) + 1 FROM other";
        assert_eq!(world.target.value(complete).await.as_deref(), Some("t"), "{loss}");
        let mut expected = vec![format!("slot_{loss}|accepted|t|t")];
        if loss != "ahead" {
            expected.push("passed_over|∅|f|f".to_owned());
        }
        assert_eq!(settled(&world).await, expected);
        world.pgsluice(&["resync", slot, "public.t", "public.other", "--merge"]).await.expect(0);
        world.wait_same_rows("t").await;
        world.wait_same_rows("other").await;
        until("all is well", async || world.pgsluice(&["status"]).await.code == 0).await;
        assert_eq!(service.sigterm().await, 0);
    }
}

/// The numbers of `t` beyond those that were copied.
async fn arrived(world: &World) -> Vec<String> {
    world.target.lines("SELECT id FROM t WHERE id >= 1000 ORDER BY 1").await
}

/// The open gaps, and whether they cover what was committed between two positions.
async fn open_gaps(world: &World, from: &str, to: &str) -> Vec<String> {
    let sql = format!(
        "SELECT kind, source_table, holds, from_lsn <= '{from}' AND to_lsn >= '{to}' FROM pgsluice.gap \
         WHERE settled_at IS NULL ORDER BY id"
    );
    world.target.lines(&sql).await
}

async fn publisher_position(world: &World) -> String {
    world.publisher.value("SELECT pg_current_wal_insert_lsn()").await.unwrap()
}

/// The gap is accepted while no service runs: what is committed then arrives, also if the table has been held for long.
#[tokio::test]
async fn what_is_committed_after_a_gap_was_accepted_arrives() {
    for held_for_long in [true, false] {
        let world = builder().start().await;
        let gap = held(&world).await;
        if held_for_long {
            let service = world.run();
            world.wait_same_rows("other").await;
            world.wait_caught_up().await;
            assert_eq!(service.sigterm().await, 0);
        }
        let told = world.pgsluice(&["accept", &world.subscription, "--gap", &gap]).await.expect(0).stdout;
        assert!(told.contains("is recorded; no service runs"), "{told}");
        world.publisher.exec("INSERT INTO t VALUES (2000, 'after'); INSERT INTO other VALUES (2)").await;
        let service = world.run();
        world.wait_same_rows("other").await;
        wait_ready(&world).await;
        world.wait_caught_up().await;
        // What nobody has passed over yet is not missing.
        let expected: &[&str] = if held_for_long { &["2000"] } else { &["1000", "2000"] };
        assert_eq!(arrived(&world).await, expected);
        assert_eq!(settled(&world).await, ["returned|accepted|t|t"]);
        assert_eq!(service.sigterm().await, 0);
    }
}

/// The stream has passed over a change that was committed after the gap was accepted: that is another gap.
#[tokio::test]
async fn what_was_passed_over_after_a_gap_was_accepted_is_told() {
    let world = builder().start().await;
    let gap = held(&world).await;
    let service = world.run();
    world.wait_same_rows("other").await;
    world.wait_caught_up().await;
    let accepted = world.target.value("SELECT applied_lsn FROM pgsluice.progress").await.unwrap();
    world.publisher.exec("INSERT INTO t VALUES (2000, 'late'); INSERT INTO other VALUES (2)").await;
    let passed = publisher_position(&world).await;
    world.wait_same_rows("other").await;
    // As if the service had taken long to take the command.
    let command = format!(
        "INSERT INTO pgsluice.command (subscription, verb, args, created_by) VALUES ('{}', 'accept', \
         '{{\"gap_id\": {gap}, \"up_to\": \"{accepted}\"}}', 'ann')",
        world.subscription
    );
    world.target.exec(command).await;
    wait_ready(&world).await;
    assert_eq!(open_gaps(&world, &accepted, &accepted).await, ["passed_over|t|f|t"]);
    let covers = format!("SELECT to_lsn <= '{passed}' FROM pgsluice.gap WHERE settled_at IS NULL");
    assert_eq!(world.target.value(&covers).await.as_deref(), Some("t"));
    let told = world.pgsluice(&["status"]).await.expect(0).stdout;
    assert!(told.contains("committed after a gap had been accepted"), "{told}");
    world.publisher.exec("INSERT INTO t VALUES (3000, 'after')").await;
    until("changes arrive again", async || arrived(&world).await == ["3000"]).await;
    world.pgsluice(&["resync", &world.subscription, "public.t"]).await.expect(0);
    world.wait_same_rows("t").await;
    until("no gap is left", async || open_gaps(&world, &accepted, &accepted).await.is_empty()).await;
    assert_eq!(service.sigterm().await, 0);
}

/// The slot has gone, and that is accepted while no service runs. What is committed before the service makes the
/// slot again cannot be sent any more.
#[tokio::test]
async fn what_is_committed_before_there_is_a_slot_again_is_another_gap() {
    let world = builder().start().await;
    world.take_up().await;
    let slot = &world.subscription;
    world.publisher.exec(format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    let service = world.run();
    let gap = world.wait_paused("slot_lost").await.json["gaps"][0]["id"].to_string();
    assert_eq!(service.sigterm().await, 0);
    world.pgsluice(&["accept", slot, "--gap", &gap]).await.expect(0);
    let from = publisher_position(&world).await;
    world.publisher.exec("INSERT INTO t VALUES (1000, 'late')").await;
    let to = publisher_position(&world).await;
    let service = world.run();
    world.wait_state("streaming").await;
    assert_eq!(open_gaps(&world, &from, &to).await, ["passed_over|∅|f|t"]);
    let status = world.status().await.unwrap();
    assert!(
        status.json["gaps"][0]["hint"].as_str().unwrap_or_default().contains("pgsluice resync"),
        "{status:?}"
    );
    world.publisher.exec("INSERT INTO t VALUES (2000, 'after')").await;
    until("changes arrive again", async || arrived(&world).await == ["2000"]).await;
    // It stays until somebody settles it, also over a restart.
    assert_eq!(service.sigterm().await, 0);
    let service = world.run();
    world.wait_state("streaming").await;
    world.pgsluice(&["resync", slot, "public.t", "--merge"]).await.expect(0);
    world.wait_same_rows("t").await;
    let gap = world.target.value("SELECT id FROM pgsluice.gap WHERE settled_at IS NULL").await.unwrap();
    let told = world.pgsluice(&["accept", slot, "--gap", &gap]).await.expect(0).stdout;
    assert!(told.contains("stays so"), "{told}");
    assert_eq!(open_gaps(&world, &from, &to).await, [] as [&str; 0]);
    world.wait_state("streaming").await;
    assert_eq!(service.sigterm().await, 0);
}
