//! The container's specification for libcontainer: namespaces, mounts and hidden paths as Docker has them.
//!
//! The process in it is a stand-in. What really runs, with which user, capabilities and limits, is in the order that
//! the first process gets at Container.Start (see [`crate::process::child`]).

use std::path::{Path, PathBuf};

use libcontainer::oci_spec::OciSpecError;
use libcontainer::oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use crate::process::cgroup;

/// Hidden from the container: they tell of the machine or let it be disturbed.
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];

/// Shown to the container, but not to be written.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Namespaces of the container's own. The network is the machine's: the machine is the container's alone.
const NAMESPACES: [LinuxNamespaceType; 5] = [
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Uts,
    LinuxNamespaceType::Cgroup,
];

/// Something that the caller wants mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extra {
    /// Where.
    pub target: PathBuf,
    /// `bind` or `tmpfs`.
    pub kind: &'static str,
    /// What is bound.
    pub source: PathBuf,
    /// Mount options.
    pub options: Vec<String>,
}

/// Builds the specification for a root folder, the files to bind over the image's, as (source, target), and what the
/// caller wants mounted. A caller's mount over one of the base replaces it.
///
/// # Errors
/// When libcontainer's types do not take a value.
pub fn build(
    root: &Path,
    hostname: &str,
    files: &[(PathBuf, PathBuf)],
    extra: &[Extra],
) -> Result<Spec, OciSpecError> {
    let mut mounts = base_mounts()?;
    let replaced = |target: &Path| extra.iter().any(|extra| extra.target == target);
    mounts.retain(|mount| !replaced(mount.destination()));
    for (source, target) in files.iter().filter(|(_, target)| !replaced(target)) {
        let options = ["rbind", "rprivate"];
        mounts.push(mount(target, "bind", source, &options)?);
    }
    for extra in extra {
        let options: Vec<&str> = extra.options.iter().map(String::as_str).collect();
        mounts.push(mount(&extra.target, extra.kind, &extra.source, &options)?);
    }
    // HOME keeps libcontainer from asking the C library, which would load code of the image to answer.
    let process = ProcessBuilder::default()
        .args(vec!["container".to_owned()])
        .env(vec!["HOME=/".to_owned()])
        .cwd("/")
        .user(UserBuilder::default().uid(0_u32).gid(0_u32).build()?)
        .no_new_privileges(false)
        .terminal(false);
    // What is not set here has a default of libcontainer's that sets it; the order sets the real ones.
    let mut process = process.build()?;
    process.set_capabilities(None);
    process.set_rlimits(None);
    SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path(root).readonly(false).build()?)
        .hostname(hostname)
        .mounts(mounts)
        .process(process)
        .linux(linux()?)
        .build()
}

fn linux() -> Result<Linux, OciSpecError> {
    let namespaces: Result<Vec<LinuxNamespace>, _> =
        NAMESPACES.into_iter().map(|typ| LinuxNamespaceBuilder::default().typ(typ).build()).collect();
    let strings = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces?)
        .cgroups_path(Path::new("/").join(cgroup::CONTAINER))
        .masked_paths(strings(&MASKED))
        .readonly_paths(strings(&READ_ONLY))
        .build()?;
    // The agent has made the cgroup; there is nothing to limit in it.
    linux.set_resources(None);
    Ok(linux)
}

fn base_mounts() -> Result<Vec<Mount>, OciSpecError> {
    let table: [(&str, &str, &str, &[&str]); 7] = [
        ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
        ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]),
    ];
    table
        .into_iter()
        .map(|(target, kind, source, options)| mount(Path::new(target), kind, Path::new(source), options))
        .collect()
}

fn mount(target: &Path, kind: &str, source: &Path, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(target)
        .typ(kind)
        .source(source)
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stand_in_changes_nothing_that_the_order_will_set() {
        let spec = build(Path::new("/root"), "box", &[], &[]).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert!(process.capabilities().is_none() && process.rlimits().is_none());
        assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
        assert!(process.env().as_ref().unwrap().contains(&"HOME=/".to_owned()));
    }

    #[test]
    fn the_network_namespace_is_shared_and_no_other() {
        let spec = build(Path::new("/root"), "box", &[], &[]).unwrap();
        let namespaces = spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap();
        let types: Vec<LinuxNamespaceType> = namespaces.iter().map(LinuxNamespace::typ).collect();
        assert_eq!(types, NAMESPACES);
        assert!(namespaces.iter().all(|namespace| namespace.path().is_none()));
    }

    #[test]
    fn given_files_are_bound_after_the_base() {
        let files = [(PathBuf::from("/run/hosts"), PathBuf::from("/etc/hosts"))];
        let spec = build(Path::new("/root"), "box", &files, &[]).unwrap();
        let last = spec.mounts().as_ref().unwrap().last().unwrap();
        assert_eq!(last.destination(), Path::new("/etc/hosts"));
    }

    #[test]
    fn a_callers_mount_replaces_one_of_the_base_and_comes_last() {
        let extra = |target: &str| Extra {
            target: target.into(),
            kind: "tmpfs",
            source: "tmpfs".into(),
            options: vec!["size=1m".into()],
        };
        let spec = build(Path::new("/root"), "box", &[], &[extra("/dev/shm"), extra("/data")]).unwrap();
        let targets: Vec<&Path> =
            spec.mounts().as_ref().unwrap().iter().map(|mount| mount.destination().as_path()).collect();
        assert_eq!(targets.iter().filter(|target| **target == Path::new("/dev/shm")).count(), 1);
        assert_eq!(targets[targets.len() - 2..], [Path::new("/dev/shm"), Path::new("/data")]);
    }
}
