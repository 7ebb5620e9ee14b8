//! Tokens: where a registry says to get one, and how long it is good for.

use std::fmt;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::HeaderValue;
use serde::Deserialize;

use super::credentials::Login;
use super::error::{Failure, RegistryErrorKind};
use super::transport::{Request, Transport, place};
use super::wire;

/// The largest answer of a token server, in bytes.
const ANSWER_MAX: u64 = 256 << 10;
/// How long a token is good for when its server does not say: what the distribution specification's authors wrote down.
const DEFAULT_LIFE: u64 = 60;
/// The longest life that is believed, in seconds.
const LONGEST_LIFE: u64 = 24 * 60 * 60;

/// A token that a registry takes.
#[derive(Clone)]
pub(super) struct Token {
    value: HeaderValue,
    until: Instant,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("until", &self.until).finish_non_exhaustive()
    }
}

impl Token {
    /// The header `Authorization`, while the token is good for this moment.
    pub(super) fn header(&self, now: Instant) -> Option<HeaderValue> {
        (now < self.until).then(|| self.value.clone())
    }
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// `asked` is when the request was sent: a token ages from then on.
fn read(document: &[u8], asked: Instant) -> Result<Token, Failure> {
    let broken = || Failure::protocol("the token server's answer has no token that can be used");
    let answer: Answer = serde_json::from_slice(document)
        // The error might quote the token.
        .map_err(|_| Failure::protocol("the token server's answer cannot be read"))?;
    let token = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
    let value =
        HeaderValue::from_str(&format!("Bearer {}", token.ok_or_else(broken)?)).map_err(|_| broken())?;
    let life = answer.expires_in.filter(|seconds| *seconds > 0).unwrap_or(DEFAULT_LIFE).min(LONGEST_LIFE);
    // A tenth is left for clocks and the way.
    Ok(Token { value, until: asked + Duration::from_secs(life) * 9 / 10 })
}

/// Gets a token for pulling from `repository`, or for nothing but a login.
///
/// `registry` is the URL that asked for the token. The login goes to the realm that the registry names, on a connection
/// that is at least as good.
pub(super) async fn fetch(
    transport: &Transport,
    registry: &Url,
    realm: &str,
    service: Option<&str>,
    repository: Option<&str>,
    login: Option<&Login>,
) -> Result<Token, Failure> {
    let mut url = realm_url(registry, realm)?;
    let scope = repository.map(|repository| format!("repository:{repository}:pull"));
    let mut fields: Vec<(&str, &str)> = Vec::new();
    fields.extend(service.map(|service| ("service", service)));
    fields.extend(scope.as_deref().map(|scope| ("scope", scope)));
    let asked = Instant::now();
    let request = match login {
        Some(Login::Identity { token }) => {
            fields.extend([
                ("grant_type", "refresh_token"),
                ("client_id", "boxlite"),
                ("refresh_token", token),
            ]);
            Request { form: Some(form(&fields)), ..Request::get(url) }
        }
        Some(Login::Bearer { .. }) => return Err(refused(&url)),
        Some(Login::Password { .. }) | None => {
            if !fields.is_empty() {
                url.query_pairs_mut().extend_pairs(&fields);
            }
            Request { authorization: login.map(basic).transpose()?.flatten(), ..Request::get(url) }
        }
    };
    let response = transport.send(&request).await?;
    match response.status().as_u16() {
        200 => read(&response.document(ANSWER_MAX).await?, asked),
        401 if login.is_some() => Err(refused(&request.url)),
        _ => Err(wire::failure(&place(&request.url), response).await),
    }
}

fn refused(url: &Url) -> Failure {
    Failure::new(RegistryErrorKind::Unauthorized, format!("{} refuses the login", place(url)))
}

/// The header `Authorization` of a name and a password.
pub(super) fn basic(login: &Login) -> Result<Option<HeaderValue>, Failure> {
    let Login::Password { username, password } = login else { return Ok(None) };
    let value = format!("Basic {}", STANDARD.encode(format!("{username}:{password}")));
    let header = HeaderValue::from_str(&value);
    header.map(Some).map_err(|_| Failure::new(RegistryErrorKind::Credentials, "the login cannot be sent"))
}

fn realm_url(registry: &Url, realm: &str) -> Result<Url, Failure> {
    let bad = |reason| Failure::protocol(format!("the registry's token server cannot be used: {reason}"));
    let url = Url::parse(realm).map_err(|_| bad("it has no URL"))?;
    match (registry.scheme(), url.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => return Err(bad("it is reached over plain HTTP, and the registry over HTTPS")),
        _ => return Err(bad("its URL is none of HTTP")),
    }
    if !url.has_host() || !url.username().is_empty() || url.password().is_some() {
        return Err(bad("its URL has no host, or a login in it"));
    }
    Ok(url)
}

/// Fields as forms and queries have them.
fn form(fields: &[(&str, &str)]) -> String {
    let mut url = Url::parse("http://form").expect("a constant URL");
    url.query_pairs_mut().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(document: &str) -> Option<Duration> {
        let asked = Instant::now();
        read(document.as_bytes(), asked).ok().map(|token| token.until - asked)
    }

    #[test]
    fn a_token_has_two_names_and_is_good_for_nine_tenths_of_its_life() {
        assert_eq!(life(r#"{"token":"a","expires_in":300}"#), Some(Duration::from_secs(270)));
        assert_eq!(
            life(r#"{"access_token":"a","token":"","expires_in":300}"#),
            Some(Duration::from_secs(270))
        );
        assert_eq!(life(r#"{"token":"a"}"#), Some(Duration::from_secs(54)));
        assert_eq!(life(r#"{"token":"a","expires_in":0}"#), Some(Duration::from_secs(54)));
        let longest = life(&format!(r#"{{"token":"a","expires_in":{}}}"#, u64::MAX)).unwrap();
        assert_eq!(longest, Duration::from_secs(LONGEST_LIFE) * 9 / 10);
    }

    #[test]
    fn a_token_that_has_expired_is_not_sent() {
        let now = Instant::now();
        let token = read(br#"{"token":"a","expires_in":100}"#, now).unwrap();
        assert_eq!(token.header(now + Duration::from_secs(89)).unwrap(), "Bearer a");
        assert_eq!(token.header(now + Duration::from_secs(90)), None);
    }

    #[test]
    fn an_answer_without_a_usable_token_is_refused_and_not_quoted() {
        for document in
            ["", "{}", "[]", r#"{"token":""}"#, r#"{"token":"s3cret\n"}"#, r#"{"token":7,"x":"s3cret"}"#]
        {
            let error = read(document.as_bytes(), Instant::now()).unwrap_err();
            assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        }
    }

    #[test]
    fn a_login_goes_to_no_realm_that_is_worse_protected_than_the_registry() {
        let https = Url::parse("https://r").unwrap();
        let http = Url::parse("http://r").unwrap();
        assert!(realm_url(&https, "https://a/token?x=1").is_ok() && realm_url(&http, "http://a").is_ok());
        assert!(realm_url(&http, "https://a").is_ok());
        for realm in ["http://a", "ftp://a", "/token", "", "https://u:p@a", "data:x"] {
            assert!(realm_url(&https, realm).is_err(), "{realm}");
        }
    }

    #[test]
    fn fields_of_a_form_cannot_leave_their_place() {
        assert_eq!(form(&[("a", "b&c=d e"), ("f", "ü")]), "a=b%26c%3Dd+e&f=%C3%BC");
    }
}
