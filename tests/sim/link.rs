//! What an instance sees of the world: connections, a clock, and a place to show its state.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use pgsluice::pg::Lsn;
use pgsluice::schema::catalog::PublicationsLook;

use crate::catalog::Catalog;
use crate::ops::{Op, Reply};
use crate::tables::{Row, TABLES};
use crate::walsender::Sent;
use crate::world::{ConnId, Event, Shown, Time, World};

/// What is asked of the publisher.
#[derive(Debug)]
pub(crate) enum PublisherOp {
    Look,
    /// What is published, in full.
    Published,
    /// Whether that has changed.
    Glance,
    CreateSlot,
    TemporarySlot,
    Start {
        from: Lsn,
        streaming: bool,
        permanent: bool,
        publications: Vec<String>,
    },
}

#[derive(Debug)]
pub(crate) enum PublisherReply {
    Seen(Box<Look>),
    Published(Rc<Catalog>),
    Glance(PublicationsLook),
    Snapshot(Box<Snapshot>),
    Started,
    Refused,
}

/// A slot's snapshot.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) at: Lsn,
    pub(crate) rows: [Vec<Row>; TABLES.len()],
    pub(crate) catalog: Rc<Catalog>,
}

/// What the publisher shows of itself.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) timeline: u32,
    pub(crate) left: Vec<(u32, Lsn)>,
    pub(crate) started: u64,
    pub(crate) wal: Lsn,
    pub(crate) checkpoint: Lsn,
    /// The slot's confirmed position.
    pub(crate) slot: Option<Lsn>,
    /// The next transaction identifier.
    pub(crate) unused_xid: u32,
    /// The slot's `restart_lsn`.
    pub(crate) restart: Option<Lsn>,
}

/// The connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost;

#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) world: Rc<RefCell<World>>,
    pub(crate) instance: usize,
}

/// A connection. Dropped, it is closed.
#[derive(Debug)]
pub(crate) struct Connection {
    link: Link,
    pub(crate) id: ConnId,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.link.world.borrow_mut().close(self.id);
    }
}

impl Link {
    pub(crate) fn dial(&self, main: bool) -> Connection {
        let id = self.world.borrow_mut().dial(self.instance, main);
        Connection { link: self.clone(), id }
    }

    pub(crate) fn now(&self) -> Time {
        self.world.borrow().now
    }

    pub(crate) fn wake_at(&self, at: Time) {
        self.world.borrow_mut().schedule(at, Event::Wake);
    }

    pub(crate) async fn sleep(&self, time: Time) {
        let until = self.now() + time;
        self.wake_at(until);
        poll_fn(|_| if self.now() >= until { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    pub(crate) fn show(&self, shown: Shown) {
        let mut world = self.world.borrow_mut();
        let instance = self.instance;
        if world.instances[instance].shown != shown {
            world.tell(|| format!("instance {instance}: {shown:?}"));
            world.instances[instance].shown = shown;
        }
    }

    pub(crate) fn tell(&self, line: impl FnOnce() -> String) {
        let instance = self.instance;
        self.world.borrow_mut().tell(|| format!("instance {instance}: {}", line()));
    }

    /// Whether an operator has asked for something.
    pub(crate) fn is_asked(&self) -> bool {
        !self.world.borrow().target.meta.commands.is_empty()
    }

    /// A write of the store, over a session of the pool.
    pub(crate) async fn store(&self, op: Op) -> Result<Reply, Lost> {
        self.dial(false).ask(op).await
    }

    /// Sends a write of the store that nobody waits for.
    pub(crate) fn note(&self, op: Op) {
        let connection = self.dial(false);
        let _ = self.world.borrow_mut().send(connection.id, op);
    }
}

impl Connection {
    pub(crate) fn send(&self, op: Op) -> u64 {
        self.link.world.borrow_mut().send(self.id, op)
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.link.world.borrow().conns.get(&self.id).is_none_or(|conn| conn.lost)
    }

    pub(crate) fn reply(&self, token: u64) -> Option<Reply> {
        self.link.world.borrow_mut().replies.remove(&token)
    }

    pub(crate) async fn ask(&self, op: Op) -> Result<Reply, Lost> {
        let token = self.send(op);
        poll_fn(|_| match self.reply(token) {
            Some(reply) => Poll::Ready(Ok(reply)),
            None if self.is_lost() => Poll::Ready(Err(Lost)),
            None => Poll::Pending,
        })
        .await
    }

    /// The error with which the server has ended it: the publication that did not exist.
    pub(crate) fn missing(&self) -> Option<String> {
        self.link.world.borrow().conns.get(&self.id)?.missing.clone()
    }

    pub(crate) fn send_publisher(&self, op: PublisherOp) -> u64 {
        self.link.world.borrow_mut().ask(self.id, op)
    }

    pub(crate) fn told(&self, token: u64) -> Option<PublisherReply> {
        self.link.world.borrow_mut().told.remove(&token)
    }

    pub(crate) async fn ask_publisher(&self, op: PublisherOp) -> Result<PublisherReply, Lost> {
        let token = self.send_publisher(op);
        let limit = self.link.now() + 10 * crate::world::SECOND;
        self.link.wake_at(limit);
        poll_fn(|_| match self.told(token) {
            Some(reply) => Poll::Ready(Ok(reply)),
            None if self.is_lost() || self.link.now() >= limit => Poll::Ready(Err(Lost)),
            None => Poll::Pending,
        })
        .await
    }

    pub(crate) fn next_sent(&self) -> Option<Sent> {
        self.link.world.borrow_mut().conns.get_mut(&self.id)?.inbox.pop_front()
    }

    pub(crate) fn report(&self, flushed: Lsn) {
        self.link.world.borrow_mut().report(self.id, flushed);
    }
}
