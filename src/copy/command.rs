//! The two COPY commands of one table, and the format that they speak.
//!
//! # Why the format is chosen at the last moment
//! Binary values are read as whatever the target's column is. The comparison that the table passed may be
//! old by the time it is copied: it may have waited for a slot, or for another attempt, and somebody may
//! have changed a column since. So both sides are asked within the transactions that copy. To parse a
//! query locks its table until the transaction ends, so the types cannot change behind the answer. It
//! takes no privilege that COPY does not take.

use tokio_postgres::Client;

use super::{CopyError, Side};
use crate::config::Auto;
use crate::pg::{QualifiedName, quote_ident};
use crate::schema::binary::same_in_binary;
use crate::schema::{CopyFormat, PublishedTable, TablePlan, TypeName, copy_in_sql, copy_query};

/// Messages that the publisher sends beside one a row: the end of binary data is one of its own,
/// while the beginning comes with the first that there is (`CopyTo` in PostgreSQL's `copyto.c`).
pub(super) const fn extra_messages(format: CopyFormat) -> u64 {
    match format {
        CopyFormat::Text => 0,
        CopyFormat::Binary => 1,
    }
}

/// What copies a table's rows, in either format.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyCommands {
    out: String,
    /// In text, and in binary.
    r#in: [String; 2],
    /// Queries for the same columns, publisher's and target's, that are only parsed: for their types.
    /// None if binary is not wanted, or if there are no columns: such rows are empty lines.
    types: Option<(String, String)>,
}

impl CopyCommands {
    #[must_use]
    pub fn new(published: &PublishedTable, plan: &TablePlan, binary: Auto) -> Self {
        let source: Vec<&str> = plan.columns.iter().map(|column| column.source.as_str()).collect();
        let target = columns(plan.columns.iter().map(|column| column.target.as_str()));
        let select = |columns: &str, name: &QualifiedName| format!("SELECT {columns} FROM {}", name.quoted());
        let types = match binary {
            Auto::Auto | Auto::On if !target.is_empty() => Some((
                select(&columns(source.iter().copied()), &published.relation.name),
                select(&target, &plan.target),
            )),
            Auto::Auto | Auto::On | Auto::Off => None,
        };
        Self {
            out: copy_query(published, &source),
            r#in: [CopyFormat::Text, CopyFormat::Binary].map(|format| copy_in_sql(plan, format)),
            types,
        }
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

    /// The format for what both tables are now. Both sides' transactions must be open: they keep the
    /// tables as they are.
    pub(super) async fn format(&self, source: &Client, target: &Client) -> Result<CopyFormat, CopyError> {
        let Some((from, into)) = &self.types else { return Ok(CopyFormat::Text) };
        let from = column_types(source, from).await.map_err(CopyError::on(Side::Publisher))?;
        let into = column_types(target, into).await.map_err(CopyError::on(Side::Target))?;
        let same = from.len() == into.len() && from.iter().zip(&into).all(|(a, b)| same_in_binary(a, b));
        Ok(if same { CopyFormat::Binary } else { CopyFormat::Text })
    }
}

fn columns<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(quote_ident).collect::<Vec<_>>().join(", ")
}

/// The types of a query's columns, each below its domains (`SendRowDescriptionMessage` in PostgreSQL's
/// `printtup.c`): a domain's values are sent as its base type's, and `domain_recv` takes them so.
async fn column_types(client: &Client, query: &str) -> Result<Vec<TypeName>, tokio_postgres::Error> {
    let statement = client.prepare(query).await?;
    let name = |column: &tokio_postgres::Column| TypeName {
        schema: column.type_().schema().to_owned(),
        name: column.type_().name().to_owned(),
    };
    Ok(statement.columns().iter().map(name).collect())
}
