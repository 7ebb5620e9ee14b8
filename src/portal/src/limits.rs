//! Sizes and times that both sides keep to.

use std::time::Duration;

/// The largest gRPC message that either side accepts, in bytes. Larger ones are refused before they are decoded.
pub const MESSAGE: usize = 1 << 20;

/// The most data in one output or input message, in bytes.
pub const CHUNK: usize = 64 << 10;

/// The most output messages of one stream that come with the call that starts a process.
pub const HEAD_MESSAGES: usize = 8;

/// The most output of one stream that comes with the call that starts a process, in bytes.
pub const HEAD: usize = 64 << 10;

/// The largest boot report, in bytes.
pub const BOOT_REPORT: usize = 16 << 10;

/// The longest build name in a hello, in bytes.
pub const BUILD: usize = 64;

/// How long a side waits for the other's hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest execution id, in bytes.
pub const EXECUTION_ID: usize = 64;
