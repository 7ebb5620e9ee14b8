//! One VM test: a home folder of its own, real boxes, and the proof at the end that nothing was left over.
//!
//! A test makes a [`Story`], tells it through the command line ([`Story::boxlite`]) or the library ([`Story::options`]),
//! and drops it. The drop removes the boxes that are left, then looks for processes, mounts, sockets and files that
//! belong to the home: one that is found fails the test. When the test has failed already, the home is kept, and
//! console and logs of its boxes are printed.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take that has no limit of its own. Twice nested emulation is slow.
pub const PATIENCE: Duration = Duration::from_secs(150);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A home folder, and the promise that nothing outlives it.
#[derive(Debug)]
pub struct Story {
    home: PathBuf,
}

impl Story {
    /// A home that has the image `busybox:latest`.
    pub fn with_busybox() -> Self {
        let story = Self::empty();
        story.load("busybox.oci.tar");
        story
    }

    /// A home without images.
    pub fn empty() -> Self {
        let folder = tempfile::Builder::new().prefix("boxlite-story-").tempdir().expect("a temporary folder");
        Self { home: folder.keep() }
    }

    /// A home at this place, which must not exist.
    pub fn at(home: PathBuf) -> Self {
        fs::create_dir_all(&home).expect("a folder");
        Self { home }
    }

    /// Loads one of the images that the test set-up made.
    pub fn load(&self, archive: &str) {
        self.boxlite(["load", "--quiet", "-i"]).arg(images().join(archive)).run().success();
    }

    /// The home folder.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// A call of `boxlite` on this home.
    pub fn boxlite<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Call {
        let mut command = Command::new(program("BOXLITE_CLI"));
        command.args(args).env("BOXLITE_HOME", &self.home).env_remove("RUST_BACKTRACE");
        Call { command, input: Vec::new() }
    }

    /// Options for the library on this home.
    pub fn options(&self) -> boxlite::BoxliteOptions {
        boxlite::BoxliteOptions::with_home(&self.home)
    }

    /// The boxes as `boxlite ps -a --format json` has them.
    pub fn boxes(&self) -> Vec<serde_json::Value> {
        let told = self.boxlite(["ps", "-a", "--format", "json"]).run().success();
        serde_json::from_slice(&told.stdout).expect("JSON")
    }

    /// Waits until the only box has this status, and returns it.
    pub fn until_status(&self, status: &str) -> serde_json::Value {
        let mut last = Vec::new();
        eventually(&format!("a box is {status}"), PATIENCE, || {
            last = self.boxes();
            last.len() == 1 && last[0]["status"] == status
        });
        last.remove(0)
    }

    /// Processes that belong to boxes of this home: pid and command line.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let own = i32::try_from(std::process::id()).expect("a pid");
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            if pid != own && self.belongs(&entry.path()) {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
            }
        }
        found
    }

    /// A process belongs to a home when it has a file or socket of it open, mapped, or on its command line.
    fn belongs(&self, proc: &Path) -> bool {
        let home = self.home.to_str().expect("a path in UTF-8");
        let line = fs::read(proc.join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(home) {
            return true;
        }
        let Ok(open) = fs::read_dir(proc.join("fd")) else { return false };
        let mut files = open.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        files.any(|file| file.starts_with(home))
    }

    /// The process of this role of the only box.
    pub fn role(&self, role: &str) -> i32 {
        let mut pid = None;
        eventually(&format!("there is a {role} process"), PATIENCE, || {
            let ending = format!("boxlite-shim {role} ");
            pid = self.processes().into_iter().find(|(_, line)| line.ends_with(&ending)).map(|(pid, _)| pid);
            pid.is_some()
        });
        pid.expect("found above")
    }

    /// What is left of boxes: processes, mounts, and anything in the folders of boxes.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> =
            self.processes().into_iter().map(|(pid, line)| format!("process {pid}: {line}")).collect();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let home = self.home.to_str().expect("a path in UTF-8");
        left.extend(mounts.lines().filter(|line| line.contains(home)).map(|line| format!("mount {line}")));
        for folder in ["boxes", "tmp"] {
            let entries = fs::read_dir(self.home.join(folder)).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| format!("file {}", entry.path().display())));
        }
        left
    }

    /// Removes the boxes that the test did not remove, and checks that nothing is left.
    fn close(&self) {
        let ids: Vec<String> =
            self.boxes().iter().map(|info| info["id"].as_str().expect("an id").to_owned()).collect();
        if !ids.is_empty() {
            self.boxlite(["rm", "--force"]).args(&ids).run();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.leftovers().is_empty() && Instant::now() < deadline {
            thread::sleep(LOOK);
        }
        let left = self.leftovers();
        assert!(left.is_empty(), "left over:\n  {}", left.join("\n  "));
    }

    fn tell_what_happened(&self) {
        eprintln!("the home is kept at {}", self.home.display());
        for entry in fs::read_dir(self.home.join("boxes")).into_iter().flatten().flatten() {
            for name in ["state", "logs/console.log", "logs/shim.log"] {
                let text = fs::read(entry.path().join(name)).unwrap_or_default();
                eprintln!("--- {} of {}", name, entry.path().display());
                let text = String::from_utf8_lossy(&text);
                let lines: Vec<&str> = text.lines().collect();
                for line in &lines[lines.len().saturating_sub(60)..] {
                    eprintln!("{line}");
                }
            }
        }
        for line in self.leftovers() {
            eprintln!("still there: {line}");
        }
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        if thread::panicking() {
            self.tell_what_happened();
            // A failed test must not leave machines behind that slow the others down.
            for (pid, _) in self.processes() {
                kill(pid, 9);
            }
            return;
        }
        self.close();
        fs::remove_dir_all(&self.home).expect("the home can be removed");
    }
}

/// One call of a program.
#[derive(Debug)]
pub struct Call {
    command: Command,
    input: Vec<u8>,
}

impl Call {
    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Takes a variable away.
    pub fn without(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Gives it these bytes as standard input.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// Starts it, its output going nowhere and its input open. What it complains about goes where the test's complaints go.
    pub fn start(mut self) -> Running {
        self.command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit());
        Running { child: self.command.spawn().expect("the program starts") }
    }

    /// Starts it with all three streams as pipes.
    pub fn start_piped(mut self) -> Running {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running { child: self.command.spawn().expect("the program starts") }
    }

    /// Runs it to its end.
    pub fn run(mut self) -> Told {
        let text = format!("{:?}", self.command);
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().expect("the program starts");
        let mut stdin = child.stdin.take().expect("piped");
        let input = self.input;
        let writer = thread::spawn(move || stdin.write_all(&input));
        let stderr = read_all(child.stderr.take().expect("piped"));
        let stdout = read_all(child.stdout.take().expect("piped"));
        let status = child.wait().expect("the program ends");
        drop(writer.join().expect("the writer does not panic"));
        let join = |reader: thread::JoinHandle<Vec<u8>>| reader.join().expect("the reader does not panic");
        Told { call: text, status, stdout: join(stdout), stderr: join(stderr) }
    }
}

fn read_all(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        pipe.read_to_end(&mut all).expect("the pipe can be read");
        all
    })
}

/// A program that runs. Killed when it is dropped.
#[derive(Debug)]
pub struct Running {
    /// The process.
    pub child: Child,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// Kills it and waits for it.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// Waits for its end, which must come within [`PATIENCE`].
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the program ends", PATIENCE, || {
            status = self.child.try_wait().expect("it can be waited for");
            status.is_some()
        });
        status.expect("found above")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended long ago.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a program told.
#[derive(Debug)]
pub struct Told {
    call: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Told {
    /// Standard output as a JSON document.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).expect("a JSON document")
    }

    /// Its standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails the test unless it ended with 0.
    pub fn success(self) -> Self {
        self.code(0)
    }

    /// Fails the test unless it ended with this code.
    pub fn code(self, code: i32) -> Self {
        let ended = self.status.code().or_else(|| self.status.signal().map(|signal| -signal));
        assert_eq!(ended, Some(code), "{}\nstdout: {}\nstderr: {}", self.call, self.out(), self.err());
        self
    }
}

/// Waits until the condition holds; fails the test when it does not within the limit.
pub fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        thread::sleep(LOOK);
    }
}

/// Sends a signal; a process that has gone is none to complain about.
pub fn kill(pid: i32, signal: i32) {
    let signal = nix::sys::signal::Signal::try_from(signal).expect("a signal");
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(error) => panic!("cannot signal {pid}: {error}"),
    }
}

/// The program or folder that this variable names.
pub fn program(variable: &str) -> PathBuf {
    let value = std::env::var_os(variable);
    PathBuf::from(value.unwrap_or_else(|| panic!("{variable} is not set: run the VM tests with `make test`")))
}

/// The folder of the images that the test set-up made.
pub fn images() -> PathBuf {
    program("BOXLITE_TEST_IMAGES")
}
