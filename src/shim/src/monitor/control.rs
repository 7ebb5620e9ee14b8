//! `control.sock`: other processes ask for the state of a box, and order it about.

use std::time::Duration;

use boxlite_control::{EndReason, Request, Response, StatusUpdate, frame};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::order::{Answer, Command, Order};
use super::publish;

/// The most connections at a time: watchers stay as long as the box lives.
const MOST_CONNECTIONS: usize = 256;
/// How long a client may take to say what it wants.
const REQUEST: Duration = Duration::from_secs(5);
/// How long nobody is accepted after a failure.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// How long clients may take to read the final state.
const GOODBYE: Duration = Duration::from_secs(2);

/// Serves the socket until the box has ended and its watchers know.
pub(super) async fn serve(
    listener: UnixListener,
    updates: watch::Receiver<StatusUpdate>,
    orders: mpsc::Sender<Order>,
) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if clients.len() < MOST_CONNECTIONS => {
                    clients.spawn(serve_one(stream, updates.clone(), orders.clone()));
                }
                Ok((stream, _)) => refuse(stream),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Without descriptors this fails again at once. A client that leaves gives one back, and so may others.
                    tokio::select! {
                        Some(_) = clients.join_next() => {}
                        () = tokio::time::sleep(ACCEPT_AGAIN) => {}
                        () = ended(updates.clone()) => break,
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
    orders: mpsc::Sender<Order>,
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
        Request::Wait => {
            let mut updates = updates;
            let last = async {
                updates.wait_for(|update| update.state.is_final()).await.ok().map(|last| last.clone())
            };
            let Some(last) = while_here(&mut stream, last).await.flatten() else { return };
            answer(&mut stream, Response::Status(last)).await;
        }
        Request::Start => {
            if let Some(response) = order(&mut stream, &orders, Command::Start).await.and_then(refusal) {
                return answer(&mut stream, response).await;
            }
            watch(stream, updates).await;
        }
        Request::Stop { signal, .. } | Request::Restart { signal, .. } | Request::Signal { signal }
            if signal > 64 =>
        {
            answer(&mut stream, refused(&format!("{signal} is no signal"))).await;
        }
        Request::Stop { signal, grace_millis } => {
            let grace = Duration::from_millis(grace_millis);
            // When nobody takes orders any more the box has ended, and its final state is there or follows.
            order(&mut stream, &orders, Command::Stop { signal, grace, reason: EndReason::Requested }).await;
            watch(stream, updates).await;
        }
        Request::Restart { signal, grace_millis } => {
            let grace = Duration::from_millis(grace_millis);
            done(stream, &orders, Command::Restart { signal, grace }).await;
        }
        Request::Signal { signal: 0 } => answer(&mut stream, refused("0 is no signal")).await,
        Request::Signal { signal } => done(stream, &orders, Command::Signal(signal)).await,
        Request::Pause => done(stream, &orders, Command::Pause).await,
        Request::Resume => done(stream, &orders, Command::Resume).await,
        Request::Update(update) => done(stream, &orders, Command::Update(update)).await,
        Request::Stats => done(stream, &orders, Command::Stats).await,
        Request::NetworkPolicy(policy) => done(stream, &orders, Command::NetworkPolicy(policy)).await,
        Request::Network => done(stream, &orders, Command::Network).await,
        _ => answer(&mut stream, refused("this monitor does not know the request")).await,
    }
}

/// Gives an order and answers what came of it.
async fn done(mut stream: UnixStream, orders: &mpsc::Sender<Order>, command: Command) {
    let response = match order(&mut stream, orders, command).await {
        Some(Answer::Done) => Response::Done,
        Some(Answer::Stats(stats)) => Response::Stats(stats),
        Some(Answer::Network(stats, policy)) => Response::Network { stats, policy },
        Some(Answer::Refused(message)) => Response::Refused { message },
        Some(Answer::Failed(message)) => Response::Failed { message },
        None => Response::Failed { message: "the box has ended meanwhile".to_owned() },
    };
    answer(&mut stream, response).await;
}

/// Gives an order; `None` when the box has ended or the client has gone.
async fn order(stream: &mut UnixStream, orders: &mpsc::Sender<Order>, command: Command) -> Option<Answer> {
    let (order, answer) = Order::new(command);
    let given = async {
        orders.send(order).await.ok()?;
        answer.await.ok()
    };
    while_here(stream, given).await.flatten()
}

/// Runs as long as the client is there. It says nothing more, so whatever comes from it is its end.
async fn while_here<T>(stream: &mut UnixStream, work: impl Future<Output = T>) -> Option<T> {
    let mut byte = [0];
    tokio::select! {
        biased;
        outcome = work => Some(outcome),
        _ = tokio::io::AsyncReadExt::read(stream, &mut byte) => None,
    }
}

fn refusal(answer: Answer) -> Option<Response> {
    match answer {
        Answer::Refused(message) => Some(Response::Refused { message }),
        Answer::Failed(message) => Some(Response::Failed { message }),
        Answer::Done | Answer::Stats(_) | Answer::Network(..) => None,
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

    const STOPPED: State = State::Stopped { exit: None, reason: EndReason::Exited, ended_unix_nanos: 1 };

    struct Server {
        folder: tempfile::TempDir,
        publisher: Publisher,
        orders: mpsc::Receiver<Order>,
        task: tokio::task::JoinHandle<()>,
    }

    fn server() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let files = BoxFiles::new(folder.path());
        let publisher = Publisher::start(&files, "engine");
        let listener = UnixListener::bind(files.control_socket()).unwrap();
        let (sender, orders) = mpsc::channel(8);
        let task = tokio::spawn(serve(listener, publisher.subscribe(), sender));
        Server { folder, publisher, orders, task }
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
    async fn a_stop_becomes_an_order_and_is_answered_until_the_end() {
        let mut server = server();
        let mut stream = server.ask(&Request::Stop { signal: 15, grace_millis: 1500 }).await;
        let grace = Duration::from_millis(1500);
        let order = server.orders.recv().await.unwrap();
        assert_eq!(order.command, Command::Stop { signal: 15, grace, reason: EndReason::Requested });
        order.reply.send(Answer::Done);
        assert_eq!(status(&mut stream).await.generation, 1);
        server.publisher.publish(STOPPED);
        assert_eq!(status(&mut stream).await.state, STOPPED);
        server.task.await.unwrap();
    }

    #[tokio::test]
    async fn a_stop_of_a_box_that_has_just_ended_is_answered_with_its_end() {
        let mut server = server();
        server.orders.close();
        let mut stream = server.ask(&Request::Stop { signal: 15, grace_millis: 0 }).await;
        assert_eq!(status(&mut stream).await.generation, 1);
        server.publisher.publish(STOPPED);
        assert_eq!(status(&mut stream).await.state, STOPPED);
        server.task.await.unwrap();
    }

    #[tokio::test]
    async fn an_order_is_answered_with_what_came_of_it() {
        let mut server = server();
        for (answer, response) in [
            (Some(Answer::Done), Response::Done),
            (Some(Answer::Refused("no".into())), Response::Refused { message: "no".into() }),
            (None, Response::Failed { message: "the box has ended meanwhile".into() }),
        ] {
            let mut stream = server.ask(&Request::Pause).await;
            let order = server.orders.recv().await.unwrap();
            assert_eq!(order.command, Command::Pause);
            if let Some(answer) = answer {
                order.reply.send(answer);
            } else {
                drop(order);
            }
            assert_eq!(frame::receive::<Response, _>(&mut stream).await.unwrap(), Some(response));
        }
    }

    #[tokio::test]
    async fn a_client_that_leaves_while_it_waits_gives_its_connection_back() {
        let mut server = server();
        for _ in 0..2 * MOST_CONNECTIONS {
            drop(server.ask(&Request::Wait).await);
            let stats = server.ask(&Request::Stats).await;
            let order = server.orders.recv().await.unwrap();
            drop(stats);
            drop(order);
        }
        let mut waiter = server.ask(&Request::Wait).await;
        assert_eq!(status(&mut server.ask(&Request::Status).await).await.generation, 1);
        server.publisher.publish(STOPPED);
        assert_eq!(status(&mut waiter).await.state, STOPPED);
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
        for request in [
            Request::Stop { signal: 65, grace_millis: 0 },
            Request::Restart { signal: 65, grace_millis: 0 },
            Request::Signal { signal: 65 },
            Request::Signal { signal: 0 },
        ] {
            let mut stream = server.ask(&request).await;
            let answer: Response = frame::receive(&mut stream).await.unwrap().unwrap();
            assert!(matches!(answer, Response::Refused { .. }), "{answer:?}");
        }
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
