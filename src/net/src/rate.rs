//! How fast a box may send or receive: a bucket of tokens, one a byte.

use std::time::{Duration, Instant};

/// How much may be saved up: what is allowed in a tenth of a second, and at least one of the longest frames.
const SAVED: f64 = 0.1;
const LEAST: f64 = 70_000.0;

/// A bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// Bytes a second; `None`: there is no limit.
    rate: Option<f64>,
    left: f64,
    at: Instant,
}

impl Bucket {
    /// A full one, for so many kilobits (1000 bits) a second; 0: without a limit.
    pub(crate) fn new(kbps: u64, now: Instant) -> Self {
        // A rate that a float does not hold exactly is none that anybody could measure.
        #[allow(clippy::cast_precision_loss, reason = "rates are far below the precision of a float")]
        let rate = (kbps > 0).then_some(kbps as f64 * 125.0);
        Self { rate, left: rate.map_or(0.0, burst), at: now }
    }

    /// Whether anything may go now. It may be more than there are tokens: the next ones pay for it.
    pub(crate) fn is_open(&mut self, now: Instant) -> bool {
        let Some(rate) = self.rate else { return true };
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * rate).min(burst(rate));
        self.at = now;
        self.left > 0.0
    }

    /// So many bytes have gone.
    pub(crate) fn take(&mut self, bytes: u64) {
        if self.rate.is_some() {
            #[allow(
                clippy::cast_precision_loss,
                reason = "a read or a write is far below the precision of a float"
            )]
            let bytes = bytes as f64;
            self.left -= bytes;
        }
    }

    /// How long it takes until it is open, when it was not.
    pub(crate) fn wait(&self) -> Option<Duration> {
        let rate = self.rate.filter(|_| self.left <= 0.0)?;
        Some(Duration::from_secs_f64((-self.left / rate).clamp(0.001, 60.0)))
    }
}

fn burst(rate: f64) -> f64 {
    (rate * SAVED).max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_a_long_time_the_rate_is_what_was_asked_for() {
        let start = Instant::now();
        let mut bucket = Bucket::new(8000, start);
        let (mut now, mut gone) = (start, 0);
        while now < start + Duration::from_secs(10) {
            if bucket.is_open(now) {
                bucket.take(65_536);
                gone += 65_536;
            } else {
                now += bucket.wait().unwrap();
            }
        }
        // 8000 kbit/s are a megabyte a second; the beginning comes on top.
        assert!((10_000_000..10_300_000).contains(&gone), "{gone}");
    }

    #[test]
    fn without_a_limit_it_is_always_open() {
        let mut bucket = Bucket::new(0, Instant::now());
        bucket.take(u64::MAX);
        assert!(bucket.is_open(Instant::now()) && bucket.wait().is_none());
    }
}
