//! `boxlite ps`

use std::process::ExitCode;
use std::time::SystemTime;

use boxlite::{BoxInfo, BoxStatus, BoxliteRuntime, PortInfo};
use serde_json::{Value, json};

use crate::args::PsArgs;
use crate::exit::Failure;
use crate::filter::Filters;
use crate::output;
use crate::template::Template;

/// Columns of a command that are shown in a table.
const COMMAND: usize = 30;

/// Whether a box fits the value of a filter.
type Fits = fn(&BoxInfo, &str) -> bool;

/// The keys that filters have.
const FILTERS: &[(&str, Fits)] = &[
    ("id", |info, value| info.id.starts_with(value)),
    ("name", |info, value| info.name.as_ref().is_some_and(|name| name.contains(value))),
    ("label", |info, value| match value.split_once('=') {
        Some((key, value)) => info.labels.get(key).is_some_and(|have| have == value),
        None => info.labels.contains_key(value),
    }),
    ("status", |info, value| {
        // What Docker calls them fits as well.
        let status = match value {
            "created" => "configured",
            "exited" => "stopped",
            "dead" => "failed",
            other => other,
        };
        info.status.name() == status
    }),
    ("ancestor", |info, value| {
        let digest = info.image_digest.strip_prefix("sha256:").unwrap_or_default();
        let untagged = info.image.rsplit_once(':').map_or(info.image.as_str(), |(name, _)| name);
        info.image == value
            || untagged == value
            || info.image_digest == value
            || (value.len() >= 6 && digest.starts_with(value))
    }),
    ("health", |info, value| info.health_status().map_or("none", |status| status.name()) == value),
    ("exited", |info, value| {
        info.status == BoxStatus::Stopped && info.exit_code.is_some_and(|code| code.to_string() == value)
    }),
    ("restart", |info, value| {
        let policy = info.restart.to_string();
        policy == value || policy.split(':').next() == Some(value)
    }),
];

pub(crate) async fn run(runtime: &BoxliteRuntime, args: &PsArgs) -> Result<ExitCode, Failure> {
    let keys: Vec<&str> = FILTERS.iter().map(|(key, _)| *key).collect();
    let filters = Filters::parse(&args.filter, &keys).map_err(Failure::Told)?;
    let template = match args.format.as_str() {
        "table" | "json" => None,
        text => Some(Template::parse(text).map_err(Failure::Told)?),
    };
    let mut boxes = runtime.list_info().await?;
    // Whoever asks for boxes of a status means those that have it.
    let all = args.all || filters.has("status") || filters.has("exited");
    boxes.retain(|info| all || info.status.is_active());
    boxes.retain(|info| {
        filters.fit(|key, value| FILTERS.iter().any(|(known, fits)| *known == key && fits(info, value)))
    });
    match (args.quiet, &template) {
        (true, _) => {
            for info in &boxes {
                output::line(&info.id)?;
            }
        }
        (false, Some(template)) => {
            for info in &boxes {
                output::line(&template.fill(&docker(info)).map_err(Failure::Told)?)?;
            }
        }
        (false, None) if args.format == "json" => {
            output::json(&Value::Array(boxes.iter().map(as_json).collect()))?;
        }
        (false, None) => {
            let rows: Vec<_> = boxes.iter().map(row).collect();
            output::table(&["BOX ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAME"], &rows)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(info: &BoxInfo) -> Vec<String> {
    vec![
        info.id.clone(),
        info.image.clone(),
        command(info),
        output::ago(info.created_at),
        status(info),
        ports(info),
        info.name.clone().unwrap_or_default(),
    ]
}

/// As Docker shows them.
fn ports(info: &BoxInfo) -> String {
    let shown = |port: &PortInfo| format!("{}->{}/{}", port.host, port.guest_port, port.protocol.name());
    info.ports.iter().map(shown).collect::<Vec<_>>().join(", ")
}

fn command(info: &BoxInfo) -> String {
    let command: String = info.command.join(" ").escape_debug().to_string();
    let mut short: String = command.chars().take(COMMAND).collect();
    if short.len() < command.len() {
        short.push('…');
    }
    short
}

/// The fields that templates have, in Docker's words.
fn docker(info: &BoxInfo) -> Value {
    let labels: Vec<String> = info.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    json!({
        "ID": info.id,
        "Names": info.name.clone().unwrap_or_default(),
        "Image": info.image,
        "Command": command(info),
        "CreatedAt": crate::time::shown(info.created_at),
        "RunningFor": output::ago(info.created_at),
        "State": info.status.name(),
        "Status": status(info),
        "Health": info.health_status().map(|status| status.name()).unwrap_or_default(),
        "Labels": labels.join(","),
        "ExitCode": info.exit_code.map(|code| code.to_string()).unwrap_or_default(),
        "Restarts": info.restart_count,
        "Ports": ports(info),
    })
}

/// What a box does, in words for people.
pub(crate) fn status(info: &BoxInfo) -> String {
    let since = |time: SystemTime| output::span(SystemTime::now().duration_since(time).unwrap_or_default());
    let health = match info.health_status() {
        Some(status) if status.name() == "starting" => " (health: starting)".to_owned(),
        Some(status) => format!(" ({})", status.name()),
        None => String::new(),
    };
    match (info.status, info.started_at, info.ended_at) {
        (BoxStatus::Running, Some(start), _) => format!("Up {}{health}", since(start)),
        (BoxStatus::Paused, Some(start), _) => format!("Up {} (Paused)", since(start)),
        (BoxStatus::Restarting, ..) => {
            let code = info.exit_code.map_or("failed".to_owned(), |code| code.to_string());
            format!("Restarting ({code})")
        }
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

/// All that is known of a box.
fn mounts(info: &BoxInfo) -> Vec<Value> {
    let shown = |mount: &boxlite::MountInfo| {
        json!({
            "type": mount.kind,
            "source": mount.source,
            "target": mount.guest_path,
            "read_only": mount.read_only,
        })
    };
    info.mounts.iter().map(shown).collect()
}

pub(crate) fn as_json(info: &BoxInfo) -> Value {
    let health = info.health.as_ref().map(|health| {
        let probes: Vec<Value> = health
            .probes
            .iter()
            .map(|probe| {
                json!({
                    "started_at": output::unix_seconds(probe.started_at),
                    "ended_at": output::unix_seconds(probe.ended_at),
                    "exit_code": probe.exit_code,
                    "output": probe.output,
                })
            })
            .collect();
        json!({ "status": health.status.name(), "failing_streak": health.failing_streak, "probes": probes })
    });
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
        "next_start_at": info.next_start_at.map(output::unix_seconds),
        "pid": info.pid,
        "engine": info.engine,
        "cpus": info.cpus,
        "memory_mib": info.memory_mib,
        "exit_code": info.exit_code,
        "stop_reason": info.stop_reason.map(|reason| reason.name()),
        "error": info.error,
        "console_tail": info.console_tail,
        "health": health,
        "labels": info.labels,
        "mounts": mounts(info),
        "network": info.network.as_ref().map(super::network::policy),
        "ports": info.ports.iter().map(super::network::shown).collect::<Vec<_>>(),
        "restart": info.restart.to_string(),
        "restart_count": info.restart_count,
        "auto_stop": info.auto_stop.map(|time| time.as_secs_f64()),
        "max_duration": info.max_duration.map(|time| time.as_secs_f64()),
        "auto_remove": info.auto_remove,
        "detach": info.detach,
        "tty": info.tty,
    })
}
