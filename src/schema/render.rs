//! Types and table names as SQL text, for the DDL that an operator is told to run.
//!
//! Pure. The text means the same in any session: built-in types have their SQL names, everything else
//! is qualified and quoted.

use crate::pg::{QualifiedName, quote_ident};

use super::TypeName;

/// Size of a varlena header, which character and numeric typmods include (`VARHDRSZ`), bytes.
const VARHDRSZ: i32 = 4;

/// `INTERVAL_FULL_RANGE` and `INTERVAL_FULL_PRECISION` (PostgreSQL's `timestamp.h`).
const INTERVAL_FULL_RANGE: i32 = 0x7FFF;
const INTERVAL_FULL_PRECISION: i32 = 0xFFFF;

/// The decoded typmod of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modifier {
    None,
    /// Number of characters, bits or fractional digits of a second.
    Length(i32),
    /// Total digits, and digits after the point (negative: before it).
    Numeric {
        precision: i32,
        scale: i32,
    },
    Interval {
        /// The `INTERVAL_MASK` bits; `None` means all fields.
        fields: Option<i32>,
        precision: Option<i32>,
    },
    /// The typmod of a type of an extension, which only the extension can decode.
    Opaque(i32),
}

impl Modifier {
    /// Decodes `typmod` for the built-in type `name`, like the `typmodout` functions.
    #[must_use]
    pub fn of(ty: &TypeName, typmod: i32) -> Self {
        if typmod < 0 {
            return Self::None;
        }
        if !is_builtin(ty) {
            return Self::Opaque(typmod);
        }
        match element_name(&ty.name) {
            "varchar" | "bpchar" => Self::Length(typmod - VARHDRSZ),
            "bit" | "varbit" | "time" | "timetz" | "timestamp" | "timestamptz" => Self::Length(typmod),
            "numeric" => {
                let packed = typmod - VARHDRSZ;
                // The scale has 11 bits, one of which is the sign (numeric_typmod_scale in numeric.c).
                let scale = ((packed & 0x7ff) ^ 1024) - 1024;
                Self::Numeric { precision: (packed >> 16) & 0xffff, scale }
            }
            "interval" => {
                let (fields, precision) = ((typmod >> 16) & 0x7FFF, typmod & 0xFFFF);
                Self::Interval {
                    fields: (fields != INTERVAL_FULL_RANGE).then_some(fields),
                    precision: (precision != INTERVAL_FULL_PRECISION).then_some(precision),
                }
            }
            _ => Self::Opaque(typmod),
        }
    }
}

/// Whether the type is PostgreSQL's own.
#[must_use]
pub fn is_builtin(ty: &TypeName) -> bool {
    ty.schema == "pg_catalog"
}

/// Returns the element's name if `name` is that of an array type (`_int4`), else `name` itself.
#[must_use]
pub fn element_name(name: &str) -> &str {
    name.strip_prefix('_').unwrap_or(name)
}

/// Writes the type as in DDL: `numeric(12,2)`, `varchar(50)[]`, `"shop"."mood"`.
#[must_use]
pub fn type_sql(ty: &TypeName, typmod: i32) -> String {
    if !is_builtin(ty) {
        // An array type has a name of its own, so `"_mood"` can be written.
        return format!("{}.{}", quote_ident(&ty.schema), quote_ident(&ty.name));
    }
    let (element, array) = match ty.name.strip_prefix('_') {
        Some(element) => (element, "[]"),
        None => (ty.name.as_str(), ""),
    };
    let length = match Modifier::of(ty, typmod) {
        Modifier::Length(length) => format!("({length})"),
        Modifier::Numeric { precision, scale } => format!("({precision},{scale})"),
        Modifier::Interval { fields, precision } => {
            let precision = precision.map(|digits| format!("({digits})")).unwrap_or_default();
            let fields = fields.and_then(interval_fields).map(|name| format!(" {name}")).unwrap_or_default();
            format!("{fields}{precision}")
        }
        Modifier::None | Modifier::Opaque(_) => String::new(),
    };
    let name = match element {
        "bool" => "boolean",
        "int2" => "smallint",
        "int4" => "integer",
        "int8" => "bigint",
        "float4" => "real",
        "float8" => "double precision",
        // `char` and `bit` without a length would mean a length of 1.
        "bpchar" if !length.is_empty() => "char",
        "bit" if length.is_empty() => "\"bit\"",
        "char" => "\"char\"",
        other => other,
    };
    format!("{name}{length}{array}")
}

/// Bits of an interval's fields in its typmod (`INTERVAL_MASK` of `MONTH`… in PostgreSQL's `datetime.h`).
pub(super) mod interval_bit {
    pub(in crate::schema) const MONTH: i32 = 1 << 1;
    pub(in crate::schema) const YEAR: i32 = 1 << 2;
    pub(in crate::schema) const DAY: i32 = 1 << 3;
    pub(in crate::schema) const HOUR: i32 = 1 << 10;
    pub(in crate::schema) const MINUTE: i32 = 1 << 11;
    pub(in crate::schema) const SECOND: i32 = 1 << 12;
}

/// Writes an interval's fields as `intervaltypmodout` (`timestamp.c`) does.
fn interval_fields(fields: i32) -> Option<&'static str> {
    use interval_bit::{DAY, HOUR, MINUTE, MONTH, SECOND, YEAR};
    const DAY_TO_HOUR: i32 = DAY | HOUR;
    const DAY_TO_MINUTE: i32 = DAY_TO_HOUR | MINUTE;
    const DAY_TO_SECOND: i32 = DAY_TO_MINUTE | SECOND;
    const HOUR_TO_MINUTE: i32 = HOUR | MINUTE;
    const HOUR_TO_SECOND: i32 = HOUR_TO_MINUTE | SECOND;
    const MINUTE_TO_SECOND: i32 = MINUTE | SECOND;
    const YEAR_TO_MONTH: i32 = YEAR | MONTH;
    match fields {
        YEAR => Some("year"),
        MONTH => Some("month"),
        DAY => Some("day"),
        HOUR => Some("hour"),
        MINUTE => Some("minute"),
        SECOND => Some("second"),
        YEAR_TO_MONTH => Some("year to month"),
        DAY_TO_HOUR => Some("day to hour"),
        DAY_TO_MINUTE => Some("day to minute"),
        DAY_TO_SECOND => Some("day to second"),
        HOUR_TO_MINUTE => Some("hour to minute"),
        HOUR_TO_SECOND => Some("hour to second"),
        MINUTE_TO_SECOND => Some("minute to second"),
        _ => None,
    }
}

/// Writes a table's name for DDL: plain where it certainly reads back as itself, otherwise quoted. A
/// schema called `user` or `order` would not, so only `public` is written plain (after the dot, any
/// word is accepted).
#[must_use]
pub fn table_sql(name: &QualifiedName) -> String {
    if name.schema == "public" { name.to_string() } else { name.quoted() }
}

/// Writes `"a", "b"`.
#[must_use]
pub fn columns_sql<S: AsRef<str>>(columns: &[S]) -> String {
    columns.iter().map(|column| quote_ident(column.as_ref())).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, typmod: i32, expected: &str) {
        let ty = TypeName { schema: "pg_catalog".to_owned(), name: name.to_owned() };
        assert_eq!(type_sql(&ty, typmod), expected, "{name} {typmod}");
    }

    #[test]
    fn types_read_as_people_write_them() {
        check("int4", -1, "integer");
        check("_int8", -1, "bigint[]");
        check("numeric", -1, "numeric");
        check("numeric", ((12 << 16) | 2) + 4, "numeric(12,2)");
        check("numeric", ((3 << 16) | (-2 & 0x7ff)) + 4, "numeric(3,-2)");
        check("_numeric", ((12 << 16) | 2) + 4, "numeric(12,2)[]");
        check("varchar", 54, "varchar(50)");
        check("_varchar", 54, "varchar(50)[]");
        check("bpchar", 7, "char(3)");
        check("bpchar", -1, "bpchar");
        check("bit", 3, "bit(3)");
        check("bit", -1, "\"bit\"");
        check("varbit", 5, "varbit(5)");
        check("char", -1, "\"char\"");
        check("timestamp", 3, "timestamp(3)");
        check("timestamptz", -1, "timestamptz");
        check("time", 0, "time(0)");
        check("interval", -1, "interval");
        check("interval", (0x7FFF << 16) | 3, "interval(3)");
        check("interval", (0x1C08 << 16) | 0xFFFF, "interval day to second");
        check("interval", (0x1C08 << 16) | 2, "interval day to second(2)");
        check("float8", -1, "double precision");
    }

    #[test]
    fn other_types_are_qualified_and_tables_survive_reserved_words() {
        let ty = TypeName { schema: "shop".to_owned(), name: "Mood".to_owned() };
        assert_eq!(type_sql(&ty, -1), r#""shop"."Mood""#);
        assert_eq!(table_sql(&QualifiedName::new("public", "widgets")), "public.widgets");
        assert_eq!(table_sql(&QualifiedName::new("public", "B")), r#"public."B""#);
        assert_eq!(table_sql(&QualifiedName::new("user", "t")), r#""user"."t""#);
    }
}
