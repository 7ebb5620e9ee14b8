//! Paths of Unix sockets that fit into `sun_path`, whatever the home.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The longest path that `sockaddr_un` takes on Linux, without the NUL at its end.
const LIMIT: usize = 107;

/// A path to bind or connect, good as long as this value lives.
///
/// A path that is too long is reached through the folder's descriptor under `/proc/self/fd`, which is short whatever
/// the folder.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    _folder: Option<File>,
}

impl SocketPath {
    /// Makes a usable path to this socket. The folder must exist.
    ///
    /// # Errors
    /// When the path is too long and its folder cannot be opened, or its last part alone is too long.
    pub fn new(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= LIMIT {
            return Ok(Self { path: path.to_owned(), _folder: None });
        }
        let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "the path names no file in a folder");
        let folder = File::open(path.parent().ok_or_else(invalid)?)?;
        let name = path.file_name().ok_or_else(invalid)?;
        let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
        if path.as_os_str().len() > LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name of the socket is too long"));
        }
        Ok(Self { path, _folder: Some(folder) })
    }

    /// The path to give to bind or connect, in this process only.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_socket_in_a_very_deep_folder_can_be_bound_and_connected() {
        let folder =
            std::env::temp_dir().join(format!("boxlite-{}", std::process::id())).join("d".repeat(150));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("portal.sock");
        let short = SocketPath::new(&path).unwrap();
        let listener = UnixListener::bind(short.path()).unwrap();
        assert!(path.exists());
        let other = SocketPath::new(&path).unwrap();
        UnixStream::connect(other.path()).unwrap();
        drop(listener);
        std::fs::remove_dir_all(folder.parent().unwrap()).unwrap();
    }
}
