//! Turns a failed connection into primary, detail and hint. Pure.
//!
//! Each cause has its own text and remedy, because the usual causes look alike to the operator. Facts
//! come only from the error: what the peer sent and what was tried. Where a server's message is the
//! only evidence (pg_hba.conf), its English wording is recognised; otherwise the text holds for the
//! SQLSTATE as such.

use std::error::Error;
use std::io;
use std::net::IpAddr;

use super::error::{ConnectError, ConnectErrorKind, Facts, Purpose, TlsSetupError, endpoint};
use super::stream::Encryption;
use crate::error::{Diagnosis, ServerError};
use crate::pg::conninfo::TargetSessionAttrs;
use crate::pg::quote_ident;

pub(super) fn diagnosis(error: &ConnectError) -> Diagnosis {
    use ConnectErrorKind as K;
    let at = endpoint(&error.host, error.port);
    let mut diagnosis = match &*error.kind {
        K::Resolve(source) => name_unresolved(&error.host, &source.to_string()),
        K::NoAddress => name_unresolved(&error.host, "the name exists, but has no address"),
        K::Connect(source) => connect_failed(error, source),
        K::TimedOut(after) => timed_out(error, (after.as_secs_f32() * 10.0).round() / 10.0),
        K::TlsNotOffered
        | K::TlsAnswer
        | K::TlsSetup(_)
        | K::TlsHandshake(_)
        | K::DirectTlsRefused(_) => tls(error, &at),
        K::Lost(source) => lost(&at, source),
        K::Closed => Diagnosis::new(format!("{at} closed the connection during start-up"))
            .hint("check that PostgreSQL itself listens there, not another service or a proxy without a server behind it"),
        K::Server(server) => refused_by_server(server, error),
        K::Setting(server) => Diagnosis {
            primary: format!("{at} refused a session setting: {server}"),
            ..server.diagnosis()
        },
        K::PasswordMissing => {
            Diagnosis::new(format!("{at} asks for a password for role \"{}\", and none is configured", error.facts.user))
                .hint("add password= or passfile= to the connection string, or a line to the file that PGPASSFILE names")
        }
        K::PasswordWithoutTls => password_without_tls(&at, error.facts.sslmode),
        K::AuthUnsupported(method) => {
            Diagnosis::new(format!("{at} asks for {method} authentication, which pgsluice does not support"))
                .hint("let pg_hba.conf use scram-sha-256, md5, password, cert or trust for this role and address")
        }
        K::ChannelBindingMissing => {
            Diagnosis::new(format!("channel_binding=require, but {at} did not use channel binding"))
                .detail("channel binding needs TLS and SCRAM-SHA-256-PLUS on both sides")
                .hint("let pg_hba.conf use scram-sha-256 over TLS (hostssl), store the role's password as SCRAM, or set channel_binding=prefer")
        }
        K::Scram(source) => Diagnosis::new(format!("the SCRAM exchange with {at} failed"))
            .detail(source.to_string())
            .hint("check that this is the server that you expect: it did not prove that it knows the role's password"),
        K::Protocol(what) => Diagnosis::new(format!("{at} does not speak PostgreSQL's protocol"))
            .detail(what.clone())
            .hint("check host and port: something else answers there"),
        K::SessionAttrs(wanted) => session_attrs(*wanted, &at),
        K::Pooled => Diagnosis::new(format!(
            "{at} is a connection pooler that gives each transaction another session of the server"
        ))
        .detail("pgsluice needs sessions of its own: for its lock, its settings and its prepared statements; nothing was set")
        .hint("connect to the server itself, or through a pool in session mode (PgBouncer: pool_mode = session)"),
        K::Driver(source) => {
            Diagnosis::new(format!("the session on {at} could not be set up")).detail(chain(source))
        }
    };
    if !error.others.is_empty() {
        let others = format!("also tried: {}", error.others.join("; "));
        diagnosis.detail = Some(match diagnosis.detail.take() {
            Some(detail) => format!("{detail}; {others}"),
            None => others,
        });
    }
    diagnosis
}

/// Formats one line for the list of other hosts that were tried.
pub(super) fn one_line(error: &ConnectError) -> String {
    let address = error.facts.address.map(|a| format!(" ({a})")).unwrap_or_default();
    format!("{}{address}: {}", endpoint(&error.host, error.port), chain(&*error.kind))
}

fn name_unresolved(host: &str, why: &str) -> Diagnosis {
    Diagnosis::new(format!("the host name \"{host}\" could not be resolved"))
        .detail(why.to_owned())
        .hint("check the host's spelling and this machine's or container's DNS (in Kubernetes: service.namespace); hostaddr= spares the look-up")
}

fn connect_failed(error: &ConnectError, source: &io::Error) -> Diagnosis {
    let at = endpoint(&error.host, error.port);
    let tried = match error.facts.address {
        Some(address) if address.to_string() != error.host => format!("address tried: {address}; {source}"),
        _ => source.to_string(),
    };
    let port = error.port;
    match source.kind() {
        io::ErrorKind::ConnectionRefused if error.host.starts_with('/') => {
            Diagnosis::new(format!("nothing listens on the socket {at}"))
                .detail(tried)
                .hint("start PostgreSQL, or check unix_socket_directories and port on that server")
        }
        io::ErrorKind::ConnectionRefused => {
            Diagnosis::new(format!("{at} refused the connection: nothing listens on that address and port"))
                .detail(tried)
                .hint(format!(
                    "on that server, check that PostgreSQL runs, that listen_addresses holds this address or '*' \
                     (a change needs a restart), and that port is {port}"
                ))
        }
        io::ErrorKind::NetworkUnreachable => {
            Diagnosis::new(format!("there is no route to {at}: the network is unreachable"))
                .detail(tried)
                .hint("put both servers on one (private) network, or add the route")
        }
        io::ErrorKind::HostUnreachable => {
            Diagnosis::new(format!("there is no route to {at}: the host is unreachable"))
                .detail(tried)
                .hint("check that the host is up, that both servers are on one (private) network, and that no firewall rejects the traffic")
        }
        io::ErrorKind::TimedOut => timed_out(error, 0.0),
        io::ErrorKind::NotFound if error.host.starts_with('/') => {
            Diagnosis::new(format!("the socket {at} does not exist"))
                .hint("start PostgreSQL, or check unix_socket_directories and port on that server")
        }
        io::ErrorKind::PermissionDenied if error.host.starts_with('/') => {
            Diagnosis::new(format!("the socket {at} may not be opened by this user"))
                .detail(tried)
                .hint("check unix_socket_permissions and the directory's mode")
        }
        _ => Diagnosis::new(format!("no connection to {at}")).detail(tried),
    }
}

fn timed_out(error: &ConnectError, after_s: f32) -> Diagnosis {
    use super::error::Step;
    let at = endpoint(&error.host, error.port);
    let waited = if after_s > 0.0 { format!(" within {after_s} s") } else { String::new() };
    let address = error.facts.address.map(|address| address.to_string());
    let address =
        address.filter(|address| *address != error.host).map(|address| format!("address tried: {address}"));
    match error.step {
        Step::Name => Diagnosis::new(format!("the name server did not answer for \"{}\"{waited}", error.host))
            .hint("check this machine's or container's DNS, or set hostaddr= to spare the look-up"),
        Step::Route | Step::Port => Diagnosis {
            primary: format!("{at} did not answer{waited}: packets vanish on the way"),
            detail: address,
            hint: Some(format!(
                "let the firewalls on the way (and the cloud's security groups) pass TCP port {}, and check that \
                 both servers are on one (private) network",
                error.port
            )),
            logged_as: None,
        },
        Step::Tls | Step::Authentication | Step::Database | Step::Replication => Diagnosis {
            primary: format!("{at} accepted the connection, but did not finish start-up{waited}"),
            detail: Some(match address {
                Some(address) => format!("it stopped answering at the step {}; {address}", error.step),
                None => format!("it stopped answering at the step {}", error.step),
            }),
            hint: Some(
                "check that PostgreSQL itself listens there and is not overloaded; raise connect_timeout if it is \
                 slow to answer"
                    .to_owned(),
            ),
            logged_as: None,
        },
    }
}

fn lost(at: &str, source: &io::Error) -> Diagnosis {
    let tls = source.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::AlertReceived(alert)) => Diagnosis::new(format!("{at} rejected the TLS session"))
            .detail(format!("TLS alert: {alert:?}"))
            .hint(
                "check sslcert and sslkey: the server's ssl_ca_file must have issued the client certificate",
            ),
        _ => {
            Diagnosis::new(format!("the connection to {at} broke during start-up")).detail(source.to_string())
        }
    }
}

fn password_without_tls(at: &str, sslmode: &str) -> Diagnosis {
    Diagnosis::new(format!("the connection to {at} is not encrypted, and service.password_requires_tls is set"))
        .detail(format!(
            "sslmode={sslmode}, and the server does not offer TLS or was not asked for it; the password was not used"
        ))
        .hint("on that server, set ssl = on with a certificate, and use sslmode=verify-full")
}

fn session_attrs(wanted: TargetSessionAttrs, at: &str) -> Diagnosis {
    let (state, name) = match wanted {
        TargetSessionAttrs::ReadWrite => ("takes no writes", "read-write"),
        TargetSessionAttrs::Primary => ("is a standby", "primary"),
        TargetSessionAttrs::Any => ("does not fit", "any"),
    };
    Diagnosis::new(format!("{at} {state}, and target_session_attrs={name}"))
        .hint("name the primary among the hosts, or wait until it is promoted")
}

fn tls(error: &ConnectError, at: &str) -> Diagnosis {
    use ConnectErrorKind as K;
    match &*error.kind {
        K::TlsNotOffered => Diagnosis::new(format!("{at} does not offer TLS, and sslmode asks for it")).hint(
            "set ssl = on with a certificate on that server, or sslmode=prefer if the network is trusted",
        ),
        K::TlsAnswer => Diagnosis::new(format!("{at} answered a request for TLS with something else")).hint(
            "check host and port: PostgreSQL answers S or N; an overloaded server may refuse before that",
        ),
        K::TlsSetup(setup) => tls_setup(setup),
        K::DirectTlsRefused(source) => {
            let diagnosis = Diagnosis::new(format!("{at} does not take TLS without negotiation"))
                .hint("sslnegotiation=direct needs PostgreSQL 17 or later with ssl = on; otherwise use sslnegotiation=postgres");
            match source {
                Some(source) => diagnosis.detail(source.to_string()),
                None => diagnosis.detail("the server did not select the protocol \"postgresql\" (ALPN)"),
            }
        }
        K::TlsHandshake(source) => handshake(at, error, source),
        _ => Diagnosis::new(format!("TLS with {at} failed")).detail(chain(&*error.kind)),
    }
}

fn tls_setup(error: &TlsSetupError) -> Diagnosis {
    let diagnosis = Diagnosis::new(error.to_string());
    match error {
        TlsSetupError::File { source, .. } => diagnosis.detail(source.to_string()).hint(
            "check the path, the file's permissions, and that it is PEM; a key must not have a passphrase",
        ),
        TlsSetupError::Empty { .. } => diagnosis.hint("check that the file is the right one, in PEM"),
        TlsSetupError::NoSystemRoots => {
            diagnosis.hint("install the distribution's ca-certificates, or name a file in sslrootcert")
        }
        TlsSetupError::NoRoots => diagnosis.hint("name the file of the issuer's certificate in sslrootcert"),
        TlsSetupError::HostName(_) => {
            diagnosis.hint("give host= as the certificate names it (hostaddr= may hold the address)")
        }
        TlsSetupError::Rustls(source) => {
            diagnosis.detail(source.to_string()).hint("check that sslcert and sslkey belong together")
        }
    }
}

fn handshake(at: &str, error: &ConnectError, source: &io::Error) -> Diagnosis {
    use rustls::CertificateError as C;
    let tls = source.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    let Some(tls) = tls else {
        return Diagnosis::new(format!("the TLS handshake with {at} broke off"))
            .detail(source.to_string())
            .hint(
                "check the server's log and its ssl_min_protocol_version (pgsluice speaks TLS 1.2 and 1.3)",
            );
    };
    let diagnosis = match tls {
        rustls::Error::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => {
            Diagnosis::new(format!("the certificate of {at} is not for the host name \"{}\"", error.host))
                .hint("use the host name that the certificate holds, reissue it, or set sslmode=verify-ca")
        }
        rustls::Error::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => {
            Diagnosis::new(format!("the certificate of {at} was not issued by a trusted authority"))
                .hint("name the issuer's certificate in sslrootcert")
        }
        rustls::Error::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => {
            Diagnosis::new(format!("the certificate of {at} has expired"))
                .hint("renew the server's certificate, or check this machine's clock")
        }
        rustls::Error::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => {
            Diagnosis::new(format!("the certificate of {at} is not valid yet"))
                .hint("check the clocks of both machines")
        }
        rustls::Error::InvalidCertificate(_) => {
            Diagnosis::new(format!("the certificate of {at} was not accepted"))
                .hint("check the server's certificate and sslrootcert")
        }
        rustls::Error::AlertReceived(_) => Diagnosis::new(format!("{at} rejected the TLS session")).hint(
            "check sslcert and sslkey: the server's ssl_ca_file must have issued the client certificate",
        ),
        _ => Diagnosis::new(format!("the TLS handshake with {at} failed")).hint(
            "check the server's log and its ssl_min_protocol_version (pgsluice speaks TLS 1.2 and 1.3)",
        ),
    };
    diagnosis.detail(tls.to_string())
}

fn refused_by_server(server: &ServerError, error: &ConnectError) -> Diagnosis {
    let facts = &error.facts;
    let role = quote_ident(&facts.user);
    let database = quote_ident(&facts.dbname);
    let said = server.diagnosis();
    let hinted = |hint: String| Diagnosis { hint: Some(hint), ..said.clone() };
    match server.code.as_str() {
        "28P01" => hinted(format!(
            "check the password configured for role {role}; on the server: ALTER ROLE {role} PASSWORD '…'"
        )),
        "28000" => not_admitted(server, facts),
        "3D000" => hinted(format!("check dbname, or on that server: CREATE DATABASE {database}")),
        "42501" => lacks_privilege(server, facts, &role, &database),
        "53300" => too_many(server, &role),
        "57P03" => {
            hinted("nothing to do: pgsluice tries again until the server takes connections".to_owned())
        }
        "55000" if server.message.contains("not currently accepting connections") => {
            hinted(format!("on that server: ALTER DATABASE {database} ALLOW_CONNECTIONS true"))
        }
        _ => said,
    }
}

/// SQLSTATE 28000: pg_hba.conf, an unknown role, or a client certificate. The wordings are those
/// of `ClientAuthentication` (`auth.c`) and `InitializeSessionUserId` (`miscinit.c`).
fn not_admitted(server: &ServerError, facts: &Facts) -> Diagnosis {
    let role = quote_ident(&facts.user);
    let message = server.message.as_str();
    let hint = if message.starts_with("no pg_hba.conf entry") {
        let line = hba_line(server, facts);
        let encryption = match facts.encryption {
            Encryption::None if !line.starts_with("local") => {
                "; if the file has hostssl lines only, use sslmode=require instead"
            }
            Encryption::None | Encryption::Tls => "",
        };
        format!(
            "add to the server's pg_hba.conf: {line} -- then SELECT pg_reload_conf(){encryption} (a line for the \
             keyword replication does not do: logical replication goes by the database's name)"
        )
    } else if message.starts_with("pg_hba.conf rejects") {
        let line = hba_line(server, facts);
        format!(
            "a reject line in the server's pg_hba.conf matches; above it, add: {line} -- then SELECT pg_reload_conf()"
        )
    } else if message.contains("client certificate") || message.contains("certificate authentication") {
        format!(
            "set sslcert and sslkey to a certificate whose common name is the role {role} (or mapped to it in pg_ident.conf)"
        )
    } else if message.contains("not permitted to log in") {
        format!("on the server: ALTER ROLE {role} LOGIN")
    } else if message.contains("does not exist") {
        let attribute = match facts.purpose {
            Purpose::Sql => "",
            Purpose::Replication => " REPLICATION",
        };
        format!("check user, or on the server: CREATE ROLE {role} LOGIN{attribute} PASSWORD '…'")
    } else {
        format!(
            "check the server's pg_hba.conf; the line that admits this session: {}",
            hba_line(server, facts)
        )
    };
    Diagnosis { hint: Some(hint), ..server.diagnosis() }
}

/// Returns the pg_hba.conf line that would admit this session. The address is the one that the server
/// saw, which address translation may have changed. A logical replication connection matches by the
/// name of its database, never by the keyword `replication` (`check_db` in `hba.c`).
fn hba_line(server: &ServerError, facts: &Facts) -> String {
    let (user, dbname) = (hba_name(&facts.user), hba_name(&facts.dbname));
    let seen =
        server.message.split_once("host \"").and_then(|(_, rest)| rest.split_once('"')).map(|(host, _)| host);
    let kind = match facts.encryption {
        Encryption::None => "host",
        Encryption::Tls => "hostssl",
    };
    match seen {
        Some("[local]") => format!("local {dbname} {user} scram-sha-256"),
        Some(host) => {
            // A link-local address has a zone, which pg_hba.conf does not accept.
            let address = host.split('%').next().unwrap_or(host);
            let mask = match address.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => "/32",
                Ok(IpAddr::V6(_)) => "/128",
                Err(_) => "",
            };
            format!("{kind} {dbname} {user} {address}{mask} scram-sha-256")
        }
        None => format!(
            "{kind} {dbname} {user} ADDRESS/32 scram-sha-256 (ADDRESS: this machine, as the server sees it)"
        ),
    }
}

/// Writes a name for pg_hba.conf: quoted unless plain, because of its keywords and separators.
fn hba_name(name: &str) -> String {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let keyword = ["all", "sameuser", "samerole", "samegroup", "replication"].contains(&name);
    if plain && !keyword && !name.is_empty() { name.to_owned() } else { quote_ident(name) }
}

fn lacks_privilege(server: &ServerError, facts: &Facts, role: &str, database: &str) -> Diagnosis {
    use super::error::{Step, step_of};
    let said = server.diagnosis();
    let replication = format!("on the publisher: ALTER ROLE {role} REPLICATION");
    let connect = format!("on the server: GRANT CONNECT ON DATABASE {database} TO {role}");
    let about_database = server.message.contains(&format!("\"{}\"", facts.dbname));
    let hint = match (step_of(server), facts.purpose) {
        (Step::Replication, _) => replication,
        (_, Purpose::Sql) => connect,
        (_, Purpose::Replication) if about_database => connect,
        (_, Purpose::Replication) => format!("{replication}; {connect}"),
    };
    Diagnosis { hint: Some(hint), ..said }
}

fn too_many(server: &ServerError, role: &str) -> Diagnosis {
    let message = &server.message;
    let hint = if message.contains("max_wal_senders") {
        "raise max_wal_senders on the publisher (a restart), or end replication connections that are not needed".to_owned()
    } else if message.contains("for role") {
        format!("on the server: ALTER ROLE {role} CONNECTION LIMIT -1, or close its other sessions")
    } else if message.contains("for database") {
        "raise the database's CONNECTION LIMIT, or close other sessions".to_owned()
    } else {
        "raise max_connections on that server (a restart), or close sessions; pgsluice tries again by itself"
            .to_owned()
    };
    Diagnosis { hint: Some(hint), ..server.diagnosis() }
}

/// Formats the error and its sources, separated by colons, without repetition.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let part = source.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests;
