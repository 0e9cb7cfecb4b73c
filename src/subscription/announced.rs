//! What follows from the stream's description of a table: a gap, if older rows may differ in columns that have
//! changed, and warnings of what may go wrong with their values.
//!
//! The record has each table's columns as they were described last, so that a change that was made while nothing ran
//! is noticed, too. It is written after the gap: after a crash in between, the same gap is found again.
//! Warnings that the attempt's start has reported are not repeated.
//!
//! # When the publisher's catalog is read
//! A description that differs from the record is judged at once. One that does not is judged a second later, together
//! with others: the numbers of its columns may differ nevertheless. While another session may be changing a table's
//! columns, the table waits: the publisher sends a commit before its own catalog shows it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::apply::ExactBecause;
use crate::error::Diagnosis;
use crate::gap::{GapKind, NewGap};
use crate::pg::{Lsn, QualifiedName};
use crate::schema::catalog::{self, ColumnsLook};
use crate::schema::redefined::{RedefinedColumn, facts};
use crate::schema::{Description, SeenTable, Warning};
use crate::store::PlannedTable;

use super::context::Context;
use super::failure::{Cause, Failure};
use super::findings;
use super::gaps;
use super::publisher::Publisher;
use super::take_up::PreparedTable;

/// Maximum number of warnings of an attempt's stream that `status` shows. All are logged.
const SHOWN_MAX: usize = 100;

/// How long tables wait for a look at the publisher's columns that is not urgent, or that was in vain.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A look that is not urgent waits so many times as long as the last one took: the stream waits for it.
const LOOK_REST: u32 = 10;

/// Maximum time of a look at the publisher's columns.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// The record of the tables, and what has been told since the attempt began.
pub(super) struct Announced<'a> {
    publisher: &'a Publisher,
    tables: HashMap<QualifiedName, Table>,
    /// Descriptions to be judged by the publisher's columns, in the order in which they came.
    unjudged: BTreeMap<QualifiedName, Vec<Unjudged>>,
    /// When the publisher's columns are to be read.
    due: Option<Instant>,
    /// How long a look that is not urgent waits.
    interval: Duration,
    /// What is still to be written to the record.
    unwritten: HashMap<QualifiedName, PlannedTable>,
    texts: Vec<String>,
}

/// A table of the subscription.
struct Table {
    /// Its OID on the publisher.
    oid: Option<u32>,
    /// The OID of the target that has its rows, as recorded.
    target_oid: Option<u32>,
    /// What the record has of it; none before the first description.
    recorded: Option<SeenTable>,
    /// Why it is applied row by row, as recorded.
    exact_because: Option<String>,
    /// The last description of this attempt, and why the table is applied row by row.
    last: Option<(Description, Option<ExactBecause>)>,
}

#[derive(Debug)]
struct Unjudged {
    description: Description,
    exact_because: Option<ExactBecause>,
    received: Lsn,
}

impl<'a> Announced<'a> {
    /// `copied` are the tables that have just been recorded as they are published.
    pub(super) fn new(
        publisher: &'a Publisher,
        tables: &[PreparedTable],
        copied: &HashMap<QualifiedName, SeenTable>,
    ) -> Self {
        let table = |table: &PreparedTable| Table {
            oid: table.row.source_oid.or_else(|| table.published.as_ref().map(|published| published.oid)),
            target_oid: table.row.target_oid,
            recorded: copied.get(&table.row.source).cloned().or_else(|| table.row.described.clone()),
            exact_because: table.row.exact_because.clone(),
            last: None,
        };
        Self {
            publisher,
            tables: tables.iter().map(|one| (one.row.source.clone(), table(one))).collect(),
            unjudged: BTreeMap::new(),
            due: None,
            interval: LOOK_INTERVAL,
            unwritten: HashMap::new(),
            texts: Vec::new(),
        }
    }

    /// Notes a table's description, which [`Announced::settle`] judges, and tells its warnings.
    pub(super) async fn planned(
        &mut self,
        context: &Context,
        source: &QualifiedName,
        (description, exact_because): (Description, Option<ExactBecause>),
        warnings: &[Warning],
        received: Lsn,
    ) -> Result<(), Failure> {
        let target_oid = self.tables.get(source).and_then(|table| table.target_oid);
        if target_oid.is_some_and(|oid| oid != description.target_oid) {
            // The attempt's start finds out what that means.
            return Err(Failure::target_changed(source.clone()));
        }
        self.tell(context, source, warnings.iter().map(Warning::diagnosis).collect()).await?;
        if let Some(table) = self.tables.get_mut(source) {
            table.last = Some((description.clone(), exact_because));
            self.wait_for_look(source, Unjudged { description, exact_because, received });
        }
        Ok(())
    }

    /// Notes that the publisher has described a table as before.
    pub(super) fn again(&mut self, source: &QualifiedName, received: Lsn) {
        if let Some((description, exact_because)) =
            self.tables.get(source).and_then(|table| table.last.clone())
        {
            self.wait_for_look(source, Unjudged { description, exact_because, received });
        }
    }

    fn wait_for_look(&mut self, source: &QualifiedName, unjudged: Unjudged) {
        let recorded = self.tables.get(source).and_then(|table| table.recorded.as_ref());
        let is_as_recorded = recorded.is_none_or(|recorded| unjudged.description.is_as_recorded(recorded));
        let delay = if is_as_recorded { self.interval } else { Duration::ZERO };
        let due = Instant::now() + delay;
        self.due = Some(self.due.map_or(due, |former| former.min(due)));
        let waiting = self.unjudged.entry(source.clone()).or_default();
        match waiting.last_mut() {
            Some(last) if last.description == unjudged.description => *last = unjudged,
            _ => waiting.push(unjudged),
        }
    }

    /// When [`Announced::settle`] has something to do; none while no table waits.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Judges the descriptions that wait, if that is due, and writes the record.
    pub(super) async fn settle(&mut self, context: &Context) -> Result<(), Failure> {
        if self.due.is_some_and(|due| due <= Instant::now()) {
            self.due = None;
            let began = Instant::now();
            let look = self.look(LOOK_TIMEOUT.min(context.subscription.peer_timeout)).await?;
            self.interval = LOOK_INTERVAL.max(began.elapsed() * LOOK_REST);
            let waiting = std::mem::take(&mut self.unjudged);
            for (source, descriptions) in waiting {
                let oid = self.tables.get(&source).and_then(|table| table.oid);
                if oid.is_some_and(|oid| look.locked.contains(&oid)) {
                    self.unjudged.insert(source, descriptions);
                    self.due = Some(Instant::now() + LOOK_INTERVAL);
                    continue;
                }
                for unjudged in descriptions {
                    self.judge(context, &source, unjudged, &look).await?;
                }
            }
        }
        self.record(context).await
    }

    /// Reads the publisher's columns of the tables that wait.
    async fn look(&self, within: Duration) -> Result<ColumnsLook, Failure> {
        let client = &self.publisher.client;
        let oids: Vec<u32> = self.unjudged.keys().filter_map(|source| self.tables.get(source)?.oid).collect();
        let look = catalog::look_at_columns(&**client, client.server_version_num(), &oids);
        match timeout(within, look).await {
            Ok(look) => Ok(look?),
            Err(_) => Err(Failure::retry(findings::no_look(within)).because_of(Cause::Connection)),
        }
    }

    /// Judges a description, and opens a gap if older rows may differ.
    async fn judge(
        &mut self,
        context: &Context,
        source: &QualifiedName,
        unjudged: Unjudged,
        look: &ColumnsLook,
    ) -> Result<(), Failure> {
        let Unjudged { description, exact_because, received } = unjudged;
        let Some(table) = self.tables.get_mut(source) else { return Ok(()) };
        let look = table.oid.and_then(|oid| look.tables.get(&oid));
        let (changed, described) = description.judge(table.recorded.as_ref(), look);
        let because = exact_because.map(ExactBecause::as_str);
        let is_recorded =
            table.recorded.as_ref() == Some(&described) && table.exact_because.as_deref() == because;
        if !changed.is_empty() {
            self.older_rows_may_differ(context, source, &changed, received).await?;
        }
        if !is_recorded && let Some(table) = self.tables.get_mut(source) {
            table.recorded = Some(described.clone());
            table.exact_because = because.map(str::to_owned);
            let planned = PlannedTable { source: source.clone(), described, exact_because: because };
            self.unwritten.insert(source.clone(), planned);
        }
        Ok(())
    }

    /// Writes how tables were described and are applied, with one statement for all that have changed.
    async fn record(&mut self, context: &Context) -> Result<(), Failure> {
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
