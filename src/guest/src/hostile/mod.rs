//! What an agent might do that is not on the host's side. Only in a build for tests of the host.

use std::sync::atomic::{AtomicBool, Ordering};

pub mod copy;
pub mod share;

static ON: AtomicBool = AtomicBool::new(false);

/// From now on this agent is hostile. Without it, one that was built for that is like any other: a build of the whole
/// workspace gives the same features to all of its programs.
pub fn begin() {
    ON.store(true, Ordering::Relaxed);
}

fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}
