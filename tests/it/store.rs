//! Schema `pgsluice` on a real PostgreSQL: migrations, every operation of the store, signals.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use pgsluice::conflict::{ConflictKind, ConflictReport, FieldValue, Operation, Resolution, RowImage};
use pgsluice::error::{Diagnosis, Disposition, Exit, PauseReason};
use pgsluice::gap::{Gap, GapKind, Hold, NewGap, Settlement};
use pgsluice::pg::conninfo::{
    ChannelBinding, ConnInfo, Host, HostAddress, RootCert, SslMode, SslNegotiation, TargetSessionAttrs,
    TlsSettings,
};
use pgsluice::pg::{Lsn, QualifiedName, SlotName, SubscriptionName};
use pgsluice::schema::{SeenColumn, SeenTable};
use pgsluice::store::{
    Answer, ConflictFilter, Desired, EventKind, Members, NewTables, OpenedGap, Outcome, Ownership,
    PassedOver, PlannedTable, Positions, Refresh, Registration, ReleasedTable, Resync, ResyncWish,
    SCHEMA_VERSION, SkipRefusal, State, StateChange, StatusDocument, Store, StoreError, StoreErrorKind,
    TableChanges, TableRecord, TableState, TableStep, Verb, Walsender,
};
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Executor as _};

const BIN: &str = "/usr/lib/postgresql/15/bin";
const NAME: &str = "my_subscription";

/// A throw-away server, stopped and removed after the last test that uses it.
struct Cluster {
    directory: PathBuf,
    port: u16,
    server: Child,
}

impl Cluster {
    fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let cluster = Arc::new(Self::start());
            *shared = Arc::downgrade(&cluster);
            cluster
        })
    }

    fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("pgsluice-store-").tempdir().unwrap().keep();
        let user =
            nix::unistd::User::from_name("postgres").unwrap().filter(|_| nix::unistd::geteuid().is_root());
        if let Some(user) = &user {
            std::os::unix::fs::chown(&directory, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
        let tool = |name: &str| {
            let mut command = Process::new(Path::new(BIN).join(name));
            if let Some(user) = &user {
                command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
            }
            command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
            command
        };
        let data = directory.join("data");
        let made = tool("initdb")
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data)
            .status()
            .unwrap();
        assert!(made.success(), "initdb: {made}");
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let server = tool("postgres")
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=127.0.0.1", "-c", &format!("port={port}"), "-c", "fsync=off"])
            .args(["-c", &format!("unix_socket_directories={}", directory.display())])
            .stderr(log)
            .spawn()
            .unwrap();
        Self { directory, port, server }
    }

    async fn admin(&self, dbname: &str) -> PgConnection {
        let options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username("postgres")
            .database(dbname);
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match options.connect().await {
                Ok(session) => return session,
                Err(error) if Instant::now() > deadline => panic!("the server does not start: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn conninfo(&self, user: &str, dbname: &str) -> ConnInfo {
        ConnInfo {
            hosts: vec![tcp(self.port)],
            user: user.to_owned(),
            password: None,
            dbname: dbname.to_owned(),
            tls: TlsSettings {
                mode: SslMode::Prefer,
                negotiation: SslNegotiation::Postgres,
                root_cert: RootCert::None,
                client_cert: None,
                channel_binding: ChannelBinding::Prefer,
                passwords: pgsluice::pg::conninfo::Passwords::OverAnyConnection,
            },
            connect_timeout: Duration::from_secs(5),
            application_name: None,
            options: Some("-c lock_timeout=9s".to_owned()),
            keepalives: None,
            tcp_user_timeout: None,
            target_session_attrs: TargetSessionAttrs::ReadWrite,
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.server.id().cast_signed());
        // An immediate shutdown suffices, because the data is removed.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT);
        let _ = self.server.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn tcp(port: u16) -> Host {
    Host { address: HostAddress::Tcp { name: "127.0.0.1".to_owned(), hostaddr: None }, port, password: None }
}

/// A separate database on the shared server.
struct Database {
    cluster: Arc<Cluster>,
    name: String,
}

impl Database {
    async fn create() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let cluster = Cluster::shared();
        let name = format!("db_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut admin = cluster.admin("postgres").await;
        admin.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
        Self { cluster, name }
    }

    async fn admin(&self) -> PgConnection {
        self.cluster.admin(&self.name).await
    }

    fn conninfo(&self) -> ConnInfo {
        self.cluster.conninfo("postgres", &self.name)
    }

    async fn store(&self) -> Store {
        let store = Store::connect(&self.conninfo()).await.unwrap();
        store.migrate().await.unwrap();
        store
    }

    async fn with_subscription(&self) -> Store {
        let store = self.store().await;
        register(&store).await;
        store
    }
}

async fn register(store: &Store) {
    let registration = Registration {
        name: &NAME.parse::<SubscriptionName>().unwrap(),
        slot: &NAME.parse::<SlotName>().unwrap(),
        publications: &["my_publication".to_owned()],
    };
    store.register_subscription(registration).await.unwrap();
}

/// A subscription that has just been taken over.
async fn owned(store: &Store) -> Ownership {
    claim(store, "host/1").await.unwrap()
}

async fn claim(store: &Store, instance: &str) -> Result<Ownership, StoreError> {
    claim_named(store, NAME, instance).await
}

async fn claim_named(store: &Store, name: &str, instance: &str) -> Result<Ownership, StoreError> {
    let registration = Registration {
        name: &name.parse::<SubscriptionName>().unwrap(),
        slot: &NAME.parse::<SlotName>().unwrap(),
        publications: &["my_publication".to_owned()],
    };
    store.claim_subscription(registration, instance).await.map(|claim| claim.owner)
}

fn widgets() -> QualifiedName {
    QualifiedName::new("public", "widgets")
}

fn seen() -> SeenTable {
    SeenTable::default()
}

fn report() -> ConflictReport {
    let row = |fields: &[(&str, &str)]| -> RowImage {
        fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), FieldValue::Text((*value).to_owned())))
            .collect()
    };
    ConflictReport {
        subscription: NAME.to_owned(),
        kind: ConflictKind::InsertExists,
        operation: Operation::Insert,
        source: widgets(),
        target: widgets(),
        key: Some(row(&[("id", "4")])),
        incoming: Some(row(&[("id", "4"), ("name", "Saw")])),
        old: None,
        local_rows: vec![row(&[("id", "4"), ("name", "Drill")])],
        constraint: Some("widgets_pkey".to_owned()),
        sqlstate: Some("23505".to_owned()),
        message: "duplicate key value violates unique constraint \"widgets_pkey\"".to_owned(),
        server_detail: Some("Key (id)=(4) already exists.".to_owned()),
        xid: 4_000_000_000,
        commit_lsn: Lsn::new(0x16B_3748),
        commit_time: Some("2024-02-29T12:00:00.123456Z".parse().unwrap()),
        change_count: Some(3),
        change_index: 2,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_run_once_however_many_run_them() {
    let database = Database::create().await;
    let mut instances = Vec::new();
    for _ in 0..6 {
        let target = database.conninfo();
        instances.push(tokio::spawn(async move { Store::connect(&target).await.unwrap().migrate().await }));
    }
    let mut applied = Vec::new();
    for instance in instances {
        applied.extend(instance.await.unwrap().unwrap().into_iter().map(|migration| migration.version));
    }
    assert_eq!(applied, (1..=SCHEMA_VERSION).collect::<Vec<_>>());

    let store = Store::connect(&database.conninfo()).await.unwrap();
    assert_eq!(store.migrate().await.unwrap(), []);
    assert_eq!(store.schema_version().await.unwrap(), Some(SCHEMA_VERSION));
    store.require_schema().await.unwrap();
}

#[tokio::test]
async fn every_object_is_commented() {
    let database = Database::create().await;
    database.store().await;
    let bare: Vec<String> = sqlx::query_scalar(
        "select a.attrelid::regclass || '.' || a.attname from pg_attribute a join pg_class c on c.oid = a.attrelid \
         where c.relnamespace = 'pgsluice'::regnamespace and c.relkind = 'r' and a.attnum > 0 \
           and col_description(a.attrelid, a.attnum) is null \
         union all select c.oid::regclass::text from pg_class c \
         where c.relnamespace = 'pgsluice'::regnamespace and c.relkind = 'r' and obj_description(c.oid) is null",
    )
    .fetch_all(&mut database.admin().await)
    .await
    .unwrap();
    assert_eq!(bare, Vec::<String>::new());
}

#[tokio::test]
async fn a_database_that_was_not_migrated_says_so() {
    let database = Database::create().await;
    let store = Store::connect(&database.conninfo()).await.unwrap();
    assert_eq!(store.schema_version().await.unwrap(), None);
    let error = store.require_schema().await.unwrap_err();
    assert_eq!((error.exit(), error.disposition()), (Exit::No, Disposition::Pause(PauseReason::TargetError)));
    insta::assert_snapshot!(error.diagnosis(), @r#"
    schema pgsluice is not there in the target database
      hint: run "pgsluice migrate" ("pgsluice run" does it too)
    "#);
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let database = Database::create().await;
    let store = database.store().await;
    sqlx::query("insert into pgsluice._sqlx_migrations values ($1, 'later', now(), true, '', 0)")
        .bind(SCHEMA_VERSION + 4)
        .execute(&mut database.admin().await)
        .await
        .unwrap();
    for error in [store.migrate().await.unwrap_err(), store.require_schema().await.unwrap_err()] {
        assert!(matches!(error.kind(), StoreErrorKind::Newer { found, .. } if *found == SCHEMA_VERSION + 4));
    }
}

#[tokio::test]
async fn table_privileges_suffice_once_the_schema_is_there() {
    let database = Database::create().await;
    let role = format!("{}_role", database.name);
    let mut admin = database.admin().await;
    admin.execute(sqlx::AssertSqlSafe(format!("create role {role} login"))).await.unwrap();
    let target = database.cluster.conninfo(&role, &database.name);

    let store = Store::connect(&target).await.unwrap();
    let error = store.migrate().await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Pause(PauseReason::TargetError));
    let text = error.diagnosis().to_string();
    assert!(
        text.contains("permission denied for database") && text.contains("CREATE on the database"),
        "{text}"
    );

    // The failed attempt holds no lock and left nothing behind.
    database.store().await;
    let error = store.migrate().await.unwrap_err();
    assert!(error.diagnosis().to_string().contains("GRANT USAGE ON SCHEMA pgsluice"), "{error:?}");
    admin
        .execute(sqlx::AssertSqlSafe(format!(
            "grant usage on schema pgsluice to {role}; \
             grant select, insert, update, delete on all tables in schema pgsluice to {role}"
        )))
        .await
        .unwrap();
    assert_eq!(store.migrate().await.unwrap(), []);
    register(&store).await;
    let owner = owned(&store).await;
    let id = store.open_conflict(&owner, &report()).await.unwrap();
    store.resolve_conflict(&owner, id, Resolution::Retry, "somebody").await.unwrap();
    store.submit(NAME, Verb::Pause, &json!({}), "somebody").await.unwrap();
    assert_eq!(store.take_commands(&owner).await.unwrap().len(), 1);
    store.prune().await.unwrap();
    store.remove_subscription(NAME).await.unwrap();
}

#[tokio::test]
async fn a_subscription_reports_where_it_stands() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let owner = claim(&store, "db-1/4711").await.unwrap();
    store.set_publisher(&owner, "7123456789012345678").await.unwrap();
    store.set_warnings(&owner, &["triggers cannot be suppressed".to_owned()]).await.unwrap();
    let positions = Positions {
        received_lsn: Some(Lsn::new(u64::MAX)),
        flushed_lsn: Some(Lsn::new(0x16B_3700)),
        publisher_lsn: None,
        lag_bytes: Some(72),
        lag_seconds: Some(0.25),
        wal_status: Some("reserved".to_owned()),
        retained_bytes: Some(1 << 24),
        publications_seen: Some(Lsn::new(0x16B_3600)),
    };
    reported(&store, &owner, &positions).await;

    let row = store.subscription(NAME).await.unwrap().unwrap();
    assert_eq!(row.positions, positions);
    assert_eq!((row.state, row.desired, row.owned), (State::Starting, Desired::Run, false));
    assert_eq!(row.publisher_system_id.as_deref(), Some("7123456789012345678"));
    assert_eq!((row.publications, row.warnings.len()), (vec!["my_publication".to_owned()], 1));
    assert_eq!((row.instance.as_deref(), row.progress, row.tables), (Some("db-1/4711"), None, vec![]));

    for error in [
        store.remove_subscription("other").await.unwrap_err(),
        store.submit("other", Verb::Pause, &json!({}), "x").await.unwrap_err(),
        store.arm_skip("other", Lsn::new(1)).await.unwrap_err(),
    ] {
        assert!(
            matches!(error.kind(), StoreErrorKind::UnknownSubscription(name) if name == "other"),
            "{error:?}"
        );
    }
}

async fn reported(store: &Store, owner: &Ownership, positions: &Positions) {
    let reported = store.report_positions(&[(owner, positions)]).await.unwrap();
    assert_eq!((reported.written.len(), reported.refused.len()), (1, 0));
}

#[tokio::test]
async fn the_walsender_is_known_in_the_database_and_the_run_in_which_it_was_noted() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let claim = async || {
        let registration = Registration {
            name: &NAME.parse::<SubscriptionName>().unwrap(),
            slot: &NAME.parse::<SlotName>().unwrap(),
            publications: &["my_publication".to_owned()],
        };
        store.claim_subscription(registration, "host/1").await.unwrap()
    };
    let mut admin = database.admin().await;
    let walsender = Walsender { pid: 4711, started_at: "2026-01-02T03:04:05.678901Z".parse().unwrap() };
    let first = claim().await;
    assert_eq!(first.walsender, None);
    store.note_walsender(&first.owner, walsender).await.unwrap();
    let second = claim().await;
    assert_eq!(second.walsender, Some(walsender));
    assert!(store.note_walsender(&first.owner, walsender).await.unwrap_err().is_not_owner());
    // It stays until the new owner streams.
    let third = claim().await;
    assert_eq!(third.walsender, Some(walsender));
    for copied in ["walsender_noted_in = 1", "server_started_at = server_started_at - interval '1 day'"] {
        store.note_walsender(&claim().await.owner, walsender).await.unwrap();
        admin.execute(sqlx::AssertSqlSafe(format!("update pgsluice.owner set {copied}"))).await.unwrap();
        assert_eq!(claim().await.walsender, None, "{copied}");
    }
}

#[tokio::test]
async fn a_report_is_held_up_by_nobodys_lock() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let mut owners = vec![claim(&store, "one").await.unwrap()];
    for name in ["locked", "of_others", "owner_locked"] {
        owners.push(claim_named(&store, name, "one").await.unwrap());
    }
    claim_named(&store, "of_others", "other").await.unwrap();
    let mut admin = database.admin().await;
    admin
        .execute(
            "begin; select from pgsluice.subscription where name = 'locked' for update; \
             select from pgsluice.owner where subscription = 'owner_locked' for update",
        )
        .await
        .unwrap();
    let positions = Positions { lag_bytes: Some(7), ..Positions::default() };
    let reports: Vec<_> = owners.iter().map(|owner| (owner, &positions)).collect();
    let began = Instant::now();
    let reported = store.report_positions(&reports).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(reported.written, [NAME.parse().unwrap()]);
    assert_eq!(reported.refused, ["of_others".parse().unwrap()]);
    admin.execute("rollback").await.unwrap();
    assert_eq!(store.report_positions(&reports).await.unwrap().written.len(), 3);
    let lag = |row: Option<pgsluice::store::SubscriptionRow>| row.unwrap().positions.lag_bytes;
    assert_eq!(lag(store.subscription("locked").await.unwrap()), Some(7));
    assert_eq!(lag(store.subscription("of_others").await.unwrap()), None);
}

#[tokio::test]
async fn progress_is_read_as_apply_wrote_it() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    database
        .admin()
        .await
        .execute(
            "insert into pgsluice.progress values \
             ('my_subscription', '1/6B3748', '1999-12-31 23:59:59.999999+00', 12, now())",
        )
        .await
        .unwrap();
    let progress = store.subscriptions().await.unwrap().remove(0).progress.unwrap();
    assert_eq!((progress.applied_lsn.to_string().as_str(), progress.transactions), ("1/6B3748", 12));
    assert_eq!(progress.commit_time.unwrap().to_string(), "1999-12-31T23:59:59.999999Z");
}

#[tokio::test]
async fn a_state_is_one_event_when_it_changes() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let owner = owned(&store).await;
    let streaming = StateChange::new(State::Streaming);
    assert!(store.set_state(&owner, &streaming).await.unwrap());
    let since = store.subscription(NAME).await.unwrap().unwrap().state_since;
    assert!(!store.set_state(&owner, &streaming).await.unwrap());

    let diagnosis =
        Diagnosis::new("column \"price\" is missing").detail("public.widgets").hint("ALTER TABLE …");
    let paused = StateChange::paused(PauseReason::Schema, &diagnosis);
    assert!(store.set_state(&owner, &paused).await.unwrap());
    let detail = StateChange { detail: Some("another".to_owned()), ..paused };
    assert!(!store.set_state(&owner, &detail).await.unwrap());

    let row = store.subscription(NAME).await.unwrap().unwrap();
    assert_eq!((row.state, row.reason.as_deref()), (State::Paused, Some("schema")));
    assert_eq!((row.detail.as_deref(), row.hint.as_deref()), (Some("another"), Some("ALTER TABLE …")));
    assert!(row.state_since > since);
    let events = store.events(Some(NAME), 10).await.unwrap();
    let messages: Vec<_> = events.iter().map(|event| event.message.as_str()).collect();
    assert_eq!(messages, ["streaming -> paused (schema)", "starting -> streaming"]);
}

#[tokio::test]
async fn tables_come_go_and_are_copied_under_a_fence() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let owner = owned(&store).await;
    let table = |name: &str, target: &str| {
        table(&QualifiedName::new("public", name), &QualifiedName::new("reporting", target))
    };
    let first = [table("widgets", "widget"), table("B \"x\"", "b")];
    let changes = store.record_members(&owner, &members(&first, NewTables::Copy)).await.unwrap();
    assert_eq!((changes.added.len(), changes.removed.len()), (2, 0));
    let known = |table: TableRecord| TableRecord { recorded: Some(table.source.clone()), ..table };
    let again = first.map(known);
    assert_eq!(
        store.record_members(&owner, &members(&again, NewTables::Copy)).await.unwrap(),
        TableChanges::default()
    );

    assert_eq!(store.begin_copy(&owner, &widgets(), 0).await.unwrap(), TableStep::Taken { attempt: 1 });
    assert_eq!(store.begin_copy(&owner, &widgets(), 1).await.unwrap(), TableStep::Taken { attempt: 2 });
    store.report_copy(&owner, &widgets(), 1, 99, None).await.unwrap();
    store.report_copy(&owner, &widgets(), 2, 5, Some(10)).await.unwrap();
    let column = |name: &str| SeenColumn {
        name: name.to_owned(),
        type_schema: "pg_catalog".to_owned(),
        type_name: "int4".to_owned(),
        typmod: -1,
        number: Some(1),
        target: None,
    };
    let described = |columns| SeenTable { columns, last_number: 2, ..SeenTable::default() };
    store.set_described(&owner, &[(widgets(), described(vec![column("id")]))]).await.unwrap();
    let now = described(vec![column("id"), column("n")]);
    let planned =
        PlannedTable { source: widgets(), described: now.clone(), exact_because: Some("triggers fire") };
    store.set_planned(&owner, &[planned]).await.unwrap();

    let second = [known(table("widgets", "other")), table("gadgets", "gadgets")];
    let ready = NewTables::Ready { synced_lsn: Lsn::new(7) };
    let changes = store.record_members(&owner, &members(&second, ready)).await.unwrap();
    assert_eq!(changes.added, [QualifiedName::new("public", "gadgets")]);
    assert_eq!(changes.removed, [QualifiedName::new("public", "B \"x\"")]);

    let tables = store.subscription(NAME).await.unwrap().unwrap().tables;
    assert_eq!((tables[0].state, tables[0].synced_lsn), (TableState::Ready, Some(Lsn::new(7))));
    let copied = &tables[1];
    assert_eq!((copied.state, copied.attempt, copied.rows_copied), (TableState::Copying, 2, 5));
    assert_eq!((copied.rows_estimated, copied.exact_because.as_deref()), (Some(10), Some("triggers fire")));
    assert_eq!(copied.target, QualifiedName::new("reporting", "other"));

    let why = Diagnosis::new("no").hint("fix it");
    store.set_table_state(&owner, &widgets(), 2, TableState::Paused, Some(&why)).await.unwrap();
    let tables = store.subscription(NAME).await.unwrap().unwrap().tables;
    assert_eq!((tables[1].state, tables[1].error.as_ref()), (TableState::Paused, Some(&why)));
    let missing = store.begin_copy(&owner, &QualifiedName::new("public", "nope"), 0).await.unwrap_err();
    assert!(matches!(missing.kind(), StoreErrorKind::UnknownTable { .. }));
}

#[tokio::test]
async fn a_table_that_is_ready_is_not_copied_again() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let owner = owned(&store).await;
    let tables = ["widgets", "gadgets"].map(|name| QualifiedName::new("public", name));
    let [widgets, gadgets] = &tables;
    let mappings = tables.clone().map(|source| table(&source, &source));
    store.record_members(&owner, &members(&mappings, NewTables::Copy)).await.unwrap();
    let taken = |attempt| TableStep::Taken { attempt };
    assert_eq!(store.begin_copy(&owner, widgets, 0).await.unwrap(), taken(1));
    assert_eq!(store.begin_copy(&owner, gadgets, 0).await.unwrap(), taken(1));
    // Its rows and its mark have been committed by the copy.
    let mut admin = database.admin().await;
    admin
        .execute("update pgsluice.table_sync set state = 'ready', synced_lsn = '0/70' where source_table = 'widgets'")
        .await
        .unwrap();
    let ready = TableStep::Ready { synced_lsn: Lsn::new(0x70) };
    assert_eq!(store.begin_copy(&owner, widgets, 1).await.unwrap(), ready);
    let why = Diagnosis::new("no");
    let pending = store.set_table_state(&owner, widgets, 1, TableState::Pending, Some(&why)).await.unwrap();
    assert_eq!(pending, ready);
    let late = store.set_table_state(&owner, widgets, 1, TableState::CatchingUp, None).await.unwrap();
    assert_eq!(late, ready);
    assert_eq!(store.set_table_ready(&owner, widgets, 1, Lsn::new(0x80)).await.unwrap(), ready);
    store.report_copy(&owner, widgets, 1, 99, None).await.unwrap();

    // A new owner's first word: copies that were begun before do not land, nor do notes about them.
    store.end_copies(&owner).await.unwrap();
    let rows = store.subscription(NAME).await.unwrap().unwrap().tables;
    let seen: Vec<_> = rows.iter().map(|row| (row.state, row.attempt, row.synced_lsn)).collect();
    let synced = Some(Lsn::new(0x70));
    assert_eq!(seen, [(TableState::Copying, 2, None), (TableState::Ready, 1, synced)]);
    for error in [
        store.begin_copy(&owner, gadgets, 1).await.unwrap_err(),
        store.set_table_state(&owner, gadgets, 1, TableState::Pending, None).await.unwrap_err(),
        store.set_table_ready(&owner, gadgets, 1, Lsn::new(7)).await.unwrap_err(),
    ] {
        assert!(matches!(error.kind(), StoreErrorKind::CopySuperseded { .. }), "{error:?}");
        assert_eq!(error.disposition(), Disposition::Retry);
    }
}

/// Everything in schema `pgsluice` but what an owner is told of.
const STATE: &str = "select concat_ws(E'\n', \
    (select json_agg(t order by t.name) from pgsluice.subscription t), \
    (select json_agg(t order by t.source_table) from pgsluice.table_sync t), \
    (select json_agg(t order by t.id) from pgsluice.conflict t), \
    (select json_agg(t order by t.id) from pgsluice.command t), \
    (select json_agg(t order by t.id) from pgsluice.event t), \
    (select json_agg(t order by t.id) from pgsluice.gap t), \
    (select json_agg(t order by t.subscription) from pgsluice.owner t))";

type Write<'a> = (&'static str, Pin<Box<dyn Future<Output = Result<(), StoreError>> + 'a>>);

/// Every write that an owner makes, each so that it would change something.
fn writes<'a>(store: &'a Store, owner: &'a Ownership, conflict: i64, command: i64) -> Vec<Write<'a>> {
    macro_rules! writes {
        ($($method:ident($($argument:expr),*);)*) => {
            vec![$((stringify!($method), {
                Box::pin(async move { store.$method(owner, $($argument),*).await.map(drop) })
            })),*]
        };
    }
    writes! {
        set_publisher("1");
        set_state(&StateChange::new(State::Copying));
        set_warnings(&["late".to_owned()]);
        clear_skip(report().commit_lsn);
        record_members(&members(&[], NewTables::Copy));
        end_copies();
        begin_copy(&widgets(), 1);
        set_table_state(&widgets(), 1, TableState::Pending, None);
        report_copy(&widgets(), 1, 17, None);
        set_planned(&[PlannedTable { source: widgets(), described: seen(), exact_because: Some("late") }]);
        set_described(&[(widgets(), seen())]);
        set_table_ready(&widgets(), 1, Lsn::new(9));
        set_tables_ready(&[(&widgets(), 1)], Lsn::new(9));
        open_conflict(&report());
        resolve_conflict(conflict, Resolution::Retry, "late");
        resolve_conflict(conflict, Resolution::SkipTransaction, "late");
        finish_skip(report().commit_lsn);
        resolve_applied(report().commit_lsn);
        take_commands();
        answer(command, &Answer::done("late"));
        open_gap(&gap_of(None, GapKind::SlotLost));
        heal_gaps();
        release_tables(Lsn::new(9), &PassedOver::default());
        resync_tables(command, wish());
        accept_gap(command, 1, None, "late");
        refresh_tables(command, Refresh::Copy);
        end_refresh(command);
    }
}

#[tokio::test]
async fn a_former_owner_writes_nothing() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let former = claim(&store, "former").await.unwrap();
    let mapping = table(&widgets(), &widgets());
    store.record_members(&former, &members(&[mapping], NewTables::Copy)).await.unwrap();
    store.begin_copy(&former, &widgets(), 0).await.unwrap();
    let conflict = store.open_conflict(&former, &report()).await.unwrap();
    store.arm_skip(NAME, report().commit_lsn).await.unwrap();
    let command = store.submit(NAME, Verb::Resume, &json!({}), "ann").await.unwrap();

    let owner = claim(&store, "owner").await.unwrap();
    assert!(owner.term() > former.term(), "{owner:?} {former:?}");
    let mut admin = database.admin().await;
    // In a server that was restored, the record is of an earlier run.
    const EARLIER: &str = "update pgsluice.owner set server_started_at = server_started_at - interval '1 s'";
    const SAME: &str = "update pgsluice.owner set server_started_at = server_started_at + interval '1 s'";
    for stranger in [former.clone(), Ownership::none(NAME.parse().unwrap()), owner.clone()] {
        if stranger == owner {
            admin.execute(EARLIER).await.unwrap();
        }
        let before: String = sqlx::query_scalar(STATE).fetch_one(&mut admin).await.unwrap();
        for (write, outcome) in writes(&store, &stranger, conflict, command) {
            let error = outcome.await.expect_err(write);
            assert!(error.is_not_owner(), "{write}: {error:?}");
            assert_eq!(error.disposition(), Disposition::Retry, "{write}");
            let after: String = sqlx::query_scalar(STATE).fetch_one(&mut admin).await.unwrap();
            assert_eq!(before, after, "{write}");
        }
    }
    admin.execute(SAME).await.unwrap();
    // The same, by the owner, all get through: the list above shows nothing else.
    let mut refused = Vec::new();
    for (write, outcome) in writes(&store, &owner, conflict, command) {
        refused.extend(outcome.await.err().filter(StoreError::is_not_owner).map(|_| write));
    }
    assert_eq!(refused, [""; 0]);
    // A subscription that is dropped and made again has later terms, too.
    store.remove_subscription(NAME).await.unwrap();
    register(&store).await;
    assert!(store.set_warnings(&owner, &[]).await.unwrap_err().is_not_owner());
    assert!(claim(&store, "next").await.unwrap().term() > owner.term());
}

/// A write that has met its row waits with the lock: a take-over comes after it, or it after the take-over.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_and_a_take_over_come_one_after_the_other() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let former = claim(&store, "former").await.unwrap();
    // A take-over that has changed the owner's row, and has not been committed.
    let mut admin = database.admin().await;
    admin.execute("begin; update pgsluice.owner set term = term + 1").await.unwrap();
    let late = {
        let (store, former) = (store.clone(), former.clone());
        tokio::spawn(async move { store.set_warnings(&former, &["late".to_owned()]).await })
    };
    let mut other = database.admin().await;
    let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
    bounded(async {
        while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut other).await.unwrap() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    admin.execute("commit").await.unwrap();
    assert!(bounded(late).await.unwrap().unwrap_err().is_not_owner());
    assert_eq!(store.subscription(NAME).await.unwrap().unwrap().warnings, [""; 0]);
}

#[tokio::test]
async fn a_conflict_pauses_and_keeps_its_evidence() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let owner = owned(&store).await;
    let report = report();
    let id = store.open_conflict(&owner, &report).await.unwrap();
    assert_eq!(store.open_conflict(&owner, &report).await.unwrap(), id);

    let row = store.conflict(id).await.unwrap();
    assert_eq!((&row.report, row.occurrences, row.settled.is_none()), (&report, 2, true));
    let subscription = store.subscription(NAME).await.unwrap().unwrap();
    assert_eq!((subscription.state, subscription.conflict_id), (State::Paused, Some(id)));
    assert_eq!(subscription.reason.as_deref(), Some("conflict"));
    assert!(subscription.hint.unwrap().contains(&format!("conflicts resolve {id} ")));
    let kinds: Vec<_> = store.events(None, 10).await.unwrap().into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds, ["conflict", "state"]);

    // Another conflict means that this one is resolved.
    let later = ConflictReport { change_index: 3, ..report.clone() };
    let other = store.open_conflict(&owner, &later).await.unwrap();
    assert_ne!(other, id);
    let open = store.conflicts(ConflictFilter::Open).await.unwrap();
    assert_eq!(open.iter().map(|row| row.id).collect::<Vec<_>>(), [other]);

    store.resolve_conflict(&owner, other, Resolution::SkipTransaction, "ann").await.unwrap();
    let settled = store.conflict(other).await.unwrap().settled.unwrap();
    assert_eq!((settled.resolution, settled.by.as_deref()), (Resolution::SkipTransaction, Some("ann")));
    let again = store.resolve_conflict(&owner, other, Resolution::Retry, "bob").await.unwrap_err();
    assert!(matches!(again.kind(), StoreErrorKind::AlreadyResolved(number) if *number == other));
    let unknown = store.conflict(99).await.unwrap_err();
    assert_eq!((unknown.exit(), unknown.to_string().as_str()), (Exit::Usage, "there is no conflict 99"));
    assert_eq!(store.conflicts(ConflictFilter::Of(NAME)).await.unwrap().len(), 2);

    let third = store.open_conflict(&owner, &report).await.unwrap();
    assert!(store.resolve_applied(&owner, Lsn::new(1)).await.unwrap().is_empty());
    // A transaction that ends where this one's COMMIT record begins is the one before.
    assert!(store.resolve_applied(&owner, report.commit_lsn).await.unwrap().is_empty());
    let end = Lsn::new(report.commit_lsn.as_u64() + 1);
    assert_eq!(store.resolve_applied(&owner, end).await.unwrap(), [third]);
    assert_eq!(store.conflicts(ConflictFilter::All).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_skip_is_armed_for_one_transaction_ahead() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let owner = owned(&store).await;
    let refused = |error: StoreError| match error.kind() {
        StoreErrorKind::SkipRefused(refusal) => *refusal,
        other => panic!("{other:?}"),
    };
    store.arm_skip(NAME, Lsn::new(0x10)).await.unwrap();
    store.clear_skip(&owner, Lsn::new(0x11)).await.unwrap();
    assert_eq!(store.subscription(NAME).await.unwrap().unwrap().skip_lsn, Some(Lsn::new(0x10)));
    store.clear_skip(&owner, Lsn::new(0x10)).await.unwrap();
    assert_eq!(store.subscription(NAME).await.unwrap().unwrap().skip_lsn, None);

    let mut admin = database.admin().await;
    admin.execute("insert into pgsluice.progress values ('my_subscription', '0/20')").await.unwrap();
    let (lsn, applied) = (Lsn::new(0x20), Lsn::new(0x20));
    assert_eq!(
        refused(store.arm_skip(NAME, lsn).await.unwrap_err()),
        SkipRefusal::AlreadyApplied { lsn, applied }
    );
    let report = report();
    store.open_conflict(&owner, &report).await.unwrap();
    let (lsn, conflict) = (Lsn::new(0x30), report.commit_lsn);
    assert_eq!(
        refused(store.arm_skip(NAME, lsn).await.unwrap_err()),
        SkipRefusal::OtherConflict { lsn, conflict }
    );
    store.arm_skip(NAME, report.commit_lsn).await.unwrap();
}

#[tokio::test]
async fn the_owner_is_who_holds_the_lock() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    assert!(!store.is_owned(NAME).await.unwrap());
    let mut apply = database.admin().await;
    for name in [NAME, "another"] {
        sqlx::query("select pg_advisory_lock($1)")
            .bind(pgsluice::pg::lock_key(name))
            .execute(&mut apply)
            .await
            .unwrap();
    }
    assert!(store.is_owned(NAME).await.unwrap());
    assert!(store.subscription(NAME).await.unwrap().unwrap().owned);
    // The same lock key in another database is another lock.
    assert!(!Database::create().await.with_subscription().await.is_owned(NAME).await.unwrap());
    sqlx::query("select pg_advisory_unlock_all()").execute(&mut apply).await.unwrap();
    assert!(!store.is_owned(NAME).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_reaches_the_service_at_once_and_its_answer_the_asker() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let owner = owned(&store).await;
    let mut signal = store.listen();
    // It is found by the first look, after which notifications come.
    let first = store.submit(NAME, Verb::Pause, &json!({}), "ann@host").await.unwrap();
    assert_eq!(bounded(signal.recv()).await, NAME);
    assert_eq!(store.take_commands(&owner).await.unwrap().len(), 1);
    store.answer(&owner, first, &Answer::done("paused")).await.unwrap();

    let asker = store.clone();
    let asked = Instant::now();
    let id = asker.submit(NAME, Verb::Pause, &json!({}), "ann@host").await.unwrap();
    assert_eq!(bounded(signal.recv()).await, NAME);
    assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
    assert_eq!(store.subscription(NAME).await.unwrap().unwrap().desired, Desired::Pause);

    let waiting = tokio::spawn(async move { asker.wait_answer(id, Duration::from_secs(20)).await });
    let commands = store.take_commands(&owner).await.unwrap();
    assert_eq!((commands.len(), commands[0].id, commands[0].verb), (1, id, Verb::Pause));
    assert_eq!(store.take_commands(&owner).await.unwrap(), []);
    let answered = Instant::now();
    store.answer(&owner, id, &Answer::done("paused")).await.unwrap();
    let answer = waiting.await.unwrap().unwrap().unwrap();
    assert_eq!((answer.outcome, answer.text), (Outcome::Done, Diagnosis::new("paused")));
    assert!(answered.elapsed() < Duration::from_millis(700), "{:?}", answered.elapsed());
}

#[tokio::test]
async fn commands_wait_for_a_service_and_the_last_wish_counts() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let owner = owned(&store).await;
    let pause = store.submit(NAME, Verb::Pause, &json!({}), "ann").await.unwrap();
    let skip = store.submit(NAME, Verb::Skip, &json!({ "lsn": "0/1" }), "ann").await.unwrap();
    let resume = store.submit(NAME, Verb::Resume, &json!({}), "bob").await.unwrap();
    assert_eq!(store.wait_answer(pause, Duration::ZERO).await.unwrap().unwrap().outcome, Outcome::Refused);
    assert_eq!(store.wait_answer(skip, Duration::ZERO).await.unwrap(), None);
    assert_eq!(store.subscription(NAME).await.unwrap().unwrap().desired, Desired::Run);

    // Commands that a service took but did not answer are left to its successor.
    let ids = |commands: Vec<pgsluice::store::Command>| commands.iter().map(|it| it.id).collect::<Vec<_>>();
    assert_eq!(ids(store.take_commands(&owner).await.unwrap()), [skip, resume]);
    let owner = claim(&store, "successor").await.unwrap();
    database
        .admin()
        .await
        .execute("insert into pgsluice.command (subscription, verb, created_by) values ('my_subscription', 'dance', 'x')")
        .await
        .unwrap();
    let commands = store.take_commands(&owner).await.unwrap();
    assert_eq!(commands[0].args, json!({ "lsn": "0/1" }));
    assert_eq!(ids(commands), [skip, resume]);
    let dance = store.wait_answer(resume + 1, Duration::ZERO).await.unwrap().unwrap();
    assert_eq!(dance.outcome, Outcome::Refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn listening_survives_a_lost_session() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let owner = owned(&store).await;
    let mut signal = store.listen();
    store.submit(NAME, Verb::Refresh, &json!({}), "ann").await.unwrap();
    assert_eq!(bounded(signal.recv()).await, NAME);
    assert_eq!(store.take_commands(&owner).await.unwrap().len(), 1);
    database
        .admin()
        .await
        .execute(
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where datname = current_database() and application_name = 'pgsluice state'",
        )
        .await
        .unwrap();
    // The pool's sessions were ended as well; at most one operation reports that, and none hangs.
    let mut submitted = store.submit(NAME, Verb::Pause, &json!({}), "ann").await;
    if submitted.is_err() {
        submitted = store.submit(NAME, Verb::Pause, &json!({}), "ann").await;
    }
    submitted.unwrap();
    assert_eq!(bounded(signal.recv()).await, NAME);
}

#[tokio::test]
async fn removal_takes_everything_but_the_audit() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let owner = owned(&store).await;
    store.open_conflict(&owner, &report()).await.unwrap();
    store.submit(NAME, Verb::Resume, &json!({}), "ann").await.unwrap();
    store
        .record_event(Some(NAME), EventKind::Skip, "passed over", Some(json!({ "lsn": "0/1" })))
        .await
        .unwrap();
    store.remove_subscription(NAME).await.unwrap();
    assert_eq!(store.subscriptions().await.unwrap(), []);
    assert_eq!(store.conflicts(ConflictFilter::All).await.unwrap(), []);
    let events = store.events(Some(NAME), 10).await.unwrap();
    assert_eq!((events[0].kind.as_str(), events[1].message.as_str()), ("removed", "passed over"));

    let mut admin = database.admin().await;
    admin
        .execute("update pgsluice.event set at = now() - interval '91 days' where kind <> 'removed'")
        .await
        .unwrap();
    assert_eq!(store.prune().await.unwrap(), events.len() as u64 - 1);
}

#[tokio::test]
async fn the_first_host_that_answers_is_used_and_failures_are_told_apart() {
    let database = Database::create().await;
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let mut target = database.conninfo();
    target.hosts.insert(0, tcp(closed));
    Store::connect(&target).await.unwrap().migrate().await.unwrap();

    target.hosts = vec![tcp(closed)];
    let error = Store::connect(&target).await.unwrap_err();
    assert_eq!((error.exit(), error.disposition()), (Exit::Unreachable, Disposition::Retry));

    let nowhere = database.cluster.conninfo("postgres", "no_such_database");
    let error = Store::connect(&nowhere).await.unwrap_err();
    assert_eq!(
        (error.exit(), error.disposition()),
        (Exit::Unreachable, Disposition::Pause(PauseReason::TargetError))
    );
    assert!(error.diagnosis().to_string().contains("create the database"), "{error:?}");

    let mut by_socket = database.conninfo();
    by_socket.hosts[0].address = HostAddress::Unix(database.cluster.directory.clone());
    by_socket.hosts[0].port = database.cluster.port;
    Store::connect(&by_socket).await.unwrap().require_schema().await.unwrap();
}

#[tokio::test]
async fn nothing_planted_in_the_search_path_runs() {
    let database = Database::create().await;
    let mut admin = database.admin().await;
    admin
        .execute(sqlx::AssertSqlSafe(format!(
            "create function public.now() returns timestamptz language plpgsql as \
             $$ begin raise exception 'planted'; end $$; \
             alter database {} set search_path = public, pg_catalog",
            database.name
        )))
        .await
        .unwrap();
    let store = database.with_subscription().await;
    let owner = owned(&store).await;
    store.set_state(&owner, &StateChange::new(State::Streaming)).await.unwrap();
    store.open_conflict(&owner, &report()).await.unwrap();
    let sessions: i64 = sqlx::query_scalar(
        "select count(*) from pg_stat_activity where datname = current_database() \
         and application_name = 'pgsluice state'",
    )
    .fetch_one(&mut admin)
    .await
    .unwrap();
    assert!((1..=3).contains(&sessions), "{sessions}");
    store.close().await;
}

fn table(source: &QualifiedName, target: &QualifiedName) -> TableRecord {
    TableRecord {
        recorded: None,
        source: source.clone(),
        target: target.clone(),
        source_oid: None,
        target_oid: None,
        marks: None,
        left: None,
        held: None,
    }
}

const fn members(tables: &[TableRecord], new: NewTables) -> Members<'_> {
    Members { tables, new, publications: &[], notes: &[] }
}

fn gap_of(table: Option<QualifiedName>, kind: GapKind) -> NewGap {
    let (from, to) = (Some(Lsn::new(0x10)), Some(Lsn::new(0x20)));
    NewGap { table, kind, from, to, since: None, detail: None }
}

#[tokio::test]
async fn a_gap_is_recorded_once_and_holds_its_table_until_it_is_settled() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let owner = owned(&store).await;
    let mapping = table(&widgets(), &widgets());
    let row = async || store.subscription(NAME).await.unwrap().unwrap();
    store.record_members(&owner, &members(std::slice::from_ref(&mapping), NewTables::Copy)).await.unwrap();
    let returned = gap_of(Some(widgets()), GapKind::Returned);
    // A table that is still to be copied, or that is not one of the subscription's, has no gap.
    assert_eq!(store.open_gap(&owner, &returned).await.unwrap(), None);
    let other = gap_of(Some(QualifiedName::new("public", "other")), GapKind::Returned);
    assert_eq!(store.open_gap(&owner, &other).await.unwrap(), None);

    store.set_table_ready(&owner, &widgets(), 0, Lsn::new(7)).await.unwrap();
    let columns = gap_of(Some(widgets()), GapKind::Columns);
    let Some(OpenedGap::New(columns)) = store.open_gap(&owner, &columns).await.unwrap() else { panic!() };
    assert_eq!((row().await.tables[0].state, columns.hold), (TableState::Ready, Hold::Nothing));
    let Some(OpenedGap::New(first)) = store.open_gap(&owner, &returned).await.unwrap() else { panic!() };
    assert_eq!(row().await.tables[0].state, TableState::Paused);
    let later = NewGap { from: Some(Lsn::new(0x18)), to: Some(Lsn::new(0x30)), ..returned };
    let Some(OpenedGap::Known(again)) = store.open_gap(&owner, &later).await.unwrap() else { panic!() };
    assert_eq!(again, Gap { to: Some(Lsn::new(0x30)), ..first.clone() });
    assert_eq!(row().await.gaps, [columns, again]);

    let (at, nothing) = (Lsn::new(0x40), PassedOver::default());
    assert_eq!(store.release_tables(&owner, at, &nothing).await.unwrap(), []);
    sqlx::query("update pgsluice.gap set settled_at = now(), settlement = 'accepted', settled_by = 'ann' where id = $1")
        .bind(first.id)
        .execute(&mut database.admin().await)
        .await
        .unwrap();
    let released = ReleasedTable { source: widgets(), passed_over: None };
    assert_eq!(store.release_tables(&owner, at, &nothing).await.unwrap(), [released]);
    let table = row().await.tables.remove(0);
    assert_eq!((table.state, table.synced_lsn), (TableState::Ready, Some(Lsn::new(0x40))));
    let settled = store.gap(first.id).await.unwrap().unwrap().settled.unwrap();
    assert_eq!(
        (settled.how, settled.by.as_deref(), settled.resumed),
        (Settlement::Accepted, Some("ann"), Some(Lsn::new(0x40)))
    );
    // It is another gap if the table leaves once more.
    let Some(OpenedGap::New(second)) = store.open_gap(&owner, &later).await.unwrap() else { panic!() };
    assert_ne!(second.id, first.id);

    store.open_gap(&owner, &gap_of(None, GapKind::SlotLost)).await.unwrap();
    assert_eq!((store.heal_gaps(&owner).await.unwrap(), row().await.gaps.len()), (1, 2));
    let events: Vec<String> = store
        .events(Some(NAME), 9)
        .await
        .unwrap()
        .into_iter()
        .rev()
        .filter(|event| event.kind == EventKind::Gap.as_str())
        .map(|event| event.message)
        .collect();
    insta::assert_snapshot!(events.join("\n"), @r"
    public.widgets may differ: the column list of its publications has changed
    public.widgets may lack changes: it left the publications and came back
    public.widgets may lack changes: it left the publications and came back
    my_subscription may lack changes: the publisher has invalidated its replication slot
    gap 5 has gone: the stream goes on from where the target is
    ");
}

fn wish() -> ResyncWish<'static> {
    static TABLES: LazyLock<[QualifiedName; 1]> = LazyLock::new(|| [widgets()]);
    ResyncWish { tables: &*TABLES, left: &[], how: Resync::Merge, by: "late" }
}

/// What was passed over of a held table is another gap, as far as its gap was accepted before.
#[tokio::test]
async fn what_was_passed_over_after_a_gap_was_accepted_is_another_gap() {
    let seen = |known_from: u64, latest: Option<u64>| PassedOver {
        known_from: Some(Lsn::new(known_from)),
        latest: latest.map(|lsn| (widgets(), Lsn::new(lsn))).into_iter().collect(),
    };
    for (passed, expected) in [
        (PassedOver::default(), Some((0x30, 0x40))),
        (seen(0x10, None), None),
        (seen(0x10, Some(0x30)), None),
        (seen(0x10, Some(0x38)), Some((0x30, 0x38))),
        (seen(0x10, Some(0x48)), Some((0x30, 0x40))),
        (seen(0x34, None), Some((0x30, 0x34))),
    ] {
        let database = Database::create().await;
        let store = database.with_subscription().await;
        let owner = owned(&store).await;
        let ready = NewTables::Ready { synced_lsn: Lsn::new(7) };
        let tables = [table(&widgets(), &widgets())];
        store.record_members(&owner, &members(&tables, ready)).await.unwrap();
        let gap = gap_of(Some(widgets()), GapKind::Returned);
        let Some(OpenedGap::New(gap)) = store.open_gap(&owner, &gap).await.unwrap() else { panic!() };
        let command = store.submit(NAME, Verb::Accept, &json!({}), "ann").await.unwrap();
        store.take_commands(&owner).await.unwrap();
        let up_to = Some(Lsn::new(0x30));
        store.accept_gap(&owner, command, gap.id, up_to, "ann").await.unwrap();
        let released = store.release_tables(&owner, Lsn::new(0x40), &passed).await.unwrap();
        let expected = expected.map(|(from, to)| (Lsn::new(from), Lsn::new(to)));
        assert_eq!(released, [ReleasedTable { source: widgets(), passed_over: expected }], "{passed:?}");
        let row = store.subscription(NAME).await.unwrap().unwrap();
        let open: Vec<_> = row.gaps.iter().map(|gap| (gap.kind, gap.hold, gap.from.zip(gap.to))).collect();
        let expected = expected.map(|range| (GapKind::PassedOver, Hold::Nothing, Some(range)));
        assert_eq!(open, expected.into_iter().collect::<Vec<_>>(), "{passed:?}");
        assert_eq!(row.tables[0].state, TableState::Ready);
    }
}

/// What was not shown is not accepted.
#[tokio::test]
async fn a_gap_that_has_grown_since_it_was_shown_is_not_accepted() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let owner = owned(&store).await;
    let tables = [table(&widgets(), &widgets())];
    let ready = NewTables::Ready { synced_lsn: Lsn::new(7) };
    store.record_members(&owner, &members(&tables, ready)).await.unwrap();
    let operations = |from: u64, to: u64| NewGap {
        from: Some(Lsn::new(from)),
        to: Some(Lsn::new(to)),
        ..gap_of(Some(widgets()), GapKind::Operations)
    };
    let Some(OpenedGap::New(gap)) = store.open_gap(&owner, &operations(0x20, 0x30)).await.unwrap() else {
        panic!()
    };
    store.open_gap(&owner, &operations(0x10, 0x40)).await.unwrap();
    let range = |gap: &Gap| (gap.from, gap.to);
    let grown = store.subscription(NAME).await.unwrap().unwrap().gaps;
    assert_eq!(
        range(&grown[0]),
        (Some(Lsn::new(0x10)), Some(Lsn::new(0x40))),
        "it begins and ends where both do"
    );
    let command = store.submit(NAME, Verb::Accept, &json!({}), "ann").await.unwrap();
    store.take_commands(&owner).await.unwrap();
    let refused = store.accept_gap(&owner, command, gap.id, Some(Lsn::new(0x30)), "ann").await.unwrap_err();
    assert!(refused.to_string().contains("further than it did when it was shown"), "{refused}");
    store.accept_gap(&owner, command, gap.id, Some(Lsn::new(0x40)), "ann").await.unwrap();
    assert_eq!(store.subscription(NAME).await.unwrap().unwrap().gaps, []);
}

/// A new table that is not to be copied begins with its gap.
#[tokio::test]
async fn a_new_table_may_be_held() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let owner = owned(&store).await;
    let gap = gap_of(Some(widgets()), GapKind::Occupied);
    let held = TableRecord { held: Some(gap), ..table(&widgets(), &widgets()) };
    let changes = store.record_members(&owner, &members(&[held], NewTables::Copy)).await.unwrap();
    assert_eq!(changes.held.iter().map(|gap| gap.kind).collect::<Vec<_>>(), [GapKind::Occupied]);
    let row = store.subscription(NAME).await.unwrap().unwrap();
    assert_eq!((row.tables[0].state, row.tables[0].synced_lsn), (TableState::Paused, None));
    assert!(row.gaps[0].holds_table(&widgets()));
}

#[tokio::test]
async fn the_status_document_is_the_contracts() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let mut apply = database.admin().await;
    sqlx::query("select pg_advisory_lock($1)")
        .bind(pgsluice::pg::lock_key(NAME))
        .execute(&mut apply)
        .await
        .unwrap();
    apply
        .execute("insert into pgsluice.progress values ('my_subscription', '0/16B3748', now(), 3)")
        .await
        .unwrap();
    let owner = claim(&store, "db-1/4711").await.unwrap();
    let tables = [table(&widgets(), &QualifiedName::new("reporting", "widget"))];
    store
        .record_members(&owner, &members(&tables, NewTables::Ready { synced_lsn: Lsn::new(7) }))
        .await
        .unwrap();
    let positions = Positions {
        received_lsn: Some(Lsn::new(0x16B_3750)),
        lag_bytes: Some(8),
        lag_seconds: Some(0.5),
        wal_status: Some("reserved".to_owned()),
        ..Positions::default()
    };
    reported(&store, &owner, &positions).await;
    store.set_state(&owner, &StateChange::new(State::Streaming)).await.unwrap();

    let mut document = StatusDocument::new(&store.subscriptions().await.unwrap(), [("new", State::Starting)]);
    assert!(!document.is_well());
    document.subscriptions[0].since = Some("2024-02-29T12:00:00Z".parse().unwrap());
    insta::assert_snapshot!(serde_json::to_string_pretty(&document).unwrap(), @r#"
    {
      "subscriptions": [
        {
          "name": "my_subscription",
          "state": "streaming",
          "reason": null,
          "detail": null,
          "hint": null,
          "received_lsn": "0/16B3750",
          "applied_lsn": "0/16B3748",
          "flushed_lsn": null,
          "publisher_lsn": null,
          "lag_bytes": 8,
          "lag_seconds": 0.5,
          "slot": {
            "wal_status": "reserved",
            "retained_bytes": null
          },
          "tables": [
            {
              "source": "public.widgets",
              "target": "reporting.widget",
              "state": "ready",
              "rows_copied": 0,
              "rows_estimated": null,
              "error": null,
              "exact_because": null,
              "resync": null,
              "gap_id": null
            }
          ],
          "gaps": [],
          "conflict_id": null,
          "since": "2024-02-29T12:00:00Z",
          "running": true,
          "instance": "db-1/4711",
          "skip_lsn": null,
          "warnings": []
        },
        {
          "name": "new",
          "state": "starting",
          "reason": "not_running",
          "detail": "no service has run it yet",
          "hint": "start it with \"pgsluice run\"",
          "received_lsn": null,
          "applied_lsn": null,
          "flushed_lsn": null,
          "publisher_lsn": null,
          "lag_bytes": null,
          "lag_seconds": null,
          "slot": {
            "wal_status": null,
            "retained_bytes": null
          },
          "tables": [],
          "gaps": [],
          "conflict_id": null,
          "since": null,
          "running": false,
          "instance": null,
          "skip_lsn": null,
          "warnings": []
        }
      ]
    }
    "#);

    sqlx::query("select pg_advisory_unlock_all()").execute(&mut apply).await.unwrap();
    let document = StatusDocument::new(&store.subscriptions().await.unwrap(), []);
    let status = &document.subscriptions[0];
    assert_eq!((status.state, status.reason.as_deref()), (State::Starting, Some("not_running")));
    assert_eq!((status.lag_bytes, status.running), (None, false));
    assert!(status.detail.as_ref().unwrap().ends_with("on db-1/4711"), "{:?}", status.detail);
}

/// The service runs the store's futures in tasks of their own: they must be `Send`.
/// An operation may be given up at any moment: a worker is dropped, or a time limit is reached. The session
/// that it had must not keep its transaction.
#[tokio::test]
async fn an_operation_that_is_given_up_leaves_no_transaction_behind() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let owner = owned(&store).await;
    let mut admin = database.admin().await;
    for step in 1..=150_u64 {
        let mut waits = step % 15;
        let mut operation = Box::pin(store.take_commands(&owner));
        std::future::poll_fn(|context| match operation.as_mut().poll(context) {
            Poll::Pending if waits > 0 => {
                waits -= 1;
                Poll::Pending
            }
            _ => Poll::Ready(()),
        })
        .await;
        drop(operation);
        // In a transaction that was left open this would succeed, and nobody would commit it.
        let received_lsn = Some(Lsn::new(step));
        let positions = Positions { received_lsn, ..Positions::default() };
        reported(&store, &owner, &positions).await;
        let recorded = "SELECT (received_lsn - '0/0')::int8 FROM pgsluice.subscription";
        let recorded: i64 = sqlx::query_scalar(recorded).fetch_one(&mut admin).await.unwrap();
        assert_eq!(u64::try_from(recorded).unwrap(), step, "it was given up after {} waits", step % 15);
    }
}

#[tokio::test]
async fn operations_can_be_spawned() {
    let database = Database::create().await;
    let store = database.with_subscription().await;
    let work = async move {
        store.require_schema().await?;
        let owner = claim(&store, "host/1").await?;
        store.set_state(&owner, &StateChange::new(State::Copying)).await?;
        store.report_positions(&[(&owner, &Positions::default())]).await?;
        store.record_members(&owner, &members(&[], NewTables::Copy)).await?;
        store.set_warnings(&owner, &[]).await?;
        let id = store.open_conflict(&owner, &report()).await?;
        store.resolve_conflict(&owner, id, Resolution::Retry, NAME).await?;
        store.resolve_applied(&owner, Lsn::new(1)).await?;
        store.arm_skip(NAME, Lsn::new(1)).await?;
        store.take_commands(&owner).await?;
        store.events(None, 1).await?;
        store.is_owned(NAME).await?;
        store.subscriptions().await
    };
    assert_eq!(bounded(tokio::spawn(work)).await.unwrap().unwrap().len(), 1);
}

async fn bounded<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work).await.unwrap()
}
