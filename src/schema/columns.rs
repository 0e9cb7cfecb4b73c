//! The verdict on each published column and the target's column of its name.
//!
//! Pure. `fit` judges the types. Here the mapping's permission is added: values of a coerced column may be changed
//! by the target's type, unless rows are found by it. A changed value would find another row, or none.

use super::diff::Pairing;
use super::fit::{self, Fit};
use super::render::is_builtin;
use super::warning::NoEffect;
use super::{
    ColumnRule, LengthUnit, PublishedColumn, PublishedRelation, RowIdentity, TargetColumn, ValueGuard,
};

/// A published column with the target's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    pub(super) published: &'a PublishedColumn,
    pub(super) found: &'a TargetColumn,
    pub(super) fit: Fit,
}

/// Pairs the published columns with the target's `found`: none where the target lacks the column. `identity` is how
/// rows are found, if they can be.
pub(super) fn pairs<'a>(
    pairing: &Pairing<'a>,
    found: &[Option<&'a TargetColumn>],
    identity: Option<&RowIdentity>,
) -> Vec<Option<Pair<'a>>> {
    let judged = |(at, (published, found)): (usize, (&'a PublishedColumn, Option<&'a TargetColumn>))| {
        let found = found?;
        let fit = fit::judge((&published.ty, published.typmod), (&found.base_type, found.typmod));
        let fit = fit::with_inner_types(fit, &published.inner_types, &found.inner_types);
        let coerced = pairing.rules.is_coerced(&published.name) && !finds_rows(identity, at, published);
        Some(Pair { published, found, fit: if coerced { fit.coerced() } else { fit } })
    };
    pairing.published.columns.iter().zip(found.iter().copied()).enumerate().map(judged).collect()
}

/// Returns the columns of which the mapping's rule has no effect.
pub(super) fn without_effect(
    pairing: &Pairing<'_>,
    whole: &PublishedRelation,
    identity: Option<&RowIdentity>,
) -> Vec<(String, NoEffect)> {
    let columns = &pairing.published.columns;
    let why =
        |(name, rule): (&String, &ColumnRule)| match columns.iter().position(|column| column.name == *name) {
            Some(at) if rule.coerced && finds_rows(identity, at, &columns[at]) => Some(NoEffect::FindsRows),
            None if !whole.columns.iter().any(|column| column.name == *name) => Some(NoEffect::NotPublished),
            Some(_) | None => None,
        };
    pairing.rules.columns.iter().filter_map(|rule| Some((rule.0.clone(), why(rule)?))).collect()
}

fn finds_rows(identity: Option<&RowIdentity>, at: usize, column: &PublishedColumn) -> bool {
    match identity {
        Some(RowIdentity::Key { columns, .. }) => columns.contains(&at),
        Some(RowIdentity::FullRow) => true,
        Some(RowIdentity::None) | None => column.key,
    }
}

impl Pair<'_> {
    /// Computes [`ColumnPlan::refuses_values`](super::ColumnPlan::refuses_values). Constraints of domains and
    /// labels of user-defined types are not examined; `text` and `citext` accept any value.
    pub(super) fn may_refuse(&self) -> bool {
        let base = &self.found.base_type;
        let takes_anything = matches!(base.name.as_str(), "text" | "citext");
        let known = takes_anything || (is_builtin(&self.published.ty) && is_builtin(base));
        !known || self.found.ty != *base || self.fit.refuses()
    }

    /// Computes [`ColumnPlan::guard`](super::ColumnPlan::guard).
    pub(super) fn guard(&self, unit: LengthUnit) -> Option<ValueGuard> {
        match self.fit {
            Fit::Guarded(guard) => Some(guard.counted_in(unit)),
            Fit::Fits
            | Fit::OtherForm(_)
            | Fit::Risky(_)
            | Fit::Coerced(_)
            | Fit::Changes(_)
            | Fit::Unfit(_) => None,
        }
    }
}
