//! Whether the publications still hold what the running attempt took up.
//!
//! Compared as a level, not signalled as an edge: a change that is seen while a copy runs, or while
//! the connection is made anew, is still a change when somebody can act on it. What to take up, and
//! when, is not decided here.

use crate::net::PgClient;
use crate::schema::catalog::{self, CatalogError};

/// The publications' definitions and tables, in one text that changes when they do: options, names
/// and (15+) column lists, row filters and schemas. Tables of another pgsluice's state don't count.
const FINGERPRINT: &str = "SELECT pg_catalog.md5(pg_catalog.concat( \
    (SELECT pg_catalog.string_agg(pg_catalog.row_to_json(p)::pg_catalog.text, ',' ORDER BY p.pubname) \
     FROM pg_catalog.pg_publication p WHERE p.pubname = ANY ($1)), \
    (SELECT pg_catalog.string_agg(pg_catalog.row_to_json(r)::pg_catalog.text, ',' ORDER BY p.pubname, r.prrelid) \
     FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
     WHERE p.pubname = ANY ($1)), \
    (SELECT pg_catalog.string_agg(pg_catalog.format('%I.%I %I', t.pubname, t.schemaname, t.tablename), ',' \
        ORDER BY t.pubname, t.schemaname, t.tablename) \
     FROM pg_catalog.pg_publication_tables t WHERE t.pubname = ANY ($1) AND t.schemaname <> 'pgsluice')))";

/// The publications as the attempt took them up, and as they were last seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Publications {
    /// None while an attempt has yet to take them up.
    pub(super) taken_up: Option<String>,
    /// None if nobody has looked since.
    pub(super) seen: Option<String>,
}

impl Publications {
    /// Whether something else is published than what was taken up.
    pub(super) fn have_changed(&self) -> bool {
        matches!((&self.taken_up, &self.seen), (Some(taken_up), Some(seen)) if taken_up != seen)
    }
}

/// Reads the fingerprint of these publications.
pub(super) async fn fingerprint(client: &PgClient, publications: &[String]) -> Result<String, CatalogError> {
    let row = client.query_one(FINGERPRINT, &[&publications]).await;
    row.and_then(|row| row.try_get(0)).map_err(catalog::publisher_query("what is published"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_on_both_sides_can_have_changed() {
        let check = |taken_up: Option<&str>, seen: Option<&str>, expected: bool| {
            let publications =
                Publications { taken_up: taken_up.map(str::to_owned), seen: seen.map(str::to_owned) };
            assert_eq!(publications.have_changed(), expected, "{publications:?}");
        };
        check(None, None, false);
        check(None, Some("b"), false);
        check(Some("a"), None, false);
        check(Some("a"), Some("a"), false);
        check(Some("a"), Some("b"), true);
    }
}
