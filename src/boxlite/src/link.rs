//! The way to a box's agent: one connection that all calls share, made again when it has been lost.
//!
//! ```text
//!   none ──portal()──▶ connected (generation n) ──lost(n)──▶ none ──portal()──▶ connected (n + 1)
//! ```
//!
//! Whoever finds a connection broken says which one, so that a newer one stays. One at a time makes a connection, and those
//! who wait for that share what comes of it, so that an agent is not called by hundreds at once. A link knows its box's
//! socket and nothing else of it, so those who hold one keep nothing alive.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use boxlite_control::SocketPath;
use boxlite_portal::client::Portal;
use boxlite_portal::v1;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::rpc;

/// A way to the agent of one box. Clones share the connection.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    socket: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Only looked at and replaced under the lock, never used under it.
    current: Mutex<Current>,
    /// Whose turn it is to make the connection.
    turn: Semaphore,
    /// Turns for transfers, which have connections of their own.
    transfers: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Current {
    generation: u64,
    portal: Option<Portal>,
    /// How often no connection could be made, and why the last time.
    failures: u64,
    failure: String,
}

/// The most transfers at a time: the agent works on twice as many for all hosts together.
const TRANSFERS: usize = 16;

/// A connection, and which one it is.
#[derive(Clone, Debug)]
pub(crate) struct Connected {
    pub(crate) portal: Portal,
    generation: u64,
}

/// What keeps a connection from being made.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

impl Link {
    /// A way through this socket.
    pub(crate) fn new(socket: &Path) -> Self {
        let shared = Shared {
            current: Mutex::default(),
            turn: Semaphore::new(1),
            transfers: Arc::new(Semaphore::new(TRANSFERS)),
        };
        Self { socket: socket.to_owned(), shared: Arc::new(shared) }
    }

    /// The connection, made if there is none.
    pub(crate) async fn portal(&self) -> Result<Connected, Cause> {
        let kept = |current: &Current| {
            let portal = current.portal.clone()?;
            Some(Connected { portal, generation: current.generation })
        };
        let (found, failures) = self.locked(|current| (kept(current), current.failures));
        if let Some(connected) = found {
            return Ok(connected);
        }
        // Never closed.
        let _turn = self.shared.turn.acquire().await?;
        // Another had the turn meanwhile: what came of it is as good.
        let found = self.locked(|current| match kept(current) {
            None if current.failures > failures => Some(Err(current.failure.clone().into())),
            found => found.map(Ok),
        });
        if let Some(outcome) = found {
            return outcome;
        }
        let connect = async {
            let path = SocketPath::new(&self.socket)?;
            Ok::<_, Cause>(Portal::connect(path.path(), rpc::BUILD, rpc::DEADLINE).await?)
        };
        match connect.await {
            Ok(portal) => Ok(self.locked(|current| {
                current.generation += 1;
                current.portal = Some(portal.clone());
                Connected { portal, generation: current.generation }
            })),
            Err(cause) => {
                self.locked(|current| {
                    current.failures += 1;
                    current.failure = cause.to_string();
                });
                Err(cause)
            }
        }
    }

    /// A connection that has just answered: one that was kept may have broken since. For what must not be asked twice.
    pub(crate) async fn live(&self) -> Result<Portal, Cause> {
        let kept = self.portal().await?;
        let answer = tokio::time::timeout(rpc::DEADLINE, kept.portal.guest().ping(v1::PingRequest {})).await;
        if matches!(answer, Ok(Ok(_))) {
            return Ok(kept.portal);
        }
        self.lost(&kept);
        Ok(self.portal().await?.portal)
    }

    /// A turn for a transfer.
    pub(crate) async fn transfer(&self) -> Result<OwnedSemaphorePermit, Cause> {
        Ok(Arc::clone(&self.shared.transfers).acquire_owned().await?)
    }

    /// This connection is broken.
    pub(crate) fn lost(&self, connected: &Connected) {
        self.locked(|current| {
            if current.generation == connected.generation {
                current.portal = None;
            }
        });
    }

    /// The next call makes a connection of its own: the one that was kept may belong to a machine that has ended.
    pub(crate) fn forget(&self) {
        self.locked(|current| current.portal = None);
    }

    /// The socket through which it leads, for transfers, which have connections of their own.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    fn locked<T>(&self, work: impl FnOnce(&mut Current) -> T) -> T {
        work(&mut self.shared.current.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use boxlite_portal::hello::{self, Hello};
    use tokio::net::UnixListener;

    fn agent(path: &Path) -> tokio::task::JoinHandle<()> {
        let listener = UnixListener::bind(path).unwrap();
        tokio::spawn(async move {
            let mut streams = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                hello::receive(&mut stream).await.unwrap();
                hello::send(&mut stream, &Hello::new("agent")).await.unwrap();
                streams.push(stream);
            }
        })
    }

    #[tokio::test]
    async fn a_connection_is_shared_until_it_is_lost_and_only_the_lost_one_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _agent = agent(&path);
        let link = Link::new(&path);
        let first = link.portal().await.unwrap();
        assert_eq!(link.clone().portal().await.unwrap().generation, first.generation);
        link.lost(&first);
        let second = link.portal().await.unwrap();
        assert_ne!(second.generation, first.generation);
        link.lost(&first);
        assert_eq!(link.portal().await.unwrap().generation, second.generation, "the newer one stays");
        link.forget();
        assert_ne!(link.portal().await.unwrap().generation, second.generation);
    }

    #[tokio::test]
    async fn many_who_need_a_connection_at_once_share_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _agent = agent(&path);
        let link = Link::new(&path);
        let all = futures_util::future::join_all((0..300).map(|_| link.portal())).await;
        let generations: Vec<u64> = all.into_iter().map(|connected| connected.unwrap().generation).collect();
        assert_eq!(generations, [1; 300]);
    }

    #[tokio::test]
    async fn without_an_agent_there_is_an_error_and_the_next_call_tries_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let link = Link::new(&path);
        assert!(link.portal().await.is_err());
        let _agent = agent(&path);
        link.portal().await.unwrap();
    }
}
