//! The state of a box, published.
//!
//! There is one value, with a generation. Everybody who listens gets the newest value that he has not seen: a slow listener
//! skips what is no longer true and holds nobody up. The final one is the last.

use std::cell::Cell;

use boxlite_control::{BoxFiles, Phase, State, StatusFile, StatusUpdate, frame};
use tokio::io::AsyncWrite;
use tokio::sync::watch;

/// The one writer of a box's state.
#[derive(Debug)]
pub(super) struct Publisher {
    updates: watch::Sender<StatusUpdate>,
    files: BoxFiles,
    restarts: Cell<u32>,
}

impl Publisher {
    /// Publishes the first state. For the holder of the box's lock only.
    pub(super) fn start(files: &BoxFiles, step: &str) -> Self {
        let state = State::Starting { step: step.to_owned() };
        let first = StatusUpdate { generation: 1, restarts: 0, state };
        let updates = watch::Sender::new(first.clone());
        let publisher = Self { updates, files: files.clone(), restarts: Cell::new(0) };
        publisher.write(&first);
        publisher
    }

    /// Publishes the next state.
    pub(super) fn publish(&self, state: State) {
        let generation = self.updates.borrow().generation + 1;
        let update = StatusUpdate { generation, restarts: self.restarts.get(), state };
        // The steps of a boot come in quick succession and mean nothing to who comes later.
        if !matches!(update.state, State::Starting { .. }) {
            log(&update.state);
            self.write(&update);
        }
        self.updates.send_replace(update);
    }

    /// The restart policy has started the box so often; told with the next state.
    pub(super) fn restarts(&self, restarts: u32) {
        self.restarts.set(restarts);
    }

    /// What was published last, as far as orders are concerned.
    pub(super) fn phase(&self) -> Phase {
        self.updates.borrow().state.phase()
    }

    /// Listens from now on.
    pub(super) fn subscribe(&self) -> watch::Receiver<StatusUpdate> {
        self.updates.subscribe()
    }

    fn write(&self, update: &StatusUpdate) {
        if let Err(error) = StatusFile::write(&self.files, update) {
            tracing::error!(%error, "cannot write the box's state");
        }
    }
}

fn log(state: &State) {
    match state {
        State::Starting { step } => tracing::info!(step, "the box starts"),
        State::Running { .. } => tracing::info!("the box runs"),
        State::Paused { .. } => tracing::info!("the box is paused"),
        State::Restarting { last, .. } => tracing::info!(?last, "the box will run again"),
        State::Stopping => tracing::info!("the box stops"),
        State::Stopped { exit, reason, .. } => tracing::info!(?exit, ?reason, "the box has stopped"),
        // The console has a log of its own.
        State::Failed { error, .. } => {
            tracing::error!(kind = ?error.kind, error = error.messages.join(": "), "the box has failed");
        }
    }
}

/// Sends the state now and each one after it that there is time for, until the final one. `wrap` makes the message.
pub(super) async fn follow<S: AsyncWrite + Unpin, T: serde::Serialize>(
    mut updates: watch::Receiver<StatusUpdate>,
    stream: &mut S,
    wrap: impl Fn(StatusUpdate) -> T,
) -> Result<(), frame::FrameError> {
    loop {
        let update = updates.borrow_and_update().clone();
        let last = update.state.is_final();
        frame::send(stream, &wrap(update)).await?;
        // The publisher goes only after the final state.
        if last || updates.changed().await.is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use boxlite_control::EndReason;
    use std::fs;

    fn publisher() -> (tempfile::TempDir, BoxFiles, Publisher) {
        let folder = tempfile::tempdir().unwrap();
        let files = BoxFiles::new(folder.path());
        let publisher = Publisher::start(&files, "engine");
        (folder, files, publisher)
    }

    fn file(files: &BoxFiles) -> StatusFile {
        serde_json::from_slice(&fs::read(files.state()).unwrap()).unwrap()
    }

    fn step(step: &str) -> State {
        State::Starting { step: step.to_owned() }
    }

    const STOPPED: State = State::Stopped { exit: None, reason: EndReason::Exited, ended_unix_nanos: 1 };

    #[test]
    fn the_file_has_the_last_state_and_nothing_lies_beside_it() {
        let (folder, files, publisher) = publisher();
        assert_eq!(file(&files).update, StatusUpdate { generation: 1, restarts: 0, state: step("engine") });
        publisher.publish(State::Stopping);
        publisher.publish(STOPPED);
        assert_eq!(file(&files).update, StatusUpdate { generation: 3, restarts: 0, state: STOPPED });
        assert_eq!(file(&files).monitor_pid, std::process::id());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_slow_listener_gets_the_newest_state_and_always_the_final_one() {
        let (_keep, _files, publisher) = publisher();
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        let updates = publisher.subscribe();
        let follower = tokio::spawn(async move { follow(updates, &mut ours, |update| update).await });
        let first: StatusUpdate = frame::receive(&mut theirs).await.unwrap().unwrap();
        assert_eq!(first.generation, 1);
        for number in 0..100 {
            publisher.publish(step(&number.to_string()));
        }
        publisher.publish(STOPPED);
        let mut last = first;
        while let Some(update) = frame::receive::<StatusUpdate, _>(&mut theirs).await.unwrap() {
            assert!(update.generation > last.generation);
            last = update;
        }
        assert_eq!(last, StatusUpdate { generation: 102, restarts: 0, state: STOPPED });
        follower.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_comes_after_the_end_gets_the_end() {
        let (_keep, _files, publisher) = publisher();
        publisher.publish(STOPPED);
        let mut wire = Vec::new();
        follow(publisher.subscribe(), &mut wire, |update| update).await.unwrap();
        let update: StatusUpdate = frame::receive(&mut wire.as_slice()).await.unwrap().unwrap();
        assert_eq!(update.state, STOPPED);
    }
}
