//! What happens to the box, told to the home's journal.
//!
//! Part of it comes from the guest, which could tell without end: such events have a budget, and what goes beyond it is
//! counted and not written.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Instant;

use boxlite_control::event;
use boxlite_control::{Event, EventKind, MonitorConfig};

use super::unix_nanos;

/// Events of the guest that may come at once, and how many of them are allowed again in a second.
const BURST: f64 = 1000.0;
const PER_SECOND: f64 = 50.0;

/// The one who tells.
#[derive(Debug)]
pub(super) struct Teller {
    journal: PathBuf,
    box_id: String,
    image: String,
    name: RefCell<Option<String>>,
    budget: RefCell<Budget>,
}

impl Teller {
    /// Tells of this box.
    pub(super) fn new(config: &MonitorConfig) -> Self {
        Self {
            journal: config.journal.clone(),
            box_id: config.box_id.clone(),
            image: config.image.clone(),
            name: RefCell::new(config.name.clone()),
            budget: RefCell::new(Budget { left: BURST, at: Instant::now(), dropped: 0 }),
        }
    }

    /// The box has another name from now on.
    pub(super) fn rename(&self, name: String) {
        *self.name.borrow_mut() = Some(name);
    }

    /// Tells what this monitor did or saw itself.
    pub(super) fn tell(&self, kind: EventKind) {
        let told = Event {
            time_unix_nanos: unix_nanos(),
            box_id: self.box_id.clone(),
            name: self.name.borrow().clone(),
            image: self.image.clone(),
            kind,
        };
        if let Err(error) = event::append(&self.journal, &told) {
            tracing::warn!(%error, event = told.kind.name(), "an event is not in the journal");
        }
    }

    /// Tells what the guest says that has happened.
    pub(super) fn tell_for_the_guest(&self, kind: EventKind) {
        let allowed = self.budget.borrow_mut().take(Instant::now());
        match allowed {
            Some(0) => self.tell(kind),
            Some(dropped) => {
                // At the budget's rate at most, and shown to who looks for it: a guest can cause it for ever.
                tracing::debug!(dropped, "the guest told more events than are kept");
                self.tell(kind);
            }
            None => {}
        }
    }
}

/// A bucket of tokens.
#[derive(Debug)]
struct Budget {
    left: f64,
    at: Instant,
    dropped: u64,
}

impl Budget {
    /// Takes one. `Some`: it is there, and how many were not since the last one that was.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * PER_SECOND).min(BURST);
        self.at = now;
        if self.left < 1.0 {
            self.dropped += 1;
            return None;
        }
        self.left -= 1.0;
        Some(std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_guest_that_tells_without_end_is_heard_within_bounds_and_counted() {
        let start = Instant::now();
        let mut budget = Budget { left: BURST, at: start, dropped: 0 };
        let heard = (0..10_000).filter(|_| budget.take(start).is_some()).count();
        assert_eq!(heard, 1000);
        assert_eq!(budget.take(start + Duration::from_secs(1)), Some(9000));
        let heard = (0..10_000).filter(|_| budget.take(start + Duration::from_secs(1)).is_some()).count();
        assert_eq!(heard, 49);
    }
}
