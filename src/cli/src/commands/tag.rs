//! `boxlite tag`

use std::process::ExitCode;

use boxlite::BoxliteRuntime;

use crate::args::TagArgs;
use crate::exit::Failure;

pub(crate) async fn run(runtime: &BoxliteRuntime, args: TagArgs) -> Result<ExitCode, Failure> {
    runtime.images().tag(&args.source, &args.name).await?;
    Ok(ExitCode::SUCCESS)
}
