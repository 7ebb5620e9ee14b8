//! PID 1 of a box: boots the machine in named steps, serves the portal, and ends the machine.

use std::error::Error;
use std::panic::PanicHookInfo;
use std::time::Duration;

use crate::agent::{Agent, Settings};
use crate::boot::report::{self, Channel};
use crate::boot::{entropy, machine, mounts};
use crate::process::reaper::Reaper;
use crate::process::spawner::{self, Spawner};
use crate::process::{cgroup, client};
use crate::vsock::Listener;
use crate::{console, portal};
use boxlite_portal::ports;

/// How long the disks may take after a failure.
const SYNC: Duration = Duration::from_secs(3);

/// Runs it. Comes back only where it is not PID 1.
pub fn main() {
    // First of all, so that nothing can fail without a word.
    std::panic::set_hook(Box::new(panicked));
    if std::process::id() != 1 {
        console::line(format_args!(
            "this is the first process of a box's virtual machine, and runs nowhere else"
        ));
        return;
    }
    if let Err(error) = run() {
        let text = console::chain(&*error);
        console::line(format_args!("{text}"));
        report::failure(&text);
        machine::sync_within(SYNC);
    }
    machine::power_off()
}

fn run() -> Result<(), Box<dyn Error>> {
    // Before everything that opens a file: the disk that the agent lies on has empty folders and nothing else.
    mounts::mount_all()?;
    // As early as a socket can be had, so that the host knows of every later step.
    let mut boot = Channel::open()?;

    // Before the spawner is forked, which inherits both.
    boot.step("limits")?;
    machine::raise_limits()?;
    machine::protect_from_oom()?;

    // Before the container, which finds the controllers enabled and its network there.
    boot.step("cgroups")?;
    cgroup::enable_controllers(&Settings::default().cgroups)?;
    boot.step("loopback")?;
    machine::loopback_up()?;

    // Before the spawner and the runtime, whose hash maps draw from it, and so before anything of the image can run.
    boot.step("entropy")?;
    entropy::seed()?;

    // While the agent is small and has one thread: what is forked later is a copy of what is forked here.
    boot.step("spawner")?;
    // SAFETY: no thread has been started yet; the runtime comes with the next step.
    let spawner = unsafe { spawner::fork() }?;

    // After the fork, for the process alone that moves output.
    boot.step("serve")?;
    machine::keep_freed_memory()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(boot, spawner))
}

async fn serve(boot: Channel, spawner: Spawner) -> Result<(), Box<dyn Error>> {
    let reaper = Reaper::new();
    // Before anything can start a process.
    let reaping = tokio::spawn(reaper.run()?);
    // Without the spawner the box can start nothing; better no box than such a one.
    let lost = reaper.expect().claim(spawner.pid);
    let agent = Agent::new(Settings::default(), reaper, spawner.socket)?;
    // Before the host is told, which then connects at once.
    let listener = Listener::vsock(ports::PORTAL)?;
    boot.ready()?;
    tokio::select! {
        served = portal::serve(agent, listener) => Ok(served?),
        _ = reaping => Err("the reaper has ended".into()),
        _ = lost => Err(client::SpawnError::Gone.into()),
    }
}

/// A panic ends the machine, after it was told. Nothing is synced here: the container's first process is
/// forked from this program, has the number 1 as well, and must neither start a thread nor wait.
fn panicked(info: &PanicHookInfo<'_>) {
    let text = info.to_string();
    console::line(format_args!("{text}"));
    if std::process::id() == 1 {
        report::failure(&text);
        machine::power_off();
    }
}
