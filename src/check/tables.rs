//! Compares published tables with their targets column by column. Pure.

use std::sync::Arc;

use crate::error::Diagnosis;
use crate::pg::QualifiedName;
use crate::schema::render::type_sql;
use crate::schema::{
    ColumnDefault, Comparison, Goes, Misfit, MisfitKind, Pairing, PublishedColumn, PublishedTable,
    Surroundings, TableRules, TargetTable, Warning, WarningKind, compare,
};
use crate::subscription::schema_failure;

use super::findings::Findings;
use super::report::{ColumnReport, Finding, Status, Step, TableReport};

/// A published table, its target's name, and the table found there.
pub(super) struct Pair<'a> {
    pub published: &'a PublishedTable,
    pub target_name: &'a QualifiedName,
    pub target: Option<&'a TargetTable>,
    pub rules: Arc<TableRules>,
}

/// Compares all pairs.
pub(super) fn compare_all(pairs: &[Pair<'_>], surroundings: &Surroundings) -> Vec<Comparison> {
    let compared = |pair: &Pair<'_>| {
        compare(&Pairing {
            published: &pair.published.relation,
            actions: pair.rules.copied(pair.published.actions),
            target_name: pair.target_name,
            target: pair.target,
            surroundings,
            rules: &pair.rules,
        })
    };
    pairs.iter().map(compared).collect()
}

/// Reports the comparisons, and the warnings about several tables. A failure has the text of the `schema` pause.
pub(super) fn judge(
    findings: &mut Findings,
    pairs: &[Pair<'_>],
    comparisons: Vec<Comparison>,
    mut warnings: Vec<Diagnosis>,
) -> Vec<TableReport> {
    let mut reports = Vec::with_capacity(pairs.len());
    let mut misfits = Vec::<Misfit>::new();
    for (pair, compared) in pairs.iter().zip(comparisons) {
        reports.push(report(pair, &compared));
        misfits.extend(compared.misfits);
        warnings.extend(compared.warnings.iter().map(Warning::diagnosis));
    }
    if !misfits.is_empty() {
        findings.fail(Step::Tables, schema_failure(&misfits).diagnosis);
    }
    match warnings.as_slice() {
        [] => {}
        [one] => findings.warn(Step::Tables, one.clone()),
        many => {
            let details = many.iter().map(|warning| warning.primary.as_str()).collect::<Vec<_>>().join("\n");
            let text = Diagnosis::new(format!("{} things to know about the tables", many.len()));
            findings.warn(Step::Tables, text.detail(details));
        }
    }
    findings.ok(
        Step::Tables,
        match pairs.len() {
            0 => "there are none".to_owned(),
            1 => "the table fits".to_owned(),
            count => format!("all {count} fit"),
        },
    );
    reports
}

fn report(pair: &Pair<'_>, compared: &Comparison) -> TableReport {
    let misfits = compared.misfits.iter().map(|misfit| (Status::Failed, misfit.diagnosis()));
    let warnings = compared.warnings.iter().map(|warning| (Status::Warning, warning.diagnosis()));
    let findings: Vec<Finding> =
        misfits.chain(warnings).map(|(status, text)| Finding { status, text }).collect();
    let status = if !compared.misfits.is_empty() {
        Status::Failed
    } else if !compared.warnings.is_empty() {
        Status::Warning
    } else {
        Status::Ok
    };
    TableReport {
        source: pair.published.relation.name.clone(),
        target: pair.target_name.clone(),
        status,
        columns: columns(pair, compared),
        findings,
    }
}

fn columns(pair: &Pair<'_>, compared: &Comparison) -> Vec<ColumnReport> {
    let published = &pair.published.relation.columns;
    let theirs = pair.target.map_or(&[][..], |table| table.columns.as_slice());
    let both = published.iter().map(|column| column_report(column, pair, compared));
    let mapped = pair.rules.map(pair.published.relation.clone());
    let own =
        theirs.iter().filter(|column| !mapped.columns.iter().any(|known| known.goes_to() == column.name));
    let own = own.map(|column| {
        let kept = match column.default {
            ColumnDefault::None => "the target's own: stays null",
            ColumnDefault::Expression => "the target's own: has a default",
            ColumnDefault::IdentityAlways | ColumnDefault::IdentityByDefault => "the target's own: numbered",
            ColumnDefault::Generated => "the target's own: generated",
        };
        let (status, note) = said(&column.name, compared).unwrap_or((Status::Ok, Some(kept.to_owned())));
        ColumnReport {
            name: column.name.clone(),
            publisher: None,
            target: Some(column.display_type.clone()),
            status,
            note,
        }
    });
    both.chain(own).collect()
}

/// Reports a published column with the target's that it goes to.
fn column_report(column: &PublishedColumn, pair: &Pair<'_>, compared: &Comparison) -> ColumnReport {
    let theirs = pair.target.map_or(&[][..], |table| table.columns.as_slice());
    let goes = pair.rules.columns.get(&column.name).map(|rule| &rule.goes);
    let (goes_to, note) = match goes {
        None | Some(Goes::ToItsName) => (Some(&column.name), None),
        Some(Goes::To(name)) => (Some(name), Some(format!("goes to \"{name}\""))),
        Some(Goes::Ignored) => (None, Some("ignored".to_owned())),
        Some(Goes::IgnoredIfNull) => (None, Some("ignored while it is NULL".to_owned())),
    };
    let target = goes_to.and_then(|name| theirs.iter().find(|found| found.name == *name));
    let (status, note) = match (goes_to, target) {
        (Some(name), Some(_)) => said(name, compared).unwrap_or((Status::Ok, note)),
        (Some(_), None) => (Status::Failed, Some("missing in the target".to_owned())),
        (None, _) => said(&column.name, compared).unwrap_or((Status::Ok, note)),
    };
    ColumnReport {
        name: column.name.clone(),
        publisher: Some(type_sql(&column.ty, column.typmod)),
        target: target.map(|column| column.display_type.clone()),
        status,
        note,
    }
}

/// Summarises the comparison for one column; the table's findings have all of it.
fn said(name: &str, compared: &Comparison) -> Option<(Status, Option<String>)> {
    let misfit = compared.misfits.iter().find_map(|misfit| about(&misfit.kind, name));
    if let Some(note) = misfit {
        return Some((Status::Failed, Some(note)));
    }
    compared
        .warnings
        .iter()
        .find_map(|warning| match &warning.kind {
            WarningKind::RiskyType(types) | WarningKind::OtherForm(types) | WarningKind::Coerced(types)
                if types.column == name =>
            {
                Some(types.why.to_owned())
            }
            WarningKind::IdentityAlways { column } if column == name => {
                Some("GENERATED ALWAYS AS IDENTITY: an update of its value would be refused".to_owned())
            }
            WarningKind::RiskyType(_)
            | WarningKind::OtherForm(_)
            | WarningKind::Coerced(_)
            | WarningKind::RuleWithoutEffect { .. }
            | WarningKind::IdentityAlways { .. }
            | WarningKind::ConstantUnique { .. }
            | WarningKind::CheckRefusesNull { .. }
            | WarningKind::ActsOnReplicated { .. }
            | WarningKind::OwnersCode { .. }
            | WarningKind::NotEnforced { .. }
            | WarningKind::LeafKey { .. }
            | WarningKind::NoKey
            | WarningKind::NoReplicaIdentity => None,
        })
        .map(|note| (Status::Warning, Some(note)))
}

fn about(kind: &MisfitKind, name: &str) -> Option<String> {
    match kind {
        MisfitKind::UnfitType { column, why, .. } if column.name == name => Some((*why).to_owned()),
        MisfitKind::GeneratedColumn { column, .. } if column.name == name => {
            Some("generated, but values are published for it".to_owned())
        }
        MisfitKind::NotNullWithoutDefault { column, .. } if column == name => {
            Some("NOT NULL without a default".to_owned())
        }
        MisfitKind::NoUsableKey { columns, .. } if columns.iter().any(|column| column == name) => {
            Some("no unique key on the replica identity".to_owned())
        }
        MisfitKind::NoEqualityOperator { columns } if columns.iter().any(|(column, _)| column == name) => {
            Some("its type has no equality".to_owned())
        }
        MisfitKind::Rule(misfit) if misfit.is_about(name) => Some(misfit.why().to_owned()),
        MisfitKind::Rule(_)
        | MisfitKind::SchemaReserved
        | MisfitKind::MissingTable { .. }
        | MisfitKind::NotATable(_)
        | MisfitKind::NoSchemaUsage { .. }
        | MisfitKind::MissingPrivilege { .. }
        | MisfitKind::RowSecurity { .. }
        | MisfitKind::MissingColumn(_)
        | MisfitKind::UnfitType { .. }
        | MisfitKind::GeneratedColumn { .. }
        | MisfitKind::IdentityAlways { .. }
        | MisfitKind::NoReplicaIdentity
        | MisfitKind::NotNullWithoutDefault { .. }
        | MisfitKind::NoUsableKey { .. }
        | MisfitKind::NoEqualityOperator { .. } => None,
    }
}
