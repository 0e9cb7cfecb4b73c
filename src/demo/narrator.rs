//! Prints the walk-through: chapters, prose, statements, tables.
//!
//! Lines are wrapped to the terminal's width. `anstream` leaves colours out if stdout is not a terminal
//! or NO_COLOR is set. The texts themselves are in `walk`.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::process::{Command, Stdio};

use anstyle::{AnsiColor, Style};

use super::DemoError;
use super::session::TextTable;

const WIDTH_DEFAULT: usize = 80;
/// Largest width of prose, because longer lines are hard to read.
const WIDTH_MAX: usize = 96;
const WIDTH_MIN: usize = 40;
const INDENT: &str = "   ";
/// Width of the longest label, `publisher`.
const LABEL_WIDTH: usize = 9;

const CHAPTER: Style = AnsiColor::Cyan.on_default().bold();
const PUBLISHER: Style = AnsiColor::Blue.on_default().bold();
const TARGET: Style = AnsiColor::Magenta.on_default().bold();
const PROMPT: Style = AnsiColor::Yellow.on_default().bold();
const DONE: Style = AnsiColor::Green.on_default().bold();
const QUIET: Style = Style::new().dimmed();
const STRONG: Style = Style::new().bold();

/// The server that a statement or rows belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Publisher,
    Target,
}

impl Side {
    const fn label(self) -> (&'static str, Style) {
        match self {
            Self::Publisher => ("publisher", PUBLISHER),
            Self::Target => ("target", TARGET),
        }
    }
}

/// Prints to stdout or, in tests, to a buffer.
pub(super) struct Narrator {
    out: Box<dyn Write + Send>,
    width: usize,
    chapters: usize,
}

impl Narrator {
    pub(super) fn on_stdout() -> Self {
        let width = if io::stdout().is_terminal() { terminal_width() } else { None };
        Self::new(Box::new(anstream::stdout()), width.unwrap_or(WIDTH_DEFAULT))
    }

    fn new(out: Box<dyn Write + Send>, width: usize) -> Self {
        Self { out, width: width.clamp(WIDTH_MIN, WIDTH_MAX), chapters: 0 }
    }

    fn print(&mut self, text: &str) -> Result<(), DemoError> {
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).map_err(DemoError::Output)
    }

    /// Largest width of a command's output that is shown with [`Narrator::output`].
    pub(super) fn output_width(&self) -> usize {
        self.width - INDENT.len() - 2
    }

    pub(super) fn title(&mut self, title: &str, text: &str) -> Result<(), DemoError> {
        self.print(&format!("\n{STRONG}{title}{STRONG:#}\n{}\n", self.wrapped(text, "")))
    }

    pub(super) fn chapter(&mut self, title: &str) -> Result<(), DemoError> {
        self.chapters += 1;
        let number = self.chapters;
        let rule = "─".repeat(self.width.saturating_sub(title.chars().count() + 5));
        self.print(&format!("\n{CHAPTER}{number}  {title}{CHAPTER:#} {QUIET}{rule}{QUIET:#}\n"))
    }

    /// Prints a paragraph.
    pub(super) fn say(&mut self, text: &str) -> Result<(), DemoError> {
        self.print(&format!("{}\n", self.wrapped(text, INDENT)))
    }

    /// Prints a statement that is about to run on one side. Its line breaks are kept, and longer lines
    /// are broken.
    pub(super) fn statement(&mut self, side: Side, sql: &str) -> Result<(), DemoError> {
        let (label, style) = side.label();
        let margin = INDENT.len() + LABEL_WIDTH + " ▸ ".chars().count();
        let mut text = String::new();
        for (index, line) in sql.lines().flat_map(|line| broken(line, self.width - margin)).enumerate() {
            let (label, mark) = if index == 0 { (label, '▸') } else { ("", ' ') };
            let _ = writeln!(text, "{INDENT}{style}{label:>LABEL_WIDTH$} {mark}{style:#} {line}");
        }
        self.print(&text)
    }

    /// Prints a command that a user could type.
    pub(super) fn command(&mut self, command: &str) -> Result<(), DemoError> {
        self.print(&format!("\n{INDENT}{PROMPT}${PROMPT:#} {STRONG}{command}{STRONG:#}\n"))
    }

    /// Prints a command's output or a file's content.
    pub(super) fn output(&mut self, text: &str) -> Result<(), DemoError> {
        let lines = text.trim_end().lines().map(|line| format!("{INDENT}{QUIET}│{QUIET:#} {line}\n"));
        self.print(&lines.collect::<String>())
    }

    /// Prints the rows of one side's table.
    pub(super) fn table(&mut self, side: Side, name: &str, table: &TextTable) -> Result<(), DemoError> {
        let (label, style) = side.label();
        let mut text = format!("\n{INDENT}{style}{label:>LABEL_WIDTH$}{style:#} {name}\n");
        for (index, line) in rendered(table).iter().enumerate() {
            let style = if index == 0 { QUIET } else { Style::new() };
            let _ = writeln!(text, "{INDENT}{:LABEL_WIDTH$} {style}{line}{style:#}", "");
        }
        text.push('\n');
        self.print(&text)
    }

    /// Prints a line about something that has been verified.
    pub(super) fn done(&mut self, text: &str) -> Result<(), DemoError> {
        let text = self.wrapped(text, &format!("{INDENT}  "));
        self.print(&format!("{INDENT}{DONE}✓{DONE:#} {}\n", text.trim_start()))
    }

    fn wrapped(&self, text: &str, indent: &str) -> String {
        let mut lines: Vec<String> = Vec::new();
        let mut line = String::new();
        for word in text.split_whitespace() {
            let length = indent.chars().count() + line.chars().count() + 1 + word.chars().count();
            if !line.is_empty() && length > self.width {
                lines.push(format!("{indent}{line}"));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(format!("{indent}{line}"));
        lines.join("\n")
    }
}

/// Breaks a line at spaces into pieces of at most `width` characters; all but the first are indented.
fn broken(line: &str, width: usize) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut piece = String::new();
    for word in line.split_inclusive(' ') {
        if !piece.trim().is_empty() && piece.chars().count() + word.trim_end().chars().count() > width {
            pieces.push(std::mem::replace(&mut piece, "  ".to_owned()));
        }
        piece.push_str(word);
    }
    pieces.push(piece);
    for piece in &mut pieces {
        piece.truncate(piece.trim_end().len());
    }
    pieces
}

/// Renders a header and rows with columns padded to the widest value and numbers aligned to the right.
fn rendered(table: &TextTable) -> Vec<String> {
    let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "∅".to_owned());
    let rows: Vec<Vec<String>> = table.rows.iter().map(|row| row.iter().map(shown).collect()).collect();
    let is_number = |column: usize| {
        rows.iter().all(|row| row.get(column).is_some_and(|value| value.parse::<f64>().is_ok()))
    };
    let columns: Vec<(usize, bool)> = table
        .columns
        .iter()
        .enumerate()
        .map(|(column, name)| {
            let widths = rows.iter().filter_map(|row| row.get(column)).map(|value| value.chars().count());
            (widths.chain([name.chars().count()]).max().unwrap_or(0), is_number(column))
        })
        .collect();
    std::iter::once(&table.columns)
        .chain(&rows)
        .map(|row| {
            let cells = row.iter().zip(&columns).map(|(value, (width, is_number))| {
                if *is_number { format!("{value:>width$}") } else { format!("{value:<width$}") }
            });
            cells.collect::<Vec<_>>().join("   ").trim_end().to_owned()
        })
        .collect()
}

/// Returns the terminal's width: from POSIX's `stty`, else from the environment.
fn terminal_width() -> Option<usize> {
    let from_shell = || std::env::var("COLUMNS").ok()?.parse().ok();
    if !io::stdin().is_terminal() {
        return from_shell();
    }
    let output =
        Command::new("stty").arg("size").stdin(Stdio::inherit()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let columns = text.split_whitespace().nth(1).and_then(|columns| columns.parse().ok());
    columns.filter(|columns| *columns > 0).or_else(from_shell)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_wrapped_and_indented() {
        let narrator = Narrator::new(Box::new(io::sink()), 0);
        let text = narrator.wrapped("one two three four five six seven eight nine ten", "  ");
        assert_eq!(text, "  one two three four five six seven\n  eight nine ten");
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH_MIN));
    }

    #[test]
    fn long_statements_are_broken_and_short_ones_kept() {
        assert_eq!(broken("  VALUES (1, 2);", 20), ["  VALUES (1, 2);"]);
        assert_eq!(broken("INSERT INTO t VALUES (1, 2);", 16), ["INSERT INTO t", "  VALUES (1, 2);"]);
        assert_eq!(broken("averyveryverylongname;", 5), ["averyveryverylongname;"]);
    }

    #[test]
    fn tables_are_aligned() {
        let row = |values: [Option<&str>; 3]| values.map(|value| value.map(str::to_owned)).to_vec();
        let table = TextTable {
            columns: ["id", "name", "price"].map(str::to_owned).to_vec(),
            rows: vec![
                row([Some("1"), Some("Hammer"), Some("4.50")]),
                row([Some("10"), None, Some("12.00")]),
            ],
        };
        assert_eq!(rendered(&table), ["id   name     price", " 1   Hammer    4.50", "10   ∅        12.00"]);
    }
}
