//! Validates single values and their relations: [`RawConfig`] → [`Config`].

mod subscription;
mod table;

use std::net::SocketAddr;
use std::path::PathBuf;

use super::connect::{Called, connection};
use super::error::{ConfigErrors, Report};
use super::path::KeyPath;
use super::raw::{ConnectionString, RawConfig, RawService, RawTarget};
use super::surroundings::Surroundings;
use super::{Budget, Config, LogFormat, Service, Subscription, Target};
use crate::error::Diagnosis;
use crate::pg::conninfo::{ConnInfo, Passwords, SslMode};
use crate::pg::{nearest, one_of};

/// Loopback, so that other machines reach the API only if that is configured.
const LISTEN_DEFAULT: &str = "127.0.0.1:9650";

/// PostgreSQL's `NAMEDATALEN` less the terminator.
const NAME_BYTES_MAX: usize = 63;

/// Checks every value. Succeeds only if `report` is empty at the end.
pub(super) fn validate(
    raw: RawConfig,
    surroundings: &Surroundings,
    report: Report,
) -> Result<Config, ConfigErrors> {
    let passwords = match raw.service.password_requires_tls {
        Some(true) => Passwords::OverTlsOnly,
        Some(false) | None => Passwords::OverAnyConnection,
    };
    let mut validator = Validator { surroundings, passwords, report, warnings: Vec::new() };
    let service = validator.service(raw.service);
    let target = validator.target(&raw.target);
    let subscriptions = validator.subscriptions(raw.subscriptions);
    if let (Some(target), Some(subscriptions)) = (&target, &subscriptions) {
        validator.sessions(target, subscriptions);
    }
    let Validator { report, warnings, .. } = validator;
    match (service, target, subscriptions) {
        (Some(service), Some(target), Some(subscriptions)) if report.is_empty() => {
            Ok(Config { service, target, subscriptions, warnings })
        }
        _ => Err(report.into_errors()),
    }
}

/// Collects problems while it validates. Methods return `None` after they have reported why there is no
/// value.
struct Validator<'a> {
    surroundings: &'a Surroundings,
    passwords: Passwords,
    report: Report,
    warnings: Vec<Diagnosis>,
}

impl Validator<'_> {
    fn problem(&mut self, path: &KeyPath, problem: Diagnosis) {
        self.report.problem(path, problem);
    }

    /// Requires a key that has no default.
    fn required<T>(&mut self, value: Option<T>, path: &KeyPath, hint: &str) -> Option<T> {
        if value.is_none() && !self.report.is_discarded(path) {
            self.problem(path, Diagnosis::new("the key is missing").hint(hint));
        }
        value
    }

    /// Reads a value that is one of a key's words, or a word that is not supported yet.
    fn word<T: Copy>(&mut self, value: &str, path: &KeyPath, words: &[(&str, Word<T>)]) -> Option<T> {
        let quoted = |words: &mut dyn Iterator<Item = &&str>| {
            one_of(&words.map(|word| format!("\"{word}\"")).collect::<Vec<_>>())
        };
        let accepted = words.iter().filter(|(_, word)| matches!(word, Word::Means(_))).map(|(word, _)| word);
        match words.iter().find(|(word, _)| *word == value) {
            Some((_, Word::Means(meaning))) => return Some(*meaning),
            Some((_, Word::NotYet)) => {
                let use_instead = format!("use {}", quoted(&mut accepted.into_iter()));
                self.problem(path, not_supported_yet(&format!("\"{value}\"")).hint(use_instead));
            }
            None => {
                let primary = format!("\"{}\" is not one of this key's values", value.escape_debug());
                let all = quoted(&mut words.iter().map(|(word, _)| word));
                let hint = match nearest(value, words.iter().map(|(word, _)| *word)) {
                    Some(suggestion) => format!("did you mean \"{suggestion}\"?"),
                    None => format!("use {all}"),
                };
                self.problem(path, Diagnosis::new(primary).hint(hint));
            }
        }
        None
    }

    /// Whether a PostgreSQL catalog could hold the name.
    fn catalog_name(&mut self, name: &str, path: &KeyPath) -> bool {
        let why = if name.is_empty() {
            "an empty string is not a name"
        } else if name.len() > NAME_BYTES_MAX {
            "the name is longer than 63 bytes"
        } else if name.contains('\0') {
            "the name holds a NUL character"
        } else {
            return true;
        };
        self.problem(path, Diagnosis::new(why));
        false
    }

    fn service(&mut self, raw: RawService) -> Option<Service> {
        let path = KeyPath::default().key("service");
        let listen = self.listen(raw.listen.as_deref().unwrap_or(LISTEN_DEFAULT), &path.key("listen"));
        let token_path = path.key("api_token_file");
        let api_token_file = raw.api_token_file.map(PathBuf::from);
        if api_token_file.as_ref().is_some_and(|file| file.as_os_str().is_empty()) {
            self.problem(&token_path, Diagnosis::new("an empty string is not a file's path"));
        }
        let exposed = listen.is_some_and(|listen| !listen.ip().to_canonical().is_loopback());
        if exposed && api_token_file.is_none() && !self.report.is_discarded(&token_path) {
            let problem =
                Diagnosis::new("the address can be reached from other machines, but the API has no token")
                    .hint("set service.api_token_file to a file that holds one, or listen on 127.0.0.1");
            self.problem(&path.key("listen"), problem);
        }
        let log_format = match raw.log_format.as_deref() {
            None => Some(LogFormat::Text),
            Some(word) => self.word(
                word,
                &path.key("log_format"),
                &[("text", Word::Means(LogFormat::Text)), ("json", Word::Means(LogFormat::Json))],
            ),
        };
        let share_after = self.share_after(raw.share_after.as_deref(), &path.key("share_after"));
        Some(Service { listen: listen?, api_token_file, log_format: log_format?, share_after: share_after? })
    }

    fn listen(&mut self, text: &str, path: &KeyPath) -> Option<SocketAddr> {
        let address = text.parse().ok();
        if address.is_none() {
            let primary = format!("\"{}\" is not an IP address and a port", text.escape_debug());
            let hint = "write 127.0.0.1:9650, [::1]:9650, or 0.0.0.0:9650 for all interfaces";
            self.problem(path, Diagnosis::new(primary).hint(hint));
        }
        address
    }

    fn target(&mut self, raw: &RawTarget) -> Option<Target> {
        let path = KeyPath::default().key("target").key("url");
        let url =
            self.required(raw.url.as_ref(), &path, "add url = \"host=… dbname=… user=…\" under [target]")?;
        let conninfo = self.connection(url, &Called::Default("pgsluice"), &path)?;
        // A number that is out of range is judged with the subscriptions.
        let sessions = |number: i64| u32::try_from(number.max(0)).unwrap_or(u32::MAX);
        Some(Target { conninfo, max_connections: raw.max_connections.map(sessions) })
    }

    /// Checks that the target's sessions suffice for the subscriptions.
    fn sessions(&mut self, target: &Target, subscriptions: &[Subscription]) {
        let enabled = subscriptions.iter().filter(|subscription| subscription.enabled).count();
        let needed = Budget::needed(enabled);
        let Some(sessions) = target.max_connections.filter(|sessions| *sessions < needed) else { return };
        let detail =
            format!("each of the {enabled} enabled subscriptions needs two, and all together six more");
        let problem = Diagnosis::new(format!("{sessions} sessions are too few: {needed} are needed"))
            .detail(detail)
            .hint(format!("set max_connections to {needed} or more, or leave it out for no bound"));
        self.problem(&KeyPath::default().key("target").key("max_connections"), problem);
    }

    fn connection(
        &mut self,
        text: &ConnectionString,
        called: &Called<'_>,
        path: &KeyPath,
    ) -> Option<ConnInfo> {
        let mut info =
            connection(text, called, path, self.surroundings, &mut self.report, &mut self.warnings)?;
        info.tls.passwords = self.passwords;
        let exposed = info.hosts.iter().find(|host| info.requires_tls(host));
        if info.tls.mode == SslMode::Disable
            && let Some(host) = exposed
        {
            let primary = format!(
                "sslmode=disable with a password for {}, and service.password_requires_tls",
                host.address
            );
            let problem = Diagnosis::new(primary)
                .detail("a log-in without TLS lets others on the network learn the password")
                .hint("use sslmode=verify-full with sslrootcert, or leave the password out");
            self.problem(path, problem);
            return None;
        }
        Some(info)
    }
}

/// The meaning of one of a key's words.
#[derive(Clone, Copy)]
enum Word<T> {
    Means(T),
    /// The word is reserved but not supported yet.
    NotYet,
}

fn not_supported_yet(what: &str) -> Diagnosis {
    Diagnosis::new(format!("{what} is not supported yet"))
}
