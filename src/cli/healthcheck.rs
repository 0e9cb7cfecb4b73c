//! `pgsluice healthcheck` tells a container's health check whether the service on this machine answers.

use crate::config::Config;
use crate::error::{Exit, Failure};
use crate::http;

pub(super) async fn run(config: &Config) -> Result<Exit, Failure> {
    http::probe(config.service.listen).await?;
    super::output::print("healthy\n")?;
    Ok(Exit::Fine)
}
