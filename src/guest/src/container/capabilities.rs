//! Capabilities as bit sets: Docker's default, what the caller adds and drops, and how a process takes them on.

use nix::errno::Errno;

/// Every capability that has a name, by its number in linux/capability.h.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What Docker gives to a container.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A name that is no capability.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no capability {0:?}")]
pub struct UnknownCapability(pub String);

/// The default set, with additions and without what is dropped. Dropping a capability by name wins over adding it by
/// name; a name wins over ALL.
///
/// # Errors
/// At the first name that is no capability.
pub fn resolve(add: &[String], drop: &[String]) -> Result<u64, UnknownCapability> {
    change(DEFAULT.into_iter().filter_map(number).fold(0, |set, bit| set | 1 << bit), add, drop)
}

/// As [`resolve`], from another set than the default one.
///
/// # Errors
/// At the first name that is no capability.
pub fn change(mut set: u64, add: &[String], drop: &[String]) -> Result<u64, UnknownCapability> {
    let (add_all, add) = parse(add)?;
    let (drop_all, drop) = parse(drop)?;
    if add_all {
        set = all();
    }
    if drop_all {
        set = 0;
    }
    Ok((set | add) & !drop)
}

fn all() -> u64 {
    (1 << NAMES.len()) - 1
}

fn parse(names: &[String]) -> Result<(bool, u64), UnknownCapability> {
    let mut everything = false;
    let mut set = 0;
    for name in names {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if short == "ALL" {
            everything = true;
        } else {
            set |= 1 << number(short).ok_or_else(|| UnknownCapability(name.clone()))?;
        }
    }
    Ok((everything, set))
}

fn number(short: &str) -> Option<usize> {
    NAMES.iter().position(|name| *name == short)
}

/// Cuts the calling process's bounding set to `set` and clears its ambient set.
///
/// # Errors
/// What prctl(2) says; EPERM without `CAP_SETPCAP`.
pub fn bound(set: u64) -> nix::Result<()> {
    for capability in 0..64 {
        if set & (1 << capability) != 0 {
            continue;
        }
        // SAFETY: prctl takes integers here and touches the calling process alone.
        match Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            Ok(_) => {}
            // Beyond the last capability that this kernel knows.
            Err(Errno::EINVAL) if capability > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL;
    // SAFETY: as above.
    Errno::result(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, clear, 0, 0, 0) }).map(drop)
}

/// Makes `set` the calling process's permitted and effective set, and empties its inheritable one.
///
/// # Errors
/// What capset(2) says.
pub fn keep(set: u64) -> nix::Result<()> {
    // From linux/capability.h: version 3 has two words for each set.
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    // A set may name what this kernel does not know; it cannot be kept.
    let set = set & permitted()?;
    let word = |shift: u32| u32::try_from((set >> shift) & u64::from(u32::MAX)).unwrap_or_default();
    let data = [0, 32].map(|shift| Data { effective: word(shift), permitted: word(shift), inheritable: 0 });
    let header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: header and data have the layout that this version asks for, and live during the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// The calling process's permitted set.
fn permitted() -> nix::Result<u64> {
    let header: [u32; 2] = [0x2008_0522, 0];
    let mut data = [[0_u32; 3]; 2];
    // SAFETY: version 3 takes a header of two words and fills in two times three words; both live during the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })?;
    Ok(u64::from(data[0][1]) | u64::from(data[1][1]) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn resolved(add: &[&str], drop: &[&str]) -> u64 {
        resolve(&names(add), &names(drop)).unwrap()
    }

    #[test]
    fn the_default_set_is_the_one_docker_shows() {
        // CapBnd of a process in a Docker container, as /proc/self/status prints it.
        assert_eq!(resolved(&[], &[]), 0x0000_0000_a804_25fb);
    }

    #[test]
    fn names_are_taken_with_and_without_their_prefix_in_any_case() {
        let ptrace = 1 << 19;
        for name in ["CAP_SYS_PTRACE", "SYS_PTRACE", "sys_ptrace", "cap_sys_ptrace"] {
            assert_eq!(resolved(&[name], &[]), 0xa804_25fb | ptrace, "{name}");
        }
    }

    #[test]
    fn all_can_be_added_and_dropped_with_exceptions() {
        assert_eq!(resolved(&["ALL"], &[]), 0x1ff_ffff_ffff);
        assert_eq!(resolved(&[], &["ALL"]), 0);
        assert_eq!(resolved(&["CHOWN"], &["ALL"]), 1);
        assert_eq!(resolved(&["ALL"], &["CHOWN"]), 0x1ff_ffff_fffe);
    }

    #[test]
    fn a_name_dropped_and_added_is_dropped() {
        assert_eq!(resolved(&["SYS_ADMIN"], &["SYS_ADMIN"]), 0xa804_25fb);
    }

    #[test]
    fn an_unknown_name_is_named() {
        let error = resolve(&names(&["CAP_FLY"]), &[]).unwrap_err();
        assert_eq!(error.to_string(), "there is no capability \"CAP_FLY\"");
    }
}
