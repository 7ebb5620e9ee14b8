//! The head of both output streams of a process, which comes with the call that started it.
//!
//! ```text
//!   Run stream ──split──┬─▶ queue (8 messages, 64 KiB, and the end) ─▶ pump of standard output
//!                       └─▶ queue                                   ─▶ pump of standard error
//! ```
//!
//! A queue holds all that a head can be, so the one task that serves both never waits for a reader, and the streams stay
//! independent of each other. A box that sends more than a head breaks the rules, and is not listened to any longer.

use boxlite_portal::limits;
use boxlite_portal::v1::run_response::Event;
use boxlite_portal::v1::{Exit, Output, RunResponse, StreamKind};
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tonic::Status;

/// What arrives of the head of one stream. Its end without an end is a lost connection.
pub(crate) type Head = mpsc::Receiver<Part>;

/// A part of a head.
#[derive(Debug, PartialEq)]
pub(crate) enum Part {
    /// Output, in order.
    Output(Output),
    /// The end of the process, after all of its output.
    Exit(Exit),
    /// There is more output than comes this way.
    Beyond,
    /// The box broke the rules.
    Nonsense(&'static str),
}

/// Serves standard output and standard error until their heads have ended, also when nobody listens: a call that is given
/// up looks to the box like a client that was lost.
pub(crate) fn split(
    mut run: impl Stream<Item = Result<RunResponse, Status>> + Send + Unpin + 'static,
) -> [Head; 2] {
    // One place more, for the end.
    let (stdout, out_head) = mpsc::channel(limits::HEAD_MESSAGES + 1);
    let (stderr, err_head) = mpsc::channel(limits::HEAD_MESSAGES + 1);
    tokio::spawn(async move {
        let mut sides = [Side::new(stdout), Side::new(stderr)];
        let end = loop {
            match run.next().await.and_then(|message| message.ok()?.event) {
                Some(Event::Output(output)) => match take(&mut sides, output) {
                    Ok(()) => {}
                    Err(why) => break Some(Part::Nonsense(why)),
                },
                Some(Event::Exit(exit)) => break Some(Part::Exit(exit)),
                Some(Event::Beyond(_)) => break Some(Part::Beyond),
                Some(Event::Started(_) | Event::Failure(_)) => {
                    break Some(Part::Nonsense("the box said twice how a start went"));
                }
                None => break None,
            }
        };
        for side in sides {
            let end = match &end {
                Some(Part::Exit(exit)) => Part::Exit(*exit),
                Some(Part::Nonsense(why)) => Part::Nonsense(why),
                Some(_) => Part::Beyond,
                None => continue,
            };
            // It has a place for that, and a pump that has gone wants to know nothing more.
            drop(side.queue.try_send(end));
        }
    });
    [out_head, err_head]
}

/// One of the streams, and how much of it may still come.
struct Side {
    queue: mpsc::Sender<Part>,
    messages: usize,
    bytes: usize,
}

impl Side {
    fn new(queue: mpsc::Sender<Part>) -> Self {
        Self { queue, messages: limits::HEAD_MESSAGES, bytes: limits::HEAD }
    }
}

fn take([stdout, stderr]: &mut [Side; 2], output: Output) -> Result<(), &'static str> {
    let side = match output.stream() {
        StreamKind::Stdout => stdout,
        StreamKind::Stderr => stderr,
        StreamKind::Unspecified => return Err("the box sent a stream that is none"),
    };
    if side.messages == 0 || output.data.len() > side.bytes {
        return Err("the box sent more than the head of a stream");
    }
    side.messages -= 1;
    side.bytes -= output.data.len();
    // A pump that has gone wants to know nothing more.
    drop(side.queue.try_send(Part::Output(output)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use boxlite_portal::v1::{Beyond, Started, exit};
    use futures_util::stream;

    fn output(kind: StreamKind, offset: u64, data: &[u8]) -> Event {
        Event::Output(Output { stream: kind.into(), offset, data: data.to_vec().into() })
    }

    async fn heads(events: Vec<Event>) -> [Vec<Part>; 2] {
        let run = stream::iter(events.into_iter().map(|event| Ok(RunResponse { event: Some(event) })));
        let [mut stdout, mut stderr] = split(run);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some(part) = stdout.recv().await {
            out.push(part);
        }
        while let Some(part) = stderr.recv().await {
            err.push(part);
        }
        [out, err]
    }

    #[tokio::test]
    async fn each_stream_gets_its_output_and_both_get_the_exit_last() {
        let exit = Exit { status: Some(exit::Status::Code(3)), ..Default::default() };
        let events = vec![
            output(StreamKind::Stderr, 0, b"e"),
            output(StreamKind::Stdout, 0, b"o"),
            output(StreamKind::Stderr, 1, b"r"),
            Event::Exit(exit),
            output(StreamKind::Stdout, 1, b"behind the end"),
        ];
        let [out, err] = heads(events).await;
        assert!(
            matches!(&out[..], [Part::Output(o), Part::Exit(end)] if &o.data[..] == b"o" && *end == exit)
        );
        assert!(matches!(&err[..], [Part::Output(_), Part::Output(r), Part::Exit(_)] if r.offset == 1));
    }

    #[tokio::test]
    async fn a_head_that_is_full_to_the_last_byte_arrives_though_nobody_reads_yet() {
        let piece = vec![7; limits::HEAD / limits::HEAD_MESSAGES];
        let offset = |n: usize| (n * piece.len()) as u64;
        let mut events: Vec<Event> =
            (0..limits::HEAD_MESSAGES).map(|n| output(StreamKind::Stdout, offset(n), &piece)).collect();
        events.push(Event::Beyond(Beyond {}));
        let [out, err] = heads(events).await;
        assert_eq!((out.len(), out.last()), (limits::HEAD_MESSAGES + 1, Some(&Part::Beyond)));
        assert_eq!(err, [Part::Beyond]);
    }

    #[tokio::test]
    async fn a_box_that_breaks_the_rules_is_not_listened_to_any_longer() {
        let many = (0..=limits::HEAD_MESSAGES as u64).map(|n| output(StreamKind::Stdout, n, b"x")).collect();
        let large = vec![output(StreamKind::Stderr, 0, &vec![0; limits::HEAD + 1])];
        let again = vec![Event::Started(Started::default())];
        let unknown = vec![output(StreamKind::Unspecified, 0, b"x")];
        for events in [many, large, again, unknown] {
            for side in heads(events).await {
                assert!(matches!(side.last(), Some(Part::Nonsense(_))), "{side:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_lost_connection_ends_a_head_without_an_end() {
        let lost = stream::iter([Err(Status::unavailable("gone"))]);
        let [mut stdout, mut stderr] = split(lost);
        assert_eq!((stdout.recv().await, stderr.recv().await), (None, None));
    }
}
