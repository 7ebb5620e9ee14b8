//! The command line as data.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use crate::box_args::{
    AttachArgs, BoxArgs, CreateArgs, EventsArgs, ExecArgs, KillArgs, LogsArgs, MetricsArgs, PsArgs,
    RenameArgs, RestartArgs, RmArgs, RunArgs, StatsArgs, StopArgs, TargetsArgs, UpdateArgs,
};
use crate::exit;
pub(crate) use crate::network_args::{NetworkCommand, NetworkInspectArgs, NetworkUpdateArgs, PortArgs};

/// Run OCI images in micro-VMs of their own, with no daemon.
#[derive(Debug, Parser)]
#[command(name = "boxlite", version, disable_help_subcommand = true, max_term_width = 100)]
pub(crate) struct Line {
    /// Folder of everything that BoxLite keeps [env: BOXLITE_HOME] [default: ~/.boxlite]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Configuration file [env: BOXLITE_CONFIG] [default: config.json in the home folder]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Look for images without a registry in their name here first; may be given several times
    #[arg(long, global = true, value_name = "HOST")]
    pub(crate) registry: Vec<String>,
    /// Tell what is done, on standard error
    #[arg(long, global = true)]
    pub(crate) debug: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a box from an image, run a command in it, and wait for its end
    Run(RunArgs),
    /// Create a box from an image, without starting it
    Create(CreateArgs),
    /// Start boxes; they go on by themselves
    Start(TargetsArgs),
    /// Run a command in a running box
    Exec(ExecArgs),
    /// Copy files between the host and a box
    Cp(CpArgs),
    /// Connect to the main command of a running box
    Attach(AttachArgs),
    /// List boxes
    #[command(visible_aliases = ["ls", "list"])]
    Ps(PsArgs),
    /// Show all that is known of boxes or images, as JSON
    Inspect(InspectArgs),
    /// Show what the main command of a box has written
    Logs(LogsArgs),
    /// Show what happens to boxes
    Events(EventsArgs),
    /// Show what boxes use
    Stats(StatsArgs),
    /// Show what boxes use in the text format of Prometheus, or serve it
    Metrics(MetricsArgs),
    /// Stop running boxes
    Stop(StopArgs),
    /// Stop boxes and start them again
    Restart(RestartArgs),
    /// Send a signal to the main commands of boxes
    Kill(KillArgs),
    /// Let the virtual CPUs of boxes stand still
    Pause(TargetsArgs),
    /// Let paused boxes go on
    #[command(visible_alias = "resume")]
    Unpause(TargetsArgs),
    /// Wait for the end of boxes, and print the exit codes of their main commands
    Wait(TargetsArgs),
    /// Give a box another name
    Rename(RenameArgs),
    /// Change what boxes are asked to be
    Update(UpdateArgs),
    /// Remove boxes
    Rm(RmArgs),
    /// Download images
    Pull(PullArgs),
    /// List images
    Images(ImagesArgs),
    /// Remove images
    Rmi(RmiArgs),
    /// Load images from an OCI layout folder, an OCI archive or a `docker save` archive
    Load(LoadArgs),
    /// Write images into an OCI archive
    Save(SaveArgs),
    /// Give an image one more name
    Tag(TagArgs),
    /// Work with images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Look at disk usage, and remove what is not used
    #[command(subcommand)]
    System(SystemCommand),
    /// Show the published ports of a box, or where one of its ports is published
    Port(PortArgs),
    /// Look at the network of a box, and change what it may reach
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Work with volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Log in to a registry
    Login(LoginArgs),
    /// Log out of a registry
    Logout(LogoutArgs),
    /// Say what this host has and what it lacks
    Doctor(FormatArgs),
    /// Show the version
    Version(FormatArgs),
}

impl Command {
    /// The exit code when BoxLite itself fails.
    pub(crate) fn tool_code(&self) -> u8 {
        match self {
            Self::Run(_) | Self::Exec(_) | Self::Create(_) => exit::TOOL,
            _ => 1,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Download images
    Pull(PullArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls(ImagesArgs),
    /// Show all that is known of images, as JSON
    Inspect(InspectArgs),
    /// Remove images
    Rm(RmiArgs),
    /// Load images from an archive
    Load(LoadArgs),
    /// Write images into an OCI archive
    Save(SaveArgs),
    /// Give an image one more name
    Tag(TagArgs),
    /// Remove images without a name, and files that belong to no image
    Prune(PruneArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Make a volume
    Create(VolumeCreateArgs),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(VolumeLsArgs),
    /// Show all that is known of volumes, as JSON
    Inspect(VolumesArgs),
    /// Remove volumes that no box has, with all that is in them
    #[command(visible_alias = "remove")]
    Rm(VolumesArgs),
    /// Remove what is left of boxes that have gone; with --all every volume that no box has
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
pub(crate) struct VolumeCreateArgs {
    /// How much it holds at most, such as 10g; a bare number is bytes [default: no limit]
    #[arg(long, visible_alias = "quota", value_name = "SIZE")]
    pub(crate) size: Option<Bytes>,
    /// Set a label; may be given several times
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub(crate) label: Vec<String>,
    /// Name
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct VolumeLsArgs {
    /// Only names
    #[arg(short, long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) format: FormatArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VolumesArgs {
    /// Names
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SystemCommand {
    /// Show what boxes, images and caches take on the disk
    Df(DfArgs),
    /// Remove boxes that do not run, images without a name, and files that belong to nothing
    Prune(PruneArgs),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people
    Table,
    /// One JSON document for programs
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    pub(crate) format: Format,
}

/// How a command runs in a box.
#[derive(Debug, Args)]
pub(crate) struct ProcessArgs {
    /// Set a variable; NAME alone takes its value from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Working directory in the box
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User in the box: name or uid, with an optional group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Pass standard input to the command
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// Keep user and group ids; out of a box that needs root
    #[arg(short, long)]
    pub(crate) archive: bool,
    /// Copy what a symbolic link leads to, when SOURCE is one
    #[arg(short = 'L', long, visible_alias = "follow-symlinks")]
    pub(crate) follow_link: bool,
    /// What is there already is an error
    #[arg(long)]
    pub(crate) no_overwrite: bool,
    /// Owner of what is copied into a box [default: the user of its main command]
    #[arg(long, value_name = "USER[:GROUP]", conflicts_with = "archive")]
    pub(crate) chown: Option<String>,
    /// Say nothing of what is done
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// A path here, BOX:PATH, or `-` for a tar archive on standard input
    #[arg(value_name = "SOURCE", allow_hyphen_values = true)]
    pub(crate) source: String,
    /// A path here, BOX:PATH, or `-` for a tar archive on standard output
    #[arg(value_name = "DEST", allow_hyphen_values = true)]
    pub(crate) dest: String,
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Read from this file or folder instead of standard input
    #[arg(short, long, value_name = "PATH", conflicts_with = "path")]
    pub(crate) input: Option<PathBuf>,
    /// Only print the references
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// The same as --input
    #[arg(value_name = "PATH")]
    pub(crate) path: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    /// Only digests
    #[arg(short, long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) format: FormatArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullWhen {
    /// When it is not here
    Missing,
    /// Always; what has not changed is not downloaded again
    Always,
    /// Never
    Never,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Only print the names
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Platform of the image, such as linux/amd64 [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<String>,
    /// References, such as `busybox`, `quay.io/org/name:tag` or `name@sha256:…`
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) references: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// An image that is not there is no error; one that a box uses stays in any case
    #[arg(short, long)]
    pub(crate) force: bool,
    /// References or digests
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) references: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// References or digests
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) references: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// Reference or digest
    #[arg(value_name = "IMAGE")]
    pub(crate) source: String,
    /// The new name
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Names, ids, references or digests
    #[arg(required = true, value_name = "NAME")]
    pub(crate) references: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Also what has a name and nothing uses
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DfArgs {
    /// Each box and image
    #[arg(short, long)]
    pub(crate) verbose: bool,
    #[command(flatten)]
    pub(crate) format: FormatArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// User
    #[arg(short, long, value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub(crate) password_stdin: bool,
    /// Host of the registry
    #[arg(default_value = "docker.io")]
    pub(crate) registry: String,
}

#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// Host of the registry
    #[arg(default_value = "docker.io")]
    pub(crate) registry: String,
}

/// A size in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u32);

/// A size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_size(text, 1).map(Self)
    }
}

/// A size in GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskSize(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = parse_size(text, 1 << 20)?;
        u32::try_from(bytes.div_ceil(1 << 20)).map(Self).map_err(|_| format!("`{text}` is too large"))
    }
}

impl FromStr for DiskSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(parse_size(text, 1 << 30)?.div_ceil(1 << 30)))
    }
}

/// A number with one of Docker's suffixes: b, k, m, g, t, also as `kb` or `KiB`, each 1024 times the one before.
pub(crate) fn parse_size(text: &str, bare_unit: u64) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, suffix) = text.split_at(digits);
    let suffix = suffix.trim_start().to_ascii_lowercase();
    let unit = match suffix.trim_end_matches('b').trim_end_matches('i') {
        "" if suffix.is_empty() => bare_unit,
        "" if suffix == "b" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return Err(format!("`{text}` is no size: use a number and b, k, m, g or t")),
    };
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is no size"))?;
    number.checked_mul(unit).ok_or_else(|| format!("`{text}` is too large"))
}

/// Variables as the library takes them; NAME alone is taken from our own environment, and left out when it is not set.
pub(crate) fn environment(entries: &[String]) -> Result<Vec<(String, String)>, String> {
    let mut all = Vec::new();
    for entry in entries {
        match entry.split_once('=') {
            Some((name, value)) => all.push((name.to_owned(), value.to_owned())),
            None => match std::env::var(entry) {
                Ok(value) => all.push((entry.clone(), value)),
                Err(std::env::VarError::NotPresent) => {}
                Err(error) => return Err(format!("cannot pass `{entry}` on: {error}")),
            },
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Line::command().debug_assert();
    }

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, mib) in
            [("512", 512), ("512m", 512), ("2g", 2048), ("2GiB", 2048), ("1048577b", 2), ("1024kb", 1)]
        {
            assert_eq!(text.parse::<Size>().unwrap().0, mib, "{text}");
        }
        for bad in ["", "g", "-1", "1x", "1.5g", "99999999999999999999g", "20000000t"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        assert_eq!("20".parse::<DiskSize>().unwrap().0, 20);
        assert_eq!("1025m".parse::<DiskSize>().unwrap().0, 2);
    }

    #[test]
    fn flags_after_the_image_belong_to_the_command() {
        let line = Line::try_parse_from(["boxlite", "run", "--rm", "busybox", "ls", "-l", "--rm"]).unwrap();
        let Command::Run(run) = line.command else { panic!("not a run") };
        assert!(run.rm);
        assert_eq!(run.create.command, ["ls", "-l", "--rm"]);
    }
}
