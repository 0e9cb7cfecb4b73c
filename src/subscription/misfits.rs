//! Reads the facts with which the DDL of misfits leaves equal rows.

use tokio_postgres::GenericClient;
use tracing::debug;

use crate::pg::QualifiedName;
use crate::schema::catalog::{self, CatalogError};
use crate::schema::definition::collations;
use crate::schema::{Misfit, MisfitFacts, Standing};
use crate::store::{TableRow, TableState};
use crate::target::TargetSession;

use super::attempt::Context;
use super::failure::{Failure, Misfits};
use super::publisher::Publisher;

/// Adds to a failure about the schema what its DDL needs. If the facts cannot be read, it stays as it is, as any
/// other failure does.
pub(super) async fn with_facts(
    context: &Context,
    session: &TargetSession,
    publisher: &Publisher,
    failure: Failure,
) -> Failure {
    let Some(Misfits(misfits)) = failure.misfits.as_deref() else { return failure };
    let facts = async {
        // A failed transaction would refuse queries.
        session.reset().await?;
        let row = context.store.subscription(context.name()).await?;
        let tables = row.map(|row| row.tables).unwrap_or_default();
        let source = (&*publisher.client, publisher.client.server_version_num());
        let target = &***session.client();
        Ok::<_, Failure>(misfit_facts(source, target, context.name(), &tables, misfits).await?)
    };
    match facts.await {
        Ok(facts) => failure.with_facts(&facts),
        Err(error) => {
            debug!(subscription = context.name(), error = error.diagnosis.primary, "no facts about misfits");
            failure
        }
    }
}

/// Returns what the catalogs and the record say about the tables of `misfits`. `publisher` is a session with
/// its `server_version_num`.
///
/// # Errors
///
/// A query failed.
pub(crate) async fn misfit_facts<P: GenericClient + Sync, T: GenericClient + Sync>(
    publisher: (&P, u32),
    target: &T,
    subscription: &str,
    recorded: &[TableRow],
    misfits: &[Misfit],
) -> Result<MisfitFacts, CatalogError> {
    let mut sources: Vec<QualifiedName> = misfits.iter().map(|misfit| misfit.source.clone()).collect();
    sources.sort();
    sources.dedup();
    let schemas: Vec<&str> = misfits.iter().map(|misfit| misfit.target.schema.as_str()).collect();
    let (client, version) = publisher;
    let (definitions, schemas) = tokio::try_join!(
        catalog::column_definitions(client, version, &sources),
        catalog::schema_states(target, &schemas)
    )?;
    let collations = catalog::known_collations(target, &collations(&definitions)).await?;
    let standings = recorded.iter().map(|row| (row.source.clone(), standing(row))).collect();
    Ok(MisfitFacts { subscription: subscription.to_owned(), definitions, standings, schemas, collations })
}

fn standing(row: &TableRow) -> Standing {
    match row.state {
        TableState::Ready => Standing::streamed(row.described.as_ref()),
        TableState::Pending | TableState::Copying | TableState::CatchingUp => Standing::ToBeCopied,
        TableState::Paused => Standing::Unknown,
    }
}
