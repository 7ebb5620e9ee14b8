//! What a caller can ask for.

use std::collections::BTreeMap;
use std::env;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use boxlite_control::RestartPolicy;

use crate::error::{Error, ErrorKind, Result};
use crate::health::HealthCheckOptions;
use crate::image::Limits;
use crate::images::PullPolicy;
use crate::network::{NetworkRateLimit, NetworkRecord, NetworkSpec, PortSpec, resolve};
use crate::registry::{ImageRegistry, ImageRegistryProxy};
use crate::signal::parse_signal;
use crate::ulimit::Ulimit;
use crate::volume::{TmpfsSpec, VolumeSpec};

/// The environment variables that the library reads.
pub mod env_vars {
    /// Folder of everything that BoxLite keeps; default `~/.boxlite`.
    pub const HOME: &str = "BOXLITE_HOME";
    /// The configuration file; default `config.json` in the home folder, if there is one.
    pub const CONFIG: &str = "BOXLITE_CONFIG";
    /// `auto`, `krun` or `qemu`; default `auto`.
    pub const ENGINE: &str = "BOXLITE_ENGINE";
    /// The `boxlite-shim` binary; default: beside the running program, then in `PATH`.
    pub const SHIM: &str = "BOXLITE_SHIM";
    /// The static `boxlite-guest` binary; default: beside `boxlite-shim`.
    pub const GUEST: &str = "BOXLITE_GUEST";
    /// How long a box may take to start, in seconds; default 60.
    pub const BOOT_TIMEOUT: &str = "BOXLITE_BOOT_TIMEOUT";
}

/// Which engine runs the virtual machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Engine {
    /// The best one that works on this host.
    #[default]
    Auto,
    /// libkrun, which needs KVM or HVF.
    Krun,
    /// QEMU, accelerated where the host allows it and emulated where it does not.
    Qemu,
}

impl Engine {
    /// The name as `BOXLITE_ENGINE` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Krun => "krun",
            Self::Qemu => "qemu",
        }
    }

    pub(crate) fn parse(name: &str) -> Result<Self> {
        match name {
            "" | "auto" => Ok(Self::Auto),
            "krun" => Ok(Self::Krun),
            "qemu" => Ok(Self::Qemu),
            other => Err(Error::new(ErrorKind::Config, format!("unknown engine `{}`", other.escape_debug()))
                .with_hint(format!("set {} to auto, krun or qemu", env_vars::ENGINE))),
        }
    }
}

/// How a runtime is set up.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct BoxliteOptions {
    /// Folder of everything that BoxLite keeps. `None`: `BOXLITE_HOME`, else `~/.boxlite`.
    pub home_dir: Option<PathBuf>,
    /// The engine. `None`: `BOXLITE_ENGINE`, else [`Engine::Auto`].
    pub engine: Option<Engine>,
    /// The `boxlite-shim` binary. `None`: `BOXLITE_SHIM`, else beside the running program, else in `PATH`.
    pub shim: Option<PathBuf>,
    /// The static `boxlite-guest` binary. `None`: `BOXLITE_GUEST`, else beside the shim.
    pub guest: Option<PathBuf>,
    /// How long a box may take from start to a running main command. `None`: `BOXLITE_BOOT_TIMEOUT` seconds, else 60 s.
    pub boot_timeout: Option<Duration>,
    /// The configuration file, which must exist then. `None`: `BOXLITE_CONFIG`, else `config.json` in the home folder if
    /// there is one. What other fields say comes before what the file says.
    pub config_file: Option<PathBuf>,
    /// Settings of registries, in the order in which they are searched. Those of the configuration file follow.
    pub image_registries: Vec<ImageRegistry>,
    /// Hosts of registries where a name without a registry is looked for first, in this order.
    pub search_registries: Vec<String>,
    /// Proxies for registries. `None`: those of the configuration file, else of the environment.
    pub image_registry_proxy: Option<ImageRegistryProxy>,
    /// Which images may run, as containers-policy.json(5) says it. `None`: that of the configuration file, else
    /// `policy.json` in the home folder, `~/.config/containers/policy.json` or `/etc/containers/policy.json`, whichever
    /// exists first, else all may.
    pub signature_policy: Option<PathBuf>,
    /// What an image may cost. `None`: what the configuration file says, else the defaults of [`Limits`].
    pub image_limits: Option<Limits>,
}

impl BoxliteOptions {
    /// Options that keep everything in this folder.
    pub fn with_home(home: impl Into<PathBuf>) -> Self {
        Self { home_dir: Some(home.into()), ..Self::default() }
    }

    pub(crate) fn home(&self) -> Result<PathBuf> {
        let home = match (&self.home_dir, env::var_os(env_vars::HOME).filter(|v| !v.is_empty())) {
            (Some(home), _) => home.clone(),
            (None, Some(home)) => PathBuf::from(home),
            (None, None) => {
                let user = env::var_os("HOME").filter(|v| !v.is_empty());
                let user = user.ok_or_else(|| {
                    Error::new(ErrorKind::Config, "neither BOXLITE_HOME nor HOME is set")
                        .with_hint("set BOXLITE_HOME to a folder that BoxLite may keep its files in")
                })?;
                PathBuf::from(user).join(".boxlite")
            }
        };
        std::path::absolute(&home).map_err(|e| {
            Error::new(ErrorKind::Config, format!("cannot use {} as home", home.display())).with_source(e)
        })
    }

    pub(crate) fn engine(&self) -> Result<Engine> {
        match self.engine {
            Some(engine) => Ok(engine),
            None => Engine::parse(&env::var(env_vars::ENGINE).unwrap_or_default()),
        }
    }

    pub(crate) fn boot_timeout(&self) -> Result<Duration> {
        const DEFAULT: Duration = Duration::from_secs(60);
        let Some(text) = env::var_os(env_vars::BOOT_TIMEOUT).filter(|v| !v.is_empty()) else {
            return Ok(self.boot_timeout.unwrap_or(DEFAULT));
        };
        if let Some(timeout) = self.boot_timeout {
            return Ok(timeout);
        }
        let seconds = text.to_str().and_then(|t| t.parse::<u32>().ok()).filter(|s| *s > 0);
        let seconds = seconds.ok_or_else(|| {
            Error::new(
                ErrorKind::Config,
                format!("{} is not a number of seconds above 0", env_vars::BOOT_TIMEOUT),
            )
        })?;
        Ok(Duration::from_secs(seconds.into()))
    }
}

/// What a box's file system starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RootfsSpec {
    /// An image, by reference; of one in the store also by digest or unique start of a digest.
    Image(String),
    /// An OCI layout folder, an OCI archive or a `docker save` archive, which is loaded first. Must hold one image.
    RootfsPath(String),
}

/// The limits of [`BoxOptions`].
pub mod limits {
    /// The most virtual CPUs of a box.
    pub const MAX_CPUS: u8 = 16;
    /// The least memory of a box, in MiB.
    pub const MIN_MEMORY_MIB: u32 = 128;
    /// The most memory of a box, in MiB (1 TiB).
    pub const MAX_MEMORY_MIB: u32 = 1 << 20;
    /// The largest writable layer, in GiB (16 TiB).
    pub const MAX_DISK_GB: u64 = 16 << 10;
    /// The longest name of a box.
    pub const MAX_NAME: usize = 63;
    /// The most bytes of all labels of a box together.
    pub const MAX_LABELS: usize = 256 << 10;
    /// The most volumes of a box.
    pub const MAX_VOLUMES: usize = 64;
}

/// What a box is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BoxOptions {
    /// Virtual CPUs, 1 to 16. `None`: 1.
    pub cpus: Option<u8>,
    /// Memory in MiB, at least 128. `None`: 1024.
    pub memory_mib: Option<u32>,
    /// Size of the writable layer in GiB, 1 to 16384. It takes no space until it is written. `None`: 10.
    pub disk_size_gb: Option<u64>,
    /// Working directory of the main command. `None`: that of the image, else `/`. It must exist.
    pub working_dir: Option<String>,
    /// Environment beyond that of the image; later entries win.
    pub env: Vec<(String, String)>,
    /// User of the main command and default of executions: name, uid, `name:group` or `uid:gid`. `None`: the image's,
    /// else root.
    pub user: Option<String>,
    /// Replaces the image's entrypoint; the image's command is then dropped as well.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command. With neither entrypoint nor command the box idles until it is stopped.
    pub cmd: Option<Vec<String>>,
    /// Host name in the box. `None`: the box's id.
    pub hostname: Option<String>,
    /// The main command's standard input is a pipe that stays open until it is closed; otherwise `/dev/null`.
    /// Default true, so that a shell as main command waits instead of ending at once.
    pub open_stdin: bool,
    /// The main command has a terminal: its standard input is open, and all that it writes is standard output. Default
    /// false.
    pub tty: bool,
    /// Capabilities beyond Docker's default set, such as `SYS_PTRACE` or `ALL`.
    pub cap_add: Vec<String>,
    /// Capabilities of the default set to leave out.
    pub cap_drop: Vec<String>,
    /// Resource limits of the main command; those not named are the box's own, which for open files is 1,048,576. Later
    /// ones win.
    pub ulimits: Vec<Ulimit>,
    /// Folders and files of the host, and named volumes. At most 64.
    pub volumes: Vec<VolumeSpec>,
    /// File systems in memory.
    pub tmpfs: Vec<TmpfsSpec>,
    /// What the file system starts from.
    pub rootfs: RootfsSpec,
    /// When a registry is asked for the image. Default: when it is not in the store.
    pub pull: PullPolicy,
    /// The platform of an image that is there for several, as `os/architecture[/variant]`. `None`: this machine's, which
    /// is also the only one that runs here.
    pub platform: Option<String>,
    /// The box and its disk are removed when it stops. Default true.
    pub auto_remove: bool,
    /// The box goes on when the process that started it ends. Default false.
    pub detach: bool,
    /// Free key-value pairs, which filters find. Keys are not empty.
    pub labels: BTreeMap<String, String>,
    /// Whether the box runs again after its main command has ended. Not together with `auto_remove`. Default no.
    pub restart: RestartPolicy,
    /// How the box's health is checked. Default: as the image says.
    pub health_check: HealthCheckOptions,
    /// The box is stopped when for this long no command was run in it and nobody was attached to its streams. `None`:
    /// never.
    pub auto_stop: Option<Duration>,
    /// A command that is to run in a box that was stopped by `auto_stop` starts it again. Default true.
    pub auto_resume: bool,
    /// The box is stopped this long after its start. `None`: never.
    pub max_duration: Option<Duration>,
    /// The signal that stops the main command, such as `TERM` or `SIGINT`. `None`: the image's, else SIGTERM.
    pub stop_signal: Option<String>,
    /// How long the main command may take to end after that signal, before it is killed. `None`: 10 s.
    pub stop_timeout: Option<Duration>,
    /// What the main command writes is kept, at most 20 MiB of it. Default true.
    pub keep_output: bool,
    /// The network. Default: none.
    pub network: NetworkSpec,
    /// Ports of the host that lead into the box. They are bound before the box boots; one that is taken is an error of the
    /// start. At most 1024.
    pub ports: Vec<PortSpec>,
    /// How fast the network may be. Default: as fast as it goes.
    pub network_rate_limit: NetworkRateLimit,
    /// Every frame of the box's network is written into this file, as pcap, which every tool reads. It is begun anew at each
    /// start, and grows without end. An absolute path. `None`: nowhere.
    pub network_capture: Option<PathBuf>,
    /// The servers that are asked for names, at most 8. They are asked by the host, under the box's policy. Empty: those of
    /// the host's `/etc/resolv.conf`.
    pub dns: Vec<SocketAddr>,
}

impl Default for BoxOptions {
    fn default() -> Self {
        Self {
            cpus: None,
            memory_mib: None,
            disk_size_gb: None,
            working_dir: None,
            env: Vec::new(),
            user: None,
            entrypoint: None,
            cmd: None,
            hostname: None,
            open_stdin: true,
            tty: false,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            ulimits: Vec::new(),
            volumes: Vec::new(),
            tmpfs: Vec::new(),
            rootfs: RootfsSpec::Image("alpine:latest".into()),
            pull: PullPolicy::Missing,
            platform: None,
            auto_remove: true,
            detach: false,
            labels: BTreeMap::new(),
            restart: RestartPolicy::No,
            health_check: HealthCheckOptions::default(),
            auto_stop: None,
            auto_resume: true,
            max_duration: None,
            stop_signal: None,
            stop_timeout: None,
            keep_output: true,
            network: NetworkSpec::default(),
            ports: Vec::new(),
            network_rate_limit: NetworkRateLimit::default(),
            network_capture: None,
            dns: Vec::new(),
        }
    }
}

impl BoxOptions {
    /// Options for a box of this image.
    pub fn image(reference: impl Into<String>) -> Self {
        Self { rootfs: RootfsSpec::Image(reference.into()), ..Self::default() }
    }

    /// Refuses what cannot be right, before anything is touched.
    pub(crate) fn validate(&self) -> Result<()> {
        let invalid = |message: String| Err(Error::new(ErrorKind::InvalidArgument, message));
        validate_size(self.cpus, self.memory_mib)?;
        validate_labels(&self.labels)?;
        validate_limit("auto-stop", self.auto_stop)?;
        validate_limit("maximum duration", self.max_duration)?;
        self.health_check.validate()?;
        if let Some(signal) = &self.stop_signal {
            parse_signal(signal)?;
        }
        if self.auto_remove && self.restart != RestartPolicy::No {
            let message =
                format!("a box that removes itself cannot have the restart policy `{}`", self.restart);
            return Err(Error::new(ErrorKind::InvalidArgument, message).with_hint("take one of the two away"));
        }
        if let Some(gb) = self.disk_size_gb.filter(|g| !(1..=limits::MAX_DISK_GB).contains(g)) {
            return invalid(format!("a box's disk has 1 to {} GiB, not {gb}", limits::MAX_DISK_GB));
        }
        if let Some(folder) = self.working_dir.as_ref().filter(|d| !d.starts_with('/')) {
            return invalid(format!("the working directory `{}` is not absolute", folder.escape_debug()));
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return invalid(format!("`{}` is no environment variable", name.escape_debug()));
            }
        }
        let words =
            self.entrypoint.iter().chain(&self.cmd).flatten().chain(&self.user).chain(&self.working_dir);
        if let Some(word) = words.into_iter().find(|w| w.contains('\0')) {
            return invalid(format!("`{}` contains a NUL character", word.escape_debug()));
        }
        if let Some(name) = &self.hostname {
            // Linux allows 64 bytes; RFC 1123 says which characters.
            let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
            if name.is_empty() || name.len() > 64 || !name.chars().all(good) {
                return invalid(format!("`{}` is no host name", name.escape_debug()));
            }
        }
        validate_capabilities(self.cap_add.iter().chain(&self.cap_drop))?;
        self.network_record()?;
        self.ulimits.iter().try_for_each(Ulimit::validate)
    }
}

impl BoxOptions {
    pub(crate) fn network_record(&self) -> Result<Option<NetworkRecord>> {
        let capture = self.network_capture.as_ref();
        resolve(&self.network, &self.ports, self.network_rate_limit, capture, &self.dns)
    }
}

/// Checks how capabilities are spelled; whether there are such is for the guest's kernel to say.
pub(crate) fn validate_capabilities<'a>(names: impl Iterator<Item = &'a String>) -> Result<()> {
    for name in names {
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphabetic() || c == '_') {
            let message = format!("`{}` is no capability", name.escape_debug());
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
    }
    Ok(())
}

/// Checks what a machine may have.
pub(crate) fn validate_size(cpus: Option<u8>, memory_mib: Option<u32>) -> Result<()> {
    let invalid = |message: String| Err(Error::new(ErrorKind::InvalidArgument, message));
    if let Some(cpus) = cpus.filter(|c| !(1..=limits::MAX_CPUS).contains(c)) {
        return invalid(format!("a box has 1 to {} CPUs, not {cpus}", limits::MAX_CPUS));
    }
    let memory = limits::MIN_MEMORY_MIB..=limits::MAX_MEMORY_MIB;
    if let Some(mib) = memory_mib.filter(|m| !memory.contains(m)) {
        let message = format!("a box has {} to {} MiB of memory, not {mib}", memory.start(), memory.end());
        return invalid(message);
    }
    Ok(())
}

pub(crate) fn validate_labels(labels: &BTreeMap<String, String>) -> Result<()> {
    let invalid = |message: String| Err(Error::new(ErrorKind::InvalidArgument, message));
    if labels.keys().any(|key| key.is_empty() || key.contains('=')) {
        return invalid("the key of a label is empty or contains `=`".into());
    }
    let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > limits::MAX_LABELS {
        return invalid(format!("labels have at most {} bytes in all, not {bytes}", limits::MAX_LABELS));
    }
    Ok(())
}

/// A limit of less than a millisecond is none that can be kept.
pub(crate) fn validate_limit(what: &str, limit: Option<Duration>) -> Result<()> {
    match limit {
        Some(time) if time < Duration::from_millis(1) => {
            let message = format!("a limit of {time:?} for {what} leaves the box no time");
            Err(Error::new(ErrorKind::InvalidArgument, message))
        }
        _ => Ok(()),
    }
}

/// Checks a box's name: a letter or digit, then letters, digits, `_`, `.` and `-`, at most 63 in all.
pub(crate) fn validate_name(name: &str) -> Result<()> {
    let mut chars = name.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_alphanumeric());
    let rest = chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if first && rest && name.len() <= limits::MAX_NAME {
        return Ok(());
    }
    let message = format!("`{}` is no name for a box", name.escape_debug());
    Err(Error::new(ErrorKind::InvalidArgument, message).with_hint(format!(
        "use a letter or digit, then letters, digits, `_`, `.` and `-`, at most {} in all",
        limits::MAX_NAME
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_options_are_refused_with_their_value_in_the_message() {
        let base = || BoxOptions::image("busybox");
        let cases = [
            (BoxOptions { cpus: Some(0), ..base() }, "0"),
            (BoxOptions { cpus: Some(17), ..base() }, "17"),
            (BoxOptions { memory_mib: Some(1), ..base() }, "not 1"),
            (BoxOptions { disk_size_gb: Some(0), ..base() }, "not 0"),
            (BoxOptions { working_dir: Some("tmp".into()), ..base() }, "`tmp`"),
            (BoxOptions { env: vec![("A=B".into(), "c".into())], ..base() }, "`A=B`"),
            (BoxOptions { cmd: Some(vec!["a\0b".into()]), ..base() }, "NUL"),
            (BoxOptions { hostname: Some("a_b".into()), ..base() }, "a_b"),
            (BoxOptions { restart: RestartPolicy::Always, ..base() }, "`always`"),
            (BoxOptions { stop_signal: Some("NO".into()), ..base() }, "`NO`"),
            (BoxOptions { auto_stop: Some(Duration::ZERO), ..base() }, "auto-stop"),
            (BoxOptions { labels: [(String::new(), String::new())].into(), ..base() }, "label"),
            (BoxOptions { cap_add: vec!["SYS ADMIN".into()], ..base() }, "SYS ADMIN"),
        ];
        for (options, part) in cases {
            let error = options.validate().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.to_string().contains(part), "{error}");
        }
        base().validate().unwrap();
    }

    #[test]
    fn names_are_what_docker_accepts() {
        for good in ["a", "web-1", "A.b_c", &"x".repeat(63)] {
            validate_name(good).unwrap();
        }
        for bad in ["", "-a", ".a", "a/b", "a b", "ä", &"x".repeat(64)] {
            assert!(validate_name(bad).is_err(), "{bad}");
        }
    }
}
