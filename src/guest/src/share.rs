//! The host's share: one file system that has all volumes of the box as entries of its root.
//!
//! ```text
//!   virtio-fs device ─────────────────────────────▶ mounted below /run, entries bound into the container
//!   /dev/fuse ◀──▶ pump: two threads ◀──▶ vsock port of the host        (for a VMM without such a device)
//! ```
//!
//! Both speak FUSE with the same server. The pump passes messages on as they are: each begins with its own length, and
//! /dev/fuse takes and gives one whole message at a time.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use boxlite_portal::v1::init_request::Share;
use nix::mount::{MsFlags, mount};

use crate::vsock;

/// The largest FUSE message: a write of 1 MiB and what goes around it.
const MESSAGE: usize = (1 << 20) + 4096;
/// Length of the field that each message begins with.
const LENGTH: usize = 4;
/// The shortest message: `fuse_out_header`.
const SHORTEST: usize = 16;
const STACK: usize = 128 << 10;

/// Mounts the share on a folder, which is made.
///
/// # Errors
/// What the system says.
pub fn attach(share: &Share, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let flags = MsFlags::MS_NODEV;
    match share {
        Share::ShareTag(tag) => {
            mount(Some(tag.as_str()), folder, Some("virtiofs"), flags, None::<&str>)?;
        }
        Share::SharePort(port) => {
            let host = Arc::new(File::from(vsock::dial_host(*port)?));
            #[cfg(feature = "hostile")]
            if crate::hostile::share::instead(&host, folder)? {
                return Ok(());
            }
            let device =
                OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open("/dev/fuse")?;
            let options = format!(
                "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=1048576",
                device.as_raw_fd()
            );
            // The kernel asks for what the server can do as soon as it is mounted, and does not wait for the answer.
            mount(Some("share"), folder, Some("fuse"), flags, Some(options.as_str()))?;
            let device = Arc::new(device);
            let (requests, replies) = ((Arc::clone(&device), Arc::clone(&host)), (host, device));
            spawn("fuse-out", move || pass_requests(&requests.0, &requests.1))?;
            spawn("fuse-in", move || pass_replies(&*replies.0, &*replies.1))?;
        }
    }
    Ok(())
}

/// Tells the host who the container's user is: what belongs to the caller there belongs to this user here.
///
/// # Errors
/// What the system says.
pub fn introduce(share: &Path, (uid, gid): (u32, u32)) -> io::Result<()> {
    let path = CString::new(share.as_os_str().as_bytes())?;
    let value = format!("{uid}:{gid}");
    // SAFETY: the strings end in zero bytes and the value has the length that is told; all live during the call.
    let set = unsafe {
        libc::setxattr(path.as_ptr(), c"user.boxlite.owner".as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    #[cfg(feature = "hostile")]
    crate::hostile::share::through_kernel(share)?;
    Ok(())
}

fn spawn(name: &str, work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK);
    let told = name.to_owned();
    let run = move || {
        if let Err(error) = work() {
            crate::console::line(format_args!("the share's {told} has ended: {error}"));
        }
    };
    thread.spawn(run).map(drop)
}

/// From the kernel to the host, until the file system is unmounted.
fn pass_requests(mut device: &File, mut host: &File) -> io::Result<()> {
    let mut buffer = vec![0; MESSAGE];
    loop {
        match device.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => host.write_all(&buffer[..count])?,
            Err(error) => match error.raw_os_error() {
                // The request was withdrawn before it was read, or the read interrupted.
                Some(libc::ENOENT | libc::EINTR | libc::EAGAIN) => {}
                Some(libc::ENODEV) => return Ok(()),
                _ => return Err(error),
            },
        }
    }
}

/// From the host to the kernel, until the host hangs up.
fn pass_replies(mut host: impl Read, mut device: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; MESSAGE];
    while let Some(length) = read_message(&mut host, &mut buffer)? {
        match device.write(&buffer[..length]) {
            Ok(taken) if taken == length => {}
            Ok(_) => return Err(io::Error::other("the kernel took a part of a message")),
            Err(error) => match error.raw_os_error() {
                // Nobody waits for this answer any more.
                Some(libc::ENOENT | libc::EINTR) => {}
                Some(libc::ENODEV) => return Ok(()),
                _ => return Err(error),
            },
        }
    }
    Ok(())
}

/// Reads one message and gives its length; `None` at the end of the stream.
fn read_message(host: &mut impl Read, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let mut filled = 0;
    while filled < LENGTH {
        match host.read(&mut buffer[filled..LENGTH]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut length = [0; LENGTH];
    length.copy_from_slice(&buffer[..LENGTH]);
    let length = usize::try_from(u32::from_ne_bytes(length)).unwrap_or(usize::MAX);
    if !(SHORTEST..=buffer.len()).contains(&length) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message of an impossible length"));
    }
    host.read_exact(&mut buffer[LENGTH..length])?;
    Ok(Some(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32, body: usize) -> Vec<u8> {
        [&length.to_ne_bytes()[..], &vec![7; body]].concat()
    }

    /// Takes one message at a time, as the device does.
    #[derive(Default)]
    struct Device(Vec<usize>);

    impl Write for Device {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.push(data.len());
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn messages_are_passed_on_one_at_a_time() {
        let stream = [message(16, 12), message(20, 16), message(16, 12)].concat();
        let mut device = Device::default();
        pass_replies(stream.as_slice(), &mut device).unwrap();
        assert_eq!(device.0, [16, 20, 16]);
    }

    #[test]
    fn a_message_that_cannot_be_ends_the_share() {
        for stream in [message(15, 11), message(0, 0), message(u32::MAX, 100), message(20, 3), vec![1, 2]] {
            let mut device = Device::default();
            assert!(pass_replies(stream.as_slice(), &mut device).is_err());
            assert!(device.0.is_empty());
        }
    }
}
