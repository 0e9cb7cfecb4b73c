//! `COPY … FROM STDIN`, by which the initial copy and large sets of new rows enter a table.

use std::fmt;

use super::TablePlan;
use crate::pg::quote_ident;

/// The format of the values in a COPY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyFormat {
    Text,
    /// The types' binary format. It saves the target a third of its work for a row of numbers and
    /// times, and never takes more than text (measured for the types of
    /// [`same_in_binary`](super::binary::same_in_binary)).
    Binary,
}

impl CopyFormat {
    /// Returns the option at the end of the command.
    #[must_use]
    pub const fn option(self) -> &'static str {
        match self {
            Self::Text => "",
            Self::Binary => " WITH (FORMAT binary)",
        }
    }
}

impl fmt::Display for CopyFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Binary => "binary",
        })
    }
}

/// Returns `COPY … FROM STDIN` for the target's published columns, in the plan's order. COPY accepts
/// values for identity columns, GENERATED ALWAYS included.
#[must_use]
pub fn copy_in_sql(plan: &TablePlan, format: CopyFormat) -> String {
    let names: Vec<String> = plan.columns.iter().map(|column| quote_ident(&column.target)).collect();
    let columns = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
    format!("COPY {}{columns} FROM STDIN{}", plan.target.quoted(), format.option())
}
