//! Limits repeated log messages.
//!
//! Warnings and errors with identical text pass a few times a minute; the others are counted, and the
//! next one that passes tells their number (`repeated`). Events below the level of a warning always
//! pass. The number of remembered texts is bounded.
//!
//! Every line passes here, so this is where lines of JSON are escaped.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::fields::FIELD_CHARS_MAX;
use crate::text::json_cut;

/// Number of identical events that pass within [`WINDOW`].
const BURST: u32 = 3;
/// Time window of the limit.
const WINDOW: Duration = Duration::from_mins(1);
/// Largest number of remembered texts; with more, the one with the oldest window is forgotten.
const REMEMBERED_MAX: usize = 256;

/// Whether an event is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The event is written, with the number of identical ones that were held back before it.
    Pass {
        repeated: u64,
    },
    HoldBack,
}

/// The recent history of one text.
#[derive(Debug)]
struct Seen {
    window_began: Instant,
    passed: u32,
    held_back: u64,
}

/// The remembered texts by their fingerprint.
#[derive(Debug, Default)]
struct Memory(HashMap<u64, Seen>);

impl Memory {
    fn judge(&mut self, text: u64, now: Instant) -> Verdict {
        if self.0.len() >= REMEMBERED_MAX && !self.0.contains_key(&text) {
            let oldest = self.0.iter().min_by_key(|(_, seen)| seen.window_began).map(|(&text, _)| text);
            oldest.map(|text| self.0.remove(&text));
        }
        let seen = self.0.entry(text).or_insert(Seen { window_began: now, passed: 0, held_back: 0 });
        if now.saturating_duration_since(seen.window_began) >= WINDOW {
            (seen.window_began, seen.passed) = (now, 0);
        }
        if seen.passed >= BURST {
            seen.held_back += 1;
            return Verdict::HoldBack;
        }
        seen.passed += 1;
        Verdict::Pass { repeated: std::mem::take(&mut seen.held_back) }
    }
}

/// The format of a line, which decides how a count is added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Text,
    Json,
}

impl Line {
    /// Returns the line, which ends in a line break, with the count.
    fn with_count(self, line: &str, repeated: u64) -> String {
        let line = line.trim_end();
        match (self, line.strip_suffix('}')) {
            (Self::Json, Some(open)) => format!("{open},\"repeated\":{repeated}}}\n"),
            _ => format!("{line} repeated={repeated}\n"),
        }
    }
}

/// Formats events as `inner` does, but limits identical ones.
#[derive(Debug)]
pub(super) struct Limited<F> {
    inner: F,
    line: Line,
    memory: Mutex<Memory>,
}

impl<F> Limited<F> {
    pub(super) fn new(inner: F, line: Line) -> Self {
        Self { inner, line, memory: Mutex::default() }
    }
}

impl<S, N, F> FormatEvent<S, N> for Limited<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if *event.metadata().level() > Level::WARN {
            return self.write(context, writer, event, 0);
        }
        let text = fingerprint(event);
        // A panic elsewhere must not end logging: the state is usable after it.
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = memory.judge(text, Instant::now());
        drop(memory);
        match verdict {
            Verdict::HoldBack => Ok(()),
            Verdict::Pass { repeated } => self.write(context, writer, event, repeated),
        }
    }
}

impl<F> Limited<F> {
    fn write<S, N>(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
        repeated: u64,
    ) -> fmt::Result
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
        N: for<'a> FormatFields<'a> + 'static,
        F: FormatEvent<S, N>,
    {
        if repeated == 0 && self.line == Line::Text {
            return self.inner.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        if self.line == Line::Json {
            // The fields of text are escaped one by one (`fields`); JSON is escaped as a document.
            line = json_cut(&line, FIELD_CHARS_MAX);
        }
        if repeated > 0 {
            line = self.line.with_count(&line, repeated);
        }
        writer.write_str(&line)
    }
}

/// Hashes an event's source and all of its fields.
fn fingerprint(event: &Event<'_>) -> u64 {
    struct Fields(DefaultHasher);
    impl Visit for Fields {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            field.name().hash(&mut self.0);
            format!("{value:?}").hash(&mut self.0);
        }
    }
    let mut fields = Fields(DefaultHasher::new());
    event.metadata().callsite().hash(&mut fields.0);
    event.record(&mut fields);
    fields.0.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_held_back_and_counted() {
        let mut memory = Memory::default();
        let start = Instant::now();
        let mut at = |seconds, text| memory.judge(text, start + Duration::from_secs(seconds));
        for second in 0..u64::from(BURST) {
            assert_eq!(at(second, 1), Verdict::Pass { repeated: 0 });
        }
        for second in 10..15 {
            assert_eq!(at(second, 1), Verdict::HoldBack);
        }
        assert_eq!(at(15, 2), Verdict::Pass { repeated: 0 }, "another text has its own count");
        assert_eq!(at(60, 1), Verdict::Pass { repeated: 5 });
        assert_eq!(at(61, 1), Verdict::Pass { repeated: 0 });
    }

    #[test]
    fn memory_is_bounded() {
        let mut memory = Memory::default();
        for text in 0..10 * REMEMBERED_MAX as u64 {
            memory.judge(text, Instant::now());
        }
        assert_eq!(memory.0.len(), REMEMBERED_MAX);
    }

    #[test]
    fn the_count_becomes_a_field() {
        assert_eq!(Line::Text.with_count("WARN gone\n", 7), "WARN gone repeated=7\n");
        assert_eq!(Line::Json.with_count("{\"a\":1}\n", 7), "{\"a\":1,\"repeated\":7}\n");
    }

    /// Buffer for a test's log.
    #[derive(Clone, Default)]
    struct Buffer(std::sync::Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Logs one hostile event in a format, and returns the log.
    fn log_of(line: Line) -> String {
        use tracing_subscriber::fmt::format::{JsonFields, format};
        use tracing_subscriber::prelude::*;
        const HOSTILE: &str = "a\n2024-01-01T00:00:00Z ERROR forged\r\x1b[2J\u{9b}31m\u{202e}drow\u{2028}";
        let long = "x".repeat(1 << 20);
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let log = || {
            let error = std::io::Error::other(HOSTILE);
            tracing::info!(relation = %HOSTILE, text = HOSTILE, debug = ?HOSTILE, %error, long, "{HOSTILE}");
            tracing::warn!(error = &error as &dyn std::error::Error, "failed");
        };
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).with_ansi(false);
        let registry = tracing_subscriber::registry();
        match line {
            Line::Text => {
                let format = Limited::new(format().with_ansi(false), line);
                let layer = layer.event_format(format).fmt_fields(super::super::fields::TextFields);
                tracing::subscriber::with_default(registry.with(layer), log);
            }
            Line::Json => {
                let format = Limited::new(format().json().flatten_event(true), line);
                let layer = layer.event_format(format).fmt_fields(JsonFields::new());
                tracing::subscriber::with_default(registry.with(layer), log);
            }
        }
        String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn whatever_a_field_holds_an_event_is_one_line() {
        for line in [Line::Text, Line::Json] {
            let log = log_of(line);
            assert_eq!(log.lines().count(), 2, "{line:?}: {log}");
            assert!(!log.chars().any(|c| crate::text::is_hidden(c) && c != '\n'), "{line:?}: {log}");
            assert!(log.contains("xxx…") && log.len() < 2 * FIELD_CHARS_MAX, "{line:?}: {}", log.len());
        }
        let text = log_of(Line::Text);
        assert!(
            text.contains(r"relation=a\n2024-01-01T00:00:00Z ERROR forged\r\u{1b}[2J\u{9b}31m\u{202e}drow"),
            "{text}"
        );
        let first = log_of(Line::Json).lines().next().unwrap().to_owned();
        let event: serde_json::Value = serde_json::from_str(&first).unwrap();
        assert!(event["relation"].as_str().unwrap().contains("\u{202e}drow"), "{first}");
    }

    #[test]
    fn only_complaints_are_limited_and_only_equal_ones() {
        use tracing_subscriber::prelude::*;
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let format = Limited::new(tracing_subscriber::fmt::format().with_ansi(false), Line::Text);
        let layer = tracing_subscriber::fmt::layer().event_format(format).with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for attempt in 0..10 {
                tracing::warn!(subscription = "a", "no answer");
                tracing::warn!(subscription = "b", attempt, "no answer");
                tracing::info!("command");
            }
        });
        let log = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
        let found = (count("subscription=\"a\""), count("subscription=\"b\""), count("command"));
        assert_eq!(found, (BURST as usize, 10, 10), "{log}");
    }
}
