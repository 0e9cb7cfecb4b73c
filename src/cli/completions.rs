//! `pgsluice completions SHELL` prints the completions of a shell.

use clap_complete::Shell;

use crate::error::{Exit, Failure};

use super::output;

pub(super) fn run(shell: Shell, command: &mut clap::Command) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "pgsluice", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Fine)
}
