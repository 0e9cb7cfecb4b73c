//! Tests of what publications publish: names, operations, rows, columns and marks.

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
            facts.members.get_mut(&(oid, 20)).expect("just put there").columns = list.map(<[i16]>::to_vec);
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
