//! Which changes of a table apply, and when its target is described.

use super::*;
use crate::pgoutput::RelationColumn;
use crate::schema::{ReplicaIdentity, ReplicationRole, RunAs};

#[test]
fn changes_are_judged_by_commit_and_by_transaction() {
    let lsn = Lsn::new;
    let check = |applies: Applies, xid, finish, expected| {
        assert_eq!(applies.judge(xid, finish), expected, "{applies:?} {xid} {finish:?}");
    };
    use Verdict::{Applies as Yes, PassedOver as No, Unknown};
    let followed = Applies::from(lsn(10));
    check(followed, 1, Finish::At(lsn(10)), Yes);
    check(followed, 1, Finish::At(lsn(9)), No);
    check(followed, 1, Finish::Beyond(lsn(10)), Yes);
    check(followed, 1, Finish::Beyond(lsn(9)), Unknown);
    check(Applies::default(), 1, Finish::At(lsn(9)), No);
    check(Applies::default(), 1, Finish::Beyond(lsn(9)), Unknown);
    let held = Applies { held_from: Some(lsn(20)), ..followed };
    check(held, 1, Finish::At(lsn(19)), Yes);
    check(held, 1, Finish::At(lsn(20)), No);
    check(held, 1, Finish::Beyond(lsn(19)), Unknown);
    check(held, 1, Finish::Beyond(lsn(20)), No);
    let left = Applies { left_xid: Some(5), ..followed };
    check(left, 4, Finish::At(lsn(100)), Yes);
    check(left, 5, Finish::At(lsn(100)), No);
    check(left, 4, Finish::Beyond(lsn(100)), Yes);
    check(left, u32::MAX, Finish::At(lsn(100)), Yes);
    check(Applies { left_xid: Some(u32::MAX), ..followed }, 3, Finish::At(lsn(100)), No);
}

#[test]
fn a_table_that_has_changed_is_described_when_it_is_announced() {
    const INT4: u32 = 23;
    const TEXT: u32 = 25;
    let relation = |oid: u32, name: &str, type_oid| Relation {
        oid,
        schema: "public".to_owned(),
        name: name.to_owned(),
        replica_identity: ReplicaIdentity::Default,
        columns: vec![RelationColumn { key: true, name: "c".to_owned(), type_oid, typmod: -1 }],
    };
    let catalog = |oid, name| {
        let known = RelationCache::default().note_relation(relation(oid, name, INT4));
        let member = Member {
            oid: Some(oid),
            catalog: known.unwrap(),
            target: QualifiedName::new("public", name),
            rules: Arc::default(),
            applies: Applies::default(),
        };
        (member.target.clone(), member)
    };
    for (type_oid, is_described) in [(INT4, false), (TEXT, true)] {
        let surroundings = Surroundings {
            replication_role: ReplicationRole::Replica,
            role: String::new(),
            run_as: RunAs::Owner,
        };
        let mut tables = Tables::new([catalog(1, "a"), catalog(2, "b")].into(), surroundings);
        let first = tables.announce(relation(1, "a", INT4), Duration::ZERO).unwrap();
        let Announced::Describe { tables: names, .. } = first else { panic!("{first:?}") };
        assert_eq!(names.len(), 2, "b is read ahead");
        tables.describe(names.into_iter().map(|name| (name, None)).collect(), Duration::ZERO).unwrap();
        let second = tables.announce(relation(2, "b", type_oid), Duration::ZERO).unwrap();
        assert_eq!(matches!(second, Announced::Describe { .. }), is_described, "{second:?}");
    }
}
