//! `boxlite run` and `boxlite create`

use std::process::ExitCode;
use std::time::Duration;

use boxlite::{
    BoxOptions, BoxliteRuntime, ErrorKind, HealthCheckOptions, ImageHandle, LiteBox, NetworkPolicy,
    NetworkRateLimit, NetworkSpec, PullPolicy, RestartPolicy, RootfsSpec,
};

use super::labels;
use crate::args::{BoxArgs, CreateArgs, PullWhen, RunArgs, environment};
use crate::exit::{self, Failure};
use crate::keys::DetachKeys;
use crate::mounts::Mount;
use crate::output;
use crate::progress::Layers;
use crate::streams::{self, End, Whole, Wires};

/// How long the monitor may take to find out why a stream broke.
const CAUSE: Duration = Duration::from_secs(5);

pub(crate) async fn run(runtime: &BoxliteRuntime, args: RunArgs) -> Result<ExitCode, Failure> {
    let RunArgs { rm, detach, detach_keys, create: args } = args;
    let detach_keys = DetachKeys::parse(&detach_keys).map_err(Failure::Told)?;
    if !detach && args.restart != RestartPolicy::No {
        let text =
            "a box that runs again after its command has ended needs -d: without, it ends with this command";
        return Err(Failure::Told(text.into()));
    }
    let (interactive, tty) = (args.process.interactive, args.process.tty);
    let created = create_box(runtime, args, |options| {
        options.auto_remove = rm;
        options.detach = detach;
    })
    .await?;
    if detach {
        created.start().await?;
        output::line(created.id())?;
        return Ok(ExitCode::SUCCESS);
    }
    let outcome = attached(&created, interactive, tty, detach_keys).await;
    if matches!(outcome, Ok(End::Detached)) {
        match created.release().await {
            Ok(()) => {
                exit::message(&format!("detached; box {} goes on", created.id()));
                return Ok(ExitCode::SUCCESS);
            }
            // It ended in the same moment, which is told like any other end.
            Err(error) if error.kind() == ErrorKind::Stopped => {
                let code = created.wait().await?;
                created.wait_gone().await?;
                return Ok(exit::of_command(code));
            }
            Err(error) => return Err(error.into()),
        }
    }
    // The prompt comes back when nothing of the box is left running, also after a failure.
    if let Err(error) = created.wait_gone().await {
        exit::message(&error.report());
    }
    match outcome? {
        End::Exit(code) => Ok(exit::of_command(code)),
        End::Detached => Ok(ExitCode::SUCCESS),
    }
}

pub(crate) async fn create(runtime: &BoxliteRuntime, args: CreateArgs) -> Result<ExitCode, Failure> {
    let CreateArgs { rm, create: args } = args;
    let created = create_box(runtime, args, |options| {
        options.auto_remove = rm;
        // Whoever starts it later, it does not end with that command.
        options.detach = true;
    });
    output::line(created.await?.id())?;
    Ok(ExitCode::SUCCESS)
}

async fn create_box(
    runtime: &BoxliteRuntime,
    args: BoxArgs,
    set: impl FnOnce(&mut BoxOptions),
) -> Result<LiteBox, Failure> {
    let name = args.name.clone();
    let layers = Layers::new(&args.image, args.quiet);
    let mut options = options(args)?;
    set(&mut options);
    let created = runtime.create_with(options, name, layers.teller()).await;
    layers.end();
    Ok(created?)
}

async fn attached(
    created: &LiteBox,
    interactive: bool,
    tty: bool,
    detach_keys: DetachKeys,
) -> Result<End, Failure> {
    let execution = match created.start_attached().await {
        // Somebody else may have ended it before its streams could be had. That is a failure with a code of its own; a
        // success without its output is none.
        Err(error)
            if matches!(error.kind(), ErrorKind::Portal | ErrorKind::Stopped | ErrorKind::NotFound) =>
        {
            let ended = tokio::time::timeout(CAUSE, created.wait()).await;
            if let Ok(Ok(code @ 1..)) = ended {
                exit::message("it ended before its output could be had");
                return Ok(End::Exit(code));
            }
            if ended.is_err()
                && let Err(second) = created.stop_with(0, Duration::ZERO).await
            {
                exit::message(&second.report());
            }
            return Err(error.into());
        }
        outcome => outcome?,
    };
    let wires = Wires { interactive, tty, detach_keys, whole: Whole::Box(created) };
    match streams::connect(execution, wires).await {
        // A stream broke, so output may be missing, whatever the exit code. The monitor knows why, unless the guest
        // itself broke it and goes on: nobody waits for such a one.
        Err(Failure::Library(error)) => {
            let cause = tokio::time::timeout(CAUSE, created.wait()).await;
            created.stop_with(0, Duration::ZERO).await?;
            match cause {
                Ok(Err(cause)) if cause.kind() == ErrorKind::Engine => Err(cause.into()),
                // Or there were no streams any more when they were asked for, as above.
                Ok(Ok(code @ 1..)) if error.kind() == ErrorKind::InvalidState => {
                    exit::message("it ended before its output could be had");
                    Ok(End::Exit(code))
                }
                _ => Err(error.into()),
            }
        }
        outcome => outcome,
    }
}

fn options(args: BoxArgs) -> Result<BoxOptions, Failure> {
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
    options.tty = args.process.tty;
    options.cap_add = args.cap_add;
    options.cap_drop = args.cap_drop;
    options.ulimits = args.ulimit;
    options.volumes = args.volume.into_iter().map(|volume| volume.0).collect();
    options.tmpfs = args.tmpfs.into_iter().map(|memory| memory.0).collect();
    for mount in args.mount {
        match mount {
            Mount::Volume(volume) => options.volumes.push(volume),
            Mount::Tmpfs(memory) => options.tmpfs.push(memory),
        }
    }
    options.labels = labels(&args.label).into_iter().collect();
    options.restart = args.restart;
    options.auto_stop = args.idle_timeout;
    options.auto_resume = !args.no_auto_resume;
    options.max_duration = args.max_duration;
    options.stop_signal = args.stop_signal;
    options.stop_timeout = args.stop_timeout.map(|seconds| Duration::from_secs(seconds.into()));
    options.keep_output = !args.no_logs;
    options.network = match args.network.spec()? {
        Some(spec) => spec,
        // Who publishes ports wants to reach the box, not the box to reach anything.
        None if !args.publish.is_empty() => NetworkSpec::Policy(NetworkPolicy::none()),
        None => NetworkSpec::default(),
    };
    options.ports = args.publish.into_iter().flat_map(|ports| ports.0).collect();
    options.network_rate_limit = NetworkRateLimit { tx_kbps: args.net_tx_kbps, rx_kbps: args.net_rx_kbps };
    options.dns = args.dns;
    let capture = args.net_capture.map(std::path::absolute).transpose();
    options.network_capture =
        capture.map_err(|error| Failure::Told(format!("the file for captured frames: {error}")))?;
    let health = args.health;
    options.health_check = HealthCheckOptions {
        disable: health.no_healthcheck,
        interval: health.health_interval,
        timeout: health.health_timeout,
        retries: health.health_retries,
        start_period: health.health_start_period,
        start_interval: health.health_start_interval,
        ..health.health_cmd.map(HealthCheckOptions::shell).unwrap_or_default()
    };
    Ok(options)
}
