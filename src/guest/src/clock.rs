//! The wall clock. The host's is right.

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

/// Nearer than this to the host's, the clock is left alone, in nanoseconds: the host's word takes a while to arrive, and
/// a clock that is set jumps for every program of the container.
const TOLERANCE: u64 = 5_000_000;
const SECOND: u64 = 1_000_000_000;

/// What a comparison with the host's clock gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compared {
    /// By how much this clock was ahead of the host's, in nanoseconds; negative when it was behind.
    pub ahead: i64,
    /// It was set.
    pub set: bool,
}

/// Sets the clock to this time since the Unix epoch.
///
/// # Errors
/// What the system says; `EINVAL` for a time that is beyond what the kernel counts to.
pub fn set(unix_nanos: u64) -> nix::Result<()> {
    let field = |value: u64| i64::try_from(value).map_err(|_| Errno::EINVAL);
    let time = TimeSpec::new(field(unix_nanos / SECOND)?, field(unix_nanos % SECOND)?);
    clock_settime(ClockId::CLOCK_REALTIME, time)
}

/// Compares the clock with the host's, and sets it if it is off.
///
/// # Errors
/// As with [`set`].
pub fn adjust(unix_nanos: u64) -> nix::Result<Compared> {
    let compared = compare(clock_gettime(ClockId::CLOCK_REALTIME)?, unix_nanos);
    if compared.set {
        set(unix_nanos)?;
    }
    Ok(compared)
}

/// How the two clocks differ, and whether this one is to be set.
fn compare(here: TimeSpec, host: u64) -> Compared {
    let here = i128::from(here.tv_sec()) * i128::from(SECOND) + i128::from(here.tv_nsec());
    let ahead = here - i128::from(host);
    let bound = if ahead < 0 { i64::MIN } else { i64::MAX };
    Compared { ahead: i64::try_from(ahead).unwrap_or(bound), set: ahead.unsigned_abs() > TOLERANCE.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_nearly_right_is_left_alone() {
        let here = TimeSpec::new(1_000, 500_000_000);
        let host = 1_000_500_000_000;
        for (off, set) in [(0, false), (5_000_000, false), (5_000_001, true), (3_600_000_000_000, true)] {
            let (behind, ahead) = (compare(here, host + off), compare(here, host.saturating_sub(off)));
            assert_eq!((behind.set, ahead.set), (set, set), "{off}");
            assert!(behind.ahead <= 0 && ahead.ahead >= 0, "{off}");
        }
        assert_eq!(compare(here, host + 7), Compared { ahead: -7, set: false });
    }

    #[test]
    fn clocks_however_far_apart_can_be_compared() {
        let first = compare(TimeSpec::new(0, 0), u64::MAX);
        assert_eq!(first, Compared { ahead: i64::MIN, set: true });
        let last = compare(TimeSpec::new(i64::MAX, 999_999_999), 1);
        assert_eq!(last, Compared { ahead: i64::MAX, set: true });
    }
}
