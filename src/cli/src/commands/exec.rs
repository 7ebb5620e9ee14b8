//! `boxlite exec`

use std::process::ExitCode;

use boxlite::{BoxCommand, BoxliteRuntime};

use super::find;
use crate::args::{ExecArgs, environment};
use crate::exit::{self, Failure};
use crate::streams::{self, Whole};

pub(crate) async fn run(runtime: &BoxliteRuntime, args: ExecArgs) -> Result<ExitCode, Failure> {
    let mut words = args.command.into_iter();
    let program = words.next().ok_or_else(|| Failure::Told("no command was given".into()))?;
    let mut command = BoxCommand::new(program).args(words).stdin(args.process.interactive);
    command.env = environment(&args.process.env).map_err(Failure::Told)?;
    command.working_dir = args.process.workdir;
    command.user = args.process.user;
    let target = find(runtime, &args.target).await?;
    if !target.info()?.status.is_active() {
        let text = format!("box {} does not run: it is {}", target.id(), target.info()?.status.name());
        return Err(Failure::Told(text));
    }
    let execution = target.exec(command).await?;
    streams::connect(execution, args.process.interactive, Whole::Command).await.map(exit::of_command)
}
