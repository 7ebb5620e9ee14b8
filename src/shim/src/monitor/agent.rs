//! What the monitor asks of the agent in the box, over the portal.
//!
//! Whatever the agent answers comes from the guest: messages are bounded by the portal's limits and shown escaped.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use boxlite_control::{
    BoxFiles, ContainerSpec, Exit, FailureKind, GuestStats, LinkSpec, MountSource, MountSpec, ProcessSpec,
    SocketPath, step,
};
use boxlite_portal::MAIN;
use boxlite_portal::client::Portal;
use boxlite_portal::v1;
use boxlite_portal::v1::init_request::Share;
use tokio::task::JoinHandle;
use tonic::Status;

use super::machine::Failure;
use super::{recorder, unix_nanos};
use crate::text;

/// Where the guest finds the image and the writable layer: see `VmSpec::disks`.
const IMAGE_DEVICE: &str = "/dev/vdb";
const WRITABLE_DEVICE: &str = "/dev/vdc";
/// How long the portal may take to answer once the agent has said that it serves it.
const CONNECT: Duration = Duration::from_secs(15);
/// The most of a guest's message that is shown, in bytes.
const MESSAGE: usize = 2 << 10;
/// SIGKILL, the same on every Linux.
pub(super) const SIGKILL: u32 = 9;

/// How this side introduces itself.
const BUILD: &str = concat!("boxlite-shim ", env!("CARGO_PKG_VERSION"));

/// Connects to the agent and has it make and start the container. The deadline is the machine's. What the main command
/// writes goes into `log`, where that is wanted; the task that sees to it ends with the output.
pub(super) async fn start(
    files: &BoxFiles,
    container: &ContainerSpec,
    share: Option<Share>,
    link: Option<&LinkSpec>,
    log: Option<PathBuf>,
) -> Result<(Portal, Option<JoinHandle<()>>), Failure> {
    let unreachable = |error: &dyn std::error::Error| {
        failure(FailureKind::Boot, "cannot reach the agent in the box", text::chain(error))
    };
    let socket = SocketPath::new(&files.portal_socket()).map_err(|error| unreachable(&error))?;
    let portal = Portal::connect(socket.path(), BUILD, CONNECT).await.map_err(|error| unreachable(&error))?;

    let machine = v1::InitRequest {
        unix_time_nanos: unix_nanos(),
        hostname: container.hostname.clone(),
        image_device: IMAGE_DEVICE.to_owned(),
        writable_device: WRITABLE_DEVICE.to_owned(),
        share,
        network: link.map(network),
    };
    let init = portal.guest().init(machine).await;
    let kernel =
        init.map_err(|status| refused(FailureKind::Boot, "the guest cannot prepare its disks", &status))?;
    tracing::info!(kernel = text::escape(kernel.into_inner().kernel.as_bytes(), 64), "the guest is prepared");

    let init = portal.container().init(container_request(container)).await;
    init.map_err(|status| refused(FailureKind::Container, "the container cannot be made", &status))?;
    step::reached("monitor", "container-made");
    // Asked for before the start, on the same connection: the agent has a reader when the first byte comes.
    let recording = log.map(|log| recorder::start(&portal, log));
    let start = portal.container().start(v1::ContainerStartRequest {}).await;
    let start = start
        .map_err(|status| refused(FailureKind::Container, "the container cannot be started", &status))?
        .into_inner();
    match start.outcome {
        Some(v1::container_start_response::Outcome::Started(_)) => Ok((portal, recording)),
        Some(v1::container_start_response::Outcome::Failure(why)) => Err(not_started(&why)),
        None => Err(failure(
            FailureKind::Container,
            "the agent does not say whether the container runs",
            Vec::new(),
        )),
    }
}

/// Waits until the main command has ended, however long that takes.
pub(super) async fn wait_for_main(portal: &Portal) -> Result<Exit, Vec<String>> {
    let wait = v1::WaitRequest { execution_id: MAIN.to_owned() };
    let answer = portal.execution().wait(wait).await.map_err(|status| words(&status))?;
    exit(answer.into_inner().exit)
        .ok_or_else(|| vec!["the agent does not say how the main command ended".to_owned()])
}

/// Has the agent end the box, or hastens the end that it was asked for before. Says how the main command ended.
pub(super) async fn shut_down(
    portal: &Portal,
    signal: u32,
    grace: Duration,
    drain: Duration,
    discard: bool,
) -> Result<Option<Exit>, Vec<String>> {
    let request =
        v1::ShutdownRequest { signal, grace_millis: millis(grace), drain_millis: millis(drain), discard };
    let answer = portal.guest().shutdown(request).await.map_err(|status| words(&status))?;
    Ok(exit(answer.into_inner().main))
}

/// Sends a signal to the main command; with `all` to every process of the box.
pub(super) async fn signal_main(portal: &Portal, signal: u32, all: bool) -> Result<(), Vec<String>> {
    let signal = v1::SignalRequest { execution_id: MAIN.to_owned(), signal, all };
    portal.execution().signal(signal).await.map(drop).map_err(|status| words(&status))
}

/// Has the guest prepare for a pause of its virtual CPUs.
pub(super) async fn freeze(portal: &Portal) -> Result<(), Vec<String>> {
    let answer = portal.guest().freeze(v1::FreezeRequest {}).await.map_err(|status| words(&status))?;
    if answer.into_inner().frozen { Ok(()) } else { Err(vec!["some of its processes go on".to_owned()]) }
}

/// Tells the guest that a pause is over, and what time it is.
pub(super) async fn thaw(portal: &Portal) -> Result<(), Vec<String>> {
    let request = v1::ThawRequest { unix_time_nanos: unix_nanos() };
    let answer = portal.guest().thaw(request).await.map_err(|status| words(&status))?.into_inner();
    tracing::info!(ahead_nanos = answer.ahead_nanos, set = answer.set, "the guest goes on");
    Ok(())
}

/// Tells the guest what time it is.
pub(super) async fn set_clock(portal: &Portal) -> Result<(), Vec<String>> {
    let request = v1::SetClockRequest { unix_time_nanos: unix_nanos() };
    let answer = portal.guest().set_clock(request).await.map_err(|status| words(&status))?.into_inner();
    if answer.set {
        tracing::info!(ahead_nanos = answer.ahead_nanos, "the guest's clock was set");
    }
    Ok(())
}

/// What the guest says that it uses.
pub(super) async fn stats(portal: &Portal) -> Result<GuestStats, Vec<String>> {
    let said = portal.guest().stats(v1::StatsRequest {}).await.map_err(|status| words(&status))?.into_inner();
    Ok(GuestStats {
        cpu_nanos: said.cpu_nanos,
        memory_bytes: said.memory_bytes,
        memory_total_bytes: said.memory_total_bytes,
        memory_available_bytes: said.memory_available_bytes,
        tasks: said.tasks,
        disk_read_bytes: said.disk_read_bytes,
        disk_written_bytes: said.disk_written_bytes,
        disk_total_bytes: said.disk_total_bytes,
        disk_used_bytes: said.disk_used_bytes,
        oom_kills: said.oom_kills,
        executions: said.executions,
    })
}

/// The network as the guest is told. Everybody else on the link has the gateway's hardware address.
fn network(link: &LinkSpec) -> v1::Network {
    let v4 = |address: Ipv4Addr| address.octets().to_vec();
    let v6 = |address: Ipv6Addr| address.octets().to_vec();
    let host = |address, names: &[&str]| v1::Host {
        address,
        names: names.iter().map(|name| (*name).to_owned()).collect(),
    };
    // Docker's name for the host is in many programs' settings.
    let host_names = [LinkSpec::HOST_NAME, "host.docker.internal"];
    v1::Network {
        mac: link.guest_mac.to_vec(),
        mtu: link.mtu.into(),
        addresses: vec![
            v1::Address { address: v4(link.guest4), prefix: link.prefix4.into() },
            v1::Address { address: v6(link.guest6), prefix: link.prefix6.into() },
        ],
        routers: vec![v4(link.gateway4), v6(link.gateway6)],
        nameservers: vec![v4(link.gateway4), v6(link.gateway6)],
        search: Vec::new(),
        hosts: vec![
            host(v4(link.host4), &host_names),
            host(v6(link.host6), &host_names),
            host(v4(link.gateway4), &[LinkSpec::GATEWAY_NAME]),
        ],
        neighbors: vec![v4(link.gateway4), v6(link.gateway6), v4(link.host4), v6(link.host6)],
        neighbor_mac: link.gateway_mac.to_vec(),
    }
}

fn container_request(container: &ContainerSpec) -> v1::ContainerInitRequest {
    v1::ContainerInitRequest {
        main: Some(process(&container.main)),
        capabilities_add: container.capabilities_add.clone(),
        capabilities_drop: container.capabilities_drop.clone(),
        await_attach: container.await_attach,
        mounts: container.mounts.iter().map(mount).collect(),
    }
}

fn mount(mount: &MountSpec) -> v1::Mount {
    use v1::mount::Source;
    let (source, tmpfs_mode) = match &mount.source {
        MountSource::Volume(name) => (Source::Volume(name.clone()), 0),
        MountSource::Tmpfs { bytes, mode } => (Source::TmpfsBytes(*bytes), *mode),
    };
    v1::Mount {
        target: mount.target.clone().into_bytes(),
        read_only: mount.read_only,
        source: Some(source),
        tmpfs_mode,
    }
}

fn process(process: &ProcessSpec) -> v1::ProcessSpec {
    let bytes = |list: &[String]| list.iter().map(|text| text.clone().into_bytes()).collect();
    v1::ProcessSpec {
        args: bytes(&process.args),
        env: bytes(&process.env),
        cwd: process.cwd.clone().into_bytes(),
        user: process.user.clone(),
        terminal: process
            .terminal
            .map(|(rows, columns)| v1::TerminalSize { rows: rows.into(), columns: columns.into() }),
        stdin: process.stdin,
        rlimits: process
            .rlimits
            .iter()
            .map(|(name, soft, hard)| v1::Rlimit { name: name.clone(), soft: *soft, hard: *hard })
            .collect(),
    }
}

/// What the guest claims, made to be what the protocol allows.
pub(super) fn exit(exit: Option<v1::Exit>) -> Option<Exit> {
    match exit?.status? {
        v1::exit::Status::Code(code) => Some(Exit::Code(code.clamp(0, 255))),
        v1::exit::Status::Signal(signal) => Some(Exit::Signal(signal.clamp(1, 64))),
    }
}

fn not_started(why: &v1::StartFailure) -> Failure {
    use v1::start_failure::Kind;
    let kind = match why.kind() {
        Kind::NotFound => FailureKind::CommandNotFound,
        Kind::NotExecutable => FailureKind::CommandNotExecutable,
        Kind::Unspecified | Kind::BadWorkingDirectory | Kind::UnknownUser | Kind::Other => {
            FailureKind::Container
        }
    };
    failure(kind, "the main command did not start", vec![text::escape(why.message.as_bytes(), MESSAGE)])
}

/// What a call that came to nothing means: a failure of this kind if the agent said so, and of the machine if the agent could
/// not answer. A status has reasons of this side only then.
fn refused(kind: FailureKind, what: &str, status: &Status) -> Failure {
    let kind = if std::error::Error::source(status).is_some() { FailureKind::Boot } else { kind };
    failure(kind, what, words(status))
}

fn failure(kind: FailureKind, what: &str, causes: Vec<String>) -> Failure {
    let mut messages = vec![what.to_owned()];
    messages.extend(causes.into_iter().filter(|cause| !cause.is_empty()));
    Failure { kind, messages, hint: None }
}

pub(super) fn words(status: &Status) -> Vec<String> {
    let message = text::escape(status.message().as_bytes(), MESSAGE);
    let mut words = vec![if message.is_empty() { status.code().to_string() } else { message }];
    // Besides the agent's words there may be reasons of this side.
    if let Some(source) = std::error::Error::source(status) {
        words.extend(text::chain(source).iter().map(|cause| text::escape(cause.as_bytes(), MESSAGE)));
    }
    words
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::start_failure::Kind;

    #[test]
    fn an_exit_that_no_process_can_have_is_made_one() {
        let code =
            |code| exit(Some(v1::Exit { status: Some(v1::exit::Status::Code(code)), ..Default::default() }));
        let signal = |signal| {
            exit(Some(v1::Exit { status: Some(v1::exit::Status::Signal(signal)), ..Default::default() }))
        };
        assert_eq!(code(3), Some(Exit::Code(3)));
        assert_eq!(code(-1), Some(Exit::Code(0)));
        assert_eq!(code(i32::MAX), Some(Exit::Code(255)));
        assert_eq!(signal(9), Some(Exit::Signal(9)));
        assert_eq!(signal(u32::MAX), Some(Exit::Signal(64)));
        assert_eq!(exit(None), None);
    }

    #[test]
    fn each_way_not_to_start_has_its_kind() {
        let kind =
            |kind: Kind| not_started(&v1::StartFailure { kind: kind.into(), ..Default::default() }).kind;
        assert_eq!(kind(Kind::NotFound), FailureKind::CommandNotFound);
        assert_eq!(kind(Kind::NotExecutable), FailureKind::CommandNotExecutable);
        assert_eq!(kind(Kind::UnknownUser), FailureKind::Container);
        let unknown = v1::StartFailure { kind: 900, ..Default::default() };
        assert_eq!(not_started(&unknown).kind, FailureKind::Container);
    }

    #[test]
    fn words_of_the_guest_are_escaped_and_bounded() {
        let why = v1::StartFailure { message: "\x1b]0;".repeat(9999), ..Default::default() };
        let message = not_started(&why).messages.concat();
        assert!(!message.chars().any(char::is_control));
        assert!(message.len() < 2 * MESSAGE, "{}", message.len());
        assert_eq!(words(&Status::internal("a\nb")), ["a\\nb"]);
    }

    #[test]
    fn a_machine_that_is_lost_while_it_makes_the_container_is_no_fault_of_the_container() {
        let said = Status::internal("no such user");
        let mut lost = Status::unavailable("transport error");
        lost.set_source(std::sync::Arc::new(std::io::Error::from(std::io::ErrorKind::ConnectionReset)));
        for (status, kind) in [(said, FailureKind::Container), (lost, FailureKind::Boot)] {
            assert_eq!(refused(FailureKind::Container, "it fails", &status).kind, kind);
        }
    }

    #[test]
    fn arguments_stay_the_bytes_that_they_are() {
        let spec = ProcessSpec {
            args: vec!["a b".into(), "ü".into()],
            terminal: Some((24, 80)),
            ..Default::default()
        };
        let sent = process(&spec);
        assert_eq!(sent.args, [b"a b".to_vec(), "ü".as_bytes().to_vec()]);
        assert_eq!(sent.terminal, Some(v1::TerminalSize { rows: 24, columns: 80 }));
    }
}
