//! `boxlite run`

use std::process::ExitCode;
use std::time::Duration;

use boxlite::{BoxOptions, BoxliteRuntime, ImageHandle, LiteBox, PullPolicy, RootfsSpec};

use crate::args::{PullWhen, RunArgs, environment};
use crate::exit::{self, Failure};
use crate::progress::Layers;
use crate::streams::{self, Whole};

/// How long the monitor may take to find out why a stream broke.
const CAUSE: Duration = Duration::from_secs(5);

pub(crate) async fn run(runtime: &BoxliteRuntime, args: RunArgs) -> Result<ExitCode, Failure> {
    let (name, interactive) = (args.name.clone(), args.process.interactive);
    let layers = Layers::new(&args.image, args.quiet);
    let created = runtime.create_with(options(args)?, name, layers.teller()).await;
    layers.end();
    let created = created?;
    let outcome = attached(&created, interactive).await;
    // The prompt comes back when nothing of the box is left running, also after a failure.
    if let Err(error) = created.wait_gone().await {
        exit::message(&error.report());
    }
    outcome.map(exit::of_command)
}

async fn attached(created: &LiteBox, interactive: bool) -> Result<i32, Failure> {
    let execution = created.start_attached().await?;
    match streams::connect(execution, interactive, Whole::Box(created)).await {
        // A stream broke, so output may be missing, whatever the exit code. The monitor knows why, unless the guest
        // itself broke it and goes on: nobody waits for such a one.
        Err(Failure::Library(error)) => {
            let cause = tokio::time::timeout(CAUSE, created.wait()).await;
            created.stop_with(0, Duration::ZERO).await?;
            match cause {
                Ok(Err(cause)) if cause.kind() == boxlite::ErrorKind::Engine => Err(cause.into()),
                _ => Err(error.into()),
            }
        }
        outcome => outcome,
    }
}

fn options(args: RunArgs) -> Result<BoxOptions, Failure> {
    let mut options = BoxOptions::image(&args.image);
    if ImageHandle::is_path(&args.image) {
        options.rootfs = RootfsSpec::RootfsPath(args.image);
    }
    options.pull = match args.pull {
        PullWhen::Missing => PullPolicy::Missing,
        PullWhen::Always => PullPolicy::Always,
        PullWhen::Never => PullPolicy::Never,
    };
    options.platform = args.platform;
    options.cpus = args.cpus;
    options.memory_mib = args.memory.map(|size| size.0);
    options.disk_size_gb = args.disk_size.map(|size| size.0);
    options.working_dir = args.process.workdir;
    options.env = environment(&args.process.env).map_err(Failure::Told)?;
    options.user = args.process.user;
    options.entrypoint =
        args.entrypoint.map(|program| if program.is_empty() { Vec::new() } else { vec![program] });
    options.cmd = (!args.command.is_empty()).then_some(args.command);
    options.hostname = args.hostname;
    options.open_stdin = args.process.interactive;
    options.cap_add = args.cap_add;
    options.cap_drop = args.cap_drop;
    options.auto_remove = args.rm;
    Ok(options)
}
