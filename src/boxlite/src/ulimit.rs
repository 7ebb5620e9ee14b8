//! A limit on what a process may use.

use std::fmt;
use std::str::FromStr;

use boxlite_portal::v1;

use crate::error::{Error, ErrorKind, Result};

/// The limits that Linux has (setrlimit(2)), without `RLIMIT_` and in lower case.
const NAMES: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// No limit.
const UNLIMITED: u64 = u64::MAX;

/// A resource limit of a process, as setrlimit(2) has them: `nofile=1024:4096` when it is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ulimit {
    /// Which one: `nofile`, `nproc`, `core` and so on, in any case, with or without `RLIMIT_`.
    pub name: String,
    /// What the process has, in the unit of the limit. `u64::MAX`: no limit.
    pub soft: u64,
    /// How far it may raise that itself.
    pub hard: u64,
}

impl Ulimit {
    /// A limit.
    pub fn new(name: impl Into<String>, soft: u64, hard: u64) -> Self {
        Self { name: name.into(), soft, hard }
    }

    fn canonical(&self) -> String {
        let lower = self.name.to_ascii_lowercase();
        lower.strip_prefix("rlimit_").unwrap_or(&lower).to_owned()
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let invalid = |message: String| Error::new(ErrorKind::InvalidArgument, message);
        if !NAMES.contains(&self.canonical().as_str()) {
            let name = self.name.escape_debug();
            return Err(invalid(format!("there is no resource limit `{name}`"))
                .with_hint(format!("there are {}", NAMES.join(", "))));
        }
        if self.soft > self.hard {
            return Err(invalid(format!("the soft limit of `{}` is above its hard limit", self.name)));
        }
        Ok(())
    }

    pub(crate) fn to_record(&self) -> (String, u64, u64) {
        (self.canonical(), self.soft, self.hard)
    }

    pub(crate) fn to_wire(&self) -> v1::Rlimit {
        v1::Rlimit { name: self.canonical(), soft: self.soft, hard: self.hard }
    }
}

impl fmt::Display for Ulimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: u64| match value {
            UNLIMITED => "unlimited".to_owned(),
            value => value.to_string(),
        };
        write!(f, "{}={}:{}", self.canonical(), number(self.soft), number(self.hard))
    }
}

impl FromStr for Ulimit {
    type Err = Error;

    /// Reads `name=soft[:hard]`; `unlimited` and `-1` are no limit.
    fn from_str(text: &str) -> Result<Self> {
        let invalid = || {
            let message = format!("`{}` is no resource limit", text.escape_debug());
            Error::new(ErrorKind::InvalidArgument, message)
                .with_hint("write NAME=SOFT or NAME=SOFT:HARD, such as nofile=1024:4096")
        };
        let number = |text: &str| match text {
            "unlimited" | "-1" => Ok(UNLIMITED),
            text => text.parse().map_err(|_| invalid()),
        };
        let (name, values) = text.split_once('=').ok_or_else(invalid)?;
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let limit = Self::new(name, number(soft)?, number(hard)?);
        limit.validate()?;
        Ok(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_read_as_docker_reads_it_and_written_back() {
        for (text, written) in [
            ("nofile=1024:4096", "nofile=1024:4096"),
            ("NOFILE=7", "nofile=7:7"),
            ("RLIMIT_core=0:unlimited", "core=0:unlimited"),
            ("nproc=-1", "nproc=unlimited:unlimited"),
        ] {
            assert_eq!(text.parse::<Ulimit>().unwrap().to_string(), written);
        }
        for bad in ["", "nofile", "nofile=", "nofile=x", "joy=1", "nofile=2:1", "=1", "nofile=1:"] {
            assert!(bad.parse::<Ulimit>().is_err(), "{bad}");
        }
    }
}
