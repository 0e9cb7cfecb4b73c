//! Whether the publications still contain what the running attempt took up.
//!
//! Both states are kept and compared. So a change that is seen while a copy runs, or while there is no
//! connection, is still noticed later. Which tables join or leave, and when, is not decided here.

use crate::pg::Lsn;
use crate::schema::catalog::PublicationsLook;

/// Fingerprints of the publications as the attempt took them up, and as they were last seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Publications {
    /// None while the attempt has not taken them up.
    pub taken_up: Option<String>,
    /// The fingerprint that was taken up, once everything that it shows is recorded.
    pub recorded: Option<String>,
    /// None if they have not been read since.
    pub seen: Option<String>,
    /// The stream has shown that they may have changed.
    pub look: Look,
}

/// How soon the publications are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Look {
    #[default]
    WhenDue,
    AtOnce,
}

impl Publications {
    /// Whether the publications have changed since the attempt took them up.
    #[must_use]
    pub fn have_changed(&self) -> bool {
        matches!((&self.taken_up, &self.seen), (Some(taken_up), Some(seen)) if taken_up != seen)
    }

    /// Whether a look shows them as they are recorded.
    fn are_as_recorded(&self, look: &PublicationsLook) -> bool {
        self.recorded.as_ref() == Some(&look.fingerprint)
    }
}

/// Finds out up to which position the publications have certainly not changed.
///
/// A transaction may have its commit record in WAL some time before its changes can be seen, so that one look
/// proves nothing about its own position. A later look does, once all transactions have ended that had begun by
/// then.
#[derive(Debug, Default)]
pub struct Proof {
    waiting: Option<PublicationsLook>,
}

impl Proof {
    /// Takes a look; returns the position that it proves.
    pub fn take(&mut self, publications: &Publications, look: PublicationsLook) -> Option<Lsn> {
        if !publications.are_as_recorded(&look) {
            self.waiting = None;
            return None;
        }
        let Some(before) = self.waiting.as_ref().filter(|before| before.fingerprint == look.fingerprint)
        else {
            self.waiting = Some(look);
            return None;
        };
        if look.oldest_xid.wrapping_sub(before.next_xid).cast_signed() < 0 {
            return None;
        }
        let proven = before.position;
        self.waiting = Some(look);
        Some(proven)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_on_both_sides_can_have_changed() {
        let check = |taken_up: Option<&str>, seen: Option<&str>, expected: bool| {
            let (taken_up, seen) = (taken_up.map(str::to_owned), seen.map(str::to_owned));
            let publications = Publications { taken_up, seen, ..Publications::default() };
            assert_eq!(publications.have_changed(), expected, "{publications:?}");
        };
        check(None, None, false);
        check(None, Some("b"), false);
        check(Some("a"), None, false);
        check(Some("a"), Some("a"), false);
        check(Some("a"), Some("b"), true);
    }

    #[test]
    fn a_position_is_proven_once_everything_begun_before_has_ended() {
        let publications = Publications { recorded: Some("a".to_owned()), ..Publications::default() };
        let mut proof = Proof::default();
        let mut check = |fingerprint: &str, position, next_xid, oldest_xid, expected: Option<u64>| {
            let (fingerprint, position) = (fingerprint.to_owned(), Lsn::new(position));
            let look = PublicationsLook { fingerprint, position, next_xid, oldest_xid };
            assert_eq!(proof.take(&publications, look), expected.map(Lsn::new));
        };
        check("a", 10, 5, 5, None);
        check("a", 20, 7, 4, None);
        check("a", 30, 8, 5, Some(10));
        check("b", 40, 9, 9, None);
        check("a", 50, u32::MAX, 9, None);
        check("a", 60, 3, 3, Some(50));
    }
}
