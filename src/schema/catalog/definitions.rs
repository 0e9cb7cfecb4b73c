//! Reads what the DDL of a misfit needs: the publisher's definitions of columns, and the target's schemas.
//!
//! It is asked only once something does not fit.

use std::collections::{HashMap, HashSet};

use tokio_postgres::GenericClient;
use tokio_postgres::types::Type;

use crate::pg::QualifiedName;
use crate::schema::definition::{ColumnDefinition, Definitions, SchemaState, collations};
use crate::schema::older_rows::MissingValue;
use crate::schema::render::type_sql;
use crate::schema::{Misfit, MisfitFacts, TypeName};

use super::column_facts::{BASE_TYPE, publishers_missing_values_sql, rewritten_files_sql};
use super::error::CatalogError;
use super::publisher_query;
use super::target::{self, NAMED, query_named};

/// Returns what the catalogs say about the tables of `misfits`. `publisher` is a session with its
/// `server_version_num`. Subscription and standings are left out.
///
/// # Errors
///
/// A query failed.
pub async fn misfit_facts<P: GenericClient + Sync, T: GenericClient + Sync>(
    (publisher, version): (&P, u32),
    target: &T,
    misfits: &[Misfit],
) -> Result<MisfitFacts, CatalogError> {
    let mut sources: Vec<QualifiedName> = misfits.iter().map(|misfit| misfit.source.clone()).collect();
    sources.sort();
    sources.dedup();
    let schemas: Vec<&str> = misfits.iter().map(|misfit| misfit.target.schema.as_str()).collect();
    let (definitions, schemas) =
        tokio::try_join!(column_definitions(publisher, version, &sources), schema_states(target, &schemas))?;
    let collations = known_collations(target, &collations(&definitions)).await?;
    Ok(MisfitFacts { definitions, schemas, collations, ..MisfitFacts::default() })
}

/// Returns the definitions of all columns of these tables.
async fn column_definitions<C: GenericClient + Sync>(
    client: &C,
    server_version_num: u32,
    tables: &[QualifiedName],
) -> Result<Definitions, CatalogError> {
    let sql = format!(
        "SELECT n.nspname::pg_catalog.text AS schema, c.relname::pg_catalog.text AS table,
                a.attname::pg_catalog.text AS column, a.attnum, a.attnotnull,
                base.schema AS type_schema, base.name AS type_name, base.typmod, {missing} AS missing,
                a.atthasdef OR a.attidentity <> '' OR a.attnotnull AS filled,
                pg_catalog.cardinality({files}) > 0 AS rewritten,
                cn.nspname::pg_catalog.text AS collation_schema, l.collname::pg_catalog.text AS collation
           FROM {NAMED}
           JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
           JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
           LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation AND a.attcollation <> t.typcollation
           LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = l.collnamespace
          CROSS JOIN {BASE_TYPE}",
        missing = publishers_missing_values_sql(server_version_num),
        files = rewritten_files_sql(),
    );
    let rows = query_named(client, &sql, tables).await;
    let mut definitions = Definitions::new();
    for row in rows.map_err(publisher_query("definitions of columns"))? {
        let ty = TypeName { schema: row.get("type_schema"), name: row.get("type_name") };
        let filling = MissingValue::of(row.get("missing")).filling(row.get("filled") || row.get("rewritten"));
        let collation = row.get::<_, Option<String>>("collation_schema").zip(row.get("collation"));
        let definition = ColumnDefinition {
            number: row.get("attnum"),
            not_null: row.get("attnotnull"),
            collation: collation.map(|(schema, name)| TypeName { schema, name }),
            filling,
            ty: type_sql(&ty, row.get("typmod")),
        };
        let table = QualifiedName::new(row.get::<_, String>("schema"), row.get::<_, String>("table"));
        definitions.entry(table).or_default().insert(row.get("column"), definition);
    }
    Ok(definitions)
}

/// Returns those collations that the target's database has and can use.
async fn known_collations<C: GenericClient + Sync>(
    client: &C,
    names: &[&TypeName],
) -> Result<HashSet<TypeName>, CatalogError> {
    if names.is_empty() {
        return Ok(HashSet::new());
    }
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        names.iter().map(|name| (name.schema.as_str(), name.name.as_str())).unzip();
    let sql = "SELECT n.nspname::pg_catalog.text AS schema, c.collname::pg_catalog.text AS name
                 FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) q(schema, name)
                 JOIN pg_catalog.pg_namespace n ON n.nspname = q.schema
                 JOIN pg_catalog.pg_collation c ON c.collnamespace = n.oid AND c.collname = q.name
                WHERE c.collencoding IN
                      (-1, pg_catalog.pg_char_to_encoding(pg_catalog.getdatabaseencoding()))";
    let rows = client.query_typed(sql, &[(&schemas, Type::TEXT_ARRAY), (&names, Type::TEXT_ARRAY)]).await;
    let rows = rows.map_err(target::failed("collations"))?;
    Ok(rows.iter().map(|row| TypeName { schema: row.get("schema"), name: row.get("name") }).collect())
}

/// Returns the state of each of the target's schemas of these names, for the connected role.
async fn schema_states<C: GenericClient + Sync>(
    client: &C,
    names: &[&str],
) -> Result<HashMap<String, SchemaState>, CatalogError> {
    let sql = "SELECT q.name, pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS usable
                 FROM pg_catalog.unnest($1) q(name)
                 LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = q.name";
    let rows = client.query_typed(sql, &[(&names, Type::TEXT_ARRAY)]).await;
    let state = |row: &tokio_postgres::Row| match row.get("usable") {
        None => SchemaState::Missing,
        Some(false) => SchemaState::Unusable,
        Some(true) => SchemaState::Usable,
    };
    let rows = rows.map_err(target::failed("schemas"))?;
    Ok(rows.iter().map(|row| (row.get("name"), state(row))).collect())
}
