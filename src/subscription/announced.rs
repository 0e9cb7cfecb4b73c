//! What follows from the stream's description of a table: a gap, if columns have changed on the publisher, and
//! warnings of what may go wrong with their values.
//!
//! The record has each table's columns as they were described last, so that a change that was made while nothing ran
//! is noticed, too. It is written after the gap: after a crash in between, the same gap is found again.
//! Warnings that the attempt's start has reported are not repeated.

use std::collections::HashMap;

use crate::apply::ExactBecause;
use crate::error::Diagnosis;
use crate::gap::{GapKind, NewGap};
use crate::pg::{Lsn, QualifiedName};
use crate::schema::redefined::{RedefinedColumn, facts, redefined};
use crate::schema::{SeenColumn, SeenTable, Warning};
use crate::store::{PlannedTable, TableState};

use super::context::Context;
use super::failure::Failure;
use super::gaps;
use super::take_up::PreparedTable;

/// Maximum number of warnings of an attempt's stream that `status` shows. All are logged.
const SHOWN_MAX: usize = 100;

/// The record of the tables, and what has been told since the attempt began.
#[derive(Debug, Default)]
pub(super) struct Announced {
    recorded: HashMap<QualifiedName, Recorded>,
    /// What is still to be written to the record.
    unwritten: HashMap<QualifiedName, PlannedTable>,
    texts: Vec<String>,
}

/// What the record has of a table.
#[derive(Debug, Default)]
struct Recorded {
    /// None before the first description.
    columns: Option<Vec<SeenColumn>>,
    /// Why it is applied row by row.
    exact_because: Option<String>,
    /// As [`SeenTable::last_number`], for descriptions from now on.
    last_number: i16,
}

impl Recorded {
    fn of(table: &PreparedTable) -> Self {
        let described = match (&table.published, table.row.state) {
            // It has just been recorded as it is published.
            (Some(published), TableState::Pending | TableState::Copying | TableState::CatchingUp) => {
                Some(published.seen())
            }
            _ => table.row.described.clone(),
        };
        let last_number = table.published.as_ref().map(|published| published.last_number);
        Self {
            exact_because: table.row.exact_because.clone(),
            last_number: last_number.or(described.as_ref().map(|seen| seen.last_number)).unwrap_or_default(),
            columns: described.map(|described| described.columns),
        }
    }
}

impl Announced {
    pub(super) fn new(tables: &[PreparedTable]) -> Self {
        let recorded = tables.iter().map(|table| (table.row.source.clone(), Recorded::of(table))).collect();
        Self { recorded, ..Self::default() }
    }

    /// Tells what follows from a table's description, which [`Announced::record`] writes.
    pub(super) async fn planned(
        &mut self,
        context: &Context,
        source: &QualifiedName,
        columns: Vec<SeenColumn>,
        exact_because: Option<ExactBecause>,
        warnings: &[Warning],
        received: Lsn,
    ) -> Result<(), Failure> {
        let exact_because = exact_because.map(ExactBecause::as_str);
        let before = self.recorded.entry(source.clone()).or_default();
        let last_number = before.last_number;
        let changed = before.columns.as_ref().map(|before| redefined(before, &columns)).unwrap_or_default();
        let is_recorded =
            before.columns.as_ref() == Some(&columns) && before.exact_because.as_deref() == exact_because;
        if !changed.is_empty() {
            self.older_rows_may_differ(context, source, &changed, received).await?;
        }
        self.tell(context, source, warnings.iter().map(Warning::diagnosis).collect()).await?;
        if !is_recorded {
            let now = SeenTable { columns, last_number };
            let columns = Some(now.columns.clone());
            let because = exact_because.map(str::to_owned);
            self.recorded.insert(source.clone(), Recorded { columns, exact_because: because, last_number });
            let planned = PlannedTable { source: source.clone(), described: now, exact_because };
            self.unwritten.insert(source.clone(), planned);
        }
        Ok(())
    }

    /// Writes how tables were described and are applied, with one statement for all that have changed.
    pub(super) async fn record(&mut self, context: &Context) -> Result<(), Failure> {
        if self.unwritten.is_empty() {
            return Ok(());
        }
        let planned: Vec<PlannedTable> = std::mem::take(&mut self.unwritten).into_values().collect();
        Ok(context.store.set_planned(&context.owner, &planned).await?)
    }

    async fn tell(
        &mut self,
        context: &Context,
        source: &QualifiedName,
        mut news: Vec<Diagnosis>,
    ) -> Result<(), Failure> {
        news.retain(|news| {
            let text = news.to_string();
            !context.warned.borrow().contains(&text) && !self.texts.contains(&text)
        });
        for diagnosis in &news {
            context.attention(Some(source), diagnosis);
        }
        self.show(context, &news).await
    }

    /// Adds to the warnings that `status` shows.
    async fn show(&mut self, context: &Context, news: &[Diagnosis]) -> Result<(), Failure> {
        if news.is_empty() {
            return Ok(());
        }
        let room = SHOWN_MAX.saturating_sub(self.texts.len());
        self.texts.extend(news.iter().take(room).map(ToString::to_string));
        let reported = context.warned.borrow().clone();
        let all: Vec<String> = reported.into_iter().chain(self.texts.iter().cloned()).collect();
        Ok(context.store.set_warnings(&context.owner, &all).await?)
    }

    /// Records that rows which were written before may differ in columns that have changed. Changes that arrive
    /// apply, and the stream goes on.
    async fn older_rows_may_differ(
        &mut self,
        context: &Context,
        source: &QualifiedName,
        changed: &[RedefinedColumn],
        received: Lsn,
    ) -> Result<(), Failure> {
        let gap = NewGap {
            table: Some(source.clone()),
            kind: GapKind::Redefined,
            from: None,
            to: Some(received),
            since: None,
            detail: Some(facts(changed)),
        };
        match gaps::open(context, &gap).await? {
            Some(gap) => self.show(context, &[gap.diagnosis()]).await,
            None => Ok(()),
        }
    }
}
