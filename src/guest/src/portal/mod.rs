//! The portal's server: accepts, exchanges hellos, and speaks gRPC.
//!
//! Each accepted connection says hello in a task of its own, so a silent client holds up nobody; how many do so at the
//! same time and how many connections there are is bounded.

mod container;
mod execution;
mod files;
mod guest;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use boxlite_portal::hello::{self, Hello};
use boxlite_portal::v1::container_server::ContainerServer;
use boxlite_portal::v1::execution_server::ExecutionServer;
use boxlite_portal::v1::files_server::FilesServer;
use boxlite_portal::v1::guest_server::GuestServer;
use boxlite_portal::{limits, transfer};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::agent::Agent;
use crate::events::Hub;
use crate::files::error::{FileError, Kind};
use crate::files::place::Turn;
use crate::files::transfer as bulk;
use crate::shutdown::Shutdown;
use crate::vsock::{Listener, Socket};

/// The most connections at a time.
const CONNECTIONS: usize = 256;
/// The most connections that have not said hello yet.
const HANDSHAKES: usize = 32;
/// The most calls at a time on one connection: every execution may have a few that wait.
const CALLS: u32 = 8192;
/// HTTP/2 window for one stream, in bytes: how much input may be under way.
const STREAM_WINDOW: u32 = 256 << 10;
/// HTTP/2 window for all streams of a connection, in bytes: as large as it can be, because a smaller one is used up by a
/// few inputs that their processes do not read, and then every other call of the connection waits for them. Memory
/// stays bounded by the window of a stream times the streams that are open, of which there are at most [`CALLS`].
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// How long accepting pauses after a failure that may pass, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// What this side calls itself.
pub const BUILD: &str = concat!("boxlite-guest ", env!("CARGO_PKG_VERSION"));

/// Serves until the box has been shut down and the answer has had time to arrive.
///
/// # Errors
/// When the HTTP/2 server fails.
pub async fn serve(agent: Arc<Agent>, listener: Listener) -> Result<(), tonic::transport::Error> {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let (ready, incoming) = mpsc::channel(HANDSHAKES);
    let accepting = tokio::spawn(accept(listener, Arc::clone(&agent), Arc::clone(&connections), ready));
    let shutdown = Shutdown::new(Arc::clone(&agent));

    let guest = GuestServer::new(guest::Service::new(Arc::clone(&agent), shutdown.clone()));
    let container = ContainerServer::new(container::Service::new(Arc::clone(&agent)));
    let execution = ExecutionServer::new(execution::Service::new(Arc::clone(&agent)));
    let files = FilesServer::new(files::Service::new(agent));
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(CALLS)
        .add_service(
            guest.max_decoding_message_size(limits::MESSAGE).max_encoding_message_size(limits::MESSAGE),
        )
        .add_service(
            container.max_decoding_message_size(limits::MESSAGE).max_encoding_message_size(limits::MESSAGE),
        )
        .add_service(
            execution.max_decoding_message_size(limits::MESSAGE).max_encoding_message_size(limits::MESSAGE),
        )
        .add_service(
            files.max_decoding_message_size(limits::MESSAGE).max_encoding_message_size(limits::MESSAGE),
        )
        .serve_with_incoming(ReceiverStream::new(incoming));
    let result = tokio::select! {
        result = server => result,
        () = shutdown.answered(&connections, CONNECTIONS) => Ok(()),
    };
    accepting.abort();
    result
}

async fn accept(
    listener: Listener,
    agent: Arc<Agent>,
    connections: Arc<Semaphore>,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        // Both semaphores are never closed.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let Ok(turn) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let socket = match listener.accept().await {
            Ok(socket) => socket,
            Err(error) => {
                crate::console::line(format_args!("cannot accept a connection: {error}"));
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (ready, agent) = (ready.clone(), Arc::clone(&agent));
        tokio::spawn(async move {
            let mut socket = socket;
            match greet(&mut socket).await {
                Ok(first) if first == transfer::MAGIC => begin_transfer(socket, permit, &agent).await,
                Ok(first) => {
                    let connection =
                        Connection { first: Bytes::copy_from_slice(&first), socket, _permit: permit };
                    // An error means that the server has gone.
                    drop(ready.send(Ok(connection)).await);
                }
                // It came and went.
                Err(hello::HelloError::Io(_)) => {}
                Err(error) => crate::console::line(format_args!("a connection was refused: {error}")),
            }
            drop(turn);
        });
    }
}

/// Exchanges hellos, and reads the first bytes of what the host wants.
async fn greet(socket: &mut Socket) -> Result<[u8; 4], hello::HelloError> {
    let received = hello::receive(socket).await;
    // A peer of another version is told which one this is, so that it can say who is to be updated.
    if matches!(received, Ok(_) | Err(hello::HelloError::Incompatible { .. })) {
        let own = Hello::new(BUILD);
        let answer = hello::send(socket, &own);
        tokio::time::timeout(limits::HELLO_TIMEOUT, answer)
            .await
            .map_err(|_| hello::HelloError::Timeout)??;
    }
    received?;
    let mut first = [0; 4];
    match tokio::time::timeout(limits::HELLO_TIMEOUT, socket.read_exact(&mut first)).await {
        Ok(read) => read.map(|_| first).map_err(hello::HelloError::Io),
        Err(_) => Err(hello::HelloError::Timeout),
    }
}

/// Hands a connection over to a transfer of bulk data.
async fn begin_transfer(socket: Socket, permit: OwnedSemaphorePermit, agent: &Agent) {
    let running = agent.running();
    let turn = match &running {
        Ok(running) => running.place.turn().await.map(Some),
        Err(_) => Ok(None),
    };
    // A box in which files are moved is not idle.
    let busy = Busy::new(agent.events.clone());
    let serve = move |entered: Result<(), FileError>| {
        let running = entered.and_then(|()| match &running {
            Ok(running) => Ok(running.as_ref()),
            Err(error) => Err(FileError::new(Kind::Other, error.to_string())),
        });
        let _busy = busy;
        // Whoever has gone in the middle knows it.
        drop(bulk::serve(socket.into_fd(), running));
        drop(permit);
    };
    let started = match turn {
        Ok(Some(turn)) => turn.start(serve),
        Ok(None) => Turn::outside(move || serve(Ok(()))),
        Err(error) => Turn::outside(move || serve(Err(error))),
    };
    if let Err(error) = started {
        crate::console::line(format_args!("a transfer was refused: {error}"));
    }
}

/// Counts as somebody who is attached, for as long as it lives.
struct Busy(Hub);

impl Busy {
    fn new(events: Hub) -> Self {
        events.attached();
        Self(events)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.detached();
    }
}

/// A connection that has said hello, and its place among those allowed.
#[derive(Debug)]
struct Connection {
    /// What was read to tell what it is for, and not yet given to HTTP/2.
    first: Bytes,
    socket: Socket,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let count = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first.split_to(count));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// A call out of order, as a status.
fn out_of_order(error: crate::agent::OutOfOrder) -> tonic::Status {
    tonic::Status::failed_precondition(error.to_string())
}

/// A mistake of the caller, as a status.
fn invalid(error: impl std::fmt::Display) -> tonic::Status {
    tonic::Status::invalid_argument(error.to_string())
}
