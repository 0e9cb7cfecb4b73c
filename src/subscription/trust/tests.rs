//! Checks the verdict for one record and one state of the publisher, and for each deviation from it.

use super::*;

#[expect(clippy::unnecessary_wraps, reason = "the fields that it fills are optional")]
fn lsn(position: u64) -> Option<Lsn> {
    Some(Lsn::new(position))
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Applied up to 1000 on timeline 2, which began at 500.
fn record() -> Record {
    Record {
        system_id: Some("7".into()),
        applied: lsn(1000),
        applied_at: Some(time(1_790_000_000)),
        copied: lsn(600),
        publisher: Some(PublisherRecord {
            timeline: 2,
            timeline_start: lsn(500),
            role: Role::Primary,
            database: Some(5),
            started_at: Some(time(1)),
            witnesses: Witnesses {
                wal: lsn(1100),
                next_xid: Some(80),
                restart_lsn: lsn(900),
                seen_at: Some(time(1_790_000_005)),
            },
            distrusted: None,
        }),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the fields that it fills are optional")]
fn history(timeline: u32, file: &str) -> Option<TimelineHistory> {
    Some(TimelineHistory::parse(timeline, file.as_bytes()).unwrap())
}

/// The publisher of the record, as it is seen a little later.
fn seen() -> Seen {
    Seen {
        system_id: "7".into(),
        timeline: 2,
        history: history(2, "1\t0/1F4\tx"),
        role: Role::Primary,
        database: 5,
        started_at: time(1),
        wal: Lsn::new(1200),
        next_xid: 90,
        checkpoint: lsn(700),
        slot: Some(SlotSeen { confirmed: lsn(1000), restart_lsn: lsn(900), health: SlotHealth::Good }),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the fields that it fills are optional")]
fn slot(confirmed: u64, restart_lsn: u64) -> Option<SlotSeen> {
    Some(SlotSeen { confirmed: lsn(confirmed), restart_lsn: lsn(restart_lsn), health: SlotHealth::Good })
}

#[track_caller]
fn check(record: &Record, seen: &Seen, expected: &Verdict) {
    assert_eq!(judge(record, seen), *expected);
}

#[track_caller]
fn diverged(seen: &Seen, expected: Divergence) {
    check(&record(), seen, &Verdict::Diverged(expected));
}

const SAME: Verdict = Verdict::Trusted(Ground::SameTimeline);

#[test]
fn the_same_publisher_is_trusted() {
    check(&record(), &seen(), &SAME);
    // The publisher saves the slot's confirmed position late, and its last checkpoint may be old.
    check(&record(), &Seen { slot: slot(100, 900), checkpoint: lsn(1), ..seen() }, &SAME);
    check(&record(), &Seen { history: None, ..seen() }, &SAME);
}

#[test]
fn a_publisher_that_was_started_again_is_trusted() {
    let restarted = Seen { started_at: time(2), checkpoint: lsn(1150), ..seen() };
    check(&record(), &restarted, &SAME);
    check(&record(), &Seen { checkpoint: None, ..restarted.clone() }, &SAME);
    // The shutdown checkpoint's own record was sent, and recorded.
    let record = Record { applied: lsn(1200), ..record() };
    check(
        &record,
        &Seen { wal: Lsn::new(1300), checkpoint: lsn(1080), slot: slot(1200, 900), ..restarted },
        &SAME,
    );
}

#[test]
fn a_slot_ahead_of_the_record_proves_a_gap() {
    let ahead = Divergence::SlotAhead { recorded: Lsn::new(1000), confirmed: Lsn::new(1001) };
    diverged(&Seen { slot: slot(1001, 900), ..seen() }, ahead);
    assert_eq!(ahead.gap(), Some((Lsn::new(1000), Lsn::new(1001))));
}

#[test]
fn a_publisher_from_an_older_copy_is_told() {
    let restored = Seen { started_at: time(2), checkpoint: lsn(740), ..seen() };
    diverged(
        &Seen { wal: Lsn::new(999), ..restored.clone() },
        Divergence::BeyondWal { recorded: Lsn::new(1000), wal: Lsn::new(999) },
    );
    diverged(
        &Seen { wal: Lsn::new(1099), ..restored.clone() },
        Divergence::WalWentBack { seen: Lsn::new(1100), now: Lsn::new(1099) },
    );
    diverged(&Seen { next_xid: 79, ..restored.clone() }, Divergence::XidWentBack { seen: 80, now: 79 });
    diverged(&restored, Divergence::StartedEarlier { seen: Lsn::new(1100), checkpoint: Lsn::new(740) });
    // After its next checkpoint, only the slot shows the older state.
    diverged(
        &Seen { checkpoint: lsn(1190), slot: slot(850, 800), ..restored },
        Divergence::SlotWentBack { seen: Lsn::new(900), now: Lsn::new(800) },
    );
}

#[test]
fn a_run_that_was_found_out_stays_distrusted() {
    let mut record = record();
    record.publisher.as_mut().unwrap().distrusted = Some(time(2));
    let passed = Seen { started_at: time(2), checkpoint: lsn(1150), ..seen() };
    check(&record, &passed, &Verdict::Diverged(Divergence::FoundBefore { recorded: Lsn::new(1000) }));
    // The right server is back, and is trusted again.
    let back = Seen { started_at: time(3), ..passed };
    check(&record, &back, &SAME);
    assert_eq!(recorded(&record, Ground::SameTimeline, &back).distrusted, None);
}

#[test]
fn a_restart_lsn_counts_only_after_a_restart() {
    check(&record(), &Seen { slot: slot(1000, 800), ..seen() }, &SAME);
}

#[test]
fn a_copied_table_counts_as_what_the_target_has() {
    let record = Record { copied: lsn(1300), ..record() };
    check(
        &record,
        &seen(),
        &Verdict::Diverged(Divergence::BeyondWal { recorded: Lsn::new(1300), wal: Lsn::new(1200) }),
    );
}

#[test]
fn a_promotion_is_trusted_if_it_had_everything() {
    let promoted = |file: &str| Seen {
        timeline: 3,
        history: history(3, file),
        started_at: time(3),
        // This value comes from another server.
        next_xid: 3,
        checkpoint: lsn(10),
        slot: slot(950, 400),
        ..seen()
    };
    let ground = |at| Verdict::Trusted(Ground::Promoted { from: 2, at: Lsn::new(at) });
    check(&record(), &promoted("1\t0/1F4\tx\n2\t0/3E8\ty"), &ground(1000));
    diverged(
        &promoted("1\t0/1F4\tx\n2\t0/3E7\ty"),
        Divergence::LeftEarlier { timeline: 2, now: 3, at: Lsn::new(999), recorded: Lsn::new(1000) },
    );
    diverged(&promoted("1\t0/1F4\tx"), Divergence::OtherTimeline { timeline: 2, now: 3 });
    diverged(&promoted("1\t0/1F5\tx\n2\t0/3E8\ty"), Divergence::OtherTimeline { timeline: 2, now: 3 });
    diverged(&Seen { history: None, ..promoted("") }, Divergence::UnknownTimeline { timeline: 2, now: 3 });
    diverged(
        &Seen { slot: slot(1001, 1001), ..promoted("1\t0/1F4\tx\n2\t0/3E8\ty") },
        Divergence::SlotAhead { recorded: Lsn::new(1000), confirmed: Lsn::new(1001) },
    );
}

#[test]
fn a_timeline_is_more_than_its_number() {
    diverged(
        &Seen { history: history(2, "1\t0/1F5\tx"), ..seen() },
        Divergence::OtherTimeline { timeline: 2, now: 2 },
    );
    // The old primary, after another server was promoted.
    diverged(
        &Seen { timeline: 1, history: history(1, ""), ..seen() },
        Divergence::OtherTimeline { timeline: 2, now: 1 },
    );
}

#[test]
fn a_standby_is_waited_for() {
    let standby =
        Seen { role: Role::Standby, started_at: time(4), next_xid: 1, checkpoint: lsn(1), ..seen() };
    check(&record(), &standby, &SAME);
    let behind =
        |replayed| Verdict::NotYet(Wait::Replay { recorded: Lsn::new(1000), replayed: Lsn::new(replayed) });
    check(&record(), &Seen { wal: Lsn::new(999), ..standby.clone() }, &behind(999));
    check(&record(), &Seen { timeline: 1, history: history(1, ""), ..standby.clone() }, &behind(1200));
    let slot = SlotSeen { health: SlotHealth::Synchronised, ..standby.slot.unwrap() };
    let synchronised = Seen { slot: Some(slot), ..standby.clone() };
    check(&record(), &synchronised, &Verdict::NotYet(Wait::Promotion));
    // The slot's synchronised state does not matter after the promotion.
    check(&record(), &Seen { role: Role::Primary, started_at: time(1), next_xid: 90, ..synchronised }, &SAME);
    // What a standby has shown proves nothing about a primary that answers later.
    let recorded = recorded(&record(), Ground::SameTimeline, &standby);
    assert_eq!((recorded.role, recorded.witnesses), (Role::Standby, Witnesses::default()));
    assert_eq!(recorded.timeline_start, lsn(500));
    let record = Record { publisher: Some(recorded), ..record() };
    check(&record, &Seen { started_at: time(9), ..seen() }, &SAME);
    // The standby was promoted while it streamed.
    let promoted =
        Seen { timeline: 3, history: history(3, "1\t0/1F4\tx\n2\t0/384\ty"), role: Role::Primary, ..standby };
    let ground = Ground::Promoted { from: 2, at: Lsn::new(900) };
    check(&record, &promoted, &Verdict::Trusted(ground));
    let restarted = Seen { started_at: time(9), ..promoted };
    let left = Divergence::LeftEarlier { timeline: 2, now: 3, at: Lsn::new(900), recorded: Lsn::new(1000) };
    check(&record, &restarted, &Verdict::Diverged(left));
}

#[test]
fn other_systems_and_lost_slots_are_named_first() {
    let lost = SlotSeen { health: SlotHealth::Lost, ..seen().slot.unwrap() };
    let other = Verdict::Diverged(Divergence::OtherDatabase { recorded: 5, now: 6 });
    check(&record(), &Seen { database: 6, ..seen() }, &other);
    check(&record(), &Seen { system_id: "8".into(), slot: None, ..seen() }, &Verdict::OtherSystem);
    check(&record(), &Seen { slot: None, wal: Lsn::ZERO, ..seen() }, &Verdict::SlotGone);
    check(&record(), &Seen { slot: Some(lost), ..seen() }, &Verdict::SlotLost);
}

#[test]
fn records_without_facts_are_filled() {
    let old = Record { publisher: None, ..record() };
    let ahead = Seen { slot: slot(1100, 900), ..seen() };
    check(&old, &ahead, &Verdict::Trusted(Ground::NothingToCompare));
    let filled = recorded(&old, Ground::NothingToCompare, &ahead);
    assert_eq!((filled.timeline, filled.timeline_start, filled.started_at), (2, lsn(500), Some(time(1))));
    // A position beyond the WAL is found without any other fact.
    check(
        &old,
        &Seen { wal: Lsn::new(7), ..seen() },
        &Verdict::Diverged(Divergence::BeyondWal { recorded: Lsn::new(1000), wal: Lsn::new(7) }),
    );
    check(&Record::default(), &seen(), &Verdict::Trusted(Ground::NothingRecorded));
}

#[test]
fn witnesses_are_kept_on_their_timeline_only() {
    let same = recorded(&record(), Ground::SameTimeline, &Seen { started_at: time(9), ..seen() });
    assert_eq!(same.witnesses, record().publisher.unwrap().witnesses);
    assert_eq!(same.started_at, Some(time(9)));
    let promoted = Seen { timeline: 3, history: history(3, "1\t0/1F4\tx\n2\t0/3E8\ty"), ..seen() };
    let ground = Ground::Promoted { from: 2, at: Lsn::new(1000) };
    let moved = recorded(&record(), ground, &promoted);
    assert_eq!((moved.timeline, moved.timeline_start), (3, lsn(1000)));
    assert_eq!(moved.witnesses, Witnesses::default());
}

#[test]
fn what_is_missing_and_the_ways_out_are_told() {
    let (subscription, slot) = ("sub".parse().unwrap(), "the_slot".parse().unwrap());
    let told = |divergence: Divergence| divergence.diagnosis(&record(), &subscription, &slot).to_string();
    let snapshots = [
        told(Divergence::SlotAhead { recorded: Lsn::new(1000), confirmed: Lsn::new(1001) }),
        told(Divergence::BeyondWal { recorded: Lsn::new(1000), wal: Lsn::new(999) }),
        told(Divergence::XidWentBack { seen: 80, now: 79 }),
        told(Divergence::OtherTimeline { timeline: 2, now: 2 }),
    ];
    insta::assert_snapshot!(snapshots.join("\n"), @r#"
    replication slot "the_slot" is ahead of the target
      detail: changes that were committed from 0/3E8 to 0/3E9 are missing: the target has recorded everything up to 0/3E8 at 2026-09-21T14:13:20Z, and the slot's confirmed_flush_lsn is 0/3E9, so the publisher no longer sends them; the slot was made again or advanced by hand, or the target was restored or failed over to a server that lacks its last commits
      hint: if another server or backup of the target has everything up to 0/3E9, point [target] url at it, then "pgsluice resume sub"; otherwise start over: "pgsluice drop sub", empty the target's tables, and let pgsluice create the subscription again
    the target is ahead of the publisher
      detail: what the target has from 0/3E7 or earlier to 0/3E8 is not what the publisher has there, and what the publisher has there instead is missing from the target: the publisher's WAL ends at 0/3E7; the target has recorded everything up to 0/3E8 at 2026-09-21T14:13:20Z
      hint: if another server has the publisher's WAL up to 0/3E8, point "publisher" at it, then "pgsluice resume sub"; otherwise start over: "pgsluice drop sub", empty the target's tables, and let pgsluice create the subscription again
    the publisher has gone back to an older state
      detail: what the target has last is not what the publisher has there; from which position on cannot be told: the publisher's next transaction identifier is 79, and was 80 at 2026-09-21T14:13:25Z; the target has recorded everything up to 0/3E8 at 2026-09-21T14:13:20Z
      hint: if another server has the publisher's WAL up to 0/3E8, point "publisher" at it, then "pgsluice resume sub"; otherwise start over: "pgsluice drop sub", empty the target's tables, and let pgsluice create the subscription again
    the publisher's history is not the one that the target comes from
      detail: what the target has last is not what the publisher has there; from which position on cannot be told: it is on another timeline 2 than before: it began elsewhere; the target has recorded everything up to 0/3E8 at 2026-09-21T14:13:20Z
      hint: if another server has the publisher's WAL up to 0/3E8, point "publisher" at it, then "pgsluice resume sub"; otherwise start over: "pgsluice drop sub", empty the target's tables, and let pgsluice create the subscription again
    "#);
}
