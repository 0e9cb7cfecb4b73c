//! What happens in a run, decided by its seed before it begins: what the servers are like, what the publisher's
//! applications do and when, and which faults strike after which event.

use pgsluice::apply::core::Bounds;

use crate::alter::{self, Alteration, KINDS};
use crate::random::Random;
use crate::tables::{LATER, TABLES};
use crate::world::{MS, SECOND, Time};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Config {
    pub(crate) instances: usize,
    pub(crate) streaming: bool,
    pub(crate) memory: usize,
    pub(crate) sends_empty: bool,
    pub(crate) bounds: Bounds,
    /// Between two records of an idle position, at least.
    pub(crate) idle_interval: Time,
    /// The stream waits for a table's sync that comes nearer.
    pub(crate) keeps_still: bool,
    /// Some writes of the store arrive late.
    pub(crate) late_writes: bool,
    /// Tables and publications change, and so do names.
    pub(crate) publications_change: bool,
    /// The publisher fails where a publication does not exist, as before version 18.
    pub(crate) strict: bool,
    pub(crate) auto_refresh: bool,
    /// Between two looks at the publications.
    pub(crate) looks: Time,
}

#[derive(Debug, Clone)]
pub(crate) enum Action {
    Transaction {
        seed: u64,
        steps: u32,
    },
    /// WAL that nobody decodes.
    Other,
    Reannounce(usize),
    AddColumn(usize),
    Alter(Alteration),
    Ask(Wish),
}

/// What an operator asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wish {
    /// One of the gaps.
    Accept(u64),
    /// The table of a gap, or any other one.
    Resync(u64),
    Refresh,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Strike {
    Crash(usize),
    Freeze(usize, Time),
    /// The session that holds the lock ends, and its instance learns nothing of it for a while.
    TakeOver(Time),
    /// The server ends a session of the target.
    EndSession(u64),
    /// The network loses a connection.
    Cut(u64),
    EndWalsender,
    LoseBeforeCommit,
    LoseAfterCommit,
    NotSent,
    OutOfStep,
    LockTable(usize, Time),
    /// A session's definition of a target table is out of date.
    TargetDdl(usize),
    Plant(u64),
    LockIsBroken,
    PublisherRestarts,
    /// From an older copy of its data directory.
    PublisherRestored(u64),
    Promoted,
    /// A standby that lacks the last records.
    PromotedBehind(u64),
    SlotDropped,
    SlotMadeAgain,
    CopyTarget,
    RestoreTarget,
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) config: Config,
    pub(crate) actions: Vec<(Time, Action)>,
    /// After which event each strikes.
    pub(crate) strikes: Vec<(u64, Strike)>,
}

impl Strike {
    /// Whether it can strike where there are so many instances.
    pub(crate) fn suits(self, instances: usize) -> bool {
        match self {
            Self::Crash(instance) | Self::Freeze(instance, _) => instance < instances,
            _ => true,
        }
    }

    /// Whether publisher, slot and target may not belong together after it.
    fn is_doubtful(self) -> bool {
        matches!(
            self,
            Self::PublisherRestored(_)
                | Self::PromotedBehind(_)
                | Self::SlotDropped
                | Self::SlotMadeAgain
                | Self::RestoreTarget
        )
    }
}

pub(crate) fn plan(seed: u64) -> Plan {
    let mut random = Random::new(seed, 0);
    let mut config = config(&mut random);
    let mut actions = actions(&mut random);
    let mut strikes = strikes(&mut random, config.instances);
    if seed.is_multiple_of(3) {
        return changing(seed, config, actions, strikes, &mut random);
    }
    match random.below(100) {
        // Large transactions with subtransactions, and streams that begin within them.
        0..20 => {
            config.streaming = true;
            config.memory = usize::try_from(random.between(1, 3)).unwrap_or(1);
            actions.truncate(4);
            for (_, action) in &mut actions {
                if let Action::Transaction { steps, .. } = action {
                    *steps += u32::try_from(random.between(8, 25)).unwrap_or(8);
                }
            }
            for _ in 0..random.between(1, 4) {
                let strike = match random.below(4) {
                    0 => Strike::Crash(0),
                    1 => Strike::EndSession(random.next()),
                    _ => Strike::EndWalsender,
                };
                strikes.push((random.between(90, 400), strike));
            }
        }
        // Tables that join while the stream is held up, and streams that begin before their positions.
        20..35 => {
            config.streaming = true;
            config.keeps_still = false;
            config.memory = usize::try_from(random.between(1, 3)).unwrap_or(1);
            for joins in LATER..TABLES.len() {
                if random.percent(50) {
                    actions.push((random.below(300 * MS), Action::Alter(Alteration::Join(joins))));
                }
            }
            for _ in 0..2 {
                let table = random.index(LATER);
                strikes.push((
                    random.between(80, 300),
                    Strike::LockTable(table, random.between(100, 1500) * MS),
                ));
            }
            strikes.push((random.between(120, 500), Strike::Crash(0)));
        }
        // Two writers, because the lock keeps nobody out.
        35..45 => {
            config.instances = 2;
            strikes.push((random.between(20, 300), Strike::LockIsBroken));
            for _ in 0..random.between(1, 4) {
                let table = random.index(LATER);
                strikes.push((random.between(80, 700), Strike::EndWalsender));
                strikes
                    .push((random.between(80, 700), Strike::LockTable(table, random.between(50, 1500) * MS)));
            }
        }
        // Publishers that are started again, and writes that arrive late.
        45..52 => {
            config.late_writes = true;
            strikes.push((random.between(200, 900), Strike::PublisherRestarts));
            for _ in 0..random.between(1, 3) {
                strikes.push((random.between(200, 1200), Strike::EndWalsender));
            }
        }
        // Targets that go back to a copy while tables are being copied.
        52..56 => {
            config.instances = 2;
            config.late_writes = true;
            strikes.retain(|(at, _)| *at > 300);
            strikes.push((random.between(1, 12), Strike::CopyTarget));
            strikes.push((random.between(35, 80), Strike::LockTable(random.index(3), 2 * SECOND)));
            strikes.push((random.between(80, 140), Strike::RestoreTarget));
            for (at, _) in &mut actions {
                *at /= 4;
            }
        }
        _ => {}
    }
    actions.sort_by_key(|(at, _)| *at);
    strikes.sort_by_key(|(at, _)| *at);
    Plan { seed, config, actions, strikes }
}

/// Publications, tables and names that change. In each run only some kinds of that happen: where all of them do,
/// every table ends with a gap.
fn changing(
    seed: u64,
    mut config: Config,
    mut actions: Vec<(Time, Action)>,
    mut strikes: Vec<(u64, Strike)>,
    random: &mut Random,
) -> Plan {
    config.publications_change = true;
    config.strict = random.percent(50);
    config.auto_refresh = random.percent(80);
    config.looks = random.pick(&[100, 300, 1000]).unwrap_or(&300) * MS;
    let span = random.between(300, 3000) * MS;
    let kinds: Vec<u64> = (0..random.between(1, 3)).map(|_| random.below(KINDS)).collect();
    for _ in 0..random.between(1, 5) {
        let at = random.below(span);
        let Some(&kind) = random.pick(&kinds) else { break };
        let alteration = alter::any(kind, random);
        let table = match &alteration {
            Alteration::Leave(table) => Some(*table),
            _ => None,
        };
        actions.push((at, Action::Alter(alteration)));
        if let Some(table) = table.filter(|_| random.percent(60)) {
            let later = if random.percent(50) { random.below(100) } else { random.below(2000) } * MS;
            actions.push((at + later, Action::Alter(Alteration::Join(table))));
        }
    }
    for _ in 0..random.below(3) {
        let wish = match random.below(5) {
            0..2 => Wish::Accept(random.next()),
            2..4 => Wish::Resync(random.next()),
            _ => Wish::Refresh,
        };
        actions.push((random.below(2 * span), Action::Ask(wish)));
    }
    // What others plant is not told from what a gap explains.
    strikes.retain(|(_, strike)| !matches!(strike, Strike::Plant(_) | Strike::LockIsBroken));
    if random.percent(75) {
        strikes.retain(|(_, strike)| !strike.is_doubtful());
    }
    for _ in 0..random.below(3) {
        let strike = match random.below(4) {
            0 => Strike::EndWalsender,
            1 => Strike::LockTable(random.index(TABLES.len()), random.between(50, 1500) * MS),
            2 => Strike::PublisherRestarts,
            _ => Strike::Crash(0),
        };
        strikes.push((random.between(60, 900), strike));
    }
    actions.sort_by_key(|(at, _)| *at);
    strikes.sort_by_key(|(at, _)| *at);
    Plan { seed, config, actions, strikes }
}

fn config(random: &mut Random) -> Config {
    let changes = *random.pick(&[2, 3, 4, 6, 1000]).unwrap_or(&4);
    Config {
        instances: if random.percent(40) { 2 } else { 1 },
        streaming: random.percent(65),
        memory: *random.pick(&[1, 2, 3, 5, 8]).unwrap_or(&3),
        sends_empty: random.percent(40),
        bounds: Bounds { changes, bytes: 1 << 20 },
        idle_interval: random.pick(&[0, 100, 1000]).unwrap_or(&0) * MS,
        keeps_still: random.percent(50),
        late_writes: random.percent(40),
        publications_change: false,
        strict: false,
        auto_refresh: true,
        looks: 500 * MS,
    }
}

fn actions(random: &mut Random) -> Vec<(Time, Action)> {
    let span = random.between(50, 2500) * MS;
    let mut actions = Vec::new();
    let transactions = random.between(3, 22);
    for _ in 0..transactions {
        let steps = if random.percent(20) { random.between(8, 25) } else { random.between(1, 6) };
        let steps = u32::try_from(steps).unwrap_or(1);
        actions.push((random.below(span), Action::Transaction { seed: random.next(), steps }));
    }
    for _ in 0..random.below(3) {
        actions.push((random.below(span), Action::Other));
    }
    let table = |random: &mut Random| random.index(TABLES.len());
    if random.percent(25) {
        actions.push((random.below(span), Action::Reannounce(table(random))));
    }
    if random.percent(25) {
        actions.push((random.below(span), Action::AddColumn(table(random))));
    }
    for joins in LATER..TABLES.len() {
        if random.percent(30) {
            let at = random.below(span);
            actions.push((at, Action::Alter(Alteration::Join(joins))));
            if random.percent(20) {
                actions.push((at + random.below(SECOND), Action::Alter(Alteration::Leave(joins))));
            }
        }
    }
    actions.sort_by_key(|(at, _)| *at);
    actions
}

fn strikes(random: &mut Random, instances: usize) -> Vec<(u64, Strike)> {
    let count = if random.percent(15) { 0 } else { random.between(1, 4) };
    let mut strikes = Vec::new();
    for _ in 0..count {
        let at = random.between(5, 900);
        let instance = random.index(instances);
        let time = random.between(20, 4000) * MS;
        let table = random.index(TABLES.len());
        let strike = match random.below(100) {
            0..16 => Strike::Crash(instance),
            16..20 => Strike::Freeze(instance, time),
            20..27 => Strike::TakeOver(time),
            27..33 => Strike::EndSession(random.next()),
            33..39 => Strike::Cut(random.next()),
            39..43 => Strike::EndWalsender,
            43..47 => Strike::LoseBeforeCommit,
            47..53 => Strike::LoseAfterCommit,
            53..58 => Strike::NotSent,
            58..61 => Strike::OutOfStep,
            61..69 => Strike::LockTable(table, time / 4),
            69..71 => Strike::TargetDdl(table),
            71..78 => Strike::Plant(random.next()),
            78..81 => Strike::LockIsBroken,
            81..84 => Strike::PublisherRestarts,
            84..88 => Strike::PublisherRestored(random.next()),
            88..90 => Strike::Promoted,
            90..92 => Strike::PromotedBehind(random.next()),
            92..93 => Strike::SlotDropped,
            93..96 => Strike::SlotMadeAgain,
            _ => {
                strikes.push((random.below(at), Strike::CopyTarget));
                Strike::RestoreTarget
            }
        };
        strikes.push((at, strike));
    }
    strikes.sort_by_key(|(at, _)| *at);
    strikes
}
