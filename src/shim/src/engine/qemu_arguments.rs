//! The command line of QEMU, as a pure function of the machine.
//!
//! The machine is `microvm`: no PCI, no ACPI, and eight slots for virtio-mmio devices. Slot `n` has interrupt `5 + n`.
//! QEMU tells the kernel about the slots from the highest to the lowest, and the kernel numbers disks in that order, so
//! devices are put into slots from the top. Slot 3 comes last: its interrupt, 8, is that of the real-time clock, without
//! which the kernel waits for a second at boot. The random number device can share it, since it is asked once.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use boxlite_control::{DiskFormat, DiskSpec, VmSpec};

use super::{COMMAND_LINE, RunError};
use crate::share::TAG;

/// The CPU that is emulated: all that QEMU knows, except the promise that byte-wise string moves are quick. Kernel and C
/// library believe it and copy with `rep movsb`, which emulation does byte by byte; without it they copy by words, and a
/// pipe carries more than twice as much.
const EMULATED_CPU: &str = "max,erms=off";

/// Slots in the order of use.
const SLOTS: [u8; 8] = [7, 6, 5, 4, 2, 1, 0, 3];

/// Devices besides disks: console, vsock, share, network and random numbers.
const OTHER_DEVICES: usize = 5;

/// Requests that the share's queue holds: as many as QEMU offers, since one of a megabyte takes a quarter of them.
const SHARE_QUEUE: u16 = 1024;

/// The most disks of a machine.
const MAX_DISKS: usize = SLOTS.len() - OTHER_DEVICES;

/// The most memory for translated code, in MiB. QEMU's own limit is a gigabyte; what does not fit is translated again.
const TRANSLATED_CODE_MIB: u32 = 128;

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// The CPU.
    Kvm,
    /// QEMU, with the host's time stamp counter, whose frequency this is where it is known.
    Software {
        /// Ticks in a millisecond.
        tsc_khz: Option<u32>,
    },
}

/// Descriptors of connected sockets that QEMU inherits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sockets {
    /// The vhost-user device of vsock.
    pub(super) vsock: RawFd,
    /// The vhost-user device of the share.
    pub(super) share: Option<RawFd>,
    /// The stream of the network device.
    pub(super) link: Option<RawFd>,
}

/// QEMU's arguments for this machine. The console is on standard output.
pub(super) fn arguments(
    vm: &VmSpec,
    accelerator: Accelerator,
    sockets: &Sockets,
) -> Result<Vec<OsString>, RunError> {
    let mut line = Line { arguments: Vec::new(), slots: SLOTS.iter() };
    line.flag("-no-user-config");
    line.flag("-nodefaults");
    line.flag("-no-reboot");
    line.option("-display", "none");
    line.option("-monitor", "none");

    // vhost-user needs memory that another process can map.
    let memory = vm.memory_mib;
    line.option("-machine", "microvm,acpi=off,rtc=on,isa-serial=off,memory-backend=memory");
    line.option("-object", format!("memory-backend-memfd,id=memory,size={memory}M,share=on"));
    line.option("-m", format!("{memory}M"));
    line.option("-smp", vm.cpus.to_string());
    match accelerator {
        Accelerator::Kvm => {
            line.option("-accel", "kvm");
            line.option("-cpu", "host");
        }
        Accelerator::Software { .. } => {
            line.option(
                "-accel",
                format!("tcg,thread={},tb-size={TRANSLATED_CODE_MIB}", translation_threads(vm.cpus)),
            );
            line.option("-cpu", EMULATED_CPU);
        }
    }
    line.option("-kernel", absolute(&vm.kernel)?);
    line.option("-append", kernel_command_line(accelerator));

    line.option("-chardev", "stdio,id=console,signal=off");
    line.device("virtio-serial-device,max_ports=1")?;
    line.option("-device", "virtconsole,chardev=console");
    if vm.disks.len() > MAX_DISKS {
        let asked = vm.disks.len();
        return Err(RunError::Unsupported(format!("{asked} disks are more than {MAX_DISKS}")));
    }
    for (index, disk) in vm.disks.iter().enumerate() {
        line.disk(index, disk)?;
    }
    line.option("-chardev", format!("socket,id=vsock,fd={}", sockets.vsock));
    line.device("vhost-user-vsock-device,chardev=vsock")?;
    if let Some(share) = sockets.share {
        line.option("-chardev", format!("socket,id=share,fd={share}"));
        line.device(format!("vhost-user-fs-device,chardev=share,tag={TAG},queue-size={SHARE_QUEUE}"))?;
    }
    if let Some((link, device)) = sockets.link.zip(vm.network.as_ref()) {
        let [a, b, c, d, e, f] = device.mac;
        line.option("-netdev", format!("stream,id=link,server=off,addr.type=fd,addr.str={link}"));
        line.device(format!(
            "virtio-net-device,netdev=link,mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x},host_mtu={}",
            device.mtu
        ))?;
    }
    line.device("virtio-rng-device")?;
    Ok(line.arguments)
}

/// QEMU can emulate CPUs in parallel. With QEMU 7.2, one of 36 such boots with two CPUs ended in a panic while the kernel
/// patched its own code. A kernel that boots every time is worth more than a second thread, which made no boot quicker.
fn translation_threads(cpus: u8) -> &'static str {
    if cpus == 1 { "multi" } else { "single" }
}

fn kernel_command_line(accelerator: Accelerator) -> String {
    match accelerator {
        Accelerator::Software { tsc_khz: Some(khz) } => {
            // Measuring the counter and testing the timer is most of what a kernel waits for. Under KVM it is told the
            // frequency by other means.
            format!("{COMMAND_LINE} tsc_early_khz={khz} tsc=reliable no_timer_check")
        }
        Accelerator::Software { tsc_khz: None } => format!("{COMMAND_LINE} no_timer_check"),
        Accelerator::Kvm => COMMAND_LINE.to_owned(),
    }
}

struct Line {
    arguments: Vec<OsString>,
    slots: std::slice::Iter<'static, u8>,
}

impl Line {
    fn flag(&mut self, flag: &str) {
        self.arguments.push(flag.into());
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.arguments.push(name.into());
        self.arguments.push(value.into());
    }

    /// A device in the next slot.
    fn device(&mut self, device: impl AsRef<str>) -> Result<(), RunError> {
        let slot =
            self.slots.next().ok_or_else(|| RunError::Unsupported("there are too many devices".into()))?;
        self.option("-device", format!("{},bus=virtio-mmio-bus.{slot}", device.as_ref()));
        Ok(())
    }

    /// A disk in the next slot. The format is always named: QEMU would guess it from bytes that a guest may have written.
    fn disk(&mut self, index: usize, disk: &DiskSpec) -> Result<(), RunError> {
        let read_only = if disk.read_only { "on" } else { "off" };
        // What the guest discards is given back to the host's file system. Writes go to the host's page cache and are
        // flushed when the guest flushes.
        let discard = if disk.read_only { "ignore" } else { "unmap" };
        let format = match disk.format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        };
        let mut file = OsString::from(format!(
            "driver=file,node-name=file{index},read-only={read_only},discard={discard},filename="
        ));
        file.push(escape(absolute(&disk.path)?));
        self.option("-blockdev", file);
        self.option(
            "-blockdev",
            format!(
                "driver={format},node-name=disk{index},file=file{index},read-only={read_only},discard={discard}"
            ),
        );
        self.device(format!("virtio-blk-device,drive=disk{index}"))
    }
}

/// QEMU reads a relative path such as `nbd:…` as something else, so none is passed.
fn absolute(path: &Path) -> Result<&OsStr, RunError> {
    if path.is_absolute() {
        Ok(path.as_os_str())
    } else {
        Err(RunError::Unsupported(format!("the path {path:?} is not absolute")))
    }
}

/// A value in a list of options: a comma would end it, two are one.
fn escape(value: &OsStr) -> OsString {
    let mut out = Vec::with_capacity(value.len());
    for &byte in value.as_bytes() {
        out.push(byte);
        if byte == b',' {
            out.push(b',');
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use boxlite_control::NetDevice;

    fn disk(path: &str, format: DiskFormat, read_only: bool) -> DiskSpec {
        DiskSpec { path: path.into(), format, read_only }
    }

    fn machine() -> VmSpec {
        VmSpec {
            cpus: 2,
            memory_mib: 512,
            kernel: "/cache/kernel.elf".into(),
            disks: vec![
                disk("/a", DiskFormat::Raw, true),
                disk("/b", DiskFormat::Raw, true),
                disk("/c", DiskFormat::Qcow2, false),
            ],
            ports: Vec::new(),
            share: None,
            network: Some(NetDevice { descriptor: 3, mac: [2, 0xb0, 0x0c, 0, 0, 2], mtu: 65520 }),
        }
    }

    const SOCKETS: Sockets = Sockets { vsock: 9, share: Some(10), link: Some(11) };

    fn line(vm: &VmSpec, accelerator: Accelerator) -> String {
        let arguments = arguments(vm, accelerator, &SOCKETS).unwrap();
        let arguments: Vec<_> = arguments.iter().map(|argument| argument.to_str().unwrap()).collect();
        format!("{} ", arguments.join(" "))
    }

    const SOFTWARE: Accelerator = Accelerator::Software { tsc_khz: Some(2_500_000) };

    #[test]
    fn disks_are_in_the_order_asked_and_only_random_numbers_share_the_clocks_interrupt() {
        let line = line(&machine(), SOFTWARE);
        for device in [
            "virtio-serial-device,max_ports=1,bus=virtio-mmio-bus.7 ",
            "virtio-blk-device,drive=disk0,bus=virtio-mmio-bus.6 ",
            "virtio-blk-device,drive=disk1,bus=virtio-mmio-bus.5 ",
            "virtio-blk-device,drive=disk2,bus=virtio-mmio-bus.4 ",
            "vhost-user-vsock-device,chardev=vsock,bus=virtio-mmio-bus.2 ",
            "vhost-user-fs-device,chardev=share,tag=volumes,queue-size=1024,bus=virtio-mmio-bus.1 ",
            "virtio-net-device,netdev=link,mac=02:b0:0c:00:00:02,host_mtu=65520,bus=virtio-mmio-bus.0 ",
            "virtio-rng-device,bus=virtio-mmio-bus.3 ",
        ] {
            assert!(line.contains(device), "{device} in {line}");
        }
        assert!(line.contains("-netdev stream,id=link,server=off,addr.type=fd,addr.str=11 "), "{line}");
    }

    #[test]
    fn each_disk_has_its_format_and_is_as_writable_as_asked() {
        let line = line(&machine(), SOFTWARE);
        assert!(
            line.contains("driver=file,node-name=file1,read-only=on,discard=ignore,filename=/b "),
            "{line}"
        );
        assert!(
            line.contains("driver=raw,node-name=disk1,file=file1,read-only=on,discard=ignore "),
            "{line}"
        );
        assert!(
            line.contains("driver=file,node-name=file2,read-only=off,discard=unmap,filename=/c "),
            "{line}"
        );
        assert!(
            line.contains("driver=qcow2,node-name=disk2,file=file2,read-only=off,discard=unmap "),
            "{line}"
        );
    }

    #[test]
    fn a_comma_in_a_path_does_not_start_an_option() {
        let mut vm = machine();
        vm.disks[2].path = "/x,read-only=on,y".into();
        assert!(line(&vm, SOFTWARE).contains("filename=/x,,read-only=on,,y "));
    }

    #[test]
    fn a_relative_path_is_refused() {
        let mut vm = machine();
        vm.disks[0].path = "nbd:evil".into();
        assert!(matches!(arguments(&vm, SOFTWARE, &SOCKETS), Err(RunError::Unsupported(_))));
    }

    #[test]
    fn more_disks_than_slots_are_refused() {
        let mut vm = machine();
        vm.disks.resize(MAX_DISKS, vm.disks[0].clone());
        assert!(arguments(&vm, SOFTWARE, &SOCKETS).is_ok());
        vm.disks.push(vm.disks[0].clone());
        assert!(matches!(arguments(&vm, SOFTWARE, &SOCKETS), Err(RunError::Unsupported(_))));
    }

    #[test]
    fn only_emulation_is_told_the_frequency_of_the_host() {
        assert!(line(&machine(), SOFTWARE).contains(" tsc_early_khz=2500000 tsc=reliable no_timer_check "));
        assert!(!line(&machine(), Accelerator::Software { tsc_khz: None }).contains("tsc"));
        let kvm = line(&machine(), Accelerator::Kvm);
        assert!(!kvm.contains("tsc") && !kvm.contains("no_timer_check"), "{kvm}");
        assert!(kvm.contains("-accel kvm -cpu host "), "{kvm}");
    }

    #[test]
    fn one_emulated_cpu_has_a_thread_and_several_share_one() {
        assert_eq!(translation_threads(1), "multi");
        assert_eq!(translation_threads(2), "single");
    }
}
