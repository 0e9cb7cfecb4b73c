//! What does not fit between a published table and its target, with the DDL that corrects it.
//!
//! Pure. An operator runs the statements on the target, in the order in which they are printed; nothing
//! here executes them.

use serde::Serialize;

use crate::error::Diagnosis;
use crate::pg::{QualifiedName, quote_ident};

use super::column_sql::ColumnSql;
use super::definition::{MisfitFacts, OlderRows, SchemaState};
use super::render::table_sql;
use super::{Operations, RuleMisfit, TypeName};

/// A difference that keeps a published table from being applied faithfully.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Misfit {
    pub source: QualifiedName,
    pub target: QualifiedName,
    pub kind: MisfitKind,
    /// The topmost partitioned table that the target is part of, which its columns are altered in.
    #[serde(skip)]
    pub root: Option<QualifiedName>,
    /// The subscription, for the commands in hints; none until [`Misfit::complete`].
    pub subscription: Option<String>,
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
        /// None until [`Misfit::complete`].
        schema: Option<SchemaState>,
        role: String,
        /// The privileges that the role needs on the new table.
        privileges: Vec<&'static str>,
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
        /// What the column has that does not convert with it.
        attached: Attached,
        why: &'static str,
        cure: TypeCure,
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
    /// The mapping's rules for the table refuse it.
    Rule(RuleMisfit),
}

/// What has to be dropped before a column's type can be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Attached {
    Nothing,
    Default,
    Identity,
}

/// How a column's type can be made to take the publisher's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TypeCure {
    Alter,
    /// Values would enter changed, which the mapping can allow.
    AlterOrCoerce,
    /// As before, but it is a user's type, inside which the limits differ.
    AlterInsideOrCoerce,
    /// It is a user's type, whose parts are in another order.
    AlterInside,
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
            Self::Rule(misfit) => misfit.hinders(),
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
            Self::Rule(misfit) => misfit.is_structural(),
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
    /// Adds what the DDL needs in order to leave equal rows, and to be run at all.
    pub fn complete(&mut self, facts: &MisfitFacts) {
        self.subscription = Some(facts.subscription.clone());
        let table = &self.source;
        match &mut self.kind {
            MisfitKind::MissingTable { columns, schema, .. } => {
                *schema = facts.schemas.get(&self.target.schema).copied();
                for column in columns {
                    column.complete(table, facts);
                }
            }
            MisfitKind::MissingColumn(column)
            | MisfitKind::UnfitType { column, .. }
            | MisfitKind::GeneratedColumn { column, .. } => column.complete(table, facts),
            MisfitKind::SchemaReserved
            | MisfitKind::NotATable(_)
            | MisfitKind::NoSchemaUsage { .. }
            | MisfitKind::MissingPrivilege { .. }
            | MisfitKind::RowSecurity { .. }
            | MisfitKind::IdentityAlways { .. }
            | MisfitKind::NotNullWithoutDefault { .. }
            | MisfitKind::NoReplicaIdentity
            | MisfitKind::NoUsableKey { .. }
            | MisfitKind::NoEqualityOperator { .. }
            | MisfitKind::Rule(_) => {}
        }
    }

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
        let mut notes = self.column_notes();
        notes.extend(self.kind_advice().map(str::to_owned));
        notes.extend(self.afterwards());
        match (self.ddl(), notes.as_slice()) {
            (Some(ddl), []) => diagnosis.hint(format!("run on the target: {ddl}")),
            (Some(ddl), notes) => diagnosis.hint(format!("run on the target: {ddl} ({})", notes.join("; "))),
            (None, []) => diagnosis,
            (None, notes) => diagnosis.hint(notes.join("; ")),
        }
    }

    /// Returns what remains to be done after the DDL, if rows of the target may differ from the publisher's.
    fn afterwards(&self) -> Option<String> {
        let why = match &self.kind {
            MisfitKind::MissingTable { columns, .. }
                if columns.iter().all(|column| column.older_rows == OlderRows::ToBeCopied) =>
            {
                return None;
            }
            MisfitKind::MissingTable { .. } => "rows from before are not sent again",
            MisfitKind::MissingColumn(column) if column.leaves_equal_rows() => return None,
            MisfitKind::MissingColumn(_) => {
                "older rows may have other values in this column on the publisher"
            }
            MisfitKind::UnfitType { column, .. } | MisfitKind::GeneratedColumn { column, .. }
                if column.older_rows == OlderRows::ToBeCopied =>
            {
                return None;
            }
            MisfitKind::UnfitType { .. } => {
                "older rows keep the target's values, which the publisher may have changed with the type"
            }
            MisfitKind::GeneratedColumn { is_virtual: false, .. } => {
                "older rows keep the values that the target has computed"
            }
            MisfitKind::GeneratedColumn { is_virtual: true, .. } => "older rows lack the publisher's values",
            MisfitKind::SchemaReserved
            | MisfitKind::NotATable(_)
            | MisfitKind::NoSchemaUsage { .. }
            | MisfitKind::MissingPrivilege { .. }
            | MisfitKind::RowSecurity { .. }
            | MisfitKind::IdentityAlways { .. }
            | MisfitKind::NotNullWithoutDefault { .. }
            | MisfitKind::NoReplicaIdentity
            | MisfitKind::NoUsableKey { .. }
            | MisfitKind::NoEqualityOperator { .. }
            | MisfitKind::Rule(_) => return None,
        };
        let subscription = self.subscription.as_deref().unwrap_or("NAME");
        Some(format!("{why}: afterwards, pgsluice resync {subscription} {}", table_sql(&self.source)))
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
            MisfitKind::MissingColumn(column) if column.name != column.source => format!(
                "target table {table} lacks column \"{}\", to which the published column \"{}\" goes",
                column.name, column.source
            ),
            MisfitKind::MissingColumn(column) => {
                format!("target table {table} lacks the published column \"{}\"", column.name)
            }
            MisfitKind::Rule(misfit) => misfit.primary(&self.source.to_string(), &table.to_string()),
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
            MisfitKind::Rule(misfit) => misfit.why(),
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

    /// The columns that the DDL makes or changes.
    fn columns(&self) -> &[ColumnSql] {
        match &self.kind {
            MisfitKind::MissingTable { columns, .. } => columns,
            MisfitKind::MissingColumn(column)
            | MisfitKind::UnfitType { column, .. }
            | MisfitKind::GeneratedColumn { column, .. } => std::slice::from_ref(column),
            _ => &[],
        }
    }

    /// Returns what must be known of the columns that the DDL makes or changes.
    fn column_notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.columns().iter().any(|column| column.custom) {
            notes.push("the target needs the types that users have created, first".to_owned());
        }
        for column in self.columns() {
            if let Some(collation) = &column.lost_collation {
                notes.push(format!(
                    "the target has no collation {}.{}, so \"{}\" sorts as its database does",
                    quote_ident(&collation.schema),
                    quote_ident(&collation.name),
                    column.name
                ));
            }
        }
        notes
    }

    /// Returns what must be known of its DDL: what it needs, and what remains to be done after it.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.column_notes();
        notes.extend(self.afterwards());
        notes
    }

    fn kind_advice(&self) -> Option<&'static str> {
        Some(match &self.kind {
            MisfitKind::SchemaReserved | MisfitKind::NotATable(_) => {
                "map the table to another one with [[subscriptions.tables]] source and target, or take it out of the publication"
            }
            MisfitKind::Rule(misfit) => misfit.hint(),
            MisfitKind::MissingTable { .. } => {
                "or map the table to an existing one with [[subscriptions.tables]] source and target"
            }
            MisfitKind::RowSecurity { .. } => {
                "or let the role own the table, without FORCE ROW LEVEL SECURITY"
            }
            MisfitKind::UnfitType { cure: TypeCure::AlterInside, .. } => {
                "create the composite type inside it again, with its columns in the publisher's order"
            }
            MisfitKind::UnfitType { cure: TypeCure::AlterInsideOrCoerce, .. } => {
                "give the types inside it the publisher's limits (ALTER TYPE … ALTER ATTRIBUTE, another domain, or \
                 another range type), or allow the change with coerce = true in the column's rule in [[subscriptions.tables]]"
            }
            MisfitKind::UnfitType { cure: TypeCure::AlterOrCoerce, .. } => {
                "rewrites the table; the server names values that do not convert, and views that must be dropped before; \
                 or allow the change with coerce = true in the column's rule in [[subscriptions.tables]]"
            }
            MisfitKind::UnfitType { .. } => {
                "rewrites the table; the server names values that do not convert, and views that must be dropped before"
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
        })
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
