//! `pgsluice demo`: the walk-through on two throw-away servers.

use crate::demo::{Afterwards, DemoOptions};
use crate::error::{Exit, Failure};

use super::DemoArgs;

pub(super) async fn run(args: &DemoArgs) -> Result<Exit, Failure> {
    let afterwards = if args.keep { Afterwards::Keep } else { Afterwards::Remove };
    crate::demo::run(DemoOptions { afterwards })
        .await
        .map_err(|error| Failure::new(Exit::No, error.diagnosis()))?;
    Ok(Exit::Fine)
}
