//! The ten usual faults: `check` and the running service distinguish each from the others, in the same
//! words, and the service resumes by itself once the fault is removed.
//!
//! | fault | test |
//! | --- | --- |
//! | 1 network, 5 firewall | `faults_network`, in its own network namespaces |
//! | 2 not listening | `nobody_listens_on_the_address` |
//! | 3 wal_level | `wal_level_is_not_logical` |
//! | 4 pg_hba.conf, 7 CONNECT, 8 REPLICATION | `the_publisher_does_not_let_the_role_in` |
//! | 6 names and fields, 9 SELECT, 10 not published | `tables_are_not_published_do_not_fit_or_may_not_be_read` |

use pgsluice::demo::cluster::StopMode;
use serde_json::Value;

use crate::check::{Checked, WIDGETS, text};
use crate::support::cli::StateView;
use crate::support::http::get;
use crate::support::service::Service;
use crate::support::wait::until;
use crate::support::world::{PUBLICATION, PUBLISHER_ROLE, Servers, TARGET_ROLE, World};

/// The signs of each fault: number, step, status, and a part of its primary message.
const SIGNS: [(u8, &str, &str, &str); 11] = [
    (1, "route", "failed", "no route to"),
    (2, "port", "failed", "nothing listens on that address and port"),
    (3, "wal_level", "failed", "wal_level is"),
    (4, "authentication", "failed", "pg_hba.conf"),
    (5, "port", "failed", "packets vanish on the way"),
    (6, "tables", "failed", "target"),
    (7, "database", "failed", "permission denied for database"),
    (8, "replication", "failed", "to start"),
    (9, "privileges", "failed", "may not read"),
    (10, "publications", "warning", "nothing is published"),
    (10, "publications", "warning", "no published table"),
];

/// Returns the faults that `check` reports.
pub(crate) fn named(checked: &Checked) -> Vec<u8> {
    let shows = |(_, step, status, sign): &&(u8, &str, &str, &str)| {
        let step = checked.step(step);
        step["status"] == *status && text(&step["primary"]).contains(sign)
    };
    SIGNS.iter().filter(shows).map(|(fault, ..)| *fault).collect()
}

/// Returns the step at which `check` reports the fault.
fn step_of(fault: u8) -> &'static str {
    SIGNS.iter().find(|sign| sign.0 == fault).unwrap().1
}

/// Waits until `check` names this fault and no other.
pub(crate) async fn wait_named(world: &World, fault: u8) -> Checked {
    let checked = until(&format!("check names fault {fault} alone"), async || {
        let checked = Checked::of(world).await;
        if named(&checked) == [fault] { Ok(checked) } else { Err(format!("{:#}", checked.json)) }
    })
    .await;
    let failed = checked.with_status("failed").len();
    assert_eq!(failed, usize::from(fault != 10), "one failed step, no more: {:#}", checked.json);
    checked
}

/// Waits until the service reports for its state what `check` has reported for the step.
pub(crate) async fn wait_same(
    world: &World,
    checked: &Checked,
    fault: u8,
    state: &str,
    reason: &str,
) -> StateView {
    let step = checked.step(step_of(fault));
    let (primary, hint) = (text(&step["primary"]), text(&step["hint"]));
    until(&format!("the service is {state} because of fault {fault}, too"), async || {
        let view = world.status().await?;
        let same = view.state == state
            && view.reason.as_deref() == Some(reason)
            && text(&view.json["detail"]).contains(&primary)
            && text(&view.json["hint"]) == hint;
        if same { Ok(view) } else { Err(format!("{:#}\nexpected {step:#}", view.json)) }
    })
    .await
}

/// Waits until readiness is refused with the texts of `status`.
async fn wait_unready_too(service: &Service, view: &StateView) {
    until("readiness says the same", async || {
        let answer = get(service.http_port, "/readyz").await?;
        let found = answer.json()["reasons"][0].clone();
        let same = ["state", "reason", "detail", "hint"].iter().all(|key| found[key] == view.json[key]);
        if answer.status == 503 && same {
            Ok(())
        } else {
            Err(format!("{answer:?}\nexpected {:#}", view.json))
        }
    })
    .await;
}

/// Returns what `check` reports for the fault's step, without what differs between runs.
pub(crate) fn told(world: &World, checked: &Checked, fault: u8) -> String {
    let told = checked.told(step_of(fault));
    told.replace(&world.publisher.port.to_string(), "PORT").replace(&world.subscription, "SUBSCRIPTION")
}

/// Ends every session of the publisher's role, so that the service has to connect again.
pub(crate) async fn cut_off(world: &World) {
    let sql =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{PUBLISHER_ROLE}'");
    world.publisher.query_text(sql).await;
}

/// Checks that a failure is logged once, even if attempts repeat it.
pub(crate) async fn assert_said_once(service: &Service, primary: &str) {
    let lines = |level: &str| {
        // A field's value is quoted in the log.
        let log = service.log().replace("\\\"", "\"");
        let said = log.lines().filter(|line| line.contains(level) && line.contains(primary));
        said.filter(|line| line.contains("will try again")).count()
    };
    until("it has been tried again", async || lines("DEBUG") >= 1).await;
    assert_eq!(lines(" WARN "), 1, "{primary}");
}

#[tokio::test]
async fn nobody_listens_on_the_address() {
    let mut world = World::builder().servers(Servers::Separate).both_sql(WIDGETS).start().await;
    let port = world.publisher.port;
    let config = std::fs::read_to_string(&world.config).unwrap();
    let elsewhere =
        config.replace(&format!("host=127.0.0.1 port={port}"), &format!("host=127.0.0.2 port={port}"));
    std::fs::write(&world.config, elsewhere).unwrap();

    let checked = wait_named(&world, 2).await;
    assert_eq!(checked.outcome.code, 3);
    insta::assert_snapshot!(told(&world, &checked, 2), @r"
    127.0.0.2:PORT refused the connection: nothing listens on that address and port
    Connection refused (os error 111)
    on that server, check that PostgreSQL runs, that listen_addresses holds this address or '*' (a change needs a restart), and that port is PORT
    ");
    let service = world.run();
    let view = wait_same(&world, &checked, 2, "retrying", "port").await;
    wait_unready_too(&service, &view).await;
    assert_said_once(&service, "nothing listens").await;

    world.publisher_server().set("listen_addresses", "127.0.0.1,127.0.0.2").unwrap();
    world.publisher_server().restart(StopMode::Fast).await.unwrap();
    world.wait_state("streaming").await;
    assert_eq!(named(&Checked::of(&world).await), [0u8; 0]);
}

#[tokio::test]
async fn wal_level_is_not_logical() {
    let mut world = World::builder()
        .servers(Servers::Separate)
        .publisher_setting("wal_level", "replica")
        .both_sql(WIDGETS)
        .start()
        .await;
    let checked = wait_named(&world, 3).await;
    assert_eq!(checked.outcome.code, 1);
    insta::assert_snapshot!(told(&world, &checked, 3), @r#"
    wal_level is "replica" on the publisher, not "logical"
    its WAL does not hold what changes of rows are decoded from
    on the publisher: ALTER SYSTEM SET wal_level = logical; then restart it (a reload is not enough)
    "#);
    let service = world.run();
    let view = wait_same(&world, &checked, 3, "retrying", "wal_level").await;
    wait_unready_too(&service, &view).await;
    assert_said_once(&service, "wal_level is").await;

    world.publisher_server().set("wal_level", "logical").unwrap();
    world.publisher_server().restart(StopMode::Fast).await.unwrap();
    world.wait_state("streaming").await;
    assert_eq!(named(&Checked::of(&world).await), [0u8; 0]);
}

/// Writes a `pg_hba.conf` that admits every role but the publisher's, for which `lines` apply.
fn admit(world: &mut World, lines: &[&str]) {
    let superuser = pgsluice::demo::cluster::SUPERUSER;
    let mut text = format!(
        "local all all trust\nhost all {superuser} 127.0.0.1/32 trust\n\
         host all {TARGET_ROLE} 127.0.0.1/32 scram-sha-256\n"
    );
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    let server = world.publisher_server();
    std::fs::write(server.data_dir().join("pg_hba.conf"), text).unwrap();
    server.reload().unwrap();
}

/// Checks one kind of refusal in `check` and in the service, and returns the remedy. The other texts
/// are the server's, which differ between versions.
async fn kept_out(world: &World, service: &Service, fault: u8) -> String {
    let checked = wait_named(world, fault).await;
    assert_eq!(checked.outcome.code, 1);
    cut_off(world).await;
    let view = wait_same(world, &checked, fault, "retrying", step_of(fault)).await;
    wait_unready_too(service, &view).await;
    assert_said_once(service, &text(&checked.step(step_of(fault))["primary"])).await;
    text(&checked.step(step_of(fault))["hint"])
}

#[tokio::test]
async fn the_publisher_does_not_let_the_role_in() {
    let mut world = World::builder().both_sql(WIDGETS).start().await;
    let cured = format!("host all {PUBLISHER_ROLE} 127.0.0.1/32 scram-sha-256");

    // Fault 4: the role is refused, for all databases, for this database, or for logical replication.
    for lines in [
        vec![],
        vec![format!("host postgres {PUBLISHER_ROLE} 127.0.0.1/32 scram-sha-256")],
        vec![format!("host replication {PUBLISHER_ROLE} 127.0.0.1/32 scram-sha-256")],
    ] {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        admit(&mut world, &lines);
        let service = world.run();
        let told = kept_out(&world, &service, 4).await;
        insta::allow_duplicates! {
            insta::assert_snapshot!(told, @r#"
            add to the server's pg_hba.conf: host publisher sammy 127.0.0.1/32 scram-sha-256 -- then SELECT pg_reload_conf(); if the file has hostssl lines only, use sslmode=require instead (a line for the keyword replication does not do: logical replication goes by the database's name)
            "#);
        }
        admit(&mut world, &[&cured]);
        world.wait_state("streaming").await;
        assert_eq!(service.sigterm().await, 0);
    }

    // Faults 7 and 8 occur while the service streams.
    let service = world.run();
    world.wait_state("streaming").await;
    let database = world.publisher.name.clone();
    world
        .publisher
        .exec(format!("REVOKE CONNECT ON DATABASE {database} FROM PUBLIC, {PUBLISHER_ROLE}"))
        .await;
    insta::assert_snapshot!(
        kept_out(&world, &service, 7).await,
        @r#"on the server: GRANT CONNECT ON DATABASE "publisher" TO "sammy""#
    );
    world.publisher.exec(format!("GRANT CONNECT ON DATABASE {database} TO {PUBLISHER_ROLE}")).await;
    world.wait_state("streaming").await;

    world.publisher.exec(format!("ALTER ROLE {PUBLISHER_ROLE} NOREPLICATION")).await;
    insta::assert_snapshot!(
        kept_out(&world, &service, 8).await,
        @r#"on the publisher: ALTER ROLE "sammy" REPLICATION"#
    );
    world.publisher.exec(format!("ALTER ROLE {PUBLISHER_ROLE} REPLICATION")).await;
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO widgets (name) VALUES ('Hammer')").await;
    world.wait_same_rows("widgets").await;
    assert_eq!(named(&Checked::of(&world).await), [0u8; 0]);
}

fn warnings(view: &StateView) -> String {
    let list = view.json["warnings"].as_array().cloned().unwrap_or_default();
    list.iter().map(Value::to_string).collect()
}

#[tokio::test]
async fn tables_are_not_published_do_not_fit_or_may_not_be_read() {
    let world = World::builder()
        .publisher_sql(WIDGETS)
        .publisher_sql("INSERT INTO widgets (name) VALUES ('Hammer')")
        .publisher_sql("CREATE TABLE gadgets (id int PRIMARY KEY)")
        .publisher_sql("CREATE TABLE secrets (id int PRIMARY KEY); INSERT INTO secrets VALUES (1)")
        .publisher_sql(&format!("CREATE PUBLICATION {PUBLICATION}; REVOKE SELECT ON secrets FROM {PUBLISHER_ROLE}"))
        .target_sql("CREATE TABLE widgets (id serial PRIMARY KEY, title text); CREATE TABLE secrets (id int PRIMARY KEY)")
        .target_sql("CREATE TABLE gadget (id int PRIMARY KEY)")
        .start()
        .await;
    not_in_the_publication(&world).await;
    let service = world.run();
    let view = world.wait_state("streaming").await;
    assert!(warnings(&view).contains("nothing is published"), "{:#}", view.json);

    world.publisher.exec(format!("ALTER PUBLICATION {PUBLICATION} ADD TABLE widgets, gadgets")).await;
    names_and_fields_differ(&world, &service).await;

    world.publisher.exec(format!("ALTER PUBLICATION {PUBLICATION} ADD TABLE secrets")).await;
    no_select(&world, &service).await;
    assert_eq!(named(&Checked::of(&world).await), [0u8; 0]);
}

/// Fault 10: a table is not in the publication.
async fn not_in_the_publication(world: &World) {
    let checked = wait_named(world, 10).await;
    assert_eq!(checked.outcome.code, 0, "a warning: {:#}", checked.json);
    insta::assert_snapshot!(told(world, &checked, 10), @r#"
    nothing is published: the publications hold no table
    publications: my_publication
    on the publisher: ALTER PUBLICATION "my_publication" ADD TABLE public.secrets, public.widgets;
    "#);
}

/// Fault 6: names and fields differ.
async fn names_and_fields_differ(world: &World, service: &Service) {
    let checked = wait_named(world, 6).await;
    assert_eq!(checked.outcome.code, 1);
    insta::assert_snapshot!(told(world, &checked, 6), @r#"
    3 problems keep published tables from fitting into the target
    target table public.gadgets does not exist: Published as public.gadgets.
    target table public.widgets lacks the published column "name": Published as public.widgets.
    target table public.widgets lacks the published column "price": Published as public.widgets.
    on the target, then it goes on by itself:
    CREATE TABLE public.gadgets ("id" integer NOT NULL, PRIMARY KEY ("id")); GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON TABLE public.gadgets TO "pgsluice_apply";
    ALTER TABLE public.widgets ADD COLUMN "name" text;
    ALTER TABLE public.widgets ADD COLUMN "price" numeric(12,2);
    "#);
    let view = wait_same(world, &checked, 6, "paused", "schema").await;
    wait_unready_too(service, &view).await;
    let hint = text(&checked.step("tables")["hint"]);
    let is_statement = |line: &&str| line.starts_with("ALTER TABLE") || line.starts_with("CREATE TABLE");
    let statements: Vec<&str> = hint.lines().filter(is_statement).collect();
    world.target.exec(statements.join(" ")).await;
    world.wait_state("streaming").await;
    world.wait_same_rows("widgets").await;
}

/// Fault 9: SELECT is missing.
async fn no_select(world: &World, service: &Service) {
    let checked = wait_named(world, 9).await;
    assert_eq!(checked.outcome.code, 1);
    insta::assert_snapshot!(told(world, &checked, 9), @r#"
    role "sammy" may not read public.secrets, which the initial copy needs
    no SELECT on id
    on the publisher: GRANT SELECT ON TABLE public.secrets TO "sammy";
    "#);
    let view = wait_same(world, &checked, 9, "retrying", "copy").await;
    wait_unready_too(service, &view).await;
    // The other tables stream on.
    world.publisher.exec("INSERT INTO widgets (name) VALUES ('Cupholder')").await;
    world.wait_same_rows("widgets").await;
    let tries = "SELECT attempt >= 3 FROM pgsluice.table_sync WHERE source_table = 'secrets'";
    until("the copy was tried again", async || world.target.value(tries).await.as_deref() == Some("t")).await;
    let said =
        service.log().lines().filter(|line| line.contains(" WARN ") && line.contains("may not read")).count();
    assert!(said <= 2, "said {said} times");

    world.publisher.exec(format!("GRANT SELECT ON secrets TO {PUBLISHER_ROLE}")).await;
    world.wait_same_rows("secrets").await;
    world.wait_state("streaming").await;
}
