//! Reads who owns the target's tables and whether the applying session may become that role, and which constraints
//! replicated rows are not held to.

use std::collections::HashMap;

use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Row};

use super::error::CatalogError;
use super::target::failed;
use crate::schema::{NotEnforced, TableOwner, TablePrivileges};

/// Owners of the tables `$1`, but for `current_user`. SET ROLE is allowed to members of a role, from version 16 on to
/// those with the option SET (`check_role` in `variable.c`); it asks for the session's user, whatever the present role.
/// A role is subject to the row-level security of its own tables if it is forced (`check_enable_rls` in `rls.c`).
const OWNERS: &str = "SELECT c.oid, o.rolname::pg_catalog.text AS owner, o.rolsuper AS is_superuser,
       CASE WHEN pg_catalog.current_setting('server_version_num')::pg_catalog.int4 >= 160000
            THEN pg_catalog.pg_has_role(session_user, o.oid, 'SET')
            ELSE pg_catalog.pg_has_role(session_user, o.oid, 'MEMBER') END AS may_be_taken,
       c.relrowsecurity AND c.relforcerowsecurity AND NOT (o.rolsuper OR o.rolbypassrls) AS row_security,
       pg_catalog.has_schema_privilege(o.oid, c.relnamespace, 'USAGE') AS schema_usage,
       pg_catalog.has_table_privilege(o.oid, c.oid, 'SELECT') AS can_select,
       pg_catalog.has_table_privilege(o.oid, c.oid, 'INSERT') AS can_insert,
       pg_catalog.has_table_privilege(o.oid, c.oid, 'UPDATE') AS can_update,
       pg_catalog.has_table_privilege(o.oid, c.oid, 'DELETE') AS can_delete,
       pg_catalog.has_table_privilege(o.oid, c.oid, 'TRUNCATE') AS can_truncate
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_roles o ON o.oid = c.relowner
 WHERE c.oid = ANY ($1) AND o.rolname <> current_user";

/// Returns the owners of these tables by the tables' OIDs, without those that `current_user` owns.
pub(super) async fn read_owners<C: GenericClient + Sync>(
    client: &C,
    tables: &[u32],
) -> Result<HashMap<u32, TableOwner>, CatalogError> {
    let rows = client.query_typed(OWNERS, &[(&tables, Type::OID_ARRAY)]).await.map_err(failed("owners"))?;
    Ok(rows.iter().map(|row| (row.get("oid"), owner(row))).collect())
}

/// DEFERRABLE unique and exclusion constraints are checked by a trigger (`unique_key_recheck`) after the row is there;
/// `tgenabled` says in which sessions it fires.
const NOT_ENFORCED: &str =
    "SELECT c.conrelid, c.conname::pg_catalog.text AS name, t.tgname::pg_catalog.text AS trigger
  FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_trigger t ON t.tgconstraint = c.oid
 WHERE c.conrelid = ANY ($1) AND t.tgrelid = c.conrelid AND c.contype IN ('p', 'u', 'x') AND c.condeferrable
   AND t.tgenabled NOT IN ('A', 'R')
 ORDER BY c.conrelid, c.conname";

/// Returns the constraints that are not enforced in a replica session, by the tables' OIDs.
pub(super) async fn read_not_enforced<C: GenericClient + Sync>(
    client: &C,
    tables: &[u32],
) -> Result<HashMap<u32, Vec<NotEnforced>>, CatalogError> {
    let rows = client.query_typed(NOT_ENFORCED, &[(&tables, Type::OID_ARRAY)]).await;
    let mut found: HashMap<u32, Vec<NotEnforced>> = HashMap::new();
    for row in rows.map_err(failed("deferrable constraints"))? {
        let constraint = NotEnforced { constraint: row.get("name"), trigger: row.get("trigger") };
        found.entry(row.get("conrelid")).or_default().push(constraint);
    }
    Ok(found)
}

fn owner(row: &Row) -> TableOwner {
    TableOwner {
        name: row.get("owner"),
        is_superuser: row.get("is_superuser"),
        may_be_taken: row.get("may_be_taken"),
        row_security: row.get("row_security"),
        privileges: privileges(row),
    }
}

/// Reads a role's privileges from columns of these names.
pub(super) fn privileges(row: &Row) -> TablePrivileges {
    TablePrivileges {
        schema_usage: row.get("schema_usage"),
        select: row.get("can_select"),
        insert: row.get("can_insert"),
        update: row.get("can_update"),
        delete: row.get("can_delete"),
        truncate: row.get("can_truncate"),
    }
}
