//! Sets up logging: text or JSON on stderr, level from `RUST_LOG`.
//!
//! A line is written completely, and above the progress bars if a terminal shows them.

use std::io::{self, IsTerminal as _, Write};
use std::sync::OnceLock;

use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, fmt::format};

use super::fields::TextFields;
use super::limit::{Limited, Line};
use super::progress::Bars;
use crate::config::LogFormat;

/// Filter that applies if `RUST_LOG` is not set.
const DEFAULT_FILTER: &str = "info,sqlx=warn";

/// The bars above which lines are written. Empty until [`start`] finds a terminal.
static BARS: OnceLock<Bars> = OnceLock::new();

/// Starts logging for the rest of the process. A second call changes nothing.
///
/// Returns the progress bars, if stderr is a terminal and the log format is text.
pub fn start(log_format: LogFormat) -> Option<Bars> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let registry = tracing_subscriber::registry().with(filter);
    let terminal = io::stderr().is_terminal();
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let bars = (terminal && log_format == LogFormat::Text).then(|| BARS.get_or_init(Bars::new).clone());
    let started = match log_format {
        LogFormat::Text => {
            let text = Limited::new(format().with_ansi(colours), Line::Text);
            let layer = fmt::layer().with_ansi(colours).event_format(text).fmt_fields(TextFields);
            registry.with(layer.with_writer(Stderr)).try_init()
        }
        LogFormat::Json => {
            let json = Limited::new(format().json().flatten_event(true), Line::Json);
            let layer = fmt::layer().event_format(json).fmt_fields(JsonFields::new());
            registry.with(layer.with_ansi(false).with_writer(Stderr)).try_init()
        }
    };
    // Only tests start logging twice; the first subscriber stays.
    drop(started);
    bars
}

/// Writes to stderr, above the progress bars.
#[derive(Debug, Clone, Copy)]
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line).map(|()| line.len())
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        match BARS.get() {
            _ if line.is_empty() => Ok(()),
            Some(bars) => bars.above(|| io::stderr().lock().write_all(line)),
            None => io::stderr().lock().write_all(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for Stderr {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}
