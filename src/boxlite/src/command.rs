//! A command to run in a box.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::options::validate_capabilities;
use crate::ulimit::Ulimit;

/// A command to run in a box, with what differs from the box's main command.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BoxCommand {
    /// The program, looked up in the box's `PATH`.
    pub command: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment beyond that of the main command; later entries win.
    pub env: Vec<(String, String)>,
    /// After this time its whole process tree is killed. `None`: never.
    pub timeout: Option<Duration>,
    /// Working directory. `None`: that of the main command.
    pub working_dir: Option<String>,
    /// User, as in [`BoxOptions::user`](crate::BoxOptions::user). `None`: that of the main command.
    pub user: Option<String>,
    /// Standard input is a pipe; otherwise `/dev/null`. Default true.
    pub stdin: bool,
    /// A terminal of so many rows and columns in place of three pipes: standard input is open, and all output is standard
    /// output. `None`: no terminal.
    pub tty: Option<(u16, u16)>,
    /// Processes that it started may outlive it. Otherwise, which is the default, they are killed when it has ended. With a
    /// time limit they are killed at the latest when that is over.
    pub keep_orphans: bool,
    /// Resource limits; those not named are the box's own. Later ones win.
    pub ulimits: Vec<Ulimit>,
    /// Its output waits for nobody: as long as no one is attached, the oldest of it is dropped. Otherwise, which is the
    /// default, it waits for its first reader once 256 KiB of a stream are there.
    pub detach: bool,
    /// Capabilities beyond those of the main command, as in [`BoxOptions::cap_add`](crate::BoxOptions::cap_add).
    pub cap_add: Vec<String>,
    /// Capabilities of the main command that it does not get.
    pub cap_drop: Vec<String>,
}

impl BoxCommand {
    /// A command without arguments.
    pub fn new(command: impl Into<String>) -> Self {
        Self {
            command: command.into(),
            args: Vec::new(),
            env: Vec::new(),
            timeout: None,
            working_dir: None,
            user: None,
            stdin: true,
            tty: None,
            keep_orphans: false,
            ulimits: Vec::new(),
            detach: false,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: Into<String>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds a variable to the environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Limits the time that the command and all that it starts may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn working_dir(mut self, folder: impl Into<String>) -> Self {
        self.working_dir = Some(folder.into());
        self
    }

    /// Sets the user.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Opens standard input, or connects it to `/dev/null`.
    #[must_use]
    pub fn stdin(mut self, open: bool) -> Self {
        self.stdin = open;
        self
    }

    /// Gives it a terminal of so many rows and columns.
    #[must_use]
    pub fn tty(mut self, rows: u16, columns: u16) -> Self {
        self.tty = Some((rows, columns));
        self
    }

    /// Lets what it started outlive it, or not.
    #[must_use]
    pub fn keep_orphans(mut self, keep: bool) -> Self {
        self.keep_orphans = keep;
        self
    }

    /// Lets its output wait for nobody, or for its first reader.
    #[must_use]
    pub fn detach(mut self, detach: bool) -> Self {
        self.detach = detach;
        self
    }

    /// Adds a resource limit.
    #[must_use]
    pub fn ulimit(mut self, limit: Ulimit) -> Self {
        self.ulimits.push(limit);
        self
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let invalid = |message: String| Err(Error::new(ErrorKind::InvalidArgument, message));
        if self.command.is_empty() {
            return invalid("the command is empty".into());
        }
        let words = [&self.command].into_iter().chain(&self.args).chain(&self.user).chain(&self.working_dir);
        if let Some(word) = words.into_iter().find(|word| word.contains('\0')) {
            return invalid(format!("`{}` contains a NUL character", word.escape_debug()));
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return invalid(format!("`{}` is no environment variable", name.escape_debug()));
            }
        }
        self.ulimits.iter().try_for_each(Ulimit::validate)?;
        validate_capabilities(self.cap_add.iter().chain(&self.cap_drop))?;
        if self.timeout.is_some_and(|timeout| timeout.is_zero()) {
            return invalid("a time limit of zero leaves the command no time".into());
        }
        Ok(())
    }
}
