//! The agent's side of the spawner.
//!
//! One task owns the connection; orders reach it over a bounded queue and are answered one after another, which takes
//! a fork each, never the start of a program. Each has a deadline: a spawner that does not answer is a broken box.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::time::Duration;

use nix::unistd::Pid;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::order::{self, Kind, Order};
use super::reaper::{Ended, Reaper};
use super::spawner::{MAX_TEXT, Refusal};

/// How many orders may wait.
const QUEUE: usize = 64;
/// How long a fork may take. Generous: an emulated machine under load is slow.
const FORK: Duration = Duration::from_secs(20);
/// How long the creation of the container may take.
const CREATE: Duration = Duration::from_secs(60);

/// Why the spawner started nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The connection to it failed.
    #[error("the connection to the spawner failed")]
    Connection(#[source] io::Error),
    /// It has ended, or does not answer.
    #[error("the spawner does not answer")]
    Gone,
    /// It tried, and the system would not.
    #[error("{} (errno {})", .0.text, .0.errno)]
    Refused(Refusal),
}

/// A new process, and how it will end.
#[derive(Debug)]
pub struct Spawned {
    /// Its id as the agent sees it.
    pub pid: Pid,
    /// Resolves when it has ended.
    pub ended: oneshot::Receiver<Ended>,
}

/// A handle to the spawner. Clones share it.
#[derive(Clone, Debug)]
pub struct SpawnerClient {
    queue: mpsc::Sender<Job>,
}

#[derive(Debug)]
struct Job {
    kind: Kind,
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
    answer: oneshot::Sender<Result<Spawned, SpawnError>>,
}

impl SpawnerClient {
    /// Takes the agent's end of the connection over.
    ///
    /// # Errors
    /// When the socket cannot be registered with the runtime.
    pub fn start(socket: StdStream, reaper: Reaper) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let mut socket = UnixStream::from_std(socket)?;
        let (queue, mut jobs) = mpsc::channel::<Job>(QUEUE);
        tokio::spawn(async move {
            while let Some(job) = jobs.recv().await {
                let Job { kind, body, fds, answer } = job;
                let result = perform(&mut socket, &reaper, kind, &body, fds).await;
                // After half a frame or half an answer nothing that follows could be understood.
                let broken = matches!(result, Err(SpawnError::Connection(_) | SpawnError::Gone));
                drop(answer.send(result));
                if broken {
                    return;
                }
            }
        });
        Ok(Self { queue })
    }

    /// Forks an execution into the container and this cgroup.
    ///
    /// # Errors
    /// When the spawner or the system would not.
    pub async fn exec(&self, order: &Order, fds: [OwnedFd; 5]) -> Result<Spawned, SpawnError> {
        self.submit(Kind::Exec, order.encode_to_vec(), Vec::from(fds)).await
    }

    /// Creates the container of this bundle; its first process waits on `channel`.
    ///
    /// # Errors
    /// When libcontainer or the system would not.
    pub async fn create(&self, bundle: &Path, channel: OwnedFd) -> Result<Spawned, SpawnError> {
        let bundle = bundle.as_os_str().as_encoded_bytes().to_vec();
        self.submit(Kind::Create, bundle, vec![channel]).await
    }

    async fn submit(&self, kind: Kind, body: Vec<u8>, fds: Vec<OwnedFd>) -> Result<Spawned, SpawnError> {
        // Here, where it concerns this order alone: a failure to send one ends the connection for all.
        if body.len() > order::MAX_BODY {
            let text = "the process specification is too large".to_owned();
            return Err(SpawnError::Refused(Refusal { errno: libc::E2BIG, text }));
        }
        let (answer, answered) = oneshot::channel();
        self.queue.send(Job { kind, body, fds, answer }).await.map_err(|_| SpawnError::Gone)?;
        answered.await.map_err(|_| SpawnError::Gone)?
    }
}

async fn perform(
    socket: &mut UnixStream,
    reaper: &Reaper,
    kind: Kind,
    body: &[u8],
    fds: Vec<OwnedFd>,
) -> Result<Spawned, SpawnError> {
    let limit = if kind == Kind::Create { CREATE } else { FORK };
    let expected = reaper.expect();
    let exchange = async {
        send(socket, kind, body, &fds).await?;
        receive_reply(socket).await
    };
    match tokio::time::timeout(limit, exchange).await {
        Err(_) => Err(SpawnError::Gone),
        Ok(Err(error)) => Err(SpawnError::Connection(error)),
        Ok(Ok(Err(refusal))) => Err(SpawnError::Refused(refusal)),
        Ok(Ok(Ok(pid))) => Ok(Spawned { pid, ended: expected.claim(pid) }),
    }
}

/// Sends a frame with its descriptors, over any stream socket of this machine.
///
/// # Errors
/// When the body is too large or the socket fails.
pub async fn send(socket: &mut UnixStream, kind: Kind, body: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let header = order::header(kind, body)?;
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let fd = socket.as_raw_fd();
    let attached = || order::send_with_fds(fd, &header, &raw);
    let sent = socket.async_io(Interest::WRITABLE, attached).await?;
    socket.write_all(&header[sent..]).await?;
    socket.write_all(body).await
}

async fn receive_reply(socket: &mut UnixStream) -> io::Result<Result<Pid, Refusal>> {
    let code = socket.read_i32_le().await?;
    let length = usize::from(socket.read_u16_le().await?);
    if length > MAX_TEXT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = vec![0; length];
    socket.read_exact(&mut text).await?;
    if code > 0 {
        return Ok(Ok(Pid::from_raw(code)));
    }
    Ok(Err(Refusal { errno: code.saturating_neg(), text: String::from_utf8_lossy(&text).into_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_order_that_is_too_large_is_refused_and_the_connection_goes_on() {
        let (here, mut there) = StdStream::pair().unwrap();
        let client = SpawnerClient::start(here, Reaper::new()).unwrap();
        let (channel, other) = StdStream::pair().unwrap();
        let long = "x".repeat(order::MAX_BODY + 1);
        let refused = client.create(Path::new(&long), channel.into()).await;
        assert!(
            matches!(refused, Err(SpawnError::Refused(Refusal { errno: libc::E2BIG, .. }))),
            "{refused:?}"
        );

        let spawner = std::thread::spawn(move || {
            let frame = order::receive(&mut there).unwrap().unwrap();
            std::io::Write::write_all(&mut there, &[7, 0, 0, 0, 0, 0]).unwrap();
            frame.body
        });
        let spawned = client.create(Path::new("/bundle"), other.into()).await.unwrap();
        assert_eq!((spawned.pid, spawner.join().unwrap()), (Pid::from_raw(7), b"/bundle".to_vec()));
    }
}
