//! `pgsluice run`: the service.

use crate::config::Config;
use crate::error::{Exit, Failure};

pub(super) async fn run(config: Config) -> Result<Exit, Failure> {
    crate::runtime::run(config).await?;
    Ok(Exit::Fine)
}
