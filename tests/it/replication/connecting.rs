//! Every authentication method and kind of TLS, for SQL and replication connections, and the failures
//! that must be told apart.

use std::time::Duration;

use pgsluice::net::{ClientOptions, ConnectError, PgClient, Step, client, dial};
use pgsluice::pg::conninfo::{
    ChannelBinding, ConnInfo, Host, HostAddress, RootCert, SslMode, SslNegotiation, TargetSessionAttrs,
};
use pgsluice::replication::{ReplicationConnection, SessionOptions};
use tokio::net::TcpListener;

use super::cluster::{Cluster, info};
use super::pki::Pki;

const HBA: &str = "
host      all trusty    127.0.0.1/32 trust
host      all clear     127.0.0.1/32 password
host      all md5er     127.0.0.1/32 md5
host      all scrammer  127.0.0.1/32 scram-sha-256
host      all nologin   127.0.0.1/32 trust
host      all noreplica 127.0.0.1/32 trust
host      all absent    127.0.0.1/32 trust
host      all gss       127.0.0.1/32 trust
hostssl   all certy     127.0.0.1/32 cert
hostssl   all tlsonly   127.0.0.1/32 trust
hostnossl all plainonly 127.0.0.1/32 trust
host      all rejected  127.0.0.1/32 reject
";

const ROLES: &str = "
CREATE ROLE trusty LOGIN REPLICATION;
CREATE ROLE clear LOGIN REPLICATION PASSWORD 'secret';
CREATE ROLE scrammer LOGIN REPLICATION PASSWORD 'secret';
SET password_encryption = md5;
CREATE ROLE md5er LOGIN REPLICATION PASSWORD 'secret';
CREATE ROLE nologin NOLOGIN REPLICATION;
CREATE ROLE noreplica LOGIN;
CREATE ROLE certy LOGIN REPLICATION;
CREATE ROLE tlsonly LOGIN REPLICATION;
CREATE ROLE plainonly LOGIN REPLICATION;
CREATE ROLE rejected LOGIN REPLICATION;
CREATE ROLE nohba LOGIN REPLICATION;
CREATE DATABASE closed;
REVOKE CONNECT ON DATABASE closed FROM PUBLIC;
";

pub(super) async fn cluster(pki: &Pki) -> Cluster {
    let conf = "ssl = on\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.key'\nssl_ca_file = 'ca.pem'";
    let files =
        [("server.pem", &*pki.server_pem), ("server.key", &*pki.server_key_pem), ("ca.pem", &*pki.ca_pem)];
    let cluster = Cluster::start(conf, HBA, &files).await;
    let admin = cluster.admin().await;
    for statement in ROLES.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
        admin.batch_execute(statement).await.unwrap();
    }
    cluster
}

pub(super) fn session() -> SessionOptions {
    SessionOptions { application_name: "walk".to_owned(), client_encoding: "UTF8".to_owned() }
}

pub(super) async fn sql(info: &ConnInfo) -> Result<PgClient, ConnectError> {
    client(info, &ClientOptions::default()).await
}

pub(super) async fn replication(info: &ConnInfo) -> Result<ReplicationConnection, ConnectError> {
    ReplicationConnection::connect(info, &session()).await
}

/// Checks that both kinds of connection succeed, and whether they are encrypted.
pub(super) async fn admitted(info: &ConnInfo, encrypted: &str) {
    let question = "SELECT ssl::text FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()";
    let client = sql(info).await.unwrap_or_else(|e| panic!("{}", e.diagnosis()));
    let row = client.query_one(question, &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), encrypted, "sql, {}", info.user);
    let mut connection = replication(info).await.unwrap_or_else(|e| panic!("{}", e.diagnosis()));
    let rows = connection.simple_query(question).await.unwrap();
    assert_eq!(rows[0].text(0), Some(encrypted), "replication, {}", info.user);
    connection.close().await;
}

/// Checks that both kinds fail for the same reason, and returns step and diagnosis with a constant
/// port.
pub(super) async fn refused(info: &ConnInfo) -> String {
    let say = |error: &ConnectError| {
        let text = format!("[{}] {}", error.step, error.diagnosis());
        info.hosts.iter().fold(text, |text, host| text.replace(&host.port.to_string(), "PORT"))
    };
    let from_sql = say(&sql(info).await.expect_err("SQL is refused"));
    let from_replication = say(&replication(info).await.expect_err("replication is refused"));
    assert_eq!(from_sql, from_replication);
    from_sql
}

pub(super) fn tls(info: ConnInfo, mode: SslMode) -> ConnInfo {
    let tls = pgsluice::pg::conninfo::TlsSettings { mode, ..info.tls };
    ConnInfo { tls, ..info }
}

pub(super) fn verified(pki: &Pki, info: ConnInfo, mode: SslMode, name: &str) -> ConnInfo {
    let mut info = tls(info, mode);
    info.tls.root_cert = RootCert::File(pki.ca_file());
    info.hosts[0].address =
        HostAddress::Tcp { name: name.to_owned(), hostaddr: Some("127.0.0.1".parse().unwrap()) };
    info
}

#[tokio::test]
async fn every_authentication_method_lets_us_in() {
    let pki = Pki::new();
    let cluster = cluster(&pki).await;
    admitted(&cluster.admin_info(), "false").await;
    admitted(&cluster.info("trusty", None), "false").await;
    for role in ["clear", "md5er", "scrammer"] {
        admitted(&cluster.info(role, Some("secret")), "false").await;
        admitted(&tls(cluster.info(role, Some("secret")), SslMode::Require), "true").await;
    }
    let mut certified = tls(cluster.info("certy", None), SslMode::Require);
    certified.tls.client_cert = Some(pki.client("certy"));
    admitted(&certified, "true").await;
}

#[tokio::test]
async fn channel_binding_is_used_when_it_can_be_and_required_when_asked() {
    let pki = Pki::new();
    let cluster = cluster(&pki).await;
    let with = |mode, channel_binding, role: &str| {
        let mut info = tls(cluster.info(role, Some("secret")), mode);
        info.tls.channel_binding = channel_binding;
        info
    };
    admitted(&with(SslMode::Require, ChannelBinding::Require, "scrammer"), "true").await;
    admitted(&with(SslMode::Require, ChannelBinding::Disable, "scrammer"), "true").await;
    let expected = refused(&with(SslMode::Disable, ChannelBinding::Require, "scrammer")).await;
    insta::assert_snapshot!(expected, @r"
        [authentication] channel_binding=require, but 127.0.0.1:PORT did not use channel binding
          detail: channel binding needs TLS and SCRAM-SHA-256-PLUS on both sides
          hint: let pg_hba.conf use scram-sha-256 over TLS (hostssl), store the role's password as SCRAM, or set channel_binding=prefer
        ");
    for role in ["trusty", "md5er", "clear"] {
        assert_eq!(refused(&with(SslMode::Require, ChannelBinding::Require, role)).await, expected);
    }
}

#[tokio::test]
async fn certificates_are_verified_as_sslmode_says() {
    let pki = Pki::new();
    let cluster = cluster(&pki).await;
    let info = || cluster.info("trusty", None);
    admitted(&verified(&pki, info(), SslMode::VerifyFull, "localhost"), "true").await;
    admitted(&verified(&pki, info(), SslMode::VerifyCa, "other.example"), "true").await;
    insta::assert_snapshot!(
        refused(&verified(&pki, info(), SslMode::VerifyFull, "other.example")).await, @r#"
        [TLS] the certificate of other.example:PORT is not for the host name "other.example"
          detail: invalid peer certificate: certificate not valid for name "other.example"; certificate is only valid for DnsName("localhost")
          hint: use the host name that the certificate holds, reissue it, or set sslmode=verify-ca
        "#);

    let stranger = Pki::new();
    let foreign = refused(&verified(&stranger, info(), SslMode::VerifyFull, "localhost")).await;
    insta::assert_snapshot!(foreign, @r"
        [TLS] the certificate of localhost:PORT was not issued by a trusted authority
          detail: invalid peer certificate: BadSignature
          hint: name the issuer's certificate in sslrootcert
        ");
    let mut required = verified(&stranger, info(), SslMode::Require, "localhost");
    assert_eq!(refused(&required).await, foreign, "require with a root certificate verifies the chain");
    required.tls.root_cert = RootCert::None;
    admitted(&required, "true").await;

    // The server's own certificate is listed as trusted.
    let mut pinned = verified(&pki, info(), SslMode::VerifyFull, "localhost");
    pinned.tls.root_cert = RootCert::File(pki.write("pinned.pem", &pki.server_pem));
    admitted(&pinned, "true").await;

    let mut missing = verified(&pki, info(), SslMode::VerifyFull, "localhost");
    missing.tls.root_cert = RootCert::File("/nowhere/ca.pem".into());
    insta::assert_snapshot!(refused(&missing).await, @r"
        [TLS] the root certificate file /nowhere/ca.pem could not be read
          detail: I/O error: No such file or directory (os error 2)
          hint: check the path, the file's permissions, and that it is PEM; a key must not have a passphrase
        ");

    let mut wrong_client = tls(cluster.info("certy", None), SslMode::Require);
    wrong_client.tls.client_cert = Some(stranger.client("certy"));
    let error = sql(&wrong_client).await.err().unwrap();
    insta::assert_snapshot!(error.diagnosis().primary.replace(&cluster.port().to_string(), "PORT"), @"127.0.0.1:PORT rejected the TLS session");
}

#[tokio::test]
async fn allow_and_prefer_try_the_other_encryption() {
    let pki = Pki::new();
    let cluster = cluster(&pki).await;
    admitted(&tls(cluster.info("tlsonly", None), SslMode::Allow), "true").await;
    admitted(&tls(cluster.info("trusty", None), SslMode::Allow), "false").await;
    admitted(&tls(cluster.info("trusty", None), SslMode::Prefer), "true").await;
    admitted(&tls(cluster.info("plainonly", None), SslMode::Prefer), "false").await;
    insta::assert_snapshot!(refused(&tls(cluster.info("plainonly", None), SslMode::Require)).await, @r#"
        [authentication] no pg_hba.conf entry for host "127.0.0.1", user "plainonly", database "postgres", SSL encryption (SQLSTATE 28000)
          hint: add to the server's pg_hba.conf: hostssl postgres plainonly 127.0.0.1/32 scram-sha-256 -- then SELECT pg_reload_conf() (a line for the keyword replication does not do: logical replication goes by the database's name)
        "#);
    insta::assert_snapshot!(refused(&cluster.info("tlsonly", None)).await, @r#"
        [authentication] no pg_hba.conf entry for host "127.0.0.1", user "tlsonly", database "postgres", no encryption (SQLSTATE 28000)
          hint: add to the server's pg_hba.conf: host postgres tlsonly 127.0.0.1/32 scram-sha-256 -- then SELECT pg_reload_conf(); if the file has hostssl lines only, use sslmode=require instead (a line for the keyword replication does not do: logical replication goes by the database's name)
        "#);
}

#[tokio::test]
async fn direct_tls_and_tls_at_all_are_refused_clearly() {
    let cluster = Cluster::start("", "host all all 127.0.0.1/32 trust", &[]).await;
    let mut direct = tls(cluster.info("postgres", None), SslMode::Require);
    insta::assert_snapshot!(refused(&direct).await, @r"
        [TLS] 127.0.0.1:PORT does not offer TLS, and sslmode asks for it
          hint: set ssl = on with a certificate on that server, or sslmode=prefer if the network is trusted
        ");
    admitted(&tls(cluster.info("postgres", None), SslMode::Prefer), "false").await;
    direct.tls.negotiation = SslNegotiation::Direct;
    let error = sql(&direct).await.err().unwrap();
    assert_eq!(error.step, Step::Tls);
    insta::assert_snapshot!(error.diagnosis().primary.replace(&cluster.port().to_string(), "PORT"), @"127.0.0.1:PORT does not take TLS without negotiation");
    insta::assert_snapshot!(error.diagnosis().hint.unwrap(), @"sslnegotiation=direct needs PostgreSQL 17 or later with ssl = on; otherwise use sslnegotiation=postgres");
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let pki = Pki::new();
    let cluster = cluster(&pki).await;
    insta::assert_snapshot!(refused(&cluster.info("scrammer", Some("wrong"))).await, @r#"
        [authentication] password authentication failed for user "scrammer" (SQLSTATE 28P01)
          hint: check the password configured for role "scrammer"; on the server: ALTER ROLE "scrammer" PASSWORD '…'
        "#);
    insta::assert_snapshot!(refused(&cluster.info("md5er", Some("wrong"))).await, @r#"
        [authentication] password authentication failed for user "md5er" (SQLSTATE 28P01)
          hint: check the password configured for role "md5er"; on the server: ALTER ROLE "md5er" PASSWORD '…'
        "#);
    insta::assert_snapshot!(refused(&cluster.info("scrammer", None)).await, @r#"
        [authentication] 127.0.0.1:PORT asks for a password for role "scrammer", and none is configured
          hint: add password= or passfile= to the connection string, or a line to the file that PGPASSFILE names
        "#);
    insta::assert_snapshot!(refused(&cluster.info("nohba", None)).await, @r#"
        [authentication] no pg_hba.conf entry for host "127.0.0.1", user "nohba", database "postgres", no encryption (SQLSTATE 28000)
          hint: add to the server's pg_hba.conf: host postgres nohba 127.0.0.1/32 scram-sha-256 -- then SELECT pg_reload_conf(); if the file has hostssl lines only, use sslmode=require instead (a line for the keyword replication does not do: logical replication goes by the database's name)
        "#);
    insta::assert_snapshot!(refused(&cluster.info("rejected", None)).await, @r#"
        [authentication] pg_hba.conf rejects connection for host "127.0.0.1", user "rejected", database "postgres", no encryption (SQLSTATE 28000)
          hint: a reject line in the server's pg_hba.conf matches; above it, add: host postgres rejected 127.0.0.1/32 scram-sha-256 -- then SELECT pg_reload_conf()
        "#);
    insta::assert_snapshot!(refused(&cluster.info("nologin", None)).await, @r#"
        [authentication] role "nologin" is not permitted to log in (SQLSTATE 28000)
          hint: on the server: ALTER ROLE "nologin" LOGIN
        "#);
    insta::assert_snapshot!(refused(&tls(cluster.info("certy", None), SslMode::Require)).await, @r#"
        [authentication] connection requires a valid client certificate (SQLSTATE 28000)
          hint: set sslcert and sslkey to a certificate whose common name is the role "certy" (or mapped to it in pg_ident.conf)
        "#);
    let nowhere = ConnInfo { dbname: "nowhere".to_owned(), ..cluster.info("trusty", None) };
    insta::assert_snapshot!(refused(&nowhere).await, @r#"
        [database] database "nowhere" does not exist (SQLSTATE 3D000)
          hint: check dbname, or on that server: CREATE DATABASE "nowhere"
        "#);
    let closed = ConnInfo { dbname: "closed".to_owned(), ..cluster.info("trusty", None) };
    insta::assert_snapshot!(refused(&closed).await, @r#"
        [database] permission denied for database "closed" (SQLSTATE 42501)
          detail: User does not have CONNECT privilege.
          hint: on the server: GRANT CONNECT ON DATABASE "closed" TO "trusty"
        "#);
    let absent = replication(&cluster.info("absent", None)).await.err().unwrap();
    insta::assert_snapshot!(absent.diagnosis(), @r#"
        role "absent" does not exist (SQLSTATE 28000)
          hint: check user, or on the server: CREATE ROLE "absent" LOGIN REPLICATION PASSWORD '…'
        "#);
    let noreplica = replication(&cluster.info("noreplica", None)).await.err().unwrap();
    assert_eq!(noreplica.step, Step::Replication);
    insta::assert_snapshot!(noreplica.diagnosis(), @r#"
        must be superuser or replication role to start walsender (SQLSTATE 42501)
          hint: on the publisher: ALTER ROLE "noreplica" REPLICATION
        "#);
}

#[tokio::test]
async fn the_network_is_told_apart() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    insta::assert_snapshot!(refused(&info(port, "sammy", None)).await, @r"
        [port] 127.0.0.1:PORT refused the connection: nothing listens on that address and port
          detail: Connection refused (os error 111)
          hint: on that server, check that PostgreSQL runs, that listen_addresses holds this address or '*' (a change needs a restart), and that port is PORT
        ");

    let unresolved = |name: &str| {
        let mut info = info(5432, "sammy", None);
        info.hosts[0].address = HostAddress::Tcp { name: name.to_owned(), hostaddr: None };
        info
    };
    let error = sql(&unresolved("db-master.invalid")).await.err().unwrap();
    assert_eq!((error.step, error.is_transient()), (Step::Name, true));
    insta::assert_snapshot!(error.diagnosis().primary, @r#"the host name "db-master.invalid" could not be resolved"#);

    // A listener that accepts and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut mute = info(silent.local_addr().unwrap().port(), "sammy", None);
    mute.connect_timeout = Duration::from_millis(300);
    insta::assert_snapshot!(refused(&mute).await, @r"
        [authentication] 127.0.0.1:PORT accepted the connection, but did not finish start-up within 0.3 s
          detail: it stopped answering at the step authentication
          hint: check that PostgreSQL itself listens there and is not overloaded; raise connect_timeout if it is slow to answer
        ");
    insta::assert_snapshot!(refused(&tls(mute.clone(), SslMode::Require)).await, @r"
        [TLS] 127.0.0.1:PORT accepted the connection, but did not finish start-up within 0.3 s
          detail: it stopped answering at the step TLS
          hint: check that PostgreSQL itself listens there and is not overloaded; raise connect_timeout if it is slow to answer
        ");
    assert!(dial(&mute).await.is_ok(), "without TLS, dialling ends before start-up");
}

#[tokio::test]
async fn something_else_on_the_port_is_recognised() {
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = web.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut stream, _)) = web.accept().await {
            let mut request = [0u8; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = sql(&info(port, "sammy", None)).await.err().unwrap();
    insta::assert_snapshot!(error.diagnosis().primary.replace(&port.to_string(), "PORT"), @"127.0.0.1:PORT does not speak PostgreSQL's protocol");
    let error = replication(&info(port, "sammy", None)).await.err().unwrap();
    insta::assert_snapshot!(error.diagnosis().to_string().replace(&port.to_string(), "PORT"), @r"
        127.0.0.1:PORT does not speak PostgreSQL's protocol
          detail: a message of type H claims a length of 1414811695 bytes
          hint: check host and port: something else answers there
        ");
    let error = sql(&tls(info(port, "sammy", None), SslMode::Require)).await.err().unwrap();
    insta::assert_snapshot!(error.diagnosis().primary.replace(&port.to_string(), "PORT"), @"127.0.0.1:PORT answered a request for TLS with something else");
    server.abort();
}

#[tokio::test]
async fn hosts_are_tried_in_order_and_judged_by_what_they_are() {
    let cluster =
        Cluster::start("default_transaction_read_only = on", "host all all 127.0.0.1/32 trust", &[]).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead =
        Host { port: free.local_addr().unwrap().port(), ..cluster.info("postgres", None).hosts[0].clone() };
    drop(free);
    let mut both = cluster.info("postgres", None);
    both.hosts.insert(0, dead);
    admitted(&both, "false").await;
    both.target_session_attrs = TargetSessionAttrs::Primary;
    admitted(&both, "false").await;
    both.target_session_attrs = TargetSessionAttrs::ReadWrite;
    insta::assert_snapshot!(refused(&both).await, @r"
        [database] 127.0.0.1:PORT takes no writes, and target_session_attrs=read-write
          detail: also tried: 127.0.0.1:PORT (127.0.0.1): the connection could not be established: Connection refused (os error 111)
          hint: name the primary among the hosts, or wait until it is promoted
        ");
}

#[tokio::test]
async fn a_sql_session_is_set_up_and_tells_how_it_ended() {
    let cluster = Cluster::start("", "", &[]).await;
    let options = ClientOptions {
        application_name: Some("walk".to_owned()),
        settings: vec![
            ("work_mem".to_owned(), "4321kB".to_owned()),
            ("my.note".to_owned(), "it's\\".to_owned()),
        ],
        ..ClientOptions::default()
    };
    let info =
        ConnInfo { options: Some("-c standard_conforming_strings=off".to_owned()), ..cluster.admin_info() };
    let session = client(&info, &options).await.unwrap();
    assert_eq!(session.server_version_num() / 10_000, 15);
    assert_eq!(session.parameter("server_encoding"), Some("UTF8"));
    for (name, expected) in
        [("search_path", ""), ("work_mem", "4321kB"), ("my.note", "it's\\"), ("application_name", "walk")]
    {
        let row = session.query_one("SELECT pg_catalog.current_setting($1)", &[&name]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), expected, "{name}");
    }
    let error = session.query_one("SELECT 1/0", &[]).await.unwrap_err();
    assert_eq!(pgsluice::net::server_error(&error).unwrap().code, "22012");
    assert!(session.closed_error().is_none());

    let pid: i32 = session.query_one("SELECT pg_catalog.pg_backend_pid()", &[]).await.unwrap().get(0);
    let admin = cluster.admin().await;
    admin.query_one("SELECT pg_catalog.pg_terminate_backend($1)", &[&pid]).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), session.closed()).await.unwrap();
    assert_eq!(ended.server_error().unwrap().code, "57P01");
    assert!(session.closed_error().is_some());

    let unknown = ClientOptions { settings: vec![("no_such_setting".to_owned(), "1".to_owned())], ..options };
    let error = client(&info, &unknown).await.err().unwrap();
    insta::assert_snapshot!(error.server_error().unwrap(), @r#"ERROR: unrecognized configuration parameter "no_such_setting" (SQLSTATE 42704)"#);
    admin.close().await;
}
