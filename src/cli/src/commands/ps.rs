//! `boxlite ps`

use std::process::ExitCode;
use std::time::SystemTime;

use boxlite::{BoxInfo, BoxStatus, BoxliteRuntime};
use serde_json::{Value, json};

use crate::args::{Format, PsArgs};
use crate::exit::Failure;
use crate::output;

/// Columns of a command that are shown in a table.
const COMMAND: usize = 30;

pub(crate) async fn run(runtime: &BoxliteRuntime, args: &PsArgs) -> Result<ExitCode, Failure> {
    let mut boxes = runtime.list_info().await?;
    boxes.retain(|info| args.all || info.status.is_active());
    match (args.quiet, args.format.format) {
        (true, _) => {
            for info in &boxes {
                output::line(&info.id)?;
            }
        }
        (false, Format::Json) => output::json(&Value::Array(boxes.iter().map(as_json).collect()))?,
        (false, Format::Table) => {
            let rows: Vec<_> = boxes.iter().map(row).collect();
            output::table(&["BOX ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAME"], &rows)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(info: &BoxInfo) -> Vec<String> {
    let command: String = info.command.join(" ").escape_debug().to_string();
    let mut short: String = command.chars().take(COMMAND).collect();
    if short.len() < command.len() {
        short.push('…');
    }
    vec![
        info.id.clone(),
        info.image.clone(),
        short,
        output::ago(info.created_at),
        status(info),
        info.name.clone().unwrap_or_default(),
    ]
}

fn status(info: &BoxInfo) -> String {
    let up = |since: SystemTime| output::span(SystemTime::now().duration_since(since).unwrap_or_default());
    match (info.status, info.started_at, info.ended_at) {
        (BoxStatus::Running, Some(since), _) => format!("Up {}", up(since)),
        (BoxStatus::Stopped, _, Some(end)) => {
            let code = info.exit_code.map_or("no code".to_owned(), |code| code.to_string());
            format!("Exited ({code}) {}", output::ago(end))
        }
        (BoxStatus::Failed, _, Some(end)) => format!("Failed {}", output::ago(end)),
        (BoxStatus::Configured, ..) => "Created".to_owned(),
        (other, ..) => {
            let name = other.name();
            name[..1].to_uppercase() + &name[1..]
        }
    }
}

fn as_json(info: &BoxInfo) -> Value {
    json!({
        "id": info.id,
        "name": info.name,
        "status": info.status.name(),
        "image": info.image,
        "image_digest": info.image_digest,
        "command": info.command,
        "created_at": output::unix_seconds(info.created_at),
        "started_at": info.started_at.map(output::unix_seconds),
        "ended_at": info.ended_at.map(output::unix_seconds),
        "pid": info.pid,
        "engine": info.engine,
        "cpus": info.cpus,
        "memory_mib": info.memory_mib,
        "exit_code": info.exit_code,
        "error": info.error,
        "auto_remove": info.auto_remove,
        "detach": info.detach,
    })
}
