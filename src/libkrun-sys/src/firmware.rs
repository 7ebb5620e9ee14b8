//! libkrunfw, and the guest's kernel that it carries.
//!
//! libkrunfw is a shared library that holds a Linux kernel as a raw image, laid out as it has to lie in the guest's
//! memory. [`kernel`] writes it as an ELF file that needs no library to be booted:
//!
//! ```text
//!   offset  content
//!   0       ELF header; its entry is the kernel's 64-bit entry, where libkrun starts
//!   64      PT_LOAD: the image. The kernel clears the memory behind it, which is its .bss, by itself
//!   120     PT_NOTE
//!   176     the note "Xen" 18: the 32-bit PVH entry, where QEMU starts. It is the image's first byte
//!   4096    the image
//! ```

use std::ffi::{CStr, CString, c_char, c_void};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Environment variable with the path of libkrunfw. No other place is looked at when it is set.
pub const LIBRARY_VARIABLE: &str = "BOXLITE_LIBKRUNFW";

/// Environment variable with the folder of downloaded build inputs, instead of `~/.cache/boxlite`.
pub const CACHE_VARIABLE: &str = "BOXLITE_CACHE";

/// The version that `make deps` fetches.
pub const VERSION: &str = "5.6.1";

/// The file name of libkrunfw: the number is that of its interface.
pub const FILE_NAME: &str = "libkrunfw.so.5";

/// Raised when [`kernel`] writes a different file from the same library.
const LAYOUT: u32 = 1;
const IMAGE_OFFSET: usize = 4096;
const LARGEST_IMAGE: usize = 256 << 20;

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FirmwareError {
    /// libkrunfw is in none of the usual places.
    #[error("libkrunfw, which carries the guest's kernel, was not found (looked for {})", list(.0))]
    NotFound(Vec<PathBuf>),
    /// The place that was asked for cannot be read.
    #[error("libkrunfw cannot be read at {path}, which {LIBRARY_VARIABLE} names")]
    Named {
        /// The value of the variable.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is there and cannot be used.
    #[error("{path} is not usable as libkrunfw: {reason}")]
    Unusable {
        /// The library.
        path: PathBuf,
        /// The loader's words, or what is wrong with the kernel.
        reason: String,
    },
    /// The kernel file could not be written.
    #[error("cannot write the kernel to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl FirmwareError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound(_) | Self::Unusable { .. } => Some(format!(
                "run `make deps`, put {FILE_NAME} beside boxlite-shim, or name it in {LIBRARY_VARIABLE}"
            )),
            Self::Named { .. } => Some(format!("correct or unset {LIBRARY_VARIABLE}")),
            Self::Write { .. } => None,
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The path of libkrunfw: the one named by [`LIBRARY_VARIABLE`]; else beside the executable, in the folder of build
/// inputs, or where the system's loader finds it.
///
/// # Errors
/// When it is in none of these places.
pub fn find() -> Result<PathBuf, FirmwareError> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = variable(LIBRARY_VARIABLE) {
        return match File::open(&path) {
            Ok(_) => Ok(path),
            Err(source) => Err(FirmwareError::Named { path, source }),
        };
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(FILE_NAME)));
    let inputs = variable(CACHE_VARIABLE).or_else(|| Some(variable("HOME")?.join(".cache/boxlite")));
    let fetched = inputs.map(|inputs| inputs.join("libkrunfw").join(VERSION).join(FILE_NAME));
    find_in(beside.into_iter().chain(fetched).collect())
}

fn find_in(mut places: Vec<PathBuf>) -> Result<PathBuf, FirmwareError> {
    if let Some(found) = places.iter().find(|path| path.is_file()) {
        return Ok(found.clone());
    }
    match Library::open(Path::new(FILE_NAME)) {
        Ok(library) => library.path(),
        Err(_) => {
            places.push(PathBuf::from(format!("{FILE_NAME} on the system's library path")));
            Err(FirmwareError::NotFound(places))
        }
    }
}

/// The kernel of this library as an ELF file in `cache`. It is made at the first call; processes that race for it all
/// succeed, since each writes a file of its own and renames it into place.
///
/// The name tells the library's device, inode, size and time of change, so that finding the file again costs two calls of
/// `stat`.
///
/// # Errors
/// When the library is not usable or the file cannot be written.
pub fn kernel(library: &Path, cache: &Path) -> Result<PathBuf, FirmwareError> {
    let unusable = |reason: String| FirmwareError::Unusable { path: library.to_owned(), reason };
    let identity = fs::metadata(library).map_err(|error| unusable(error.to_string()))?;
    let target = cache.join(format!(
        "kernel-{LAYOUT}-{:x}-{:x}-{:x}-{:x}.{:x}.elf",
        identity.dev(),
        identity.ino(),
        identity.size(),
        identity.mtime(),
        identity.mtime_nsec(),
    ));
    if target.is_file() {
        return Ok(target);
    }
    let opened = Library::open(library).map_err(unusable)?;
    let image = opened.kernel()?;
    write(&image, cache, &target).map_err(|source| FirmwareError::Write { path: target.clone(), source })?;
    Ok(target)
}

fn write(image: &Image<'_>, cache: &Path, target: &Path) -> io::Result<()> {
    fs::create_dir_all(cache)?;
    let partial = target.with_extension(format!("{}.partial", nonce()));
    let result = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&partial)?;
        file.write_all(&image.header())?;
        file.write_all(image.bytes)?;
        // The name promises the whole content, also after a power failure.
        file.sync_all()?;
        fs::rename(&partial, target)
    })();
    if result.is_err() {
        // The first error is the one to report; a partial file that stays behind is only lost space.
        drop(fs::remove_file(&partial));
    }
    result
}

/// A name that nobody else has: process ids alone repeat across PID namespaces that share a cache.
fn nonce() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("{:x}-{now:x}-{count:x}", std::process::id())
}

/// A kernel as libkrunfw holds it.
#[derive(Debug)]
struct Image<'a> {
    bytes: &'a [u8],
    load_address: u64,
    entry: u64,
}

impl Image<'_> {
    /// Everything of the ELF file that is in front of the image.
    fn header(&self) -> Vec<u8> {
        const HEADER: u16 = 64;
        const SEGMENT: u16 = 56;
        const NOTE: u64 = HEADER as u64 + 2 * SEGMENT as u64;
        const EM_X86_64: u16 = 62;
        const ET_EXEC: u16 = 2;
        const PT_LOAD: u32 = 1;
        const PT_NOTE: u32 = 4;
        /// XEN_ELFNOTE_PHYS32_ENTRY of the PVH boot protocol.
        const PHYS32_ENTRY: u32 = 18;

        let mut note = Vec::new();
        for word in [4, 4, PHYS32_ENTRY] {
            note.extend_from_slice(&word.to_le_bytes());
        }
        note.extend_from_slice(b"Xen\0");
        // `Library::kernel` has checked that it fits.
        note.extend_from_slice(&u32::try_from(self.load_address).unwrap_or(u32::MAX).to_le_bytes());

        let mut out = Vec::with_capacity(4096);
        out.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0"); // 64 bits, little-endian, version 1
        out.extend_from_slice(&ET_EXEC.to_le_bytes());
        out.extend_from_slice(&EM_X86_64.to_le_bytes());
        out.extend_from_slice(&1_u32.to_le_bytes());
        out.extend_from_slice(&self.entry.to_le_bytes());
        out.extend_from_slice(&u64::from(HEADER).to_le_bytes()); // where the segments are
        out.extend_from_slice(&0_u64.to_le_bytes()); // no sections
        out.extend_from_slice(&0_u32.to_le_bytes()); // no flags
        for half in [HEADER, SEGMENT, 2, 0, 0, 0] {
            out.extend_from_slice(&half.to_le_bytes());
        }
        let mut segment =
            |kind: u32, flags: u32, offset: u64, address: u64, file: u64, memory: u64, align: u64| {
                out.extend_from_slice(&kind.to_le_bytes());
                out.extend_from_slice(&flags.to_le_bytes());
                for word in [offset, address, address, file, memory, align] {
                    out.extend_from_slice(&word.to_le_bytes());
                }
            };
        let size = self.bytes.len() as u64;
        segment(PT_LOAD, 7, IMAGE_OFFSET as u64, self.load_address, size, size, IMAGE_OFFSET as u64);
        segment(PT_NOTE, 4, NOTE, 0, note.len() as u64, note.len() as u64, 4);
        out.extend_from_slice(&note);
        out.resize(IMAGE_OFFSET, 0);
        out
    }
}

/// An open libkrunfw.
#[derive(Debug)]
struct Library {
    handle: *mut c_void,
    name: PathBuf,
}

type GetKernel = unsafe extern "C" fn(*mut u64, *mut u64, *mut usize) -> *const c_char;

impl Library {
    fn open(path: &Path) -> Result<Self, String> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        // SAFETY: the name ends in NUL. Loading runs the library's constructors; libkrunfw is data and has none.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            return Err(loader_error());
        }
        Ok(Self { handle, name: path.to_owned() })
    }

    fn get_kernel(&self) -> Result<*mut c_void, FirmwareError> {
        // SAFETY: the handle is open as long as self lives, and the name ends in NUL.
        let symbol = unsafe { libc::dlsym(self.handle, c"krunfw_get_kernel".as_ptr()) };
        if symbol.is_null() { Err(self.unusable(loader_error())) } else { Ok(symbol) }
    }

    /// The file that was loaded.
    fn path(&self) -> Result<PathBuf, FirmwareError> {
        let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
        // SAFETY: the address may be any; `info` is large enough, and written where the call succeeds.
        let found = unsafe { libc::dladdr(self.get_kernel()?, info.as_mut_ptr()) };
        if found == 0 {
            return Err(self.unusable("the loader does not tell its path".to_owned()));
        }
        // SAFETY: the call succeeded, so `info` is initialized; the name is a C string that lives as long as the library
        // is loaded, and it is copied at once.
        let name = unsafe { CStr::from_ptr(info.assume_init().dli_fname) };
        Ok(PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes())))
    }

    fn kernel(&self) -> Result<Image<'_>, FirmwareError> {
        let symbol = self.get_kernel()?;
        // SAFETY: this is the signature of krunfw_get_kernel in every library whose file name ends in `.so.5`.
        let get_kernel = unsafe { std::mem::transmute::<*mut c_void, GetKernel>(symbol) };
        let (mut load_address, mut entry, mut size) = (0, 0, 0);
        // SAFETY: the three pointers are valid for writes during the call.
        let start = unsafe { get_kernel(&raw mut load_address, &raw mut entry, &raw mut size) };
        if start.is_null() || size == 0 || size > LARGEST_IMAGE {
            return Err(self.unusable(format!("its kernel has {size} bytes")));
        }
        let end = load_address.saturating_add(size as u64);
        if end > u64::from(u32::MAX) || !(load_address..end).contains(&entry) {
            return Err(
                self.unusable(format!("its kernel starts at {entry:#x}, loaded at {load_address:#x}"))
            );
        }
        // SAFETY: libkrunfw says that `size` bytes lie at `start`, in its own read-only data: they are initialized, do not
        // change, and stay mapped until the library is closed, which the borrow of self prevents.
        let bytes = unsafe { std::slice::from_raw_parts(start.cast::<u8>(), size) };
        Ok(Image { bytes, load_address, entry })
    }

    fn unusable(&self, reason: String) -> FirmwareError {
        FirmwareError::Unusable { path: self.name.clone(), reason }
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: the handle came from dlopen and is closed once. A failure leaves the library mapped, which harms nobody.
        unsafe { libc::dlclose(self.handle) };
    }
}

fn loader_error() -> String {
    // SAFETY: takes no arguments; the string belongs to this thread until its next call of the loader, and is copied
    // before that.
    let message = unsafe {
        let message = libc::dlerror();
        if message.is_null() { None } else { Some(CStr::from_ptr(message).to_string_lossy().into_owned()) }
    };
    message.unwrap_or_else(|| "the loader gave no reason".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(bytes: &[u8], offset: usize, count: usize) -> Vec<u64> {
        let words = bytes[offset..offset + 8 * count].chunks_exact(8);
        words.map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
    }

    #[test]
    fn the_elf_file_has_one_loaded_segment_and_the_pvh_note() {
        let image = Image { bytes: &[7; 100], load_address: 0x100_0000, entry: 0x100_0123 };
        let header = image.header();
        assert_eq!(header.len(), IMAGE_OFFSET);
        assert_eq!(words(&header, 24, 2), [0x100_0123, 64]);
        assert_eq!(words(&header, 64 + 8, 6), [4096, 0x100_0000, 0x100_0000, 100, 100, 4096]);
        assert_eq!(words(&header, 120 + 8, 5), [176, 0, 0, 20, 20]);
        assert_eq!(&header[176..196], b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\0\0\0\x01");
    }

    #[test]
    fn a_missing_library_is_one_error_that_names_every_place() {
        let places = vec![PathBuf::from("/nowhere/a"), PathBuf::from("/nowhere/b")];
        match find_in(places) {
            Err(error @ FirmwareError::NotFound(_)) => {
                let text = error.to_string();
                assert!(text.contains("/nowhere/a, /nowhere/b"), "{text}");
                assert!(error.hint().unwrap().contains("make deps"));
            }
            // The machine has a libkrunfw of its own: then that one is found.
            Ok(path) => assert!(path.is_file(), "{path:?}"),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_file_that_is_no_library_is_refused_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let fake = folder.path().join(FILE_NAME);
        fs::write(&fake, "not a library").unwrap();
        let cache = folder.path().join("cache");
        assert!(matches!(kernel(&fake, &cache), Err(FirmwareError::Unusable { .. })));
        assert!(!cache.exists());
    }

    #[test]
    fn a_library_without_a_kernel_is_refused() {
        // The C library is a library that is certainly there and certainly has no kernel.
        let library = Library::open(Path::new("libc.so.6")).unwrap();
        let error = library.kernel().unwrap_err().to_string();
        assert!(error.contains("krunfw_get_kernel"), "{error}");
    }

    #[test]
    fn racing_writers_all_leave_the_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("kernel.elf");
        let bytes = vec![0xa5; 1 << 20];
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let image = Image { bytes: &bytes, load_address: 0x100_0000, entry: 0x100_0000 };
                    write(&image, folder.path(), &target).unwrap();
                    assert_eq!(fs::read(&target).unwrap().len(), 4096 + bytes.len());
                });
            }
        });
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}
