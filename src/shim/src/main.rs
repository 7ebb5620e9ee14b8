//! The processes of one box, apart from its guest.
//!
//! ```text
//!   library ──lifeline──▶ monitor ──lifeline──▶ vmm ──▶ the machine (in-process, or QEMU as its child)
//! ```
//!
//! * `monitor` owns one box: its lock, its state, its VMM, its logs.
//! * `vmm` is the process that an engine takes over. libkrun exits the process that it runs in, so this one does nothing
//!   else.
//! * `share` serves the box's volumes to its guest. It is the child of a `vmm`.
//! * `net` is the network of the box. It is a child of the monitor, which starts it again should it fail.
//! * `probe`, `kernel` and `version` answer questions about this installation on standard output.
//!
//! What a process is to do arrives on its standard input; nothing but the role is in its arguments. The end of standard
//! input is the end of whoever asked, and a process that is not told otherwise ends with it.

mod child;
mod engine;
mod environment;
mod install;
mod monitor;
mod net;
mod share;
mod text;
mod tsc;
mod vmm;

use std::process::ExitCode;

use boxlite_control::EngineChoice;

const USAGE: &str = "usage: boxlite-shim monitor | vmm | share | net | probe [--engine auto|krun|qemu] | kernel CACHE | version";

fn main() -> ExitCode {
    environment::log_to_stderr();
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let arguments: Option<Vec<&str>> = arguments.iter().map(|argument| argument.to_str()).collect();
    match arguments.as_deref() {
        Some(["monitor"]) => monitor::main(),
        Some(["vmm"]) => vmm::main(),
        Some(["share"]) => share::main(),
        Some(["net"]) => net::main(),
        Some(["probe"]) => install::probe(EngineChoice::Auto),
        Some(["probe", "--engine", engine]) => match install::engine_choice(engine) {
            Some(engine) => install::probe(engine),
            None => install::usage(USAGE),
        },
        Some(["kernel", cache]) => install::kernel(cache.as_ref()),
        Some(["version"]) => install::version(),
        _ => install::usage(USAGE),
    }
}
