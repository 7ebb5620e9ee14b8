//! The frequency of the time stamp counter.
//!
//! QEMU's software emulation passes the host's counter through. A guest that is told its frequency need not measure it,
//! which takes a good part of its boot.

use std::time::{Duration, Instant};

/// The least time to measure over: two readings are some 50 ns apart at worst, so this is good for 20 ppm, which is what
/// a quartz is good for.
const SPAN: Duration = Duration::from_millis(5);

/// A measurement under way: made as early as possible, finished when the result is needed.
#[derive(Debug)]
pub(crate) struct Measurement(Reading);

#[derive(Clone, Copy, Debug)]
struct Reading {
    ticks: u64,
    time: Instant,
}

impl Measurement {
    /// Reads clock and counter.
    pub(crate) fn start() -> Self {
        Self(read())
    }

    /// Reads them again, and waits for the rest of [`SPAN`] if there is one. `None` when the counter makes no sense as a
    /// clock.
    pub(crate) fn finish(self) -> Option<u32> {
        if let Some(rest) = SPAN.checked_sub(self.0.time.elapsed()) {
            std::thread::sleep(rest);
        }
        frequency(self.0, read())
    }
}

/// Ticks in a millisecond.
fn frequency(start: Reading, end: Reading) -> Option<u32> {
    let ticks = u128::from(end.ticks.checked_sub(start.ticks)?);
    let nanos = end.time.checked_duration_since(start.time)?.as_nanos();
    let khz = u32::try_from((ticks * 1_000_000).checked_div(nanos)?).ok()?;
    // A counter outside of this range is stopped, scaled or virtual.
    (100_000..20_000_000).contains(&khz).then_some(khz)
}

/// Clock and counter, as close together as a few tries get them: a try may be interrupted between the two.
fn read() -> Reading {
    let mut best: Option<(u64, Reading)> = None;
    for _ in 0..8 {
        let before = counter();
        let time = Instant::now();
        let apart = counter().wrapping_sub(before);
        if best.is_none_or(|(least, _)| apart < least) {
            best = Some((apart, Reading { ticks: before.wrapping_add(apart / 2), time }));
        }
    }
    best.map_or_else(|| Reading { ticks: counter(), time: Instant::now() }, |(_, reading)| reading)
}

#[cfg(target_arch = "x86_64")]
fn counter() -> u64 {
    // SAFETY: the instruction reads a counter and is part of the x86-64 architecture; Linux does not forbid it to processes
    // that have not asked for that.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Only x86 guests ask for it.
#[cfg(not(target_arch = "x86_64"))]
fn counter() -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_of_two_gigahertz_is_two_million_kilohertz() {
        let time = Instant::now();
        let start = Reading { ticks: 5, time };
        let end = Reading { ticks: 5 + 20_000_000, time: time + Duration::from_millis(10) };
        assert_eq!(frequency(start, end), Some(2_000_000));
    }

    #[test]
    fn a_counter_that_stands_still_or_runs_backwards_is_refused() {
        let time = Instant::now();
        let later = time + Duration::from_millis(10);
        let at = |ticks, time| Reading { ticks, time };
        assert_eq!(frequency(at(7, time), at(7, later)), None);
        assert_eq!(frequency(at(7, time), at(6, later)), None);
        assert_eq!(frequency(at(7, time), at(8, time)), None);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn two_measurements_agree() {
        let first = Measurement::start().finish().unwrap();
        let second = Measurement::start().finish().unwrap();
        assert!(first.abs_diff(second) < first / 1000, "{first} kHz, then {second} kHz");
    }
}
