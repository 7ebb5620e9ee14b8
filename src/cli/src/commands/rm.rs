//! `boxlite rm`

use std::process::ExitCode;

use boxlite::BoxliteRuntime;

use crate::args::RmArgs;
use crate::exit::Failure;
use crate::output;

pub(crate) async fn run(runtime: &BoxliteRuntime, args: RmArgs) -> Result<ExitCode, Failure> {
    let mut code = ExitCode::SUCCESS;
    for target in &args.targets {
        match runtime.remove(target, args.force).await {
            Ok(()) => output::line(target)?,
            // The others are removed all the same.
            Err(error) => code = Failure::from(error).report(1),
        }
    }
    Ok(code)
}
