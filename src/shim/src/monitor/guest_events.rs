//! What the agent says that happens in the box. Its words are cut and escaped before anybody keeps them.

use boxlite_control::{EventKind, event};
use boxlite_portal::client::Portal;
use boxlite_portal::v1;
use boxlite_portal::v1::guest_event::Event;
use tokio::sync::mpsc;

use super::agent;
use super::driver::News;
use crate::text;

/// The longest word of a command that is kept, in bytes, and how many there are at most.
const WORD: usize = 1 << 10;
const WORDS: usize = 64;

/// What one message of the agent means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Whether anything is done in the box besides its main command.
    Busy(bool),
    /// Something for the journal.
    Happened(EventKind),
}

/// Listens until the connection ends, or it is dropped.
pub(super) async fn follow(portal: Portal, news: mpsc::Sender<News>) {
    let mut stream = match portal.guest().events(v1::EventsRequest {}).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => {
            tracing::warn!(why = agent::words(&status).join(": "), "the agent tells no events");
            return;
        }
    };
    let mut missed = false;
    while let Ok(Some(message)) = stream.message().await {
        // Said once: a guest can claim it as often as it likes.
        if let (false, Some(Event::Missed(some))) = (missed, &message.event) {
            tracing::warn!(events = some.events, "events of the guest were missed");
            missed = true;
        }
        let Some(told) = message.event.and_then(read) else { continue };
        if news.send(News::Guest(told)).await.is_err() {
            return;
        }
    }
}

fn read(event: Event) -> Option<Told> {
    Some(Told::Happened(match event {
        Event::Activity(v1::Activity { executions, attached }) => {
            return Some(Told::Busy(executions > 0 || attached > 0));
        }
        Event::ExecStarted(started) => EventKind::ExecStarted {
            execution_id: id(&started.execution_id),
            command: command(&started.args),
        },
        Event::ExecExited(exited) => {
            EventKind::ExecExited { execution_id: id(&exited.execution_id), exit: agent::exit(exited.exit)? }
        }
        Event::ExecFailed(failed) => EventKind::ExecFailed {
            execution_id: id(&failed.execution_id),
            command: command(&failed.args),
            message: text::escape(failed.failure.unwrap_or_default().message.as_bytes(), WORD),
        },
        Event::OomKilled(killed) => EventKind::Oom { total: killed.total },
        Event::Missed(_) => return None,
    }))
}

fn id(id: &str) -> String {
    text::escape(id.as_bytes(), boxlite_portal::limits::EXECUTION_ID)
}

fn command(args: &[Vec<u8>]) -> Vec<String> {
    event::cut_command(args.iter().take(WORDS).map(|word| text::escape(word, WORD)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_guest_are_escaped_and_bounded() {
        let args = vec![b"\x1b[2J".to_vec(); 10_000];
        let started = v1::ExecStarted { execution_id: "\n".repeat(1000), args };
        let Some(Told::Happened(EventKind::ExecStarted { execution_id, command })) =
            read(Event::ExecStarted(started))
        else {
            panic!("no event")
        };
        assert!(execution_id.len() < 200 && !execution_id.contains('\n'));
        assert!(
            command.len() <= WORDS && command.concat().len() < 5000 && !command.concat().contains('\x1b')
        );
    }

    #[test]
    fn an_end_without_an_exit_is_no_event() {
        assert_eq!(read(Event::ExecExited(v1::ExecExited::default())), None);
    }
}
