//! The one error type of the library: a kind for programs, a chain for people.

use std::error::Error as StdError;
use std::fmt;

/// What a program can tell apart. Every SDK maps these one to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A fault of BoxLite or of the host that has no better name.
    Internal,
    /// A box, image or execution that was asked for does not exist.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The box's state does not allow the operation.
    InvalidState,
    /// An argument cannot be right, whatever the state.
    InvalidArgument,
    /// The configuration or the installation is not complete.
    Config,
    /// A file of the home folder could not be read or written.
    Storage,
    /// The database of the home folder could not be read or written.
    Database,
    /// An image is broken, refused or not usable here.
    Image,
    /// The network failed.
    Network,
    /// A command could not be started, or its end is not known.
    Execution,
    /// The box or the runtime has been stopped.
    Stopped,
    /// The virtual machine could not start, or was lost.
    Engine,
    /// Not offered by this build or on this host.
    Unsupported,
    /// The agent in the box did not answer as expected.
    Portal,
    /// A limit was reached.
    ResourceExhausted,
}

impl ErrorKind {
    /// A stable name for machines, such as `not_found`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::InvalidState => "invalid_state",
            Self::InvalidArgument => "invalid_argument",
            Self::Config => "config",
            Self::Storage => "storage",
            Self::Database => "database",
            Self::Image => "image",
            Self::Network => "network",
            Self::Execution => "execution",
            Self::Stopped => "stopped",
            Self::Engine => "engine",
            Self::Unsupported => "unsupported",
            Self::Portal => "portal",
            Self::ResourceExhausted => "resource_exhausted",
        }
    }
}

/// Why a command did not start: what `126` and `127` mean on a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartFailure {
    /// The program does not exist.
    NotFound,
    /// The program cannot be executed.
    NotExecutable,
    /// Working directory, user or anything else.
    Other,
}

/// An error of any operation of this library.
///
/// `Display` gives this error alone; [`Error::report`] gives it with all its causes and the hint.
#[derive(Debug)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    details: Vec<String>,
    start_failure: Option<StartFailure>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What operations of this library return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The name of [`Error`] in the published packages.
pub type BoxliteError = Error;

/// The name of [`Result`] in the published packages.
pub type BoxliteResult<T> = Result<T>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let inner = Inner {
            kind,
            message: message.into(),
            hint: None,
            details: Vec::new(),
            start_failure: None,
            source: None,
        };
        Self { inner: Box::new(inner) }
    }

    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    /// For an error that takes the place of another one, with the same words: its causes become this one's.
    pub(crate) fn with_source_of(mut self, replaced: impl StdError + Send + Sync + 'static) -> Self {
        let mut messages = Vec::new();
        let mut source = replaced.source();
        while let Some(cause) = source {
            messages.push(cause.to_string());
            source = cause.source();
        }
        self.inner.source = RemoteCause::chain(&messages).map(Into::into);
        self
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.inner.hint = Some(hint.into());
        self
    }

    pub(crate) fn with_details(mut self, details: Vec<String>) -> Self {
        self.inner.details = details;
        self
    }

    pub(crate) fn with_start_failure(mut self, failure: StartFailure) -> Self {
        self.inner.start_failure = Some(failure);
        self
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<&str> {
        self.inner.hint.as_deref()
    }

    /// Further lines that help to find the cause, such as the end of the box's console. They come from the box and
    /// are to be taken as hostile; control characters are escaped.
    pub fn details(&self) -> &[String] {
        &self.inner.details
    }

    /// Set when a command did not start.
    pub fn start_failure(&self) -> Option<StartFailure> {
        self.inner.start_failure
    }

    /// The error, its causes, details and hint, for people. Several lines, no newline at the end.
    pub fn report(&self) -> String {
        let mut out = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            out.push_str(": ");
            out.push_str(&cause.to_string());
            source = cause.source();
        }
        for line in &self.inner.details {
            out.push_str("\n  | ");
            out.push_str(line);
        }
        if let Some(hint) = &self.inner.hint {
            out.push_str("\nhint: ");
            out.push_str(hint);
        }
        out
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// A chain of messages whose types are not kept, or came from another process.
#[derive(Debug)]
pub(crate) struct RemoteCause {
    message: String,
    source: Option<Box<RemoteCause>>,
}

impl RemoteCause {
    /// Outermost first; `None` when there are none.
    pub(crate) fn chain(messages: &[String]) -> Option<Self> {
        let (first, rest) = messages.split_first()?;
        Some(Self { message: first.clone(), source: Self::chain(rest).map(Box::new) })
    }
}

impl fmt::Display for RemoteCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for RemoteCause {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// Shorthand for errors about files of the home folder.
pub(crate) fn storage(
    message: impl Into<String>,
    source: impl Into<Box<dyn StdError + Send + Sync>>,
) -> Error {
    Error::new(ErrorKind::Storage, message).with_source(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_each_cause_once_and_ends_with_the_hint() {
        let messages = ["cannot boot".to_owned(), "no kernel".to_owned()];
        let error = Error::new(ErrorKind::Engine, "cannot start box `a`")
            .with_source(RemoteCause::chain(&messages).unwrap())
            .with_hint("run `boxlite doctor`");
        assert_eq!(
            error.report(),
            "cannot start box `a`: cannot boot: no kernel\nhint: run `boxlite doctor`"
        );
        assert_eq!(error.to_string(), "cannot start box `a`");
    }
}
