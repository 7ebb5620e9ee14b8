//! A command and the head of its output in one call.

use boxlite_portal::limits;
use boxlite_portal::v1::run_response::Event;
use boxlite_portal::v1::start_failure::Kind;
use boxlite_portal::v1::{
    AttachRequest, ExecRequest, Output, ProcessSpec, RunResponse, StreamKind, attach_response,
};
use tonic::Streaming;

use crate::harness::{TestAgent, code, sh, spec};
use crate::stories::stories;

async fn run(agent: &TestAgent, id: &str, process: ProcessSpec) -> Streaming<RunResponse> {
    let request = ExecRequest { execution_id: id.to_owned(), process: Some(process), ..Default::default() };
    agent.portal.execution().run(request).await.expect("an answer").into_inner()
}

async fn next(stream: &mut Streaming<RunResponse>) -> Event {
    stream.message().await.expect("a message").and_then(|message| message.event).expect("an event")
}

/// What a stream has from a position on.
async fn rest(agent: &TestAgent, id: &str, from: u64) -> Vec<Output> {
    let request = AttachRequest {
        execution_id: id.to_owned(),
        streams: vec![StreamKind::Stdout.into()],
        stdout_from: from,
        ..Default::default()
    };
    let mut stream = agent.portal.execution().attach(request).await.expect("a stream").into_inner();
    let mut all = Vec::new();
    loop {
        match stream.message().await.expect("a message").and_then(|message| message.event).expect("an event")
        {
            attach_response::Event::Output(output) => all.push(output),
            attach_response::Event::Exit(_) => return all,
        }
    }
}

fn numbers(last: u32) -> Vec<u8> {
    (1..=last).flat_map(|number| format!("{number}\n").into_bytes()).collect()
}

stories! {
    async fn a_short_command_comes_whole_with_the_call_that_starts_it(bench) {
        let agent = bench.idle().await;
        let mut stream = run(&agent, "x", sh("echo out; echo err >&2; exit 3")).await;
        assert!(matches!(next(&mut stream).await, Event::Started(started) if started.pid > 0));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = loop {
            match next(&mut stream).await {
                Event::Output(output) if output.stream() == StreamKind::Stdout => out.extend(output.data),
                Event::Output(output) => err.extend(output.data),
                Event::Exit(exit) => break exit,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((out.as_slice(), err.as_slice(), exit), (&b"out\n"[..], &b"err\n"[..], code(3)));
    }

    async fn a_command_that_does_not_start_says_so_in_the_call(bench) {
        let agent = bench.idle().await;
        let mut stream = run(&agent, "x", spec(&["no-such-program"])).await;
        assert!(matches!(next(&mut stream).await, Event::Failure(failure) if failure.kind() == Kind::NotFound));
        assert!(stream.message().await.expect("an end").is_none());
    }

    async fn what_is_beyond_the_head_follows_without_a_gap(bench) {
        let agent = bench.idle().await;
        let mut stream = run(&agent, "x", sh("seq 1 300000")).await;
        assert!(matches!(next(&mut stream).await, Event::Started(_)));
        let mut seen = Vec::new();
        loop {
            match next(&mut stream).await {
                Event::Output(output) => {
                    assert_eq!(output.offset, seen.len() as u64);
                    seen.extend(output.data);
                }
                Event::Beyond(_) => break,
                other => panic!("{other:?}"),
            }
        }
        assert!((1..=limits::HEAD).contains(&seen.len()), "{}", seen.len());
        for output in rest(&agent, "x", seen.len() as u64).await {
            assert_eq!(output.offset, seen.len() as u64);
            seen.extend(output.data);
        }
        assert!(seen == numbers(300_000), "{} bytes", seen.len());
    }

    async fn a_client_that_is_lost_early_comes_back_to_all_of_it(bench) {
        let agent = bench.idle().await;
        let mut stream = run(&agent, "x", sh("seq 1 300000")).await;
        assert!(matches!(next(&mut stream).await, Event::Started(_)));
        drop(stream);
        let seen: Vec<u8> = rest(&agent, "x", 0).await.into_iter().flat_map(|output| output.data).collect();
        assert!(seen == numbers(300_000), "{} bytes", seen.len());
    }
}
