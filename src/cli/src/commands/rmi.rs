//! `boxlite rmi`

use std::process::ExitCode;

use boxlite::{BoxliteRuntime, ErrorKind};

use crate::args::RmiArgs;
use crate::exit::Failure;
use crate::output;

pub(crate) async fn run(runtime: &BoxliteRuntime, args: RmiArgs) -> Result<ExitCode, Failure> {
    let mut code = ExitCode::SUCCESS;
    for reference in &args.references {
        match runtime.images().remove(reference).await {
            Ok(removed) => {
                for name in removed.untagged {
                    output::line(&format!("Untagged: {name}"))?;
                }
                if let Some(digest) = removed.deleted {
                    output::line(&format!("Deleted: {digest}"))?;
                }
            }
            Err(error) if args.force && error.kind() == ErrorKind::NotFound => {}
            // The others are removed all the same.
            Err(error) => code = Failure::from(error).report(1),
        }
    }
    Ok(code)
}
