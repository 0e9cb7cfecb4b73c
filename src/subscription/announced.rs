//! What operators are told when the stream describes a table: types that have changed on the publisher, and
//! what may go wrong with its values.
//!
//! The record has each table's columns as they were described last, so that a change that was made while nothing ran
//! is noticed, too. It is written after operators have been told: after a crash in between, they are told again.
//! Warnings that the attempt's start has reported are not repeated.

use std::collections::HashMap;

use crate::apply::ExactBecause;
use crate::error::Diagnosis;
use crate::pg::QualifiedName;
use crate::schema::redefined::{diagnosis, redefined};
use crate::schema::{SeenColumn, Warning};
use crate::store::TableState;

use super::attempt::Context;
use super::failure::Failure;
use super::take_up::PreparedTable;

/// Maximum number of warnings of an attempt's stream that `status` shows. All are logged.
const SHOWN_MAX: usize = 100;

/// The record of the tables, and what has been told since the attempt began.
#[derive(Debug, Default)]
pub(super) struct Announced {
    recorded: HashMap<QualifiedName, Planned>,
    texts: Vec<String>,
}

/// How a table is described, and how it is applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Planned {
    /// None before the first description.
    pub(super) columns: Option<Vec<SeenColumn>>,
    /// Why it is applied row by row.
    pub(super) exact_because: Option<String>,
}

impl Planned {
    pub(super) fn new(columns: Vec<SeenColumn>, exact_because: Option<ExactBecause>) -> Self {
        Self {
            columns: Some(columns),
            exact_because: exact_because.map(|because| because.as_str().to_owned()),
        }
    }
}

impl Announced {
    /// The tables as they were taken up. Those that are to be copied have just been recorded as they are published.
    pub(super) fn new(tables: &[PreparedTable]) -> Self {
        let recorded = |table: &PreparedTable| {
            let columns = match table.row.state {
                TableState::Ready => table.row.columns.clone(),
                TableState::Pending | TableState::Copying | TableState::CatchingUp | TableState::Paused => {
                    Some(SeenColumn::all_of(&table.published.relation))
                }
            };
            (table.row.source.clone(), Planned { columns, exact_because: table.row.exact_because.clone() })
        };
        Self { recorded: tables.iter().map(recorded).collect(), texts: Vec::new() }
    }

    /// Tells what follows from a table's description, and records it.
    pub(super) async fn planned(
        &mut self,
        context: &Context,
        source: &QualifiedName,
        now: Planned,
        warnings: &[Warning],
    ) -> Result<(), Failure> {
        let before = self.recorded.get(source);
        let before_columns = before.and_then(|before| before.columns.as_deref());
        let changed =
            redefined(before_columns.unwrap_or_default(), now.columns.as_deref().unwrap_or_default());
        let is_recorded = before == Some(&now);
        let mut news: Vec<Diagnosis> = warnings.iter().map(Warning::diagnosis).collect();
        if !changed.is_empty() {
            news.insert(0, diagnosis(source, &changed, &context.subscription.name));
        }
        self.tell(context, source, news).await?;
        if !is_recorded {
            let (columns, because) =
                (now.columns.as_deref().unwrap_or_default(), now.exact_because.as_deref());
            context.store.set_planned(&context.owner, source, columns, because).await?;
            self.recorded.insert(source.clone(), now);
        }
        Ok(())
    }

    async fn tell(
        &mut self,
        context: &Context,
        source: &QualifiedName,
        mut news: Vec<Diagnosis>,
    ) -> Result<(), Failure> {
        let reported = context.warned.borrow().clone();
        news.retain(|news| {
            let text = news.to_string();
            !reported.contains(&text) && !self.texts.contains(&text)
        });
        if news.is_empty() {
            return Ok(());
        }
        for diagnosis in &news {
            context.attention(Some(source), diagnosis);
        }
        let room = SHOWN_MAX.saturating_sub(self.texts.len());
        self.texts.extend(news.iter().take(room).map(ToString::to_string));
        let all: Vec<String> = reported.into_iter().chain(self.texts.iter().cloned()).collect();
        Ok(context.store.set_warnings(&context.owner, &all).await?)
    }
}
