//! The instances of the service that run one configuration: one usually, two now and then.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgsluice::demo::process::Signal;
use rand::Rng as _;
use rand::rngs::StdRng;

use crate::crash::peak_rss_kib;
use crate::support::service::Service;

/// SIGTERM ends a process at once that has not yet asked for the signal.
const SIGNALS_AFTER: Duration = Duration::from_secs(3);

#[derive(Debug)]
struct Instance {
    number: u64,
    service: Service,
    began: Instant,
    is_frozen: bool,
    log: PathBuf,
}

#[derive(Debug)]
pub(super) struct Instances {
    config: PathBuf,
    logs: PathBuf,
    environment: Vec<(String, String)>,
    running: Vec<Instance>,
    started: u64,
    pub(super) peak_rss_kib: u64,
    /// Logs of those that have ended, of this round.
    ended: Vec<PathBuf>,
}

impl Instances {
    pub(super) fn new(config: &Path, logs: &Path, environment: Vec<(String, String)>) -> Self {
        Self {
            config: config.to_owned(),
            logs: logs.to_owned(),
            environment,
            running: Vec::new(),
            started: 0,
            peak_rss_kib: 0,
            ended: Vec::new(),
        }
    }

    pub(super) fn start(&mut self) -> u64 {
        self.started += 1;
        let log = self.logs.join(format!("instance-{}.log", self.started));
        let environment: Vec<(&str, &str)> =
            self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let service = Service::start(&self.config, log.clone(), &environment);
        let began = Instant::now();
        self.running.push(Instance { number: self.started, service, began, is_frozen: false, log });
        self.started
    }

    /// How many run and are not frozen.
    pub(super) fn awake(&self) -> usize {
        self.running.iter().filter(|instance| !instance.is_frozen).count()
    }

    pub(super) fn has_frozen(&self) -> bool {
        self.awake() < self.running.len()
    }

    /// An error if one has ended that nobody has stopped.
    pub(super) fn check(&mut self) -> Result<(), String> {
        for instance in &mut self.running {
            if let Some(code) = instance.service.exit_code() {
                return Err(format!(
                    "instance {} has ended by itself with exit code {code}; its log: {}",
                    instance.number,
                    instance.log.display()
                ));
            }
        }
        Ok(())
    }

    fn take_awake(&mut self, random: &mut StdRng) -> Option<Instance> {
        let awake: Vec<usize> =
            (0..self.running.len()).filter(|&index| !self.running[index].is_frozen).collect();
        let chosen = (!awake.is_empty()).then(|| awake[random.random_range(0..awake.len())])?;
        let instance = self.running.remove(chosen);
        self.peak_rss_kib = self.peak_rss_kib.max(rss_of(&instance));
        self.ended.push(instance.log.clone());
        Some(instance)
    }

    /// SIGKILL for one that is awake.
    pub(super) async fn kill(&mut self, random: &mut StdRng) -> String {
        let Some(instance) = self.take_awake(random) else { return "none is awake".to_owned() };
        let number = instance.number;
        instance.service.kill9().await;
        format!("instance {number} killed")
    }

    /// SIGTERM for one that is awake. An error if it does not end cleanly.
    pub(super) async fn terminate(&mut self, random: &mut StdRng) -> Result<String, String> {
        let Some(instance) = self.take_awake(random) else { return Ok("none is awake".to_owned()) };
        let (number, age, log) = (instance.number, instance.began.elapsed(), instance.log);
        let began = Instant::now();
        let code = instance.service.sigterm().await;
        let took = began.elapsed().as_secs_f64();
        if code == 0 || (code == -1 && age < SIGNALS_AFTER) {
            Ok(format!("instance {number} terminated in {took:.2} s"))
        } else {
            Err(format!(
                "instance {number} ended with exit code {code} at SIGTERM; its log: {}",
                log.display()
            ))
        }
    }

    /// SIGSTOP for one that is awake.
    pub(super) fn freeze(&mut self, random: &mut StdRng) -> Option<u64> {
        let awake: Vec<&mut Instance> =
            self.running.iter_mut().filter(|instance| !instance.is_frozen).collect();
        let chosen = (!awake.is_empty()).then(|| random.random_range(0..awake.len()))?;
        let instance = awake.into_iter().nth(chosen)?;
        instance.service.signal(Signal::Freeze);
        instance.is_frozen = true;
        Some(instance.number)
    }

    /// SIGCONT for all that are frozen.
    pub(super) fn thaw(&mut self) {
        for instance in self.running.iter_mut().filter(|instance| instance.is_frozen) {
            instance.service.signal(Signal::Thaw);
            instance.is_frozen = false;
        }
    }

    pub(super) fn note_memory(&mut self) {
        let peak = self.running.iter().map(rss_of).max().unwrap_or(0);
        self.peak_rss_kib = self.peak_rss_kib.max(peak);
    }

    /// Removes the logs of those that have ended: a round that went well needs them no more.
    pub(super) fn forget_logs(&mut self) {
        for log in self.ended.drain(..) {
            let _ = std::fs::remove_file(log);
        }
    }

    /// Kills all that are left, the frozen too.
    pub(super) async fn end(&mut self) {
        for instance in self.running.drain(..) {
            instance.service.kill9().await;
        }
    }
}

/// Zero if it has ended: then [`Instances::check`] tells.
fn rss_of(instance: &Instance) -> u64 {
    let runs = std::fs::read_to_string(format!("/proc/{}/status", instance.service.pid()))
        .is_ok_and(|status| status.contains("VmHWM"));
    if runs { peak_rss_kib(&instance.service) } else { 0 }
}
