//! Maps published tables to target tables, and defines which tables are part of the subscription.
//!
//! Pure. A change for a table that exists on both sides but is not, or not yet, published to this
//! subscription has no mapping, so it is dropped and never applied.

use std::collections::BTreeMap;

use crate::config::TableRule;
use crate::error::Diagnosis;
use crate::pg::{QualifiedName, quote_ident};

use super::render::table_sql;

/// Target by source, for every table of the subscription.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mapping {
    targets: BTreeMap<QualifiedName, QualifiedName>,
}

/// A note about the mapping rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MappingNote {
    /// A rule's source is not published: misspelt, or not yet added to a publication.
    UnmatchedRule(QualifiedName),
}

impl Mapping {
    /// Creates the mapping. A published table without a rule keeps its name. It may share its target with one that
    /// has a rule (`schema::sharing`).
    #[must_use]
    pub fn new<'a>(
        rules: &[TableRule],
        published: impl IntoIterator<Item = &'a QualifiedName>,
    ) -> (Self, Vec<MappingNote>) {
        let by_source: BTreeMap<_, _> = rules.iter().map(|rule| (&rule.source, &rule.target)).collect();
        let targets: BTreeMap<QualifiedName, QualifiedName> = published
            .into_iter()
            .map(|source| (source.clone(), (*by_source.get(source).unwrap_or(&source)).clone()))
            .collect();
        let unmatched = by_source.keys().filter(|source| !targets.contains_key(**source));
        let notes = unmatched.map(|&source| MappingNote::UnmatchedRule(source.clone())).collect();
        (Self { targets }, notes)
    }

    /// Returns the target of `source`; `None` if it is not part of the subscription.
    #[must_use]
    pub fn target(&self, source: &QualifiedName) -> Option<&QualifiedName> {
        self.targets.get(source)
    }

    /// Returns sources and targets, ordered by source.
    pub fn iter(&self) -> impl Iterator<Item = (&QualifiedName, &QualifiedName)> {
        self.targets.iter()
    }
}

impl MappingNote {
    /// Returns the text for an operator. `publications` are the subscription's; the hint adds a table
    /// to the first.
    #[must_use]
    pub fn diagnosis(&self, publications: &[String]) -> Diagnosis {
        match self {
            Self::UnmatchedRule(source) => {
                let publication =
                    publications.first().map_or_else(|| "…".to_owned(), |name| quote_ident(name));
                Diagnosis::new(format!("the rule for {source} matches no published table")).hint(format!(
                    "correct source in [[subscriptions.tables]], or run on the publisher: ALTER PUBLICATION \
                     {publication} ADD TABLE {};",
                    table_sql(source)
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn name(text: &str) -> QualifiedName {
        text.parse().expect("a table name")
    }

    fn check(rules: &[(&str, &str)], published: &[&str], expected: &[(&str, &str)]) -> Vec<MappingNote> {
        let rules: Vec<TableRule> = rules
            .iter()
            .map(|(source, target)| TableRule {
                source: name(source),
                target: name(target),
                rules: Arc::default(),
            })
            .collect();
        let published: Vec<QualifiedName> = published.iter().map(|text| name(text)).collect();
        let (mapping, notes) = Mapping::new(&rules, &published);
        let found: Vec<(String, String)> =
            mapping.iter().map(|(source, target)| (source.to_string(), target.to_string())).collect();
        let expected: Vec<(String, String)> =
            expected.iter().map(|(s, t)| (name(s).to_string(), name(t).to_string())).collect();
        assert_eq!(found, expected);
        notes
    }

    #[test]
    fn tables_keep_their_names_unless_a_rule_says_otherwise() {
        let notes = check(
            &[("public.widgets", "reporting.widget")],
            &["public.widgets", r#"public."B""#, "public.tab'le"],
            &[
                (r#"public."B""#, r#"public."B""#),
                ("public.tab'le", "public.tab'le"),
                ("public.widgets", "reporting.widget"),
            ],
        );
        assert_eq!(notes, []);
    }

    #[test]
    fn what_is_not_published_is_no_member() {
        let notes = check(
            &[("public.wigdets", "public.w")],
            &["public.widgets"],
            &[("public.widgets", "public.widgets")],
        );
        assert_eq!(notes, [MappingNote::UnmatchedRule(name("public.wigdets"))]);
        let (mapping, _) = Mapping::new(&[], &[name("public.widgets")]);
        assert_eq!(mapping.target(&name("public.other")), None);
    }

    #[test]
    fn several_sources_may_share_a_target() {
        let notes = check(
            &[("a.t", "public.t"), ("b.t", "public.t")],
            &["a.t", "b.t"],
            &[("a.t", "public.t"), ("b.t", "public.t")],
        );
        assert_eq!(notes, []);
    }
}
