//! libpq's password file: `hostname:port:database:username:password`; the first matching line counts.
//!
//! Pure: `config` reads the file and decides whether it may be read. A replication connection is looked
//! up under the database that it names, as for the built-in subscriber; the entry `replication` is only
//! for physical replication, which names no database.

use std::path::Path;

use super::{ConnInfo, Host, HostAddress};
use crate::pg::Secret;

/// libpq's default socket directories: those of distributions and PostgreSQL's own.
const SOCKET_DIRECTORIES: [&str; 3] = ["/var/run/postgresql", "/run/postgresql", "/tmp"];

/// Returns the password that `file` (a password file's text) holds for a connection to `host`.
///
/// A Unix-domain socket in a default directory is looked up as `localhost`, in another one by the
/// directory's path. An empty password counts as none.
#[must_use]
pub fn password_for(file: &str, host: &Host, dbname: &str, user: &str) -> Option<Secret> {
    let name = match &host.address {
        HostAddress::Tcp { name, .. } => name.clone(),
        HostAddress::Unix(directory)
            if SOCKET_DIRECTORIES.iter().any(|known| directory == Path::new(known)) =>
        {
            "localhost".to_owned()
        }
        HostAddress::Unix(directory) => directory.display().to_string(),
    };
    let wanted = [name.as_str(), &host.port.to_string(), dbname, user];
    file.lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| password_on(line, &wanted))
        .filter(|password| !password.is_empty())
        .map(Secret::new)
}

impl ConnInfo {
    /// Takes passwords from a password file's text. If all hosts have the same one, it becomes the
    /// connection's password; otherwise each host has its own.
    pub fn take_passwords(&mut self, file: &str) {
        let found: Vec<_> =
            self.hosts.iter().map(|host| password_for(file, host, &self.dbname, &self.user)).collect();
        if found.windows(2).all(|pair| pair[0] == pair[1]) {
            self.password = found.into_iter().next().flatten();
        } else {
            self.hosts.iter_mut().zip(found).for_each(|(host, password)| host.password = password);
        }
    }
}

/// Returns the password of a line whose first four fields match.
fn password_on(line: &str, wanted: &[&str; 4]) -> Option<String> {
    let mut rest = line;
    for wanted in wanted {
        let (field, after) = take_field(rest);
        let wildcard = rest.starts_with("*:");
        rest = after?;
        if !wildcard && field != *wanted {
            return None;
        }
    }
    Some(take_field(rest).0)
}

/// Reads a field up to the next colon; a backslash escapes the next character. Returns the field and
/// the text after the colon, if there is one.
fn take_field(text: &str) -> (String, Option<&str>) {
    let mut field = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            ':' => return (field, Some(&text[at + 1..])),
            '\\' => field.push(chars.next().map_or('\\', |(_, escaped)| escaped)),
            c => field.push(c),
        }
    }
    (field, None)
}
