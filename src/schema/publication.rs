//! Determines the relation that the stream will name for each published table, with its columns and
//! rows.
//!
//! Pure. `catalog` reads the publisher's publications, memberships and partition trees; this module
//! draws the conclusions that the walsender will draw for each publication.
//!
//! # Why not `pg_get_publication_tables`
//!
//! Its form differs between versions. Before 16 it answers for a single publication, and the caller has
//! to notice that a leaf and its root are both listed. The rules have been the same since 13:
//! `get_rel_sync_entry` in PostgreSQL's `pgoutput.c`. Applying them to every relation gives exactly the
//! names that the stream can carry.
//!
//! # Invariants
//! - A row is published under exactly one name: the topmost that any publication gives it, whatever the
//!   order of the publications.
//! - Row filters are those of the initial copy (`fetch_remote_table_info` in `tablesync.c`), which
//!   ignores the published operations. The publisher itself applies the filters of the stream.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::pg::{QualifiedName, quote_ident};

use super::{Mark, Marks, Operations, PublishedTable, ReplicaIdentity, TableKind};

/// One row of `pg_publication`. Fields that a version lacks have the value that matches its behaviour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    pub oid: u32,
    pub name: String,
    /// The transaction that wrote this row (`xmin`).
    pub version: String,
    pub all_tables: bool,
    pub actions: Operations,
    /// `publish_via_partition_root` (13+).
    pub via_root: bool,
    /// Whether `publish_generated_columns` is `stored` (18+).
    pub generated_columns: bool,
}

/// What a publication says about a table that it names (`pg_publication_rel`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    /// The row's OID.
    pub oid: u32,
    /// The column list as attribute numbers (15+).
    pub columns: Option<Vec<i16>>,
    /// The row filter as an SQL expression (15+).
    pub filter: Option<String>,
}

/// A relation that can be published, or an ancestor of one.
#[derive(Debug, Clone, PartialEq)]
pub struct Relation {
    pub oid: u32,
    pub name: QualifiedName,
    pub namespace: u32,
    pub kind: TableKind,
    /// OID of the partitioned table of which this is a partition.
    pub parent: Option<u32>,
    /// The transaction that attached it to its parent.
    pub attached: Option<String>,
    /// The transaction that put it into its schema; none if no publication has whole schemas.
    pub moved: Option<String>,
    pub identity: ReplicaIdentity,
    /// The row count (`pg_class.reltuples`); `None` if rows were never counted.
    pub rows: Option<f64>,
    /// The number of attributes (`pg_class.relnatts`), including dropped and generated columns.
    pub attributes: usize,
}

/// When a column list is equivalent to no list, for comparing publications.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WholeList {
    /// If it names every column that would be published without a list (16+).
    #[default]
    AllPublished,
    /// If its length is the table's number of attributes (15), which includes dropped and generated
    /// columns.
    EveryAttribute,
}

/// A live column of a published relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute {
    pub number: i16,
    pub generated: Generated,
}

/// Kind of a generated column (`pg_attribute.attgenerated`, 12+).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generated {
    No,
    Stored,
    Virtual,
}

/// Everything about the publisher's publications that decides what is published.
#[derive(Debug, Clone, Default)]
pub struct Publications {
    /// The publications in the order in which the subscription names them.
    pub publications: Vec<Publication>,
    /// Members by publication and relation.
    pub members: HashMap<(u32, u32), Member>,
    /// The rows for `FOR TABLES IN SCHEMA` (15+): OIDs by publication and namespace.
    pub schemas: HashMap<(u32, u32), u32>,
    pub relations: BTreeMap<u32, Relation>,
    pub whole_list: WholeList,
}

/// A relation name that the stream will carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub oid: u32,
    pub actions: Operations,
    /// Indexes of the publications whose filters and column lists apply.
    pub publications: Vec<usize>,
    pub row_filters: Vec<String>,
    pub rows_estimated: Option<u64>,
}

/// A contradiction between publications about a table. The walsender stops with the same message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contradiction {
    ColumnLists,
    GeneratedColumns,
}

/// How one publication publishes one relation.
struct Way {
    published_as: u32,
    /// Number of steps from the relation up to the one that it is published as.
    level: usize,
}

impl Publications {
    /// Returns the relations under which rows will be published, by OID.
    #[must_use]
    pub fn resolve(&self) -> Vec<Resolved> {
        let mut found: BTreeMap<u32, (Operations, HashSet<usize>)> = BTreeMap::new();
        for relation in self.relations.values() {
            if let Some((published_as, actions, through)) = self.entry(relation) {
                let (all, publications) = found.entry(published_as).or_default();
                *all = all.or(actions);
                publications.extend(through);
            }
        }
        let rows = self.rows_by_root(&found.keys().copied().collect());
        found
            .into_iter()
            .map(|(oid, (actions, through))| {
                let mut publications: Vec<usize> = through.into_iter().collect();
                publications.sort_unstable();
                let row_filters = self.row_filters(oid, &publications);
                let rows_estimated = rows.get(&oid).copied();
                Resolved { oid, actions, publications, row_filters, rows_estimated }
            })
            .collect()
    }

    /// Follows `get_rel_sync_entry`: returns the topmost relation that any publication publishes this
    /// one as, the operations of all publications, and the publications that publish it as the topmost.
    fn entry(&self, relation: &Relation) -> Option<(u32, Operations, Vec<usize>)> {
        let ancestors = self.ancestors(relation);
        let mut actions = Operations::NONE;
        let mut best: Option<Way> = None;
        let mut through = Vec::new();
        for (at, publication) in self.publications.iter().enumerate() {
            let Some(way) = self.way(publication, relation, &ancestors) else { continue };
            actions = actions.or(publication.actions);
            let level = best.as_ref().map_or(0, |best| best.level);
            if best.is_none() || way.level > level {
                best = Some(way);
                through = vec![at];
            } else if way.level == level {
                through.push(at);
            }
        }
        best.map(|best| (best.published_as, actions, through))
    }

    fn way(&self, publication: &Publication, relation: &Relation, ancestors: &[u32]) -> Option<Way> {
        // A partitioned table holds no rows: its partitions are published, unless the publication uses
        // the root.
        if relation.kind == TableKind::Partitioned && !publication.via_root {
            return None;
        }
        let topmost = if publication.all_tables {
            ancestors.len().checked_sub(1)
        } else {
            ancestors.iter().rposition(|&ancestor| self.contains(publication, ancestor))
        };
        match topmost {
            Some(at) if publication.via_root => Some(Way { published_as: ancestors[at], level: at + 1 }),
            None if !publication.all_tables && !self.contains(publication, relation.oid) => None,
            Some(_) | None => Some(Way { published_as: relation.oid, level: 0 }),
        }
    }

    /// Whether the publication names the relation or its schema.
    fn contains(&self, publication: &Publication, relation: u32) -> bool {
        self.member(publication, relation).is_some() || self.contains_schema_of(publication, relation)
    }

    fn contains_schema_of(&self, publication: &Publication, relation: u32) -> bool {
        let namespace = self.relations.get(&relation).map(|relation| relation.namespace);
        namespace.is_some_and(|namespace| self.schemas.contains_key(&(publication.oid, namespace)))
    }

    fn member(&self, publication: &Publication, relation: u32) -> Option<&Member> {
        self.members.get(&(publication.oid, relation))
    }

    /// Returns the ancestors from the parent up to the root. A cycle, which no catalog has, ends the
    /// search.
    fn ancestors(&self, relation: &Relation) -> Vec<u32> {
        let mut ancestors = Vec::new();
        let mut at = relation.parent;
        while let Some(oid) = at.filter(|oid| !ancestors.contains(oid)) {
            ancestors.push(oid);
            at = self.relations.get(&oid).and_then(|parent| parent.parent);
        }
        ancestors
    }

    /// Returns the catalog rows by which the relation is published as itself.
    #[must_use]
    pub fn marks(&self, relation: &Relation) -> Marks {
        let ancestors = self.ancestors(relation);
        let published = self.publications.iter().filter(|publication| {
            self.way(publication, relation, &ancestors).is_some_and(|way| way.published_as == relation.oid)
        });
        let mark = |publication: &Publication| {
            let member = self.member(publication, relation.oid);
            let whole = publication.all_tables || self.contains_schema_of(publication, relation.oid);
            Mark {
                publication: publication.oid,
                name: publication.name.clone(),
                version: publication.version.clone(),
                actions: publication.actions,
                rows: self.member_rows(publication, relation, &ancestors),
                filter: member.filter(|_| !whole).and_then(|member| member.filter.clone()),
                columns: member.filter(|_| !publication.all_tables).and_then(|member| member.columns.clone()),
            }
        };
        Marks(published.map(mark).collect())
    }

    /// The rows that make the relation, or an ancestor, a member. A partition is one through its ancestor only
    /// while it is attached, and through a schema only while it is in it.
    fn member_rows(&self, publication: &Publication, relation: &Relation, ancestors: &[u32]) -> Vec<String> {
        if publication.all_tables {
            return vec!["all".to_owned()];
        }
        let (mut rows, mut path) = (Vec::new(), String::new());
        for oid in std::iter::once(relation.oid).chain(ancestors.iter().copied()) {
            let Some(at) = self.relations.get(&oid) else { break };
            if let Some(member) = self.member(publication, oid) {
                rows.push(format!("table {}{path}", member.oid));
            }
            if let Some(row) = self.schemas.get(&(publication.oid, at.namespace)) {
                rows.push(format!("schema {row} {}{path}", at.moved.as_deref().unwrap_or("-")));
            }
            path.push_str(" below ");
            path.push_str(at.attached.as_deref().unwrap_or("-"));
        }
        rows
    }

    /// Returns the distinct filters for the copy, which are combined with OR; none as soon as one
    /// publication has no filter.
    fn row_filters(&self, relation: u32, publications: &[usize]) -> Vec<String> {
        let mut filters: Vec<String> = Vec::new();
        for publication in publications.iter().map(|&at| &self.publications[at]) {
            let whole = publication.all_tables || self.contains_schema_of(publication, relation);
            let filter = self.member(publication, relation).and_then(|member| member.filter.as_ref());
            match filter.filter(|_| !whole) {
                None => return Vec::new(),
                Some(filter) if filters.contains(filter) => {}
                Some(filter) => filters.push(filter.clone()),
            }
        }
        filters
    }

    /// Returns the columns that are sent, or the contradiction at which the publisher would stop
    /// (`check_and_init_gencol` and `pgoutput_column_list_init` in `pgoutput.c`).
    ///
    /// Before 18 a column list cannot name a generated column, so the same rule serves all versions.
    pub fn columns(
        &self,
        resolved: &Resolved,
        attributes: &[Attribute],
    ) -> Result<HashSet<i16>, Contradiction> {
        let lists = || {
            resolved.publications.iter().map(|&at| {
                let publication = &self.publications[at];
                let member = self.member(publication, resolved.oid).filter(|_| !publication.all_tables);
                (publication, member.and_then(|member| member.columns.as_ref()))
            })
        };
        let has_generated = attributes.iter().any(|attribute| attribute.generated != Generated::No);
        let mut stored = None;
        for (publication, _) in lists().filter(|(_, list)| has_generated && list.is_none()) {
            if *stored.get_or_insert(publication.generated_columns) != publication.generated_columns {
                return Err(Contradiction::GeneratedColumns);
            }
        }
        let whole: HashSet<i16> = attributes
            .iter()
            .filter(|attribute| match attribute.generated {
                Generated::No => true,
                Generated::Stored => stored == Some(true),
                Generated::Virtual => false,
            })
            .map(|attribute| attribute.number)
            .collect();
        if self.whole_list == WholeList::EveryAttribute {
            let ever = self.relations.get(&resolved.oid).map_or(0, |relation| relation.attributes);
            let whole = |list: Option<&Vec<i16>>| list.is_none_or(|list| list.len() == ever);
            if lists().any(|(_, list)| whole(list)) && !lists().all(|(_, list)| whole(list)) {
                return Err(Contradiction::ColumnLists);
            }
        }
        let mut agreed: Option<HashSet<i16>> = None;
        for (_, list) in lists() {
            let columns = list.map_or_else(|| whole.clone(), |list| list.iter().copied().collect());
            match &agreed {
                None => agreed = Some(columns),
                Some(agreed) if *agreed == columns => {}
                Some(_) => return Err(Contradiction::ColumnLists),
            }
        }
        Ok(agreed.unwrap_or(whole))
    }

    /// Sums up the rows below each of `roots` over the tables whose rows were ever counted. It takes
    /// one pass over the relations, so that a tree of many partitions stays cheap.
    fn rows_by_root(&self, roots: &HashSet<u32>) -> HashMap<u32, u64> {
        let mut rows = HashMap::new();
        for relation in self.relations.values().filter(|relation| relation.kind == TableKind::Table) {
            let Some(counted) = relation.rows else { continue };
            let mut line = self.ancestors(relation);
            line.push(relation.oid);
            for root in line.into_iter().filter(|oid| roots.contains(oid)) {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "an estimate; saturates"
                )]
                let counted = counted.max(0.0).round() as u64;
                let sum: &mut u64 = rows.entry(root).or_default();
                *sum = sum.saturating_add(counted);
            }
        }
        rows
    }
}

/// Returns the command that copies `columns` of a table's rows from the publisher in text format.
///
/// It follows `copy_table` in PostgreSQL's `tablesync.c`: an ordinary table is read without its
/// inheritance children, which are published under their own names; a partitioned table is read with
/// its partitions. `COPY table (…)` is cheaper, but can neither filter rows nor read generated columns.
/// A table without columns yields an empty line for each row.
#[must_use]
pub fn copy_query(table: &PublishedTable, columns: &[&str]) -> String {
    let name = table.relation.name.quoted();
    let list = columns.iter().map(|column| quote_ident(column)).collect::<Vec<_>>().join(",");
    let ordinary = table.kind == TableKind::Table;
    if ordinary && table.row_filters.is_empty() && !table.has_generated && !columns.is_empty() {
        return format!("COPY {name} ({list}) TO STDOUT");
    }
    let only = if ordinary { "ONLY " } else { "" };
    let list = if list.is_empty() { list } else { format!("{list} ") };
    let filters = table.row_filters.iter().map(|filter| format!("({filter})")).collect::<Vec<_>>();
    let filter = if filters.is_empty() { String::new() } else { format!(" WHERE {}", filters.join(" OR ")) };
    format!("COPY (SELECT {list}FROM {only}{name}{filter}) TO STDOUT")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMESPACE: u32 = 1;

    /// Root 10 has leaf 11 and subtree 12, which has leaf 13; table 20 has no parent.
    fn tree() -> Publications {
        let relation = |oid, kind, parent, rows| {
            let relation = Relation {
                oid,
                name: QualifiedName::new("public", format!("t{oid}")),
                namespace: NAMESPACE,
                kind,
                parent,
                attached: parent.map(|parent| format!("{parent}0")),
                moved: Some("5".to_owned()),
                identity: ReplicaIdentity::Default,
                rows,
                attributes: 4,
            };
            (oid, relation)
        };
        Publications {
            relations: BTreeMap::from([
                relation(10, TableKind::Partitioned, None, None),
                relation(11, TableKind::Table, Some(10), Some(100.0)),
                relation(12, TableKind::Partitioned, Some(10), None),
                relation(13, TableKind::Table, Some(12), Some(20.0)),
                relation(20, TableKind::Table, None, None),
            ]),
            ..Publications::default()
        }
    }

    fn with(mut facts: Publications, name: &str, via_root: bool, members: &[u32]) -> Publications {
        let oid = u32::try_from(facts.publications.len()).expect("few") + 1;
        let all_tables = members.is_empty();
        let name = name.to_owned();
        let actions = Operations::ALL;
        facts.publications.push(Publication {
            oid,
            name,
            version: "7".to_owned(),
            all_tables,
            actions,
            via_root,
            generated_columns: false,
        });
        let member = |relation| Member { oid: relation + 1000, ..Member::default() };
        facts.members.extend(members.iter().map(|&relation| ((oid, relation), member(relation))));
        facts
    }

    fn check(facts: &Publications, expected: &[(u32, &[usize])]) {
        let resolved = facts.resolve();
        let found: Vec<(u32, &[usize])> =
            resolved.iter().map(|resolved| (resolved.oid, resolved.publications.as_slice())).collect();
        assert_eq!(found, expected, "{:?}", facts.publications);
    }

    #[test]
    fn the_topmost_name_wins_whatever_the_order() {
        check(&with(tree(), "leaves", false, &[10]), &[(11, &[0]), (13, &[0])]);
        check(&with(tree(), "root", true, &[10]), &[(10, &[0])]);
        check(&with(tree(), "all", false, &[]), &[(11, &[0]), (13, &[0]), (20, &[0])]);
        check(&with(tree(), "all via root", true, &[]), &[(10, &[0]), (20, &[0])]);
        check(&with(with(tree(), "root", true, &[10]), "leaf", false, &[11]), &[(10, &[0])]);
        check(&with(with(tree(), "leaf", false, &[11]), "root", true, &[10]), &[(10, &[1])]);
        check(&with(with(tree(), "middle", true, &[12]), "leaf", true, &[11, 13]), &[(11, &[1]), (12, &[0])]);
        check(&with(with(tree(), "root", true, &[10]), "middle", true, &[12]), &[(10, &[0])]);
        check(
            &with(with(tree(), "leaf", true, &[11]), "all", false, &[]),
            &[(11, &[0, 1]), (13, &[1]), (20, &[1])],
        );
    }

    #[test]
    fn marks_name_every_row_that_makes_a_member() {
        let check = |facts: &Publications, oid: u32, expected: &[&[&str]]| {
            let marks = facts.marks(&facts.relations[&oid]);
            let rows: Vec<&[String]> = marks.0.iter().map(|mark| mark.rows.as_slice()).collect();
            assert_eq!(rows, expected, "{:?}", facts.publications);
        };
        check(&with(tree(), "leaves", false, &[10, 11]), 11, &[&["table 1011", "table 1010 below 100"]]);
        check(&with(tree(), "leaves", false, &[10]), 13, &[&["table 1010 below 120 below 100"]]);
        check(&with(tree(), "root", true, &[10]), 10, &[&["table 1010"]]);
        check(&with(tree(), "root", true, &[10]), 13, &[]);
        check(&with(with(tree(), "all", false, &[]), "one", false, &[20]), 20, &[&["all"], &["table 1020"]]);
        let mut schema = with(tree(), "p", false, &[20]);
        schema.schemas.insert((1, NAMESPACE), 2000);
        check(&schema, 20, &[&["table 1020", "schema 2000 5"]]);
    }

    #[test]
    fn rows_are_those_of_all_leaves() {
        let rows = |facts: &Publications| -> Vec<Option<u64>> {
            facts.resolve().iter().map(|resolved| resolved.rows_estimated).collect()
        };
        assert_eq!(rows(&with(tree(), "root", true, &[10, 20])), [Some(120), None]);
        assert_eq!(rows(&with(tree(), "leaves", false, &[10])), [Some(100), Some(20)]);
    }

    #[test]
    fn operations_are_those_of_every_publication_that_has_the_row() {
        let mut facts = with(with(tree(), "root", true, &[10]), "leaf", false, &[11]);
        facts.publications[0].actions = Operations::INSERT;
        facts.publications[1].actions = Operations::DELETE;
        let expected = Operations::INSERT.or(Operations::DELETE);
        assert_eq!(facts.resolve()[0].actions, expected);
    }

    fn filtered(filters: &[Option<&str>]) -> Publications {
        let mut facts = tree();
        for (oid, filter) in (1..).zip(filters) {
            facts = with(facts, "p", false, &[20]);
            let member = facts.members.get_mut(&(oid, 20)).expect("just put there");
            member.filter = filter.map(str::to_owned);
        }
        facts
    }

    #[test]
    fn filters_are_ored_and_one_publication_without_voids_them() {
        let filters = |facts: &Publications| facts.resolve()[0].row_filters.clone();
        assert_eq!(filters(&filtered(&[Some("(a > 1)"), Some("(b)"), Some("(a > 1)")])), ["(a > 1)", "(b)"]);
        assert_eq!(filters(&filtered(&[Some("(a > 1)"), None])), [""; 0]);
        let all = with(filtered(&[Some("(a > 1)")]), "all", false, &[]);
        assert_eq!(all.resolve().last().map(|resolved| resolved.row_filters.clone()), Some(Vec::new()));
        let mut schema = filtered(&[Some("(a > 1)")]);
        schema.schemas.insert((1, NAMESPACE), 2000);
        assert!(schema.resolve().iter().all(|resolved| resolved.row_filters.is_empty()));
    }

    #[test]
    fn column_lists_must_agree() {
        let attributes =
            [(1, Generated::No), (2, Generated::No), (3, Generated::Stored), (4, Generated::Virtual)]
                .map(|(number, generated)| Attribute { number, generated });
        let check = |lists: &[(Option<&[i16]>, bool)], expected: Result<&[i16], Contradiction>| {
            let mut facts = tree();
            for (oid, (list, generated)) in (1..).zip(lists) {
                facts = with(facts, "p", false, &[20]);
                facts.members.get_mut(&(oid, 20)).expect("just put there").columns =
                    list.map(<[i16]>::to_vec);
                facts.publications[oid as usize - 1].generated_columns = *generated;
            }
            let found = facts.columns(&facts.resolve()[0], &attributes).map(|columns| {
                let mut columns: Vec<i16> = columns.into_iter().collect();
                columns.sort_unstable();
                columns
            });
            assert_eq!(found.as_deref().map_err(|error| *error), expected, "{lists:?}");
        };
        check(&[(None, false)], Ok(&[1, 2]));
        check(&[(None, true)], Ok(&[1, 2, 3]));
        check(&[(Some(&[2]), false)], Ok(&[2]));
        check(&[(Some(&[1, 2]), false), (None, false)], Ok(&[1, 2]));
        check(&[(Some(&[2]), false), (None, false)], Err(Contradiction::ColumnLists));
        check(&[(Some(&[1]), false), (Some(&[2]), false)], Err(Contradiction::ColumnLists));
        check(&[(None, false), (None, true)], Err(Contradiction::GeneratedColumns));
        check(&[(Some(&[1, 2, 3]), false), (None, true)], Ok(&[1, 2, 3]));
        // Version 15 counts dropped and generated columns, too.
        let mut facts = with(with(tree(), "listed", false, &[20]), "whole", false, &[20]);
        facts.members.get_mut(&(1, 20)).expect("just put there").columns = Some(vec![1, 2]);
        facts.whole_list = WholeList::EveryAttribute;
        let found = facts.columns(&facts.resolve()[0], &attributes);
        assert_eq!(found, Err(Contradiction::ColumnLists));
    }

    #[test]
    fn the_copy_reads_what_the_stream_will_name() {
        let check = |kind, filters: &[&str], has_generated, columns: &[&str], expected: &str| {
            let table = PublishedTable {
                oid: 1,
                kind,
                relation: super::super::PublishedRelation {
                    name: QualifiedName::new("s", "tab'le"),
                    identity: ReplicaIdentity::Default,
                    columns: Vec::new(),
                },
                actions: Operations::ALL,
                publications: Vec::new(),
                marks: Marks::default(),
                row_filters: filters.iter().map(|&filter| filter.to_owned()).collect(),
                last_number: 2,
                has_generated,
                rows_estimated: None,
            };
            assert_eq!(copy_query(&table, columns), expected);
        };
        use TableKind::{Partitioned, Table};
        check(Table, &[], false, &["a", "B"], r#"COPY "s"."tab'le" ("a","B") TO STDOUT"#);
        check(Table, &[], true, &["a"], r#"COPY (SELECT "a" FROM ONLY "s"."tab'le") TO STDOUT"#);
        check(
            Table,
            &["(a > 1)", "b"],
            false,
            &["a", "b"],
            r#"COPY (SELECT "a","b" FROM ONLY "s"."tab'le" WHERE ((a > 1)) OR (b)) TO STDOUT"#,
        );
        check(Partitioned, &[], false, &["a"], r#"COPY (SELECT "a" FROM "s"."tab'le") TO STDOUT"#);
        check(Table, &[], false, &[], r#"COPY (SELECT FROM ONLY "s"."tab'le") TO STDOUT"#);
    }
}
