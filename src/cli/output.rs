//! Formats answers for a terminal: colours appear only on a terminal, control characters never.
//!
//! Texts hold a publisher's values and a server's messages. Escape sequences in them would reach the
//! operator's terminal, so [`plain`] makes control characters visible first. What is written passes through
//! [`safe`] at the end, which lets nothing through but colours and line breaks.

use std::fmt::Write as _;
use std::io::{ErrorKind, IsTerminal as _, Write as _};

use anstyle::{AnsiColor, Style};
use comfy_table::{ContentArrangement, LineStyle, Table, TableStyle, presets};
use jiff::Timestamp;

use crate::error::{Diagnosis, Exit, Failure};
use crate::text::{self, LineBreaks};

/// Largest width of a table; the cells of wider ones are wrapped.
const TABLE_WIDTH: u16 = 120;
/// Control sequences (ECMA-48): `HOME` moves the cursor to the top left, the others erase the rest of
/// the line and go to the next one, erase everything below the cursor, and erase the whole screen.
const HOME: &str = "\x1b[H";
const TO_NEXT_LINE: &str = "\x1b[K\r\n";
const CLEAR_BELOW: &str = "\x1b[J";
const CLEAR: &str = "\x1b[2J\x1b[H";
/// Table style with a rule below the headings and no other lines.
const LINES: TableStyle = presets::NOTHING.header_separator(LineStyle::new('─', '─', '─', '─'));

pub(super) const BOLD: Style = Style::new().bold();
pub(super) const DIM: Style = Style::new().dimmed();
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const BUSY: Style = AnsiColor::Yellow.on_default();
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();

/// Writes to stdout. A closed pipe (`| head`) is not a failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = anstream::stdout().lock();
    written(stdout.write_all(safe(text).as_bytes()).and_then(|()| stdout.flush()))
}

fn written(result: std::io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let diagnosis = Diagnosis::new("the answer could not be written").detail(error.to_string());
            Err(Failure::new(Exit::No, diagnosis))
        }
        _ => Ok(()),
    }
}

/// Kind of output for a text that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Screen {
    /// On a terminal, each text replaces the previous one.
    Terminal,
    /// In a pipe or a file, texts follow each other.
    Lines,
}

impl Screen {
    /// Returns the kind of this process's stdout.
    pub(super) fn of_stdout() -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if std::io::stdout().is_terminal() && !dumb { Self::Terminal } else { Self::Lines }
    }

    /// Shows `text` in place of the previous one. It moves the cursor instead of clearing the screen,
    /// which would flicker. The movements bypass `anstream`, because `NO_COLOR` is only about colours.
    pub(super) fn redraw(self, text: &str) -> Result<(), Failure> {
        match self {
            Self::Lines => print(text),
            Self::Terminal => {
                control(HOME)?;
                for line in text.lines() {
                    print(line)?;
                    control(TO_NEXT_LINE)?;
                }
                control(CLEAR_BELOW)
            }
        }
    }

    /// Clears the screen.
    pub(super) fn clear(self) -> Result<(), Failure> {
        match self {
            Self::Lines => Ok(()),
            Self::Terminal => control(CLEAR),
        }
    }
}

/// Writes a control sequence to the terminal.
fn control(sequence: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    written(stdout.write_all(sequence.as_bytes()).and_then(|()| stdout.flush()))
}

/// Writes one JSON document to stdout.
pub(super) fn print_json(document: &impl serde::Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(document).map_err(|error| {
        let diagnosis = Diagnosis::new("the answer cannot be written as JSON").detail(error.to_string());
        Failure::new(Exit::No, diagnosis)
    })?;
    text.push('\n');
    print(&text::json(&text))
}

/// Writes a failure to stderr. If that fails, only the exit code is left to report it.
pub(super) fn report(diagnosis: &Diagnosis) {
    let _ = anstream::stderr().lock().write_all(safe(&failure_text(diagnosis)).as_bytes());
}

/// Writes a warning to stderr: something to look at that does not stop the command.
pub(super) fn report_warning(diagnosis: &Diagnosis) {
    let _ = anstream::stderr().lock().write_all(safe(&told(BUSY, "warning", diagnosis)).as_bytes());
}

pub(super) fn failure_text(diagnosis: &Diagnosis) -> String {
    told(BAD, "error", diagnosis)
}

fn told(style: Style, what: &str, diagnosis: &Diagnosis) -> String {
    let mut text = format!("{style}{what}:{style:#} {}\n", plain_lines(&diagnosis.primary));
    for (name, part) in [("detail", &diagnosis.detail), ("hint", &diagnosis.hint)] {
        if let Some(part) = part {
            let part = plain_lines(part).replace('\n', "\n    ");
            let _ = writeln!(text, "  {BOLD}{name}:{BOLD:#} {part}");
        }
    }
    text
}

/// Appends one entry of a block, a name and its value. Further lines of the value (such as DDL) stand
/// below the first.
pub(super) fn field(text: &mut String, name: &str, value: &str) {
    let value = plain_lines(value).replace('\n', "\n               ");
    let _ = writeln!(text, "  {DIM}{name:<12}{DIM:#} {value}");
}

/// Makes control characters visible, line breaks included.
pub(super) fn plain(text: &str) -> String {
    text::escaped(text, LineBreaks::Escaped)
}

/// Makes control characters visible, but keeps the lines of a text that has several.
fn plain_lines(text: &str) -> String {
    text::escaped(text, LineBreaks::Kept)
}

/// Escapes what a value has brought that was not made visible before: everything hidden except for line breaks,
/// tabs and the colours of this module.
fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = if let Some(colour) = colour(rest) {
            out.push_str(colour);
            colour.len()
        } else if text::is_hidden(c) && !matches!(c, '\n' | '\t') {
            out.extend(c.escape_default());
            c.len_utf8()
        } else {
            out.push(c);
            c.len_utf8()
        };
        rest = &rest[length..];
    }
    out
}

/// Returns the sequence at the beginning of `text` if it only sets or ends a colour or a weight of this module.
fn colour(text: &str) -> Option<&str> {
    let end = text.strip_prefix("\x1b[")?.find('m')? + "\x1b[".len();
    let is_ours = text["\x1b[".len()..end]
        .split(';')
        .all(|number| matches!(number, "0" | "1" | "2" | "31" | "32" | "33"));
    is_ours.then(|| &text[..=end])
}

/// Creates a table with these headings whose cells are wrapped rather than cut.
pub(super) fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(LINES)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(TABLE_WIDTH)
        .set_header(headings.iter().copied());
    table
}

/// Appends a table with the indentation of a block's lines.
pub(super) fn push_table(text: &mut String, table: &Table) {
    for line in table.lines() {
        let _ = writeln!(text, "  {}", line.trim_end());
    }
}

/// Formats a size as `16.00 MiB`.
pub(super) fn bytes(count: u64) -> String {
    humansize::format_size(count, humansize::BINARY)
}

/// Formats a duration as `0.3 s`, `4 min 10 s`, `3 h 2 min` or `2 d 5 h`.
pub(super) fn seconds(seconds: f64) -> String {
    if !(60.0..1e15).contains(&seconds) {
        return format!("{:.1} s", seconds.max(0.0));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range, checked above")]
    let whole = seconds as u64;
    match whole {
        0..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        3_600..86_400 => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// Formats a time as `2024-02-29 12:00:00 UTC`.
pub(super) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Removes the colours from a text.
#[cfg(test)]
pub(super) fn uncoloured(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_read_as_primary_detail_hint() {
        let diagnosis = Diagnosis::new("no\x1b[2Jway").detail("line 1\nline 2").hint("try");
        insta::assert_snapshot!(uncoloured(&failure_text(&diagnosis)), @r"
        error: no\u{1b}[2Jway
          detail: line 1
            line 2
          hint: try
        ");
    }

    #[test]
    fn units_are_readable() {
        for (value, text) in [
            (0.0, "0.0 s"),
            (-1.0, "0.0 s"),
            (59.94, "59.9 s"),
            (250.0, "4 min 10 s"),
            (10_920.0, "3 h 2 min"),
            (190_800.0, "2 d 5 h"),
        ] {
            assert_eq!(seconds(value), text);
        }
        assert_eq!(bytes(16 << 20), "16 MiB");
        assert_eq!(bytes(72), "72 B");
        assert_eq!(time("2024-02-29T12:00:00.9Z".parse().unwrap()), "2024-02-29 12:00:00 UTC");
        assert_eq!(plain("a\tb\u{202e}c"), "a\\tb\\u{202e}c");
    }

    #[test]
    fn only_colours_reach_the_terminal() {
        let ours = format!("{BAD}bad{BAD:#} {DIM}dim{DIM:#}\n\tnext\n");
        assert_eq!(safe(&ours), ours);
        assert_eq!(
            safe("a\x1b[2J\x1b]0;title\x07\u{202e}\x1b[8mb\rc"),
            r"a\u{1b}[2J\u{1b}]0;title\u{7}\u{202e}\u{1b}[8mb\rc"
        );
        for style in [BOLD, DIM, GOOD, BUSY, BAD] {
            let text = format!("{style}x{style:#}");
            assert_eq!(safe(&text), text);
        }
    }
}
