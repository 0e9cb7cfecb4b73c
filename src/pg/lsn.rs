//! Log sequence numbers: byte positions in a publisher's write-ahead log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A byte position in the publisher's WAL, written as PostgreSQL's `pg_lsn` type writes it.
///
/// `0/0` is PostgreSQL's `InvalidXLogRecPtr`; where a position may be unknown, use `Option<Lsn>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

/// The error for a text that is not two hexadecimal numbers of at most 32 bits around a slash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an LSN: expected two hexadecimal numbers around a slash, such as 0/16B3748")]
pub struct ParseLsnError(String);

impl Lsn {
    /// The position before any WAL. In `START_REPLICATION` it means the slot's own position.
    pub const ZERO: Self = Self(0);
    pub const MAX: Self = Self(u64::MAX);

    #[must_use]
    pub const fn new(position: u64) -> Self {
        Self(position)
    }

    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Returns the bytes from `earlier` to this position; zero if `earlier` is not earlier.
    #[must_use]
    pub const fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |part: &str| {
            let hex = !part.is_empty() && part.len() <= 8 && part.bytes().all(|b| b.is_ascii_hexdigit());
            hex.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_as_postgresql_writes_it() {
        for (text, position) in
            [("0/0", 0), ("0/16B3748", 0x16B_3748), ("FFFFFFFF/FFFFFFFF", u64::MAX), ("1/0", 1 << 32)]
        {
            assert_eq!(text.parse(), Ok(Lsn::new(position)), "{text}");
            assert_eq!(Lsn::new(position).to_string(), text);
        }
        assert_eq!("a/0b".parse(), Ok(Lsn::new(0xA_0000_000B)));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "/", "0", "0/", "/0", "0/123456789", "+1/0", "0/0/0", "g/0", " 0/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn distance_never_underflows() {
        assert_eq!(Lsn::new(5).bytes_since(Lsn::new(3)), 2);
        assert_eq!(Lsn::new(3).bytes_since(Lsn::new(5)), 0);
    }
}
