//! Whether the publications still contain what the running attempt took up.
//!
//! Both states are kept and compared. So a change that is seen while a copy runs, or while there is no
//! connection, is still noticed later. Which tables join or leave, and when, is not decided here.

/// Fingerprints of the publications as the attempt took them up, and as they were last seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Publications {
    /// None while the attempt has not taken them up.
    pub(super) taken_up: Option<String>,
    /// None if they have not been read since.
    pub(super) seen: Option<String>,
}

impl Publications {
    /// Whether the publications have changed since the attempt took them up.
    pub(super) fn have_changed(&self) -> bool {
        matches!((&self.taken_up, &self.seen), (Some(taken_up), Some(seen)) if taken_up != seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_on_both_sides_can_have_changed() {
        let check = |taken_up: Option<&str>, seen: Option<&str>, expected: bool| {
            let publications =
                Publications { taken_up: taken_up.map(str::to_owned), seen: seen.map(str::to_owned) };
            assert_eq!(publications.have_changed(), expected, "{publications:?}");
        };
        check(None, None, false);
        check(None, Some("b"), false);
        check(Some("a"), None, false);
        check(Some("a"), Some("a"), false);
        check(Some("a"), Some("b"), true);
    }
}
