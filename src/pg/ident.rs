//! Quotes names and literals; no other module does.

/// Quotes an identifier, always, so that case, spaces, quotes and reserved words stay as they are.
///
/// Values never pass through here: they are bound as parameters.
#[must_use]
pub fn quote_ident(name: &str) -> String {
    quoted(name, '"')
}

/// Quotes a string literal for commands that take no parameters (the replication grammar, DDL).
///
/// Backslashes are literal because every session here has `standard_conforming_strings` on
/// (PostgreSQL's default since 9.1, and the replication grammar knows no other).
#[must_use]
pub fn quote_literal(text: &str) -> String {
    quoted(text, '\'')
}

fn quoted(text: &str, quote: char) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        if c == quote {
            out.push(quote);
        }
        out.push(c);
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_doubled_and_nothing_else_changes() {
        assert_eq!(quote_ident("widgets"), r#""widgets""#);
        assert_eq!(quote_ident(r#"a"b'c"#), r#""a""b'c""#);
        assert_eq!(quote_literal("tab'le\\"), r"'tab''le\'");
    }
}
