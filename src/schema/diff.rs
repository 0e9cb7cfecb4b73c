//! Compares a published table with its target and reports all differences at once.
//!
//! Pure. Every published column must exist in the target by name with a type that its values can enter;
//! additional columns of the target must get a value without replication; updates and deletes need a
//! way to find their rows. Each misfit is typed and has a remedy. If there is none, the result contains
//! the plan that `apply` follows.
//!
//! Misfits are found for every operation. The caller names the operations whose misfits it wants: those that
//! a publication has, before anything is copied; all of them for a stream, which holds each change against
//! those of its own operation.
//!
//! # Invariants
//! - A plan is returned if and only if every published column has a target column that takes its values.
//! - Misfits are in an order in which their DDL can be run: table, privileges, columns, key.

use std::collections::BTreeMap;

use crate::pg::QualifiedName;

use super::binary::guarded_form;
use super::canonical;
use super::column_sql::ColumnSql;
use super::columns::{self, Pair};
use super::fit::{self, Fit};
use super::identity::{Unidentifiable, row_identity};
use super::misfit::{Attached, KeyPlace, Misfit, MisfitKind, NotNullCure, TypeCure};
use super::plan::{ColumnPlan, KeyScope, RowIdentity, TablePlan};
use super::render::{is_builtin, type_sql};
use super::surroundings::{ReplicationRole, RunAs, Surroundings};
use super::warning::{ColumnTypes, Warning, WarningKind};
use super::{
    ColumnDefault, FiringTriggers, KeyEquality, OWN_SCHEMA, Operations, PublishedColumn, PublishedRelation,
    ReplicaIdentity, RuleMisfit, TableKind, TableOwner, TableRules, TargetColumn, TargetTable, UniqueKey,
};

/// A published table and the target's relation under the mapped name.
#[derive(Debug, Clone, Copy)]
pub struct Pairing<'a> {
    pub published: &'a PublishedRelation,
    /// The operations whose misfits and warnings are wanted. Inserts are always among them, because of the
    /// copy.
    pub actions: Operations,
    pub target_name: &'a QualifiedName,
    /// The target's table; `None` if there is no such relation.
    pub target: Option<&'a TargetTable>,
    pub surroundings: &'a Surroundings,
    /// What the mapping says of the table.
    pub rules: &'a TableRules,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    pub misfits: Vec<Misfit>,
    pub warnings: Vec<Warning>,
    /// The plan. With it, an operation that no misfit hinders can be applied.
    pub plan: Option<TablePlan>,
}

/// Compares one table. It never fails, and it never stops at the first misfit.
#[must_use]
pub fn compare(pairing: &Pairing<'_>) -> Comparison {
    let mapped = pairing.rules.map(pairing.published.clone());
    let whole = pairing.published;
    let pairing = &Pairing { published: &mapped, ..*pairing };
    let mut findings = Findings { pairing, whole, misfits: Vec::new(), warnings: Vec::new() };
    let plan = findings.examine();
    let plan = plan.filter(|_| !findings.misfits.iter().any(|misfit| misfit.kind.is_structural()));
    let operations = pairing.actions.or(Operations::INSERT);
    let misfits = findings.misfits.iter().filter_map(|misfit| misfit.hindering(operations)).collect();
    Comparison { misfits, warnings: findings.warnings, plan }
}

struct Findings<'a> {
    /// The published table is described as the mapping has it.
    pairing: &'a Pairing<'a>,
    /// The published table with all its columns.
    whole: &'a PublishedRelation,
    misfits: Vec<Misfit>,
    warnings: Vec<Warning>,
}

impl Findings<'_> {
    /// The applying role.
    fn role(&self) -> String {
        self.pairing.surroundings.role.clone()
    }

    fn misfit(&mut self, kind: MisfitKind) {
        let (source, target) = (self.pairing.published.name.clone(), self.pairing.target_name.clone());
        let root = self.pairing.target.and_then(|table| table.root.clone());
        self.misfits.push(Misfit { source, target, kind, root, subscription: None });
    }

    fn warn(&mut self, kind: WarningKind) {
        let (source, target) = (self.pairing.published.name.clone(), self.pairing.target_name.clone());
        self.warnings.push(Warning { source, target, kind });
    }

    fn examine(&mut self) -> Option<TablePlan> {
        let schema = self.pairing.target_name.schema.as_str();
        if schema == OWN_SCHEMA || schema == "information_schema" || schema.starts_with("pg_") {
            self.misfit(MisfitKind::SchemaReserved);
            return None;
        }
        let published = self.pairing.published;
        let Some(table) = self.pairing.target else {
            let key =
                published.columns.iter().filter(|c| c.key && published.identity != ReplicaIdentity::Full);
            let key = key.map(|column| column.goes_to().to_owned()).collect();
            let columns = published.columns.iter().map(ColumnSql::of).collect();
            let role = self.role();
            let privileges = vec!["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"];
            self.misfit(MisfitKind::MissingTable { columns, key, schema: None, role, privileges });
            return None;
        };
        if let TableKind::Other(relkind) = table.kind {
            self.misfit(MisfitKind::NotATable(relkind));
            return None;
        }
        self.privileges(table);
        self.rules();
        let columns: Vec<Option<&TargetColumn>> = published
            .columns
            .iter()
            .map(|column| table.columns.iter().find(|found| found.name == column.goes_to()))
            .collect();
        let found = row_identity(published, table, &columns);
        let pairs = columns::pairs(self.pairing, &columns, found.as_ref().ok());
        for (column, pair) in published.columns.iter().zip(&pairs) {
            self.published_column(column, *pair);
        }
        for (column, why) in columns::without_effect(self.pairing, self.whole, found.as_ref().ok()) {
            self.warn(WarningKind::RuleWithoutEffect { column, why });
        }
        self.target_only(table);
        let identity = self.identity(found, table, &columns);
        self.identity_columns(&columns);
        self.acting(table);
        self.plan(table, &pairs, identity)
    }

    /// The owner as whom the table is written to; none if it is the applying role itself. Its code would gain from
    /// running as a superuser.
    fn writer<'t>(&self, table: &'t TargetTable) -> Option<&'t TableOwner> {
        let wanted = self.pairing.surroundings.run_as == RunAs::Owner;
        table.owner.as_ref().filter(|owner| wanted && owner.may_be_taken && !owner.is_superuser)
    }

    /// Checks what the mapping's rules lead to.
    fn rules(&mut self) {
        let (published, rules) = (self.pairing.published, self.pairing.rules);
        let mut taken = BTreeMap::new();
        for column in &published.columns {
            if let Some(other) = taken.insert(column.goes_to(), &column.name) {
                let columns = [other.clone(), column.name.clone()];
                let target = column.goes_to().to_owned();
                self.misfit(MisfitKind::Rule(RuleMisfit::SameColumn { columns, target }));
            }
        }
        let is_applied = |name: &String| published.columns.iter().any(|column| column.name == *name);
        let ignored = |column: &&PublishedColumn| column.key && !is_applied(&column.name);
        if self.whole.identity != ReplicaIdentity::Full
            && let Some(column) = self.whole.columns.iter().find(ignored)
        {
            self.misfit(MisfitKind::Rule(RuleMisfit::IgnoredKey { column: column.name.clone() }));
        }
        if rules.truncate_pauses {
            self.misfit(MisfitKind::Rule(RuleMisfit::TruncatePauses));
        }
    }

    fn privileges(&mut self, table: &TargetTable) {
        let (role, granted, row_security) = match self.writer(table) {
            Some(owner) => (owner.name.clone(), owner.privileges, owner.row_security),
            None => (self.role(), table.privileges, table.row_security),
        };
        if !granted.schema_usage {
            self.misfit(MisfitKind::NoSchemaUsage { role: role.clone() });
        }
        let all = [
            ("SELECT", granted.select),
            ("INSERT", granted.insert),
            ("UPDATE", granted.update),
            ("DELETE", granted.delete),
            ("TRUNCATE", granted.truncate),
        ];
        let privileges: Vec<&'static str> =
            all.iter().filter(|(_, has)| !has).map(|(name, _)| *name).collect();
        if !privileges.is_empty() {
            self.misfit(MisfitKind::MissingPrivilege { role: role.clone(), privileges });
        }
        if row_security {
            self.misfit(MisfitKind::RowSecurity { role });
        }
    }

    fn published_column(&mut self, column: &PublishedColumn, pair: Option<Pair<'_>>) {
        let Some(Pair { found, fit, .. }) = pair else {
            self.misfit(MisfitKind::MissingColumn(ColumnSql::of(column)));
            return;
        };
        if found.default == ColumnDefault::Generated {
            let (column, is_virtual) = (ColumnSql::of(column), found.is_virtual);
            self.misfit(MisfitKind::GeneratedColumn { column, is_virtual });
            if found.is_virtual {
                // The remedy creates the column again with the right type.
                return;
            }
        }
        let types = |why| ColumnTypes {
            column: column.goes_to().to_owned(),
            published_type: type_sql(&column.ty, column.typmod),
            target_type: found.display_type.clone(),
            why,
        };
        match fit {
            Fit::Fits => {}
            Fit::OtherForm(why) => self.warn(WarningKind::OtherForm(types(why))),
            Fit::Risky(why) => self.warn(WarningKind::RiskyType(types(why))),
            Fit::Guarded(guard) => self.warn(WarningKind::RiskyType(types(guard.rule.why()))),
            Fit::Coerced(change) => self.warn(WarningKind::Coerced(types(change))),
            Fit::Changes(why) | Fit::Unfit(why) => self.misfit(MisfitKind::UnfitType {
                cure: type_cure(column, found, fit),
                column: ColumnSql::of(column),
                target_type: found.display_type.clone(),
                attached: attached(found),
                why,
            }),
        }
    }

    /// Checks that columns which only the target has get a value from a default or accept NULL.
    fn target_only(&mut self, table: &TargetTable) {
        let published = self.pairing.published;
        let extra: Vec<&TargetColumn> = table
            .columns
            .iter()
            .filter(|column| !published.columns.iter().any(|known| known.goes_to() == column.name))
            .collect();
        for column in &extra {
            if column.not_null && column.default == ColumnDefault::None {
                let cure = not_null_cure(table, column);
                self.misfit(MisfitKind::NotNullWithoutDefault { column: column.name.clone(), cure });
            }
        }
        let find = |name: &String| extra.iter().find(|column| column.name == *name);
        for key in &table.unique_keys {
            if key.columns.iter().all(|name| find(name).is_some_and(|column| is_constant(column))) {
                let (key, columns) = (key.name.clone(), key.columns.clone());
                self.warn(WarningKind::ConstantUnique { key, columns });
            }
        }
        for check in &table.checks {
            let left_null = |name| find(name).is_some_and(|column| column.default == ColumnDefault::None);
            if check.columns.iter().any(left_null) && asks_for_a_value(&check.definition) {
                let (constraint, definition) = (check.name.clone(), check.definition.clone());
                self.warn(WarningKind::CheckRefusesNull { constraint, definition });
            }
        }
    }

    fn identity(
        &mut self,
        found: Result<RowIdentity, Unidentifiable>,
        table: &TargetTable,
        columns: &[Option<&TargetColumn>],
    ) -> RowIdentity {
        let (published, actions) = (self.pairing.published, self.pairing.actions);
        let names = |among: &[usize]| -> Vec<String> {
            among.iter().map(|&at| published.columns[at].goes_to().to_owned()).collect()
        };
        match found {
            Ok(identity) => {
                match &identity {
                    _ if !actions.meet(Operations::OF_EXISTING_ROWS) => {}
                    RowIdentity::Key { columns, scope: KeyScope::Leaves } => {
                        self.warn(WarningKind::LeafKey { columns: names(columns) });
                    }
                    RowIdentity::FullRow => self.warn(WarningKind::NoKey),
                    RowIdentity::None => self.warn(WarningKind::NoReplicaIdentity),
                    RowIdentity::Key { scope: KeyScope::Table | KeyScope::OtherEquality, .. } => {}
                }
                return identity;
            }
            Err(Unidentifiable::NoUsableKey) => {
                let keyed = published.columns.iter().filter(|column| column.key);
                let columns: Vec<String> = keyed.map(|column| column.goes_to().to_owned()).collect();
                let place = key_place(table, &columns);
                self.misfit(MisfitKind::NoUsableKey { columns, place });
            }
            Err(Unidentifiable::NoEquality(unequal)) => {
                let describe = |at: usize| {
                    let display = columns[at].map(|column| column.display_type.clone());
                    (published.columns[at].goes_to().to_owned(), display.unwrap_or_default())
                };
                let columns = unequal.into_iter().map(describe).collect();
                self.misfit(MisfitKind::NoEqualityOperator { columns });
            }
        }
        RowIdentity::None
    }

    /// Warns of GENERATED ALWAYS AS IDENTITY columns: an insert can override them, an update cannot
    /// (`rewriteTargetListIU` in PostgreSQL's `rewriteHandler.c` accepts only DEFAULT), so that only updates
    /// that leave their value as it is can be applied.
    fn identity_columns(&mut self, columns: &[Option<&TargetColumn>]) {
        if !self.pairing.actions.meet(Operations::UPDATE) {
            return;
        }
        let always = columns.iter().flatten().filter(|c| c.default == ColumnDefault::IdentityAlways);
        for column in always {
            self.warn(WarningKind::IdentityAlways { column: column.name.clone() });
        }
    }

    fn acting(&mut self, table: &TargetTable) {
        let (triggers, foreign_keys) = (table.has_ordinary_triggers, table.has_foreign_keys);
        let acts = self.pairing.surroundings.replication_role == ReplicationRole::Origin;
        if acts && (triggers || foreign_keys) {
            self.warn(WarningKind::ActsOnReplicated { triggers, foreign_keys });
        }
        if !acts && !table.not_enforced.is_empty() {
            self.warn(WarningKind::NotEnforced { constraints: table.not_enforced.clone() });
        }
        let others = table.owner.as_ref().filter(|owner| !owner.may_be_taken && !owner.is_superuser);
        let wanted = self.pairing.surroundings.run_as == RunAs::Owner;
        if let Some(owner) = others.filter(|_| wanted && (table.fires.any || (acts && triggers))) {
            let (owner, role) = (owner.name.clone(), self.role());
            self.warn(WarningKind::OwnersCode { owner, role });
        }
    }

    /// Computes [`TablePlan::order_free`].
    fn is_order_free(table: &TargetTable, pairs: &[Pair<'_>], identity: &RowIdentity) -> bool {
        let RowIdentity::Key { columns: key, scope: KeyScope::Table } = identity else { return false };
        let is_the_key = |unique: &&UniqueKey| {
            unique.columns.len() == key.len()
                && key.iter().all(|&at| unique.columns.contains(&pairs[at].found.name))
        };
        let by_bytes = |&at: &usize| {
            !pairs[at].may_refuse() && canonical::equal_as_bytes(pairs[at].published, pairs[at].found)
        };
        table.kind == TableKind::Table
            && table.utf8
            && table.indexes.unique <= 1
            && key.iter().all(by_bytes)
            && table
                .unique_keys
                .iter()
                .find(is_the_key)
                .is_some_and(|unique| unique.equality == KeyEquality::Deterministic)
    }

    /// Returns the plan; `None` while a column is missing.
    fn plan(
        &self,
        table: &TargetTable,
        pairs: &[Option<Pair<'_>>],
        row_identity: RowIdentity,
    ) -> Option<TablePlan> {
        let published = self.pairing.published;
        let pairs: Vec<Pair<'_>> = pairs.iter().copied().collect::<Option<_>>()?;
        let planned = |pair: &Pair<'_>| {
            let (source, found, guard) = (pair.published, pair.found, pair.guard(table.length_unit));
            ColumnPlan {
                source: source.name.clone(),
                target: found.name.clone(),
                ty: found.ty.clone(),
                type_oid: found.type_oid,
                base_type: found.base_type.clone(),
                array_input: found.array_input,
                binary: guarded_form(&source.ty, &found.base_type, found.array_input, guard),
                equality: found.equality.clone(),
                equal_may_differ: !canonical::equal_is_same(found),
                not_null: found.not_null,
                refuses_values: pair.may_refuse(),
                guard,
                key: source.key,
                identity_always: found.default == ColumnDefault::IdentityAlways,
            }
        };
        let order_free = Self::is_order_free(table, &pairs, &row_identity);
        let columns: Vec<ColumnPlan> = pairs.iter().map(planned).collect();
        let acts = self.pairing.surroundings.replication_role == ReplicationRole::Origin;
        Some(TablePlan {
            run_as: self.writer(table).map(|owner| owner.name.clone()),
            source: published.name.clone(),
            target: table.name.clone(),
            target_oid: table.oid,
            target_stamp: table.stamp,
            target_family_oid: table.family_oid,
            target_root: table.root.clone(),
            kind: table.kind,
            identity_always: columns.iter().any(|column| column.identity_always),
            columns,
            target_columns: table.columns.iter().map(|column| column.name.clone()).collect(),
            row_identity,
            order_free,
            judges_rows: judges_rows(table),
            other_indexes: table.indexes.all > 1,
            has_unique_index: table.indexes.unique > 0,
            fires: FiringTriggers {
                before_row: table.fires.before_row || (acts && table.ordinary_before_row),
                any: table.fires.any,
            },
            has_foreign_keys: table.has_foreign_keys,
            has_ordinary_triggers: table.has_ordinary_triggers,
            unique_keys: table.unique_keys.clone(),
        })
    }
}

fn attached(found: &TargetColumn) -> Attached {
    match found.default {
        ColumnDefault::Expression => Attached::Default,
        ColumnDefault::IdentityAlways | ColumnDefault::IdentityByDefault => Attached::Identity,
        ColumnDefault::None | ColumnDefault::Generated => Attached::Nothing,
    }
}

fn type_cure(column: &PublishedColumn, found: &TargetColumn, fit: Fit) -> TypeCure {
    match fit {
        Fit::Unfit(why) if why == fit::INNER_ORDER => TypeCure::AlterInside,
        // The name of the type is equal already.
        Fit::Changes(_) if column.ty == found.base_type && !is_builtin(&column.ty) => {
            TypeCure::AlterInsideOrCoerce
        }
        Fit::Changes(_) => TypeCure::AlterOrCoerce,
        Fit::Fits | Fit::OtherForm(_) | Fit::Risky(_) | Fit::Guarded(_) | Fit::Coerced(_) | Fit::Unfit(_) => {
            TypeCure::Alter
        }
    }
}

/// Computes [`TablePlan::judges_rows`].
fn judges_rows(table: &TargetTable) -> bool {
    !table.checks.is_empty()
        || table.family_oid != table.oid
        || table.indexes.computing
        || table.columns.iter().any(|column| column.default == ColumnDefault::Generated)
}

fn not_null_cure(table: &TargetTable, column: &TargetColumn) -> NotNullCure {
    if let Some(domain) = &column.not_null_domain {
        return NotNullCure::DropDomainNotNull(domain.clone());
    }
    let primary = table.unique_keys.iter().any(|key| key.primary && key.columns.contains(&column.name));
    let integer =
        column.ty.schema == "pg_catalog" && matches!(column.ty.name.as_str(), "int2" | "int4" | "int8");
    match (primary, integer) {
        (false, _) => NotNullCure::DropNotNull,
        (true, true) => NotNullCure::MakeIdentity,
        (true, false) => NotNullCure::Default,
    }
}

/// Whether the default is the same for every row because it calls no function.
fn is_constant(column: &TargetColumn) -> bool {
    column.default == ColumnDefault::Expression
        && column.default_sql.as_ref().is_some_and(|sql| !sql.contains('('))
}

/// Whether a CHECK may refuse NULL. It passes on NULL unless its expression tests for NULL.
fn asks_for_a_value(definition: &str) -> bool {
    let definition = definition.to_uppercase();
    definition.contains("IS NOT NULL") || definition.contains("COALESCE(")
}

fn key_place(table: &TargetTable, columns: &[String]) -> KeyPlace {
    if let Some(partitioning) = &table.partitioning {
        let covered = |key: &Vec<String>| key.iter().all(|column| columns.contains(column));
        if !partitioning.key.as_ref().is_some_and(covered) {
            return KeyPlace::Leaves(partitioning.leaves.clone());
        }
    }
    if table.unique_keys.iter().any(|key| key.primary) { KeyPlace::UniqueIndex } else { KeyPlace::PrimaryKey }
}

#[cfg(test)]
mod tests;
