//! A command to run in a box.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

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
        if self.timeout.is_some_and(|timeout| timeout.is_zero()) {
            return invalid("a time limit of zero leaves the command no time".into());
        }
        Ok(())
    }
}
