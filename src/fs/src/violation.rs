//! What a guest does that its own kernel would never ask for, counted and reported.
//!
//! Each kind is logged when it happens first and then at every power of two, so that a guest cannot fill the log.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

/// A kind of trick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// A message that is cut off, lies about its length, or comes before the greeting.
    Message,
    /// A name that is more than one component, or none.
    Name,
    /// A number of a file that was never given out, or was given back.
    Node,
    /// A handle that was never given out, or not for this file, or not for this use.
    Handle,
    /// Opening what is neither a regular file nor a folder.
    Special,
    /// Making a device, or changing one.
    Device,
    /// A link or a move from one volume into another.
    Volume,
    /// Changing what is read-only.
    ReadOnly,
    /// Giving a file to somebody else, without privileges.
    Owner,
    /// Setting an extended attribute that is not the user's.
    Attribute,
    /// More files known or open at a time than allowed.
    Flood,
}

const KINDS: usize = 11;

impl Violation {
    /// All of them.
    pub const ALL: [Self; KINDS] = [
        Self::Message,
        Self::Name,
        Self::Node,
        Self::Handle,
        Self::Special,
        Self::Device,
        Self::Volume,
        Self::ReadOnly,
        Self::Owner,
        Self::Attribute,
        Self::Flood,
    ];

    fn index(self) -> usize {
        match self {
            Self::Message => 0,
            Self::Name => 1,
            Self::Node => 2,
            Self::Handle => 3,
            Self::Special => 4,
            Self::Device => 5,
            Self::Volume => 6,
            Self::ReadOnly => 7,
            Self::Owner => 8,
            Self::Attribute => 9,
            Self::Flood => 10,
        }
    }
}

/// Why a request is not fulfilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    /// What it counts as. Most errors are any program's.
    pub(crate) trick: Option<Violation>,
}

impl Violation {
    pub(crate) fn refuse(self, errno: Errno) -> Refusal {
        Refusal { errno, trick: Some(self) }
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno, trick: None }
    }
}

/// How often each kind has happened. Shared with whoever wants to know while the share is being served.
#[derive(Debug, Default)]
pub struct Violations([AtomicU64; KINDS]);

impl Violations {
    /// How often this kind has happened.
    #[must_use]
    pub fn count(&self, kind: Violation) -> u64 {
        self.0.get(kind.index()).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// How often any of them has happened.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, counter| sum.saturating_add(counter.load(Ordering::Relaxed)))
    }

    pub(crate) fn record(&self, kind: Violation) {
        let Some(counter) = self.0.get(kind.index()) else { return };
        let count = counter.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if count.is_power_of_two() {
            tracing::warn!(?kind, count, "the guest's file system asked for what it must not");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_counter_of_its_own() {
        let violations = Violations::default();
        for (number, kind) in Violation::ALL.into_iter().enumerate() {
            assert_eq!((kind.index(), violations.count(kind)), (number, 0));
            violations.record(kind);
            assert_eq!(violations.count(kind), 1);
        }
        assert_eq!(violations.total(), 11);
    }
}
