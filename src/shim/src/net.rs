//! The net role: the network of one box, in a process of its own.
//!
//! ```text
//!   standard input   a socket. In: a frame with the NetConfig, then orders; its end ends this process. Out: reports
//!   standard output  a socket: the link to the guest
//!   standard error   the log
//! ```

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{child, text};

/// Why the role could not even begin, or has failed.
#[derive(Debug, thiserror::Error)]
enum NetError {
    #[error("cannot prepare the process")]
    Prepare(#[source] io::Error),
    #[error("the network has failed")]
    Serve(#[from] boxlite_net::ServeError),
}

/// Runs the role.
pub(crate) fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = text::line(&error), "the network ends");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), NetError> {
    let owned = |fd: io::Result<OwnedFd>| fd.map_err(NetError::Prepare);
    child::close_inherited().map_err(NetError::Prepare)?;
    // Each flow is a descriptor.
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    raised.map_err(|errno| NetError::Prepare(errno.into()))?;
    let link = owned(io::stdout().as_fd().try_clone_to_owned())?;
    let orders = UnixStream::from(owned(io::stdin().as_fd().try_clone_to_owned())?);
    let reports = orders.try_clone().map_err(NetError::Prepare)?;
    let _role = tracing::info_span!("net").entered();
    let end = || {
        // SAFETY: ends the process without running anything: what it has open is all that it is.
        unsafe { libc::_exit(0) }
    };
    Ok(boxlite_net::serve(link, orders, reports, end)?)
}
