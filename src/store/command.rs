//! Commands of operators to the service, and its answers.
//!
//! ```text
//! submit ──row + NOTIFY pgsluice──▶ CommandSignal ─▶ take_commands ─▶ (service acts) ─▶ answer
//! wait_answer ◀──────────────────────────────────── row + NOTIFY pgsluice_answer ◀─────────┘
//! ```
//!
//! A command is a row; the notification only makes the service look for it at once. If a notification is
//! lost, the next poll finds the row. A command that is submitted while no service runs is carried out when
//! one starts.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgListener, PgRow};
use sqlx::types::Json;
use sqlx::{PgConnection, Row as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::boundary;
use crate::error::Diagnosis;
use crate::pg::conninfo::TargetSessionAttrs;
use crate::words::{UnknownWord, words};

use super::codec::Time;
use super::subscription::found;
use super::{
    Desired, EventKind, Ownership, RELEASE_TIMEOUT, Store, StoreError, StoreErrorKind, event, lost, owner,
    pool,
};

const COMMAND_CHANNEL: &str = "pgsluice";
const ANSWER_CHANNEL: &str = "pgsluice_answer";
/// Maximum number of commands that are taken at once.
const TAKE_MAX: i64 = 100;
/// Maximum number of signals in the channel. When it is full, the listener waits.
const SIGNALS_MAX: usize = 64;
/// A `drop` waits for the lock for a shorter time than this, and asks again; an older one is not carried out.
const DROP_PATIENCE: Duration = Duration::from_secs(30);
/// How often an answer is looked for, in case its notification was lost.
const ANSWER_POLL: Duration = Duration::from_secs(1);
/// How often commands are looked for, in case their notification was lost.
const COMMAND_POLL: Duration = Duration::from_secs(1);
/// Delay before sessions are opened that only watch (the monitor, the listener): they would slow down the
/// attempts that begin at the same time.
pub const HEAD_START: Duration = Duration::from_millis(200);
/// How long the listener waits before it tries to reach the server again.
const RELISTEN_DELAY: Duration = Duration::from_secs(1);

/// The commands for a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    Pause,
    /// Goes on; a subscription that is paused on a conflict tries its transaction again.
    Resume,
    /// `{"lsn": "0/16B3748"}`: a skip has been armed.
    Skip,
    /// `{"conflict_id": 7, "resolution": "skip-transaction"}`.
    Resolve,
    /// `{"copy": true}`: follows the tables that the publications have now.
    Refresh,
    /// `{"tables": [["public", "widgets"]], "how": "merge"}`: synchronises tables again.
    Resync,
    /// `{"gap_id": 7, "up_to": "0/16B3748"}`: goes on without what may be missing up to that position.
    Accept,
    /// Stops the subscription and releases its lock. The command line then takes the lock and removes the
    /// subscription.
    Drop,
}

/// A command that the service has taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    pub id: i64,
    pub verb: Verb,
    pub args: Value,
    /// The name of the operator.
    pub created_by: String,
    pub created_at: Timestamp,
}

/// Whether a command was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Refused,
}

/// The service's answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub outcome: Outcome,
    pub text: Diagnosis,
}

impl Answer {
    pub fn done(text: impl Into<String>) -> Self {
        Self { outcome: Outcome::Done, text: Diagnosis::new(text) }
    }

    #[must_use]
    pub const fn refused(text: Diagnosis) -> Self {
        Self { outcome: Outcome::Refused, text }
    }
}

impl Verb {
    pub const ALL: [Self; 8] = [
        Self::Pause,
        Self::Resume,
        Self::Skip,
        Self::Resolve,
        Self::Refresh,
        Self::Resync,
        Self::Accept,
        Self::Drop,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Skip => "skip",
            Self::Resolve => "resolve",
            Self::Refresh => "refresh",
            Self::Resync => "resync",
            Self::Accept => "accept",
            Self::Drop => "drop",
        }
    }
}

words!(Verb, "a command");

impl Store {
    /// Records a command and notifies the service. Returns the command's number for [`Store::wait_answer`].
    ///
    /// Pause and resume are also recorded as the desired state ([`super::SubscriptionRow::desired`]), and
    /// replace earlier ones that no service has taken.
    pub async fn submit(&self, name: &str, verb: Verb, args: &Value, by: &str) -> Result<i64, StoreError> {
        self.run("record the command", async {
            let mut tx = self.pool.begin().await?;
            record_wish(&mut tx, name, verb).await?;
            let id: i64 = sqlx::query_scalar(
                "INSERT INTO pgsluice.command (subscription, verb, args, created_by) VALUES ($1, $2, $3, $4) \
                 RETURNING id",
            )
            .bind(name)
            .bind(verb.as_str())
            .bind(Json(args))
            .bind(by)
            .fetch_one(&mut *tx)
            .await?;
            let facts = json!({ "command_id": id, "verb": verb.as_str(), "args": args, "by": by });
            event::insert(
                &mut tx,
                Some(name),
                EventKind::Command,
                &format!("{verb}, asked by {by}"),
                Some(facts),
            )
            .await?;
            notify(&mut tx, COMMAND_CHANNEL, name).await?;
            boundary::deed!("command::submit", tx.commit().await, Err(lost()))?;
            Ok(id)
        })
        .await
    }

    /// Takes pending commands of the subscription, oldest first. Only its owner may call this, and it answers
    /// all commands before it takes more. So a command that was taken seconds ago and has no answer is taken
    /// again: the reply to taking or answering it was lost. Later commands wait for it. Commands that this
    /// version does not know are refused at once.
    pub async fn take_commands(&self, owner: &Ownership) -> Result<Vec<Command>, StoreError> {
        self.run("take up commands", async {
            let mut tx = self.pool.begin().await?;
            owner::require(&mut tx, owner).await?;
            withdraw_drops(&mut tx, owner.name(), DROP_PATIENCE).await?;
            let rows = sqlx::query(
                "UPDATE pgsluice.command c SET taken_at = now() WHERE c.id IN \
                 (SELECT id FROM pgsluice.command p WHERE subscription = $1 AND done_at IS NULL \
                  AND NOT EXISTS (SELECT FROM pgsluice.command o WHERE o.subscription = $1 \
                      AND o.done_at IS NULL AND o.id <= p.id AND o.taken_at >= now() - interval '5 seconds') \
                  ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED) \
                 RETURNING c.id, c.verb, c.args, c.created_by, c.created_at",
            )
            .bind(owner.name())
            .bind(TAKE_MAX)
            .fetch_all(&mut *tx)
            .await?;
            let mut commands = Vec::with_capacity(rows.len());
            for row in &rows {
                match row.try_get::<&str, _>("verb")?.parse() {
                    Ok(verb) => commands.push(decode(row, verb)?),
                    Err(unknown) => {
                        let refusal = Diagnosis::new(UnknownWord::to_string(&unknown))
                            .hint("upgrade the pgsluice that runs the subscription");
                        answer(&mut tx, row.try_get("id")?, &Answer::refused(refusal)).await?;
                    }
                }
            }
            boundary::deed!("command::take", tx.commit().await, Err(lost()))?;
            commands.sort_by_key(|command| command.id);
            Ok(commands)
        })
        .await
    }

    /// Answers a command and notifies the sessions that wait for it. A second answer changes nothing.
    pub async fn answer(&self, owner: &Ownership, id: i64, reply: &Answer) -> Result<(), StoreError> {
        self.run("answer the command", async {
            let mut tx = self.pool.begin().await?;
            owner::require(&mut tx, owner).await?;
            answer(&mut tx, id, reply).await?;
            Ok(boundary::deed!("command::answer", tx.commit().await, Err(lost()))?)
        })
        .await
    }

    /// Withdraws what asked for the subscription to be let go of: it is not dropped.
    pub async fn withdraw_drops(&self, name: &str) -> Result<(), StoreError> {
        self.run("withdraw the commands to let go", async {
            withdraw_drops(&mut *self.pool.acquire().await?, name, Duration::ZERO).await
        })
        .await
    }

    /// Waits for a command's answer; none if there is none in time. The command stays.
    pub async fn wait_answer(&self, id: i64, patience: Duration) -> Result<Option<Answer>, StoreError> {
        let deadline = Instant::now() + patience;
        let mut listener =
            timeout_at(deadline, self.listener(ANSWER_CHANNEL)).await.ok().and_then(Result::ok);
        loop {
            // LISTEN came first, so an answer is found here or its notification comes.
            let reply = self.run("look for the answer", self.find_answer(id)).await?;
            if reply.is_some() || Instant::now() >= deadline {
                return Ok(reply);
            }
            let next_look = deadline.min(Instant::now() + ANSWER_POLL);
            match &mut listener {
                Some(ears) => {
                    let heard = async {
                        while let Ok(notification) = ears.recv().await {
                            if notification.payload() == id.to_string() {
                                return;
                            }
                        }
                        sleep(patience).await;
                    };
                    drop(timeout_at(next_look, heard).await);
                }
                None => tokio::time::sleep_until(next_look).await,
            }
        }
    }

    async fn find_answer(&self, id: i64) -> Result<Option<Answer>, StoreErrorKind> {
        let row: Option<(bool, Json<Diagnosis>)> =
            sqlx::query_as("SELECT ok, answer FROM pgsluice.command WHERE id = $1 AND done_at IS NOT NULL")
                .bind(id)
                .fetch_optional(&self.pool)
                .await?;
        Ok(row.map(|(ok, text)| Answer {
            outcome: if ok { Outcome::Done } else { Outcome::Refused },
            text: text.0,
        }))
    }

    /// Listens for commands on a session of its own, which is opened again whenever it is lost. It begins after
    /// [`HEAD_START`], with the commands that have come until then.
    pub fn listen(&self) -> CommandSignal {
        let (sender, receiver) = mpsc::channel(SIGNALS_MAX);
        let task = tokio::spawn(signals(self.clone(), sender));
        CommandSignal { receiver, task }
    }

    /// Opens a session that listens on `channel`. It is not part of the store's pool, so that a lost one does
    /// not occupy a place there.
    async fn listener(&self, channel: &str) -> Result<PgListener, StoreError> {
        let wanted = self.routes.first().map_or(TargetSessionAttrs::Any, |route| route.session);
        self.run("listen", async {
            let options = PgConnectOptions::clone(&self.pool.connect_options());
            let mut listener = PgListener::connect_with(&pool(options, wanted, 1)).await?;
            listener.listen(channel).await?;
            Ok(listener)
        })
        .await
    }
}

/// Reports the names of subscriptions that may have commands. Dropping it ends the listener.
#[derive(Debug)]
pub struct CommandSignal {
    receiver: mpsc::Receiver<String>,
    task: JoinHandle<()>,
}

/// The subscriptions with commands that nobody has taken, and those with commands that were taken seconds ago and are not
/// answered.
const PENDING: &str = "SELECT DISTINCT c.subscription FROM pgsluice.command c WHERE c.done_at IS NULL \
    AND (c.taken_at IS NULL OR c.taken_at < now() - interval '5 seconds')";

impl CommandSignal {
    /// Waits for the next signal. Cancel-safe: nothing is lost if the future is dropped.
    ///
    /// While the target is unreachable it only waits.
    pub async fn recv(&mut self) -> String {
        match self.receiver.recv().await {
            Some(signal) => signal,
            // The task ends only with this value.
            None => std::future::pending().await,
        }
    }
}

impl Drop for CommandSignal {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens, and opens a new session whenever one is lost, until the receiver is dropped. It also lets all sessions of the store
/// go once the server waits for its clients to leave.
async fn signals(store: Store, sender: mpsc::Sender<String>) {
    sleep(HEAD_START).await;
    while !sender.is_closed() {
        if let Ok(listener) = store.listener(COMMAND_CHANNEL).await {
            let watched = store.watched();
            let stops = async {
                match &watched {
                    Some(watched) => drop(watched.stops().await),
                    None => std::future::pending().await,
                }
            };
            let stopped = tokio::select! {
                () = forward(listener, &sender) => false,
                () = stops => true,
            };
            if stopped {
                store.let_go().await;
            }
        }
        sleep(RELISTEN_DELAY).await;
    }
}

/// Forwards the names of subscriptions until the session is lost or does not answer. It begins with a look for commands,
/// because notifications may have been missed.
async fn forward(mut listener: PgListener, sender: &mpsc::Sender<String>) {
    loop {
        let looked = sqlx::query_scalar(PENDING).fetch_all(&mut listener);
        let Ok(Ok(pending)) = timeout(RELEASE_TIMEOUT, looked).await else { return };
        let next_look = Instant::now() + COMMAND_POLL;
        for name in pending {
            if sender.send(name).await.is_err() {
                return;
            }
        }
        loop {
            let name = match timeout_at(next_look, listener.try_recv()).await {
                Ok(Ok(Some(notification))) => notification.payload().to_owned(),
                // sqlx has lost the session and opened another one on the same host; or it is time for a look.
                Ok(Ok(None)) | Err(_) => break,
                Ok(Err(_)) => return,
            };
            if sender.send(name).await.is_err() {
                return;
            }
        }
    }
}

async fn record_wish(session: &mut PgConnection, name: &str, verb: Verb) -> Result<(), StoreErrorKind> {
    let desired = match verb {
        Verb::Pause => Some(Desired::Pause),
        Verb::Resume => Some(Desired::Run),
        Verb::Skip | Verb::Resolve | Verb::Refresh | Verb::Resync | Verb::Accept | Verb::Drop => None,
    };
    let done =
        sqlx::query("UPDATE pgsluice.subscription SET desired = coalesce($2, desired) WHERE name = $1")
            .bind(name)
            .bind(desired.map(Desired::as_str))
            .execute(&mut *session)
            .await?;
    found(done.rows_affected(), name)?;
    if desired.is_some() {
        sqlx::query(
            "UPDATE pgsluice.command SET done_at = now(), ok = false, answer = $2 WHERE subscription = $1 \
             AND done_at IS NULL AND taken_at IS NULL AND verb IN ('pause', 'resume')",
        )
        .bind(name)
        .bind(Json(Diagnosis::new("a later command took its place")))
        .execute(session)
        .await?;
    }
    Ok(())
}

/// Refuses what asked longer ago than `patience` to let go of the subscription: who asked is no longer there
/// to take it.
async fn withdraw_drops(
    session: &mut PgConnection,
    name: &str,
    patience: Duration,
) -> Result<(), StoreErrorKind> {
    sqlx::query(
        "UPDATE pgsluice.command SET done_at = now(), ok = false, answer = $2 WHERE subscription = $1 \
         AND verb = 'drop' AND done_at IS NULL AND created_at <= now() - pg_catalog.make_interval(secs => $3)",
    )
    .bind(name)
    .bind(Json(Diagnosis::new("whoever was to drop the subscription no longer waits")))
    .bind(patience.as_secs_f64())
    .execute(session)
    .await?;
    Ok(())
}

/// Answers a command within the open transaction. Returns whether it had no answer yet.
pub(super) async fn answer(
    session: &mut PgConnection,
    id: i64,
    reply: &Answer,
) -> Result<bool, StoreErrorKind> {
    let done = sqlx::query(
        "UPDATE pgsluice.command SET done_at = now(), ok = $2, answer = $3 WHERE id = $1 AND done_at IS NULL",
    )
    .bind(id)
    .bind(reply.outcome == Outcome::Done)
    .bind(Json(&reply.text))
    .execute(&mut *session)
    .await?;
    if done.rows_affected() > 0 {
        notify(session, ANSWER_CHANNEL, &id.to_string()).await?;
    }
    Ok(done.rows_affected() > 0)
}

/// Sends a notification, which is delivered when the transaction commits.
async fn notify(session: &mut PgConnection, channel: &str, payload: &str) -> Result<(), StoreErrorKind> {
    sqlx::query("SELECT pg_catalog.pg_notify($1, $2)").bind(channel).bind(payload).execute(session).await?;
    Ok(())
}

fn decode(row: &PgRow, verb: Verb) -> Result<Command, sqlx::Error> {
    Ok(Command {
        id: row.try_get("id")?,
        verb,
        args: row.try_get::<Json<Value>, _>("args")?.0,
        created_by: row.try_get("created_by")?,
        created_at: row.try_get::<Time, _>("created_at")?.0,
    })
}
