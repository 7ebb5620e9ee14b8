//! The state machine of one connection.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| boxlite_vsock::fuzzing::connection(bytes));
