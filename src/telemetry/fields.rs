//! Formats the fields of a log line as text: the message, then `name=value` for each other field.
//!
//! Names of tables and messages of servers may hold line breaks and control sequences. They are escaped here, in
//! whatever field they come, so that one event is one line and nothing but this program colours it. Very long values
//! are cut.

use std::fmt::{self, Write as _};

use anstyle::Style;
use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

use crate::text::Escaping;

/// Largest value of a field, characters.
pub(super) const FIELD_CHARS_MAX: usize = 16 << 10;

/// The format of fields in a log of text.
#[derive(Debug, Clone, Copy)]
pub(super) struct TextFields;

impl<'writer> FormatFields<'writer> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = Line { writer, is_empty: true, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'writer> {
    writer: Writer<'writer>,
    is_empty: bool,
    result: fmt::Result,
}

impl Line<'_> {
    fn write(&mut self, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
        if !std::mem::take(&mut self.is_empty) {
            self.writer.write_char(' ')?;
        }
        let (name, equals) = if self.writer.has_ansi_escapes() {
            (Style::new().italic(), Style::new().dimmed())
        } else {
            (Style::new(), Style::new())
        };
        if field.name() != "message" {
            let known = field.name().trim_start_matches("r#");
            write!(self.writer, "{name}{known}{name:#}{equals}={equals:#}")?;
        }
        write!(Escaping::new(&mut self.writer, FIELD_CHARS_MAX), "{value:?}")
    }
}

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.result.is_ok() {
            self.result = self.write(field, value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        // Texts are quoted, except for the message.
        match field.name() {
            "message" => self.record_debug(field, &format_args!("{value}")),
            _ => self.record_debug(field, &value),
        }
    }
}
