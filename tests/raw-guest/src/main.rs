//! A bare init: the least that can run in a guest, for tests of the devices and as the floor of benchmarks.
//!
//! It is PID 1 of a boot disk with the empty folders `dev` and `proc`. The word `raw=…` of the kernel's command line says
//! what it does: `hello` prints a line on the console and powers off, `serve` carries out the [`Command`]s of the host.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use boxlite_raw_guest::{Checksum, Command, PORT, Pattern, READY_PORT};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, VsockAddr, accept4, bind, connect, listen,
    shutdown, socket,
};

const HOST: u32 = 2;
const ANY: u32 = u32::MAX;

/// Bytes that all sources have written.
static PROGRESS: AtomicU64 = AtomicU64::new(0);

/// The argument with which this program ends at once.
const END: &str = "end";

fn main() {
    if std::env::args().nth(1).as_deref() == Some(END) {
        return;
    }
    if let Err(error) = run() {
        report(&format!("raw guest: {error}"));
    }
    power_off();
}

fn run() -> io::Result<()> {
    // The console is a device node, and the mode is in /proc.
    for (kind, path) in [("devtmpfs", "/dev"), ("proc", "/proc")] {
        match mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>) {
            // The kernel may have mounted /dev by itself.
            Ok(()) | Err(nix::Error::EBUSY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let words = std::fs::read_to_string("/proc/cmdline")?;
    match words.split_whitespace().find_map(|word| word.strip_prefix("raw=")) {
        Some("hello") => report("raw hello"),
        Some("serve") => serve()?,
        mode => report(&format!("raw guest: no such mode: {mode:?}")),
    }
    Ok(())
}

fn report(message: &str) {
    // There is nobody else to tell.
    let console = OpenOptions::new().write(true).open("/dev/console");
    if console.and_then(|mut console| writeln!(console, "{message}")).is_err() {
        power_off();
    }
}

fn power_off() -> ! {
    // Without ACPI the first only halts, so the VMM is told by a reset, on which it exits.
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    panic!("no reboot: {error}");
}

fn stream_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)
}

fn serve() -> io::Result<()> {
    let listener = stream_socket()?;
    bind(listener.as_raw_fd(), &VsockAddr::new(ANY, PORT))?;
    listen(&listener, Backlog::MAXCONN)?;
    // Kept open: its end would be the machine's.
    let _ready = dial(READY_PORT).and_then(|mut ready| ready.write_all(b"R").map(|()| ready))?;
    loop {
        let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: accept4 has just made this descriptor, and nothing else knows it.
        let stream = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        // An error ends the connection, which is how the host learns of it.
        std::thread::Builder::new().stack_size(64 << 10).spawn(move || converse(stream).is_ok())?;
    }
}

fn spawn(stream: &mut File) -> io::Result<()> {
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        let status = std::process::Command::new("/init").arg(END).status()?;
        if !status.success() {
            return Err(io::Error::other("it does not end well"));
        }
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn dial(port: u32) -> io::Result<File> {
    let fd = stream_socket()?;
    connect(fd.as_raw_fd(), &VsockAddr::new(HOST, port))?;
    Ok(File::from(fd))
}

fn converse(mut stream: File) -> io::Result<()> {
    let mut command = [0];
    stream.read_exact(&mut command)?;
    match Command::from_byte(command[0]) {
        Some(Command::Ping) => echo(&mut stream, 4 << 10),
        Some(Command::Echo) => echo(&mut stream, 64 << 10),
        Some(Command::Source) => {
            let count = read_u64(&mut stream)?;
            source(&mut stream, count)?;
            half_close(&stream)?;
            sink(&mut stream).map(|_| ())
        }
        Some(Command::SourceAndClose) => {
            let count = read_u64(&mut stream)?;
            source(&mut stream, count)
        }
        Some(Command::Sink) => {
            let (count, sum) = sink(&mut stream)?;
            answer(&mut stream, count, sum)
        }
        Some(Command::Dial) => {
            let mut port = [0; 4];
            stream.read_exact(&mut port)?;
            let count = read_u64(&mut stream)?;
            match dial(u32::from_be_bytes(port)) {
                Ok(mut other) => {
                    stream.write_all(&0u32.to_be_bytes())?;
                    source(&mut other, count)?;
                    half_close(&other)?;
                    let (count, sum) = sink(&mut other)?;
                    answer(&mut stream, count, sum)
                }
                Err(error) => {
                    let number = error.raw_os_error().and_then(|number| u32::try_from(number).ok());
                    stream.write_all(&number.unwrap_or(u32::MAX).to_be_bytes())
                }
            }
        }
        Some(Command::Progress) => stream.write_all(&PROGRESS.load(Ordering::Relaxed).to_be_bytes()),
        Some(Command::Spawn) => spawn(&mut stream),
        Some(Command::PowerOff) => power_off(),
        None => Err(io::Error::other("no such command")),
    }
}

fn read_u64(stream: &mut File) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

fn answer(stream: &mut File, count: u64, sum: u64) -> io::Result<()> {
    stream.write_all(&count.to_be_bytes())?;
    stream.write_all(&sum.to_be_bytes())
}

fn half_close(stream: &File) -> io::Result<()> {
    Ok(shutdown(stream.as_raw_fd(), Shutdown::Write)?)
}

fn echo(stream: &mut File, size: usize) -> io::Result<()> {
    let mut buffer = vec![0; size];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}

fn source(stream: &mut File, count: u64) -> io::Result<()> {
    let mut pattern = Pattern::default();
    let mut buffer = vec![0; 64 << 10];
    let mut left = count;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        pattern.fill(&mut buffer[..now]);
        let mut rest = &buffer[..now];
        while !rest.is_empty() {
            let written = stream.write(rest)?;
            rest = &rest[written..];
            let written = u64::try_from(written).unwrap_or(0);
            left -= written;
            PROGRESS.fetch_add(written, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn sink(stream: &mut File) -> io::Result<(u64, u64)> {
    let mut checksum = Checksum::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(checksum.finish()),
            count => checksum.update(&buffer[..count]),
        }
    }
}
