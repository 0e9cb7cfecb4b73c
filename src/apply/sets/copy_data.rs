//! New rows as the data of one `COPY … FROM STDIN`.
//!
//! Pure. Values are passed on as the publisher sent them. The target type's receive function reads binary
//! values, its input function text values.

use bytes::{BufMut as _, Bytes};

use crate::apply::sets::array::NoElement;
use crate::apply::sets::compact::SetRow;
use crate::pgoutput::{Format, Tuple, Value};
use crate::schema::binary::copies_in_binary;
use crate::schema::{BinaryForm, ColumnPlan, CopyFormat};

/// Returns the images of rows that were received in `format` as COPY data.
///
/// # Errors
/// A value cannot be passed on in its form, or was not sent.
pub(crate) fn copy_data(
    columns: &[ColumnPlan],
    rows: &[SetRow],
    format: Format,
) -> Result<(CopyFormat, Bytes), NoElement> {
    let images = || rows.iter().map(|row| row.image.as_ref());
    let bytes = images().flatten().map(Tuple::size_bytes).sum();
    if format == Format::Binary && copies_in_binary(columns) {
        Ok((CopyFormat::Binary, binary(columns, images(), bytes)?))
    } else {
        Ok((CopyFormat::Text, text(columns, images(), bytes)?))
    }
}

/// Writes COPY's binary format (`CopyFromBinaryOneRow` in PostgreSQL's `copyfromparse.c`).
fn binary<'a>(
    columns: &[ColumnPlan],
    rows: impl Iterator<Item = Option<&'a Tuple>>,
    bytes: usize,
) -> Result<Bytes, NoElement> {
    const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
    const END: i16 = -1;
    let count = i16::try_from(columns.len()).map_err(|_| NoElement)?;
    let mut out = Vec::with_capacity(bytes);
    out.put_slice(SIGNATURE);
    // The flags and the length of the header extension are 0.
    out.put_u64(0);
    for row in rows {
        out.put_i16(count);
        for (value, column) in complete(row, columns)?.iter().zip(columns) {
            let bytes = match (value, column.binary) {
                (Value::Null, _) => {
                    out.put_i32(-1);
                    continue;
                }
                (Value::Binary(bytes), _) | (Value::Text(bytes), BinaryForm::Text) => bytes,
                (Value::Text(_) | Value::Unchanged, _) => return Err(NoElement),
            };
            out.put_i32(i32::try_from(bytes.len()).map_err(|_| NoElement)?);
            out.put_slice(bytes);
        }
    }
    out.put_i16(END);
    Ok(out.into())
}

/// Writes COPY's text format: one line for each row, tabs between values, `\N` for NULL (`CopyReadLineText` and
/// `CopyReadAttributesText` in PostgreSQL's `copyfromparse.c`).
fn text<'a>(
    columns: &[ColumnPlan],
    rows: impl Iterator<Item = Option<&'a Tuple>>,
    bytes: usize,
) -> Result<Bytes, NoElement> {
    let mut out = Vec::with_capacity(bytes);
    for row in rows {
        for (n, value) in complete(row, columns)?.iter().enumerate() {
            if n > 0 {
                out.put_u8(b'\t');
            }
            match value {
                Value::Null => out.put_slice(b"\\N"),
                Value::Text(bytes) => escaped(bytes, &mut out),
                Value::Binary(_) | Value::Unchanged => return Err(NoElement),
            }
        }
        out.put_u8(b'\n');
    }
    Ok(out.into())
}

fn complete<'a>(row: Option<&'a Tuple>, columns: &[ColumnPlan]) -> Result<&'a Tuple, NoElement> {
    row.filter(|row| row.len() == columns.len()).ok_or(NoElement)
}

fn escaped(bytes: &[u8], out: &mut Vec<u8>) {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\\' | b'\t' | b'\n' | b'\r')) {
        let (before, special) = rest.split_at(at);
        out.put_slice(before);
        out.put_slice(match special[0] {
            b'\t' => b"\\t",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            _ => b"\\\\",
        });
        rest = &special[1..];
    }
    out.put_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::bench;
    use crate::pgoutput::testing::tuple;
    use crate::schema::TypeName;

    fn column(ty: &str, binary: BinaryForm) -> ColumnPlan {
        let ty = TypeName { schema: "pg_catalog".to_owned(), name: ty.to_owned() };
        ColumnPlan { ty: ty.clone(), type_oid: 0, base_type: ty, binary, ..bench::column("c", false) }
    }

    fn rows(values: &[&[Value<'_>]]) -> Vec<SetRow> {
        values.iter().map(|row| SetRow { identity: None, image: Some(tuple(row)) }).collect()
    }

    #[test]
    fn binary_values_go_as_they_came() {
        let columns = [column("int4", BinaryForm::Native), column("text", BinaryForm::Text)];
        let rows = rows(&[
            &[Value::Binary(&7_i32.to_be_bytes()), Value::Text(b"a\tb")],
            &[Value::Null, Value::Text(b"")],
        ]);
        let mut expected = b"PGCOPY\n\xff\r\n\0".to_vec();
        expected.extend([0; 8]);
        expected.extend([0, 2, 0, 0, 0, 4, 0, 0, 0, 7, 0, 0, 0, 3]);
        expected.extend(b"a\tb");
        expected.extend([0, 2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        expected.extend([0xff, 0xff]);
        assert_eq!(copy_data(&columns, &rows, Format::Binary), Ok((CopyFormat::Binary, expected.into())));
    }

    #[test]
    fn text_values_keep_what_copy_would_take_for_its_own() {
        let columns = [column("int4", BinaryForm::Native), column("text", BinaryForm::Text)];
        let rows = rows(&[
            &[Value::Text(b"7"), Value::Text(b"a\tb\nc\rd\\.e")],
            &[Value::Null, Value::Text(b"\\N")],
            &[Value::Text(b"8"), Value::Text(b"")],
        ]);
        let expected = "7\ta\\tb\\nc\\rd\\\\.e\n\\N\t\\\\N\n8\t\n";
        assert_eq!(copy_data(&columns, &rows, Format::Text), Ok((CopyFormat::Text, expected.into())));
    }

    #[test]
    fn what_the_target_would_read_otherwise_is_no_copy() {
        let binary: &[Value<'_>] = &[Value::Binary(b"1234")];
        let check = |ty: &str, form, row: &[Value<'_>], expected| {
            let copied = copy_data(&[column(ty, form)], &rows(&[row]), Format::Binary);
            let copied = copied.map(|(format, _)| format);
            assert_eq!(copied, expected, "{ty} {form:?} {row:?}");
        };
        check("int4", BinaryForm::Native, binary, Ok(CopyFormat::Binary));
        // A number that came as text cannot be part of binary data.
        check("int4", BinaryForm::Text, &[Value::Text(b"1234")], Ok(CopyFormat::Text));
        check("int4", BinaryForm::Text, binary, Err(NoElement));
        check("int4", BinaryForm::Unusable, binary, Err(NoElement));
        check("name", BinaryForm::Text, &[Value::Text(b"1234")], Ok(CopyFormat::Text));
        check("text", BinaryForm::Text, &[Value::Unchanged], Err(NoElement));
        check("text", BinaryForm::Text, &[], Err(NoElement));
    }
}
