//! The soak: everything that may go wrong, at random from a seed, under load, for as long as asked for;
//! and both sides must hold the same rows, each transaction once, after each round.
//!
//! ```text
//! load ──▶ publisher ──proxy──▶ pgsluice (one instance or two) ──proxy──▶ target
//!              ▲                  ▲                                         ▲
//!              └──── faults, one after the other, some of them lasting ─────┘
//! ```
//! `scripts/soak faults` runs it for an hour; the suite, for a few seconds. docs/reliability.md tells how
//! to replay a run. A seed replays the choices of load and faults; the moments are the machine's.
//!
//! - `PGSLUICE_SEED`: the seed of an earlier run.
//! - `PGSLUICE_SOAK_SECONDS`: how long load and faults go on.
//! - `PGSLUICE_SOAK_WITHOUT`: kinds of faults and of work to leave out, separated by commas.

mod ddl;
mod faults;
mod instances;
mod journal;
mod kinds;
mod load;
mod schema;
mod stage;
mod verdict;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Command;
use std::task::Poll;
use std::time::Duration;

use pgsluice::demo::cluster::StopMode;

use crate::crash::number;
use kinds::Selection;
use stage::{Stage, StageOptions};

const SECONDS_DEFAULT: u64 = 20;
/// Rows of the largest transactions, in a run of less than [`LONG`] and in others.
const BULK_ROWS_MAX: [u64; 2] = [20_000, 200_000];
const LONG: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_by_faults_at_random() {
    let seed = number("PGSLUICE_SEED").unwrap_or_else(rand::random);
    let seconds = number("PGSLUICE_SOAK_SECONDS").unwrap_or(SECONDS_DEFAULT);
    let selection = Selection::without(&std::env::var("PGSLUICE_SOAK_WITHOUT").unwrap_or_default());
    let replay = format!(
        "PGSLUICE_SEED={seed} PGSLUICE_SOAK_SECONDS={seconds} PGSLUICE_SOAK_WITHOUT={}",
        selection.left_out()
    );
    println!("{replay} replays this run's choices");
    let duration = Duration::from_secs(seconds);
    let bulk_rows_max = BULK_ROWS_MAX[usize::from(duration >= LONG)];
    let mut stage = Stage::start(StageOptions { seed, selection, bulk_rows_max }).await;
    let ended = caught(stage.run(duration)).await;
    stage.end().await;
    println!("{}", stage.summary());
    if let Err(problem) = ended {
        let kept = keep(&mut stage, seed).await;
        println!("---- all that was done ----\n{}\n----", stage.journal.text());
        panic!("{problem}\n{replay}\nservers and logs are kept in {}", kept.display());
    }
}

/// Turns a panic into an error, so that what is needed to find its cause can be kept.
async fn caught(future: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
        polled.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Poll::Ready(Err(text.unwrap_or_else(|| "a panic".to_owned())))
        })
    })
    .await
}

/// Stops the servers and copies their directories, and the service's logs.
async fn keep(stage: &mut Stage, seed: u64) -> PathBuf {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("soak-{seed}"));
    let _ = std::fs::remove_dir_all(&kept);
    std::fs::create_dir_all(&kept).expect("the build's directory for tests can be written");
    let mut directories = vec![("logs", stage.world.dir().to_owned())];
    for (name, server) in stage.world.servers() {
        let _ = server.stop(StopMode::Fast).await;
        directories.push((name, server.directory().to_owned()));
    }
    for (name, directory) in directories {
        let copied = Command::new("cp").arg("-a").arg(directory).arg(kept.join(name)).status();
        assert!(copied.is_ok_and(|status| status.success()), "{name} could not be copied");
    }
    kept
}
