//! What can run a machine.
//!
//! Both engines give the guest the same machine from the same [`VmSpec`]: the same kernel, command line and boot disk,
//! virtio-mmio devices, a console on `hvc0`, a vsock device. Code above cannot tell them apart.
//!
//! The monitor probes, chooses, and hands what it found to the VMM as data: the VMM looks at nothing again.

pub(crate) mod krun;
pub(crate) mod probe_kvm;
pub(crate) mod qemu;
mod qemu_arguments;

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitStatus;

use boxlite_control::{EngineChoice, EngineReport, VmSpec};

use probe_kvm::NoKvm;

/// Something that runs machines.
pub(crate) trait Engine: Sync {
    /// Its name.
    fn choice(&self) -> EngineChoice;

    /// Whether it works on this host. Cheap: starts no process.
    fn probe(&self, host: &Host) -> Result<Capabilities, WhyNot>;

    /// Runs the machine in this process, as the VMM role. `link` is the other end of its network device, if it has one.
    /// Returns only when it could not be built or has been lost; an engine whose machine ends takes the process with it.
    fn run(
        &self,
        vm: &VmSpec,
        link: Option<OwnedFd>,
        capabilities: &Capabilities,
    ) -> Result<Infallible, RunError>;
}

/// What an engine can do here, as far as running it depends on that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// The CPU's virtualization is used.
    pub(crate) accelerated: bool,
    /// The program, for an engine that is one.
    pub(crate) program: Option<PathBuf>,
}

/// Why an engine does not work here, or not as fast as it could.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WhyNot {
    /// Sentences for people, the cause first.
    pub(crate) reasons: Vec<String>,
    /// What would help.
    pub(crate) hint: Option<String>,
}

/// What the engines look at when they are probed.
#[derive(Debug)]
pub(crate) struct Host {
    /// Whether a guest would run under KVM.
    pub(crate) kvm: Result<(), NoKvm>,
    /// The folders in which programs are looked for.
    pub(crate) path: OsString,
}

impl Host {
    /// This host.
    pub(crate) fn look() -> Self {
        Self {
            kvm: probe_kvm::probe(crate::environment::assume_kvm()),
            path: std::env::var_os("PATH").unwrap_or_default(),
        }
    }
}

/// All engines, best first.
const ENGINES: [&dyn Engine; 2] = [&krun::Krun, &qemu::Qemu];

/// The engine of this name; `None` for `Auto`, which names none.
pub(crate) fn by_name(choice: EngineChoice) -> Option<&'static dyn Engine> {
    ENGINES.into_iter().find(|engine| engine.choice() == choice)
}

/// No engine that was asked for works.
#[derive(Debug, thiserror::Error)]
#[error("{}", match asked {
    EngineChoice::Auto => "no engine works on this host".to_owned(),
    asked => format!("the engine {} does not work on this host", name(*asked)),
})]
pub(crate) struct Unavailable {
    pub(crate) asked: EngineChoice,
    pub(crate) causes: Vec<(EngineChoice, WhyNot)>,
}

impl Unavailable {
    /// The causes, each with the name of its engine.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let of = |(engine, why): &(EngineChoice, WhyNot)| {
            let engine = name(*engine);
            why.reasons.iter().map(|reason| format!("{engine}: {reason}")).collect::<Vec<_>>()
        };
        self.causes.iter().flat_map(of).collect()
    }

    /// What would help most: the way to the engine that works on every host comes last in [`ENGINES`].
    pub(crate) fn hint(&self) -> Option<String> {
        self.causes.iter().rev().find_map(|(_, why)| why.hint.clone())
    }
}

/// An engine and how to run it.
pub(crate) type Chosen = (&'static dyn Engine, Capabilities);

/// The best engine that works, among those asked for.
pub(crate) fn choose(asked: EngineChoice, host: &Host) -> Result<Chosen, Unavailable> {
    let mut causes = Vec::new();
    for engine in ENGINES {
        if asked == EngineChoice::Auto || asked == engine.choice() {
            match engine.probe(host) {
                Ok(capabilities) => return Ok((engine, capabilities)),
                Err(why) => causes.push((engine.choice(), why)),
            }
        }
    }
    Err(Unavailable { asked, causes })
}

/// What the probe says of each engine that was asked for.
pub(crate) fn report(asked: EngineChoice, host: &Host) -> Vec<EngineReport> {
    let wanted = |engine: &&dyn Engine| asked == EngineChoice::Auto || asked == engine.choice();
    let report = |engine: &dyn Engine| match engine.probe(host) {
        Ok(Capabilities { accelerated: true, .. }) => EngineReport {
            engine: engine.choice(),
            usable: true,
            accelerated: true,
            reasons: vec!["it runs on the CPU's virtualization, through KVM".to_owned()],
            hint: None,
        },
        Ok(Capabilities { accelerated: false, .. }) => {
            let mut reasons = vec!["it emulates the CPU in software, which is slower".to_owned()];
            reasons.extend(host.kvm.as_ref().err().map(ToString::to_string));
            let hint = host.kvm.as_ref().err().map(NoKvm::hint);
            EngineReport { engine: engine.choice(), usable: true, accelerated: false, reasons, hint }
        }
        Err(WhyNot { reasons, hint }) => {
            EngineReport { engine: engine.choice(), usable: false, accelerated: false, reasons, hint }
        }
    };
    ENGINES.into_iter().filter(wanted).map(report).collect()
}

/// The name of an engine, as users write it.
pub(crate) fn name(choice: EngineChoice) -> &'static str {
    match choice {
        EngineChoice::Auto => "auto",
        EngineChoice::Krun => "krun",
        EngineChoice::Qemu => "qemu",
    }
}

/// Why a machine did not run, or runs no more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The specification asks for what the engine does not have.
    #[error("the machine cannot be built: {0}")]
    Unsupported(String),
    /// libkrun refused.
    #[error("libkrun refused the machine")]
    Krun(#[from] libkrun_sys::CallError),
    /// The server of the volumes does not serve: its reasons.
    #[error("cannot share the box's volumes: {}", .0.join(": "))]
    Share(Vec<String>),
    /// A socket of the machine could not be set up.
    #[error("cannot set up the vsock device")]
    Vsock(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The engine's program could not be started.
    #[error("cannot start {program}")]
    Start {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The engine's program has ended. `words` is what it said last.
    #[error("{program} has ended: {status}{}{words}", if words.is_empty() { "" } else { ": " })]
    Ended { program: PathBuf, status: ExitStatus, words: String },
}

/// The kernel's command line, to which each engine appends where its devices are.
pub(crate) const COMMAND_LINE: &str =
    "console=hvc0 root=/dev/vda ro rootfstype=erofs init=/init reboot=k panic=-1 nomodule quiet no-kvmapf";

#[cfg(test)]
mod tests {
    use super::*;

    fn host(kvm: Result<(), NoKvm>, programs: &tempfile::TempDir) -> Host {
        Host { kvm, path: programs.path().into() }
    }

    fn with_qemu() -> tempfile::TempDir {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join(qemu::PROGRAM);
        std::fs::write(&program, "").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    #[test]
    fn with_kvm_the_choice_is_krun() {
        let (engine, capabilities) = choose(EngineChoice::Auto, &host(Ok(()), &with_qemu())).unwrap();
        assert_eq!(engine.choice(), EngineChoice::Krun);
        assert!(capabilities.accelerated);
    }

    #[test]
    fn without_kvm_the_choice_is_emulation() {
        let programs = with_qemu();
        let (engine, capabilities) =
            choose(EngineChoice::Auto, &host(Err(NoKvm::NoCpuFlag), &programs)).unwrap();
        assert_eq!(engine.choice(), EngineChoice::Qemu);
        assert!(!capabilities.accelerated);
        assert_eq!(capabilities.program, Some(programs.path().join(qemu::PROGRAM)));
    }

    #[test]
    fn an_engine_that_was_asked_for_is_never_replaced_by_another() {
        let error = choose(EngineChoice::Krun, &host(Err(NoKvm::NoCpuFlag), &with_qemu())).err().unwrap();
        assert_eq!(error.to_string(), "the engine krun does not work on this host");
        assert_eq!(error.causes.len(), 1);
        assert!(error.hint().is_some());
    }

    #[test]
    fn without_any_engine_the_error_names_each_and_the_hint_installs_one() {
        let nothing = tempfile::tempdir().unwrap();
        let error = choose(EngineChoice::Auto, &host(Err(NoKvm::Missing), &nothing)).err().unwrap();
        let reasons = error.reasons().join("\n");
        assert!(reasons.contains("krun: ") && reasons.contains("qemu: "), "{reasons}");
        assert!(error.hint().unwrap().contains("apt install"), "{:?}", error.hint());
    }
}
