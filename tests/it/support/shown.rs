//! Compares what a page shows of a command with what the command prints, so that examples in the
//! documentation stay true.

/// Returns the blocks of a page below a marker (`<!-- MARKER -->`), without their fences.
#[track_caller]
pub(crate) fn blocks(page: &str, marker: &str) -> Vec<String> {
    let start = format!("<!-- {marker} -->\n```");
    let after = page.split(&start).skip(1);
    let found: Vec<String> =
        after.map(|rest| rest.split_once('\n').unwrap().1.split("```").next().unwrap().to_owned()).collect();
    assert!(!found.is_empty(), "no block {marker}");
    found
}

/// Checks that every shown line was printed, in this order. Blank lines and lines of `…` match
/// anything; so does `…` within a line.
pub(crate) fn was_said(shown: &str, said: &str) -> Result<(), String> {
    let mut lines = said.lines();
    for wanted in shown.lines().filter(|line| !matches!(line.trim(), "" | "…")) {
        if !lines.any(|line| fits(wanted, line)) {
            return Err(format!("{wanted:?} is shown, but not said after what precedes it:\n{said}"));
        }
    }
    Ok(())
}

fn fits(wanted: &str, line: &str) -> bool {
    let mut parts = wanted.trim_end().split('…');
    let Some(mut rest) = line.trim_end().strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut open = false;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        open = part.is_empty();
    }
    open || rest.is_empty()
}

#[test]
fn lines_are_found_in_order() {
    let said = "a 1\nb: 22 of 33\nc\n";
    for shown in ["a 1", "a …\nc", "b: … of …", "…\nb: 22 of 33\n\nc", "a 1  \n"] {
        assert_eq!(was_said(shown, said), Ok(()), "{shown}");
    }
    for shown in ["c\na 1", "a", "b: … of 34", "1", "b: … for …", "d"] {
        assert!(was_said(shown, said).is_err(), "{shown}");
    }
}
