//! The three streams between this process and one in a box.

use std::io::{ErrorKind, Read};
use std::time::Duration;

use boxlite::{ExecOutput, ExecStdin, Execution, LiteBox};
use futures_util::future::Either;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::exit::{self, Failure};

/// How many times the user may ask by signal before the command is killed.
const PATIENCE: usize = 3;
/// One read of standard input.
const CHUNK: usize = 64 << 10;
/// 128 + SIGPIPE: nobody reads our output any more.
const NOBODY_READS: i32 = 141;
/// 128 + SIGKILL: what is known of a command whose end was not waited for.
const KILLED: i32 = 137;

/// What is ended when the user has lost patience, or nobody reads the output.
#[derive(Clone, Copy)]
pub(crate) enum Whole<'a> {
    /// The box: its monitor needs no help of the guest for that.
    Box(&'a LiteBox),
    /// The command alone.
    Command,
}

/// Connects the streams, passes signals on, and waits for the end. Returns the code that a shell would report.
pub(crate) async fn connect(
    mut execution: Execution,
    interactive: bool,
    whole: Whole<'_>,
) -> Result<i32, Failure> {
    let stdin = execution.stdin();
    let feeding = async {
        match stdin {
            Some(stdin) if interactive => feed(stdin).await,
            other => {
                drop(other);
                Ok(())
            }
        }
    };
    let stdout = execution.stdout();
    let stderr = execution.stderr();
    let printing =
        async { tokio::try_join!(print(stdout, tokio::io::stdout()), print(stderr, tokio::io::stderr())) };
    let mut signals = Signals::new()?;

    tokio::pin!(feeding, printing);
    let (mut fed, mut printed, mut asked) = (false, false, 0);
    // A guest may be slow to take a signal: nothing else waits for that.
    let mut sending = FuturesUnordered::new();
    loop {
        tokio::select! {
            outcome = &mut feeding, if !fed => {
                fed = true;
                if let Err(error) = outcome {
                    exit::message(&error.report());
                }
            }
            outcome = &mut printing, if !printed => {
                printed = true;
                if let Err(error) = outcome {
                    // Without its reader the command is of no use to anybody.
                    end(&execution, whole).await;
                    return if error.kind() == ErrorKind::BrokenPipe { Ok(NOBODY_READS) } else { Err(error.into()) };
                }
            }
            result = execution.wait(), if printed => return Ok(result?.shell_code()),
            number = signals.next() => {
                asked += 1;
                if asked > PATIENCE {
                    return Ok(KILLED);
                } else if asked == PATIENCE {
                    exit::message("killing it; once more gives up waiting");
                    sending.push(Either::Left(end(&execution, whole)));
                } else {
                    sending.push(Either::Right(pass_on(&execution, number)));
                }
            }
            Some(()) = sending.next() => {}
        }
    }
}

async fn pass_on(execution: &Execution, number: i32) {
    if let Err(error) = execution.signal(number).await {
        exit::message(&error.report());
    }
}

async fn end(execution: &Execution, whole: Whole<'_>) {
    let ended = match whole {
        Whole::Box(running) => running.stop_with(0, Duration::ZERO).await,
        Whole::Command => execution.kill().await,
    };
    if let Err(error) = ended {
        exit::message(&error.report());
    }
}

/// Passes our standard input on, then closes that of the command.
async fn feed(mut stdin: ExecStdin) -> boxlite::Result<()> {
    let (sender, mut chunks) = mpsc::channel::<Vec<u8>>(2);
    // A thread of its own, since a read of a terminal cannot be ended; the process ends without it.
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        let mut chunk = vec![0; CHUNK];
        loop {
            match input.read(&mut chunk) {
                Ok(0) => break,
                Ok(length) if sender.blocking_send(chunk[..length].to_vec()).is_ok() => {}
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    exit::message(&format!("cannot read the standard input: {error}"));
                    break;
                }
            }
        }
    });
    while let Some(chunk) = chunks.recv().await {
        if let Err(error) = stdin.send_input(chunk).await {
            // A command that does not read to the end is nothing to complain about.
            return if error.kind() == boxlite::ErrorKind::Execution { Ok(()) } else { Err(error) };
        }
    }
    match stdin.close().await {
        Err(error) if error.kind() != boxlite::ErrorKind::Execution => Err(error),
        _ => Ok(()),
    }
}

async fn print(output: Option<ExecOutput>, mut writer: impl AsyncWrite + Unpin) -> std::io::Result<()> {
    let Some(mut output) = output else { return Ok(()) };
    while let Some(chunk) = output.next().await {
        writer.write_all(&chunk).await?;
        writer.flush().await?;
    }
    Ok(())
}

/// The signals that are passed on.
struct Signals {
    all: [(i32, Signal); 4],
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let listen = |kind: SignalKind| signal(kind).map(|stream| (kind.as_raw_value(), stream));
        Ok(Self {
            all: [
                listen(SignalKind::interrupt())?,
                listen(SignalKind::terminate())?,
                listen(SignalKind::hangup())?,
                listen(SignalKind::quit())?,
            ],
        })
    }

    async fn next(&mut self) -> i32 {
        let [a, b, c, d] = &mut self.all;
        tokio::select! {
            _ = a.1.recv() => a.0,
            _ = b.1.recv() => b.0,
            _ = c.1.recv() => c.0,
            _ = d.1.recv() => d.0,
        }
    }
}
