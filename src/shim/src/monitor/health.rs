//! Asks a running box, time and again, whether it is well.

use std::time::Duration;

use boxlite_control::{Health, HealthProbe, HealthSpec, PROBE_OUTPUT};
use boxlite_portal::client::Portal;
use boxlite_portal::v1;
use boxlite_portal::v1::attach_response::Event;
use boxlite_portal::v1::exec_response::Outcome;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::agent::words;
use super::driver::News;
use super::unix_nanos;
use crate::text;

/// How much longer than its own limit a probe may take: the guest ends it, and has to say so.
const SLACK: Duration = Duration::from_secs(5);

/// Probes until it is dropped. `up_since`: when the main command has started.
pub(super) async fn watch(
    portal: Portal,
    spec: HealthSpec,
    mut health: Health,
    up_since: Instant,
    news: mpsc::Sender<News>,
) {
    let start_period = Duration::from_millis(spec.start_period_millis);
    let mut number = 0_u64;
    loop {
        let in_start_period = up_since.elapsed() < start_period;
        let pause = if in_start_period { spec.start_interval_millis } else { spec.interval_millis };
        sleep(Duration::from_millis(pause)).await;
        let in_start_period = up_since.elapsed() < start_period;
        number += 1;
        // Unlike those of every user, whose ids are hexadecimal, and different after each pause.
        let id = format!("health-{}-{number}", unix_nanos());
        let started_unix_nanos = unix_nanos();
        let (exit_code, output) = probe(&portal, &spec, id).await;
        let probe = HealthProbe { started_unix_nanos, ended_unix_nanos: unix_nanos(), exit_code, output };
        health.take(probe, spec.retries, in_start_period);
        if news.send(News::Health(health.clone())).await.is_err() {
            return;
        }
    }
}

/// Exit code and output of one probe.
async fn probe(portal: &Portal, spec: &HealthSpec, id: String) -> (i32, String) {
    let limit = Duration::from_millis(spec.timeout_millis);
    let asked = async {
        if spec.command.is_empty() {
            return match portal.guest().ping(v1::PingRequest {}).await {
                Ok(_) => Ok((0, String::new())),
                Err(status) => Err(words(&status).join(": ")),
            };
        }
        run(portal, spec, id).await
    };
    let limit = if spec.command.is_empty() { limit } else { limit.saturating_add(SLACK) };
    match timeout(limit, asked).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(why)) => (-1, why),
        Err(_) => (-1, format!("no answer within {limit:?}")),
    }
}

async fn run(portal: &Portal, spec: &HealthSpec, id: String) -> Result<(i32, String), String> {
    let told = |status: tonic::Status| words(&status).join(": ");
    let args = spec.command.iter().map(|word| word.clone().into_bytes()).collect();
    let request = v1::ExecRequest {
        execution_id: id.clone(),
        process: Some(v1::ProcessSpec { args, ..Default::default() }),
        timeout_millis: spec.timeout_millis.max(1),
        quiet: true,
        ..Default::default()
    };
    match portal.execution().exec(request).await.map_err(told)?.into_inner().outcome {
        Some(Outcome::Started(_)) => {}
        Some(Outcome::Failure(failure)) => {
            return Err(text::escape(failure.message.as_bytes(), PROBE_OUTPUT));
        }
        None => return Err("the agent does not say whether the probe runs".to_owned()),
    }
    let request = v1::AttachRequest { execution_id: id, observe: true, ..Default::default() };
    let mut stream = portal.execution().attach(request).await.map_err(told)?.into_inner();
    let mut output = Vec::new();
    loop {
        match stream.message().await.map_err(told)?.and_then(|message| message.event) {
            Some(Event::Output(chunk)) => {
                let room = PROBE_OUTPUT.saturating_sub(output.len());
                output.extend_from_slice(&chunk.data[..chunk.data.len().min(room)]);
            }
            Some(Event::Exit(exit)) => {
                let shown = text::escape(output.trim_ascii_end(), PROBE_OUTPUT);
                return Ok(match exit.status {
                    _ if exit.timed_out => {
                        (-1, format!("the probe took longer than {} ms: {shown}", spec.timeout_millis))
                    }
                    Some(v1::exit::Status::Code(code)) => (code.clamp(0, 255), shown),
                    Some(v1::exit::Status::Signal(signal)) => {
                        (128 + i32::try_from(signal.clamp(1, 64)).unwrap_or(0), shown)
                    }
                    None => (-1, "the agent does not say how the probe ended".to_owned()),
                });
            }
            None => return Err("the agent ended a stream without an exit".to_owned()),
        }
    }
}
