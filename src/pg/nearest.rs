//! Texts for hints: "did you mean" with the known name closest to a mistyped one, and "a, b or c".
//!
//! The result is only shown; no input is ever accepted because it resembles something else.

/// Longest word that is compared. Comparison takes quadratic time, and a longer word is not a typing
/// mistake.
const WORD_CHARS_MAX: usize = 64;

/// Returns the candidate that `word` most likely misspells, if any is close enough: one edit in three
/// characters. Case, `-` and `_` make no difference. The first of equally close candidates wins.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = normalized(word);
    if word.is_empty() || word.len() > WORD_CHARS_MAX {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| (distance(&word, &normalized(candidate)), candidate))
        .filter(|&(edits, candidate)| edits <= word.len().max(candidate.len()).div_ceil(3).min(3))
        .min_by_key(|&(edits, _)| edits)
        .map(|(_, candidate)| candidate)
}

fn normalized(word: &str) -> Vec<char> {
    word.chars()
        .take(WORD_CHARS_MAX + 1)
        .flat_map(char::to_lowercase)
        .filter(|c| !"-_".contains(*c))
        .collect()
}

/// Optimal string alignment distance: insertions, deletions, replacements and swaps of adjacent
/// characters.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut edits = replaced.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                edits = edits.min(before[j - 2] + 1);
            }
            row.push(edits);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

/// Formats `a, b or c`, for hints that list the accepted words.
pub(crate) fn one_of<S: AsRef<str>>(words: &[S]) -> String {
    let words: Vec<_> = words.iter().map(AsRef::as_ref).collect();
    match words.as_slice() {
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        words => words.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_listed_as_a_person_would() {
        assert_eq!(one_of(&["a", "b", "c"]), "a, b or c");
        assert_eq!(one_of(&["a"]), "a");
        assert_eq!(one_of::<&str>(&[]), "");
    }

    #[test]
    fn the_closest_known_name_is_suggested() {
        let known = ["host", "hostaddr", "port", "password", "passfile", "sslmode", "create_slot"];
        let check = |word: &str, expected: Option<&str>| assert_eq!(nearest(word, known), expected, "{word}");
        check("hots", Some("host"));
        check("sslmod", Some("sslmode"));
        check("passwrod", Some("password"));
        check("create-slot", Some("create_slot"));
        check("CreateSlot", Some("create_slot"));
        check("entirely_else", None);
        check("x", None);
        check("", None);
        check(&"host".repeat(100), None);
    }
}
