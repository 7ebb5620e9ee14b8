//! Whether a guest would run under KVM.
//!
//! A `/dev/kvm` that opens proves nothing: there are hosts on which it opens and makes machines, and the first
//! instructions of a stock kernel then fail, since the CPU has no virtualization of its own. So the CPU has to show its
//! flag as well.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;

const DEVICE: &str = "/dev/kvm";

/// Of `/proc/cpuinfo`, the first CPU's part is enough, and reading all of it takes long on a large host.
const CPUINFO_PART: u64 = 16 << 10;

/// `KVM_GET_API_VERSION`, an ioctl without argument.
const GET_API_VERSION: libc::Ioctl = 0xae00;
/// `KVM_CREATE_VM`, an ioctl whose argument is the type of machine.
const CREATE_VM: libc::Ioctl = 0xae01;
/// The only version there is; see the kernel's `Documentation/virt/kvm/api.rst`.
const API_VERSION: i32 = 12;

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoKvm {
    /// There is no device.
    #[error("{DEVICE} does not exist")]
    Missing,
    /// This user may not open it.
    #[error("{DEVICE} cannot be opened by this user")]
    Denied,
    /// It opens, and the CPU has no virtualization.
    #[error("the CPU shows neither vmx nor svm, so no guest would run on {DEVICE}")]
    NoCpuFlag,
    /// It does not do what it should.
    #[error("{DEVICE} does not work: {0}")]
    Broken(String),
}

impl NoKvm {
    /// What would help.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Missing => {
                "enable virtualization in the firmware, or nested virtualization on the host of this machine"
                    .into()
            }
            Self::Denied => {
                "add the user to the group kvm: `sudo usermod -aG kvm $USER`, then log in again".into()
            }
            Self::NoCpuFlag => format!(
                "enable nested virtualization on the host of this machine; {}=1 skips this check",
                crate::environment::ASSUME_KVM
            ),
            Self::Broken(_) => "see the kernel's log for messages of kvm".into(),
        }
    }
}

/// Whether a guest would run. `assume` skips the look at the CPU's flags.
pub(crate) fn probe(assume: bool) -> Result<(), NoKvm> {
    let device =
        OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => NoKvm::Missing,
            io::ErrorKind::PermissionDenied => NoKvm::Denied,
            _ => NoKvm::Broken(error.to_string()),
        })?;
    // The flag before the machine: making one takes milliseconds.
    if !assume && cfg!(target_arch = "x86_64") && !cpu_has_virtualization() {
        return Err(NoKvm::NoCpuFlag);
    }
    makes_machines(&device)
}

fn cpu_has_virtualization() -> bool {
    let mut text = Vec::new();
    let read = File::open("/proc/cpuinfo").and_then(|file| file.take(CPUINFO_PART).read_to_end(&mut text));
    read.is_ok() && flags_virtualization(&String::from_utf8_lossy(&text))
}

fn flags_virtualization(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find_map(|line| {
        let (name, flags) = line.split_once(':')?;
        (name.trim() == "flags").then_some(flags)
    });
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm")))
}

fn makes_machines(device: &File) -> Result<(), NoKvm> {
    // SAFETY: this ioctl takes no argument and changes nothing; the descriptor is open.
    let version = unsafe { libc::ioctl(device.as_raw_fd(), GET_API_VERSION, 0) };
    if version != API_VERSION {
        return Err(NoKvm::Broken(format!("its interface is {version}, not {API_VERSION}")));
    }
    // SAFETY: the argument is a plain number, 0 for the default type; the descriptor is open.
    let machine = unsafe { libc::ioctl(device.as_raw_fd(), CREATE_VM, 0) };
    if machine < 0 {
        return Err(NoKvm::Broken(format!("it makes no machine: {}", io::Error::last_os_error())));
    }
    // SAFETY: the ioctl returned a new descriptor that nobody else owns; it is closed once.
    unsafe { libc::close(machine) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_is_a_whole_word_in_the_line_of_flags() {
        assert!(flags_virtualization("model name\t: x\nflags\t\t: fpu svm sse\nbugs\t: y\n"));
        assert!(flags_virtualization("flags : vmx\n"));
        assert!(!flags_virtualization("flags\t\t: fpu svm_lock vmxnet\n"));
        assert!(!flags_virtualization("vmx flags\t: no\nmodel name\t: svm\n"));
        assert!(!flags_virtualization(""));
    }

    #[test]
    fn every_reason_has_a_hint() {
        for reason in [NoKvm::Missing, NoKvm::Denied, NoKvm::NoCpuFlag, NoKvm::Broken("x".into())] {
            assert!(!reason.hint().is_empty(), "{reason}");
        }
    }
}
