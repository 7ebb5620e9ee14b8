//! The main command of a box without one: it waits until the box is stopped, and reaps.
//!
//! It is a function of the agent and needs nothing of the image. It runs with the user and the capabilities that a
//! command would have had.

use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

/// An idle process that is ready to be asked to end.
#[derive(Debug)]
pub struct Idle {
    wanted: SigSet,
}

impl Idle {
    /// Keeps the signals that ask for the end, so that one which comes early is not lost: the first process of a
    /// namespace ignores what it neither handles nor blocks.
    ///
    /// # Errors
    /// What the system says.
    pub fn prepare() -> nix::Result<Self> {
        let mut wanted = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGCHLD] {
            wanted.add(signal);
        }
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&wanted), None)?;
        prctl::set_name(c"idle")?;
        Ok(Self { wanted })
    }

    /// Waits for the end. Does not return.
    pub fn run(&self) -> ! {
        let code = loop {
            match self.wanted.wait() {
                Ok(Signal::SIGCHLD) => reap(),
                Ok(_) => break 0,
                Err(_) => break 1,
            }
        };
        // SAFETY: ends this forked process without running exit handlers of the process it was forked from.
        unsafe { libc::_exit(code) }
    }
}

/// Reaps the orphans of the container.
fn reap() {
    // SAFETY: a null pointer is allowed and means that the status is not asked for.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}
