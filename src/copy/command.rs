//! The two COPY commands of one table, and their format.
//!
//! # Why the format is chosen within the copying transactions
//! Binary values are read as the type of the target's column without a check. A column may have been altered
//! since the tables were compared, because a copy may wait for a slot or for another attempt. So both servers
//! are asked for the types within the transactions that copy. Parsing a query locks its table until the
//! transaction ends, so the types cannot change afterwards. It needs no privilege that COPY does not need.

use tokio_postgres::Client;

use super::{CopyError, Side};
use crate::config::Auto;
use crate::pg::{QualifiedName, quote_ident};
use crate::schema::binary::same_in_binary;
use crate::schema::{CopyFormat, PublishedTable, TablePlan, TypeName, copy_in_sql, copy_query};

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
