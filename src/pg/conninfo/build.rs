//! Builds a [`ConnInfo`] from settings: checks keywords and values and applies libpq's defaults.
//!
//! `pqConnectOptions2` and `conninfo_add_defaults` in libpq's `fe-connect.c` are the reference.

mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::keywords::{self, KEYWORDS, Keyword, Support};
use super::syntax::{self, Setting};
use super::{
    CONNECT_TIMEOUT_DEFAULT, CONNECT_TIMEOUT_MIN, ConnInfo, Host, HostAddress, Keepalives, PORT_DEFAULT,
    TargetSessionAttrs,
};
use crate::error::Diagnosis;
use crate::pg::{Secret, nearest, one_of};

/// Defaults for what a string leaves out, in libpq's order: environment, then files and the operating
/// system's user.
#[derive(Clone, Copy)]
pub struct Defaults<'a> {
    /// Returns the value of an environment variable such as `PGHOST`.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Name of the operating system's user that runs this process.
    pub os_user: Option<&'a str>,
    pub files: &'a DefaultFiles,
}

impl fmt::Debug for Defaults<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Defaults").field("os_user", &self.os_user).field("files", &self.files).finish()
    }
}

/// libpq's files in the home directory; only those that exist.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DefaultFiles {
    /// Path of `~/.pgpass`.
    pub passfile: Option<PathBuf>,
    /// Path of `~/.postgresql/root.crt`.
    pub root_cert: Option<PathBuf>,
    /// Paths of `~/.postgresql/postgresql.crt` and `postgresql.key`.
    pub client_cert: Option<(PathBuf, PathBuf)>,
}

/// A parsed connection string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    pub conninfo: ConnInfo,
    /// The password file to read, if the string holds no password.
    pub passfile: Option<Passfile>,
}

/// A password file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passfile {
    /// The file is named by `passfile` or `PGPASSFILE`, so that its absence is reported.
    Given(PathBuf),
    Default(PathBuf),
}

impl Passfile {
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Given(path) | Self::Default(path) => path,
        }
    }
}

/// All errors of one connection string. They hold nothing of the string itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnInfoErrors(pub Vec<Diagnosis>);

impl fmt::Display for ConnInfoErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConnInfoErrors {}

/// Reads a connection string: keyword/value pairs or a URI.
///
/// # Errors
///
/// Returns all problems at once; see [`ConnInfoErrors`].
pub fn parse(text: &str, defaults: &Defaults<'_>) -> Result<Parsed, ConnInfoErrors> {
    let (settings, problems) = syntax::settings(text);
    let mut builder = Builder { given: BTreeMap::new(), problems };
    for setting in settings {
        builder.set(setting);
    }
    builder.set_from_env(defaults.env);
    builder.refuse_unsupported();
    let parsed = builder.build(defaults);
    if builder.problems.is_empty() { Ok(parsed) } else { Err(ConnInfoErrors(builder.problems)) }
}

/// A parameter's value and the environment variable that it comes from, if any.
struct Given {
    value: String,
    env: Option<&'static str>,
}

struct Builder {
    /// Values by keyword. If one is given several times, the last wins, as in libpq.
    given: BTreeMap<&'static str, Given>,
    problems: Vec<Diagnosis>,
}

impl Builder {
    fn problem(&mut self, problem: Diagnosis) {
        self.problems.push(problem);
    }

    fn set(&mut self, setting: Setting) {
        let Setting { keyword, value, at, sensitive } = setting;
        if keyword == "requiressl" {
            let value = if value.starts_with('1') { "require" } else { "prefer" };
            self.given.insert("sslmode", Given { value: value.to_owned(), env: None });
        } else if let Some(known) = keywords::find(&keyword) {
            self.given.insert(known.name, Given { value, env: None });
        } else {
            self.problem(unknown(&keyword, at, sensitive));
        }
    }

    fn set_from_env(&mut self, env: &dyn Fn(&str) -> Option<String>) {
        for Keyword { name, env: variable, .. } in KEYWORDS {
            let Some(variable) = variable.filter(|_| !self.given.contains_key(name)) else { continue };
            if let Some(value) = env(variable) {
                self.given.insert(name, Given { value, env: Some(variable) });
            }
        }
        // `PGREQUIRESSL` is deprecated, but a user who sets it relies on encryption.
        let requires_ssl = env("PGREQUIRESSL").is_some_and(|value| value.starts_with('1'));
        if requires_ssl && !self.given.contains_key("sslmode") {
            self.given.insert("sslmode", Given { value: "require".to_owned(), env: Some("PGREQUIRESSL") });
        }
    }

    fn refuse_unsupported(&mut self) {
        let mut problems = Vec::new();
        for (&name, given) in &self.given {
            let label = self.label(name);
            if given.value.contains('\0') {
                problems.push(Diagnosis::new(format!("{label} holds a NUL character")));
            }
            match keywords::find(name).map(|known| known.support) {
                Some(Support::Harmless(values)) if !given.value.is_empty() => {
                    if !values.contains(&given.value.as_str()) {
                        problems.push(self.not_supported(name, values));
                    }
                }
                Some(Support::Refused(why)) => {
                    problems.push(Diagnosis::new(format!("{label} is not supported")).detail(why));
                }
                Some(Support::Harmless(_) | Support::Honoured) | None => {}
            }
        }
        self.problems.append(&mut problems);
    }

    /// Returns the keyword and, if the value is not from the string, its origin.
    fn label(&self, name: &str) -> String {
        match self.given.get(name).and_then(|given| given.env) {
            Some(variable) => format!("{name} (from the environment variable {variable})"),
            None => name.to_owned(),
        }
    }

    /// Returns a parameter's value. An empty one counts as not given, as in libpq.
    fn get(&self, name: &str) -> Option<&str> {
        self.given.get(name).map(|given| given.value.as_str()).filter(|value| !value.is_empty())
    }

    fn not_supported(&self, name: &str, accepted: &[&str]) -> Diagnosis {
        let label = self.label(name);
        let leave_out = match self.given.get(name).and_then(|given| given.env) {
            Some(variable) => format!("unset {variable}"),
            None => "leave it out".to_owned(),
        };
        if accepted.is_empty() {
            return Diagnosis::new(format!("{label} is not supported")).hint(leave_out);
        }
        Diagnosis::new(format!("this value of {label} is not supported"))
            .hint(format!("{leave_out}, or use {}", one_of(accepted)))
    }

    fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(ToOwned::to_owned)
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }

    /// Reads a parameter whose value is one of `words`.
    fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Option<T> {
        let value = self.get(name)?;
        let found = words.iter().find(|(word, _)| *word == value).map(|&(_, meaning)| meaning);
        if found.is_none() {
            let suggestion = nearest(value, words.iter().map(|&(word, _)| word));
            let known = one_of(&words.iter().map(|&(word, _)| word).collect::<Vec<_>>());
            let problem = Diagnosis::new(format!("{} must be {known}", self.label(name)));
            self.problem(match suggestion {
                Some(suggestion) => problem.hint(format!("did you mean \"{suggestion}\"?")),
                None => problem,
            });
        }
        found
    }

    /// Reads an integer, with optional spaces around it as in libpq (`pqParseIntParam`).
    fn integer(&mut self, name: &str) -> Option<i32> {
        let number = self.get(name)?.trim().parse();
        if number.is_err() {
            self.problem(Diagnosis::new(format!("{} is not a whole number", self.label(name))));
        }
        number.ok()
    }

    /// Reads a number above 0; 0 means the operating system's default.
    fn positive(&mut self, name: &str) -> Option<u32> {
        let number = u32::try_from(self.integer(name)?);
        if number.is_err() {
            self.problem(Diagnosis::new(format!("{} is negative", self.label(name))));
        }
        number.ok().filter(|&number| number > 0)
    }

    fn build(&mut self, defaults: &Defaults<'_>) -> Parsed {
        let user = self.text("user").or_else(|| defaults.os_user.map(ToOwned::to_owned));
        if user.is_none() {
            self.problem(
                Diagnosis::new(
                    "user is missing, and the operating system has no name for this process's user",
                )
                .hint("add user=… to the connection string, or set PGUSER"),
            );
        }
        let user = user.unwrap_or_default();
        let password = self.text("password").map(Secret::new);
        let passfile = match self.path("passfile") {
            _ if password.is_some() => None,
            Some(path) => Some(Passfile::Given(path)),
            None => defaults.files.passfile.clone().map(Passfile::Default),
        };
        let conninfo = ConnInfo {
            hosts: self.hosts(),
            password,
            dbname: self.text("dbname").unwrap_or_else(|| user.clone()),
            user,
            tls: self.tls(defaults.files),
            connect_timeout: self.connect_timeout(),
            application_name: self
                .text("application_name")
                .or_else(|| self.text("fallback_application_name")),
            options: self.text("options"),
            keepalives: self.keepalives(),
            tcp_user_timeout: self
                .positive("tcp_user_timeout")
                .map(|timeout_ms| Duration::from_millis(timeout_ms.into())),
            target_session_attrs: self.target_session_attrs(),
        };
        Parsed { conninfo, passfile }
    }

    /// Reads a comma-separated list, which is empty if the parameter is not given.
    fn list(&self, name: &str) -> Vec<String> {
        self.get(name).map_or_else(Vec::new, |list| list.split(',').map(ToOwned::to_owned).collect())
    }

    fn hosts(&mut self) -> Vec<Host> {
        let (names, addresses, ports) = (self.list("host"), self.list("hostaddr"), self.list("port"));
        let count = if addresses.is_empty() { names.len().max(1) } else { addresses.len() };
        if !names.is_empty() && names.len() != count {
            self.problem(Diagnosis::new(format!(
                "{} has {} entries, but {} has {count}",
                self.label("host"),
                names.len(),
                self.label("hostaddr"),
            )));
        }
        if ports.len() > 1 && ports.len() != count {
            let primary = format!(
                "{} has {} entries, but the number of hosts is {count}",
                self.label("port"),
                ports.len()
            );
            self.problem(Diagnosis::new(primary).hint("give one port for all hosts, or one for each"));
        }
        let element = |list: &[String], i: usize| list.get(i).cloned().unwrap_or_default();
        let mut hosts = Vec::with_capacity(count);
        for i in 0..count {
            let address = self.address(&element(&names, i), &element(&addresses, i));
            let port = self.port(&element(&ports, if ports.len() == 1 { 0 } else { i }));
            hosts.push(Host { address, port, password: None });
        }
        hosts
    }

    fn address(&mut self, name: &str, address: &str) -> HostAddress {
        let hostaddr = if address.is_empty() { None } else { address.parse::<IpAddr>().ok() };
        if hostaddr.is_none() && !address.is_empty() {
            self.problem(
                Diagnosis::new(format!("{} is not an IP address", self.label("hostaddr")))
                    .hint("a name belongs into host"),
            );
        }
        if hostaddr.is_none() && name.starts_with('/') {
            return HostAddress::Unix(PathBuf::from(name));
        }
        if name.starts_with('@') {
            self.problem(
                Diagnosis::new("sockets in the abstract namespace (\"@\") are not supported")
                    .hint("give the directory of the server's Unix-domain socket, or a host name"),
            );
        } else if name.contains('@') {
            self.problem(
                Diagnosis::new(format!("{} holds an \"@\"", self.label("host")))
                    .hint("in a URI, write \"@\" within a user name or password as %40 and \"/\" as %2F"),
            );
        } else if name.chars().any(|c| c.is_whitespace() || c.is_control()) {
            self.problem(Diagnosis::new(format!("{} holds white space", self.label("host"))));
        }
        let name = match (name, &hostaddr) {
            ("", Some(ip)) => ip.to_string(),
            ("", None) => "localhost".to_owned(),
            (name, _) => name.to_owned(),
        };
        HostAddress::Tcp { name, hostaddr }
    }

    fn port(&mut self, port: &str) -> u16 {
        let number = match port.trim() {
            "" => Some(PORT_DEFAULT),
            digits => digits.parse().ok().filter(|&port| port != 0),
        };
        if number.is_none() {
            let problem = Diagnosis::new(format!("{} is not a number from 1 to 65535", self.label("port")));
            self.problem(match self.given.get("port").and_then(|given| given.env) {
                Some(_) => problem,
                None => problem
                    .hint("in a URI, write \":\", \"/\" and \"@\" within a password as %3A, %2F and %40"),
            });
        }
        number.unwrap_or(PORT_DEFAULT)
    }

    fn connect_timeout(&mut self) -> Duration {
        match self.integer("connect_timeout").map(u64::try_from) {
            None | Some(Ok(0) | Err(_)) => CONNECT_TIMEOUT_DEFAULT,
            Some(Ok(seconds)) => Duration::from_secs(seconds).max(CONNECT_TIMEOUT_MIN),
        }
    }

    fn keepalives(&mut self) -> Option<Keepalives> {
        let on = self.integer("keepalives") != Some(0);
        let mut seconds = |name| self.positive(name).map(|seconds| Duration::from_secs(seconds.into()));
        let (idle, interval) = (seconds("keepalives_idle"), seconds("keepalives_interval"));
        let count = self.positive("keepalives_count");
        on.then_some(Keepalives { idle, interval, count })
    }

    fn target_session_attrs(&mut self) -> TargetSessionAttrs {
        let name = "target_session_attrs";
        let known = [
            ("any", Some(TargetSessionAttrs::Any)),
            ("read-write", Some(TargetSessionAttrs::ReadWrite)),
            ("primary", Some(TargetSessionAttrs::Primary)),
            ("read-only", None),
            ("standby", None),
            ("prefer-standby", None),
        ];
        let attrs = self.word(name, &known);
        if attrs == Some(None) {
            self.problem(self.not_supported(name, &["any", "read-write", "primary"]));
        }
        attrs.flatten().unwrap_or(TargetSessionAttrs::Any)
    }
}

fn unknown(keyword: &str, at: Option<usize>, sensitive: bool) -> Diagnosis {
    let known = KEYWORDS.iter().filter(|known| !matches!(known.support, Support::Refused(_)));
    let suggestion = nearest(keyword, known.map(|known| known.name)).filter(|_| !sensitive);
    let place = at.map_or_else(|| "after \"?\"".to_owned(), |at| format!("at character {at}"));
    match suggestion {
        Some(suggestion) => {
            Diagnosis::new(format!("\"{}\" is not a connection parameter", keyword.escape_debug()))
                .hint(format!("did you mean \"{suggestion}\"?"))
        }
        None if sensitive => Diagnosis::new(format!("the word {place} is not a connection parameter"))
            .hint("a password with spaces stands in single quotes: password='…'"),
        None => Diagnosis::new(format!("the word {place} is not a connection parameter"))
            .hint("docs/configuration.md lists the parameters, which are libpq's"),
    }
}
