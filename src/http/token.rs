//! The API's token: read from a file, compared in constant time, never shown.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::error::{Diagnosis, Exit, Failure};

/// Largest size of a token file, bytes.
const FILE_BYTES_MAX: u64 = 4096;
/// Smallest length of a token, characters; a shorter one could be guessed.
const LENGTH_MIN: usize = 16;

/// The SHA-256 digest of a token, kept in its place. All digests have the same length, so the duration
/// of a comparison tells nothing about the token.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token([u8; 32]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Token {
    fn new(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    /// Whether `presented` is this token. The comparison takes the same time for every text of one
    /// length.
    pub(super) fn is(&self, presented: &str) -> bool {
        let presented = Self::new(presented);
        let differing = self.0.iter().zip(presented.0).fold(0, |seen, (a, b)| seen | (a ^ b));
        std::hint::black_box(differing) == 0
    }
}

/// Reads the token file: one line of printable ASCII.
pub(super) fn read(path: &Path) -> Result<Token, Failure> {
    let refused = |detail: String| {
        let diagnosis = Diagnosis::new(format!("the API's token cannot be read from {}", path.display()))
            .detail(detail)
            .hint(
                "service.api_token_file must name a file with one line of at least 16 printable characters, \
                 for example from \"openssl rand -hex 32\"",
            );
        Failure::new(Exit::Usage, diagnosis)
    };
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|error| refused(error.to_string()))?;
    let token = text.trim();
    if text.len() as u64 > FILE_BYTES_MAX {
        Err(refused(format!("the file is larger than {FILE_BYTES_MAX} bytes")))
    } else if !token.chars().all(|c| c.is_ascii_graphic()) {
        Err(refused("the file holds more than one line, or characters that a header cannot carry".to_owned()))
    } else if token.len() < LENGTH_MIN {
        Err(refused(format!("the token has {} characters", token.len())))
    } else {
        Ok(Token::new(token))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn check(content: &[u8]) -> Result<Token, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        read(file.path()).map_err(|failure| {
            assert_eq!(failure.exit, Exit::Usage);
            failure.diagnosis.detail.unwrap()
        })
    }

    #[test]
    fn a_token_is_one_line() {
        let token = check(b"0123456789abcdef\n").unwrap();
        assert!(token.is("0123456789abcdef"));
        for wrong in ["", "0123456789abcdeF", "0123456789abcdef\n", "0123456789abcdef0"] {
            assert!(!token.is(wrong), "{wrong:?}");
        }
        assert_eq!(format!("{token:?}"), "[redacted]");
    }

    #[test]
    fn a_file_without_a_token_is_refused() {
        for content in
            [&b""[..], b"short", b"two lines of 16\nand the other", b"\xff\xff\xff\xff", &[b'a'; 5000]]
        {
            assert!(check(content).is_err(), "{}", content.len());
        }
    }
}
