//! Tests of the texts, one case after the other.

use std::time::Duration;

use super::*;
use crate::net::error::{Step, step_of};

fn failed(step: Step, kind: ConnectErrorKind, purpose: Purpose) -> ConnectError {
    ConnectError {
        step,
        host: "db-master".to_owned(),
        port: 5432,
        kind: Box::new(kind),
        facts: Box::new(Facts {
            sslmode: "prefer",
            user: "sammy".to_owned(),
            dbname: "example".to_owned(),
            purpose,
            address: Some("10.0.0.2".parse().unwrap()),
            encryption: Encryption::None,
        }),
        others: Vec::new(),
    }
}

/// Returns the step and the text for a server's refusal.
fn refused(code: &str, message: &str, purpose: Purpose) -> String {
    let server = ServerError { code: code.to_owned(), message: message.to_owned(), ..ServerError::default() };
    let step = step_of(&server);
    let error = failed(step, ConnectErrorKind::Server(Box::new(server)), purpose);
    format!("[{step}] {}", error.diagnosis())
}

#[test]
fn pg_hba_hints_are_lines_to_paste() {
    insta::assert_snapshot!(refused(
        "28000",
        r#"no pg_hba.conf entry for host "10.0.0.7", user "sammy", database "example", no encryption"#,
        Purpose::Replication,
    ), @r#"
        [authentication] no pg_hba.conf entry for host "10.0.0.7", user "sammy", database "example", no encryption (SQLSTATE 28000)
          hint: add to the server's pg_hba.conf: host example sammy 10.0.0.7/32 scram-sha-256 -- then SELECT pg_reload_conf(); if the file has hostssl lines only, use sslmode=require instead (a line for the keyword replication does not do: logical replication goes by the database's name)
        "#);
    insta::assert_snapshot!(refused(
        "28000",
        r#"pg_hba.conf rejects connection for host "fe80::1%eth0", user "sammy", database "example", SSL off"#,
        Purpose::Sql,
    ), @r#"
        [authentication] pg_hba.conf rejects connection for host "fe80::1%eth0", user "sammy", database "example", SSL off (SQLSTATE 28000)
          hint: a reject line in the server's pg_hba.conf matches; above it, add: host example sammy fe80::1/128 scram-sha-256 -- then SELECT pg_reload_conf()
        "#);
    insta::assert_snapshot!(refused(
        "28000",
        r#"no pg_hba.conf entry for host "[local]", user "sammy", database "example", no encryption"#,
        Purpose::Sql,
    ), @r#"
        [authentication] no pg_hba.conf entry for host "[local]", user "sammy", database "example", no encryption (SQLSTATE 28000)
          hint: add to the server's pg_hba.conf: local example sammy scram-sha-256 -- then SELECT pg_reload_conf() (a line for the keyword replication does not do: logical replication goes by the database's name)
        "#);
    insta::assert_snapshot!(refused("28000", "kein pg_hba.conf-Eintrag", Purpose::Sql), @r"
        [authentication] kein pg_hba.conf-Eintrag (SQLSTATE 28000)
          hint: check the server's pg_hba.conf; the line that admits this session: host example sammy ADDRESS/32 scram-sha-256 (ADDRESS: this machine, as the server sees it)
        ");
}

#[test]
fn names_in_pg_hba_lines_are_quoted_where_they_would_be_keywords() {
    assert_eq!(hba_name("sammy-2"), "sammy-2");
    assert_eq!(hba_name("replication"), r#""replication""#);
    assert_eq!(hba_name("all"), r#""all""#);
    assert_eq!(hba_name("with space"), r#""with space""#);
    assert_eq!(hba_name("+group"), r#""+group""#);
}

#[test]
fn roles_and_privileges_are_told_apart() {
    insta::assert_snapshot!(refused("28000", r#"role "sammy" does not exist"#, Purpose::Replication), @r#"
        [authentication] role "sammy" does not exist (SQLSTATE 28000)
          hint: check user, or on the server: CREATE ROLE "sammy" LOGIN REPLICATION PASSWORD '…'
        "#);
    insta::assert_snapshot!(refused("28000", r#"role "sammy" is not permitted to log in"#, Purpose::Sql), @r#"
        [authentication] role "sammy" is not permitted to log in (SQLSTATE 28000)
          hint: on the server: ALTER ROLE "sammy" LOGIN
        "#);
    insta::assert_snapshot!(refused(
        "42501",
        "must be superuser or replication role to start walsender",
        Purpose::Replication,
    ), @r#"
        [replication] must be superuser or replication role to start walsender (SQLSTATE 42501)
          hint: on the publisher: ALTER ROLE "sammy" REPLICATION
        "#);
    insta::assert_snapshot!(refused("42501", "permission denied to start WAL sender", Purpose::Replication), @r#"
        [replication] permission denied to start WAL sender (SQLSTATE 42501)
          hint: on the publisher: ALTER ROLE "sammy" REPLICATION
        "#);
    insta::assert_snapshot!(refused(
        "42501",
        r#"permission denied for database "example""#,
        Purpose::Replication,
    ), @r#"
        [database] permission denied for database "example" (SQLSTATE 42501)
          hint: on the server: GRANT CONNECT ON DATABASE "example" TO "sammy"
        "#);
}

#[test]
fn full_and_starting_servers_say_so() {
    insta::assert_snapshot!(refused("53300", "sorry, too many clients already", Purpose::Sql), @r"
        [database] sorry, too many clients already (SQLSTATE 53300)
          hint: raise max_connections on that server (a restart), or close sessions; pgsluice tries again by itself
        ");
    insta::assert_snapshot!(refused(
        "53300",
        "number of requested standby connections exceeds max_wal_senders (currently 10)",
        Purpose::Replication,
    ), @r"
        [replication] number of requested standby connections exceeds max_wal_senders (currently 10) (SQLSTATE 53300)
          hint: raise max_wal_senders on the publisher (a restart), or end replication connections that are not needed
        ");
    insta::assert_snapshot!(refused("57P03", "the database system is starting up", Purpose::Sql), @r"
        [database] the database system is starting up (SQLSTATE 57P03)
          hint: nothing to do: pgsluice tries again until the server takes connections
        ");
}

#[test]
fn the_network_is_told_apart() {
    let say = |step, kind| failed(step, kind, Purpose::Sql).diagnosis().to_string();
    let io = |kind: io::ErrorKind| ConnectErrorKind::Connect(io::Error::from(kind));
    insta::assert_snapshot!(say(Step::Port, ConnectErrorKind::TimedOut(Duration::from_secs(5))), @r"
        db-master:5432 did not answer within 5 s: packets vanish on the way
          detail: address tried: 10.0.0.2
          hint: let the firewalls on the way (and the cloud's security groups) pass TCP port 5432, and check that both servers are on one (private) network
        ");
    insta::assert_snapshot!(say(Step::Tls, ConnectErrorKind::TimedOut(Duration::from_secs(5))), @r"
        db-master:5432 accepted the connection, but did not finish start-up within 5 s
          detail: it stopped answering at the step TLS; address tried: 10.0.0.2
          hint: check that PostgreSQL itself listens there and is not overloaded; raise connect_timeout if it is slow to answer
        ");
    insta::assert_snapshot!(say(Step::Name, ConnectErrorKind::TimedOut(Duration::from_secs(5))), @r#"
        the name server did not answer for "db-master" within 5 s
          hint: check this machine's or container's DNS, or set hostaddr= to spare the look-up
        "#);
    insta::assert_snapshot!(say(Step::Route, io(io::ErrorKind::NetworkUnreachable)), @r"
        there is no route to db-master:5432: the network is unreachable
          detail: address tried: 10.0.0.2; network unreachable
          hint: put both servers on one (private) network, or add the route
        ");
    insta::assert_snapshot!(say(Step::Route, io(io::ErrorKind::HostUnreachable)), @r"
        there is no route to db-master:5432: the host is unreachable
          detail: address tried: 10.0.0.2; host unreachable
          hint: check that the host is up, that both servers are on one (private) network, and that no firewall rejects the traffic
        ");
    insta::assert_snapshot!(say(Step::Port, io(io::ErrorKind::ConnectionRefused)), @r"
        db-master:5432 refused the connection: nothing listens on that address and port
          detail: address tried: 10.0.0.2; connection refused
          hint: on that server, check that PostgreSQL runs, that listen_addresses holds this address or '*' (a change needs a restart), and that port is 5432
        ");
}

#[test]
fn other_hosts_are_listed() {
    let mut error = failed(Step::Tls, ConnectErrorKind::TlsNotOffered, Purpose::Sql);
    error.others.push(one_line(&failed(Step::Port, ConnectErrorKind::Closed, Purpose::Sql)));
    insta::assert_snapshot!(error.diagnosis().to_string(), @r"
        db-master:5432 does not offer TLS, and sslmode asks for it
          detail: also tried: db-master:5432 (10.0.0.2): the server closed the connection during start-up
          hint: set ssl = on with a certificate on that server, or sslmode=prefer if the network is trusted
        ");
}
