//! How a box is asked whether it is well, and what it answered.

use std::time::{Duration, SystemTime};

pub use boxlite_control::HealthStatus;
use boxlite_control::{Health, HealthSpec};

use crate::error::{Error, ErrorKind, Result};
use crate::image::ImageHealthCheck;
use crate::info::time;

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// As Docker: a probe cannot be started more often.
const SHORTEST: Duration = Duration::from_millis(1);

/// How the health of a box is checked. What is `None` is taken from the image, or else has Docker's default. A box whose
/// image has no check, and for which none is asked for here, has no health.
///
/// ```
/// use boxlite::HealthCheckOptions;
///
/// let check = HealthCheckOptions::shell("wget -qO- localhost:8080/healthz");
/// let agent = HealthCheckOptions { agent: true, ..HealthCheckOptions::default() };
/// # let _used = (check, agent);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthCheckOptions {
    /// The box has no health, whatever its image says.
    pub disable: bool,
    /// Program and arguments; all is well when it ends with 0.
    pub command: Option<Vec<String>>,
    /// Without a command: the box is well when its agent answers.
    pub agent: bool,
    /// From the end of one probe to the start of the next, at least 1 ms. Default 30 s.
    pub interval: Option<Duration>,
    /// How long a probe may take, at least 1 ms. Default 30 s.
    pub timeout: Option<Duration>,
    /// So many failures in a row make the box unhealthy, at least 1. Default 3.
    pub retries: Option<u32>,
    /// In this time after the start failures do not count until a probe has succeeded. Default 0.
    pub start_period: Option<Duration>,
    /// The interval during the start period, at least 1 ms. Default 5 s.
    pub start_interval: Option<Duration>,
}

impl HealthCheckOptions {
    /// A check by a line for `/bin/sh`.
    pub fn shell(line: impl Into<String>) -> Self {
        Self { command: Some(shell(line.into())), ..Self::default() }
    }

    /// Refuses what cannot be right.
    pub(crate) fn validate(&self) -> Result<()> {
        let invalid = |message: String| Err(Error::new(ErrorKind::InvalidArgument, message));
        if self.command.as_ref().is_some_and(|command| command.first().is_none_or(String::is_empty)) {
            return invalid("the command of the health check is empty".into());
        }
        if self.command.iter().flatten().any(|word| word.contains('\0')) {
            return invalid("the command of the health check contains a NUL character".into());
        }
        let times = [
            ("interval", self.interval),
            ("time-out", self.timeout),
            ("start interval", self.start_interval),
        ];
        for (what, time) in times {
            if time.is_some_and(|time| time < SHORTEST) {
                return invalid(format!("the {what} of the health check is less than {SHORTEST:?}"));
            }
        }
        if self.retries == Some(0) {
            return invalid("a health check has at least 1 retry".into());
        }
        Ok(())
    }

    /// What is checked in the end.
    pub(crate) fn resolve(&self, image: Option<&ImageHealthCheck>) -> Result<Option<HealthSpec>> {
        if self.disable {
            return Ok(None);
        }
        let (command, image) = match (&self.command, image) {
            (Some(command), image) => (command.clone(), image),
            (None, _) if self.agent => (Vec::new(), None),
            (None, Some(image)) => match of_image(image)? {
                Some(command) => (command, Some(image)),
                None => return Ok(None),
            },
            (None, None) => return Ok(None),
        };
        let said = |nanos: fn(&ImageHealthCheck) -> u64| {
            image.map(nanos).filter(|nanos| *nanos > 0).map(Duration::from_nanos)
        };
        let millis =
            |asked: Option<Duration>, image: Option<Duration>, default: Duration, least: Duration| {
                let time = asked.or(image).unwrap_or(default).max(least);
                u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
            };
        let retries = image.map(|image| image.retries).filter(|retries| *retries > 0);
        Ok(Some(HealthSpec {
            command,
            interval_millis: millis(self.interval, said(|i| i.interval_nanos), INTERVAL, SHORTEST),
            timeout_millis: millis(self.timeout, said(|i| i.timeout_nanos), TIMEOUT, SHORTEST),
            retries: self.retries.or(retries).unwrap_or(RETRIES),
            start_period_millis: millis(
                self.start_period,
                said(|i| i.start_period_nanos),
                Duration::ZERO,
                Duration::ZERO,
            ),
            start_interval_millis: millis(
                self.start_interval,
                said(|i| i.start_interval_nanos),
                START_INTERVAL,
                SHORTEST,
            ),
        }))
    }
}

/// The command of Docker's `HEALTHCHECK`; `None` for one that switches the check off.
fn of_image(image: &ImageHealthCheck) -> Result<Option<Vec<String>>> {
    let bad = |what: &str| {
        Err(Error::new(ErrorKind::Image, format!("the image's health check {what}"))
            .with_hint("give another one, or none with --no-healthcheck"))
    };
    match image.test.split_first() {
        None => Ok(None),
        Some((kind, _)) if kind == "NONE" => Ok(None),
        Some((kind, [line])) if kind == "CMD-SHELL" => Ok(Some(shell(line.clone()))),
        Some((kind, command)) if kind == "CMD" && !command.is_empty() => Ok(Some(command.to_vec())),
        Some((kind, _)) if kind == "CMD" || kind == "CMD-SHELL" => bad("has no command"),
        Some((kind, _)) => bad(&format!("is of an unknown kind `{}`", kind.escape_debug())),
    }
}

fn shell(line: String) -> Vec<String> {
    vec!["/bin/sh".into(), "-c".into(), line]
}

/// What the health check of a running box has found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HealthReport {
    /// The verdict.
    pub status: HealthStatus,
    /// How many probes have failed since one has succeeded.
    pub failing_streak: u32,
    /// The last probes, the oldest first, at most 5.
    pub probes: Vec<HealthProbe>,
}

/// One probe of a health check.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HealthProbe {
    /// When it began.
    pub started_at: SystemTime,
    /// When it ended.
    pub ended_at: SystemTime,
    /// Its exit code as a shell reports it; -1 when it did not come to one, as after its time-out.
    pub exit_code: i32,
    /// What it wrote, at most 4 KiB, or why it has no exit code. Control characters are escaped.
    pub output: String,
}

impl HealthReport {
    pub(crate) fn new(health: &Health) -> Self {
        let probes = health.probes.iter().map(|probe| HealthProbe {
            started_at: time(probe.started_unix_nanos),
            ended_at: time(probe.ended_unix_nanos),
            exit_code: probe.exit_code,
            output: probe.output.clone(),
        });
        Self { status: health.status, failing_streak: health.failing_streak, probes: probes.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(test: &[&str]) -> ImageHealthCheck {
        let test = test.iter().map(|word| (*word).to_owned()).collect();
        ImageHealthCheck { test, interval_nanos: 7_000_000_000, ..Default::default() }
    }

    #[test]
    fn the_images_check_counts_where_nothing_else_is_said() {
        let spec =
            HealthCheckOptions::default().resolve(Some(&image(&["CMD", "check", "-q"]))).unwrap().unwrap();
        assert_eq!(spec.command, ["check", "-q"]);
        assert_eq!((spec.interval_millis, spec.timeout_millis, spec.retries), (7000, 30_000, 3));
        let spec =
            HealthCheckOptions::default().resolve(Some(&image(&["CMD-SHELL", "a | b"]))).unwrap().unwrap();
        assert_eq!(spec.command, ["/bin/sh", "-c", "a | b"]);
        for none in [&["NONE"][..], &[]] {
            assert_eq!(HealthCheckOptions::default().resolve(Some(&image(none))).unwrap(), None);
        }
        assert_eq!(HealthCheckOptions::default().resolve(None).unwrap(), None);
    }

    #[test]
    fn what_is_asked_for_comes_before_what_the_image_says() {
        let asked =
            HealthCheckOptions { interval: Some(Duration::from_secs(1)), ..HealthCheckOptions::shell("x") };
        let spec = asked.resolve(Some(&image(&["CMD", "check"]))).unwrap().unwrap();
        assert_eq!((spec.command.last().unwrap().as_str(), spec.interval_millis), ("x", 1000));
        let off = HealthCheckOptions { disable: true, ..HealthCheckOptions::shell("x") };
        assert_eq!(off.resolve(Some(&image(&["CMD", "check"]))).unwrap(), None);
        let agent = HealthCheckOptions { agent: true, ..Default::default() };
        assert_eq!(agent.resolve(None).unwrap().unwrap().command, [""; 0]);
    }

    #[test]
    fn what_cannot_be_checked_is_refused() {
        for test in [&["CMD"][..], &["CMD-SHELL"], &["CMD-SHELL", "a", "b"], &["EXEC", "a"]] {
            let error = HealthCheckOptions::default().resolve(Some(&image(test))).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Image);
        }
        for bad in [
            HealthCheckOptions { command: Some(Vec::new()), ..Default::default() },
            HealthCheckOptions { retries: Some(0), ..Default::default() },
            HealthCheckOptions { timeout: Some(Duration::ZERO), ..Default::default() },
        ] {
            assert_eq!(bad.validate().unwrap_err().kind(), ErrorKind::InvalidArgument);
        }
    }
}
