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

use crate::pg::QualifiedName;

use super::{Mark, Marks, Operations, ReplicaIdentity, TableKind};

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
                since: None,
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

#[cfg(test)]
mod tests;
