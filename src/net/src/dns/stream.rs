//! DNS over a stream: each message stands behind its length in 16 bits, big-endian (RFC 1035, 4.2.2).

/// The most bytes that wait for the end of their message, or to be taken.
const MOST: usize = 16 << 10;

/// Messages out of a stream of bytes.
#[derive(Debug, Default)]
pub(crate) struct StreamFrames {
    bytes: Vec<u8>,
}

/// More has come than anybody may say at once.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

impl StreamFrames {
    /// More of the stream.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if self.bytes.len() + bytes.len() > MOST {
            return Err(TooLong);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// The next message that is whole.
    pub(crate) fn next(&mut self) -> Option<Vec<u8>> {
        let length = usize::from(u16::from_be_bytes(*self.bytes.first_chunk()?));
        if self.bytes.len() < 2 + length {
            return None;
        }
        let rest = self.bytes.split_off(2 + length);
        let mut message = std::mem::replace(&mut self.bytes, rest);
        message.drain(..2);
        Some(message)
    }
}

/// A message behind its length. One that is too long for the format is none.
pub(crate) fn frame(message: &[u8]) -> Vec<u8> {
    match u16::try_from(message.len()) {
        Ok(length) => [&length.to_be_bytes()[..], message].concat(),
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_wherever_the_stream_is_cut() {
        let messages = [&b""[..], b"one", b"another one"];
        let wire: Vec<u8> = messages.iter().flat_map(|message| frame(message)).collect();
        for cut in 0..=wire.len() {
            let mut frames = StreamFrames::default();
            let mut found = Vec::new();
            for part in [&wire[..cut], &wire[cut..]] {
                frames.push(part).unwrap();
                found.extend(std::iter::from_fn(|| frames.next()));
            }
            assert_eq!(found, messages, "cut at {cut}");
        }
    }

    #[test]
    fn what_never_ends_is_refused() {
        let mut frames = StreamFrames::default();
        frames.push(&[0xff; MOST]).unwrap();
        assert_eq!(frames.next(), None);
        assert_eq!(frames.push(&[0]), Err(TooLong));
    }
}
