//! Runs planned row statements in order, many unanswered at a time, and names the first one that failed.
//!
//! The server answers in the order of sending, and answers are read in that order. So the first error is that
//! of the first failed statement; later statements fail because the transaction is aborted. Statements are
//! prepared once for each table and shape. Nothing here opens or ends a transaction.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio_postgres::Statement;

use crate::apply::change::{Param, RowChange};
use crate::apply::dispatch::Dispatched;
use crate::apply::recent::Recent;
use crate::apply::rows::plan::{self, RowStatement};
use crate::apply::statement::{self, Shape, run_as_sql};
use crate::apply::{ApplyError, FailedChange, TableContext};
use crate::net::PgClient;

/// Maximum number of unanswered statements.
const IN_FLIGHT_STATEMENTS_MAX: usize = 256;
/// Maximum bytes of the values in unanswered statements. A larger row is sent when no other is unanswered.
const IN_FLIGHT_BYTES_MAX: usize = 4 << 20;
/// Maximum number of prepared statements on the server; those that were used last stay.
const PREPARED_STATEMENTS_MAX: usize = 4096;

type Answer = Dispatched<Result<u64, tokio_postgres::Error>>;

pub(crate) struct Executor {
    client: Arc<PgClient>,
    statements: Recent<(u64, Shape), Statement>,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    /// The role that the open transaction has taken; none for the session's own.
    role: Option<String>,
}

struct InFlight {
    answer: Answer,
    subject: FailedChange,
    bytes: usize,
    expects: Rows,
}

/// How many rows a statement must report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rows {
    One,
    /// A row trigger that fires may suppress the change.
    Any,
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("in_flight", &self.in_flight.len()).finish_non_exhaustive()
    }
}

impl Executor {
    pub(crate) fn new(client: Arc<PgClient>) -> Self {
        Self {
            client,
            statements: Recent::new(PREPARED_STATEMENTS_MAX),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            role: None,
        }
    }

    /// Sends the statement for one change, and waits only while too many are unanswered. An error may be that
    /// of an earlier change; it names the change that it belongs to.
    pub(crate) async fn submit(
        &mut self,
        table: &Arc<TableContext>,
        change: RowChange,
        index: u64,
    ) -> Result<(), ApplyError> {
        self.start(table, change, index).await?;
        while self.in_flight.len() > IN_FLIGHT_STATEMENTS_MAX
            || (self.in_flight_bytes > IN_FLIGHT_BYTES_MAX && self.in_flight.len() > 1)
        {
            self.settle_oldest().await?;
        }
        Ok(())
    }

    /// Sends the statement for one change without waiting for room. If row triggers fire on the table, all
    /// unanswered statements are awaited first.
    pub(crate) async fn start(
        &mut self,
        table: &Arc<TableContext>,
        change: RowChange,
        index: u64,
    ) -> Result<(), ApplyError> {
        let subject = FailedChange { table: Arc::clone(table), change, index };
        let planned = plan::plan_row(&table.plan, &subject.change)?;
        if let Some(error) = subject.change.new_row().and_then(|new| table.refusal(new)) {
            // The error of an earlier statement comes first.
            self.drain().await?;
            return Err(ApplyError::Refused { error: Box::new(error), change: Box::new(subject) });
        }
        if table.plan.fires.before_row && !matches!(subject.change, RowChange::Insert { .. }) {
            // A row trigger may make the count 0 although the row exists. So a query checks for the row first,
            // while no other statement is unanswered that could change the result.
            self.drain().await?;
            let exists = plan::plan_suits(&table.plan, &subject.change)?;
            self.send(exists, subject.clone(), Rows::One).await?;
            self.drain().await?;
        }
        let expects = if table.plan.fires.before_row { Rows::Any } else { Rows::One };
        self.send(planned, subject, expects).await
    }

    /// Takes `role` for what is not written here.
    pub(crate) async fn run_as(&mut self, role: Option<&str>) -> Result<(), tokio_postgres::Error> {
        if self.role.as_deref() == role {
            return Ok(());
        }
        self.role = role.map(str::to_owned);
        self.client.batch_execute(&run_as_sql(role)).await
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Waits for every answer.
    pub(crate) async fn drain(&mut self) -> Result<(), ApplyError> {
        while !self.in_flight.is_empty() {
            self.settle_oldest().await?;
        }
        Ok(())
    }

    /// Drops unanswered statements, because the transaction is being rolled back, and its role with it.
    pub(crate) fn abandon(&mut self) {
        self.role = None;
        self.in_flight.clear();
        self.in_flight_bytes = 0;
    }

    /// Drops a table's prepared statements: its definition has changed.
    pub(crate) fn forget(&mut self, table: u64) {
        self.statements.retain(|(id, _)| *id != table);
    }

    async fn send(
        &mut self,
        planned: RowStatement,
        subject: FailedChange,
        expects: Rows,
    ) -> Result<(), ApplyError> {
        let statement = match self.prepared(&subject.table, planned.shape).await {
            Ok(statement) => statement,
            // A statement that cannot be prepared, for example because the table is missing, is this change's
            // failure.
            Err(error) => return Err(error.of_change(subject)),
        };
        let bytes = planned.params.iter().map(Param::size_bytes).sum();
        let client = Arc::clone(&self.client);
        let params = planned.params;
        let role = self.role_statement(&subject);
        let answer = Dispatched::new(async move {
            let row = client.execute_raw(&statement, params);
            match role {
                None => row.await,
                // Both are sent at once, this one first.
                Some(role) => tokio::try_join!(client.batch_execute(&role), row).map(|((), rows)| rows),
            }
        });
        self.in_flight_bytes += bytes;
        self.in_flight.push_back(InFlight { answer, subject, bytes, expects });
        Ok(())
    }

    /// Returns the statement that takes the role to write to the change's table; none if the transaction has it.
    fn role_statement(&mut self, subject: &FailedChange) -> Option<String> {
        let wanted = &subject.table.plan.run_as;
        if *wanted == self.role {
            return None;
        }
        self.role.clone_from(wanted);
        Some(run_as_sql(wanted.as_deref()))
    }

    /// Waits for the oldest answer, and checks its row count. Cancel-safe.
    pub(crate) async fn settle_oldest(&mut self) -> Result<(), ApplyError> {
        let Some(oldest) = self.in_flight.front_mut() else { return Ok(()) };
        let result = oldest.answer.answer().await;
        let Some(oldest) = self.in_flight.pop_front() else { return Ok(()) };
        self.in_flight_bytes -= oldest.bytes;
        match result {
            Ok(1) => Ok(()),
            Ok(_) if oldest.expects == Rows::Any => Ok(()),
            Ok(found) => Err(ApplyError::RowCount { found, change: Box::new(oldest.subject) }),
            Err(error) => Err(ApplyError::from(error).of_change(oldest.subject)),
        }
    }

    async fn prepared(&mut self, table: &TableContext, shape: Shape) -> Result<Statement, ApplyError> {
        let key = (table.id, shape);
        if let Some(statement) = self.statements.get(&key) {
            return Ok(statement);
        }
        let sql = statement::row_sql(&table.plan, &key.1);
        let prepared = match self.client.prepare(&sql).await {
            Ok(prepared) => prepared,
            Err(error) => {
                // An earlier statement may have aborted the transaction: then its error is returned.
                self.drain().await?;
                return Err(error.into());
            }
        };
        self.statements.insert(key, prepared.clone());
        Ok(prepared)
    }
}
