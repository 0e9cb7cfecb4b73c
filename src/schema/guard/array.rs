//! The elements of an array in text form (`array_out` in PostgreSQL's `arrayfuncs.c`).

/// Whether any element passes the test. NULL is no element. Of another text the answer is meaningless.
pub(super) fn any_element(array: &[u8], test: impl Fn(&[u8]) -> bool) -> bool {
    // Bounds other than 1 stand in front: `[0:1]={a,b}`.
    let mut at = array.iter().position(|&byte| byte == b'{').unwrap_or(array.len());
    while let Some(&byte) = array.get(at) {
        at += 1;
        match byte {
            b'{' | b'}' | b',' => {}
            b'"' => {
                let (element, length) = unquoted(array.get(at..).unwrap_or_default());
                at += length;
                if test(&element) {
                    return true;
                }
            }
            _ => {
                let rest = array.get(at - 1..).unwrap_or_default();
                let ends = |&byte: &u8| matches!(byte, b',' | b'}');
                let element =
                    rest.get(..rest.iter().position(ends).unwrap_or(rest.len())).unwrap_or_default();
                at += element.len() - 1;
                if element != b"NULL" && test(element) {
                    return true;
                }
            }
        }
    }
    false
}

/// Returns the element up to the closing quote, and its length with the quote.
fn unquoted(rest: &[u8]) -> (Vec<u8>, usize) {
    let mut element = Vec::new();
    let mut bytes = rest.iter().enumerate();
    while let Some((at, &byte)) = bytes.next() {
        match byte {
            b'"' => return (element, at + 1),
            b'\\' => element.extend(bytes.next().map(|(_, &escaped)| escaped)),
            _ => element.push(byte),
        }
    }
    (element, rest.len())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn check(array: &str, expected: &[&str]) {
        let found = RefCell::new(Vec::new());
        let note = |element: &[u8]| {
            found.borrow_mut().push(String::from_utf8_lossy(element).into_owned());
            false
        };
        assert!(!any_element(array.as_bytes(), note));
        assert_eq!(found.into_inner(), expected, "{array}");
    }

    #[test]
    fn elements_are_found_in_any_dimension() {
        check("{}", &[]);
        check("{a,b c,NULL}", &["a", "b c"]);
        check(r#"{"a ","","NULL","x\"y\\z","{,}"}"#, &["a ", "", "NULL", "x\"y\\z", "{,}"]);
        check("[0:1][2:2]={{1},{2.5}}", &["1", "2.5"]);
        check(r#"{{"a","b"},{c,NULL}}"#, &["a", "b", "c"]);
        // No arrays; nothing may panic.
        check("", &[]);
        check("{\"a", &["a"]);
        check("{\"a\\", &["a"]);
        check("{a", &["a"]);
    }

    #[test]
    fn one_element_is_enough() {
        assert!(any_element(b"{a,b}", |element| element == b"b"));
    }
}
