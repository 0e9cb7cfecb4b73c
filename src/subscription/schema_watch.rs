//! Notices changes of the target's catalog, so that tables are compared again after a pause because of its
//! schema.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::Diagnosis;

/// A fingerprint of everything about user tables and the role that decides whether tables fit.
///
/// It is made from the transactions that wrote the catalog's rows and not from their contents. So a column
/// that was renamed and renamed back between two queries counts as a change.
pub(super) const SCHEMA_FINGERPRINT: &str = "SELECT pg_catalog.md5(pg_catalog.concat( \
    (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', a.attrelid, a.attnum, a.xmin), ',' \
        ORDER BY a.attrelid, a.attnum) \
     FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
     WHERE c.relkind IN ('r', 'p') AND c.relnamespace NOT IN (SELECT n.oid FROM pg_catalog.pg_namespace n \
        WHERE n.nspname IN ('pg_catalog', 'information_schema', 'pg_toast', 'pgsluice'))), \
    (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', i.indexrelid, i.xmin), ',' \
        ORDER BY i.indexrelid) FROM pg_catalog.pg_index i WHERE i.indisunique), \
    (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', c.oid, c.xmin), ',' ORDER BY c.oid) \
     FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'p')), \
    (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', t.oid, t.xmin), ',' ORDER BY t.oid) \
     FROM pg_catalog.pg_type t WHERE t.typtype = 'd'), \
    (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', n.oid, n.xmin), ',' ORDER BY n.oid) \
     FROM pg_catalog.pg_namespace n), \
    (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', m.roleid, m.member, m.xmin), ',' \
        ORDER BY m.roleid, m.member) FROM pg_catalog.pg_auth_members m), \
    (SELECT pg_catalog.concat_ws(' ', r.rolsuper, r.rolinherit, r.rolbypassrls) FROM pg_catalog.pg_roles r \
     WHERE r.rolname = current_user)))";

/// How long a pause waits at first and at most until the tables are compared again although no change has been
/// noticed. The delay is doubled each time the same difference is found again.
const RECHECK_MIN: Duration = Duration::from_secs(4);
const RECHECK_MAX: Duration = Duration::from_mins(1);

/// Notices that the tables may fit now: at a change of the target's catalog, and after growing delays.
///
/// # Why not by the fingerprint alone
/// It is read after the comparison that caused the pause. What changed and changed back in between is the same by
/// value, and a role's attributes have no transaction that a role without privileges could read. What else decides
/// (the server's settings, privileges on parameters) is in no catalog of this database.
#[derive(Debug, Default)]
pub(super) struct SchemaWatch {
    fingerprint: Option<String>,
    /// The difference that the pause is for.
    difference: Option<Diagnosis>,
    delay: Duration,
    due: Option<Instant>,
}

impl SchemaWatch {
    /// Notes that a pause for this difference begins.
    pub(super) fn pause(&mut self, difference: Option<&Diagnosis>, now: Instant) {
        let same = self.difference.is_some() && self.difference.as_ref() == difference;
        self.delay = if same { (self.delay * 2).min(RECHECK_MAX) } else { RECHECK_MIN };
        self.difference = difference.cloned();
        self.due = Some(now + self.delay);
    }

    /// Whether the tables should be compared again, although no change has been noticed.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| now >= due)
    }

    /// Whether the fingerprint has changed. The first one counts as a change, because the catalog may have
    /// changed since the pause began. The last one is kept after a pause ends, so that a pause for the same
    /// tables waits for the next change.
    pub(super) fn changed(&mut self, now: String) -> bool {
        let changed = self.fingerprint.as_ref() != Some(&now);
        self.fingerprint = Some(now);
        if changed {
            // Somebody is at work, so the next difference is looked at again soon.
            self.difference = None;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_difference_is_looked_at_again_after_growing_bounded_delays() {
        let (mut watch, mut now) = (SchemaWatch::default(), Instant::now());
        let difference = Diagnosis::new("a column is missing");
        for seconds in [4, 8, 16, 32, 60, 60] {
            watch.pause(Some(&difference), now);
            assert!(!watch.is_due(now + Duration::from_secs(seconds - 1)), "{seconds}");
            now += Duration::from_secs(seconds);
            assert!(watch.is_due(now), "{seconds}");
        }
        watch.pause(Some(&Diagnosis::new("another one")), now);
        assert!(watch.is_due(now + RECHECK_MIN));
    }

    #[test]
    fn a_change_is_noticed_once() {
        let mut watch = SchemaWatch::default();
        assert!(watch.changed("a".to_owned()));
        assert!(!watch.changed("a".to_owned()));
        assert!(watch.changed("b".to_owned()));
    }
}
