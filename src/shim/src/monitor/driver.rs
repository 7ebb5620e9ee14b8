//! What the [`Machine`] has decided, done: one run of a box, from its VMM to the end of all its processes.
//!
//! The driver takes orders first, so that nothing that a guest does can hold them up, and what the guest only tells last.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use boxlite_control::{
    Admission, BoxStats, Denial, Direction, EndReason, EngineChoice, ErrorRecord, EventKind, FailureKind,
    Health, LinkSpec, NetDevice, NetOrder, NetReport, NetworkPolicy, NetworkSpec, Order as Wish, Phase,
    PortForward, Run, State, VERSION, VmmConfig, VsockPort, admit, step,
};
use boxlite_portal::client::Portal;
use boxlite_portal::ports;
use boxlite_portal::v1::init_request::Share;
use libkrun_sys::firmware;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::boot::FOR_A_BETTER_REASON;
use super::clock::{self, HostClock};
use super::console::Tail;
use super::guest_events::Told;
use super::life::{Life, refused};
use super::machine::{Action, Event, Failure, Machine, Verdict};
use super::network::{Network, Orders};
use super::order::{Answer, Command, Order, Reply};
use super::sockets::RunSockets;
use super::vmm::Vmm;
use super::{EVENTS, GOODBYE, StartError, agent, boot, console, guest_events, health, unix_nanos, usage};
use crate::engine::{self, Host};
use crate::share;

/// News of a guest that wait to be looked at.
const NEWS: usize = 64;
/// How long a guest may take to say what it uses, or to pass a signal on.
const ANSWER: Duration = Duration::from_secs(5);
/// How long it may take to prepare for a pause: orders wait meanwhile.
const PREPARE: Duration = Duration::from_secs(1);

/// What is answered to who asks for the network of a box without one.
pub(super) const NO_NETWORK: &str = "the box has no network";

/// What is told of a running box without a change of its phase.
#[derive(Debug)]
pub(super) enum News {
    /// The health check has an answer.
    Health(Health),
    /// The agent tells something.
    Guest(Told),
    /// The network's policy has refused something.
    Denied(Denial),
}

/// How a run ended.
#[derive(Debug)]
pub(super) struct RunEnd {
    pub(super) verdict: Verdict,
    /// How long the main command ran; `None` when it never did.
    pub(super) ran_for: Option<Duration>,
    /// The machine went away by itself before anybody in it had said a word: its disks are as they were.
    pub(super) stillborn: bool,
}

/// Brings a machine up and drives it to its end. All of its processes have ended then.
pub(super) async fn run(life: &mut Life<'_>, tail: &Tail) -> Result<RunEnd, StartError> {
    let config = life.config;
    let (engine, capabilities) = engine::choose(config.engine, &Host::look())?;
    let kernel = firmware::kernel(&firmware::find()?, &config.cache)?;
    let RunSockets { boot: listener, by_vmm } = RunSockets::listen(life.files)?;
    let mut vm = config.vm.clone();
    (vm.cpus, vm.memory_mib) = (life.settings.cpus, life.settings.memory_mib);
    vm.kernel = kernel;
    vm.ports.retain(|port| ![ports::PORTAL, ports::BOOT, ports::SHARE].contains(&port.port));
    vm.ports.extend([
        VsockPort {
            port: ports::PORTAL,
            path: life.files.portal_socket(),
            direction: Direction::HostToGuest,
        },
        VsockPort { port: ports::BOOT, path: life.files.boot_socket(), direction: Direction::GuestToHost },
    ]);
    let share = vm.share.as_mut().map(|share| {
        share.socket = life.files.share_socket();
        share::reached_by(engine.choice())
    });
    if let Some(Share::SharePort(port)) = share {
        let path = life.files.share_socket();
        vm.ports.push(VsockPort { port, path, direction: Direction::GuestToHost });
    }
    let (told, news) = mpsc::channel(NEWS);
    let (mut network, mut end) = (None, None);
    if let Some(spec) = &config.network {
        let link = LinkSpec::default();
        let spec = NetworkSpec { policy: life.policy.clone(), ..spec.clone() };
        // Before the machine: a port that is taken is found out before anything boots.
        let (started, vmms) = Network::start(&config.box_id, &spec, &link, told.clone()).await?;
        let (descriptor, mac, mtu) = (vmms.as_raw_fd(), link.guest_mac, link.mtu);
        vm.network = Some(NetDevice { descriptor, mac, mtu });
        (network, end) = (Some(started), Some(vmms));
    }
    let vmm_config = VmmConfig {
        version: VERSION,
        box_id: config.box_id.clone(),
        engine: engine.choice(),
        accelerated: capabilities.accelerated,
        program: capabilities.program,
        vm,
    };
    step::reached("monitor", "engine");
    life.publisher.publish(State::Starting { step: "kernel".to_owned() });
    let (vmm, console) = Vmm::spawn(&vmm_config, end)?;
    tracing::info!(
        engine = engine::name(engine.choice()),
        accelerated = capabilities.accelerated,
        vmm = vmm.pid(),
        "the VMM starts"
    );
    step::reached("monitor", "vmm-spawned");
    let (mut recorder, mut listening) = (JoinSet::new(), JoinSet::new());
    recorder.spawn(console::record(console, life.files.console_log(), tail.clone()));
    let (sender, events) = mpsc::channel(EVENTS);
    listening.spawn(boot::listen(listener, sender.clone()));
    let calls = Calls::new(sender, told);
    let driver = Driver {
        life,
        engine: engine.choice(),
        share,
        ports: network.as_ref().map(|network| network.ports.clone()).unwrap_or_default(),
        network: network.as_ref().map(Network::orders),
        vmm,
        events,
        news,
        calls,
        begun: Instant::now(),
        run: None,
        ran_since: None,
        idle_since: None,
        heard: false,
        limit_reached: false,
    };
    let end = driver.run().await;
    if let Some(network) = network {
        network.end().await;
    }
    listening.shutdown().await;
    // All who could write to the console have ended, unless one could not be killed.
    if timeout(GOODBYE, recorder.join_next()).await.is_err() {
        tracing::warn!("somebody holds the console open");
    }
    drop(by_vmm);
    Ok(end)
}

/// A running machine, as the driver has it. Nothing else holds on to any of it.
struct Driver<'l, 'a> {
    life: &'l mut Life<'a>,
    engine: EngineChoice,
    /// How the guest reaches its volumes, if it has any.
    share: Option<Share>,
    /// The published ports.
    ports: Vec<PortForward>,
    /// How to ask the network, if there is one.
    network: Option<Orders>,
    vmm: Vmm,
    events: mpsc::Receiver<Event>,
    news: mpsc::Receiver<News>,
    calls: Calls,
    begun: Instant,
    /// What is published of a machine whose main command has started.
    run: Option<Run>,
    ran_since: Option<Instant>,
    /// Since when nothing but the main command runs; `None` while something does.
    idle_since: Option<Instant>,
    /// The agent has said something.
    heard: bool,
    /// A limit has stopped this run: a machine that is about to be killed does not look at that, and need not be told again.
    limit_reached: bool,
}

impl Driver<'_, '_> {
    async fn run(mut self) -> RunEnd {
        let boot_timeout = Duration::from_millis(self.life.config.boot_timeout_millis);
        let mut machine = Machine::new(Duration::ZERO, boot_timeout, self.life.config.auto_remove);
        let mut host_clock = HostClock::default();
        let mut looks = interval(clock::LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let verdict = loop {
            let deadline = machine.deadline().map(|deadline| self.begun + deadline);
            let limit = self.limit();
            let event = tokio::select! {
                biased;
                Some(order) = self.life.orders.recv() => match self.order(order).await {
                    Some(event) => event,
                    None => continue,
                },
                // What the agent said before its machine ended counts.
                Some(event) = self.events.recv() => {
                    self.heard = true;
                    event
                }
                causes = self.vmm.gone() => Event::VmmGone(causes),
                () = at(deadline), if deadline.is_some() => Event::Deadline,
                () = at(limit.map(|(at, _)| at)), if limit.is_some() => match limit {
                    Some((_, reason)) => self.stop_by(reason),
                    None => continue,
                },
                Some(news) = self.news.recv() => {
                    self.take(news);
                    continue;
                }
                _ = looks.tick() => {
                    if host_clock.look() && self.phase() == Phase::Running {
                        self.calls.set_clock();
                    }
                    continue;
                }
            };
            tracing::debug!(?event, "an event");
            if let Some(verdict) = self.advance(&mut machine, event) {
                break verdict;
            }
        };
        self.calls.finish_recording().await;
        let stillborn = !self.heard && self.vmm.has_succeeded();
        RunEnd { verdict, ran_for: self.ran_since.map(|since| since.elapsed()), stillborn }
    }

    fn advance(&mut self, machine: &mut Machine, event: Event) -> Option<Verdict> {
        if event == Event::Ready {
            self.life.stats.boot_millis = millis(self.begun.elapsed());
        }
        for action in machine.next(event, self.begun.elapsed()) {
            tracing::debug!(?action, "an action");
            match action {
                Action::Finish(verdict) => return Some(verdict),
                action => self.act(action),
            }
        }
        None
    }

    fn phase(&self) -> Phase {
        self.life.publisher.phase()
    }

    /// The next time limit of the box, and why it would end then.
    fn limit(&self) -> Option<(Instant, EndReason)> {
        let phase = self.phase();
        if self.limit_reached || !matches!(phase, Phase::Starting | Phase::Running | Phase::Paused) {
            return None;
        }
        let expires = self.life.expires_at().map(|at| (at, EndReason::MaxDuration));
        let idle = self.idle_since.zip(self.life.settings.idle_timeout).filter(|_| phase == Phase::Running);
        let idle = idle.and_then(|(since, limit)| since.checked_add(limit)).map(|at| (at, EndReason::Idle));
        expires.into_iter().chain(idle).min_by_key(|(at, _)| *at)
    }

    fn stop_by(&mut self, reason: EndReason) -> Event {
        tracing::info!(?reason, "the box is stopped");
        self.life.stop = Some(reason);
        self.limit_reached = true;
        let config = self.life.config;
        Event::Stop { signal: config.stop_signal, grace: Duration::from_millis(config.stop_grace_millis) }
    }

    /// Takes an order, answers it or sees to its answer, and says what it means for the machine.
    async fn order(&mut self, Order { command, reply }: Order) -> Option<Event> {
        let phase = self.phase();
        let wish = match &command {
            Command::Start => Wish::Start,
            Command::Stop { .. } => Wish::Stop,
            Command::Restart { .. } => Wish::Restart,
            Command::Signal(_) => Wish::Signal,
            Command::Pause => Wish::Pause,
            Command::Resume => Wish::Resume,
            Command::Update(update) => {
                self.life.update(update.clone());
                reply.send(Answer::Done);
                return None;
            }
            Command::Stats => {
                self.stats(reply);
                return None;
            }
            Command::NetworkPolicy(policy) => {
                match &self.network {
                    Some(orders) => {
                        self.life.policy = policy.clone();
                        self.calls.network_policy(orders.clone(), policy.clone(), reply);
                    }
                    None => reply.send(Answer::Refused(NO_NETWORK.to_owned())),
                }
                return None;
            }
            Command::Network => {
                match &self.network {
                    Some(orders) => self.calls.network(orders.clone(), self.life.policy.clone(), reply),
                    None => reply.send(Answer::Refused(NO_NETWORK.to_owned())),
                }
                return None;
            }
        };
        match admit(phase, wish) {
            // Who wants a start after an end waits for the end, and starts anew.
            Admission::Go | Admission::AfterEnd | Admission::AfterStart => {}
            Admission::Already => {
                reply.send(Answer::Done);
                return None;
            }
            Admission::Refuse(_) => {
                reply.send(refused(phase, wish));
                return None;
            }
        }
        match command {
            Command::Start => {
                reply.send(Answer::Done);
                None
            }
            Command::Stop { signal, grace, reason } => {
                self.life.stop.get_or_insert(reason);
                self.life.owner_gone |= reason == EndReason::OwnerGone;
                self.life.again = false;
                reply.send(Answer::Done);
                Some(Event::Stop { signal, grace })
            }
            Command::Restart { signal, grace } => {
                // Also of a box whose end has begun: it runs again after it.
                self.life.again = true;
                reply.send(Answer::Done);
                (phase != Phase::Stopping).then_some(Event::Stop { signal, grace })
            }
            Command::Signal(signal) => {
                self.signal(signal, reply);
                None
            }
            Command::Pause => self.pause(reply).await,
            Command::Resume => {
                self.calls.resumed.push(reply);
                Some(Event::Resume)
            }
            Command::Update(_) | Command::Stats | Command::NetworkPolicy(_) | Command::Network => None,
        }
    }

    fn signal(&mut self, signal: u32, reply: Reply) {
        // Who ends a box by its own means does not want it to run again.
        if signal == self.life.config.stop_signal || signal == agent::SIGKILL {
            self.life.stop.get_or_insert(EndReason::Requested);
        }
        self.life.teller.tell(EventKind::Signalled { signal });
        self.calls.signal(signal, reply);
    }

    async fn pause(&mut self, reply: Reply) -> Option<Event> {
        // Nothing that the machine would have to answer may be under way: it cannot.
        self.calls.stop_asking();
        // A guest that does not prepare for it is paused all the same: what it does not do harms itself alone.
        match timeout(PREPARE, self.calls.freeze()).await {
            Ok(Ok(())) => {}
            Ok(Err(causes)) => {
                tracing::warn!(causes = causes.join(": "), "the guest is not prepared for a pause")
            }
            Err(_) => tracing::warn!("the guest does not prepare for a pause"),
        }
        match self.vmm.freeze().await {
            Ok(()) => {
                self.life.teller.tell(EventKind::Paused);
                self.calls.paused = Some(reply);
                Some(Event::Frozen)
            }
            Err(error) => {
                self.vmm.thaw();
                self.calls.thaw();
                self.ask_again();
                reply.send(Answer::Failed(format!("its virtual CPUs do not stand still: {error}")));
                None
            }
        }
    }

    fn stats(&mut self, reply: Reply) {
        let pids = usage::with_children(self.vmm.pid()).unwrap_or_else(|_| vec![self.vmm.pid()]);
        let used = usage::of(&pids);
        let stats = BoxStats {
            time_unix_nanos: unix_nanos(),
            host_cpu_nanos: used.cpu_nanos,
            host_memory_bytes: used.memory_bytes,
            cpus: self.life.settings.cpus,
            ..self.life.stats.clone()
        };
        if self.phase() == Phase::Running {
            self.calls.stats(stats, reply);
        } else {
            reply.send(Answer::Stats(Box::new(stats)));
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Guest(Told::Busy(true)) => self.idle_since = None,
            News::Guest(Told::Busy(false)) => self.idle_since = Some(Instant::now()),
            News::Guest(Told::Happened(kind)) => {
                match &kind {
                    EventKind::ExecStarted { .. } => self.life.stats.commands_executed += 1,
                    EventKind::ExecFailed { .. } => self.life.stats.exec_errors += 1,
                    _ => {}
                }
                self.life.teller.tell_for_the_guest(kind);
            }
            // Bounded where it comes from.
            News::Denied(denial) => self.life.teller.tell(EventKind::NetDenied(denial)),
            News::Health(health) => {
                // A probe that was under way when the box was stopped says nothing about it.
                let (Phase::Running, Some(run)) = (self.phase(), &mut self.run) else { return };
                let before = run.health.replace(health.clone());
                self.life.publisher.publish(State::Running { run: run.clone() });
                if before.is_none_or(|before| before.status != health.status) {
                    self.life.teller.tell(EventKind::Health { status: health.status });
                }
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::PublishStep(step) => {
                step::reached("monitor", if step == "container" { "container" } else { "boot" });
                self.life.publisher.publish(State::Starting { step });
            }
            Action::StartContainer => self.calls.start(self.life, self.share.clone()),
            Action::PublishRunning => self.main_runs(),
            Action::PublishPaused => {
                if let Some(run) = self.run.clone() {
                    self.life.publisher.publish(State::Paused { run, since_unix_nanos: unix_nanos() });
                }
                // Whoever is answered finds the state that he asked for.
                if let Some(reply) = self.calls.paused.take() {
                    reply.send(Answer::Done);
                }
                step::reached("monitor", "paused");
            }
            Action::Thaw => self.vmm.thaw(),
            Action::ThawGuest => self.calls.thaw(),
            Action::PublishResumed => {
                self.life.teller.tell(EventKind::Resumed);
                self.idle_since = self.idle_since.map(|_| Instant::now());
                if let Some(run) = self.run.clone() {
                    self.life.publisher.publish(State::Running { run });
                }
                self.ask_again();
                for reply in self.calls.resumed.drain(..) {
                    reply.send(Answer::Done);
                }
            }
            Action::PublishStopping => {
                self.calls.stop_asking();
                self.life.publisher.publish(State::Stopping);
                step::reached("monitor", "stopping");
            }
            Action::ShutDown { signal, grace, drain } => {
                self.calls.shut_down(signal, grace, drain, self.life.config.auto_remove);
            }
            Action::ShortenDrain(drain) => self.calls.shorten_drain(drain, self.life.config.auto_remove),
            Action::KillMain => self.calls.kill_main(),
            Action::KillVmm => {
                step::reached("monitor", "kill-vmm");
                self.vmm.kill();
            }
            // The loop has taken it.
            Action::Finish(_) => {}
        }
    }

    fn main_runs(&mut self) {
        let now = Instant::now();
        (self.ran_since, self.idle_since) = (Some(now), Some(now));
        if self.life.stats.start_millis == 0 {
            self.life.stats.start_millis = millis(self.life.began.elapsed());
        }
        let run = Run {
            engine: self.engine,
            vmm_pid: self.vmm.pid(),
            started_unix_nanos: unix_nanos(),
            health: self.life.config.health.as_ref().map(|_| Health::default()),
            ports: self.ports.clone(),
        };
        self.life.teller.tell(EventKind::Started { restarts: self.life.restarts() });
        self.life.publisher.publish(State::Running { run: run.clone() });
        self.run = Some(run);
        self.calls.wait_for_main();
        self.calls.follow_guest();
        self.ask_again();
        step::reached("monitor", "running");
    }

    /// Asks for the box's health from now on, where somebody wants to know it.
    fn ask_again(&mut self) {
        let health = self.run.as_ref().and_then(|run| run.health.clone());
        if let (Some(spec), Some(health), Some(since)) = (&self.life.config.health, health, self.ran_since) {
            self.calls.watch_health(spec.clone(), health, since);
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The state that a box with this verdict has. `tail` is what its console said last.
pub(super) fn final_state(verdict: Verdict, reason: EndReason, tail: &Tail) -> State {
    let ended_unix_nanos = unix_nanos();
    match verdict {
        Verdict::Stopped(exit) => State::Stopped { exit, reason, ended_unix_nanos },
        Verdict::Failed(Failure { kind, messages, hint }) => {
            let console_tail = match kind {
                FailureKind::Boot | FailureKind::VmmLost => tail.lines(),
                _ => Vec::new(),
            };
            State::Failed { error: ErrorRecord { kind, messages, hint, console_tail }, ended_unix_nanos }
        }
    }
}

/// Calls of the agent that are under way. They end with this value.
struct Calls {
    /// There from the time when the container has started.
    portal: Arc<OnceLock<Portal>>,
    recording: Arc<Mutex<Option<JoinHandle<()>>>>,
    running: JoinSet<()>,
    health: Option<AbortHandle>,
    events: mpsc::Sender<Event>,
    news: mpsc::Sender<News>,
    /// Who waits for a pause, and who for its end.
    paused: Option<Reply>,
    resumed: Vec<Reply>,
}

impl Calls {
    fn new(events: mpsc::Sender<Event>, news: mpsc::Sender<News>) -> Self {
        Self {
            portal: Arc::default(),
            recording: Arc::default(),
            running: JoinSet::new(),
            health: None,
            events,
            news,
            paused: None,
            resumed: Vec::new(),
        }
    }

    /// Makes a call and reports what came of it. Nobody takes the report once the box has ended.
    fn spawn(&mut self, call: impl Future<Output = Option<Event>> + Send + 'static) -> AbortHandle {
        // Calls that have ended are forgotten here: there are only a handful at a time.
        while self.running.try_join_next().is_some() {}
        let events = self.events.clone();
        self.running.spawn(async move {
            if let Some(event) = call.await {
                drop(events.send(event).await);
            }
        })
    }

    fn start(&mut self, life: &Life<'_>, share: Option<Share>) {
        let (slot, recording) = (Arc::clone(&self.portal), Arc::clone(&self.recording));
        let (files, container) = (life.files.clone(), life.config.container.clone());
        let link = life.config.network.is_some().then(LinkSpec::default);
        let log = life.config.log.then(|| life.files.output_log());
        self.spawn(async move {
            match agent::start(&files, &container, share, link.as_ref(), log).await {
                Ok((portal, recorder)) => {
                    slot.get_or_init(|| portal);
                    *recording.lock().unwrap_or_else(PoisonError::into_inner) = recorder;
                    Some(Event::Started)
                }
                Err(failure) => {
                    if failure.kind == FailureKind::Boot {
                        sleep(FOR_A_BETTER_REASON).await;
                    }
                    Some(Event::Failed(failure))
                }
            }
        });
    }

    /// Waits until all that the main command has written is in the log.
    async fn finish_recording(&mut self) {
        let recorder = self.recording.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut recorder) = recorder else { return };
        if timeout(GOODBYE, &mut recorder).await.is_err() {
            recorder.abort();
            tracing::warn!("the end of the main command's output is not in its log");
        }
    }

    fn wait_for_main(&mut self) {
        let Some(portal) = self.portal.get().cloned() else { return };
        self.spawn(async move {
            match agent::wait_for_main(&portal).await {
                Ok(exit) => Some(Event::MainEnded(exit)),
                Err(causes) => {
                    sleep(FOR_A_BETTER_REASON).await;
                    Some(Event::PortalLost(causes))
                }
            }
        });
    }

    fn follow_guest(&mut self) {
        let Some(portal) = self.portal.get().cloned() else { return };
        let news = self.news.clone();
        self.spawn(async move {
            guest_events::follow(portal, news).await;
            None
        });
    }

    fn watch_health(&mut self, spec: boxlite_control::HealthSpec, known: Health, since: Instant) {
        let Some(portal) = self.portal.get().cloned() else { return };
        let news = self.news.clone();
        self.health = Some(self.spawn(async move {
            health::watch(portal, spec, known, since, news).await;
            None
        }));
    }

    /// Asks for the health no more.
    fn stop_asking(&mut self) {
        if let Some(watch) = self.health.take() {
            watch.abort();
        }
    }

    /// Has a guest prepare for a pause.
    async fn freeze(&self) -> Result<(), Vec<String>> {
        match self.portal.get() {
            Some(portal) => agent::freeze(portal).await,
            None => Ok(()),
        }
    }

    /// Lets a guest go on after a pause.
    fn thaw(&mut self) {
        let Some(portal) = self.portal.get().cloned() else { return };
        self.spawn(async move {
            match timeout(ANSWER, agent::thaw(&portal)).await {
                Ok(Ok(())) => {}
                Ok(Err(causes)) => {
                    tracing::warn!(causes = causes.join(": "), "the guest does not go on well")
                }
                Err(_) => tracing::warn!("the guest does not say whether it goes on"),
            }
            Some(Event::Thawed)
        });
    }

    fn set_clock(&mut self) {
        let Some(portal) = self.portal.get().cloned() else { return };
        self.spawn(async move {
            match timeout(ANSWER, agent::set_clock(&portal)).await {
                Ok(Ok(())) => {}
                Ok(Err(causes)) => {
                    tracing::warn!(causes = causes.join(": "), "the guest's clock was not set")
                }
                Err(_) => tracing::warn!("the guest does not say whether it has set its clock"),
            }
            None
        });
    }

    fn signal(&mut self, signal: u32, reply: Reply) {
        let Some(portal) = self.portal.get().cloned() else { return };
        self.spawn(async move {
            reply.send(match timeout(ANSWER, agent::signal_main(&portal, signal, false)).await {
                Ok(Ok(())) => Answer::Done,
                Ok(Err(causes)) => Answer::Failed(causes.join(": ")),
                Err(_) => Answer::Failed(format!("the box did not answer within {ANSWER:?}")),
            });
            None
        });
    }

    fn stats(&mut self, stats: BoxStats, reply: Reply) {
        let Some(portal) = self.portal.get().cloned() else { return };
        self.spawn(async move {
            let guest = match timeout(ANSWER, agent::stats(&portal)).await {
                Ok(Ok(guest)) => Some(guest),
                Ok(Err(causes)) => {
                    tracing::warn!(causes = causes.join(": "), "the guest does not say what it uses");
                    None
                }
                Err(_) => None,
            };
            reply.send(Answer::Stats(Box::new(BoxStats { guest, ..stats })));
            None
        });
    }

    fn network_policy(&mut self, orders: Orders, policy: NetworkPolicy, reply: Reply) {
        self.spawn(async move {
            reply.send(match orders.give(NetOrder::Policy(policy)).await {
                Some(NetReport::Done) => Answer::Done,
                Some(NetReport::Refused { message }) => Answer::Refused(message),
                // The next helper gets the policy that was asked for last.
                _ => Answer::Failed("the box's network did not answer".to_owned()),
            });
            None
        });
    }

    fn network(&mut self, orders: Orders, policy: NetworkPolicy, reply: Reply) {
        self.spawn(async move {
            reply.send(match orders.give(NetOrder::Stats).await {
                Some(NetReport::Stats(stats)) => Answer::Network(stats, policy),
                _ => Answer::Failed("the box's network did not answer".to_owned()),
            });
            None
        });
    }

    fn shut_down(&mut self, signal: u32, grace: Duration, drain: Duration, discard: bool) {
        let Some(portal) = self.portal.get().cloned() else { return };
        self.spawn(async move {
            match agent::shut_down(&portal, signal, grace, drain, discard).await {
                Ok(exit) => Some(Event::ShutDown(exit)),
                Err(causes) => {
                    tracing::warn!(causes = causes.join(": "), "the agent did not end the box");
                    sleep(FOR_A_BETTER_REASON).await;
                    Some(Event::ShutDownFailed(causes))
                }
            }
        });
    }

    /// The answer is that of the call before, which reports it.
    fn shorten_drain(&mut self, drain: Duration, discard: bool) {
        let Some(portal) = self.portal.get().cloned() else { return };
        self.spawn(async move {
            if let Err(causes) = agent::shut_down(&portal, 0, Duration::ZERO, drain, discard).await {
                tracing::warn!(causes = causes.join(": "), "the agent could not be hastened");
            }
            None
        });
    }

    fn kill_main(&mut self) {
        let Some(portal) = self.portal.get().cloned() else { return };
        self.spawn(async move {
            if let Err(causes) = agent::signal_main(&portal, agent::SIGKILL, true).await {
                tracing::warn!(causes = causes.join(": "), "the agent did not kill the main command");
            }
            None
        });
    }
}
