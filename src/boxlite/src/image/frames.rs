//! Decompresses zstd, frame by frame.
//!
//! A frame says in its header how far back its data refer, and that much memory it takes: the *window*. All tools make
//! windows of 8 MiB at most unless asked for more. Of larger ones, up to the 128 MiB that the tools accept, one is open at a
//! time, so that the memory of all layers together has a bound.

use std::io::{self, BufRead, Read};

use zstd::stream::raw::{DParameter, Decoder, Operation};

use super::budget::{Budget, LargeWindow};
use super::input::Input;

/// The largest window, as a power of two: 128 MiB, what zstd's own tools accept without being asked.
const WINDOW_LOG: u32 = 27;
/// Windows above this need the permit.
const LARGE: u64 = 8 << 20;
/// The longest header of a frame: magic number, descriptor, dictionary, size.
const HEADER: usize = 4 + 1 + 4 + 8;

/// Frames behind each other are one stream, as everywhere.
pub(super) struct Frames<'a, 'b> {
    input: &'a mut Input<'b>,
    decoder: Decoder<'static>,
    budget: &'a Budget<'a>,
    /// Kept to the end: the decoder does not give memory back.
    permit: Option<LargeWindow<'a>>,
    between: bool,
}

impl std::fmt::Debug for Frames<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frames").field("between", &self.between).finish_non_exhaustive()
    }
}

impl<'a, 'b> Frames<'a, 'b> {
    pub(super) fn new(input: &'a mut Input<'b>, budget: &'a Budget<'a>) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
        Ok(Self { input, decoder, budget, permit: None, between: true })
    }

    /// Begins the next frame; false when there is none.
    fn begin(&mut self) -> io::Result<bool> {
        let header = self.input.peek(HEADER)?;
        if header.is_empty() {
            return Ok(false);
        }
        if self.permit.is_none() && window(header).is_some_and(|window| window > LARGE) {
            self.permit = Some(self.budget.large_window().map_err(io::Error::other)?);
        }
        self.decoder.reinit()?;
        self.between = false;
        Ok(true)
    }
}

impl Read for Frames<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.between && !self.begin()? {
                return Ok(0);
            }
            let input = self.input.fill_buf()?;
            let ended = input.is_empty();
            let status = self.decoder.run_on_buffers(input, out)?;
            self.input.consume(status.bytes_read);
            self.between = status.remaining == 0;
            if status.bytes_written > 0 {
                return Ok(status.bytes_written);
            }
            if ended && !self.between {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// The window that a frame's header asks for (RFC 8878, section 3.1.1.1); nothing for frames to be skipped, and for what is
/// too short or no frame, which the decoder refuses.
fn window(header: &[u8]) -> Option<u64> {
    let (magic, rest) = header.split_first_chunk()?;
    if magic != b"\x28\xb5\x2f\xfd" {
        return None;
    }
    let (descriptor, rest) = rest.split_first()?;
    let single_segment = descriptor & 0x20 != 0;
    if !single_segment {
        let byte = rest.first()?;
        let base = 1u64 << (10 + (byte >> 3));
        return Some(base + base / 8 * u64::from(byte & 7));
    }
    // Without a window of its own, it is as large as the content.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let field = rest.get(dictionary..dictionary + length)?;
    let size = field.iter().rev().fold(0, |size, byte| size << 8 | u64::from(*byte));
    Some(if length == 2 { size + 256 } else { size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_what_the_header_says() {
        // Window descriptors of zstd's own tools: 2 MiB at level 3, 128 MiB with --long=27.
        assert_eq!(window(b"\x28\xb5\x2f\xfd\x00\x58"), Some(2 << 20));
        assert_eq!(window(b"\x28\xb5\x2f\xfd\x04\x88"), Some(128 << 20));
        assert_eq!(window(b"\x28\xb5\x2f\xfd\x00\x89"), Some(144 << 20));
        // One segment: the content's size in 1, 2, 4 or 8 bytes, behind a dictionary's number.
        assert_eq!(window(b"\x28\xb5\x2f\xfd\x20\x05"), Some(5));
        assert_eq!(window(b"\x28\xb5\x2f\xfd\x61\xff\x00\x01"), Some(512));
        assert_eq!(window(b"\x28\xb5\x2f\xfd\xa0\0\0\0\x01"), Some(1 << 24));
        assert_eq!(window(b"\x28\xb5\x2f\xfd\xe0\xff\xff\xff\xff\xff\xff\xff\xff"), Some(u64::MAX));
        for none in
            [b"".as_slice(), b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\x20", b"\x50\x2a\x4d\x18\0\0\0\0"]
        {
            assert_eq!(window(none), None);
        }
    }
}
