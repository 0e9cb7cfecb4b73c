//! A table that joins a running stream, as `subscription::table_sync` does it: copied under a snapshot, caught
//! up, handed over at a position that both streams have reached; all in one target transaction.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use pgsluice::apply::change::RowChange;
use pgsluice::pg::Lsn;
use pgsluice::pgoutput::Message;
use pgsluice::store::TableState;

use crate::catalog::Published;
use crate::link::{Connection, Link, PublisherOp, PublisherReply};
use crate::ops::{CopyStep, Op};
use crate::service::{Copied, Ended, Pending, begin_copy, done, mark_ready};
use crate::walsender::Sent;
use crate::world::Time;

/// What a sync and its stream tell each other.
#[derive(Debug, Default)]
pub(crate) struct Handed {
    pub(crate) reached: Option<Lsn>,
    pub(crate) progressed: Time,
    /// The sync is to end where it is.
    pub(crate) finish: bool,
    pub(crate) moved: bool,
}

pub(crate) struct Sync {
    pub(crate) link: Link,
    pub(crate) term: i64,
    pub(crate) pending: Pending,
    pub(crate) attempt: i32,
    pub(crate) publications: Vec<String>,
    /// The run of the publisher that the attempt has judged.
    pub(crate) started: u64,
}

/// The copy's number, and why it failed.
type Failed = (Pending, i32, Ended);

/// Returns the table, and the position from which on the stream applies its changes.
pub(crate) async fn run(sync: Sync, handed: Rc<RefCell<Handed>>) -> Result<(usize, Lsn), Failed> {
    let table = sync.pending.published.slot;
    let attempt = match begin_copy(&sync.link, sync.term, table, sync.attempt).await {
        Ok(CopyStep::Taken { attempt }) => attempt,
        Ok(CopyStep::Ready { synced }) => return Ok((table, synced)),
        Err(ended) => return Err((sync.pending, 0, ended)),
    };
    match synchronise(&sync, attempt, &handed).await {
        Ok(position) => Ok((table, position)),
        Err(Copied::Failed(why)) => Err((sync.pending, attempt, Ended::Retry(why))),
        Err(Copied::Unsettled) => Err((sync.pending, 0, Ended::Retry("unsettled"))),
    }
}

async fn synchronise(sync: &Sync, attempt: i32, handed: &Rc<RefCell<Handed>>) -> Result<Lsn, Copied> {
    let Sync { link, term, pending, started, .. } = sync;
    let (term, table) = (*term, pending.published.slot);
    let (target, publisher) = (link.dial(false), link.dial(false));
    let Ok(PublisherReply::Snapshot(snapshot)) = publisher.ask_publisher(PublisherOp::TemporarySlot).await
    else {
        return Err(Copied::Failed("no slot"));
    };
    let at = snapshot.at;
    // A publisher that was started again has not been judged.
    match publisher.ask_publisher(PublisherOp::Look).await {
        Ok(PublisherReply::Seen(seen)) if seen.started == *started => {}
        _ => return Err(Copied::Failed("the publisher was started again")),
    }
    let rows = pending.rows(&snapshot).ok_or(Copied::Failed("there is no such table"))?;
    done(&target.ask(pending.copy(rows)).await)?;
    link.note(Op::SetState { term, table, attempt, state: TableState::CatchingUp });
    let publications = sync.publications.clone();
    let ask = PublisherOp::Start { from: at, streaming: false, permanent: false, publications };
    let Ok(PublisherReply::Started) = publisher.ask_publisher(ask).await else {
        return Err(Copied::Failed("no stream"));
    };
    link.tell(|| format!("t{table} is copied at {at}, and catches up"));
    let position = catch_up(link, &target, &publisher, &pending.published, at, handed).await?;
    mark_ready(link, &target, (term, table, attempt), at, position).await?;
    Ok(position)
}

async fn catch_up(
    link: &Link,
    target: &Connection,
    publisher: &Connection,
    published: &Published,
    from: Lsn,
    handed: &Rc<RefCell<Handed>>,
) -> Result<Lsn, Copied> {
    let table = published.slot;
    let mut reached = from;
    let mut open = false;
    let mut changes = Vec::new();
    loop {
        {
            let mut handed = handed.borrow_mut();
            handed.moved |= handed.reached != Some(reached);
            handed.reached = Some(reached);
            handed.progressed = link.now();
        }
        let next = poll_fn(|_| {
            if handed.borrow().finish && !open {
                return Poll::Ready(Ok(None));
            }
            match publisher.next_sent() {
                Some(sent) => Poll::Ready(Ok(Some(sent))),
                None if publisher.is_lost() || target.is_lost() => {
                    Poll::Ready(Err(Copied::Failed("connection lost")))
                }
                None => Poll::Pending,
            }
        });
        let Some(sent) = next.await? else { return Ok(reached) };
        match sent {
            Sent::Keepalive { wal_end, .. } if !open => reached = reached.max(wal_end),
            Sent::Keepalive { .. } => {}
            Sent::Message(Message::Begin(_)) => open = true,
            Sent::Message(Message::Commit(commit)) => {
                open = false;
                let changes = std::mem::take(&mut changes);
                if !changes.is_empty() {
                    done(&target.ask(Op::CatchUp { table, changes, done: 0 }).await)?;
                }
                reached = reached.max(commit.end_lsn);
            }
            Sent::Message(message) => changes.extend(change_of(message, published.seen.oid)),
        }
    }
}

/// None for a TRUNCATE.
fn change_of(message: Message, oid: u32) -> Option<Option<RowChange>> {
    match message {
        Message::Insert(m) if m.relation_oid == oid => Some(Some(RowChange::Insert { new: m.new })),
        Message::Update(m) if m.relation_oid == oid => {
            Some(Some(RowChange::Update { old: m.old, new: m.new }))
        }
        Message::Delete(m) if m.relation_oid == oid => Some(Some(RowChange::Delete { old: m.old.into() })),
        Message::Truncate(m) if m.relation_oids.contains(&oid) => Some(None),
        _ => None,
    }
}
