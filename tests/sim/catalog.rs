//! The publisher's catalog at a moment: its tables and publications, and what they make of a change. The walsender's
//! rules are written here once more; the rows that a look at the catalog shows are judged by the real code.

use std::collections::{BTreeMap, HashMap};

use pgsluice::schema::publication::{self, Publications, Relation, WholeList};
use pgsluice::schema::{Operations, ReplicaIdentity, TableKind};
use pgsluice::subscription::membership::Seen;

use crate::tables::{Kind, LATER, Row, TABLES, named, oid};

/// The publications that the subscription names.
pub(crate) const PUBLICATIONS: [&str; 2] = ["p", "q"];
/// Tables that both publish, where publications change.
const IN_BOTH: [usize; 2] = [1, 3];
const FILTER: &str = "((id % 2) = 0)";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Catalog {
    pub(crate) tables: [Table; TABLES.len()],
    pub(crate) publications: Vec<Publication>,
}

/// A table. Its name is made of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) oid: u32,
    pub(crate) number: u32,
    pub(crate) width: usize,
    /// Changes with each ALTER TABLE: the table is described again.
    pub(crate) version: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publication {
    pub(crate) oid: u32,
    pub(crate) name: String,
    /// The transaction that wrote its row.
    pub(crate) version: u32,
    pub(crate) actions: Operations,
    pub(crate) members: Vec<Member>,
}

/// A row that makes a table a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) row: u32,
    pub(crate) table: u32,
    /// Only rows with an even `id` are published.
    pub(crate) even: bool,
    /// So many columns are published, the first ones; none if all are.
    pub(crate) columns: Option<usize>,
}

/// How the changes of a table are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) width: usize,
    pub(crate) even: bool,
}

impl Way {
    pub(crate) fn has(self, row: &Row) -> bool {
        !self.even || row[0].unwrap_or(0).is_multiple_of(2)
    }

    /// The row as far as it is published.
    pub(crate) fn cut(self, mut row: Row) -> Row {
        row.iter_mut().skip(self.width).for_each(|cell| *cell = None);
        row
    }
}

/// A published table as the look at the catalog shows it.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) slot: usize,
    pub(crate) seen: Seen,
    pub(crate) way: Way,
    pub(crate) actions: Operations,
}

impl Catalog {
    /// `in_both`: whether some tables are in the second publication, too.
    pub(crate) fn new(in_both: bool) -> Self {
        let tables = std::array::from_fn(|at| Table {
            oid: oid(at),
            number: 0,
            width: if TABLES[at] == Kind::AllKey { 2 } else { 3 },
            version: 0,
        });
        let publication = |at: usize, members: Vec<usize>| Publication {
            oid: 10 + u32::try_from(at).unwrap_or(0),
            name: PUBLICATIONS[at].to_owned(),
            version: 600,
            actions: Operations::ALL,
            members: members
                .into_iter()
                .map(|slot| {
                    let row = 20 + u32::try_from(at * TABLES.len() + slot).unwrap_or(0);
                    Member { row, table: oid(slot), even: false, columns: None }
                })
                .collect(),
        };
        let second = if in_both { IN_BOTH.to_vec() } else { Vec::new() };
        Self { tables, publications: vec![publication(0, (0..LATER).collect()), publication(1, second)] }
    }

    pub(crate) fn publication(&self, name: &str) -> Option<&Publication> {
        self.publications.iter().find(|publication| publication.name == name)
    }

    pub(crate) fn publication_mut(&mut self, name: &str) -> Option<&mut Publication> {
        self.publications.iter_mut().find(|publication| publication.name == name)
    }

    /// The publications with these names.
    ///
    /// # Errors
    /// The first one that does not exist, if the server is `strict` about that, as versions before 18 are.
    pub(crate) fn asked(&self, names: &[String], strict: bool) -> Result<Vec<&Publication>, String> {
        let mut asked = Vec::new();
        for name in names {
            match self.publication(name) {
                Some(publication) => asked.push(publication),
                None if strict => return Err(name.clone()),
                None => {}
            }
        }
        Ok(asked)
    }

    /// How an operation on a table is published; none if it is not.
    pub(crate) fn way(&self, slot: usize, operation: Operations, asked: &[&Publication]) -> Option<Way> {
        let table = self.tables[slot];
        let members: Vec<(&Publication, Member)> = asked
            .iter()
            .filter_map(|publication| Some((*publication, publication.member(table.oid)?)))
            .collect();
        let mut of_operation =
            members.iter().filter(|(publication, _)| publication.actions.meet(operation)).peekable();
        of_operation.peek()?;
        let even = of_operation.all(|(_, member)| member.even);
        let list = members.iter().find_map(|(_, member)| member.columns);
        Some(Way { width: list.map_or(table.width, |list| list.min(table.width)), even })
    }

    fn configured(&self) -> Vec<&Publication> {
        PUBLICATIONS.iter().filter_map(|name| self.publication(name)).collect()
    }

    pub(crate) fn is_published(&self, slot: usize) -> bool {
        self.configured().iter().any(|publication| publication.member(self.tables[slot].oid).is_some())
    }

    /// What of a table is published by any operation.
    pub(crate) fn way_of_rows(&self, slot: usize) -> Option<Way> {
        self.way(slot, Operations::ALL, &self.configured())
    }

    pub(crate) fn slot_of(&self, oid: u32) -> Option<usize> {
        self.tables.iter().position(|table| table.oid == oid)
    }

    /// The rows of the catalog that decide what is published.
    fn facts(&self) -> Publications {
        let configured = self.configured();
        let publications = configured.iter().map(|publication| publication::Publication {
            oid: publication.oid,
            name: publication.name.clone(),
            version: publication.version.to_string(),
            all_tables: false,
            actions: publication.actions,
            via_root: false,
            generated_columns: false,
        });
        let columns = |count: usize| (1..=i16::try_from(count).unwrap_or(4)).collect();
        let members = configured.iter().flat_map(|publication| {
            publication.members.iter().map(|member| {
                let fact = publication::Member {
                    oid: member.row,
                    columns: member.columns.map(columns),
                    filter: member.even.then(|| FILTER.to_owned()),
                };
                ((publication.oid, member.table), fact)
            })
        });
        Publications {
            publications: publications.collect(),
            members: members.collect(),
            schemas: HashMap::new(),
            relations: self.relations(),
            whole_list: WholeList::AllPublished,
        }
    }

    fn relations(&self) -> BTreeMap<u32, Relation> {
        let relation = |(slot, table): (usize, &Table)| Relation {
            oid: table.oid,
            name: named(slot, table.number),
            namespace: 1,
            kind: TableKind::Table,
            parent: None,
            attached: None,
            moved: None,
            identity: if TABLES[slot].is_full() { ReplicaIdentity::Full } else { ReplicaIdentity::Default },
            rows: None,
            attributes: table.width,
        };
        self.tables.iter().enumerate().map(|at| (at.1.oid, relation(at))).collect()
    }

    /// What the look shows, concluded by the real code.
    pub(crate) fn published(&self) -> Vec<Published> {
        let facts = self.facts();
        let tables = facts.resolve().into_iter().filter_map(|resolved| {
            let slot = self.slot_of(resolved.oid)?;
            let relation = &facts.relations[&resolved.oid];
            let lists = self.configured().into_iter().filter_map(|one| one.member(resolved.oid)?.columns);
            // A copy without a list brings columns that are added meanwhile, too.
            let width = lists.min().unwrap_or(4);
            Some(Published {
                slot,
                seen: Seen { oid: resolved.oid, name: relation.name.clone(), marks: facts.marks(relation) },
                way: Way { width, even: !resolved.row_filters.is_empty() },
                actions: resolved.actions,
            })
        });
        tables.collect()
    }

    /// As `schema::catalog::fingerprint` has it.
    pub(crate) fn fingerprint(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        for publication in self.configured() {
            let _ = write!(text, "{} {} {};", publication.oid, publication.version, publication.name);
            for member in &publication.members {
                let number = self.slot_of(member.table).map_or(0, |slot| self.tables[slot].number);
                let _ = write!(text, "{} {} {number},", member.row, member.table);
            }
        }
        text
    }
}

impl Publication {
    pub(crate) fn member(&self, table: u32) -> Option<Member> {
        self.members.iter().find(|member| member.table == table).copied()
    }

    /// The list does not say which row came first.
    pub(crate) fn set(&mut self, member: Member) {
        self.remove(member.table);
        self.members.push(member);
        self.members.sort_by_key(|member| member.row);
    }

    pub(crate) fn remove(&mut self, table: u32) {
        self.members.retain(|member| member.table != table);
    }
}
