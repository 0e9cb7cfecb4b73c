//! Which tables go into the same rows of the target. Pure.
//!
//! Two tables share rows if they have the same target, or if the target of one is a partition of the other's. What
//! removes all rows of one of them (a replicated TRUNCATE, a synchronisation that replaces or merges) takes rows of
//! the other with them, because nothing in the target says whose a row is.

use std::collections::BTreeMap;

use crate::error::Diagnosis;
use crate::pg::{QualifiedName, quote_ident};

/// Largest number of tables in a text; the others are only counted.
const NAMED_MAX: usize = 8;

/// Where a table of the target is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub name: QualifiedName,
    pub oid: u32,
    /// The partitioned tables that it is a partition of, from the nearest to the outermost.
    pub ancestors: Vec<u32>,
}

/// How a table of the target shares rows with another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// It is the same table.
    Same,
    /// It is a partition of the other one.
    PartOf,
    /// The other one is a partition of it.
    Holds,
}

impl Place {
    /// How it shares rows with another table of the target; none if it does not.
    #[must_use]
    pub fn shares_with(&self, other: &Self) -> Option<Sharing> {
        if self.oid == other.oid {
            Some(Sharing::Same)
        } else if self.ancestors.contains(&other.oid) {
            Some(Sharing::PartOf)
        } else if other.ancestors.contains(&self.oid) {
            Some(Sharing::Holds)
        } else {
            None
        }
    }
}

/// A table that writes to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// None for the subscription in question.
    pub subscription: Option<String>,
    pub source: QualifiedName,
    pub target: Place,
}

impl Writer {
    /// The table in words, with the way in which it shares rows with a target.
    #[must_use]
    pub fn in_words(&self, sharing: Sharing) -> String {
        let target = &self.target.name;
        let how = match sharing {
            Sharing::Same => format!("goes into {target}, too"),
            Sharing::PartOf => format!("goes into {target}, of which it is a partition"),
            Sharing::Holds => format!("goes into {target}, which is a partition of it"),
        };
        format!("{} {how}", self.named())
    }

    fn named(&self) -> String {
        match &self.subscription {
            Some(subscription) => format!("{} (subscription {subscription})", self.source),
            None => self.source.to_string(),
        }
    }
}

/// Warns of the tables that share rows: one text for each target that holds them. Groups without a table of the
/// subscription in question are left out. `publications` are the subscription's.
#[must_use]
pub fn warnings(writers: &[Writer], publications: &[String]) -> Vec<Diagnosis> {
    let by_oid: BTreeMap<u32, &Place> =
        writers.iter().map(|writer| (writer.target.oid, &writer.target)).collect();
    let mut groups: BTreeMap<&QualifiedName, Vec<&Writer>> = BTreeMap::new();
    for writer in writers {
        let outermost = writer.target.ancestors.iter().rev().find_map(|oid| by_oid.get(oid).copied());
        groups.entry(&outermost.unwrap_or(&writer.target).name).or_default().push(writer);
    }
    let concerned = groups
        .into_iter()
        .filter(|(_, group)| group.len() > 1 && group.iter().any(|writer| writer.subscription.is_none()));
    concerned.map(|(target, group)| warning(target, &group, publications)).collect()
}

fn warning(target: &QualifiedName, group: &[&Writer], publications: &[String]) -> Diagnosis {
    let mut named: Vec<String> = group
        .iter()
        .take(NAMED_MAX)
        .map(|writer| match &writer.target.name {
            own if own == target => writer.named(),
            own => format!("{} (into {own})", writer.named()),
        })
        .collect();
    if group.len() > NAMED_MAX {
        named.push(format!("{} more", group.len() - NAMED_MAX));
    }
    let publication = publications.first().map_or_else(|| "…".to_owned(), |name| quote_ident(name));
    Diagnosis::new(format!("{} tables go into rows of {target}", group.len()))
        .detail(format!(
            "{}; a TRUNCATE of one of them on the publisher removes the rows of the others on the target, too, and \
             resync refuses them",
            named.join(", ")
        ))
        .hint(format!(
            "on the publisher: ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete'); or give each \
             table a target of its own (\"target\" in [[subscriptions.tables]])"
        ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str, oid: u32, ancestors: &[u32]) -> Place {
        Place { name: QualifiedName::new("public", name), oid, ancestors: ancestors.to_vec() }
    }

    fn writer(subscription: Option<&str>, source: &str, target: Place) -> Writer {
        let subscription = subscription.map(str::to_owned);
        Writer { subscription, source: QualifiedName::new("public", source), target }
    }

    #[test]
    fn rows_are_shared_with_the_same_table_and_along_a_tree() {
        let (root, part) = (place("r", 1, &[]), place("p", 2, &[1]));
        let (leaf, other) = (place("l", 3, &[2, 1]), place("o", 4, &[1]));
        assert_eq!(root.shares_with(&root), Some(Sharing::Same));
        assert_eq!(leaf.shares_with(&root), Some(Sharing::PartOf));
        assert_eq!(part.shares_with(&leaf), Some(Sharing::Holds));
        assert_eq!(leaf.shares_with(&other), None);
    }

    #[test]
    fn tables_that_share_rows_are_warned_of_together() {
        let (root, leaf, other) = (place("r", 1, &[]), place("l", 2, &[9, 1]), place("o", 3, &[]));
        let writers = [
            writer(None, "r", root),
            writer(None, "l", leaf),
            writer(None, "o", other.clone()),
            writer(Some("second"), "u", place("u", 4, &[])),
            writer(Some("third"), "u", place("u", 4, &[])),
        ];
        let texts = warnings(&writers, &["p".to_owned()]);
        assert_eq!(texts.len(), 1, "{texts:?}");
        insta::assert_snapshot!(texts[0], @r#"
        2 tables go into rows of public.r
          detail: public.r, public.l (into public.l); a TRUNCATE of one of them on the publisher removes the rows of the others on the target, too, and resync refuses them
          hint: on the publisher: ALTER PUBLICATION "p" SET (publish = 'insert, update, delete'); or give each table a target of its own ("target" in [[subscriptions.tables]])
        "#);
        let twice = [writer(None, "o", other.clone()), writer(Some("second"), "t", other)];
        let texts = warnings(&twice, &[]);
        assert!(texts[0].to_string().contains("public.t (subscription second)"), "{texts:?}");
    }
}
