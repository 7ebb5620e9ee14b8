//! When a request is sent again, and how long anything may take. Pure policy.

use std::time::Duration;

use super::error::{Failure, Retry};

/// How patient the client is. Every wait has its limit here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// Until a connection stands, TLS included.
    pub(crate) connect: Duration,
    /// From the request to the head of the response, on a connection that stands.
    pub(crate) headers: Duration,
    /// In which [`Self::stall_bytes`] of a body must arrive.
    pub(crate) stall: Duration,
    /// What a body must bring in [`Self::stall`], lest a trickle hold the client forever.
    pub(crate) stall_bytes: u64,
    /// For the whole body of a document.
    pub(crate) document: Duration,
    /// For a helper of credentials.
    pub(crate) helper: Duration,
    /// How often a request is tried.
    pub(crate) tries: u32,
    /// How often a request to a mirror is tried.
    pub(crate) mirror_tries: u32,
    /// Before the second try. Doubled each time.
    pub(crate) first_delay: Duration,
    /// The longest delay of our own.
    pub(crate) longest_delay: Duration,
    /// The longest delay that a registry may ask for. Who asks for more gets no other try.
    pub(crate) longest_asked: Duration,
    /// Bytes of a blob behind which the tries are counted anew: a blob takes at most `tries` connections for each of
    /// these steps, however little a connection brings.
    pub(crate) progress: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            headers: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            stall_bytes: 4 << 10,
            document: Duration::from_secs(120),
            helper: Duration::from_secs(30),
            tries: 5,
            mirror_tries: 2,
            first_delay: Duration::from_millis(250),
            longest_delay: Duration::from_secs(8),
            longest_asked: Duration::from_secs(60),
            progress: 1 << 20,
        }
    }
}

/// The tries of one request.
#[derive(Debug)]
pub(super) struct Tries {
    left: u32,
    next: Duration,
    /// Position in the blob from which progress is measured.
    mark: u64,
}

impl Tries {
    pub(super) fn new(timeouts: &Timeouts, most: u32, position: u64) -> Self {
        Self { left: most, next: timeouts.first_delay, mark: position }
    }

    /// What to do after a failure at this position of a blob: the delay before the next try, or `None` to give up.
    /// `random` spreads the delays of many clients.
    pub(super) fn failed(
        &mut self,
        timeouts: &Timeouts,
        most: u32,
        position: u64,
        failure: &Failure,
        random: u32,
    ) -> Option<Duration> {
        if position >= self.mark.saturating_add(timeouts.progress) {
            *self = Self::new(timeouts, most, position);
        }
        self.left = self.left.saturating_sub(1);
        let delay = match failure.retry {
            Retry::Never => return None,
            Retry::After(asked) if asked > timeouts.longest_asked => return None,
            Retry::After(asked) => asked,
            Retry::Soon => {
                let whole = self.next.min(timeouts.longest_delay);
                whole / 2 + (whole / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
            }
        };
        self.next = self.next.saturating_mul(2).min(timeouts.longest_delay);
        (self.left > 0).then_some(delay)
    }
}

/// Different for each call; no secret.
pub(super) fn random() -> u32 {
    use std::hash::BuildHasher;
    // The keys of each hasher come from the system's random numbers.
    let hash = std::collections::hash_map::RandomState::new().hash_one(0);
    u32::try_from(hash >> 32).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::error::RegistryErrorKind;

    fn failure(retry: Retry) -> Failure {
        Failure::new(RegistryErrorKind::Server(500), "x").retry(retry)
    }

    fn delays(retry: Retry, random: u32) -> Vec<Duration> {
        let timeouts = Timeouts { tries: 9, ..Timeouts::default() };
        let mut tries = Tries::new(&timeouts, timeouts.tries, 0);
        let mut next = || tries.failed(&timeouts, timeouts.tries, 0, &failure(retry), random);
        std::iter::from_fn(&mut next).take(20).collect()
    }

    #[test]
    fn delays_double_up_to_the_longest_and_then_end() {
        let millis: Vec<_> = delays(Retry::Soon, u32::MAX).iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [250, 500, 1000, 2000, 4000, 8000, 8000, 8000]);
    }

    #[test]
    fn chance_shortens_a_delay_by_at_most_half() {
        let millis: Vec<_> = delays(Retry::Soon, 0).iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [125, 250, 500, 1000, 2000, 4000, 4000, 4000]);
        let drawn: std::collections::HashSet<_> = (0..100).map(|_| random()).collect();
        assert!(drawn.len() > 90);
    }

    #[test]
    fn a_registry_may_ask_for_a_minute_and_no_more() {
        assert_eq!(delays(Retry::After(Duration::from_secs(60)), 7), [Duration::from_secs(60); 8]);
        assert!(delays(Retry::After(Duration::from_secs(61)), 7).is_empty());
        assert!(delays(Retry::Never, 7).is_empty());
    }

    #[test]
    fn tries_are_counted_anew_after_real_progress_alone() {
        let timeouts = Timeouts { tries: 3, progress: 100, ..Timeouts::default() };
        let mut tries = Tries::new(&timeouts, timeouts.tries, 0);
        let mut at =
            |position| tries.failed(&timeouts, timeouts.tries, position, &failure(Retry::Soon), 0).is_some();
        assert!(at(1) && at(2) && at(100), "a step of 100 bytes counts");
        assert!(at(199) && !at(199), "99 bytes do not");
    }
}
