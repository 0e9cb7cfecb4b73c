//! Warnings about tables that fit but may fail later. They appear in `check`, `status` and the log.

use serde::Serialize;

use crate::error::Diagnosis;
use crate::pg::{QualifiedName, quote_ident};

use super::NotEnforced;
use super::render::table_sql;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    pub source: QualifiedName,
    pub target: QualifiedName,
    pub kind: WarningKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WarningKind {
    /// Some values may be refused when they are applied.
    RiskyType(ColumnTypes),
    /// Values are kept in another form of the same value.
    OtherForm(ColumnTypes),
    /// Values are changed by the target's type, which the mapping allows.
    Coerced(ColumnTypes),
    /// The mapping's rule for a column has no effect.
    RuleWithoutEffect { column: String, why: NoEffect },
    /// All columns of a unique key are the target's own with constant defaults, so the second row
    /// fails.
    ConstantUnique { key: String, columns: Vec<String> },
    /// A CHECK refuses NULL in a column that only the target has and that replication leaves NULL.
    CheckRefusesNull { constraint: String, definition: String },
    /// The session is not a replica, so these act on replicated rows as on any others.
    ActsOnReplicated { triggers: bool, foreign_keys: bool },
    /// Replicated rows are not held to these constraints.
    NotEnforced { constraints: Vec<NotEnforced> },
    /// Triggers of the table's owner run with the privileges of the applying role, which may not become the owner.
    OwnersCode { owner: String, role: String },
    /// GENERATED ALWAYS AS IDENTITY: an update that changes the value would be refused.
    IdentityAlways { column: String },
    /// The key is unique only within each partition.
    LeafKey { columns: Vec<String> },
    /// There is no key, so each update and delete reads the whole table.
    NoKey,
    /// Updates and deletes are published, but the publisher refuses them because there is no replica
    /// identity.
    NoReplicaIdentity,
}

/// Why the mapping's rule for a column has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoEffect {
    NotPublished,
    /// It is to be coerced, and a changed value would find another row, or none.
    FindsRows,
}

/// A column whose types differ, and what follows from that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnTypes {
    pub column: String,
    pub published_type: String,
    pub target_type: String,
    pub why: &'static str,
}

impl ColumnTypes {
    fn diagnosis(&self, target: &QualifiedName) -> Diagnosis {
        let Self { column, published_type, target_type, why } = self;
        Diagnosis::new(format!(
            "column \"{column}\" of target table {target} is {target_type}, the publisher's is {published_type}"
        ))
        .detail(format!("{}.", capitalized(why)))
    }
}

impl NoEffect {
    fn diagnosis(self, column: &str, source: &QualifiedName) -> Diagnosis {
        match self {
            Self::NotPublished => {
                Diagnosis::new(format!("the rule for column \"{column}\" of {source} has no effect"))
                    .detail("The publisher does not send such a column.")
                    .hint("correct the column's name in [[subscriptions.tables]]")
            }
            Self::FindsRows => {
                Diagnosis::new(format!("coerce = true has no effect on column \"{column}\" of {source}"))
                    .detail("Rows are found by it, and a changed value would find another row, or none.")
                    .hint("take coerce out of the column's rule")
            }
        }
    }
}

impl Warning {
    /// Whether it is about the values of a column, whatever the operation.
    #[must_use]
    pub const fn is_about_values(&self) -> bool {
        match self.kind {
            WarningKind::RiskyType(_) | WarningKind::OtherForm(_) | WarningKind::Coerced(_) => true,
            WarningKind::RuleWithoutEffect { .. }
            | WarningKind::ConstantUnique { .. }
            | WarningKind::CheckRefusesNull { .. }
            | WarningKind::ActsOnReplicated { .. }
            | WarningKind::OwnersCode { .. }
            | WarningKind::NotEnforced { .. }
            | WarningKind::IdentityAlways { .. }
            | WarningKind::LeafKey { .. }
            | WarningKind::NoKey
            | WarningKind::NoReplicaIdentity => false,
        }
    }

    #[must_use]
    pub fn diagnosis(&self) -> Diagnosis {
        let (source, target) = (&self.source, &self.target);
        match &self.kind {
            WarningKind::RiskyType(types) => types
                .diagnosis(target)
                .hint("nothing to do as long as no such value arrives; if one does, it is named"),
            WarningKind::OtherForm(types) => types
                .diagnosis(target)
                .hint("nothing to do if readers of the target expect that; else give the column the publisher's type"),
            WarningKind::Coerced(types) => types
                .diagnosis(target)
                .hint("nothing to do: the table's rule allows it; without coerce = true, such a value is refused"),
            WarningKind::RuleWithoutEffect { column, why } => why.diagnosis(column, source),
            WarningKind::ConstantUnique { key, columns } => Diagnosis::new(format!(
                "unique key \"{key}\" of target table {target} has target-only columns with constant defaults"
            ))
            .detail(format!("Columns: {}. The second replicated row would be a duplicate.", columns.join(", ")))
            .hint("drop the key, or give the columns defaults that differ from row to row"),
            WarningKind::CheckRefusesNull { constraint, definition } => Diagnosis::new(format!(
                "constraint \"{constraint}\" of target table {target} may refuse replicated rows"
            ))
            .detail(format!("It is {definition}; replication leaves target-only columns at their default, here NULL."))
            .hint("give the column a default that passes, or drop the constraint"),
            WarningKind::ActsOnReplicated { triggers, foreign_keys } => {
                let what = match (triggers, foreign_keys) {
                    (true, true) => "triggers and foreign keys",
                    (false, true) => "foreign keys",
                    (true | false, false) => "triggers or rules",
                };
                Diagnosis::new(format!("{what} of target table {target} act on replicated rows"))
                    .detail("The role may not set session_replication_role, which would keep them out.")
                    .hint("GRANT SET ON PARAMETER session_replication_role TO the role (15+), or make sure that they do no harm")
            }
            WarningKind::NotEnforced { constraints } => not_enforced(target, constraints),
            WarningKind::OwnersCode { owner, role } => owners_code(target, owner, role),
            WarningKind::IdentityAlways { column } => Diagnosis::new(format!(
                "column \"{column}\" of target table {target} is GENERATED ALWAYS AS IDENTITY"
            ))
            .detail("Inserts, deletes and other updates work; an update that changes this column is refused.")
            .hint(format!(
                "ALTER TABLE {} ALTER COLUMN {} SET GENERATED BY DEFAULT;",
                table_sql(target),
                quote_ident(column)
            )),
            WarningKind::LeafKey { columns } => Diagnosis::new(format!(
                "key ({}) of target table {target} is unique within each partition only",
                columns.join(", ")
            ))
            .detail("An update or delete that finds its row in two partitions stops as a conflict."),
            WarningKind::NoKey => Diagnosis::new(format!(
                "each update or delete of target table {target} reads the whole table"
            ))
            .detail(format!("{source} is published with REPLICA IDENTITY FULL, and the target has no key to go by."))
            .hint("give the target a unique key over published NOT NULL columns"),
            WarningKind::NoReplicaIdentity => no_replica_identity(source),
        }
    }
}

fn not_enforced(target: &QualifiedName, constraints: &[NotEnforced]) -> Diagnosis {
    let names: Vec<String> = constraints.iter().map(|found| quote_ident(&found.constraint)).collect();
    let enable = |found: &NotEnforced| {
        format!("ALTER TABLE {} ENABLE ALWAYS TRIGGER {};", table_sql(target), quote_ident(&found.trigger))
    };
    let enable: Vec<String> = constraints.iter().map(enable).collect();
    Diagnosis::new(format!(
                    "target table {target} does not hold replicated rows to {}",
                    names.join(", ")
                ))
                .detail(
                    "It is DEFERRABLE, so that a trigger checks it, which does not fire with session_replication_role = \
                     replica: rows that violate it are applied without a word, as by PostgreSQL's own subscriber.",
                )
                .hint(format!(
                    "make it NOT DEFERRABLE, or, as a superuser: {} (rows of the table then go one by one)",
                    enable.join(" ")
                ))
}

fn owners_code(target: &QualifiedName, owner: &str, role: &str) -> Diagnosis {
    Diagnosis::new(format!(
                "triggers of target table {target} run with the privileges of role \"{role}\""
            ))
            .detail(format!(
                "They belong to the table's owner, \"{owner}\", which the role may not become: who owns the table can do \
                 what the role can."
            ))
            .hint(format!(
                "GRANT {} TO {}; or run_as = \"role\" if that is meant",
                quote_ident(owner),
                quote_ident(role)
            ))
}

fn no_replica_identity(source: &QualifiedName) -> Diagnosis {
    Diagnosis::new(format!("{source} has no replica identity, but its updates or deletes are published"))
        .detail(
            "Inserts are replicated. The publisher refuses every UPDATE and DELETE of it, unless it is \
             partitioned, published via its root, and only its partitions have keys: then they are \
             sent without a key, and replication pauses.",
        )
        .hint(format!(
            "run on the publisher: ALTER TABLE {0} ADD PRIMARY KEY (…); or ALTER TABLE {0} REPLICA IDENTITY \
             FULL; (and the same for each partition), or publish without publish_via_partition_root",
            table_sql(source)
        ))
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
