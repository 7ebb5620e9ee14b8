//! When the guest has to be told the time again.
//!
//! A guest's clock follows the host's as long as both count alike. They part when the host's clock is set and when the host
//! sleeps, and drift apart a little in between. The host's clocks are looked at now and then, which costs nothing; the guest
//! is asked only when there is a reason.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// How often the host's clocks are looked at.
pub(super) const LOOK: Duration = Duration::from_secs(10);
/// After so many looks the guest is told in any case.
const LOOKS: u32 = 6;
/// A difference between two looks beyond this is a jump.
const JUMP: i128 = 20_000_000;

/// What was seen last.
#[derive(Debug, Default)]
pub(super) struct HostClock {
    offset: Option<i128>,
    looks: u32,
}

impl HostClock {
    /// Looks at the clocks, and says whether the guest is to be told the time.
    pub(super) fn look(&mut self) -> bool {
        let nanos = |clock| {
            clock_gettime(clock)
                .map(|time| i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec()))
        };
        // The monotonic clock, which guests count by, stands still while the host sleeps.
        match (nanos(ClockId::CLOCK_REALTIME), nanos(ClockId::CLOCK_MONOTONIC)) {
            (Ok(real), Ok(monotonic)) => self.seen(real - monotonic),
            _ => false,
        }
    }

    fn seen(&mut self, offset: i128) -> bool {
        let jumped = self.offset.is_some_and(|before| (offset - before).abs() > JUMP);
        self.offset = Some(offset);
        self.looks += 1;
        let due = jumped || self.looks >= LOOKS;
        if due {
            self.looks = 0;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_or_a_set_clock_is_noticed_at_the_next_look() {
        let mut clock = HostClock::default();
        assert!(!clock.seen(1_000_000_000));
        assert!(!clock.seen(1_000_100_000), "clocks are adjusted all the time");
        assert!(clock.seen(31_000_000_000));
        assert!(!clock.seen(31_000_000_000));
        assert!(clock.seen(1_000_000_000), "backwards, too");
    }

    #[test]
    fn the_guest_is_told_now_and_then_without_a_reason() {
        let mut clock = HostClock::default();
        let told = (0..60).filter(|_| clock.seen(5)).count();
        assert_eq!(told, 10);
        assert!(!HostClock::default().look());
    }
}
