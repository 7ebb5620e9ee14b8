//! `boxlite volume`

use std::process::ExitCode;

use boxlite::{BoxliteRuntime, VolumeInfo, VolumeOptions};
use serde_json::{Value, json};

use super::{each, labels};
use crate::args::{Format, PruneArgs, VolumeCommand, VolumeCreateArgs, VolumeLsArgs, VolumesArgs};
use crate::exit::{self, Failure};
use crate::output;

pub(crate) async fn run(runtime: &BoxliteRuntime, command: VolumeCommand) -> Result<ExitCode, Failure> {
    match command {
        VolumeCommand::Create(args) => create(runtime, args).await,
        VolumeCommand::Ls(args) => list(runtime, &args).await,
        VolumeCommand::Inspect(args) => inspect(runtime, &args).await,
        VolumeCommand::Rm(args) => remove(runtime, args).await,
        VolumeCommand::Prune(args) => prune(runtime, &args).await,
    }
}

async fn create(runtime: &BoxliteRuntime, args: VolumeCreateArgs) -> Result<ExitCode, Failure> {
    let mut options = VolumeOptions::default();
    options.quota_bytes = args.size.map(|size| size.0);
    options.labels = labels(&args.label).into_iter().collect();
    let made = runtime.volumes().create(&args.name, options).await?;
    output::line(&made.name)?;
    Ok(ExitCode::SUCCESS)
}

fn shown(volume: &VolumeInfo) -> Value {
    json!({
        "name": volume.name,
        "created_at": output::unix_seconds(volume.created_at),
        "path": volume.path,
        "size": volume.size_bytes,
        "quota": volume.quota_bytes,
        "labels": volume.labels,
        "anonymous": volume.anonymous,
        "used_by": volume.used_by,
    })
}

async fn list(runtime: &BoxliteRuntime, args: &VolumeLsArgs) -> Result<ExitCode, Failure> {
    let volumes = runtime.volumes().list().await?;
    if args.quiet {
        for volume in &volumes {
            output::line(&volume.name)?;
        }
    } else if args.format.format == Format::Json {
        output::json(&Value::Array(volumes.iter().map(shown).collect()))?;
    } else {
        let rows: Vec<Vec<String>> = volumes
            .iter()
            .map(|volume| {
                vec![
                    volume.name.clone(),
                    output::bytes(volume.size_bytes),
                    volume.quota_bytes.map(output::bytes).unwrap_or_default(),
                    volume.used_by.join(","),
                ]
            })
            .collect();
        output::table(&["NAME", "SIZE", "QUOTA", "USED BY"], &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn inspect(runtime: &BoxliteRuntime, args: &VolumesArgs) -> Result<ExitCode, Failure> {
    let mut all = Vec::new();
    for name in &args.names {
        all.push(shown(&runtime.volumes().get(name).await?));
    }
    output::json(&Value::Array(all))?;
    Ok(ExitCode::SUCCESS)
}

async fn remove(runtime: &BoxliteRuntime, args: VolumesArgs) -> Result<ExitCode, Failure> {
    let volumes = runtime.volumes();
    each::each_name(&args.names, async |name: &str| volumes.remove(name).await).await
}

async fn prune(runtime: &BoxliteRuntime, args: &PruneArgs) -> Result<ExitCode, Failure> {
    let what = if args.all { "all volumes that no box has" } else { "the volumes of boxes that have gone" };
    if !args.force && !super::prune::confirmed(&format!("This removes {what}.")).await? {
        return Ok(ExitCode::from(1));
    }
    let removed = runtime.volumes().prune(args.all).await?;
    for name in &removed {
        output::line(name)?;
    }
    if removed.is_empty() {
        exit::message("there was nothing to remove");
    }
    Ok(ExitCode::SUCCESS)
}
