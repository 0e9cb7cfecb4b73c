//! A map that keeps what was used recently.
//!
//! Values are in two generations. A value that is used moves into the younger one; when that is full, the
//! older one is dropped, and the younger becomes the older.

use std::collections::HashMap;
use std::hash::Hash;

/// Keeps at most `max` values, and at least the last `max / 2` that were used.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    max: usize,
}

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    pub(crate) fn new(max: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), max }
    }

    /// Returns the value, which has been used now.
    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.insert(key, value.clone());
        Some(value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.max / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.young.contains_key(key) || self.old.contains_key(key)
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.young.retain(|key, _| keep(key));
        self.old.retain(|key, _| keep(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_goes() {
        let mut recent = Recent::new(8);
        for number in 0..1000_i32 {
            recent.insert(number, number);
            assert_eq!(recent.get(&0), Some(0), "used each time");
            assert!(recent.young.len() + recent.old.len() <= 8);
            for last in (number - 2).max(0)..=number {
                assert!(recent.contains(&last), "{last} of {number}");
            }
        }
        assert!(!recent.contains(&500));
        recent.retain(|&number| number == 999);
        assert_eq!((recent.get(&0), recent.get(&999)), (None, Some(999)));
    }
}
