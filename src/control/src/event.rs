//! What happens to boxes, and the journal that keeps it.
//!
//! The journal is a file of the home: one JSON document a line, the oldest first. Every process that changes a box appends
//! to it, so who reads it sees boxes of all programs, those that have gone too. It is moved aside to `….1` when it is
//! large; there are never more than two files.
//!
//! ```text
//!   writer:  open ▸ lock ▸ is it still the file of this name? ▸ append one line, in one write ▸ large? rename ▸ unlock
//!   reader:  ….1, then the file; follows it; a file that was moved aside is read to its end first
//! ```
//!
//! A writer that cannot get the lock in time writes all the same: an append is one write, and no line tears another.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::files::rotated;
use crate::health::HealthStatus;
use crate::network::Denial;
use crate::status::{EndReason, Exit};

/// The size at which the journal is moved aside, in bytes.
const ROTATE_AT: u64 = 4 << 20;
/// The longest line, in bytes: what is longer is cut before.
pub const LINE: usize = 16 << 10;
/// The most bytes of a command that an event keeps.
const COMMAND: usize = 4 << 10;
/// How often, and in what intervals, the lock is tried.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(1);

/// Something that happened to a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, nanoseconds since the Unix epoch.
    pub time_unix_nanos: u64,
    /// The box's id.
    pub box_id: String,
    /// Its name, when it has one.
    pub name: Option<String>,
    /// The image that it was created from.
    pub image: String,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// The box was created.
    Created,
    /// Its main command has started.
    Started {
        /// How often the restart policy had started it before, since its last start.
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
        /// Program and arguments, escaped and cut.
        command: Vec<String>,
    },
    /// A command in it has ended.
    ExecExited {
        /// The execution's id.
        execution_id: String,
        /// How.
        exit: Exit,
    },
    /// A command could not be started in it.
    ExecFailed {
        /// The execution's id.
        execution_id: String,
        /// Program and arguments, escaped and cut.
        command: Vec<String>,
        /// Why.
        message: String,
    },
    /// Processes in it were killed because memory had run out.
    Oom {
        /// How many since its machine started.
        total: u64,
    },
    /// Its virtual CPUs stand still.
    Paused,
    /// They go on.
    Resumed,
    /// Its main command was sent a signal.
    Signalled {
        /// A Linux number.
        signal: u32,
    },
    /// A run has ended.
    Exited {
        /// How the main command ended; `None` when that is not known or it was never started.
        exit: Option<Exit>,
        /// Why the box has stopped; `None` when it failed or starts again.
        reason: Option<EndReason>,
        /// Why it failed, when it did.
        error: Option<String>,
        /// After how many milliseconds it starts again, if it does.
        restart_millis: Option<u64>,
    },
    /// The network's policy has refused something. Told at a bounded rate.
    NetDenied(Denial),
    /// It has another name.
    Renamed {
        /// The one before.
        from: Option<String>,
    },
    /// Its settings were changed.
    Updated,
    /// It was removed.
    Removed,
}

impl EventKind {
    /// Its stable name, as it stands in the journal.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Started { .. } => "started",
            Self::Health { .. } => "health",
            Self::ExecStarted { .. } => "exec_started",
            Self::ExecExited { .. } => "exec_exited",
            Self::ExecFailed { .. } => "exec_failed",
            Self::Oom { .. } => "oom",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Signalled { .. } => "signalled",
            Self::Exited { .. } => "exited",
            Self::NetDenied(_) => "net_denied",
            Self::Renamed { .. } => "renamed",
            Self::Updated => "updated",
            Self::Removed => "removed",
        }
    }
}

/// Cuts a command to what an event keeps of it.
pub fn cut_command(command: Vec<String>) -> Vec<String> {
    let mut left = COMMAND;
    let mut cut = Vec::new();
    for mut word in command {
        if left == 0 {
            cut.push("…".to_owned());
            break;
        }
        if word.len() > left {
            let end = (0..=left).rev().find(|end| word.is_char_boundary(*end)).unwrap_or(0);
            word.truncate(end);
            word.push('…');
            left = 0;
        } else {
            left -= word.len();
        }
        cut.push(word);
    }
    cut
}

/// Appends an event to a journal. Blocks for a moment at most.
///
/// # Errors
/// When the journal cannot be written.
pub fn append(journal: &Path, event: &Event) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    if line.len() > LINE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the event is too long"));
    }
    for _ in 0..TRIES {
        let mut file = open(journal)?;
        if file.try_lock().is_err() {
            thread::sleep(PAUSE);
            continue;
        }
        // Another writer may have moved it aside between opening and locking.
        if !is_there(&file, journal) {
            continue;
        }
        file.write_all(&line)?;
        if file.metadata()?.len() > ROTATE_AT {
            fs::rename(journal, rotated(journal))?;
        }
        return Ok(());
    }
    open(journal)?.write_all(&line)
}

fn open(journal: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(journal)
}

fn is_there(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Reads one line of a journal; `None` for what is none, such as the rest of a write that was cut off by a full disk.
pub fn parse(line: &[u8]) -> Option<Event> {
    serde_json::from_slice(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn event(number: u64) -> Event {
        Event {
            time_unix_nanos: number,
            box_id: "0123456789ab".into(),
            name: None,
            image: "busybox".into(),
            kind: EventKind::ExecExited { execution_id: "e".into(), exit: Exit::Code(3) },
        }
    }

    fn lines(path: &Path) -> Vec<Event> {
        let bytes = fs::read(path).unwrap_or_default();
        bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| parse(line).unwrap())
            .collect()
    }

    #[test]
    fn a_denial_comes_back_beside_what_the_box_is() {
        let denial = Denial {
            protocol: None,
            to: Some("1.2.3.4:80".parse().unwrap()),
            host: Some("a.example".into()),
            why: "a rule denies it".into(),
            unreported: 3,
        };
        let told = Event { name: Some("box".into()), kind: EventKind::NetDenied(denial), ..event(1) };
        assert_eq!(parse(&serde_json::to_vec(&told).unwrap()), Some(told));
    }

    #[test]
    fn events_come_back_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let journal = folder.path().join("events.jsonl");
        for number in 0..3 {
            append(&journal, &event(number)).unwrap();
        }
        assert_eq!(lines(&journal), [event(0), event(1), event(2)]);
    }

    #[test]
    fn many_writers_lose_nothing_and_tear_nothing_while_the_journal_is_moved_aside() {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        // Nearly full, so that it is moved aside once and not twice in this test.
        let filler = Event { image: "x".repeat(8000), ..event(0) };
        let journal = folder.path().join("events.jsonl");
        while fs::metadata(&journal).map_or(0, |meta| meta.len()) < ROTATE_AT - (64 << 10) {
            append(&journal, &filler).unwrap();
        }
        let before = lines(&journal).len();
        let writers: Vec<_> = (0..8_u64)
            .map(|writer| {
                let journal = journal.clone();
                thread::spawn(move || {
                    for number in 0..100 {
                        append(&journal, &event(writer * 1000 + number)).unwrap();
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let aside = lines(&rotated(&journal));
        assert!(!aside.is_empty(), "it was not moved aside");
        let mut times: Vec<u64> =
            aside.iter().chain(&lines(&journal)).skip(before).map(|event| event.time_unix_nanos).collect();
        times.sort_unstable();
        let mut expected: Vec<u64> =
            (0..8).flat_map(|writer| (0..100).map(move |number| writer * 1000 + number)).collect();
        expected.sort_unstable();
        assert_eq!(times, expected);
    }

    #[test]
    fn a_writer_that_holds_the_lock_for_ever_holds_up_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let journal = folder.path().join("events.jsonl");
        let held = open(&journal).unwrap();
        held.lock().unwrap();
        append(&journal, &event(1)).unwrap();
        assert_eq!(lines(&journal), [event(1)]);
    }

    #[test]
    fn a_long_command_is_cut_between_characters() {
        let cut = cut_command(vec!["sh".into(), "ü".repeat(COMMAND), "more".into()]);
        assert_eq!(cut.len(), 3);
        assert!(cut[1].ends_with('…') && cut[1].len() < COMMAND + 4);
        assert_eq!(cut[2], "…");
    }
}
