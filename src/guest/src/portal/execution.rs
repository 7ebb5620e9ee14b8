//! The services of executions.

use std::sync::Arc;
use std::time::Duration;

use boxlite_portal::limits;
use boxlite_portal::v1::exec_response::Outcome;
use boxlite_portal::v1::execution_server;
use boxlite_portal::v1::{
    AttachRequest, AttachResponse, Beyond, ExecRequest, ExecResponse, ResizeRequest, ResizeResponse,
    RunResponse, SignalRequest, SignalResponse, StartFailure, Started, StdinRequest, StdinResponse,
    StreamKind, WaitRequest, WaitResponse, attach_response, run_response, stdin_request,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{invalid, out_of_order};
use crate::agent::{self, Agent, Wanted};
use crate::container::capabilities;
use crate::container::launch::{self, BadSpec};
use crate::execution::Execution;
use crate::execution::input::Input;
use crate::execution::output::{Reader, Stream};
use crate::execution::table::{LookupError, ReserveError, Reserved};
use crate::execution::terminal;

/// How many messages may wait between the output and the connection.
const QUEUE: usize = 1;

/// How long what is beyond the head of a stream waits for those who read on, and a lost client may take to come back.
const BEYOND: Duration = Duration::from_secs(20);

/// See the proto file.
#[derive(Debug)]
pub(super) struct Service {
    agent: Arc<Agent>,
}

impl Service {
    pub(super) fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }

    async fn find(&self, id: &str) -> Result<Arc<Execution>, Status> {
        self.agent.table.find(id).await.map_err(|error| match error {
            LookupError::Unknown => Status::not_found(error.to_string()),
            LookupError::NotStarted(_) | LookupError::NeverStarted => {
                Status::failed_precondition(error.to_string())
            }
        })
    }

    /// Starts what is asked for, or finds it started, and says how that came out.
    async fn begin(&self, request: ExecRequest) -> Result<Result<Arc<Execution>, StartFailure>, Status> {
        let spec = request.process.unwrap_or_default();
        launch::check(&spec).map_err(invalid)?;
        if spec.args.is_empty() {
            return Err(invalid(BadSpec::NoProgram));
        }
        let capabilities = (request.capabilities_add, request.capabilities_drop);
        capabilities::change(0, &capabilities.0, &capabilities.1).map_err(invalid)?;
        let running = self.agent.running().map_err(out_of_order)?;
        let reserved = self.agent.table.reserve(&request.execution_id).map_err(|error| match error {
            ReserveError::Invalid => invalid(error),
            ReserveError::TooMany => Status::resource_exhausted(error.to_string()),
            ReserveError::Closed => Status::failed_precondition(error.to_string()),
        })?;
        let mut outcome = match reserved {
            Reserved::Known(outcome) => outcome,
            Reserved::New(starting) => {
                let outcome = starting.outcome();
                let limit =
                    Some(request.timeout_millis).filter(|millis| *millis > 0).map(Duration::from_millis);
                let wanted = Wanted {
                    id: request.execution_id,
                    spec,
                    limit,
                    quiet: request.quiet,
                    keep_orphans: request.keep_orphans,
                    detached: request.detached,
                    capabilities,
                };
                let agent = Arc::clone(&self.agent);
                // A task of its own: a client that goes away stops nothing half-way.
                tokio::spawn(agent.run_execution(wanted, running, starting));
                outcome
            }
        };
        match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => Ok(outcome.clone()),
            Ok(None) | Err(_) => Ok(Err(agent::lost())),
        }
    }
}

#[tonic::async_trait]
impl execution_server::Execution for Service {
    async fn exec(&self, request: Request<ExecRequest>) -> Result<Response<ExecResponse>, Status> {
        let outcome = match self.begin(request.into_inner()).await? {
            Ok(execution) => Outcome::Started(Started { pid: execution.inner_pid }),
            Err(failure) => Outcome::Failure(failure),
        };
        Ok(Response::new(ExecResponse { outcome: Some(outcome) }))
    }

    type RunStream = ReceiverStream<Result<RunResponse, Status>>;

    async fn run(&self, request: Request<ExecRequest>) -> Result<Response<Self::RunStream>, Status> {
        let begun = self.begin(request.into_inner()).await?;
        let (sender, receiver) = mpsc::channel(QUEUE + 1);
        let first = match &begun {
            Ok(execution) => run_response::Event::Started(Started { pid: execution.inner_pid }),
            Err(failure) => run_response::Event::Failure(failure.clone()),
        };
        // It goes out together with the head of the answer.
        sender
            .try_send(Ok(RunResponse { event: Some(first) }))
            .map_err(|e| Status::internal(e.to_string()))?;
        if let Ok(execution) = begun {
            let attached = Attached::new(&self.agent, !execution.quiet);
            tokio::spawn(async move { head(&execution, &sender, attached).await });
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type AttachStream = ReceiverStream<Result<AttachResponse, Status>>;

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<Self::AttachStream>, Status> {
        let request = request.into_inner();
        let streams = streams(&request)?;
        let execution = self.find(&request.execution_id).await?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let attached = Attached::new(&self.agent, !request.observe && !execution.quiet);
        tokio::spawn(async move {
            let reader = if request.observe {
                execution.output.observe(&streams)
            } else {
                execution.output.read_from(&streams, [request.stdout_from, request.stderr_from])
            };
            stream(&execution, reader, &sender).await;
            // The client drops the stream once it has read the last message.
            sender.closed().await;
            drop(attached);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn stdin(
        &self,
        request: Request<Streaming<StdinRequest>>,
    ) -> Result<Response<StdinResponse>, Status> {
        let mut stream = request.into_inner();
        let Some(mut message) = stream.message().await? else {
            return Err(invalid("the first message names the execution"));
        };
        let execution = self.find(&message.execution_id).await?;
        // Dropped without more: a client that goes away gives way to the next one.
        let mut input = execution.input.lock().await;
        let mut written = 0;
        loop {
            match message.action.take() {
                None => {}
                Some(stdin_request::Action::Close(true)) => {
                    bounded(&execution, input.close()).await;
                    break;
                }
                Some(stdin_request::Action::Close(false)) => {}
                Some(stdin_request::Action::Data(data)) => {
                    if data.len() > limits::CHUNK {
                        return Err(invalid(format_args!(
                            "a piece of input has at most {} bytes",
                            limits::CHUNK
                        )));
                    }
                    let count = bounded(&execution, input.write(&data)).await.unwrap_or_default();
                    written += count as u64;
                    if count < data.len() {
                        *input = Input::Closed;
                        break;
                    }
                }
            }
            match stream.message().await? {
                Some(next) => message = next,
                None => break,
            }
        }
        Ok(Response::new(StdinResponse { written }))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
        let execution = self.find(&request.into_inner().execution_id).await?;
        Ok(Response::new(WaitResponse { exit: Some(execution.ended().await) }))
    }

    async fn signal(&self, request: Request<SignalRequest>) -> Result<Response<SignalResponse>, Status> {
        let SignalRequest { execution_id, signal, all } = request.into_inner();
        let signal = i32::try_from(signal).ok().filter(|signal| (0..=64).contains(signal));
        let signal = signal.ok_or_else(|| invalid("a signal is a number from 1 to 64"))?;
        let execution = self.find(&execution_id).await?;
        if signal == 0 {
            return Ok(Response::new(SignalResponse {}));
        }
        let sent = match &execution.cgroup {
            Some(cgroup) if all && execution.exit.borrow().is_none() => match cgroup.signal(signal) {
                // Nothing was left to signal.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
                sent => sent.map(|()| true),
            },
            _ => self.agent.reaper.signal(execution.pid, signal).map_err(std::io::Error::from),
        };
        match sent {
            Ok(true) => Ok(Response::new(SignalResponse {})),
            Ok(false) => Err(Status::failed_precondition("the execution has ended")),
            Err(error) => Err(Status::internal(format!("cannot send the signal: {error}"))),
        }
    }

    async fn resize(&self, request: Request<ResizeRequest>) -> Result<Response<ResizeResponse>, Status> {
        let ResizeRequest { execution_id, size } = request.into_inner();
        let size = launch::terminal_size(&size.unwrap_or_default()).map_err(invalid)?;
        let execution = self.find(&execution_id).await?;
        let Some(master) = &execution.terminal else {
            return Err(Status::failed_precondition("the execution has no terminal"));
        };
        terminal::resize(master, size)
            .map_err(|errno| Status::internal(format!("cannot resize: {errno}")))?;
        Ok(Response::new(ResizeResponse {}))
    }
}

/// The streams that a client wants.
fn streams(request: &AttachRequest) -> Result<Vec<Stream>, Status> {
    if request.streams.is_empty() {
        return Ok(vec![Stream::Stdout, Stream::Stderr]);
    }
    let named = |kind| match kind {
        StreamKind::Stdout => Ok(Stream::Stdout),
        StreamKind::Stderr => Ok(Stream::Stderr),
        StreamKind::Unspecified => Err(invalid("a stream to attach to is not named")),
    };
    // An unknown number reads as unspecified.
    request.streams().map(named).collect()
}

/// Sends all that this reader gets and the exit, unless the client goes away before.
async fn stream(
    execution: &Execution,
    mut reader: Reader,
    sender: &mpsc::Sender<Result<AttachResponse, Status>>,
) {
    let send = |event| sender.send(Ok(AttachResponse { event: Some(event) }));
    loop {
        let output = tokio::select! {
            output = reader.next() => output,
            () = sender.closed() => return,
        };
        let Some(output) = output else { break };
        if send(attach_response::Event::Output(output)).await.is_err() {
            return;
        }
    }
    let exit = tokio::select! {
        exit = execution.ended() => exit,
        () = sender.closed() => return,
    };
    // An error means that the client has gone, and with it the one who wanted to know.
    drop(send(attach_response::Event::Exit(exit)).await);
}

/// Serves the head of both streams. What is beyond it, or was not received, waits for those who come for it.
async fn head(execution: &Execution, sender: &mpsc::Sender<Result<RunResponse, Status>>, attached: Attached) {
    if send_head(execution, sender).await {
        // The client drops the stream once it has read the last message.
        sender.closed().await;
    } else {
        // A client that has gone is not waited for by the end of the box; one that reads on counts until it does.
        let attached = Some(attached).filter(|_| !sender.is_closed());
        drop(tokio::time::timeout(BEYOND, execution.output.read_by_all()).await);
        drop(attached);
    }
    execution.output.let_go();
}

/// Sends the head of both streams, then the exit, or that there is more. Whether that was all.
async fn send_head(execution: &Execution, sender: &mpsc::Sender<Result<RunResponse, Status>>) -> bool {
    let send = |event| sender.send(Ok(RunResponse { event: Some(event) }));
    let mut reader = execution.output.read_head();
    loop {
        let output = tokio::select! {
            output = reader.next() => output,
            () = sender.closed() => return false,
        };
        let Some(output) = output else { break };
        if send(run_response::Event::Output(output)).await.is_err() {
            return false;
        }
    }
    if reader.beyond() {
        // Without a client nobody comes, or one who knows where he was.
        drop(send(run_response::Event::Beyond(Beyond {})).await);
        return false;
    }
    let exit = tokio::select! {
        exit = execution.ended() => exit,
        () = sender.closed() => return false,
    };
    send(run_response::Event::Exit(exit)).await.is_ok()
}

/// Runs until the execution has ended at most: what it has not read by then nobody will.
async fn bounded<T>(execution: &Execution, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        result = work => Some(result),
        _ = execution.ended() => None,
    }
}

/// Counts an attached client for as long as it lives.
struct Attached {
    agent: Arc<Agent>,
    /// It keeps the box busy as well.
    busy: bool,
}

impl Attached {
    fn new(agent: &Arc<Agent>, busy: bool) -> Self {
        agent.attached.send_modify(|count| *count += 1);
        if busy {
            agent.events.attached();
        }
        Self { agent: Arc::clone(agent), busy }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.agent.attached.send_modify(|count| *count -= 1);
        if self.busy {
            self.agent.events.detached();
        }
    }
}
