//! Whether a box is well: how it is asked, and what came of it.

use serde::{Deserialize, Serialize};

/// The most probes that are remembered, as in Docker.
pub const PROBES: usize = 5;
/// The most output of a probe that is remembered, in bytes, as in Docker.
pub const PROBE_OUTPUT: usize = 4 << 10;

/// How a box is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthSpec {
    /// The command that ends with 0 when all is well; empty: the agent in the box answers.
    pub command: Vec<String>,
    /// From the end of one probe to the start of the next, in milliseconds.
    pub interval_millis: u64,
    /// How long a probe may take, in milliseconds.
    pub timeout_millis: u64,
    /// This many failures in a row make the box unhealthy.
    pub retries: u32,
    /// Failures in this time after the start count only once a probe has succeeded, in milliseconds.
    pub start_period_millis: u64,
    /// As the interval, during the start period, in milliseconds.
    pub start_interval_millis: u64,
}

/// What is known of a box's health.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// The verdict.
    pub status: HealthStatus,
    /// How many probes have failed since one has succeeded.
    pub failing_streak: u32,
    /// The last probes, the oldest first, at most [`PROBES`].
    pub probes: Vec<HealthProbe>,
}

/// A verdict on a box's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// No verdict yet.
    Starting,
    /// The last probe succeeded.
    Healthy,
    /// Too many probes have failed in a row.
    Unhealthy,
}

impl HealthStatus {
    /// A stable lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthProbe {
    /// When it began, nanoseconds since the Unix epoch.
    pub started_unix_nanos: u64,
    /// When it ended.
    pub ended_unix_nanos: u64,
    /// The exit code of its command as a shell reports it, -1 when it did not come to one. 0 is good.
    pub exit_code: i32,
    /// What it wrote, or why there is no exit code; escaped, at most [`PROBE_OUTPUT`] bytes.
    pub output: String,
}

impl Default for Health {
    fn default() -> Self {
        Self { status: HealthStatus::Starting, failing_streak: 0, probes: Vec::new() }
    }
}

impl Health {
    /// Takes one more probe in. `in_start_period`: the box has not been up for its start period yet.
    pub fn take(&mut self, probe: HealthProbe, retries: u32, in_start_period: bool) {
        if probe.exit_code == 0 {
            self.failing_streak = 0;
            self.status = HealthStatus::Healthy;
        } else if !(in_start_period && self.status == HealthStatus::Starting) {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= retries.max(1) {
                self.status = HealthStatus::Unhealthy;
            }
        }
        if self.probes.len() >= PROBES {
            self.probes.remove(0);
        }
        self.probes.push(probe);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(exit_code: i32) -> HealthProbe {
        HealthProbe { started_unix_nanos: 1, ended_unix_nanos: 2, exit_code, output: String::new() }
    }

    #[test]
    fn a_box_is_unhealthy_after_so_many_failures_in_a_row_and_healthy_after_one_success() {
        let mut health = Health::default();
        for (exit, status, streak) in [
            (1, HealthStatus::Starting, 1),
            (1, HealthStatus::Starting, 2),
            (-1, HealthStatus::Unhealthy, 3),
            (0, HealthStatus::Healthy, 0),
            (7, HealthStatus::Healthy, 1),
        ] {
            health.take(probe(exit), 3, false);
            assert_eq!((health.status, health.failing_streak), (status, streak));
        }
    }

    #[test]
    fn failures_of_the_start_period_count_only_after_the_first_success() {
        let mut health = Health::default();
        for _ in 0..10 {
            health.take(probe(1), 1, true);
            assert_eq!((health.status, health.failing_streak), (HealthStatus::Starting, 0));
        }
        assert_eq!(health.probes.len(), PROBES);
        health.take(probe(0), 1, true);
        health.take(probe(1), 1, true);
        assert_eq!(health.status, HealthStatus::Unhealthy);
    }
}
