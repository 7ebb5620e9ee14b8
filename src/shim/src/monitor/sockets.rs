//! The Unix sockets in a box's folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use boxlite_control::{BoxFiles, SocketPath};
use tokio::net::UnixListener;

/// A socket that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {path}")]
pub(super) struct ListenError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A socket file that is removed when this is dropped.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Listens for programs of the host, after removing what a killed predecessor has left. For the holder of the box's lock
/// only.
pub(super) fn listen_for_orders(files: &BoxFiles) -> Result<(UnixListener, SocketFile), ListenError> {
    listen(&files.control_socket())
}

/// The sockets of one run of a box.
#[derive(Debug)]
pub(super) struct RunSockets {
    /// For the guest's boot channel.
    pub(super) boot: (UnixListener, SocketFile),
    /// The VMM makes these.
    pub(super) by_vmm: [SocketFile; 2],
}

impl RunSockets {
    /// Listens, after removing what the run before has left. For the holder of the box's lock only.
    pub(super) fn listen(files: &BoxFiles) -> Result<Self, ListenError> {
        let by_vmm = [SocketFile(files.portal_socket()), SocketFile(files.share_socket())];
        by_vmm.iter().for_each(|socket| remove(&socket.0));
        Ok(Self { boot: listen(&files.boot_socket())?, by_vmm })
    }
}

fn listen(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
    remove(path);
    let bind = || UnixListener::bind(SocketPath::new(path)?.path());
    match bind() {
        Ok(listener) => Ok((listener, SocketFile(path.to_owned()))),
        Err(source) => Err(ListenError { path: path.to_owned(), source }),
    }
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // Who listens next will be told by bind.
        Err(error) => tracing::warn!(path = %path.display(), %error, "cannot remove a socket"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sockets_of_a_killed_monitor_are_replaced_and_ours_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let files = BoxFiles::new(folder.path());
        let sockets =
            [files.control_socket(), files.boot_socket(), files.portal_socket(), files.share_socket()];
        for socket in sockets {
            drop(std::os::unix::net::UnixListener::bind(socket).unwrap());
        }
        let control = listen_for_orders(&files).unwrap();
        let sockets = RunSockets::listen(&files).unwrap();
        assert!(!files.portal_socket().exists());
        std::os::unix::net::UnixStream::connect(files.control_socket()).unwrap();
        drop((control, sockets));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_failure_leaves_no_socket_behind() {
        let folder = tempfile::tempdir().unwrap();
        let files = BoxFiles::new(folder.path());
        fs::create_dir(files.boot_socket()).unwrap();
        RunSockets::listen(&files).unwrap_err();
        assert!(!files.portal_socket().exists());
    }
}
