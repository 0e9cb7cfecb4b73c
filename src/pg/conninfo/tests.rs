//! Tests of strings, files and defaults against libpq's behaviour.

use std::net::Ipv4Addr;
use std::path::Path;

use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;

type Env<'a> = &'a [(&'a str, &'a str)];

fn parse_with(text: &str, env: Env<'_>, files: &DefaultFiles) -> Result<Parsed, ConnInfoErrors> {
    let env = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    parse(text, &Defaults { env: &env, os_user: Some("osuser"), files })
}

fn parsed(text: &str, env: Env<'_>) -> Parsed {
    parse_with(text, env, &DefaultFiles::default()).unwrap_or_else(|errors| panic!("{text}: {errors}"))
}

fn conninfo(text: &str) -> ConnInfo {
    parsed(text, &[]).conninfo
}

fn errors(text: &str) -> String {
    errors_with(text, &[])
}

fn errors_with(text: &str, env: Env<'_>) -> String {
    parse_with(text, env, &DefaultFiles::default()).expect_err(text).to_string()
}

fn password(conninfo: &ConnInfo) -> Option<&str> {
    conninfo.password.as_ref().map(Secret::expose)
}

fn tcp(name: &str, port: u16) -> Host {
    Host { address: HostAddress::Tcp { name: name.to_owned(), hostaddr: None }, port, password: None }
}

#[test]
fn keyword_value_strings_read_as_libpq_reads_them() {
    let check = |text: &str, expected: &str| assert_eq!(conninfo(text).redacted().to_string(), expected);
    check(
        "host=db-master port=5432 user=sammy dbname=example",
        "host=db-master port=5432 user=sammy dbname=example sslmode=prefer",
    );
    check("", "host=localhost port=5432 user=osuser dbname=osuser sslmode=prefer");
    check(
        "  host = db\n\tport\u{b}=\t'6000'user=sammy ",
        "host=db port=6000 user=sammy dbname=sammy sslmode=prefer",
    );
    check("host=a host=b port=", "host=b port=5432 user=osuser dbname=osuser sslmode=prefer");
    check(
        r"dbname='it\'s a \\ name' user=a\ b\'c",
        r"host=localhost port=5432 user='a b\'c' dbname='it\'s a \\ name' sslmode=prefer",
    );
    check("requiressl=1", "host=localhost port=5432 user=osuser dbname=osuser sslmode=require");
    check(
        "gssencmode=prefer sslsni=1 service='' load_balance_hosts=disable",
        &conninfo("").redacted().to_string(),
    );
    let spaced = conninfo(r"password='p w' passfile=/none");
    assert_eq!(password(&spaced), Some("p w"));
    assert_eq!(password(&conninfo("password='' user=x")), None);
    assert_eq!(password(&conninfo(r"password=tr\\ailing\")), Some(r"tr\ailing"));
}

#[test]
fn uris_read_as_libpq_reads_them() {
    let check =
        |text: &str, expected: &str| assert_eq!(conninfo(text).redacted().to_string(), expected, "{text}");
    check("postgresql://", "host=localhost port=5432 user=osuser dbname=osuser sslmode=prefer");
    check("postgres://db/example\n", "host=db port=5432 user=osuser dbname=example sslmode=prefer");
    check("postgresql://sammy@db:6000", "host=db port=6000 user=sammy dbname=sammy sslmode=prefer");
    check(
        "postgresql://u%20ser:s%40cret@[2001:db8::1]:6000/d%2Fb?sslmode=require&application_name=a%26b",
        "host=2001:db8::1 port=6000 user='u ser' dbname=d/b sslmode=require",
    );
    check(
        "postgresql://sammy@a:1,[::1],c:3/example?ssl=true",
        "host=a,::1,c port=1,5432,3 user=sammy dbname=example sslmode=require",
    );
    check(
        "postgresql://%2Frun%2Fsocks:6000/example",
        "host=/run/socks port=6000 user=osuser dbname=example sslmode=prefer",
    );
    check(
        "postgresql:///example?host=/run/socks&port=6000&user=me@home",
        "host=/run/socks port=6000 user=me@home dbname=example sslmode=prefer",
    );
    check("postgresql://?dbname=x&", "host=localhost port=5432 user=osuser dbname=x sslmode=prefer");
    let full = conninfo("postgresql://sammy:s%40c%3Aret:x@db?application_name=a%26b&options=-c%20geqo%3Doff");
    assert_eq!(password(&full), Some("s@c:ret:x"));
    assert_eq!(full.application_name.as_deref(), Some("a&b"));
    assert_eq!(full.options.as_deref(), Some("-c geqo=off"));
}

#[test]
fn several_hosts_pair_up_with_ports_and_addresses() {
    assert_eq!(conninfo("host=a,b port=6000").hosts, [tcp("a", 6000), tcp("b", 6000)]);
    assert_eq!(conninfo("host=a,b port=6000,").hosts, [tcp("a", 6000), tcp("b", 5432)]);
    assert_eq!(conninfo("host=,b port=1,2").hosts, [tcp("localhost", 1), tcp("b", 2)]);
    let pinned = conninfo("host=a,/run/x,/run/y hostaddr=10.0.0.1,10.0.0.2,");
    let address = |last| Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)));
    assert_eq!(pinned.hosts[0].address, HostAddress::Tcp { name: "a".to_owned(), hostaddr: address(1) });
    assert_eq!(pinned.hosts[1].address, HostAddress::Tcp { name: "/run/x".to_owned(), hostaddr: address(2) });
    assert_eq!(pinned.hosts[2].address, HostAddress::Unix("/run/y".into()));
    assert_snapshot!(
        pinned.redacted(),
        @"host=a,/run/x,/run/y hostaddr=10.0.0.1,10.0.0.2, port=5432,5432,5432 user=osuser dbname=osuser sslmode=prefer"
    );
    assert_snapshot!(
        conninfo("hostaddr=::1").redacted(),
        @"host=::1 port=5432 user=osuser dbname=osuser sslmode=prefer"
    );
}

#[test]
fn the_environment_fills_in_what_the_string_leaves_out() {
    let env = [
        ("PGHOST", "env-host"),
        ("PGPORT", "6000"),
        ("PGUSER", "env-user"),
        ("PGPASSWORD", "env-secret"),
        ("PGDATABASE", "env-db"),
        ("PGSSLMODE", "require"),
        ("PGAPPNAME", "env-app"),
        ("PGOPTIONS", "-c geqo=off"),
        ("PGCONNECT_TIMEOUT", "3"),
        ("PGCHANNELBINDING", "require"),
        ("PGCLIENTENCODING", "LATIN1"),
        ("PGREQUIRESSL", "0"),
    ];
    let from_env = parsed("", &env).conninfo;
    assert_snapshot!(from_env.redacted(), @"host=env-host port=6000 user=env-user dbname=env-db sslmode=require");
    assert_eq!(password(&from_env), Some("env-secret"));
    assert_eq!(from_env.application_name.as_deref(), Some("env-app"));
    assert_eq!(from_env.options.as_deref(), Some("-c geqo=off"));
    assert_eq!(from_env.connect_timeout, Duration::from_secs(3));
    assert_eq!(from_env.tls.channel_binding, ChannelBinding::Require);
    let overridden =
        parsed("postgresql://sammy:mine@db:1/example?sslmode=disable&channel_binding=disable", &env);
    assert_snapshot!(
        overridden.conninfo.redacted(),
        @"host=db port=1 user=sammy dbname=example sslmode=disable"
    );
    assert_eq!(password(&overridden.conninfo), Some("mine"));
    assert_eq!(parsed("", &[("PGREQUIRESSL", "1")]).conninfo.tls.mode, SslMode::Require);
    assert_snapshot!(errors_with("", &[("PGPORT", "x"), ("PGSERVICE", "s"), ("PGSSLMODE", "on"), ("PGGSSENCMODE", "require")]), @r"
    this value of gssencmode (from the environment variable PGGSSENCMODE) is not supported
      hint: unset PGGSSENCMODE, or use disable or prefer
    service (from the environment variable PGSERVICE) is not supported
      hint: unset PGSERVICE
    port (from the environment variable PGPORT) is not a number from 1 to 65535
    sslmode (from the environment variable PGSSLMODE) must be disable, allow, prefer, require, verify-ca or verify-full
    ");
}

#[test]
fn tls_settings_follow_libpq() {
    let tls = |text: &str| conninfo(text).tls;
    assert_eq!(
        tls(""),
        TlsSettings {
            mode: SslMode::Prefer,
            negotiation: SslNegotiation::Postgres,
            root_cert: RootCert::None,
            client_cert: None,
            channel_binding: ChannelBinding::Prefer,
            passwords: Passwords::OverAnyConnection,
        }
    );
    let system = tls("sslrootcert=system sslnegotiation=direct");
    assert_eq!((system.mode, system.root_cert), (SslMode::VerifyFull, RootCert::System));
    assert_eq!(system.negotiation, SslNegotiation::Direct);
    assert_eq!(tls("sslmode=require sslrootcert=ca.pem").mode, SslMode::VerifyCa);
    assert_eq!(tls("sslmode=prefer sslrootcert=ca.pem").mode, SslMode::Prefer);
    let files = DefaultFiles {
        passfile: Some("/home/s/.pgpass".into()),
        root_cert: Some("/home/s/.postgresql/root.crt".into()),
        client_cert: Some((
            "/home/s/.postgresql/postgresql.crt".into(),
            "/home/s/.postgresql/postgresql.key".into(),
        )),
    };
    let from_home = parse_with("sslmode=verify-full", &[], &files).unwrap();
    assert_eq!(from_home.conninfo.tls.root_cert, RootCert::File("/home/s/.postgresql/root.crt".into()));
    assert_eq!(from_home.conninfo.tls.client_cert, files.client_cert);
    let given = parse_with("sslcert=a.crt sslkey=a.key sslrootcert=system", &[], &files).unwrap();
    assert_eq!(given.conninfo.tls.client_cert, Some(("a.crt".into(), "a.key".into())));
    assert_eq!(given.conninfo.tls.root_cert, RootCert::System);
}

#[test]
fn times_are_bounded() {
    let timeout = |text: &str| conninfo(text).connect_timeout.as_secs();
    assert_eq!(timeout(""), 10);
    assert_eq!(timeout("connect_timeout=0"), 10);
    assert_eq!(timeout("connect_timeout=-1"), 10);
    assert_eq!(timeout("connect_timeout=1"), 2);
    assert_eq!(timeout("connect_timeout=' 30 '"), 30);
    assert_eq!(conninfo("").keepalives, Some(Keepalives::default()));
    assert_eq!(conninfo("keepalives=0 keepalives_idle=5").keepalives, None);
    let full = conninfo(
        "keepalives=1 keepalives_idle=30 keepalives_interval=5 keepalives_count=3 tcp_user_timeout=1500",
    );
    assert_eq!(
        full.keepalives,
        Some(Keepalives {
            idle: Some(Duration::from_secs(30)),
            interval: Some(Duration::from_secs(5)),
            count: Some(3)
        })
    );
    assert_eq!(full.tcp_user_timeout, Some(Duration::from_millis(1500)));
    assert_eq!(conninfo("tcp_user_timeout=0").tcp_user_timeout, None);
    assert_eq!(
        conninfo("target_session_attrs=read-write").target_session_attrs,
        TargetSessionAttrs::ReadWrite
    );
}

#[test]
fn every_problem_of_a_string_is_reported() {
    assert_snapshot!(errors(
        "host=a,b hostaddr=nowhere port=1,2,99999 sslmode=requird sslnegotiation=direct sslcert=x \
         connect_timeout=soon keepalives_count=-1 target_session_attrs=standby client_encoding=UTF8 \
         krbsrvname=x require_auth=scram-sha-256 hots=x whatever=1"
    ), @r#"
    "hots" is not a connection parameter
      hint: did you mean "host"?
    the word at character 228 is not a connection parameter
      hint: docs/configuration.md lists the parameters, which are libpq's
    client_encoding is not supported
      detail: pgsluice takes the target's encoding on both sides
    krbsrvname is not supported
      detail: GSSAPI is not supported
    require_auth is not supported
      hint: leave it out
    host has 2 entries, but hostaddr has 1
    port has 3 entries, but the number of hosts is 1
      hint: give one port for all hosts, or one for each
    hostaddr is not an IP address
      hint: a name belongs into host
    sslmode must be disable, allow, prefer, require, verify-ca or verify-full
      hint: did you mean "require"?
    sslcert is given without sslkey
      hint: give a client certificate and its key together, or neither
    connect_timeout is not a whole number
    keepalives_count is negative
    this value of target_session_attrs is not supported
      hint: leave it out, or use any, read-write or primary
    "#);
}

#[test]
fn contradictions_about_tls_are_refused() {
    assert_snapshot!(errors("sslmode=verify-full"), @r#"
    sslmode=verify-full needs a root certificate to verify against
      detail: sslrootcert is not given, and there is no ~/.postgresql/root.crt
      hint: set sslrootcert to a PEM file, or to "system" for the operating system's trust store
    "#);
    assert_snapshot!(errors("sslmode=require sslrootcert=system"), @r"
    sslmode=require is too weak for sslrootcert=system
      detail: anybody can obtain a certificate that the system's trust store accepts
      hint: use sslmode=verify-full, or leave sslmode out
    ");
    assert_snapshot!(errors("sslmode=disable channel_binding=require sslkey=k"), @r"
    sslkey is given without sslcert
      hint: give a client certificate and its key together, or neither
    channel_binding=require needs TLS, but sslmode is disable
      hint: use sslmode=require, verify-ca or verify-full
    ");
}

#[test]
fn what_cannot_be_read_is_located_but_never_repeated() {
    assert_snapshot!(errors("host db user=x 'q' dbname='open"), @r#"
    the word at character 1 is not followed by "="
      hint: write keyword=value, separated by spaces; a value with spaces stands in single quotes
    the word at character 16 is not followed by "="
      hint: write keyword=value, separated by spaces; a value with spaces stands in single quotes
    the single quote at character 27 is not closed
      hint: write a quote within a value as \' and a backslash as \\
    "#);
    assert_snapshot!(errors("user=x password=hunter2 tail host=db"), @r#"
    the word at character 25 is not followed by "="
      hint: a password with spaces stands in single quotes: password='…'
    "#);
    assert_snapshot!(errors("user=x password=hunter2 ports=tail"), @r"
    the word at character 25 is not a connection parameter
      hint: a password with spaces stands in single quotes: password='…'
    ");
    assert_snapshot!(errors("postgresql://u:hunter2/tail@db:6000/x"), @r#"
    port is not a number from 1 to 65535
      hint: in a URI, write ":", "/" and "@" within a password as %3A, %2F and %40
    "#);
    assert_snapshot!(errors("postgresql://u:hunter2@tail@db/x"), @r#"
    host holds an "@"
      hint: in a URI, write "@" within a user name or password as %40 and "/" as %2F
    "#);
    assert_snapshot!(errors("postgresql://u:hunter2%zz@db/x%00?options=%ff&sslmode&a=b=c&hunter2=1&prot=1"), @r#"
    password holds a "%" without two hexadecimal digits after it
      hint: percent-encode UTF-8 bytes with two hexadecimal digits each, and "%" itself as %25
    dbname holds %00, which no parameter may contain
      hint: percent-encode UTF-8 bytes with two hexadecimal digits each, and "%" itself as %25
    options is not UTF-8 once decoded
      hint: percent-encode UTF-8 bytes with two hexadecimal digits each, and "%" itself as %25
    a parameter after "?" has no "="
      hint: write ?keyword=value&keyword=value
    a parameter after "?" has more than one "="
      hint: write "=" within a value as %3D and "&" as %26
    the word after "?" is not a connection parameter
      hint: docs/configuration.md lists the parameters, which are libpq's
    "prot" is not a connection parameter
      hint: did you mean "port"?
    "#);
    assert_snapshot!(errors("postgresql://db/x?&host=y"), @r#"
    a parameter after "?" has no "="
      hint: write ?keyword=value&keyword=value
    "#);
    assert_snapshot!(errors("postgresql://[::1/x"), @r#"
    the "[" of an IPv6 address has no address and "]" after it
      hint: write it as [2001:db8::1]:5432
    "#);
    assert_snapshot!(errors("postgresql://[::1]5432/x"), @r#"
    something stands between the "]" of an IPv6 address and what follows it
      hint: after "]" comes ":", "/", "?", "," or the end
    "#);
    let nobody = parse(
        "host=@x options='a\0b'",
        &Defaults { env: &|_| None, os_user: None, files: &DefaultFiles::default() },
    );
    assert_snapshot!(nobody.unwrap_err(), @r#"
    options holds a NUL character
    user is missing, and the operating system has no name for this process's user
      hint: add user=… to the connection string, or set PGUSER
    sockets in the abstract namespace ("@") are not supported
      hint: give the directory of the server's Unix-domain socket, or a host name
    "#);
}

#[test]
fn a_password_never_shows() {
    let parsed = parsed("user=x password=hunter2 application_name=y", &[]);
    assert!(!format!("{parsed:?} {}", parsed.conninfo.redacted()).contains("hunter2"));
}

#[test]
fn the_password_file_is_consulted_only_without_a_password() {
    let files = DefaultFiles { passfile: Some("/home/s/.pgpass".into()), ..DefaultFiles::default() };
    let check = |text: &str, env: Env<'_>, expected: Option<Passfile>| {
        assert_eq!(parse_with(text, env, &files).unwrap().passfile, expected, "{text}");
    };
    check("", &[], Some(Passfile::Default("/home/s/.pgpass".into())));
    check("", &[("PGPASSFILE", "/env")], Some(Passfile::Given("/env".into())));
    check("passfile=/given", &[("PGPASSFILE", "/env")], Some(Passfile::Given("/given".into())));
    check("passfile=/given password=x", &[], None);
    check("", &[("PGPASSWORD", "x")], None);
    assert_eq!(Passfile::Given("/given".into()).path(), Path::new("/given"));
}

#[test]
fn password_file_entries_match_as_libpq_matches_them() {
    let find = |file: &str, conninfo_text: &str| {
        let conninfo = conninfo(conninfo_text);
        password_for(file, &conninfo.hosts[0], &conninfo.dbname, &conninfo.user)
            .map(|password| password.expose().to_owned())
    };
    let check = |file: &str, conninfo: &str, expected: Option<&str>| {
        assert_eq!(find(file, conninfo).as_deref(), expected, "{file}");
    };
    let db = "host=db user=sammy dbname=example";
    check("db:5432:example:sammy:secret", db, Some("secret"));
    check("# db:5432:example:sammy:no\r\n*:*:*:*:any\r\n", db, Some("any"));
    check("db:5433:*:*:no\nother:*:*:*:no\ndb:*:*:sammy:first\n*:*:*:*:second", db, Some("first"));
    check(r"db:5432:example:sammy:a\:b\\c:ignored", db, Some(r"a:b\c"));
    check("db:5432:example:sammy", db, None);
    check("db:5432:example:sammy:", db, None);
    check("*db:*:*:*:no", db, None);
    check(r"\*:*:*:*:no", db, None);
    check("db:5432:replication:sammy:no", db, None);
    check("db:5432:replication:sammy:yes", "host=db user=sammy dbname=replication", Some("yes"));
    check(r"\:\:1:5432:a\\b:*:six", r"host=::1 dbname=a\\b", Some("six"));
    check("localhost:*:*:*:socket", "host=/var/run/postgresql/", Some("socket"));
    check("localhost:*:*:*:default", "", Some("default"));
    check("/srv/sock:*:*:*:path", "host=/srv/sock", Some("path"));
    check("localhost:*:*:*:no", "host=/srv/sock", None);
    check("10.0.0.1:*:*:*:address", "hostaddr=10.0.0.1", Some("address"));
    check("db:*:*:*:name", "host=db hostaddr=10.0.0.1", Some("name"));
}

#[test]
fn each_host_may_have_its_own_password() {
    let take = |file: &str| {
        let mut conninfo = conninfo("host=a,b user=sammy");
        conninfo.take_passwords(file);
        let of =
            |i: usize| conninfo.password_for(&conninfo.hosts[i]).map(|secret| secret.expose().to_owned());
        (of(0), of(1), password(&conninfo).map(ToOwned::to_owned))
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(take("*:*:*:*:x"), (some("x"), some("x"), some("x")));
    assert_eq!(take("a:*:*:*:x\nb:*:*:*:y"), (some("x"), some("y"), None));
    assert_eq!(take("b:*:*:*:y"), (None, some("y"), None));
    assert_eq!(take(""), (None, None, None));
}

proptest! {
    #[test]
    fn quoting_reads_back_as_itself(user in "[^\0]+", dbname in "[^\0]+") {
        let text = format!("user={} dbname={}", quote_value(&user), quote_value(&dbname));
        let parsed = conninfo(&text);
        prop_assert_eq!((parsed.user, parsed.dbname), (user, dbname));
    }

    #[test]
    fn percent_encoding_reads_back_as_itself(user in "[^\0]+", secret in "[^\0]+", dbname in "[^\0]+") {
        let encode = |text: &str| text.bytes().flat_map(|byte| format!("%{byte:02x}").into_bytes()).map(char::from).collect::<String>();
        let text = format!("postgres://{}:{}@db/{}", encode(&user), encode(&secret), encode(&dbname));
        let parsed = conninfo(&text);
        prop_assert_eq!(password(&parsed), Some(secret.as_str()));
        prop_assert_eq!((parsed.user, parsed.dbname), (user, dbname));
    }

    #[test]
    fn no_string_makes_the_parser_panic(text in any::<String>()) {
        let _ = parse_with(&text, &[], &DefaultFiles::default());
        let _ = parse_with(&format!("postgresql://{text}"), &[], &DefaultFiles::default());
    }

    #[test]
    fn nothing_like_a_string_makes_the_parser_panic(text in r"(postgresql://)?[a-z:/@?&=%\[\],'\\ 0-9]{0,40}") {
        let _ = parse_with(&text, &[], &DefaultFiles::default());
    }

    /// No error repeats a secret, wherever it stands and however it should have been quoted or encoded.
    #[test]
    fn errors_never_repeat_the_secret(
        before in r"(user=u |host=h |port=x |postgres://u:|postgresql://h/\?|sslmod=y )?",
        key in "(password=|password='|passwrod=|)",
        mark in r"[ @/:?&=%',\\]?",
        after in r"[ @/:?&=%',\\]?(host=h|db/x|)",
    ) {
        let text = format!("{before}{key}{mark}QXZVKJ{after}");
        if let Err(errors) = parse_with(&text, &[], &DefaultFiles::default()) {
            prop_assert!(!errors.to_string().contains("QXZVKJ"), "{text:?} -> {errors}");
        }
    }

    #[test]
    fn no_password_file_makes_the_search_panic(file in any::<String>()) {
        let _ = password_for(&file, &tcp("db", 5432), "example", "sammy");
    }
}

#[test]
fn a_password_is_exposed_on_the_network_only() {
    let exposes = |text: &str| {
        let info = conninfo(text);
        info.exposes_password(&info.hosts[0])
    };
    for local in [
        "host=localhost password=x",
        "host=LocalHost. password=x",
        "host=127.0.0.2 password=x",
        "host=::1 password=x",
        "host=/run/postgresql password=x",
        "host=db hostaddr=127.0.0.1 password=x",
        "host=db",
    ] {
        assert!(!exposes(local), "{local}");
    }
    for remote in [
        "host=db password=x",
        "host=10.0.0.1 password=x",
        "host=0.0.0.0 password=x",
        "host=localhost hostaddr=10.0.0.1 password=x",
        "host=localhost.example password=x",
        "host=127.0.0.1.example password=x",
    ] {
        assert!(exposes(remote), "{remote}");
    }
    let mut several = conninfo("host=127.0.0.1,db");
    several.hosts[1].password = Some(Secret::new("x"));
    assert!(!several.requires_tls(&several.hosts[1]), "by default, no password requires TLS");
    several.tls.passwords = Passwords::OverTlsOnly;
    assert!(!several.requires_tls(&several.hosts[0]) && several.requires_tls(&several.hosts[1]));
}
