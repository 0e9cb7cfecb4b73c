//! `pgsluice demo`: the walk-through on two throw-away servers.

use crate::demo::Ending;
use crate::error::{Exit, Failure};

use super::DemoArgs;

pub(super) async fn run(args: &DemoArgs) -> Result<Exit, Failure> {
    let ending = if args.keep { Ending::Keep } else { Ending::Remove };
    crate::demo::run(ending).await?;
    Ok(Exit::Fine)
}
