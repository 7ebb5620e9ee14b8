//! `boxlite stop`

use std::process::ExitCode;
use std::time::Duration;

use boxlite::BoxliteRuntime;

use super::find;
use crate::args::StopArgs;
use crate::exit::Failure;
use crate::output;

/// SIGTERM, the same on every Linux.
const SIGTERM: u32 = 15;

pub(crate) async fn run(runtime: &BoxliteRuntime, args: StopArgs) -> Result<ExitCode, Failure> {
    let mut code = ExitCode::SUCCESS;
    for target in &args.targets {
        let stopped = async {
            let grace = Duration::from_secs(args.time.into());
            find(runtime, target).await?.stop_with(SIGTERM, grace).await.map_err(Failure::from)
        };
        match stopped.await {
            Ok(()) => output::line(target)?,
            // The others are stopped all the same.
            Err(failure) => code = failure.report(1),
        }
    }
    Ok(code)
}
