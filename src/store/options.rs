//! Converts libpq's connection parameters to sqlx's options.
//!
//! sqlx opens its connections itself, so the connections of the store differ from those that apply and copy:
//!
//! | parameter | here |
//! | --- | --- |
//! | several hosts | tried in order by [`super::Store`], never by sqlx |
//! | `hostaddr` | the address is dialled; with verify-full it is refused, since sqlx would verify the address in place of the name |
//! | `sslmode=verify-ca`, or `require` with a root certificate | refused: sqlx trusts the system's authorities besides the file, and without a check of the name any public certificate would do |
//! | `sslmode=verify-full` with a root certificate | the system's authorities are trusted besides the file |
//! | `sslmode=allow` | plain first, then TLS, as two attempts |
//! | `sslmode=prefer` | TLS if the server offers it, then plain, as two attempts |
//! | `sslmode=allow` or `prefer`, where a password needs TLS | TLS only |
//! | `sslnegotiation=direct` | negotiated: every server that takes the one takes the other |
//! | `channel_binding=require` | refused: sqlx has no SCRAM-SHA-256-PLUS |
//! | `options` | settings (`-c name=value`, `--name=value`) only; others are refused |
//! | keepalives, `tcp_user_timeout` | not set: operations have their own time-out instead |

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::error::Diagnosis;
use crate::pg::conninfo::{
    ChannelBinding, ConnInfo, Host, HostAddress, RootCert, SslMode, TargetSessionAttrs, TlsSettings,
};

/// The sessions' name in the target's `pg_stat_activity`.
const APPLICATION_NAME: &str = "pgsluice state";

/// One route to a server: one host with one kind of encryption.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) options: PgConnectOptions,
    /// The name in messages: `db:5432`, `/run/postgresql:5432`.
    pub(super) endpoint: String,
    /// Bounds name resolution, TCP, TLS, authentication and session set-up together.
    pub(super) timeout: Duration,
    pub(super) session: TargetSessionAttrs,
    /// The connection string with this host alone, for a session of [`crate::net`].
    pub(super) conninfo: ConnInfo,
}

/// Returns the routes to the target, in the order in which they are tried. There is at least one.
pub(super) fn routes(target: &ConnInfo) -> Result<Vec<Route>, Diagnosis> {
    refuse_unsupported(target)?;
    let settings = settings(target.options.as_deref().unwrap_or_default())?;
    let mut routes = Vec::new();
    for host in &target.hosts {
        let base = base_options(target, host, &settings);
        let mode = match target.tls.mode {
            SslMode::Allow | SslMode::Prefer if target.requires_tls(host) => SslMode::Require,
            mode => mode,
        };
        for mode in ssl_modes(mode, host) {
            routes.push(Route {
                options: base.clone().ssl_mode(*mode),
                endpoint: endpoint(host),
                timeout: target.connect_timeout,
                session: target.target_session_attrs,
                conninfo: ConnInfo { hosts: vec![host.clone()], ..target.clone() },
            });
        }
    }
    Ok(routes)
}

fn refuse_unsupported(target: &ConnInfo) -> Result<(), Diagnosis> {
    let TlsSettings { mode, root_cert, channel_binding, .. } = &target.tls;
    let tcp = |host: &Host| matches!(host.address, HostAddress::Tcp { .. });
    let hostaddr = |host: &Host| matches!(host.address, HostAddress::Tcp { hostaddr: Some(_), .. });
    let over_network = target.hosts.iter().any(tcp);
    let authority_only = match (mode, root_cert) {
        (SslMode::VerifyCa, _) => Some("sslmode=verify-ca"),
        (SslMode::Require, RootCert::File(_)) => Some("sslmode=require with sslrootcert"),
        _ => None,
    };
    let refused =
        |what: &str| Diagnosis::new(format!("[target] url: {what} is not supported for the target"));
    if *mode == SslMode::VerifyFull && target.hosts.iter().any(hostaddr) {
        return Err(refused("hostaddr together with sslmode=verify-full")
            .detail("the connection for the state would verify the address, not the host's name")
            .hint("leave hostaddr out and let the name resolve, or put the name into /etc/hosts"));
    }
    if let Some(setting) = authority_only.filter(|_| over_network) {
        return Err(refused(setting)
            .detail("without a check of the name, any certificate of a public authority would be accepted")
            .hint("use sslmode=verify-full with sslrootcert"));
    }
    if *channel_binding == ChannelBinding::Require {
        return Err(refused("channel_binding=require")
            .detail("the connection for the state has no SCRAM-SHA-256-PLUS")
            .hint("use sslmode=verify-full and leave channel_binding out"));
    }
    Ok(())
}

fn base_options(target: &ConnInfo, host: &Host, settings: &[(String, String)]) -> PgConnectOptions {
    let mut options = PgConnectOptions::new_without_pgpass()
        .port(host.port)
        .username(&target.user)
        .database(&target.dbname)
        // The password is empty rather than missing: without one, sqlx would use PGPASSWORD, which may belong
        // to another server. `config` has read it where it applies.
        .password(target.password_for(host).map_or("", |password| password.expose()))
        .application_name(APPLICATION_NAME);
    // Poolers refuse a session that asks for options, also for none.
    if !settings.is_empty() {
        options = options.options(settings.iter().map(|(name, value)| (name, value)));
    }
    options = match &host.address {
        HostAddress::Tcp { name, hostaddr: None } => options.host(name),
        HostAddress::Tcp { hostaddr: Some(address), .. } => options.host(&address.to_string()),
        HostAddress::Unix(directory) => options.socket(directory),
    };
    options = match &target.tls.root_cert {
        RootCert::File(path) => options.ssl_root_cert(path),
        // The list is empty rather than missing: without one, sqlx would use PGSSLROOTCERT.
        RootCert::None | RootCert::System => options.ssl_root_cert_from_pem(Vec::new()),
    };
    match &target.tls.client_cert {
        Some((cert, key)) => options.ssl_client_cert(cert).ssl_client_key(key),
        None => options,
    }
}

const fn ssl_modes(mode: SslMode, host: &Host) -> &'static [PgSslMode] {
    // libpq never encrypts a Unix-domain socket.
    match (&host.address, mode) {
        (HostAddress::Unix(_), _) | (_, SslMode::Disable) => &[PgSslMode::Disable],
        (_, SslMode::Allow) => &[PgSslMode::Disable, PgSslMode::Require],
        (_, SslMode::Prefer) => &[PgSslMode::Prefer, PgSslMode::Disable],
        (_, SslMode::Require) => &[PgSslMode::Require],
        (_, SslMode::VerifyCa) => &[PgSslMode::VerifyCa],
        (_, SslMode::VerifyFull) => &[PgSslMode::VerifyFull],
    }
}

fn endpoint(host: &Host) -> String {
    match &host.address {
        HostAddress::Tcp { name, hostaddr: Some(address) } if *name != address.to_string() => {
            format!("{name}:{} ({address})", host.port)
        }
        HostAddress::Tcp { name, .. } => format!("{name}:{}", host.port),
        HostAddress::Unix(directory) => format!("{}:{}", directory.display(), host.port),
    }
}

/// Reads `-c name=value`, `-cname=value` and `--name=value`, split at white space unless a
/// backslash protects it (PostgreSQL's `pg_split_opts` and `ParseLongOption`).
fn settings(options: &str) -> Result<Vec<(String, String)>, Diagnosis> {
    let refused = |what: &str| {
        Diagnosis::new("[target] url: options must hold settings only")
            .detail(format!("\"{what}\" is not of the form -c name=value"))
            .hint("write options='-c name=value -c name=value', values without line breaks or tabs")
    };
    let mut settings = Vec::new();
    let mut words = split(options).into_iter();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            Some("") if word == "-c" => words.next().ok_or_else(|| refused(&word))?,
            Some(setting) => setting.to_owned(),
            None => return Err(refused(&word)),
        };
        match setting.split_once('=') {
            Some((name, value)) if !name.is_empty() && !value.contains(['\n', '\r', '\t']) => {
                settings.push((name.replace('-', "_"), value.to_owned()));
            }
            _ => return Err(refused(&setting)),
        }
    }
    Ok(settings)
}

fn split(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.get_or_insert_default().extend(chars.next()),
            c if c.is_ascii_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::Secret;
    use crate::pg::conninfo::{Passwords, SslNegotiation};

    fn target(hosts: &[(&str, Option<&str>)], mode: SslMode) -> ConnInfo {
        ConnInfo {
            hosts: hosts
                .iter()
                .map(|(name, hostaddr)| Host {
                    address: HostAddress::Tcp {
                        name: (*name).to_owned(),
                        hostaddr: hostaddr.map(|address| address.parse().unwrap()),
                    },
                    port: 5432,
                    password: None,
                })
                .collect(),
            user: "pgsluice".into(),
            password: Some(Secret::new("hunter2")),
            dbname: "example".into(),
            tls: TlsSettings {
                mode,
                negotiation: SslNegotiation::Postgres,
                root_cert: RootCert::None,
                client_cert: None,
                channel_binding: ChannelBinding::Prefer,
                passwords: Passwords::OverAnyConnection,
            },
            connect_timeout: Duration::from_secs(5),
            application_name: None,
            options: None,
            keepalives: None,
            tcp_user_timeout: None,
            target_session_attrs: TargetSessionAttrs::Any,
        }
    }

    #[test]
    fn hosts_are_tried_in_order_with_each_encryption() {
        let routes = routes(&target(&[("a", None), ("b", Some("10.0.0.2"))], SslMode::Allow)).unwrap();
        let seen: Vec<_> = routes
            .iter()
            .map(|route| {
                let mode = format!("{:?}", route.options.get_ssl_mode());
                format!("{} {} {mode}", route.endpoint, route.options.get_host())
            })
            .collect();
        insta::assert_snapshot!(seen.join("\n"), @r"
        a:5432 a Disable
        a:5432 a Require
        b:5432 (10.0.0.2) 10.0.0.2 Disable
        b:5432 (10.0.0.2) 10.0.0.2 Require
        ");
        assert_eq!(routes[0].options.get_application_name(), Some("pgsluice state"));
    }

    #[test]
    fn a_password_that_needs_tls_is_not_used_without() {
        let modes = |host: &str, mode: SslMode| {
            let mut target = target(&[(host, None)], mode);
            target.tls.passwords = Passwords::OverTlsOnly;
            let routes = routes(&target).unwrap();
            routes.iter().map(|route| format!("{:?}", route.options.get_ssl_mode())).collect::<Vec<_>>()
        };
        assert_eq!(modes("db", SslMode::Allow), ["Require"]);
        assert_eq!(modes("db", SslMode::Prefer), ["Require"]);
        assert_eq!(modes("localhost", SslMode::Allow), ["Disable", "Require"]);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        let check = |target: &ConnInfo| routes(target).unwrap_err().primary;
        insta::assert_snapshot!(
            check(&target(&[("a", Some("10.0.0.1"))], SslMode::VerifyFull)),
            @"[target] url: hostaddr together with sslmode=verify-full is not supported for the target"
        );
        insta::assert_snapshot!(
            check(&target(&[("a", None)], SslMode::VerifyCa)),
            @"[target] url: sslmode=verify-ca is not supported for the target"
        );
        let mut binding = target(&[("a", None)], SslMode::Require);
        binding.tls.channel_binding = ChannelBinding::Require;
        insta::assert_snapshot!(
            check(&binding),
            @"[target] url: channel_binding=require is not supported for the target"
        );
        assert!(routes(&target(&[("a", None)], SslMode::VerifyFull)).is_ok());
    }

    #[test]
    fn options_are_split_as_the_server_splits_them() {
        let check = |options: &str| {
            let pairs = settings(options).unwrap();
            pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("|")
        };
        assert_eq!(check(""), "");
        assert_eq!(
            check(r"-c geqo=off  --statement-timeout=5\ min -clock_timeout=1s"),
            "geqo=off|statement_timeout=5 min|lock_timeout=1s"
        );
        assert_eq!(check(r"-c a=b\\c=d"), r"a=b\c=d");
        for options in ["-c", "-c geqo", "-B 3", "geqo=off", "-c =x", "--"] {
            assert!(settings(options).is_err(), "{options}");
        }
    }
}
