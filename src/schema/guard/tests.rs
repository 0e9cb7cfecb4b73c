//! Values that are refused and values that are not, and the texts of refusals.

use super::*;

fn check(rule: GuardRule, value: &str, expected: bool) {
    assert_eq!(ValueGuard::of_value(rule).refuses(value.as_bytes()), expected, "{rule:?} {value:?}");
}

#[test]
fn only_what_would_be_changed_silently_is_refused() {
    let blanks = |unit| GuardRule::BlanksBeyond { length: 5, unit };
    let five = blanks(LengthUnit::Characters);
    check(five, "abc       ", true);
    check(five, "      ", true);
    check(five, "abc  ", false);
    check(five, "äöü  ", false);
    check(five, "äöü   ", true);
    // The server refuses it.
    check(five, "abcdefg", false);
    check(blanks(LengthUnit::Bytes), "äöü  ", true);
    check(GuardRule::BlanksAtEnd, "ab ", true);
    check(GuardRule::BlanksAtEnd, " ab", false);
    check(GuardRule::BlanksAtEnd, "", false);
    check(GuardRule::DigitsBeyond { scale: 2 }, "1.005", true);
    check(GuardRule::DigitsBeyond { scale: 2 }, "NaN", false);
    check(GuardRule::FractionBeyond { digits: 0 }, "12:00:00.4", true);
    check(GuardRule::IntervalBeyond { smallest: IntervalField::Day, digits: 6 }, "1 day 01:00:00", true);
}

#[test]
fn elements_are_looked_at_one_by_one() {
    let guard = ValueGuard::of_value(GuardRule::DigitsBeyond { scale: 1 }).of_elements();
    assert!(guard.refuses(b"{{1.5},{1.55}}"));
    assert!(!guard.refuses(b"{1.5,NULL,2}"));
}

#[test]
fn equal_keys_are_found_wherever_they_are() {
    for (expected, json) in [
        (true, r#"{"a": 1, "a": 2}"#),
        (true, r#"[1, {"b": {"a": [], "c": {"a": 1}, "a": "x"}}]"#),
        (true, r#"{"\u0061": 1, "a": 2}"#),
        (true, r#"{"a\"": 1, "b": "a", "a\"": 2}"#),
        (true, r#"{"": 1, "" : 2}"#),
        (true, r#"{"x": [{"a": 1}], "x": 0}"#),
        (false, r#"{"a": {"a": {"a": "a"}}, "b": ["a", "a", "b"]}"#),
        (false, r#"[{"a": 1}, {"a": 1}]"#),
        (false, r#"{"a": "b", "b": "a", "c": "{\"a\": 1, \"a\": 2}"}"#),
        (false, r#"{"a\\": 1, "a": 2}"#),
        (false, "null"),
        (false, r#""a, \"a\"""#),
        // No JSON; nothing may panic.
        (false, "}{"),
        (false, r#"{"a"#),
        (false, r#"{"a\"#),
    ] {
        check(GuardRule::EqualKeys, json, expected);
    }
}

#[test]
fn a_refusal_names_the_column_and_not_the_value() {
    let refusal = |rule| ValueGuard::of_value(rule).refusal(&QualifiedName::new("public", "t"), "v");
    let error = refusal(GuardRule::BlanksBeyond { length: 5, unit: LengthUnit::Characters });
    assert_eq!(error.column.as_deref(), Some("v"));
    let tests = [
        (
            error.to_string(),
            "the value for column \"v\" is longer than the column's 5 characters (SQLSTATE 22001)",
        ),
        (
            refusal(GuardRule::DigitsBeyond { scale: -2 }).to_string(),
            "the value for column \"v\" has digits other than 0 in the last 2 places before the point (SQLSTATE 22003)",
        ),
        (
            refusal(GuardRule::IntervalBeyond { smallest: IntervalField::Month, digits: 6 }).to_string(),
            "the value for column \"v\" has fields below months (SQLSTATE 22015)",
        ),
    ];
    for (text, expected) in tests {
        assert_eq!(text, format!("ERROR: {expected}"));
    }
}
