//! The program: everything is in the library.
//!
//! Exit codes: 0 fine; 1 the answer is no (something is paused, refused or not running);
//! 2 the command line or the configuration is wrong; 3 publisher or target could not be reached.

#[tokio::main]
async fn main() -> std::process::ExitCode {
    pgsluice::cli::main().await
}
