//! A process that runs in a box, and its streams.
//!
//! ```text
//!   guest: process ─▶ pipe ─▶ bounded buffer ─▶ Attach stream (HTTP/2 window) ─▶ pump ─▶ bounded queue ─▶ ExecOutput
//! ```
//!
//! The head of both streams comes with the call that started the process: so much of each that it can be kept for a reader
//! who does not come, and most commands write no more. What is beyond that comes with an Attach stream of its own for each,
//! so that neither waits for the other's reader. A pump whose reader has been dropped goes on reading and throws away, so
//! that the process does not hang. A reader that exists and does not read stops the process in the box: that is the
//! back-pressure.
//!
//! The exit is known when both pumps have seen it, each after the last of its output. A pump that loses the connection
//! comes back where it was, for as long as [`PATIENCE`] says; what the box has not kept meanwhile is told as output that was
//! cut. After that the exit is *unknown*, which is an error and no exit, until somebody asks again:
//!
//! ```text
//!   open ──pump ended──▶ partly ──other pump ended──▶ known      (once, and for all who wait)
//!     └──connection lost, not back in time──▶ lost ──wait, and the box answers──▶ known
//! ```

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use boxlite_portal::client::Portal;
use boxlite_portal::v1;
use boxlite_portal::v1::attach_response::Event;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

use crate::error::{Error, ErrorKind, Result};
use crate::head::{self, Head, Part};
use crate::link::{Cause, Connected, Link};
use crate::rpc;

/// Chunks that wait for a reader, each of at most 64 KiB. All of a head, so that a reader who takes his time keeps nobody from
/// asking for what is beyond it.
const QUEUE: usize = boxlite_portal::limits::HEAD_MESSAGES;

/// How long a lost connection is tried to be made again before the end of an execution counts as unknown.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many connections in a row may be lost at once and without any output, and what at once is.
const FRUITLESS: usize = 8;
const AT_ONCE: Duration = Duration::from_secs(1);
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecResult {
    /// Exit code 0 to 255, or the negative number of the signal that ended it.
    pub exit_code: i32,
    /// Its own time limit ended it.
    pub timed_out: bool,
    /// Output is missing: a descendant kept it open, and what that wrote later was not waited for; or the connection was
    /// lost, and the box had not kept all of it.
    pub output_cut: bool,
}

impl ExecResult {
    fn new(exit: &v1::Exit) -> Result<Self> {
        use v1::exit::Status;
        let exit_code = match exit.status {
            Some(Status::Code(code)) if (0..=255).contains(&code) => code,
            Some(Status::Signal(signal)) if (1..=64).contains(&signal) => {
                -i32::try_from(signal).unwrap_or(64)
            }
            _ => return Err(Error::new(ErrorKind::Portal, "the box reported an end that cannot be")),
        };
        Ok(Self { exit_code, timed_out: exit.timed_out, output_cut: exit.output_cut })
    }

    /// The code that a shell would report: 128 plus the number for a signal.
    pub fn shell_code(&self) -> i32 {
        if self.exit_code < 0 { 128 - self.exit_code } else { self.exit_code }
    }
}

/// What is known of the end.
#[derive(Clone, Debug, Default)]
enum End {
    /// The process runs, or its output is not all here yet.
    #[default]
    Open,
    /// This many of the streams have delivered all of it.
    Partly(ExecResult),
    Known(ExecResult),
    /// The connection was lost: the process may still run.
    Lost(String),
}

/// A process in a box.
///
/// Dropping it does not end the process; it closes the standard input if that was not taken, and lets the rest of the
/// output go.
#[derive(Debug)]
pub struct Execution {
    id: String,
    link: Link,
    stdin: Option<ExecStdin>,
    stdout: Option<ExecOutput>,
    stderr: Option<ExecOutput>,
    end: Arc<watch::Sender<End>>,
}

impl Execution {
    /// Attaches to a process by its id. `stdin`: whether it has a standard input to write to, and whether dropping the
    /// writer closes it. `head`: how its output begins, if that came with its start. `whole`: all of its output is for us, so
    /// that what is missing at its beginning is a loss, too.
    pub(crate) fn attach(
        link: Link,
        connected: &Connected,
        id: String,
        stdin: Option<OnDrop>,
        head: Option<Streaming<v1::RunResponse>>,
        whole: bool,
    ) -> Self {
        let [out_head, err_head] = head.map_or([None, None], |head| head::split(head).map(Some));
        let end = Arc::new(watch::Sender::new(End::Open));
        let pump = |kind, head| {
            let (output, reader) = mpsc::channel(QUEUE);
            let stream = Pump {
                link: link.clone(),
                id: id.clone(),
                kind,
                output,
                position: 0,
                begun: whole,
                gap: false,
            };
            tokio::spawn(stream.run(head, connected.clone(), Arc::clone(&end)));
            Some(ExecOutput { reader })
        };
        let (stdout, stderr) =
            (pump(v1::StreamKind::Stdout, out_head), pump(v1::StreamKind::Stderr, err_head));
        let stdin = stdin.map(|on_drop| ExecStdin::new(connected.portal.clone(), id.clone(), on_drop));
        Self { id, link, stdin, stdout, stderr, end }
    }

    /// Its id, unique in its box.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Takes the writer of its standard input: `None` when it has none, or it was taken.
    pub fn stdin(&mut self) -> Option<ExecStdin> {
        self.stdin.take()
    }

    /// Takes the reader of its standard output: `None` when it was taken.
    pub fn stdout(&mut self) -> Option<ExecOutput> {
        self.stdout.take()
    }

    /// Takes the reader of its standard error: `None` when it was taken.
    pub fn stderr(&mut self) -> Option<ExecOutput> {
        self.stderr.take()
    }

    /// Waits for its end, which comes after the last of its output. So output that nobody reads can hold it up, when
    /// it is more than about a megabyte: read both outputs, or take them and drop them. Any number of callers may
    /// wait, also after the end.
    ///
    /// # Errors
    /// When the connection to the box is lost and does not come back within seconds. That is no exit: the process may
    /// still run, and to wait again asks the box again.
    pub async fn wait(&self) -> Result<ExecResult> {
        // What was lost before this call is asked for anew; what is lost meanwhile is its error.
        if let Some(result) = self.ask_again().await? {
            return Ok(result);
        }
        let mut end = self.end.subscribe();
        let end = end.wait_for(|end| matches!(end, End::Known(_) | End::Lost(_))).await;
        match end.as_deref() {
            Ok(End::Known(result)) => Ok(*result),
            Ok(End::Lost(why)) => Err(lost(&self.id, why)),
            _ => Err(lost(&self.id, "its streams were closed")),
        }
    }

    async fn ask_again(&self) -> Result<Option<ExecResult>> {
        if !matches!(&*self.end.borrow(), End::Lost(_)) {
            return Ok(None);
        }
        let connected = self.connected().await?;
        let request = v1::WaitRequest { execution_id: self.id.clone() };
        // No deadline: the process may run for as long as it likes, and a lost connection is an error.
        let exit = match connected.portal.execution().wait(request).await {
            Ok(answer) => answer.into_inner().exit.unwrap_or_default(),
            Err(status) => {
                self.link.lost(&connected);
                return Err(lost(&self.id, &rpc::shown(status.message())));
            }
        };
        // Nobody can say whether all of its output was seen.
        let result = ExecResult { output_cut: true, ..ExecResult::new(&exit)? };
        let mut first = result;
        self.end.send_modify(|end| match end {
            End::Known(known) => first = *known,
            end => *end = End::Known(result),
        });
        Ok(Some(first))
    }

    async fn connected(&self) -> Result<Connected> {
        self.link.portal().await.map_err(|cause| self.unreachable(cause))
    }

    async fn live(&self) -> Result<Portal> {
        self.link.live().await.map_err(|cause| self.unreachable(cause))
    }

    fn unreachable(&self, cause: Cause) -> Error {
        Error::new(ErrorKind::Portal, format!("the box of execution {} cannot be reached", self.id))
            .with_source(cause)
    }

    /// Kills it and all that it started.
    ///
    /// # Errors
    /// When it has ended, or the box does not answer.
    pub async fn kill(&self) -> Result<()> {
        self.send_signal(9, true).await
    }

    /// Sends it a signal: a Linux number, 1 to 64.
    ///
    /// # Errors
    /// When the number is none, it has ended, or the box does not answer.
    pub async fn signal(&self, signal: i32) -> Result<()> {
        match u32::try_from(signal) {
            Ok(number @ 1..=64) => self.send_signal(number, false).await,
            _ => Err(Error::new(ErrorKind::InvalidArgument, format!("{signal} is no signal"))),
        }
    }

    async fn send_signal(&self, signal: u32, all: bool) -> Result<()> {
        let request = v1::SignalRequest { execution_id: self.id.clone(), signal, all };
        let portal = self.live().await?;
        rpc::call("cannot signal", portal.execution().signal(request)).await.map(drop)
    }

    /// Tells its terminal a new size, in characters.
    ///
    /// # Errors
    /// When it has no terminal, has ended, or the box does not answer.
    pub async fn resize_tty(&self, rows: u16, columns: u16) -> Result<()> {
        let size = v1::TerminalSize { rows: rows.into(), columns: columns.into() };
        let request = v1::ResizeRequest { execution_id: self.id.clone(), size: Some(size) };
        let portal = self.live().await?;
        rpc::call("cannot resize", portal.execution().resize(request)).await.map(drop)
    }
}

fn lost(id: &str, why: &str) -> Error {
    Error::new(ErrorKind::Execution, format!("the end of execution {id} is not known: {why}"))
}

/// Moves one stream from the box to its reader, then tells that the end has come.
struct Pump {
    link: Link,
    id: String,
    kind: v1::StreamKind,
    output: mpsc::Sender<Bytes>,
    /// How much of the stream has arrived.
    position: u64,
    /// What comes next follows what has arrived, or is the first byte of all.
    begun: bool,
    /// Something before what has arrived has not.
    gap: bool,
}

/// Why a stream stopped before its end.
enum Stopped {
    /// The connection was lost: another one may do.
    Broken(String),
    /// The box knows no more of it, or talks nonsense.
    Failed(String),
}

impl Pump {
    async fn run(mut self, head: Option<Head>, connected: Connected, end: Arc<watch::Sender<End>>) {
        let outcome = match self.read_head(head).await {
            Some(outcome) => outcome,
            None => self.run_to_end(connected).await,
        };
        end.send_modify(|end| {
            *end = match (outcome, std::mem::take(end)) {
                (_, End::Known(result)) => End::Known(result),
                (_, End::Lost(why)) => End::Lost(why),
                (Err(why), _) => End::Lost(why),
                (Ok(result), End::Open) => End::Partly(result),
                (Ok(result), End::Partly(other)) => {
                    End::Known(ExecResult { output_cut: result.output_cut | other.output_cut, ..result })
                }
            }
        });
    }

    /// Moves what came with the start; `None` if that is not all.
    async fn read_head(&mut self, head: Option<Head>) -> Option<Result<ExecResult, String>> {
        let mut head = head?;
        loop {
            match head.recv().await {
                Some(Part::Output(chunk)) => self.deliver(chunk).await,
                Some(Part::Exit(exit)) => {
                    let result = ExecResult::new(&exit).map_err(|e| e.to_string());
                    return Some(result.map(|result| self.with_gap(result)));
                }
                Some(Part::Nonsense(why)) => return Some(Err(why.to_owned())),
                // There is more, or the connection was lost: both show when it is asked for.
                Some(Part::Beyond) | None => return None,
            }
        }
    }

    fn with_gap(&self, result: ExecResult) -> ExecResult {
        ExecResult { output_cut: result.output_cut | self.gap, ..result }
    }

    async fn run_to_end(&mut self, mut connected: Connected) -> Result<ExecResult, String> {
        let mut fruitless = 0;
        loop {
            let (begun, before) = (Instant::now(), self.position);
            let mut why = match self.read(&connected).await {
                Ok(result) => return Ok(self.with_gap(result)),
                Err(Stopped::Failed(why)) => return Err(why),
                Err(Stopped::Broken(why)) => why,
            };
            self.link.lost(&connected);
            // A box that hangs up as soon as it is called does not get called for ever.
            fruitless = if self.position > before || begun.elapsed() > AT_ONCE { 0 } else { fruitless + 1 };
            if fruitless > FRUITLESS {
                return Err(why);
            }
            let given_up = Instant::now() + PATIENCE;
            connected = loop {
                match self.link.portal().await {
                    Ok(connected) => break connected,
                    Err(cause) => why = format!("{why}; {cause}"),
                }
                if Instant::now() + PAUSE >= given_up {
                    return Err(why);
                }
                tokio::time::sleep(PAUSE).await;
                why.truncate(why.find("; ").unwrap_or(why.len()));
            };
        }
    }

    /// Hands on what is new in a chunk.
    async fn deliver(&mut self, chunk: v1::Output) {
        // What was dropped before this execution was first attached to is nobody's loss.
        self.gap |= self.begun && chunk.offset > self.position;
        self.begun = true;
        let seen = usize::try_from(self.position.saturating_sub(chunk.offset)).unwrap_or(usize::MAX);
        let data = chunk.data.slice(seen.min(chunk.data.len())..);
        self.position = self.position.max(chunk.offset.saturating_add(chunk.data.len() as u64));
        // A reader that was dropped does not want it; the process goes on.
        drop(self.output.send(data).await);
    }

    async fn read(&mut self, connected: &Connected) -> Result<ExecResult, Stopped> {
        let told = |status: Status| {
            let text = rpc::shown(status.message());
            match status.code() {
                Code::NotFound | Code::InvalidArgument | Code::FailedPrecondition => Stopped::Failed(text),
                _ => Stopped::Broken(text),
            }
        };
        let failed = |text: &str| Stopped::Failed(text.to_owned());
        let mut request = v1::AttachRequest {
            execution_id: self.id.clone(),
            streams: vec![self.kind.into()],
            ..Default::default()
        };
        match self.kind {
            v1::StreamKind::Stderr => request.stderr_from = self.position,
            _ => request.stdout_from = self.position,
        }
        let mut stream = connected.portal.execution().attach(request).await.map_err(told)?.into_inner();
        loop {
            match stream.message().await.map_err(told)?.and_then(|message| message.event) {
                Some(Event::Output(chunk)) if chunk.stream == i32::from(self.kind) => {
                    self.deliver(chunk).await;
                }
                Some(Event::Exit(exit)) => {
                    return ExecResult::new(&exit).map_err(|e| Stopped::Failed(e.to_string()));
                }
                Some(Event::Output(_)) => return Err(failed("the box sent a stream that was not asked for")),
                None => return Err(Stopped::Broken("the box ended a stream without an exit".into())),
            }
        }
    }
}

/// Reads one output stream of a process: chunks of bytes as they arrive, until `None`.
#[derive(Debug)]
pub struct ExecOutput {
    reader: mpsc::Receiver<Bytes>,
}

impl ExecOutput {
    /// The next bytes, at most 64 KiB; `None` at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.reader.recv().await
    }

    /// Reads to the end, keeping at most `limit` bytes; the rest is read and let go.
    pub async fn read_to_end(&mut self, limit: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(chunk) = self.next().await {
            let room = limit.saturating_sub(all.len());
            all.extend_from_slice(&chunk[..chunk.len().min(room)]);
        }
        all
    }
}

impl Stream for ExecOutput {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.reader.poll_recv(context)
    }
}

/// What happens to a process's standard input when its writer is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnDrop {
    /// It is closed: nobody else will write.
    Close,
    /// It stays open for the next one who attaches.
    LeaveOpen,
}

enum Input {
    Data(Bytes),
    Close,
}

/// Writes to a process's standard input. Dropping it closes the input of an execution; that of a box's main command
/// stays open, and has to be [closed](Self::close).
#[derive(Debug)]
pub struct ExecStdin {
    queue: Option<mpsc::Sender<Input>>,
    done: Option<JoinHandle<Result<()>>>,
}

impl ExecStdin {
    fn new(portal: Portal, execution_id: String, on_drop: OnDrop) -> Self {
        let (queue, mut input) = mpsc::channel(QUEUE);
        let done = tokio::spawn(async move {
            // The call is made with the first input: most processes never get any.
            let first = match input.recv().await {
                Some(first) => Some(first),
                None if on_drop == OnDrop::Close => None,
                None => return Ok(()),
            };
            let first = stream::iter(first);
            let rest = stream::poll_fn(move |context| input.poll_recv(context));
            let last = stream::iter((on_drop == OnDrop::Close).then_some(Input::Close));
            let id = execution_id;
            let requests = first.chain(rest).chain(last).map(move |input| v1::StdinRequest {
                execution_id: id.clone(),
                action: Some(match input {
                    Input::Data(data) => v1::stdin_request::Action::Data(data),
                    Input::Close => v1::stdin_request::Action::Close(true),
                }),
            });
            // No deadline: the process may take its time to read.
            let answer = portal.execution().stdin(requests).await;
            answer.map(drop).map_err(|status| rpc::refused("cannot write to the standard input", &status))
        });
        Self { queue: Some(queue), done: Some(done) }
    }

    /// Writes bytes, as many as there are. Waits while the process does not read.
    ///
    /// # Errors
    /// When the input has been closed by either side, or the connection is lost.
    pub async fn send_input(&mut self, data: impl Into<Bytes>) -> Result<()> {
        let mut data: Bytes = data.into();
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(boxlite_portal::limits::CHUNK));
            self.push(Input::Data(chunk)).await?;
        }
        Ok(())
    }

    async fn push(&mut self, input: Input) -> Result<()> {
        if let Some(queue) = &self.queue
            && queue.send(input).await.is_ok()
        {
            return Ok(());
        }
        self.queue = None;
        let closed = || Error::new(ErrorKind::Execution, "the standard input is closed");
        Err(self.finished().await.err().unwrap_or_else(closed))
    }

    /// Closes the input: the process reads an end of file after all that was written.
    ///
    /// # Errors
    /// When the connection is lost before all of it has been taken.
    pub async fn close(mut self) -> Result<()> {
        self.push(Input::Close).await?;
        self.queue = None;
        self.finished().await
    }

    /// Gives up writing once all that was written has been taken, so that nothing of it is lost when this process ends right
    /// after. What dropping the writer does to the input happens here, too.
    ///
    /// # Errors
    /// When the connection is lost before all of it has been taken.
    pub async fn finish(mut self) -> Result<()> {
        self.queue = None;
        self.finished().await
    }

    /// Whether the input can take no more.
    pub fn is_closed(&self) -> bool {
        self.queue.as_ref().is_none_or(mpsc::Sender::is_closed)
    }

    async fn finished(&mut self) -> Result<()> {
        // Told once: whoever asks again has had the answer.
        let Some(done) = self.done.take() else { return Ok(()) };
        match done.await {
            Ok(outcome) => outcome,
            Err(e) => {
                Err(Error::new(ErrorKind::Internal, "the writer of a standard input failed").with_source(e))
            }
        }
    }
}
