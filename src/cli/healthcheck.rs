//! `pgsluice healthcheck`: whether the service on this machine lives, for a container's health check.

use crate::config::Config;
use crate::error::{Exit, Failure};
use crate::http;

pub(super) async fn run(config: &Config) -> Result<Exit, Failure> {
    http::probe(config.service.listen).await?;
    super::output::print("healthy\n")?;
    Ok(Exit::Fine)
}
