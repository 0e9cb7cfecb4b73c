//! Reads what the publisher's publications publish, with the columns of the published tables: versions 10 to 18.
//!
//! `publisher_settings` reads the server's settings, `unselectable` what the role may not read.

use std::collections::{BTreeMap, HashMap};

use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Row};

use crate::pg::QualifiedName;
use crate::schema::publication::{
    Attribute, Contradiction, Generated, Member, Publication, Publications, Relation, Resolved, WholeList,
};
use crate::schema::{
    InnerType, OWN_SCHEMA, Operations, PublishedColumn, PublishedRelation, PublishedTable, ReplicaIdentity,
    TableKind, TypeName,
};

use super::catalog_char;
use super::error::{CatalogError, MissingPublications, Side};
use super::inner_types::read_inner_types;

/// Lowest OID of objects that users created (`FirstNormalObjectId`).
pub(super) const FIRST_NORMAL_OID: u32 = 16384;

/// The transaction that put a table `c` into its schema.
const NAMESPACE_VERSION: &str = "(SELECT d.xmin::pg_catalog.text FROM pg_catalog.pg_depend d \
    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.objsubid = 0 \
    AND d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass)";

/// Wraps a failed query on the publisher's catalogs with what it was for.
pub fn publisher_query(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> CatalogError {
    failed(what)
}

fn failed(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> CatalogError {
    move |source| CatalogError::Query { side: Side::Publisher, what, source }
}

/// What the publications publish.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Published {
    /// Every table under the name that the stream will use, ordered by name.
    pub tables: Vec<PublishedTable>,
    pub publications: Vec<SeenPublication>,
    /// Those that do not exist, if others do.
    pub missing: Option<MissingPublications>,
}

/// A publication that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenPublication {
    pub oid: u32,
    pub name: String,
    /// The transaction that wrote its row (`xmin`).
    pub version: String,
}

/// Reads what the publications publish.
///
/// Tables of the schema `pgsluice` are left out: they are the state of another instance, if this
/// database is its target and publishes all its tables.
///
/// # Errors
///
/// None of the publications exists, they contradict each other, or a query failed.
pub async fn published<C: GenericClient + Sync>(
    client: &C,
    server_version_num: u32,
    publications: &[String],
) -> Result<Published, CatalogError> {
    let version = Version(server_version_num);
    let (publications, missing) = read_publications(client, version, publications).await?;
    let mut facts = Publications {
        publications,
        whole_list: if version.0 >= 160_000 { WholeList::AllPublished } else { WholeList::EveryAttribute },
        ..Publications::default()
    };
    read_members(client, version, &mut facts).await?;
    read_relations(client, version, &mut facts).await?;
    let resolved: Vec<Resolved> = facts
        .resolve()
        .into_iter()
        .filter(|resolved| facts.relations[&resolved.oid].name.schema != OWN_SCHEMA)
        .collect();
    let oids: Vec<u32> = resolved.iter().map(|resolved| resolved.oid).collect();
    let columns = read_columns(client, version, &oids).await?;
    let seen = |publication: &Publication| SeenPublication {
        oid: publication.oid,
        name: publication.name.clone(),
        version: publication.version.clone(),
    };
    let publications = facts.publications.iter().map(seen).collect();
    Ok(Published { tables: assemble(&facts, resolved, columns)?, publications, missing })
}

/// The server's `server_version_num`, which decides what its catalogs have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Version(pub(super) u32);

impl Version {
    /// Returns `expression` if the version supports it, else the value for older versions.
    const fn since<'a>(self, major: u32, expression: &'a str, before: &'a str) -> &'a str {
        if self.0 >= major * 10_000 { expression } else { before }
    }
}

async fn read_publications<C: GenericClient + Sync>(
    client: &C,
    version: Version,
    names: &[String],
) -> Result<(Vec<Publication>, Option<MissingPublications>), CatalogError> {
    let sql = format!(
        "SELECT p.oid, p.pubname::pg_catalog.text AS name, p.xmin::pg_catalog.text AS version, p.puballtables,
                p.pubinsert, p.pubupdate, p.pubdelete, {truncate} AS pubtruncate,
                {via_root} AS pubviaroot, {generated} AS pubgenerated
           FROM pg_catalog.pg_publication p ORDER BY p.pubname",
        truncate = version.since(11, "p.pubtruncate", "false"),
        via_root = version.since(13, "p.pubviaroot", "false"),
        generated = version.since(18, "(p.pubgencols = 's')", "false"),
    );
    let rows = client.query_typed(&sql, &[]).await.map_err(failed("publications"))?;
    let mut existing: BTreeMap<String, Publication> = rows
        .iter()
        .map(|row| {
            let publication = Publication {
                oid: row.get("oid"),
                name: row.get("name"),
                version: row.get("version"),
                all_tables: row.get("puballtables"),
                actions: operations(row),
                via_root: row.get("pubviaroot"),
                generated_columns: row.get("pubgenerated"),
            };
            (publication.name.clone(), publication)
        })
        .collect();
    let missing: Vec<String> = names.iter().filter(|&name| !existing.contains_key(name)).cloned().collect();
    let missing = MissingPublications { missing, existing: existing.keys().cloned().collect() };
    // A name that is given twice counts once.
    let found: Vec<Publication> = names.iter().filter_map(|name| existing.remove(name)).collect();
    match (found.is_empty(), missing.missing.is_empty()) {
        (_, true) => Ok((found, None)),
        (true, false) => Err(CatalogError::MissingPublications(missing)),
        (false, false) => Ok((found, Some(missing))),
    }
}

fn operations(row: &Row) -> Operations {
    let published = [
        ("pubinsert", Operations::INSERT),
        ("pubupdate", Operations::UPDATE),
        ("pubdelete", Operations::DELETE),
        ("pubtruncate", Operations::TRUNCATE),
    ];
    published.into_iter().filter(|&(column, _)| row.get(column)).map(|(_, operation)| operation).collect()
}

/// Reads the tables and schemas that the publications name.
async fn read_members<C: GenericClient + Sync>(
    client: &C,
    version: Version,
    facts: &mut Publications,
) -> Result<(), CatalogError> {
    let publications: Vec<u32> = facts.publications.iter().map(|publication| publication.oid).collect();
    let sql = format!(
        "SELECT r.oid, r.prpubid, r.prrelid, {columns} AS columns, {filter} AS filter
           FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = ANY ($1)",
        columns = version.since(15, "r.prattrs::pg_catalog.int2[]", "NULL::pg_catalog.int2[]"),
        filter = version.since(15, "pg_catalog.pg_get_expr(r.prqual, r.prrelid)", "NULL::pg_catalog.text"),
    );
    let rows = client.query_typed(&sql, &[(&publications, Type::OID_ARRAY)]).await;
    for row in rows.map_err(failed("the publications' tables"))? {
        let member = Member { oid: row.get("oid"), columns: row.get("columns"), filter: row.get("filter") };
        facts.members.insert((row.get("prpubid"), row.get("prrelid")), member);
    }
    if version.0 >= 150_000 {
        let sql = "SELECT n.oid, n.pnpubid, n.pnnspid FROM pg_catalog.pg_publication_namespace n
                    WHERE n.pnpubid = ANY ($1)";
        let rows = client.query_typed(sql, &[(&publications, Type::OID_ARRAY)]).await;
        let rows = rows.map_err(failed("the publications' schemas"))?;
        let schema = |row: &Row| ((row.get("pnpubid"), row.get("pnnspid")), row.get("oid"));
        facts.schemas = rows.iter().map(schema).collect();
    }
    Ok(())
}

/// Reads every relation that a publication names or implies, with the partitions below and the
/// partitioned tables above it, as far as `is_publishable_class` (`pg_publication.c`) accepts them.
async fn read_relations<C: GenericClient + Sync>(
    client: &C,
    version: Version,
    facts: &mut Publications,
) -> Result<(), CatalogError> {
    let all = facts.publications.iter().any(|publication| publication.all_tables);
    let named: Vec<u32> = facts.members.keys().map(|&(_, relation)| relation).collect();
    let schemas: Vec<u32> = facts.schemas.keys().map(|&(_, namespace)| namespace).collect();
    let sql = format!(
        "WITH RECURSIVE edge AS (
           SELECT i.inhrelid AS child, i.inhparent AS parent, i.xmin::pg_catalog.text AS attached
             FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
            WHERE c.relispartition AND c.relkind IN ('r', 'p') {attached}
         ), down AS (
           SELECT c.oid FROM pg_catalog.pg_class c
            WHERE c.relkind IN ('r', 'p')
              AND ($1 OR c.oid = ANY ($2) OR c.relnamespace = ANY ($3))
           UNION SELECT e.child FROM down d JOIN edge e ON e.parent = d.oid
         ), tree AS (
           SELECT d.oid FROM down d
           UNION SELECT e.parent FROM tree t JOIN edge e ON e.child = t.oid
         )
         SELECT c.oid, n.nspname::pg_catalog.text AS schema, c.relname::pg_catalog.text AS name,
                c.relnamespace, c.relkind, c.relreplident, c.relnatts, e.parent, e.attached,
                {moved} AS moved,
                CASE WHEN c.reltuples >= 0 AND {counted} THEN c.reltuples::pg_catalog.float8 END AS rows
           FROM tree t
           JOIN pg_catalog.pg_class c ON c.oid = t.oid
           JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
           LEFT JOIN edge e ON e.child = c.oid
          WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND c.oid >= {FIRST_NORMAL_OID}",
        attached = version.since(14, "AND NOT i.inhdetachpending", ""),
        // ALTER TABLE … SET SCHEMA writes this row, and nothing else does (`changeDependencyFor` in
        // `pg_depend.c`).
        moved = if schemas.is_empty() { "NULL::pg_catalog.text" } else { NAMESPACE_VERSION },
        // Before 14, a table that was never analyzed has 0 rows in 0 pages, like an empty one.
        counted = version.since(14, "true", "c.relpages > 0"),
    );
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
        [(&all, Type::BOOL), (&named, Type::OID_ARRAY), (&schemas, Type::OID_ARRAY)];
    let rows = client.query_typed(&sql, &parameters).await.map_err(failed("published tables"))?;
    facts.relations = rows.iter().map(|row| (row.get("oid"), relation(row))).collect();
    Ok(())
}

fn relation(row: &Row) -> Relation {
    Relation {
        oid: row.get("oid"),
        name: QualifiedName::new(row.get::<_, String>("schema"), row.get::<_, String>("name")),
        namespace: row.get("relnamespace"),
        kind: match catalog_char(row, "relkind") {
            'p' => TableKind::Partitioned,
            _ => TableKind::Table,
        },
        parent: row.get("parent"),
        attached: row.get("attached"),
        moved: row.get("moved"),
        identity: match catalog_char(row, "relreplident") {
            'n' => ReplicaIdentity::Nothing,
            'f' => ReplicaIdentity::Full,
            'i' => ReplicaIdentity::Index,
            _ => ReplicaIdentity::Default,
        },
        rows: row.get("rows"),
        attributes: usize::try_from(row.get::<_, i16>("relnatts")).unwrap_or(0),
    }
}

pub(super) type Columns = HashMap<u32, Vec<(Attribute, PublishedColumn)>>;

/// Reads live columns in attribute order, with the type below a domain and the flag that
/// `logicalrep_write_attrs` (`proto.c`) would send.
pub(super) async fn read_columns<C: GenericClient + Sync>(
    client: &C,
    version: Version,
    relations: &[u32],
) -> Result<Columns, CatalogError> {
    let sql = format!(
        "WITH RECURSIVE col AS (
           SELECT a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, {generated} AS generated
             FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped
         ), below AS (
           SELECT DISTINCT c.atttypid AS type, c.atttypid AS base, -1 AS typmod FROM col c
           UNION ALL
           SELECT b.type, t.typbasetype, CASE WHEN b.typmod >= 0 THEN b.typmod ELSE t.typtypmod END
             FROM below b JOIN pg_catalog.pg_type t ON t.oid = b.base AND t.typtype = 'd'
         )
         SELECT c.attrelid, c.attnum, c.attname::pg_catalog.text AS name, c.generated,
                n.nspname::pg_catalog.text AS type_schema, t.typname::pg_catalog.text AS type_name,
                CASE WHEN c.atttypmod >= 0 THEN c.atttypmod ELSE b.typmod END AS typmod,
                b.base, NULLIF(c.atttypid, b.base) AS domain,
                r.relreplident = 'f' OR EXISTS (
                  SELECT FROM pg_catalog.pg_index i
                   WHERE i.indrelid = c.attrelid
                     AND CASE r.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident
                                             ELSE false END
                     AND i.indisvalid AND i.indislive AND i.indimmediate
                     AND c.attnum = ANY ((i.indkey::pg_catalog.int2[])[0:{key_columns} - 1])
                ) AS key
           FROM col c
           JOIN pg_catalog.pg_class r ON r.oid = c.attrelid
           JOIN below b ON b.type = c.atttypid
           JOIN pg_catalog.pg_type t ON t.oid = b.base AND t.typtype <> 'd'
           JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
          ORDER BY c.attrelid, c.attnum",
        generated = version.since(12, "a.attgenerated", r#"''::pg_catalog."char""#),
        key_columns = version.since(11, "i.indnkeyatts", "i.indnatts"),
    );
    let rows = client.query_typed(&sql, &[(&relations, Type::OID_ARRAY)]).await;
    let rows = rows.map_err(failed("published columns"))?;
    let inner = read_inner_types(client, rows.iter().map(|row| row.get("base"))).await;
    let inner = inner.map_err(failed("types of published columns"))?;
    let mut columns = Columns::new();
    for row in &rows {
        let inner_types = inner.get(&row.get("base")).cloned().unwrap_or_default();
        columns.entry(row.get("attrelid")).or_default().push(column(row, inner_types));
    }
    Ok(columns)
}

fn column(row: &Row, inner_types: Vec<InnerType>) -> (Attribute, PublishedColumn) {
    let generated = match catalog_char(row, "generated") {
        's' => Generated::Stored,
        'v' => Generated::Virtual,
        _ => Generated::No,
    };
    let column = PublishedColumn {
        name: row.get("name"),
        target: None,
        ty: TypeName { schema: row.get("type_schema"), name: row.get("type_name") },
        typmod: row.get("typmod"),
        key: row.get("key"),
        domain: row.get("domain"),
        inner_types,
    };
    (Attribute { number: row.get("attnum"), generated }, column)
}

fn assemble(
    facts: &Publications,
    resolved: Vec<Resolved>,
    mut columns: Columns,
) -> Result<Vec<PublishedTable>, CatalogError> {
    let mut tables = Vec::with_capacity(resolved.len());
    let (mut lists, mut generated) = (Vec::new(), Vec::new());
    for resolved in resolved {
        let relation = &facts.relations[&resolved.oid];
        let all = columns.remove(&resolved.oid).unwrap_or_default();
        let attributes: Vec<Attribute> = all.iter().map(|&(attribute, _)| attribute).collect();
        match facts.columns(&resolved, &attributes) {
            Err(Contradiction::ColumnLists) => lists.push(relation.name.clone()),
            Err(Contradiction::GeneratedColumns) => generated.push(relation.name.clone()),
            Ok(sent) => {
                let named = |(attribute, column): &(Attribute, PublishedColumn)| {
                    (attribute.number, column.name.clone())
                };
                let all_columns = all.iter().map(named).collect();
                let sent: Vec<_> =
                    all.into_iter().filter(|(attribute, _)| sent.contains(&attribute.number)).collect();
                tables.push(table(facts, relation, resolved, sent, all_columns));
            }
        }
    }
    if !lists.is_empty() {
        return Err(CatalogError::DifferentColumnLists { tables: lists });
    }
    if !generated.is_empty() {
        return Err(CatalogError::DifferentGeneratedColumns { tables: generated });
    }
    tables.sort_by(|a, b| a.relation.name.cmp(&b.relation.name));
    Ok(tables)
}

fn table(
    facts: &Publications,
    relation: &Relation,
    resolved: Resolved,
    sent: Vec<(Attribute, PublishedColumn)>,
    all_columns: Vec<(i16, String)>,
) -> PublishedTable {
    PublishedTable {
        marks: facts.marks(relation),
        oid: relation.oid,
        kind: relation.kind,
        actions: resolved.actions,
        publications: resolved.publications.iter().map(|&at| facts.publications[at].name.clone()).collect(),
        row_filters: resolved.row_filters,
        rows_estimated: resolved.rows_estimated,
        all_columns,
        has_generated: sent.iter().any(|(attribute, _)| attribute.generated != Generated::No),
        relation: PublishedRelation {
            name: relation.name.clone(),
            identity: relation.identity,
            columns: sent.into_iter().map(|(_, column)| column).collect(),
        },
    }
}
