//! `pgsluice run`: the service.

use std::path::Path;

use tracing::{error, warn};

use crate::config::Config;
use crate::error::{Diagnosis, Exit, Failure};

use super::context;

pub(super) async fn run(config: Config, path: Option<&Path>) -> Result<Exit, Failure> {
    config
        .require_subscription()
        .map_err(|errors| Failure::new(Exit::Usage, Diagnosis::new(errors.to_string())))?;
    crate::telemetry::start(config.service.log_format);
    for warning in &config.warnings {
        warn!("{warning}");
    }
    crate::runtime::run(config, || reload(path)).await?;
    Ok(Exit::Fine)
}

/// Reads the configuration again for SIGHUP; what is wrong with it is said, and the old one stays.
fn reload(path: Option<&Path>) -> Option<Config> {
    match context::load(path) {
        Ok(config) => Some(config),
        Err(failure) => {
            error!("{failure}");
            None
        }
    }
}
