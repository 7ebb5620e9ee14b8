//! Why a registry did not give what was asked for.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use super::host::Host;

/// What can be told apart of what a registry did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegistryErrorKind {
    /// The registry has no such repository, tag or blob.
    NotFound,
    /// A login is missing or wrong. Registries say so of what does not exist, too.
    Unauthorized,
    /// The login is right and may not do this.
    Denied,
    /// Too many requests.
    RateLimited,
    /// No connection, or one that was lost.
    Unreachable,
    /// The registry's TLS certificate is not trusted.
    Certificate,
    /// The registry does not answer, or too slowly.
    Timeout,
    /// Any other HTTP status.
    Server(u16),
    /// The answer breaks the protocol, or is not what its digest says.
    Protocol,
    /// The login could not be found out: a file or a helper of credentials is broken.
    Credentials,
    /// The configuration makes no sense.
    Settings,
}

/// Why a registry did not give what was asked for: what was asked of which registry, with the cause as source.
#[derive(Debug)]
pub struct RegistryError(Box<Inner>);

#[derive(Debug)]
struct Inner {
    action: String,
    host: Option<Host>,
    failure: Failure,
}

impl RegistryError {
    /// `action` says what could not be done, such as `cannot get a/b:c`.
    pub(super) fn new(action: impl Into<String>, host: Option<&Host>, failure: Failure) -> Self {
        Self(Box::new(Inner { action: action.into(), host: host.cloned(), failure }))
    }

    /// For settings that make no sense.
    pub(super) fn settings(message: impl Into<String>) -> Self {
        let failure = Failure::new(RegistryErrorKind::Settings, message);
        Self::new("the settings of the registries cannot be used", None, failure)
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> RegistryErrorKind {
        self.0.failure.kind
    }

    /// Whether what was asked for does not exist there.
    pub fn is_not_found(&self) -> bool {
        self.kind() == RegistryErrorKind::NotFound
    }

    pub(super) fn failure(&self) -> &Failure {
        &self.0.failure
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let host = self.0.host.as_ref();
        match self.0.failure.kind {
            RegistryErrorKind::Unauthorized => Some(match host {
                Some(host) if !host.is_docker_hub() => {
                    format!("log in: `boxlite login {host}`; the image may also not exist")
                }
                _ => "log in: `boxlite login`; the image may also not exist".into(),
            }),
            RegistryErrorKind::Certificate => Some(
                "name the authority's file as `ca_file` of the registry in the configuration, or trust it blindly \
                 with `skip_verify`"
                    .into(),
            ),
            RegistryErrorKind::RateLimited => Some("log in for a higher limit, or try again later".into()),
            _ => None,
        }
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.action)
    }
}

impl StdError for RegistryError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0.failure)
    }
}

/// Whether the same request may succeed when it is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    Never,
    /// After the usual delay.
    Soon,
    /// The registry has said when.
    After(Duration),
}

/// Why one try failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: RegistryErrorKind,
    pub(super) retry: Retry,
    /// The other end of the connection does not speak TLS.
    pub(super) no_tls: bool,
    message: String,
    source: Option<Cause>,
}

impl Failure {
    /// One that no other try makes good.
    pub(super) fn new(kind: RegistryErrorKind, message: impl Into<String>) -> Self {
        Self { kind, retry: Retry::Never, no_tls: false, message: message.into(), source: None }
    }

    pub(super) fn protocol(message: impl Into<String>) -> Self {
        Self::new(RegistryErrorKind::Protocol, message)
    }

    pub(super) fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    pub(super) fn no_tls(mut self, no_tls: bool) -> Self {
        self.no_tls = no_tls;
        self
    }

    /// Only the text of `cause` is kept, escaped and cut.
    pub(super) fn because(mut self, cause: impl fmt::Display) -> Self {
        self.source = Some(Cause(shown(&cause.to_string())));
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Failure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|cause| cause as &(dyn StdError + 'static))
    }
}

/// The text of an error whose type is not kept.
#[derive(Debug)]
struct Cause(String);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Cause {}

/// Text from outside, for messages: what cannot be printed is escaped, and the rest cut.
pub(super) fn shown(text: &str) -> String {
    const MOST: usize = 300;
    let mut out = String::new();
    for (n, character) in text.chars().enumerate() {
        if n == MOST {
            out.push('…');
            break;
        }
        if character.is_control() || is_deceptive(character) {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// Characters that are not seen, or that change the direction of what follows them.
fn is_deceptive(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_cannot_move_the_cursor_and_ends() {
        assert_eq!(shown("a\u{1b}[2J\nb\u{202e}ü`"), "a\\u{1b}[2J\\nb\\u{202e}ü`");
        assert_eq!(shown(&"ü".repeat(1000)).chars().count(), 301);
    }

    #[test]
    fn an_error_names_each_cause_once() {
        let failure = Failure::protocol("the answer is no manifest").because("expected `{`");
        let error = RegistryError::new("cannot get h/a:b", None, failure);
        let failure = error.source().unwrap();
        let chain = [error.to_string(), failure.to_string(), failure.source().unwrap().to_string()];
        assert_eq!(chain, ["cannot get h/a:b", "the answer is no manifest", "expected `{`"]);
    }
}
