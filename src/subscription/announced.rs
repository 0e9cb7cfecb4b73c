//! What follows from the stream's description of a table: a gap, if columns have changed on the publisher, and
//! warnings of what may go wrong with their values.
//!
//! The record has each table's columns as they were described last, so that a change that was made while nothing ran
//! is noticed, too. It is written after the gap: after a crash in between, the same gap is found again.
//! Warnings that the attempt's start has reported are not repeated.

use std::collections::HashMap;

use crate::apply::{ExactBecause, Planned};
use crate::error::Diagnosis;
use crate::gap::{GapKind, NewGap};
use crate::pg::{Lsn, QualifiedName};
use crate::schema::redefined::{RedefinedColumn, facts, redefined};
use crate::schema::{SeenColumn, SeenTable, Warning};
use crate::store::{DescribedTable, TableState};

use super::attempt::Context;
use super::failure::Failure;
use super::gaps;
use super::take_up::PreparedTable;

/// Maximum number of warnings of an attempt's stream that `status` shows. All are logged.
const SHOWN_MAX: usize = 100;

/// The record of the tables, and what has been told since the attempt began.
#[derive(Debug, Default)]
pub(super) struct Announced {
    recorded: HashMap<QualifiedName, Recorded>,
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
        Self { recorded, texts: Vec::new() }
    }

    /// Tells what follows from the descriptions of tables, and records them.
    pub(super) async fn planned(
        &mut self,
        context: &Context,
        tables: Vec<Planned>,
        received: Lsn,
    ) -> Result<(), Failure> {
        // A table may be described several times. Its last description is recorded.
        let mut written = HashMap::new();
        for Planned { source, exact_because, columns, warnings } in tables {
            let exact_because = exact_because.map(ExactBecause::as_str);
            let recorded = self.recorded.entry(source.clone()).or_default();
            let changed =
                recorded.columns.as_ref().map(|before| redefined(before, &columns)).unwrap_or_default();
            if recorded.columns.as_ref() != Some(&columns)
                || recorded.exact_because.as_deref() != exact_because
            {
                recorded.columns = Some(columns.clone());
                recorded.exact_because = exact_because.map(str::to_owned);
                let described = SeenTable { columns, last_number: recorded.last_number };
                written.insert(source.clone(), (described, exact_because));
            }
            if !changed.is_empty() {
                self.older_rows_may_differ(context, &source, &changed, received).await?;
            }
            self.tell(context, &source, &warnings).await?;
        }
        if written.is_empty() {
            return Ok(());
        }
        let written: Vec<DescribedTable<'_>> = written
            .iter()
            .map(|(source, &(ref described, exact_because))| DescribedTable {
                source,
                described,
                exact_because,
            })
            .collect();
        Ok(context.store.set_described(&context.owner, &written).await?)
    }

    async fn tell(
        &mut self,
        context: &Context,
        source: &QualifiedName,
        warnings: &[Warning],
    ) -> Result<(), Failure> {
        let mut news: Vec<Diagnosis> = warnings.iter().map(Warning::diagnosis).collect();
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
