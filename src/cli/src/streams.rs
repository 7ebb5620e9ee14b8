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
use crate::keys::{DetachKeys, Typed};
use crate::terminal::{self, Terminal};

/// How many times the user may ask by signal before the command is killed.
const PATIENCE: usize = 3;
/// One read of standard input.
const CHUNK: usize = 64 << 10;
/// How long a command may take to read what was typed before the detach keys.
const TYPED: Duration = Duration::from_secs(2);
/// 128 + SIGPIPE: nobody reads our output any more.
const NOBODY_READS: i32 = 141;
/// 128 + SIGKILL: what is known of a command whose end was not waited for.
const KILLED: i32 = 137;

/// As timeout(1) has it.
const OUT_OF_TIME: i32 = 124;

/// How a connection to a command came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The command has ended: the code that a shell would report.
    Exit(i32),
    /// The user has left it.
    Detached,
}

/// How to connect.
pub(crate) struct Wires<'a> {
    /// Our standard input is passed on.
    pub(crate) interactive: bool,
    /// The command has a terminal; ours, where we have one, is handed over to it.
    pub(crate) tty: bool,
    pub(crate) detach_keys: DetachKeys,
    pub(crate) whole: Whole<'a>,
}

/// What is ended when the user has lost patience, or nobody reads the output.
#[derive(Clone, Copy)]
pub(crate) enum Whole<'a> {
    /// The box: its monitor needs no help of the guest for that.
    Box(&'a LiteBox),
    /// The command alone.
    Command,
}

/// Connects the streams, passes signals on, and waits for the end.
pub(crate) async fn connect(mut execution: Execution, wires: Wires<'_>) -> Result<End, Failure> {
    let Wires { interactive, tty, detach_keys, whole } = wires;
    let terminal = if tty && interactive { Terminal::take()? } else { None };
    let keys = terminal.is_some().then_some(detach_keys);
    let stdin = execution.stdin();
    let feeding = async {
        match stdin {
            Some(stdin) if interactive => feed(stdin, keys).await,
            other => {
                drop(other);
                Ok(Fed::End)
            }
        }
    };
    let stdout = execution.stdout();
    let stderr = execution.stderr();
    let printing =
        async { tokio::try_join!(print(stdout, tokio::io::stdout()), print(stderr, tokio::io::stderr())) };
    let mut signals = Signals::new()?;
    let mut resized = signal(SignalKind::window_change())?;
    let follows_us = tty && terminal::size().is_some();
    if follows_us {
        resize(&execution).await;
    }

    tokio::pin!(feeding, printing);
    let (mut fed, mut printed, mut asked) = (false, false, 0);
    // A guest may be slow to take a signal: nothing else waits for that.
    let mut sending = FuturesUnordered::new();
    loop {
        tokio::select! {
            outcome = &mut feeding, if !fed => {
                fed = true;
                match outcome {
                    Ok(Fed::End) => {}
                    Ok(Fed::Detached) => return Ok(End::Detached),
                    Err(error) => exit::message(&error.report()),
                }
            }
            outcome = &mut printing, if !printed => {
                printed = true;
                if let Err(error) = outcome {
                    // Without its reader the command is of no use to anybody.
                    end(&execution, whole).await;
                    return if error.kind() == ErrorKind::BrokenPipe { Ok(End::Exit(NOBODY_READS)) } else { Err(error.into()) };
                }
            }
            result = execution.wait(), if printed => {
                let result = result?;
                if result.output_cut {
                    exit::message("some output is missing: it was still open, or the connection was lost");
                }
                if result.timed_out {
                    exit::message("the command ran out of time and was killed");
                    return Ok(End::Exit(OUT_OF_TIME));
                }
                return Ok(End::Exit(result.shell_code()));
            }
            _ = resized.recv(), if follows_us => sending.push(Either::Left(Either::Right(resize(&execution)))),
            number = signals.next() => {
                asked += 1;
                if asked > PATIENCE {
                    return Ok(End::Exit(KILLED));
                } else if asked == PATIENCE {
                    exit::message("killing it; once more gives up waiting");
                    sending.push(Either::Left(Either::Left(end(&execution, whole))));
                } else {
                    sending.push(Either::Right(pass_on(&execution, number)));
                }
            }
            Some(()) = sending.next() => {}
        }
    }
}

/// Gives the command's terminal the size of ours.
async fn resize(execution: &Execution) {
    let Some((rows, columns)) = terminal::size() else { return };
    match execution.resize_tty(rows, columns).await {
        // A command that has just ended needs no size.
        Err(error) if error.kind() != boxlite::ErrorKind::InvalidState => exit::message(&error.report()),
        _ => {}
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

/// How the passing on of our standard input came to its end.
enum Fed {
    End,
    Detached,
}

/// Passes our standard input on, then closes that of the command, unless the detach keys come before.
async fn feed(mut stdin: ExecStdin, mut keys: Option<DetachKeys>) -> boxlite::Result<Fed> {
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
        let Typed { input, detach } = match &mut keys {
            Some(keys) => keys.take(&chunk),
            None => Typed { input: chunk, detach: false },
        };
        if let Err(error) = stdin.send_input(input).await {
            // A command that does not read to the end is nothing to complain about.
            return if error.kind() == boxlite::ErrorKind::Execution { Ok(Fed::End) } else { Err(error) };
        }
        if detach {
            // What was typed before the keys is the command's, also if it is slow to read.
            return match tokio::time::timeout(TYPED, stdin.finish()).await {
                Ok(Err(error)) if error.kind() != boxlite::ErrorKind::Execution => Err(error),
                _ => Ok(Fed::Detached),
            };
        }
    }
    match stdin.close().await {
        Err(error) if error.kind() != boxlite::ErrorKind::Execution => Err(error),
        _ => Ok(Fed::End),
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
