//! The environment variables that the shim reads. `libkrun_sys::firmware` documents those that lead to libkrunfw.

use std::io;

use tracing_subscriber::EnvFilter;

/// What is logged, as a level (`error`, `warn`, `info`, `debug`, `trace`) or a filter of `tracing-subscriber`.
/// `info` where unset or wrong.
pub(crate) const LOG: &str = "BOXLITE_LOG";

/// With the value `1`: a `/dev/kvm` that opens is taken to work, although the CPU does not show virtualization.
pub(crate) const ASSUME_KVM: &str = "BOXLITE_ASSUME_KVM";

/// Whether [`ASSUME_KVM`] is set.
pub(crate) fn assume_kvm() -> bool {
    std::env::var_os(ASSUME_KVM).is_some_and(|value| value == "1")
}

/// Writes what `tracing` records to standard error, one line an event.
pub(crate) fn log_to_stderr() {
    let filter = EnvFilter::try_from_env(LOG).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).init();
}
