//! Table tests: a record, a description and a look in a short notation, the findings as text.

use super::*;
use crate::schema::TypeName;

const TARGET: u32 = 7;

/// Parses `a:2>5:int4`: a column with its numbers on the publisher and on the target, and its type.
fn column(text: &str) -> SeenColumn {
    let mut parts = text.split(':');
    let name = parts.next().expect("a name");
    let (numbers, ty) = (parts.next().unwrap_or_default(), parts.next().unwrap_or("text"));
    let (number, target) = numbers.split_once('>').unwrap_or((numbers, ""));
    let ty = TypeName { schema: "pg_catalog".to_owned(), name: ty.to_owned() };
    SeenColumn {
        number: number.parse().ok(),
        target: target.parse().ok(),
        ..SeenColumn::new(name.to_owned(), ty, -1)
    }
}

fn columns(text: &str) -> Vec<SeenColumn> {
    text.split_whitespace().map(column).collect()
}

fn recorded(text: &str, last_number: i16) -> SeenTable {
    SeenTable { columns: columns(text), last_number, files: Some(Vec::new()), target_oid: Some(TARGET) }
}

fn described(text: &str) -> Description {
    let columns = columns(text);
    Description { target_oid: TARGET, fillings: vec![Filling::Null; columns.len()], columns }
}

fn look(text: &str, last_number: i16) -> TableLook {
    let columns = columns(text);
    let looked = |seen| LookedColumn { seen, of_domain: false, missing: MissingValue::None };
    TableLook { columns: columns.into_iter().map(looked).collect(), last_number, files: Vec::new() }
}

/// Checks which columns are found.
fn check(before: &SeenTable, now: &str, look: &TableLook, expected: &[&str]) {
    let (found, _) = described(now).judge(Some(before), Some(look));
    let found: Vec<&str> = found.iter().map(|column| column.column.as_str()).collect();
    assert_eq!(found, expected, "{before:?} -> {now}, {look:?}");
}

#[test]
fn a_column_is_its_number_and_not_its_name() {
    let before = recorded("id:1>1 a:2>2 v:3>3", 3);
    check(&before, "id:>1 a:>2 v:>3", &look("id:1 a:2 v:3", 3), &[]);
    // Dropped, and another one has its name.
    check(&before, "id:>1 v:>3", &look("id:1 v:2", 3), &["v"]);
    // Column v was dropped and a renamed to v on the publisher, and on the target, too.
    check(&before, "id:>1 v:>2", &look("id:1 v:2", 3), &[]);
    // Renamed on both sides; on the publisher only, to a column that the target had; on the target only.
    check(&before, "id:>1 b:>2 v:>3", &look("id:1 b:2 v:3", 3), &[]);
    check(&before, "id:>1 b:>4 v:>3", &look("id:1 b:2 v:3", 3), &["b"]);
    check(&before, "id:>1 a:>4 v:>3", &look("id:1 a:2 v:3", 3), &["a"]);
    // Added again, on the publisher and on both sides.
    check(&before, "id:>1 a:>2 v:>3", &look("id:1 a:2 v:4", 4), &["v"]);
    check(&before, "id:>1 a:>2 v:>4", &look("id:1 a:2 v:4", 4), &[]);
    // A new column has the target's column of a former one.
    check(&before, "id:>1 v:>3 w:>2", &look("id:1 v:3 w:4", 4), &["w"]);
    // They have exchanged their names.
    check(&before, "id:>1 v:>3 a:>2", &look("id:1 v:2 a:3", 3), &["v", "a"]);
}

#[test]
fn a_catalog_that_is_newer_is_not_taken_for_the_description() {
    let before = recorded("id:1>1 a:2>2 v:3>3", 3);
    // They have exchanged their names, and did so again.
    check(&before, "id:>1 v:>3 a:>2", &look("id:1 a:2 v:3", 3), &["v", "a"]);
    // v was dropped and a was renamed to it; since then, it has its name again, and another v was added.
    check(&before, "id:>1 v:>3", &look("id:1 a:2 v:4", 4), &["v"]);
    // A column was added, dropped or renamed since.
    check(&before, "id:>1 a:>2 v:>3", &look("id:1 a:2 v:3 w:4", 4), &[]);
    check(&before, "id:>1 a:>2 v:>3", &look("id:1 v:3", 3), &[]);
    check(&before, "id:>1 a:>2 v:>3", &look("id:1 b:2 v:3", 3), &[]);
    // What the record says of the table is kept until the description is as new as the catalog.
    let now = described("id:>1 a:>2 v:>3").judge(Some(&before), Some(&look("id:1 a:2 v:3 w:4", 4))).1;
    assert_eq!(now, before);
    let now = described("id:>1 a:>2 v:>3 w:>4").judge(Some(&now), Some(&look("id:1 a:2 v:3 w:4", 4))).1;
    assert_eq!(now, recorded("id:1>1 a:2>2 v:3>3 w:4>4", 4));
}

#[test]
fn a_new_column_has_equal_older_rows_only_if_both_catalogs_say_so() {
    let before = recorded("id:1>1 v:2>2", 2);
    let new = |number: i16, last: i16, missing: Option<&str>, files: &[u32], target: Filling| {
        let mut look = look(&format!("id:1 v:2 c:{number}"), last);
        look.columns[2].missing = MissingValue::of(missing.map(|value| vec![value.to_owned()]));
        look.files = files.to_vec();
        let mut now = described("id:>1 v:>2 c:>3");
        now.fillings[2] = target;
        now.judge(Some(&before), Some(&look)).0.into_iter().map(|column| column.why).collect::<Vec<_>>()
    };
    let value = |text: &str| Filling::Value(text.to_owned());
    assert_eq!(new(3, 3, None, &[], Filling::Null), []);
    assert_eq!(new(3, 3, Some("7"), &[], value("7")), []);
    let filled = |publisher, target| vec![Why::Filled { publisher, target }];
    assert_eq!(new(3, 3, Some("7"), &[], Filling::Null), filled(value("7"), Filling::Null));
    assert_eq!(new(3, 3, Some("7"), &[], value("8")), filled(value("7"), value("8")));
    assert_eq!(new(3, 3, None, &[], value("8")), filled(Filling::Null, value("8")));
    // The publisher's table was written anew since.
    assert_eq!(new(3, 3, None, &[5], Filling::Null), filled(Filling::PerRow, Filling::Null));
    // The stream may mean a column that was dropped since.
    assert_eq!(new(4, 4, None, &[], Filling::Null), [Why::Unknown]);
    // It was there before.
    let before_it = SeenTable { last_number: 3, ..before.clone() };
    check(&before_it, "id:>1 v:>2 c:>3", &look("id:1 v:2 c:3", 3), &["c"]);
    // It was dropped or renamed since.
    check(&before, "id:>1 v:>2 c:>3", &look("id:1 v:2", 3), &["c"]);
    // The table does not exist any more.
    assert_eq!(described("id:>1 v:>2 c:>3").judge(Some(&before), None).0, []);
}

/// A record without numbers is that of an older version.
#[test]
fn without_numbers_place_and_type_tell() {
    let before = SeenTable { target_oid: None, files: None, ..recorded("id a b", 3) };
    check(&before, "id:>1 a:>2 b:>3", &look("id:1 a:2 b:3", 3), &[]);
    check(&before, "id:>1 b:>3 a:>2", &look("id:1 b:3 a:4", 4), &["a"]);
    check(&before, "id:>1 b:>3", &look("id:1 b:3", 3), &[]);
    check(&before, "id:>1 a:>2 b:>3 c:>4", &look("id:1 a:2 b:3 c:4", 4), &[]);
    check(&before, "id:>1 a:>2:int4 b:>3", &look("id:1 a:2:int4 b:3", 3), &["a"]);
    // The first description is compared with nothing.
    let (found, now) = described("id:>1 a:>2").judge(None, Some(&look("id:1 a:2", 2)));
    assert_eq!((found, now), (Vec::new(), recorded("id:1>1 a:2>2", 2)));
}

#[test]
fn a_type_that_changed_counts_and_a_limit_that_was_relaxed_does_not() {
    let check = |before: (&str, i32), now: (&str, i32), expected: bool| {
        let of = |(ty, typmod): (&str, i32)| {
            let ty = TypeName { schema: "pg_catalog".to_owned(), name: ty.to_owned() };
            SeenColumn { target: Some(1), ..SeenColumn::new("c".to_owned(), ty, typmod).numbered(1) }
        };
        let recorded = SeenTable { columns: vec![of(before)], ..recorded("", 1) };
        let looked = LookedColumn { seen: of(now), of_domain: false, missing: MissingValue::None };
        let look = TableLook { columns: vec![looked], last_number: 1, files: Vec::new() };
        let now = Description {
            target_oid: TARGET,
            columns: vec![SeenColumn { number: None, ..of(now) }],
            fillings: vec![Filling::Null],
        };
        assert_eq!(!now.judge(Some(&recorded), Some(&look)).0.is_empty(), expected, "{before:?} {now:?}");
    };
    check(("int4", -1), ("int4", -1), false);
    check(("int4", -1), ("int8", -1), true);
    check(("varchar", 9), ("varchar", 24), false);
    check(("varchar", 24), ("varchar", 9), true);
    check(("varchar", 9), ("text", -1), false);
    check(("text", -1), ("varchar", -1), false);
    check(("bpchar", 9), ("text", -1), true);
    check(("numeric", ((12 << 16) | 4) + 4), ("numeric", ((12 << 16) | 2) + 4), true);
    check(("numeric", ((12 << 16) | 2) + 4), ("numeric", ((14 << 16) | 2) + 4), false);
    check(("timestamp", -1), ("timestamp", 0), true);
}

#[test]
fn the_facts_name_the_columns_and_the_reasons() {
    let found = |column: &str, why| RedefinedColumn { column: column.to_owned(), why };
    let ty = Why::Type { before: "integer".to_owned(), now: "bigint".to_owned() };
    let filled = Why::Filled { publisher: Filling::Value("secret".to_owned()), target: Filling::Null };
    assert_eq!(
        facts(&[found("price", ty), found("a", Why::AddedAgain)]),
        "\"price\" was integer and is bigint, \"a\" was dropped and added again; what ALTER TABLE does to rows is not \
         streamed"
    );
    assert_eq!(
        facts(&[found("v", Why::Renamed { from: "a".to_owned() }), found("c", filled)]),
        "\"v\" was \"a\" on the publisher, and the target's \"v\" was not, \"c\" is new: rows from before have a \
         default's value on the publisher, and NULL on the target; what ALTER TABLE does to rows is not streamed"
    );
}
