//! The stream of an attempt: the real core, between connections of the model. As `subscription::stream`, with
//! `apply::applier` and `apply::performer`.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use pgsluice::apply::core::{Core, Step};
use pgsluice::apply::end::End;
use pgsluice::apply::{Member, Membership, Outcome};
use pgsluice::pg::{Lsn, QualifiedName};
use pgsluice::pgoutput::{Format, Message};
use pgsluice::schema::{Operations, ReplicationRole, RunAs, Surroundings};
use pgsluice::subscription::followed;
use pgsluice::subscription::publication_record::Named;

use crate::link::{Connection, Link, Look, PublisherOp, PublisherReply};
use crate::mutants::{Fault, has};
use crate::ops::{Op, Reply};
use crate::service::{Ended, Memory, Pending, hold_back, pending, still_trusted};
use crate::table_sync::{self, Handed, Sync};
use crate::tables;
use crate::take_up::TakenUp;
use crate::walsender::Sent;
use crate::world::{MS, SECOND, Shown, Time};

pub(crate) struct Start<'a> {
    pub(crate) term: i64,
    pub(crate) from: Lsn,
    pub(crate) view: &'a Look,
    pub(crate) taken: &'a TakenUp,
    /// The publications that the stream is asked for.
    pub(crate) named: Named,
    /// Once the stream has passed this position, the publications are looked at again.
    pub(crate) look_at: Option<Lsn>,
}

/// How a stream that did not fail ended.
#[derive(Debug)]
pub(crate) enum Streamed {
    /// Where its transaction commits, and its table.
    Conflict(Lsn, usize),
    Anew,
}

type Synced = Result<(usize, Lsn), (Pending, i32, Ended)>;
type Syncing<'a> = Pin<Box<dyn Future<Output = Synced> + 'a>>;

struct Stream<'a> {
    link: &'a Link,
    main: &'a Connection,
    publisher: Connection,
    term: i64,
    core: Core,
    began: Time,
    /// What has been asked for and not been answered, in order.
    under_way: VecDeque<u64>,
    describing: Option<u64>,
    /// The tables that the open row transaction has written to.
    stamps: BTreeMap<usize, i64>,
    reported: Lsn,
    handed: Rc<RefCell<Handed>>,
    /// When the publications and the witnesses are looked at next.
    looks: Time,
    /// A look that has not been answered.
    looking: Option<(Connection, u64)>,
    sources: BTreeMap<usize, QualifiedName>,
    publications: Vec<String>,
    look_at: Option<Lsn>,
    /// The published operations, by OID.
    today: BTreeMap<u32, Operations>,
    conflict: Option<(Lsn, usize)>,
    /// The run of the publisher that was judged.
    started: u64,
}

enum Next {
    Synced(Box<Synced>),
    Answer(Reply),
    Described(Reply),
    Message(Sent),
    Due,
    /// The table's synchronisation has moved, or time has passed.
    Looked,
    Glanced(Option<PublisherReply>),
    Asked,
    TargetLost,
    PublisherLost,
}

pub(crate) async fn run(
    link: &Link,
    main: &Connection,
    publisher: Connection,
    start: Start<'_>,
    memory: &mut Memory,
) -> Result<Streamed, Ended> {
    let exact = memory.exact_until.filter(|until| *until >= start.from);
    memory.exact_until = exact;
    let mut pending: VecDeque<Pending> = pending(start.taken).into();
    let ready = pending.is_empty();
    if !start.named.left_out.is_empty() {
        pending.clear();
    }
    let skip = start.taken.meta.skip.filter(|skip| *skip >= start.from);
    let wanted = link.world.borrow().config.streaming;
    let streaming = wanted && exact.is_none() && memory.whole_until <= link.now() && ready && skip.is_none();
    let publications = start.named.names.clone();
    let ask = PublisherOp::Start { from: start.from, streaming, permanent: true, publications };
    match publisher.ask_publisher(ask).await {
        Ok(PublisherReply::Started) => {}
        _ => return Err(Ended::Retry("the slot is active, or the publisher is lost")),
    }
    // Only now can the slot not be made again: it is in use.
    let Ok(PublisherReply::Seen(seen)) = link.dial(false).ask_publisher(PublisherOp::Look).await else {
        return Err(Ended::Retry("publisher"));
    };
    still_trusted(main, start.term, start.from, &seen).await?;
    link.tell(|| {
        let publications = start.named.names.join(" and ");
        format!("streams {publications} from {}, streaming {streaming}, exact until {exact:?}", start.from)
    });
    link.show(Shown::Streaming);
    let better = wanted && !streaming && ready && skip.is_none();
    let mut stream = Stream::new(link, main, publisher, &start, (exact, skip));
    let end = stream.run(pending, better, memory).await?;
    // A table that has left and come back, or was replaced, may be the reason of a conflict.
    if matches!(end, Streamed::Conflict(..)) && stream.has_changed(memory).await {
        return Ok(Streamed::Anew);
    }
    Ok(end)
}

impl<'a> Stream<'a> {
    fn new(
        link: &'a Link,
        main: &'a Connection,
        publisher: Connection,
        start: &Start<'_>,
        (exact_until, skip): (Option<Lsn>, Option<Lsn>),
    ) -> Self {
        let members = members(start);
        let surroundings = Surroundings {
            replication_role: ReplicationRole::Replica,
            role: "pgsluice".to_owned(),
            run_as: RunAs::Owner,
        };
        let (bounds, idle) = {
            let world = link.world.borrow();
            (world.config.bounds, world.config.idle_interval)
        };
        let begin = pgsluice::apply::Start {
            term: pgsluice::pg::Term::new(start.term),
            recorded: start.from,
            skip,
            exact_until,
            format: Format::Text,
        };
        let name = "sim".parse().expect("a name");
        let mut core = Core::new(name, members, surroundings, begin, bounds);
        core.set_idle_record_interval(Duration::from_micros(idle));
        Self {
            link,
            main,
            publisher,
            term: start.term,
            core,
            began: link.now(),
            under_way: VecDeque::new(),
            describing: None,
            stamps: BTreeMap::new(),
            reported: start.from,
            handed: Rc::new(RefCell::new(Handed::default())),
            looks: link.now() + 200 * MS,
            looking: None,
            sources: start.taken.meta.tables.iter().map(|(at, row)| (*at, row.source.clone())).collect(),
            publications: start.named.names.clone(),
            look_at: start.look_at,
            today: start.taken.published.iter().map(|table| (table.seen.oid, table.actions)).collect(),
            conflict: None,
            started: start.view.started,
        }
    }

    fn moment(&self) -> Duration {
        Duration::from_micros(self.link.now() - self.began)
    }

    async fn run(
        &mut self,
        mut pending: VecDeque<Pending>,
        better: bool,
        memory: &mut Memory,
    ) -> Result<Streamed, Ended> {
        let mut syncing: Option<Syncing<'_>> = None;
        let mut sync_after: Time = 0;
        self.link.wake_at(self.looks);
        loop {
            if syncing.is_none()
                && self.link.now() >= sync_after
                && let Some(pending) = pending.pop_front()
            {
                *self.handed.borrow_mut() = Handed::default();
                let (link, term, started) = (self.link.clone(), self.term, self.started);
                let (attempt, publications) = (pending.row.attempt, self.publications.clone());
                let sync = Sync { link, term, pending, attempt, publications, started };
                syncing = Some(Box::pin(table_sync::run(sync, Rc::clone(&self.handed))));
            }
            if let Some((lsn, table)) = self.perform(memory)? {
                return Ok(Streamed::Conflict(lsn, table));
            }
            if self.may_end(syncing.is_some()) && self.is_to_end(better && pending.is_empty(), memory) {
                return Ok(Streamed::Anew);
            }
            let next = poll_fn(|context| self.poll(&mut syncing, context)).await;
            match next {
                Next::Synced(ended) => {
                    syncing = None;
                    if let Some(again) = self.synced(*ended).await? {
                        pending.push_back(again);
                        sync_after = self.link.now() + SECOND;
                        self.link.wake_at(sync_after);
                    }
                }
                Next::Answer(Reply::Answer(answer)) => {
                    self.core.answered(answer, self.moment());
                }
                Next::Answer(Reply::Failed(why)) => return Err(Ended::Retry(why)),
                Next::Answer(_) => return Err(Ended::Retry("an answer of another kind")),
                Next::Described(Reply::Described(tables)) => self.core.described(tables, self.moment()),
                Next::Described(_) => return Err(Ended::Retry("an answer of another kind")),
                Next::Message(sent) => {
                    self.take(sent);
                    self.hand_over(&mut syncing).await?;
                }
                Next::Due => self.core.tick(self.moment()),
                Next::Looked => {
                    let between = self.link.world.borrow().config.looks;
                    self.looks = self.link.now() + between;
                    self.link.wake_at(self.looks);
                    self.watch();
                    self.hand_over(&mut syncing).await?;
                }
                Next::Glanced(reply) => self.glanced(reply, memory),
                Next::Asked => return Ok(Streamed::Anew),
                Next::TargetLost => return Err(Ended::TargetLost("main session")),
                Next::PublisherLost => {
                    return Err(match self.publisher.missing() {
                        Some(name) => memory.refuse(self.reported, name),
                        None => Ended::Retry("publisher lost"),
                    });
                }
            }
        }
    }

    fn poll(&mut self, syncing: &mut Option<Syncing<'_>>, context: &mut Context<'_>) -> Poll<Next> {
        if let Some(sync) = syncing
            && let Poll::Ready(ended) = sync.as_mut().poll(context)
        {
            return Poll::Ready(Next::Synced(Box::new(ended)));
        }
        if let Some(&token) = self.under_way.front()
            && let Some(reply) = self.main.reply(token)
        {
            self.under_way.pop_front();
            return Poll::Ready(Next::Answer(reply));
        }
        if let Some(token) = self.describing
            && let Some(reply) = self.main.reply(token)
        {
            self.describing = None;
            return Poll::Ready(Next::Described(reply));
        }
        if self.main.is_lost() {
            return Poll::Ready(Next::TargetLost);
        }
        if self.core.due().is_some_and(|due| due <= self.moment()) {
            return Poll::Ready(Next::Due);
        }
        if self.link.is_asked() {
            return Poll::Ready(Next::Asked);
        }
        if let Some((connection, token)) = &self.looking {
            let told = connection.told(*token);
            if told.is_some() || connection.is_lost() {
                return Poll::Ready(Next::Glanced(told));
            }
        }
        let moved = std::mem::take(&mut self.handed.borrow_mut().moved);
        if self.link.now() >= self.looks || moved {
            return Poll::Ready(Next::Looked);
        }
        if self.core.takes_messages() && !self.waits_for_sync() {
            if let Some(sent) = self.publisher.next_sent() {
                return Poll::Ready(Next::Message(sent));
            }
            if self.publisher.is_lost() {
                return Poll::Ready(Next::PublisherLost);
            }
        }
        Poll::Pending
    }

    /// Between two transactions, the stream keeps still for a sync that comes nearer.
    fn waits_for_sync(&self) -> bool {
        let handed = self.handed.borrow();
        let Some(reached) = handed.reached.filter(|_| !handed.finish) else { return false };
        self.core.received().is_some_and(|received| reached < received)
            && self.link.now() < handed.progressed + 300 * MS
            && self.link.world.borrow().config.keeps_still
    }

    /// Takes messages as they have come, then passes on that no more has.
    fn take(&mut self, first: Sent) {
        let mut next = Some(first);
        while let Some(sent) = next {
            let now = self.moment();
            match sent {
                Sent::Message(message) => {
                    self.hold_against_today(&message);
                    self.core.take(message, now);
                }
                Sent::Keepalive { wal_end, wants_report } => self.core.keepalive(wal_end, wants_report, now),
            }
            let may = self.core.takes_messages() && !self.waits_for_sync() && !self.is_sync_due();
            next = if may { self.publisher.next_sent() } else { None };
        }
        self.core.quiet(self.moment());
    }

    fn is_sync_due(&self) -> bool {
        let handed = self.handed.borrow();
        !handed.finish && self.core.received().is_some() && handed.reached.is_some()
    }

    fn may_end(&self, syncing: bool) -> bool {
        self.core.received().is_some() && !syncing && !self.core.awaits_answers()
    }

    fn is_to_end(&self, better: bool, memory: &Memory) -> bool {
        let passed = self.look_at.is_some_and(|at| self.reported >= at);
        let changed = passed || memory.publications.have_changed();
        let through = memory.exact_until.is_none_or(|until| self.reported > until);
        changed || (better && through && memory.whole_until <= self.link.now())
    }

    /// Carries out the core's steps, up to a conflict.
    fn perform(&mut self, memory: &mut Memory) -> Result<Option<(Lsn, usize)>, Ended> {
        while let Some(step) = self.core.next_step() {
            match step {
                Step::Tell(outcome) => self.outcome(outcome),
                Step::End(end) => return Err(self.end(end, memory)),
                Step::Forget { .. } => {}
                Step::Describe { tables, reading: _ } => {
                    self.describing = Some(self.main.send(Op::Describe { tables }));
                }
                step => self.send(step),
            }
        }
        Ok(self.conflict)
    }

    fn send(&mut self, step: Step) {
        let term = self.term;
        let op = match step {
            Step::Apply(batch) => Op::Batch { batch, term, done: 0 },
            Step::Settle { expected } => Op::Settle { expected, term },
            Step::BeginRows { .. } => {
                self.stamps.clear();
                self.main.send(Op::BeginRows);
                return;
            }
            Step::Row { table, change, index } => {
                self.stamps.insert(tables::by_name(&table.plan.target), table.plan.target_stamp);
                Op::Row { table, change, index }
            }
            Step::TruncateRows { tables: truncated, index, .. } => {
                for table in &truncated {
                    self.stamps.insert(tables::by_name(&table.plan.target), table.plan.target_stamp);
                }
                Op::TruncateRows { tables: truncated, index, done: 0 }
            }
            Step::CommitRows(advance) => {
                let stamps = self.stamps.iter().map(|(table, stamp)| (*table, *stamp)).collect();
                Op::CommitRows { advance, term, stamps }
            }
            Step::Describe { .. } | Step::Forget { .. } | Step::Tell(_) | Step::End(_) => return,
        };
        let token = self.main.send(op);
        self.under_way.push_back(token);
    }

    fn outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Durable { lsn, .. } | Outcome::Batch { lsn, .. } => {
                self.reported = self.reported.max(lsn);
                self.publisher.report(self.reported);
            }
            Outcome::Conflict(report) => {
                self.conflict = Some((report.commit_lsn, tables::by_name(&report.target)));
            }
            Outcome::FellBack { cause } => self.link.tell(|| format!("falls back: {cause}")),
            Outcome::Stranger(_) => self.looks = self.link.now(),
            Outcome::Planned { .. } | Outcome::Again(_) => {}
        }
    }

    fn end(&self, end: End, memory: &mut Memory) -> Ended {
        self.link.tell(|| format!("the core ends: {end:?}"));
        match end {
            End::SendAgain { until } => {
                memory.exact_until = Some(until);
                Ended::Restart
            }
            End::SendWhole => {
                memory.whole_until = self.link.now() + 2 * SECOND;
                Ended::Restart
            }
            End::AnotherWriter { .. } => Ended::TargetLost("another writer"),
            End::Unfit(unfit) if unfit.misfits.iter().any(|misfit| self.is_renamed(&misfit.target)) => {
                Ended::Retry("a target has been renamed")
            }
            End::OutOfOrder(_) | End::Relation(_) | End::Unfit(_) | End::TooLarge(_) | End::Invariant(_) => {
                self.link.world.borrow_mut().violated(format!("the core ends: {end:?}"));
                Ended::Retry("the core ended")
            }
        }
    }

    /// Whether the target has no table of this name any more.
    fn is_renamed(&self, target: &QualifiedName) -> bool {
        self.link.world.borrow().target.called(target).is_none()
    }

    /// A mutant holds today's operations against yesterday's change, and stops.
    fn hold_against_today(&self, message: &Message) {
        let (oid, operation) = match message {
            Message::Insert(insert) => (insert.relation_oid, Operations::INSERT),
            Message::Update(update) => (update.relation_oid, Operations::UPDATE),
            Message::Delete(delete) => (delete.relation_oid, Operations::DELETE),
            _ => return,
        };
        if has(Fault::TodaysOperations) && self.today.get(&oid).is_some_and(|today| !today.meet(operation)) {
            self.link.world.borrow_mut().violated(format!("{message:?} is not published today"));
        }
    }

    /// The monitor has looked at the publications.
    fn glanced(&mut self, reply: Option<PublisherReply>, memory: &mut Memory) {
        self.looking = None;
        let Some(PublisherReply::Glance(look)) = reply else { return };
        let fingerprint = look.fingerprint.clone();
        if let Some(seen) = memory.proof.take(&memory.publications, look) {
            self.link.note(Op::ReportSeen { term: self.term, seen });
        }
        memory.publications.seen = Some(fingerprint);
    }

    /// Looks at the publications once more.
    async fn has_changed(&self, memory: &Memory) -> bool {
        let reply = self.link.dial(false).ask_publisher(PublisherOp::Glance).await;
        let Ok(PublisherReply::Glance(look)) = reply else { return false };
        memory.publications.taken_up.as_ref().is_some_and(|taken_up| *taken_up != look.fingerprint)
    }

    /// What the monitor records of the publisher now and then.
    fn watch(&mut self) {
        if self.looking.is_none() {
            let connection = self.link.dial(false);
            let token = connection.send_publisher(PublisherOp::Glance);
            self.looking = Some((connection, token));
        }
        let (seen, due) = {
            let mut world = self.link.world.borrow_mut();
            let due = world.random.percent(60);
            let publisher = &world.publisher;
            let seen = crate::target::Witness {
                timeline: publisher.timeline,
                started: publisher.started,
                wal: publisher.end,
            };
            (seen, due)
        };
        // Over a connection of its own to the publisher, which is lost when that is.
        if due && !self.publisher.is_lost() && self.is_same_run(&seen) {
            self.link.note(Op::SetWitness { term: self.term, witness: seen, judged: false });
        }
    }

    fn is_same_run(&self, seen: &crate::target::Witness) -> bool {
        let world = self.link.world.borrow();
        world.conns.get(&self.publisher.id).is_some_and(|conn| conn.served) && seen.started > 0
    }

    // --- tables that join -------------------------------------------------------------------

    /// Takes in a table whose sync has come as far as the stream has been received.
    async fn hand_over(&mut self, syncing: &mut Option<Syncing<'_>>) -> Result<(), Ended> {
        let early = has(Fault::HandOverEarly);
        let is_waiting = {
            let handed = self.handed.borrow();
            let reached = handed.reached.filter(|_| !handed.finish);
            let received = self.core.received();
            reached.is_some_and(|reached| received.is_some_and(|received| received <= reached || early))
        };
        if !is_waiting {
            return Ok(());
        }
        let Some(mut sync) = syncing.take() else { return Ok(()) };
        self.handed.borrow_mut().finish = true;
        let ended = sync.as_mut().await;
        drop(sync);
        if let Some(again) = self.synced(ended).await? {
            // The next attempt takes it up again.
            self.link.tell(|| format!("{} is not handed over", again.row.source));
            return Err(Ended::Retry("a table's hand-over failed"));
        }
        Ok(())
    }

    /// What has become of a table's sync. Returns the table if it has to be tried again.
    async fn synced(&mut self, ended: Synced) -> Result<Option<Pending>, Ended> {
        *self.handed.borrow_mut() = Handed::default();
        match ended {
            Ok((table, position)) => {
                self.link.tell(|| format!("t{table} is synchronised at {position}"));
                if let Some(source) = self.sources.get(&table) {
                    self.core.set_position(source, position);
                }
                Ok(None)
            }
            Err((mut pending, attempt, Ended::Retry(why))) if attempt > 0 => {
                self.link.tell(|| format!("sync of {} failed: {why}", pending.row.source));
                hold_back(self.link, self.term, pending.published.slot, attempt).await?;
                pending.row.attempt = attempt;
                Ok(Some(pending))
            }
            Err((_, _, ended)) => Err(ended),
        }
    }
}

/// The tables that the stream follows.
fn members(start: &Start<'_>) -> Membership {
    let TakenUp { meta, published, .. } = start.taken;
    let gaps = meta.open_gaps();
    let member = |(&table, row): (&usize, &pgsluice::store::TableRow)| {
        let seen = published.iter().find(|published| published.slot == table);
        let all = tables::TABLES[table].width();
        let width = seen.map_or(all, |published| published.way.width.min(all));
        let applies = followed::applies(row, &gaps, u64::from(start.view.unused_xid));
        let member = Member {
            catalog: Arc::new(tables::published(table, width)),
            target: row.target.clone(),
            rules: Arc::default(),
            oid: row.source_oid,
            applies,
        };
        (row.source.clone(), member)
    };
    meta.tables.iter().map(member).collect()
}
