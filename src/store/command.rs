//! Operators' wishes on their way to the service, and the answers on their way back.
//!
//! ```text
//! submit ──row + NOTIFY pgsluice──▶ CommandSignal ─▶ take_commands ─▶ (service acts) ─▶ answer
//! wait_answer ◀──────────────────────────────────── row + NOTIFY pgsluice_answer ◀─────────┘
//! ```
//!
//! The row is the message; the notification only says "look". One that gets lost costs a poll's
//! delay, nothing more. Wishes outlive the service: what is submitted while none runs is carried
//! out when one does.

use std::fmt;
use std::str::FromStr;
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

use super::codec::Time;
use super::state::UnknownWord;
use super::subscription::found;
use super::{
    Desired, EventKind, Ownership, RELEASE_TIMEOUT, Store, StoreError, StoreErrorKind, event, lost, owner,
    pool,
};

const COMMAND_CHANNEL: &str = "pgsluice";
const ANSWER_CHANNEL: &str = "pgsluice_answer";
/// Commands that one take returns at most; the rest come with the next.
const TAKE_MAX: i64 = 100;
/// Signals that wait for the service; when it is full, the listener waits.
const SIGNALS_MAX: usize = 64;
/// How old a wish to let go of a subscription may be: whoever asks waits for a lock, and asks again.
const DROP_PATIENCE: Duration = Duration::from_secs(30);
/// How often an answer is looked for, in case its notification got lost.
const ANSWER_POLL: Duration = Duration::from_secs(1);
/// How long the listener hears nothing before it asks whether the server is still there.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// How long whoever only looks leaves the servers to the attempts that begin at the same time: another
/// session, and what it asks at once, would hold them up.
pub const HEAD_START: Duration = Duration::from_millis(200);
/// How long the listener waits before it tries to reach the server again.
const RELISTEN_DELAY: Duration = Duration::from_secs(1);

/// What can be asked of a running subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    Pause,
    /// Also: try the transaction again that holds it.
    Resume,
    /// `{"lsn": "0/16B3748"}`: look at the armed skip.
    Skip,
    /// `{"conflict_id": 7, "resolution": "skip-transaction"}`.
    Resolve,
    /// `{"copy": true}`: take up what the publications hold now.
    Refresh,
    /// `{"table": "public.widgets"}`: copy one table again.
    Resync,
    /// Let go of the subscription: whoever asks takes its lock next and removes it.
    Drop,
}

/// A wish, taken up by the service.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    pub id: i64,
    pub verb: Verb,
    pub args: Value,
    /// Who asked.
    pub created_by: String,
    pub created_at: Timestamp,
}

/// Whether a command was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Refused,
}

/// What the service says to a command.
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
    pub const ALL: [Self; 7] =
        [Self::Pause, Self::Resume, Self::Skip, Self::Resolve, Self::Refresh, Self::Resync, Self::Drop];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Skip => "skip",
            Self::Resolve => "resolve",
            Self::Refresh => "refresh",
            Self::Resync => "resync",
            Self::Drop => "drop",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Verb {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|verb| verb.as_str() == word)
            .ok_or_else(|| UnknownWord::new(word, "a command"))
    }
}

impl Store {
    /// Records a wish and tells the service; returns the command's number for
    /// [`Store::wait_answer`].
    ///
    /// Pause and resume also become what the operator wants from now on
    /// ([`super::SubscriptionRow::desired`]), and take the place of earlier ones that no service
    /// has taken up.
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

    /// Takes up what is pending for the subscription, oldest first. Only its owner may, and it answers all
    /// before it asks for more: one that was taken and has no answer after seconds is taken again, since the
    /// answer to the taking, or to the answering, was lost; later ones wait for it. Commands that this version
    /// does not know are refused on the spot.
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

    /// Answers a command and tells whoever waits. A second answer changes nothing.
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
            // Looked at after listening began: an answer is either here or will be heard.
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

    /// Listens for commands on a session of its own, which is re-established for ever. Begins after
    /// a moment that is the attempts'; what has come until then is told of as [`Signal::Any`].
    pub fn listen(&self) -> CommandSignal {
        let (sender, receiver) = mpsc::channel(SIGNALS_MAX);
        let task = tokio::spawn(signals(self.clone(), sender));
        CommandSignal { receiver, task }
    }

    /// A session that listens on `channel`, where the store's pool goes but outside it, so that a dead
    /// one does not take its place there.
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

/// Tells that there may be commands. Dropping it ends the listening.
#[derive(Debug)]
pub struct CommandSignal {
    receiver: mpsc::Receiver<Signal>,
    task: JoinHandle<()>,
}

/// Whose commands to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// This subscription's.
    Subscription(String),
    /// Everybody's: listening has just begun, or begun anew, and signals may have been missed.
    Any,
}

impl CommandSignal {
    /// The next signal. Cancel safe: nothing is lost if the future is dropped.
    ///
    /// While the target is away it waits; a poll beside it is what notices.
    pub async fn recv(&mut self) -> Signal {
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

/// Listens, and listens again when the session is lost, until nobody receives any more.
async fn signals(store: Store, sender: mpsc::Sender<Signal>) {
    sleep(HEAD_START).await;
    while !sender.is_closed() {
        if let Ok(listener) = store.listener(COMMAND_CHANNEL).await {
            if sender.send(Signal::Any).await.is_err() {
                return;
            }
            forward(listener, &sender).await;
        }
        sleep(RELISTEN_DELAY).await;
    }
}

/// Forwards signals until the session is lost, or answers no more.
async fn forward(mut listener: PgListener, sender: &mpsc::Sender<Signal>) {
    loop {
        let signal = match timeout(HEARTBEAT, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => Signal::Subscription(notification.payload().to_owned()),
            // sqlx has lost the session and opened another one on the same host.
            Ok(Ok(None)) => Signal::Any,
            Ok(Err(_)) => return,
            Err(_) => {
                let ping = sqlx::query("SELECT 1").execute(&mut listener);
                match timeout(RELEASE_TIMEOUT, ping).await {
                    Ok(Ok(_)) => continue,
                    Ok(Err(_)) | Err(_) => return,
                }
            }
        };
        if sender.send(signal).await.is_err() {
            return;
        }
    }
}

async fn record_wish(session: &mut PgConnection, name: &str, verb: Verb) -> Result<(), StoreErrorKind> {
    let desired = match verb {
        Verb::Pause => Some(Desired::Pause),
        Verb::Resume => Some(Desired::Run),
        Verb::Skip | Verb::Resolve | Verb::Refresh | Verb::Resync | Verb::Drop => None,
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

async fn answer(session: &mut PgConnection, id: i64, reply: &Answer) -> Result<(), StoreErrorKind> {
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
    Ok(())
}

/// Delivered when the transaction commits.
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
