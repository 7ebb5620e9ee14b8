//! The last lines of a file, fit to be shown.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use crate::rpc::shown;

/// The end of a file that is looked at, in bytes.
const BYTES: u64 = 64 << 10;
/// The most lines.
const LINES: usize = 20;

/// The last lines; none when there is no such file.
pub(crate) fn lines(path: &Path) -> Vec<String> {
    match read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
            lines[lines.len().saturating_sub(LINES)..].iter().map(|line| shown(line)).collect()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => vec![format!("{} cannot be read: {error}", path.display())],
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
    let mut bytes = Vec::new();
    file.take(BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}
