//! The host's side of a portal connection.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::hello::{self, Hello, HelloError};
use crate::v1::container_client::ContainerClient;
use crate::v1::execution_client::ExecutionClient;
use crate::v1::files_client::FilesClient;
use crate::v1::guest_client::GuestClient;
use crate::{limits, version};

/// HTTP/2 window for one stream, in bytes: how much unread output may be under way.
const STREAM_WINDOW: u32 = 1 << 20;
/// HTTP/2 window for all streams of a connection, in bytes: as large as it can be, because a smaller one is used up by a
/// few streams that nobody reads, and then every other call of the connection waits for them. Memory stays bounded by
/// the window of a stream times the streams that this side has open.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// The largest HTTP/2 frame that the agent may send, in bytes: a whole chunk of output with its envelope, so that the
/// agent, whose CPU may be emulated, writes it in one piece.
const FRAME: u32 = 128 << 10;

/// Why the portal could not be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nothing listens on the socket, or the path cannot be used.
    #[error("cannot connect to the portal at {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The two sides do not understand each other.
    #[error("the agent in the box did not answer as expected")]
    Hello(#[from] HelloError),
    /// HTTP/2 did not come up.
    #[error("the portal connection failed")]
    Transport(#[from] tonic::transport::Error),
}

/// An open portal connection. Cheap to clone; all clones share one HTTP/2 connection, and the last one to be dropped
/// closes it.
#[derive(Clone, Debug)]
pub struct Portal {
    channel: Channel,
    peer: Hello,
}

impl Portal {
    /// Dials the portal's Unix socket, exchanges hellos, and starts HTTP/2. `build` names this side. The whole of it
    /// takes at most `deadline`.
    ///
    /// # Errors
    /// When nobody listens, the agent is silent or of another version, or HTTP/2 does not come up.
    pub async fn connect(path: &Path, build: &str, deadline: Duration) -> Result<Self, ConnectError> {
        let connect = async {
            let failed = |source| ConnectError::Connect { path: path.to_owned(), source };
            let mut stream = UnixStream::connect(path).await.map_err(failed)?;
            hello::send(&mut stream, &Hello::new(build)).await?;
            let peer = hello::receive(&mut stream).await?;
            let channel = Self::start(stream).await?;
            Ok(Self { channel, peer })
        };
        tokio::time::timeout(deadline, connect).await.unwrap_or_else(|_| {
            let late = io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {deadline:?}"));
            Err(ConnectError::Connect { path: path.to_owned(), source: late })
        })
    }

    async fn start(stream: UnixStream) -> Result<Channel, tonic::transport::Error> {
        // The connection cannot be made again by the channel itself: a new one needs a new hello.
        let mut once = Some(stream);
        let connector = service_fn(move |_| {
            let stream = once.take().map(TokioIo::new);
            async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
        });
        Endpoint::from_static("http://portal.invalid")
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            .connect_with_connector(connector)
            .await
    }

    /// The agent's hello.
    pub fn peer(&self) -> &Hello {
        &self.peer
    }

    /// The version that both sides speak.
    pub fn version(&self) -> u16 {
        self.peer.version.min(version::CURRENT)
    }

    /// The machine's services.
    pub fn guest(&self) -> GuestClient<Channel> {
        GuestClient::new(self.channel.clone())
            .max_decoding_message_size(limits::MESSAGE)
            .max_encoding_message_size(limits::MESSAGE)
    }

    /// The container's services.
    pub fn container(&self) -> ContainerClient<Channel> {
        ContainerClient::new(self.channel.clone())
            .max_decoding_message_size(limits::MESSAGE)
            .max_encoding_message_size(limits::MESSAGE)
    }

    /// The services of files. Since version 3.
    pub fn files(&self) -> FilesClient<Channel> {
        FilesClient::new(self.channel.clone())
            .max_decoding_message_size(limits::MESSAGE)
            .max_encoding_message_size(limits::MESSAGE)
    }

    /// The services of executions.
    pub fn execution(&self) -> ExecutionClient<Channel> {
        ExecutionClient::new(self.channel.clone())
            .max_decoding_message_size(limits::MESSAGE)
            .max_encoding_message_size(limits::MESSAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn with_an_agent_of_the_first_version_that_version_is_spoken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("portal.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let host = hello::receive(&mut stream).await.unwrap();
            let first = Hello { version: version::INITIAL, oldest: version::INITIAL, build: "first".into() };
            hello::send(&mut stream, &first).await.unwrap();
            // Open until the other side is done with it.
            (host, stream)
        });
        let portal = Portal::connect(&path, "test", Duration::from_secs(20)).await.unwrap();
        let (host, _stream) = agent.await.unwrap();
        assert_eq!(portal.version(), version::INITIAL);
        assert_eq!(portal.peer().version, version::INITIAL);
        assert_eq!((host.version, host.oldest), (version::CURRENT, version::OLDEST));
    }
}
