//! The main command of a box without one: it waits until the box is stopped, and reaps.
//!
//! It is a function of the agent and needs nothing of the image. It runs with the user and the capabilities that a
//! command would have had.

use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

/// Waits for a request to end. Does not return.
pub fn run() -> ! {
    // A name is for people; without it nothing else changes.
    let _ = prctl::set_name(c"idle");
    let mut wanted = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGCHLD] {
        wanted.add(signal);
    }
    let code = match pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&wanted), None) {
        Ok(()) => wait_for_end(&wanted),
        Err(_) => 1,
    };
    // SAFETY: ends this forked process without running exit handlers of the process it was forked from.
    unsafe { libc::_exit(code) }
}

fn wait_for_end(wanted: &SigSet) -> i32 {
    loop {
        match wanted.wait() {
            Ok(Signal::SIGCHLD) => reap(),
            Ok(_) => return 0,
            Err(_) => return 1,
        }
    }
}

/// Reaps the orphans of the container.
fn reap() {
    // SAFETY: a null pointer is allowed and means that the status is not asked for.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}
