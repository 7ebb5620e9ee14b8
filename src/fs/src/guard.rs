//! The one place that keeps a read-only volume from being changed.
//!
//! Every operation is listed, so that a new one cannot be forgotten. An operation that names a second file, as RENAME and
//! LINK do, is later refused if that one is of another volume; so the file that the request is about decides.

use crate::request::Operation;

const O_ACCMODE: u32 = 0o3;
const O_TRUNC: u32 = 0o1000;
const O_APPEND: u32 = 0o2000;

/// Whether it may change something.
pub(crate) fn changes(operation: &Operation<'_>) -> bool {
    match operation {
        Operation::SetAttr(_)
        | Operation::SymLink { .. }
        | Operation::MkNod { .. }
        | Operation::MkDir { .. }
        | Operation::Unlink { .. }
        | Operation::RmDir { .. }
        | Operation::Rename { .. }
        | Operation::Link { .. }
        | Operation::Create { .. }
        | Operation::Write { .. }
        | Operation::SetXattr { .. }
        | Operation::RemoveXattr { .. }
        | Operation::Fallocate { .. }
        | Operation::CopyFileRange => true,
        Operation::Open { flags } => flags & (O_ACCMODE | O_TRUNC | O_APPEND) != 0,
        Operation::Init(_)
        | Operation::Destroy
        | Operation::Interrupt
        | Operation::Forget { .. }
        | Operation::BatchForget { .. }
        | Operation::Lookup { .. }
        | Operation::GetAttr { .. }
        | Operation::ReadLink
        | Operation::Read(_)
        | Operation::Flush { .. }
        | Operation::Release { .. }
        | Operation::Fsync { .. }
        | Operation::Lseek { .. }
        | Operation::StatFs
        | Operation::SyncFs
        | Operation::GetXattr { .. }
        | Operation::ListXattr { .. }
        | Operation::OpenDir
        | Operation::ReadDir(_)
        | Operation::ReadDirPlus(_)
        | Operation::ReleaseDir { .. }
        | Operation::FsyncDir { .. }
        | Operation::Unknown => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_for_anything_but_reading_changes() {
        for (flags, expected) in
            [(0, false), (1, true), (2, true), (3, true), (O_TRUNC, true), (O_APPEND, true)]
        {
            assert_eq!(changes(&Operation::Open { flags }), expected, "{flags:o}");
        }
    }
}
