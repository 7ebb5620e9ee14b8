//! What is done in the machine before its virtual CPUs are stopped, and after.
//!
//! The clock that the scheduler counts by goes on while the machine stands still. A process that was running when it
//! stopped seems to have run all the time, and is not let run again until the others have had as much: for as long as the
//! pause was. So nothing of the container runs at that moment, and the agent, which does, is then of a class for which such
//! accounts are not kept.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use tokio::time::{Instant, sleep};

use crate::console;
use crate::process::cgroup::Cgroup;

/// How long the processes of a container may take to stand still.
const PATIENCE: Duration = Duration::from_millis(300);
/// How often it is looked whether they do.
const LOOK: Duration = Duration::from_millis(1);

/// Stops the container's processes, and puts this thread first in line. Says whether all of them stand still.
///
/// # Errors
/// When they cannot be stopped. Nothing is changed then.
pub async fn begin(container: &Cgroup) -> io::Result<bool> {
    container.freeze(true)?;
    first_in_line(true);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match container.is_frozen() {
            Ok(true) => return Ok(true),
            Ok(false) if Instant::now() < deadline => sleep(LOOK).await,
            Ok(false) => return Ok(false),
            Err(error) => {
                end(container)?;
                return Err(error);
            }
        }
    }
}

/// Lets the container's processes go on, if they were stopped.
///
/// # Errors
/// When they cannot be let go on.
pub fn end(container: &Cgroup) -> io::Result<()> {
    let thawed = container.freeze(false);
    first_in_line(false);
    thawed
}

/// Moves this thread into or out of the class of those that run before all others.
fn first_in_line(first: bool) {
    let (policy, priority) = if first { (libc::SCHED_RR, 1) } else { (libc::SCHED_OTHER, 0) };
    let parameter = libc::sched_param { sched_priority: priority };
    // SAFETY: the call reads the parameter, which lives during it, and changes nothing but how this thread is scheduled.
    let set =
        unsafe { libc::sched_setscheduler(0, policy | libc::SCHED_RESET_ON_FORK, &raw const parameter) };
    // Without it a pause may make the agent slow for a while, which is no reason not to pause.
    if let Err(errno) = Errno::result(set) {
        console::line(format_args!("cannot change how the agent is scheduled: {errno}"));
    }
}
