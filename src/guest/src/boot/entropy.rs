//! The first random numbers of the machine.
//!
//! A machine that has just started knows nothing that another one does not know as well. Its host gives it what makes it
//! different, through a virtio device; the kernel would use that too, but at a time of its own.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;

/// Where the host's random numbers come from.
const SOURCE: &str = "/dev/hwrng";
/// Where the kernel takes what it is given.
const POOL: &str = "/dev/random";
/// How much is taken, in bytes: twice what the kernel needs to call itself seeded.
const SEED: usize = 64;
/// RNDADDENTROPY, from linux/random.h.
const ADD_ENTROPY: libc::Ioctl = 0x4008_5203;

/// Why the machine has no random numbers.
#[derive(Debug, thiserror::Error)]
pub enum EntropyError {
    /// The machine has no random number generator, or it cannot be used.
    #[error("cannot read random numbers from {SOURCE}")]
    Source(#[source] io::Error),
    /// The kernel did not take them.
    #[error("cannot give random numbers to the kernel")]
    Pool(#[source] io::Error),
    /// The kernel took them and still has not enough.
    #[error("the kernel's random numbers are not ready although it was given {SEED} bytes")]
    NotReady(#[source] io::Error),
}

/// Seeds the kernel's random numbers, so that whoever asks for some from now on gets good ones and does not wait.
///
/// # Errors
/// When the host gives none or the kernel does not take them.
pub fn seed() -> Result<(), EntropyError> {
    let seed = read(Path::new(SOURCE)).map_err(EntropyError::Source)?;
    credit(&seed).map_err(EntropyError::Pool)?;
    check().map_err(EntropyError::NotReady)
}

/// Reads a seed. A host that gives none holds the boot up here, and the boot has a deadline, whose failure names the step: a
/// deadline of its own would need a thread, whose start costs ten times what the reading does.
fn read(source: &Path) -> io::Result<[u8; SEED]> {
    let mut seed = [0; SEED];
    File::open(source)?.read_exact(&mut seed)?;
    Ok(seed)
}

/// Gives the seed to the kernel, all of whose bits count.
fn credit(seed: &[u8; SEED]) -> io::Result<()> {
    let pool = File::options().write(true).open(POOL)?;
    let info = PoolInfo::new(seed);
    // SAFETY: RNDADDENTROPY reads a rand_pool_info and as many bytes behind it as its buf_size says; PoolInfo has both,
    // and lives during the call.
    Errno::result(unsafe { libc::ioctl(pool.as_raw_fd(), ADD_ENTROPY, &raw const info) })?;
    Ok(())
}

/// rand_pool_info of linux/random.h, with room for a seed.
#[repr(C)]
struct PoolInfo {
    /// How many random bits the bytes hold.
    entropy_count: i32,
    /// How many bytes there are.
    buf_size: i32,
    buf: [u8; SEED],
}

impl PoolInfo {
    const SIZE: i32 = 64;

    fn new(seed: &[u8; SEED]) -> Self {
        Self { entropy_count: Self::SIZE * 8, buf_size: Self::SIZE, buf: *seed }
    }
}

/// Whether the kernel gives random numbers without making anybody wait.
fn check() -> io::Result<()> {
    let mut byte = [0_u8];
    // SAFETY: the buffer is as long as the call is told, and lives during it.
    Errno::result(unsafe { libc::getrandom(byte.as_mut_ptr().cast(), byte.len(), libc::GRND_NONBLOCK) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::mem::{offset_of, size_of};
    use std::thread;

    use nix::sys::stat::Mode;

    /// A pipe with a name, and an end of it that keeps it open.
    fn pipe(folder: &Path) -> (std::path::PathBuf, File) {
        let path = folder.join("source");
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let end = File::options().read(true).write(true).open(&path).unwrap();
        (path, end)
    }

    #[test]
    fn the_seed_is_what_the_source_gives_in_however_many_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut end) = pipe(folder.path());
        end.write_all(&[1; 10]).unwrap();
        let reading = thread::spawn(move || read(&path));
        end.write_all(&[2; SEED - 10]).unwrap();
        let seed = reading.join().unwrap().unwrap();
        assert_eq!((&seed[..10], &seed[10..]), (&[1; 10][..], &[2; SEED - 10][..]));
    }

    #[test]
    fn a_source_that_is_missing_or_ends_is_an_error() {
        assert_eq!(read(Path::new("/nowhere")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(read(Path::new("/dev/null")).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let error = EntropyError::Source(io::ErrorKind::NotFound.into());
        assert!(error.to_string().contains(SOURCE), "{error}");
    }

    #[test]
    fn what_is_given_to_the_kernel_has_its_layout() {
        assert_eq!(size_of::<PoolInfo>(), 8 + SEED);
        assert_eq!((offset_of!(PoolInfo, buf_size), offset_of!(PoolInfo, buf)), (4, 8));
        let info = PoolInfo::new(&[7; SEED]);
        assert_eq!(usize::try_from(info.buf_size).unwrap(), SEED);
        assert_eq!(usize::try_from(info.entropy_count).unwrap(), SEED * 8);
    }

    #[test]
    fn a_machine_that_has_run_for_a_while_has_random_numbers() {
        check().unwrap();
    }
}
