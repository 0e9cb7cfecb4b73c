//! A server in between that has TLS of its own: what it learns, and what keeps it from it.

use std::io;
use std::sync::{Arc, Mutex};

use pgsluice::net::{ConnectError, Step};
use pgsluice::pg::conninfo::{ChannelBinding, ConnInfo, SslMode};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::cluster::{Cluster, info};
use super::connecting::{cluster, replication, sql, tls, verified};
use super::pki::Pki;

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// What it does besides passing everything on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trick {
    Nothing,
    /// It takes SCRAM-SHA-256-PLUS off the list of what the server offers.
    WithoutBinding,
    /// It asks for the password itself.
    AskInClearText,
}

struct Middle {
    port: u16,
    /// What clients have sent it.
    heard: Arc<Mutex<Vec<u8>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Middle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Middle {
    async fn start(server: &Cluster, pki: &Pki, trick: Trick) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (acceptor, connector) = (acceptor(), connector(pki));
        let (told, server_port) = (Arc::clone(&heard), server.port());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, connector, told) = (acceptor.clone(), connector.clone(), Arc::clone(&told));
                tokio::spawn(async move {
                    // Connections end with errors, as clients and server let go.
                    let _ = between(client, acceptor, connector, server_port, trick, &told).await;
                });
            }
        });
        Self { port, heard, task }
    }

    fn heard_password(&self) -> bool {
        let heard = self.heard.lock().unwrap();
        heard.windows(6).any(|part| part == b"secret")
    }

    fn info(&self, mode: SslMode, channel_binding: ChannelBinding) -> ConnInfo {
        let mut info = tls(info(self.port, "scrammer", Some("secret")), mode);
        info.tls.channel_binding = channel_binding;
        info
    }
}

/// It has a certificate for the server's name, which no trusted authority has signed.
fn acceptor() -> TlsAcceptor {
    let (certificate, key) = Pki::self_signed();
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

fn connector(pki: &Pki) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pki.ca_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

async fn between(
    mut client: TcpStream,
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    server_port: u16,
    trick: Trick,
    heard: &Mutex<Vec<u8>>,
) -> io::Result<()> {
    let mut request = [0; 8];
    client.read_exact(&mut request).await?;
    assert_eq!(request, SSL_REQUEST);
    client.write_all(b"S").await?;
    let mut client = acceptor.accept(client).await?;
    if trick == Trick::AskInClearText {
        let mut start_up = [0; 1024];
        let _ = client.read(&mut start_up).await?;
        client.write_all(&[b'R', 0, 0, 0, 8, 0, 0, 0, 3]).await?;
        client.flush().await?;
        return listen(client, tokio::io::sink(), heard).await;
    }
    let mut server = TcpStream::connect(("127.0.0.1", server_port)).await?;
    server.write_all(&SSL_REQUEST).await?;
    let mut answer = [0];
    server.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"S");
    let server = connector.connect(ServerName::try_from("localhost").unwrap(), server).await?;
    let ((from_client, mut to_client), (mut from_server, to_server)) =
        (tokio::io::split(client), tokio::io::split(server));
    let answers = async {
        if trick == Trick::WithoutBinding {
            without_binding(&mut from_server, &mut to_client).await?;
        }
        tokio::io::copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::try_join!(listen(from_client, to_server, heard), answers).map(drop)
}

/// Passes on what the client sends, and keeps it.
async fn listen(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    heard: &Mutex<Vec<u8>>,
) -> io::Result<()> {
    let mut part = [0; 4096];
    loop {
        match from.read(&mut part).await? {
            0 => return to.shutdown().await,
            bytes => {
                heard.lock().unwrap().extend_from_slice(&part[..bytes]);
                to.write_all(&part[..bytes]).await?;
                to.flush().await?;
            }
        }
    }
}

/// Passes on the server's first message, AuthenticationSASL, without the mechanism that binds the channel.
async fn without_binding(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut header = [0; 5];
    from.read_exact(&mut header).await?;
    assert_eq!(header[0], b'R');
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
    let mut body = vec![0; length as usize - 4];
    from.read_exact(&mut body).await?;
    assert_eq!(body, b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
    let body = b"\0\0\0\x0aSCRAM-SHA-256\0\0";
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    to.write_all(&[&[b'R'][..], &length, body].concat()).await?;
    to.flush().await
}

/// Checks that both kinds of connection fail, and returns their errors.
async fn refused(info: &ConnInfo) -> [ConnectError; 2] {
    let from_sql = sql(info).await.map(drop).expect_err("SQL is refused");
    let from_replication = replication(info).await.map(drop).expect_err("replication is refused");
    [from_sql, from_replication]
}

#[tokio::test]
async fn channel_binding_notices_a_server_in_between() {
    let pki = Pki::new();
    let cluster = cluster(&pki).await;
    for (trick, noticed) in [
        (Trick::Nothing, "channel binding check failed"),
        (Trick::WithoutBinding, "channel binding negotiation error"),
    ] {
        let middle = Middle::start(&cluster, &pki, trick).await;
        // The server itself notices, because the client says what it was offered and which certificate it saw.
        for error in refused(&middle.info(SslMode::Require, ChannelBinding::Prefer)).await {
            let told = error.diagnosis().to_string();
            assert!(told.contains(noticed), "{trick:?}: {told}");
        }
        for error in refused(&middle.info(SslMode::Require, ChannelBinding::Require)).await {
            assert_eq!(error.step, Step::Authentication, "{trick:?}: {error:?}");
        }
        assert!(!middle.heard_password(), "{trick:?}");
        // Without channel binding, nobody notices.
        if trick == Trick::Nothing {
            let unbound = middle.info(SslMode::Require, ChannelBinding::Disable);
            assert!(sql(&unbound).await.is_ok() && replication(&unbound).await.is_ok());
        }
    }
}

#[tokio::test]
async fn a_server_in_between_gets_the_password_only_if_nothing_is_verified() {
    let pki = Pki::new();
    let cluster = cluster(&pki).await;
    let middle = Middle::start(&cluster, &pki, Trick::AskInClearText).await;
    for error in refused(&middle.info(SslMode::Require, ChannelBinding::Require)).await {
        let told = error.diagnosis().to_string();
        assert!(told.contains("did not use channel binding"), "{told}");
    }
    for mode in [SslMode::VerifyCa, SslMode::VerifyFull] {
        let info = verified(&pki, middle.info(mode, ChannelBinding::Prefer), mode, "localhost");
        for error in refused(&info).await {
            assert_eq!(error.step, Step::Tls, "{error:?}");
        }
    }
    assert!(!middle.heard_password());
    // As with libpq: TLS without verification does not keep it out.
    let _ = tokio::time::timeout(
        std::time::Duration::from_secs(2),
        sql(&middle.info(SslMode::Require, ChannelBinding::Prefer)),
    )
    .await;
    assert!(middle.heard_password());
}
