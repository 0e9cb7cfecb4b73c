//! What PostgreSQL makes of values of one type in another, against the verdicts of `schema::fit`.
//!
//! The server is the oracle: each value of each type is inserted into a column of each other type. A value that
//! comes out changed must have been announced or refused; a pair that is said to fit must take every value.

use pgsluice::schema::TypeName;
use pgsluice::schema::fit::{Fit, judge};
use pgsluice::schema::guard::GuardRule;
use tokio_postgres::Client;

use super::server::Database;
use super::skipped;

/// Types with values that other types change, shorten or refuse.
const TYPES: &[(&str, &[&str])] = &[
    ("bool", &["true"]),
    ("int2", &["-32768", "32767", "5"]),
    ("int4", &["2147483647", "16777217", "12345"]),
    ("int8", &["9223372036854775807", "9007199254740993"]),
    (
        "numeric",
        &[
            "'NaN'",
            "'Infinity'",
            "1.005",
            "123456789012345678901234567890.5",
            "1.0",
            "2",
            "1200",
            "1e-30",
            "0.1",
        ],
    ),
    ("numeric(4,1)", &["123.4", "0.0", "'NaN'"]),
    ("numeric(6,3)", &["123.456", "100.000"]),
    ("numeric(4,-2)", &["123400", "0"]),
    ("numeric(5,-2)", &["1234500", "-100"]),
    ("numeric(3,5)", &["0.00123"]),
    ("float4", &["0.1", "'Infinity'", "1e30", "3"]),
    (
        "float8",
        &[
            "0.1",
            "0.30000000000000004",
            "1e300",
            "1e-300",
            "'-0'",
            "'NaN'",
            "'Infinity'",
            "7",
            "1.25",
            "1e15",
        ],
    ),
    ("money", &["12.34"]),
    ("text", &["'abc       '", "'   '", "''", "'abcdefghijk'", "'12'", "'a '", "'{}'"]),
    ("varchar", &["'abc       '", "'abc'"]),
    ("varchar(10)", &["'abc       '", "'äöüäö     '", "'abcdefghij'", "'ab'"]),
    ("varchar(5)", &["'ab   '", "'abcde'", "'ab'"]),
    ("bpchar", &["'abc       '", "'ab'"]),
    ("char(10)", &["'ab'", "'abcdefghij'"]),
    ("char(5)", &["'ab'", "'abcde'"]),
    ("\"char\"", &["'x'", "' '"]),
    ("name", &["'name'", "'blank '"]),
    ("bytea", &[r"'\x00ff'"]),
    ("bit(3)", &["B'101'"]),
    ("bit(5)", &["B'10101'"]),
    ("varbit", &["B'1011001'", "B''"]),
    ("varbit(5)", &["B'101'"]),
    ("date", &["'2024-02-29'", "'infinity'"]),
    ("time", &["'12:34:56.789012'"]),
    ("time(2)", &["'12:34:56.78'"]),
    ("timetz", &["'12:34:56.789012+05:45'"]),
    ("timestamp", &["'2024-02-29 12:34:56.789012'", "'-infinity'"]),
    ("timestamp(0)", &["'2024-02-29 12:34:56'"]),
    ("timestamptz", &["'2024-02-29 12:34:56.789012+05:45'"]),
    ("timestamptz(3)", &["'2024-02-29 12:34:56.789+00'"]),
    (
        "interval",
        &[
            "'1 year 2 mons -3 days 04:05:06.789012'",
            "'3 years'",
            "'-1 year 2 mons'",
            "'-3 days'",
            "'-04:00:00'",
            "'04:05:00'",
            "'1 day 04:05:06'",
            "'00:00:00.5'",
            "'0'",
        ],
    ),
    ("interval(2)", &["'04:05:06.78'", "'1 year 00:00:01'"]),
    ("interval day to second", &["'3 days 04:05:06.789'", "'1 day'"]),
    ("interval day to second(0)", &["'3 days 04:05:06'"]),
    ("interval year", &["'3 years'"]),
    ("interval month", &["'3 years 1 mon'"]),
    ("interval year to month", &["'3 years 1 mon'"]),
    ("interval day", &["'1 mon 3 days'"]),
    ("interval hour", &["'3 days 04:00:00'"]),
    ("interval day to minute", &["'3 days 04:05:00'"]),
    ("interval minute to second(2)", &["'04:05:06.78'"]),
    ("uuid", &["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"]),
    ("json", &[r#"'{"b": 1,  "a":[1,null]}'"#, r#"'{"b": 1, "b": 2}'"#, "'[] '", r#"'"\u0061"'"#]),
    ("jsonb", &[r#"'{"b": 1, "a": [1, null]}'"#]),
    ("xml", &["'<a/>'"]),
    ("inet", &["'192.168.1.5/24'", "'10.0.0.1'"]),
    ("cidr", &["'10.0.0.0/8'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("oid", &["4294967295", "7"]),
    ("int4range", &["'[1,10)'"]),
    ("numrange", &["'[1.5,10)'"]),
    ("int4[]", &["'{1,2147483647}'"]),
    ("text[]", &["'{\"abc       \",x}'"]),
    ("varchar(10)[]", &["'{\"abc       \",x}'", "'{abcdefghij}'"]),
    ("varchar(5)[]", &["'{ab}'"]),
    ("char(5)[]", &["'{ab}'"]),
    ("numeric[]", &["'{1.005}'", "'[0:1]={1,2.5}'", "'{NULL,1}'"]),
    ("numeric(4,1)[]", &["'{1.5}'"]),
    ("timestamp(0)[]", &["'{2024-02-29 12:34:56}'"]),
    ("timestamp[]", &["'{2024-02-29 12:34:56,2024-02-29 12:34:56.5,infinity}'"]),
    ("float8[]", &["'{0.1,0.30000000000000004}'", "'{{1},{2}}'"]),
    ("float4[]", &["'{0.1}'"]),
    ("interval[]", &["'{1 day 00:00:00.5}'", "'{1 day}'"]),
    ("interval day[]", &["'{1 day}'"]),
    ("bit(3)[]", &["'{101}'"]),
    ("json[]", &[r#"'{"{\"b\": 1, \"b\": 2}"}'"#]),
    ("jsonb[]", &[r#"'{"{\"b\": 1}"}'"#]),
];

/// A column's type as the catalog has it.
struct Column {
    ty: TypeName,
    typmod: i32,
    /// The values in the form in which pgoutput sends them.
    values: Vec<String>,
}

async fn column(client: &Client, at: usize, ty: &str, values: &[&str]) -> Column {
    client.batch_execute(&format!("CREATE TABLE public.t{at} (v {ty})")).await.expect(ty);
    let sql = format!(
        "SELECT t.typname::text, a.atttypmod FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
         WHERE a.attrelid = 'public.t{at}'::regclass AND a.attnum = 1"
    );
    let row = client.query_one(&sql, &[]).await.expect("a type");
    let mut texts = Vec::new();
    for value in values {
        let sql = format!("SELECT format('%s', CAST({value} AS {ty}))");
        texts.push(client.query_one(&sql, &[]).await.expect(value).get(0));
    }
    let name: String = row.get(0);
    Column { ty: TypeName { schema: "pg_catalog".to_owned(), name }, typmod: row.get(1), values: texts }
}

/// Inserts each text into the column of table `at`, and returns what comes out; none if it is refused.
async fn entered(client: &Client, at: usize, values: &[String]) -> Vec<Option<String>> {
    let rows = client
        .query("SELECT public.entered($1, v) FROM unnest($2::text[]) v", &[&format!("t{at}"), &values])
        .await
        .expect("an answer");
    rows.iter().map(|row| row.get(0)).collect()
}

/// Checks one pair of types, and returns what is wrong.
fn problem(fit: Fit, to: &str, text: &str, entered: Option<&str>) -> Option<&'static str> {
    match (fit, entered) {
        (Fit::Fits, Some(same)) if same == text || is_same_number(text, same) => None,
        (Fit::Fits, None) => Some("is said to fit, and the value is refused"),
        (Fit::Fits, Some(_)) => Some("is said to fit, and the value is changed"),
        (Fit::OtherForm(_), None) => Some("is said to take every value, and refuses one"),
        (Fit::Risky(_), Some(changed)) if changed != text && !is_same_value(to, text, changed) => {
            Some("may refuse values, and changes one")
        }
        (Fit::Guarded(guard), Some(changed)) => match (guard.refuses(text.as_bytes()), changed == text) {
            (true, true) if guard.rule != GuardRule::BlanksAtEnd => {
                Some("refuses a value that would not change")
            }
            (false, false) if !is_same_value(to, text, changed) => {
                Some("does not refuse a value that would change")
            }
            _ => None,
        },
        (Fit::Guarded(_) | Fit::Risky(_), None)
        | (Fit::Risky(_) | Fit::OtherForm(_), Some(_))
        | (Fit::Coerced(_) | Fit::Changes(_) | Fit::Unfit(_), _) => None,
    }
}

/// Whether the texts are forms of one value: padding of type char, white space and order of JSON, digits and
/// fields that are zero.
fn is_same_value(to: &str, text: &str, changed: &str) -> bool {
    let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    (to.starts_with("char(") && without_padding(text) == without_padding(changed))
        || changed.strip_prefix(text).is_some_and(|more| matches!(more, " 00:00:00" | "/32"))
        || (parsed(text).is_some() && parsed(text) == parsed(changed))
        || is_same_number(text, changed)
}

/// The text, or the texts of an array's elements, without quotes and without blanks at the end.
fn without_padding(text: &str) -> Vec<String> {
    let elements = text.split(if text.contains('{') { ',' } else { '\0' });
    let trimmed = |element: &str| element.replace(['"', '}'], "").trim_end().to_owned();
    elements.map(trimmed).collect()
}

/// Whether both are one number, or arrays of the same numbers.
fn is_same_number(text: &str, changed: &str) -> bool {
    let numbers = |text: &str| -> Option<Vec<Option<f64>>> {
        let elements = text.split_once('{').map_or(text, |(_, elements)| elements);
        let number = |element: &str| match element {
            "NULL" => Some(None),
            number => number.parse().ok().map(Some),
        };
        elements.split([',', '{', '}']).filter(|element| !element.is_empty()).map(number).collect()
    };
    text.contains('{') == changed.contains('{')
        && numbers(text).is_some()
        && numbers(text) == numbers(changed)
}

#[tokio::test]
async fn no_value_is_changed_that_is_not_refused_or_announced() {
    let database = Database::create("values").await;
    if database.version < 150_000 {
        skipped("some of the types exist from version 15 on");
        return;
    }
    let client = &database.client;
    client
        .batch_execute(
            "SET search_path = pg_catalog; SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET timezone = 'UTC';
             SET lc_monetary = 'C'; SET bytea_output = 'hex'; SET extra_float_digits = 3;
             CREATE FUNCTION public.entered(name text, value text) RETURNS text LANGUAGE plpgsql AS $$
               DECLARE found text;
               BEGIN
                 EXECUTE format('INSERT INTO public.%I VALUES (%L) RETURNING format(''%%s'', v)', name, value)
                   INTO found;
                 RETURN found;
               EXCEPTION WHEN OTHERS THEN RETURN NULL;
               END $$",
        )
        .await
        .expect("a session");
    let mut columns = Vec::new();
    for (at, (ty, values)) in TYPES.iter().enumerate() {
        columns.push(column(client, at, ty, values).await);
    }
    let (mut problems, mut changed) = (Vec::new(), 0);
    for (at, to) in columns.iter().enumerate() {
        for (from, (name, _)) in columns.iter().zip(TYPES) {
            let fit = judge((&from.ty, from.typmod), (&to.ty, to.typmod));
            for (text, entered) in from.values.iter().zip(entered(client, at, &from.values).await) {
                changed += usize::from(entered.as_ref().is_some_and(|entered| entered != text));
                if let Some(problem) = problem(fit, TYPES[at].0, text, entered.as_deref()) {
                    problems.push(format!(
                        "{name} into {}: {problem}: {text:?} {entered:?} {fit:?}",
                        TYPES[at].0
                    ));
                }
            }
        }
    }
    assert!(changed > 300, "the server changes many of these values: {changed}");
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}
