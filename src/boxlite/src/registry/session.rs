//! One repository of one registry: scheme, login and tokens. Sends a request once, whatever that takes.
//!
//! ```text
//!   request ─▶ 401 with a challenge ─┬─ Basic ──▶ login ────────────────────▶ request
//!                                    └─ Bearer ─▶ login ─▶ realm ─▶ token ──▶ request
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use reqwest::Url;
use reqwest::header::{HeaderValue, WWW_AUTHENTICATE};
use tokio::sync::OnceCell;

use super::challenge::{Challenge, choose};
use super::credentials::{Credentials, Login};
use super::error::{Failure, RegistryErrorKind};
use super::host::Host;
use super::retry::{Tries, random};
use super::settings::{RegistryAuth, RegistryTransport, Settings};
use super::token::{self, Token};
use super::transport::{Request, Response, Transport};

/// The most loopback hosts whose scheme is remembered.
const SCHEMES_MAX: usize = 256;

/// What the sessions of all registries share.
pub(super) struct Shared {
    pub(super) transport: Transport,
    pub(super) credentials: Credentials,
    /// Whether a loopback host that nobody has configured speaks plain HTTP.
    pub(super) plain: Mutex<HashMap<Host, bool>>,
}

/// A registry, and what is done there.
pub(super) struct Session {
    shared: Arc<Shared>,
    settings: Arc<Settings>,
    /// `None`: nothing but a login.
    repository: Option<String>,
    is_mirror: bool,
    /// A mirror that could not be reached, which is not tried again.
    given_up: AtomicBool,
    login: OnceCell<Option<Login>>,
    authorization: Mutex<Authorization>,
}

/// What the registry has accepted, or is likely to.
#[derive(Debug, Clone, Default)]
enum Authorization {
    /// It has not asked.
    #[default]
    None,
    /// This, with each request.
    Fixed(HeaderValue),
    /// A token, and where to get the next one.
    Token { token: Token, realm: String, service: Option<String> },
}

impl Session {
    pub(super) fn new(
        shared: Arc<Shared>,
        settings: Arc<Settings>,
        repository: &str,
        is_mirror: bool,
    ) -> Self {
        Self {
            shared,
            settings,
            repository: Some(repository.to_owned()),
            is_mirror,
            given_up: AtomicBool::new(false),
            login: OnceCell::new(),
            authorization: Mutex::default(),
        }
    }

    /// For finding out whether this login is good.
    pub(super) fn for_login(shared: Arc<Shared>, settings: Arc<Settings>, login: Login) -> Self {
        Self {
            repository: None,
            login: OnceCell::new_with(Some(Some(login))),
            ..Self::new(shared, settings, "", false)
        }
    }

    pub(super) fn host(&self) -> &Host {
        &self.settings.host
    }

    pub(super) fn transport(&self) -> &Transport {
        &self.shared.transport
    }

    pub(super) fn is_mirror(&self) -> bool {
        self.is_mirror
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Takes note of why a mirror failed.
    pub(super) fn failed(&self, failure: &Failure) {
        tracing::debug!(mirror = %self.host(), error = %failure, "a mirror is passed over");
        let lasting = matches!(
            failure.kind,
            RegistryErrorKind::Unreachable | RegistryErrorKind::Timeout | RegistryErrorKind::Certificate
        );
        if lasting {
            self.given_up.store(true, Ordering::Relaxed);
        }
    }

    /// How often a request is tried here.
    pub(super) fn most_tries(&self) -> u32 {
        let timeouts = self.transport().timeouts();
        if self.is_mirror { timeouts.mirror_tries } else { timeouts.tries }
    }

    /// Repeats `attempt` while its failures are of those that pass.
    pub(super) async fn retrying<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, Failure> {
        let timeouts = self.transport().timeouts();
        let mut tries = Tries::new(timeouts, self.most_tries(), 0);
        loop {
            let failure = match attempt().await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            let Some(delay) = tries.failed(timeouts, self.most_tries(), 0, &failure, random()) else {
                return Err(failure);
            };
            tracing::debug!(registry = %self.host(), error = %failure, ?delay, "a request is sent again");
            tokio::time::sleep(delay).await;
        }
    }

    /// Sends one request for what stands below `/v2/`, with a login if the registry wants one. The response has any
    /// status but 401.
    pub(super) async fn request(
        &self,
        path: &str,
        accept: Option<HeaderValue>,
        from: Option<u64>,
    ) -> Result<Response, Failure> {
        let send = |plain: bool| self.authorized(plain, path, accept.clone(), from);
        if self.settings.transport == RegistryTransport::Http {
            return send(true).await;
        }
        if self.settings.configured || !self.host().is_loopback() {
            return send(false).await;
        }
        let known = self.plain().get(self.host()).copied();
        if let Some(plain) = known {
            return send(plain).await;
        }
        let plain = match send(false).await {
            Err(failure) if failure.no_tls => true,
            Err(failure) => return Err(failure),
            Ok(response) => {
                self.remember(false);
                return Ok(response);
            }
        };
        let response = send(plain).await?;
        self.remember(plain);
        Ok(response)
    }

    fn plain(&self) -> std::sync::MutexGuard<'_, HashMap<Host, bool>> {
        self.shared.plain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, plain: bool) {
        let mut known = self.plain();
        if known.len() >= SCHEMES_MAX {
            known.clear();
        }
        known.insert(self.host().clone(), plain);
    }

    async fn authorized(
        &self,
        plain: bool,
        path: &str,
        accept: Option<HeaderValue>,
        from: Option<u64>,
    ) -> Result<Response, Failure> {
        let scheme = if plain { "http" } else { "https" };
        let url = Url::parse(&format!("{scheme}://{}/v2/{path}", self.host().authority()))
            .map_err(|e| Failure::protocol("the registry's URL makes no sense").because(e))?;
        let mut request = Request { accept, from, ..Request::get(url) };
        // What is known already, then what the registry asks for, once.
        request.authorization = self.known(&request.url).await?;
        let response = self.transport().send(&request).await?;
        if response.status() != 401 {
            return Ok(response);
        }
        let asked = choose(response.headers().get_all(WWW_AUTHENTICATE).iter().map(HeaderValue::as_bytes))?;
        let refused = super::wire::failure(&self.host().to_string(), response).await;
        let Some(challenge) = asked else { return Err(refused) };
        let Some(next) = self.answer(&request, challenge).await? else { return Err(refused) };
        request.authorization = Some(next);
        let response = self.transport().send(&request).await?;
        if response.status() != 401 {
            return Ok(response);
        }
        self.set(Authorization::None);
        Err(super::wire::failure(&self.host().to_string(), response).await)
    }

    fn get(&self) -> Authorization {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, authorization: Authorization) {
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = authorization;
    }

    /// The header to send before the registry has asked; a token that has expired is replaced.
    async fn known(&self, url: &Url) -> Result<Option<HeaderValue>, Failure> {
        if let RegistryAuth::Bearer { token } = &self.settings.auth
            && self.repository.is_some()
        {
            return bearer(token).map(Some);
        }
        match self.get() {
            Authorization::None => Ok(None),
            Authorization::Fixed(header) => Ok(Some(header)),
            Authorization::Token { token, realm, service } => match token.header(Instant::now()) {
                Some(header) => Ok(Some(header)),
                None => self.token(url, realm, service).await.map(Some),
            },
        }
    }

    /// The header that answers a challenge; `None` when there is no login, or what was sent was the answer already.
    async fn answer(&self, request: &Request, challenge: Challenge) -> Result<Option<HeaderValue>, Failure> {
        let login = self.login().await?;
        if let Some(Login::Bearer { .. }) = login {
            // It has been sent.
            return Ok(None);
        }
        match challenge {
            Challenge::Bearer { realm, service } => self.token(&request.url, realm, service).await.map(Some),
            Challenge::Basic => {
                let Some(login) = login else { return Ok(None) };
                let header = token::basic(login)?;
                if header.is_none() || header == request.authorization {
                    return Ok(None);
                }
                self.set(header.clone().map_or(Authorization::None, Authorization::Fixed));
                Ok(header)
            }
        }
    }

    async fn token(&self, url: &Url, realm: String, service: Option<String>) -> Result<HeaderValue, Failure> {
        let login = self.login().await?;
        let repository = self.repository.as_deref();
        let token =
            token::fetch(self.transport(), url, &realm, service.as_deref(), repository, login).await?;
        let header = token.header(Instant::now());
        let header =
            header.ok_or_else(|| Failure::protocol("the token server's token has expired on the way"))?;
        self.set(Authorization::Token { token, realm, service });
        Ok(header)
    }

    /// That of the settings, or else the stored one, which is looked for once.
    async fn login(&self) -> Result<Option<&Login>, Failure> {
        let limit = self.transport().timeouts().helper;
        let find = || async {
            match &self.settings.auth {
                RegistryAuth::Anonymous => self.shared.credentials.find(self.host(), limit).await,
                RegistryAuth::Basic { username, password } => {
                    Ok(Some(Login::Password { username: username.clone(), password: password.clone() }))
                }
                RegistryAuth::Bearer { token } => Ok(Some(Login::Bearer { token: token.clone() })),
            }
        };
        Ok(self.login.get_or_try_init(find).await?.as_ref())
    }
}

fn bearer(token: &str) -> Result<HeaderValue, Failure> {
    let header = HeaderValue::from_str(&format!("Bearer {token}"));
    header.map_err(|_| Failure::new(RegistryErrorKind::Settings, "the token cannot be sent"))
}
