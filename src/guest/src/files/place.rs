//! Where files are worked on: threads inside the container's mount namespace.
//!
//! Each piece of work has a thread of its own, because a file system may answer slowly or never (one in user space, say),
//! and because a thread that has entered another namespace is good for nothing else. How many there are is bounded;
//! who comes then waits for a turn, up to a limit.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::error::{FileError, Kind};

/// The most pieces of work at a time.
const THREADS: usize = 32;
/// How long one may wait for its turn.
const TURN: Duration = Duration::from_secs(30);
/// Enough for walks that keep their place on the heap.
const STACK: usize = 512 << 10;

/// The container's mount namespace. Clones share the bound.
#[derive(Clone, Debug)]
pub struct Place {
    /// `None`: the agent's own namespace.
    namespace: Option<Arc<OwnedFd>>,
    turns: Arc<Semaphore>,
}

/// A turn to work.
#[derive(Debug)]
pub struct Turn {
    place: Place,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// The namespace of a process of the container.
    ///
    /// # Errors
    /// When the process has gone.
    pub fn of(process: Pid) -> io::Result<Self> {
        let namespace = File::open(format!("/proc/{process}/ns/mnt"))?;
        Ok(Self { namespace: Some(Arc::new(namespace.into())), turns: Arc::new(Semaphore::new(THREADS)) })
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// When all others take too long.
    pub async fn turn(&self) -> Result<Turn, FileError> {
        let turn = tokio::time::timeout(TURN, Arc::clone(&self.turns).acquire_owned()).await;
        match turn {
            Ok(Ok(permit)) => Ok(Turn { place: self.clone(), _permit: permit }),
            _ => Err(FileError::new(Kind::NoSpace, "too many files are worked on at the same time")),
        }
    }

    /// Does some work inside and gives its result.
    ///
    /// # Errors
    /// That of the work, or when the namespace cannot be entered.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let (result, done) = oneshot::channel();
        self.turn().await?.start(move |entered| {
            let outcome = entered.and_then(|()| work());
            // A caller that has gone does not want it.
            drop(result.send(outcome));
        })?;
        done.await.unwrap_or_else(|_| Err(FileError::new(Kind::Other, "the work on a file was abandoned")))
    }

    fn enter(&self) -> Result<(), FileError> {
        let failed = |errno: nix::errno::Errno| {
            FileError::new(Kind::Other, format!("cannot enter the container: {}", errno.desc()))
        };
        let Some(namespace) = &self.namespace else { return Ok(()) };
        // The kernel moves only threads that share root and working directory with no other.
        unshare(CloneFlags::CLONE_FS).map_err(failed)?;
        setns(namespace, CloneFlags::CLONE_NEWNS).map_err(failed)
    }

    /// The agent's own view, for tests.
    #[cfg(test)]
    pub(crate) fn here() -> Self {
        Self { namespace: None, turns: Arc::new(Semaphore::new(THREADS)) }
    }
}

impl Turn {
    /// Starts work on a thread inside; it is told whether it is there.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(self, work: impl FnOnce(Result<(), FileError>) + Send + 'static) -> Result<(), FileError> {
        Self::outside(move || {
            // All of it, so that the turn lasts as long as the work.
            let turn = self;
            work(turn.place.enter());
        })
    }

    /// Starts work that needs no turn, on a thread that stays outside.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn outside(work: impl FnOnce() + Send + 'static) -> Result<(), FileError> {
        let thread = std::thread::Builder::new().name("files".into()).stack_size(STACK);
        let spawned = thread.spawn(work);
        spawned.map(drop).map_err(|error| FileError::system("start a thread for", b"files", &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_gives_its_result_and_its_turn_back() {
        let place = Place::here();
        for _ in 0..2 * THREADS {
            assert_eq!(place.run(|| Ok(7)).await, Ok(7));
        }
        let failure = FileError::new(Kind::NotFound, "gone");
        let expected = Err::<(), _>(failure.clone());
        assert_eq!(place.run(|| Err::<(), _>(failure)).await, expected);
        while place.turns.available_permits() < THREADS {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_waits_too_long_for_a_turn_is_told_so() {
        tokio::time::pause();
        let place = Place::here();
        let mut turns = Vec::new();
        for _ in 0..THREADS {
            turns.push(place.turn().await.unwrap());
        }
        assert_eq!(place.turn().await.unwrap_err().kind, Kind::NoSpace);
        turns.pop();
        place.turn().await.unwrap();
    }
}
