//! The two COPY commands of one table, and their format.
//!
//! # Why the format is chosen within the copying transactions
//! Binary values are read as the type of the target's column without a check. A column may have been altered
//! since the tables were compared, because a copy may wait for a slot or for another attempt. So both servers
//! are asked for the types within the transactions that copy. Parsing a query locks its table until the
//! transaction ends, so the types cannot change afterwards. It needs no privilege that COPY does not need.

use std::borrow::Cow;

use tokio_postgres::Client;

use super::{CopyError, Side};
use crate::config::Auto;
use crate::error::ServerError;
use crate::pg::{QualifiedName, quote_ident};
use crate::schema::binary::same_in_binary;
use crate::schema::{
    ColumnPlan, CopyFormat, PublishedTable, TablePlan, TableRules, TypeName, ValueGuard, copy_in_sql,
    copy_query, has_value_query,
};

/// Number of messages that the publisher sends besides one for each row. The trailer of binary data is a
/// message of its own; the header is in the first message (`CopyTo` in PostgreSQL's `copyto.c`).
pub(super) const fn extra_messages(format: CopyFormat) -> u64 {
    match format {
        CopyFormat::Text => 0,
        CopyFormat::Binary => 1,
    }
}

/// The COPY commands of a table in both formats.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyCommands {
    out: String,
    /// The target's commands in text and in binary format.
    r#in: [String; 2],
    /// Queries of the same columns on publisher and target, which are only parsed, to learn the columns'
    /// types. None if binary is switched off, or if there are no columns: in text format such rows are empty
    /// lines.
    types: Option<(String, String)>,
    /// The columns whose values are looked at before they are sent.
    guarded: Vec<GuardedColumn>,
    /// The columns that may have no value because they are ignored only then, each with the query whether it has one.
    null: Vec<(String, String)>,
}

/// A column of which the target would change some values silently.
#[derive(Debug, Clone, PartialEq, Eq)]
struct GuardedColumn {
    /// Its position in a row, from 0.
    position: usize,
    table: QualifiedName,
    column: String,
    guard: ValueGuard,
}

impl GuardedColumn {
    fn of(plan: &TablePlan) -> Vec<Self> {
        let guarded = |(position, column): (usize, &ColumnPlan)| {
            let (table, column, guard) = (plan.target.clone(), column.target.clone(), column.guard?);
            Some(Self { position, table, column, guard })
        };
        plan.columns.iter().enumerate().filter_map(guarded).collect()
    }
}

impl CopyCommands {
    #[must_use]
    pub fn new(published: &PublishedTable, plan: &TablePlan, rules: &TableRules, binary: Auto) -> Self {
        let source: Vec<&str> = plan.columns.iter().map(|column| column.source.as_str()).collect();
        let target = columns(plan.columns.iter().map(|column| column.target.as_str()));
        let select = |columns: &str, name: &QualifiedName| format!("SELECT {columns} FROM {}", name.quoted());
        let types = match binary {
            // Rows in which values are looked at are copied in text format.
            Auto::Auto | Auto::On if !target.is_empty() && !plan.is_guarded() => Some((
                select(&columns(source.iter().copied()), &published.relation.name),
                select(&target, &plan.target),
            )),
            Auto::Auto | Auto::On | Auto::Off => None,
        };
        Self {
            out: copy_query(published, &source),
            r#in: [CopyFormat::Text, CopyFormat::Binary].map(|format| copy_in_sql(plan, format)),
            types,
            guarded: GuardedColumn::of(plan),
            null: rules
                .ignored_if_null()
                .filter(|name| published.relation.columns.iter().any(|column| column.name == **name))
                .map(|name| (name.clone(), has_value_query(published, name)))
                .collect(),
        }
    }

    /// Returns the refusal of a row in text format, one of whose values the target would change silently. `row`
    /// is its number, from 1.
    pub(super) fn refusal(&self, line: &[u8], row: u64) -> Option<ServerError> {
        if self.guarded.is_empty() {
            return None;
        }
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b'\t').collect();
        self.guarded.iter().find_map(|guarded| {
            let value = unescaped(fields.get(guarded.position)?)?;
            guarded.guard.refuses(&value).then(|| {
                let error = guarded.guard.refusal(&guarded.table, &guarded.column);
                let context = Some(format!("COPY {}, row {row}", guarded.table));
                ServerError { message: format!("row {row} of the copy: {}", error.message), context, ..error }
            })
        })
    }

    /// Fails if a column has a value that is ignored only while it is NULL. `source`'s transaction has the snapshot.
    pub(super) async fn refuse_values(
        &self,
        source: &Client,
        table: &QualifiedName,
    ) -> Result<(), CopyError> {
        for (column, has_value) in &self.null {
            let row = source.query_one(has_value.as_str(), &[]).await.map_err(CopyError::publisher)?;
            if row.get(0) {
                return Err(CopyError::IgnoredValue { table: table.clone(), column: column.clone() });
            }
        }
        Ok(())
    }

    /// `COPY … TO STDOUT` for the publisher.
    #[must_use]
    pub fn copy_out(&self, format: CopyFormat) -> String {
        format!("{}{}", self.out, format.option())
    }

    /// `COPY … FROM STDIN` for the target.
    #[must_use]
    pub fn copy_in(&self, format: CopyFormat) -> &str {
        let [text, binary] = &self.r#in;
        match format {
            CopyFormat::Text => text,
            CopyFormat::Binary => binary,
        }
    }

    /// Chooses the format for the current definitions of both tables. The transactions must be open on both
    /// servers: their locks keep the definitions.
    pub(super) async fn format(&self, source: &Client, target: &Client) -> Result<CopyFormat, CopyError> {
        let Some((from, into)) = &self.types else { return Ok(CopyFormat::Text) };
        let from = column_types(source, from).await.map_err(CopyError::on(Side::Publisher))?;
        let into = column_types(target, into).await.map_err(CopyError::on(Side::Target))?;
        let same = from.len() == into.len() && from.iter().zip(&into).all(|(a, b)| same_in_binary(a, b));
        Ok(if same { CopyFormat::Binary } else { CopyFormat::Text })
    }
}

/// Returns a value in COPY's text format as it is; none for NULL (`CopyAttributeOutText` in PostgreSQL's
/// `copyto.c`).
fn unescaped(field: &[u8]) -> Option<Cow<'_, [u8]>> {
    if field == b"\\N" {
        return None;
    }
    if !field.contains(&b'\\') {
        return Some(Cow::Borrowed(field));
    }
    let mut value = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'\\' {
            value.push(byte);
            continue;
        }
        value.push(match bytes.next() {
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'v') => 0x0b,
            Some(&other) => other,
            None => byte,
        });
    }
    Some(Cow::Owned(value))
}

fn columns<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(quote_ident).collect::<Vec<_>>().join(", ")
}

/// Returns the types of a query's columns; for a domain, its base type (`SendRowDescriptionMessage` in
/// PostgreSQL's `printtup.c`). A domain's values have the binary form of its base type, which `domain_recv`
/// reads.
async fn column_types(client: &Client, query: &str) -> Result<Vec<TypeName>, tokio_postgres::Error> {
    let statement = client.prepare(query).await?;
    let name = |column: &tokio_postgres::Column| TypeName {
        schema: column.type_().schema().to_owned(),
        name: column.type_().name().to_owned(),
    };
    Ok(statement.columns().iter().map(name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_looked_at_as_they_are() {
        let check = |field: &str, expected: Option<&[u8]>| {
            assert_eq!(unescaped(field.as_bytes()).as_deref(), expected, "{field}");
        };
        check(r"\\N", Some(br"\N"));
        check(r"\N", None);
        check("plain ", Some(b"plain "));
        check(r"a\tb\\c\nd\b\f\r\v", Some(b"a\tb\\c\nd\x08\x0c\r\x0b"));
        check("", Some(b""));
    }
}
