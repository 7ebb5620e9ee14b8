//! Cuts a program off between two changes of its files, and tells what it did to them.
//!
//! The program is the test itself, run again as a worker in a process of its own. It is traced with ptrace(2): each of
//! its threads stops before and after each system call.
//!
//! ```text
//!   test                                   worker
//!     run, again, as a worker  ─────────▶  worker(): ready
//!     trace all threads, let go  ───────▶  does something to a home
//!     count, write down, or kill  ◀──────    each call that changes files below the home
//!     note that it is promised  ◀────────  returned(): the caller has been told that it is done
//! ```

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::durable::Change;
use crate::story;

/// Makes a test a worker, and names the home.
const VARIABLE: &str = "BOXLITE_TEST_WORKER";
/// What a worker says when it waits to be traced.
const READY: &str = "worker: ready";
/// What it says when its caller would have been told that all is done.
const RETURNED: &str = "worker: returned";
/// No call of a worker takes more.
const MOST_BYTES: usize = 16 << 20;

/// A test that runs as the worker of itself.
#[derive(Debug)]
pub struct Worker {
    home: PathBuf,
}

/// Whether this process is a worker; returns when it is traced. A test asks before it does anything else.
///
/// # Panics
/// When the test that started the worker has gone.
pub fn worker() -> Option<Worker> {
    let home = std::env::var_os(VARIABLE)?;
    say(READY);
    let mut line = String::new();
    io::stdin().read_line(&mut line).expect("a line from the test");
    assert!(!line.is_empty(), "the test has gone");
    Some(Worker { home: home.into() })
}

impl Worker {
    /// The home to work on.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Says that the work has been done, as far as its caller can tell.
    pub fn returned(&self) {
        say(RETURNED);
    }
}

/// One write, whatever else stands on the line.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    out.write_all(format!("\n{line}\n").as_bytes()).and_then(|()| out.flush()).expect("standard output");
}

/// What a worker did.
#[derive(Debug)]
pub struct Run {
    /// Its calls that change files below the home, each as a line. The last one was not made if the worker was killed.
    pub calls: Vec<String>,
    /// What they changed.
    pub steps: Vec<Step>,
    /// Whether it was killed; otherwise it came to its end.
    pub killed: bool,
}

impl Run {
    /// Whether it had said that the work is done.
    pub fn returned(&self) -> bool {
        self.steps.contains(&Step::Returned)
    }
}

/// One thing that a worker did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It changed something below the home.
    Changed(Change),
    /// It said that the work is done.
    Returned,
}

/// Runs the test of this name as a worker on a home, from the ready worker to its end. With `kill_at` it is killed instead
/// of making that call, counted from 0, if it makes as many.
///
/// # Panics
/// When the worker fails, or changes files in a way that is not known here.
#[allow(clippy::zombie_processes, reason = "a traced process is waited for as one")]
pub fn run(test: &str, home: &Path, kill_at: Option<usize>) -> Run {
    let home = home.canonicalize().expect("the home is there");
    let mut worker = Command::new(std::env::current_exe().expect("the path of the test"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(VARIABLE, &home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the worker starts");
    let (stdin, stdout) = (worker.stdin.take().expect("piped"), worker.stdout.take().expect("piped"));
    let pid = Pid::from_raw(i32::try_from(worker.id()).expect("a pid"));
    let traced = Traced { pid, running: true };
    let stdout = until_ready(stdout, test);
    Tracer::new(traced, home, kill_at).follow(stdin, stdout)
}

fn until_ready(stdout: ChildStdout, test: &str) -> BufReader<ChildStdout> {
    let (mut stdout, mut told) = (BufReader::new(stdout), String::new());
    while !told.ends_with(&format!("{READY}\n")) {
        let read = stdout.read_line(&mut told).expect("the worker can be heard");
        assert!(read > 0, "the test {test} is no worker:\n{told}");
    }
    stdout
}

/// A worker's process, which does not outlive this.
#[derive(Debug)]
struct Traced {
    pid: Pid,
    running: bool,
}

impl Traced {
    /// The next that happens to one of its threads. Only children and traced ones of this thread are waited for: those
    /// of other tests in the process are none of ours.
    fn wait() -> WaitStatus {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            match waitpid(None, Some(flags)) {
                Err(Errno::EINTR) => {}
                outcome => return outcome.expect("a worker to wait for"),
            }
        }
    }

    /// Stops all threads, from then on at each system call.
    fn seize(&self) {
        let options = ptrace::Options::PTRACE_O_TRACESYSGOOD
            | ptrace::Options::PTRACE_O_TRACECLONE
            | ptrace::Options::PTRACE_O_EXITKILL;
        let mut seized = Vec::new();
        // A thread that is made meanwhile is either traced from its start or found on the next look.
        loop {
            let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).expect("threads of the worker");
            let threads = threads.map(|entry| number(&entry.expect("a thread").file_name()));
            let new: Vec<Pid> =
                threads.map(Pid::from_raw).filter(|thread| !seized.contains(thread)).collect();
            if new.is_empty() {
                break;
            }
            for thread in new {
                match ptrace::seize(thread, options) {
                    // Traced already, since its maker was.
                    Ok(()) | Err(Errno::EPERM) => seized.push(thread),
                    Err(error) => panic!("cannot trace the worker: {error}"),
                }
            }
        }
        for thread in seized {
            ptrace::interrupt(thread).expect("a traced thread can be stopped");
        }
    }
}

impl Drop for Traced {
    /// Of a test that fails on the way. The next worker must not be taken for this one.
    fn drop(&mut self) {
        if !self.running {
            return;
        }
        // Also one that is dead is there to be waited for.
        story::kill(self.pid.as_raw(), libc::SIGKILL);
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        while let Ok(status) = waitpid(None, Some(flags)) {
            if ended(&status) == Some(self.pid) {
                break;
            }
        }
    }
}

fn ended(status: &WaitStatus) -> Option<Pid> {
    match status {
        WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) => Some(*pid),
        _ => None,
    }
}

fn number(text: &OsStr) -> i32 {
    text.to_str().and_then(|text| text.parse().ok()).expect("a number")
}

/// Follows a worker from call to call.
#[derive(Debug)]
struct Tracer {
    traced: Traced,
    memory: File,
    home: PathBuf,
    kill_at: Option<usize>,
    /// By thread: the calls that have begun and not come back.
    begun: HashMap<Pid, Step>,
    run: Run,
}

/// A call that changes files below the home, or tells the caller.
#[derive(Debug)]
struct Call {
    told: String,
    /// What it does if it succeeds. A write may come to less than was asked for.
    step: Option<Step>,
}

impl Tracer {
    fn new(traced: Traced, home: PathBuf, kill_at: Option<usize>) -> Self {
        let memory = File::open(format!("/proc/{}/mem", traced.pid)).expect("the worker's memory");
        let run = Run { calls: Vec::new(), steps: Vec::new(), killed: false };
        Self { traced, memory, home, kill_at, begun: HashMap::new(), run }
    }

    fn follow(mut self, mut stdin: ChildStdin, mut stdout: BufReader<ChildStdout>) -> Run {
        self.traced.seize();
        stdin.write_all(b"go\n").expect("the worker listens");
        let status = loop {
            let status = Traced::wait();
            if ended(&status) == Some(self.traced.pid) {
                self.traced.running = false;
                break status;
            }
            match status {
                WaitStatus::PtraceSyscall(thread) => {
                    self.stopped_at_call(thread);
                    go_on(thread, None);
                }
                WaitStatus::PtraceEvent(thread, ..) => go_on(thread, None),
                WaitStatus::Stopped(thread, signal) => go_on(thread, Some(signal)),
                _ => {}
            }
        };
        let mut told = String::new();
        stdout.read_to_string(&mut told).expect("what the worker told is text");
        let well = self.run.killed || matches!(status, WaitStatus::Exited(_, 0));
        assert!(well, "the worker failed, {status:?}:\n{told}");
        self.run
    }

    fn stopped_at_call(&mut self, thread: Pid) {
        // A thread that has been killed at its stop has nothing more to tell.
        let (Ok(info), Ok(registers)) = (ptrace::syscall_info(thread), registers(thread)) else { return };
        match info.op {
            libc::PTRACE_SYSCALL_INFO_ENTRY => self.begins(thread, &registers),
            libc::PTRACE_SYSCALL_INFO_EXIT => {
                // Negative numbers are errors.
                if let Some(mut step) = self.begun.remove(&thread)
                    && let Ok(result) = usize::try_from(registers.result)
                {
                    if let Step::Changed(Change::Write { data, .. }) = &mut step {
                        data.truncate(result);
                    }
                    self.run.steps.push(step);
                }
            }
            _ => {}
        }
    }

    fn begins(&mut self, thread: Pid, registers: &Registers) {
        if self.run.killed {
            return;
        }
        let Some(call) =
            Looking { tracer: self, thread, arguments: registers.arguments }.call(registers.number)
        else {
            return;
        };
        if call.step != Some(Step::Returned) {
            let number = self.run.calls.len();
            self.run.calls.push(call.told);
            if self.kill_at == Some(number) {
                // A call at whose beginning the process is killed is not made.
                kill(self.traced.pid, Signal::SIGKILL).expect("the worker can be killed");
                self.run.killed = true;
                return;
            }
        }
        if let Some(step) = call.step {
            self.begun.insert(thread, step);
        }
    }
}

/// Lets a thread go on to its next stop.
fn go_on(thread: Pid, signal: Option<Signal>) {
    match ptrace::syscall(thread, signal) {
        // Killed meanwhile.
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => panic!("cannot let the worker go on: {error}"),
    }
}

/// What a thread asks the kernel for, or what it was answered.
#[derive(Debug)]
struct Registers {
    number: i64,
    arguments: [u64; 6],
    result: i64,
}

#[cfg(target_arch = "x86_64")]
fn registers(thread: Pid) -> nix::Result<Registers> {
    let all = ptrace::getregs(thread)?;
    Ok(Registers {
        number: all.orig_rax.cast_signed(),
        arguments: [all.rdi, all.rsi, all.rdx, all.r10, all.r8, all.r9],
        result: all.rax.cast_signed(),
    })
}

#[cfg(target_arch = "aarch64")]
fn registers(thread: Pid) -> nix::Result<Registers> {
    let all = ptrace::getregs(thread)?.regs;
    Ok(Registers {
        number: all[8].cast_signed(),
        arguments: [all[0], all[1], all[2], all[3], all[4], all[5]],
        result: all[0].cast_signed(),
    })
}

/// Flags as they stand in a register.
fn flags(flags: libc::c_int) -> u64 {
    flags.cast_unsigned().into()
}

/// A descriptor as it stands in a register, of which the kernel looks at the lower half.
fn descriptor(register: u64) -> libc::c_int {
    u32::try_from(register & u64::from(u32::MAX)).expect("the lower half").cast_signed()
}

fn size(register: u64) -> usize {
    usize::try_from(register).expect("a size")
}

/// A thread that stands before a call.
struct Looking<'a> {
    tracer: &'a Tracer,
    thread: Pid,
    arguments: [u64; 6],
}

impl Looking<'_> {
    /// What the call does to files below the home, if it does anything.
    fn call(&self, number: i64) -> Option<Call> {
        let [first, second, third, fourth, ..] = self.arguments;
        #[cfg(target_arch = "x86_64")]
        match number {
            libc::SYS_open => return self.open(self.path_here(first)?, second),
            libc::SYS_creat => {
                return self.open(self.path_here(first)?, flags(libc::O_CREAT | libc::O_TRUNC));
            }
            libc::SYS_rename => return self.rename(self.path_here(first), self.path_here(second), 0),
            libc::SYS_mkdir => return self.mkdir(self.path_here(first)?),
            libc::SYS_unlink | libc::SYS_rmdir => return self.remove(self.path_here(first)?),
            libc::SYS_link | libc::SYS_symlink => return self.unknown("link", self.path_here(second)),
            _ => {}
        }
        match number {
            libc::SYS_write => self.write(&[(second, third)], None),
            libc::SYS_pwrite64 => self.write(&[(second, third)], Some(fourth)),
            libc::SYS_writev => self.write(&self.vectors(), None),
            libc::SYS_pwritev | libc::SYS_pwritev2 => self.write(&self.vectors(), Some(fourth)),
            libc::SYS_ftruncate => self.resize(second),
            libc::SYS_openat => self.open(self.path(first, second)?, third),
            libc::SYS_renameat => self.rename(self.path(first, second), self.path(third, fourth), 0),
            libc::SYS_renameat2 => {
                self.rename(self.path(first, second), self.path(third, fourth), self.arguments[4])
            }
            libc::SYS_mkdirat => self.mkdir(self.path(first, second)?),
            libc::SYS_unlinkat => self.remove(self.path(first, second)?),
            libc::SYS_fsync | libc::SYS_fdatasync => self.sync(),
            // It starts what a sync waits for, and promises nothing.
            libc::SYS_sync_file_range => Some(call("sync_file_range", &self.file(first)?, None)),
            libc::SYS_mmap => self.map(),
            libc::SYS_linkat => self.unknown("linkat", self.path(third, fourth)),
            libc::SYS_symlinkat => self.unknown("symlinkat", self.path(second, third)),
            libc::SYS_mknodat => self.unknown("mknodat", self.path(first, second)),
            libc::SYS_fallocate => self.unknown("fallocate", self.file(first)),
            libc::SYS_sendfile => self.unknown("sendfile", self.file(first)),
            libc::SYS_copy_file_range => self.unknown("copy_file_range", self.file(third)),
            libc::SYS_splice => self.unknown("splice", self.file(third)),
            libc::SYS_syncfs
            | libc::SYS_sync
            | libc::SYS_openat2
            | libc::SYS_truncate
            | libc::SYS_io_uring_setup => {
                panic!("what system call {number} does to files is not known")
            }
            _ => None,
        }
    }

    /// A call that the model has no change for must not go by.
    fn unknown(&self, name: &str, path: Option<PathBuf>) -> Option<Call> {
        path.map(|path| panic!("what {name} does to {} is not known", path.display()))
    }

    fn write(&self, pieces: &[(u64, u64)], at: Option<u64>) -> Option<Call> {
        if descriptor(self.arguments[0]) == libc::STDOUT_FILENO {
            let data = self.gather(pieces);
            let says = data.windows(RETURNED.len()).any(|part| part == RETURNED.as_bytes());
            return says.then(|| Call { told: String::new(), step: Some(Step::Returned) });
        }
        let path = self.file(self.arguments[0])?;
        let at = size(at.unwrap_or_else(|| self.position()));
        let data = self.gather(pieces);
        let name = format!("write of {} bytes at {at} to", data.len());
        Some(call(&name, &path, Some(Change::Write { path: path.clone(), at, data })))
    }

    fn resize(&self, length: u64) -> Option<Call> {
        let path = self.file(self.arguments[0])?;
        let resize = Change::Resize { path: path.clone(), length: size(length) };
        Some(call(&format!("resize to {length} of"), &path, Some(resize)))
    }

    fn open(&self, path: PathBuf, how: u64) -> Option<Call> {
        assert!(how & flags(libc::O_TMPFILE) != flags(libc::O_TMPFILE), "a file without a name is not known");
        let there = fs::symlink_metadata(self.tracer.home.join(&path));
        let change = match there {
            Ok(meta) if how & flags(libc::O_TRUNC) != 0 && meta.len() > 0 => {
                Change::Resize { path: path.clone(), length: 0 }
            }
            Err(_) if how & flags(libc::O_CREAT) != 0 => Change::File(path.clone()),
            _ => return None,
        };
        Some(call("open", &path, Some(change)))
    }

    fn rename(&self, from: Option<PathBuf>, to: Option<PathBuf>, how: u64) -> Option<Call> {
        let (from, to) = match (from, to) {
            (None, None) => return None,
            (Some(from), Some(to)) => (from, to),
            (from, to) => panic!("{from:?} becomes {to:?}: one of them is not below the home"),
        };
        assert!(how & u64::from(libc::RENAME_EXCHANGE) == 0, "an exchange of names is not known");
        let told = format!("rename {} to {}", from.display(), to.display());
        Some(Call { told, step: Some(Step::Changed(Change::Rename { from, to })) })
    }

    fn mkdir(&self, path: PathBuf) -> Option<Call> {
        // One that is there is asked for whenever a home is opened: that changes nothing.
        let new = fs::symlink_metadata(self.tracer.home.join(&path)).is_err();
        new.then(|| call("mkdir", &path, Some(Change::Folder(path.clone()))))
    }

    fn remove(&self, path: PathBuf) -> Option<Call> {
        fs::symlink_metadata(self.tracer.home.join(&path)).ok()?;
        Some(call("remove", &path, Some(Change::Remove(path.clone()))))
    }

    fn sync(&self) -> Option<Call> {
        let path = self.file(self.arguments[0])?;
        Some(call("sync", &path, Some(Change::Sync(path.clone()))))
    }

    /// What is written through memory is never seen here.
    fn map(&self) -> Option<Call> {
        let [_, _, protection, how, file, _] = self.arguments;
        if how & flags(libc::MAP_ANONYMOUS) == 0
            && how & flags(libc::MAP_TYPE) != flags(libc::MAP_PRIVATE)
            && protection & flags(libc::PROT_WRITE) != 0
            && let Some(path) = self.file(file)
        {
            assert!(is_shared_memory(&path), "{} is changed through memory", path.display());
        }
        None
    }

    /// A file by its descriptor, when it is below the home and has a name.
    fn file(&self, fd: u64) -> Option<PathBuf> {
        let open = fs::read_link(self.descriptor("fd", fd)).ok()?;
        let below = open.strip_prefix(&self.tracer.home).ok()?;
        let gone = below.as_os_str().as_bytes().ends_with(b" (deleted)");
        (!gone).then(|| below.to_owned())
    }

    /// A path as the call has it, when it leads below the home.
    fn path(&self, folder: u64, address: u64) -> Option<PathBuf> {
        let name = PathBuf::from(self.text(address)?);
        let here = PathBuf::from(format!("/proc/{}/cwd", self.thread));
        let folder = if descriptor(folder) == libc::AT_FDCWD { here } else { self.descriptor("fd", folder) };
        let whole = if name.is_absolute() { name } else { fs::read_link(folder).ok()?.join(name) };
        let parent = whole.parent()?.canonicalize().ok()?;
        parent.join(whole.file_name()?).strip_prefix(&self.tracer.home).ok().map(Path::to_owned)
    }

    #[cfg(target_arch = "x86_64")]
    fn path_here(&self, address: u64) -> Option<PathBuf> {
        self.path(flags(libc::AT_FDCWD), address)
    }

    fn descriptor(&self, of: &str, fd: u64) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{of}/{}", self.thread, descriptor(fd)))
    }

    /// Where a write without a place goes: to the end, or where the one before came to.
    fn position(&self) -> u64 {
        let fd = self.arguments[0];
        let told = fs::read_to_string(self.descriptor("fdinfo", fd)).expect("an open file");
        let value = |name: &str| {
            let line = told.lines().find_map(|line| line.strip_prefix(name));
            line.expect("all open files have it").trim().to_owned()
        };
        let how = u64::from_str_radix(&value("flags:"), 8).expect("flags are octal");
        if how & flags(libc::O_APPEND) != 0 {
            return fs::metadata(self.descriptor("fd", fd)).expect("an open file").len();
        }
        value("pos:").parse().expect("a number")
    }

    /// Address and length of each piece of a write.
    fn vectors(&self) -> Vec<(u64, u64)> {
        let [_, address, count, ..] = self.arguments;
        let bytes = self.bytes(address, size(count) * 16);
        let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("8 bytes"));
        bytes.chunks_exact(16).map(|vector| (word(&vector[..8]), word(&vector[8..]))).collect()
    }

    fn gather(&self, pieces: &[(u64, u64)]) -> Vec<u8> {
        pieces.iter().flat_map(|(address, length)| self.bytes(*address, size(*length))).collect()
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        assert!(length <= MOST_BYTES, "{length} bytes at once");
        let mut bytes = vec![0; length];
        self.tracer.memory.read_exact_at(&mut bytes, address).expect("what a call names can be read");
        bytes
    }

    /// A string in the worker's memory.
    fn text(&self, address: u64) -> Option<OsString> {
        let (mut text, mut buffer) = (Vec::new(), [0; 256]);
        loop {
            let at = address + u64::try_from(text.len()).ok()?;
            // As much as there is: behind the string there may be no memory.
            let read = self.tracer.memory.read_at(&mut buffer, at).ok().filter(|read| *read > 0)?;
            if let Some(end) = buffer[..read].iter().position(|byte| *byte == 0) {
                text.extend_from_slice(&buffer[..end]);
                return Some(OsString::from_vec(text));
            }
            text.extend_from_slice(&buffer[..read]);
        }
    }
}

fn call(name: &str, path: &Path, change: Option<Change>) -> Call {
    let step = change.filter(|_| !is_shared_memory(path)).map(Step::Changed);
    Call { told: format!("{name} {}", path.display()), step }
}

/// SQLite's index of its log: mapped into memory, never synced, and made anew by the first who opens the database.
pub fn is_shared_memory(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"-shm")
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::thread;

    use super::*;
    use crate::durable::{Disk, Loss, Tree, read_tree};

    /// Everything that the tool knows, in more than one thread and from more than one folder.
    fn work(home: &Path) {
        fs::create_dir(home.join("a")).unwrap();
        let file = File::create(home.join("a/x")).unwrap();
        (&file).write_all(b"12").unwrap();
        let written = (&file).write_vectored(&[io::IoSlice::new(b"34"), io::IoSlice::new(b"5")]);
        assert_eq!(written.unwrap(), 3);
        file.write_all_at(b"6", 7).unwrap();
        file.set_len(6).unwrap();
        file.sync_data().unwrap();
        fs::rename(home.join("a/x"), home.join("y")).unwrap();
        file.write_all_at(b"!", 0).unwrap();
        File::open(home).unwrap().sync_all().unwrap();
        let path = home.join("a/../log");
        let appended = thread::spawn(move || {
            let mut log = OpenOptions::new().create(true).append(true).open(path).unwrap();
            log.write_all(b"one").unwrap();
            log.write_all(b"two").unwrap();
        });
        appended.join().unwrap();
        File::create(home.join("log")).unwrap();
        fs::remove_dir_all(home.join("a")).unwrap();
        // What has no name is nobody's, and what fails changes nothing.
        fs::remove_file(home.join("y")).unwrap();
        file.write_all_at(b"?", 0).unwrap();
        fs::remove_file(home.join("y")).unwrap_err();
        fs::rename(home.join("y"), home.join("z")).unwrap_err();
    }

    fn changes() -> Vec<Change> {
        let write =
            |path: &str, at: usize, data: &str| Change::Write { path: path.into(), at, data: data.into() };
        let resize = |path: &str, length: usize| Change::Resize { path: path.into(), length };
        vec![
            Change::Folder("a".into()),
            Change::File("a/x".into()),
            write("a/x", 0, "12"),
            write("a/x", 2, "345"),
            write("a/x", 7, "6"),
            resize("a/x", 6),
            Change::Sync("a/x".into()),
            Change::Rename { from: "a/x".into(), to: "y".into() },
            write("y", 0, "!"),
            Change::Sync("".into()),
            Change::File("log".into()),
            write("log", 0, "one"),
            write("log", 3, "two"),
            resize("log", 0),
            Change::Remove("a".into()),
            Change::Remove("y".into()),
        ]
    }

    #[test]
    fn every_change_is_seen_whichever_thread_makes_it_and_however() {
        if let Some(worker) = worker() {
            work(worker.home());
            return worker.returned();
        }
        let home = tempfile::tempdir().unwrap();
        let run =
            run("cut::tests::every_change_is_seen_whichever_thread_makes_it_and_however", home.path(), None);
        let seen = changes().into_iter().map(Step::Changed).chain([Step::Returned]);
        assert_eq!(run.steps, seen.collect::<Vec<_>>());
        assert!(run.returned() && !run.killed);
    }

    #[test]
    fn the_call_at_which_a_worker_is_killed_is_not_made_and_those_before_it_are() {
        if let Some(worker) = worker() {
            return work(worker.home());
        }
        let test = "cut::tests::the_call_at_which_a_worker_is_killed_is_not_made_and_those_before_it_are";
        let mut model = Disk::new(&Tree::new());
        for (number, change) in changes().iter().enumerate() {
            let home = tempfile::tempdir().unwrap();
            let run = run(test, home.path(), Some(number));
            assert!(run.killed, "{number}: {change:?}");
            let there = read_tree(home.path(), |_| false).unwrap();
            assert_eq!(there, model.after(Loss::Nothing), "{number}: {change:?}");
            model.apply(change);
        }
    }

    #[test]
    fn a_change_that_the_tool_does_not_know_is_no_change_that_it_does_not_see() {
        if let Some(worker) = worker() {
            return fs::hard_link(worker.home().join("a"), worker.home().join("b")).unwrap();
        }
        let test = "cut::tests::a_change_that_the_tool_does_not_know_is_no_change_that_it_does_not_see";
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("a"), "").unwrap();
        let path = home.path().to_owned();
        let error = thread::spawn(move || run(test, &path, None)).join().unwrap_err();
        assert_eq!(error.downcast_ref::<String>().unwrap(), "what linkat does to b is not known");
        assert!(!home.path().join("b").exists(), "its worker has gone with it");
    }
}
