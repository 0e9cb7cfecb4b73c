//! What the mapping says of columns and operations: renamed and ignored columns, operations that are left out.

use crate::support::service::Service;
use crate::support::wait::until;
use crate::support::world::World;
use pgsluice::demo::process::Signal;

const PUBLISHED: &str =
    "CREATE TABLE t (id int PRIMARY KEY, price numeric(12,2), legacy text, note text, doc text, tags int[])";
const OURS: &str = "CREATE TABLE w (loaded timestamptz DEFAULT now(), doc text, unit_price numeric(12,2), tags int[], \
    widget_id int PRIMARY KEY)";
const RULE: &str = "tables = [{ source = \"public.t\", target = \"public.w\", columns = { id = { to = \"widget_id\" }, \
    price = { to = \"unit_price\" }, legacy = { ignore = true }, note = { ignore_if_null = true } } }]";
const THEIRS: &str = "SELECT id, price, doc, tags FROM t ORDER BY id";
const MAPPED: &str = "SELECT widget_id, unit_price, doc, tags FROM w ORDER BY widget_id";

async fn assert_mapped(world: &World, what: &str) {
    world.wait_caught_up().await;
    assert_eq!(world.target.lines(MAPPED).await, world.publisher.lines(THEIRS).await, "{what}");
}

/// Adds to the configuration, or takes from it, and has the service read it.
fn reload(world: &World, service: &mut Service, change: impl Fn(&str) -> String) {
    let path = &world.config;
    let text = std::fs::read_to_string(path).unwrap();
    let changed = change(&text);
    assert_ne!(changed, text);
    std::fs::write(path, changed).unwrap();
    service.signal(Signal::Reload);
}

#[tokio::test]
async fn columns_are_renamed_and_left_out_whichever_way_rows_come() {
    for (binary, identity) in [("auto", "DEFAULT"), ("off", "DEFAULT"), ("auto", "FULL")] {
        let world = World::builder()
            .publisher_sql(PUBLISHED)
            .publisher_sql(&format!("ALTER TABLE t REPLICA IDENTITY {identity}"))
            .publisher_sql("INSERT INTO t SELECT n, n, 'old', NULL, 'doc ' || n, ARRAY[n] FROM generate_series(1, 100) n")
            .target_sql(OURS)
            .subscription_line(&format!("binary = \"{binary}\""))
            .subscription_line(RULE)
            .start()
            .await;
        let check = world.pgsluice(&["check", "--json"]).await.expect(0).json().to_string();
        assert!(check.contains("ignored") && check.contains("goes to \\\"unit_price\\\""), "{check}");
        let service = world.run();
        world.wait_state("streaming").await;
        assert_mapped(&world, "copy").await;
        let wide = "repeat(md5(random()::text), 200)";
        for (what, change) in [
            ("one row", "INSERT INTO t VALUES (101, 1, 'x', NULL, 'd', '{1}')".to_owned()),
            ("updates", "UPDATE t SET price = price + 1, legacy = 'y' WHERE id < 50".to_owned()),
            ("only what is left out", "UPDATE t SET legacy = 'z'".to_owned()),
            ("keys", "UPDATE t SET id = -id WHERE id < 10; DELETE FROM t WHERE id = 20".to_owned()),
            ("unchanged TOAST", format!("INSERT INTO t SELECT n, n, {wide}, NULL, {wide}, NULL FROM generate_series(200, 210) n; \
                UPDATE t SET price = 0 WHERE id BETWEEN 200 AND 210")),
            ("slices", "INSERT INTO t SELECT n, n, repeat('l', 60), NULL, 'doc', '{2}' FROM generate_series(1000, 120000) n".to_owned()),
            ("row by row", "BEGIN; UPDATE t SET id = 300000 WHERE id = 1000; UPDATE t SET id = 1000 WHERE id = 1001; COMMIT".to_owned()),
        ] {
            world.publisher.exec(&change).await;
            assert_mapped(&world, what).await;
        }
        for how in ["--merge", "--truncate"] {
            world.target.exec("UPDATE w SET doc = 'astray' WHERE widget_id < 90").await;
            world.pgsluice(&["resync", &world.subscription, "public.t", how]).await.expect(0);
            until(&format!("the rows are as published after {how}"), async || {
                let (ours, theirs) = (world.target.lines(MAPPED).await, world.publisher.lines(THEIRS).await);
                match ours.iter().zip(&theirs).find(|(ours, theirs)| ours != theirs) {
                    None if ours.len() == theirs.len() => Ok(()),
                    differs => Err(format!("{} {} {differs:?}", ours.len(), theirs.len())),
                }
            })
            .await;
            world.wait_state("streaming").await;
        }
        // The evidence has the publisher's names, without what is left out.
        world.target.exec("DELETE FROM w WHERE widget_id = 30").await;
        world.publisher.exec("UPDATE t SET doc = 'lost' WHERE id = 30").await;
        let conflict = world.wait_conflict().await;
        assert_eq!(conflict["kind"], "update_missing", "{conflict:#}");
        assert_eq!(conflict["incoming"]["doc"], "lost", "{conflict:#}");
        assert_eq!(service.sigterm().await, 0);
    }
}

#[tokio::test]
async fn a_value_that_is_ignored_only_while_it_is_null_pauses_until_the_mapping_takes_it() {
    let world = World::builder()
        .publisher_sql(PUBLISHED)
        .publisher_sql("INSERT INTO t VALUES (1, 1, NULL, 'a value')")
        .target_sql(OURS)
        .subscription_line(RULE)
        .start()
        .await;
    let mut service = world.run();
    // The copy meets it.
    let view = until("the copy is refused", async || {
        let view = world.status().await?;
        if view.told().contains("note") { Ok(view) } else { Err(format!("{:#}", view.json)) }
    })
    .await;
    assert!(view.told().contains("to be ignored only while it is NULL"), "{:#}", view.json);
    assert_eq!(world.target.lines(MAPPED).await, [""; 0]);
    world.publisher.exec("UPDATE t SET note = NULL").await;
    world.wait_state("streaming").await;
    assert_mapped(&world, "copy").await;
    // A change brings it, in the middle of a transaction; what came before is applied.
    world.publisher.exec("INSERT INTO t VALUES (2, 2)").await;
    world
        .publisher
        .exec("BEGIN; INSERT INTO t VALUES (3, 3); UPDATE t SET note = 'again' WHERE id = 2; COMMIT")
        .await;
    let view = world.wait_paused("schema").await;
    assert!(view.told().contains("column \"note\" of public.t has a value"), "{:#}", view.json);
    assert_eq!(world.target.lines("SELECT widget_id FROM w ORDER BY 1").await, ["1", "2"]);
    world.target.exec("ALTER TABLE w ADD COLUMN remark text").await;
    reload(&world, &mut service, |text| {
        text.replace("note = { ignore_if_null = true }", "note = { to = \"remark\" }")
    });
    until("the value has come", async || {
        world.target.lines("SELECT widget_id, remark FROM w ORDER BY 1").await == ["1|∅", "2|again", "3|∅"]
    })
    .await;
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn operations_that_are_left_out_are_passed_over() {
    let rule = |more: &str| format!("tables = [{{ source = \"public.t\", {more} }}]");
    for (more, rows, paused) in [
        ("operations = [\"insert\", \"update\"]", &["1|b", "2|a", "3|a"][..], false),
        ("on_delete = \"ignore\", on_truncate = \"ignore\"", &["1|b", "2|a", "3|a"], false),
        ("operations = [\"insert\"], on_truncate = \"pause\"", &["1|a", "2|a", "3|a"], false),
        ("on_truncate = \"pause\"", &["1|b", "2|a"], true),
    ] {
        let world = World::builder()
            .both_sql("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE k (v text)")
            .publisher_sql("INSERT INTO t VALUES (1, 'a')")
            .subscription_line(&rule(more))
            .start()
            .await;
        // The privilege is not asked for if the operation is not applied.
        if more.contains("on_delete") {
            world.target.exec("REVOKE DELETE, TRUNCATE ON t FROM pgsluice_apply").await;
        }
        let mut service = world.run();
        world.wait_state("streaming").await;
        world
            .publisher
            .exec("INSERT INTO t VALUES (2, 'a'); UPDATE t SET v = 'b' WHERE id = 1; DELETE FROM t WHERE id = 2")
            .await;
        if paused {
            world.wait_caught_up().await;
            assert_eq!(world.target.lines("SELECT id FROM t").await, ["1"], "{more}");
            world.publisher.exec("INSERT INTO t VALUES (2, 'a')").await;
            world.publisher.exec("BEGIN; INSERT INTO k VALUES ('lost'); TRUNCATE t; COMMIT").await;
            let view = world.wait_paused("schema").await;
            assert!(view.told().contains("public.t was truncated"), "{:#}", view.json);
            let before = ["1|b", "2|a"];
            assert_eq!(world.target.lines("SELECT * FROM t ORDER BY id").await, before, "{more}");
            reload(&world, &mut service, |text| {
                text.replace("on_truncate = \"pause\"", "on_truncate = \"ignore\"")
            });
            world.wait_same_rows("k").await;
        } else {
            world.publisher.exec("TRUNCATE t; INSERT INTO t VALUES (3, 'a')").await;
            if more.contains("pause") {
                // It is not among the operations that are applied.
                world.wait_caught_up().await;
            }
        }
        world.wait_caught_up().await;
        assert_eq!(world.target.lines("SELECT * FROM t ORDER BY id").await, rows, "{more}");
        assert_eq!(service.sigterm().await, 0);
    }
}

/// The DDL names the target's columns, and what the rules cannot mean is told beforehand.
#[tokio::test]
async fn what_the_rules_lack_is_told_with_the_names_of_the_target() {
    let world = World::builder()
        .publisher_sql(PUBLISHED)
        .target_sql("CREATE TABLE w (doc text, tags int[], widget_id int)")
        .subscription_line(RULE)
        .start()
        .await;
    let check = world.pgsluice(&["check", "--json"]).await.expect(1).json();
    let told = check.to_string();
    for said in [
        "lacks column \\\"unit_price\\\", to which the published column \\\"price\\\" goes",
        "ADD COLUMN \\\"unit_price\\\" numeric(12,2);",
        "ADD PRIMARY KEY (\\\"widget_id\\\")",
    ] {
        assert!(told.contains(said), "{said}: {check:#}");
    }
    let _service = world.run();
    let view = world.wait_paused("schema").await;
    for statement in view.json["hint"].as_str().unwrap().lines().skip(1) {
        let statement = statement.split("; (").next().unwrap();
        world.target.exec(statement).await;
    }
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO t VALUES (1, 5, 'l', NULL, 'd', '{1}')").await;
    assert_mapped(&world, "the DDL").await;

    for (rule, said) in [
        ("price = { to = \"doc\" }", "both go to column \\\"doc\\\""),
        ("id = { ignore = true }", "is ignored, but it is part of the replica identity"),
        ("typo = { ignore = true }", "the rule for column \\\"typo\\\" of public.t has no effect"),
    ] {
        let world = World::builder()
            .both_sql(PUBLISHED)
            .subscription_line(&format!("tables = [{{ source = \"public.t\", columns = {{ {rule} }} }}]"))
            .start()
            .await;
        let told = world.pgsluice(&["check", "--json"]).await.json().to_string();
        assert!(told.contains(said), "{said}: {told}");
    }
}

/// A column that was ignored and is no longer has no older values on the target: the table is held, and cured by
/// `resync`.
#[tokio::test]
async fn a_column_that_is_no_longer_ignored_is_a_gap() {
    let world = World::builder()
        .both_sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .publisher_sql("INSERT INTO t VALUES (1, 'old')")
        .subscription_line("tables = [{ source = \"public.t\", columns = { v = { ignore = true } } }]")
        .start()
        .await;
    let mut service = world.run();
    world.wait_state("streaming").await;
    assert_eq!(world.target.lines("SELECT * FROM t").await, ["1|∅"]);
    reload(&world, &mut service, |text| text.replace("columns = { v = { ignore = true } }", ""));
    world.publisher.exec("INSERT INTO t VALUES (2, 'new')").await;
    let gap = until("the gap is told", async || {
        let view = world.status().await?;
        let gaps = view.json["gaps"].clone();
        if gaps.as_array().is_some_and(|gaps| !gaps.is_empty()) {
            Ok(gaps)
        } else {
            Err(format!("{:#}", view.json))
        }
    })
    .await;
    assert!(gap.to_string().contains("public.t"), "{gap:#}");
    world.pgsluice(&["resync", &world.subscription, "public.t"]).await.expect(0);
    world.wait_same_rows("t").await;
    assert_eq!(service.sigterm().await, 0);
}
