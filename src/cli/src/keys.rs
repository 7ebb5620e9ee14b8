//! The keys that leave a box running, such as `ctrl-p,ctrl-q`.

/// A sequence of keys, and how much of it has been typed.
#[derive(Debug)]
pub(crate) struct DetachKeys {
    sequence: Vec<u8>,
    typed: usize,
}

/// What became of what was typed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Typed {
    /// What is for the box.
    pub(crate) input: Vec<u8>,
    /// The keys were typed, to the last of them.
    pub(crate) detach: bool,
}

impl DetachKeys {
    /// Reads a sequence as Docker does: single characters and `ctrl-` with a letter or one of `@[\]^_`, with commas in
    /// between; an empty text is no sequence.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut sequence = Vec::new();
        for key in text.split(',').filter(|_| !text.is_empty()) {
            let control = |c: u8| matches!(c, b'@'..=b'_').then_some(c & 0x1f);
            let code = match key.as_bytes() {
                [character] if character.is_ascii_graphic() => Some(*character),
                [b'c', b't', b'r', b'l', b'-', character] => control(character.to_ascii_uppercase()),
                _ => None,
            };
            sequence.push(
                code.ok_or_else(|| format!("`{}` is no key: use such as ctrl-p,q", key.escape_debug()))?,
            );
        }
        Ok(Self { sequence, typed: 0 })
    }

    /// Takes input in. What may be the beginning of the sequence is held back until it is known to be or not.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Typed {
        if self.sequence.is_empty() {
            return Typed { input: bytes.to_vec(), detach: false };
        }
        let mut input = Vec::new();
        for byte in bytes {
            if *byte == self.sequence[self.typed] {
                self.typed += 1;
                if self.typed == self.sequence.len() {
                    return Typed { input, detach: true };
                }
                continue;
            }
            // What was held back was meant for the box, and this byte may begin the sequence anew.
            input.extend_from_slice(&self.sequence[..self.typed]);
            self.typed = 0;
            if *byte == self.sequence[0] {
                self.typed = 1;
            } else {
                input.push(*byte);
            }
        }
        Typed { input, detach: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(input: &[u8], detach: bool) -> Typed {
        Typed { input: input.to_vec(), detach }
    }

    #[test]
    fn the_sequence_detaches_wherever_it_is_torn() {
        let mut keys = DetachKeys::parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(keys.take(b"ls\n"), typed(b"ls\n", false));
        assert_eq!(keys.take(b"a\x10"), typed(b"a", false));
        assert_eq!(keys.take(b"\x11"), typed(b"", true));
        let mut keys = DetachKeys::parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(keys.take(b"x\x10\x11y"), typed(b"x", true));
    }

    #[test]
    fn what_only_began_like_it_reaches_the_box() {
        let mut keys = DetachKeys::parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(keys.take(b"\x10"), typed(b"", false));
        assert_eq!(keys.take(b"z"), typed(b"\x10z", false));
        assert_eq!(keys.take(b"\x10\x10\x11"), typed(b"\x10", true));
    }

    #[test]
    fn keys_are_read_as_docker_reads_them() {
        assert_eq!(DetachKeys::parse("a,ctrl-],ctrl-@").unwrap().sequence, [b'a', 0x1d, 0]);
        assert_eq!(DetachKeys::parse("").unwrap().take(b"\x10\x11"), typed(b"\x10\x11", false));
        for bad in ["ctrl-", "ctrl-1", "ab", "ctrl-p,", "ä"] {
            assert!(DetachKeys::parse(bad).is_err(), "{bad}");
        }
    }
}
