//! CPU time and memory of processes, from /proc.

use std::collections::HashMap;
use std::time::Duration;

use pgsluice::demo::Session;

use crate::Result;
use crate::stand::Stand;

/// Length of a clock tick in /proc (`USER_HZ`), which is 100 per second on Linux.
const TICK: Duration = Duration::from_millis(10);

/// CPU time of groups of processes: user and system time. For a process that has ended, the last value
/// seen counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cpu {
    seen: HashMap<(Group, u32), Duration>,
}

/// The processes whose CPU time is added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Group {
    /// The publisher's walsenders and backends.
    Publisher,
    /// Backends of the target, and the workers of its own subscription.
    Target,
    /// The process of pgsluice.
    Sluice,
}

impl Cpu {
    /// Reads the CPU time of all processes that serve a contestant now.
    pub(crate) async fn look(
        &mut self,
        publisher: &Session,
        target: &Session,
        sluice: Option<u32>,
    ) -> Result<()> {
        for (group, session) in [(Group::Publisher, publisher), (Group::Target, target)] {
            for row in session.rows(Stand::BUSY_PIDS).await? {
                if let Some(pid) = row.first().and_then(|pid| pid.as_deref()?.parse().ok()) {
                    self.note(group, pid);
                }
            }
        }
        if let Some(pid) = sluice {
            self.note(Group::Sluice, pid);
        }
        Ok(())
    }

    fn note(&mut self, group: Group, pid: u32) {
        if let Some(time) = cpu_time(pid) {
            self.seen.insert((group, pid), time);
        }
    }

    pub(crate) fn seconds(&self, group: Group) -> f64 {
        self.seen.iter().filter(|((of, _), _)| *of == group).map(|(_, time)| time.as_secs_f64()).sum()
    }
}

/// Returns the CPU time of a process. Reads /proc/PID/stat: after the command's name in parentheses, utime and stime are the 12th and 13th
/// field (proc(5)).
pub(crate) fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut ticks = fields.split_ascii_whitespace().skip(11).map(str::parse::<u32>);
    let (user, system) = (ticks.next()?.ok()?, ticks.next()?.ok()?);
    Some(TICK * (user + system))
}

/// Returns the peak resident memory of a process, bytes.
pub(crate) fn peak_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
