//! `boxlite pull`

use std::process::ExitCode;

use boxlite::{BoxliteRuntime, PullOptions};

use crate::args::PullArgs;
use crate::exit::Failure;
use crate::output;
use crate::progress::Layers;

pub(crate) async fn run(runtime: &BoxliteRuntime, args: PullArgs) -> Result<ExitCode, Failure> {
    let mut code = ExitCode::SUCCESS;
    for reference in &args.references {
        let mut options = PullOptions::default();
        options.platform.clone_from(&args.platform);
        let layers = Layers::new(reference, args.quiet);
        match runtime.images().pull_with(reference, options, layers.teller()).await {
            Ok(pulled) => {
                layers.end();
                output::line(&pulled.reference)?;
            }
            Err(error) => {
                layers.end();
                // The others are pulled all the same.
                code = Failure::from(error).report(1);
            }
        }
    }
    Ok(code)
}
