//! A small transaction that is one set, as one statement: with its guards and its progress, and without
//! BEGIN and COMMIT.
//!
//! # How it knows that its table is what it was planned for
//! Asking the catalog ([`crate::apply::stamp`]) would cost as much as the row. But the server watches the table
//! anyway: it plans a prepared statement anew once anything about it has changed, and looks for that after
//! it has locked it (`RevalidateCachedQuery` in `plancache.c`). So each plan carries a number of its own
//! (`pgsluice.plan_id()`), which the statement tells. The first time, the catalog is asked behind it, in the same
//! transaction, and the number is noted; from then on, the statement fails by itself (a division by zero) if
//! its plan has another. Then rows go one by one, which asks the catalog, and the next number is noted.

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

/// No plan has this number.
const NONE: i64 = 0;

/// One table's statement for one kind of change.
#[derive(Debug, Clone)]
pub(crate) struct SingleStatement {
    pub(crate) statement: Statement,
    /// The number of the plan that was made for the table as we know it.
    fitting: Arc<AtomicI64>,
}

/// Its text. Parameters: the set's, the progress's, and the number of the plan that it must have, which is
/// NULL if any will do. It returns the number that it has, as `plan`.
pub(crate) fn single_statement_sql(table: &TablePlan, kind: &SetKind, format: Format) -> String {
    sql::with_progress_sql(table, kind, format, |first| {
        let (moved, counted, next) = advance_counted(first);
        (moved, format!("{counted}, {} AS plan FROM moved", plan_guard(next)))
    })
}

/// Its plan's number, which must be `$wanted`. The function is called once a plan, and so named once; and
/// OFFSET keeps its subquery one.
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

    /// The number of the plan that fits, if one is known to.
    pub(crate) fn fitting(&self) -> Option<i64> {
        Some(self.fitting.load(Ordering::Relaxed)).filter(|&plan| plan != NONE)
    }

    /// Runs it, and fails unless its plan is the one of this number.
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

    /// Runs it with whatever plan it has, and notes the plan if the table turns out to be what it is taken for:
    /// `asked`, within the same transaction.
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
        // Both are sent by the first poll.
        let (plan, ()) = futures_util::future::try_join(told, asked).await?;
        self.fitting.store(plan, Ordering::Relaxed);
        Ok(())
    }
}
