//! What rows have in a column that was added after they were written.
//!
//! Pure. Either side's catalog tells a part of that: `ALTER TABLE … ADD COLUMN` notes one value for all rows that
//! exist (`pg_attribute.attmissingval`), or writes the table anew with a value of its own for each. Rows that the
//! target gets from then on have the column's default, until the publisher sends a value.

use serde::Serialize;

use super::render::Modifier;
use super::{ColumnDefault, TargetColumn};

/// What rows that are older than the column have in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Filling {
    /// NULL: there is no default, and the table was never written anew.
    Null,
    /// One value for all, in its text form.
    Value(String),
    /// Each row may have a value of its own: from a volatile default, a sequence or an expression, or because
    /// the table was written anew since.
    PerRow,
}

/// The values that the catalog notes for rows which were stored before the column was added
/// (`pg_attribute.attmissingval`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum MissingValue {
    #[default]
    None,
    One(String),
    /// The partitions of the table have different ones.
    Several,
}

impl MissingValue {
    /// `distinct` are the values of the table, or of its partitions.
    #[must_use]
    pub fn of(distinct: Option<Vec<String>>) -> Self {
        let mut values = distinct.unwrap_or_default();
        match (values.pop(), values.is_empty()) {
            (None, _) => Self::None,
            (Some(value), true) => Self::One(value),
            (Some(_), false) => Self::Several,
        }
    }

    /// What older rows of the publisher have in a column that was added, if `rewritten` says whether the table was
    /// written anew since before that.
    #[must_use]
    pub fn filling(&self, rewritten: bool) -> Filling {
        match self {
            Self::One(value) => Filling::Value(value.clone()),
            Self::None if !rewritten => Filling::Null,
            Self::None | Self::Several => Filling::PerRow,
        }
    }
}

/// What those rows of the target have in its column that were written while the publisher lacked it.
#[must_use]
pub fn of_target(column: &TargetColumn) -> Filling {
    let default = match column.default {
        ColumnDefault::None => None,
        ColumnDefault::Expression => column.default_sql.as_deref(),
        ColumnDefault::IdentityAlways | ColumnDefault::IdentityByDefault | ColumnDefault::Generated => {
            return Filling::PerRow;
        }
    };
    let default_text = default.and_then(literal).map(|text| stored(column, text));
    let is_default = |value: &str| default_text.as_deref().is_some_and(|text| is_text_of(text, value));
    match &column.missing {
        MissingValue::None if default.is_none() => Filling::Null,
        // All rows were inserted with this default.
        MissingValue::None if column.is_as_created => {
            default_text.clone().map_or(Filling::PerRow, Filling::Value)
        }
        // Rows that came since the column was added have the default, too. Without one, NOT NULL has kept rows away.
        MissingValue::One(value) if is_default(value) || (default.is_none() && column.not_null) => {
            Filling::Value(value.clone())
        }
        MissingValue::None | MissingValue::One(_) | MissingValue::Several => Filling::PerRow,
    }
}

impl Filling {
    /// Whether older rows of both sides are certainly equal.
    #[must_use]
    pub fn equals(&self, target: &Self) -> bool {
        match (self, target) {
            (Self::Null, Self::Null) => true,
            (Self::Value(value), Self::Value(found)) => is_text_of(found, value),
            _ => false,
        }
    }
}

/// Returns the text of the value that an expression of the catalog (`pg_get_expr`) is, if it is a literal with casts:
/// `'new'::text`, `(-1)`, `('x'::character varying)::public.code`.
fn literal(expression: &str) -> Option<String> {
    let expression = expression.trim();
    if let Some(inner) = expression.strip_prefix('(') {
        let close = closing(inner)?;
        return is_cast(&inner[close + 1..]).then(|| literal(&inner[..close])).flatten();
    }
    let quoted = expression.strip_prefix("B'").or_else(|| expression.strip_prefix('\''));
    if let Some(rest) = quoted {
        let end = end_of_literal(rest)?;
        return is_cast(&rest[end + 1..]).then(|| rest[..end].replace("''", "'"));
    }
    let (value, cast) = expression.split_at(expression.find("::").unwrap_or(expression.len()));
    let number = value.parse::<f64>().is_ok() && value.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    let is_value = number || matches!(value, "true" | "false");
    (is_value && is_cast(cast)).then(|| value.to_owned())
}

/// The position of the parenthesis that closes the one before `text`.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0_u32, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') if depth == 0 => return Some(at),
            (None, ')') => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The position of the quote that ends the literal that `text` begins in.
fn end_of_literal(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b'\'', Some(b'\'')) => at += 2,
            (b'\'', _) => return Some(at),
            _ => at += 1,
        }
    }
    None
}

/// Whether nothing but casts to types follows.
fn is_cast(text: &str) -> bool {
    let of_name = |c: char| c.is_alphanumeric() || " _.:\"[](),".contains(c);
    text.is_empty() || (text.starts_with("::") && text.chars().all(of_name))
}

/// The text of a literal as the column stores it: with all digits of its scale, or without the blanks of a `char(n)`.
fn stored(column: &TargetColumn, text: String) -> String {
    match Modifier::of(&column.base_type, column.typmod) {
        Modifier::Numeric { scale: scale @ 1.., .. } => {
            let digits = text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
            let missing = usize::try_from(scale).unwrap_or(0).saturating_sub(digits);
            let point = if digits == 0 { "." } else { "" };
            format!("{text}{point}{}", "0".repeat(missing))
        }
        Modifier::Length(length) if column.base_type.name == "bpchar" => {
            format!("{text:<width$}", width = usize::try_from(length).unwrap_or(0))
        }
        _ => text,
    }
}

/// Whether a literal of this text is this value.
fn is_text_of(text: &str, value: &str) -> bool {
    text == value || matches!((text, value), ("true", "t") | ("false", "f"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{ArrayInput, TypeName};

    #[test]
    fn a_literal_is_read_with_its_casts_and_nothing_else_is() {
        let check = |sql: &str, expected: Option<&str>| {
            assert_eq!(literal(sql).as_deref(), expected, "{sql}");
        };
        check("'it''s \\new'::text", Some("it's \\new"));
        check("''::text", Some(""));
        check("7", Some("7"));
        check("(-1)", Some("-1"));
        check("'-1'::integer", Some("-1"));
        check("(1.5)::double precision", Some("1.5"));
        check("true", Some("true"));
        check("'{a,\"b c\"}'::text[]", Some("{a,\"b c\"}"));
        check("('x)'::character varying)::public.\"Co de\"", Some("x)"));
        check("B'0101'::\"bit\"", Some("0101"));
        check("'2024-02-29 06:15:01+00'::timestamp(0) with time zone", Some("2024-02-29 06:15:01+00"));
        check("now()", None);
        check("CURRENT_TIMESTAMP", None);
        check("(upper('a'::text) || 'b'::text)", None);
        check("'a'::text || 'b'::text", None);
        check("(1 + 2)", None);
        check("nextval('s'::regclass)", None);
        check("ARRAY[1, 2]", None);
        check("infinity", None);
    }

    fn column(default: Option<&str>, missing: Option<&str>) -> TargetColumn {
        let ty = TypeName { schema: "pg_catalog".to_owned(), name: "text".to_owned() };
        TargetColumn {
            name: "c".to_owned(),
            attnum: 3,
            ty: ty.clone(),
            type_oid: 25,
            typmod: -1,
            array_input: ArrayInput::OfType,
            base_type: ty,
            display_type: "text".to_owned(),
            not_null: false,
            not_null_domain: None,
            default: if default.is_some() { ColumnDefault::Expression } else { ColumnDefault::None },
            default_sql: default.map(str::to_owned),
            missing: missing.map_or(MissingValue::None, |value| MissingValue::One(value.to_owned())),
            is_as_created: false,
            is_virtual: false,
            equality: None,
            deterministic: true,
            inner_types: Vec::new(),
        }
    }

    #[test]
    fn the_targets_rows_are_known_where_nothing_else_can_have_filled_them() {
        let value = |text: &str| Filling::Value(text.to_owned());
        let check = |column: &TargetColumn, expected: &Filling| {
            assert_eq!(of_target(column), *expected, "{column:?}");
        };
        check(&column(None, None), &Filling::Null);
        check(&column(Some("7"), Some("7")), &value("7"));
        let of_type = |name: &str, typmod, column| {
            let base_type = TypeName { schema: "pg_catalog".to_owned(), name: name.to_owned() };
            TargetColumn { typmod, base_type, ..column }
        };
        let scale_of_4 = ((12 << 16) | 4) + 4;
        check(&of_type("numeric", scale_of_4, column(Some("1.5"), Some("1.5000"))), &value("1.5000"));
        check(&of_type("bpchar", 9, column(Some("'a b'::bpchar"), Some("a b  "))), &value("a b  "));
        check(&column(Some("'a'::text"), Some("a  ")), &Filling::PerRow);
        // Rows that were inserted since have another value, or none.
        check(&column(Some("8"), Some("7")), &Filling::PerRow);
        check(&column(Some("now()"), Some("2024-02-29 00:00:00")), &Filling::PerRow);
        check(&column(None, Some("7")), &Filling::PerRow);
        check(&TargetColumn { not_null: true, ..column(None, Some("7")) }, &value("7"));
        // The default may be younger than the rows.
        check(&column(Some("7"), None), &Filling::PerRow);
        check(&TargetColumn { is_as_created: true, ..column(Some("7"), None) }, &value("7"));
        let several = TargetColumn { missing: MissingValue::Several, ..column(Some("7"), None) };
        check(&several, &Filling::PerRow);
        let identity = TargetColumn { default: ColumnDefault::IdentityByDefault, ..column(None, None) };
        check(&identity, &Filling::PerRow);
    }

    #[test]
    fn rows_are_equal_only_if_both_sides_tell() {
        let value = |text: &str| Filling::Value(text.to_owned());
        assert!(Filling::Null.equals(&Filling::Null));
        assert!(value("t").equals(&value("true")));
        assert!(!value("a ").equals(&value("a")));
        assert!(!value("100").equals(&value("1")));
        assert!(!value("7").equals(&value("8")));
        assert!(!value("7").equals(&Filling::Null));
        assert!(!Filling::Null.equals(&value("7")));
        assert!(!Filling::PerRow.equals(&Filling::PerRow));
    }
}
