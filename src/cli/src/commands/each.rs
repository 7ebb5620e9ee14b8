//! Commands that do one thing to each of several boxes: `start`, `stop`, `restart`, `kill`, `pause`, `unpause`, `wait`,
//! `update`, and `rename`.

use std::process::ExitCode;
use std::time::Duration;

use boxlite::{BoxUpdate, BoxliteRuntime, LiteBox, parse_signal};

use super::{find, labels};
use crate::args::{KillArgs, RenameArgs, RestartArgs, StopArgs, TargetsArgs, UpdateArgs};
use crate::exit::Failure;
use crate::output;

/// Does it to each name, also after it has failed for one; prints those for which it was done.
pub(crate) async fn each_name(
    names: &[String],
    work: impl AsyncFn(&str) -> boxlite::Result<()>,
) -> Result<ExitCode, Failure> {
    let mut code = ExitCode::SUCCESS;
    for name in names {
        match work(name).await {
            Ok(()) => output::line(name)?,
            Err(error) => code = Failure::from(error).report(1),
        }
    }
    Ok(code)
}

/// Does it to each, also after it has failed for one; prints the names of those for which it was done.
async fn each<'a, F>(
    runtime: &BoxliteRuntime,
    targets: &'a [String],
    work: impl Fn(LiteBox) -> F,
) -> Result<ExitCode, Failure>
where
    F: Future<Output = Result<Option<String>, Failure>> + 'a,
{
    let mut code = ExitCode::SUCCESS;
    for target in targets {
        let done = async { work(find(runtime, target).await?).await };
        match done.await {
            Ok(printed) => output::line(printed.as_deref().unwrap_or(target))?,
            Err(failure) => code = failure.report(1),
        }
    }
    Ok(code)
}

pub(crate) async fn start(runtime: &BoxliteRuntime, args: &TargetsArgs) -> Result<ExitCode, Failure> {
    each(runtime, &args.targets, |target| async move {
        target.start_detached().await?;
        Ok(None)
    })
    .await
}

/// How a box is stopped, where that is not as it wants.
fn how(args: &StopArgs) -> Result<(Option<u32>, Option<Duration>), Failure> {
    let signal = args.signal.as_deref().map(parse_signal).transpose()?;
    Ok((signal, args.time.map(|seconds| Duration::from_secs(seconds.into()))))
}

pub(crate) async fn stop(runtime: &BoxliteRuntime, args: &StopArgs) -> Result<ExitCode, Failure> {
    let (signal, grace) = how(args)?;
    each(runtime, &args.targets, |target| async move {
        match (signal, grace) {
            (Some(signal), grace) => target.stop_with(signal, grace.unwrap_or(target.stop_timeout())).await?,
            (None, Some(grace)) => target.stop_within(grace).await?,
            (None, None) => target.stop().await?,
        }
        Ok(None)
    })
    .await
}

pub(crate) async fn restart(runtime: &BoxliteRuntime, args: &RestartArgs) -> Result<ExitCode, Failure> {
    let (signal, grace) = how(&args.stop)?;
    each(runtime, &args.stop.targets, |target| async move {
        let signal = signal.unwrap_or(target.stop_signal());
        target.restart_with(signal, grace.unwrap_or(target.stop_timeout())).await?;
        Ok(None)
    })
    .await
}

pub(crate) async fn kill(runtime: &BoxliteRuntime, args: &KillArgs) -> Result<ExitCode, Failure> {
    let signal = parse_signal(&args.signal)?;
    each(runtime, &args.targets, |target| async move {
        target.kill(signal).await?;
        Ok(None)
    })
    .await
}

pub(crate) async fn pause(runtime: &BoxliteRuntime, args: &TargetsArgs) -> Result<ExitCode, Failure> {
    each(runtime, &args.targets, |target| async move {
        target.pause().await?;
        Ok(None)
    })
    .await
}

pub(crate) async fn unpause(runtime: &BoxliteRuntime, args: &TargetsArgs) -> Result<ExitCode, Failure> {
    each(runtime, &args.targets, |target| async move {
        target.resume().await?;
        Ok(None)
    })
    .await
}

pub(crate) async fn wait(runtime: &BoxliteRuntime, args: &TargetsArgs) -> Result<ExitCode, Failure> {
    each(runtime, &args.targets, |target| async move { Ok(Some(target.wait().await?.to_string())) }).await
}

pub(crate) async fn update(runtime: &BoxliteRuntime, args: &UpdateArgs) -> Result<ExitCode, Failure> {
    let limit = |time: Option<Duration>| time.map(|time| Some(time).filter(|time| !time.is_zero()));
    let set = labels(&args.label).into_iter().map(|(key, value)| (key, Some(value)));
    let taken = args.label_rm.iter().map(|key| (key.clone(), None));
    let update = BoxUpdate {
        cpus: args.cpus,
        memory_mib: args.memory.map(|size| size.0),
        labels: set.chain(taken).collect(),
        restart: args.restart,
        auto_stop: limit(args.idle_timeout),
        max_duration: limit(args.max_duration),
        add_volumes: args.volume.iter().map(|volume| volume.0.clone()).collect(),
        remove_volumes: args.volume_rm.clone(),
    };
    if update == BoxUpdate::default() {
        return Err(Failure::Told("nothing is to be changed\nhint: see `boxlite update --help`".into()));
    }
    each(runtime, &args.targets, |target| {
        let update = update.clone();
        async move {
            target.update(update).await?;
            Ok(None)
        }
    })
    .await
}

pub(crate) async fn rename(runtime: &BoxliteRuntime, args: &RenameArgs) -> Result<ExitCode, Failure> {
    find(runtime, &args.target).await?.rename(&args.name).await?;
    Ok(ExitCode::SUCCESS)
}
