//! Enough of Rust's lexical structure to examine code without comments, strings and tests. Everything
//! keeps its byte position, so that findings have line numbers.

/// What [`blank`] keeps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    Code,
    CodeAndStrings,
}

/// Returns `text` with comments (and strings and character literals, unless kept) replaced by blanks of
/// the same length. Line breaks are kept.
pub(super) fn blank(text: &str, keep: Keep) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let Some((len, is_comment)) = literal_or_comment(bytes, at) else {
            at += 1;
            continue;
        };
        let end = (at + len).min(bytes.len());
        if is_comment || keep == Keep::Code {
            blank_range(&mut out, at, end);
        }
        at = end;
    }
    String::from_utf8(out).expect("blanks replace whole characters")
}

pub(super) fn blank_range(out: &mut [u8], start: usize, end: usize) {
    for byte in &mut out[start..end] {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}

/// Returns the comments of `text` with their positions.
pub(super) fn comments(text: &str) -> Vec<(usize, &str)> {
    let bytes = text.as_bytes();
    let mut comments = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let Some((len, is_comment)) = literal_or_comment(bytes, at) else {
            at += 1;
            continue;
        };
        let end = (at + len).min(bytes.len());
        if is_comment {
            comments.push((at, &text[at..end]));
        }
        at = end;
    }
    comments
}

/// Returns the length of the comment, string or character literal that starts at `at`, and whether it
/// is a comment.
fn literal_or_comment(bytes: &[u8], at: usize) -> Option<(usize, bool)> {
    let rest = &bytes[at..];
    match rest {
        [b'/', b'/', ..] => Some((rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len()), true)),
        [b'/', b'*', ..] => Some((block_comment(rest), true)),
        [b'"', ..] => Some((quoted(rest, b'"'), false)),
        [b'\'', ..] => char_literal(rest).map(|len| (len, false)),
        [b'r', ..] if !continues_word(bytes, at) => raw_string(rest).map(|len| (len, false)),
        _ => None,
    }
}

/// Whether the byte before `at` belongs to the same identifier. The `b` or `c` of `br"…"` and `cr"…"`
/// does not count.
fn continues_word(bytes: &[u8], at: usize) -> bool {
    let is_word = |at: usize| at < bytes.len() && is_word_byte(bytes[at]);
    match at.checked_sub(1) {
        Some(before) if matches!(bytes[before], b'b' | b'c') => before.checked_sub(1).is_some_and(is_word),
        Some(before) => is_word(before),
        None => false,
    }
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => {
                (depth, at) = (depth - 1, at + 2);
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    rest.len()
}

/// Returns the length of a literal that starts with `quote` and may contain escapes.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Distinguishes `'a'` and `'\n'` from a lifetime.
fn char_literal(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        return Some(quoted(rest, b'\''));
    }
    // One character of up to four bytes between two quotes.
    let close = (2..=5).find(|&at| rest.get(at) == Some(&b'\''))?;
    let inside = std::str::from_utf8(&rest[1..close]).ok()?;
    (inside.chars().count() == 1).then_some(close + 1)
}

/// Finds `r"…"`, `r#"…"#` and so on, but not the raw identifier `r#type`.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|&&byte| byte == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return None;
    }
    let close: Vec<u8> = [b'"'].into_iter().chain(std::iter::repeat_n(b'#', hashes)).collect();
    let body = 2 + hashes;
    let end = rest[body..].windows(close.len()).position(|window| window == close);
    Some(end.map_or(rest.len(), |end| body + end + close.len()))
}

/// A token of blanked code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    Word(&'a str),
    /// The token `::`.
    PathSeparator,
    Punct(char),
}

/// Returns the tokens of blanked code with their positions.
pub(super) fn tokens(code: &str) -> Vec<(usize, Token<'_>)> {
    let bytes = code.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        if is_word_byte(bytes[at]) {
            while at < bytes.len() && is_word_byte(bytes[at]) {
                at += 1;
            }
            tokens.push((start, Token::Word(&code[start..at])));
        } else if bytes[at..].starts_with(b"::") {
            at += 2;
            tokens.push((start, Token::PathSeparator));
        } else {
            if !bytes[at].is_ascii_whitespace() {
                tokens.push((start, Token::Punct(char::from(bytes[at]))));
            }
            at += 1;
        }
    }
    tokens
}

/// Returns the index of the token that closes the bracket at `open`, or of the last token.
pub(super) fn closing(tokens: &[(usize, Token<'_>)], open: usize) -> usize {
    let mut depth = 0_usize;
    for (index, (_, token)) in tokens.iter().enumerate().skip(open) {
        match token {
            Token::Punct('(' | '[' | '{') => depth += 1,
            Token::Punct(')' | ']' | '}') => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return index;
                }
            }
            _ => {}
        }
    }
    tokens.len().saturating_sub(1)
}
