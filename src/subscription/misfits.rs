//! Reads the facts with which the DDL of misfits leaves equal rows.

use std::collections::HashMap;

use tracing::debug;

use crate::pg::QualifiedName;
use crate::schema::{Standing, catalog};
use crate::store::{TableRow, TableState};
use crate::target::TargetSession;

use super::context::Context;
use super::failure::{About, Failure};
use super::publisher::Publisher;

/// Adds to a failure about the schema what its DDL needs. If the facts cannot be read, it stays as it is, as any
/// other failure does.
pub(super) async fn with_facts(
    context: &Context,
    session: &TargetSession,
    publisher: &Publisher,
    failure: Failure,
) -> Failure {
    let Some(About::Misfits(misfits)) = failure.about.as_deref() else { return failure };
    let facts = async {
        // A failed transaction would refuse queries.
        session.reset().await?;
        let row = context.store.subscription(context.name()).await?;
        let tables = row.map(|row| row.tables).unwrap_or_default();
        let source = (&*publisher.client, publisher.client.server_version_num());
        let target = &***session.client();
        let mut facts = catalog::misfit_facts(source, target, misfits).await?;
        context.name().clone_into(&mut facts.subscription);
        facts.standings = standings(&tables);
        Ok::<_, Failure>(facts)
    };
    match facts.await {
        Ok(facts) => failure.with_facts(&facts),
        Err(error) => {
            debug!(subscription = context.name(), error = error.diagnosis.primary, "no facts about misfits");
            failure
        }
    }
}

/// Returns what the record says of the tables' rows.
pub(crate) fn standings(recorded: &[TableRow]) -> HashMap<QualifiedName, Standing> {
    recorded.iter().map(|row| (row.source.clone(), standing(row))).collect()
}

fn standing(row: &TableRow) -> Standing {
    match row.state {
        TableState::Ready | TableState::Left => Standing::streamed(row.described.as_ref()),
        TableState::Pending | TableState::Copying | TableState::CatchingUp => Standing::ToBeCopied,
        TableState::Paused => Standing::Unknown,
    }
}
