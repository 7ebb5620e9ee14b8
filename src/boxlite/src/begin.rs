//! How an execution begins: the calls that start one.

use boxlite_portal::v1;
use tonic::Streaming;

use crate::error::{Error, ErrorKind, Result};
use crate::link::Connected;
use crate::rpc;

/// What became of a start.
#[derive(Debug)]
pub(crate) enum Begun {
    /// It runs; maybe with a stream of how its output begins.
    Started(Option<Streaming<v1::RunResponse>>),
    /// It did not start.
    Failed(v1::StartFailure),
}

const WHAT: &str = "cannot run a command";

impl Begun {
    /// Starts it, or finds it started.
    pub(crate) async fn exec(connected: &Connected, request: v1::ExecRequest) -> Result<Self> {
        use v1::exec_response::Outcome;
        let answer = rpc::call(WHAT, connected.portal.execution().exec(request)).await?;
        match answer.outcome {
            Some(Outcome::Started(_)) => Ok(Self::Started(None)),
            Some(Outcome::Failure(failure)) => Ok(Self::Failed(failure)),
            None => Err(empty()),
        }
    }

    /// Starts it, and has the head of its output come with the answer.
    pub(crate) async fn run(connected: &Connected, request: v1::ExecRequest) -> Result<Self> {
        use v1::run_response::Event;
        let mut head = rpc::call(WHAT, connected.portal.execution().run(request)).await?;
        let first = tokio::time::timeout(rpc::DEADLINE, head.message()).await;
        let first = first.map_err(|_| {
            let text = format!("{WHAT}: the box did not answer within {:?}", rpc::DEADLINE);
            Error::new(ErrorKind::Portal, text)
        })?;
        match first.map_err(|status| rpc::refused(WHAT, &status))?.and_then(|first| first.event) {
            Some(Event::Started(_)) => Ok(Self::Started(Some(head))),
            Some(Event::Failure(failure)) => Ok(Self::Failed(failure)),
            _ => Err(empty()),
        }
    }
}

fn empty() -> Error {
    Error::new(ErrorKind::Portal, "the box gave an empty answer")
}
