//! `boxlite events`

use std::process::ExitCode;

use boxlite::{BoxEvent, BoxEventKind, BoxliteRuntime, EventOptions};
use serde_json::{Value, json};

use super::find;
use crate::args::{EventsArgs, Format};
use crate::exit::Failure;
use crate::filter::Filters;
use crate::{output, time};

/// The keys that filters have.
const KEYS: [&str; 3] = ["box", "event", "image"];

pub(crate) async fn run(runtime: &BoxliteRuntime, args: EventsArgs) -> Result<ExitCode, Failure> {
    let filters = Filters::parse(&args.filter, &KEYS).map_err(Failure::Told)?;
    // One that has gone is still known by what it was called.
    let mut known = Vec::new();
    for text in args.filter.iter().filter_map(|text| text.strip_prefix("box=")) {
        if let Ok(found) = find(runtime, text).await {
            known.push((text.to_owned(), found.id().to_owned()));
        }
    }
    let options = EventOptions { since: args.since, until: args.until, target: None };
    let mut events = runtime.events(options)?;
    while let Some(event) = events.next().await? {
        let fits = filters.fit(|key, value| match key {
            "box" => {
                let id = known.iter().find(|(text, _)| text == value).map(|(_, id)| id.as_str());
                event.box_id == id.unwrap_or(value) || event.name.as_deref() == Some(value)
            }
            "event" => event.kind.name() == value,
            _ => event.image == value,
        });
        if fits {
            output::line(&match args.format.format {
                // One document a line: there is no end to wait for.
                Format::Json => as_json(&event).to_string(),
                Format::Table => sentence(&event),
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn sentence(event: &BoxEvent) -> String {
    let mut about = vec![format!("image={}", event.image)];
    about.extend(event.name.as_ref().map(|name| format!("name={name}")));
    if let Value::Object(details) = details(&event.kind) {
        about.extend(details.into_iter().filter(|(_, value)| !value.is_null()).map(
            |(key, value)| match value {
                Value::String(text) => format!("{key}={text}"),
                other => format!("{key}={other}"),
            },
        ));
    }
    format!("{} box {} {} ({})", time::shown(event.time), event.kind.name(), event.box_id, about.join(", "))
}

fn as_json(event: &BoxEvent) -> Value {
    let mut all = json!({
        "time": output::unix_seconds(event.time),
        "event": event.kind.name(),
        "id": event.box_id,
        "name": event.name,
        "image": event.image,
    });
    if let (Value::Object(all), Value::Object(details)) = (&mut all, details(&event.kind)) {
        all.extend(details);
    }
    all
}

fn details(kind: &BoxEventKind) -> Value {
    match kind {
        BoxEventKind::Started { restarts } => json!({ "restarts": restarts }),
        BoxEventKind::Health { status } => json!({ "health": status.name() }),
        BoxEventKind::ExecStarted { execution_id, command } => {
            json!({ "exec_id": execution_id, "command": command.join(" ") })
        }
        BoxEventKind::ExecExited { execution_id, exit_code } => {
            json!({ "exec_id": execution_id, "exit_code": exit_code })
        }
        BoxEventKind::ExecFailed { execution_id, command, message } => {
            json!({ "exec_id": execution_id, "command": command.join(" "), "error": message })
        }
        BoxEventKind::OutOfMemory { total } => json!({ "killed": total }),
        BoxEventKind::Signalled { signal } => json!({ "signal": signal }),
        BoxEventKind::Exited { exit_code, reason, error, restart_millis } => json!({
            "exit_code": exit_code,
            "reason": reason.map(|reason| reason.name()),
            "error": error,
            "restart_millis": restart_millis,
        }),
        BoxEventKind::NetDenied { protocol, to, name, why, unreported } => json!({
            "protocol": protocol,
            "to": to,
            "host": name,
            "why": why,
            "unreported": (*unreported > 0).then_some(unreported),
        }),
        BoxEventKind::Renamed { from } => json!({ "from": from }),
        _ => json!({}),
    }
}
