//! The boot channel, from the guest's side.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use boxlite_portal::hello::Hello;
use boxlite_portal::v1::boot_report::Report;
use boxlite_portal::v1::{BootReport, Ready};
use boxlite_portal::{limits, ports};
use prost::Message;

use super::machine;
use crate::{portal, vsock};

/// Tells the host what the agent is doing. Ends with `ready` or `failure`.
#[derive(Debug)]
pub struct Channel(File);

/// The open channel, for a failure that is not a returned one.
static OPEN: Mutex<Option<File>> = Mutex::new(None);

impl Channel {
    /// Dials the host and says hello.
    ///
    /// # Errors
    /// When nobody listens or the connection fails.
    pub fn open() -> io::Result<Self> {
        let mut socket = File::from(vsock::dial_host(ports::BOOT)?);
        socket.write_all(&Hello::new(portal::BUILD).encode())?;
        *OPEN.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket.try_clone()?);
        Ok(Self(socket))
    }

    /// Tells which step begins now.
    ///
    /// # Errors
    /// When the host does not listen any more: then nobody can use this machine.
    pub fn step(&mut self, name: &str) -> io::Result<()> {
        send(&mut self.0, Report::Step(name.to_owned()))
    }

    /// Tells that the portal is served.
    ///
    /// # Errors
    /// As with a step.
    pub fn ready(mut self) -> io::Result<()> {
        let nanos = u64::try_from(machine::since_kernel().as_nanos()).unwrap_or(u64::MAX);
        send(&mut self.0, Report::Ready(Ready { since_kernel_nanos: nanos }))?;
        *OPEN.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }
}

/// Tells that the boot cannot go on, if the channel is open.
pub fn failure(text: &str) {
    // Not lock(): whoever fails may hold it.
    let Ok(mut open) = OPEN.try_lock() else { return };
    if let Some(mut socket) = open.take() {
        // A character has at most four bytes.
        let text = text.chars().take(limits::BOOT_REPORT / 8).collect();
        // The console has the same text; there is no third place.
        drop(send(&mut socket, Report::Failure(text)));
    }
}

/// Closes what a fork has copied of the channel, so that the copy has no use of it any more.
pub fn forget() {
    // Nobody else can hold it in a process of one thread.
    *OPEN.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

fn send(socket: &mut File, report: Report) -> io::Result<()> {
    socket.write_all(&frame(&BootReport { report: Some(report) })?)
}

/// The blocking twin of `boxlite_portal::boot::send`: at this point there is no runtime yet.
fn frame(report: &BootReport) -> io::Result<Vec<u8>> {
    let body = report.encode_to_vec();
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= limits::BOOT_REPORT);
    let length = length.ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
    Ok([&length.to_be_bytes()[..], &body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_frame_is_what_the_host_reads() {
        let report = BootReport { report: Some(Report::Step("mounts".into())) };
        let wire = frame(&report).unwrap();
        let mut wire = wire.as_slice();
        assert_eq!(boxlite_portal::boot::receive(&mut wire).await.unwrap(), Some(report));
        assert!(frame(&BootReport { report: Some(Report::Step("x".repeat(limits::BOOT_REPORT))) }).is_err());
    }
}
