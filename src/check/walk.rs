//! Connects to the servers, reads the facts and passes them to the verdicts. It only reads.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::oneshot;

use crate::config::{Config, Subscription};
use crate::error::Diagnosis;
use crate::net::{self, ClientOptions, ConnectError, PgClient};
use crate::pg::conninfo::ConnInfo;
use crate::pg::{ImposedLimit, Lsn, QualifiedName, SubscriptionName, TimeLimits, TimelineHistory};
use crate::replication::{CommandError, ReplicationConnection, SessionOptions, SystemIdentity};
use crate::schema::catalog::{
    self, CatalogError, PublisherFacts, SessionLimit, Side, TargetFacts, UnselectableTable,
};
use crate::schema::{
    Comparison, Mapping, Misfit, PublishedTable, ReplicationRole, Surroundings, TargetTable,
};
use crate::store::{Store, StoreErrorKind, TableOfOther};
use crate::subscription::misfits::standings;
use crate::subscription::sharing::Rows;
use crate::subscription::slot::{self, SlotView};
use crate::subscription::value_settings;

use super::findings::Findings;
use super::report::{Document, Report, Step, TableReport};
use super::sessions;
use super::tables::{self, Pair};
use super::verdict::{self, Published, Recorded};

/// Largest number of subscriptions that are checked at the same time.
const CHECKS_MAX: usize = 4;
/// Longest time for all queries of one side after connecting.
const QUESTIONS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a server may work on one of them.
const LIMITS: TimeLimits = TimeLimits { statement: Some(Duration::from_secs(20)), idle_in_transaction: None };

/// Checks every subscription of the configuration, or the named one.
pub async fn check(config: &Config, name: Option<&SubscriptionName>) -> Document {
    let wanted =
        config.subscriptions.iter().filter(|subscription| name.is_none_or(|n| subscription.name == *n));
    let walks = wanted.map(|subscription| Box::pin(walk(subscription, &config.target.conninfo)));
    let subscriptions = futures_util::stream::iter(walks).buffered(CHECKS_MAX).collect().await;
    Document { subscriptions }
}

/// The publisher's answers; each query can fail by itself.
struct Publisher {
    client: PgClient,
    facts: Answer<PublisherFacts>,
    view: Answer<SlotView>,
    published: Answer<catalog::Published>,
    existing: Answer<BTreeSet<QualifiedName>>,
    denied: Answer<Vec<UnselectableTable>>,
    checkpoint: Answer<Option<Lsn>>,
    identity: Answer<(SystemIdentity, Option<TimelineHistory>)>,
    /// Time-outs that hold in its sessions.
    imposed: Vec<ImposedLimit>,
    sessions: Answer<SessionLimit>,
}

/// The target's answers.
struct Target {
    client: PgClient,
    facts: Answer<TargetFacts>,
    existing: Answer<BTreeSet<QualifiedName>>,
    state: Answer<State>,
    /// The tables that other subscriptions write to it.
    others: Vec<TableOfOther>,
    /// Time-outs that hold in its sessions.
    imposed: Vec<ImposedLimit>,
    sessions: Answer<SessionLimit>,
}

type Answer<T> = Result<T, Diagnosis>;

/// The state of schema `pgsluice`, and what it has recorded about the subscription.
enum State {
    NotThere,
    There(Recorded),
    /// The schema is older than this version; `run` upgrades it.
    Old(Diagnosis),
}

/// Asks both servers at the same time. A service that runs moves the positions meanwhile, each one after the next: the
/// end of WAL, the record, the slot. So they are read in the opposite order.
async fn walk(subscription: &Subscription, target: &ConnInfo) -> Report {
    let mut findings = Findings::default();
    let (slot_read, slot_seen) = oneshot::channel();
    let (record_read, record_seen) = oneshot::channel();
    let (publisher, reached) = tokio::join!(
        reach_publisher(subscription, slot_read, record_seen),
        reach_target(subscription, target, slot_seen, record_read)
    );
    let recorded = judge_target(&mut findings, target, reached.as_ref());
    let connected = publisher.as_ref().map(|found| (found.client.host(), found.client.encryption()));
    verdict::way(&mut findings, &subscription.publisher, connected);
    let mut reports = Vec::new();
    if let Ok(publisher) = &publisher {
        judge_publisher(&mut findings, subscription, publisher, &recorded);
        let target = reached.as_ref().ok();
        judge_publications(&mut findings, subscription, publisher, target, &recorded);
        if let Some(target) = target {
            reports = judge_tables(&mut findings, subscription, publisher, target).await;
            if let (Ok(source), Ok(sink)) = (&publisher.facts, &target.facts) {
                verdict::versions(&mut findings, subscription, source, sink);
            }
        }
    }
    if let Ok(publisher) = publisher {
        publisher.client.close().await;
    }
    if let Ok(target) = reached {
        target.client.close().await;
    }
    findings.into_report(subscription.name.as_str(), reports)
}

fn options(subscription: &Subscription) -> ClientOptions {
    ClientOptions {
        application_name: Some(format!("{} check", subscription.name)),
        settings: value_settings(),
        limits: LIMITS,
        ..ClientOptions::default()
    }
}

/// Opens a read-only session, so that nothing is written by mistake. This is set after connecting,
/// because `target_session_attrs` asks the server for the same parameter.
async fn connect(subscription: &Subscription, info: &ConnInfo) -> Result<PgClient, ConnectError> {
    let client = net::client(info, &options(subscription)).await?;
    let read_only = client.batch_execute("SET default_transaction_read_only = on");
    // If this fails, the session has ended or hangs; the queries that follow report that.
    let _ = tokio::time::timeout(QUESTIONS_TIMEOUT, read_only).await;
    Ok(client)
}

/// Waits for an answer within its time limit.
async fn asked<T, E>(side: Side, question: impl Future<Output = Result<T, E>>) -> Answer<T>
where
    Diagnosis: From<Told<E>>,
{
    match tokio::time::timeout(QUESTIONS_TIMEOUT, question).await {
        Ok(answer) => answer.map_err(|error| Told(error).into()),
        Err(_) => {
            Err(Diagnosis::new(format!("the {side} has not answered for {} s", QUESTIONS_TIMEOUT.as_secs()))
                .hint("check the server's load and the network to it"))
        }
    }
}

/// Wraps an error that is converted into an operator's text.
struct Told<E>(E);

impl From<Told<CatalogError>> for Diagnosis {
    fn from(error: Told<CatalogError>) -> Self {
        error.0.diagnosis()
    }
}

impl From<Told<Diagnosis>> for Diagnosis {
    fn from(error: Told<Diagnosis>) -> Self {
        error.0
    }
}

/// Tells when the slot has been read, and reads the end of WAL once the record has been. A side that fails drops its
/// sender, and holds nobody up.
async fn reach_publisher(
    subscription: &Subscription,
    slot_read: oneshot::Sender<()>,
    record_seen: oneshot::Receiver<()>,
) -> Result<Publisher, ConnectError> {
    let client = connect(subscription, &subscription.publisher).await?;
    let side = Side::Publisher;
    let version = client.server_version_num();
    // This is read before the check's own WAL sender is in use.
    let facts = asked(side, catalog::publisher_facts(&*client)).await;
    let view = asked(side, slot::view(&client, &subscription.slot)).await;
    drop(slot_read);
    let published = asked(side, catalog::published(&*client, version, &subscription.publications)).await;
    let existing = asked(side, catalog::user_tables(&*client, side)).await;
    let denied = match &published {
        Ok(published) => asked(side, catalog::unselectable_tables(&*client, &published.tables)).await,
        Err(_) => Ok(Vec::new()),
    };
    let _ = record_seen.await;
    let (identity, replication_imposed) = match asked(side, replicate(subscription)).await {
        Ok((identity, imposed)) => (Ok(identity), imposed),
        Err(diagnosis) => (Err(diagnosis), Vec::new()),
    };
    let checkpoint = asked(side, catalog::last_checkpoint(&*client)).await;
    let sessions = asked(side, catalog::session_limit(&*client, side)).await;
    let mut imposed = imposed_limits(&client).await;
    for limit in replication_imposed {
        if !imposed.contains(&limit) {
            imposed.push(limit);
        }
    }
    Ok(Publisher {
        client,
        facts,
        view,
        published,
        existing,
        denied,
        checkpoint,
        identity,
        imposed,
        sessions,
    })
}

/// The time-outs that an ordinary session could not lift. A session that does not answer has told so
/// at other questions.
async fn imposed_limits(client: &PgClient) -> Vec<ImposedLimit> {
    let asked = tokio::time::timeout(QUESTIONS_TIMEOUT, client.imposed_limits(LIMITS)).await;
    asked.ok().and_then(Result::ok).unwrap_or_default()
}

/// What only a replication connection tells: to whom it leads, and where that server's timeline comes from.
type Identity = (SystemIdentity, Option<TimelineHistory>);

/// A replication connection, only to see that it can be made, to whom it leads, and which time-outs it
/// could not lift.
async fn replicate(subscription: &Subscription) -> Result<(Identity, Vec<ImposedLimit>), Diagnosis> {
    let options = SessionOptions {
        application_name: format!("{} check", subscription.name),
        client_encoding: "UTF8".to_owned(),
    };
    let connected = ReplicationConnection::connect(&subscription.publisher, &options).await;
    let mut connection = connected.map_err(|error| error.diagnosis())?;
    let answers = async {
        let identity = connection.identify_system().await?;
        let history = connection.timeline_history(identity.timeline).await.ok();
        Ok(((identity, history), connection.imposed_limits().await?))
    };
    let answers = answers.await.map_err(|error: CommandError| error.diagnosis());
    connection.close().await;
    answers
}

async fn reach_target(
    subscription: &Subscription,
    target: &ConnInfo,
    slot_seen: oneshot::Receiver<()>,
    record_read: oneshot::Sender<()>,
) -> Result<Target, ConnectError> {
    let client = connect(subscription, target).await?;
    let facts = asked(Side::Target, catalog::target_facts(&client)).await;
    let existing = asked(Side::Target, catalog::user_tables(&*client, Side::Target)).await;
    // Before the state's own session: that counts until the server has ended it.
    let sessions = asked(Side::Target, catalog::session_limit(&*client, Side::Target)).await;
    let _ = slot_seen.await;
    let (state, others) = Box::pin(asked(Side::Target, read_state(subscription, target)))
        .await
        .map_or_else(|diagnosis| (Err(diagnosis), Vec::new()), |(state, others)| (Ok(state), others));
    drop(record_read);
    let imposed = imposed_limits(&client).await;
    Ok(Target { client, facts, existing, state, others, imposed, sessions })
}

/// Reads the state with the same driver as the command line and the service.
async fn read_state(
    subscription: &Subscription,
    target: &ConnInfo,
) -> Result<(State, Vec<TableOfOther>), Diagnosis> {
    let store = Store::connect(target).await.map_err(|error| error.diagnosis())?;
    let state = async {
        if store.schema_version().await?.is_none() {
            return Ok((State::NotThere, Vec::new()));
        }
        match store.require_schema().await {
            Err(error) if matches!(error.kind(), StoreErrorKind::NotMigrated { .. }) => {
                return Ok((State::Old(error.diagnosis()), Vec::new()));
            }
            outcome => outcome?,
        }
        let name = subscription.name.as_str();
        let (row, others) = (store.subscription(name).await?, store.tables_of_others(name).await?);
        Ok((State::There(row.map_or(Recorded::Nothing, |row| Recorded::Row(Box::new(row)))), others))
    };
    let state = state.await;
    store.close().await;
    state.map_err(|error: crate::store::StoreError| error.diagnosis())
}

fn judge_target(
    findings: &mut Findings,
    info: &ConnInfo,
    target: Result<&Target, &ConnectError>,
) -> Recorded {
    let target = match target {
        Ok(target) => target,
        Err(error) => {
            verdict::target(findings, Err(error));
            return Recorded::Unknown;
        }
    };
    let facts = match &target.facts {
        Ok(facts) => facts,
        Err(diagnosis) => {
            findings.fail(Step::Target, diagnosis.clone());
            return Recorded::Unknown;
        }
    };
    verdict::target(findings, Ok((target.client.host(), facts)));
    verdict::exposed_password(findings, Step::Target, info, target.client.host(), target.client.encryption());
    sessions::time_limits(findings, Side::Target, &info.user, &target.imposed);
    let recorded = judge_state(findings, info, facts, &target.state);
    judge_sessions(findings, Side::Target, info, &target.sessions, &recorded);
    recorded
}

fn judge_state(
    findings: &mut Findings,
    info: &ConnInfo,
    facts: &TargetFacts,
    state: &Answer<State>,
) -> Recorded {
    match state {
        Err(diagnosis) => findings.fail(Step::State, diagnosis.clone()),
        Ok(State::NotThere) => {
            verdict::state_to_be_made(findings, facts, &info.dbname);
            return Recorded::Nothing;
        }
        Ok(State::Old(diagnosis)) => findings.warn(Step::State, diagnosis.clone()),
        Ok(State::There(recorded)) => {
            findings.ok(Step::State, format!("schema pgsluice, version {}", crate::store::SCHEMA_VERSION));
            verdict::gaps(findings, recorded);
            return recorded.clone();
        }
    }
    Recorded::Unknown
}

/// Whether the role may open as many sessions as the service will need. A service that runs has opened most
/// of them.
fn judge_sessions(
    findings: &mut Findings,
    side: Side,
    info: &ConnInfo,
    limit: &Answer<SessionLimit>,
    recorded: &Recorded,
) {
    match limit {
        Ok(limit) => sessions::limit(findings, side, info, limit, recorded),
        Err(diagnosis) => findings.warn(sessions::step(side), diagnosis.clone()),
    }
}

fn judge_publisher(
    findings: &mut Findings,
    subscription: &Subscription,
    publisher: &Publisher,
    recorded: &Recorded,
) {
    let identity = publisher.identity.as_ref();
    verdict::replication(findings, identity.map(|(identity, _)| identity).map_err(Clone::clone));
    sessions::time_limits(findings, Side::Publisher, &subscription.publisher.user, &publisher.imposed);
    judge_sessions(findings, Side::Publisher, &subscription.publisher, &publisher.sessions, recorded);
    match &publisher.facts {
        Ok(facts) => verdict::wal_level(findings, facts),
        Err(diagnosis) => findings.fail(Step::WalLevel, diagnosis.clone()),
    }
    match &publisher.view {
        Ok(view) => {
            if let Ok(facts) = &publisher.facts {
                verdict::room(findings, facts, view, recorded);
            }
            let identity = identity.ok().map(|(identity, history)| (identity, history.as_ref()));
            let checkpoint = publisher.checkpoint.as_ref().ok().copied().flatten();
            verdict::slot(findings, subscription, view, recorded, identity, checkpoint);
        }
        Err(diagnosis) => findings.fail(Step::Slot, diagnosis.clone()),
    }
}

fn judge_publications(
    findings: &mut Findings,
    subscription: &Subscription,
    publisher: &Publisher,
    target: Option<&Target>,
    recorded: &Recorded,
) {
    let catalog::Published { tables, missing, .. } = match &publisher.published {
        Ok(published) => published,
        Err(diagnosis) => return findings.fail(Step::Publications, diagnosis.clone()),
    };
    let (_, notes) = Mapping::new(&subscription.tables, tables.iter().map(|table| &table.relation.name));
    match &publisher.existing {
        Ok(existing) => {
            let targets = target.and_then(|target| target.existing.as_ref().ok());
            let published = Published { tables, notes: &notes, existing, targets };
            if let Some(missing) = missing {
                findings
                    .warn(Step::Publications, crate::subscription::findings::missing_publications(missing));
            }
            verdict::publications(findings, subscription, &published);
        }
        Err(diagnosis) => findings.fail(Step::Publications, diagnosis.clone()),
    }
    let role =
        publisher.facts.as_ref().map_or(subscription.publisher.user.as_str(), |facts| facts.role.as_str());
    match &publisher.denied {
        Ok(denied) => verdict::privileges(findings, subscription, role, denied, recorded),
        Err(diagnosis) => findings.fail(Step::Privileges, diagnosis.clone()),
    }
}

async fn judge_tables(
    findings: &mut Findings,
    subscription: &Subscription,
    publisher: &Publisher,
    target: &Target,
) -> Vec<TableReport> {
    let (Ok(published), Ok(facts)) = (&publisher.published, &target.facts) else { return Vec::new() };
    let published = &published.tables;
    let (mapping, _) = Mapping::new(&subscription.tables, published.iter().map(|table| &table.relation.name));
    let paired: Vec<(&PublishedTable, &QualifiedName)> = published
        .iter()
        .filter_map(|table| mapping.target(&table.relation.name).map(|name| (table, name)))
        .collect();
    let names: Vec<QualifiedName> = paired.iter().map(|(_, name)| (*name).clone()).collect();
    let found: Vec<Option<TargetTable>> =
        match asked(Side::Target, catalog::target_tables(&*target.client, &names)).await {
            Ok(found) => found,
            Err(diagnosis) => {
                findings.fail(Step::Tables, diagnosis);
                return Vec::new();
            }
        };
    match asked(Side::Target, catalog::unlogged_tables(&*target.client, &names)).await {
        Ok(unlogged) => {
            if let Some(diagnosis) = catalog::unlogged(&unlogged) {
                findings.warn(Step::Tables, diagnosis);
            }
        }
        Err(diagnosis) => findings.fail(Step::Tables, diagnosis),
    }
    let pairs: Vec<Pair<'_>> = paired
        .iter()
        .zip(&found)
        .map(|((published, target_name), target)| Pair {
            published,
            target_name,
            target: target.as_ref(),
            rules: subscription.rules(&published.relation.name),
        })
        .collect();
    let replication_role =
        if facts.may_be_replica { ReplicationRole::Replica } else { ReplicationRole::Origin };
    let (role, run_as) = (facts.role.clone(), subscription.run_as);
    let mut compared = tables::compare_all(&pairs, &Surroundings { replication_role, role, run_as });
    complete(subscription, publisher, target, &mut compared).await;
    let own = paired.iter().map(|(published, name)| (&published.relation.name, *name, None));
    let rows = Rows::new(own, &target.others);
    let shared = match asked(Side::Target, catalog::places_of(&*target.client, &rows.targets())).await {
        Ok(places) => rows.warnings(&places, &subscription.publications),
        Err(diagnosis) => vec![diagnosis],
    };
    tables::judge(findings, &pairs, compared, shared)
}

/// Adds to misfits what their DDL needs. If the facts cannot be read, they stay as they are.
async fn complete(
    subscription: &Subscription,
    publisher: &Publisher,
    target: &Target,
    compared: &mut [Comparison],
) {
    let misfits: Vec<Misfit> =
        compared.iter().flat_map(|compared| compared.misfits.iter().cloned()).collect();
    if misfits.is_empty() {
        return;
    }
    let recorded = match &target.state {
        Ok(State::There(Recorded::Row(row))) => row.tables.as_slice(),
        Ok(State::There(_) | State::NotThere | State::Old(_)) | Err(_) => &[],
    };
    let source = (&*publisher.client, publisher.client.server_version_num());
    let facts = catalog::misfit_facts(source, &*target.client, &misfits);
    if let Ok(mut facts) = asked(Side::Target, facts).await {
        subscription.name.as_str().clone_into(&mut facts.subscription);
        facts.standings = standings(recorded);
        compared
            .iter_mut()
            .flat_map(|compared| &mut compared.misfits)
            .for_each(|misfit| misfit.complete(&facts));
    }
}
