//! The columns of many rows as array parameters.
//!
//! Values of types whose binary form is their text (text, varchar, json and others), and values that the
//! publisher sent in binary, are sent as binary arrays. All others are sent as an array literal: the target's
//! `array_in` splits it and calls the element type's input function.
//!
//! Each row is read once, and each value is appended to its column's array, because finding a column of a row
//! means reading the row up to it, and rows are no longer in the processor's cache.

use tokio_postgres::types::{Kind, Type};

use crate::apply::change::Param;
use crate::apply::sets::compact::{SetKind, SetRow};
use crate::apply::sets::sql;
use crate::pgoutput::{Tuple, Value};
use crate::schema::TablePlan;

/// A value cannot be an array's element: it was not sent, or its form does not suit the array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoElement;

/// Returns the arrays of a set's statement ([`sql::parameters`]), as parameters of `types`.
pub(crate) fn set_arrays(
    plan: &TablePlan,
    kind: &SetKind,
    rows: &[SetRow],
    types: &[Type],
) -> Result<Vec<Param>, NoElement> {
    let (values, identity) = sql::parameters(plan, kind);
    let (image_types, identity_types) = types.split_at_checked(values.len()).ok_or(NoElement)?;
    let mut params = Vec::with_capacity(types.len());
    if !values.is_empty() {
        let images: Vec<&Tuple> = rows.iter().filter_map(|row| row.image.as_ref()).collect();
        params.extend(column_arrays(&images, &values, image_types)?);
    }
    if !identity.is_empty() {
        let named_by: Vec<&Tuple> = rows.iter().filter_map(SetRow::named_by).collect();
        params.extend(column_arrays(&named_by, &identity, identity_types)?);
    }
    Ok(params)
}

/// Returns these columns of `rows`, each as a parameter of its array type.
pub(crate) fn column_arrays(
    rows: &[&Tuple],
    columns: &[usize],
    types: &[Type],
) -> Result<Vec<Param>, NoElement> {
    let capacities = capacities(rows);
    // By position in the row; none where a column is not wanted.
    let mut arrays: Vec<Option<Array>> = Vec::new();
    arrays.resize_with(columns.iter().max().map_or(0, |last| last + 1), || None);
    for (&column, ty) in columns.iter().zip(types) {
        let capacity = capacities.get(column).copied().unwrap_or_default();
        if let Some(array) = arrays.get_mut(column) {
            *array = Some(Array::new(ty, rows.len(), capacity)?);
        }
    }
    for row in rows {
        if row.len() < arrays.len() {
            return Err(NoElement);
        }
        for (array, value) in arrays.iter_mut().zip(row.iter()) {
            if let Some(array) = array {
                array.push(value)?;
            }
        }
    }
    let mut finished = |column: &usize| arrays.get_mut(*column)?.take()?.finish();
    columns.iter().map(|column| finished(column).ok_or(NoElement)).collect()
}

/// Estimates the bytes of each column's array from a few of the rows, because growing the arrays step by step
/// would move most of them several times. The sum is hardly more than the bytes of the rows.
fn capacities(rows: &[&Tuple]) -> Vec<usize> {
    const ROWS_ASKED: usize = 16;
    let asked = || rows.iter().step_by(rows.len().div_ceil(ROWS_ASKED).max(1));
    let mut columns: Vec<usize> = Vec::new();
    for row in asked() {
        columns.resize(columns.len().max(row.len()), 0);
        for (bytes, value) in columns.iter_mut().zip(row.iter()) {
            *bytes += VALUE_BYTES + value.as_bytes().map_or(0, <[u8]>::len);
        }
    }
    let bytes = |row: &&Tuple| row.size_bytes() + VALUE_BYTES;
    let (total, asked): (usize, usize) = (rows.iter().map(bytes).sum(), asked().map(bytes).sum());
    let share = |part: usize| (total as u128 * part as u128 / asked.max(1) as u128) as usize;
    columns.into_iter().map(|part| HEADER_BYTES + share(part)).collect()
}

/// Bytes of a binary array before its elements.
const HEADER_BYTES: usize = 20;
/// Bytes that a row has for each value besides the value: kind and length. An array has no more.
const VALUE_BYTES: usize = 5;

/// An array to which elements are appended.
struct Array {
    ty: Type,
    /// None while all elements are NULL and the type allows several layouts.
    layout: Option<Layout>,
    /// Number of NULLs before the layout was known.
    nulls: usize,
    len: i32,
    out: Vec<u8>,
}

/// How an array of a type is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Binary, with this element type OID.
    Binary(u32, Elements),
    Literal(Quoting),
}

/// The forms that values may have to be elements of a binary array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Elements {
    /// Text and binary are the same bytes.
    Any,
    Binary,
    /// Binary only, and each is written as a composite with one field of this type (`pgsluice.boxed_…`).
    Boxed {
        field: u32,
    },
}

/// Whether elements can have characters that are special in an array literal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quoting {
    Never,
    Always,
}

impl Layout {
    /// Returns the layout by the first value that is not NULL: all values of a column have the same format.
    /// Without one, the type has to decide.
    fn of(ty: &Type, first: Option<Value<'_>>) -> Option<Self> {
        let Kind::Array(element) = ty.kind() else { return Some(Self::Literal(Quoting::Always)) };
        if let Kind::Composite(fields) = element.kind()
            && let [field] = fields.as_slice()
        {
            return Some(Self::Binary(element.oid(), Elements::Boxed { field: field.type_().oid() }));
        }
        Some(match (element, first) {
            (&Type::TEXT | &Type::VARCHAR | &Type::BPCHAR | &Type::JSON, _) => {
                Self::Binary(element.oid(), Elements::Any)
            }
            (_, None) => return None,
            (_, Some(Value::Binary(_))) => Self::Binary(element.oid(), Elements::Binary),
            (
                &Type::INT2
                | &Type::INT4
                | &Type::INT8
                | &Type::OID
                | &Type::BOOL
                | &Type::FLOAT4
                | &Type::FLOAT8
                | &Type::NUMERIC
                | &Type::UUID,
                _,
            ) => Self::Literal(Quoting::Never),
            _ => Self::Literal(Quoting::Always),
        })
    }
}

impl Array {
    fn new(ty: &Type, len: usize, capacity: usize) -> Result<Self, NoElement> {
        let len = i32::try_from(len).map_err(|_| NoElement)?;
        let (ty, out) = (ty.clone(), Vec::with_capacity(capacity));
        let mut array = Self { ty, layout: None, nulls: 0, len, out };
        if let Some(layout) = Layout::of(&array.ty, None) {
            array.begin(layout);
        }
        Ok(array)
    }

    #[inline]
    fn push(&mut self, value: Value<'_>) -> Result<(), NoElement> {
        match (self.layout, value) {
            (Some(layout), value) => put(&mut self.out, layout, value),
            (None, Value::Null) => {
                self.nulls += 1;
                Ok(())
            }
            (None, value) => {
                let layout = Layout::of(&self.ty, Some(value)).ok_or(NoElement)?;
                self.begin(layout);
                put(&mut self.out, layout, value)
            }
        }
    }

    /// `array_recv` in PostgreSQL's `arrayfuncs.c` (one dimension, from 1 on), or `array_in`.
    fn begin(&mut self, layout: Layout) {
        self.layout = Some(layout);
        match layout {
            Layout::Binary(element, _) => {
                let len = self.len.cast_unsigned();
                for word in [1, 1, element, len, 1] {
                    self.out.extend_from_slice(&word.to_be_bytes());
                }
            }
            Layout::Literal(_) => self.out.push(b'{'),
        }
        for _ in 0..std::mem::take(&mut self.nulls) {
            put_null(&mut self.out, layout);
        }
    }

    fn finish(mut self) -> Option<Param> {
        let layout = self.layout.unwrap_or(Layout::Literal(Quoting::Never));
        if self.layout.is_none() {
            self.begin(layout);
        }
        match (layout, self.out.last_mut()?) {
            (Layout::Binary(..), _) => Some(Param::Binary(self.out.into())),
            (Layout::Literal(_), last) => {
                // The brace replaces the comma after the last element, if there is one.
                if *last == b',' {
                    *last = b'}';
                } else {
                    self.out.push(b'}');
                }
                Some(Param::Text(self.out.into()))
            }
        }
    }
}

fn put_null(out: &mut Vec<u8>, layout: Layout) {
    match layout {
        Layout::Binary(..) => out.extend_from_slice(&(-1_i32).to_be_bytes()),
        Layout::Literal(_) => out.extend_from_slice(b"NULL,"),
    }
}

#[inline]
fn put(out: &mut Vec<u8>, layout: Layout, value: Value<'_>) -> Result<(), NoElement> {
    match (layout, value) {
        (_, Value::Null) => put_null(out, layout),
        (Layout::Binary(_, Elements::Any), Value::Text(bytes))
        | (Layout::Binary(..), Value::Binary(bytes)) => {
            let len = i32::try_from(bytes.len()).map_err(|_| NoElement)?;
            if let Layout::Binary(_, Elements::Boxed { field }) = layout {
                put_box(out, field, len)?;
            }
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(bytes);
        }
        (Layout::Literal(quoting), Value::Text(bytes)) => {
            match quoting {
                Quoting::Never => out.extend_from_slice(bytes),
                Quoting::Always => quoted(bytes, out),
            }
            out.push(b',');
        }
        (Layout::Binary(_, Elements::Binary | Elements::Boxed { .. }), Value::Text(_))
        | (Layout::Literal(_), Value::Binary(_))
        | (_, Value::Unchanged) => return Err(NoElement),
    }
    Ok(())
}

/// Begins a composite with one field of this type, as `record_recv` in PostgreSQL's `rowtypes.c` reads it. The
/// field's value follows.
fn put_box(out: &mut Vec<u8>, field: u32, len: i32) -> Result<(), NoElement> {
    /// Bytes of the number of fields, the type and the length.
    const BOX_BYTES: i32 = 12;
    out.extend_from_slice(&len.checked_add(BOX_BYTES).ok_or(NoElement)?.to_be_bytes());
    out.extend_from_slice(&1_i32.to_be_bytes());
    out.extend_from_slice(&field.to_be_bytes());
    Ok(())
}

fn quoted(bytes: &[u8], out: &mut Vec<u8>) {
    let special = |byte: u8| byte == b'"' || byte == b'\\';
    out.push(b'"');
    // Most values have nothing to escape, and whether there is anything is found faster than where it is.
    if bytes.iter().fold(false, |found, &byte| found | special(byte)) {
        for &byte in bytes {
            if special(byte) {
                out.push(b'\\');
            }
            out.push(byte);
        }
    } else {
        out.extend_from_slice(bytes);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use tokio_postgres::types::Field;

    use super::*;
    use crate::pgoutput::testing::tuple;

    fn check(ty: &Type, values: &[Value<'_>], expected: &[u8]) {
        let rows: Vec<Tuple> = values.iter().map(|&value| tuple(&[value])).collect();
        let rows: Vec<&Tuple> = rows.iter().collect();
        let arrays = column_arrays(&rows, &[0], std::slice::from_ref(ty)).unwrap();
        let [Param::Text(out) | Param::Binary(out)] = &arrays[..] else { panic!("not an array") };
        assert_eq!(out.as_ref(), expected, "{}", String::from_utf8_lossy(out));
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
        assert_eq!(column_arrays(&rows, &[0], &[Type::INT8_ARRAY]), Err(NoElement));
        let rows: Vec<&Tuple> = mixed.iter().rev().collect();
        assert_eq!(column_arrays(&rows, &[0], &[Type::INT8_ARRAY]), Err(NoElement));
    }

    #[test]
    fn nulls_wait_for_the_first_value() {
        check(&Type::INT4_ARRAY, &[Value::Null, Value::Null], b"{NULL,NULL}");
        check(&Type::INT4_ARRAY, &[Value::Null, Value::Text(b"5"), Value::Null], b"{NULL,5,NULL}");
        check(&Type::INT4_ARRAY, &[], b"{}");
        check(&Type::DATE_ARRAY, &[Value::Null, Value::Text(b",")], br#"{NULL,","}"#);
    }

    #[test]
    fn columns_come_in_the_order_asked_for() {
        let row = tuple(&[Value::Text(b"1"), Value::Unchanged, Value::Text(b"3")]);
        let arrays = column_arrays(&[&row, &row], &[2, 0], &[Type::INT4_ARRAY, Type::INT8_ARRAY]).unwrap();
        assert_eq!(arrays, [b"{3,3}", b"{1,1}"].map(|array| Param::Text(array[..].into())));
        assert_eq!(column_arrays(&[&row], &[3], &[Type::INT4_ARRAY]), Err(NoElement));
    }

    #[test]
    fn arrays_go_in_boxes() {
        let field = Field::new("value".to_owned(), Type::TEXT_ARRAY);
        let composite = Kind::Composite(vec![field]);
        let boxed = Type::new("boxed_text".to_owned(), 777, composite, "pgsluice".to_owned());
        let boxes = Type::new("_boxed_text".to_owned(), 778, Kind::Array(boxed), "pgsluice".to_owned());
        let mut expected = Vec::new();
        for word in [1_u32, 1, 777, 2, 1, 12 + 3, 1, 1009, 3] {
            expected.extend_from_slice(&word.to_be_bytes());
        }
        expected.extend_from_slice(b"abc");
        expected.extend_from_slice(&(-1_i32).to_be_bytes());
        check(&boxes, &[Value::Binary(b"abc"), Value::Null], &expected);
        let row = tuple(&[Value::Text(b"{a}")]);
        assert_eq!(column_arrays(&[&row], &[0], &[boxes]), Err(NoElement));
    }

    #[test]
    fn what_was_not_sent_is_an_error() {
        let row = tuple(&[Value::Unchanged]);
        for ty in [Type::TEXT_ARRAY, Type::INT4_ARRAY] {
            assert_eq!(column_arrays(&[&row], &[0], &[ty]), Err(NoElement));
        }
    }
}
