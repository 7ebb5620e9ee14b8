//! `boxlite doctor`

use std::io::IsTerminal;
use std::process::ExitCode;

use boxlite::{BoxliteRuntime, Health};
use serde_json::json;

use crate::args::{Format, FormatArgs};
use crate::exit::Failure;
use crate::output;

pub(crate) async fn run(runtime: &BoxliteRuntime, args: &FormatArgs) -> Result<ExitCode, Failure> {
    let found = runtime.diagnose().await?;
    if args.format == Format::Json {
        let check = |check: &boxlite::Check| json!({"name": check.name, "health": check.health.name(), "message": check.message, "hint": check.hint});
        let checks: Vec<_> = found.checks.iter().map(check).collect();
        output::json(&json!({"can_run": found.can_run(), "engine": found.engine, "checks": checks}))?;
    } else {
        let color =
            std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        for check in &found.checks {
            let (mark, shade) = match check.health {
                Health::Good => ("ok", "32"),
                Health::Notice => ("note", "33"),
                _ => ("MISSING", "31"),
            };
            let padded = format!("{mark:7}");
            let mark = if color { format!("\x1b[{shade}m{padded}\x1b[0m") } else { padded };
            output::line(&format!("{mark} {}: {}", check.name, check.message))?;
            if let Some(hint) = &check.hint {
                output::line(&format!("        hint: {hint}"))?;
            }
        }
        let verdict = match &found.engine {
            Some(engine) if found.can_run() => format!("boxes can run here, on the {engine} engine"),
            _ => "boxes cannot run here".to_owned(),
        };
        output::line(&verdict)?;
    }
    Ok(if found.can_run() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
