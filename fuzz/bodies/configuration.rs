//! Any text is a configuration, or is refused with at least one reason.

use pgsluice::config::Config;

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::from_text(text) {
        Ok(config) => assert!(config.subscriptions.iter().all(|one| !one.publications.is_empty())),
        Err(errors) => assert!(!errors.to_string().is_empty()),
    }
}
