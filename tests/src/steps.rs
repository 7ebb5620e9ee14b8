//! Holds the processes of boxes at named steps: see `boxlite_control::step`.
//!
//! ```text
//!   process ──"role pid step"──▶ socket ──▶ what the test wants of the step:
//!           ◀───── answer ──────            pass it, or hold it and be told
//! ```

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// The variable that leads processes to the socket.
pub const VARIABLE: &str = "BOXLITE_TEST_STEPS";

/// A process that waits at a step. It goes on when this is dropped.
#[derive(Debug)]
pub struct Held {
    /// The step, as `role step`.
    pub step: String,
    stream: UnixStream,
}

impl Drop for Held {
    fn drop(&mut self) {
        // It may have been killed.
        drop(self.stream.write_all(b"go on\n"));
    }
}

#[derive(Debug, Default)]
struct Plan {
    seen: Vec<String>,
    hold: Option<(String, Sender<Held>)>,
}

/// The socket, and what happens to those who come.
#[derive(Debug)]
pub struct Steps {
    folder: tempfile::TempDir,
    plan: Arc<Mutex<Plan>>,
}

impl Steps {
    /// Listens, and lets everybody pass.
    pub fn listen() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let listener = UnixListener::bind(folder.path().join("steps")).expect("a socket");
        let plan = Arc::new(Mutex::new(Plan::default()));
        let steps = Self { folder, plan: Arc::clone(&plan) };
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                meet(stream, &plan);
            }
        });
        steps
    }

    /// The socket.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("steps")
    }

    fn with<T>(&self, work: impl FnOnce(&mut Plan) -> T) -> T {
        work(&mut self.plan.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Holds the next process that reaches this step.
    pub fn hold(&self, step: &str) -> Receiver<Held> {
        let (sender, receiver) = channel();
        self.with(|plan| plan.hold = Some((step.to_owned(), sender)));
        receiver
    }

    /// Holds nobody any more.
    pub fn pass(&self) {
        self.with(|plan| plan.hold = None);
    }

    /// The steps that were reached since this was asked last.
    pub fn seen(&self) -> Vec<String> {
        self.with(|plan| std::mem::take(&mut plan.seen))
    }

    /// Processes that were started with this socket, or by one that was: their ids by what they are.
    pub fn processes(&self) -> Vec<(Role, i32)> {
        let socket = format!("{VARIABLE}={}", self.path().display()).into_bytes();
        let mut all = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if !environment.split(|byte| *byte == 0).any(|entry| entry == socket) || line.is_empty() {
                continue;
            }
            if line.ends_with(b"boxlite-shim\0monitor\0") {
                all.push((Role::Monitor, pid));
                for vmm in children(pid) {
                    all.push((Role::Vmm, vmm));
                    all.extend(children(vmm).into_iter().map(|pid| (Role::Machine, pid)));
                }
            } else {
                all.push((Role::Program, pid));
            }
        }
        all
    }
}

fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The command line.
    Program,
    /// The box's monitor.
    Monitor,
    /// Its VMM.
    Vmm,
    /// The engine's own process, where it has one.
    Machine,
}

/// Takes what one process has to say, and holds it or lets it go on.
fn meet(stream: UnixStream, plan: &Mutex<Plan>) {
    let mut line = String::new();
    let Ok(copy) = stream.try_clone() else { return };
    // One that was killed says nothing.
    if BufReader::new(copy).read_line(&mut line).is_err() {
        return;
    }
    let words: Vec<&str> = line.trim_end().splitn(3, ' ').collect();
    let [role, _, step] = words.as_slice() else { return };
    let held = Held { step: format!("{role} {step}"), stream };
    let mut plan = plan.lock().unwrap_or_else(PoisonError::into_inner);
    plan.seen.push(held.step.clone());
    let wanted = plan.hold.take_if(|(step, _)| *step == held.step);
    if let Some((_, sender)) = wanted {
        // A test that waits no more lets it go on.
        drop(sender.send(held));
    }
}

/// Waits for a process that is held; `None` when none comes within the limit.
pub fn wait(held: &Receiver<Held>, limit: Duration) -> Option<Held> {
    held.recv_timeout(limit).ok()
}
