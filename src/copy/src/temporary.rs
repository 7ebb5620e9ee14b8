//! Something that was made under a name of its own, and has yet to get the one that it is for.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// How often another name is tried.
const NAMES: usize = 16;

/// See the module. It is removed when this is dropped, unless it has been kept.
#[derive(Debug)]
pub(crate) struct Temporary<'a> {
    folder: BorrowedFd<'a>,
    name: CString,
    kept: bool,
}

impl<'a> Temporary<'a> {
    /// Makes something under a new name.
    pub(crate) fn other(
        folder: BorrowedFd<'a>,
        make: impl Fn(&CStr) -> rustix::io::Result<()>,
    ) -> rustix::io::Result<Self> {
        Self::new(folder, |name| make(name)).map(|(temporary, ())| temporary)
    }

    /// Makes an empty file that nobody else can open.
    pub(crate) fn file(folder: BorrowedFd<'a>) -> rustix::io::Result<(Self, File)> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let make = |name: &CStr| openat(folder, name, flags, Mode::RUSR | Mode::WUSR).map(File::from);
        Self::new(folder, make)
    }

    fn new<T>(
        folder: BorrowedFd<'a>,
        make: impl Fn(&CStr) -> rustix::io::Result<T>,
    ) -> rustix::io::Result<(Self, T)> {
        for _ in 0..NAMES {
            let mut random = [0; 8];
            getrandom(&mut random, GetRandomFlags::empty())?;
            let name = CString::new(format!(".boxlite-{:016x}", u64::from_ne_bytes(random)));
            let name = name.map_err(|_| Errno::INVAL)?;
            match make(&name) {
                Ok(made) => return Ok((Self { folder, name, kept: false }, made)),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::EXIST)
    }

    pub(crate) fn name(&self) -> &CStr {
        &self.name
    }

    /// It has been renamed.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // Of a hard link nothing is left after the rename; of all else there is nobody to tell: the first error counts.
            unlinkat(self.folder, &self.name, AtFlags::empty()).unwrap_or_default();
        }
    }
}
