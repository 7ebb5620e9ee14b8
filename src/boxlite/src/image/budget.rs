//! What all layers of an image share while they are converted: what is left of the limits, and the word to stop.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::error::{Cancelled, LayerError};
use super::limits::Limits;

/// Bytes that names and attributes may take on disk, for each byte that they may take in memory.
const SPOOLED: u64 = 4;
/// How often who waits for the permit looks whether to stop.
const LOOK: Duration = Duration::from_millis(50);

/// Shared by all threads of one build.
#[derive(Debug)]
pub(super) struct Budget<'a> {
    pub(super) limits: &'a Limits,
    entries: AtomicU64,
    bytes: AtomicU64,
    spooled: AtomicU64,
    stopped: AtomicBool,
    /// Whether somebody decompresses with a large window.
    large: Mutex<bool>,
    freed: Condvar,
}

impl<'a> Budget<'a> {
    pub(super) fn new(limits: &'a Limits) -> Self {
        Self {
            limits,
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            spooled: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            large: Mutex::new(false),
            freed: Condvar::new(),
        }
    }

    /// Counts an entry.
    pub(super) fn entry(&self) -> Result<(), LayerError> {
        let limit = self.limits.entries;
        within(&self.entries, 1, limit, "entries", limit)
    }

    /// Counts uncompressed bytes.
    pub(super) fn bytes(&self, count: u64) -> Result<(), LayerError> {
        let limit = self.limits.bytes;
        within(&self.bytes, count, limit, "uncompressed bytes", limit)
    }

    /// Counts bytes of names and attributes that wait to be taken into memory.
    pub(super) fn spool(&self, count: u64) -> Result<(), LayerError> {
        let limit = self.limits.memory;
        let what = "bytes of memory for names and attributes";
        within(&self.spooled, count, limit.saturating_mul(SPOOLED), what, limit)
    }

    /// Uncompressed bytes so far, of all layers.
    pub(super) fn used_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Makes all threads end as soon as they look.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Stops when dropped.
    pub(super) fn stop_on_drop(&self) -> StopOnDrop<'_> {
        StopOnDrop(self)
    }

    /// Whether to go on.
    pub(super) fn going(&self) -> Result<(), Cancelled> {
        if self.stopped.load(Ordering::Relaxed) { Err(Cancelled) } else { Ok(()) }
    }

    /// Waits until nobody else decompresses with a large window. Whoever has the permit waits for nothing but its blob.
    pub(super) fn large_window(&self) -> Result<LargeWindow<'_>, Cancelled> {
        let mut taken = self.large.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            self.going()?;
            if !*taken {
                *taken = true;
                return Ok(LargeWindow(self));
            }
            taken = match self.freed.wait_timeout(taken, LOOK) {
                Ok((taken, _)) => taken,
                Err(error) => error.into_inner().0,
            };
        }
    }
}

/// Makes all threads end when dropped.
#[derive(Debug)]
pub(super) struct StopOnDrop<'a>(&'a Budget<'a>);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// The permit to decompress with a large window, given back when dropped.
#[derive(Debug)]
pub(super) struct LargeWindow<'a>(&'a Budget<'a>);

impl Drop for LargeWindow<'_> {
    fn drop(&mut self) {
        *self.0.large.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.freed.notify_one();
    }
}

fn within(
    counter: &AtomicU64,
    count: u64,
    most: u64,
    what: &'static str,
    limit: u64,
) -> Result<(), LayerError> {
    let before = counter.fetch_add(count, Ordering::Relaxed);
    if before.saturating_add(count) > most { Err(LayerError::Limit { what, limit }) } else { Ok(()) }
}
