//! Progress bars of the copy, if `pgsluice run` has a terminal.
//!
//! They are drawn from snapshots, so the copy does not depend on them. Log lines are written above them
//! ([`Bars::above`]). If stderr is not a terminal, nothing is drawn.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::metrics::CopyGauges;
use crate::text::{LineBreaks, escaped};

/// Largest number of bars; a copy handles few tables at the same time.
const BARS_MAX: usize = 8;
const WITH_ESTIMATE: &str = "{prefix:<32!} [{bar:24}] {human_pos} of about {human_len} rows, {elapsed}";
const WITHOUT_ESTIMATE: &str = "{prefix:<32!} {spinner} {human_pos} rows, {elapsed}";

/// The bars of a process. Clones draw the same ones.
#[derive(Debug, Clone)]
pub struct Bars {
    multi: MultiProgress,
    shown: Arc<Mutex<BTreeMap<String, ProgressBar>>>,
}

impl Bars {
    pub(super) fn new() -> Self {
        // Draws on stderr, and does nothing if that is not a terminal.
        Self { multi: MultiProgress::new(), shown: Arc::default() }
    }

    /// Draws the copies in progress and removes the bars of others.
    pub fn update<'a>(&self, copies: impl Iterator<Item = (&'a str, &'a CopyGauges)>) {
        let wanted: BTreeMap<String, &CopyGauges> = copies
            .filter(|(_, copy)| !copy.is_ended && copy.rows > 0)
            .map(|(subscription, copy)| (shown(subscription, copy), copy))
            .take(BARS_MAX)
            .collect();
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.retain(|name, bar| {
            let stays = wanted.contains_key(name);
            if !stays {
                bar.finish_and_clear();
                self.multi.remove(bar);
            }
            stays
        });
        for (name, copy) in wanted {
            let bar = shown.entry(name).or_insert_with_key(|name| self.multi.add(bar(name, copy)));
            if copy.rows_estimated.is_some_and(|estimated| estimated < copy.rows) {
                // If the estimate was too low, the total grows with the rows copied.
                bar.set_length(copy.rows);
            }
            bar.set_position(copy.rows);
        }
    }

    /// Removes the bars once nothing is copied any more.
    pub fn clear(&self) {
        self.update(std::iter::empty());
    }

    /// Runs `write` while the bars are hidden.
    pub(super) fn above<T>(&self, write: impl FnOnce() -> T) -> T {
        self.multi.suspend(write)
    }
}

/// A bar's name.
fn shown(subscription: &str, copy: &CopyGauges) -> String {
    escaped(&format!("{subscription}: {}", copy.table), LineBreaks::Escaped)
}

fn bar(name: &str, copy: &CopyGauges) -> ProgressBar {
    let (bar, template) = match copy.rows_estimated {
        Some(estimated) if estimated > 0 => (ProgressBar::new(estimated.max(copy.rows)), WITH_ESTIMATE),
        _ => (ProgressBar::no_length(), WITHOUT_ESTIMATE),
    };
    // The templates are constants that parse; otherwise the crate's own style is used.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style.progress_chars("=> ")).with_prefix(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::QualifiedName;

    #[test]
    fn templates_parse() {
        for template in [WITH_ESTIMATE, WITHOUT_ESTIMATE] {
            ProgressStyle::with_template(template).unwrap();
        }
    }

    #[test]
    fn only_copies_under_way_have_bars() {
        let bars = Bars::new();
        let copy = |table: &str, rows, is_ended| CopyGauges {
            table: QualifiedName::new("public", table),
            rows,
            rows_estimated: Some(10),
            is_ended,
        };
        let copies = [copy("running", 20, false), copy("waiting", 0, false), copy("done", 10, true)];
        bars.update(copies.iter().map(|copy| ("sub", copy)));
        let names = |bars: &Bars| bars.shown.lock().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&bars), ["sub: public.running"]);
        bars.clear();
        assert!(names(&bars).is_empty());
    }
}
