//! Frames written down, for people who want to see what goes over a box's link: the format of pcap, which every tool reads.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// The header of a file (draft-ietf-opsawg-pcap): nanoseconds, version 2.4, at most 65550 bytes a frame, Ethernet.
const MAGIC: u32 = 0xa1b2_3c4d;
const LONGEST: u32 = 65550;
const ETHERNET: u32 = 1;

/// A file of frames.
#[derive(Debug)]
pub(crate) struct Capture {
    file: Option<BufWriter<File>>,
}

impl Capture {
    /// Begins the file, which only its owner can read. What was in it is gone.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let mut file = BufWriter::with_capacity(256 << 10, file);
        file.write_all(&MAGIC.to_le_bytes())?;
        file.write_all(&2_u16.to_le_bytes())?;
        file.write_all(&4_u16.to_le_bytes())?;
        file.write_all(&[0; 8])?;
        file.write_all(&LONGEST.to_le_bytes())?;
        file.write_all(&ETHERNET.to_le_bytes())?;
        file.flush()?;
        Ok(Self { file: Some(file) })
    }

    /// Adds a frame. A disk that fails ends the file, and nothing else.
    pub(crate) fn add(&mut self, frame: &[u8]) {
        self.attempt(|file| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            // The format has 32 bits for seconds, until 2106, and for lengths.
            let seconds = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
            let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
            for number in [seconds, now.subsec_nanos(), length, length] {
                file.write_all(&number.to_le_bytes())?;
            }
            file.write_all(frame)
        });
    }

    /// Has what was added in the file.
    pub(crate) fn flush(&mut self) {
        self.attempt(BufWriter::flush);
    }

    fn attempt(&mut self, what: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) {
        if let Some(file) = &mut self.file
            && let Err(error) = what(file)
        {
            tracing::error!(%error, "frames are not captured any more");
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_header_and_each_frame_behind_its_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("frames.pcap");
        let mut capture = Capture::create(&path).unwrap();
        capture.add(b"a frame of the guest");
        capture.flush();
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(bytes.len(), 24 + 16 + 20);
        assert_eq!(bytes[..4], MAGIC.to_le_bytes());
        assert_eq!(bytes[32..36], 20_u32.to_le_bytes());
        assert!(bytes.ends_with(b"a frame of the guest"));
    }
}
