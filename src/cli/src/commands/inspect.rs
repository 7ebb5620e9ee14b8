//! `boxlite inspect` and `boxlite image inspect`

use std::process::ExitCode;

use boxlite::{BoxliteRuntime, ErrorKind, ImageDetails};
use serde_json::{Value, json};

use super::ps;
use crate::args::InspectArgs;
use crate::exit::Failure;
use crate::output;

/// Boxes, and images where there is no box of that name.
pub(crate) async fn any(runtime: &BoxliteRuntime, args: InspectArgs) -> Result<ExitCode, Failure> {
    let mut code = ExitCode::SUCCESS;
    let mut all = Vec::new();
    for name in &args.references {
        let found = async {
            match runtime.get(name).await? {
                Some(found) => Ok(ps::as_json(&found.info()?)),
                None => match runtime.images().inspect(name).await {
                    Ok(image) => Ok(shown(&image)),
                    Err(error)
                        if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidArgument) =>
                    {
                        Err(Failure::Told(format!("there is no box and no image `{}`", name.escape_debug())))
                    }
                    Err(error) => Err(error.into()),
                },
            }
        };
        match found.await {
            Ok(value) => all.push(value),
            // The others are shown all the same.
            Err(failure) => code = failure.report(1),
        }
    }
    output::json(&Value::Array(all))?;
    Ok(code)
}

pub(crate) async fn run(runtime: &BoxliteRuntime, args: InspectArgs) -> Result<ExitCode, Failure> {
    let mut code = ExitCode::SUCCESS;
    let mut all = Vec::new();
    for reference in &args.references {
        match runtime.images().inspect(reference).await {
            Ok(image) => all.push(shown(&image)),
            // The others are shown all the same.
            Err(error) => code = Failure::from(error).report(1),
        }
    }
    output::json(&Value::Array(all))?;
    Ok(code)
}

/// In the words of Docker's `image inspect` where it has the same.
fn shown(image: &ImageDetails) -> Value {
    let (info, config) = (&image.info, &image.config);
    json!({
        "Digest": info.digest,
        "References": info.references,
        "Created": info.created,
        "Architecture": config.architecture,
        "Variant": config.variant,
        "Os": config.os,
        "Size": info.size_bytes,
        "DiskSize": info.disk_bytes,
        "Layers": info.layers,
        "Config": {
            "Entrypoint": config.entrypoint,
            "Cmd": config.cmd,
            "Env": config.env,
            "WorkingDir": config.working_dir,
            "User": config.user,
            "ExposedPorts": config.exposed_ports,
            "Volumes": config.volumes,
            "Labels": config.labels,
            "StopSignal": config.stop_signal,
        },
    })
}
