//! The connection parameters that libpq knows, up to PostgreSQL 18, and whether they are supported.

/// One parameter of libpq.
pub(super) struct Keyword {
    pub(super) name: &'static str,
    /// The environment variable of its default.
    pub(super) env: Option<&'static str>,
    pub(super) support: Support,
}

/// What pgsluice does with a parameter.
#[derive(Clone, Copy)]
pub(super) enum Support {
    Honoured,
    /// Not supported, except for these values, which ask for nothing that differs from the behaviour
    /// without them. The environment variable is checked in the same way, so that a value that is not
    /// supported is refused.
    Harmless(&'static [&'static str]),
    /// Not supported with any value, for this reason. The environment variable is ignored.
    Refused(&'static str),
}

use Support::{Harmless, Honoured, Refused};

const fn keyword(name: &'static str, env: &'static str, support: Support) -> Keyword {
    Keyword { name, env: Some(env), support }
}

const fn without_env(name: &'static str, support: Support) -> Keyword {
    Keyword { name, env: None, support }
}

const NO_GSS: &str = "GSSAPI is not supported";
const NO_OAUTH: &str = "OAuth is not supported";
const NO_SCRAM_KEYS: &str = "give the password instead";

/// libpq's parameters (`PQconninfoOptions` in `fe-connect.c`).
pub(super) static KEYWORDS: &[Keyword] = &[
    keyword("host", "PGHOST", Honoured),
    keyword("hostaddr", "PGHOSTADDR", Honoured),
    keyword("port", "PGPORT", Honoured),
    keyword("user", "PGUSER", Honoured),
    keyword("password", "PGPASSWORD", Honoured),
    keyword("dbname", "PGDATABASE", Honoured),
    keyword("passfile", "PGPASSFILE", Honoured),
    keyword("sslmode", "PGSSLMODE", Honoured),
    keyword("sslnegotiation", "PGSSLNEGOTIATION", Honoured),
    keyword("sslrootcert", "PGSSLROOTCERT", Honoured),
    keyword("sslcert", "PGSSLCERT", Honoured),
    keyword("sslkey", "PGSSLKEY", Honoured),
    keyword("channel_binding", "PGCHANNELBINDING", Honoured),
    keyword("connect_timeout", "PGCONNECT_TIMEOUT", Honoured),
    keyword("application_name", "PGAPPNAME", Honoured),
    without_env("fallback_application_name", Honoured),
    keyword("options", "PGOPTIONS", Honoured),
    without_env("keepalives", Honoured),
    without_env("keepalives_idle", Honoured),
    without_env("keepalives_interval", Honoured),
    without_env("keepalives_count", Honoured),
    without_env("tcp_user_timeout", Honoured),
    keyword("target_session_attrs", "PGTARGETSESSIONATTRS", Honoured),
    keyword("gssencmode", "PGGSSENCMODE", Harmless(&["disable", "prefer"])),
    keyword("load_balance_hosts", "PGLOADBALANCEHOSTS", Harmless(&["disable"])),
    keyword("require_auth", "PGREQUIREAUTH", Harmless(&[])),
    keyword("requirepeer", "PGREQUIREPEER", Harmless(&[])),
    keyword("service", "PGSERVICE", Harmless(&[])),
    keyword("sslcertmode", "PGSSLCERTMODE", Harmless(&["allow"])),
    keyword("sslcompression", "PGSSLCOMPRESSION", Harmless(&["0"])),
    keyword("sslcrl", "PGSSLCRL", Harmless(&[])),
    keyword("sslcrldir", "PGSSLCRLDIR", Harmless(&[])),
    keyword("sslsni", "PGSSLSNI", Harmless(&["1"])),
    keyword("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Harmless(&["TLSv1.2"])),
    keyword("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Harmless(&["TLSv1.3"])),
    keyword("min_protocol_version", "PGMINPROTOCOLVERSION", Harmless(&["3.0"])),
    keyword("max_protocol_version", "PGMAXPROTOCOLVERSION", Harmless(&["3.0"])),
    without_env("client_encoding", Refused("pgsluice takes the target's encoding on both sides")),
    without_env("replication", Refused("pgsluice sets it where a replication connection is needed")),
    without_env("sslpassword", Refused("give a key file that is not encrypted")),
    without_env("servicefile", Refused("write the parameters out")),
    without_env("sslkeylogfile", Refused("it would write the session's keys to a file")),
    without_env("gssdelegation", Refused(NO_GSS)),
    without_env("gsslib", Refused(NO_GSS)),
    without_env("krbsrvname", Refused(NO_GSS)),
    without_env("scram_client_key", Refused(NO_SCRAM_KEYS)),
    without_env("scram_server_key", Refused(NO_SCRAM_KEYS)),
    without_env("oauth_issuer", Refused(NO_OAUTH)),
    without_env("oauth_client_id", Refused(NO_OAUTH)),
    without_env("oauth_client_secret", Refused(NO_OAUTH)),
    without_env("oauth_scope", Refused(NO_OAUTH)),
];

/// Finds a parameter by its name, which is case-sensitive as in libpq.
pub(super) fn find(name: &str) -> Option<&'static Keyword> {
    KEYWORDS.iter().find(|keyword| keyword.name == name)
}
