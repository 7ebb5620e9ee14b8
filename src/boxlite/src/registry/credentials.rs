//! Logins that are stored: files in the format of Docker's `config.json`, and the helpers that they name.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::{Failure, RegistryError, RegistryErrorKind};
use super::helper;
use super::host::Host;
use crate::home::write_atomic;
use crate::record::read_bounded;

/// The largest file, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// Some programs leave the padding out.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How to log in to one registry.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    Password {
        username: String,
        password: String,
    },
    /// Is exchanged for an access token.
    Identity {
        token: String,
    },
    /// Is sent as it is.
    Bearer {
        token: String,
    },
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(hidden)",
            Self::Identity { .. } => "Identity(hidden)",
            Self::Bearer { .. } => "Bearer(hidden)",
        })
    }
}

/// Where logins are looked for: in these files, in this order. They are read when a registry asks for a login.
#[derive(Debug, Clone, Default)]
pub(crate) struct Credentials {
    files: Vec<PathBuf>,
    helpers: Option<PathBuf>,
}

/// What of Docker's `config.json` is about logins.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: Map<String, Value>,
    #[serde(default)]
    cred_helpers: Map<String, Value>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// What a file knows of a host.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Login(Login),
    Helper(String),
}

impl Credentials {
    /// The login is taken from the first of these files that has one. A file that does not exist has none.
    pub(crate) fn new(files: Vec<PathBuf>) -> Self {
        Self { files, helpers: None }
    }

    /// Looks for helpers in this folder instead of `PATH`.
    #[cfg(test)]
    pub(super) fn with_helpers(mut self, folder: &Path) -> Self {
        self.helpers = Some(folder.to_owned());
        self
    }

    /// The login for a host; `None` when none is stored.
    pub(super) async fn find(&self, host: &Host, helper_limit: Duration) -> Result<Option<Login>, Failure> {
        for path in &self.files {
            let (path, host) = (path.clone(), host.clone());
            let key = host.key();
            let found = tokio::task::spawn_blocking(move || look(&path, &host)).await;
            let broken = |e| {
                Failure::new(RegistryErrorKind::Credentials, "the files of logins cannot be read").because(e)
            };
            match found.map_err(broken)?? {
                Found::Nothing => {}
                Found::Login(login) => return Ok(Some(login)),
                Found::Helper(name) => {
                    let login = helper::get(&name, self.helpers.as_deref(), &key, helper_limit).await?;
                    if login.is_some() {
                        return Ok(login);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Stores a login in a file, which is made where it is missing. The rest of it is kept.
    ///
    /// The caller holds the lock of the home, lest another login get lost.
    pub(crate) fn store(
        path: &Path,
        host: &str,
        username: &str,
        password: &str,
    ) -> Result<(), RegistryError> {
        let host = parse(host)?;
        if username.is_empty() || username.contains(':') {
            return Err(RegistryError::settings("the user name is empty or has `:` in it"));
        }
        let failed =
            |failure| RegistryError::new(format!("cannot store the login for {host}"), Some(&host), failure);
        let mut file = load(path).map_err(failed)?.unwrap_or_default();
        let auths = auths(path, &mut file).map_err(failed)?;
        auths.retain(|key, _| Host::of_key(key).as_ref() != Some(&host));
        let auth = STANDARD.encode(format!("{username}:{password}"));
        auths.insert(host.key(), serde_json::json!({ "auth": auth }));
        save(path, &file).map_err(failed)
    }

    /// Removes a login from a file; whether there was one. The caller holds the lock of the home.
    pub(crate) fn remove(path: &Path, host: &str) -> Result<bool, RegistryError> {
        let host = parse(host)?;
        let failed =
            |failure| RegistryError::new(format!("cannot remove the login for {host}"), Some(&host), failure);
        let Some(mut file) = load(path).map_err(failed)? else { return Ok(false) };
        let auths = auths(path, &mut file).map_err(failed)?;
        let before = auths.len();
        auths.retain(|key, _| Host::of_key(key).as_ref() != Some(&host));
        if auths.len() == before {
            return Ok(false);
        }
        save(path, &file).map_err(failed)?;
        Ok(true)
    }
}

fn parse(host: &str) -> Result<Host, RegistryError> {
    let refused =
        || RegistryError::settings(format!("`{}` is no host of a registry", super::error::shown(host)));
    Host::of_key(host).ok_or_else(refused)
}

fn failed(path: &Path, what: &str) -> Failure {
    Failure::new(RegistryErrorKind::Credentials, format!("{} {what}", path.display()))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    let bytes = read_bounded(path, FILE_MAX);
    bytes.map_err(|e| {
        // That error says only what we say here, and its source why.
        let failure = failed(path, "cannot be read");
        match std::error::Error::source(&e) {
            Some(source) => failure.because(source),
            None => failure,
        }
    })
}

/// Errors of the decoder give line and column, and never a value: all values here are taken as they are.
fn look(path: &Path, host: &Host) -> Result<Found, Failure> {
    let Some(bytes) = read(path)? else { return Ok(Found::Nothing) };
    if bytes.trim_ascii().is_empty() {
        return Ok(Found::Nothing);
    }
    let file: File = serde_json::from_slice(&bytes).map_err(|e| {
        failed(path, &format!("is no file of logins: line {}, column {}", e.line(), e.column()))
    })?;
    let helper = file.cred_helpers.iter().find(|(key, _)| Host::of_key(key).as_ref() == Some(host));
    if let Some((_, name)) = helper {
        let name = name.as_str().ok_or_else(|| failed(path, "has a `credHelpers` that names no program"))?;
        if !name.is_empty() {
            return Ok(Found::Helper(name.to_owned()));
        }
    }
    // The key as `docker login` writes it goes before its other spellings.
    let exact = file.auths.get(&host.key());
    let others =
        file.auths.iter().filter(|(key, _)| Host::of_key(key).as_ref() == Some(host)).map(|(_, value)| value);
    for value in exact.into_iter().chain(others) {
        if let Some(login) = entry(path, value)? {
            return Ok(Found::Login(login));
        }
    }
    Ok(match file.creds_store {
        Some(name) if !name.is_empty() => Found::Helper(name),
        _ => Found::Nothing,
    })
}

/// An entry may be empty: the login is then with a helper.
fn entry(path: &Path, value: &Value) -> Result<Option<Login>, Failure> {
    let broken = || failed(path, "has a login that cannot be read");
    let entry = Entry::deserialize(value).map_err(|_| broken())?;
    if let Some(token) = entry.identitytoken.filter(|token| !token.is_empty()) {
        return Ok(Some(Login::Identity { token }));
    }
    if let Some(auth) = entry.auth.filter(|auth| !auth.is_empty()) {
        let decoded = LENIENT.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let decoded = decoded.ok_or_else(broken)?;
        let (username, password) = decoded.split_once(':').ok_or_else(broken)?;
        // Docker fills its passwords with NUL.
        return Ok(Login::of(username.to_owned(), password.trim_end_matches('\0').to_owned()));
    }
    match (entry.username, entry.password) {
        (Some(username), Some(password)) if !username.is_empty() => Ok(Login::of(username, password)),
        _ => Ok(None),
    }
}

fn load(path: &Path) -> Result<Option<Map<String, Value>>, Failure> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    if bytes.trim_ascii().is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|_| failed(path, "is no JSON object, and is left as it is"))
}

fn auths<'a>(path: &Path, file: &'a mut Map<String, Value>) -> Result<&'a mut Map<String, Value>, Failure> {
    let auths = file.entry("auths").or_insert_with(|| Value::Object(Map::new()));
    auths
        .as_object_mut()
        .ok_or_else(|| failed(path, "has an `auths` that is no object, and is left as it is"))
}

/// The file that replaces the old one is open to its owner alone.
fn save(path: &Path, file: &Map<String, Value>) -> Result<(), Failure> {
    let mut text =
        serde_json::to_vec_pretty(file).map_err(|e| failed(path, "cannot be written").because(e))?;
    text.push(b'\n');
    write_atomic(path, &text).map_err(|e| {
        let failure = failed(path, "cannot be written");
        match std::error::Error::source(&e) {
            Some(source) => failure.because(source),
            None => failure,
        }
    })
}
