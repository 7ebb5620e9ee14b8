//! Users and groups, looked up in the container's own files.
//!
//! The files are the image's, so they are hostile: read through a root that they cannot leave, with a limit, and parsed
//! line by line by hand. The C library would look at the container's name service configuration and load code for it.

use std::collections::HashSet;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

/// The largest passwd or group file that is read.
const MAX_FILE: u64 = 4 << 20;
/// The most supplementary groups: the kernel's own limit.
const MAX_GROUPS: usize = 65_536;
/// A home of this length is none: no path is so long.
const MAX_HOME: usize = libc::PATH_MAX.cast_unsigned() as usize;
/// The largest user or group id.
const MAX_ID: u32 = i32::MAX.cast_unsigned();

/// Who a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups. The group id is the first of them, as with Docker: a program that changes its group keeps
    /// what the file system denies to the one it started with.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: Vec<u8>,
}

/// A user or group that the container does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownUser {
    /// The user.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    User(String),
    /// The group.
    #[error("unable to find group {0}: no matching entries in group file")]
    Group(String),
}

/// The container's root folder as the agent sees it.
#[derive(Debug)]
pub struct Root {
    folder: OwnedFd,
}

impl Root {
    /// Opens the root.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self { folder: nix::fcntl::open(path, flags, Mode::empty())? })
    }

    /// Reads a regular file in it, resolved as the container would; empty if there is none.
    ///
    /// # Errors
    /// When it cannot be read or is too large.
    pub fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        // A fifo must not make the agent wait, nor a terminal become its own.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let how = OpenHow::new()
            .flags(flags)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let file = match openat2(self.folder.as_fd(), path, how) {
            Ok(file) => std::fs::File::from(file),
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno.into()),
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::other(format!("{path} is no regular file")));
        }
        let mut content = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut content)?;
        if content.len() as u64 > MAX_FILE {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        Ok(content)
    }
}

/// Resolves `name`, `uid`, `name:group` or `uid:gid` as Docker does; empty means root.
///
/// A number that is no name in the file is taken as an id. With a group given there are no others.
///
/// # Errors
/// When a name is not found, or a number is out of range.
pub fn resolve(wanted: &str, passwd: &[u8], group: &[u8]) -> Result<Identity, UnknownUser> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, group),
        None => (wanted, ""),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = id(user);
    let entry = lines(passwd).filter_map(Passwd::parse).find(|entry| entry.name == user.as_bytes());
    // As with Docker, a name that looks like a number wins over the number.
    let entry =
        entry.or_else(|| lines(passwd).filter_map(Passwd::parse).find(|entry| Some(entry.uid) == number));
    let mut identity = match (&entry, number) {
        (Some(entry), _) => {
            Identity { uid: entry.uid, gid: entry.gid, groups: Vec::new(), home: entry.home.to_vec() }
        }
        (None, Some(uid)) => Identity { uid, gid: 0, groups: Vec::new(), home: Vec::new() },
        (None, None) => return Err(UnknownUser::User(user.to_owned())),
    };
    if identity.home.is_empty() || identity.home.len() >= MAX_HOME {
        identity.home = b"/".to_vec();
    }
    let mut groups = Vec::new();
    if wanted_group.is_empty() {
        if let Some(entry) = &entry {
            let member = |group: &Group<'_>| group.members().any(|member| member == entry.name);
            groups = lines(group).filter_map(Group::parse).filter(member).map(|group| group.gid).collect();
        }
    } else {
        let number = id(wanted_group);
        let named = lines(group).filter_map(Group::parse).find(|entry| entry.name == wanted_group.as_bytes());
        let gid = named.map(|entry| entry.gid).or(number);
        identity.gid = gid.ok_or_else(|| UnknownUser::Group(wanted_group.to_owned()))?;
    }
    let mut seen = HashSet::new();
    let all = [identity.gid].into_iter().chain(groups);
    identity.groups = all.filter(|gid| seen.insert(*gid)).take(MAX_GROUPS).collect();
    Ok(identity)
}

fn id(text: &str) -> Option<u32> {
    // parse() would take a sign.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id <= MAX_ID)
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty() && line[0] != b'#')
}

fn number(field: &[u8]) -> Option<u32> {
    id(std::str::from_utf8(field).ok().filter(|text| !text.is_empty())?)
}

/// A line of passwd: name, password, uid, gid, comment, home, shell.
struct Passwd<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

impl<'a> Passwd<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = number(fields.nth(1)?)?;
        let gid = number(fields.next()?)?;
        Some(Self { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    }
}

/// A line of group: name, password, gid, members.
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    list: &'a [u8],
}

impl<'a> Group<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = number(fields.nth(1)?)?;
        Some(Self { name, gid, list: fields.next().unwrap_or_default() })
    }

    fn members(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\n# comment\n\nbad line\nann:x:1000:1001:Ann:/home/ann:/bin/sh\n\
        bare:x:7:8\n42:x:9:9::/nine:\nneg:x:-1:0::/:\nhuge:x:4294967295:0::/:\n";
    const GROUP: &[u8] =
        b"root:x:0:\nusers:x:100:ann,bob\nwheel:x:10:bob, ann\nannex:x:11:annette\nnone:x:12\n";

    fn ok(wanted: &str) -> Identity {
        resolve(wanted, PASSWD, GROUP).unwrap()
    }

    fn ids(wanted: &str) -> (u32, u32, Vec<u32>) {
        let identity = ok(wanted);
        (identity.uid, identity.gid, identity.groups)
    }

    #[test]
    fn nothing_means_root_even_in_a_container_without_files() {
        assert_eq!(ok("").home, b"/root");
        assert_eq!(
            resolve("", b"", b"").unwrap(),
            Identity { uid: 0, gid: 0, groups: vec![0], home: b"/".to_vec() }
        );
    }

    #[test]
    fn a_name_brings_its_group_its_supplementary_groups_and_its_home() {
        assert_eq!(ids("ann"), (1000, 1001, vec![1001, 100, 10]));
        assert_eq!(ok("ann").home, b"/home/ann");
        assert_eq!(ids("1000"), (1000, 1001, vec![1001, 100, 10]));
    }

    #[test]
    fn no_group_comes_twice() {
        let group = b"ann:x:1001:ann\nusers:x:100:ann\nagain:x:100:ann\n";
        assert_eq!(resolve("ann", PASSWD, group).unwrap().groups, [1001, 100]);
    }

    #[test]
    fn a_number_needs_no_entry() {
        assert_eq!(ids("5000"), (5000, 0, vec![0]));
        assert_eq!(ids("5000:6000"), (5000, 6000, vec![6000]));
    }

    #[test]
    fn a_given_group_replaces_all_groups() {
        assert_eq!(ids("ann:wheel"), (1000, 10, vec![10]));
        assert_eq!(ids("ann:12"), (1000, 12, vec![12]));
        assert_eq!(ids(":users"), (0, 100, vec![100]));
    }

    #[test]
    fn a_name_of_digits_wins_over_the_number() {
        assert_eq!(ids("42"), (9, 9, vec![9]));
    }

    #[test]
    fn an_entry_without_a_home_lives_in_the_root() {
        assert_eq!(ok("bare").home, b"/");
    }

    #[test]
    fn a_home_longer_than_any_path_is_none() {
        let home = |length| {
            let passwd = format!("ann:x:1:1::{}:/bin/sh\n", "/".repeat(length));
            resolve("ann", passwd.as_bytes(), b"").unwrap().home.len()
        };
        assert_eq!((home(MAX_HOME - 1), home(MAX_HOME)), (MAX_HOME - 1, 1));
    }

    #[test]
    fn what_is_unknown_is_named() {
        assert_eq!(resolve("eve", PASSWD, GROUP), Err(UnknownUser::User("eve".into())));
        assert_eq!(resolve("ann:eve", PASSWD, GROUP), Err(UnknownUser::Group("eve".into())));
        for wanted in ["-1", "+1", "4294967296", "2147483648", "neg", "huge", "0x10"] {
            assert!(resolve(wanted, PASSWD, GROUP).is_err(), "{wanted}");
        }
    }

    #[test]
    fn a_link_in_the_image_cannot_lead_out_of_it() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        let image = tempfile::tempdir().unwrap();
        std::fs::create_dir(image.path().join("etc")).unwrap();
        symlink(outside.path().join("secret"), image.path().join("etc/passwd")).unwrap();
        symlink("../../../../../../etc/passwd", image.path().join("etc/group")).unwrap();
        let root = Root::open(image.path()).unwrap();
        assert_eq!(root.read("etc/passwd").unwrap(), b"");
        assert!(root.read("etc/group").is_err() || root.read("etc/group").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_file_is_refused_without_waiting_for_it() {
        let image = tempfile::tempdir().unwrap();
        let fifo = image.path().join("passwd");
        nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o600)).unwrap();
        let root = Root::open(image.path()).unwrap();
        assert!(root.read("passwd").is_err());
        assert!(root.read("").is_err() || root.read(".").is_err());
    }

    #[test]
    fn a_file_beyond_the_limit_is_refused() {
        let image = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(image.path().join("passwd")).unwrap();
        file.set_len(1 << 40).unwrap();
        let root = Root::open(image.path()).unwrap();
        assert_eq!(root.read("passwd").unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(
            wanted in "[a-z0-9:-]{0,12}",
            passwd in proptest::collection::vec(any::<u8>(), 0..300),
            group in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            // Any answer will do, as long as ids are in range.
            if let Ok(identity) = resolve(&wanted, &passwd, &group) {
                prop_assert!(identity.uid <= MAX_ID && identity.gid <= MAX_ID);
            }
        }
    }
}
