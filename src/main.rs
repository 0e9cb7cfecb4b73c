//! The binary: parses arguments and calls the library.
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

/// Returns half the number of cores. On a small machine, handing a change from thread to thread takes
/// longer than processing it, and servers on the same machine keep the other cores.
fn threads() -> usize {
    available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}
