//! Calls to the agent: their deadlines, and their failures as errors of the library.
//!
//! What comes back is the word of a machine that is not trusted: messages are cut and escaped before they are shown.

use std::future::Future;
use std::time::Duration;

use boxlite_portal::v1;
use tonic::{Code, Response, Status};

use crate::error::{Error, ErrorKind, Result, StartFailure};

/// How this side calls itself in a hello.
pub(crate) const BUILD: &str = concat!("boxlite ", env!("CARGO_PKG_VERSION"));
/// How long a call may take that the agent can answer at once. Generous: the machine may be emulated and busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// The longest message of a guest that is shown, in characters.
const SHOWN: usize = 500;

/// Makes a call that is answered at once, within [`DEADLINE`].
pub(crate) async fn call<T>(
    what: &str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(refused(what, &status)),
        Err(_) => {
            Err(Error::new(ErrorKind::Portal, format!("{what}: the box did not answer within {DEADLINE:?}")))
        }
    }
}

/// The agent's refusal, or the loss of the connection, as an error.
pub(crate) fn refused(what: &str, status: &Status) -> Error {
    let kind = match status.code() {
        Code::NotFound => ErrorKind::NotFound,
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        Code::InvalidArgument => ErrorKind::InvalidArgument,
        Code::FailedPrecondition => ErrorKind::InvalidState,
        Code::ResourceExhausted => ErrorKind::ResourceExhausted,
        Code::Unimplemented => ErrorKind::Unsupported,
        _ => ErrorKind::Portal,
    };
    Error::new(kind, format!("{what}: {}", shown(status.message())))
}

/// Text of a guest, fit to be shown.
pub(crate) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(SHOWN).collect();
    let escaped = cut.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"");
    if cut.len() < text.len() { format!("{escaped}…") } else { escaped }
}

/// A process that did not start.
pub(crate) fn not_started(program: &str, failure: &v1::StartFailure) -> Error {
    use v1::start_failure::Kind;
    let start = match failure.kind() {
        Kind::NotFound => StartFailure::NotFound,
        Kind::NotExecutable => StartFailure::NotExecutable,
        _ => StartFailure::Other,
    };
    let message = format!("cannot start `{}`: {}", program.escape_debug(), shown(&failure.message));
    Error::new(ErrorKind::Execution, message).with_start_failure(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_send_control_characters_to_a_terminal_or_endless_text() {
        assert_eq!(shown("no \x1b[31m such 'file'"), "no \\u{1b}[31m such 'file'");
        assert!(shown(&"x".repeat(100_000)).len() < 600);
    }
}
