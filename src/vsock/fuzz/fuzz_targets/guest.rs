//! Rings, chains and packets of a hostile guest.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| boxlite_vsock::fuzzing::guest(bytes));
