//! What a box is made of, as the monitor and the VMM are told.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::health::HealthSpec;
use crate::network::NetworkSpec;
use crate::restart::RestartPolicy;

/// The first message on the lifeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MonitorConfig {
    /// [`VERSION`](crate::VERSION) of the sender.
    pub version: u32,
    /// The box's id.
    pub box_id: String,
    /// The box's name, for events.
    pub name: Option<String>,
    /// The image that it was created from, for events.
    pub image: String,
    /// The box's folder: see [`BoxFiles`](crate::BoxFiles).
    pub folder: PathBuf,
    /// Where the box's folder is renamed to before it is deleted, on the same file system. Nobody takes it for a box there.
    pub trash: PathBuf,
    /// A folder for what all boxes share, such as the kernel image.
    pub cache: PathBuf,
    /// The journal of the home, to which events are appended.
    pub journal: PathBuf,
    /// Which engine to use.
    pub engine: EngineChoice,
    /// The machine. `kernel` is filled in by the monitor.
    pub vm: VmSpec,
    /// What runs in it.
    pub container: ContainerSpec,
    /// The box goes on when the library's process ends.
    pub detached: bool,
    /// The box's folder is removed once the box has stopped.
    pub auto_remove: bool,
    /// How long the guest may take from the VMM's start to a running main command, in milliseconds.
    pub boot_timeout_millis: u64,
    /// How long the main command gets between the stop signal and SIGKILL when the lifeline closes, in milliseconds.
    pub owner_grace_millis: u64,
    /// The signal that ends the main command well, as a Linux number, 1 to 64.
    pub stop_signal: u32,
    /// How long the main command gets between that and SIGKILL when the monitor stops the box, in milliseconds.
    pub stop_grace_millis: u64,
    /// Whether a run that has ended is followed by another.
    pub restart: RestartPolicy,
    /// How the box is asked whether it is well.
    pub health: Option<HealthSpec>,
    /// The box is stopped when nothing is done in it for this long, in milliseconds; 0: never.
    pub idle_timeout_millis: u64,
    /// The box is stopped this long after its start, in milliseconds; 0: never.
    pub max_duration_millis: u64,
    /// What the main command writes is kept.
    pub log: bool,
    /// The network; `None`: the box has no network device.
    pub network: Option<NetworkSpec>,
}

/// Which engine runs the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// The best one that works here.
    #[default]
    Auto,
    /// libkrun; an error where it does not work.
    Krun,
    /// QEMU, accelerated where possible.
    Qemu,
}

/// A machine, as data: every device can be made again from this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Virtual CPUs, 1 to 16.
    pub cpus: u8,
    /// Memory in MiB, at least 128.
    pub memory_mib: u32,
    /// The kernel as an ELF file. Empty until the monitor has chosen it.
    pub kernel: PathBuf,
    /// Disks in the order in which the guest numbers them: /dev/vda (the agent), /dev/vdb (the image), /dev/vdc (the
    /// writable layer).
    pub disks: Vec<DiskSpec>,
    /// Which vsock ports are connected to which Unix sockets.
    pub ports: Vec<VsockPort>,
    /// The one file system that the host shares with the guest.
    #[serde(default)]
    pub share: Option<ShareSpec>,
    /// The network device, if there is one. The monitor fills this in.
    #[serde(default)]
    pub network: Option<NetDevice>,
}

/// A network device. Its other end is a Unix stream, on which each frame stands behind its length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetDevice {
    /// The descriptor of the stream, which the VMM inherits.
    pub descriptor: i32,
    /// The guest's hardware address.
    pub mac: [u8; 6],
    /// The largest IP packet in bytes.
    pub mtu: u16,
}

/// The host's share: all volumes of a box, as entries of one root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareSpec {
    /// Where its server listens, for an engine whose guest reaches it over vsock.
    pub socket: PathBuf,
    /// User and group whose files they are on the host; those of the container's user in the guest.
    pub owner: (u32, u32),
    /// The volumes.
    pub volumes: Vec<ShareVolume>,
}

/// A folder or a file of the host that a box has as a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareVolume {
    /// Its entry in the share's root: one plain component.
    pub name: String,
    /// Where it is: absolute, and without links when it was chosen.
    pub path: PathBuf,
    /// The host refuses writes.
    pub read_only: bool,
    /// The most bytes that it may hold.
    pub quota: Option<u64>,
}

/// One virtio-blk disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// The file.
    pub path: PathBuf,
    /// Its format. Never guessed from the content, which a guest may have written.
    pub format: DiskFormat,
    /// The host refuses writes.
    pub read_only: bool,
}

/// The format of a disk file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The bytes of the disk.
    Raw,
    /// QEMU's copy-on-write format, version 3.
    Qcow2,
}

/// A vsock port that is connected to a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockPort {
    /// The port: of the guest for [`Direction::HostToGuest`], of the host otherwise.
    pub port: u32,
    /// The Unix socket on the host.
    pub path: PathBuf,
    /// Who dials.
    pub direction: Direction,
}

/// Who dials a [`VsockPort`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The VMM listens on the Unix socket and connects each connection to the guest's port.
    HostToGuest,
    /// The guest dials the port, and the VMM connects it to the Unix socket, on which the host listens.
    GuestToHost,
}

/// What the VMM role reads from its standard input, which is also its lifeline: at its end the VMM exits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmmConfig {
    /// [`VERSION`](crate::VERSION) of the sender.
    pub version: u32,
    /// The box's id, for the log.
    pub box_id: String,
    /// A chosen engine: never [`EngineChoice::Auto`].
    pub engine: EngineChoice,
    /// Whether the engine uses the CPU's virtualization, as probing found.
    pub accelerated: bool,
    /// The engine's program, for an engine that is one, as probing found it.
    pub program: Option<PathBuf>,
    /// The machine.
    pub vm: VmSpec,
}

/// What runs in the machine. The fields mean what those of `ContainerInitRequest` in the portal protocol mean.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerSpec {
    /// Host name of the box.
    pub hostname: String,
    /// The main command.
    pub main: ProcessSpec,
    /// Capabilities beyond the default set.
    pub capabilities_add: Vec<String>,
    /// Capabilities of the default set to leave out.
    pub capabilities_drop: Vec<String>,
    /// The main command's output waits for a reader from the start.
    pub await_attach: bool,
    /// What is mounted over the image.
    #[serde(default)]
    pub mounts: Vec<MountSpec>,
}

/// Something mounted in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountSpec {
    /// Where: absolute and normal, not `/`.
    pub target: String,
    /// The container cannot write to it.
    pub read_only: bool,
    /// What.
    pub source: MountSource,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum MountSource {
    /// An entry of the share: see [`ShareVolume::name`].
    Volume(String),
    /// Memory.
    Tmpfs {
        /// The most bytes; 0: half of the machine's memory.
        bytes: u64,
        /// Permissions of its root; 0: 01777.
        mode: u32,
    },
}

/// A process. The fields mean what those of `ProcessSpec` in the portal protocol mean.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessSpec {
    /// Program and arguments; empty means idle.
    pub args: Vec<String>,
    /// NAME=value.
    pub env: Vec<String>,
    /// Working directory; empty means the default.
    pub cwd: String,
    /// User; empty means the default.
    pub user: String,
    /// A terminal of this many rows and columns.
    pub terminal: Option<(u16, u16)>,
    /// Standard input is open.
    pub stdin: bool,
    /// Resource limits: name, soft, hard.
    #[serde(default)]
    pub rlimits: Vec<(String, u64, u64)>,
}
