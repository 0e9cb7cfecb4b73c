//! A session with `replication=database`: start-up, then one command at a time.
//!
//! ```text
//! establish ─▶ StartupMessage ─▶ auth ─▶ parameters, ReadyForQuery ─▶ commands ─▶ start ─▶ stream
//! ```
//! The session's settings make values arrive in a form that any target reads back unchanged (ISO dates,
//! postgres intervals, shortest exact floats; `libpqrcv_connect` does the same). They also lift the
//! role's time-outs, because the exported snapshot of a slot lives in an idle transaction.
//!
//! # Invariants
//! - A command is sent only when the answer to the one before has been read completely. If a command's
//!   future is dropped, the connection refuses further commands.
//! - Results are bounded in bytes; they are catalog rows, not tables.
//! - Commands have no time limit of their own: creating a slot waits for the publisher's running
//!   transactions. The caller decides how long to wait, and drops the connection.

use std::time::Duration;

use bytes::Bytes;
use postgres_protocol::message::frontend;
use tracing::debug;

use super::auth::{authenticate, lost};
use super::channel::{Channel, ChannelError};
use super::command::{self, SlotSpec, StartOptions, WhenActive};
use super::error::{CommandError, CommandErrorKind};
use super::stream::ReplicationStream;
use super::wire::{self, Row, WireError};
use crate::boundary;
use crate::error::ServerError;
use crate::net::{
    ConnectError, ConnectErrorKind, Dialed, Login, LoginError, MESSAGE_BYTES_MAX, NetStream, Purpose, Step,
    establish, server_version_num,
};
use crate::pg::conninfo::{ConnInfo, Host, TargetSessionAttrs};
use crate::pg::{ImposedLimit, Lsn, SlotName, TimeLimits, TimelineHistory};

/// Settings that the session relies on; the user's own `options` come first and yield to these.
const OPTIONS: &str = "-c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=3 \
                       -c lc_monetary=C -c bytea_output=hex -c timezone=UTC -c search_path= \
                       -c standard_conforming_strings=on";

/// Largest size of a result, bytes.
const RESULT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Longest time for a graceful close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Options of the session in addition to the connection string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// Name of the session in `pg_stat_replication` and for `synchronous_standby_names`.
    pub application_name: String,
    /// Encoding in which values arrive: that of the target database.
    pub client_encoding: String,
}

/// A replication session with the publisher that is ready for a command.
#[derive(Debug)]
pub struct ReplicationConnection {
    channel: Channel,
    state: State,
    server_version_num: u32,
    host: Host,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// A command is running, or its future was dropped while it ran.
    Busy,
}

/// The answer to `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The cluster's system identifier, which its standbys share.
    pub system_id: String,
    pub timeline: u32,
    /// The end of the WAL that the publisher has flushed.
    pub xlog_position: Lsn,
    pub dbname: Option<String>,
}

/// The answer to `CREATE_REPLICATION_SLOT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedSlot {
    pub name: String,
    /// Transactions that commit after it are streamed; those up to it are in the snapshot.
    pub consistent_point: Lsn,
    /// The name for `SET TRANSACTION SNAPSHOT`, valid until this session's next command or end.
    pub snapshot: Option<String>,
}

impl ReplicationConnection {
    /// Connects to the first host that fits, and authenticates; `connect_timeout` bounds each host.
    pub async fn connect(info: &ConnInfo, options: &SessionOptions) -> Result<Self, ConnectError> {
        establish(info, &ReplicationLogin { info, options }).await
    }

    /// Starts a session up on a stream: for the fuzz target of start-up messages.
    #[doc(hidden)]
    pub async fn over(
        stream: NetStream,
        info: &ConnInfo,
        options: &SessionOptions,
    ) -> Result<Self, Box<ConnectErrorKind>> {
        let host = info.hosts.first().cloned().ok_or(ConnectErrorKind::NoAddress)?;
        let login = ReplicationLogin { info, options };
        login.log_in(Dialed { stream, host }).await.map_err(|error| error.kind)
    }

    /// Returns the publisher's version as a number: 150018 for 15.18.
    #[must_use]
    pub fn server_version_num(&self) -> u32 {
        self.server_version_num
    }

    /// Returns a run-time parameter as last reported by the server (`server_encoding`, …).
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.channel.parameter(name)
    }

    /// Returns the configured host that this session is connected to.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    pub async fn identify_system(&mut self) -> Result<SystemIdentity, CommandError> {
        let command = "IDENTIFY_SYSTEM";
        let rows = self.run(command, command).await?;
        let row = single(command, &rows)?;
        Ok(SystemIdentity {
            system_id: text(command, row, 0, "systemid")?.to_owned(),
            timeline: parsed(command, row, 1, "timeline", "a timeline's number")?,
            xlog_position: parsed(command, row, 2, "xlogpos", "an LSN")?,
            dbname: row.text(3).map(str::to_owned),
        })
    }

    /// `TIMELINE_HISTORY`: the ancestors of `timeline`. Timeline 1 has none, and no history file.
    ///
    /// # Errors
    /// The server has no such file, or what it holds is no timeline's history.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<TimelineHistory, CommandError> {
        if timeline == 1 {
            return Ok(TimelineHistory::first(timeline));
        }
        let command = "TIMELINE_HISTORY";
        let rows = self.run(command, &format!("{command} {timeline}")).await?;
        let row = single(command, &rows)?;
        let content = row.get(1).ok_or_else(|| malformed(command, "content", "a timeline's history"))?;
        TimelineHistory::parse(timeline, content)
            .map_err(|error| CommandError::new(command, CommandErrorKind::Timeline(error)))
    }

    /// Runs SQL in the session's database and returns all rows as text values. Several statements
    /// run as one transaction, and their rows follow one another.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<Row>, CommandError> {
        self.run("a query", sql).await
    }

    /// The time-outs that hold although the session has lifted all of them.
    pub async fn imposed_limits(&mut self) -> Result<Vec<ImposedLimit>, CommandError> {
        let command = "a query for time-outs";
        let rows = self.run(command, &TimeLimits::NONE.imposed(self.server_version_num)).await?;
        rows.iter()
            .map(|row| {
                Ok(ImposedLimit {
                    name: text(command, row, 0, "name")?.to_owned(),
                    milliseconds: text(command, row, 1, "setting")?.to_owned(),
                })
            })
            .collect()
    }

    /// Creates a slot. Waits for transactions that are running at the publisher.
    pub async fn create_slot(&mut self, spec: &SlotSpec) -> Result<CreatedSlot, CommandError> {
        let command = "CREATE_REPLICATION_SLOT";
        let sql = command::create_slot(spec, self.server_version_num)
            .map_err(|error| CommandError::new(command, CommandErrorKind::Unsupported(error)))?;
        let lost = || Err(CommandError::new(command, CommandErrorKind::Closed));
        let rows = boundary::deed!("slot::create", self.run(command, &sql).await, lost())?;
        let row = single(command, &rows)?;
        Ok(CreatedSlot {
            name: text(command, row, 0, "slot_name")?.to_owned(),
            consistent_point: parsed(command, row, 1, "consistent_point", "an LSN")?,
            snapshot: row.text(2).map(str::to_owned),
        })
    }

    pub async fn drop_slot(&mut self, name: &SlotName, when_active: WhenActive) -> Result<(), CommandError> {
        self.run("DROP_REPLICATION_SLOT", &command::drop_slot(name, when_active)).await.map(drop)
    }

    /// Starts streaming. If this fails, the connection is closed.
    pub async fn start(mut self, options: &StartOptions) -> Result<ReplicationStream, CommandError> {
        let command = "START_REPLICATION";
        let sql = command::start_replication(options, self.server_version_num)
            .map_err(|error| CommandError::new(command, CommandErrorKind::Unsupported(error)))?;
        self.send(command, &sql).await?;
        let broken = |error| CommandError::channel(command, error);
        let message = self.channel.receive().await.map_err(broken)?;
        match message.tag {
            b'W' => {
                self.channel.limit_messages(MESSAGE_BYTES_MAX + 1);
                Ok(ReplicationStream::new(self.channel))
            }
            b'E' => Err(CommandError::new(
                command,
                CommandErrorKind::Server(Box::new(wire::server_error(&message))),
            )),
            tag => Err(broken(WireError::Unexpected { tag, during: "starting to stream" }.into())),
        }
    }

    /// Ends the session with a Terminate message, bounded by `CLOSE_TIMEOUT`. A temporary slot ends
    /// with it.
    pub async fn close(self) {
        // After the time-out the socket is closed without further messages; the server notices that.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.channel.terminate()).await;
    }

    async fn send(&mut self, command: &'static str, sql: &str) -> Result<(), CommandError> {
        if self.state == State::Busy {
            return Err(CommandError::new(command, CommandErrorKind::Abandoned));
        }
        frontend::query(sql, &mut self.channel.output)
            .map_err(|error| CommandError::new(command, CommandErrorKind::Encode(error)))?;
        self.state = State::Busy;
        self.channel.flush().await.map_err(|error| CommandError::channel(command, error))
    }

    /// Sends one command and reads its answer up to ReadyForQuery.
    async fn run(&mut self, command: &'static str, sql: &str) -> Result<Vec<Row>, CommandError> {
        self.send(command, sql).await?;
        let mut rows = Vec::new();
        let mut refused: Option<Box<ServerError>> = None;
        let mut bytes = 0usize;
        loop {
            let message = match self.channel.receive().await {
                Ok(message) => message,
                // After a FATAL error the connection ends; the error says more than its end.
                Err(error) => {
                    return Err(match refused {
                        Some(server) => CommandError::new(command, CommandErrorKind::Server(server)),
                        None => CommandError::channel(command, error),
                    });
                }
            };
            bytes = bytes.saturating_add(message.body.len());
            if bytes > RESULT_BYTES_MAX {
                return Err(CommandError::new(command, CommandErrorKind::TooLarge(RESULT_BYTES_MAX)));
            }
            match message.tag {
                b'D' => {
                    let row = wire::data_row(&message);
                    rows.push(
                        row.map_err(|error| CommandError::new(command, CommandErrorKind::Wire(error)))?,
                    );
                }
                b'E' => refused = Some(Box::new(wire::server_error(&message))),
                b'T' | b'C' | b'I' => {}
                b'Z' => break,
                tag => {
                    let unexpected = WireError::Unexpected { tag, during: "running a command" };
                    return Err(CommandError::new(command, CommandErrorKind::Wire(unexpected)));
                }
            }
        }
        self.state = State::Ready;
        match refused {
            Some(server) => Err(CommandError::new(command, CommandErrorKind::Server(server))),
            None => Ok(rows),
        }
    }
}

fn single<'a>(command: &'static str, rows: &'a [Row]) -> Result<&'a Row, CommandError> {
    rows.first().ok_or_else(|| malformed(command, "result", "a row"))
}

fn text<'a>(
    command: &'static str,
    row: &'a Row,
    index: usize,
    field: &'static str,
) -> Result<&'a str, CommandError> {
    row.text(index).ok_or_else(|| malformed(command, field, "text"))
}

fn parsed<T: std::str::FromStr>(
    command: &'static str,
    row: &Row,
    index: usize,
    field: &'static str,
    expected: &'static str,
) -> Result<T, CommandError> {
    text(command, row, index, field)?.parse().map_err(|_| malformed(command, field, expected))
}

fn malformed(command: &'static str, field: &'static str, expected: &'static str) -> CommandError {
    CommandError::new(command, CommandErrorKind::Wire(WireError::Value { field, expected }))
}

struct ReplicationLogin<'a> {
    info: &'a ConnInfo,
    options: &'a SessionOptions,
}

impl Login for ReplicationLogin<'_> {
    type Session = ReplicationConnection;

    fn purpose(&self) -> Purpose {
        Purpose::Replication
    }

    async fn log_in(&self, dialed: Dialed) -> Result<ReplicationConnection, LoginError> {
        let Dialed { stream, host } = dialed;
        let mut channel = Channel::new(stream);
        self.start_up(&mut channel).await?;
        authenticate(&mut channel, self.info, self.info.password_for(&host)).await?;
        until_ready(&mut channel).await?;
        channel.limit_messages(RESULT_BYTES_MAX);
        let version = channel.parameter("server_version").unwrap_or("");
        let server_version_num = server_version_num(version).ok_or_else(|| {
            let what = format!("server_version is \"{}\"", version.escape_debug());
            LoginError::new(Step::Database, ConnectErrorKind::Protocol(what))
        })?;
        let mut connection = ReplicationConnection { channel, state: State::Ready, server_version_num, host };
        lift_time_limits(&mut connection).await?;
        check_session(&mut connection, self.info.target_session_attrs).await?;
        Ok(connection)
    }
}

impl ReplicationLogin<'_> {
    async fn start_up(&self, channel: &mut Channel) -> Result<(), LoginError> {
        let options = match &self.info.options {
            Some(own) => format!("{own} {OPTIONS}"),
            None => OPTIONS.to_owned(),
        };
        let parameters = [
            ("user", self.info.user.as_str()),
            ("database", self.info.dbname.as_str()),
            ("replication", "database"),
            ("application_name", self.options.application_name.as_str()),
            ("client_encoding", self.options.client_encoding.as_str()),
            ("options", options.as_str()),
        ];
        frontend::startup_message(parameters, &mut channel.output)
            .map_err(|error| LoginError::new(Step::Authentication, ConnectErrorKind::Lost(error)))?;
        channel.flush().await.map_err(lost)
    }
}

/// Reads the messages between AuthenticationOk and ReadyForQuery; the channel records parameters.
async fn until_ready(channel: &mut Channel) -> Result<(), LoginError> {
    loop {
        let message = channel.receive().await.map_err(lost)?;
        match message.tag {
            b'K' => {}
            b'Z' => return Ok(()),
            b'E' => return Err(LoginError::server(wire::server_error(&message))),
            tag => return Err(lost(WireError::Unexpected { tag, during: "starting up" }.into())),
        }
    }
}

/// Lifts the time-outs that a role or a database may set. They cannot be part of the start-up options:
/// a server refuses a connection for one that it does not know. One that it does not let go of stays,
/// and is what [`ReplicationConnection::imposed_limits`] finds.
async fn lift_time_limits(connection: &mut ReplicationConnection) -> Result<(), LoginError> {
    let statements = TimeLimits::NONE.statements(connection.server_version_num);
    match connection.simple_query(&statements.join("; ")).await {
        Err(error) if matches!(error.kind, CommandErrorKind::Server(_)) => {}
        done => return done.map(drop).map_err(set_up_failed),
    }
    for statement in &statements {
        match connection.simple_query(statement).await {
            Err(CommandError { kind: CommandErrorKind::Server(refusal), .. }) => {
                debug!(error = %refusal, "refused: {statement}");
            }
            done => drop(done.map_err(set_up_failed)?),
        }
    }
    Ok(())
}

/// Checks `target_session_attrs` against the server's current state (`fe-connect.c`,
/// CONNECTION_CHECK_*).
async fn check_session(
    connection: &mut ReplicationConnection,
    wanted: TargetSessionAttrs,
) -> Result<(), LoginError> {
    let (question, unfit) = match wanted {
        TargetSessionAttrs::Any => return Ok(()),
        TargetSessionAttrs::Primary => ("SELECT pg_catalog.pg_is_in_recovery()", "t"),
        TargetSessionAttrs::ReadWrite => ("SELECT pg_catalog.current_setting('transaction_read_only')", "on"),
    };
    let rows = connection.simple_query(question).await.map_err(set_up_failed)?;
    let answer: Option<&Bytes> = rows.first().and_then(|row| row.get(0));
    if answer.is_some_and(|answer| answer.as_ref() != unfit.as_bytes()) {
        return Ok(());
    }
    Err(LoginError::new(Step::Database, ConnectErrorKind::SessionAttrs(wanted)))
}

fn set_up_failed(error: CommandError) -> LoginError {
    match error.kind {
        CommandErrorKind::Server(server) => {
            LoginError::new(Step::Database, ConnectErrorKind::Setting(server))
        }
        CommandErrorKind::Closed => lost(ChannelError::Closed),
        CommandErrorKind::Io(error) | CommandErrorKind::Encode(error) => lost(ChannelError::Io(error)),
        other => LoginError::new(Step::Database, ConnectErrorKind::Protocol(other.to_string())),
    }
}
