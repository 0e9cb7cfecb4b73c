//! Authentication of the replication connection: trust, cleartext, MD5, SCRAM-SHA-256 and -PLUS.
//!
//! ```text
//! request ─▶ Ok                              trust, peer, certificate: no password needed
//!         ─▶ cleartext | MD5 ─▶ password ─▶ Ok
//!         ─▶ SASL ─▶ first ─▶ continue ─▶ final (the server proves its knowledge, too) ─▶ Ok
//! ```
//! The choice of the mechanism is pure ([`choose`]) and follows libpq's rules (`pg_SASL_init` in
//! `fe-auth.c`); the exchange itself is done by postgres-protocol. No step may be left out: a server
//! that sends Ok before it has proved that it knows the password is refused.

use bytes::Bytes;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::frontend;

use super::channel::{Channel, ChannelError};
use super::wire::{self, Message, Reader, WireError};
use crate::net::{ConnectErrorKind, Encryption, LoginError, Step};
use crate::pg::Secret;
use crate::pg::conninfo::{ChannelBinding, ConnInfo};

/// Largest number of SASL mechanisms that are read from a server's list.
const MECHANISMS_MAX: usize = 16;

/// An `Authentication…` message by its number.
#[derive(Debug)]
enum Request {
    Ok,
    Cleartext,
    Md5([u8; 4]),
    Sasl(Vec<Bytes>),
    SaslContinue(Bytes),
    SaslFinal(Bytes),
    Unsupported(String),
}

fn parse(message: &Message) -> Result<Request, WireError> {
    let mut reader = Reader::new(message);
    Ok(match reader.i32("authentication method")? {
        0 => Request::Ok,
        3 => Request::Cleartext,
        5 => Request::Md5(reader.array("salt")?),
        10 => {
            let mut mechanisms = Vec::new();
            while mechanisms.len() < MECHANISMS_MAX {
                match reader.cstr("mechanism")? {
                    name if name.is_empty() => break,
                    name => mechanisms.push(name),
                }
            }
            Request::Sasl(mechanisms)
        }
        11 => Request::SaslContinue(reader.rest()),
        12 => Request::SaslFinal(reader.rest()),
        2 => Request::Unsupported("Kerberos V5".to_owned()),
        6 => Request::Unsupported("SCM credential".to_owned()),
        7 | 8 => Request::Unsupported("GSSAPI".to_owned()),
        9 => Request::Unsupported("SSPI".to_owned()),
        other => Request::Unsupported(format!("an unknown method ({other})")),
    })
}

/// The mechanism of a SASL exchange.
#[derive(Debug, PartialEq, Eq)]
enum Mechanism {
    /// SCRAM-SHA-256-PLUS with this `tls-server-end-point`.
    Plus(Vec<u8>),
    /// SCRAM-SHA-256. The client supports channel binding, but the server does not offer it.
    PlainThoughAble,
    /// SCRAM-SHA-256. The client cannot use channel binding, or must not.
    Plain,
}

/// The facts of the connection that the choice depends on.
#[derive(Debug, Clone)]
struct Wire {
    encryption: Encryption,
    end_point: Option<Vec<u8>>,
}

fn choose(offered: &[Bytes], wire: Wire, wanted: ChannelBinding) -> Result<Mechanism, ConnectErrorKind> {
    let offers = |name: &str| offered.iter().any(|mechanism| mechanism.as_ref() == name.as_bytes());
    let (plus, plain) = (offers(sasl::SCRAM_SHA_256_PLUS), offers(sasl::SCRAM_SHA_256));
    if plus && wire.encryption == Encryption::None {
        let what = "SCRAM-SHA-256-PLUS was offered on a connection without TLS";
        return Err(ConnectErrorKind::Protocol(what.to_owned()));
    }
    let end_point = wire.end_point.filter(|_| wanted != ChannelBinding::Disable);
    let mechanism = match end_point {
        Some(data) if plus => Mechanism::Plus(data),
        Some(_) if plain => Mechanism::PlainThoughAble,
        None if plain => Mechanism::Plain,
        Some(_) | None => {
            let names: Vec<_> = offered.iter().map(|m| String::from_utf8_lossy(m).into_owned()).collect();
            return Err(ConnectErrorKind::AuthUnsupported(format!("SASL ({})", names.join(", "))));
        }
    };
    if wanted == ChannelBinding::Require && !matches!(mechanism, Mechanism::Plus(_)) {
        return Err(ConnectErrorKind::ChannelBindingMissing);
    }
    Ok(mechanism)
}

/// Answers the server's requests until it sends Ok.
pub(super) async fn authenticate(
    channel: &mut Channel,
    info: &ConnInfo,
    password: Option<&Secret>,
) -> Result<(), LoginError> {
    match request(channel).await? {
        Request::Ok => unbound(info),
        Request::Cleartext => {
            unbound(info)?;
            let password = needed(password)?.expose().as_bytes();
            send(channel, |out| frontend::password_message(password, out)).await?;
            expect_ok(channel).await
        }
        Request::Md5(salt) => {
            unbound(info)?;
            let hash = md5_hash(info.user.as_bytes(), needed(password)?.expose().as_bytes(), salt);
            send(channel, |out| frontend::password_message(hash.as_bytes(), out)).await?;
            expect_ok(channel).await
        }
        Request::Sasl(offered) => scram(channel, info, password, &offered).await,
        Request::SaslContinue(_) | Request::SaslFinal(_) => Err(out_of_turn()),
        Request::Unsupported(method) => Err(failed(ConnectErrorKind::AuthUnsupported(method))),
    }
}

async fn scram(
    channel: &mut Channel,
    info: &ConnInfo,
    password: Option<&Secret>,
    offered: &[Bytes],
) -> Result<(), LoginError> {
    let wire = Wire {
        encryption: channel.stream().encryption(),
        end_point: channel.stream().tls_server_end_point(),
    };
    let mechanism = choose(offered, wire, info.tls.channel_binding).map_err(failed)?;
    let (name, binding) = match mechanism {
        Mechanism::Plus(data) => (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(data)),
        Mechanism::PlainThoughAble => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
        Mechanism::Plain => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
    };
    let mut exchange = sasl::ScramSha256::new(needed(password)?.expose().as_bytes(), binding);
    let untrue = |error| failed(ConnectErrorKind::Scram(error));
    send(channel, |out| frontend::sasl_initial_response(name, exchange.message(), out)).await?;
    let Request::SaslContinue(challenge) = request(channel).await? else { return Err(out_of_turn()) };
    exchange.update(&challenge).map_err(untrue)?;
    send(channel, |out| frontend::sasl_response(exchange.message(), out)).await?;
    let Request::SaslFinal(proof) = request(channel).await? else { return Err(out_of_turn()) };
    exchange.finish(&proof).map_err(untrue)?;
    expect_ok(channel).await
}

/// Reads the next `Authentication…` message; a refusal is an error.
async fn request(channel: &mut Channel) -> Result<Request, LoginError> {
    let message = channel.receive().await.map_err(lost)?;
    match message.tag {
        b'R' => parse(&message).map_err(|error| lost(error.into())),
        b'E' => Err(LoginError::server(wire::server_error(&message))),
        tag => Err(lost(WireError::Unexpected { tag, during: "authenticating" }.into())),
    }
}

async fn expect_ok(channel: &mut Channel) -> Result<(), LoginError> {
    match request(channel).await? {
        Request::Ok => Ok(()),
        _ => Err(out_of_turn()),
    }
}

async fn send(
    channel: &mut Channel,
    encode: impl FnOnce(&mut bytes::BytesMut) -> std::io::Result<()>,
) -> Result<(), LoginError> {
    encode(&mut channel.output).map_err(|error| failed(ConnectErrorKind::Lost(error)))?;
    channel.flush().await.map_err(lost)
}

/// Refuses a method without channel binding if channel binding is required.
fn unbound(info: &ConnInfo) -> Result<(), LoginError> {
    match info.tls.channel_binding {
        ChannelBinding::Disable | ChannelBinding::Prefer => Ok(()),
        ChannelBinding::Require => Err(failed(ConnectErrorKind::ChannelBindingMissing)),
    }
}

fn needed(password: Option<&Secret>) -> Result<&Secret, LoginError> {
    password.ok_or_else(|| failed(ConnectErrorKind::PasswordMissing))
}

fn out_of_turn() -> LoginError {
    failed(ConnectErrorKind::Protocol("authentication messages came out of turn".to_owned()))
}

fn failed(kind: ConnectErrorKind) -> LoginError {
    LoginError::new(Step::Authentication, kind)
}

/// Converts a failure of the connection during the log-in.
pub(super) fn lost(error: ChannelError) -> LoginError {
    failed(match error {
        ChannelError::Closed => ConnectErrorKind::Closed,
        ChannelError::Io(error) => ConnectErrorKind::Lost(error),
        error @ (ChannelError::Wire(_) | ChannelError::TooLarge { .. }) => {
            ConnectErrorKind::Protocol(error.to_string())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(offered: &[&'static str], encryption: Encryption, wanted: ChannelBinding) -> String {
        let offered: Vec<Bytes> = offered.iter().map(|&name| Bytes::from_static(name.as_bytes())).collect();
        let end_point = (encryption == Encryption::Tls).then(|| vec![1]);
        match choose(&offered, Wire { encryption, end_point }, wanted) {
            Ok(mechanism) => format!("{mechanism:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn mechanisms_are_chosen_as_libpq_chooses_them() {
        use ChannelBinding::{Disable, Prefer, Require};
        use Encryption::{None, Tls};
        let (both, plain) = (&["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"][..], &["SCRAM-SHA-256"][..]);
        assert_eq!(decide(both, Tls, Prefer), "Plus([1])");
        assert_eq!(decide(both, Tls, Require), "Plus([1])");
        assert_eq!(decide(both, Tls, Disable), "Plain");
        assert_eq!(decide(plain, Tls, Prefer), "PlainThoughAble");
        assert_eq!(decide(plain, Tls, Require), "channel binding is required and was not used");
        assert_eq!(decide(plain, None, Prefer), "Plain");
        assert_eq!(decide(plain, None, Require), "channel binding is required and was not used");
        assert_eq!(
            decide(both, None, Prefer),
            "the peer does not follow PostgreSQL's protocol: SCRAM-SHA-256-PLUS was offered on a connection without TLS"
        );
        assert_eq!(
            decide(&["OAUTHBEARER"], Tls, Prefer),
            "the server asks for SASL (OAUTHBEARER) authentication, which is not supported"
        );
    }

    #[test]
    fn a_certificate_without_a_hash_cannot_be_bound() {
        let offered = [Bytes::from_static(b"SCRAM-SHA-256-PLUS"), Bytes::from_static(b"SCRAM-SHA-256")];
        let wire = Wire { encryption: Encryption::Tls, end_point: None };
        assert_eq!(choose(&offered, wire.clone(), ChannelBinding::Prefer).unwrap(), Mechanism::Plain);
        assert!(choose(&offered, wire, ChannelBinding::Require).is_err());
    }

    #[test]
    fn methods_are_named() {
        let method = |number: u8| {
            let body = Bytes::copy_from_slice(&[0, 0, 0, number]);
            match parse(&Message { tag: b'R', body }) {
                Ok(Request::Unsupported(name)) => name,
                other => format!("{other:?}"),
            }
        };
        assert_eq!(method(7), "GSSAPI");
        assert_eq!(method(9), "SSPI");
        assert_eq!(method(99), "an unknown method (99)");
        assert_eq!(method(5), "Err(Truncated { tag: 82, field: \"salt\" })");
    }
}
