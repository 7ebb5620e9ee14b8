//! Questions about this installation, answered on standard output.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use boxlite_control::{EngineChoice, ProbeReport, VERSION};
use libkrun_sys::firmware;

use crate::engine::{self, Host};
use crate::text;

/// The exit code of a command line that is not understood.
const USAGE_ERROR: u8 = 2;

/// Prints a [`ProbeReport`] as JSON.
pub(crate) fn probe(asked: EngineChoice) -> ExitCode {
    let engines = engine::report(asked, &Host::look());
    let report = ProbeReport {
        version: VERSION,
        chosen: engines.iter().find(|report| report.usable).map(|report| report.engine),
        engines,
        kernel: firmware::find().map_err(|error| text::line(&error)),
    };
    match serde_json::to_string(&report) {
        Ok(json) => print(&json),
        Err(error) => fail(&text::line(&error)),
    }
}

/// Makes the kernel file in a cache folder and prints its path.
pub(crate) fn kernel(cache: &Path) -> ExitCode {
    match firmware::find().and_then(|library| firmware::kernel(&library, cache)) {
        Ok(path) => print(&path.display().to_string()),
        Err(error) => {
            let hint = error.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
            fail(&format!("{}{hint}", text::line(&error)))
        }
    }
}

/// Prints the build, and the version of what it says to the library.
pub(crate) fn version() -> ExitCode {
    print(&format!("boxlite-shim {} (control {VERSION})", env!("CARGO_PKG_VERSION")))
}

/// The engine of this name.
pub(crate) fn engine_choice(name: &str) -> Option<EngineChoice> {
    [EngineChoice::Auto, EngineChoice::Krun, EngineChoice::Qemu]
        .into_iter()
        .find(|choice| engine::name(*choice) == name)
}

/// Says how it is called.
pub(crate) fn usage(text: &str) -> ExitCode {
    fail(text);
    ExitCode::from(USAGE_ERROR)
}

fn print(line: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{line}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("cannot write the answer: {error}")),
    }
}

fn fail(message: &str) -> ExitCode {
    // Nobody is left to hear that standard error is closed.
    drop(writeln!(std::io::stderr(), "boxlite-shim: {message}"));
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_named_as_users_write_them() {
        assert_eq!(engine_choice("qemu"), Some(EngineChoice::Qemu));
        assert_eq!(engine_choice("auto"), Some(EngineChoice::Auto));
        assert_eq!(engine_choice("QEMU"), None);
    }
}
