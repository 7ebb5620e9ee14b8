//! What a box uses.

use serde::{Deserialize, Serialize};

/// What a box uses now, and what it has used since its monitor started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoxStats {
    /// When this was true, nanoseconds since the Unix epoch.
    pub time_unix_nanos: u64,
    /// What the guest says of itself; `None` when it cannot answer, as while it is paused.
    pub guest: Option<GuestStats>,
    /// CPU time of the VMM and its children on the host, in nanoseconds.
    pub host_cpu_nanos: u64,
    /// Memory of the VMM and its children that is resident on the host, in bytes. Shared pages count once each.
    pub host_memory_bytes: u64,
    /// Virtual CPUs of the machine.
    pub cpus: u8,
    /// Commands that were started in the box besides the main one.
    pub commands_executed: u64,
    /// Commands that could not be started.
    pub exec_errors: u64,
    /// From the start of the monitor to the first run's main command, in milliseconds.
    pub start_millis: u64,
    /// What of this the guest's kernel and agent took, in milliseconds.
    pub boot_millis: u64,
}

/// What a guest says of itself: not to be believed where it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestStats {
    /// CPU time of the container's processes, in nanoseconds.
    pub cpu_nanos: u64,
    /// Memory of the container's processes, in bytes.
    pub memory_bytes: u64,
    /// Memory of the machine, in bytes.
    pub memory_total_bytes: u64,
    /// What of it could be given to a process, in bytes.
    pub memory_available_bytes: u64,
    /// Processes and threads in the container.
    pub tasks: u64,
    /// Read from the disks, in bytes.
    pub disk_read_bytes: u64,
    /// Written to the disks, in bytes.
    pub disk_written_bytes: u64,
    /// Size of the writable layer, in bytes.
    pub disk_total_bytes: u64,
    /// What of it is used, in bytes.
    pub disk_used_bytes: u64,
    /// Processes that were killed because memory had run out.
    pub oom_kills: u64,
    /// Commands that run in the box besides the main one.
    pub executions: u32,
}
