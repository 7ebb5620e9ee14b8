//! The client of OCI registries: manifests and blobs, from mirrors and registries, with logins, retries and limits.
//!
//! ```text
//!   Registries ─▶ Repository ─┬─ mirror ──────┐   each a Session: scheme, login, token
//!                             └─ the registry ┴─▶ Transport: connection, redirects, timeouts ─▶ HTTP client
//!                  └─▶ BlobStream: one run of bytes over many connections
//! ```
//!
//! Whatever a registry sends is hostile: documents are bounded and compared with their digests before they are given out;
//! blobs are bounded, and their reader verifies them.

mod blob;
mod challenge;
mod credentials;
mod error;
mod helper;
mod host;
mod proxy;
mod retry;
mod session;
mod settings;
#[cfg(test)]
mod tests;
mod tls;
mod token;
mod transport;
mod wire;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::header::{HeaderName, HeaderValue};

pub(crate) use blob::BlobStream;
pub(crate) use credentials::Credentials;
pub use error::{RegistryError, RegistryErrorKind};
pub(crate) use retry::Timeouts;
pub use settings::{ImageRegistry, ImageRegistryProxy, RegistryAuth, RegistryTransport};

use credentials::Login;
use error::{Failure, shown};
use host::Host;
use proxy::Proxies;
use session::{Session, Shared};
use settings::Settings;
use tls::Trust;
use transport::Transport;

use crate::image::Digest;

/// The largest manifest or other document, in bytes: what the distribution specification asks registries to take.
pub(crate) const DOCUMENT_MAX: u64 = 4 << 20;
/// The kinds of manifests that are understood.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.docker.distribution.manifest.v2+json";
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// All registries: settings, stored logins, and HTTP clients that are made when they are needed. Clones share them.
#[derive(Clone)]
pub(crate) struct Registries {
    shared: Arc<Shared>,
    configured: Arc<HashMap<Host, Arc<Settings>>>,
    search: Arc<[String]>,
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries").field("configured", &self.configured).finish_non_exhaustive()
    }
}

/// A manifest or an index as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// At most [`DOCUMENT_MAX`] bytes.
    pub(crate) bytes: Vec<u8>,
    /// Of the bytes.
    pub(crate) digest: Digest,
}

/// One repository of one registry, and of its mirrors. Clones share tokens.
#[derive(Clone)]
pub(crate) struct Repository {
    name: String,
    repository: String,
    /// The mirrors in their order, then the registry. Never empty.
    sessions: Vec<Arc<Session>>,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Registries {
    /// Refuses settings that make no sense. Files of certificates and logins are read when they are needed; without
    /// `proxy` the environment is read for one.
    pub(crate) fn new(
        registries: Vec<ImageRegistry>,
        proxy: Option<ImageRegistryProxy>,
        credentials: Credentials,
    ) -> Result<Self, RegistryError> {
        let variable = |name: &str| std::env::var(name).ok();
        let proxies = Proxies::new(proxy.as_ref(), variable)?;
        Self::with(registries, proxies, credentials, Timeouts::default())
    }

    fn with(
        registries: Vec<ImageRegistry>,
        proxies: Proxies,
        credentials: Credentials,
        timeouts: Timeouts,
    ) -> Result<Self, RegistryError> {
        let mut configured = HashMap::new();
        let mut search = Vec::new();
        let mut trusts = Vec::new();
        for registry in registries {
            let is_searched = registry.search;
            let settings = Settings::new(registry)?;
            let host = settings.host.clone();
            match (&settings.ca_file, settings.skip_verify) {
                (_, true) => trusts.push((host.clone(), Trust::Anyone)),
                (Some(path), false) => trusts.push((host.clone(), Trust::And(path.clone()))),
                (None, false) => {}
            }
            if is_searched {
                search.push(host.to_string());
            }
            if configured.insert(host.clone(), Arc::new(settings)).is_some() {
                return Err(RegistryError::settings(format!("the registry `{host}` has settings twice")));
            }
        }
        let transport = Transport::new(timeouts, proxies, trusts);
        let shared = Arc::new(Shared { transport, credentials, plain: Mutex::default() });
        Ok(Self { shared, configured: Arc::new(configured), search: search.into() })
    }

    /// The same, with hosts that are searched before those whose settings say so. They need no settings.
    pub(crate) fn searching(mut self, hosts: &[String]) -> Result<Self, RegistryError> {
        let mut search = Vec::new();
        for host in hosts.iter().chain(self.search.iter()) {
            let host = self.host(host)?.to_string();
            if !search.contains(&host) {
                search.push(host);
            }
        }
        self.search = search.into();
        Ok(self)
    }

    /// The same for use on another runtime, with connections of its own.
    pub(crate) fn fresh(&self) -> Self {
        let plain = self.shared.plain.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let shared = Shared {
            transport: self.shared.transport.fresh(),
            credentials: self.shared.credentials.clone(),
            plain: Mutex::new(plain),
        };
        Self { shared: Arc::new(shared), configured: self.configured.clone(), search: self.search.clone() }
    }

    /// The hosts where a name without a registry is looked for, in this order; none: at Docker Hub alone.
    pub(crate) fn search(&self) -> &[String] {
        &self.search
    }

    /// A repository, such as `library/busybox` of `docker.io`. Nothing is sent yet.
    pub(crate) fn repository(&self, registry: &str, repository: &str) -> Result<Repository, RegistryError> {
        let host = self.host(registry)?;
        if !is_path(repository) {
            return Err(RegistryError::settings(format!(
                "`{}` is no name of a repository",
                shown(repository)
            )));
        }
        let settings = self.settings(&host);
        let session = |settings, is_mirror| {
            Arc::new(Session::new(self.shared.clone(), settings, repository, is_mirror))
        };
        let mirrors = settings.mirrors.iter().map(|mirror| session(self.settings(mirror), true));
        let mut sessions: Vec<_> = mirrors.collect();
        sessions.push(session(settings, false));
        Ok(Repository { name: format!("{host}/{repository}"), repository: repository.to_owned(), sessions })
    }

    /// Whether a registry takes a login: `Ok` if it does. Whatever is stored or set for it does not count.
    pub(crate) async fn check_login(
        &self,
        host: &str,
        username: &str,
        password: &str,
    ) -> Result<(), RegistryError> {
        let host = self.host(host)?;
        let Some(login) = Login::of(username.to_owned(), password.to_owned()) else {
            return Err(RegistryError::settings("the password is empty"));
        };
        let session = Session::for_login(self.shared.clone(), self.settings(&host), login);
        let attempt = || async {
            let response = session.request("", None, None).await?;
            match response.status().as_u16() {
                200 => Ok(()),
                _ => Err(wire::failure(&host.to_string(), response).await),
            }
        };
        let checked = session.retrying(attempt).await;
        checked
            .map_err(|failure| RegistryError::new(format!("cannot log in to {host}"), Some(&host), failure))
    }

    fn host(&self, text: &str) -> Result<Host, RegistryError> {
        let host = Host::parse(text);
        host.ok_or_else(|| RegistryError::settings(format!("`{}` is no host of a registry", shown(text))))
    }

    fn settings(&self, host: &Host) -> Arc<Settings> {
        let configured = self.configured.get(host).cloned();
        configured.unwrap_or_else(|| Arc::new(Settings::default_of(host.clone())))
    }
}

impl Repository {
    /// This repository without its mirrors: for after one of them has sent a blob that is not what its digest says.
    pub(crate) fn without_mirrors(&self) -> Self {
        let sessions = self.sessions.iter().filter(|session| !session.is_mirror()).cloned().collect();
        Self { sessions, ..self.clone() }
    }

    /// The manifest or index of a tag or digest. That of a digest has been verified.
    pub(crate) async fn manifest(&self, tag_or_digest: &str) -> Result<Manifest, RegistryError> {
        let digest: Option<Digest> = tag_or_digest.parse().ok();
        if digest.is_none() && !is_tag(tag_or_digest) {
            let message = format!("`{}` is neither a tag nor a digest", shown(tag_or_digest));
            return Err(RegistryError::settings(message));
        }
        let separator = if digest.is_some() { '@' } else { ':' };
        let action = format!("cannot get {}{separator}{tag_or_digest}", self.name);
        let path = format!("{}/manifests/{tag_or_digest}", self.repository);
        let mut sessions = self.usable().into_iter().peekable();
        while let Some(session) = sessions.next() {
            match session.retrying(|| manifest(&session, &path, digest)).await {
                Ok(manifest) => return Ok(manifest),
                Err(failure) if sessions.peek().is_some() => session.failed(&failure),
                Err(failure) => return Err(RegistryError::new(action, Some(session.host()), failure)),
            }
        }
        Err(RegistryError::settings("there is no registry to ask"))
    }

    /// A small blob, such as a configuration, verified. `size` is at most [`DOCUMENT_MAX`].
    pub(crate) async fn document(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, RegistryError> {
        let action = format!("cannot get {}@{digest}", self.name);
        if size > DOCUMENT_MAX {
            let failure = Failure::protocol(format!("it has {size} bytes, {DOCUMENT_MAX} are allowed"));
            return Err(RegistryError::new(
                action,
                self.sessions.last().map(|session| session.host()),
                failure,
            ));
        }
        // Each session is judged by the whole document: a mirror that lies is passed over.
        let mut sessions = self.usable().into_iter().peekable();
        loop {
            let session: Vec<_> = sessions.next().into_iter().collect();
            let mirror = session.first().cloned().filter(|_| sessions.peek().is_some());
            let document = self.whole(session, digest, size, &action).await;
            match (document, mirror) {
                (Err(error), Some(mirror)) => mirror.failed(error.failure()),
                (document, _) => return document,
            }
        }
    }

    async fn whole(
        &self,
        session: Vec<Arc<Session>>,
        digest: &Digest,
        size: u64,
        action: &str,
    ) -> Result<Vec<u8>, RegistryError> {
        let host = session.first().map(|session| session.host().clone());
        let limit = self.sessions[0].transport().timeouts().document;
        let read = async {
            let mut stream =
                BlobStream::open(session, &self.repository, digest, size, 0, action.to_owned()).await?;
            let mut document = Vec::new();
            while let Some(bytes) = stream.next().await? {
                document.extend_from_slice(&bytes);
            }
            Ok(document)
        };
        let failed = |failure| RegistryError::new(action, host.as_ref(), failure);
        let Ok(document) = tokio::time::timeout(limit, read).await else {
            return Err(failed(Failure::new(RegistryErrorKind::Timeout, "it takes too long")));
        };
        let document = document?;
        match Digest::of(&document) {
            actual if actual == *digest => Ok(document),
            actual => Err(failed(Failure::protocol(format!("what was sent has the digest {actual}")))),
        }
    }

    /// A blob of `size` bytes from byte `from` on. Its reader verifies it.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        from: u64,
    ) -> Result<BlobStream, RegistryError> {
        let action = format!("cannot get {}@{digest}", self.name);
        BlobStream::open(self.usable(), &self.repository, digest, size, from, action).await
    }

    /// The mirrors that have not been given up, then the registry.
    fn usable(&self) -> Vec<Arc<Session>> {
        self.sessions.iter().filter(|session| !session.is_given_up()).cloned().collect()
    }
}

/// One try to get a manifest.
async fn manifest(session: &Session, path: &str, wanted: Option<Digest>) -> Result<Manifest, Failure> {
    let response = session.request(path, Some(HeaderValue::from_static(ACCEPT)), None).await?;
    let host = session.host();
    if response.status() != 200 {
        return Err(wire::failure(&host.to_string(), response).await);
    }
    let text = |name| response.header(name).and_then(|value| value.to_str().ok());
    // Of a tag, only the registry can say which digest it has; of other algorithms nothing is known.
    let said = text(&CONTENT_DIGEST).and_then(|text| text.parse::<Digest>().ok());
    let bytes = response.document(DOCUMENT_MAX).await?;
    let digest = Digest::of(&bytes);
    match wanted.or(said) {
        Some(wanted) if wanted != digest => {
            Err(Failure::protocol(format!("{host} sends {digest} instead of {wanted}")))
        }
        _ => Ok(Manifest { bytes, digest }),
    }
}

/// Whether this can stand in a URL's path as it is: names are checked for more where references are parsed.
fn is_path(text: &str) -> bool {
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
    let component = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(plain);
    text.len() <= 255 && text.split('/').all(component)
}

fn is_tag(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !text.is_empty() && text.len() <= 128 && !text.starts_with(['.', '-']) && text.bytes().all(plain)
}
