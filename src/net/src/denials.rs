//! What the policy refuses, told within bounds: a guest can be refused for ever.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use boxlite_control::{Denial, NetworkProtocol};

/// Denials that may be told at once, and how many of them are allowed again in a second.
const BURST: f64 = 50.0;
const PER_SECOND: f64 = 10.0;
/// The most bytes of a name that are told.
const NAME: usize = 260;

/// Counts denials and tells of them.
#[derive(Debug)]
pub(crate) struct Denials {
    to: SyncSender<Denial>,
    budget: Mutex<Budget>,
    total: AtomicU64,
}

#[derive(Debug)]
struct Budget {
    left: f64,
    at: Instant,
    unreported: u64,
}

impl Denials {
    pub(crate) fn new(to: SyncSender<Denial>) -> Self {
        let budget = Mutex::new(Budget { left: BURST, at: Instant::now(), unreported: 0 });
        Self { to, budget, total: AtomicU64::new(0) }
    }

    /// How many there were.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Something was refused.
    pub(crate) fn tell(
        &self,
        protocol: Option<NetworkProtocol>,
        to: Option<SocketAddr>,
        name: Option<&str>,
        why: &'static str,
    ) {
        self.total.fetch_add(1, Ordering::Relaxed);
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let since = now.saturating_duration_since(budget.at).as_secs_f64();
        budget.left = (budget.left + since * PER_SECOND).min(BURST);
        budget.at = now;
        if budget.left < 1.0 {
            budget.unreported += 1;
            return;
        }
        let name = name.map(|name| name.escape_default().take(NAME).collect());
        let denial = Denial { protocol, to, host: name, why: why.to_owned(), unreported: budget.unreported };
        match self.to.try_send(denial) {
            Ok(()) => {
                budget.left -= 1.0;
                budget.unreported = 0;
            }
            // Nobody reads fast enough, or at all.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => budget.unreported += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    #[test]
    fn a_flood_is_told_within_bounds_and_counted() {
        let (sender, receiver) = sync_channel(1000);
        let denials = Denials::new(sender);
        for _ in 0..10_000 {
            denials.tell(None, None, Some("evil\n.example"), "a rule denies it");
        }
        assert_eq!(denials.total(), 10_000);
        let told: Vec<_> = receiver.try_iter().collect();
        assert!((50..200).contains(&told.len()), "{}", told.len());
        assert_eq!(told[0].host.as_deref(), Some("evil\\n.example"));
    }

    #[test]
    fn what_nobody_reads_is_told_later_as_a_number() {
        let (sender, receiver) = sync_channel(1);
        let denials = Denials::new(sender);
        for _ in 0..3 {
            denials.tell(None, None, None, "no rule allows it");
        }
        assert_eq!(receiver.recv().unwrap().unreported, 0);
        denials.tell(None, None, None, "no rule allows it");
        assert_eq!(receiver.recv().unwrap().unreported, 2);
    }
}
