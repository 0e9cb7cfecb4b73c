//! Connection strings of the configuration, completed from the environment and password files.

use super::error::Report;
use super::path::KeyPath;
use super::raw::ConnectionString;
use super::surroundings::{Surroundings, read_passfile};
use crate::error::Diagnosis;
use crate::pg::conninfo::{self, ConnInfo, Defaults, Passfile};

/// Source of `application_name` for a connection whose string does not set it.
pub(super) enum Called<'a> {
    /// The subscription's name, even if `PGAPPNAME` is set: `pg_stat_replication` and
    /// `synchronous_standby_names` on the publisher rely on it.
    Always(&'a str),
    /// The value of `PGAPPNAME`, or this name if it is not set.
    Default(&'a str),
}

/// Reads the connection string at `path`. Returns `None` once problems are reported.
pub(super) fn connection(
    text: &ConnectionString,
    called: &Called<'_>,
    path: &KeyPath,
    surroundings: &Surroundings,
    report: &mut Report,
    warnings: &mut Vec<Diagnosis>,
) -> Option<ConnInfo> {
    let env = |name: &str| match (called, name) {
        (Called::Always(_), "PGAPPNAME") => None,
        _ => surroundings.env.get(name).cloned(),
    };
    let defaults =
        Defaults { env: &env, os_user: surroundings.os_user.as_deref(), files: &surroundings.files };
    let parsed = match conninfo::parse(text.0.expose(), &defaults) {
        Ok(parsed) => parsed,
        Err(errors) => {
            for problem in errors.0 {
                report.problem(path, problem);
            }
            return None;
        }
    };
    let mut conninfo = parsed.conninfo;
    if let Some(passfile) = &parsed.passfile {
        take_passwords(&mut conninfo, passfile, warnings);
    }
    let (Called::Always(name) | Called::Default(name)) = called;
    conninfo.application_name.get_or_insert_with(|| (*name).to_owned());
    Some(conninfo)
}

fn take_passwords(conninfo: &mut ConnInfo, passfile: &Passfile, warnings: &mut Vec<Diagnosis>) {
    match read_passfile(passfile) {
        Ok(text) => conninfo.take_passwords(&text),
        // Several connections may share a password file; one warning about it is enough.
        Err(warning) if !warnings.contains(&warning) => warnings.push(warning),
        Err(_) => (),
    }
}
