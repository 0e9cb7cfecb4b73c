//! Tests of what `pgsluice status` prints.

use super::*;
use crate::gap::GapKind;
use crate::pg::QualifiedName;
use crate::store::SlotStatus;

fn table(name: &str, state: TableState) -> TableStatus {
    TableStatus {
        source: QualifiedName::new("public", name),
        target: QualifiedName::new("public", name),
        state,
        rows_copied: 3,
        rows_estimated: Some(10),
        error: None,
        exact_because: None,
        resync: None,
        gap_id: None,
    }
}

fn streaming() -> SubscriptionStatus {
    let mut document = StatusDocument::new(&[], [("my_subscription", State::Disabled)]);
    SubscriptionStatus {
        state: State::Streaming,
        received_lsn: Some(Lsn::new(0x16B_3790)),
        applied_lsn: Some(Lsn::new(0x16B_3748)),
        flushed_lsn: Some(Lsn::new(0x16B_3748)),
        publisher_lsn: Some(Lsn::new(0x16B_3790)),
        lag_bytes: Some(72),
        lag_seconds: Some(0.25),
        slot: SlotStatus { wal_status: Some("reserved".into()), retained_bytes: Some(16 << 20) },
        since: Some("2024-02-29T12:00:00Z".parse().unwrap()),
        running: true,
        instance: Some("db-1/4711".into()),
        tables: vec![table("widgets", TableState::Ready), table("gadgets", TableState::Copying)],
        ..document.subscriptions.remove(0)
    }
}

fn check(subscriptions: Vec<SubscriptionStatus>, tables: Tables) -> String {
    output::uncoloured(&render(&StatusDocument { subscriptions }, tables))
}

#[test]
fn a_streaming_subscription() {
    insta::assert_snapshot!(check(vec![streaming()], Tables::Notable), @r#"
    my_subscription: streaming since 2024-02-29 12:00:00 UTC
      received     0/16B3790
      applied      0/16B3748
      flushed      0/16B3748
      publisher    0/16B3790
      lag          72 B, 0.2 s
      slot         reserved, 16 MiB of WAL retained
      instance     db-1/4711
        table            state     rows copied     note
      ───────────────────────────────────────────────────
        public.widgets   ready     3
        public.gadgets   copying   3 of about 10
    "#);
}

#[test]
fn a_paused_one_says_why_and_what_next() {
    let mut paused = streaming();
    paused.state = State::Paused;
    paused.reason = Some("schema".into());
    paused.detail = Some("column \"price\" is missing\x1b[31m".into());
    paused.hint = Some("run:\nALTER TABLE public.widgets ADD COLUMN price numeric;".into());
    paused.skip_lsn = Some(Lsn::new(0x16B_3800));
    paused.warnings = vec!["triggers cannot be suppressed".into()];
    paused.tables = vec![TableStatus {
        target: QualifiedName::new("reporting", "widget"),
        error: Some(Diagnosis::new("column \"price\" is missing").hint("add it")),
        ..table("widgets", TableState::Paused)
    }];
    assert_eq!(exit(&StatusDocument { subscriptions: vec![paused.clone()] }), Exit::No);
    insta::assert_snapshot!(check(vec![paused], Tables::Notable), @r#"
    my_subscription: paused (schema) since 2024-02-29 12:00:00 UTC
      detail       column "price" is missing\u{1b}[31m
      hint         run:
                   ALTER TABLE public.widgets ADD COLUMN price numeric;
      received     0/16B3790
      applied      0/16B3748
      flushed      0/16B3748
      publisher    0/16B3790
      lag          72 B, 0.2 s
      slot         reserved, 16 MiB of WAL retained
      skip         armed for the transaction that finishes at 0/16B3800
      instance     db-1/4711
      warning      triggers cannot be suppressed
        table                               state    rows copied   note
      ────────────────────────────────────────────────────────────────────────────────────────────────
        public.widgets → reporting.widget   paused   3             column "price" is missing; add it
    "#);
}

#[test]
fn a_gap_says_what_may_be_missing_and_what_next() {
    let mut held = streaming();
    held.gaps = vec![GapStatus {
        id: 7,
        kind: GapKind::Returned,
        table: Some(QualifiedName::new("public", "widgets")),
        holds: true,
        from_lsn: Some(Lsn::new(0x10)),
        to_lsn: Some(Lsn::new(0x20)),
        since: None,
        opened_at: "2024-02-29T12:00:00Z".parse().unwrap(),
        message: "public.widgets may lack changes".into(),
        detail: Some("between 0/10 and 0/20".into()),
        hint: Some("pgsluice resync".into()),
    }];
    held.tables = vec![TableStatus { gap_id: Some(7), ..table("widgets", TableState::Paused) }];
    assert_eq!(exit(&StatusDocument { subscriptions: vec![held.clone()] }), Exit::No);
    assert!(lines(&StatusDocument { subscriptions: vec![held.clone()] }).ends_with("0 of 1 ready gaps 1\n"));
    insta::assert_snapshot!(check(vec![held], Tables::Notable), @r"
    my_subscription: streaming since 2024-02-29 12:00:00 UTC
      received     0/16B3790
      applied      0/16B3748
      flushed      0/16B3748
      publisher    0/16B3790
      lag          72 B, 0.2 s
      slot         reserved, 16 MiB of WAL retained
      instance     db-1/4711
      gap          7 (returned): public.widgets may lack changes
                   detail: between 0/10 and 0/20
                   hint: pgsluice resync
        table            state    rows copied   note
      ─────────────────────────────────────────────────────────
        public.widgets   paused   3             held by gap 7
    ");
}

#[test]
fn where_nothing_can_be_drawn_a_subscription_is_a_line() {
    insta::assert_snapshot!(
        lines(&StatusDocument { subscriptions: vec![streaming()] }),
        @"my_subscription streaming applied 0/16B3748 lag 72 B 0.2 s tables 1 of 2 ready"
    );
}

#[test]
fn many_tables_are_summed_up() {
    let mut many = streaming();
    many.tables = (0..20).map(|n| table(&format!("t{n:02}"), TableState::Ready)).collect();
    many.tables.push(TableStatus {
        exact_because: Some("a BEFORE trigger fires".into()),
        ..table("slow", TableState::Copying)
    });
    let text = check(vec![many.clone()], Tables::Notable);
    assert!(text.contains("20 more, ready") && text.contains("row by row: a BEFORE trigger"), "{text}");
    assert!(check(vec![many], Tables::All).contains("t19"));
}

#[test]
fn nothing_runs() {
    let states = [("new", State::Starting), ("off", State::Disabled)];
    let document = StatusDocument::new(&[], states);
    assert_eq!(exit(&document), Exit::No);
    insta::assert_snapshot!(check(document.subscriptions, Tables::Notable), @r#"
    new: starting (not_running)
      detail       no service has run it yet
      hint         start it with "pgsluice run"

    off: disabled
    "#);
    assert_eq!(exit(&StatusDocument::new(&[], [("off", State::Disabled)])), Exit::Fine);
    insta::assert_snapshot!(
        check(vec![], Tables::All),
        @"no subscriptions: the configuration has none, and none has ever run"
    );
}
