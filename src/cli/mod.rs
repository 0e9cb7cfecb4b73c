//! The command line: parses arguments, runs one command, and prints its answer as text or JSON.
//!
//! ```text
//! arguments ─▶ command ─▶ store (reads state, records commands) ─▶ rendering ─▶ stdout, exit code
//! ```
//!
//! Each command has a file. Commands decide nothing about replication: they record what is asked for,
//! and the running service answers. Rendering is pure (values in, text out). Answers go to stdout,
//! failures to stderr as primary, detail and hint; exit codes are [`crate::error::Exit`].

mod ask;
mod check;
mod completions;
mod conflicts;
mod context;
mod demo;
mod drop;
mod healthcheck;
mod later;
mod migrate;
mod output;
mod pause;
mod resync;
mod run;
mod skip;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::conflict::Resolution;
use crate::error::{Exit, Failure};
use crate::pg::{Lsn, QualifiedName, SubscriptionName};

/// A standalone logical replication subscriber for PostgreSQL.
///
/// Exit codes: 0 fine; 1 the answer is no (a check failed, something is paused, refused or not
/// running); 2 usage or configuration; 3 publisher or target could not be reached.
#[derive(Debug, Parser)]
#[command(name = "pgsluice", version, max_term_width = 100, propagate_version = true)]
struct Cli {
    /// Configuration file [default: config/pgsluice.toml].
    #[arg(long, global = true, value_name = "FILE", env = "PGSLUICE_CONFIG")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run every subscription in the configuration until SIGTERM or SIGINT; SIGHUP reloads.
    Run,
    /// Check publisher and target before anything is replicated, each fault with its remedy.
    Check(CheckArgs),
    /// Show state, reason, positions, lag and tables. Exits with 1 if anything is paused or not running.
    Status(StatusArgs),
    /// Pause a subscription; nothing is lost while it waits.
    Pause(NameArgs),
    /// Resume a paused subscription; on a conflict, try its transaction again.
    Resume(NameArgs),
    /// Show what stopped a subscription, with the full evidence, and decide about it.
    Conflicts(ConflictsArgs),
    /// Pass over exactly the transaction that finishes at an LSN, also ahead of time.
    Skip(SkipArgs),
    /// Add tables that were added to the publications, and remove those that were removed.
    Refresh(RefreshArgs),
    /// Synchronise tables again while the others keep streaming.
    Resync(ResyncArgs),
    /// Go on without what may be missing in a gap, as `status` shows it.
    Accept(AcceptArgs),
    /// Remove a subscription with its slot and state; the target's rows stay.
    Drop(NameArgs),
    /// Create or upgrade schema pgsluice in the target (`run` does it too).
    Migrate,
    /// Ask the service on this machine whether it runs (for a container's health check).
    Healthcheck,
    /// See it work: two throw-away PostgreSQL servers, replication, a conflict and its remedy.
    Demo(DemoArgs),
    /// Print the completions of a shell.
    Completions { shell: Shell },
}

#[derive(Debug, Args)]
struct NameArgs {
    /// The subscription's name.
    name: SubscriptionName,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// Only this subscription.
    name: Option<SubscriptionName>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// Only this subscription, with all its tables.
    name: Option<SubscriptionName>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    /// Repeat every second until interrupted.
    #[arg(long, conflicts_with = "json")]
    watch: bool,
}

#[derive(Debug, Args)]
struct ConflictsArgs {
    #[command(subcommand)]
    command: Option<ConflictsCommand>,
    /// Print one JSON document.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum ConflictsCommand {
    /// List the conflicts that wait for a decision (the default).
    List {
        /// Include settled conflicts.
        #[arg(long)]
        all: bool,
    },
    /// Show one conflict with its evidence.
    Show { id: i64 },
    /// Decide about one conflict.
    Resolve(ResolveArgs),
}

#[derive(Debug, Args)]
struct ResolveArgs {
    id: i64,
    /// What to do about it.
    #[arg(long, value_name = "HOW", value_parser = conflicts::resolution_parser())]
    with: Resolution,
    /// Only show what the decision would change.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct SkipArgs {
    /// The subscription's name.
    name: SubscriptionName,
    /// Where the transaction finishes, as `pgsluice conflicts` shows it.
    #[arg(long)]
    lsn: Lsn,
}

#[derive(Debug, Args)]
struct RefreshArgs {
    /// The subscription's name.
    name: SubscriptionName,
    /// Do not copy the rows that added tables have already.
    #[arg(long)]
    no_copy: bool,
}

#[derive(Debug, Args)]
struct ResyncArgs {
    /// The subscription's name.
    name: SubscriptionName,
    /// The publisher's tables, as `schema.table`.
    #[arg(required = true, value_name = "TABLE")]
    tables: Vec<QualifiedName>,
    /// Truncate the target table first: faster, but nobody can read it meanwhile.
    #[arg(long, conflicts_with = "merge")]
    truncate: bool,
    /// Write only rows that differ, found by a unique key of the target.
    #[arg(long)]
    merge: bool,
}

#[derive(Debug, Args)]
struct AcceptArgs {
    /// The subscription's name.
    name: SubscriptionName,
    /// The gap's number, as `pgsluice status` shows it.
    #[arg(long, value_name = "ID")]
    gap: i64,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Leave the servers running and print how to connect.
    #[arg(long)]
    keep: bool,
}

/// Parses the process's arguments and runs the command. Usage errors end the process with exit code 2.
pub async fn main() -> ExitCode {
    let cli = Cli::parse();
    let _armed = crate::boundary::arm();
    match dispatch(cli).await {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output::report(&failure.diagnosis);
            failure.exit.into()
        }
    }
}

async fn dispatch(cli: Cli) -> Result<Exit, Failure> {
    let config = || context::load(cli.config.as_deref());
    match cli.command {
        Command::Run => run::run(config()?, cli.config.as_deref()).await,
        Command::Check(args) => check::run(&config()?, &args).await,
        Command::Status(args) => status::run(&config()?, args).await,
        Command::Pause(args) => pause::pause(&config()?, &args.name).await,
        Command::Resume(args) => pause::resume(&config()?, &args.name).await,
        Command::Conflicts(args) => conflicts::run(&config()?, args).await,
        Command::Skip(args) => skip::run(&config()?, &args).await,
        Command::Refresh(args) => resync::refresh(&config()?, &args).await,
        Command::Resync(args) => resync::run(&config()?, &args).await,
        Command::Accept(args) => resync::accept(&config()?, &args).await,
        Command::Drop(args) => {
            let config = config()?;
            drop::run(&args.name, async |name| crate::runtime::drop_subscription(&config, name).await).await
        }
        Command::Migrate => migrate::run(&config()?).await,
        Command::Healthcheck => healthcheck::run(&config()?).await,
        Command::Demo(args) => demo::run(&args).await,
        Command::Completions { shell } => completions::run(shell, &mut Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("pgsluice").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_contract_parses() {
        for line in [
            "run",
            "--config a.toml run",
            "run --config a.toml",
            "check",
            "check my_subscription --json",
            "status",
            "status my_subscription --watch",
            "status --json",
            "pause my_subscription",
            "resume my_subscription",
            "conflicts",
            "conflicts --json",
            "conflicts list --all --json",
            "conflicts show 7 --json",
            "conflicts resolve 7 --with retry",
            "conflicts resolve 7 --with apply-remote --dry-run",
            "conflicts resolve 7 --with keep-local",
            "conflicts resolve 7 --with skip-transaction",
            "skip my_subscription --lsn 0/16B3748",
            "refresh my_subscription --no-copy",
            "resync my_subscription public.widgets",
            "resync my_subscription public.widgets public.gadgets --merge",
            "resync my_subscription public.widgets --truncate",
            "accept my_subscription --gap 7",
            "drop my_subscription",
            "migrate",
            "healthcheck",
            "demo --keep",
            "completions bash",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn what_is_no_command_is_usage() {
        for line in [
            "",
            "statsu",
            "pause",
            "skip my_subscription",
            "skip my_subscription --lsn here",
            "conflicts resolve 7",
            "conflicts resolve 7 --with force",
            "conflicts show seven",
            "resync my_subscription a.b.c",
            "resync my_subscription",
            "resync my_subscription public.widgets --merge --truncate",
            "accept my_subscription",
            "status --json --watch",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
