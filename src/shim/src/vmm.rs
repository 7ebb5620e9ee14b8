//! The VMM role: one machine, in a process that ends with it.
//!
//! ```text
//!   standard input   a socket. In: a frame with the VmmConfig; its end ends this process at once.
//!                    Out: when the machine could not be run, a frame with the reasons, a list of strings
//!   standard output  the guest's console
//!   standard error   the log
//!   another one      the other end of the network device, if the specification has one
//! ```

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::thread;

use boxlite_control::{EngineChoice, VERSION, VmmConfig, frame};

use crate::engine::{self, Capabilities, RunError};
use crate::{child, text};

/// Why the role could not even begin.
#[derive(Debug, thiserror::Error)]
enum VmmError {
    #[error("cannot prepare the process")]
    Prepare(#[source] io::Error),
    #[error("cannot read the machine's specification")]
    Read(#[source] frame::FrameError),
    #[error("the specification has version {0}, this is version {VERSION}")]
    Version(u32),
    #[error("no engine was chosen")]
    NoEngine,
    #[error("the machine did not run")]
    Run(#[from] RunError),
}

/// Runs the role.
pub(crate) fn main() -> ExitCode {
    match run() {
        // QEMU has ended because its guest has: that is how a guest powers off.
        Err(VmmError::Run(RunError::Ended { status, .. })) if status.success() => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = text::line(&error), "the VMM ends");
            say(&text::chain(&error));
            ExitCode::FAILURE
        }
        Ok(never) => match never {},
    }
}

fn run() -> Result<std::convert::Infallible, VmmError> {
    let config = read_config(&mut io::stdin().lock())?;
    let link = match &config.vm.network {
        Some(device) => Some(child::close_inherited_but(device.descriptor).map_err(VmmError::Prepare)?),
        None => {
            child::close_inherited().map_err(VmmError::Prepare)?;
            None
        }
    };
    end_with_standard_input().map_err(VmmError::Prepare)?;
    let VmmConfig { box_id, engine, accelerated, program, vm, .. } = config;
    let _box = tracing::info_span!("box", id = box_id).entered();
    let engine = engine::by_name(engine).ok_or(VmmError::NoEngine)?;
    tracing::info!(engine = engine::name(engine.choice()), accelerated, "the machine starts");
    Ok(engine.run(&vm, link, &Capabilities { accelerated, program })?)
}

/// Tells the monitor why the machine does not run. The little that this is fits into the socket, on which nothing was sent
/// before.
pub(crate) fn say(reasons: &[String]) {
    let told = || {
        let monitor = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let reasons = frame::encode(&reasons).map_err(io::Error::other)?;
        (&monitor).write_all(&reasons)
    };
    if let Err(error) = told() {
        tracing::debug!(%error, "nobody on standard input wants to know why");
    }
}

fn read_config(input: &mut impl Read) -> Result<VmmConfig, VmmError> {
    let config: VmmConfig = frame::read(input).map_err(VmmError::Read)?;
    match config {
        VmmConfig { version, .. } if version != VERSION => Err(VmmError::Version(version)),
        VmmConfig { engine: EngineChoice::Auto, .. } => Err(VmmError::NoEngine),
        config => Ok(config),
    }
}

/// Starts a thread that ends the process at the end of standard input, whatever the engine is doing.
fn end_with_standard_input() -> io::Result<()> {
    let wait = || {
        let mut byte = [0];
        loop {
            match io::stdin().lock().read(&mut byte) {
                // Nothing is sent after the configuration.
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
            }
        }
        // SAFETY: ends the process without running anything: exit handlers could wait for a thread that runs a guest.
        unsafe { libc::_exit(0) }
    };
    thread::Builder::new().name("lifeline".into()).stack_size(64 << 10).spawn(wait).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use boxlite_control::VmSpec;

    fn config() -> VmmConfig {
        let vm = VmSpec {
            cpus: 1,
            memory_mib: 256,
            kernel: "/k".into(),
            disks: vec![],
            ports: vec![],
            share: None,
            network: None,
        };
        VmmConfig {
            version: VERSION,
            box_id: "0123456789ab".into(),
            engine: EngineChoice::Qemu,
            accelerated: false,
            program: None,
            vm,
        }
    }

    #[test]
    fn a_configuration_comes_back_as_it_was_sent() {
        let frame = frame::encode(&config()).unwrap();
        assert_eq!(read_config(&mut frame.as_slice()).unwrap(), config());
        for end in 0..frame.len() {
            assert!(matches!(read_config(&mut &frame[..end]), Err(VmmError::Read(_))), "{end} bytes");
        }
    }

    #[test]
    fn another_version_and_an_engine_that_was_not_chosen_are_refused() {
        let read = |config| read_config(&mut frame::encode(&config).unwrap().as_slice());
        assert!(matches!(read(VmmConfig { version: 9, ..config() }), Err(VmmError::Version(9))));
        let open = VmmConfig { engine: EngineChoice::Auto, ..config() };
        assert!(matches!(read(open), Err(VmmError::NoEngine)));
    }

    #[test]
    fn a_huge_length_is_refused_before_it_is_allocated() {
        assert!(matches!(read_config(&mut [0xff; 8].as_slice()), Err(VmmError::Read(_))));
    }
}
