//! One run of a plan: events, faults, instances, until everything is quiet, and then the verdict.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use crate::alter::{alter, redescribe, restore};
use crate::faults::strike;
use crate::link::Link;
use crate::plan::{Action, Plan, Wish};
use crate::random::Random;
use crate::service;
use crate::target::Command;
use crate::verdict::{self, Verdict};
use crate::world::{Event, MS, Reason, SECOND, Shown, Time, World};

/// A run that takes longer never comes to rest.
const EVENTS_MAX: u64 = 60_000;
const TIME_MAX: Time = 240 * SECOND;

pub(crate) type Task = Pin<Box<dyn Future<Output = ()>>>;

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) violation: Option<String>,
    pub(crate) story: Vec<String>,
    pub(crate) ended: &'static str,
}

pub(crate) struct Run {
    pub(crate) world: Rc<RefCell<World>>,
    pub(crate) tasks: Vec<Option<Task>>,
    plan: Plan,
    /// Transactions that have not ended.
    steps: usize,
    acted: usize,
    struck: usize,
}

pub(crate) fn run(plan: &Plan, tells: bool) -> Outcome {
    let world = Rc::new(RefCell::new(World::new(plan.seed, plan.config, tells)));
    let mut run = Run {
        world,
        tasks: (0..plan.config.instances).map(|_| None).collect(),
        plan: plan.clone(),
        steps: 0,
        acted: 0,
        struck: 0,
    };
    run.begin();
    let ended = run.go();
    // Their connections close.
    run.tasks.clear();
    let mut world = run.world.borrow_mut();
    Outcome { violation: world.violation.take(), story: world.story.take().unwrap_or_default(), ended }
}

impl Run {
    fn begin(&mut self) {
        let mut world = self.world.borrow_mut();
        for instance in 0..self.plan.config.instances {
            let at = world.random.below(20) * MS;
            world.schedule(at, Event::Start { instance });
        }
        world.schedule(100 * MS, Event::Keepalives);
        for (at, (time, _)) in self.plan.actions.iter().enumerate() {
            world.schedule(*time, Event::Act(at));
        }
    }

    fn go(&mut self) -> &'static str {
        loop {
            let popped = self.world.borrow_mut().pop();
            let Some(event) = popped else { return "nothing is left" };
            let looks = matches!(event, Event::Keepalives);
            self.happen(event);
            self.world.borrow_mut().retry();
            self.poll();
            self.attend();
            self.strike();
            if self.world.borrow().violation.is_some() {
                return "violated";
            }
            if looks && self.is_over() {
                // Again, because a server may be restored or promoted afterwards.
                let mut random = Random::new(self.plan.seed, 6);
                restore(&mut self.world.borrow_mut(), &mut random);
                let verdict = verdict::look(&mut self.world.borrow_mut());
                if let Verdict::Over(how) = verdict {
                    return how;
                }
            }
            let mut world = self.world.borrow_mut();
            if world.events > EVENTS_MAX || world.now > TIME_MAX {
                let state: Vec<Shown> = world.instances.iter().map(|instance| instance.shown).collect();
                let (progress, end) = (world.target.meta.progress, world.publisher.end);
                let tables = format!("{:?}", world.target.meta.tables);
                world.violated(format!("never quiet: {state:?}, {progress:?}, WAL {end}, {tables}"));
                return "never quiet";
            }
        }
    }

    fn is_over(&self) -> bool {
        let world = self.world.borrow();
        self.acted == self.plan.actions.len()
            && self.steps == 0
            && world.history.to_come == 0
            && world.publisher.is_quiet()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Act(at) => self.act(at),
            Event::Step { top, left, seed } => self.step(top, left, seed),
            Event::Start { instance } => {
                let link = Link { world: Rc::clone(&self.world), instance };
                link.show(Shown::Standby);
                self.tasks[instance] = Some(Box::pin(service::run(link)));
            }
            Event::Alter(what) => {
                let mut world = self.world.borrow_mut();
                world.history.to_come -= 1;
                let mut random = Random::new(self.plan.seed, 1000 + world.events);
                alter(&mut world, what, &mut random);
            }
            Event::Operator => verdict::repair(&mut self.world.borrow_mut()),
            event => self.world.borrow_mut().happen(event),
        }
    }

    fn act(&mut self, at: usize) {
        let action = self.plan.actions[at].1.clone();
        self.acted += 1;
        let mut random = Random::new(self.plan.seed, 100 + at as u64);
        let mut world = self.world.borrow_mut();
        let world = &mut *world;
        match action {
            Action::Transaction { seed, steps } => {
                if let Some(top) = world.publisher.begin(&mut Random::new(seed, 2)) {
                    world.tell(|| format!("publisher: transaction {top} begins"));
                    self.steps += 1;
                    world.after(0, Event::Step { top, left: steps, seed });
                }
                return;
            }
            Action::Other => world.publisher.other(&mut random),
            Action::Reannounce(table) => redescribe(&mut world.publisher, table, false, &mut random),
            Action::AddColumn(table) => redescribe(&mut world.publisher, table, true, &mut random),
            Action::Alter(what) => return alter(world, what, &mut random),
            Action::Ask(wish) => return ask(world, wish),
        }
        world.tell(|| format!("publisher: {:?}", self.plan.actions[at].1));
        world.wake_walsenders();
    }

    /// A transaction goes on.
    fn step(&mut self, top: u32, left: u32, seed: u64) {
        let mut random = Random::new(seed, 10 + u64::from(left));
        let mut world = self.world.borrow_mut();
        let world = &mut *world;
        if left == 0 {
            self.steps -= 1;
            if random.percent(12) {
                world.tell(|| format!("publisher: transaction {top} aborts"));
                world.publisher.abort(top, &mut random);
            } else {
                world.publisher.commit(top, &mut random);
                let end = world.publisher.end;
                world.tell(|| format!("publisher: transaction {top} commits, WAL ends at {end}"));
            }
            return world.wake_walsenders();
        }
        match random.below(100) {
            0..8 => world.publisher.savepoint(top),
            8..12 => world.publisher.rollback_to(top, &mut random),
            12..16 => world.publisher.release(top),
            _ => {
                for _ in 0..random.between(1, 3) {
                    world.publisher.change(top, &mut random);
                }
            }
        }
        world.wake_walsenders();
        let gap = if random.percent(70) { random.below(3 * MS) } else { random.below(120 * MS) };
        world.after(gap, Event::Step { top, left: left - 1, seed });
    }

    /// Lets every instance that is not stopped go on, until none of them can.
    fn poll(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        for instance in 0..self.tasks.len() {
            if self.world.borrow().instances[instance].frozen {
                continue;
            }
            if let Some(task) = &mut self.tasks[instance] {
                // They run until they are dropped.
                let _ = task.as_mut().poll(&mut context);
            }
        }
    }

    fn strike(&mut self) {
        while let Some(&(at, what)) = self.plan.strikes.get(self.struck) {
            if self.world.borrow().events < at {
                return;
            }
            self.struck += 1;
            strike(self, what);
        }
    }

    /// Looks at instances that have paused.
    fn attend(&mut self) {
        let mut world = self.world.borrow_mut();
        let paused = world.instances.iter().find_map(|instance| match instance.shown {
            Shown::Paused(Reason::Conflict(lsn, table)) if !instance.resume && !instance.frozen => {
                Some((lsn, table))
            }
            _ => None,
        });
        if let Some((lsn, table)) = paused
            && world.attended != Some((lsn, table))
        {
            world.attended = Some((lsn, table));
            verdict::conflict(&mut world, lsn, table);
            let later = world.random.between(1, 300) * MS;
            world.after(later, Event::Operator);
        }
    }
}

/// An operator asks for something.
fn ask(world: &mut World, wish: Wish) {
    let gaps = world.target.meta.open_gaps();
    let command = match wish {
        Wish::Refresh => Command::Refresh,
        Wish::Accept(pick) => match Random::new(pick, 3).pick(&gaps) {
            Some(gap) => Command::Accept(gap.id),
            None => return,
        },
        Wish::Resync(pick) => {
            let tables: Vec<usize> = world.target.meta.tables.keys().copied().collect();
            let table = match Random::new(pick, 3).pick(&gaps).and_then(|gap| gap.table.as_ref()) {
                Some(name) => crate::tables::by_name(name),
                None => *Random::new(pick, 4).pick(&tables).unwrap_or(&1),
            };
            Command::Resync(table)
        }
    };
    world.target.meta.commands.push_back(command);
    world.tell(|| format!("an operator asks: {command:?}"));
}
