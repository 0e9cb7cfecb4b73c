//! Reads who owns the target's tables, and whether the applying session may become that role.

use std::collections::HashMap;

use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Row};

use super::error::CatalogError;
use super::target::failed;
use crate::schema::{TableOwner, TablePrivileges};

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
