//! Turns facts into the findings of each step. Pure.
//!
//! If the running service reports the same fault, the text comes from the module that reports it there.

use std::collections::BTreeSet;

use crate::config::{Origin, Subscription};
use crate::error::Diagnosis;
use crate::gap::Hold;
use crate::net::{self, ConnectError, Encryption};
use crate::pg::conninfo::{ConnInfo, Host, HostAddress};
use crate::pg::{Lsn, QualifiedName, TimelineHistory, nearest, quote_ident};
use crate::replication::SystemIdentity;
use crate::schema::catalog::{PublisherFacts, TargetFacts, UnselectableTable, unreadable};
use crate::schema::mapping::MappingNote;
use crate::schema::{PublishedTable, render::table_sql};
use crate::store::{SubscriptionRow, TableState};
use crate::subscription::findings as service;
use crate::subscription::slot::{self, OnMissing, SlotPlan, SlotView};
use crate::subscription::verify;
use crate::target::{OriginLack, no_origin, no_replica_role, too_old};

use super::findings::Findings;
use super::report::Step;

/// Oldest and newest versions that pgsluice is tested with.
const PUBLISHER_VERSIONS: std::ops::RangeInclusive<u32> = 10..=18;
const TARGET_VERSIONS: std::ops::RangeInclusive<u32> = 12..=18;
/// Largest number of table names in a text; the others are only counted.
const NAMED_MAX: usize = 8;

/// The steps of a connection, up to and including the database.
const WAY: [net::Step; 6] = [
    net::Step::Name,
    net::Step::Route,
    net::Step::Port,
    net::Step::Tls,
    net::Step::Authentication,
    net::Step::Database,
];

/// Records the steps of the connection to the publisher: all of them, or those up to the failed step.
pub(super) fn way(
    findings: &mut Findings,
    info: &ConnInfo,
    outcome: Result<(&Host, Encryption), &ConnectError>,
) {
    let failed = outcome.err().map(|error| error.step);
    for step in WAY.into_iter().take_while(|step| failed.is_none_or(|failed| *step < failed)) {
        findings.ok(step.into(), passed(step, info, outcome));
    }
    match outcome {
        Ok((host, encryption)) => exposed_password(findings, Step::Tls, info, host, encryption),
        Err(error) => {
            findings.fail(error.step.into(), error.diagnosis());
            note_reach(findings, error);
        }
    }
}

/// Warns of a password that is used over the network without TLS.
pub(super) fn exposed_password(
    findings: &mut Findings,
    step: Step,
    info: &ConnInfo,
    host: &Host,
    encryption: Encryption,
) {
    if encryption == Encryption::Tls || !info.exposes_password(host) {
        return;
    }
    let primary = format!(
        "the password of role \"{}\" is used on {} without TLS (sslmode={})",
        info.user,
        host.address,
        info.tls.mode.as_str()
    );
    findings.warn(
        step,
        Diagnosis::new(primary)
            .detail("the server may ask for it in clear text, and others on the network may read or guess it")
            .hint(
                "set ssl = on on that server and use sslmode=verify-full; service.password_requires_tls = true \
                 refuses such a connection",
            ),
    );
}

fn passed(step: net::Step, info: &ConnInfo, outcome: Result<(&Host, Encryption), &ConnectError>) -> String {
    let (host, port, socket) = match outcome {
        Ok((host, _)) => (host.address.to_string(), host.port, matches!(host.address, HostAddress::Unix(_))),
        Err(error) => (error.host.clone(), error.port, error.host.starts_with('/')),
    };
    match step {
        net::Step::Name if socket => format!("{host}, a socket's directory"),
        net::Step::Name => host,
        net::Step::Route if socket => "none needed".to_owned(),
        net::Step::Route => "there is one".to_owned(),
        net::Step::Port => format!("{port} answers"),
        net::Step::Tls => match outcome {
            Ok((_, Encryption::Tls)) => "encrypted".to_owned(),
            Ok((_, Encryption::None)) => format!("not encrypted (sslmode={})", info.tls.mode.as_str()),
            Err(_) => format!("agreed (sslmode={})", info.tls.mode.as_str()),
        },
        net::Step::Authentication => format!("role \"{}\"", info.user),
        net::Step::Database | net::Step::Replication => format!("\"{}\"", info.dbname),
    }
}

fn note_reach(findings: &mut Findings, error: &ConnectError) {
    if error.step <= net::Step::Port {
        findings.out_of_reach();
    }
}

/// The replication connection, on top of a way that leads to the database.
pub(super) fn replication(findings: &mut Findings, outcome: Result<&SystemIdentity, Diagnosis>) {
    match outcome {
        Ok(_) => findings.ok(Step::Replication, "admitted"),
        Err(diagnosis) => findings.fail(Step::Replication, diagnosis),
    }
}

/// What the target has recorded about the subscription.
#[derive(Debug, Clone)]
pub(super) enum Recorded {
    Unknown,
    /// The subscription has never run.
    Nothing,
    Row(Box<SubscriptionRow>),
}

/// Judges the open gaps. Those that hold the whole subscription are found again where the slot is judged.
pub(super) fn gaps(findings: &mut Findings, recorded: &Recorded) {
    let gaps = recorded.row().map(|row| row.gaps.as_slice()).unwrap_or_default();
    for gap in gaps.iter().filter(|gap| !gap.holds_all()) {
        match gap.hold {
            Hold::Until => findings.fail(Step::State, gap.diagnosis()),
            Hold::Nothing => findings.warn(Step::State, gap.diagnosis()),
        }
    }
}

impl Recorded {
    fn row(&self) -> Option<&SubscriptionRow> {
        match self {
            Self::Row(row) => Some(row),
            Self::Unknown | Self::Nothing => None,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.row().is_some_and(|row| row.owned)
    }

    fn position(&self) -> Option<Lsn> {
        self.row().and_then(|row| row.progress.as_ref()).map(|progress| progress.applied_lsn)
    }
}

pub(super) fn wal_level(findings: &mut Findings, facts: &PublisherFacts) {
    match service::wal_level(&facts.wal_level) {
        None => findings.ok(Step::WalLevel, facts.wal_level.clone()),
        Some(diagnosis) => findings.fail(Step::WalLevel, diagnosis),
    }
}

/// Records how many slots and WAL senders are in use, and whether those still to be used are free.
pub(super) fn room(findings: &mut Findings, facts: &PublisherFacts, view: &SlotView, recorded: &Recorded) {
    let used = format!("{} of {} in use", facts.replication_slots_used, facts.max_replication_slots);
    let free = facts.max_replication_slots.saturating_sub(facts.replication_slots_used);
    match (view.slot.is_some(), free) {
        (false, 0) => findings.fail(
            Step::Slots,
            Diagnosis::new("no replication slot is free on the publisher").detail(used).hint(
                "raise max_replication_slots on the publisher (a restart), or drop slots that are not needed: \
                 SELECT slot_name, active FROM pg_replication_slots;",
            ),
        ),
        (true, 0) | (false, 1) => findings.warn(
            Step::Slots,
            Diagnosis::new("no replication slot is left for tables that join later").detail(used).hint(
                "raise max_replication_slots on the publisher (a restart): copying one table beside the stream \
                 takes a temporary slot",
            ),
        ),
        _ => findings.ok(Step::Slots, used),
    }
    let used = format!("{} of {} in use", facts.wal_senders_used, facts.max_wal_senders);
    let free = facts.max_wal_senders.saturating_sub(facts.wal_senders_used);
    let hint = "raise max_wal_senders on the publisher (a restart), or end replication connections that are not \
                needed: SELECT * FROM pg_stat_replication;";
    match (recorded.is_running(), free) {
        (false, 0) => findings.fail(
            Step::WalSenders,
            Diagnosis::new("no WAL sender is free on the publisher").detail(used).hint(hint),
        ),
        (true, 0) | (false, 1) => findings.warn(
            Step::WalSenders,
            Diagnosis::new("no WAL sender is left for tables that join later").detail(used).hint(hint),
        ),
        _ => findings.ok(Step::WalSenders, used),
    }
}

/// Judges the subscription's own slot as the service would.
pub(super) fn slot(
    findings: &mut Findings,
    subscription: &Subscription,
    view: &SlotView,
    recorded: &Recorded,
    identity: Option<(&SystemIdentity, Option<&TimelineHistory>)>,
    checkpoint: Option<Lsn>,
) {
    let known = recorded.row().and_then(|row| row.publisher_system_id.as_deref());
    if let (Some(known), Some((identity, _))) = (known, identity)
        && known != identity.system_id
    {
        let other = service::other_publisher(&identity.system_id, known, &subscription.name);
        return findings.fail(Step::Slot, other);
    }
    let name = &subscription.slot;
    let on_missing = if subscription.create_slot { OnMissing::Create } else { OnMissing::Refuse };
    let found = view.slot.as_ref();
    let dbname = &subscription.publisher.dbname;
    match slot::plan(name, &subscription.name, recorded.position(), found, on_missing, dbname) {
        Err(failure) => findings.fail(Step::Slot, failure.diagnosis),
        // Only the target knows whether the slot existed before.
        Ok(SlotPlan::Create) if matches!(recorded, Recorded::Unknown) => {}
        Ok(SlotPlan::Create) => findings.ok(Step::Slot, format!("\"{name}\" will be created")),
        Ok(SlotPlan::Adopt { from }) => {
            findings.ok(Step::Slot, format!("\"{name}\" is there, from {from} on"));
        }
        Ok(SlotPlan::Continue { from }) => findings.ok(Step::Slot, format!("\"{name}\" goes on from {from}")),
    }
    if let (Some(row), Some((identity, history))) = (recorded.row(), identity) {
        let record = verify::record(row, recorded.position());
        let seen = verify::seen(view, identity, history.cloned(), checkpoint);
        if let Err(failure) = verify::judged(&record, &seen, subscription) {
            findings.fail(Step::Slot, failure.diagnosis);
        }
    }
    let Some(found) = found else { return };
    if let (Some(pid), false) = (found.active_pid, recorded.is_running()) {
        findings.fail(
            Step::Slot,
            Diagnosis::new(format!("replication slot \"{name}\" is in use by another session"))
                .detail(format!("process {pid} of the publisher streams from it, and no pgsluice runs the subscription"))
                .hint(format!(
                    "see who it is: SELECT * FROM pg_stat_replication WHERE pid = {pid}; end it, or choose another \
                     name with the key \"slot\""
                )),
        );
    }
    if found.wal_status.as_deref() == Some("unreserved") {
        findings.warn(
            Step::Slot,
            Diagnosis::new(format!("the publisher is about to remove WAL that slot \"{name}\" needs"))
                .hint("let pgsluice catch up now, and raise max_slot_wal_keep_size on the publisher"),
        );
    }
}

/// The tables of the publications, and candidates for tables that were forgotten.
pub(super) struct Published<'a> {
    pub tables: &'a [PublishedTable],
    pub notes: &'a [MappingNote],
    /// All tables of the publisher's database.
    pub existing: &'a BTreeSet<QualifiedName>,
    /// All tables of the target; none if it was not reached.
    pub targets: Option<&'a BTreeSet<QualifiedName>>,
}

pub(super) fn publications(findings: &mut Findings, subscription: &Subscription, published: &Published<'_>) {
    let names = &subscription.publications;
    let is_published =
        |name: &QualifiedName| published.tables.iter().any(|table| table.relation.name == *name);
    let unmatched: Vec<&QualifiedName> =
        published.notes.iter().map(|MappingNote::UnmatchedRule(source)| source).collect();
    let on_both = |name: &&QualifiedName| published.targets.is_some_and(|targets| targets.contains(*name));
    let forgotten: Vec<&QualifiedName> =
        published.existing.iter().filter(|name| !is_published(name)).filter(on_both).collect();
    if published.tables.is_empty() {
        let mut nothing = service::nothing_published(names);
        if let Some(add) = add_tables(names, &forgotten) {
            nothing = nothing.hint(add);
        }
        findings.warn(Step::Publications, nothing);
    }
    if !unmatched.is_empty() {
        findings.warn(Step::Publications, rules_without_table(names, &unmatched, published.existing));
    }
    let mut text = Diagnosis::new(match published.tables.len() {
        1 => "1 table is published".to_owned(),
        count => format!("{count} tables are published"),
    });
    if let Some(add) = add_tables(names, &forgotten) {
        text = text.detail(format!("not published, although both sides have them: {}", listed(&forgotten)));
        text = text.hint(format!("if they are to be replicated, {add}"));
    }
    findings.fine(Step::Publications, text);
}

fn rules_without_table(
    publications: &[String],
    unmatched: &[&QualifiedName],
    existing: &BTreeSet<QualifiedName>,
) -> Diagnosis {
    let (there, missing): (Vec<&QualifiedName>, Vec<&QualifiedName>) =
        unmatched.iter().partition(|name| existing.contains(**name));
    let mut hints: Vec<String> = add_tables(publications, &there).into_iter().collect();
    for name in missing {
        let known: Vec<String> = existing.iter().map(ToString::to_string).collect();
        let similar = nearest(&name.to_string(), known.iter().map(String::as_str));
        hints.push(match similar {
            Some(similar) => format!("{name} does not exist on the publisher: did you mean \"{similar}\"?"),
            None => {
                format!("{name} does not exist on the publisher: correct source in [[subscriptions.tables]]")
            }
        });
    }
    let primary = match unmatched {
        [one] => format!("the rule for {one} matches no published table"),
        many => format!("{} table rules match no published table: {}", many.len(), listed(many)),
    };
    Diagnosis::new(primary)
        .detail(format!("publications: {}", publications.join(", ")))
        .hint(hints.join("\n"))
}

fn add_tables(publications: &[String], tables: &[&QualifiedName]) -> Option<String> {
    let first = publications.first().filter(|_| !tables.is_empty())?;
    let shown = tables.iter().take(NAMED_MAX).map(|name| table_sql(name)).collect::<Vec<_>>().join(", ");
    let more = if tables.len() > NAMED_MAX { ", …" } else { "" };
    Some(format!("on the publisher: ALTER PUBLICATION {} ADD TABLE {shown}{more};", quote_ident(first)))
}

fn listed(names: &[&QualifiedName]) -> String {
    let mut text = names.iter().take(NAMED_MAX).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if names.len() > NAMED_MAX {
        text = format!("{text} and {} more", names.len() - NAMED_MAX);
    }
    text
}

/// Records whether the initial copy may read the tables. Tables that were copied already are not
/// needed.
pub(super) fn privileges(
    findings: &mut Findings,
    subscription: &Subscription,
    role: &str,
    denied: &[UnselectableTable],
    recorded: &Recorded,
) {
    if !subscription.copy_data {
        return findings.ok(Step::Privileges, "not needed: copy_data = false");
    }
    let copied = |table: &UnselectableTable| {
        recorded.row().is_some_and(|row| {
            row.tables.iter().any(|known| known.source == table.name && known.state == TableState::Ready)
        })
    };
    let (copied, needed): (Vec<UnselectableTable>, Vec<UnselectableTable>) =
        denied.iter().cloned().partition(copied);
    if !needed.is_empty() {
        findings.fail(Step::Privileges, unreadable(role, &needed));
    } else if copied.is_empty() {
        findings.ok(Step::Privileges, "the published tables may be read");
    } else {
        let text = unreadable(role, &copied);
        let detail = text.detail.clone().unwrap_or_default();
        findings.warn(
            Step::Privileges,
            text.detail(format!("{detail}; copied already, so it matters for the next time")),
        );
    }
}

pub(super) fn target(findings: &mut Findings, outcome: Result<(&Host, &TargetFacts), &ConnectError>) {
    let (host, facts) = match outcome {
        Ok(found) => found,
        Err(error) => {
            note_reach(findings, error);
            return findings.fail(Step::Target, error.diagnosis());
        }
    };
    if facts.in_recovery {
        let standby = Diagnosis::new("the target is a standby and takes no writes")
            .hint("name the primary in [target] url, or several hosts with target_session_attrs=primary");
        return findings.fail(Step::Target, standby);
    }
    if let Some(diagnosis) = too_old(facts.server_version_num) {
        return findings.fail(Step::Target, diagnosis);
    }
    findings.ok(Step::Target, format!("{}:{}, role \"{}\"", host.address, host.port, facts.role));
    if facts.may_be_replica {
        findings.ok(Step::ReplicaRole, "triggers and foreign keys stay out of replicated rows");
    } else {
        findings.warn(Step::ReplicaRole, no_replica_role(&facts.role));
    }
    if facts.may_use_origins {
        findings.ok(Step::Origins, "transactions carry one");
    } else {
        let lacks = if facts.origins_max == 0 { OriginLack::Room } else { OriginLack::Privilege };
        findings.warn(Step::Origins, no_origin(&facts.role, lacks));
    }
}

/// Records whether schema `pgsluice`, which does not exist yet, can be created.
pub(super) fn state_to_be_made(findings: &mut Findings, facts: &TargetFacts, dbname: &str) {
    if facts.may_create_schema {
        return findings.ok(Step::State, "schema pgsluice will be created");
    }
    let (role, database) = (quote_ident(&facts.role), quote_ident(dbname));
    findings.fail(
        Step::State,
        Diagnosis::new(format!("role \"{}\" may not create schema pgsluice in the target", facts.role))
            .detail("pgsluice keeps its state there, and makes the schema at its first start")
            .hint(format!(
                "on the target: GRANT CREATE ON DATABASE {database} TO {role}; or run \"pgsluice migrate\" once as \
                 the database's owner"
            )),
    );
}

/// Records the servers' versions and the configured options that they do not support.
pub(super) fn versions(
    findings: &mut Findings,
    subscription: &Subscription,
    publisher: &PublisherFacts,
    target: &TargetFacts,
) {
    let (source, sink) = (publisher.server_version_num / 10_000, target.server_version_num / 10_000);
    if subscription.origin == Origin::None && source < 16 {
        findings.fail(
            Step::Versions,
            Diagnosis::new(format!(
                "origin = \"none\" needs a publisher of version 16 or later, this is {source}"
            ))
            .hint("set origin = \"any\", or upgrade the publisher"),
        );
    }
    for (side, major, tested) in
        [("publisher", source, PUBLISHER_VERSIONS), ("target", sink, TARGET_VERSIONS)]
    {
        if !tested.contains(&major) {
            findings.warn(
                Step::Versions,
                Diagnosis::new(format!(
                    "the {side} is PostgreSQL {major}, which pgsluice is not tested with"
                ))
                .detail(format!("tested: {} to {}", tested.start(), tested.end())),
            );
        }
    }
    let encodings = (publisher.server_encoding.as_str(), target.server_encoding.as_str());
    if encodings.0 != encodings.1 && (encodings.0 == "SQL_ASCII" || encodings.1 == "SQL_ASCII") {
        findings.warn(
            Step::Versions,
            Diagnosis::new("text is not converted between the servers' encodings")
                .detail(format!("the publisher's database is {}, the target's {}", encodings.0, encodings.1))
                .hint("bytes pass as they are; those that the target refuses are named when they come"),
        );
    }
    let number = |version: u32| format!("{}.{}", version / 10_000, version % 10_000);
    let text = format!(
        "publisher {}, target {}",
        number(publisher.server_version_num),
        number(target.server_version_num)
    );
    findings.ok(Step::Versions, text);
}
