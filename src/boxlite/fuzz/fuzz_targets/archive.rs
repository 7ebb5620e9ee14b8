//! Archives of any bytes: what is found in them, and the images made of it.
#![no_main]

use std::io::Write;

use boxlite::image::{Limits, Platform, archive::Archive, build};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut limits = Limits::default();
    (limits.entries, limits.bytes, limits.memory, limits.members) = (10_000, 16 << 20, 16 << 20, 100);
    let mut input = tempfile::NamedTempFile::new().expect("there is room for temporary files");
    input.write_all(bytes).expect("there is room for temporary files");
    let Ok(archive) = Archive::open(input.path(), &Platform::host(), &std::env::temp_dir(), &limits, &mut |_| Ok(())) else {
        return;
    };
    for image in archive.images() {
        let file = || tempfile::tempfile().expect("there is room for temporary files");
        let built = build(archive.layers(image), &image.digest, file(), file(), &limits, &mut |_| Ok(()));
        if let Ok(built) = built {
            assert!(built.bytes.is_multiple_of(4096));
        }
    }
});
