//! Logins at registries.

use crate::error::{Error, ErrorKind, Result};
use crate::home::AUTH;
use crate::registry::{Credentials, RegistryError};
use crate::runtime::{BoxliteRuntime, blocking};

impl BoxliteRuntime {
    /// Asks a registry whether it accepts a login, and keeps it in the home folder, in `auth.json`, for all pulls to come:
    /// readable to the owner of the home, not encrypted.
    ///
    /// # Errors
    /// When the registry refuses the login or cannot be asked, or the file cannot be written. Nothing was kept then.
    pub async fn login(&self, registry: &str, username: &str, password: &str) -> Result<()> {
        let (inner, path) = (self.shared(), self.home_dir().join(AUTH));
        let (host, user, password) = (registry.to_owned(), username.to_owned(), password.to_owned());
        inner
            .registries
            .fresh()
            .check_login(&host, &user, &password)
            .await
            .map_err(|error| failed("log in to", registry, error))?;
        let stored = blocking(move || {
            let _changing = inner.home.lock()?;
            Ok(Credentials::store(&path, &host, &user, &password))
        })
        .await?;
        stored.map_err(|error| failed("keep the login for", registry, error))
    }

    /// Forgets a login that [`BoxliteRuntime::login`] kept. False: there was none.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub async fn logout(&self, registry: &str) -> Result<bool> {
        let (path, host) = (self.home_dir().join(AUTH), registry.to_owned());
        let inner = self.shared();
        let removed = blocking(move || {
            let _changing = inner.home.lock()?;
            Ok(Credentials::remove(&path, &host))
        })
        .await?;
        removed.map_err(|error| failed("forget the login for", registry, error))
    }
}

fn failed(what: &str, registry: &str, error: RegistryError) -> Error {
    let hint = error.hint();
    let message = format!("cannot {what} {}", registry.escape_debug());
    let failed = Error::new(ErrorKind::Network, message).with_source(error);
    match hint {
        Some(hint) => failed.with_hint(hint),
        None => failed,
    }
}
