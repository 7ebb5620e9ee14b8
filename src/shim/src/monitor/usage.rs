//! What the processes of a machine use on the host.

use std::fs;
use std::io;

use nix::unistd::{SysconfVar, sysconf};

/// CPU time and memory of processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// In nanoseconds.
    pub(super) cpu_nanos: u64,
    /// Resident, in bytes.
    pub(super) memory_bytes: u64,
}

/// A process and its children: all that an engine is. Only for a process that this one has not waited for yet.
pub(super) fn with_children(pid: u32) -> io::Result<Vec<u32>> {
    let mut all = vec![pid];
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let children = fs::read_to_string(task?.path().join("children"))?;
        all.extend(children.split_ascii_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    Ok(all)
}

/// What these processes use together. One that has ended meanwhile uses nothing.
pub(super) fn of(pids: &[u32]) -> Usage {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u64::try_from(size).ok());
    let (ticks, page) = (ticks.unwrap_or(100).max(1), page.unwrap_or(4096));
    let mut usage = Usage::default();
    for stat in pids.iter().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok()) {
        // After the name, which may hold anything: field 3 on, see proc_pid_stat(5).
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or(Vec::new(), |(_, rest)| rest.split_ascii_whitespace().collect());
        let number =
            |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let (user, system, pages) = (number(14), number(15), number(24));
        usage.cpu_nanos += user.saturating_add(system).saturating_mul(1_000_000_000 / ticks);
        usage.memory_bytes += pages.saturating_mul(page);
    }
    usage
}

/// Whether every thread of a process stands still by a signal.
pub(super) fn stands_still(pid: u32) -> io::Result<bool> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = match fs::read_to_string(task?.path().join("stat")) {
            Ok(stat) => stat,
            // A thread that has ended moves no more.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => continue,
            Err(error) => return Err(error),
        };
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
        if !matches!(state, Some('T' | 't' | 'Z' | 'X')) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn this_process_uses_memory_and_moves() {
        let own = std::process::id();
        assert!(with_children(own).unwrap().contains(&own));
        assert!(of(&[own]).memory_bytes > 100_000);
        assert!(!stands_still(own).unwrap());
        assert_eq!(of(&[u32::MAX]), Usage::default());
    }

    #[test]
    fn a_stopped_process_stands_still_and_is_found_among_the_children() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !stands_still(child.id()).unwrap() {
            assert!(Instant::now() < deadline, "it goes on");
            std::thread::yield_now();
        }
        assert!(with_children(std::process::id()).unwrap().contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
