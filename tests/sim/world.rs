//! The world: a virtual clock, what is under way on connections, and who hears what when.
//!
//! Everything happens in [`World::happen`], one event after the other. The instances are futures that are polled
//! after each event; they change the world only through [`crate::link::Link`].

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use pgsluice::apply::core::Answer;
use pgsluice::pg::Lsn;
use pgsluice::schema::catalog::PublicationsLook;

use crate::alter::Alteration;
use crate::catalog::Catalog;
use crate::link::{Look, PublisherOp, PublisherReply, Snapshot};
use crate::ops::{Executed, Op, Reply, execute};
use crate::plan::Config;
use crate::publisher::{Publisher, Slot};
use crate::random::Random;
use crate::tables::{Row, TABLES};
use crate::target::{Copy, Target};
use crate::walsender::{Options, Sent, Walsender};

/// Microseconds.
pub(crate) type Time = u64;
pub(crate) const MS: Time = 1000;
pub(crate) const SECOND: Time = 1_000_000;

pub(crate) type ConnId = u32;

#[derive(Debug)]
pub(crate) enum Event {
    Arrive {
        conn: ConnId,
        token: u64,
        op: Op,
    },
    Answer {
        conn: ConnId,
        token: u64,
        reply: Reply,
    },
    Ask {
        conn: ConnId,
        token: u64,
        op: PublisherOp,
    },
    Told {
        conn: ConnId,
        token: u64,
        reply: PublisherReply,
    },
    Decode {
        conn: ConnId,
    },
    Deliver {
        conn: ConnId,
        sent: Vec<Sent>,
    },
    Feedback {
        conn: ConnId,
        flushed: Lsn,
    },
    /// The server ends the connection.
    ServerEnds {
        conn: ConnId,
    },
    /// The client learns that the connection is lost.
    Lost {
        conn: ConnId,
    },
    /// A marked copy is not committed: the server ends its session.
    IdleInTransaction {
        conn: ConnId,
    },
    Keepalives,
    /// Nothing but time.
    Wake,
    Act(usize),
    Step {
        top: u32,
        left: u32,
        seed: u64,
    },
    StrangerLeaves {
        table: usize,
    },
    Start {
        instance: usize,
    },
    Thaw {
        instance: usize,
    },
    Operator,
    /// A step of what is done to the publications and tables.
    Alter(Alteration),
    /// A change of the catalog can be seen.
    Reveal,
}

#[derive(Debug, Default)]
pub(crate) struct Conn {
    pub(crate) instance: usize,
    pub(crate) main: bool,
    pub(crate) to_publisher: bool,
    pub(crate) lost: bool,
    /// The client has closed it.
    pub(crate) closed: bool,
    /// The server's end is open.
    pub(crate) served: bool,
    arrives: Time,
    answers: Time,
    pub(crate) inbox: VecDeque<Sent>,
    pub(crate) walsender: Option<Walsender>,
    /// Of the subscription's slot.
    pub(crate) permanent: bool,
    decoding: bool,
    /// The publication at which the walsender failed.
    pub(crate) missing: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    Down,
    Standby,
    Working,
    Streaming,
    Paused(Reason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Where its transaction commits, and its table.
    Conflict(Lsn, usize),
    SlotLost,
    Diverged,
}

#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) shown: Shown,
    pub(crate) frozen: bool,
    pub(crate) resume: bool,
}

/// Faults that wait for their moment.
#[derive(Debug, Default)]
pub(crate) struct Armed {
    /// The next COMMIT takes effect, and its session ends before it is answered.
    pub(crate) lose_after_commit: u32,
    /// The next COMMIT's session ends before it takes effect.
    pub(crate) lose_before_commit: u32,
    pub(crate) not_sent: u32,
    pub(crate) out_of_step: u32,
    /// The lock keeps nobody out, as through a pooler.
    pub(crate) lock_is_broken: bool,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Time,
    sequence: u64,
    queue: BTreeMap<(Time, u64), Event>,
    pub(crate) random: Random,
    pub(crate) config: Config,
    pub(crate) publisher: Publisher,
    pub(crate) target: Target,
    pub(crate) conns: BTreeMap<ConnId, Conn>,
    next_conn: ConnId,
    next_token: u64,
    pub(crate) replies: BTreeMap<u64, Reply>,
    pub(crate) told: BTreeMap<u64, PublisherReply>,
    pub(crate) instances: Vec<Instance>,
    pub(crate) armed: Armed,
    /// Slots that wait for transactions which are older than them.
    slots: Vec<(ConnId, u64, PublisherOp, Vec<u32>)>,
    pub(crate) story: Option<Vec<String>>,
    pub(crate) violation: Option<String>,
    pub(crate) events: u64,
    /// A fault has struck after which publisher, slot and target may not belong together.
    pub(crate) is_doubtful: bool,
    /// Rows that a stranger has added to the target, or taken away.
    pub(crate) planted: Vec<(usize, Row, Plant)>,
    /// How far the slot was confirmed, by the end of WAL.
    pub(crate) confirmations: Vec<(Lsn, Lsn)>,
    pub(crate) target_copy: Option<(Copy, Vec<(usize, Row, Plant)>)>,
    /// The conflict that a person knows of.
    pub(crate) attended: Option<(Lsn, usize)>,
    /// The last conflict that was put right.
    pub(crate) repaired: Option<Lsn>,
    /// Whether a restore of the target has taken away what was planted.
    pub(crate) is_unplanted: bool,
    /// The run of the publisher that began from an older copy.
    pub(crate) older_run: Option<u64>,
    /// The publisher began from an older copy, and was started again before anyone looked at it: that cannot be
    /// told any more.
    pub(crate) is_untold: bool,
    pub(crate) history: History,
}

/// What has happened to the tables and publications.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Something has happened to the table after which a gap or a conflict is no surprise.
    pub(crate) touched: [bool; TABLES.len()],
    /// A table that has left, and nothing else: where, and its columns.
    pub(crate) left: [Option<(Lsn, usize)>; TABLES.len()],
    /// It is being renamed on one side after the other.
    pub(crate) renaming: [bool; TABLES.len()],
    /// A publication has been missing for a while.
    pub(crate) missed: bool,
    /// Steps that are still to come.
    pub(crate) to_come: usize,
    /// The publications as the latest attempt has taken them up.
    pub(crate) taken_up: Option<String>,
    /// The end has been explained, and its gaps are being settled.
    pub(crate) is_settling: bool,
}

/// What a stranger does to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    Added,
    Taken,
}

impl World {
    pub(crate) fn new(seed: u64, config: Config, tells: bool) -> Self {
        let instance = || Instance { shown: Shown::Down, frozen: false, resume: false };
        Self {
            now: 0,
            sequence: 0,
            queue: BTreeMap::new(),
            random: Random::new(seed, 1),
            publisher: Publisher::new(Catalog::new(config.publications_change)),
            target: Target::default(),
            conns: BTreeMap::new(),
            next_conn: 0,
            next_token: 0,
            replies: BTreeMap::new(),
            told: BTreeMap::new(),
            instances: (0..config.instances).map(|_| instance()).collect(),
            config,
            armed: Armed::default(),
            slots: Vec::new(),
            story: tells.then(Vec::new),
            violation: None,
            events: 0,
            is_doubtful: false,
            planted: Vec::new(),
            confirmations: Vec::new(),
            target_copy: None,
            attended: None,
            repaired: None,
            is_unplanted: false,
            older_run: None,
            is_untold: false,
            history: History::default(),
        }
    }

    pub(crate) fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            let line = format!("{:>9.3} ms  {}", u64_to_ms(self.now), line());
            story.push(line);
        }
    }

    pub(crate) fn violated(&mut self, what: String) {
        self.tell(|| format!("VIOLATION {what}"));
        self.violation.get_or_insert(what);
    }

    pub(crate) fn schedule(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), event);
    }

    pub(crate) fn after(&mut self, delay: Time, event: Event) {
        self.schedule(self.now + delay, event);
    }

    /// The next event, with the clock set to its time.
    pub(crate) fn pop(&mut self) -> Option<Event> {
        let ((time, _), event) = self.queue.pop_first()?;
        self.now = time;
        self.events += 1;
        Some(event)
    }

    fn latency(&mut self) -> Time {
        if self.random.percent(5) { self.random.between(1, 40) * MS } else { self.random.between(50, 3000) }
    }

    // --- connections ----------------------------------------------------------------------

    pub(crate) fn dial(&mut self, instance: usize, main: bool) -> ConnId {
        self.next_conn += 1;
        let conn = Conn { instance, main, served: true, ..Conn::default() };
        self.conns.insert(self.next_conn, conn);
        self.next_conn
    }

    fn arrival(&mut self, conn: ConnId) -> Option<Time> {
        let mut at = self.now + self.latency();
        let is_main = self.conns.get(&conn).is_some_and(|conn| conn.main);
        if self.config.late_writes && !is_main && self.random.percent(6) {
            at += self.random.between(50, 3000) * MS;
        }
        let conn = self.conns.get_mut(&conn).filter(|conn| !conn.lost)?;
        conn.arrives = conn.arrives.max(at) + 1;
        Some(conn.arrives)
    }

    fn answer_at(&mut self, conn: ConnId) -> Option<Time> {
        let at = self.now + self.latency();
        let conn = self.conns.get_mut(&conn)?;
        conn.answers = conn.answers.max(at) + 1;
        Some(conn.answers)
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    pub(crate) fn send(&mut self, conn: ConnId, op: Op) -> u64 {
        let token = self.token();
        if let Some(at) = self.arrival(conn) {
            self.schedule(at, Event::Arrive { conn, token, op });
        }
        token
    }

    pub(crate) fn ask(&mut self, conn: ConnId, op: PublisherOp) -> u64 {
        let token = self.token();
        if let Some(open) = self.conns.get_mut(&conn) {
            open.to_publisher = true;
        }
        if let Some(at) = self.arrival(conn) {
            self.schedule(at, Event::Ask { conn, token, op });
        }
        token
    }

    pub(crate) fn report(&mut self, conn: ConnId, flushed: Lsn) {
        if flushed > self.target.furthest {
            let furthest = self.target.furthest;
            self.violated(format!("{flushed} is reported as flushed, and {furthest} is recorded"));
        }
        if let Some(at) = self.arrival(conn) {
            self.schedule(at, Event::Feedback { conn, flushed });
        }
    }

    /// The client closes its end; what it has sent arrives before.
    pub(crate) fn close(&mut self, conn: ConnId) {
        let token = self.token();
        let at = self.arrival(conn);
        if let Some(open) = self.conns.get_mut(&conn) {
            open.closed = true;
            open.inbox.clear();
        }
        if let Some(at) = at {
            self.schedule(at, Event::Arrive { conn, token, op: Op::Close });
        }
    }

    /// The server ends a session at once: what it was doing is rolled back, and answers under way are lost.
    pub(crate) fn end_served(&mut self, conn: ConnId) {
        self.target.end_session(conn);
        if let Some(open) = self.conns.get_mut(&conn) {
            open.served = false;
            open.walsender = None;
        }
        let at = self.now + self.latency();
        self.schedule(at, Event::Lost { conn });
        self.unblock();
    }

    /// The network loses the connection: nothing arrives any more, and the server learns it later.
    pub(crate) fn cut(&mut self, conn: ConnId) {
        self.queue.retain(|_, event| !concerns(event, conn));
        if let Some(open) = self.conns.get_mut(&conn) {
            open.lost = true;
        }
        let later = self.random.between(1, 2000) * MS;
        self.after(later, Event::ServerEnds { conn });
    }

    fn unblock(&mut self) {
        let waiting: Vec<ConnId> = self
            .target
            .sessions
            .iter()
            .filter(|(_, session)| session.is_blocked)
            .map(|(id, _)| *id)
            .collect();
        for conn in waiting {
            self.run_session(conn);
        }
    }

    // --- events ---------------------------------------------------------------------------

    pub(crate) fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { conn, token, op } => self.arrive(conn, token, op),
            Event::Answer { conn, token, reply } => {
                if self.conns.get(&conn).is_some_and(|conn| !conn.lost && !conn.closed) {
                    self.replies.insert(token, reply);
                }
            }
            Event::Ask { conn, token, op } => self.asked(conn, token, op),
            Event::Told { conn, token, reply } => {
                if self.conns.get(&conn).is_some_and(|conn| !conn.lost && !conn.closed) {
                    self.told.insert(token, reply);
                }
            }
            Event::Decode { conn } => self.decode(conn),
            Event::Deliver { conn, sent } => {
                if let Some(conn) = self.conns.get_mut(&conn).filter(|conn| !conn.lost && !conn.closed) {
                    conn.inbox.extend(sent);
                }
            }
            Event::Feedback { conn, flushed } => self.feedback(conn, flushed),
            Event::ServerEnds { conn } => {
                if self.conns.get(&conn).is_some_and(|conn| conn.served) {
                    self.end_served(conn);
                }
            }
            Event::Lost { conn } => {
                if let Some(conn) = self.conns.get_mut(&conn) {
                    conn.lost = true;
                }
            }
            Event::IdleInTransaction { conn } => {
                if self.target.sessions.get(&conn).is_some_and(|session| session.marked) {
                    self.tell(|| format!("session {conn} is ended: idle in transaction"));
                    self.end_served(conn);
                }
            }
            Event::Keepalives => self.keepalives(),
            Event::Reveal => self.publisher.reveal(),
            Event::StrangerLeaves { table } => {
                if let Some(count) = self.target.strangers.get_mut(&table) {
                    *count -= 1;
                    if *count == 0 {
                        self.target.strangers.remove(&table);
                    }
                }
                self.unblock();
            }
            Event::Thaw { instance } => {
                self.tell(|| format!("instance {instance} goes on"));
                self.instances[instance].frozen = false;
            }
            Event::Wake
            | Event::Act(_)
            | Event::Step { .. }
            | Event::Start { .. }
            | Event::Operator
            | Event::Alter(_) => {}
        }
    }

    fn arrive(&mut self, conn: ConnId, token: u64, op: Op) {
        if !self.conns.get(&conn).is_some_and(|conn| conn.served) {
            return;
        }
        let op = match op {
            Op::Batch { .. } if self.armed.not_sent > 0 => {
                self.armed.not_sent -= 1;
                Op::NotSent
            }
            op => op,
        };
        self.target.sessions.entry(conn).or_default().queue.push_back((token, op));
        self.run_session(conn);
    }

    /// Carries out what a session is asked, as far as that is possible.
    fn run_session(&mut self, conn: ConnId) {
        let commits = self.target.commits;
        while let Some((token, op)) =
            self.target.sessions.get_mut(&conn).and_then(|session| session.queue.pop_front())
        {
            if matches!(op, Op::Close) {
                self.target.end_session(conn);
                if let Some(open) = self.conns.get_mut(&conn) {
                    open.served = false;
                    open.walsender = None;
                }
                return self.unblock();
            }
            if self.strikes_before(&op) {
                self.tell(|| format!("session {conn} ends before {} takes effect", spelled(&op)));
                return self.end_served(conn);
            }
            let text = if self.story.is_some() { spelled(&op) } else { String::new() };
            let is_commit = is_commit(&op);
            let before = self.target.commits;
            match self.executed(conn, op) {
                Executed::Blocked(op) => {
                    let now = self.now;
                    if let Some(session) = self.target.sessions.get_mut(&conn) {
                        session.is_blocked = true;
                        session.blocked_at.get_or_insert(now);
                        session.queue.push_front((token, op));
                    }
                    return;
                }
                Executed::Next(op) => {
                    self.unblocked(conn);
                    if let Some(session) = self.target.sessions.get_mut(&conn) {
                        session.queue.push_front((token, op));
                    }
                    // Something else may come between.
                    if self.random.percent(50) {
                        let later = self.now + self.random.between(1, 2000);
                        if let Some(session) = self.target.sessions.get_mut(&conn) {
                            session.is_blocked = true;
                        }
                        self.schedule(later, Event::Wake);
                        return;
                    }
                }
                Executed::Reply(reply) => {
                    self.unblocked(conn);
                    self.tell(|| format!("session {conn}: {text} -> {}", answer(&reply)));
                    if is_commit && self.target.commits > before && self.armed.lose_after_commit > 0 {
                        self.armed.lose_after_commit -= 1;
                        self.tell(|| format!("session {conn} ends, the answer is lost"));
                        return self.end_served(conn);
                    }
                    self.answer(conn, token, reply);
                }
            }
        }
        if self.target.commits != commits {
            self.unblock();
        }
    }

    fn executed(&mut self, conn: ConnId, op: Op) -> Executed {
        if matches!(op, Op::Batch { .. }) && self.armed.out_of_step > 0 {
            self.armed.out_of_step -= 1;
            self.target.roll_back(conn);
            return Executed::Reply(Reply::Answer(Answer::OutOfStep { cause: "copy refused".to_owned() }));
        }
        if matches!(op, Op::TryLock) && self.armed.lock_is_broken {
            return Executed::Reply(Reply::Locked(true));
        }
        execute(&mut self.target, conn, op)
    }

    fn strikes_before(&mut self, op: &Op) -> bool {
        let strikes = is_commit(op) && self.armed.lose_before_commit > 0;
        if strikes {
            self.armed.lose_before_commit -= 1;
        }
        strikes
    }

    fn unblocked(&mut self, conn: ConnId) {
        if let Some(session) = self.target.sessions.get_mut(&conn) {
            session.is_blocked = false;
            session.blocked_at = None;
            if session.marked {
                self.after(5 * SECOND, Event::IdleInTransaction { conn });
            }
        }
    }

    fn answer(&mut self, conn: ConnId, token: u64, reply: Reply) {
        if !matches!(reply, Reply::Silent)
            && let Some(at) = self.answer_at(conn)
        {
            self.schedule(at, Event::Answer { conn, token, reply });
        }
    }

    /// Sessions that wait are tried again.
    pub(crate) fn retry(&mut self) {
        if self.target.sessions.values().any(|session| session.is_blocked) {
            self.unblock();
        }
    }

    // --- the publisher's side --------------------------------------------------------------

    fn asked(&mut self, conn: ConnId, token: u64, op: PublisherOp) {
        if !self.publisher.up || !self.conns.get(&conn).is_some_and(|conn| conn.served) {
            return;
        }
        let makes_slot = matches!(op, PublisherOp::CreateSlot | PublisherOp::TemporarySlot);
        if makes_slot {
            let older = self.publisher.in_progress();
            self.slots.push((conn, token, op, older));
            return self.make_slots();
        }
        self.answer_publisher(conn, token, op);
    }

    /// A slot is consistent once every transaction has ended that was there before it.
    pub(crate) fn make_slots(&mut self) {
        let running = self.publisher.in_progress();
        for (conn, token, op, older) in std::mem::take(&mut self.slots) {
            if older.iter().any(|xid| running.contains(xid)) {
                self.slots.push((conn, token, op, older));
            } else {
                self.answer_publisher(conn, token, op);
            }
        }
    }

    fn answer_publisher(&mut self, conn: ConnId, token: u64, op: PublisherOp) {
        let reply = match op {
            PublisherOp::Look => PublisherReply::Seen(Box::new(self.look())),
            PublisherOp::Published => PublisherReply::Published(Rc::clone(&self.publisher.visible)),
            PublisherOp::Glance => PublisherReply::Glance(self.glance()),
            PublisherOp::CreateSlot => {
                let at = self.publisher.end;
                if self.publisher.slot.is_some() {
                    PublisherReply::Refused
                } else {
                    self.publisher.slot = Some(Slot { confirmed: at, saved: at });
                    self.confirmations.push((at, at));
                    self.tell(|| format!("slot created at {at}"));
                    self.snapshot()
                }
            }
            PublisherOp::TemporarySlot => self.snapshot(),
            PublisherOp::Start { from, streaming, permanent, publications } => {
                let options = Options {
                    streaming,
                    memory: self.config.memory,
                    sends_empty: self.config.sends_empty,
                    publications,
                    strict: self.config.strict,
                };
                self.start(conn, from, permanent, options)
            }
        };
        if let Some(at) = self.answer_at(conn) {
            self.schedule(at, Event::Told { conn, token, reply });
        }
    }

    fn snapshot(&self) -> PublisherReply {
        let at = self.publisher.end;
        let (rows, catalog) = (self.publisher.state_at(at), Rc::clone(&self.publisher.catalog));
        PublisherReply::Snapshot(Box::new(Snapshot { at, rows, catalog }))
    }

    pub(crate) fn glance(&self) -> PublicationsLook {
        PublicationsLook {
            fingerprint: self.publisher.visible.fingerprint(),
            position: self.publisher.end,
            next_xid: self.publisher.next_xid,
            oldest_xid: self.publisher.oldest_xid(),
        }
    }

    fn look(&self) -> Look {
        Look {
            timeline: self.publisher.timeline,
            left: self.publisher.left.clone(),
            started: self.publisher.started,
            wal: self.publisher.end,
            checkpoint: self.publisher.checkpoint,
            slot: self.publisher.slot.as_ref().map(|slot| slot.confirmed),
            unused_xid: self.publisher.next_xid,
            restart: self.publisher.slot.as_ref().map(|slot| self.publisher.restart_lsn(slot.confirmed)),
        }
    }

    fn start(&mut self, conn: ConnId, from: Lsn, permanent: bool, options: Options) -> PublisherReply {
        let active = |other: &Conn| other.permanent && other.walsender.is_some();
        if permanent && self.conns.values().any(active) {
            return PublisherReply::Refused;
        }
        let confirmed = match (&self.publisher.slot, permanent) {
            (Some(slot), true) => slot.confirmed,
            (None, true) => return PublisherReply::Refused,
            (_, false) => from,
        };
        let walsender = Walsender::new(&self.publisher, confirmed, from, options);
        if let Some(open) = self.conns.get_mut(&conn) {
            open.walsender = Some(walsender);
            open.permanent = permanent;
        }
        self.wake_walsender(conn);
        PublisherReply::Started
    }

    fn wake_walsender(&mut self, conn: ConnId) {
        let delay = self.random.between(10, 2000);
        let Some(open) = self.conns.get_mut(&conn) else { return };
        if !open.decoding {
            open.decoding = true;
            self.after(delay, Event::Decode { conn });
        }
    }

    /// WAL has grown.
    pub(crate) fn wake_walsenders(&mut self) {
        self.make_slots();
        let all: Vec<ConnId> =
            self.conns.iter().filter(|(_, conn)| conn.walsender.is_some()).map(|(id, _)| *id).collect();
        for conn in all {
            self.wake_walsender(conn);
        }
    }

    fn decode(&mut self, conn: ConnId) {
        let records = self.random.between(1, 12);
        let keepalive = self.random.percent(20);
        let wants_report = self.random.percent(30);
        let Some(open) = self.conns.get_mut(&conn) else { return };
        open.decoding = false;
        let Some(walsender) = &mut open.walsender else { return };
        let mut sent = Vec::new();
        for _ in 0..records {
            sent.extend(walsender.step(&self.publisher));
        }
        let missing = walsender.missing.clone();
        if let Some(name) = &missing {
            open.missing = Some(name.clone());
            self.tell(|| format!("walsender {conn}: publication \"{name}\" does not exist"));
        }
        let Some(walsender) = self.conns.get_mut(&conn).and_then(|open| open.walsender.as_mut()) else {
            return;
        };
        let idle = walsender.is_idle(&self.publisher);
        if keepalive && missing.is_none() {
            sent.push(Sent::Keepalive { wal_end: walsender.sent, wants_report });
        }
        if !sent.is_empty()
            && let Some(at) = self.answer_at(conn)
        {
            self.schedule(at, Event::Deliver { conn, sent });
        }
        if missing.is_some() {
            let at = self.answer_at(conn).unwrap_or(self.now);
            self.schedule(at, Event::ServerEnds { conn });
        } else if !idle {
            self.wake_walsender(conn);
        }
    }

    /// Of transactions that have waited for each other for a second, the server ends one.
    fn deadlocks(&mut self) {
        let long_ago = self.now.saturating_sub(SECOND);
        let waiting = self.target.sessions.iter().filter(|(_, session)| {
            session.in_transaction && session.blocked_at.is_some_and(|since| since <= long_ago)
        });
        let waiting: Vec<ConnId> = waiting.map(|(id, _)| *id).collect();
        let [victim, _, ..] = waiting[..] else { return };
        self.target.fail(victim);
        self.tell(|| format!("session {victim}: deadlock"));
        let front = self.target.sessions.get_mut(&victim).and_then(|session| {
            session.is_blocked = false;
            session.blocked_at = None;
            session.queue.pop_front()
        });
        match front {
            Some((token, op @ Op::Batch { .. })) => {
                if let Some(session) = self.target.sessions.get_mut(&victim) {
                    session.queue.push_front((token, op));
                }
                self.run_session(victim);
            }
            Some((token, _)) => {
                self.answer(victim, token, Reply::Failed("deadlock"));
                self.run_session(victim);
            }
            None => {}
        }
        self.unblock();
    }

    fn keepalives(&mut self) {
        self.deadlocks();
        let all: Vec<(ConnId, Lsn)> = self
            .conns
            .iter()
            .filter_map(|(id, conn)| {
                let walsender = conn.walsender.as_ref()?;
                walsender.is_idle(&self.publisher).then_some((*id, walsender.sent))
            })
            .collect();
        for (conn, wal_end) in all {
            if let Some(at) = self.answer_at(conn) {
                let sent = vec![Sent::Keepalive { wal_end, wants_report: true }];
                self.schedule(at, Event::Deliver { conn, sent });
            }
        }
        self.after(400 * MS, Event::Keepalives);
    }

    fn feedback(&mut self, conn: ConnId, flushed: Lsn) {
        let open = self.conns.get(&conn).is_some_and(|conn| conn.walsender.is_some() && conn.permanent);
        if !open {
            return;
        }
        let saves = self.random.percent(30);
        if let Some(slot) = &mut self.publisher.slot {
            slot.confirmed = slot.confirmed.max(flushed);
            if saves {
                slot.saved = slot.confirmed;
            }
        }
        let end = self.publisher.end;
        if let Some(slot) = &self.publisher.slot {
            self.confirmations.push((end, slot.confirmed));
        }
        self.tell(|| format!("the slot is confirmed up to {flushed}"));
    }

    /// All connections to the publisher end.
    pub(crate) fn end_publisher(&mut self) {
        let all: Vec<ConnId> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.to_publisher && conn.served)
            .map(|(id, _)| *id)
            .collect();
        for conn in all {
            self.end_served(conn);
        }
        self.slots.clear();
    }

    /// All streams end.
    pub(crate) fn end_walsenders(&mut self) {
        let all: Vec<ConnId> =
            self.conns.iter().filter(|(_, conn)| conn.walsender.is_some()).map(|(id, _)| *id).collect();
        for conn in all {
            self.end_served(conn);
        }
    }
}

fn concerns(event: &Event, wanted: ConnId) -> bool {
    match event {
        Event::Arrive { conn, .. }
        | Event::Answer { conn, .. }
        | Event::Ask { conn, .. }
        | Event::Told { conn, .. }
        | Event::Deliver { conn, .. }
        | Event::Feedback { conn, .. } => *conn == wanted,
        _ => false,
    }
}

fn is_commit(op: &Op) -> bool {
    matches!(op, Op::BatchCommit { .. } | Op::RowsCommit | Op::Commit)
}

fn u64_to_ms(time: Time) -> f64 {
    f64::from(u32::try_from(time).unwrap_or(u32::MAX)) / 1000.0
}

fn spelled(op: &Op) -> String {
    let text = format!("{op:?}");
    let cut: String = text.chars().take(60).collect();
    match op {
        Op::Batch { batch, .. } => format!("batch of {} sets, {:?}", batch.sets.len(), batch.advance),
        Op::Row { table, change, index } => {
            format!("row {index} of {}: {}", table.plan.target, change.operation())
        }
        Op::OpenGap { gap, .. } => {
            let table = gap.table.as_ref().map(ToString::to_string).unwrap_or_default();
            format!("{} gap of {table}, {:?} to {:?}", gap.kind, gap.from, gap.to)
        }
        Op::RecordMembers { tables, .. } => {
            let spelled = |table: &pgsluice::store::TableRecord| match table.left {
                Some(left) => format!("{} (left at {})", table.source, left.lsn),
                None => table.source.to_string(),
            };
            let tables: Vec<String> = tables.iter().map(spelled).collect();
            format!("records {}", tables.join(", "))
        }
        _ => cut,
    }
}

fn answer(reply: &Reply) -> String {
    let text = format!("{reply:?}");
    text.chars().take(60).collect()
}
