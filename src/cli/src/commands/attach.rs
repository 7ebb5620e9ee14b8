//! `boxlite attach`

use std::process::ExitCode;

use boxlite::BoxliteRuntime;

use super::find;
use crate::args::AttachArgs;
use crate::exit::{self, Failure};
use crate::keys::DetachKeys;
use crate::streams::{self, End, Whole, Wires};
use crate::terminal;

pub(crate) async fn run(runtime: &BoxliteRuntime, args: AttachArgs) -> Result<ExitCode, Failure> {
    let detach_keys = DetachKeys::parse(&args.detach_keys).map_err(Failure::Told)?;
    let target = find(runtime, &args.target).await?;
    let (execution, tty) = match &args.exec {
        None => (target.attach().await?, target.info()?.tty),
        Some(id) => {
            let execution = target.attach_to(id).await?;
            // Only one that has a terminal takes a size.
            let (rows, columns) = terminal::size().unwrap_or((24, 80));
            let tty = execution.resize_tty(rows, columns).await.is_ok();
            (execution, tty)
        }
    };
    let wires = Wires { interactive: !args.no_stdin, tty, detach_keys, whole: Whole::Command };
    match streams::connect(execution, wires).await? {
        End::Exit(code) => Ok(exit::of_command(code)),
        End::Detached => {
            exit::message("detached");
            Ok(ExitCode::SUCCESS)
        }
    }
}
