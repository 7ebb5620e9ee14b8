//! The boot channel: what the agent says before it can be asked.
//!
//! Everything here comes from the guest. It is bounded in size and number, and shown escaped.

use std::time::Duration;

use boxlite_control::FailureKind;
use boxlite_portal::v1::boot_report::Report;
use boxlite_portal::{boot, hello};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::machine::{Event, Failure};
use super::sockets::SocketFile;
use crate::text;

/// The most reports of one boot.
const MOST_REPORTS: usize = 256;
/// The longest step, in bytes.
const STEP: usize = 64;
/// The longest reason for a failed boot, in bytes.
const REASON: usize = 2 << 10;
/// When a channel breaks, the VMM has often ended, which is about to be noticed and tells more.
pub(super) const FOR_A_BETTER_REASON: Duration = Duration::from_secs(1);

/// Takes the one connection of the boot channel and turns its reports into events. The deadline is the machine's.
pub(super) async fn listen((listener, file): (UnixListener, SocketFile), events: mpsc::Sender<Event>) {
    let event = match listener.accept().await {
        Ok((stream, _)) => {
            // There is one boot, so nobody else gets in.
            drop((listener, file));
            follow(stream, &events).await
        }
        Err(error) => failed(vec!["cannot accept the boot channel".to_owned(), error.to_string()]),
    };
    if let Event::Failed(_) = event {
        tokio::time::sleep(FOR_A_BETTER_REASON).await;
    }
    // When nobody takes events any more, the box has ended.
    drop(events.send(event).await);
}

/// Reads reports up to the last one, and returns what that means.
async fn follow(mut stream: UnixStream, events: &mpsc::Sender<Event>) -> Event {
    match hello::receive(&mut stream).await {
        Ok(agent) => tracing::info!(build = agent.build, version = agent.version, "the agent has come up"),
        Err(error) => return broken(&error),
    }
    for _ in 0..MOST_REPORTS {
        let report = match boot::receive(&mut stream).await {
            Ok(Some(report)) => report.report,
            Ok(None) => return failed(vec!["the agent ended its boot without a word".to_owned()]),
            Err(error) => return broken(&error),
        };
        match report {
            Some(Report::Step(step)) => {
                // When nobody takes events any more, the box has ended.
                drop(events.send(Event::Step(text::escape(step.as_bytes(), STEP))).await);
            }
            Some(Report::Ready(ready)) => {
                let millis = ready.since_kernel_nanos / 1_000_000;
                tracing::info!(millis, "the guest has booted");
                return Event::Ready;
            }
            Some(Report::Failure(reason)) => {
                let reason = text::escape(reason.as_bytes(), REASON);
                return failed(vec!["the guest could not boot".to_owned(), reason]);
            }
            // A report that a later version knows.
            None => {}
        }
    }
    failed(vec![format!("the agent did not boot in {MOST_REPORTS} steps")])
}

fn broken(error: &dyn std::error::Error) -> Event {
    let mut messages = vec!["the boot channel broke".to_owned()];
    messages.extend(text::chain(error));
    failed(messages)
}

fn failed(messages: Vec<String>) -> Event {
    Event::Failed(Failure { kind: FailureKind::Boot, messages, hint: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use boxlite_portal::v1::{BootReport, Ready};
    use tokio::io::AsyncWriteExt;

    async fn heard(bytes: Vec<u8>) -> Vec<Event> {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (sender, mut receiver) = mpsc::channel(2 * MOST_REPORTS);
        let writer = tokio::spawn(async move {
            // The other side may have heard enough.
            drop(guest.write_all(&bytes).await);
        });
        let last = follow(host, &sender).await;
        drop(sender);
        writer.await.unwrap();
        let mut events = Vec::new();
        while let Some(event) = receiver.recv().await {
            events.push(event);
        }
        events.push(last);
        events
    }

    async fn wire(reports: Vec<Report>) -> Vec<u8> {
        let mut wire = hello::Hello::new("agent").encode();
        for report in reports {
            boot::send(&mut wire, &BootReport { report: Some(report) }).await.unwrap();
        }
        wire
    }

    #[tokio::test]
    async fn steps_are_escaped_and_lead_to_ready() {
        let reports = vec![Report::Step("a\x1b[2J".into()), Report::Ready(Ready { since_kernel_nanos: 1 })];
        let events = heard(wire(reports).await).await;
        assert_eq!(events, [Event::Step("a\\u{1b}[2J".into()), Event::Ready]);
    }

    #[tokio::test]
    async fn a_failure_says_what_the_agent_said() {
        let events = heard(wire(vec![Report::Failure("no disk".into())]).await).await;
        let [Event::Failed(failure)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!(failure.messages, ["the guest could not boot", "no disk"]);
    }

    #[tokio::test]
    async fn a_boot_without_end_is_a_failure_after_so_many_steps() {
        let events = heard(wire(vec![Report::Step("again".into()); 2 * MOST_REPORTS]).await).await;
        assert_eq!(events.len(), MOST_REPORTS + 1);
        assert!(matches!(events.last(), Some(Event::Failed(_))));
    }

    #[tokio::test]
    async fn silence_noise_and_huge_reports_are_failures() {
        let greeted = hello::Hello::new("agent").encode();
        let huge = [greeted.as_slice(), &[0xff; 4]].concat();
        for bytes in [Vec::new(), b"GET / HTTP/1.1\r\n\r\n".to_vec(), greeted, huge] {
            let events = heard(bytes).await;
            assert!(matches!(events.as_slice(), [Event::Failed(_)]), "{events:?}");
        }
    }
}
