//! The time-outs that a role or a database can impose on a session, and what a session does about them.
//!
//! `ALTER ROLE … SET` and `ALTER DATABASE … SET` reach every session, and so do time-outs in
//! postgresql.conf. They are meant for applications: a subscriber waits for locks, copies for hours and
//! idles for days. So each session, of whichever driver, first runs [`TimeLimits::statements`]. These are
//! all of the parameters in the manual's "Statement Behavior" and "TCP Settings" that let the server end
//! a session or a statement of a healthy client.
//!
//! `wal_sender_timeout` is not one of them: it protects the publisher, and a stream answers in time
//! whatever its value is.
//!
//! Pure: it writes SQL and reads answers. Who sends it decides what a refusal means.

use std::time::Duration;

use super::{quote_ident, quote_literal};
use crate::error::Diagnosis;

/// Each parameter, and the `server_version_num` of the first server that knows it.
const PARAMETERS: [(&str, u32); 6] = [
    (STATEMENT, 70_300),
    ("lock_timeout", 90_300),
    (IDLE_IN_TRANSACTION, 90_600),
    // A session that is sent nothing because the other side is busy looks as if it were dead.
    ("tcp_user_timeout", 120_000),
    ("idle_session_timeout", 140_000),
    ("transaction_timeout", 170_000),
];
const STATEMENT: &str = "statement_timeout";
const IDLE_IN_TRANSACTION: &str = "idle_in_transaction_session_timeout";

/// The bounds that a session wants for itself; whatever is none has no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeLimits {
    /// `statement_timeout`.
    pub statement: Option<Duration>,
    /// `idle_in_transaction_session_timeout`.
    pub idle_in_transaction: Option<Duration>,
}

impl TimeLimits {
    /// No limits at all.
    pub const NONE: Self = Self { statement: None, idle_in_transaction: None };

    /// Every parameter that this server knows, with its value in milliseconds; 0 is no limit.
    fn wanted(self, server_version_num: u32) -> impl Iterator<Item = (&'static str, u128)> {
        let known = PARAMETERS.into_iter().filter(move |&(_, since)| server_version_num >= since);
        known.map(move |(name, _)| {
            let bound = match name {
                STATEMENT => self.statement,
                IDLE_IN_TRANSACTION => self.idle_in_transaction,
                _ => None,
            };
            (name, bound.map_or(0, |bound| bound.as_millis()))
        })
    }

    /// One `SET` for each parameter that a server of this version knows. They can be sent together. If a
    /// server refuses that, each is sent by itself, and [`TimeLimits::imposed`] finds what still holds.
    #[must_use]
    pub fn statements(self, server_version_num: u32) -> Vec<String> {
        self.wanted(server_version_num).map(|(name, value)| format!("SET {name} = {value}")).collect()
    }

    /// A query for the parameters whose value in the session is another one: their name and their value
    /// in milliseconds, both text. It returns no row if all of them are as they were set.
    #[must_use]
    pub fn imposed(self, server_version_num: u32) -> String {
        let differing: Vec<String> = self
            .wanted(server_version_num)
            .map(|(name, value)| format!("(name = {} AND setting <> '{value}')", quote_literal(name)))
            .collect();
        format!(
            "SELECT name::pg_catalog.text, setting::pg_catalog.text FROM pg_catalog.pg_settings \
             WHERE {} ORDER BY name",
            differing.join(" OR ")
        )
    }
}

/// A time-out that holds in a session although the session has set it otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImposedLimit {
    pub name: String,
    pub milliseconds: String,
}

/// What to say of the time-outs that hold in sessions of `role` on this side ("publisher", "target").
/// None if there are none.
#[must_use]
pub fn imposed_limits(side: &str, role: &str, imposed: &[ImposedLimit]) -> Option<Diagnosis> {
    if imposed.is_empty() {
        return None;
    }
    let names: Vec<&str> = imposed.iter().map(|limit| limit.name.as_str()).collect();
    let values: Vec<String> =
        imposed.iter().map(|limit| format!("{} = {} ms", limit.name, limit.milliseconds)).collect();
    let remedy: Vec<String> =
        names.iter().map(|name| format!("ALTER ROLE {} SET {name} = 0;", quote_ident(role))).collect();
    Some(
        Diagnosis::new(format!("sessions on the {side} cannot lift {}", names.join(", ")))
            .detail(format!(
                "there, {} after the session has set it otherwise; pgsluice's sessions or statements end by it",
                values.join(", ")
            ))
            .hint(format!(
                "connect to the server itself rather than through a connection pooler, which may not pass \
                 settings on; or, on the {side}: {}",
                remedy.join(" ")
            )),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_told_what_it_knows() {
        let names = |version| {
            let statements = TimeLimits::NONE.statements(version);
            assert!(statements.iter().all(|sql| sql.starts_with("SET ") && sql.ends_with(" = 0")));
            statements.len()
        };
        assert_eq!(names(100_023), 3);
        assert_eq!(names(120_000), 4);
        assert_eq!(names(150_018), 5);
        assert_eq!(names(180_001), 6);
    }

    #[test]
    fn a_session_may_keep_bounds_of_its_own() {
        let own = TimeLimits {
            statement: Some(Duration::from_secs(15)),
            idle_in_transaction: Some(Duration::from_millis(20)),
        };
        insta::assert_snapshot!(own.statements(150_018).join("; "), @"SET statement_timeout = 15000; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 20; SET tcp_user_timeout = 0; SET idle_session_timeout = 0");
        insta::assert_snapshot!(own.imposed(100_023), @"SELECT name::pg_catalog.text, setting::pg_catalog.text FROM pg_catalog.pg_settings WHERE (name = 'statement_timeout' AND setting <> '15000') OR (name = 'lock_timeout' AND setting <> '0') OR (name = 'idle_in_transaction_session_timeout' AND setting <> '20') ORDER BY name");
    }

    #[test]
    fn what_still_holds_is_told_with_its_remedy() {
        assert_eq!(imposed_limits("target", "r", &[]), None);
        let limit = |name: &str| ImposedLimit { name: name.to_owned(), milliseconds: "2000".to_owned() };
        let imposed = [limit("idle_session_timeout"), limit("lock_timeout")];
        insta::assert_snapshot!(imposed_limits("publisher", "sammy", &imposed).expect("some"), @r#"
        sessions on the publisher cannot lift idle_session_timeout, lock_timeout
          detail: there, idle_session_timeout = 2000 ms, lock_timeout = 2000 ms after the session has set it otherwise; pgsluice's sessions or statements end by it
          hint: connect to the server itself rather than through a connection pooler, which may not pass settings on; or, on the publisher: ALTER ROLE "sammy" SET idle_session_timeout = 0; ALTER ROLE "sammy" SET lock_timeout = 0;
        "#);
    }
}
