//! `pgsluice run` runs the service.

use std::path::Path;

use tracing::error;

use crate::config::Config;
use crate::error::{Diagnosis, Exit, Failure};
use crate::telemetry::{self, Attention};

use super::context;

pub(super) async fn run(config: Config, path: Option<&Path>) -> Result<Exit, Failure> {
    config
        .require_subscription()
        .map_err(|errors| Failure::new(Exit::Usage, Diagnosis::new(errors.to_string())))?;
    let bars = telemetry::start(config.service.log_format);
    telemetry::start_metrics();
    for diagnosis in &config.warnings {
        Attention { subscription: None, relation: None, diagnosis }.emit();
    }
    crate::runtime::run(config, bars, || reload(path)).await?;
    Ok(Exit::Fine)
}

/// Reads the configuration again after SIGHUP. Its errors are reported, and the old configuration stays
/// in force.
fn reload(path: Option<&Path>) -> Option<Config> {
    match context::load(path) {
        Ok(config) => Some(config),
        Err(failure) => {
            let Diagnosis { primary, detail, hint, .. } = &failure.diagnosis;
            error!(error = primary, detail, hint, "the configuration cannot be read again");
            None
        }
    }
}
