//! What happens to the boxes of a home, as it happens and as it happened.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::SystemTime;

use boxlite_control::{Event, EventKind, event, rotated};

use crate::changes::Changes;
use crate::error::{Result, storage};
use crate::health::HealthStatus;
use crate::info::{StopReason, exit_code, time};
use crate::monitor::unix_nanos;
use crate::runtime::BoxliteRuntime;

/// What is read at once, in bytes.
const CHUNK: usize = 64 << 10;

/// Something that happened to a box.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BoxEvent {
    /// When.
    pub time: SystemTime,
    /// The box's id.
    pub box_id: String,
    /// Its name at that time, if it had one.
    pub name: Option<String>,
    /// The image that it was created from.
    pub image: String,
    /// What.
    pub kind: BoxEventKind,
}

/// What happened. Texts that come from a box are cut, and their control characters escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BoxEventKind {
    /// The box was created.
    Created,
    /// Its main command has started.
    Started {
        /// How often its restart policy had started it before, since its last start.
        restarts: u32,
    },
    /// Its health check has come to another verdict.
    Health {
        /// The verdict.
        status: HealthStatus,
    },
    /// A command was started in it.
    ExecStarted {
        /// The execution's id.
        execution_id: String,
        /// Program and arguments.
        command: Vec<String>,
    },
    /// A command in it has ended.
    ExecExited {
        /// The execution's id.
        execution_id: String,
        /// 0 to 255, or 128 plus the number of the signal that ended it.
        exit_code: i32,
    },
    /// A command could not be started in it.
    ExecFailed {
        /// The execution's id.
        execution_id: String,
        /// Program and arguments.
        command: Vec<String>,
        /// Why.
        message: String,
    },
    /// Processes in it were killed because its memory had run out.
    OutOfMemory {
        /// How many since its machine started.
        total: u64,
    },
    /// It was paused.
    Paused,
    /// It goes on after a pause.
    Resumed,
    /// Its main command was sent a signal.
    Signalled {
        /// A Linux number.
        signal: u32,
    },
    /// A run of it has ended.
    Exited {
        /// The main command's exit code, when it had one: 0 to 255, or 128 plus the number of the signal that ended it.
        exit_code: Option<i32>,
        /// Why the box has stopped; `None` when it failed or starts again.
        reason: Option<StopReason>,
        /// Why it failed, when it did.
        error: Option<String>,
        /// After how many milliseconds it starts again, if it does.
        restart_millis: Option<u64>,
    },
    /// The policy of its network has refused something. Told at a bounded rate.
    NetDenied {
        /// `tcp`, `udp` or `icmp`; `None`: a name was asked for.
        protocol: Option<&'static str>,
        /// Where to, if that is known.
        to: Option<SocketAddr>,
        /// The name that it was about, if there is one.
        name: Option<String>,
        /// Why, as a phrase.
        why: String,
        /// How many more were refused since the last one that was told.
        unreported: u64,
    },
    /// It was given another name.
    Renamed {
        /// The one before, if it had one.
        from: Option<String>,
    },
    /// What it is asked to be was changed.
    Updated,
    /// It was removed.
    Removed,
}

impl BoxEventKind {
    /// A stable lower-case name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Started { .. } => "started",
            Self::Health { .. } => "health",
            Self::ExecStarted { .. } => "exec_started",
            Self::ExecExited { .. } => "exec_exited",
            Self::ExecFailed { .. } => "exec_failed",
            Self::OutOfMemory { .. } => "oom",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Signalled { .. } => "signalled",
            Self::Exited { .. } => "exited",
            Self::NetDenied { .. } => "net_denied",
            Self::Renamed { .. } => "renamed",
            Self::Updated => "updated",
            Self::Removed => "removed",
        }
    }

    fn of(kind: EventKind) -> Option<Self> {
        Some(match kind {
            EventKind::Created => Self::Created,
            EventKind::Started { restarts } => Self::Started { restarts },
            EventKind::Health { status } => Self::Health { status },
            EventKind::ExecStarted { execution_id, command } => Self::ExecStarted { execution_id, command },
            EventKind::ExecExited { execution_id, exit } => {
                Self::ExecExited { execution_id, exit_code: exit_code(exit) }
            }
            EventKind::ExecFailed { execution_id, command, message } => {
                Self::ExecFailed { execution_id, command, message }
            }
            EventKind::Oom { total } => Self::OutOfMemory { total },
            EventKind::Paused => Self::Paused,
            EventKind::Resumed => Self::Resumed,
            EventKind::Signalled { signal } => Self::Signalled { signal },
            EventKind::Exited { exit, reason, error, restart_millis } => Self::Exited {
                exit_code: exit.map(exit_code),
                reason: reason.map(StopReason::of),
                error,
                restart_millis,
            },
            EventKind::NetDenied(denial) => Self::NetDenied {
                protocol: denial.protocol.map(|protocol| protocol.name()),
                to: denial.to,
                name: denial.host,
                why: denial.why,
                unreported: denial.unreported,
            },
            EventKind::Renamed { from } => Self::Renamed { from },
            EventKind::Updated => Self::Updated,
            EventKind::Removed => Self::Removed,
            _ => return None,
        })
    }
}

/// Which events are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventOptions {
    /// Those that happened since then, as far as they are kept; `None`: only those that happen from now on.
    pub since: Option<SystemTime>,
    /// Those that happened until then; events end once it has come. `None`: they have no end.
    pub until: Option<SystemTime>,
    /// Only those of the box with this id or name.
    pub target: Option<String>,
}

impl BoxliteRuntime {
    /// Subscribes to what happens to the boxes of this home, whichever program does it. About 8 MiB of it are kept.
    ///
    /// # Errors
    /// When the journal cannot be read or watched.
    pub fn events(&self, options: EventOptions) -> Result<EventStream> {
        let home = self.home_dir();
        let journal = self.inner().home.journal();
        let changes =
            Changes::of(home).map_err(|e| storage(format!("cannot watch {}", home.display()), e))?;
        let from_now = options.since.is_none().then(|| unix_nanos(SystemTime::now()));
        let mut stream = EventStream {
            changes,
            journal,
            open: VecDeque::new(),
            options,
            from_now: from_now.unwrap_or_default(),
        };
        stream.open().map_err(|e| stream.failed(e))?;
        Ok(stream)
    }
}

/// A subscription to events: see [`BoxliteRuntime::events`].
#[derive(Debug)]
pub struct EventStream {
    changes: Changes,
    journal: PathBuf,
    /// Files that are read, the one that is written to last.
    open: VecDeque<Lines>,
    options: EventOptions,
    from_now: u64,
}

impl EventStream {
    /// The next event, in the order in which they were written; `None` once the time that was asked for is over.
    ///
    /// # Errors
    /// When the journal cannot be read. The next call tries again.
    pub async fn next(&mut self) -> Result<Option<BoxEvent>> {
        loop {
            while let Some(event) = self.read().map_err(|e| self.failed(e))? {
                if let Some(event) = self.wanted(event) {
                    return Ok(Some(event));
                }
            }
            let left = match self.options.until {
                None => None,
                // An event that is written at this moment was not before it.
                Some(until) => match until.duration_since(SystemTime::now()) {
                    Ok(left) => Some(left),
                    Err(_) => return Ok(None),
                },
            };
            let changed = self.changes.next();
            let waited = match left {
                None => changed.await,
                Some(left) => tokio::time::timeout(left, changed).await.unwrap_or(Ok(())),
            };
            waited.map_err(|e| self.failed(e))?;
        }
    }

    fn failed(&self, error: io::Error) -> crate::Error {
        storage(format!("cannot read {}", self.journal.display()), error)
    }

    fn wanted(&self, event: Event) -> Option<BoxEvent> {
        let nanos = event.time_unix_nanos;
        let early = self.options.since.map_or(self.from_now, unix_nanos);
        let late = self.options.until.map_or(u64::MAX, unix_nanos);
        let target = self.options.target.as_deref();
        let meant =
            target.is_none_or(|target| event.box_id == target || event.name.as_deref() == Some(target));
        if nanos < early || nanos > late || !meant {
            return None;
        }
        Some(BoxEvent {
            time: time(nanos),
            box_id: event.box_id,
            name: event.name,
            image: event.image,
            kind: BoxEventKind::of(event.kind)?,
        })
    }

    /// Opens what is there and not open yet.
    fn open(&mut self) -> io::Result<()> {
        if self.open.is_empty() {
            self.open.extend(Lines::open(rotated(&self.journal))?);
        }
        let current = Lines::open(self.journal.clone())?;
        if let Some(current) = current
            && self.open.back().is_none_or(|last| last.identity != current.identity)
        {
            self.open.push_back(current);
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<Option<Event>> {
        loop {
            let Some(lines) = self.open.front_mut() else {
                self.open()?;
                if self.open.is_empty() {
                    return Ok(None);
                }
                continue;
            };
            while let Some(line) = lines.next()? {
                // What a full disk has cut off is no event.
                if let Some(event) = event::parse(&line) {
                    return Ok(Some(event));
                }
            }
            // A file that is not the last has all that it will have.
            if self.open.len() > 1 {
                self.open.pop_front();
                continue;
            }
            self.open()?;
            if self.open.len() == 1 {
                return Ok(None);
            }
        }
    }
}

/// The lines of a file that grows.
#[derive(Debug)]
struct Lines {
    file: File,
    identity: (u64, u64),
    /// Read, and not given out yet.
    rest: Vec<u8>,
}

impl Lines {
    /// `None` when there is no such file.
    fn open(path: PathBuf) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let meta = file.metadata()?;
        Ok(Some(Self { file, identity: (meta.dev(), meta.ino()), rest: Vec::new() }))
    }

    /// The next whole line; `None` when there is none yet. One that is longer than any event is thrown away.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.rest.drain(..=end).collect();
                line.pop();
                return Ok(Some(line));
            }
            if self.rest.len() > event::LINE {
                self.rest.clear();
            }
            let mut chunk = vec![0; CHUNK];
            match self.file.read(&mut chunk)? {
                0 => return Ok(None),
                length => self.rest.extend_from_slice(&chunk[..length]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::BoxliteOptions;
    use std::time::Duration;

    fn event(id: &str, nanos: u64) -> Event {
        Event {
            time_unix_nanos: nanos,
            box_id: id.into(),
            name: Some(format!("name-{id}")),
            image: "busybox".into(),
            kind: EventKind::Paused,
        }
    }

    fn now() -> u64 {
        unix_nanos(SystemTime::now())
    }

    #[tokio::test]
    async fn events_of_the_past_come_first_and_new_ones_as_they_happen() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = BoxliteRuntime::new(BoxliteOptions::with_home(folder.path().join("home"))).unwrap();
        let journal = runtime.inner().home.journal();
        event::append(&journal, &event("a", 5)).unwrap();
        let mut since = runtime
            .events(EventOptions { since: Some(SystemTime::UNIX_EPOCH), ..Default::default() })
            .unwrap();
        let mut from_now = runtime.events(EventOptions::default()).unwrap();
        assert_eq!(since.next().await.unwrap().unwrap().box_id, "a");
        let writer = tokio::task::spawn_blocking({
            let journal = journal.clone();
            move || {
                for number in 0..3 {
                    event::append(&journal, &event(&number.to_string(), now())).unwrap();
                    if number == 0 {
                        // As when it is full.
                        std::fs::rename(&journal, rotated(&journal)).unwrap();
                    }
                }
            }
        });
        for stream in [&mut since, &mut from_now] {
            for number in 0..3 {
                let next = tokio::time::timeout(Duration::from_secs(10), stream.next()).await.unwrap();
                assert_eq!(next.unwrap().unwrap().box_id, number.to_string());
            }
        }
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn events_of_one_box_until_a_time_have_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = BoxliteRuntime::new(BoxliteOptions::with_home(folder.path().join("home"))).unwrap();
        let journal = runtime.inner().home.journal();
        for id in ["a", "b", "a"] {
            event::append(&journal, &event(id, now())).unwrap();
        }
        let options = EventOptions {
            since: Some(SystemTime::UNIX_EPOCH),
            until: Some(SystemTime::now() + Duration::from_millis(50)),
            target: Some("name-a".into()),
        };
        let mut stream = runtime.events(options).unwrap();
        let mut seen = 0;
        while let Some(event) = stream.next().await.unwrap() {
            assert_eq!(event.box_id, "a");
            seen += 1;
        }
        assert_eq!(seen, 2);
    }
}
