//! The program: everything is in the library.
//!
//! Exit codes: 0 fine; 1 the answer is no (something is paused, refused or not running);
//! 2 the command line or the configuration is wrong; 3 publisher or target could not be reached.

use std::io::Write as _;
use std::process::ExitCode;
use std::thread::available_parallelism;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads()).enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(pgsluice::cli::main()),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "pgsluice: its threads cannot be started: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Half the cores, so that on a small machine a change is not handed from thread to thread on its way, which
/// takes longer than all that is done to it, and the servers beside us keep theirs.
fn threads() -> usize {
    available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}
