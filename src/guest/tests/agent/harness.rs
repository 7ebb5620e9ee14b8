//! An agent to test, and what it needs.

use std::error::Error;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use boxlite_guest::agent::{Agent, Settings};
use boxlite_guest::container::capabilities;
use boxlite_guest::portal;
use boxlite_guest::process::cgroup::CONTAINER;
use boxlite_guest::process::reaper::Reaper;
use boxlite_guest::process::spawner;
use boxlite_guest::vsock::Listener;
use boxlite_portal::client::Portal;
use boxlite_portal::v1::{
    AttachRequest, AttachResponse, ContainerInitRequest, ContainerStartRequest, ExecRequest, Exit,
    InitRequest, ProcessSpec, StartFailure, Started, WaitRequest, attach_response, container_start_response,
    exec_response, exit,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::ForkResult;

/// How long an agent may take to answer.
const DEADLINE: Duration = Duration::from_secs(20);
/// Programs of the image, all of them busybox.
const PROGRAMS: [&str; 22] = [
    "sh", "echo", "cat", "id", "pwd", "env", "ls", "sleep", "true", "head", "wc", "stty", "tty", "yes",
    "touch", "grep", "hostname", "kill", "dd", "seq", "mkdir", "test",
];

/// The capability to set the clock.
const SYS_TIME: u64 = 1 << 25;

/// The hierarchy in which the agents' cgroups are made.
const HIERARCHIES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// What all stories share: the disks to start from.
pub(crate) struct Bench {
    folder: tempfile::TempDir,
    cgroups: PathBuf,
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr)))
}

impl Bench {
    /// Makes the disks, or says what is missing.
    pub(crate) fn new() -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("containers without a virtual machine take root".to_owned());
        }
        let is_cgroup2 = |hierarchy: &&str| Path::new(hierarchy).join("cgroup.controllers").exists();
        let hierarchy = HIERARCHIES.into_iter().find(is_cgroup2).ok_or("there is no cgroup2 hierarchy")?;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let bench = Self { cgroups: PathBuf::from(hierarchy), folder };
        bench.make_image("image", true)?;
        bench.make_image("empty", false)?;
        let writable = bench.disk("writable");
        run("truncate", &["-s", "16M", &writable])?;
        run("mke2fs", &["-q", "-t", "ext4", &writable])?;
        if can_grow() {
            run("truncate", &["-s", "48M", &writable])?;
        }
        run("losetup", &["--version"])?;
        Ok(bench)
    }

    fn disk(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    fn make_image(&self, name: &str, filled: bool) -> Result<(), String> {
        let root = self.folder.path().join(format!("{name}.d"));
        let fill = || -> std::io::Result<()> {
            fs::create_dir_all(root.join("bin"))?;
            if !filled {
                return fs::remove_dir(root.join("bin"));
            }
            for folder in ["etc", "root", "tmp", "home/ann", "private"] {
                fs::create_dir_all(root.join(folder))?;
            }
            fs::copy("/bin/busybox", root.join("bin/busybox"))?;
            for program in PROGRAMS {
                symlink("busybox", root.join("bin").join(program))?;
            }
            fs::write(
                root.join("etc/passwd"),
                "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001::/home/ann:/bin/sh\n",
            )?;
            fs::write(root.join("etc/group"), "root:x:0:\nann:x:1001:\nstaff:x:50:ann\n")?;
            for (file, content, mode) in [
                ("bin/script", "#!/bin/sh\necho \"$0 $1\"\n", 0o755),
                ("bin/orphan", "#!/no/such/interpreter\n", 0o755),
                ("bin/garbage", "no program\n", 0o755),
                ("bin/text", "no program\n", 0o644),
            ] {
                fs::write(root.join(file), content)?;
                fs::set_permissions(root.join(file), fs::Permissions::from_mode(mode))?;
            }
            fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
            fs::set_permissions(root.join("private"), fs::Permissions::from_mode(0o700))
        };
        fill().map_err(|error| format!("cannot make an image: {error}"))?;
        run("mkfs.erofs", &["--quiet", &self.disk(name), &root.to_string_lossy()]).map(drop)
    }

    /// An agent that has booted and knows nothing yet.
    pub(crate) async fn agent(&self) -> TestAgent {
        TestAgent::start(self, "image").await
    }

    /// The same, with an image that holds nothing.
    pub(crate) async fn agent_of_empty_image(&self) -> TestAgent {
        TestAgent::start(self, "empty").await
    }

    /// An agent whose main command idles.
    pub(crate) async fn idle(&self) -> TestAgent {
        let agent = self.agent().await;
        agent.init().await;
        agent.main(ProcessSpec::default()).await.expect("the idle main command starts");
        agent
    }

    /// An agent whose main command is this shell script.
    pub(crate) async fn running(&self, script: &str) -> TestAgent {
        let agent = self.agent().await;
        agent.init().await;
        agent.main(sh(script)).await.expect("the main command starts");
        agent
    }
}

/// A process specification of these arguments.
pub(crate) fn spec(args: &[&str]) -> ProcessSpec {
    ProcessSpec {
        args: args.iter().map(|argument| argument.as_bytes().to_vec()).collect(),
        ..Default::default()
    }
}

/// A process specification of this shell script.
pub(crate) fn sh(script: &str) -> ProcessSpec {
    spec(&["sh", "-c", script])
}

/// Whether this machine lets its root grow a file system.
pub(crate) fn can_grow() -> bool {
    const SYS_RESOURCE: u64 = 1 << 24;
    let status = fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("a set of capabilities");
    u64::from_str_radix(line.trim(), 16).expect("a number") & SYS_RESOURCE != 0
}

/// The most files that a process of this machine may open.
pub(crate) fn open_files() -> u64 {
    nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("a limit").1
}

/// An exit with this code and nothing else to say.
pub(crate) fn code(code: i32) -> Exit {
    Exit { status: Some(exit::Status::Code(code)), ..Default::default() }
}

/// An exit by this signal and nothing else to say.
pub(crate) fn killed(signal: i32) -> Exit {
    Exit { status: Some(exit::Status::Signal(signal.unsigned_abs())), ..Default::default() }
}

/// What came out of an execution.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Seen {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit: Exit,
    /// Offset of the first byte of standard output that arrived.
    pub(crate) first: Option<u64>,
}

impl Seen {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Reads a stream of output to its end.
pub(crate) async fn read(mut stream: tonic::Streaming<AttachResponse>) -> Seen {
    let mut seen = Seen::default();
    while let Some(message) = stream.message().await.expect("a message") {
        match message.event.expect("an event") {
            attach_response::Event::Exit(exit) => {
                seen.exit = exit;
                return seen;
            }
            attach_response::Event::Output(output) => {
                let stdout = output.stream == 1;
                let sink = if stdout { &mut seen.stdout } else { &mut seen.stderr };
                if stdout {
                    let first = *seen.first.get_or_insert(output.offset);
                    assert_eq!(output.offset, first + sink.len() as u64, "output has no gaps once it flows");
                }
                sink.extend_from_slice(&output.data);
            }
        }
    }
    panic!("the stream ended without an exit");
}

/// An agent that answers.
pub(crate) struct TestAgent {
    pub(crate) portal: Portal,
    pub(crate) socket: PathBuf,
    process: AgentProcess,
}

/// An agent's process and what was made for it. Killed, with all that it started, and removed when it is dropped.
struct AgentProcess {
    child: Option<Child>,
    devices: Vec<String>,
    cgroup: PathBuf,
    folder: tempfile::TempDir,
}

impl TestAgent {
    async fn start(bench: &Bench, image: &str) -> Self {
        let process = AgentProcess::start(bench, image);
        let socket = process.folder.path().join("portal.sock");
        let connect = async {
            loop {
                match Portal::connect(&socket, "test", DEADLINE).await {
                    Ok(portal) => return portal,
                    // It has not come to listening yet.
                    Err(boxlite_portal::client::ConnectError::Connect { .. }) => {
                        tokio::task::yield_now().await
                    }
                    Err(error) => panic!("{error:?}"),
                }
            }
        };
        let portal = tokio::time::timeout(DEADLINE, connect).await.expect("the agent does not listen");
        Self { portal, socket, process }
    }

    pub(crate) fn init_request(&self) -> InitRequest {
        InitRequest {
            unix_time_nanos: 0,
            hostname: "testbox".to_owned(),
            image_device: self.process.devices[0].clone(),
            writable_device: self.process.devices[1].clone(),
            share: None,
            network: None,
        }
    }

    /// Initializes the machine.
    pub(crate) async fn init(&self) {
        self.portal.guest().init(self.init_request()).await.expect("the machine is initialized");
    }

    /// Creates the container and starts this main command.
    pub(crate) async fn main(&self, main: ProcessSpec) -> Result<Started, StartFailure> {
        self.create(ContainerInitRequest { main: Some(main), ..Default::default() }).await;
        self.start_main().await
    }

    /// Creates the container.
    pub(crate) async fn create(&self, request: ContainerInitRequest) {
        self.portal.container().init(request).await.expect("the container is created");
    }

    /// Starts the main command.
    pub(crate) async fn start_main(&self) -> Result<Started, StartFailure> {
        let response = self.portal.container().start(ContainerStartRequest {}).await.expect("an answer");
        match response.into_inner().outcome.expect("an outcome") {
            container_start_response::Outcome::Started(started) => Ok(started),
            container_start_response::Outcome::Failure(failure) => Err(failure),
        }
    }

    /// Starts an execution.
    pub(crate) async fn exec(&self, id: &str, process: ProcessSpec) -> Result<Started, StartFailure> {
        self.exec_for(id, process, 0).await
    }

    /// Starts an execution with a time limit.
    pub(crate) async fn exec_for(
        &self,
        id: &str,
        process: ProcessSpec,
        timeout_millis: u64,
    ) -> Result<Started, StartFailure> {
        let process = Some(process);
        self.ask(ExecRequest { execution_id: id.to_owned(), process, timeout_millis, ..Default::default() })
            .await
    }

    /// Starts an execution whose orphans may stay, within a time limit.
    pub(crate) async fn exec_keeping(
        &self,
        id: &str,
        process: ProcessSpec,
        timeout_millis: u64,
    ) -> Result<Started, StartFailure> {
        let (execution_id, process) = (id.to_owned(), Some(process));
        let request =
            ExecRequest { execution_id, process, timeout_millis, keep_orphans: true, ..Default::default() };
        self.ask(request).await
    }

    /// Starts an execution that nobody is told of.
    pub(crate) async fn exec_quietly(&self, id: &str, process: ProcessSpec) -> Result<Started, StartFailure> {
        let process = Some(process);
        self.ask(ExecRequest { execution_id: id.to_owned(), process, quiet: true, ..Default::default() })
            .await
    }

    async fn ask(&self, request: ExecRequest) -> Result<Started, StartFailure> {
        let response = self.portal.execution().exec(request).await.expect("an answer");
        match response.into_inner().outcome.expect("an outcome") {
            exec_response::Outcome::Started(started) => Ok(started),
            exec_response::Outcome::Failure(failure) => Err(failure),
        }
    }

    /// Reads an execution to its end.
    pub(crate) async fn attach(&self, id: &str) -> Seen {
        let request = AttachRequest { execution_id: id.to_owned(), ..Default::default() };
        read(self.portal.execution().attach(request).await.expect("a stream").into_inner()).await
    }

    /// The container's cgroup, as this side sees it.
    pub(crate) fn container_cgroup(&self) -> PathBuf {
        self.process.cgroup.join(CONTAINER)
    }

    /// Runs an execution to its end.
    pub(crate) async fn run(&self, id: &str, process: ProcessSpec) -> Seen {
        self.exec(id, process).await.expect("it starts");
        self.attach(id).await
    }

    /// Runs a shell script to its end and gives what it wrote to standard output.
    pub(crate) async fn sh(&self, id: &str, script: &str) -> String {
        self.run(id, sh(script)).await.text()
    }

    /// Waits for the end of an execution.
    pub(crate) async fn wait(&self, id: &str) -> Exit {
        let request = WaitRequest { execution_id: id.to_owned() };
        self.portal.execution().wait(request).await.expect("an answer").into_inner().exit.expect("an exit")
    }

    /// Waits until the agent itself has ended.
    pub(crate) async fn ended(&mut self) -> bool {
        let child = self.process.child.as_mut().expect("a process");
        loop {
            if let Some(status) = child.try_wait().expect("a status") {
                return status.success();
            }
            tokio::task::yield_now().await;
        }
    }
}

impl AgentProcess {
    fn start(bench: &Bench, image: &str) -> Self {
        let folder = tempfile::tempdir_in(bench.folder.path()).expect("a folder");
        let writable = folder.path().join("writable");
        fs::copy(bench.disk("writable"), &writable).expect("a copy of the writable layer");
        let name = folder.path().file_name().expect("a name").to_string_lossy().into_owned();
        let cgroup = bench.cgroups.join(format!("boxlite-test-{name}"));
        fs::create_dir(&cgroup).expect("a cgroup");
        let mut process = Self { child: None, devices: Vec::new(), cgroup, folder };
        for disk in [bench.disk(image), writable.to_string_lossy().into_owned()] {
            process.devices.push(run("losetup", &["-f", "--show", &disk]).expect("a loop device"));
        }
        let child = Command::new(std::env::current_exe().expect("a path"))
            .arg("agent-under-test")
            .args([process.folder.path(), &process.cgroup])
            .stdin(Stdio::null())
            .spawn();
        process.child = Some(child.expect("an agent"));
        process
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        // Whether it lives still or not, what was made for it is removed.
        drop(fs::write(self.cgroup.join("cgroup.kill"), "1"));
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
        for device in &self.devices {
            drop(run("losetup", &["-d", device]));
        }
        remove_cgroups(&self.cgroup);
    }
}

fn remove_cgroups(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroups(&entry.path());
    }
    // Killed processes leave it a moment after they were killed.
    let started = std::time::Instant::now();
    while started.elapsed() < DEADLINE {
        if fs::remove_dir(folder).is_ok() || !folder.exists() {
            return;
        }
        std::thread::yield_now();
    }
}

/// The agent's process: arguments are its folder and its cgroup.
pub(crate) fn agent(arguments: &[String]) -> ExitCode {
    let [folder, cgroup] = arguments else { return ExitCode::FAILURE };
    match become_agent(Path::new(folder), Path::new(cgroup)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("agent under test: {error}");
            ExitCode::FAILURE
        }
    }
}

fn become_agent(folder: &Path, cgroup: &Path) -> Result<ExitCode, Box<dyn Error>> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    fs::write(cgroup.join("cgroup.procs"), "0")?;
    let listener = UnixListener::bind(folder.join("portal.sock"))?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP,
    )?;
    // SAFETY: this process has one thread; it is the first thing that this program does.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => {
            drop(listener);
            Ok(match waitpid(child, None)? {
                WaitStatus::Exited(_, 0) => ExitCode::SUCCESS,
                _ => ExitCode::FAILURE,
            })
        }
        ForkResult::Child => {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            // It must not be able to set this machine's clock, and a refusal shows that it tried.
            capabilities::keep(!SYS_TIME)?;
            serve(folder, listener).map(|()| ExitCode::SUCCESS)
        }
    }
}

/// What main.rs does in a machine, with what this one has.
fn serve(folder: &Path, listener: UnixListener) -> Result<(), Box<dyn Error>> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none)?;
    mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), none)?;
    let run = folder.join("run");
    fs::create_dir(&run)?;
    mount(Some("tmpfs"), &run, Some("tmpfs"), MsFlags::empty(), none)?;
    // What a machine's agent has takes a privilege; any value but the default shows who inherits it.
    fs::write("/proc/self/oom_score_adj", "500")?;
    // SAFETY: no thread has been started yet.
    let spawner = unsafe { spawner::fork() }?;
    let settings = Settings { run, cgroups: PathBuf::from("/sys/fs/cgroup"), open_files: open_files() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let reaper = Reaper::new();
        let reaping = tokio::spawn(reaper.run()?);
        let lost = reaper.expect().claim(spawner.pid);
        let agent = Agent::new(settings, reaper, spawner.socket)?;
        tokio::select! {
            served = portal::serve(agent, Listener::unix(listener)?) => Ok(served?),
            _ = reaping => Err("the reaper has ended".into()),
            _ = lost => Err("the spawner has ended".into()),
        }
    })
}
