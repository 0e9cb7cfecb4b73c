//! What does not fit between a published table and its target, with the DDL that corrects it.
//!
//! Pure. An operator runs the statements on the target, in the order in which they are printed; nothing
//! here executes them.

use serde::Serialize;

use crate::error::Diagnosis;
use crate::pg::{QualifiedName, quote_ident};

use super::render::{columns_sql, table_sql, type_sql};
use super::{Operations, PublishedColumn, TypeName};

/// A difference that keeps a published table from being applied faithfully.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Misfit {
    pub source: QualifiedName,
    pub target: QualifiedName,
    pub kind: MisfitKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MisfitKind {
    /// The target's schema belongs to the system or to pgsluice.
    SchemaReserved,
    MissingTable {
        columns: Vec<ColumnSql>,
        /// Names of the replica identity's columns, for the new table's primary key.
        key: Vec<String>,
    },
    /// The name belongs to another relation (view, sequence…), given by its `relkind`.
    NotATable(char),
    /// The role lacks USAGE on the target's schema.
    NoSchemaUsage {
        role: String,
    },
    MissingPrivilege {
        role: String,
        privileges: Vec<&'static str>,
    },
    /// Row-level security would hide rows or refuse changes.
    RowSecurity {
        role: String,
    },
    MissingColumn(ColumnSql),
    UnfitType {
        column: ColumnSql,
        /// The target column's type as PostgreSQL writes it.
        target_type: String,
        why: &'static str,
    },
    /// The target's column is generated.
    GeneratedColumn {
        column: ColumnSql,
        is_virtual: bool,
    },
    /// An update changes the value of this column, which is GENERATED ALWAYS AS IDENTITY, so that no UPDATE
    /// can set it. A comparison does not find it; only such an update shows it.
    IdentityAlways {
        column: String,
    },
    /// The publisher marked no column as replica identity, so updates and deletes have nothing to find their
    /// rows by. A comparison only warns of it; an update or delete that comes nevertheless shows it.
    NoReplicaIdentity,
    /// A column that only the target has refuses NULL and has no default.
    NotNullWithoutDefault {
        column: String,
        cure: NotNullCure,
    },
    /// There is no unique key by which updates and deletes could find their rows.
    NoUsableKey {
        columns: Vec<String>,
        place: KeyPlace,
    },
    /// Rows have to be found by columns whose types have no equality operator: names and types.
    NoEqualityOperator {
        columns: Vec<(String, String)>,
    },
}

/// A published column with its type as SQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnSql {
    pub name: String,
    pub ty: String,
}

impl ColumnSql {
    #[must_use]
    pub fn of(column: &PublishedColumn) -> Self {
        Self { name: column.name.clone(), ty: type_sql(&column.ty, column.typmod) }
    }

    fn sql(&self) -> String {
        format!("{} {}", quote_ident(&self.name), self.ty)
    }
}

/// How a column that only the target has, and that refuses NULL, can be made to accept new rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NotNullCure {
    DropNotNull,
    /// Drop NOT NULL of the column's domain.
    DropDomainNotNull(TypeName),
    /// Make it an identity column: it is in the primary key and of an integer type.
    MakeIdentity,
    /// Give it a default that its owner chooses: it is in the primary key.
    Default,
}

/// Where a new key can be created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyPlace {
    PrimaryKey,
    /// As a unique index, because the table already has another primary key.
    UniqueIndex,
    /// On the partitions only, because the partition key has other columns.
    Leaves(Vec<QualifiedName>),
}

impl MisfitKind {
    /// Returns the operations that it keeps from being applied.
    #[must_use]
    pub fn hinders(&self) -> Operations {
        match self {
            Self::SchemaReserved
            | Self::MissingTable { .. }
            | Self::NotATable(_)
            | Self::NoSchemaUsage { .. }
            | Self::MissingColumn(_)
            | Self::UnfitType { .. } => Operations::ALL,
            Self::MissingPrivilege { privileges, .. } => {
                privileges.iter().fold(Operations::NONE, |all, name| all.or(operations_with(name)))
            }
            Self::RowSecurity { .. } => Operations::OF_ROWS,
            Self::GeneratedColumn { .. } => Operations::INSERT.or(Operations::UPDATE),
            Self::IdentityAlways { .. } => Operations::UPDATE,
            Self::NotNullWithoutDefault { .. } => Operations::INSERT,
            Self::NoReplicaIdentity | Self::NoUsableKey { .. } | Self::NoEqualityOperator { .. } => {
                Operations::OF_EXISTING_ROWS
            }
        }
    }

    /// Whether rows cannot even be planned.
    pub(super) fn is_structural(&self) -> bool {
        match self {
            Self::SchemaReserved
            | Self::MissingTable { .. }
            | Self::NotATable(_)
            | Self::MissingColumn(_)
            | Self::UnfitType { .. } => true,
            Self::NoSchemaUsage { .. }
            | Self::MissingPrivilege { .. }
            | Self::RowSecurity { .. }
            | Self::GeneratedColumn { .. }
            | Self::IdentityAlways { .. }
            | Self::NotNullWithoutDefault { .. }
            | Self::NoReplicaIdentity
            | Self::NoUsableKey { .. }
            | Self::NoEqualityOperator { .. } => false,
        }
    }
}

/// Returns the operations that need a privilege. Rows are found by WHERE, which needs SELECT.
fn operations_with(privilege: &str) -> Operations {
    match privilege {
        "SELECT" => Operations::OF_EXISTING_ROWS,
        "INSERT" => Operations::INSERT,
        "UPDATE" => Operations::UPDATE,
        "DELETE" => Operations::DELETE,
        _ => Operations::TRUNCATE,
    }
}

impl Misfit {
    /// Returns what of it keeps these operations from being applied: none if it hinders others only, and of
    /// missing privileges those that they need.
    #[must_use]
    pub fn hindering(&self, operations: Operations) -> Option<Self> {
        let mut misfit = self.clone();
        if let MisfitKind::MissingPrivilege { privileges, .. } = &mut misfit.kind {
            privileges.retain(|name| operations_with(name).meet(operations));
        }
        misfit.kind.hinders().meet(operations).then_some(misfit)
    }

    /// Returns what is wrong, the facts, and the remedy.
    #[must_use]
    pub fn diagnosis(&self) -> Diagnosis {
        let diagnosis = Diagnosis::new(self.primary()).detail(self.detail());
        match (self.ddl(), self.advice()) {
            (Some(ddl), None) => diagnosis.hint(format!("run on the target: {ddl}")),
            (Some(ddl), Some(advice)) => diagnosis.hint(format!("run on the target: {ddl} ({advice})")),
            (None, Some(advice)) => diagnosis.hint(advice),
            (None, None) => diagnosis,
        }
    }

    fn primary(&self) -> String {
        let table = &self.target;
        match &self.kind {
            MisfitKind::SchemaReserved => {
                format!("target table {table} is in a schema that replication must not write to")
            }
            MisfitKind::MissingTable { .. } => format!("target table {table} does not exist"),
            MisfitKind::NotATable(relkind) => {
                format!("target {table} is {}, not a table", relkind_name(*relkind))
            }
            MisfitKind::NoSchemaUsage { role } => {
                format!("role \"{role}\" may not use the schema of target table {table}")
            }
            MisfitKind::MissingPrivilege { role, privileges } => {
                format!("role \"{role}\" lacks {} on target table {table}", privileges.join(", "))
            }
            MisfitKind::RowSecurity { role } => {
                format!("row-level security of target table {table} applies to role \"{role}\"")
            }
            MisfitKind::MissingColumn(column) => {
                format!("target table {table} lacks the published column \"{}\"", column.name)
            }
            MisfitKind::UnfitType { column, target_type, .. } => format!(
                "column \"{}\" of target table {table} is {target_type}, which cannot hold the publisher's {}",
                column.name, column.ty
            ),
            MisfitKind::GeneratedColumn { column, .. } => format!(
                "column \"{}\" of target table {table} is generated, but the publisher sends values for it",
                column.name
            ),
            MisfitKind::IdentityAlways { column } => format!(
                "column \"{column}\" of target table {table} is GENERATED ALWAYS AS IDENTITY and cannot be updated"
            ),
            MisfitKind::NotNullWithoutDefault { column, .. } => format!(
                "column \"{column}\" of target table {table} is NOT NULL without a default, and is not published"
            ),
            MisfitKind::NoReplicaIdentity => {
                format!("rows of target table {table} cannot be found: no replica identity was published")
            }
            MisfitKind::NoUsableKey { columns, .. } => format!(
                "target table {table} has no unique key on the replica identity ({})",
                columns.join(", ")
            ),
            MisfitKind::NoEqualityOperator { columns } => format!(
                "rows of target table {table} cannot be found: no equality for {}",
                columns.iter().map(|(name, ty)| format!("\"{name}\" ({ty})")).collect::<Vec<_>>().join(", ")
            ),
        }
    }

    fn detail(&self) -> String {
        let published = format!("Published as {}", self.source);
        let why = match &self.kind {
            MisfitKind::SchemaReserved => "that schema belongs to the system or to pgsluice",
            MisfitKind::UnfitType { why, .. } => why,
            MisfitKind::RowSecurity { .. } => "rows would be hidden from updates and deletes, or refused",
            MisfitKind::NotNullWithoutDefault { .. } => "no replicated row could be inserted",
            MisfitKind::NoUsableKey { .. } => "updates and deletes would not find their rows",
            MisfitKind::NoEqualityOperator { .. } => {
                "its replica identity is FULL, so rows are compared column by column"
            }
            MisfitKind::IdentityAlways { .. } => {
                "an update changes its value, which SQL refuses for such a column"
            }
            MisfitKind::NoReplicaIdentity => {
                "the publisher sent an update or delete, and marked no column by which its row could be found"
            }
            MisfitKind::MissingTable { .. }
            | MisfitKind::NotATable(_)
            | MisfitKind::NoSchemaUsage { .. }
            | MisfitKind::MissingPrivilege { .. }
            | MisfitKind::MissingColumn(_)
            | MisfitKind::GeneratedColumn { .. } => return format!("{published}."),
        };
        format!("{published}; {why}.")
    }

    /// Returns the statements that correct it, if statements can. Run in the order of the misfits, they
    /// succeed.
    #[must_use]
    pub fn ddl(&self) -> Option<String> {
        let table = table_sql(&self.target);
        Some(match &self.kind {
            MisfitKind::SchemaReserved
            | MisfitKind::NotATable(_)
            | MisfitKind::NoReplicaIdentity
            | MisfitKind::NoEqualityOperator { .. } => return None,
            MisfitKind::MissingTable { columns, key } => self.create_table(columns, key),
            MisfitKind::NoSchemaUsage { role } => {
                format!(
                    "GRANT USAGE ON SCHEMA {} TO {};",
                    quote_ident(&self.target.schema),
                    quote_ident(role)
                )
            }
            MisfitKind::MissingPrivilege { role, privileges } => {
                format!("GRANT {} ON TABLE {table} TO {};", privileges.join(", "), quote_ident(role))
            }
            MisfitKind::RowSecurity { role } => format!("ALTER ROLE {} BYPASSRLS;", quote_ident(role)),
            MisfitKind::MissingColumn(column) => format!("ALTER TABLE {table} ADD COLUMN {};", column.sql()),
            MisfitKind::UnfitType { column, .. } => {
                let name = quote_ident(&column.name);
                // The conversion goes through text, as replicated values do, because the types may have
                // no cast.
                let ty = &column.ty;
                format!("ALTER TABLE {table} ALTER COLUMN {name} TYPE {ty} USING {name}::text::{ty};")
            }
            MisfitKind::GeneratedColumn { column, is_virtual: true } => {
                let name = quote_ident(&column.name);
                format!("ALTER TABLE {table} DROP COLUMN {name}, ADD COLUMN {};", column.sql())
            }
            MisfitKind::GeneratedColumn { column, is_virtual: false } => {
                format!("ALTER TABLE {table} ALTER COLUMN {} DROP EXPRESSION;", quote_ident(&column.name))
            }
            MisfitKind::IdentityAlways { column } => {
                format!("ALTER TABLE {table} ALTER COLUMN {} SET GENERATED BY DEFAULT;", quote_ident(column))
            }
            MisfitKind::NotNullWithoutDefault { column, cure } => {
                let column = quote_ident(column);
                match cure {
                    NotNullCure::DropNotNull => {
                        format!("ALTER TABLE {table} ALTER COLUMN {column} DROP NOT NULL;")
                    }
                    NotNullCure::DropDomainNotNull(domain) => {
                        format!("ALTER DOMAIN {} DROP NOT NULL;", type_sql(domain, -1))
                    }
                    NotNullCure::MakeIdentity => format!(
                        "ALTER TABLE {table} ALTER COLUMN {column} ADD GENERATED BY DEFAULT AS IDENTITY;"
                    ),
                    NotNullCure::Default => return None,
                }
            }
            MisfitKind::NoUsableKey { columns, place } => {
                let columns = columns_sql(columns);
                match place {
                    KeyPlace::PrimaryKey => format!("ALTER TABLE {table} ADD PRIMARY KEY ({columns});"),
                    KeyPlace::UniqueIndex => format!("CREATE UNIQUE INDEX ON {table} ({columns});"),
                    KeyPlace::Leaves(leaves) if leaves.is_empty() => return None,
                    KeyPlace::Leaves(leaves) => leaves
                        .iter()
                        .map(|leaf| format!("CREATE UNIQUE INDEX ON {} ({columns});", table_sql(leaf)))
                        .collect::<Vec<_>>()
                        .join(" "),
                }
            }
        })
    }

    fn create_table(&self, columns: &[ColumnSql], key: &[String]) -> String {
        let mut parts: Vec<String> = columns.iter().map(ColumnSql::sql).collect();
        if !key.is_empty() {
            parts.push(format!("PRIMARY KEY ({})", columns_sql(key)));
        }
        let schema = match self.target.schema.as_str() {
            "public" => String::new(),
            schema => format!("CREATE SCHEMA IF NOT EXISTS {}; ", quote_ident(schema)),
        };
        format!("{schema}CREATE TABLE {} ({});", table_sql(&self.target), parts.join(", "))
    }

    /// Returns what the operator must know besides the statement.
    fn advice(&self) -> Option<String> {
        let advice = match &self.kind {
            MisfitKind::SchemaReserved | MisfitKind::NotATable(_) => {
                "map the table to another one with [[subscriptions.tables]] source and target, or take it out of the publication"
            }
            MisfitKind::MissingTable { .. } => {
                "or map the table to an existing one with [[subscriptions.tables]] source and target"
            }
            MisfitKind::RowSecurity { .. } => {
                "or let the role own the table, without FORCE ROW LEVEL SECURITY"
            }
            MisfitKind::UnfitType { .. } => {
                "rewrites the table; values that do not convert are named by the server"
            }
            MisfitKind::NotNullWithoutDefault { cure: NotNullCure::Default, .. } => {
                "give the column a default: ALTER TABLE … ALTER COLUMN … SET DEFAULT …; (it is part of the primary key)"
            }
            MisfitKind::NotNullWithoutDefault { cure: NotNullCure::MakeIdentity, .. } => return None,
            MisfitKind::NotNullWithoutDefault { .. } => "or give the column a default",
            MisfitKind::NoUsableKey { place: KeyPlace::Leaves(leaves), .. } if leaves.is_empty() => {
                "give each partition a unique key on these columns as it is created"
            }
            MisfitKind::NoUsableKey { place: KeyPlace::Leaves(_), .. } => {
                "and the same for partitions to come"
            }
            MisfitKind::NoReplicaIdentity => {
                "give the table, and each partition that is published as it, a replica identity on the publisher; this \
                 transaction was written without one, and has to be skipped and its rows corrected by hand"
            }
            MisfitKind::NoEqualityOperator { .. } => {
                "give the table a primary key on the publisher and REPLICA IDENTITY DEFAULT, or give the target a unique key over published NOT NULL columns"
            }
            MisfitKind::NoSchemaUsage { .. }
            | MisfitKind::MissingPrivilege { .. }
            | MisfitKind::MissingColumn(_)
            | MisfitKind::GeneratedColumn { .. }
            | MisfitKind::IdentityAlways { .. }
            | MisfitKind::NoUsableKey { .. } => return None,
        };
        Some(advice.to_owned())
    }
}

fn relkind_name(relkind: char) -> &'static str {
    match relkind {
        'v' => "a view",
        'm' => "a materialized view",
        'f' => "a foreign table",
        'S' => "a sequence",
        'i' | 'I' => "an index",
        'c' => "a composite type",
        't' => "a TOAST table",
        _ => "another kind of relation",
    }
}
