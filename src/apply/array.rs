//! One column of many rows as an array parameter.
//!
//! Types whose binary form is their text (text, varchar, json…) go as binary arrays: a length and
//! the bytes. So do values that came in binary, as they came. Everything else goes as an array
//! literal, which the target's `array_in` takes apart and hands to the element type's input function.

use bytes::BufMut as _;
use tokio_postgres::types::{Kind, Type};

use super::plan::Param;
use crate::pgoutput::{Tuple, Value};

/// A value cannot be an element: it was not sent, or not in a form that an array can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoElement;

/// Column `column` of `rows` as a parameter of the array type `ty`.
pub(super) fn column_array(rows: &[&Tuple], column: usize, ty: &Type) -> Result<Param, NoElement> {
    let array = ColumnArray { rows, column };
    let mut out = Vec::with_capacity(array.size_bytes());
    match array.layout(ty) {
        Layout::Binary(element, elements) => {
            array.binary(element, elements, &mut out)?;
            Ok(Param::Binary(out.into()))
        }
        Layout::Literal(quoting) => {
            array.literal(quoting, &mut out)?;
            Ok(Param::Text(out.into()))
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct ColumnArray<'a> {
    rows: &'a [&'a Tuple],
    column: usize,
}

/// How an array of a type is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Binary, with this element type OID.
    Binary(u32, Elements),
    Literal(Quoting),
}

/// What a box takes beside its value.
const BOX_BYTES: i32 = 12;

/// What a binary array's elements may have come as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Elements {
    /// Text and binary are the same bytes.
    Any,
    Binary,
    /// The same, each to be put into a composite with one field of this type (`pgsluice.boxed_…`).
    Boxed {
        field: u32,
    },
}

/// Whether elements can hold characters that an array literal gives a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quoting {
    Never,
    Always,
}

impl ColumnArray<'_> {
    /// Bytes of the array, roughly: growing it step by step would move most of them twice.
    fn size_bytes(&self) -> usize {
        const HEADER_BYTES: usize = 20;
        const ELEMENT_BYTES: usize = 5;
        let values = self.values().flatten().filter_map(Value::as_bytes);
        HEADER_BYTES + self.rows.len() * ELEMENT_BYTES + values.map(<[u8]>::len).sum::<usize>()
    }

    /// The first value that is one tells how all of a column come.
    fn layout(&self, array: &Type) -> Layout {
        let Kind::Array(element) = array.kind() else { return Layout::Literal(Quoting::Always) };
        if let Kind::Composite(fields) = element.kind()
            && let [field] = fields.as_slice()
        {
            return Layout::Binary(element.oid(), Elements::Boxed { field: field.type_().oid() });
        }
        let first = self.values().flatten().find(|value| *value != Value::Null);
        match *element {
            Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::JSON => {
                Layout::Binary(element.oid(), Elements::Any)
            }
            _ if matches!(first, Some(Value::Binary(_))) => Layout::Binary(element.oid(), Elements::Binary),
            Type::INT2
            | Type::INT4
            | Type::INT8
            | Type::OID
            | Type::BOOL
            | Type::FLOAT4
            | Type::FLOAT8
            | Type::NUMERIC
            | Type::UUID => Layout::Literal(Quoting::Never),
            _ => Layout::Literal(Quoting::Always),
        }
    }

    fn values(&self) -> impl Iterator<Item = Option<Value<'_>>> {
        self.rows.iter().map(|row| row.get(self.column))
    }

    /// `array_recv` in PostgreSQL's `arrayfuncs.c`: one dimension from 1 on.
    fn binary(&self, element: u32, elements: Elements, out: &mut Vec<u8>) -> Result<(), NoElement> {
        out.put_i32(1);
        out.put_i32(1);
        out.put_u32(element);
        out.put_i32(i32::try_from(self.rows.len()).map_err(|_| NoElement)?);
        out.put_i32(1);
        for value in self.values() {
            let bytes = match (value, elements) {
                (Some(Value::Null), _) => {
                    out.put_i32(-1);
                    continue;
                }
                (Some(Value::Text(bytes)), Elements::Any) | (Some(Value::Binary(bytes)), _) => bytes,
                (Some(Value::Text(_) | Value::Unchanged) | None, _) => return Err(NoElement),
            };
            let len = i32::try_from(bytes.len()).map_err(|_| NoElement)?;
            if let Elements::Boxed { field } = elements {
                // `record_recv` in PostgreSQL's `rowtypes.c`: one field, its type, its length.
                out.put_i32(len.checked_add(BOX_BYTES).ok_or(NoElement)?);
                out.put_i32(1);
                out.put_u32(field);
            }
            out.put_i32(len);
            out.put_slice(bytes);
        }
        Ok(())
    }

    /// `array_in` in PostgreSQL's `arrayfuncs.c`.
    fn literal(&self, quoting: Quoting, out: &mut Vec<u8>) -> Result<(), NoElement> {
        out.put_u8(b'{');
        for (n, value) in self.values().enumerate() {
            if n > 0 {
                out.put_u8(b',');
            }
            match (value, quoting) {
                (Some(Value::Null), _) => out.put_slice(b"NULL"),
                (Some(Value::Text(bytes)), Quoting::Never) => out.put_slice(bytes),
                (Some(Value::Text(bytes)), Quoting::Always) => quoted(bytes, out),
                (Some(Value::Binary(_) | Value::Unchanged) | None, _) => return Err(NoElement),
            }
        }
        out.put_u8(b'}');
        Ok(())
    }
}

fn quoted(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(bytes.len() + 2);
    out.put_u8(b'"');
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|&byte| byte == b'"' || byte == b'\\') {
        let (before, special) = rest.split_at(at);
        out.put_slice(before);
        out.put_u8(b'\\');
        out.put_slice(&special[..1]);
        rest = &special[1..];
    }
    out.put_slice(rest);
    out.put_u8(b'"');
}

#[cfg(test)]
mod tests {
    use tokio_postgres::types::Field;

    use super::*;
    use crate::pgoutput::testing::tuple;

    fn check(ty: &Type, values: &[Value<'_>], expected: &[u8]) {
        let rows: Vec<Tuple> = values.iter().map(|&value| tuple(&[value])).collect();
        let rows: Vec<&Tuple> = rows.iter().collect();
        let (Param::Text(out) | Param::Binary(out)) = column_array(&rows, 0, ty).unwrap() else {
            panic!("an array is not NULL");
        };
        assert_eq!(out.as_ref(), expected, "{}", String::from_utf8_lossy(&out));
    }

    #[test]
    fn literals_quote_what_an_array_would_take_apart() {
        check(&Type::INT8_ARRAY, &[Value::Text(b"1"), Value::Null, Value::Text(b"-3")], b"{1,NULL,-3}");
        check(
            &Type::TIMESTAMPTZ_ARRAY,
            &[Value::Text(b"2024-01-01 10:00:00+00"), Value::Text(b"NULL"), Value::Text(b"")],
            br#"{"2024-01-01 10:00:00+00","NULL",""}"#,
        );
        check(&Type::BYTEA_ARRAY, &[Value::Text(br#"\x"{,}"#)], br#"{"\\x\"{,}"}"#);
    }

    #[test]
    fn text_goes_in_binary() {
        let mut expected = Vec::new();
        for word in [1_u32, 1, 25, 2, 1, 2] {
            expected.extend_from_slice(&word.to_be_bytes());
        }
        expected.extend_from_slice(b"a\"");
        expected.extend_from_slice(&(-1_i32).to_be_bytes());
        check(&Type::TEXT_ARRAY, &[Value::Text(b"a\""), Value::Null], &expected);
    }

    #[test]
    fn what_came_in_binary_goes_in_binary() {
        let mut expected = Vec::new();
        for word in [1_u32, 1, 20, 2, 1] {
            expected.extend_from_slice(&word.to_be_bytes());
        }
        expected.extend_from_slice(&(-1_i32).to_be_bytes());
        expected.extend_from_slice(&8_u32.to_be_bytes());
        expected.extend_from_slice(&7_i64.to_be_bytes());
        check(&Type::INT8_ARRAY, &[Value::Null, Value::Binary(&7_i64.to_be_bytes())], &expected);
        let mixed = [tuple(&[Value::Binary(&7_i64.to_be_bytes())]), tuple(&[Value::Text(b"7")])];
        let rows: Vec<&Tuple> = mixed.iter().collect();
        assert_eq!(column_array(&rows, 0, &Type::INT8_ARRAY), Err(NoElement));
        let rows: Vec<&Tuple> = mixed.iter().rev().collect();
        assert_eq!(column_array(&rows, 0, &Type::INT8_ARRAY), Err(NoElement));
    }

    #[test]
    fn arrays_go_in_boxes() {
        let field = Field::new("value".to_owned(), Type::TEXT_ARRAY);
        let boxed =
            Type::new("boxed_text".to_owned(), 777, Kind::Composite(vec![field]), "pgsluice".to_owned());
        let boxes = Type::new("_boxed_text".to_owned(), 778, Kind::Array(boxed), "pgsluice".to_owned());
        let mut expected = Vec::new();
        for word in [1_u32, 1, 777, 2, 1, 12 + 3, 1, 1009, 3] {
            expected.extend_from_slice(&word.to_be_bytes());
        }
        expected.extend_from_slice(b"abc");
        expected.extend_from_slice(&(-1_i32).to_be_bytes());
        check(&boxes, &[Value::Binary(b"abc"), Value::Null], &expected);
        let row = tuple(&[Value::Text(b"{a}")]);
        assert_eq!(column_array(&[&row], 0, &boxes), Err(NoElement));
    }

    #[test]
    fn what_was_not_sent_is_an_error() {
        let row = tuple(&[Value::Unchanged]);
        for ty in [Type::TEXT_ARRAY, Type::INT4_ARRAY] {
            assert_eq!(column_array(&[&row], 0, &ty), Err(NoElement));
        }
    }
}
