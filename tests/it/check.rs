//! `pgsluice check`: its findings for set-ups that work, that work with restrictions, and that do not
//! work. It leaves no trace, and it can run beside the service.
//!
//! `faults` tests the ten usual faults.

use serde_json::Value;

use crate::support::cli::Outcome;
use crate::support::database::Database;
use crate::support::world::{Origins, PUBLICATION, PUBLISHER_ROLE, ReplicaRole, Servers, TARGET_ROLE, World};

pub(crate) const WIDGETS: &str =
    "CREATE TABLE widgets (id serial PRIMARY KEY, name text, price numeric(12,2))";

/// One subscription of `check --json`.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) outcome: Outcome,
    pub(crate) json: Value,
}

impl Checked {
    /// Checks the world's subscription.
    pub(crate) async fn of(world: &World) -> Self {
        Self::from(world.pgsluice(&["check", "--json"]).await)
    }

    pub(crate) fn from(outcome: Outcome) -> Self {
        let json = outcome.json()["subscriptions"][0].clone();
        assert!(json["name"].is_string(), "{outcome:?}");
        Self { outcome, json }
    }

    pub(crate) fn step(&self, name: &str) -> &Value {
        let steps = self.json["steps"].as_array().unwrap();
        steps.iter().find(|step| step["step"] == name).unwrap_or_else(|| panic!("no step {name}: {steps:#?}"))
    }

    /// Returns `name: primary` of every step with this status.
    pub(crate) fn with_status(&self, status: &str) -> Vec<String> {
        let steps = self.json["steps"].as_array().unwrap().iter();
        let of_status = steps.filter(|step| step["status"] == status);
        of_status.map(|step| format!("{}: {}", text(&step["step"]), text(&step["primary"]))).collect()
    }

    /// Returns primary, detail and hint of a step.
    pub(crate) fn told(&self, step: &str) -> String {
        told(self.step(step))
    }

    /// Returns the same of a step's warning, which stands beside what is well.
    fn told_warning(&self, name: &str) -> String {
        let mut steps = self.json["steps"].as_array().unwrap().iter();
        let warning = steps.find(|step| step["step"] == name && step["status"] == "warning");
        told(warning.unwrap_or_else(|| panic!("no warning of {name}: {:#}", self.json)))
    }
}

fn told(step: &Value) -> String {
    ["primary", "detail", "hint"].map(|part| text(&step[part])).join("\n")
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Returns everything that a check might have left behind.
async fn traces(publisher: &Database, target: &Database) -> Vec<String> {
    let mut traces = publisher.lines("SELECT slot_name FROM pg_replication_slots").await;
    for database in [publisher, target] {
        traces.extend(database.lines("SELECT nspname FROM pg_namespace ORDER BY 1").await);
        traces.extend(database.lines("SELECT roname FROM pg_replication_origin ORDER BY 1").await);
        traces.extend(database.lines("SELECT oid, relname FROM pg_class ORDER BY 1").await);
        traces.extend(database.lines("SELECT setrole, setconfig FROM pg_db_role_setting").await);
    }
    traces
}

#[tokio::test]
async fn all_is_well_before_the_first_start_and_beside_the_running_service() {
    let world = World::builder()
        .publisher_sql(WIDGETS)
        .target_sql("CREATE TABLE widgets (id serial PRIMARY KEY, name text, price numeric(12,2), note text)")
        .start()
        .await;
    let before = traces(&world.publisher, &world.target).await;
    let checked = Checked::of(&world).await;
    assert_eq!(checked.outcome.code, 0, "{:#}", checked.json);
    assert_eq!(checked.with_status("ok").len(), 19, "{:#}", checked.json);
    assert_eq!(checked.json["ok"], true);
    assert_eq!(before, traces(&world.publisher, &world.target).await, "it leaves a trace");
    let columns: Vec<String> = checked.json["tables"][0]["columns"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| {
            ["name", "publisher", "target", "status", "note"].map(|key| text(&column[key])).join("|")
        })
        .collect();
    assert_eq!(
        columns,
        [
            "id|integer|integer|ok|",
            "name|text|text|ok|",
            "price|numeric(12,2)|numeric(12,2)|ok|",
            "note||text|ok|the target's own: stays null"
        ]
    );

    let service = world.run();
    world.wait_state("streaming").await;
    let checked = Checked::of(&world).await;
    assert_eq!(checked.outcome.code, 0, "{:#}", checked.json);
    assert_eq!(checked.with_status("ok").len(), 19, "{:#}", checked.json);
    assert!(checked.told("slot").contains("goes on from"), "{:#}", checked.json);
    // The service streams on undisturbed.
    world.publisher.exec("INSERT INTO widgets (name) VALUES ('Hammer')").await;
    world.wait_same_rows("widgets").await;

    // SELECT that was revoked after the copy matters only for the next copy.
    world.publisher.exec(format!("REVOKE SELECT ON widgets FROM {PUBLISHER_ROLE}")).await;
    let checked = Checked::of(&world).await.with_status("warning");
    assert_eq!(checked.len(), 1, "{checked:#?}");
    assert!(checked[0].starts_with("privileges:"), "{checked:#?}");
    assert_eq!(service.sigterm().await, 0);

    // The slot was dropped while the service was down.
    let drop = format!("SELECT pg_drop_replication_slot('{}')", world.subscription);
    world.publisher.exec(drop).await;
    let checked = Checked::of(&world).await;
    assert_eq!(checked.outcome.code, 1, "{:#}", checked.json);
    assert!(checked.told("slot").contains("no longer exists"), "{:#}", checked.json);
}

#[tokio::test]
async fn what_works_less_than_fully_is_a_warning() {
    let world = World::builder()
        .replica_role(ReplicaRole::Withheld)
        .origins(Origins::Withheld)
        .both_sql(WIDGETS)
        .both_sql(
            "CREATE TABLE gadgets (id int PRIMARY KEY); CREATE TABLE wide (id int PRIMARY KEY, n bigint)",
        )
        .target_sql("ALTER TABLE wide ALTER n TYPE int")
        .publisher_sql(&format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE widgets, wide"))
        .config_lines("[[subscriptions.tables]]\nsource = \"public.gadgets\"\ntarget = \"public.gadgets\"")
        .config_lines("[[subscriptions.tables]]\nsource = \"public.widgts\"\ntarget = \"public.widgets\"")
        .start()
        .await;
    let checked = Checked::of(&world).await;
    insta::assert_snapshot!(checked.with_status("warning").join("\n"), @r#"
    publications: 2 table rules match no published table: public.gadgets, public.widgts
    replica_role: the target role may not set session_replication_role
    origins: replicated transactions carry no replication origin
    tables: column "n" of target table public.wide is integer, the publisher's is bigint
    "#);
    insta::assert_snapshot!(checked.told("publications"), @r#"
    2 table rules match no published table: public.gadgets, public.widgts
    publications: my_publication
    on the publisher: ALTER PUBLICATION "my_publication" ADD TABLE public.gadgets;
    public.widgts does not exist on the publisher: did you mean "public.widgets"?
    "#);
    assert_eq!(checked.with_status("failed"), [""; 0]);
    assert_eq!(checked.outcome.code, 0);
}

#[tokio::test]
async fn usage_is_told_from_findings() {
    let world = World::builder().origins(Origins::Withheld).both_sql(WIDGETS).start().await;
    let unknown = world.pgsluice(&["check", "nobody"]).await.expect(2);
    assert!(unknown.stderr.contains(&world.subscription), "{unknown:?}");
    let text = world.pgsluice(&["check", &world.subscription]).await.expect(0).stdout;
    assert!(text.contains("ok, with 1 warning"), "{text}");
    assert!(text.contains("GRANT EXECUTE ON FUNCTION"), "{text}");
    assert!(text.contains("numeric(12,2)"), "{text}");
    println!("{text}");
}

#[tokio::test]
async fn the_target_is_walked_even_if_the_publisher_is_away() {
    let mut world = World::builder().servers(Servers::Separate).both_sql(WIDGETS).start().await;
    world.target.exec(format!("REVOKE CREATE ON DATABASE example FROM {TARGET_ROLE}")).await;
    let stop = pgsluice::demo::cluster::StopMode::Fast;
    world.publisher_server().stop(stop).await.unwrap();
    let checked = Checked::of(&world).await;
    assert_eq!(checked.outcome.code, 3, "{:#}", checked.json);
    let failed = checked.with_status("failed");
    assert_eq!(failed.len(), 2, "{failed:#?}");
    assert!(failed[0].starts_with("port: ") && failed[0].contains("nothing listens"), "{failed:#?}");
    assert_eq!(
        failed[1],
        format!("state: role \"{TARGET_ROLE}\" may not create schema pgsluice in the target")
    );
    assert!(checked.told("state").contains("GRANT CREATE ON DATABASE"), "{:#}", checked.json);
    assert_eq!(checked.step("database")["primary"], "needs port");

    world.publisher_server().launch().await.unwrap();
    world.target_server().stop(stop).await.unwrap();
    let checked = Checked::of(&world).await;
    assert_eq!(checked.outcome.code, 3, "{:#}", checked.json);
    assert_eq!(checked.with_status("failed").len(), 1, "{:#}", checked.json);
    assert_eq!(checked.step("target")["status"], "failed");
    assert_eq!(checked.step("tables")["primary"], "needs target");
    assert_eq!(checked.step("privileges")["status"], "ok");
}

#[tokio::test]
async fn a_full_publisher_and_a_foreign_slot_are_found() {
    let world = World::builder()
        .both_sql(WIDGETS)
        .publisher_setting("max_replication_slots", "1")
        .publisher_setting("max_wal_senders", "1")
        .publisher_sql("SELECT pg_create_physical_replication_slot('other')")
        .start()
        .await;
    let checked = Checked::of(&world).await;
    insta::assert_snapshot!(checked.with_status("failed").join("\n"), @r"slots: no replication slot is free on the publisher");
    insta::assert_snapshot!(checked.told("slots"), @r"
    no replication slot is free on the publisher
    1 of 1 in use
    raise max_replication_slots on the publisher (a restart), or drop slots that are not needed: SELECT slot_name, active FROM pg_replication_slots;
    ");
    assert_eq!(checked.step("wal_senders")["status"], "warning");

    // A physical slot has the name of the subscription's slot.
    world.publisher.exec("SELECT pg_drop_replication_slot('other')").await;
    let physical = format!("SELECT pg_create_physical_replication_slot('{}')", world.subscription);
    world.publisher.exec(physical).await;
    let checked = Checked::of(&world).await;
    assert_eq!(checked.with_status("failed").len(), 1, "{:#}", checked.json);
    assert!(checked.told("slot").contains("is not this subscription's"), "{:#}", checked.json);
}

/// The limit of a role or a database may be lower than the number of sessions that a service opens.
#[tokio::test]
async fn a_connection_limit_is_told_beforehand() {
    let world = World::builder().both_sql(WIDGETS).start().await;
    assert_eq!(Checked::of(&world).await.with_status("warning"), [""; 0]);
    world.publisher.exec(format!("ALTER ROLE {PUBLISHER_ROLE} CONNECTION LIMIT 3")).await;
    world.target.exec(format!("ALTER ROLE {TARGET_ROLE} CONNECTION LIMIT 8")).await;
    let checked = Checked::of(&world).await;
    insta::assert_snapshot!(checked.told_warning("database"), @r#"
    role "sammy" may open 3 more sessions on the publisher, and pgsluice may need 5
    the role's connection limit is 3, 0 in use
    on the publisher: ALTER ROLE "sammy" CONNECTION LIMIT 5;
    "#);
    insta::assert_snapshot!(checked.told_warning("target"), @r#"
    role "pgsluice_apply" may open 8 more sessions on the target, and pgsluice may need 9
    the role's connection limit is 8, 0 in use
    on the target: ALTER ROLE "pgsluice_apply" CONNECTION LIMIT 9;
    "#);

    world.target.exec(format!("ALTER ROLE {TARGET_ROLE} CONNECTION LIMIT -1")).await;
    world.target.exec(format!("ALTER DATABASE {} CONNECTION LIMIT 8", world.target.name)).await;
    let told = Checked::of(&world).await.told_warning("target");
    assert!(told.contains("the database's connection limit is 8"), "{told}");
    assert!(told.contains("ALTER DATABASE"), "{told}");
}

/// 0.0.0.0 leads to this machine, but is not an address of it.
#[tokio::test]
async fn a_password_that_is_used_without_tls_is_warned_of_or_refused() {
    let world = World::builder().both_sql(WIDGETS).start().await;
    let local = std::fs::read_to_string(&world.config).unwrap();
    let remote = local.replace("host=127.0.0.1", "host=0.0.0.0");
    let config = world.dir().join("remote.toml");
    let check = async |text: &str| {
        std::fs::write(&config, text).unwrap();
        Checked::from(crate::support::cli::run(&config, &["check", "--json"]).await)
    };
    let found = check(&local).await;
    assert_eq!(found.step("tls")["status"], "ok", "{found:?}");

    let found = check(&remote).await;
    assert_eq!(found.outcome.code, 0, "{found:?}");
    for (step, role) in [("tls", PUBLISHER_ROLE), ("target", TARGET_ROLE)] {
        let told = found.told_warning(step);
        let primary =
            format!("the password of role \"{role}\" is used on 0.0.0.0 without TLS (sslmode=prefer)");
        assert!(told.starts_with(&primary) && told.contains("service.password_requires_tls"), "{told}");
    }

    let strict = format!("[service]\npassword_requires_tls = true\n{remote}");
    let found = check(&strict).await;
    assert_eq!(found.outcome.code, 1, "{found:?}");
    for step in ["tls", "target"] {
        let told = found.told(step);
        assert!(told.contains("is not encrypted, and service.password_requires_tls is set"), "{told}");
    }
    // With a mode that never has TLS, nothing starts.
    std::fs::write(&config, strict.replace("host=0.0.0.0", "host=0.0.0.0 sslmode=disable")).unwrap();
    let refused = crate::support::cli::run(&config, &["run"]).await.expect(2);
    assert!(refused.stderr.contains("sslmode=disable with a password for 0.0.0.0"), "{refused:?}");
}
