//! `boxlite stats` and `boxlite metrics`

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use boxlite::{BoxStats, BoxStatus, BoxliteRuntime, LiteBox};
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::find;
use crate::args::{Format, MetricsArgs, StatsArgs};
use crate::exit::{self, Failure};
use crate::output;

/// Between two looks: what the use of the CPU is reckoned from.
const LOOK: Duration = Duration::from_secs(1);
/// The same when there is only one line to be shown.
const QUICK_LOOK: Duration = Duration::from_millis(500);
/// Clears a terminal and goes to its first line.
const CLEAR: &str = "\x1b[2J\x1b[H";

pub(crate) async fn run(runtime: &BoxliteRuntime, args: StatsArgs) -> Result<ExitCode, Failure> {
    let mut before = look(runtime, &args).await?;
    loop {
        tokio::time::sleep(if args.no_stream { QUICK_LOOK } else { LOOK }).await;
        let now = look(runtime, &args).await?;
        if !args.no_stream && args.format.format == Format::Table && std::io::stdout().is_terminal() {
            write!(std::io::stdout(), "{CLEAR}")?;
        }
        let lines: Vec<Line<'_>> = now
            .iter()
            .map(|(target, stats)| {
                let earlier = before.iter().find(|(other, _)| other.id() == target.id());
                let cpu = stats.as_ref().zip(earlier.and_then(|(_, stats)| stats.as_ref()));
                Line {
                    target,
                    stats: stats.as_ref(),
                    cpu: cpu.and_then(|(now, then)| now.cpu_percent_since(then)),
                }
            })
            .collect();
        match args.format.format {
            Format::Json => {
                output::line(&Value::Array(lines.iter().map(Line::as_json).collect()).to_string())?
            }
            Format::Table => {
                let rows: Vec<_> = lines.iter().map(Line::row).collect();
                let header =
                    ["BOX ID", "NAME", "CPU", "MEMORY / LIMIT", "HOST MEMORY", "DISK I/O", "PROCESSES"];
                output::table(&header, &rows)?;
            }
        }
        drop(lines);
        if args.no_stream {
            return Ok(ExitCode::SUCCESS);
        }
        before = now;
    }
}

/// The boxes that are asked for, and what each uses; `None` for one that does not run.
async fn look(
    runtime: &BoxliteRuntime,
    args: &StatsArgs,
) -> Result<Vec<(LiteBox, Option<BoxStats>)>, Failure> {
    let mut targets = Vec::new();
    if args.targets.is_empty() {
        for info in runtime.list_info().await? {
            let runs = matches!(info.status, BoxStatus::Running | BoxStatus::Paused);
            // One that has gone meanwhile is not asked for.
            if let Some(found) = if runs { runtime.get(&info.id).await? } else { None } {
                targets.push(found);
            }
        }
    } else {
        for target in &args.targets {
            targets.push(find(runtime, target).await?);
        }
    }
    Ok(join_all(targets.into_iter().map(|target| async move {
        let stats = target.stats().await;
        if let Err(error) = &stats
            && !matches!(error.kind(), boxlite::ErrorKind::Stopped | boxlite::ErrorKind::NotFound)
        {
            exit::message(&error.report());
        }
        (target, stats.ok())
    }))
    .await)
}

struct Line<'a> {
    target: &'a LiteBox,
    stats: Option<&'a BoxStats>,
    cpu: Option<f64>,
}

impl Line<'_> {
    fn row(&self) -> Vec<String> {
        let none = || "-".to_owned();
        let guest = self.stats.and_then(|stats| stats.guest.as_ref());
        vec![
            self.target.id().to_owned(),
            self.target.name().unwrap_or_default().to_owned(),
            self.cpu.map_or_else(none, |percent| format!("{percent:.1}%")),
            guest.map_or_else(none, |guest| {
                format!("{} / {}", output::bytes(guest.memory_bytes), output::bytes(guest.memory_total_bytes))
            }),
            self.stats.map_or_else(none, |stats| output::bytes(stats.host_memory_bytes)),
            guest.map_or_else(none, |guest| {
                format!(
                    "{} / {}",
                    output::bytes(guest.disk_read_bytes),
                    output::bytes(guest.disk_written_bytes)
                )
            }),
            guest.map_or_else(none, |guest| guest.tasks.to_string()),
        ]
    }

    fn as_json(&self) -> Value {
        let guest = self.stats.and_then(|stats| stats.guest.as_ref()).map(|guest| {
            json!({
                "cpu_seconds": guest.cpu.as_secs_f64(),
                "memory_bytes": guest.memory_bytes,
                "memory_total_bytes": guest.memory_total_bytes,
                "memory_available_bytes": guest.memory_available_bytes,
                "tasks": guest.tasks,
                "disk_read_bytes": guest.disk_read_bytes,
                "disk_written_bytes": guest.disk_written_bytes,
                "disk_total_bytes": guest.disk_total_bytes,
                "disk_used_bytes": guest.disk_used_bytes,
                "oom_kills": guest.oom_kills,
                "executions": guest.executions,
            })
        });
        json!({
            "id": self.target.id(),
            "name": self.target.name(),
            "cpu_percent": self.cpu,
            "host_cpu_seconds": self.stats.map(|stats| stats.host_cpu.as_secs_f64()),
            "host_memory_bytes": self.stats.map(|stats| stats.host_memory_bytes),
            "commands_executed": self.stats.map(|stats| stats.commands_executed),
            "exec_errors": self.stats.map(|stats| stats.exec_errors),
            "guest": guest,
        })
    }
}

pub(crate) async fn metrics(runtime: &BoxliteRuntime, args: MetricsArgs) -> Result<ExitCode, Failure> {
    match args.listen {
        None => {
            let text = runtime.prometheus().await?;
            std::io::stdout().lock().write_all(text.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Some(address) => {
            let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
            let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
            let ready = |at: &str| exit::message(&format!("serving metrics at {at}"));
            tokio::select! {
                served = runtime.serve_metrics(&address, ready) => served.map(|()| ExitCode::SUCCESS).map_err(Failure::from),
                // The socket goes with the server.
                _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
                _ = terminate.recv() => Ok(ExitCode::SUCCESS),
            }
        }
    }
}
