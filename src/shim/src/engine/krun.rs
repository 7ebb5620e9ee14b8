//! libkrun, in this process.
//!
//! libkrun adds console, balloon and random number devices by itself. Its implicit vsock device is left out: that one
//! would open the host's sockets for the guest.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

use boxlite_control::{Direction, DiskFormat, EngineChoice, SocketPath, VmSpec};
use libkrun_sys::{Context, LogLevel};

use crate::share::Server;

use super::{COMMAND_LINE, Capabilities, Engine, Host, RunError, WhyNot};

/// The engine.
#[derive(Debug)]
pub(crate) struct Krun;

impl Engine for Krun {
    fn choice(&self) -> EngineChoice {
        EngineChoice::Krun
    }

    fn probe(&self, host: &Host) -> Result<Capabilities, WhyNot> {
        match &host.kvm {
            Ok(()) => Ok(Capabilities { accelerated: true, program: None }),
            Err(why) => Err(WhyNot { reasons: vec![why.to_string()], hint: Some(why.hint()) }),
        }
    }

    fn run(&self, vm: &VmSpec, link: Option<OwnedFd>, _: &Capabilities) -> Result<Infallible, RunError> {
        // Its devices log what they find wrong with a guest's requests, each time: a guest could fill the host's disk with
        // warnings and errors alike. What keeps a machine from being made comes back from the calls below.
        Context::log_to_stderr(LogLevel::Off)?;
        let mut context = Context::new()?;
        context.set_size(vm.cpus, vm.memory_mib)?;
        context.set_kernel(&vm.kernel, COMMAND_LINE)?;
        for (index, disk) in vm.disks.iter().enumerate() {
            let id = CString::new(format!("disk{index}")).unwrap_or_default();
            let format = match disk.format {
                DiskFormat::Raw => libkrun_sys::DiskFormat::Raw,
                DiskFormat::Qcow2 => libkrun_sys::DiskFormat::Qcow2,
            };
            context.add_disk(&id, &disk.path, format, disk.read_only)?;
        }
        context.add_plain_vsock()?;
        // Some of the paths lead through an open folder, which has to stay open while the machine runs.
        let mut sockets = Vec::new();
        for port in &vm.ports {
            let socket = SocketPath::new(&port.path).map_err(|error| RunError::Vsock(Box::new(error)))?;
            let listen = port.direction == Direction::HostToGuest;
            context.add_vsock_port(port.port, socket.path(), listen)?;
            sockets.push(socket);
        }
        if let Some((stream, device)) = link.zip(vm.network.as_ref()) {
            context.add_net(stream, device.mac)?;
        }
        // Before libkrun takes this process over: the server dies with the thread that started it.
        let _share = vm.share.as_ref().map(|share| Server::start(share, false)).transpose()?;
        // A console whose output is a descriptor rather than a path is no `hvc0`, unless that is a terminal.
        context.set_console_output(Path::new("/proc/self/fd/1"))?;
        Err(context.run().into())
    }
}
