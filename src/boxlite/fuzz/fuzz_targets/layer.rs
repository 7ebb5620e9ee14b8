//! Layers of any bytes, two on top of each other, through to a finished image.
#![no_main]

use std::io::{Cursor, Read};

use boxlite::image::{Digest, LayerSource, Limits, build};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], &[u8])| {
    let mut limits = Limits::default();
    (limits.entries, limits.bytes, limits.memory) = (10_000, 16 << 20, 16 << 20);
    let layer = |bytes: &[u8]| {
        // Right for uncompressed layers: those get to the end.
        let diff_id = Digest::of(bytes);
        let bytes: Box<dyn Read + Send> = Box::new(Cursor::new(bytes.to_vec()));
        LayerSource { open: Box::new(|| Ok(bytes)), blob: None, diff_id }
    };
    let layers = vec![layer(input.0), layer(input.1)];
    let file = || tempfile::tempfile().expect("there is room for temporary files");
    match build(layers, &Digest::of(b""), file(), file(), &limits, &mut |_| Ok(())) {
        Ok(built) => assert!(built.bytes.is_multiple_of(4096)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
