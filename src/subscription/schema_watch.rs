//! Notices changes of the target's catalog, so that tables are compared again after a pause because of its
//! schema.

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

/// Notices a change of the target's catalog.
#[derive(Debug, Default)]
pub(super) struct SchemaWatch(Option<String>);

impl SchemaWatch {
    /// Whether the fingerprint has changed. The first one counts as a change, because the catalog may have
    /// changed since the pause began. The last one is kept after a pause ends, so that a pause for the same
    /// tables waits for the next change.
    pub(super) fn changed(&mut self, now: String) -> bool {
        let changed = self.0.as_ref() != Some(&now);
        self.0 = Some(now);
        changed
    }
}
