//! Which certificates of a server are trusted, and where a password is used, by both kinds of connection and by that for
//! the state.

use pgsluice::pg::conninfo::{ConnInfo, HostAddress, Passwords, SslMode};
use pgsluice::store::Store;

use super::cluster::Cluster;
use super::connecting::{self, admitted, cluster, tls, verified};
use super::pki::Pki;

/// A server whose certificate and key are these.
async fn serving(pki: &Pki, certificate: &str, key: &str) -> Cluster {
    let conf = "ssl = on\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.key'\nssl_ca_file = 'ca.pem'";
    let files = [("server.pem", certificate), ("server.key", key), ("ca.pem", &*pki.ca_pem)];
    Cluster::start(conf, "host all all 127.0.0.1/32 trust", &files).await
}

/// Checks that every kind of connection refuses, and returns what the two say that name the step.
async fn refused(info: &ConnInfo) -> String {
    let from_sql = connecting::refused(info).await;
    assert!(Store::connect(info).await.is_err(), "the connection for the state is refused: {from_sql}");
    from_sql
}

#[tokio::test]
async fn expired_certificates_are_refused() {
    let pki = Pki::new();
    let (certificate, key) = pki.server(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let cluster = serving(&pki, &certificate, &key).await;
    let info = || cluster.info("postgres", None);
    for mode in [SslMode::VerifyCa, SslMode::VerifyFull] {
        let told = refused(&verified(&pki, info(), mode, "localhost")).await;
        assert!(told.starts_with("[TLS] the certificate of localhost:PORT has expired"), "{told}");
        assert!(told.contains("renew the server's certificate, or check this machine's clock"), "{told}");
    }
    // A certificate that is itself trusted expires, too.
    let mut pinned = verified(&pki, info(), SslMode::VerifyFull, "localhost");
    pinned.tls.root_cert = pgsluice::pg::conninfo::RootCert::File(pki.write("pinned.pem", &certificate));
    let told = refused(&pinned).await;
    assert!(told.contains("has expired"), "{told}");
    admitted(&tls(info(), SslMode::Require), "true").await;
}

#[tokio::test]
async fn certificates_of_the_future_are_refused() {
    let pki = Pki::new();
    let (certificate, key) = pki.server(|params| params.not_before = rcgen::date_time_ymd(2200, 1, 1));
    let cluster = serving(&pki, &certificate, &key).await;
    let told =
        refused(&verified(&pki, cluster.info("postgres", None), SslMode::VerifyFull, "localhost")).await;
    assert!(told.starts_with("[TLS] the certificate of localhost:PORT"), "{told}");
    assert!(told.contains("not valid yet"), "{told}");
}

#[tokio::test]
async fn self_signed_certificates_are_trusted_only_by_name() {
    let pki = Pki::new();
    let (certificate, key) = Pki::self_signed();
    let cluster = serving(&pki, &certificate, &key).await;
    let info = || cluster.info("postgres", None);
    for mode in [SslMode::VerifyCa, SslMode::VerifyFull] {
        let told = refused(&verified(&pki, info(), mode, "localhost")).await;
        assert!(told.contains("was not issued by a trusted authority"), "{told}");
    }
    let mut pinned = verified(&pki, info(), SslMode::VerifyFull, "localhost");
    pinned.tls.root_cert = pgsluice::pg::conninfo::RootCert::File(pki.write("pinned.pem", &certificate));
    admitted(&pinned, "true").await;
    pinned.hosts[0].address =
        HostAddress::Tcp { name: "other.example".to_owned(), hostaddr: Some("127.0.0.1".parse().unwrap()) };
    let told = refused(&pinned).await;
    assert!(told.contains("is not for the host name \"other.example\""), "{told}");
}

/// 0.0.0.0 leads to this machine, but is not an address of it.
#[tokio::test]
async fn a_password_that_requires_tls_is_used_with_it_only() {
    let pki = Pki::new();
    let cluster = cluster(&pki).await;
    let with = |role: &str, mode, host: &str| {
        let mut info = tls(cluster.info(role, Some("secret")), mode);
        info.hosts[0].address = HostAddress::Tcp { name: host.to_owned(), hostaddr: None };
        info.tls.passwords = Passwords::OverTlsOnly;
        info
    };
    for role in ["clear", "md5er", "scrammer", "trusty"] {
        let told = refused(&with(role, SslMode::Disable, "0.0.0.0")).await;
        insta::allow_duplicates! {
            insta::assert_snapshot!(told, @r"
            [TLS] the connection to 0.0.0.0:PORT is not encrypted, and service.password_requires_tls is set
              detail: sslmode=disable, and the server does not offer TLS or was not asked for it; the password was not used
              hint: on that server, set ssl = on with a certificate, and use sslmode=verify-full
            ");
        }
        admitted(&with(role, SslMode::Allow, "0.0.0.0"), "true").await;
        admitted(&with(role, SslMode::Prefer, "0.0.0.0"), "true").await;
        admitted(&with(role, SslMode::Disable, "127.0.0.1"), "false").await;
    }
    let mut without = with("trusty", SslMode::Disable, "0.0.0.0");
    without.password = None;
    admitted(&without, "false").await;
    Store::connect(&with("clear", SslMode::Allow, "0.0.0.0")).await.unwrap().close().await;
    Store::connect(&with("clear", SslMode::Disable, "127.0.0.1")).await.unwrap().close().await;

    // A server without TLS is not used, whatever it would ask for.
    let plain = Cluster::start("", "host all all 127.0.0.1/32 trust", &[]).await;
    let mut info = tls(plain.info("postgres", Some("secret")), SslMode::Prefer);
    info.hosts[0].address = HostAddress::Tcp { name: "0.0.0.0".to_owned(), hostaddr: None };
    admitted(&info, "false").await;
    info.tls.passwords = Passwords::OverTlsOnly;
    let told = refused(&info).await;
    assert!(told.contains("service.password_requires_tls"), "{told}");
}
