//! Fixed sets of words that the database, the command line and the API have for the variants of an enum. Pure.
//!
//! A word of a later version is refused with [`UnknownWord`], never replaced by another one.

/// A word that this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{word}\" is not {what} that this version of pgsluice knows")]
pub struct UnknownWord {
    word: String,
    what: &'static str,
}

impl UnknownWord {
    pub(crate) fn new(word: &str, what: &'static str) -> Self {
        Self { word: word.to_owned(), what }
    }
}

/// Implements `Display`, `FromStr` and `Serialize` for an enum with `ALL` and `as_str`. The second argument says what
/// its words stand for, with an article.
macro_rules! words {
    ($type:ty, $what:literal) => {
        impl ::std::fmt::Display for $type {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl ::std::str::FromStr for $type {
            type Err = $crate::words::UnknownWord;

            fn from_str(word: &str) -> Result<Self, Self::Err> {
                Self::ALL
                    .into_iter()
                    .find(|known| known.as_str() == word)
                    .ok_or_else(|| $crate::words::UnknownWord::new(word, $what))
            }
        }

        impl ::serde::Serialize for $type {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

pub(crate) use words;
