//! Single cases, and (`model`) random histories against a model of a target table.

mod model;

use super::*;
use crate::apply::bench;
use crate::apply::statement::ColumnSet;
use crate::pgoutput::testing::tuple;

/// A table `(id, part, a, b)` with the key `(id)`.
fn plan() -> TablePlan {
    bench::plan("t", &["id", "part", "a", "b"])
}

fn context(id: u64, plan: TablePlan) -> Arc<TableContext> {
    Arc::new(bench::context(id, plan))
}

/// Parses a row such as `1 - x ~`: the id, then NULL (`-`), unchanged (`~`) or a text for each other column;
/// `''` is the empty text.
fn row(text: &str) -> Tuple {
    let value = |word: &'static str| match word {
        "-" => Value::Null,
        "~" => Value::Unchanged,
        "''" => Value::Text(b""),
        word => Value::Text(word.as_bytes()),
    };
    let words: Vec<Value<'static>> =
        text.split(' ').map(|word| value(Box::leak(word.to_owned().into_boxed_str()))).collect();
    tuple(&words)
}

/// Parses a change: `+ ROW` inserts, `= ROW` updates, `OLD > ROW` updates with the old key sent, `x ROW`
/// deletes. `= OLD > ROW` updates and `X ROW` deletes with the whole old row sent.
fn change(text: &str) -> RowChange {
    match text.split_once(" > ") {
        Some((old, new)) if old.starts_with("= ") => {
            RowChange::Update { old: OldRow::Full(row(&old[2..])), new: row(new) }
        }
        Some((old, new)) => RowChange::Update { old: OldRow::Key(row(old)), new: row(new) },
        None => match text.split_at(2) {
            ("+ ", new) => RowChange::Insert { new: row(new) },
            ("= ", new) => RowChange::Update { old: OldRow::NotSent, new: row(new) },
            ("X ", old) => RowChange::Delete { old: OldRow::Full(row(old)) },
            ("x ", old) => RowChange::Delete { old: OldRow::Key(row(old)) },
            _ => unreachable!("{text}"),
        },
    }
}

fn steps(changes: &[(&Arc<TableContext>, &str)]) -> Result<Vec<SetStep>, Uncompactable> {
    let events: Vec<Event> = (1..)
        .zip(changes)
        .map(|(index, (table, text))| Event::Change { table: Arc::clone(table), change: change(text), index })
        .collect();
    compact(&events)
}

/// Writes the steps in the syntax of [`change`], one on each line.
fn spelled(steps: &[SetStep]) -> String {
    let words = |row: &Tuple| {
        let word = |value| match value {
            Value::Null => "-".to_owned(),
            Value::Unchanged => "~".to_owned(),
            Value::Text(b"") => "''".to_owned(),
            Value::Text(bytes) | Value::Binary(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        };
        row.iter().map(word).collect::<Vec<_>>().join(" ")
    };
    let line = |step: &SetStep| {
        let SetStep::Set { table, kind, rows, .. } = step else { return "truncate".to_owned() };
        let verb = match kind {
            SetKind::Absent => "absent".to_owned(),
            SetKind::Delete => "delete".to_owned(),
            SetKind::Insert => "insert".to_owned(),
            SetKind::Update(set) => format!("update {:?} of", set.iter().collect::<Vec<_>>()),
            SetKind::DeleteFullRow { null } => {
                format!("delete whole (NULL: {:?})", null.iter().collect::<Vec<_>>())
            }
            SetKind::UpdateFullRow { set, null } => {
                let columns = |set: &ColumnSet| set.iter().collect::<Vec<_>>();
                format!("update {:?} of whole (NULL: {:?})", columns(set), columns(null))
            }
        };
        let identity = |row| if *kind == SetKind::Insert { None } else { SetRow::named_by(row) };
        let rows = rows.iter().map(|row| match (identity(row), &row.image) {
            (Some(identity), Some(image)) => format!("{} > {}", words(identity), words(image)),
            (Some(row), None) | (None, Some(row)) => words(row),
            (None, None) => String::new(),
        });
        format!("{} {verb} {}", table.id, rows.collect::<Vec<_>>().join(", "))
    };
    steps.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Compacts changes of one table and returns the steps.
fn check(plan: TablePlan, changes: &[&str]) -> String {
    let table = context(1, plan);
    let changes: Vec<_> = changes.iter().map(|&text| (&table, text)).collect();
    steps(&changes).map_or_else(|Uncompactable| "uncompactable".to_owned(), |steps| spelled(&steps))
}

#[test]
fn a_key_s_changes_become_one() {
    insta::assert_snapshot!(
        check(
            plan(),
            &["+ 1 - x y", "= 1 - z ~", "+ 2 - x y", "x 2 - - -", "x 3 - - -", "+ 3 - x y", "= 4 - x y", "= 4 - z ~",
              "= 5 - x ~", "x 6 - - -"],
        ),
        @r"
    1 absent 2 - x y
    1 delete 3 - - -, 6 - - -
    1 update [1, 2, 3] of 4 - x y > 4 - z y
    1 update [1, 2] of 5 - x ~ > 5 - x ~
    1 insert 1 - z y, 3 - x y
    "
    );
}

#[test]
fn what_contradicts_itself_is_left_to_the_exact_path() {
    for changes in [["x 1 - - -", "= 1 - x y"], ["= 1 - x y", "+ 1 - x y"]] {
        assert_eq!(check(plan(), &changes), "uncompactable", "{changes:?}");
    }
    assert_eq!(check(plan(), &["+ 1 - x ~"]), "uncompactable", "an unchanged value cannot be inserted");
    assert_eq!(check(plan(), &["= - - x y"]), "uncompactable", "NULL is no key");
    // Among inserts only, or deletes only, the target finds them by its key or the set's row count.
    assert_eq!(check(plan(), &["+ 1 - x y", "+ 1 - x y"]), "1 insert 1 - x y, 1 - x y");
    assert_eq!(check(plan(), &["x 1 - - -", "x 1 - - -"]), "1 delete 1 - - -, 1 - - -");
    assert_eq!(check(plan(), &["+ 1 - x y", "+ 1 - x y", "x 1 - - -"]), "uncompactable");
}

#[test]
fn a_passing_state_that_may_be_refused_is_written() {
    let history = ["+ 1 - x y", "= 1 - z ~", "x 1 - - -"];
    let written = "1 insert 1 - x y\n1 update [1, 2] of 1 - z ~ > 1 - z ~\n1 delete 1 - - -";
    let mut picky = plan();
    picky.columns[2].refuses_values = true;
    assert_eq!(check(picky, &history), written);
    assert_eq!(check(TablePlan { judges_rows: true, ..plan() }, &history), written);
    let indexed = TablePlan { other_indexes: true, ..plan() };
    assert_eq!(check(indexed.clone(), &history), "1 absent 1 - z y");
    let long = format!("+ 1 - {} y", "x".repeat(1001));
    let found = check(indexed, &[&long, "x 1 - - -"]);
    assert!(found.starts_with("1 insert") && found.ends_with("1 delete 1 - - -"), "{found}");
    let mut not_null = plan();
    not_null.columns[2].not_null = true;
    assert_eq!(check(not_null, &["+ 1 - - y", "x 1 - - -"]), "1 insert 1 - - y\n1 delete 1 - - -");
}

#[test]
fn a_key_that_moves_overtakes_nothing() {
    insta::assert_snapshot!(
        check(
            plan(),
            &["x 2 - - -", "= 3 - x y", "1 - - - > 2 - x y", "= 2 - z ~", "2 - - - > tmp - z y", "3 - - - > 2 - x y",
              "tmp - - - > 3 - z y", "3 - - - > 3 - same y"],
        ),
        @r"
    1 delete 2 - - -
    1 update [1, 2, 3] of 3 - x y > 3 - x y
    1 update [0, 1, 2, 3] of 1 - - - > 2 - x y
    1 update [1, 2] of 2 - z ~ > 2 - z ~
    1 update [0, 1, 2, 3] of 2 - - - > tmp - z y
    1 update [0, 1, 2, 3] of 3 - - - > 2 - x y
    1 update [0, 1, 2, 3] of tmp - - - > 3 - z y
    1 update [1, 2, 3] of 3 - - - > 3 - same y
    "
    );
}

#[test]
fn where_order_matters_only_neighbours_of_one_kind_go_together() {
    let ordered = || TablePlan { order_free: false, ..plan() };
    insta::assert_snapshot!(
        check(ordered(), &["+ 1 - x y", "+ 2 - x y", "= 1 - z y", "= 2 - z y", "= 1 - w y", "x 2 - - -", "x 1 - - -"]),
        @r"
    1 insert 1 - x y, 2 - x y
    1 update [0, 1, 2, 3] of 1 - z y > 1 - z y, 2 - z y > 2 - z y
    1 update [0, 1, 2, 3] of 1 - w y > 1 - w y
    1 delete 2 - - -, 1 - - -
    "
    );
    // The empty text is a valid key.
    insta::assert_snapshot!(check(ordered(), &["= '' - x y", "= '' - z y"]), @r"
    1 update [0, 1, 2, 3] of '' - x y > '' - x y
    1 update [0, 1, 2, 3] of '' - z y > '' - z y
    ");
}

#[test]
fn a_key_that_may_find_several_rows_stands_alone() {
    for scope in [KeyScope::Leaves, KeyScope::OtherEquality] {
        let row_identity = RowIdentity::Key { columns: vec![0], scope };
        let loose = TablePlan { order_free: false, row_identity, ..plan() };
        let found =
            check(loose, &["+ 1 - x y", "+ 2 - x y", "x 1 - - -", "x 2 - - -", "= 3 - x y", "= 4 - x y"]);
        insta::allow_duplicates! {
            insta::assert_snapshot!(found, @r"
            1 insert 1 - x y, 2 - x y
            1 delete 1 - - -
            1 delete 2 - - -
            1 update [0, 1, 2, 3] of 3 - x y > 3 - x y
            1 update [0, 1, 2, 3] of 4 - x y > 4 - x y
            ");
        }
    }
}

#[test]
fn tables_with_the_same_rows_keep_their_order() {
    let (one, other) = (context(1, plan()), context(2, plan()));
    let apart = context(3, TablePlan { target_oid: 3, target_family_oid: 3, ..plan() });
    let changes = [
        (&apart, "+ 9 - x y"),
        (&one, "+ 1 - x y"),
        (&other, "+ 2 - x y"),
        (&other, "= 1 - z y"),
        (&apart, "x 9 - - -"),
        (&one, "x 1 - - -"),
        (&other, "x 2 - - -"),
    ];
    insta::assert_snapshot!(spelled(&steps(&changes).unwrap()), @r"
    1 insert 1 - x y
    2 update [1, 2, 3] of 1 - z y > 1 - z y
    2 insert 2 - x y
    1 delete 1 - - -
    3 absent 9 - x y
    2 delete 2 - - -
    ");
    // A partition overlaps its partitioned table, but not another partition.
    let family = TablePlan { target_family_oid: 7, ..plan() };
    let leaf = context(4, TablePlan { target_oid: 8, ..family.clone() });
    let other_leaf = context(5, TablePlan { target_oid: 9, ..family.clone() });
    let whole = TablePlan { target_oid: 7, kind: TableKind::Partitioned, order_free: false, ..family };
    let whole = context(6, whole);
    let changes =
        [(&leaf, "= 5 - x y"), (&other_leaf, "= 6 - x y"), (&whole, "= 1 - b y"), (&leaf, "= 1 - a y")];
    insta::assert_snapshot!(spelled(&steps(&changes).unwrap()), @r"
    4 update [1, 2, 3] of 5 - x y > 5 - x y
    5 update [1, 2, 3] of 6 - x y > 6 - x y
    6 update [0, 1, 2, 3] of 1 - b y > 1 - b y
    4 update [1, 2, 3] of 1 - a y > 1 - a y
    ");
}

#[test]
fn whole_rows_go_together_by_their_nulls_and_never_with_what_they_follow() {
    let keyless = || TablePlan { row_identity: RowIdentity::FullRow, order_free: false, ..plan() };
    insta::assert_snapshot!(
        check(
            keyless(),
            &["+ 1 - x y", "X 1 - x y", "X 1 - x y", "X 2 a x y", "= 3 a x y > 3 a z ~", "= 3 a x y > 3 a w y",
              "= 3 a z y > 4 a z y", "= 4 a z y > 5 - z y", "= 5 - z y > 5 - - -"],
        ),
        @r"
    1 insert 1 - x y
    1 delete whole (NULL: [1]) 1 - x y, 1 - x y
    1 delete whole (NULL: []) 2 a x y
    1 update [0, 1, 2] of whole (NULL: []) 3 a x y > 3 a z ~
    1 update [0, 1, 2, 3] of whole (NULL: []) 3 a x y > 3 a w y, 3 a z y > 4 a z y
    1 update [0, 1, 2, 3] of whole (NULL: []) 4 a z y > 5 - z y
    1 update [0, 1, 2, 3] of whole (NULL: [1]) 5 - z y > 5 - - -
    "
    );
    assert_eq!(check(keyless(), &["x 1 - - -"]), "uncompactable", "a key is not a whole row");
}
