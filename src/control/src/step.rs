//! Named steps at which a test can hold a process, to kill it or another one there.
//!
//! Where `BOXLITE_TEST_STEPS` names a Unix socket, a process tells it each step that it reaches, as `role pid step` on a
//! line, and goes on when it is answered or the connection ends. Without the variable nothing is done.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::OnceLock;

const VARIABLE: &str = "BOXLITE_TEST_STEPS";

/// Tells that a step has been reached, and waits until it may be left.
pub fn reached(role: &str, step: &str) {
    static SOCKET: OnceLock<Option<PathBuf>> = OnceLock::new();
    let socket = SOCKET.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from));
    let Some(socket) = socket else { return };
    // A test that has ended listens no more: its processes go on.
    let Ok(mut stream) = UnixStream::connect(socket) else { return };
    if writeln!(stream, "{role} {} {step}", std::process::id()).is_ok() {
        // The end of the connection is an answer, too.
        drop(BufReader::new(stream).read_line(&mut String::new()));
    }
}
