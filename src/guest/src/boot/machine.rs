//! Limits and network of the machine.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::time::{ClockId, clock_gettime};

/// Open files of the agent: every execution takes a handful.
const NOFILE: u64 = 1_048_576;

/// Raises the number of files that may be open.
///
/// # Errors
/// What the system says.
pub fn raise_limits() -> io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_NOFILE, NOFILE, NOFILE)?)
}

/// Keeps memory that was freed instead of giving it back to the kernel at once. Output streams through buffers of a
/// chunk each; without this every one of them comes as fresh pages, whose faults cost more than the copy.
///
/// # Errors
/// When the allocator refuses.
pub fn keep_freed_memory() -> io::Result<()> {
    for (parameter, bytes) in [(libc::M_MMAP_THRESHOLD, 1 << 20), (libc::M_TRIM_THRESHOLD, 4 << 20)] {
        // SAFETY: mallopt takes two numbers and touches nothing but the allocator's own settings.
        if unsafe { libc::mallopt(parameter, bytes) } == 0 {
            return Err(io::Error::other("the allocator refuses its settings"));
        }
    }
    Ok(())
}

/// Has everything else killed before the agent and what it forks when memory runs out: without them the box can start
/// nothing any more. Processes of the container lift it for themselves.
///
/// # Errors
/// What the system says.
pub fn protect_from_oom() -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", "-1000")
}

/// Brings the loopback interface up, and lets every user of the container open low ports and send pings, as Docker does.
///
/// # Errors
/// What the system says.
pub fn loopback_up() -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: ifreq is plain data, for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = from.cast_signed();
    }
    // An interface without other flags of its own: up is all there is to say.
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).unwrap_or(1);
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which lives during the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
}

/// Time since the kernel started.
pub fn since_kernel() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// Writes out what is on its way to the disks, for an end that did not unmount them. A disk that does not answer keeps
/// the machine no longer than the deadline.
pub fn sync_within(deadline: Duration) {
    let (done, synced) = mpsc::channel();
    // A thread, because a sync cannot be interrupted; the end of the machine ends it.
    let started = thread::Builder::new().spawn(move || {
        nix::unistd::sync();
        // After the deadline nobody waits for it.
        done.send(()).ok();
    });
    if started.is_err() || synced.recv_timeout(deadline).is_err() {
        crate::console::line(format_args!("the disks could not be synced"));
    }
}

/// Ends the machine. There is no firmware that could switch it off, and a machine halted by the kernel would hang; so it
/// is reset, which ends the virtual machine under every engine.
pub fn power_off() -> ! {
    let error = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT);
    crate::console::line(format_args!("cannot end the machine: {error:?}"));
    // The last resort: the kernel panics when its first process ends, and resets.
    std::process::abort()
}
