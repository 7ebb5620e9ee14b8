//! The part of the command line that is about boxes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use boxlite::{MetricsAddress, RestartPolicy, Ulimit};
use clap::Args;

use crate::args::{DiskSize, FormatArgs, ProcessArgs, PullWhen, Size};
use crate::mounts::{Mount, Tmpfs, Volume};
use crate::network_args::{NetworkArgs, Ports, name_server};
use crate::time;

/// What a box is to be.
#[derive(Debug, Args)]
pub(crate) struct BoxArgs {
    /// Name of the box
    #[arg(long)]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    /// Virtual CPUs [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<u8>,
    /// Memory, such as 512m or 2g; a bare number is MiB [default: 1g]
    #[arg(short, long, value_name = "SIZE")]
    pub(crate) memory: Option<Size>,
    /// Size of the writable disk, such as 20g; a bare number is GiB [default: 10g]
    #[arg(long, value_name = "SIZE")]
    pub(crate) disk_size: Option<DiskSize>,
    /// Replace the image's entrypoint; an empty one removes it
    #[arg(long, value_name = "COMMAND")]
    pub(crate) entrypoint: Option<String>,
    /// Host name in the box [default: the box's id]
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Add a capability, or ALL
    #[arg(long, value_name = "CAP")]
    pub(crate) cap_add: Vec<String>,
    /// Drop a capability, or ALL
    #[arg(long, value_name = "CAP")]
    pub(crate) cap_drop: Vec<String>,
    /// Set a label; may be given several times
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub(crate) label: Vec<String>,
    /// Limit a resource of the main command: NAME=SOFT or NAME=SOFT:HARD, such as nofile=1024
    #[arg(long, value_name = "LIMIT")]
    pub(crate) ulimit: Vec<Ulimit>,
    /// Mount a folder or file of the host, a named volume, or one of the box's own: HOST:PATH, NAME:PATH or PATH, with `:ro`
    /// to refuse writes and `:create` to make a missing folder
    #[arg(short, long, value_name = "VOLUME")]
    pub(crate) volume: Vec<Volume>,
    /// Mount something: type=bind|volume|tmpfs,source=…,target=…,readonly
    #[arg(long, value_name = "MOUNT")]
    pub(crate) mount: Vec<Mount>,
    /// Mount memory: PATH[:size=64m,mode=1777]
    #[arg(long, value_name = "PATH")]
    pub(crate) tmpfs: Vec<Tmpfs>,
    /// When to run it again: no, on-failure, on-failure:N, always or unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub(crate) restart: RestartPolicy,
    /// Stop the box when nothing is done in it for this long, such as 10m; a command that is to run in it starts it again
    #[arg(long, visible_alias = "auto-stop", value_name = "TIME", value_parser = time::duration)]
    pub(crate) idle_timeout: Option<Duration>,
    /// A command that is to run in a box that was idle does not start it again
    #[arg(long)]
    pub(crate) no_auto_resume: bool,
    /// Stop the box this long after its start, such as 1h
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    pub(crate) max_duration: Option<Duration>,
    /// The signal that stops the main command [default: the image's, else TERM]
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<String>,
    /// Seconds from that signal to SIGKILL [default: 10]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) stop_timeout: Option<u32>,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    /// Publish a port: HOST:BOX, IP:HOST:BOX or BOX, then /udp if wanted; HOST and BOX may be ranges, and without HOST the
    /// kernel chooses. The default IP is 127.0.0.1
    #[arg(short, long, value_name = "PORTS")]
    pub(crate) publish: Vec<Ports>,
    /// At most so many kilobits a second leave the box
    #[arg(long, value_name = "KBPS", default_value_t = 0, hide_default_value = true)]
    pub(crate) net_tx_kbps: u64,
    /// At most so many kilobits a second reach the box
    #[arg(long, value_name = "KBPS", default_value_t = 0, hide_default_value = true)]
    pub(crate) net_rx_kbps: u64,
    /// Ask this server for names instead of those of the host's resolv.conf: an address, then :port if it is not 53. May be
    /// given several times
    #[arg(long, value_name = "SERVER", value_parser = name_server)]
    pub(crate) dns: Vec<SocketAddr>,
    /// Write every frame of the box's network into this file, as pcap
    #[arg(long, value_name = "FILE")]
    pub(crate) net_capture: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) health: HealthArgs,
    /// Keep nothing of what the main command writes
    #[arg(long)]
    pub(crate) no_logs: bool,
    /// When to ask the registry for the image
    #[arg(long, value_enum, default_value = "missing")]
    pub(crate) pull: PullWhen,
    /// Platform of the image, such as linux/amd64 [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<String>,
    /// Say nothing of the download of the image
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Image: a reference, a digest, or a path that starts with `/` or `./`
    pub(crate) image: String,
    /// Command and arguments [default: those of the image]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

/// How its health is checked; what is not given here is as the image says.
#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// Check its health with this line for /bin/sh
    #[arg(long, value_name = "COMMAND")]
    pub(crate) health_cmd: Option<String>,
    /// Time from one check to the next [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    pub(crate) health_interval: Option<Duration>,
    /// How long a check may take [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    pub(crate) health_timeout: Option<Duration>,
    /// So many failures in a row make it unhealthy [default: 3]
    #[arg(long, value_name = "N")]
    pub(crate) health_retries: Option<u32>,
    /// In this time after the start failures do not count [default: 0s]
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    pub(crate) health_start_period: Option<Duration>,
    /// Time from one check to the next in that time [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    pub(crate) health_start_interval: Option<Duration>,
    /// Do not check its health, whatever the image says
    #[arg(long, conflicts_with_all = ["health_cmd", "health_interval", "health_timeout", "health_retries"])]
    pub(crate) no_healthcheck: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Remove the box when its command ends
    #[arg(long)]
    pub(crate) rm: bool,
    /// Let the box go on by itself, and print its id
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Keys that leave the box running, with -it
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub(crate) detach_keys: String,
    #[command(flatten)]
    pub(crate) create: BoxArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Remove the box when its command ends
    #[arg(long)]
    pub(crate) rm: bool,
    #[command(flatten)]
    pub(crate) create: BoxArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    /// Start the command, print its id, and leave it to itself; `attach --exec` connects to it
    #[arg(short, long, conflicts_with = "interactive")]
    pub(crate) detach: bool,
    /// Kill the command and all that it started after this time, such as 30s; the exit code is 124 then
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    pub(crate) timeout: Option<Duration>,
    /// Let processes that the command has started outlive it
    #[arg(long)]
    pub(crate) keep_orphans: bool,
    /// Limit a resource: NAME=SOFT or NAME=SOFT:HARD, such as nofile=1024
    #[arg(long, value_name = "LIMIT")]
    pub(crate) ulimit: Vec<Ulimit>,
    /// Add a capability, or ALL
    #[arg(long, value_name = "CAP")]
    pub(crate) cap_add: Vec<String>,
    /// Drop a capability, or ALL
    #[arg(long, value_name = "CAP")]
    pub(crate) cap_drop: Vec<String>,
    /// Keys that leave the command running, with -it
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub(crate) detach_keys: String,
    /// Name, id, or unique start of an id
    #[arg(value_name = "BOX")]
    pub(crate) target: String,
    /// Command and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Connect to a command that `exec` has started, by its id, instead of the main command
    #[arg(long, value_name = "ID")]
    pub(crate) exec: Option<String>,
    /// Do not pass standard input
    #[arg(long)]
    pub(crate) no_stdin: bool,
    /// Keys that leave the box running, on a terminal
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub(crate) detach_keys: String,
    /// Name, id, or unique start of an id
    #[arg(value_name = "BOX")]
    pub(crate) target: String,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Also boxes that do not run
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only ids
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Only boxes that fit: id, name, label, status, ancestor, health, exited or restart, such as status=paused
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
    /// table, json, or a template such as '{{.ID}} {{.Names}}'
    #[arg(long, default_value = "table", value_name = "FORMAT")]
    pub(crate) format: String,
}

#[derive(Debug, Args)]
pub(crate) struct TargetsArgs {
    /// Names or ids
    #[arg(required = true, value_name = "BOX")]
    pub(crate) targets: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Seconds to wait before the box is killed [default: the box's, which is 10]
    #[arg(short = 't', long, visible_alias = "timeout", value_name = "SECONDS")]
    pub(crate) time: Option<u32>,
    /// Signal for the main command [default: the box's]
    #[arg(short, long)]
    pub(crate) signal: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "BOX")]
    pub(crate) targets: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RestartArgs {
    #[command(flatten)]
    pub(crate) stop: StopArgs,
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// Signal: a name or a number
    #[arg(short, long, default_value = "KILL")]
    pub(crate) signal: String,
    /// Names or ids
    #[arg(required = true, value_name = "BOX")]
    pub(crate) targets: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Kill boxes that run
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Names or ids
    #[arg(required = true, value_name = "BOX")]
    pub(crate) targets: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RenameArgs {
    /// Name or id
    #[arg(value_name = "BOX")]
    pub(crate) target: String,
    /// The new name
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Virtual CPUs, from the next start on
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<u8>,
    /// Memory, such as 512m or 2g, from the next start on
    #[arg(short, long, value_name = "SIZE")]
    pub(crate) memory: Option<Size>,
    /// When to run it again: no, on-failure, on-failure:N, always or unless-stopped
    #[arg(long, value_name = "POLICY")]
    pub(crate) restart: Option<RestartPolicy>,
    /// Set a label
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub(crate) label: Vec<String>,
    /// Take a label away
    #[arg(long, value_name = "KEY")]
    pub(crate) label_rm: Vec<String>,
    /// Stop it when nothing is done in it for this long; 0 for never
    #[arg(long, visible_alias = "auto-stop", value_name = "TIME", value_parser = time::duration)]
    pub(crate) idle_timeout: Option<Duration>,
    /// Stop it this long after its start; 0 for never
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    pub(crate) max_duration: Option<Duration>,
    /// Add a volume, as `run -v` takes it, from the next start on
    #[arg(short, long, value_name = "VOLUME")]
    pub(crate) volume: Vec<Volume>,
    /// Take the volume at this place in the box away, from the next start on
    #[arg(long, value_name = "PATH")]
    pub(crate) volume_rm: Vec<String>,
    /// Names or ids
    #[arg(required = true, value_name = "BOX")]
    pub(crate) targets: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Wait for more until the box has come to its end
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last lines, or `all`
    #[arg(short = 'n', long, default_value = "all", value_name = "N")]
    pub(crate) tail: String,
    /// Only what was written since then: a time, or how long ago, such as 10m
    #[arg(long, value_name = "TIME", value_parser = time::moment)]
    pub(crate) since: Option<SystemTime>,
    /// Only what was written until then
    #[arg(long, value_name = "TIME", value_parser = time::moment)]
    pub(crate) until: Option<SystemTime>,
    /// Begin each line with the time at which it was written
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// What the guest's console has shown instead: its kernel and its agent
    #[arg(long, conflicts_with_all = ["follow", "since", "until", "timestamps", "tail"])]
    pub(crate) console: bool,
    /// Name, id, or unique start of an id
    #[arg(value_name = "BOX")]
    pub(crate) target: String,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Also what has happened since then: a time, or how long ago, such as 10m
    #[arg(long, value_name = "TIME", value_parser = time::moment)]
    pub(crate) since: Option<SystemTime>,
    /// End at this time
    #[arg(long, value_name = "TIME", value_parser = time::moment)]
    pub(crate) until: Option<SystemTime>,
    /// Only those that fit: box, event, image, such as event=exited
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
    #[command(flatten)]
    pub(crate) format: FormatArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Look once
    #[arg(long)]
    pub(crate) no_stream: bool,
    #[command(flatten)]
    pub(crate) format: FormatArgs,
    /// Names or ids [default: all boxes that run]
    #[arg(value_name = "BOX")]
    pub(crate) targets: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct MetricsArgs {
    /// Serve it over HTTP there: `host:port`, or `unix:/path`
    #[arg(long, value_name = "ADDRESS", value_parser = metrics_address)]
    pub(crate) listen: Option<MetricsAddress>,
}

fn metrics_address(text: &str) -> Result<MetricsAddress, String> {
    match text.strip_prefix("unix:") {
        Some("") => Err("the path of the socket is empty".into()),
        Some(path) => Ok(MetricsAddress::Unix(PathBuf::from(path))),
        None if text.contains(':') => Ok(MetricsAddress::Tcp(text.to_owned())),
        None => Err(format!("`{text}` is no address: use host:port or unix:/path")),
    }
}
