//! Keys of the objects in a JSON text.

use std::collections::HashSet;

/// Whether an object in a JSON text has a key twice. The publisher's type json has checked the syntax, so that
/// only strings and braces have to be found; of another text the answer is meaningless.
pub(super) fn has_equal_keys(json: &[u8]) -> bool {
    /// A container that is open: the keys of an object, none of an array.
    type Open = Option<HashSet<Vec<u8>>>;
    let mut open: Vec<Open> = Vec::new();
    // Within an object, the next string is a key after `{` and `,`.
    let mut key_is_next = false;
    let mut at = 0;
    while let Some(&byte) = json.get(at) {
        at += 1;
        match byte {
            b'{' => {
                open.push(Some(HashSet::new()));
                key_is_next = true;
            }
            b'[' => {
                open.push(None);
                key_is_next = false;
            }
            b'}' | b']' => {
                open.pop();
                key_is_next = false;
            }
            b',' => key_is_next = matches!(open.last(), Some(Some(_))),
            b'"' => {
                let end = at + string_length(json.get(at..).unwrap_or_default());
                let string = json.get(at..end).unwrap_or_default();
                at = end + 1;
                if std::mem::take(&mut key_is_next)
                    && let Some(Some(keys)) = open.last_mut()
                    && !keys.insert(unescaped(string))
                {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

/// The number of bytes before the quote that ends a string.
fn string_length(rest: &[u8]) -> usize {
    let mut escaped = false;
    let ends = |&byte: &u8| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    };
    rest.iter().position(ends).unwrap_or(rest.len())
}

/// A key as jsonb compares it. A string that cannot be read is compared as it is.
fn unescaped(string: &[u8]) -> Vec<u8> {
    if !string.contains(&b'\\') {
        return string.to_vec();
    }
    let quoted = [b"\"", string, b"\""].concat();
    serde_json::from_slice::<String>(&quoted).map_or_else(|_| string.to_vec(), String::into_bytes)
}
