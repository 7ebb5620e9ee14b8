//! Keeps a guest from filling the log.

use std::time::{Duration, Instant};

/// So many messages in one period.
const MESSAGES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(60);

/// Lets through a few messages, then none for a while.
#[derive(Debug, Default)]
pub(crate) struct Quiet {
    period: Option<Instant>,
    spoken: u32,
    kept: u64,
}

impl Quiet {
    /// Whether a message that the guest has caused may be written.
    pub(crate) fn may_speak(&mut self) -> bool {
        let now = Instant::now();
        if self.period.is_none_or(|start| now.saturating_duration_since(start) > PERIOD) {
            if self.kept > 0 {
                tracing::warn!(messages = self.kept, "messages caused by the guest were left out");
            }
            *self = Self { period: Some(now), spoken: 0, kept: 0 };
        }
        let may = self.spoken < MESSAGES;
        if may {
            self.spoken += 1;
        } else {
            self.kept += 1;
        }
        may
    }

    pub(crate) fn warn(&mut self, message: &'static str) {
        if self.may_speak() {
            tracing::warn!("{message}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_messages_is_cut_off() {
        let mut quiet = Quiet::default();
        let spoken = (0..1000).filter(|_| quiet.may_speak()).count();
        assert_eq!(spoken, 10);
        assert_eq!(quiet.kept, 990);
    }
}
