//! `boxlite exec`

use std::process::ExitCode;

use boxlite::{BoxCommand, BoxliteRuntime};

use super::find;
use crate::args::{ExecArgs, environment};
use crate::exit::{self, Failure};
use crate::keys::DetachKeys;
use crate::output;
use crate::streams::{self, End, Whole, Wires};
use crate::terminal;

/// A terminal of the size that all have had since the beginning, where ours has none.
const TERMINAL: (u16, u16) = (24, 80);

pub(crate) async fn run(runtime: &BoxliteRuntime, args: ExecArgs) -> Result<ExitCode, Failure> {
    let detach_keys = DetachKeys::parse(&args.detach_keys).map_err(Failure::Told)?;
    let mut words = args.command.into_iter();
    let program = words.next().ok_or_else(|| Failure::Told("no command was given".into()))?;
    let mut command = BoxCommand::new(program).args(words).stdin(args.process.interactive);
    command.env = environment(&args.process.env).map_err(Failure::Told)?;
    command.working_dir = args.process.workdir;
    command.user = args.process.user;
    command.tty = args.process.tty.then(|| terminal::size().unwrap_or(TERMINAL));
    command.timeout = args.timeout;
    command.keep_orphans = args.keep_orphans;
    command.ulimits = args.ulimit;
    command.cap_add = args.cap_add;
    command.cap_drop = args.cap_drop;
    command.detach = args.detach;
    let target = find(runtime, &args.target).await?;
    if args.detach {
        let execution = target.exec_detached(command).await?;
        output::line(execution.id())?;
        return Ok(ExitCode::SUCCESS);
    }
    let execution = target.exec_detached(command).await?;
    let id = execution.id().to_owned();
    let wires = Wires {
        interactive: args.process.interactive,
        tty: args.process.tty,
        detach_keys,
        whole: Whole::Command,
    };
    match streams::connect(execution, wires).await? {
        End::Exit(code) => Ok(exit::of_command(code)),
        End::Detached => {
            exit::message(&format!("detached; attach --exec {id} {} comes back", args.target));
            Ok(ExitCode::SUCCESS)
        }
    }
}
