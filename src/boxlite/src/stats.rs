//! What boxes use, and how much was done.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use boxlite_control::{Request, Response};

use crate::error::{Error, ErrorKind, Result};
use crate::info::{BoxStatus, time};
use crate::litebox::LiteBox;
use crate::runtime::BoxliteRuntime;

/// How long a box may take to say what it uses.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between the two looks from which the use of the CPU is reckoned.
const SAMPLE: Duration = Duration::from_millis(200);

/// What a box uses at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BoxStats {
    /// When.
    pub time: SystemTime,
    /// CPU time of its virtual machine on the host since the machine started.
    pub host_cpu: Duration,
    /// Memory of its virtual machine that is resident on the host, in bytes.
    pub host_memory_bytes: u64,
    /// Its virtual CPUs.
    pub cpus: u8,
    /// Commands that were started in it besides its main one, since the box was started.
    pub commands_executed: u64,
    /// Commands that could not be started in it, since then.
    pub exec_errors: u64,
    /// From its start to its main command.
    pub start_duration: Duration,
    /// What of this the guest's kernel and agent took.
    pub boot_duration: Duration,
    /// What the guest says of itself; `None` while the box is paused, starts or ends.
    pub guest: Option<GuestStats>,
}

/// What a guest says of itself. It is not to be believed where it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuestStats {
    /// CPU time of the box's processes since its machine started.
    pub cpu: Duration,
    /// Memory of the box's processes, in bytes.
    pub memory_bytes: u64,
    /// Memory of its machine, in bytes.
    pub memory_total_bytes: u64,
    /// What of it could be given to a process, in bytes.
    pub memory_available_bytes: u64,
    /// Processes and threads.
    pub tasks: u64,
    /// Read from its disks, in bytes.
    pub disk_read_bytes: u64,
    /// Written to its disks, in bytes.
    pub disk_written_bytes: u64,
    /// Size of its writable layer, in bytes.
    pub disk_total_bytes: u64,
    /// What of it is used, in bytes.
    pub disk_used_bytes: u64,
    /// Processes that were killed because memory had run out.
    pub oom_kills: u64,
    /// Commands that run in it besides its main one.
    pub executions: u32,
}

/// What a box uses and did, in the shape of the published packages.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct BoxMetrics {
    /// Commands that were started in the box, since it was started.
    pub commands_executed_total: u64,
    /// Commands that could not be started in it.
    pub exec_errors_total: u64,
    /// From its start to its main command, in milliseconds.
    pub total_create_duration_ms: Option<u64>,
    /// What of this its kernel and agent took, in milliseconds.
    pub guest_boot_duration_ms: Option<u64>,
    /// Use of the host's CPU by its virtual machine at this moment, in percent of one CPU.
    pub cpu_percent: Option<f64>,
    /// Memory of its virtual machine that is resident on the host, in bytes.
    pub memory_bytes: Option<u64>,
}

/// What was done by one runtime, in the shape of the published packages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuntimeMetrics {
    /// Boxes that it created.
    pub boxes_created_total: u64,
    /// Boxes whose start failed.
    pub boxes_failed_total: u64,
    /// Boxes that it stopped.
    pub boxes_stopped_total: u64,
    /// Boxes of the home that run now, whoever started them.
    pub num_running_boxes: u64,
    /// Commands that it ran in boxes.
    pub total_commands_executed: u64,
    /// Commands that it could not run.
    pub total_exec_errors: u64,
}

/// The counters of one runtime.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) created: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) stopped: AtomicU64,
    pub(crate) commands: AtomicU64,
    pub(crate) exec_errors: AtomicU64,
}

/// Counts one more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl BoxliteRuntime {
    /// What this runtime did, and how many boxes run.
    ///
    /// # Errors
    /// When the home cannot be read.
    pub async fn metrics(&self) -> Result<RuntimeMetrics> {
        let boxes = self.list_info().await?;
        let running = boxes.iter().filter(|info| info.status == BoxStatus::Running).count();
        let Counters { created, failed, stopped, commands, exec_errors } = &self.inner().counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok(RuntimeMetrics {
            boxes_created_total: read(created),
            boxes_failed_total: read(failed),
            boxes_stopped_total: read(stopped),
            num_running_boxes: u64::try_from(running).unwrap_or(u64::MAX),
            total_commands_executed: read(commands),
            total_exec_errors: read(exec_errors),
        })
    }
}

impl LiteBox {
    /// What the box uses now.
    ///
    /// # Errors
    /// When the box has no machine, or does not answer.
    pub async fn stats(&self) -> Result<BoxStats> {
        let stopped = |status: &str| {
            Error::new(ErrorKind::Stopped, format!("box {} does not run: it is {status}", self.id()))
        };
        let phase = self.look()?.phase();
        if !phase.is_live() {
            return Err(stopped(phase.name()));
        }
        match self.order(&Request::Stats, DEADLINE).await? {
            Some(Response::Stats(stats)) => Ok(BoxStats::new(*stats)),
            Some(_) => Err(Error::new(ErrorKind::Engine, "the monitor of the box gave another answer")),
            None => Err(stopped(self.look()?.phase().name())),
        }
    }

    /// What the box uses and did. Looks twice within a fifth of a second, to see how busy the CPU is.
    ///
    /// # Errors
    /// As [`LiteBox::stats`].
    pub async fn metrics(&self) -> Result<BoxMetrics> {
        let first = self.stats().await?;
        tokio::time::sleep(SAMPLE).await;
        let second = self.stats().await?;
        let millis =
            |time: Duration| Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)).filter(|ms| *ms > 0);
        Ok(BoxMetrics {
            commands_executed_total: second.commands_executed,
            exec_errors_total: second.exec_errors,
            total_create_duration_ms: millis(second.start_duration),
            guest_boot_duration_ms: millis(second.boot_duration),
            cpu_percent: second.cpu_percent_since(&first),
            memory_bytes: Some(second.host_memory_bytes),
        })
    }
}

impl BoxStats {
    fn new(stats: boxlite_control::BoxStats) -> Self {
        Self {
            time: time(stats.time_unix_nanos),
            host_cpu: Duration::from_nanos(stats.host_cpu_nanos),
            host_memory_bytes: stats.host_memory_bytes,
            cpus: stats.cpus,
            commands_executed: stats.commands_executed,
            exec_errors: stats.exec_errors,
            start_duration: Duration::from_millis(stats.start_millis),
            boot_duration: Duration::from_millis(stats.boot_millis),
            guest: stats.guest.map(GuestStats::new),
        }
    }

    /// How busy its machine kept the host since an earlier look, in percent of one CPU; `None` when no time has passed or
    /// it was another machine.
    pub fn cpu_percent_since(&self, earlier: &Self) -> Option<f64> {
        let passed = self.time.duration_since(earlier.time).ok().filter(|time| !time.is_zero())?;
        let used = self.host_cpu.checked_sub(earlier.host_cpu)?;
        Some(used.as_secs_f64() / passed.as_secs_f64() * 100.0)
    }
}

impl GuestStats {
    fn new(guest: boxlite_control::GuestStats) -> Self {
        Self {
            cpu: Duration::from_nanos(guest.cpu_nanos),
            memory_bytes: guest.memory_bytes,
            memory_total_bytes: guest.memory_total_bytes,
            memory_available_bytes: guest.memory_available_bytes,
            tasks: guest.tasks,
            disk_read_bytes: guest.disk_read_bytes,
            disk_written_bytes: guest.disk_written_bytes,
            disk_total_bytes: guest.disk_total_bytes,
            disk_used_bytes: guest.disk_used_bytes,
            oom_kills: guest.oom_kills,
            executions: guest.executions,
        }
    }
}
