//! Negotiates TLS as libpq does.
//!
//! ```text
//! negotiated: SSLRequest ─▶ 'S' ─▶ handshake      'N' ─▶ plain or an error, as the wish says
//! direct:     handshake at once, protocol "postgresql" agreed by ALPN (PostgreSQL 17)
//! ```
//! # Invariants
//! - Exactly one byte is read before the handshake: bytes that an attacker inserted before it are never
//!   taken for the server's (CVE-2021-23222), and an error sent in place of the answer is not shown
//!   (CVE-2024-10977).
//! - Files are read for each connection, so that rotated certificates need no restart.
//!
//! `verify` checks certificates. `establish` retries with other encryption.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use tokio_rustls::TlsConnector;

use super::error::{ConnectErrorKind, TlsSetupError};
use super::paced::PacedTcp;
use super::stream::NetStream;
use super::verify::{Check, Trust, Verifier};
use crate::pg::conninfo::{RootCert, SslMode, SslNegotiation, TlsSettings};

/// PostgreSQL's name in application-layer protocol negotiation (`PG_ALPN_PROTOCOL`).
const ALPN: &[u8] = b"postgresql";

/// `SSLRequest`: length 8 and the code 1234.5679 (`NEGOTIATE_SSL_CODE`).
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// The encryption that one attempt uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Plain,
    TlsIfOffered,
    Tls,
}

/// Negotiates on a fresh TCP connection what `wish` asks for. `host` is the name as configured.
pub(super) async fn negotiate(
    mut tcp: PacedTcp,
    wish: Wish,
    host: &str,
    settings: &TlsSettings,
) -> Result<NetStream, ConnectErrorKind> {
    if wish == Wish::Plain {
        return Ok(NetStream::Tcp(tcp));
    }
    if settings.negotiation == SslNegotiation::Postgres {
        tcp.write_all(&SSL_REQUEST).await.map_err(ConnectErrorKind::Lost)?;
        let mut answer = [0u8; 1];
        match tcp.read_exact(&mut answer).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(ConnectErrorKind::Closed);
            }
            Err(error) => return Err(ConnectErrorKind::Lost(error)),
        }
        match (answer[0], wish) {
            (b'S', _) => {}
            (b'N', Wish::TlsIfOffered) => return Ok(NetStream::Tcp(tcp)),
            (b'N', _) => return Err(ConnectErrorKind::TlsNotOffered),
            _ => return Err(ConnectErrorKind::TlsAnswer),
        }
    }
    handshake(tcp, host, settings).await
}

async fn handshake(tcp: PacedTcp, host: &str, settings: &TlsSettings) -> Result<NetStream, ConnectErrorKind> {
    let name = server_name(host, settings.mode, &tcp)?;
    let owned = settings.clone();
    let config = tokio::task::spawn_blocking(move || client_config(&owned))
        .await
        .map_err(|error| ConnectErrorKind::Lost(io::Error::other(error)))?
        .map_err(ConnectErrorKind::TlsSetup)?;
    let direct = settings.negotiation == SslNegotiation::Direct;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
    let stream = match connected {
        Ok(stream) => stream,
        // A server before 17 takes the TLS greeting for a malformed start-up packet and closes the
        // connection.
        Err(error) if direct && hung_up(&error) => {
            return Err(ConnectErrorKind::DirectTlsRefused(Some(error)));
        }
        Err(error) => return Err(ConnectErrorKind::TlsHandshake(error)),
    };
    // Without agreement on the protocol, a direct handshake may have reached any TLS service.
    if direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Err(ConnectErrorKind::DirectTlsRefused(None));
    }
    Ok(NetStream::Tls(Box::new(stream)))
}

fn hung_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// Returns the name for SNI and verification. Where the name is not verified, one that no certificate
/// could hold is replaced by the address, for which no SNI is sent.
fn server_name(host: &str, mode: SslMode, tcp: &PacedTcp) -> Result<ServerName<'static>, ConnectErrorKind> {
    // A trailing dot makes a name absolute; certificates and SNI are written without it.
    let host = host.strip_suffix('.').unwrap_or(host);
    match ServerName::try_from(host.to_owned()) {
        Ok(name) => Ok(name),
        Err(_) if mode == SslMode::VerifyFull => {
            Err(ConnectErrorKind::TlsSetup(TlsSetupError::HostName(host.to_owned())))
        }
        Err(_) => {
            let peer = tcp.peer_addr().map_err(ConnectErrorKind::Lost)?;
            Ok(ServerName::IpAddress(peer.ip().into()))
        }
    }
}

fn client_config(settings: &TlsSettings) -> Result<ClientConfig, TlsSetupError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier::new(check(settings)?, &provider);
    let builder = ClientConfig::builder_with_provider(Arc::<CryptoProvider>::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &settings.client_cert {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates("the client certificate", certificate)?;
            builder.with_client_auth_cert(chain, private_key(key)?)?
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Returns what `sslmode` wants verified. `require` with a root certificate verifies the chain, as in
/// libpq "for backward compatibility" (libpq.sgml, sslmode).
fn check(settings: &TlsSettings) -> Result<Check, TlsSetupError> {
    Ok(match (settings.mode, &settings.root_cert) {
        (SslMode::Disable | SslMode::Allow | SslMode::Prefer, _) | (SslMode::Require, RootCert::None) => {
            Check::Nothing
        }
        (SslMode::Require | SslMode::VerifyCa, root) => Check::Chain(trust(root)?),
        (SslMode::VerifyFull, root) => Check::ChainAndName(trust(root)?),
    })
}

fn trust(root: &RootCert) -> Result<Trust, TlsSetupError> {
    let given = match root {
        RootCert::None => return Err(TlsSetupError::NoRoots),
        RootCert::File(path) => certificates("the root certificate file", path)?,
        RootCert::System => {
            // Files of the store that cannot be read do not matter if others can.
            let found = rustls_native_certs::load_native_certs().certs;
            if found.is_empty() {
                return Err(TlsSetupError::NoSystemRoots);
            }
            found
        }
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(given.iter().cloned());
    Ok(Trust { roots, given })
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsSetupError> {
    let unread = |source| TlsSetupError::File { what, path: path.to_owned(), source };
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(unread)?;
    if chain.is_empty() {
        return Err(TlsSetupError::Empty { what, path: path.to_owned() });
    }
    Ok(chain)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsSetupError> {
    let what = "the client's private key";
    PrivateKeyDer::from_pem_file(path).map_err(|source| match source {
        rustls::pki_types::pem::Error::NoItemsFound => TlsSetupError::Empty { what, path: path.to_owned() },
        source => TlsSetupError::File { what, path: path.to_owned(), source },
    })
}
