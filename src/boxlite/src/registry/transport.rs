//! One HTTP request: connection, redirects, timeouts and bounded bodies. It knows nothing of registries.
//!
//! Redirects are followed here and not by the HTTP client: only here is it known which login belongs to which origin.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION,
    RANGE,
};
use reqwest::{Client, Method, StatusCode, Url};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};

use super::error::{Failure, RegistryErrorKind, Retry, shown};
use super::host::Host;
use super::proxy::Proxies;
use super::retry::Timeouts;
use super::tls::{self, Trust};

/// The most redirects that are followed.
const REDIRECTS_MAX: usize = 10;
/// The most of a registry's error document that is read, in bytes.
const ERROR_MAX: u64 = 64 << 10;
/// How long a connection is kept for another request.
const IDLE: Duration = Duration::from_secs(30);
/// The most connections that are kept for one host.
const IDLE_MAX: usize = 8;

/// The HTTP clients: one for all hosts that are trusted alike, each made when it is first needed.
pub(super) struct Transport {
    timeouts: Timeouts,
    proxies: Arc<Proxies>,
    system: OnceCell<Client>,
    /// Those of hosts with a trust of their own, by authority.
    special: HashMap<String, (Trust, OnceCell<Client>)>,
}

/// What to send.
#[derive(Clone)]
pub(super) struct Request {
    pub(super) url: Url,
    pub(super) accept: Option<HeaderValue>,
    /// Only ever sent to the origin of `url`.
    pub(super) authorization: Option<HeaderValue>,
    /// The first byte that is wanted.
    pub(super) from: Option<u64>,
    /// Makes it a POST of a form. Its redirects are not followed.
    pub(super) form: Option<String>,
}

impl Request {
    pub(super) fn get(url: Url) -> Self {
        Self { url, accept: None, authorization: None, from: None, form: None }
    }
}

impl Transport {
    pub(super) fn new(
        timeouts: Timeouts,
        proxies: Proxies,
        trusts: impl IntoIterator<Item = (Host, Trust)>,
    ) -> Self {
        let special = trusts.into_iter().map(|(host, trust)| (host.authority(), (trust, OnceCell::new())));
        Self { timeouts, proxies: Arc::new(proxies), system: OnceCell::new(), special: special.collect() }
    }

    /// The same, with connections of its own: a connection lives on the runtime that opened it, and stands still when
    /// nobody drives that one.
    pub(super) fn fresh(&self) -> Self {
        let special = self.special.iter();
        let special =
            special.map(|(host, (trust, _))| (host.clone(), (trust.clone(), OnceCell::new()))).collect();
        Self { timeouts: self.timeouts, proxies: self.proxies.clone(), system: OnceCell::new(), special }
    }

    pub(super) fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Sends a request, and follows redirects to the final answer, whatever its status.
    pub(super) async fn send(&self, request: &Request) -> Result<Response, Failure> {
        let mut url = request.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let response = self.hop(request, &url).await?;
            let status = response.status();
            let redirects = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
            if !redirects {
                return Ok(response);
            }
            if request.form.is_some() {
                return Err(Failure::protocol("the answer to a login is a redirect"));
            }
            url = target(&url, response.header(&LOCATION))?;
        }
        Err(Failure::protocol(format!("more than {REDIRECTS_MAX} redirects")))
    }

    async fn hop(&self, request: &Request, url: &Url) -> Result<Response, Failure> {
        let client = self.client(url).await?;
        let method = if request.form.is_some() { Method::POST } else { Method::GET };
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(accept) = &request.accept {
            headers.insert(ACCEPT, accept.clone());
        }
        if let Some(from) = request.from {
            let range = HeaderValue::from_str(&format!("bytes={from}-"));
            headers.insert(RANGE, range.map_err(|e| Failure::protocol("a range cannot be sent").because(e))?);
        }
        if let Some(authorization) =
            request.authorization.as_ref().filter(|_| url.origin() == request.url.origin())
        {
            let mut authorization = authorization.clone();
            authorization.set_sensitive(true);
            headers.insert(AUTHORIZATION, authorization);
        }
        let mut builder = client.request(method, url.clone());
        if let Some(form) = &request.form {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            builder = builder.body(form.clone());
        }
        // The client has its own limit on connecting, which is part of the wait.
        let limit = self.timeouts.connect + self.timeouts.headers;
        let response = match timeout(limit, builder.headers(headers).send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(classify(url, &error)),
            Err(_) => {
                let message = format!("{} does not answer within {} s", place(url), limit.as_secs());
                return Err(Failure::new(RegistryErrorKind::Timeout, message).retry(Retry::Soon));
            }
        };
        let encoding = response.headers().get(CONTENT_ENCODING);
        if let Some(encoding) =
            encoding.filter(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
        {
            let encoding = shown(&String::from_utf8_lossy(encoding.as_bytes()));
            return Err(Failure::protocol(format!(
                "{} encodes its answer as `{encoding}`, unasked",
                place(url)
            )));
        }
        Ok(Response { response, timeouts: self.timeouts, window: self.timeouts.stall, arrived: 0 })
    }

    async fn client(&self, url: &Url) -> Result<Client, Failure> {
        let authority = match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (host, _) => host.unwrap_or_default().to_owned(),
        };
        // A configured `host:443` is `host` in a URL.
        let special = self.special.get(&authority).or_else(|| {
            let port = url.port_or_known_default()?;
            self.special.get(&format!("{authority}:{port}"))
        });
        let (trust, cell) = match special {
            Some((trust, cell)) => (trust.clone(), cell),
            None => (Trust::System, &self.system),
        };
        let make = || async {
            let proxies = self.proxies.clone();
            let timeouts = self.timeouts;
            let made = tokio::task::spawn_blocking(move || build(&trust, proxies, &timeouts)).await;
            made.map_err(|e| Failure::protocol("the HTTP client cannot be made").because(e))?
        };
        cell.get_or_try_init(make).await.cloned()
    }
}

fn build(trust: &Trust, proxies: Arc<Proxies>, timeouts: &Timeouts) -> Result<Client, Failure> {
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls::config(trust)?)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .http1_only()
        .connect_timeout(timeouts.connect)
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_MAX)
        .user_agent(concat!("boxlite/", env!("CARGO_PKG_VERSION")))
        // The environment's proxies count where our own policy says so alone.
        .no_proxy();
    if !proxies.are_none() {
        builder = builder.proxy(reqwest::Proxy::custom(move |url| proxies.of(url)));
    }
    builder.build().map_err(|e| {
        Failure::new(RegistryErrorKind::Settings, "the HTTP client cannot be made").because(innermost(&e))
    })
}

/// Where a redirect leads.
fn target(from: &Url, location: Option<&HeaderValue>) -> Result<Url, Failure> {
    let location = location.ok_or_else(|| Failure::protocol("a redirect leads nowhere"))?;
    let text = location.to_str().map_err(|_| Failure::protocol("a redirect leads to no URL"))?;
    let mut url = from.join(text).map_err(|e| Failure::protocol("a redirect leads to no URL").because(e))?;
    match (from.scheme(), url.scheme()) {
        (_, "https") | ("http", "http") => {}
        (_, "http") => return Err(Failure::protocol("a redirect leads from HTTPS to plain HTTP")),
        (_, other) => return Err(Failure::protocol(format!("a redirect leads to `{}`", shown(other)))),
    }
    // A login that the other side chooses is none of ours.
    if url.set_username("").and_then(|()| url.set_password(None)).is_err() || url.host_str().is_none() {
        return Err(Failure::protocol("a redirect leads to no host"));
    }
    Ok(url)
}

/// Host and port of a URL for messages; its path and query may carry secrets.
pub(super) fn place(url: &Url) -> String {
    let host = shown(url.host_str().unwrap_or_default());
    match url.port() {
        Some(port) => format!("{}://{host}:{port}", url.scheme()),
        None => format!("{}://{host}", url.scheme()),
    }
}

/// What an error before the head of a response means.
fn classify(url: &Url, error: &reqwest::Error) -> Failure {
    let place = place(url);
    let cause = innermost(error);
    let soon = |kind, message: String| Failure::new(kind, message).retry(Retry::Soon).because(&cause);
    if let Some(tls) = chain(error).find_map(|e| e.downcast_ref::<rustls::Error>()) {
        return match tls {
            rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
                let message = format!("the TLS certificate of {place} is not trusted");
                Failure::new(RegistryErrorKind::Certificate, message).because(tls)
            }
            rustls::Error::InvalidMessage(_) => {
                let message = format!("{place} does not speak TLS");
                let failure = Failure::new(RegistryErrorKind::Unreachable, message).because(tls);
                failure.no_tls(error.is_connect())
            }
            _ => {
                Failure::new(RegistryErrorKind::Unreachable, format!("TLS with {place} failed")).because(tls)
            }
        };
    }
    if error.is_timeout() {
        return soon(RegistryErrorKind::Timeout, format!("{place} does not answer in time"));
    }
    if error.is_connect() {
        // Whoever knows nothing of TLS hangs up on its first message.
        let hung_up =
            [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        let hung_up = is_io(error, &hung_up);
        // Without a port, the two schemes have different ones.
        let refused = url.port().is_none() && is_io(error, &[io::ErrorKind::ConnectionRefused]);
        let failure = soon(RegistryErrorKind::Unreachable, format!("cannot connect to {place}"));
        return failure.no_tls(url.scheme() == "https" && (hung_up || refused));
    }
    soon(RegistryErrorKind::Unreachable, format!("{place} gives no whole answer in HTTP"))
}

/// An error and all its causes. One that an I/O error was made of is not its cause, but hidden in it.
fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(
        Some(error),
        |error: &&'a (dyn StdError + 'static)| -> Option<&'a (dyn StdError + 'static)> {
            let error: &'a (dyn StdError + 'static) = *error;
            match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(hidden) => Some(hidden),
                None => error.source(),
            }
        },
    )
}

/// Whether the system failed like this.
fn is_io(error: &reqwest::Error, kinds: &[io::ErrorKind]) -> bool {
    chain(error).filter_map(|e| e.downcast_ref::<io::Error>()).any(|e| kinds.contains(&e.kind()))
}

/// The last cause: the only one that is not about the HTTP client's own parts.
fn innermost(error: &reqwest::Error) -> String {
    let mut last: &dyn StdError = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// A response whose body has not been read.
pub(super) struct Response {
    response: reqwest::Response,
    timeouts: Timeouts,
    /// What is left of the time in which the next bytes must have come, and how many of them have.
    window: Duration,
    arrived: u64,
}

impl Response {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn header(&self, name: &reqwest::header::HeaderName) -> Option<&HeaderValue> {
        self.response.headers().get(name)
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Whole bytes of the body as it says itself.
    pub(super) fn content_length(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// The next bytes of the body. Only the time that is spent waiting here counts: a slow reader is no slow server.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let since = Instant::now();
            let read = timeout(self.window, self.response.chunk()).await;
            self.window = self.window.saturating_sub(since.elapsed());
            let place = place(self.response.url());
            match read {
                Err(_) => {
                    let message = format!("{place} sends too slowly or no more");
                    return Err(Failure::new(RegistryErrorKind::Timeout, message).retry(Retry::Soon));
                }
                Ok(Err(error)) => {
                    let message = format!("the connection to {place} was lost");
                    let failure = Failure::new(RegistryErrorKind::Unreachable, message).retry(Retry::Soon);
                    return Err(failure.because(innermost(&error)));
                }
                Ok(Ok(Some(bytes))) if bytes.is_empty() => {}
                Ok(Ok(bytes)) => {
                    self.arrived += bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
                    if self.arrived >= self.timeouts.stall_bytes {
                        self.window = self.timeouts.stall;
                        self.arrived = 0;
                    }
                    return Ok(bytes);
                }
            }
        }
    }

    /// The whole body, if it is not larger than this.
    pub(super) async fn document(mut self, limit: u64) -> Result<Vec<u8>, Failure> {
        let place = place(self.response.url());
        let large = || Failure::protocol(format!("the answer of {place} is larger than {limit} bytes"));
        if self.content_length().is_some_and(|length| length > limit) {
            return Err(large());
        }
        let whole = self.timeouts.document;
        let read = async {
            let mut document = Vec::new();
            while let Some(bytes) = self.chunk().await? {
                if document.len() as u64 + bytes.len() as u64 > limit {
                    return Err(large());
                }
                document.extend_from_slice(&bytes);
            }
            Ok(document)
        };
        match timeout(whole, read).await {
            Ok(document) => document,
            Err(_) => {
                let message = format!("{place} takes too long for a document");
                Err(Failure::new(RegistryErrorKind::Timeout, message).retry(Retry::Soon))
            }
        }
    }

    /// The beginning of an error's body; nothing where it cannot be read, as the status says enough.
    pub(super) async fn error_document(self) -> Vec<u8> {
        match self.document(ERROR_MAX).await {
            Ok(document) => document,
            Err(error) => {
                tracing::debug!(%error, "the body of an error cannot be read");
                Vec::new()
            }
        }
    }
}
