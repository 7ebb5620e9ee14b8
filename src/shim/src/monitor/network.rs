//! The helper that is the box's network, and what is to be done when it fails.
//!
//! ```text
//!   start ─▶ spawned ──Ready──▶ runs ──(the VMM has gone)──▶ ended
//!               │                │ ▲
//!            Failed: error       │ └── spawned again, on the same link, with the same ports and the policy of now
//!                                └───▶ died
//! ```
//!
//! This process keeps a copy of the helper's end of the link, so the VMM does not see one helper go and the next one come.
//! Connections that the dead one had are reset when the guest uses them; new ones work.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use boxlite_control::{
    Denial, LinkSpec, NetConfig, NetOrder, NetReport, NetworkSpec, PortForward, VERSION, frame,
};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::driver::News;
use crate::{child, environment, text};

/// How long a helper may take to bind its ports, and to end.
const READY: Duration = Duration::from_secs(10);
const GOODBYE: Duration = Duration::from_secs(2);
/// How long it takes until one that has died soon after its start is started again.
const AGAIN: Duration = Duration::from_secs(1);
/// Orders and reports that wait.
const WAITING: usize = 16;
/// The most of a cause that is passed on, in bytes: the helper reads what hostile guests write.
const CAUSE: usize = 1 << 10;

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub(super) enum NetworkError {
    #[error("cannot start the helper")]
    Start(#[from] io::Error),
    #[error("cannot tell the helper what the network is")]
    Config(#[from] frame::FrameError),
    #[error("the helper does not answer")]
    Silent,
    #[error("{}", .0.join(": "))]
    Failed(Vec<String>),
}

/// An order, and who waits for what comes of it.
type Asked = (NetOrder, oneshot::Sender<NetReport>);

/// A running network.
#[derive(Debug)]
pub(super) struct Network {
    /// The published ports, with the numbers that they got.
    pub(super) ports: Vec<PortForward>,
    orders: mpsc::Sender<Asked>,
    supervisor: JoinHandle<()>,
}

impl Network {
    /// Starts the helper of this network, and returns the VMM's end of the link.
    ///
    /// For the main thread: the helper dies with the thread that started it.
    pub(super) async fn start(
        box_id: &str,
        spec: &NetworkSpec,
        link: &LinkSpec,
        news: mpsc::Sender<News>,
    ) -> Result<(Self, OwnedFd), NetworkError> {
        let (ours, theirs) = StdStream::pair()?;
        let config = NetConfig {
            version: VERSION,
            box_id: box_id.to_owned(),
            network: spec.clone(),
            link: link.clone(),
            resumed: false,
        };
        let end = OwnedFd::from(ours);
        let (helper, ports) = Helper::start(&config, &end).await?;
        let (orders, asked) = mpsc::channel(WAITING);
        let network = NetworkSpec { ports: ports.clone(), ..spec.clone() };
        let config = NetConfig { network, resumed: true, ..config };
        let supervisor = Supervisor { end, config, asked, news, restarts: 0, unheard: 0 };
        let supervisor = tokio::spawn(supervisor.run(helper));
        Ok((Self { ports, orders, supervisor }, theirs.into()))
    }

    /// How to ask it for something.
    pub(super) fn orders(&self) -> Orders {
        Orders(self.orders.clone())
    }

    /// Ends it. Its ports are free then.
    pub(super) async fn end(self) {
        let Self { orders, mut supervisor, .. } = self;
        drop(orders);
        if timeout(GOODBYE + GOODBYE, &mut supervisor).await.is_err() {
            tracing::warn!("the network does not end");
            supervisor.abort();
        }
    }
}

/// Asks a network for something.
#[derive(Clone, Debug)]
pub(super) struct Orders(mpsc::Sender<Asked>);

impl Orders {
    /// What came of an order; `None` when the network has ended or did not answer in time.
    pub(super) async fn give(&self, order: NetOrder) -> Option<NetReport> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.0.send((order, answer)).await.ok()?;
            answered.await.ok()
        };
        timeout(READY, asked).await.ok().flatten()
    }
}

/// A helper's process.
#[derive(Debug)]
struct Helper {
    child: Child,
    to: OwnedWriteHalf,
    reports: mpsc::Receiver<NetReport>,
    since: Instant,
}

impl Helper {
    /// Starts one on this end of the link, and waits until it is ready.
    async fn start(config: &NetConfig, end: &OwnedFd) -> Result<(Self, Vec<PortForward>), NetworkError> {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("boxlite-shim").arg("net").env_clear().current_dir("/");
        if let Some(filter) = std::env::var_os(environment::LOG) {
            command.env(environment::LOG, filter);
        }
        child::tie(&mut command, [None; 3]);
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::from(end.try_clone()?));
        let child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        let (mut from, mut to) = UnixStream::from_std(ours)?.into_split();
        frame::send(&mut to, config).await?;
        let (sender, mut reports) = mpsc::channel(WAITING);
        // Ends with the helper, or with whoever listens.
        tokio::spawn(async move {
            while let Ok(Some(report)) = frame::receive::<NetReport, _>(&mut from).await {
                if sender.send(report).await.is_err() {
                    return;
                }
            }
        });
        match timeout(READY, reports.recv()).await {
            Ok(Some(NetReport::Ready { ports })) => {
                Ok((Self { child, to, reports, since: Instant::now() }, ports))
            }
            Ok(Some(NetReport::Failed { messages })) => {
                let messages = messages.iter().take(8).map(|message| text::escape(message.as_bytes(), CAUSE));
                Err(NetworkError::Failed(messages.collect()))
            }
            _ => Err(NetworkError::Silent),
        }
    }
}

/// The one who keeps a helper running.
#[derive(Debug)]
struct Supervisor {
    end: OwnedFd,
    config: NetConfig,
    asked: mpsc::Receiver<Asked>,
    news: mpsc::Sender<News>,
    restarts: u64,
    /// Denials that were told and that nobody had time for.
    unheard: u64,
}

impl Supervisor {
    async fn run(mut self, mut helper: Helper) {
        loop {
            if !self.serve(&mut helper).await {
                drop(helper.to);
                if timeout(GOODBYE, helper.child.wait()).await.is_err()
                    && let Err(error) = helper.child.kill().await
                {
                    tracing::warn!(%error, "the network's helper cannot be ended");
                }
                return;
            }
            let how = match timeout(GOODBYE, helper.child.wait()).await {
                // That is how it ends when the VMM has gone.
                Ok(Ok(status)) if status.success() => return,
                Ok(Ok(status)) => status.to_string(),
                Ok(Err(error)) => error.to_string(),
                // It has closed its streams and lives: it is of no use.
                Err(_) => match helper.child.kill().await {
                    Ok(()) => "it was killed since it did not speak any more".to_owned(),
                    Err(error) => error.to_string(),
                },
            };
            tracing::error!(how, "the network's helper has ended, and is started again");
            if helper.since.elapsed() < AGAIN {
                sleep(AGAIN).await;
            }
            self.restarts += 1;
            helper = match self.start_again().await {
                Some(helper) => helper,
                None => return,
            };
        }
    }

    /// Starts helpers until one runs; `None` when the network has ended meanwhile.
    async fn start_again(&mut self) -> Option<Helper> {
        let mut told = false;
        loop {
            match Helper::start(&self.config, &self.end).await {
                Ok((helper, _)) => return Some(helper),
                Err(error) if !told => {
                    tracing::error!(error = text::line(&error), "the network's helper cannot be started");
                    told = true;
                }
                Err(_) => {}
            }
            let next = sleep(AGAIN);
            tokio::pin!(next);
            loop {
                tokio::select! {
                    () = &mut next => break,
                    asked = self.asked.recv() => match asked {
                        None => return None,
                        // It counts from the next start on.
                        Some((NetOrder::Policy(policy), answer)) => {
                            self.config.network.policy = policy;
                            drop(answer.send(NetReport::Done));
                        }
                        Some((NetOrder::Stats, _)) => {}
                    },
                }
            }
        }
    }

    /// Passes orders and reports on. `true`: the helper has gone; `false`: nobody needs it any more.
    async fn serve(&mut self, helper: &mut Helper) -> bool {
        let mut waiting: VecDeque<oneshot::Sender<NetReport>> = VecDeque::new();
        loop {
            tokio::select! {
                report = helper.reports.recv() => match report {
                    None => return true,
                    Some(NetReport::Denied(denial)) => self.tell(denial),
                    Some(mut report) => {
                        if let NetReport::Stats(stats) = &mut report {
                            stats.restarts = self.restarts;
                        }
                        if let Some(answer) = waiting.pop_front() {
                            drop(answer.send(report));
                        }
                    }
                },
                asked = self.asked.recv() => match asked {
                    None => return false,
                    Some((order, answer)) => {
                        if let NetOrder::Policy(policy) = &order {
                            self.config.network.policy = policy.clone();
                        }
                        waiting.push_back(answer);
                        if frame::send(&mut helper.to, &order).await.is_err() {
                            return true;
                        }
                    }
                },
            }
        }
    }

    fn tell(&mut self, denial: Denial) {
        let unreported = denial.unreported + self.unheard;
        let escaped = |text: String| text::escape(text.as_bytes(), CAUSE);
        let denial =
            Denial { why: escaped(denial.why), host: denial.host.map(escaped), unreported, ..denial };
        self.unheard = match self.news.try_send(News::Denied(denial)) {
            Ok(()) => 0,
            Err(_) => unreported + 1,
        };
    }
}
