//! Schema `pgsluice` in the target: subscriptions with their state and tables, conflicts, commands, events.
//!
//! ```text
//! service ──state, positions, tables, conflicts──▶ schema pgsluice ◀──commands── command line, API
//!         ◀────────── commands (NOTIFY + poll) ───                 ────status──▶
//! ```
//!
//! All state is in the target, so the command line works on every host that can connect to it.
//!
//! # Invariants
//! - The progress row is never written here: `apply` moves it in the transaction of the rows.
//! - A subscription's rows are written by the instance that holds its advisory lock. A standby
//!   writes nothing, and a former owner's writes are refused ([`Ownership`]). Operators write only `desired`,
//!   `skip_lsn` and commands.
//! - Values that must agree are written in one transaction: a conflict and its pause, a state and its event,
//!   a desired state and its command.
//! - Every statement names its schema, and `search_path` is empty, so a function that somebody created in
//!   `public` cannot be called. Every wait is bounded, on the server by `statement_timeout`, here by a
//!   time-out.
//!
//! # What it does not do
//! Its caller decides whether to retry or to pause. It never uses user tables.

mod codec;
mod columns;
mod command;
mod conflict;
mod error;
mod event;
mod gap;
mod instance;
mod intervention;
mod lock;
mod members;
mod migrate;
mod options;
mod owner;
mod publisher;
mod report;
mod skip;
mod spelling;
mod state;
mod status;
mod subscription;
mod table;
mod wal;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _};

use crate::net;
use crate::pg::TimeLimits;
use crate::pg::conninfo::{ConnInfo, TargetSessionAttrs};
use options::Route;

pub use command::{Answer, Command, CommandSignal, HEAD_START, Outcome, Verb};
pub use conflict::{ConflictFilter, ConflictRow, Settlement};
pub use error::{SkipRefusal, StoreError, StoreErrorKind};
pub use event::{EventKind, EventRow};
pub use gap::{OpenedGap, PassedOver, ReleasedTable};
pub use intervention::ResyncWish;
pub use members::{Members, NewTables, TableChanges, TableNote, TableOfOther, TableRecord};
pub use migrate::{AppliedMigration, SCHEMA_VERSION};
pub use owner::{Claim, Ownership, Walsender};
pub use report::Reported;
pub use state::{Desired, Refresh, Resync, State, TableState};
pub use status::{GapStatus, SlotStatus, StatusDocument, SubscriptionStatus, TableStatus};
pub use subscription::{Positions, Progress, Registration, StateChange, SubscriptionRow};
pub use table::{PlannedTable, TableRow, TableStep};
pub use wal::WalPositions;

/// Maximum number of sessions of a store that serves one subscription, without its listener.
const CONNECTIONS_MAX: u32 = 3;
/// Number of subscriptions that have another session together, and the maximum number of sessions.
const SUBSCRIPTIONS_OF_A_CONNECTION: usize = 8;
const CONNECTIONS_OF_MANY_MAX: u32 = 24;
/// Maximum time of waiting for a free session.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum time of one statement on the server.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(15);
/// The time-outs of every session. An idle transaction is ended after the same time as a statement.
const LIMITS: TimeLimits =
    TimeLimits { statement: Some(STATEMENT_TIMEOUT), idle_in_transaction: Some(STATEMENT_TIMEOUT) };
/// Maximum time of one operation, also if the network drops packets.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time in which a session of the pool answers that has been idle. All of them together take less than
/// [`ACQUIRE_TIMEOUT`].
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum time for a session's ping before it returns to the pool.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often sessions are closed that come back while the server shuts down, and the time between.
const LET_GO_ROUNDS: u32 = 10;
const LET_GO_POLL: Duration = Duration::from_millis(300);

/// Transaction settings of every session, which replace those of the role and the database.
const TRANSACTIONS: &str = "SET default_transaction_read_only = off; \
     SET default_transaction_isolation = 'read committed'; SET default_transaction_deferrable = off";

/// The state of pgsluice in one target database. Cheap to clone; clones share their sessions.
#[derive(Clone)]
pub struct Store {
    pool: PgPool,
    routes: Arc<[Route]>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints: Vec<_> = self.routes.iter().map(|route| &route.endpoint).collect();
        f.debug_struct("Store").field("endpoints", &endpoints).finish()
    }
}

impl Store {
    /// Connects to the target. Its hosts are tried in order, each within its `connect_timeout`.
    ///
    /// It neither migrates nor checks the schema ([`Store::require_schema`]).
    pub async fn connect(target: &ConnInfo) -> Result<Self, StoreError> {
        let (store, session) = Self::reach(target, CONNECTIONS_MAX).await?;
        end(session).await;
        Ok(store)
    }

    /// As [`Store::connect`], then brings schema `pgsluice` up to date as [`Store::migrate`] does, in the
    /// session that was opened first. The pool's first session, which a service needs next, is opened at the
    /// same time.
    ///
    /// It has more sessions for more subscriptions, and at most `sessions_max` without the one that listens.
    pub async fn open(
        target: &ConnInfo,
        subscriptions: usize,
        sessions_max: Option<u32>,
    ) -> Result<(Self, Vec<AppliedMigration>), StoreError> {
        let more = u32::try_from(subscriptions / SUBSCRIPTIONS_OF_A_CONNECTION).unwrap_or(u32::MAX);
        let connections_max = CONNECTIONS_MAX.saturating_add(more).min(CONNECTIONS_OF_MANY_MAX);
        let connections_max = connections_max.min(sessions_max.unwrap_or(u32::MAX));
        let (store, mut session) = Self::reach(target, connections_max).await?;
        // If the pool's session cannot be opened, the next operation reports that.
        let (applied, _) = tokio::join!(store.migrate_in(&mut session), store.pool.acquire());
        end(session).await;
        Ok((store, applied?))
    }

    /// Returns a store and the session by which the target was reached. The pool opens its own sessions when
    /// needed.
    async fn reach(target: &ConnInfo, connections_max: u32) -> Result<(Self, PgConnection), StoreError> {
        let routes: Arc<[Route]> = options::routes(target)
            .map_err(|diagnosis| StoreError::new(CONNECT, StoreErrorKind::Unsupported(diagnosis)))?
            .into();
        let (route, session) = first_open(&routes).await?;
        let pool = pool(route.options, route.session, connections_max);
        Ok((Self { pool, routes }, session))
    }

    /// Closes the sessions, with a Terminate message if the server answers in time.
    pub async fn close(&self) {
        drop(tokio::time::timeout(RELEASE_TIMEOUT, self.pool.close()).await);
    }

    /// Watches the server that the sessions are open to for a shutdown that waits for them.
    fn watched(&self) -> Option<net::Watched> {
        let options = self.pool.connect_options();
        let is_current = |route: &&Route| {
            (route.options.get_host(), route.options.get_port()) == (options.get_host(), options.get_port())
        };
        let route = self.routes.iter().find(is_current).or(self.routes.first())?;
        Some(net::Watched::new(&route.conninfo, route.conninfo.hosts.first()?))
    }

    /// Closes the sessions that nobody uses, and those that come back within a few seconds. Others can be opened once the
    /// server takes them again.
    async fn let_go(&self) {
        for _ in 0..LET_GO_ROUNDS {
            while let Some(session) = self.pool.try_acquire() {
                drop(tokio::time::timeout(RELEASE_TIMEOUT, session.close()).await);
            }
            tokio::time::sleep(LET_GO_POLL).await;
        }
    }

    /// Opens a session outside the pool.
    async fn session(&self) -> Result<PgConnection, StoreError> {
        first_open(&self.routes).await.map(|(_, session)| session)
    }

    /// Runs one operation within its time-outs, and names it in its error.
    async fn run<T>(
        &self,
        action: &'static str,
        work: impl Future<Output = Result<T, StoreErrorKind>>,
    ) -> Result<T, StoreError> {
        let outcome = tokio::time::timeout(OPERATION_TIMEOUT, work).await;
        let kind = match outcome.unwrap_or(Err(StoreErrorKind::Lost(None))) {
            Ok(value) => return Ok(value),
            Err(kind) => kind,
        };
        if error::is_of_the_connection(&kind) {
            self.find_way(kind).await.map_err(|kind| StoreError::new(action, kind))
        } else {
            Err(StoreError::new(action, kind))
        }
    }

    /// After a lost connection, makes the pool use the first host that answers. If none does, the reason is
    /// returned; the pool's own error would only report a time-out. The failed operation is not repeated,
    /// because it may have been committed.
    async fn find_way<T>(&self, kind: StoreErrorKind) -> Result<T, StoreErrorKind> {
        let _place = net::places::moment().await;
        let (route, session) = first_open(&self.routes).await.map_err(StoreError::into_kind)?;
        self.pool.set_connect_options(route.options);
        end(session).await;
        Err(kind)
    }
}

/// The error of a session that has been lost.
fn lost() -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into())
}

/// Closes a session with a Terminate message, if the server answers in time.
async fn end(session: PgConnection) {
    drop(tokio::time::timeout(RELEASE_TIMEOUT, session.close()).await);
}

const CONNECT: &str = "connect to the target";

/// Opens a session on the first route that works. If none does, the error of the first server that answered
/// is returned rather than that of one that did not.
async fn first_open(routes: &[Route]) -> Result<(Route, PgConnection), StoreError> {
    let mut worst: Option<StoreErrorKind> = None;
    for route in routes {
        match open(route).await {
            Ok(session) => return Ok((route.clone(), session)),
            Err(kind) => {
                let keep = matches!(worst, Some(StoreErrorKind::Refused { .. }));
                worst = if keep { worst } else { Some(kind) };
            }
        }
    }
    Err(StoreError::new(CONNECT, worst.unwrap_or(StoreErrorKind::Lost(None))))
}

async fn open(route: &Route) -> Result<PgConnection, StoreErrorKind> {
    let connecting = |error| error::connecting(&route.endpoint, error);
    let work = async {
        meet(route).await?;
        let mut session = route.options.connect().await.map_err(connecting)?;
        prepare(&mut session, route.session).await.map_err(connecting)?;
        Ok(session)
    };
    let timed_out = || connecting(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()));
    tokio::time::timeout(route.timeout, work).await.unwrap_or_else(|_| Err(timed_out()))
}

/// Opens a session of [`net`] and closes it. sqlx takes messages of any size before authentication, and cannot tell a
/// pooler that would give what a session sets to other applications. So another session meets the server before it.
async fn meet(route: &Route) -> Result<(), StoreErrorKind> {
    let options = net::ClientOptions::default();
    let client = Box::pin(net::client(&route.conninfo, &options)).await;
    client.map_err(|error| error::meeting(&route.endpoint, error))?.close().await;
    Ok(())
}

fn pool(options: PgConnectOptions, wanted: TargetSessionAttrs, connections_max: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(move |session, _| Box::pin(prepare(session, wanted)))
        // Without a time-out, a session that does not answer would occupy its place in the pool, and the operation that is
        // given it would wait for as long as it may wait for any.
        .test_before_acquire(false)
        .before_acquire(|session, _| {
            Box::pin(async move {
                let answer = tokio::time::timeout(ANSWER_TIMEOUT, session.ping()).await;
                answer.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map(|()| true)
            })
        })
        .after_release(|session, _| {
            Box::pin(async move {
                let fit = tokio::time::timeout(RELEASE_TIMEOUT, is_outside_transaction(session)).await;
                fit.unwrap_or(Err(sqlx::Error::PoolTimedOut))
            })
        })
        .connect_lazy_with(options)
}

/// Whether a session is in no transaction. If an operation is given up while its BEGIN is on its way, sqlx
/// leaves the transaction open, and every later operation of the session would be part of it. In a
/// transaction that has failed, the question itself fails.
async fn is_outside_transaction(session: &mut PgConnection) -> Result<bool, sqlx::Error> {
    // Inside a transaction, its time is that of its BEGIN. The question is one message: a prepared statement's
    // messages have times of their own.
    let same =
        "SELECT pg_catalog.transaction_timestamp() OPERATOR(pg_catalog.=) pg_catalog.statement_timestamp()";
    session.fetch_one(sqlx::raw_sql(same)).await?.try_get(0)
}

/// Prepares a session, and fails if the server does not match `target_session_attrs`.
async fn prepare(session: &mut PgConnection, wanted: TargetSessionAttrs) -> Result<(), sqlx::Error> {
    secure(session).await?;
    if is_refused(session, wanted).await? {
        let reason = "the server is read-only, and target_session_attrs asks for one that is not";
        return Err(sqlx::Error::Io(std::io::Error::other(reason)));
    }
    // These settings come last, because target_session_attrs is checked with the server's defaults.
    session.execute(TRANSACTIONS).await?;
    Ok(())
}

/// Empties `search_path` and replaces the time-outs of the role and the database. A time-out that the server
/// does not let the role change stays; `check` reports it.
async fn secure(session: &mut PgConnection) -> Result<(), sqlx::Error> {
    const NO_PATH: &str = "SET search_path = ''";
    let statements = LIMITS.statements(session.server_version_num().unwrap_or_default());
    let together = format!("{NO_PATH}; {}", statements.join("; "));
    match session.execute(sqlx::AssertSqlSafe(together)).await {
        Err(sqlx::Error::Database(_)) => {}
        done => return done.map(drop),
    }
    session.execute(NO_PATH).await?;
    for statement in statements {
        match session.execute(sqlx::AssertSqlSafe(statement)).await {
            Err(sqlx::Error::Database(refusal)) => tracing::debug!(%refusal, "a time-out stays as it is"),
            done => {
                done?;
            }
        }
    }
    Ok(())
}

/// Whether the server does not match `target_session_attrs`.
async fn is_refused(session: &mut PgConnection, wanted: TargetSessionAttrs) -> Result<bool, sqlx::Error> {
    let refuses = match wanted {
        TargetSessionAttrs::Any => return Ok(false),
        TargetSessionAttrs::ReadWrite => {
            "SELECT pg_catalog.pg_is_in_recovery() \
             OR pg_catalog.current_setting('default_transaction_read_only')::pg_catalog.bool"
        }
        TargetSessionAttrs::Primary => "SELECT pg_catalog.pg_is_in_recovery()",
    };
    sqlx::query_scalar::<_, bool>(refuses).fetch_one(session).await
}
