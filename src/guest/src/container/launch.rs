//! From what a caller asks for to a complete order: checks, defaults, and the container's own names.

use boxlite_portal::v1::{ProcessSpec, Rlimit, StartFailure, start_failure};

use super::user::{self, Identity, Root};
use crate::process::order::{Limit, Order};

/// Where programs are looked for unless the environment says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The most entries in a list of a process specification.
const MAX_ENTRIES: usize = 16_384;

/// A specification that no process can follow. The caller's mistake, found before anything is started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSpec {
    /// A string with a zero byte in it.
    #[error("{0} contains a zero byte")]
    ZeroByte(&'static str),
    /// Too many strings.
    #[error("{0} has more than {MAX_ENTRIES} entries")]
    TooMany(&'static str),
    /// The working directory is no absolute path.
    #[error("the working directory is not an absolute path")]
    RelativeDirectory,
    /// An unknown resource limit.
    #[error("there is no resource limit {0:?}")]
    UnknownLimit(String),
    /// A soft limit above its hard one.
    #[error("the soft limit of {0} is above its hard limit")]
    SoftAboveHard(String),
    /// An execution without a program.
    #[error("an execution needs a program")]
    NoProgram,
    /// A terminal larger than a terminal can be.
    #[error("a terminal has at most 65535 rows and columns")]
    TerminalTooLarge,
}

/// What is the same for all processes of a container.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Capabilities of root's processes, and the bounding set of all.
    pub capabilities: u64,
    /// The value of HOSTNAME.
    pub hostname: String,
    /// The limit of open files.
    pub open_files: u64,
}

/// Checks all that can be checked without the container.
///
/// # Errors
/// At the first mistake.
pub fn check(spec: &ProcessSpec) -> Result<(), BadSpec> {
    for (what, list) in [("an argument", &spec.args), ("the environment", &spec.env)] {
        if list.len() > MAX_ENTRIES {
            return Err(BadSpec::TooMany(what));
        }
        if list.iter().any(|item| item.contains(&0)) {
            return Err(BadSpec::ZeroByte(what));
        }
    }
    if spec.cwd.contains(&0) {
        return Err(BadSpec::ZeroByte("the working directory"));
    }
    if !spec.cwd.is_empty() && !spec.cwd.starts_with(b"/") {
        return Err(BadSpec::RelativeDirectory);
    }
    if let Some(size) = &spec.terminal {
        terminal_size(size)?;
    }
    limits(&spec.rlimits, 0).map(drop)
}

/// A terminal's size as the kernel takes it.
///
/// # Errors
/// When it is too large.
pub fn terminal_size(size: &boxlite_portal::v1::TerminalSize) -> Result<libc::winsize, BadSpec> {
    let fit = |value: u32| u16::try_from(value).map_err(|_| BadSpec::TerminalTooLarge);
    Ok(libc::winsize { ws_row: fit(size.rows)?, ws_col: fit(size.columns)?, ws_xpixel: 0, ws_ypixel: 0 })
}

/// Makes the order for a checked specification.
///
/// # Errors
/// When the user is not known in the container, or its files cannot be read.
pub fn order(spec: &ProcessSpec, frame: &Frame, root: &Root) -> Result<Order, StartFailure> {
    let identity = identity(&spec.user, root)?;
    Ok(Order {
        args: spec.args.clone(),
        env: environment(spec, frame, &identity.home),
        cwd: if spec.cwd.is_empty() { b"/".to_vec() } else { spec.cwd.clone() },
        uid: identity.uid,
        gid: identity.gid,
        groups: identity.groups,
        capabilities: frame.capabilities,
        rlimits: limits(&spec.rlimits, frame.open_files).unwrap_or_default(),
        terminal: spec.terminal.is_some(),
    })
}

/// Who a user is, by the container's own files.
///
/// # Errors
/// When it is not known in the container, or its files cannot be read.
pub fn identity(user: &str, root: &Root) -> Result<Identity, StartFailure> {
    let read = |path: &'static str| {
        root.read(path).map_err(|error| StartFailure {
            kind: start_failure::Kind::Other.into(),
            message: format!("cannot read the container's /{path}: {error}"),
            errno: error.raw_os_error().unwrap_or_default(),
        })
    };
    let (passwd, group) = (read("etc/passwd")?, read("etc/group")?);
    user::resolve(user, &passwd, &group).map_err(|error| StartFailure {
        kind: start_failure::Kind::UnknownUser.into(),
        message: error.to_string(),
        errno: 0,
    })
}

fn environment(spec: &ProcessSpec, frame: &Frame, home: &[u8]) -> Vec<Vec<u8>> {
    let mut env = Vec::with_capacity(spec.env.len() + 4);
    let mut default = |name: &str, value: &[u8]| {
        let given =
            |entry: &Vec<u8>| entry.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"="));
        if !spec.env.iter().any(given) {
            env.push([name.as_bytes(), b"=", value].concat());
        }
    };
    default("PATH", PATH.as_bytes());
    default("HOSTNAME", frame.hostname.as_bytes());
    if spec.terminal.is_some() {
        default("TERM", b"xterm");
    }
    default("HOME", home);
    env.extend(spec.env.iter().cloned());
    env
}

fn limits(asked: &[Rlimit], open_files: u64) -> Result<Vec<Limit>, BadSpec> {
    let mut limits = vec![Limit { resource: libc::RLIMIT_NOFILE, soft: open_files, hard: open_files }];
    if asked.len() > MAX_ENTRIES {
        return Err(BadSpec::TooMany("the list of resource limits"));
    }
    for limit in asked {
        let resource = resource(&limit.name).ok_or_else(|| BadSpec::UnknownLimit(limit.name.clone()))?;
        if limit.soft > limit.hard {
            return Err(BadSpec::SoftAboveHard(limit.name.clone()));
        }
        limits.retain(|other| other.resource != resource);
        limits.push(Limit { resource, soft: limit.soft, hard: limit.hard });
    }
    Ok(limits)
}

fn resource(name: &str) -> Option<u32> {
    let upper = name.to_ascii_uppercase();
    let resource = match upper.strip_prefix("RLIMIT_").unwrap_or(&upper) {
        "AS" => libc::RLIMIT_AS,
        "CORE" => libc::RLIMIT_CORE,
        "CPU" => libc::RLIMIT_CPU,
        "DATA" => libc::RLIMIT_DATA,
        "FSIZE" => libc::RLIMIT_FSIZE,
        "LOCKS" => libc::RLIMIT_LOCKS,
        "MEMLOCK" => libc::RLIMIT_MEMLOCK,
        "MSGQUEUE" => libc::RLIMIT_MSGQUEUE,
        "NICE" => libc::RLIMIT_NICE,
        "NOFILE" => libc::RLIMIT_NOFILE,
        "NPROC" => libc::RLIMIT_NPROC,
        "RSS" => libc::RLIMIT_RSS,
        "RTPRIO" => libc::RLIMIT_RTPRIO,
        "RTTIME" => libc::RLIMIT_RTTIME,
        "SIGPENDING" => libc::RLIMIT_SIGPENDING,
        "STACK" => libc::RLIMIT_STACK,
        _ => return None,
    };
    Some(resource)
}

#[cfg(test)]
mod tests {
    use super::*;
    use boxlite_portal::v1::TerminalSize;

    fn frame() -> Frame {
        Frame { capabilities: 0, hostname: "box".into(), open_files: 7 }
    }

    fn env_of(spec: &ProcessSpec) -> Vec<String> {
        let env = environment(spec, &frame(), b"/root");
        env.into_iter().map(|entry| String::from_utf8(entry).unwrap()).collect()
    }

    #[test]
    fn what_the_environment_lacks_gets_a_default() {
        let path = format!("PATH={PATH}");
        assert_eq!(env_of(&ProcessSpec::default()), [path.as_str(), "HOSTNAME=box", "HOME=/root"]);
        let tty = ProcessSpec { terminal: Some(TerminalSize { rows: 1, columns: 1 }), ..Default::default() };
        assert_eq!(env_of(&tty), [path.as_str(), "HOSTNAME=box", "TERM=xterm", "HOME=/root"]);
    }

    #[test]
    fn what_the_environment_has_is_left_alone_even_if_empty() {
        let env = vec![b"PATH=".to_vec(), b"HOME=/x".to_vec(), b"HOSTNAMES=y".to_vec()];
        let spec = ProcessSpec { env, ..Default::default() };
        assert_eq!(env_of(&spec), ["HOSTNAME=box", "PATH=", "HOME=/x", "HOSTNAMES=y"]);
    }

    #[test]
    fn a_named_limit_replaces_the_default_one() {
        let ask = |name: &str, soft, hard| limits(&[Rlimit { name: name.into(), soft, hard }], 7);
        assert_eq!(limits(&[], 7).unwrap(), [Limit { resource: libc::RLIMIT_NOFILE, soft: 7, hard: 7 }]);
        assert_eq!(
            ask("RLIMIT_NOFILE", 1, 2).unwrap(),
            [Limit { resource: libc::RLIMIT_NOFILE, soft: 1, hard: 2 }]
        );
        assert_eq!(ask("nproc", 1, 2).unwrap().len(), 2);
        assert_eq!(ask("RLIMIT_JOY", 1, 2), Err(BadSpec::UnknownLimit("RLIMIT_JOY".into())));
        assert_eq!(ask("CORE", 3, 2), Err(BadSpec::SoftAboveHard("CORE".into())));
    }

    #[test]
    fn mistakes_are_found_before_anything_starts() {
        let bad = |change: fn(&mut ProcessSpec)| {
            let mut spec = ProcessSpec::default();
            change(&mut spec);
            check(&spec).unwrap_err()
        };
        assert_eq!(bad(|spec| spec.args = vec![b"a\0b".to_vec()]), BadSpec::ZeroByte("an argument"));
        assert_eq!(bad(|spec| spec.env = vec![vec![]; 20_000]), BadSpec::TooMany("the environment"));
        assert_eq!(bad(|spec| spec.cwd = b"tmp".to_vec()), BadSpec::RelativeDirectory);
        let wide = |spec: &mut ProcessSpec| spec.terminal = Some(TerminalSize { rows: 1, columns: 65_536 });
        assert_eq!(bad(wide), BadSpec::TerminalTooLarge);
    }
}
