//! What the services share: the state of machine and container, and those who act on it.
//!
//! ```text
//!   machine     fresh ──Init──▶ preparing ──▶ ready
//!   container   absent ──Init──▶ creating ──▶ created ──Start──▶ started
//!                                   │                               (the table has the outcome)
//!                                   └──▶ broken
//! ```
//!
//! Each lock is held for a few assignments, never across I/O or a wait.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use boxlite_portal::MAIN;
use boxlite_portal::v1::{Mount, ProcessSpec, StartFailure};
use nix::unistd::Pid;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::container::launch::{self, Frame};
use crate::container::mounts::{self, BadMount};
use crate::container::user::Root;
use crate::container::{capabilities, files, spec};
use crate::disks::{DiskError, Disks};
use crate::events::Hub;
use crate::execution::Execution;
use crate::execution::start::{self, Launch, Origin, other};
use crate::execution::table::{Outcome, Starting, Table};
use crate::files::error::{FileError, Kind};
use crate::files::place::Place;
use crate::network::Names;
use crate::pause;
use crate::process::cgroup::{self, Cgroup};
use crate::process::client::{SpawnError, Spawned, SpawnerClient};
use crate::process::counter::Counter;
use crate::process::reaper::Reaper;
use crate::stats::Places;

/// What depends on where the agent runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A folder of its own, in memory.
    pub run: PathBuf,
    /// The cgroup hierarchy.
    pub cgroups: PathBuf,
    /// How many files a process of the container may open, unless the caller says otherwise.
    pub open_files: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            run: PathBuf::from("/run/boxlite"),
            cgroups: PathBuf::from("/sys/fs/cgroup"),
            open_files: 1_048_576,
        }
    }
}

/// A call that does not fit the state it meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfOrder {
    /// Machine initialized before.
    #[error("the machine has been initialized already")]
    MachineInitialized,
    /// Machine not initialized.
    #[error("the machine has not been initialized")]
    MachineNotInitialized,
    /// Container created before.
    #[error("the container has been created already")]
    ContainerCreated,
    /// Container not created.
    #[error("the container has not been created")]
    ContainerNotCreated,
    /// Main command not started.
    #[error("the main command has not been started")]
    NotStarted,
    /// The box ends.
    #[error("the box is shutting down")]
    ShuttingDown,
}

/// Why the container could not be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A file or folder of the agent's own.
    #[error("cannot prepare the container")]
    Prepare(#[source] io::Error),
    /// A mount that the caller wants.
    #[error("cannot mount what was asked for")]
    Mount(#[source] BadMount),
    /// The specification.
    #[error("cannot describe the container")]
    Describe(#[source] libcontainer::oci_spec::OciSpecError),
    /// The creation itself.
    #[error("cannot create the container")]
    Create(#[source] SpawnError),
}

/// The agent.
#[derive(Debug)]
pub struct Agent {
    /// When it started.
    pub started: Instant,
    /// What depends on where it runs.
    pub settings: Settings,
    /// Who reaps.
    pub reaper: Reaper,
    /// All executions.
    pub table: Table,
    /// How many clients are attached, each of which the end of the box waits for.
    pub attached: watch::Sender<usize>,
    /// Those who are told what happens.
    pub events: Hub,
    spawner: SpawnerClient,
    machine: Mutex<Machine>,
    container: Mutex<Container>,
    /// The duty to start the main command; taken by whoever starts it, or by the end.
    main: Mutex<Option<Starting>>,
    /// Cgroups of ended executions in which something lives on.
    lingering: Mutex<VecDeque<Arc<Cgroup>>>,
}

#[derive(Debug)]
enum Machine {
    Fresh,
    Preparing,
    Ready { hostname: String, names: Option<Arc<Names>>, disks: Box<Disks> },
    Ended,
}

#[derive(Debug)]
enum Container {
    Absent,
    Creating,
    Created(Box<Created>),
    /// Started, or on its way.
    Started(Arc<Running>),
    /// It could not be created, or the box ends.
    Broken,
}

/// What the machine has for a container.
#[derive(Clone, Debug)]
pub struct Site {
    /// Host name.
    pub hostname: String,
    /// Its root.
    pub root: PathBuf,
    /// Where the host's volumes are.
    pub share: Option<PathBuf>,
    /// What it knows of names, if it has a network.
    pub names: Option<Arc<Names>>,
}

/// A container whose first process waits for its order.
#[derive(Debug)]
struct Created {
    main: ProcessSpec,
    hold: bool,
    channel: UnixStream,
    process: Spawned,
    running: Arc<Running>,
}

/// What executions need of a container.
#[derive(Debug)]
pub struct Running {
    frame: Frame,
    root: Root,
    cgroup: Arc<Cgroup>,
    first: Pid,
    cwd: Vec<u8>,
    user: String,
    /// Where its files are seen as its processes see them.
    pub place: Place,
}

impl Running {
    /// Who owns what a host makes: this user, or that of the main command if none is named.
    ///
    /// # Errors
    /// When the container does not know it.
    pub fn owner(&self, user: &str) -> Result<(u32, u32), FileError> {
        let user = if user.is_empty() { &self.user } else { user };
        let identity = launch::identity(user, &self.root);
        let identity = identity.map_err(|failure| FileError::new(Kind::Invalid, failure.message))?;
        Ok((identity.uid, identity.gid))
    }
}

/// An execution that a caller asks for.
#[derive(Debug)]
pub struct Wanted {
    /// Its id, which is reserved.
    pub id: String,
    /// What to run.
    pub spec: ProcessSpec,
    /// How long its tree may run.
    pub limit: Option<Duration>,
    /// No event tells of it and no activity counts it.
    pub quiet: bool,
    /// What it starts may outlive it.
    pub keep_orphans: bool,
    /// Its output waits for no first reader.
    pub detached: bool,
    /// Capabilities beyond those of the main command, and those of them to leave out.
    pub capabilities: (Vec<String>, Vec<String>),
}

fn locked<T, R>(mutex: &Mutex<T>, work: impl FnOnce(&mut T) -> R) -> R {
    work(&mut mutex.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Agent {
    /// An agent that knows nothing yet. Must be called within the runtime.
    ///
    /// # Errors
    /// When the spawner's socket cannot be registered.
    pub fn new(settings: Settings, reaper: Reaper, spawner: StdStream) -> io::Result<Arc<Self>> {
        let (table, main) = Table::new();
        Ok(Arc::new(Self {
            started: Instant::now(),
            settings,
            spawner: SpawnerClient::start(spawner, reaper.clone())?,
            reaper,
            table,
            attached: watch::Sender::new(0),
            events: Hub::new(),
            machine: Mutex::new(Machine::Fresh),
            container: Mutex::new(Container::Absent),
            main: Mutex::new(Some(main)),
            lingering: Mutex::new(VecDeque::new()),
        }))
    }

    /// Claims the preparation of the machine.
    ///
    /// # Errors
    /// When it was claimed before.
    pub fn claim_machine(&self) -> Result<(), OutOfOrder> {
        locked(&self.machine, |machine| match machine {
            Machine::Fresh => {
                *machine = Machine::Preparing;
                Ok(())
            }
            Machine::Preparing | Machine::Ready { .. } => Err(OutOfOrder::MachineInitialized),
            Machine::Ended => Err(OutOfOrder::ShuttingDown),
        })
    }

    /// Ends a claimed preparation: after a failure the machine is as fresh as before.
    pub fn machine_prepared(
        &self,
        hostname: String,
        names: Option<Names>,
        disks: Result<Disks, DiskError>,
    ) -> Result<(), DiskError> {
        let (next, result) = match disks {
            Ok(disks) => {
                let ready = Machine::Ready { hostname, names: names.map(Arc::new), disks: Box::new(disks) };
                (ready, Ok(()))
            }
            Err(error) => (Machine::Fresh, Err(error)),
        };
        locked(&self.machine, |machine| {
            if matches!(machine, Machine::Preparing) {
                *machine = next;
            }
        });
        result
    }

    /// Takes the disks away from the machine, for good.
    pub fn take_disks(&self) -> Option<Disks> {
        locked(&self.machine, |machine| match std::mem::replace(machine, Machine::Ended) {
            Machine::Ready { disks, .. } => Some(*disks),
            Machine::Fresh | Machine::Preparing | Machine::Ended => None,
        })
    }

    /// Claims the creation of the container; gives what the machine has for it.
    ///
    /// # Errors
    /// When the machine is not ready, or the creation was claimed before.
    pub fn claim_container(&self) -> Result<Site, OutOfOrder> {
        let site = locked(&self.machine, |machine| match machine {
            Machine::Ready { hostname, names, disks } => Ok(Site {
                hostname: hostname.clone(),
                root: disks.root.clone(),
                share: disks.share.clone(),
                names: names.clone(),
            }),
            Machine::Fresh | Machine::Preparing => Err(OutOfOrder::MachineNotInitialized),
            Machine::Ended => Err(OutOfOrder::ShuttingDown),
        })?;
        locked(&self.container, |container| match container {
            Container::Absent => {
                *container = Container::Creating;
                Ok(site)
            }
            Container::Creating | Container::Created(_) | Container::Started(_) => {
                Err(OutOfOrder::ContainerCreated)
            }
            Container::Broken => Err(OutOfOrder::ShuttingDown),
        })
    }

    /// Creates the claimed container.
    ///
    /// # Errors
    /// When a part of it cannot be made; there is no second attempt then.
    pub async fn create_container(
        &self,
        main: ProcessSpec,
        capabilities: u64,
        hold: bool,
        site: Site,
        mounts: &[Mount],
    ) -> Result<(), CreateError> {
        let created = self.make_container(main, capabilities, hold, site, mounts).await;
        let (next, result) = match created {
            Ok(created) => (Container::Created(Box::new(created)), Ok(())),
            Err(error) => (Container::Broken, Err(error)),
        };
        locked(&self.container, |container| {
            if matches!(container, Container::Creating) {
                *container = next;
            }
        });
        result
    }

    async fn make_container(
        &self,
        main: ProcessSpec,
        capabilities: u64,
        hold: bool,
        site: Site,
        mounts: &[Mount],
    ) -> Result<Created, CreateError> {
        let Site { hostname, root, share, names } = site;
        let mounts = mounts::read(mounts, share.as_deref()).map_err(CreateError::Mount)?;
        let bundle = self.settings.run.join("bundle");
        std::fs::create_dir_all(&bundle).map_err(CreateError::Prepare)?;
        let bound = files::write(&self.settings.run.join("etc"), &hostname, names.as_deref());
        let bound = bound.map_err(CreateError::Prepare)?;
        if let Some(share) = &share {
            let user = launch::identity(&main.user, &Root::open(&root).map_err(CreateError::Prepare)?);
            // Of one that is not known the start will tell.
            if let Ok(user) = user {
                crate::share::introduce(share, (user.uid, user.gid)).map_err(CreateError::Prepare)?;
            }
        }
        let spec = spec::build(&root, &hostname, &bound, &mounts).map_err(CreateError::Describe)?;
        spec.save(bundle.join("config.json")).map_err(CreateError::Describe)?;
        // It exists before libcontainer looks for it, so libcontainer only adds the process.
        let cgroup = Cgroup::container(&self.settings.cgroups).map_err(CreateError::Prepare)?;
        let root = Root::open(&root).map_err(CreateError::Prepare)?;
        let (channel, there) = StdStream::pair().map_err(CreateError::Prepare)?;
        channel.set_nonblocking(true).map_err(CreateError::Prepare)?;
        let channel = UnixStream::from_std(channel).map_err(CreateError::Prepare)?;
        self.watch_oom(&cgroup).map_err(CreateError::Prepare)?;
        let process = self.spawner.create(&bundle, there.into()).await.map_err(CreateError::Create)?;
        let running = Running {
            frame: Frame { capabilities, hostname, open_files: self.settings.open_files },
            root,
            cgroup: Arc::new(cgroup),
            first: process.pid,
            place: Place::of(process.pid).map_err(CreateError::Prepare)?,
            cwd: main.cwd.clone(),
            user: main.user.clone(),
        };
        Ok(Created { main, hold, channel, process, running: Arc::new(running) })
    }

    /// Tells of every process of the container that the kernel kills for want of memory.
    fn watch_oom(&self, cgroup: &Cgroup) -> io::Result<()> {
        let Some(mut kills) = Counter::oom_kills(cgroup.path())? else { return Ok(()) };
        let events = self.events.clone();
        tokio::spawn(async move {
            loop {
                match kills.changed().await {
                    Ok(total) => events.oom_killed(total),
                    Err(error) => {
                        return crate::console::line(format_args!("cannot count OOM kills: {error}"));
                    }
                }
            }
        });
        Ok(())
    }

    /// Starts the main command, once. The outcome is the same for all who ask.
    ///
    /// # Errors
    /// When there is no container.
    pub fn start_main(self: &Arc<Self>) -> Result<Outcome, OutOfOrder> {
        let created = locked(&self.container, |container| match container {
            Container::Created(created) => {
                let running = Arc::clone(&created.running);
                match std::mem::replace(container, Container::Started(running)) {
                    Container::Created(created) => Ok(Some(created)),
                    _ => Ok(None),
                }
            }
            Container::Started(_) => Ok(None),
            Container::Absent | Container::Creating => Err(OutOfOrder::ContainerNotCreated),
            Container::Broken => Err(OutOfOrder::ShuttingDown),
        })?;
        if let Some(created) = created
            && let Some(starting) = locked(&self.main, Option::take)
        {
            // A task of its own: a client that goes away stops nothing half-way.
            let agent = Arc::clone(self);
            tokio::spawn(async move { agent.run_main(*created, starting).await });
        }
        Ok(self.table.main())
    }

    async fn run_main(self: Arc<Self>, created: Created, starting: Starting) {
        let Created { main, hold, channel, process, running } = created;
        let order = match launch::order(&main, &running.frame, &running.root) {
            Ok(order) => order,
            Err(failure) => return starting.fail(failure),
        };
        let cgroup = Arc::clone(&running.cgroup);
        let first = running.first;
        // What the main command leaves behind ends with the machine.
        let launch =
            Launch { id: MAIN, quiet: false, keep_orphans: true, spec: &main, order, hold, cgroup, first };
        match start::start(launch, Origin::First { channel, process }).await {
            Err(failure) => starting.fail(failure),
            Ok((execution, ended)) => {
                starting.succeed(Arc::clone(&execution));
                execution.follow(ended, None).await;
                self.table.ended(MAIN);
            }
        }
    }

    /// The container, once its main command has been started.
    ///
    /// # Errors
    /// When it has not.
    pub fn running(&self) -> Result<Arc<Running>, OutOfOrder> {
        locked(&self.container, |container| match container {
            Container::Started(running) => Ok(Arc::clone(running)),
            Container::Absent | Container::Creating | Container::Created(_) => Err(OutOfOrder::NotStarted),
            Container::Broken => Err(OutOfOrder::ShuttingDown),
        })
    }

    /// Where to look for what machine and container use.
    pub fn places(&self) -> Places {
        let (writable, disks) = locked(&self.machine, |machine| match machine {
            Machine::Ready { disks, .. } => (Some(disks.layer.clone()), disks.counts.clone()),
            Machine::Fresh | Machine::Preparing | Machine::Ended => (None, Vec::new()),
        });
        let cgroup = self.settings.cgroups.join(cgroup::CONTAINER);
        Places { cgroup, memory: PathBuf::from("/proc/meminfo"), disks, writable }
    }

    /// Prepares a running container for a pause of the machine; without one there is nothing to prepare. Says whether all
    /// of its processes stand still.
    ///
    /// # Errors
    /// When they cannot be stopped.
    pub async fn freeze(&self) -> io::Result<bool> {
        match self.running() {
            Ok(running) => pause::begin(&running.cgroup).await,
            Err(_) => Ok(true),
        }
    }

    /// Lets the processes of a container go on that were stopped for a pause.
    ///
    /// # Errors
    /// When they cannot be let go on.
    pub fn thaw(&self) -> io::Result<()> {
        match self.running() {
            Ok(running) => pause::end(&running.cgroup),
            Err(_) => Ok(()),
        }
    }

    /// Starts a reserved execution and follows it to its end.
    pub async fn run_execution(self: Arc<Self>, wanted: Wanted, running: Arc<Running>, starting: Starting) {
        let Wanted { id, mut spec, limit, quiet, keep_orphans, detached, capabilities } = wanted;
        if spec.cwd.is_empty() {
            spec.cwd.clone_from(&running.cwd);
        }
        if spec.user.is_empty() {
            spec.user.clone_from(&running.user);
        }
        let events = (!quiet).then_some(&self.events);
        let fail = |starting: Starting, failure: StartFailure| {
            if let Some(events) = events {
                events.failed(&id, &spec.args, &failure);
            }
            starting.fail(failure);
        };
        let mut frame = running.frame.clone();
        let (add, drop) = &capabilities;
        frame.capabilities = match capabilities::change(frame.capabilities, add, drop) {
            Ok(capabilities) => capabilities,
            Err(error) => return fail(starting, other("bad capabilities", &io::Error::other(error))),
        };
        let order = match launch::order(&spec, &frame, &running.root) {
            Ok(order) => order,
            Err(failure) => return fail(starting, failure),
        };
        let cgroup = match running.cgroup.execution(&id) {
            Ok(cgroup) => Arc::new(cgroup),
            Err(error) => return fail(starting, other("cannot make a cgroup", &error)),
        };
        // What a forgotten execution of this name left is this one's from now on, and that one's limit is void.
        locked(&self.lingering, |lingering| lingering.retain(|left| left.path() != cgroup.path()));
        let mut deadline = None;
        let launch = Launch {
            id: &id,
            quiet,
            keep_orphans,
            spec: &spec,
            order,
            hold: !detached,
            cgroup: Arc::clone(&cgroup),
            first: running.first,
        };
        match start::start(launch, Origin::Fork(&self.spawner)).await {
            Err(failure) => fail(starting, failure),
            Ok((execution, ended)) => {
                // Before its caller knows of it, who then finds it counted.
                if let Some(events) = events {
                    events.started(&id, &spec.args);
                }
                starting.succeed(Arc::clone(&execution));
                // A limit beyond all time is none.
                deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
                let exit = execution.follow(ended, deadline).await;
                if let Some(events) = events {
                    events.exited(&id, exit);
                }
                self.table.ended(&id);
            }
        }
        self.sweep(Arc::clone(&cgroup));
        if let Some(deadline) = deadline {
            self.outlived(&cgroup, deadline).await;
        }
    }

    /// Kills what is left of an ended execution's tree at its deadline.
    async fn outlived(&self, cgroup: &Arc<Cgroup>, deadline: Instant) {
        let lingers = || locked(&self.lingering, |all| all.iter().any(|other| Arc::ptr_eq(other, cgroup)));
        if !lingers() {
            return;
        }
        tokio::time::sleep_until(deadline).await;
        if lingers()
            && let Err(error) = cgroup.kill()
        {
            crate::console::line(format_args!("cannot kill {}: {error}", cgroup.path().display()));
        }
    }

    /// Removes the cgroup of an ended execution, and those of earlier ones that have become empty since.
    fn sweep(&self, cgroup: Arc<Cgroup>) {
        locked(&self.lingering, |lingering| {
            lingering.push_back(cgroup);
            lingering.retain(|cgroup| match cgroup.remove() {
                Ok(()) => false,
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => true,
                Err(error) => {
                    crate::console::line(format_args!("cannot remove {}: {error}", cgroup.path().display()));
                    false
                }
            });
        });
    }

    /// Lets nothing new begin. Gives the main command if it was started; a container without one ends here.
    pub async fn close(&self) -> Option<Arc<Execution>> {
        self.table.close();
        // Dropping the duty tells all who wait for the main command that it never starts.
        drop(locked(&self.main, Option::take));
        let before = locked(&self.container, |container| std::mem::replace(container, Container::Broken));
        match before {
            Container::Absent | Container::Creating | Container::Broken => None,
            Container::Created(created) => {
                let Created { channel, process, .. } = *created;
                // The first process ends at the end of its channel.
                drop(channel);
                drop(process.ended.await);
                None
            }
            Container::Started(_) => self.table.find(MAIN).await.ok(),
        }
    }
}

/// What a failed start looks like when the agent lost its task.
pub fn lost() -> StartFailure {
    other("the start was abandoned", &io::ErrorKind::BrokenPipe.into())
}
