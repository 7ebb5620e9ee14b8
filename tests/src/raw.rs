//! A machine of QEMU with the bare guest and the vsock device, for tests of the device and as a floor to measure with.
//!
//! Nothing here polls: the guest dials when it is ready, and every wait has a deadline.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use boxlite_raw_guest::{Checksum, Command, PORT, Pattern, READY_PORT};
use boxlite_vsock::{Device, Direction, Port};
use tempfile::TempDir;

/// A guest port on which nobody listens.
pub const SILENT_PORT: u32 = 4000;

/// A host port that leads to [`RawGuest::dialed`].
pub const DIALED_PORT: u32 = 2000;

/// How long the guest may take to boot on a busy machine.
const BOOT: Duration = Duration::from_secs(60);

/// How long any read or write of a test may take.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A running machine, which ends when this is dropped.
#[derive(Debug)]
pub struct RawGuest {
    qemu: Child,
    device: Option<JoinHandle<Result<(), boxlite_vsock::ServeError>>>,
    folder: TempDir,
    dialed: UnixListener,
    // Its end is the guest's.
    _ready: UnixStream,
    /// From the start of QEMU until the guest had dialed.
    pub boot: Duration,
}

/// The value of an environment variable that names a file.
///
/// # Panics
/// When it is not set: a test that cannot run must not pass.
#[must_use]
pub fn required_file(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).map(PathBuf::from);
    let path = path.unwrap_or_else(|| panic!("{variable} must name a file; see tests/src/raw.rs"));
    assert!(path.is_file(), "{variable}: {} is no file", path.display());
    path
}

/// The guest kernel as an ELF file: `BOXLITE_TEST_KERNEL`.
#[must_use]
pub fn kernel() -> PathBuf {
    required_file("BOXLITE_TEST_KERNEL")
}

/// Makes a boot disk with the bare guest of `BOXLITE_TEST_RAW_GUEST` as its init.
///
/// # Errors
/// When `mkfs.erofs` does not run or fails.
pub fn boot_disk(folder: &Path) -> io::Result<PathBuf> {
    let root = folder.join("root");
    for name in ["dev", "proc", "sys"] {
        std::fs::create_dir_all(root.join(name))?;
    }
    std::fs::copy(required_file("BOXLITE_TEST_RAW_GUEST"), root.join("init"))?;
    let disk = folder.join("boot.erofs");
    let output = Process::new("mkfs.erofs").arg("--quiet").arg(&disk).arg(&root).output()?;
    if output.status.success() {
        Ok(disk)
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

/// QEMU's arguments for a machine whose vsock device is served on its standard input.
#[must_use]
pub fn qemu_arguments(disk: &Path, console: &Path, mode: &str, cpus: u8) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = [
        "-M",
        "microvm,acpi=off,rtc=on,isa-serial=off,memory-backend=mem",
        "-object",
        "memory-backend-memfd,id=mem,size=256M,share=on",
        "-m",
        "256",
        "-cpu",
        "max,erms=off",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-chardev",
        "socket,id=vsock,fd=0",
        "-device",
        "vhost-user-vsock-device,chardev=vsock",
        "-device",
        "virtio-serial-device",
        "-device",
        "virtconsole,chardev=console",
        "-device",
        "virtio-blk-device,drive=boot",
    ]
    .map(OsString::from)
    .to_vec();
    let joined = |before: &str, path: &Path, after: &str| {
        let mut all = OsString::from(before);
        all.push(path);
        all.push(after);
        all
    };
    // Several CPUs that are emulated in parallel do not boot every time with QEMU 7.2.
    let threads = if cpus > 1 { "tcg,thread=single" } else { "tcg,thread=multi" };
    arguments.extend(["-smp".into(), cpus.to_string().into(), "-accel".into(), threads.into()]);
    arguments.extend(["-kernel".into(), kernel().into_os_string()]);
    arguments.extend(["-chardev".into(), joined("file,id=console,path=", console, "")]);
    arguments.extend(["-drive".into(), joined("id=boot,format=raw,readonly=on,if=none,file=", disk, "")]);
    let words = "console=hvc0 root=/dev/vda ro rootfstype=erofs init=/init reboot=k panic=-1 nomodule quiet \
                 no-kvmapf tsc=reliable no_timer_check";
    arguments.extend(["-append".into(), format!("{words} {} raw={mode}", tsc()).into()]);
    arguments
}

/// Tells the guest's kernel the frequency of the time stamp counter, which it cannot measure on a busy host.
fn tsc() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let told =
        text.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split_once(':')?.1.trim().split_once('.'));
    match told {
        Some((mega, fraction)) if mega.parse::<u32>().is_ok() => {
            format!(
                "tsc_early_khz={mega}{}",
                fraction.chars().chain("000".chars()).take(3).collect::<String>()
            )
        }
        _ => String::new(),
    }
}

impl RawGuest {
    /// Boots a machine and waits until its guest has dialed.
    ///
    /// # Panics
    /// When that does not work, with the guest's console.
    #[must_use]
    pub fn boot(cpus: u8) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = boot_disk(folder.path()).expect("a boot disk");
        let path = |name: &str| folder.path().join(name);
        let ready = UnixListener::bind(path("ready")).expect("a socket");
        let dialed = UnixListener::bind(path("dialed")).expect("a socket");
        let device = Device::new(
            3,
            vec![
                Port { port: PORT, path: path("guest"), direction: Direction::HostToGuest },
                Port { port: SILENT_PORT, path: path("silent"), direction: Direction::HostToGuest },
                Port { port: READY_PORT, path: path("ready"), direction: Direction::GuestToHost },
                Port { port: DIALED_PORT, path: path("dialed"), direction: Direction::GuestToHost },
            ],
        )
        .expect("a device");
        let (ours, qemus) = UnixStream::pair().expect("a socket pair");
        let device = std::thread::Builder::new().name("vsock".into()).spawn(move || device.serve(ours));
        let start = Instant::now();
        let qemu = Process::new("qemu-system-x86_64")
            .args(qemu_arguments(&disk, &path("console"), "serve", cpus))
            .stdin(Stdio::from(OwnedFd::from(qemus)))
            .spawn()
            .expect("QEMU starts");

        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let ready = ready.accept().and_then(|(mut ready, _)| {
                ready.read_exact(&mut [0])?;
                Ok(ready)
            });
            // The receiver is gone when the deadline has passed.
            sender.send(ready).is_ok()
        });
        let ready = receiver.recv_timeout(BOOT);
        let console = || std::fs::read_to_string(path("console")).unwrap_or_default();
        let ready = match ready {
            Ok(ready) => ready.unwrap_or_else(|error| panic!("the guest hung up: {error}\n{}", console())),
            Err(_) => panic!("the guest did not boot in time; its console:\n{}", console()),
        };
        let boot = start.elapsed();
        let device = Some(device.expect("a thread"));
        Self { qemu, device, folder, dialed, _ready: ready, boot }
    }

    /// A connection to the guest's port, on which every read and write has a deadline.
    ///
    /// # Errors
    /// When the device does not accept it.
    pub fn connect(&self) -> io::Result<UnixStream> {
        self.connect_to("guest")
    }

    /// A connection to a port on which nobody listens.
    ///
    /// # Errors
    /// When the device does not accept it.
    pub fn connect_to_silence(&self) -> io::Result<UnixStream> {
        self.connect_to("silent")
    }

    fn connect_to(&self, name: &str) -> io::Result<UnixStream> {
        with_deadline(UnixStream::connect(self.folder.path().join(name))?)
    }

    /// The next connection that the guest has made to [`DIALED_PORT`].
    ///
    /// # Errors
    /// When it cannot be accepted.
    pub fn dialed(&self) -> io::Result<UnixStream> {
        with_deadline(self.dialed.accept()?.0)
    }

    /// Gives the guest a command on a new connection.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn command(&self, command: Command, argument: &[u8]) -> io::Result<UnixStream> {
        let mut stream = self.connect()?;
        let mut bytes = vec![command as u8];
        bytes.extend_from_slice(argument);
        stream.write_all(&bytes)?;
        Ok(stream)
    }

    /// QEMU's process id.
    #[must_use]
    pub fn qemu_pid(&self) -> u32 {
        self.qemu.id()
    }

    /// Has the guest power off, and waits until QEMU and the device have ended.
    ///
    /// # Panics
    /// When the device has failed.
    pub fn power_off(mut self) {
        self.power_off_and_wait_for_qemu();
        self.join().expect("the device ends well");
    }

    /// Has the guest power off and waits until QEMU has ended. The device may not have.
    ///
    /// # Panics
    /// When QEMU has failed.
    pub fn power_off_and_wait_for_qemu(&mut self) {
        self.command(Command::PowerOff, &[]).expect("a command");
        let status = self.qemu.wait().expect("QEMU ends");
        assert!(status.success(), "QEMU: {status}");
    }

    fn join(&mut self) -> Result<(), boxlite_vsock::ServeError> {
        match self.device.take() {
            Some(device) => device.join().expect("the device does not panic"),
            None => Ok(()),
        }
    }
}

impl Drop for RawGuest {
    fn drop(&mut self) {
        if self.device.is_some() {
            let ended = self.qemu.kill().and_then(|()| self.qemu.wait());
            if !std::thread::panicking() {
                ended.expect("QEMU ends");
                self.join().expect("the device ends well");
            }
        }
    }
}

fn with_deadline(stream: UnixStream) -> io::Result<UnixStream> {
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// Reads to the end of the stream: count and checksum.
///
/// # Errors
/// When a read fails or takes too long.
pub fn drain(stream: &mut UnixStream) -> io::Result<(u64, u64)> {
    let mut checksum = Checksum::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(checksum.finish()),
            count => checksum.update(&buffer[..count]),
        }
    }
}

/// Writes `count` bytes of the pattern.
///
/// # Errors
/// When a write fails or takes too long.
pub fn pour(stream: &mut UnixStream, count: u64) -> io::Result<()> {
    let mut pattern = Pattern::default();
    let mut buffer = vec![0; 64 << 10];
    let mut left = count;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        pattern.fill(&mut buffer[..now]);
        stream.write_all(&buffer[..now])?;
        left -= now as u64;
    }
    Ok(())
}

/// Reads the count and checksum that the guest answers with.
///
/// # Errors
/// When a read fails or takes too long.
pub fn answer(stream: &mut UnixStream) -> io::Result<(u64, u64)> {
    let mut bytes = [0; 16];
    stream.read_exact(&mut bytes)?;
    let (count, sum) = bytes.split_at(8);
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).map_err(io::Error::other);
    Ok((number(count)?, number(sum)?))
}
