//! Exit codes, and how a failure is told.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | the command failed (other than `run` and `exec`) |
//! | 125 | `run` and `exec`: BoxLite failed, not the command in the box; any command: wrong usage |
//! | 126 | `run` and `exec`: the command in the box cannot be executed |
//! | 127 | `run` and `exec`: the command in the box does not exist |
//! | 128 + n | `run` and `exec`: the command in the box was ended by signal n |
//! | other | `run` and `exec`: the exit code of the command in the box |

use std::io::Write;
use std::process::ExitCode;

use boxlite::StartFailure;

/// BoxLite itself failed.
pub(crate) const TOOL: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Why a command of ours did not do its work.
#[derive(Debug)]
pub(crate) enum Failure {
    Library(boxlite::Error),
    Output(std::io::Error),
    Told(String),
}

impl From<boxlite::Error> for Failure {
    fn from(error: boxlite::Error) -> Self {
        Self::Library(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Output(error)
    }
}

impl Failure {
    /// Tells it, and gives the exit code.
    pub(crate) fn report(&self, tool_code: u8) -> ExitCode {
        match self {
            // Whoever read our output has gone: nobody is left to be told.
            Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            Self::Output(error) => message(&format!("cannot write the output: {error}")),
            Self::Library(error) => message(&error.report()),
            Self::Told(text) => message(text),
        }
        let code = match self {
            Self::Library(error) => match error.start_failure() {
                Some(StartFailure::NotFound) => NOT_FOUND,
                Some(StartFailure::NotExecutable) => NOT_EXECUTABLE,
                _ => tool_code,
            },
            _ => tool_code,
        };
        ExitCode::from(code)
    }
}

/// A message for people.
pub(crate) fn message(text: &str) {
    // With no standard error there is nobody to tell that there is none.
    drop(writeln!(std::io::stderr(), "boxlite: {text}"));
}

/// A failure before anything began.
pub(crate) fn tool(text: &str) -> ExitCode {
    message(text);
    ExitCode::from(TOOL)
}

/// Wrong usage, or a wish for help.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    if printed.is_ok() && !error.use_stderr() { ExitCode::SUCCESS } else { ExitCode::from(TOOL) }
}

/// The exit code of a command in a box, as a shell would have it.
pub(crate) fn of_command(shell_code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(shell_code).unwrap_or(TOOL))
}
