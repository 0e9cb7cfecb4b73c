//! Applies one table's changes within the transaction of its copy, from the snapshot's position to that of the
//! main stream.
//!
//! Copy and catch-up are one target transaction, so a crash leaves nothing behind and the table is never seen
//! partly synchronised. No progress row moves: the table's `ready` mark holds the position and commits with the
//! rows.

use std::sync::Arc;
use std::time::Duration;

use crate::apply::change::RowChange;
use crate::apply::end::{End, Unfit};
use crate::apply::incoming::tables::{Announced, Finish, Fit, Lookup, Tables, Verdict};
use crate::apply::rows::evidence::changed_identity;
use crate::apply::rows::executor::Executor;
use crate::apply::statement::{Sequences, truncate_sql};
use crate::apply::{ApplyError, Member, Membership, TableContext};
use crate::pg::{Lsn, QualifiedName};
use crate::pgoutput::{Begin, LargeMessage, Message};
use crate::schema::{Operations, catalog};
use crate::target::TargetSession;

/// Applies the changes of one table within the session's open transaction.
#[derive(Debug)]
pub struct CatchUp<'a> {
    session: &'a TargetSession,
    executor: Executor,
    tables: Tables,
    /// The publisher's transaction that is being received.
    open: Option<Begin>,
    changes: u64,
}

impl<'a> CatchUp<'a> {
    /// `member.applies` begins at the position of the snapshot that the table was copied under.
    pub fn new(session: &'a TargetSession, table: QualifiedName, member: Member) -> Self {
        let members = Membership::from([(table, member)]);
        Self {
            session,
            executor: Executor::new(Arc::clone(session.client())),
            tables: Tables::new(members, session.surroundings()),
            open: None,
            changes: 0,
        }
    }

    /// Takes the stream's next message. Returns the position reached if it ended a transaction, whose rows have
    /// been written once [`Self::settle`] returns.
    pub async fn handle(&mut self, message: Message) -> Result<Option<Lsn>, ApplyError> {
        match self.apply(message).await {
            Err(error) => Err(explained(self.session, error).await),
            taken => taken,
        }
    }

    /// Waits until every row taken so far has been written. This is not done at each commit of the publisher,
    /// because a round trip for each would take most of the time.
    pub async fn settle(&mut self) -> Result<(), ApplyError> {
        match self.executor.drain().await {
            Err(error) => Err(explained(self.session, error).await),
            Ok(()) => Ok(self.executor.run_as(None).await?),
        }
    }

    /// Whether the stream is between two transactions.
    pub fn is_between_transactions(&self) -> bool {
        self.open.is_none()
    }

    /// The end of the stream at a row that is too large.
    pub fn refuse(&self, message: LargeMessage) -> ApplyError {
        End::TooLarge(self.tables.large_row(message)).into()
    }

    async fn apply(&mut self, message: Message) -> Result<Option<Lsn>, ApplyError> {
        match message {
            Message::Begin(begin) => self.open = Some(begin),
            Message::Commit(commit) => {
                self.open = None;
                return Ok(Some(commit.end_lsn));
            }
            Message::Relation(relation) => {
                let announced = self.tables.announce(relation, Duration::ZERO).map_err(End::from)?;
                self.prepare(announced).await?;
            }
            Message::Type(message) => self.tables.announce_type(message).map_err(End::from)?,
            Message::Insert(m) => self.change(m.relation_oid, RowChange::Insert { new: m.new }).await?,
            Message::Update(m) => {
                self.change(m.relation_oid, RowChange::Update { old: m.old, new: m.new }).await?;
            }
            Message::Delete(m) => {
                self.change(m.relation_oid, RowChange::Delete { old: m.old.into() }).await?;
            }
            Message::Truncate(m) => {
                let identity = if m.restart_seqs { Sequences::Restart } else { Sequences::Continue };
                for relation in m.relation_oids {
                    if let Some(table) = self.table_for(relation, Operations::TRUNCATE, "TRUNCATE").await? {
                        self.executor.drain().await?;
                        self.executor.run_as(table.plan.run_as.as_deref()).await?;
                        let sql = truncate_sql([&table.plan], identity);
                        self.session.client().batch_execute(&sql).await?;
                    }
                }
            }
            Message::Origin(_) | Message::Logical(_) => {}
            Message::StreamStart(_)
            | Message::StreamStop
            | Message::StreamCommit(_)
            | Message::StreamAbort(_) => {
                return Err(End::OutOfOrder("a transaction in progress".to_owned()).into());
            }
        }
        Ok(None)
    }

    async fn prepare(&mut self, announced: Announced) -> Result<(), ApplyError> {
        let described = match announced {
            Announced::Nothing | Announced::Again(_) | Announced::Stranger(_) => None,
            Announced::Planned(described) => Some(described),
            Announced::Describe { tables, reading: _ } => {
                let described = catalog::target_tables(&***self.session.client(), &tables).await?;
                let described = described.into_iter().map(|table| table.map(Arc::new));
                self.tables.describe(tables.into_iter().zip(described).collect(), Duration::ZERO)
            }
        };
        if let Some(replaced) = described.and_then(|described| described.replaced) {
            self.executor.forget(replaced);
        }
        Ok(())
    }

    async fn change(&mut self, relation: u32, mut change: RowChange) -> Result<(), ApplyError> {
        self.changes += 1;
        let command = change.operation();
        match self.table_for(relation, change.as_set(), command).await? {
            Some(table) => {
                if let Err(misfit) = table.project(&mut change) {
                    let finish = self.open.map(|begin| begin.final_lsn);
                    return Err(End::Unfit(Unfit { misfits: vec![*misfit], command, finish }).into());
                }
                self.executor.submit(&table, change, self.changes).await
            }
            None => Ok(()),
        }
    }

    /// Finds the table of a change; none if the change does not apply. If the target's table lacks what the operation
    /// needs, it is described once more: a GRANT is no change of the table.
    async fn table_for(
        &mut self,
        relation: u32,
        operation: Operations,
        command: &'static str,
    ) -> Result<Option<Arc<TableContext>>, ApplyError> {
        match self.find(relation, operation)?.map(|fit| fit.plan_for(operation)) {
            None => return Ok(None),
            Some(Some(table)) => return Ok(Some(Arc::clone(table))),
            Some(None) => {}
        }
        self.executor.drain().await?;
        if let Some(announced) = self.tables.look_again(relation) {
            self.prepare(announced).await?;
        }
        let finish = self.open.map(|begin| begin.final_lsn);
        let Some(fit) = self.find(relation, operation)? else { return Ok(None) };
        match fit.plan_for(operation) {
            Some(table) => Ok(Some(Arc::clone(table))),
            None => Err(End::Unfit(Unfit { misfits: fit.misfits_of(operation), command, finish }).into()),
        }
    }

    fn find(&self, relation: u32, operation: Operations) -> Result<Option<&Fit>, ApplyError> {
        let begin = self.open.ok_or_else(|| End::OutOfOrder("a change outside a transaction".to_owned()))?;
        match self.tables.lookup(relation) {
            Lookup::Member { applies, left_out, fit }
                if !left_out.meet(operation)
                    && applies.judge(begin.xid, Finish::At(begin.final_lsn)) == Verdict::Applies =>
            {
                Ok(Some(fit))
            }
            Lookup::Member { .. } | Lookup::Foreign => Ok(None),
            Lookup::Unannounced => Err(End::OutOfOrder(format!(
                "a change of relation {relation}, which no Relation message announced"
            ))
            .into()),
        }
    }
}

/// Turns the failure of a change that the target cannot take into the reason.
async fn explained(session: &TargetSession, error: ApplyError) -> ApplyError {
    match changed_identity(&error, session).await {
        Ok(Some(unfit)) => End::Unfit(unfit).into(),
        Ok(None) | Err(_) => error,
    }
}
