//! Looks at the publications and their verdicts, as a table of cases.

use std::fmt::Write as _;

use super::*;
use crate::schema::sharing::Place;
use crate::schema::{Mark, Operations};

fn name(text: &str) -> QualifiedName {
    QualifiedName::new("public", text)
}

fn marks(row: u32) -> Marks {
    Marks(vec![Mark {
        publication: 1,
        name: "p".to_owned(),
        version: "7".to_owned(),
        actions: Operations::ALL,
        rows: vec![format!("table {row}")],
        filter: None,
        columns: None,
        since: None,
    }])
}

/// A table that is followed: its OID, and the OID of its membership row.
fn recorded(source: &str, oid: u32, row: u32) -> Recorded {
    Recorded {
        source: name(source),
        oid: Some(oid),
        marks: Some(marks(row)),
        left: None,
        synchronised: Synchronised::Yes,
        copied: Some(Lsn::new(0x10)),
        held: None,
        other_target: None,
    }
}

fn held(table: Recorded, kind: GapKind) -> Recorded {
    Recorded { held: Some(kind), ..table }
}

fn pending(table: Recorded) -> Recorded {
    Recorded { synchronised: Synchronised::No, ..table }
}

fn old(table: Recorded) -> Recorded {
    Recorded { oid: None, marks: None, ..table }
}

fn left(table: Recorded, lsn: u64, gone: LetGo) -> Recorded {
    let left = Left { from: Some(Lsn::new(lsn - 10)), lsn: Lsn::new(lsn), xid: 77, gone };
    Recorded { left: Some(left), ..table }
}

fn seen(source: &str, oid: u32, row: u32) -> Seen {
    Seen { oid, name: name(source), marks: marks(row) }
}

/// The verdict in words: recorded name, name now, OID, change, and what has left.
fn told(judgement: &Judgement) -> String {
    let recorded = judgement.recorded.as_ref().map_or("-", |name| name.name.as_str());
    let oid = judgement.oid.map_or_else(|| "-".to_owned(), |oid| oid.to_string());
    let mut text = format!("{recorded}>{} {oid} {:?}", judgement.source.name, judgement.change);
    if let Some(left) = judgement.left {
        let _ = write!(text, " left {} {} {:?}", left.lsn, left.xid, left.gone);
    }
    for gap in &judgement.gaps {
        let lsn = |lsn: Option<Lsn>| lsn.map_or_else(|| "-".to_owned(), |lsn| lsn.to_string());
        let _ = write!(text, " gap {} {}..{}", gap.kind, lsn(gap.from), lsn(gap.to));
    }
    text
}

/// A look at position 0x100, with 0x60 as recorded and 0x50 applied.
const fn seeing(published: &[Seen]) -> Observed<'_> {
    Observed {
        published,
        others: &[],
        heirs: &[],
        occupied: &[],
        end: Lsn::new(0x100),
        unused_xid: 99,
        seen: Some(Lsn::new(0x60)),
        applied: Some(Lsn::new(0x50)),
        refused: &[],
        unasked: &[],
        restart: None,
    }
}

fn look(recorded: &[Recorded], published: &[Seen], others: &[(u32, &str)], new: NewTables) -> Judged {
    let others: Vec<_> = others.iter().map(|&(oid, text)| (oid, name(text))).collect();
    let observed = Observed { others: &others, ..seeing(published) };
    judge(recorded, &observed, new)
}

fn check(recorded: &[Recorded], published: &[Seen], others: &[(u32, &str)], expected: &[&str]) {
    let judged = look(recorded, published, others, NewTables::Follow);
    let found: Vec<String> = judged.tables.iter().map(told).collect();
    assert_eq!(found, expected, "{recorded:?}\n{published:?}");
}

#[test]
fn what_is_as_it_was_stays() {
    check(&[recorded("t", 10, 1)], &[seen("t", 10, 1)], &[], &["t>t 10 Nothing"]);
    check(&[], &[seen("t", 10, 1)], &[], &["->t 10 Joins"]);
    let judged = look(&[], &[seen("t", 10, 1)], &[], NewTables::Leave);
    assert_eq!((judged.tables.len(), judged.strangers), (0, vec![name("t")]));
}

#[test]
fn an_older_record_is_taken_as_it_is_first_seen() {
    let older = || old(recorded("t", 10, 1));
    check(&[older()], &[seen("t", 10, 1)], &[], &["t>t 10 Nothing"]);
    check(&[older()], &[], &[(10, "t")], &["t>t 10 Leaves left 0/100 99 NotYet"]);
    check(&[older()], &[], &[], &["t>t - Leaves left 0/100 99 NotYet"]);
    // The name belongs to a table that is known by its OID.
    check(&[older(), recorded("u", 20, 2)], &[seen("t", 20, 2)], &[], &["u>t 20 Nothing"]);
}

#[test]
fn a_table_leaves_and_is_let_go_once_the_stream_has_passed_that() {
    let table = || recorded("t", 10, 1);
    check(&[table()], &[], &[(10, "t")], &["t>t 10 Leaves left 0/100 99 NotYet"]);
    check(&[left(table(), 0x70, LetGo::NotYet)], &[], &[], &["t>t 10 Nothing left 0/70 77 NotYet"]);
    check(&[left(table(), 0x50, LetGo::NotYet)], &[], &[], &["t>t 10 LetGo left 0/50 77 Done"]);
    check(&[left(table(), 0x50, LetGo::Done)], &[], &[], &["t>t 10 Nothing left 0/50 77 Done"]);
    // It was never copied.
    let judged = look(&[pending(table())], &[], &[], NewTables::Follow);
    assert_eq!((judged.tables.len(), judged.removed), (0, vec![name("t")]));
}

#[test]
fn a_table_that_comes_back_has_a_gap() {
    let table = || recorded("t", 10, 1);
    check(&[table()], &[seen("t", 10, 2)], &[], &["t>t 10 Returns gap returned 0/60..0/100"]);
    for gone in [LetGo::NotYet, LetGo::Done] {
        let expected = ["t>t 10 Returns gap returned 0/36..0/100"];
        check(&[left(table(), 0x40, gone)], &[seen("t", 10, 2)], &[], &expected);
        check(&[left(table(), 0x40, gone)], &[seen("t", 10, 1)], &[], &expected);
    }
    let paused = held(table(), GapKind::Publication);
    check(&[paused], &[seen("t", 10, 2)], &[], &["t>t 10 Returns gap publication 0/60..0/100"]);
    // It was copied after the last look that proves something.
    let later = Recorded { copied: Some(Lsn::new(0x70)), ..table() };
    check(&[later], &[seen("t", 10, 2)], &[], &["t>t 10 Returns gap returned 0/70..0/100"]);
    // One that is still to be copied has no rows that could be wrong.
    check(&[pending(table())], &[seen("t", 10, 2)], &[], &["t>t 10 Nothing"]);
    // It comes back without its filter: the rows that this left out are older than its absence.
    let mut filtered = table();
    filtered.marks.as_mut().expect("just made").0[0].filter = Some("a > 1".to_owned());
    let expected = "t>t 10 Returns gap returned 0/36..0/100 gap row_filter -..0/100";
    check(&[left(filtered, 0x40, LetGo::Done)], &[seen("t", 10, 2)], &[], &[expected]);
}

#[test]
fn a_renamed_table_is_the_same_and_another_of_its_name_is_not() {
    let table = || recorded("t", 10, 1);
    check(&[table()], &[seen("u", 10, 1)], &[], &["t>u 10 Nothing"]);
    check(
        &[recorded("a", 10, 1), recorded("b", 20, 2)],
        &[seen("b", 10, 1), seen("a", 20, 2)],
        &[],
        &["b>a 20 Nothing", "a>b 10 Nothing"],
    );
    check(&[table()], &[seen("t", 20, 2)], &[], &["t>t 20 Replaced gap replaced 0/50..0/100"]);
    let gone = left(table(), 0x40, LetGo::Done);
    check(&[gone], &[seen("t", 20, 2)], &[], &["t>t 20 Replaced gap replaced 0/36..0/100"]);
    // The former table is still there, and the new one is new.
    check(
        &[table()],
        &[seen("t_old", 10, 1), seen("t", 20, 2)],
        &[],
        &["->t 20 Joins", "t>t_old 10 Nothing"],
    );
    check(&[pending(table())], &[seen("t", 20, 2)], &[], &["t>t 20 Nothing"]);
}

#[test]
fn a_name_belongs_to_the_table_that_has_it_now() {
    let (a, b) = (recorded("a", 10, 1), recorded("b", 20, 2));
    check(
        &[a.clone(), b.clone()],
        &[seen("a", 20, 2)],
        &[(10, "was_a")],
        &["b>a 20 Nothing", "a>was_a 10 Leaves left 0/100 99 NotYet"],
    );
    let judged = look(&[a, b], &[seen("a", 20, 2)], &[], NewTables::Follow);
    assert_eq!(judged.removed, [name("a")], "it was dropped, and another one has its name");
}

#[test]
fn a_publication_that_was_missing_proves_nothing() {
    let published = [seen("t", 10, 1)];
    let refused = ["p".to_owned()];
    let observed = Observed { seen: None, refused: &refused, ..seeing(&published) };
    let judged = judge(&[recorded("t", 10, 1)], &observed, NewTables::Follow);
    let found: Vec<String> = judged.tables.iter().map(told).collect();
    assert_eq!(found, ["t>t 10 Returns gap publication 0/10..0/100"]);
}

/// Transactions that had changed the table before it left may commit where the publication is missing.
#[test]
fn a_table_whose_publication_was_refused_may_lack_its_last_changes() {
    let refused = ["p".to_owned()];
    let found = |table: &Recorded, refused: &[String], restart: Option<u64>| {
        let observed = Observed { refused, restart: restart.map(Lsn::new), ..seeing(&[]) };
        let judged = judge(std::slice::from_ref(table), &observed, NewTables::Follow);
        judged.tables.iter().map(told).collect::<Vec<_>>().join(", ")
    };
    let check = |table: &Recorded, refused: &[String], restart, gap: &str| {
        let found = found(table, refused, restart);
        assert_eq!(found.split_once(" gap ").map_or("", |(_, gap)| gap), gap, "{found}");
    };
    let followed = recorded("t", 10, 1);
    let gone = left(followed.clone(), 0x30, LetGo::Done);
    check(&followed, &refused, Some(0x40), "last_changes 0/50..-");
    check(&gone, &refused, Some(0x20), "last_changes 0/50..-");
    check(&gone, &refused, None, "last_changes 0/50..-");
    check(&gone, &refused, Some(0x30), "");
    check(&gone, &[], Some(0x20), "");
    let unasked = Observed { unasked: &refused, restart: Some(Lsn::new(0x20)), ..seeing(&[]) };
    assert_eq!(judge(std::slice::from_ref(&gone), &unasked, NewTables::Follow).tables[0].gaps.len(), 1);
    check(&held(gone, GapKind::Returned), &refused, None, "");
}

/// Another publication has the table since a short time ago: what open transactions changed before that is not its own.
#[test]
fn a_publication_that_has_a_table_since_later_proves_nothing_of_the_time_before() {
    let refused = ["gone".to_owned()];
    let found = |since: Option<u64>, restart, refused: &[String]| {
        let mut marks = marks(1);
        marks.0[0].since = since.map(Lsn::new);
        let table = Recorded { marks: Some(marks), ..recorded("t", 10, 1) };
        let published = [seen("t", 10, 1)];
        let observed = Observed { refused, restart: Some(Lsn::new(restart)), ..seeing(&published) };
        let judged = judge(&[table], &observed, NewTables::Follow);
        judged.tables.iter().map(told).collect::<Vec<_>>().join(", ")
    };
    let gap = "t>t 10 Returns gap publication 0/60..0/100";
    assert_eq!(found(Some(0x40), 0x30, &refused), gap);
    for (since, restart, refused) in
        [(Some(0x40), 0x40, &refused[..]), (None, 0x30, &refused), (Some(0x40), 0x30, &[])]
    {
        assert_eq!(found(since, restart, refused), "t>t 10 Nothing", "{since:?} {restart}");
    }
    // It is carried on by the rows that stay.
    let later = Marks(vec![
        Mark { name: "q".to_owned(), publication: 2, ..marks(2).0.remove(0) },
        marks(1).0.remove(0),
    ]);
    let first = later.first_seen(&marks(1), Lsn::new(0x90));
    assert_eq!(first.0.iter().map(|mark| mark.since).collect::<Vec<_>>(), [Some(Lsn::new(0x90)), None]);
}

#[test]
fn what_an_earlier_definition_left_out_may_be_missing_for_long() {
    let defined = |set: fn(&mut Mark)| {
        let mut marks = marks(1);
        set(&mut marks.0[0]);
        marks
    };
    let check = |was: Marks, is: Marks, expected: &str| {
        let table = Recorded { marks: Some(was), ..recorded("t", 10, 1) };
        let published = Seen { marks: is, ..seen("t", 10, 1) };
        check(&[table], &[published], &[], &[&format!("t>t 10 Redefined gap {expected}")]);
    };
    let inserts = || defined(|mark| (mark.actions, mark.version) = (Operations::INSERT, "8".to_owned()));
    // A copy has brought what was there; since then, updates and deletes were left out.
    check(inserts(), marks(1), "operations 0/10..0/100");
    check(marks(1), inserts(), "operations 0/60..0/100");
    let filtered =
        || defined(|mark| (mark.filter, mark.rows) = (Some("a > 1".to_owned()), vec!["table 2".to_owned()]));
    // The copy left these rows out, too.
    check(filtered(), marks(1), "row_filter -..0/100");
    check(marks(1), filtered(), "row_filter 0/60..0/100");
    let listed =
        || defined(|mark| (mark.columns, mark.rows) = (Some(vec![1, 2]), vec!["table 2".to_owned()]));
    check(listed(), marks(1), "columns -..0/100");
    check(marks(1), listed(), "columns 0/60..0/100");
}

#[test]
fn a_target_is_renamed_when_its_table_is() {
    let found = |tables: &[(&str, u32)]| -> TargetOids {
        tables.iter().map(|&(text, oid)| (name(text), oid)).collect()
    };
    let check = |oid: Option<u32>, tables: &[(&str, u32)], expected: Renamed| {
        assert_eq!(renamed((&name("t"), oid), &name("u"), &found(tables)), expected, "{oid:?} {tables:?}");
    };
    check(Some(5), &[("u", 5)], Renamed::Followed);
    check(Some(5), &[("t", 5)], Renamed::NotYet(name("t")));
    check(Some(5), &[("t", 5), ("u", 6)], Renamed::NotYet(name("t")));
    check(Some(5), &[("t", 6), ("u", 5)], Renamed::Followed);
    check(Some(5), &[("elsewhere", 5), ("u", 6)], Renamed::NotYet(name("elsewhere")));
    // The target was restored, so that its tables have other OIDs.
    check(Some(5), &[("u", 6)], Renamed::Followed);
    check(Some(5), &[("t", 6)], Renamed::NotYet(name("t")));
    check(None, &[("t", 6)], Renamed::NotYet(name("t")));
    check(None, &[("t", 6), ("u", 7)], Renamed::Followed);
    check(None, &[], Renamed::Followed);
}

/// A table that was renamed on both sides and then replaced leaves its target to one of a name that was never seen.
#[test]
fn a_table_that_takes_anothers_target_replaces_it() {
    let target =
        |source: &QualifiedName| [("r", 1), ("u", 2)].into_iter().find(|(name, _)| *name == source.name);
    let target = |source: &QualifiedName| target(source).map(|(_, oid)| oid);
    let (t, u) = (name("t"), name("u"));
    let published = [seen("r", 30, 3), seen("u", 20, 2)];
    let found = heirs(&[(&t, Some(10), Some(1)), (&u, Some(20), Some(2))], &published, target);
    assert_eq!(found, [(t.clone(), 30)]);
    let observed = Observed { heirs: &found, ..seeing(&published) };
    let judged = judge(&[recorded("t", 10, 1), recorded("u", 20, 2)], &observed, NewTables::Follow);
    let verdicts: Vec<String> = judged.tables.iter().map(told).collect();
    assert_eq!(verdicts, ["t>r 30 Replaced gap replaced 0/50..0/100", "u>u 20 Nothing"]);
    // A target that another published table goes into is shared, a record without OIDs is nobody's.
    let shared = [(&t, Some(10), Some(1)), (&u, Some(20), Some(1))];
    assert_eq!(heirs(&shared, &published, target), []);
    assert_eq!(heirs(&[(&t, Some(10), None)], &published, target), []);
}

fn place(text: &str, oid: u32, ancestors: &[u32]) -> Place {
    Place { name: name(text), oid, ancestors: ancestors.to_vec() }
}

#[test]
fn a_new_table_is_not_copied_on_top_of_others_rows() {
    let (root, low, high) = (place("r", 1, &[]), place("low", 2, &[1]), place("high", 3, &[1]));
    let (r, l, h) = (name("r"), name("low"), name("high"));
    let at = |lsn: u64| Some(Lsn::new(lsn));
    let check = |new: &Place, recorded: &[(&QualifiedName, &Place, Option<Lsn>)]| {
        let recorded: Vec<Occupant<'_>> =
            recorded.iter().map(|&(source, place, from)| Occupant { source, place, from }).collect();
        occupied(9, new, None, &recorded).map(|found| (found.from.map(Lsn::as_u64), found.facts))
    };
    // The root comes in place of its partitions.
    let found = check(&root, &[(&l, &low, at(5)), (&h, &high, at(4))]);
    let told = "public.low goes into public.low, which is a partition of it; the same holds for 1 more";
    assert_eq!(found, Some((Some(4), told.to_owned())));
    // A partition was detached, or comes in place of the root.
    let found = check(&low, &[(&r, &root, None)]);
    assert_eq!(found, Some((None, "public.r goes into public.r, of which it is a partition".to_owned())));
    let found = check(&root, &[(&l, &root, at(5))]);
    assert_eq!(found, Some((Some(5), "public.low goes into public.r, too".to_owned())));
    // Partitions beside each other have rows of their own.
    assert_eq!(check(&low, &[(&h, &high, at(5))]), None);
}

#[test]
fn a_new_table_whose_target_is_occupied_is_held() {
    let published = [seen("r", 30, 3)];
    let found = [Occupied { oid: 30, from: Some(Lsn::new(0x60)), facts: "why".to_owned() }];
    let observed = Observed { occupied: &found, ..seeing(&published) };
    let judged = judge(&[], &observed, NewTables::Follow);
    let verdicts: Vec<String> = judged.tables.iter().map(told).collect();
    assert_eq!(verdicts, ["->r 30 Joins gap occupied 0/60..0/100"]);
    // It was recorded under another name, and not copied; now it has the name, and the target, of one that left.
    let recorded = [left(recorded("r", 10, 1), 0x40, LetGo::Done), pending(recorded("u", 30, 3))];
    let judged = judge(&recorded, &observed, NewTables::Leave);
    let verdicts: Vec<String> = judged.tables.iter().map(told).collect();
    assert_eq!(verdicts, ["->r 30 Joins gap occupied 0/60..0/100"]);
    assert_eq!(judged.removed, [name("u"), name("r")]);
}
