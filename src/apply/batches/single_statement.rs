//! A batch of one small set as a single statement, which also moves the progress row. It needs no BEGIN and
//! COMMIT.
//!
//! # How it notices that its table has changed
//! Comparing the table's stamp ([`crate::apply::stamp`]) would cost as much as the row. But the server makes
//! a new plan for a prepared statement once anything about the table has changed, and checks that after it
//! has locked the table (`RevalidateCachedQuery` in `plancache.c`). `pgsluice.plan_id()` is evaluated once
//! for each plan, so each plan has a number of its own, which the statement returns. The statement is first
//! run within a transaction that also compares the stamp, and the plan's number is kept. From then on, the
//! statement fails by itself (a division by zero) if its plan has another number. The batch is then applied
//! row by row, which compares the stamp, and the next plan's number is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use futures_util::TryStreamExt as _;
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use crate::apply::ApplyError;
use crate::apply::progress::advance_counted;
use crate::apply::sets::compact::SetKind;
use crate::apply::sets::sql;
use crate::net::PgClient;
use crate::pgoutput::Format;
use crate::schema::TablePlan;

pub(crate) type BoxedParam = Box<dyn ToSql + Sync + Send>;

/// A number that no plan has.
const NONE: i64 = 0;

/// One table's statement for one kind of change.
#[derive(Debug, Clone)]
pub(crate) struct SingleStatement {
    pub(crate) statement: Statement,
    /// The number of the plan that was made for the table's known definition.
    fitting: Arc<AtomicI64>,
}

/// Returns the statement's text. Parameters: the set's, those of the progress row, and the number of the plan
/// that it must have; NULL allows any plan. It returns the number of its plan as `plan`.
pub(crate) fn single_statement_sql(table: &TablePlan, kind: &SetKind, format: Format) -> String {
    sql::with_progress_sql(table, kind, format, |first| {
        let (moved, counted, next) = advance_counted(first);
        (moved, format!("{counted}, {} AS plan FROM moved", plan_guard(next)))
    })
}

/// Returns the plan's number, and fails if it is not `$wanted`. The function is named once, so that it is
/// evaluated once for each plan; OFFSET keeps the planner from inlining its subquery.
fn plan_guard(wanted: usize) -> String {
    format!(
        "(SELECT p.id / (CASE WHEN p.id OPERATOR(pg_catalog.<>) ${wanted}::pg_catalog.int8 THEN 0 ELSE 1 END) \
         FROM (SELECT pgsluice.plan_id() AS id OFFSET 0) AS p)"
    )
}

impl SingleStatement {
    pub(crate) fn new(statement: Statement) -> Self {
        Self { statement, fitting: Arc::new(AtomicI64::new(NONE)) }
    }

    /// The number of the plan for the table's known definition; none while it is unknown.
    pub(crate) fn fitting(&self) -> Option<i64> {
        Some(self.fitting.load(Ordering::Relaxed)).filter(|&plan| plan != NONE)
    }

    /// Runs the statement, and fails unless its plan has this number.
    pub(crate) async fn run(
        self,
        client: &PgClient,
        mut params: Vec<BoxedParam>,
        plan: i64,
    ) -> Result<(), ApplyError> {
        params.push(Box::new(plan));
        match client.execute_raw(&self.statement, params).await {
            Ok(_) => Ok(()),
            Err(error) => {
                self.fitting.store(NONE, Ordering::Relaxed);
                Err(error.into())
            }
        }
    }

    /// Runs the statement with any plan, and keeps the plan's number if `asked` succeeds, which compares the
    /// table's stamp within the same transaction.
    pub(crate) async fn run_first(
        self,
        client: &PgClient,
        mut params: Vec<BoxedParam>,
        asked: impl Future<Output = Result<(), ApplyError>>,
    ) -> Result<(), ApplyError> {
        params.push(Box::new(None::<i64>));
        let told = async {
            let rows: Vec<_> = client.query_raw(&self.statement, params).await?.try_collect().await?;
            let plan: Option<i64> = rows.first().map(|row| row.try_get("plan")).transpose()?;
            Ok(plan.unwrap_or(NONE))
        };
        // The first poll sends both requests.
        let (plan, ()) = futures_util::future::try_join(told, asked).await?;
        self.fitting.store(plan, Ordering::Relaxed);
        Ok(())
    }
}
