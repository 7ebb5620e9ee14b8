//! Whether and when a box whose run has ended is run again.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The first pause before a restart. Each one after it is twice as long.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(60);
/// A run that lasted this long was a good one: the next pause is the first again.
const GOOD_RUN: Duration = Duration::from_secs(10);

/// When a box is run again, in Docker's words. What somebody stops stays stopped under each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// When the main command has ended with another code than 0 or by a signal, or the machine was lost.
    OnFailure {
        /// At most this often; `None`: always.
        most: Option<u32>,
    },
    /// Always.
    Always,
    /// Always. The two differ where a daemon starts boxes when the host boots, and there is none.
    UnlessStopped,
}

impl RestartPolicy {
    /// Whether another run follows one that has ended so, after this many restarts.
    pub fn wants(self, failed: bool, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure { most } => failed && most.is_none_or(|most| restarts < most),
            Self::Always | Self::UnlessStopped => true,
        }
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::OnFailure { most: None } => f.write_str("on-failure"),
            Self::OnFailure { most: Some(most) } => write!(f, "on-failure:{most}"),
            Self::Always => f.write_str("always"),
            Self::UnlessStopped => f.write_str("unless-stopped"),
        }
    }
}

/// A text that names no restart policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no restart policy: use no, on-failure, on-failure:N, always or unless-stopped", .0.escape_debug())]
pub struct BadRestartPolicy(String);

impl FromStr for RestartPolicy {
    type Err = BadRestartPolicy;

    fn from_str(text: &str) -> Result<Self, BadRestartPolicy> {
        let bad = || BadRestartPolicy(text.to_owned());
        match text.split_once(':') {
            Some(("on-failure", most)) => {
                let most = most.bytes().all(|byte| byte.is_ascii_digit()).then(|| most.parse().ok());
                // Docker takes a limit of 0 for none.
                let most: u32 = most.flatten().ok_or_else(bad)?;
                Ok(Self::OnFailure { most: Some(most).filter(|most| *most > 0) })
            }
            None => match text {
                "no" => Ok(Self::No),
                "on-failure" => Ok(Self::OnFailure { most: None }),
                "always" => Ok(Self::Always),
                "unless-stopped" => Ok(Self::UnlessStopped),
                _ => Err(bad()),
            },
            Some(_) => Err(bad()),
        }
    }
}

/// The pauses before restarts.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The pause after a run that lasted so long.
    pub fn after(&mut self, run: Duration) -> Duration {
        if run >= GOOD_RUN {
            self.next = FIRST;
        }
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn policies_are_read_as_docker_reads_them() {
        for text in ["no", "on-failure", "on-failure:3", "always", "unless-stopped"] {
            assert_eq!(text.parse::<RestartPolicy>().unwrap().to_string(), text);
        }
        assert_eq!("on-failure:0".parse(), Ok(RestartPolicy::OnFailure { most: None }));
        for bad in
            ["", "yes", "on-failure:", "on-failure:-1", "on-failure:+1", "always:3", "on-failure:4294967296"]
        {
            let error = bad.parse::<RestartPolicy>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{bad}`")), "{error}");
        }
    }

    #[test]
    fn three_restarts_are_four_runs() {
        let policy = RestartPolicy::OnFailure { most: Some(3) };
        let runs = (0..).take_while(|restarts| policy.wants(true, *restarts)).count() + 1;
        assert_eq!(runs, 4);
        assert!(!policy.wants(false, 0));
    }

    proptest! {
        #[test]
        fn pauses_double_up_to_a_minute_and_begin_anew_after_a_good_run(
            runs in proptest::collection::vec(0_u64..20, 1..40)
        ) {
            let mut backoff = Backoff::default();
            let mut model = FIRST;
            for seconds in runs {
                if seconds >= 10 {
                    model = FIRST;
                }
                prop_assert_eq!(backoff.after(Duration::from_secs(seconds)), model);
                model = (model * 2).min(LONGEST);
            }
        }
    }
}
