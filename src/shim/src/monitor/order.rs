//! What somebody wants of the box, on its way to the one task that changes it, and the answer on its way back.

use std::time::Duration;

use boxlite_control::{BoxStats, EndReason, NetStats, NetworkPolicy, Update};
use tokio::sync::oneshot;

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// The next run is to begin at once.
    Start,
    /// The box is to end.
    Stop {
        /// For the main command; 0 kills at once.
        signal: u32,
        /// Between that and SIGKILL.
        grace: Duration,
        /// Why.
        reason: EndReason,
    },
    /// The box is to end and to run again.
    Restart {
        /// As for a stop.
        signal: u32,
        /// As for a stop.
        grace: Duration,
    },
    /// A signal for the main command, 1 to 64.
    Signal(u32),
    /// The virtual CPUs are to stand still.
    Pause,
    /// They are to go on.
    Resume,
    /// Settings.
    Update(Update),
    /// What does the box use?
    Stats,
    /// Another policy for the network.
    NetworkPolicy(NetworkPolicy),
    /// What goes over the network?
    Network,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It was done, or has begun.
    Done,
    /// The answer to [`Command::Stats`].
    Stats(Box<BoxStats>),
    /// The answer to [`Command::Network`].
    Network(Box<NetStats>, NetworkPolicy),
    /// The state does not allow it.
    Refused(String),
    /// It was tried.
    Failed(String),
}

/// A command, and who waits for the answer.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) command: Command,
    pub(super) reply: Reply,
}

/// Where an answer goes.
#[derive(Debug, Default)]
pub(super) struct Reply(Option<oneshot::Sender<Answer>>);

impl Reply {
    /// Answers. Who has gone meanwhile does not want to know.
    pub(super) fn send(self, answer: Answer) {
        if let Some(sender) = self.0 {
            drop(sender.send(answer));
        }
    }
}

impl Order {
    /// An order that is answered.
    pub(super) fn new(command: Command) -> (Self, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        (Self { command, reply: Reply(Some(sender)) }, receiver)
    }

    /// An order whose answer nobody waits for.
    pub(super) fn unasked(command: Command) -> Self {
        Self { command, reply: Reply::default() }
    }
}
