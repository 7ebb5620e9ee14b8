//! `boxlite attach`

use std::process::ExitCode;

use boxlite::{BoxliteRuntime, LiteBox};

use super::find;
use crate::args::AttachArgs;
use crate::exit::{self, Failure};
use crate::keys::DetachKeys;
use crate::streams::{self, End, Whole, Wires};

pub(crate) async fn run(runtime: &BoxliteRuntime, args: AttachArgs) -> Result<ExitCode, Failure> {
    let detach_keys = DetachKeys::parse(&args.detach_keys).map_err(Failure::Told)?;
    let target = find(runtime, &args.target).await?;
    let tty = target.info()?.tty;
    let execution = target.attach().await?;
    let wires = Wires { interactive: !args.no_stdin, tty, detach_keys, whole: Whole::Command };
    match streams::connect(execution, wires).await? {
        End::Exit(code) => Ok(exit::of_command(code)),
        End::Detached => {
            exit::message("detached");
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The user has left a box that belongs to this command: it waits for its end without a terminal, as long as it may.
pub(crate) async fn left(created: &LiteBox) -> Result<ExitCode, Failure> {
    exit::message(&format!(
        "detached; box {} goes on until this command ends: start it with -d to let it outlive that",
        created.id()
    ));
    let code = created.wait().await?;
    created.wait_gone().await?;
    Ok(exit::of_command(code))
}
