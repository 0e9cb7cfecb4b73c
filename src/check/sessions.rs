//! Judges a side's sessions: how many the role may open, and the time-outs that they cannot lift. Pure.

use crate::error::Diagnosis;
use crate::pg::conninfo::ConnInfo;
use crate::pg::{ImposedLimit, imposed_limits, quote_ident};
use crate::schema::catalog::{LimitedBy, SessionLimit, Side};

use super::findings::Findings;
use super::report::Step;
use super::verdict::Recorded;

/// The most sessions that one subscription has on the publisher: two for the stream and a table that joins,
/// two to look at the catalog and the slot, two that read rows for a copy (docs/operations.md, "Sessions").
const PUBLISHER_SESSIONS: u32 = 5;
/// As above on the target: five for the state, and for the subscription one that applies, one for the
/// catalog, two that write the rows of a copy.
const TARGET_SESSIONS: u32 = 9;
/// The most sessions that a running service may still open on one side, for tables that join.
const LATER_SESSIONS: u32 = 2;

/// Time-outs that sessions on this side cannot lift.
pub(super) fn time_limits(findings: &mut Findings, side: Side, role: &str, imposed: &[ImposedLimit]) {
    if let Some(diagnosis) = imposed_limits(&side.to_string(), role, imposed) {
        findings.warn(step(side), diagnosis);
    }
}

/// The step to which findings about a side's sessions belong.
pub(super) const fn step(side: Side) -> Step {
    match side {
        Side::Publisher => Step::Database,
        Side::Target => Step::Target,
    }
}

/// Records whether the role may open as many sessions as the service needs at most, or as it may still need
/// when it runs.
pub(super) fn limit(
    findings: &mut Findings,
    side: Side,
    info: &ConnInfo,
    limit: &SessionLimit,
    recorded: &Recorded,
) {
    let needed = match (side, recorded.is_running()) {
        (Side::Publisher, false) => PUBLISHER_SESSIONS,
        (Side::Target, false) => TARGET_SESSIONS,
        (_, true) => LATER_SESSIONS,
    };
    if limit.free() >= needed {
        return;
    }
    let (role, database) = (quote_ident(&info.user), quote_ident(&info.dbname));
    let enough = limit.used + needed;
    let (limiting, hint) = match limit.by {
        LimitedBy::Role => (
            format!("the role's connection limit is {}", limit.allowed),
            format!("on the {side}: ALTER ROLE {role} CONNECTION LIMIT {enough};"),
        ),
        LimitedBy::Database => (
            format!("the database's connection limit is {}", limit.allowed),
            format!("on the {side}: ALTER DATABASE {database} CONNECTION LIMIT {enough};"),
        ),
        LimitedBy::Server => (
            format!("max_connections leaves {} to roles without privileges", limit.allowed),
            format!("raise max_connections on the {side} (a restart), or close other sessions"),
        ),
    };
    let free = limit.free();
    let primary = format!(
        "role \"{}\" may open {free} more sessions on the {side}, and pgsluice may need {needed}",
        info.user
    );
    let detail = format!("{limiting}, {} in use", limit.used);
    findings.warn(step(side), Diagnosis::new(primary).detail(detail).hint(hint));
}
