//! A libkrun configuration with types.

use std::ffi::{CStr, CString, c_int};
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::raw;

/// A call of libkrun that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call} failed")]
pub struct CallError {
    /// The function.
    pub call: &'static str,
    /// The errno that it returned.
    #[source]
    pub source: io::Error,
}

/// The format of a disk file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    /// The bytes of the disk.
    Raw,
    /// qcow2, with its chain of backing files.
    Qcow2,
}

/// How much libkrun logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LogLevel {
    /// Nothing.
    Off = 0,
    /// Failures.
    Error = 1,
    /// What may become one.
    Warn = 2,
    /// Steps.
    Info = 3,
    /// Details.
    Debug = 4,
    /// Everything.
    Trace = 5,
}

/// A machine that is being configured.
///
/// ```text
///   new ──▶ cpus, kernel, disks, ports, console ──▶ run: never returns, unless it fails
/// ```
#[derive(Debug)]
pub struct Context {
    id: u32,
}

impl Context {
    /// Sends libkrun's messages to standard error. At most once in a process: libkrun panics at a second call.
    ///
    /// # Errors
    /// When libkrun refuses.
    pub fn log_to_stderr(level: LogLevel) -> Result<(), CallError> {
        // SAFETY: the arguments are plain numbers; 2 is a descriptor that libkrun writes to and does not close.
        let code = unsafe {
            raw::krun_init_log(2, level as u32, raw::KRUN_LOG_STYLE_NEVER, raw::KRUN_LOG_OPTION_NO_ENV)
        };
        check("krun_init_log", code).map(drop)
    }

    /// An empty machine.
    ///
    /// # Errors
    /// When libkrun refuses.
    pub fn new() -> Result<Self, CallError> {
        // SAFETY: takes no arguments.
        let id = check("krun_create_ctx", unsafe { raw::krun_create_ctx() })?;
        Ok(Self { id })
    }

    /// CPUs and memory.
    ///
    /// # Errors
    /// When libkrun refuses the numbers.
    pub fn set_size(&mut self, cpus: u8, memory_mib: u32) -> Result<(), CallError> {
        // SAFETY: the arguments are plain numbers.
        let code = unsafe { raw::krun_set_vm_config(self.id, cpus, memory_mib) };
        check("krun_set_vm_config", code).map(drop)
    }

    /// The kernel, an ELF file, and its command line.
    ///
    /// # Errors
    /// When the path is not UTF-8 or libkrun refuses it.
    pub fn set_kernel(&mut self, elf: &Path, command_line: &str) -> Result<(), CallError> {
        const CALL: &str = "krun_set_kernel";
        let elf = path(CALL, elf)?;
        let command_line = text(CALL, command_line.as_bytes())?;
        // SAFETY: both strings end in NUL and live until the call has returned; a null initramfs means none.
        let code = unsafe {
            raw::krun_set_kernel(
                self.id,
                elf.as_ptr(),
                raw::KRUN_KERNEL_FORMAT_ELF,
                std::ptr::null(),
                command_line.as_ptr(),
            )
        };
        check(CALL, code).map(drop)
    }

    /// A disk, behind those added before.
    ///
    /// # Errors
    /// When the path is not UTF-8 or libkrun refuses it.
    pub fn add_disk(
        &mut self,
        id: &CStr,
        file: &Path,
        format: DiskFormat,
        read_only: bool,
    ) -> Result<(), CallError> {
        const CALL: &str = "krun_add_disk2";
        let file = path(CALL, file)?;
        let format = match format {
            DiskFormat::Raw => raw::KRUN_DISK_FORMAT_RAW,
            DiskFormat::Qcow2 => raw::KRUN_DISK_FORMAT_QCOW2,
        };
        // SAFETY: both strings end in NUL and live until the call has returned.
        let code = unsafe { raw::krun_add_disk2(self.id, id.as_ptr(), file.as_ptr(), format, read_only) };
        check(CALL, code).map(drop)
    }

    /// A plain vsock device. libkrun would otherwise add one by itself that opens host sockets for the guest.
    ///
    /// # Errors
    /// When libkrun refuses.
    pub fn add_plain_vsock(&mut self) -> Result<(), CallError> {
        // SAFETY: the argument is a plain number.
        let code = unsafe { raw::krun_disable_implicit_vsock(self.id) };
        check("krun_disable_implicit_vsock", code)?;
        // SAFETY: the arguments are plain numbers.
        let code = unsafe { raw::krun_add_vsock(self.id, 0) };
        check("krun_add_vsock", code).map(drop)
    }

    /// Connects a port of the vsock device with a Unix socket. With `listen` the VMM listens there, and `socket` must not
    /// exist; otherwise the guest dials and the VMM connects to `socket`.
    ///
    /// # Errors
    /// When the path is not UTF-8 or libkrun refuses it.
    pub fn add_vsock_port(&mut self, port: u32, socket: &Path, listen: bool) -> Result<(), CallError> {
        const CALL: &str = "krun_add_vsock_port2";
        let socket = path(CALL, socket)?;
        // SAFETY: the string ends in NUL and lives until the call has returned.
        let code = unsafe { raw::krun_add_vsock_port2(self.id, port, socket.as_ptr(), listen) };
        check(CALL, code).map(drop)
    }

    /// A network device, connected with this Unix stream. Each frame on it stands behind its length, 32 bits, big-endian.
    ///
    /// # Errors
    /// When libkrun refuses.
    pub fn add_net(&mut self, stream: OwnedFd, mac: [u8; 6]) -> Result<(), CallError> {
        // SAFETY: a null path means none; the address is six bytes, which libkrun reads during the call. The descriptor is
        // open, and from here on it is libkrun's.
        let code = unsafe {
            raw::krun_add_net_unixstream(
                self.id,
                std::ptr::null(),
                stream.into_raw_fd(),
                mac.as_ptr(),
                raw::NET_FEATURES,
                0,
            )
        };
        check("krun_add_net_unixstream", code).map(drop)
    }

    /// Writes what appears on the console `hvc0` to `file`. Input of the console is empty.
    ///
    /// # Errors
    /// When the path is not UTF-8 or libkrun refuses it.
    pub fn set_console_output(&mut self, file: &Path) -> Result<(), CallError> {
        const CALL: &str = "krun_set_console_output";
        let file = path(CALL, file)?;
        // SAFETY: the string ends in NUL and lives until the call has returned.
        check(CALL, unsafe { raw::krun_set_console_output(self.id, file.as_ptr()) }).map(drop)
    }

    /// Runs the machine. When its guest ends, the process ends. Only a failure to build it returns.
    pub fn run(self) -> CallError {
        // SAFETY: the argument is a plain number.
        let code = unsafe { raw::krun_start_enter(self.id) };
        let errno = if code < 0 { -code } else { libc::EPROTO };
        CallError { call: "krun_start_enter", source: io::Error::from_raw_os_error(errno) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // A started context is no longer known to libkrun, which then answers ENOENT: nothing is left to free either way.
        // SAFETY: the argument is a plain number.
        unsafe { raw::krun_free_ctx(self.id) };
    }
}

fn check(call: &'static str, code: c_int) -> Result<u32, CallError> {
    u32::try_from(code)
        .map_err(|_| CallError { call, source: io::Error::from_raw_os_error(code.saturating_neg()) })
}

fn path(call: &'static str, path: &Path) -> Result<CString, CallError> {
    // libkrun answers EINVAL to bytes that are not UTF-8; this says so in words.
    let Some(utf8) = path.to_str() else {
        let source = io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} is not UTF-8"));
        return Err(CallError { call, source });
    };
    text(call, Path::new(utf8).as_os_str().as_bytes())
}

fn text(call: &'static str, text: &[u8]) -> Result<CString, CallError> {
    CString::new(text).map_err(|error| CallError { call, source: io::Error::from(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_can_be_configured_and_thrown_away() {
        let folder = tempfile::tempdir().unwrap();
        let mut context = Context::new().unwrap();
        context.set_size(2, 512).unwrap();
        context.set_kernel(Path::new("/nonexistent/kernel"), "console=hvc0").unwrap();
        context.add_disk(c"a", Path::new("/nonexistent/a"), DiskFormat::Raw, true).unwrap();
        context.add_disk(c"b", Path::new("/nonexistent/b"), DiskFormat::Qcow2, false).unwrap();
        context.add_plain_vsock().unwrap();
        context.add_vsock_port(1024, &folder.path().join("socket"), true).unwrap();
        let (stream, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        context.add_net(stream.into(), [2, 0, 0, 0, 0, 1]).unwrap();
        context.set_console_output(Path::new("/dev/null")).unwrap();
    }

    #[test]
    fn the_error_names_the_call_and_the_reason() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut context = Context::new().unwrap();
        context.add_plain_vsock().unwrap();
        let error = context.add_vsock_port(1024, file.path(), true).unwrap_err();
        assert_eq!(error.to_string(), "krun_add_vsock_port2 failed");
        assert_eq!(error.source.raw_os_error(), Some(libc::EEXIST));
    }

    #[test]
    fn a_path_with_a_nul_byte_is_an_error() {
        let mut context = Context::new().unwrap();
        let error = context.set_console_output(Path::new("/a\0b")).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn two_contexts_are_two_machines() {
        let (mut first, mut second) = (Context::new().unwrap(), Context::new().unwrap());
        first.add_plain_vsock().unwrap();
        second.add_plain_vsock().unwrap();
    }
}
