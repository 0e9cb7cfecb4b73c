//! Gaps: ranges of the publisher's history of which the target may lack changes. Pure.
//!
//! A gap is found where the publisher no longer has what it would have to send (its slot is gone, a table was not
//! published for a while), or where what it has is not the history that the target follows. Whether changes
//! are really missing cannot be known; what may be missing, and where, is recorded. It stays on record until a
//! person accepts it or the rows are synchronised again.
//!
//! # Holding
//! A gap of a table holds it: the table is paused, its changes are passed over, and the others go on. A gap of
//! the subscription holds all of it. A changed definition (operations, row filter, column list) holds nothing,
//! because the changes that arrive still apply.

use jiff::Timestamp;

use crate::error::Diagnosis;
use crate::pg::{Lsn, QualifiedName};
use crate::words::words;

/// Why changes may be missing. The words are part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GapKind {
    /// The slot no longer exists.
    SlotGone,
    /// The publisher has invalidated the slot, or removed WAL that it needs.
    SlotLost,
    /// The slot's confirmed position lies beyond the recorded one.
    SlotAhead,
    /// Publisher and target contradict each other.
    Diverged,
    /// A publication did not exist for a while, so nothing was sent for it.
    Publication,
    /// The table left the publications and came back.
    Returned,
    /// Another table has taken the table's name.
    Replaced,
    /// The publications' operations for the table have changed.
    Operations,
    /// The publications' row filter for the table has changed.
    RowFilter,
    /// The publications' column list for the table has changed.
    Columns,
    /// A column of the table is another one than before, has another type, or is new and may have other values in older
    /// rows.
    Redefined,
    /// The table would be copied on top of rows that other tables of the subscription have brought.
    Occupied,
    /// Changes were passed over that were committed after a gap had been accepted.
    PassedOver,
    /// The table has left, and so has a publication by which transactions that were open then have changed it.
    LastChanges,
    /// The table's target is another table than the one that has its rows.
    OtherTarget,
}

/// What a gap stops until it is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// The table, or the subscription if the gap has no table.
    Until,
    /// Nothing: the changes that arrive apply.
    Nothing,
}

/// A gap to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewGap {
    /// The table on the publisher; none for the whole subscription.
    pub table: Option<QualifiedName>,
    pub kind: GapKind,
    /// Changes that commit after this position may be missing; none if that is not known.
    pub from: Option<Lsn>,
    /// Changes that commit after this position are not concerned; none if it has no known end yet.
    pub to: Option<Lsn>,
    /// When publisher or target was last seen at `from`.
    pub since: Option<Timestamp>,
    /// The facts from which the gap was concluded: one sentence without a full stop.
    pub detail: Option<String>,
}

/// A recorded gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    pub id: i64,
    pub subscription: String,
    pub table: Option<QualifiedName>,
    pub kind: GapKind,
    pub hold: Hold,
    pub from: Option<Lsn>,
    pub to: Option<Lsn>,
    pub since: Option<Timestamp>,
    pub detail: Option<String>,
    pub opened_at: Timestamp,
    /// A person has accepted it, and the stream has not gone on behind it yet.
    pub accepted: Option<Accepted>,
    /// None while it is open.
    pub settled: Option<GapSettled>,
}

/// Who accepted a gap, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    pub at: Timestamp,
    pub by: String,
}

/// How a gap was settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GapSettled {
    pub at: Timestamp,
    pub by: Option<String>,
    pub how: Settlement,
    /// Changes that commit at or beyond this position apply again.
    pub resumed: Option<Lsn>,
}

/// The ways in which a gap ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// A person has accepted that changes may be missing.
    Accepted,
    /// The table's rows were synchronised again.
    Resynced,
    /// Nothing is missing after all: the stream goes on from where the target is.
    Healed,
}

/// A way out of a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WayOut {
    /// The table's rows are replaced by the publisher's.
    Resync,
    /// Only rows that differ are written.
    Merge,
    /// The missing changes are accepted, and the stream goes on.
    Accept,
    /// The subscription is dropped, and everything is copied again.
    StartOver,
}

impl GapKind {
    pub const ALL: [Self; 15] = [
        Self::SlotGone,
        Self::SlotLost,
        Self::SlotAhead,
        Self::Diverged,
        Self::Publication,
        Self::Returned,
        Self::Replaced,
        Self::Operations,
        Self::RowFilter,
        Self::Columns,
        Self::Redefined,
        Self::Occupied,
        Self::PassedOver,
        Self::LastChanges,
        Self::OtherTarget,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SlotGone => "slot_gone",
            Self::SlotLost => "slot_lost",
            Self::SlotAhead => "slot_ahead",
            Self::Diverged => "diverged",
            Self::Publication => "publication",
            Self::Returned => "returned",
            Self::Replaced => "replaced",
            Self::Operations => "operations",
            Self::RowFilter => "row_filter",
            Self::Columns => "columns",
            Self::Redefined => "redefined",
            Self::Occupied => "occupied",
            Self::PassedOver => "passed_over",
            Self::LastChanges => "last_changes",
            Self::OtherTarget => "other_target",
        }
    }

    /// What a gap of this kind stops.
    #[must_use]
    pub const fn hold(self) -> Hold {
        match self {
            Self::SlotGone
            | Self::SlotLost
            | Self::SlotAhead
            | Self::Diverged
            | Self::Publication
            | Self::Returned
            | Self::Replaced
            | Self::Occupied => Hold::Until,
            Self::Operations
            | Self::RowFilter
            | Self::Columns
            | Self::Redefined
            | Self::PassedOver
            | Self::LastChanges
            | Self::OtherTarget => Hold::Nothing,
        }
    }

    /// What happened to `what`, the table or the subscription.
    fn cause(self, what: &str) -> String {
        match self {
            Self::SlotGone => format!("{what} may lack changes: its replication slot no longer exists"),
            Self::SlotLost => {
                format!("{what} may lack changes: the publisher has invalidated its replication slot")
            }
            Self::SlotAhead => {
                format!("{what} may lack changes: its replication slot is ahead of the target")
            }
            Self::Diverged => format!("{what} may differ: publisher and target contradict each other"),
            Self::Publication => {
                format!("{what} may lack changes: its publication did not exist for a while")
            }
            Self::Returned => format!("{what} may lack changes: it left the publications and came back"),
            Self::Replaced => {
                format!("{what} is another table than before: the target has the rows of the former one")
            }
            Self::Operations => format!("{what} may differ: its published operations have changed"),
            Self::RowFilter => format!("{what} may differ: the row filter of its publications has changed"),
            Self::Columns => format!("{what} may differ: the column list of its publications has changed"),
            Self::Redefined => format!("{what} may differ: a column has changed"),
            Self::Occupied => {
                format!("{what} was not copied: its target has rows that other tables have brought")
            }
            Self::PassedOver => {
                format!("{what} may lack changes: they were committed after a gap had been accepted")
            }
            Self::LastChanges => {
                format!("{what} may lack its last changes: it has left, and so has its publication")
            }
            Self::OtherTarget => format!("{what} may lack rows: its target is another table than before"),
        }
    }

    /// What may be missing, without the range.
    const fn may_be_missing(self) -> &'static str {
        match self {
            Self::SlotGone
            | Self::SlotLost
            | Self::SlotAhead
            | Self::Publication
            | Self::Returned
            | Self::PassedOver => "changes that were committed",
            Self::LastChanges => "changes that were made before it left and committed",
            Self::OtherTarget => "rows that were committed",
            Self::Diverged => "changes of another history that were committed",
            Self::Replaced => "rows that came into the new table, and changes that were committed,",
            Self::Operations => "changes of the operations that were not published, committed",
            Self::RowFilter => "rows that the earlier filter left out, or that the present one does, changed",
            Self::Columns => "values of the columns that were not published, written",
            Self::Redefined => "values of that column in rows that were written",
            Self::Occupied => "rows that only this table has, and changes that were committed,",
        }
    }
}

words!(GapKind, "a word for a gap");

impl Settlement {
    pub const ALL: [Self; 3] = [Self::Accepted, Self::Resynced, Self::Healed];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Resynced => "resynced",
            Self::Healed => "healed",
        }
    }
}

words!(Settlement, "a word for a gap");

impl Gap {
    /// Whether it holds the whole subscription.
    #[must_use]
    pub fn holds_all(&self) -> bool {
        self.settled.is_none() && self.hold == Hold::Until && self.table.is_none()
    }

    /// Whether it holds this table of the publisher.
    #[must_use]
    pub fn holds_table(&self, table: &QualifiedName) -> bool {
        self.settled.is_none() && self.hold == Hold::Until && self.table.as_ref() == Some(table)
    }

    /// The ways out, the best one first.
    #[must_use]
    pub const fn ways_out(&self) -> &'static [WayOut] {
        match (&self.table, self.kind) {
            (Some(_), GapKind::LastChanges) | (None, GapKind::PassedOver) => &[WayOut::Accept],
            (Some(_), _) => &[WayOut::Resync, WayOut::Merge, WayOut::Accept],
            (None, GapKind::SlotGone | GapKind::SlotLost | GapKind::SlotAhead) => {
                &[WayOut::Accept, WayOut::StartOver]
            }
            // There is no position from which both have the same history.
            (None, _) => &[WayOut::StartOver],
        }
    }

    /// The range in words.
    #[must_use]
    pub fn range(&self) -> String {
        match (self.from, self.to) {
            (Some(from), Some(to)) => format!("between {from} and {to}"),
            (Some(from), None) => format!("after {from}"),
            (None, Some(to)) => format!("up to {to}"),
            (None, None) => "at positions that are not known".to_owned(),
        }
    }

    /// What may be missing, from which position to which, and since when.
    #[must_use]
    pub fn may_be_missing(&self) -> String {
        let since = self.since.map(|since| format!(", since {since:.0}")).unwrap_or_default();
        format!("{} {}{since} may be missing", self.kind.may_be_missing(), self.range())
    }

    /// Describes the gap and the ways out to an operator.
    #[must_use]
    pub fn diagnosis(&self) -> Diagnosis {
        let what = self.table.as_ref().map_or_else(|| self.subscription.clone(), ToString::to_string);
        let mut detail = self.may_be_missing();
        if let Some(facts) = &self.detail {
            detail = format!("{detail}; {facts}");
        }
        if self.table.as_ref().is_some_and(|table| self.holds_table(table)) {
            detail += "; later changes of the table are passed over until this is settled";
        }
        Diagnosis::new(self.kind.cause(&what)).detail(detail).hint(self.hint())
    }

    fn hint(&self) -> String {
        let hints: Vec<String> = self.ways_out().iter().map(|way| self.way(*way)).collect();
        hints.join("; or ")
    }

    /// A way out in words.
    #[must_use]
    pub fn way(&self, way: WayOut) -> String {
        let name = &self.subscription;
        let table = self.table.as_ref().map(|table| format!(" {}", shell_word(table))).unwrap_or_default();
        match way {
            WayOut::Resync => format!("pgsluice resync {name}{table}"),
            WayOut::Merge => format!("pgsluice resync {name}{table} --merge"),
            WayOut::Accept => {
                let go_on = match (&self.table, self.hold) {
                    (Some(_), _) => "to go on, without what may be missing",
                    (None, Hold::Until) => "to go on from where a slot can, without what may be missing",
                    (None, Hold::Nothing) => {
                        "once the tables that matter have been synchronised again (pgsluice resync), or to leave it so"
                    }
                };
                format!("pgsluice accept {name} --gap {} {go_on}", self.id)
            }
            WayOut::StartOver => format!(
                "start over: \"pgsluice drop {name}\", empty the target's tables, and let pgsluice create the \
                 subscription again"
            ),
        }
    }
}

/// The name as one word of a shell's command line.
fn shell_word(table: &QualifiedName) -> String {
    let name = table.to_string();
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'));
    if plain { name } else { format!("'{}'", name.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(table: Option<QualifiedName>, kind: GapKind) -> Gap {
        Gap {
            id: 7,
            subscription: "my_subscription".to_owned(),
            table,
            kind,
            hold: kind.hold(),
            from: Some(Lsn::new(0x10)),
            to: Some(Lsn::new(0x20)),
            since: None,
            detail: None,
            opened_at: Timestamp::UNIX_EPOCH,
            accepted: None,
            settled: None,
        }
    }

    #[test]
    fn words_read_back_as_themselves() {
        for kind in GapKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        for how in Settlement::ALL {
            assert_eq!(how.as_str().parse(), Ok(how));
        }
        assert_eq!(
            "nap".parse::<GapKind>().unwrap_err().to_string(),
            "\"nap\" is not a word for a gap that this version of pgsluice knows"
        );
    }

    #[test]
    fn a_gap_says_what_may_be_missing_and_what_to_do() {
        let table = QualifiedName::new("public", "t");
        let returned = Gap {
            since: Some("2024-02-29T12:00:00Z".parse().unwrap()),
            detail: Some("publication p".to_owned()),
            ..gap(Some(table.clone()), GapKind::Returned)
        };
        insta::assert_snapshot!(returned.diagnosis(), @r#"
        public.t may lack changes: it left the publications and came back
          detail: changes that were committed between 0/10 and 0/20, since 2024-02-29T12:00:00Z may be missing; publication p; later changes of the table are passed over until this is settled
          hint: pgsluice resync my_subscription public.t; or pgsluice resync my_subscription public.t --merge; or pgsluice accept my_subscription --gap 7 to go on, without what may be missing
        "#);
        assert!(returned.holds_table(&table));
        assert!(!returned.holds_table(&QualifiedName::new("public", "u")));
        assert!(!gap(Some(table.clone()), GapKind::Operations).holds_table(&table));
        let gone = Gap { to: None, ..gap(None, GapKind::SlotGone) };
        insta::assert_snapshot!(gone.diagnosis(), @r#"
        my_subscription may lack changes: its replication slot no longer exists
          detail: changes that were committed after 0/10 may be missing
          hint: pgsluice accept my_subscription --gap 7 to go on from where a slot can, without what may be missing; or start over: "pgsluice drop my_subscription", empty the target's tables, and let pgsluice create the subscription again
        "#);
    }

    #[test]
    fn names_in_hints_are_one_word_for_a_shell() {
        assert_eq!(shell_word(&QualifiedName::new("public", "t_1")), "public.t_1");
        assert_eq!(shell_word(&QualifiedName::new("public", "My 'T'")), r#"'public."My '\''T'\''"'"#);
    }
}
