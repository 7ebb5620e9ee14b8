//! `control.sock`: other processes ask for the state of a box, and for its end.

use std::time::Duration;

use boxlite_control::{Request, Response, StatusUpdate, frame};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::machine::Event;
use super::publish;

/// The most connections at a time: watchers stay as long as the box lives.
const MOST_CONNECTIONS: usize = 256;
/// How long a client may take to say what it wants.
const REQUEST: Duration = Duration::from_secs(5);
/// How long clients may take to read the final state.
const GOODBYE: Duration = Duration::from_secs(2);

/// Serves the socket until the box has ended and its watchers know.
pub(super) async fn serve(
    listener: UnixListener,
    updates: watch::Receiver<StatusUpdate>,
    events: mpsc::Sender<Event>,
) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if clients.len() < MOST_CONNECTIONS => {
                    clients.spawn(serve_one(stream, updates.clone(), events.clone()));
                }
                Ok((stream, _)) => refuse(stream),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Without descriptors this fails again at once. A client that leaves gives one back.
                    if clients.join_next().await.is_none() {
                        break;
                    }
                }
            },
            Some(_) = clients.join_next() => {}
            () = ended(updates.clone()) => break,
        }
    }
    drop(listener);
    let goodbye = async { while clients.join_next().await.is_some() {} };
    if timeout(GOODBYE, goodbye).await.is_err() {
        tracing::warn!("a client did not read the final state");
    }
}

/// Waits for the final state. A publisher that has gone comes to the same.
async fn ended(mut updates: watch::Receiver<StatusUpdate>) {
    drop(updates.wait_for(|update| update.state.is_final()).await);
}

async fn serve_one(
    mut stream: UnixStream,
    updates: watch::Receiver<StatusUpdate>,
    events: mpsc::Sender<Event>,
) {
    let request = match timeout(REQUEST, frame::receive::<Request, _>(&mut stream)).await {
        Ok(Ok(Some(request))) => request,
        // A connection without a request asks whether the monitor lives.
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return answer(&mut stream, refused(&error.to_string())).await,
        Err(_) => return answer(&mut stream, refused("no request arrived")).await,
    };
    match request {
        Request::Status => {
            let now = updates.borrow().clone();
            answer(&mut stream, Response::Status(now)).await;
        }
        Request::Watch => watch(stream, updates).await,
        Request::Stop { signal, grace_millis } => {
            if signal > 64 {
                return answer(&mut stream, refused(&format!("{signal} is no signal"))).await;
            }
            let stop = Event::Stop { signal, grace: Duration::from_millis(grace_millis) };
            // When nobody takes events any more the box has ended, and its final state is there or follows.
            drop(events.send(stop).await);
            watch(stream, updates).await;
        }
        _ => answer(&mut stream, refused("this monitor does not know the request")).await,
    }
}

/// Sends states until the final one, or until the client has gone.
async fn watch(mut stream: UnixStream, updates: watch::Receiver<StatusUpdate>) {
    let (mut read, mut write) = stream.split();
    let gone = async {
        // A client says nothing more, so whatever comes is its end.
        let mut byte = [0];
        tokio::io::AsyncReadExt::read(&mut read, &mut byte).await
    };
    tokio::select! {
        sent = publish::follow(updates, &mut write, Response::Status) => {
            if let Err(error) = sent {
                tracing::debug!(%error, "lost a watcher");
            }
        }
        _ = gone => {}
    }
}

async fn answer(stream: &mut UnixStream, response: Response) {
    let sent = timeout(REQUEST, async {
        frame::send(stream, &response).await?;
        stream.shutdown().await.map_err(frame::FrameError::from)
    });
    if let Ok(Err(error)) = sent.await {
        tracing::debug!(%error, "lost a client");
    }
}

/// Says so if the socket takes it at once, which an empty one does.
fn refuse(stream: UnixStream) {
    let refused = frame::encode(&refused("too many connections"));
    if let Ok(bytes) = refused {
        drop(stream.try_write(&bytes));
    }
}

fn refused(message: &str) -> Response {
    Response::Refused { message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::publish::Publisher;
    use super::*;
    use boxlite_control::{BoxFiles, State};

    const STOPPED: State = State::Stopped { exit: None, ended_unix_nanos: 1 };

    struct Server {
        folder: tempfile::TempDir,
        publisher: Publisher,
        events: mpsc::Receiver<Event>,
        task: tokio::task::JoinHandle<()>,
    }

    fn server() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let files = BoxFiles::new(folder.path());
        let publisher = Publisher::start(&files, "engine");
        let listener = UnixListener::bind(files.control_socket()).unwrap();
        let (sender, events) = mpsc::channel(8);
        let task = tokio::spawn(serve(listener, publisher.subscribe(), sender));
        Server { folder, publisher, events, task }
    }

    impl Server {
        async fn connect(&self) -> UnixStream {
            UnixStream::connect(BoxFiles::new(self.folder.path()).control_socket()).await.unwrap()
        }

        async fn ask(&self, request: &Request) -> UnixStream {
            let mut stream = self.connect().await;
            frame::send(&mut stream, request).await.unwrap();
            stream
        }
    }

    async fn status(stream: &mut UnixStream) -> StatusUpdate {
        match frame::receive(stream).await.unwrap() {
            Some(Response::Status(update)) => update,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_status_is_answered_once() {
        let server = server();
        let mut stream = server.ask(&Request::Status).await;
        assert_eq!(status(&mut stream).await.generation, 1);
        assert_eq!(frame::receive::<Response, _>(&mut stream).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_stop_becomes_an_event_and_is_answered_until_the_end() {
        let mut server = server();
        let mut stream = server.ask(&Request::Stop { signal: 15, grace_millis: 1500 }).await;
        let stop = Event::Stop { signal: 15, grace: Duration::from_millis(1500) };
        assert_eq!(server.events.recv().await, Some(stop));
        assert_eq!(status(&mut stream).await.generation, 1);
        server.publisher.publish(STOPPED);
        assert_eq!(status(&mut stream).await.state, STOPPED);
        server.task.await.unwrap();
    }

    #[tokio::test]
    async fn a_stop_of_a_box_that_has_just_ended_is_answered_with_its_end() {
        let mut server = server();
        server.events.close();
        let mut stream = server.ask(&Request::Stop { signal: 15, grace_millis: 0 }).await;
        assert_eq!(status(&mut stream).await.generation, 1);
        server.publisher.publish(STOPPED);
        assert_eq!(status(&mut stream).await.state, STOPPED);
        server.task.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused_and_harms_nobody() {
        let server = server();
        for bytes in [&b"\0\0\0\x02{}"[..], b"\xff\xff\xff\xff", b"\0\0\0\x13{\"request\":\"dance\"}"] {
            let mut stream = server.connect().await;
            stream.write_all(bytes).await.unwrap();
            let answer: Response = frame::receive(&mut stream).await.unwrap().unwrap();
            assert!(matches!(answer, Response::Refused { .. }), "{answer:?}");
        }
        let mut stream = server.ask(&Request::Stop { signal: 65, grace_millis: 0 }).await;
        let answer: Response = frame::receive(&mut stream).await.unwrap().unwrap();
        assert!(matches!(answer, Response::Refused { .. }), "{answer:?}");
        assert_eq!(status(&mut server.ask(&Request::Status).await).await.generation, 1);
    }

    #[tokio::test]
    async fn silent_clients_and_watchers_that_leave_do_not_use_up_the_connections() {
        let server = server();
        for _ in 0..2 * MOST_CONNECTIONS {
            drop(server.connect().await);
        }
        for _ in 0..2 * MOST_CONNECTIONS {
            let mut watcher = server.ask(&Request::Watch).await;
            status(&mut watcher).await;
        }
        let mut watchers = Vec::new();
        for _ in 0..MOST_CONNECTIONS / 2 {
            let mut watcher = server.ask(&Request::Watch).await;
            status(&mut watcher).await;
            watchers.push(watcher);
        }
        server.publisher.publish(STOPPED);
        for mut watcher in watchers {
            assert_eq!(status(&mut watcher).await.state, STOPPED);
        }
        server.task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_does_not_read_cannot_keep_the_monitor() {
        let server = server();
        let _silent = server.connect().await;
        let _watcher = server.ask(&Request::Watch).await;
        server.publisher.publish(STOPPED);
        server.task.await.unwrap();
    }
}
