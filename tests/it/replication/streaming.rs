//! Tests of slots, snapshots and the stream on a real publisher.

use std::time::{Duration, SystemTime};

use pgsluice::error::{Diagnosis, Disposition, PauseReason};
use pgsluice::pg::{Lsn, SlotName};
use pgsluice::replication::{
    Closing, CommandErrorKind, Fault, Feedback, Frame, Origin, ReplicationConnection, ReplicationStream,
    Reply, SessionOptions, SlotLifetime, SlotSnapshot, SlotSpec, StartOptions, StreamError, Streaming,
    WhenActive, micros_since_2000,
};
use tokio::time::{Instant, timeout};

use super::cluster::Cluster;

const PATIENCE: Duration = Duration::from_secs(20);

async fn connect(cluster: &Cluster) -> ReplicationConnection {
    let session =
        SessionOptions { application_name: "my_sub".to_owned(), client_encoding: "UTF8".to_owned() };
    ReplicationConnection::connect(&cluster.admin_info(), &session).await.unwrap()
}

async fn publisher(conf: &str) -> Cluster {
    let cluster = Cluster::start(conf, "", &[]).await;
    let admin = cluster.admin().await;
    admin.batch_execute("CREATE TABLE public.t (id int PRIMARY KEY, note text)").await.unwrap();
    admin.batch_execute(r#"CREATE PUBLICATION "p""'q" FOR TABLE public.t"#).await.unwrap();
    cluster
}

fn slot(name: &str, lifetime: SlotLifetime) -> SlotSpec {
    SlotSpec {
        name: name.parse().unwrap(),
        lifetime,
        snapshot: SlotSnapshot::Nothing,
        two_phase: false,
        failover: false,
    }
}

fn start(name: &str) -> StartOptions {
    StartOptions {
        slot: name.parse().unwrap(),
        start: Lsn::ZERO,
        proto_version: 1,
        publications: vec!["p\"'q".to_owned()],
        binary: false,
        streaming: Streaming::Off,
        two_phase: false,
        origin: Origin::Any,
        messages: false,
    }
}

fn feedback(lsn: Lsn, reply: Reply) -> Feedback {
    Feedback { write: lsn, flush: lsn, apply: lsn, clock_us: micros_since_2000(SystemTime::now()), reply }
}

/// Reads frames until `wanted` returns true, without answering any.
async fn read_until(stream: &mut ReplicationStream, wanted: impl Fn(&Frame) -> bool) -> Vec<Frame> {
    let deadline = Instant::now() + PATIENCE;
    let mut frames = Vec::new();
    while Instant::now() < deadline {
        frames.push(timeout(PATIENCE, stream.next()).await.unwrap().unwrap());
        while let Some(frame) = stream.try_next().unwrap() {
            frames.push(frame);
        }
        if frames.iter().any(&wanted) {
            return frames;
        }
    }
    panic!("not seen among {} frames", frames.len());
}

fn is_commit(frame: &Frame) -> bool {
    matches!(frame, Frame::XLogData { payload, .. } if payload.first() == Some(&b'C'))
}

#[tokio::test]
async fn a_session_identifies_its_server_and_reads_exact_values() {
    let cluster = publisher("").await;
    let admin = cluster.admin().await;
    admin.batch_execute("ALTER ROLE postgres SET datestyle = 'German'; ALTER ROLE postgres SET idle_session_timeout = '1h'").await.unwrap();
    let mut connection = connect(&cluster).await;
    let identity = connection.identify_system().await.unwrap();
    assert_eq!((identity.timeline, identity.dbname.as_deref()), (1, Some("postgres")));
    assert!(identity.system_id.parse::<u64>().is_ok());
    assert!(identity.xlog_position > Lsn::ZERO);
    assert_eq!(connection.server_version_num() / 10_000, 15);
    assert_eq!(connection.parameter("client_encoding"), Some("UTF8"));
    assert_eq!(connection.parameter("application_name"), Some("my_sub"));
    let rows = connection
        .simple_query("SELECT date '2024-03-01', 0.1::float8, interval '1 day -1 s', NULL, current_setting('idle_session_timeout')")
        .await
        .unwrap();
    let texts: Vec<_> = (0..5).map(|column| rows[0].text(column)).collect();
    assert_eq!(texts, [Some("2024-03-01"), Some("0.1"), Some("1 day -00:00:01"), None, Some("0")]);

    let error = connection.simple_query("SELECT 1/0").await.unwrap_err();
    assert!(matches!(&error.kind, CommandErrorKind::Server(e) if e.code == "22012"), "{error:?}");
    assert_eq!(
        connection.simple_query("SELECT 1").await.unwrap()[0].text(0),
        Some("1"),
        "usable after an error"
    );

    let dropped = timeout(Duration::from_millis(50), connection.simple_query("SELECT pg_sleep(1)")).await;
    assert!(dropped.is_err());
    let error = connection.simple_query("SELECT 1").await.unwrap_err();
    assert!(matches!(error.kind, CommandErrorKind::Abandoned));
}

#[tokio::test]
async fn a_slots_snapshot_shows_what_the_stream_will_not_send() {
    let cluster = publisher("").await;
    let mut admin = cluster.admin().await;
    admin.batch_execute("INSERT INTO public.t VALUES (1, 'before')").await.unwrap();
    let mut connection = connect(&cluster).await;
    let spec = SlotSpec { snapshot: SlotSnapshot::Export, ..slot("snap", SlotLifetime::Permanent) };
    let created = connection.create_slot(&spec).await.unwrap();
    assert_eq!(created.name, "snap");
    admin.batch_execute("INSERT INTO public.t VALUES (2, 'after')").await.unwrap();

    let transaction = admin.transaction().await.unwrap();
    transaction.batch_execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    let snapshot = created.snapshot.expect("exported");
    transaction.batch_execute(&format!("SET TRANSACTION SNAPSHOT '{snapshot}'")).await.unwrap();
    let rows = transaction.query("SELECT id FROM public.t", &[]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get::<_, i32>(0)).collect::<Vec<_>>(), [1]);
    transaction.rollback().await.unwrap();

    let again = connection.create_slot(&spec).await.unwrap_err();
    assert_eq!(again.fault(), Some(Fault::SlotExists));
    let mut stream =
        connection.start(&StartOptions { start: created.consistent_point, ..start("snap") }).await.unwrap();
    let frames = read_until(&mut stream, is_commit).await;
    let inserts: Vec<_> = frames
        .iter()
        .filter_map(|frame| match frame {
            Frame::XLogData { payload, .. } if payload.first() == Some(&b'I') => Some(payload),
            _ => None,
        })
        .collect();
    assert_eq!(inserts.len(), 1, "only the row after the snapshot");
    assert!(inserts[0].windows(5).any(|bytes| bytes == b"after"));
    assert_eq!(stream.close().await, Closing::Confirmed);

    let mut connection = connect(&cluster).await;
    let name: SlotName = "snap".parse().unwrap();
    connection.drop_slot(&name, WhenActive::Wait).await.unwrap();
    let error = connection.drop_slot(&name, WhenActive::Fail).await.unwrap_err();
    assert_eq!(
        (error.fault(), error.disposition()),
        (Some(Fault::SlotMissing), Disposition::Pause(PauseReason::SlotLost))
    );
}

#[tokio::test]
async fn feedback_moves_the_slot_and_a_requested_reply_comes_at_once() {
    let cluster = publisher("").await;
    let admin = cluster.admin().await;
    let mut connection = connect(&cluster).await;
    connection.create_slot(&slot("fed", SlotLifetime::Permanent)).await.unwrap();
    let mut stream = connection.start(&start("fed")).await.unwrap();
    admin
        .batch_execute("INSERT INTO public.t SELECT i, repeat('x', 300000) FROM generate_series(1, 5) i")
        .await
        .unwrap();
    let frames = read_until(&mut stream, is_commit).await;
    let Some(Frame::XLogData { wal_end, sent_at_us, payload, .. }) = frames.iter().find(|f| is_commit(f))
    else {
        panic!()
    };
    assert!((micros_since_2000(SystemTime::now()) - sent_at_us).abs() < 60_000_000);
    // pgoutput's Commit consists of type, flags, commit LSN, end LSN and time.
    let end = Lsn::new(u64::from_be_bytes(payload[10..18].try_into().unwrap()));
    assert!(end >= *wal_end);
    let large =
        frames.iter().filter(|f| matches!(f, Frame::XLogData { payload, .. } if payload.len() > 300_000));
    assert_eq!(large.count(), 5);

    stream.send_status(&feedback(end, Reply::Requested)).await.unwrap();
    read_until(&mut stream, |frame| matches!(frame, Frame::Keepalive { .. })).await;
    let row = admin
        .query_one(
            "SELECT s.confirmed_flush_lsn::text, r.application_name, r.flush_lsn::text
             FROM pg_catalog.pg_replication_slots s JOIN pg_catalog.pg_stat_replication r ON r.pid = s.active_pid",
            &[],
        )
        .await
        .unwrap();
    assert_eq!((row.get::<_, String>(0), row.get::<_, String>(1)), (end.to_string(), "my_sub".to_owned()));
    assert_eq!(row.get::<_, String>(2), end.to_string());

    let second = connect(&cluster).await.start(&start("fed")).await.unwrap_err();
    assert_eq!((second.fault(), second.disposition()), (Some(Fault::SlotInUse), Disposition::Retry));
    assert_eq!(stream.close().await, Closing::Confirmed);
}

#[tokio::test]
async fn only_status_updates_keep_the_publisher_from_hanging_up() {
    let cluster = publisher("wal_sender_timeout = 1s").await;
    let mut connection = connect(&cluster).await;
    connection.create_slot(&slot("kept", SlotLifetime::Permanent)).await.unwrap();
    let mut stream = connection.start(&start("kept")).await.unwrap();
    let until = Instant::now() + Duration::from_secs(3);
    let mut asked = 0;
    while Instant::now() < until {
        let frame = match timeout(Duration::from_millis(200), stream.next()).await {
            Ok(frame) => frame.unwrap(),
            Err(_) => continue,
        };
        if let Frame::Keepalive { wal_end, reply: Reply::Requested, .. } = frame {
            asked += 1;
            stream.send_status(&feedback(wal_end, Reply::NotNeeded)).await.unwrap();
        }
    }
    assert!(asked >= 2, "asked {asked} times");

    // The stream is now read without feedback.
    let ended = timeout(PATIENCE, async {
        loop {
            match stream.next().await {
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    });
    let error = ended.await.unwrap();
    assert!(matches!(error, StreamError::Closed(_) | StreamError::Io(_)), "{error:?}");
    assert_eq!(error.disposition(), Disposition::Retry);
}

#[tokio::test]
async fn the_streams_faults_are_told_apart() {
    let cluster = publisher("max_slot_wal_keep_size = 2MB\nmin_wal_size = 2MB\nmax_wal_size = 4MB").await;
    let admin = cluster.admin().await;
    let missing = connect(&cluster).await.start(&start("nothing")).await.unwrap_err();
    insta::assert_snapshot!(missing.diagnosis(), @r#"
        replication slot "nothing" does not exist (SQLSTATE 42704)
          hint: changes since the slot was dropped cannot be had any more: drop the subscription and create it again, or copy its tables again
        "#);
    assert_eq!(missing.disposition(), Disposition::Pause(PauseReason::SlotLost));

    let mut connection = connect(&cluster).await;
    connection.create_slot(&slot("temporary", SlotLifetime::Temporary)).await.unwrap();
    let unknown = StartOptions { publications: vec!["nowhere".to_owned()], ..start("temporary") };
    let mut stream = connection.start(&unknown).await.unwrap();
    admin.batch_execute("INSERT INTO public.t VALUES (1, 'x')").await.unwrap();
    let error = loop {
        match timeout(PATIENCE, stream.next()).await.unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    let told = error.diagnosis();
    // It ends with a position.
    assert!(told.detail.as_deref().unwrap_or_default().starts_with("context: slot \"temporary\""), "{told}");
    insta::assert_snapshot!(Diagnosis { detail: None, ..told }, @r#"
        publication "nowhere" does not exist (SQLSTATE 42704)
          hint: the publisher decodes each change with the publications of its moment, and this one did not exist then, even if it does now: compare publications in the configuration with SELECT pubname FROM pg_publication; if they are as they should be, drop the subscription and create it again
        "#);
    assert_eq!(error.disposition(), Disposition::Pause(PauseReason::PublisherError));
    drop(stream);

    connect(&cluster).await.create_slot(&slot("lost", SlotLifetime::Permanent)).await.unwrap();
    for id in 10..20 {
        admin
            .batch_execute(&format!(
                "INSERT INTO public.t VALUES ({id}, 'x'); SELECT pg_catalog.pg_switch_wal()"
            ))
            .await
            .unwrap();
    }
    admin.batch_execute("CHECKPOINT").await.unwrap();
    let lost = connect(&cluster).await.start(&start("lost")).await.unwrap_err();
    insta::assert_snapshot!(lost.diagnosis(), @r#"
        cannot read from logical replication slot "lost" (SQLSTATE 55000)
          detail: This slot has been invalidated because it exceeded the maximum reserved size.
          hint: the publisher has removed WAL that the slot stood for: drop the subscription and create it again; to prevent it, raise max_slot_wal_keep_size on the publisher
        "#);
    assert_eq!(lost.disposition(), Disposition::Pause(PauseReason::SlotLost));
}

#[tokio::test]
async fn a_terminated_walsender_is_a_server_error_with_all_its_fields() {
    let cluster = publisher("").await;
    let admin = cluster.admin().await;
    let mut connection = connect(&cluster).await;
    connection.create_slot(&slot("ended", SlotLifetime::Permanent)).await.unwrap();
    let mut stream = connection.start(&start("ended")).await.unwrap();
    admin
        .batch_execute("SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_replication")
        .await
        .unwrap();
    let error = loop {
        match timeout(PATIENCE, stream.next()).await.unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    let StreamError::Server(server) = &error else { panic!("{error:?}") };
    assert_eq!((server.severity.as_str(), server.code.as_str()), ("FATAL", "57P01"));
    assert_eq!(error.disposition(), Disposition::Retry);
}
