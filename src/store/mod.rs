//! Schema `pgsluice` in the target: what every subscription is, what stopped it, what was asked.
//!
//! ```text
//! service ──state, positions, tables, conflicts──▶ schema pgsluice ◀──wishes── command line, API
//!         ◀────────── commands (NOTIFY + poll) ───                 ───status──▶
//! ```
//!
//! The target alone tells the whole story, so the command line works from anywhere that reaches it.
//!
//! # Invariants
//! - The progress row is never written here: `apply` moves it inside the rows' transaction.
//! - A subscription's rows belong to the instance that holds its advisory lock ([`lock_key`]);
//!   a standby writes nothing, and a former owner is refused ([`Ownership`]). What operators write
//!   (`desired`, `skip_lsn`, commands) is apart.
//! - What must agree is written in one transaction: a conflict and the pause that it causes, a
//!   state and its event, a wish and its command.
//! - Every statement names its schema, and `search_path` is empty: nothing planted in `public`
//!   runs. Every wait is bounded, on the server by `statement_timeout`, here by a time-out.
//!
//! # What it does not do
//! It decides nothing: whether to retry or pause is its caller's. It never touches user tables.

mod codec;
mod command;
mod conflict;
mod error;
mod event;
mod lock;
mod migrate;
mod options;
mod owner;
mod publisher;
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
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgConnection};

use crate::pg::TimeLimits;
use crate::pg::conninfo::{ConnInfo, TargetSessionAttrs};
use options::Route;

pub use command::{Answer, Command, CommandSignal, HEAD_START, Outcome, Signal, Verb};
pub use conflict::{ConflictFilter, ConflictRow, Settlement};
pub use error::{SkipRefusal, StoreError, StoreErrorKind};
pub use event::{EventKind, EventRow};
pub use lock::lock_key;
pub use migrate::{AppliedMigration, SCHEMA_VERSION};
pub use owner::Ownership;
pub use state::{Desired, State, TableState, UnknownWord};
pub use status::{SlotStatus, StatusDocument, SubscriptionStatus, TableStatus};
pub use subscription::{Positions, Progress, Registration, StateChange, SubscriptionRow};
pub use table::{NewTables, TableChanges, TableMapping, TableRow, TableStep};
pub use wal::WalPositions;

/// Sessions of one store, its listener apart.
const CONNECTIONS_MAX: u32 = 3;
/// How long an operation waits for a free session.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the server works on one statement.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(15);
/// The time-outs of every session: a transaction that its owner has left stays no longer than a statement.
const LIMITS: TimeLimits =
    TimeLimits { statement: Some(STATEMENT_TIMEOUT), idle_in_transaction: Some(STATEMENT_TIMEOUT) };
/// How long one operation may take from here, a network that swallows packets included.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a session may take to prove itself before it goes back to the pool.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Our transactions are ours to shape, whatever database or role prefer for theirs.
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
    /// Reaches the target: its hosts are tried in order, each within its `connect_timeout`.
    ///
    /// Does not migrate, and does not ask for the schema ([`Store::require_schema`]).
    pub async fn connect(target: &ConnInfo) -> Result<Self, StoreError> {
        let (store, session) = Self::reach(target).await?;
        end(session).await;
        Ok(store)
    }

    /// As [`Store::connect`], then brings schema `pgsluice` up to date as [`Store::migrate`] does, in
    /// the session that has proved the way. The pool's first session, which a service needs next, is
    /// opened meanwhile.
    pub async fn open(target: &ConnInfo) -> Result<(Self, Vec<AppliedMigration>), StoreError> {
        let (store, mut session) = Self::reach(target).await?;
        // If it cannot be opened, whoever needs it will say so.
        let (applied, _) = tokio::join!(store.migrate_in(&mut session), store.pool.acquire());
        end(session).await;
        Ok((store, applied?))
    }

    /// A store, and the session that has proved the way; the pool opens its own as they are needed.
    async fn reach(target: &ConnInfo) -> Result<(Self, PgConnection), StoreError> {
        let routes: Arc<[Route]> = options::routes(target)
            .map_err(|diagnosis| StoreError::new(CONNECT, StoreErrorKind::Unsupported(diagnosis)))?
            .into();
        let (route, session) = first_open(&routes).await?;
        let pool = pool(route.options, route.session, CONNECTIONS_MAX);
        Ok((Self { pool, routes }, session))
    }

    /// Ends the sessions, politely if the server answers in time.
    pub async fn close(&self) {
        drop(tokio::time::timeout(RELEASE_TIMEOUT, self.pool.close()).await);
    }

    /// A session of its own, outside the pool.
    async fn session(&self) -> Result<PgConnection, StoreError> {
        first_open(&self.routes).await.map(|(_, session)| session)
    }

    /// Runs one operation within its bounds, and says what it was when it fails.
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

    /// After a lost connection: points the pool at the first host that answers, so that the next
    /// operation gets there, and gives back the reason if there is none (the pool's own error
    /// would only say that time is up). The failed operation is not repeated: it may have landed.
    async fn find_way<T>(&self, kind: StoreErrorKind) -> Result<T, StoreErrorKind> {
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

/// Says goodbye, if the server listens.
async fn end(session: PgConnection) {
    drop(tokio::time::timeout(RELEASE_TIMEOUT, session.close()).await);
}

const CONNECT: &str = "connect to the target";

/// Opens a session on the first route that lets us. If none does, the first server that answered
/// with a reason is more telling than one that did not answer.
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
    let work = async {
        let mut session = route.options.connect().await?;
        prepare(&mut session, route.session).await?;
        Ok(session)
    };
    let timed_out = || sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    let outcome = tokio::time::timeout(route.timeout, work).await.unwrap_or_else(|_| Err(timed_out()));
    outcome.map_err(|error| error::connecting(&route.endpoint, error))
}

fn pool(options: PgConnectOptions, wanted: TargetSessionAttrs, connections_max: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(move |session, _| Box::pin(prepare(session, wanted)))
        // sqlx pings a session before it takes it back, without a time-out of its own; a session
        // that does not answer (its operation timed out, its peer vanished) would keep its place.
        .after_release(|session, _| {
            Box::pin(async move {
                let pong = tokio::time::timeout(RELEASE_TIMEOUT, session.ping()).await;
                pong.map_or_else(|_| Err(sqlx::Error::PoolTimedOut), |answer| answer.map(|()| true))
            })
        })
        .connect_lazy_with(options)
}

/// What every session starts with, and whether this server is of the wanted kind.
async fn prepare(session: &mut PgConnection, wanted: TargetSessionAttrs) -> Result<(), sqlx::Error> {
    secure(session).await?;
    if is_refused(session, wanted).await? {
        let reason = "the server is read-only, and target_session_attrs asks for one that is not";
        return Err(sqlx::Error::Io(std::io::Error::other(reason)));
    }
    // Last, because target_session_attrs asks what the server's own defaults are.
    session.execute(TRANSACTIONS).await?;
    Ok(())
}

/// Nothing is found by its unqualified name, and time-outs of the role or the database do not hold. One
/// that the server does not let go of stays; `check` finds it.
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

/// Whether this server is not of the wanted kind.
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
