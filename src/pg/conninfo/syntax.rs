//! Parses the two notations of a connection string, keyword/value pairs and URIs, into settings.
//!
//! `conninfo_parse` and `conninfo_uri_parse_options` in libpq's `fe-connect.c` are the reference. The
//! meaning of parameters is not known here.

use crate::error::Diagnosis;

/// One parameter as written. It has no `Debug`, because the value may be a password.
pub(super) struct Setting {
    pub(super) keyword: String,
    pub(super) value: String,
    /// Position of the keyword in a keyword/value string, in characters from 1.
    pub(super) at: Option<usize>,
    /// Whether the keyword may be part of a password that should have been quoted, and must not be
    /// repeated.
    pub(super) sensitive: bool,
}

/// Settings in the order given, and the errors found.
pub(super) type Settings = (Vec<Setting>, Vec<Diagnosis>);

const URI_PREFIXES: [&str; 2] = ["postgresql://", "postgres://"];

/// Parses `text` in either notation. White space around a URI (a secret file's last newline) is
/// ignored.
pub(super) fn settings(text: &str) -> Settings {
    let trimmed = text.trim();
    match URI_PREFIXES.iter().find_map(|prefix| trimmed.strip_prefix(prefix)) {
        Some(rest) => Uri::default().take(rest),
        None => Pairs::new(text).take(),
    }
}

/// Writes `value` for a keyword/value string: unquoted if it then reads back as itself, otherwise in
/// single quotes.
#[must_use]
pub fn quote_value(value: &str) -> String {
    let plain = |c: char| !is_space(c) && c != '\'' && c != '\\';
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    let escaped = value.replace('\\', r"\\").replace('\'', r"\'");
    format!("'{escaped}'")
}

/// C's `isspace` in the C locale.
fn is_space(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\u{b}'
}

/// Parser of `keyword = 'value' …`.
struct Pairs<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    /// Number of characters read so far.
    read: usize,
    settings: Vec<Setting>,
    problems: Vec<Diagnosis>,
}

impl<'a> Pairs<'a> {
    fn new(text: &'a str) -> Self {
        Self { chars: text.chars().peekable(), read: 0, settings: Vec::new(), problems: Vec::new() }
    }

    fn next(&mut self) -> Option<char> {
        let c = self.chars.next()?;
        self.read += 1;
        Some(c)
    }

    fn next_if(&mut self, wanted: impl Fn(char) -> bool) -> Option<char> {
        let c = self.chars.next_if(|&c| wanted(c))?;
        self.read += 1;
        Some(c)
    }

    fn skip_space(&mut self) {
        while self.next_if(is_space).is_some() {}
    }

    fn take(mut self) -> Settings {
        // A password with an unquoted space looks like several words. That is reported once, and no
        // word is repeated.
        let mut sensitive = false;
        let mut after_bare_word = false;
        loop {
            self.skip_space();
            let at = self.read + 1;
            let mut keyword = String::new();
            while let Some(c) = self.next_if(|c| c != '=' && !is_space(c)) {
                keyword.push(c);
            }
            self.skip_space();
            if self.next_if(|c| c == '=').is_some() {
                self.skip_space();
                let quoted = self.chars.peek() == Some(&'\'');
                let Some(value) = self.value() else { break };
                let is_password = matches!(keyword.as_str(), "password" | "sslpassword");
                self.settings.push(Setting { keyword, value, at: Some(at), sensitive });
                sensitive = is_password && !quoted;
                after_bare_word = false;
            } else if keyword.is_empty() {
                break;
            } else {
                if !after_bare_word {
                    self.problems.push(bare_word(at, sensitive));
                }
                after_bare_word = true;
            }
        }
        (self.settings, self.problems)
    }

    /// Reads a value, quoted or not; a backslash escapes the next character. Returns `None` if the
    /// quote is not closed.
    fn value(&mut self) -> Option<String> {
        let at = self.read + 1;
        let quoted = self.next_if(|c| c == '\'').is_some();
        let mut value = String::new();
        loop {
            match self.next() {
                Some('\\') => value.extend(self.next()),
                Some('\'') if quoted => return Some(value),
                Some(c) if !quoted && is_space(c) => return Some(value),
                Some(c) => value.push(c),
                None if quoted => {
                    self.problems.push(
                        Diagnosis::new(format!("the single quote at character {at} is not closed"))
                            .hint(r"write a quote within a value as \' and a backslash as \\"),
                    );
                    return None;
                }
                None => return Some(value),
            }
        }
    }
}

fn bare_word(at: usize, sensitive: bool) -> Diagnosis {
    let primary = format!("the word at character {at} is not followed by \"=\"");
    Diagnosis::new(primary).hint(if sensitive {
        "a password with spaces stands in single quotes: password='…'"
    } else {
        "write keyword=value, separated by spaces; a value with spaces stands in single quotes"
    })
}

/// Parser of the part after `postgresql://`:
/// `[user[:password]@][host][:port][,…][/dbname][?keyword=value&…]`.
#[derive(Default)]
struct Uri {
    settings: Vec<Setting>,
    problems: Vec<Diagnosis>,
}

impl Uri {
    fn take(mut self, rest: &str) -> Settings {
        let rest = match rest.find(['@', '/']) {
            Some(at) if rest[at..].starts_with('@') => {
                let (user, password) = rest[..at].split_once(':').unwrap_or((&rest[..at], ""));
                self.implied("user", user);
                self.implied("password", password);
                &rest[at + 1..]
            }
            _ => rest,
        };
        let rest = self.hosts(rest);
        let (dbname, query) = rest.split_once('?').unwrap_or((rest, ""));
        self.implied("dbname", dbname.strip_prefix('/').unwrap_or(dbname));
        for parameter in query.split_inclusive('&') {
            self.parameter(parameter.strip_suffix('&').unwrap_or(parameter));
        }
        (self.settings, self.problems)
    }

    /// Reads `host:port,…` and returns the rest, from `/` or `?` on.
    fn hosts<'a>(&mut self, mut rest: &'a str) -> &'a str {
        let (mut hosts, mut ports) = (Vec::new(), Vec::new());
        loop {
            let host = match rest.strip_prefix('[') {
                Some(literal) => {
                    let Some((address, after)) =
                        literal.split_once(']').filter(|(address, _)| !address.is_empty())
                    else {
                        self.problems.push(
                            Diagnosis::new("the \"[\" of an IPv6 address has no address and \"]\" after it")
                                .hint("write it as [2001:db8::1]:5432"),
                        );
                        return "";
                    };
                    rest = after;
                    address
                }
                None => {
                    let (host, after) = rest.split_at(rest.find([':', '/', '?', ',']).unwrap_or(rest.len()));
                    rest = after;
                    host
                }
            };
            hosts.push(host);
            let port = rest.strip_prefix(':').unwrap_or("");
            let port = &port[..port.find(['/', '?', ',']).unwrap_or(port.len())];
            rest = rest.strip_prefix(':').map_or(rest, |after| &after[port.len()..]);
            ports.push(port);
            match rest.strip_prefix(',') {
                Some(next) => rest = next,
                None if rest.is_empty() || rest.starts_with(['/', '?']) => break,
                None => {
                    self.problems.push(
                        Diagnosis::new(
                            "something stands between the \"]\" of an IPv6 address and what follows it",
                        )
                        .hint("after \"]\" comes \":\", \"/\", \"?\", \",\" or the end"),
                    );
                    return "";
                }
            }
        }
        self.implied("host", &hosts.join(","));
        // Commas alone still count the hosts; an empty port means the default.
        self.implied("port", &ports.join(","));
        rest
    }

    fn parameter(&mut self, parameter: &str) {
        let Some((keyword, value)) = parameter.split_once('=') else {
            self.problems.push(
                Diagnosis::new("a parameter after \"?\" has no \"=\"")
                    .hint("write ?keyword=value&keyword=value"),
            );
            return;
        };
        if value.contains('=') {
            self.problems.push(
                Diagnosis::new("a parameter after \"?\" has more than one \"=\"")
                    .hint("write \"=\" within a value as %3D and \"&\" as %26"),
            );
            return;
        }
        let Some(keyword) = self.decoded("a parameter's name", keyword) else { return };
        let Some(value) = self.decoded(&keyword, value) else { return };
        // libpq translates JDBC's `ssl=true` in this way.
        let (keyword, value) = match (keyword.as_str(), value.as_str()) {
            ("ssl", "true") => ("sslmode".to_owned(), "require".to_owned()),
            _ => (keyword, value),
        };
        self.settings.push(Setting { keyword, value, at: None, sensitive: false });
    }

    /// Adds a part of the URI. An empty one is not given, so that the environment's default applies.
    fn implied(&mut self, keyword: &str, encoded: &str) {
        if encoded.is_empty() {
            return;
        }
        if let Some(value) = self.decoded(keyword, encoded) {
            self.settings.push(Setting { keyword: keyword.to_owned(), value, at: None, sensitive: false });
        }
    }

    fn decoded(&mut self, what: &str, encoded: &str) -> Option<String> {
        let decoded = percent_decoded(encoded);
        if let Err(why) = decoded {
            // `what` is shown only if it is one of libpq's keywords.
            let what = super::keywords::find(what).map_or("a parameter's name or value", |known| known.name);
            self.problems.push(Diagnosis::new(format!("{what} {why}")).hint(
                "percent-encode UTF-8 bytes with two hexadecimal digits each, and \"%\" itself as %25",
            ));
        }
        decoded.ok()
    }
}

fn percent_decoded(encoded: &str) -> Result<String, &'static str> {
    let mut bytes = encoded.bytes();
    let mut decoded = Vec::with_capacity(encoded.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        match (digit(), digit()) {
            (Some(0), Some(0)) => return Err("holds %00, which no parameter may contain"),
            (Some(high), Some(low)) => decoded.push(high << 4 | low),
            _ => return Err("holds a \"%\" without two hexadecimal digits after it"),
        }
    }
    String::from_utf8(decoded).map_err(|_| "is not UTF-8 once decoded")
}
