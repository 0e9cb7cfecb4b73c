//! How the sessions on the target that `target.max_connections` allows are divided. Pure.
//!
//! What a subscription needs to apply is set apart for each, so that nothing that streams ever waits for a place. What is left
//! goes to the store and to copies; a copy that finds no place waits.

/// For each subscription: the session that holds the lock and applies, and the one that reads the catalog.
const OF_A_SUBSCRIPTION: u32 = 2;
/// The store's fewest sessions, without the one that listens for commands.
const STORE_MIN: u32 = 2;
/// The one that listens for commands; one that is open for a moment; one that asks whether the server shuts down.
const OTHERS: u32 = 3;
const COPIES_MIN: u32 = 1;

/// The sessions of a process on the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Of the store, without the one that listens.
    pub store: u32,
    /// Of copies of tables, and of tables that join.
    pub copies: u32,
}

impl Budget {
    /// The fewest sessions with which so many subscriptions work.
    #[must_use]
    pub fn needed(subscriptions: usize) -> u32 {
        let subscriptions = u32::try_from(subscriptions).unwrap_or(u32::MAX);
        subscriptions.saturating_mul(OF_A_SUBSCRIPTION).saturating_add(STORE_MIN + OTHERS + COPIES_MIN)
    }

    /// Divides `sessions`; none if they are too few. Half of what is left goes to the store, the other half to copies.
    #[must_use]
    pub fn of(sessions: u32, subscriptions: usize) -> Option<Self> {
        let left = sessions.checked_sub(Self::needed(subscriptions))?;
        Some(Self { store: STORE_MIN + left / 2, copies: COPIES_MIN + left.div_ceil(2) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_session_is_given_away_once() {
        for subscriptions in [0, 1, 10, 300] {
            let needed = Budget::needed(subscriptions);
            assert_eq!(Budget::of(needed - 1, subscriptions), None);
            assert_eq!(Budget::of(needed, subscriptions), Some(Budget { store: 2, copies: 1 }));
            for sessions in needed..needed + 20 {
                let Budget { store, copies } = Budget::of(sessions, subscriptions).unwrap();
                let applying = u32::try_from(subscriptions).unwrap() * OF_A_SUBSCRIPTION;
                assert_eq!(applying + OTHERS + store + copies, sessions);
            }
        }
    }
}
