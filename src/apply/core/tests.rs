//! Answers that a target seldom gives, without a target.

use std::collections::HashMap;

use super::*;
use crate::pg::Term;
use crate::pgoutput::{Begin, Commit};
use crate::schema::{ReplicationRole, RunAs};

/// A core that passes over the transaction which finishes at `skip`.
fn core(skip: Lsn) -> Core {
    let start = Start {
        term: Term::new(1),
        recorded: Lsn::new(100),
        skip: Some(skip),
        exact_until: None,
        format: Format::Text,
    };
    let surroundings = Surroundings {
        replication_role: ReplicationRole::Replica,
        role: "pgsluice_apply".to_owned(),
        run_as: RunAs::Owner,
    };
    Core::new("sub".parse().unwrap(), HashMap::new(), surroundings, start, Bounds::default())
}

#[test]
fn a_record_that_could_not_be_sent_is_asked_for_again() {
    let (finish, end) = (Lsn::new(200), Lsn::new(210));
    let mut core = core(finish);
    core.take(Message::Begin(Begin { final_lsn: finish, commit_time: 0, xid: 7 }), Moment::ZERO);
    let commit = Commit { commit_lsn: finish, end_lsn: end, commit_time: 0 };
    core.take(Message::Commit(commit), Moment::ZERO);
    let Some(Step::Apply(batch)) = core.next_step() else { panic!("the skip is not recorded: {core:?}") };
    assert_eq!(batch.advance.map(|advance| advance.to), Some(end));
    // Preparing its statement was cancelled, for example.
    core.answered(Answer::NotSent { cause: "57014".to_owned() }, Moment::ZERO);
    assert!(matches!(core.next_step(), Some(Step::End(End::SendAgain { .. }))), "{core:?}");
}
