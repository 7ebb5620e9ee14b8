//! From a fresh process to the program: the last steps of every process in the container.
//!
//! The main command and every execution go through `become_program`, so that they cannot differ in user, capabilities
//! or limits. Each step that fails is reported as its name and errno over the status pipe, which the program's execve
//! closes; so a failure is known, never guessed from a text.
//!
//! ```text
//!   status pipe:  pid (4 bytes, little-endian)   then   end        the program runs
//!                                                or     step (1), errno (4, little-endian)
//! ```
//!
//! The order of the steps is what makes them safe:
//!
//! 1. The process is not dumpable from its start on (inherited from the spawner), so nobody in the container may trace
//!    it or look through its `/proc` entry while it still has a descriptor or a privilege of the agent.
//! 2. Namespaces come first, then everything of the agent but standard I/O and the status pipe is closed.
//! 3. Limits, session and working directory need privileges; they come before the user changes.
//! 4. The bounding set is cut while `CAP_SETPCAP` is still there; then groups, group, user; then the remaining sets are
//!    set. A user other than root keeps no capability but the bounding set, as with Docker.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, chdir, getpid, setgroups, setresgid, setresuid, setsid};

use super::order::Order;
use crate::container::capabilities;
use crate::container::idle::Idle;

/// Where a child failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// The order does not decode.
    Order = 1,
    /// Joining the container's namespaces.
    Namespaces = 2,
    /// Session and controlling terminal.
    Session = 3,
    /// Standard I/O.
    Descriptors = 4,
    /// Resource limits.
    Limits = 5,
    /// The working directory.
    WorkingDirectory = 6,
    /// Capabilities.
    Capabilities = 7,
    /// User and groups.
    User = 8,
    /// The program was found nowhere.
    Find = 9,
    /// The program was found and the system would not execute it.
    Execute = 10,
    /// The program was found, and what it names as its interpreter was not.
    Interpreter = 11,
}

impl Step {
    /// The step with this number.
    pub fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Step; 11] = [
            Step::Order,
            Step::Namespaces,
            Step::Session,
            Step::Descriptors,
            Step::Limits,
            Step::WorkingDirectory,
            Step::Capabilities,
            Step::User,
            Step::Find,
            Step::Execute,
            Step::Interpreter,
        ];
        ALL.into_iter().find(|step| *step as u8 == byte)
    }
}

/// A failed step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Which one.
    pub step: Step,
    /// Why.
    pub errno: Errno,
}

trait At<T> {
    fn at(self, step: Step) -> Result<T, Failed>;
}

impl<T> At<T> for nix::Result<T> {
    fn at(self, step: Step) -> Result<T, Failed> {
        self.map_err(|errno| Failed { step, errno })
    }
}

/// A forked execution: joins the container's namespaces and becomes its program. Does not return. The protection from the
/// out-of-memory killer was lifted around the fork.
pub fn execute(order: &[u8], container: BorrowedFd<'_>, status: OwnedFd, stdio: [OwnedFd; 3]) -> ! {
    let mut status = File::from(status);
    // The process namespace was joined by the fork. The network is the machine's own.
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    let failed = match setns(container, namespaces).at(Step::Namespaces) {
        Ok(()) => become_program(order, &mut status, stdio).unwrap_err_infallible(),
        Err(failed) => failed,
    };
    report(&mut status, failed)
}

/// The container's first process: becomes the main command. Does not return.
pub fn execute_main(order: &[u8], status: OwnedFd, stdio: [OwnedFd; 3]) -> ! {
    let mut status = File::from(status);
    // As root still, and with nothing of the image run yet, so that /proc is the container's own and untouched.
    let failed = match undo_protection().at(Step::Limits) {
        Ok(()) => become_program(order, &mut status, stdio).unwrap_err_infallible(),
        Err(failed) => failed,
    };
    report(&mut status, failed)
}

/// Lifts what protects the agent and the spawner, and what they fork, from the out-of-memory killer.
fn undo_protection() -> nix::Result<()> {
    match std::fs::write("/proc/self/oom_score_adj", "0") {
        Ok(()) => Ok(()),
        Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))),
    }
}

trait UnwrapErr {
    fn unwrap_err_infallible(self) -> Failed;
}

impl UnwrapErr for Result<Infallible, Failed> {
    fn unwrap_err_infallible(self) -> Failed {
        match self {
            Err(failed) => failed,
            Ok(never) => match never {},
        }
    }
}

fn report(status: &mut File, failed: Failed) -> ! {
    let [a, b, c, d] = (failed.errno as i32).to_le_bytes();
    // Without a reader there is nobody left to tell.
    drop(status.write_all(&[failed.step as u8, a, b, c, d]));
    // SAFETY: ends this forked process without running exit handlers that belong to its parent.
    unsafe { libc::_exit(127) }
}

fn become_program(order: &[u8], status: &mut File, stdio: [OwnedFd; 3]) -> Result<Infallible, Failed> {
    let order: Order =
        prost::Message::decode(order).map_err(|_| Failed { step: Step::Order, errno: Errno::EBADMSG })?;
    let program = Program::new(&order).at(Step::Order)?;

    // The container's first process leads a session already; being its leader is all that matters.
    match setsid() {
        Ok(_) | Err(Errno::EPERM) => {}
        Err(errno) => return Err(Failed { step: Step::Session, errno }),
    }
    install(stdio, status).at(Step::Descriptors)?;
    if order.terminal {
        // SAFETY: TIOCSCTTY takes an integer; descriptor 0 is the terminal that was installed just now.
        Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }).at(Step::Session)?;
    }
    for limit in &order.rlimits {
        set_limit(limit.resource, limit.soft, limit.hard).at(Step::Limits)?;
    }
    umask(Mode::from_bits_truncate(0o022));
    chdir(order.cwd.as_slice()).at(Step::WorkingDirectory)?;

    capabilities::bound(order.capabilities).at(Step::Capabilities)?;
    let groups: Vec<Gid> = order.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).at(Step::User)?;
    let (uid, gid) = (Uid::from_raw(order.uid), Gid::from_raw(order.gid));
    setresgid(gid, gid, gid).at(Step::User)?;
    setresuid(uid, uid, uid).at(Step::User)?;
    let kept = if uid.is_root() { order.capabilities } else { 0 };
    capabilities::keep(kept).at(Step::Capabilities)?;

    let idle = if order.args.is_empty() { Some(Idle::prepare().at(Step::Session)?) } else { None };
    let pid = getpid().as_raw().to_le_bytes();
    // A reader that has gone away takes the process with it at its next write; here it changes nothing.
    drop(status.write_all(&pid));
    if let Some(idle) = idle {
        close_status(status);
        idle.run();
    }
    program.execute()
}

/// Puts standard I/O on 0, 1 and 2, the status pipe on 3, and closes everything else.
fn install(stdio: [OwnedFd; 3], status: &mut File) -> nix::Result<()> {
    // All received descriptors are above 2, because 0 to 2 are always open in the spawner; so no dup2 below overwrites
    // one that is still needed, except 3, which is why the status pipe moves out of the way first.
    let moved = nix::fcntl::fcntl(status.as_fd(), nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(64))?;
    let stdio = stdio.map(IntoRawFd::into_raw_fd);
    for (target, source) in (0..).zip(stdio) {
        // SAFETY: dup2 onto 0, 1 or 2, which in this process belong to nobody else.
        Errno::result(unsafe { libc::dup2(source, target) })?;
    }
    // SAFETY: as above; the flag makes execve close it, which is the message that the program runs.
    Errno::result(unsafe { libc::dup3(moved, 3, libc::O_CLOEXEC) })?;
    // SAFETY: 3 was opened by the line before and is owned by nobody else; what `status` was is closed by close_range.
    let old = std::mem::replace(status, unsafe { File::from_raw_fd(3) });
    let _closed_below: RawFd = old.into_raw_fd();
    // SAFETY: closes every descriptor from 4 on. Their owners in this process are never used again: it ends in execve,
    // in the idle loop or in _exit.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, 4, libc::c_uint::MAX, 0) })?;
    Ok(())
}

fn close_status(status: &mut File) {
    // SAFETY: `status` owns descriptor 3 and is not used again: the caller goes into the idle loop for good.
    unsafe { libc::close(status.as_raw_fd()) };
}

fn set_limit(resource: u32, soft: u64, hard: u64) -> nix::Result<()> {
    // The largest number means none, here and in the kernel.
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: reads a struct that lives during the call; the kernel checks the resource number.
    Errno::result(unsafe { libc::setrlimit(resource, &raw const limit) }).map(drop)
}

/// The arguments of execve, made before anything is given up, so that nothing fails half-way for lack of memory.
struct Program {
    candidates: Vec<CString>,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    fn new(order: &Order) -> nix::Result<Self> {
        let strings = |list: &[Vec<u8>]| -> nix::Result<Vec<CString>> {
            list.iter().map(|item| CString::new(item.as_slice()).map_err(|_| Errno::EINVAL)).collect()
        };
        let name = order.args.first().map_or(&[][..], Vec::as_slice);
        let path = order.env.iter().find_map(|entry| entry.strip_prefix(b"PATH=")).unwrap_or_default();
        Ok(Self {
            candidates: strings(&candidates(name, path))?,
            args: strings(&order.args)?,
            env: strings(&order.env)?,
        })
    }

    /// Tries each candidate, like execvp(3) but without its detour over a shell.
    fn execute(&self) -> Result<Infallible, Failed> {
        let args = pointers(&self.args);
        let env = pointers(&self.env);
        let mut failed = Failed { step: Step::Find, errno: Errno::ENOENT };
        for candidate in &self.candidates {
            // SAFETY: both arrays end in a null pointer, and they and the strings they point to live during the call.
            unsafe { libc::execve(candidate.as_ptr(), args.as_ptr(), env.as_ptr()) };
            match Errno::last() {
                errno @ (Errno::ENOENT | Errno::ENOTDIR) => {
                    if exists(candidate) {
                        return Err(Failed { step: Step::Interpreter, errno });
                    }
                    if failed.step == Step::Find {
                        failed.errno = errno;
                    }
                }
                // The next folder may have one that may be executed; if not, this is the reason to give.
                errno @ Errno::EACCES => failed = Failed { step: Step::Execute, errno },
                errno => return Err(Failed { step: Step::Execute, errno }),
            }
        }
        Err(failed)
    }
}

fn exists(path: &CStr) -> bool {
    nix::unistd::access(path, nix::unistd::AccessFlags::F_OK).is_ok()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Where a program of this name may be: the name itself if it has a slash, else each folder of the search path.
fn candidates(name: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    if name.is_empty() {
        return Vec::new();
    }
    if name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    let folders = path.split(|byte| *byte == b':');
    folders
        .map(|folder| {
            // An empty entry is the working directory.
            let folder = if folder.is_empty() { &b"."[..] } else { folder };
            [folder, b"/", name].concat()
        })
        .collect()
}

/// Forks into a cgroup, as a sibling: the new process is a child of the caller's parent, which is the agent.
///
/// # Errors
/// What clone3 says: ENOMEM once the first process of the container's namespace has ended.
///
/// # Safety
/// The process must have a single thread: the child gets a copy of the heap as it is.
pub unsafe fn fork_sibling_into(cgroup: BorrowedFd<'_>) -> nix::Result<Option<Pid>> {
    // SAFETY: clone_args is plain integers, for which zero is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    let flags = u64::from(libc::CLONE_PARENT.cast_unsigned()) | CLONE_INTO_CGROUP;
    args.flags = flags;
    args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    // SAFETY: the kernel reads `args`, which lives during the call. Without CLONE_VM the child has its own copy of
    // memory and stack, as after fork(2); that the process has one thread is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match i32::try_from(Errno::result(result)?) {
        Ok(0) => Ok(None),
        Ok(pid) => Ok(Some(Pid::from_raw(pid))),
        Err(_) => Err(Errno::EOVERFLOW),
    }
}

/// From linux/sched.h; libc's constant has a type that does not hold it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_slash_is_not_searched() {
        assert_eq!(candidates(b"./run", b"/bin"), [b"./run".to_vec()]);
        assert_eq!(candidates(b"/bin/sh", b"/bin"), [b"/bin/sh".to_vec()]);
    }

    #[test]
    fn a_plain_name_is_looked_for_in_each_folder_in_order() {
        let found = candidates(b"sh", b"/usr/bin:/bin");
        assert_eq!(found, [b"/usr/bin/sh".to_vec(), b"/bin/sh".to_vec()]);
    }

    #[test]
    fn an_empty_folder_is_the_working_directory_and_an_empty_name_is_nowhere() {
        assert_eq!(candidates(b"sh", b":/bin"), [b"./sh".to_vec(), b"/bin/sh".to_vec()]);
        assert_eq!(candidates(b"", b"/bin"), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn every_step_survives_its_way_over_the_pipe() {
        for byte in 0..=u8::MAX {
            if let Some(step) = Step::from_byte(byte) {
                assert_eq!(step as u8, byte);
            }
        }
        assert_eq!(Step::from_byte(Step::Interpreter as u8), Some(Step::Interpreter));
        assert_eq!(Step::from_byte(0), None);
    }
}
