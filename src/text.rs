//! Texts from outside (names, messages of servers, values), made fit to be kept and shown. Pure.
//!
//! A line break or an escape sequence in a table's name would forge lines of a log and reach the operator's terminal,
//! and a character that changes the direction of text makes one name look like another. Each output has one place
//! where such characters are escaped, with the functions of this module:
//!
//! | output | place |
//! | --- | --- |
//! | logs as text and JSON | `telemetry::fields`, `telemetry::limit` |
//! | answers of commands | `cli::output` |
//! | JSON of commands and of the API | [`json`], through `cli::output` and `http::answer` |
//!
//! Texts are kept as they are in the target, where only their length is bounded.

use std::fmt::{self, Write};

/// Largest text of a server that is kept, bytes. Some messages quote the whole value that was refused.
const KEPT_BYTES_MAX: usize = 8 << 10;
/// Largest text of a server in logs and on terminals, bytes. Evidence of a conflict has what is kept.
const SHOWN_BYTES_MAX: usize = 1 << 10;

/// Whether a character is not shown as itself: control characters, those that change the direction of text (Unicode's
/// bidirectional controls), those that end a line, and those that are invisible.
#[must_use]
pub const fn is_hidden(c: char) -> bool {
    matches!(c,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' // C0, DEL, C1
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' // direction
        | '\u{2028}' | '\u{2029}' // line and paragraph separators
        | '\u{200b}' | '\u{2060}'..='\u{2064}' | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}' // tags
    )
}

/// Returns the beginning of a text of a server, as much as is kept.
#[must_use]
pub fn kept(text: &str) -> String {
    cut(text, KEPT_BYTES_MAX)
}

/// Returns the beginning of a text of a server, as much as is logged and shown.
#[must_use]
pub fn shown(text: &str) -> String {
    cut(text, SHOWN_BYTES_MAX)
}

/// Returns the beginning of a text of a server that has not been decoded.
#[must_use]
pub fn kept_bytes(text: &[u8]) -> String {
    // A cut character is replaced, and then cut off.
    kept(&String::from_utf8_lossy(&text[..text.len().min(2 * KEPT_BYTES_MAX)]))
}

fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(bytes_max)])
}

/// What is done with line breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineBreaks {
    Escaped,
    /// The text has several lines, which are indented where it is shown.
    Kept,
}

/// Escapes hidden characters as Rust does: `\n`, `\u{1b}`.
#[must_use]
pub fn escaped(text: &str, line_breaks: LineBreaks) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) && (c, line_breaks) != ('\n', LineBreaks::Kept) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Escapes what is written through it, line breaks included, and leaves out what is beyond a length.
#[derive(Debug)]
pub struct Escaping<W> {
    out: W,
    chars_left: usize,
}

impl<W: Write> Escaping<W> {
    pub fn new(out: W, chars_max: usize) -> Self {
        Self { out, chars_left: chars_max }
    }
}

impl<W: Write> Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match self.chars_left {
                0 => return Ok(()),
                1 => self.out.write_char('…')?,
                _ if is_hidden(c) => write!(self.out, "{}", c.escape_default())?,
                _ => self.out.write_char(c)?,
            }
            self.chars_left -= 1;
        }
        Ok(())
    }
}

/// Escapes hidden characters in a JSON document, by JSON's own escapes. They can only be inside of strings; between
/// them there are spaces and line breaks, which stay.
#[must_use]
pub fn json(document: &str) -> String {
    let mut out = String::with_capacity(document.len());
    for c in document.chars() {
        if is_hidden(c) && !c.is_ascii_whitespace() {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                // Writing into a string cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// As [`json`], and cuts strings that are longer than `chars_max`.
#[must_use]
pub fn json_cut(document: &str, chars_max: usize) -> String {
    let mut out = String::with_capacity(document.len());
    let mut chars = document.chars();
    // How many characters the string has that has begun.
    let mut string_chars = None;
    while let Some(c) = chars.next() {
        let Some(count) = &mut string_chars else {
            out.push(c);
            string_chars = (c == '"').then_some(0);
            continue;
        };
        if c == '"' {
            out.push(c);
            string_chars = None;
            continue;
        }
        *count += 1;
        let escape = (c == '\\').then(|| chars.next()).flatten();
        let digits: String =
            if escape == Some('u') { chars.by_ref().take(4).collect() } else { String::new() };
        if *count <= chars_max {
            out.push(c);
            out.extend(escape);
            out.push_str(&digits);
        } else if *count == chars_max + 1 {
            out.push('…');
        }
    }
    json(&out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\nERROR forged\r\x1b[2J\u{9b}31m\u{202e}drow\u{2028}\u{e0041}\u{7f}ä";

    #[test]
    fn hidden_characters_are_escaped() {
        let expected = r"a\nERROR forged\r\u{1b}[2J\u{9b}31m\u{202e}drow\u{2028}\u{e0041}\u{7f}ä";
        assert_eq!(escaped(HOSTILE, LineBreaks::Escaped), expected);
        assert_eq!(escaped(HOSTILE, LineBreaks::Kept), expected.replacen(r"\n", "\n", 1));
        let mut out = String::new();
        write!(Escaping::new(&mut out, usize::MAX), "{HOSTILE}").unwrap();
        assert_eq!(out, expected);
        assert_eq!(escaped("Grüße, 数据, 👩‍🚀", LineBreaks::Escaped), "Grüße, 数据, 👩‍🚀", "others stay");
    }

    #[test]
    fn json_stays_the_same_document() {
        let value = serde_json::json!({ HOSTILE: [HOSTILE, "\"\\\u{202e}"], "n": 1 });
        for document in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let safe = json(&document);
            assert!(!safe.chars().any(|c| is_hidden(c) && c != '\n'), "{safe}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
            assert_eq!(json_cut(&document, 1000), safe);
        }
    }

    #[test]
    fn long_strings_of_json_are_cut() {
        let long = "\u{1b}\"\\é".repeat(100);
        let value = serde_json::json!({ "a": long, "b": "short" });
        let cut: serde_json::Value = serde_json::from_str(&json_cut(&value.to_string(), 6)).unwrap();
        assert_eq!(cut, serde_json::json!({ "a": "\u{1b}\"\\é\u{1b}\"…", "b": "short" }));
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let long = format!("x{}", "ä".repeat(1 << 20));
        assert_eq!(kept(&long).len(), KEPT_BYTES_MAX - 1 + "…".len());
        assert_eq!(kept_bytes(long.as_bytes()), kept(&long));
        assert_eq!(shown(&long).len(), SHOWN_BYTES_MAX - 1 + "…".len());
        assert_eq!(kept_bytes(b"a\xffb"), "a\u{fffd}b");
        let mut out = String::new();
        let mut escaping = Escaping::new(&mut out, 4);
        escaping.write_str("ab").unwrap();
        escaping.write_str("cdef").unwrap();
        assert_eq!(out, "abc…");
    }
}
