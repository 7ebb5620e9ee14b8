//! Challenges, tokens, and where logins go.

use super::server::{Asked, Reply, Server, raw, reply};
use super::*;
use crate::registry::{RegistryAuth, RegistryErrorKind};

const LOGIN: &str = "Basic dTpw";

fn wants_login(asked: &Asked, challenge: &str, accepted: &str) -> Reply {
    match asked.header("authorization") {
        Some(header) if header == accepted => reply(200, &[], "{}"),
        _ => reply(401, &[&format!("WWW-Authenticate: {challenge}")], ""),
    }
}

fn basic() -> RegistryAuth {
    RegistryAuth::Basic { username: "u".into(), password: "p".into() }
}

fn with_auth(server: &Server, auth: RegistryAuth) -> Repository {
    let mut registry = plain(&server.host());
    registry.auth = auth;
    registries(vec![registry]).repository(&server.host(), "a/b").unwrap()
}

/// A registry whose tokens `t0`, `t1`… are each good for so many requests.
async fn with_tokens(good_for: usize, expires_in: u64) -> Server {
    let tokens = std::sync::Mutex::new((0, 0));
    Server::start(move |_, asked| {
        let mut tokens = tokens.lock().unwrap();
        if asked.line.contains("/token?") {
            *tokens = (tokens.0 + 1, good_for);
            let token = format!(r#"{{"token":"t{}","expires_in":{expires_in}}}"#, tokens.0);
            return reply(200, &[], token);
        }
        let good = format!("Bearer t{}", tokens.0);
        if asked.header("authorization") == Some(&good) && tokens.1 > 0 {
            tokens.1 -= 1;
            return reply(200, &[], "{}");
        }
        let realm = format!("http://{}/token?x=1", asked.header("host").unwrap());
        reply(401, &[&format!(r#"WWW-Authenticate: Bearer realm="{realm}",service="s&t",scope="evil""#)], "")
    })
    .await
}

#[tokio::test]
async fn a_name_and_a_password_are_sent_when_they_are_asked_for() {
    let server = Server::start(|_, asked| wants_login(asked, "Basic realm=\"x\"", LOGIN)).await;
    let repository = with_auth(&server, basic());
    repository.manifest("x").await.unwrap();
    repository.manifest("x").await.unwrap();
    let sent: Vec<_> = server.asked().iter().map(|a| a.header("authorization").map(str::to_owned)).collect();
    assert_eq!(sent, [None, Some(LOGIN.into()), Some(LOGIN.into())]);
}

#[tokio::test]
async fn a_wrong_or_missing_login_is_told_with_what_to_do() {
    for (auth, requests) in [(basic(), 2), (RegistryAuth::Anonymous, 1)] {
        let server = Server::start(|_, asked| wants_login(asked, "Basic", "Basic other")).await;
        let error = with_auth(&server, auth).manifest("x").await.unwrap_err();
        assert_eq!((error.kind(), server.log().len()), (RegistryErrorKind::Unauthorized, requests));
        assert!(error.hint().unwrap().contains(&format!("boxlite login {}", server.host())));
    }
}

#[tokio::test]
async fn a_token_of_the_settings_is_sent_as_it_is() {
    let server =
        Server::start(|_, asked| wants_login(asked, "Bearer realm=\"http://x\"", "Bearer mine")).await;
    with_auth(&server, RegistryAuth::Bearer { token: "mine".into() }).manifest("x").await.unwrap();
    assert_eq!(server.log().len(), 1);
    let error =
        with_auth(&server, RegistryAuth::Bearer { token: "bad".into() }).manifest("x").await.unwrap_err();
    assert_eq!((error.kind(), server.log().len()), (RegistryErrorKind::Unauthorized, 2));
}

#[tokio::test]
async fn a_token_is_asked_for_pulling_alone_and_kept() {
    let server = with_tokens(9, 300).await;
    let repository = with_auth(&server, basic());
    repository.manifest("x").await.unwrap();
    repository.manifest("x").await.unwrap();
    let get = "GET /v2/a/b/manifests/x".to_owned();
    let token = "GET /token?x=1&service=s%26t&scope=repository%3Aa%2Fb%3Apull".to_owned();
    assert_eq!(server.log(), [get.clone(), token, get.clone(), get]);
    let sent: Vec<_> = server.asked().iter().map(|a| a.header("authorization").map(str::to_owned)).collect();
    let bearer = Some("Bearer t1".to_owned());
    assert_eq!(sent, [None, Some(LOGIN.into()), bearer.clone(), bearer]);
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced_once() {
    let server = with_tokens(1, 300).await;
    let repository = with_auth(&server, RegistryAuth::Anonymous);
    repository.manifest("x").await.unwrap();
    repository.manifest("x").await.unwrap();
    assert_eq!(server.log().iter().filter(|line| line.contains("token")).count(), 2);

    let server = with_tokens(0, 300).await;
    let error = with_auth(&server, RegistryAuth::Anonymous).manifest("x").await.unwrap_err();
    assert_eq!((error.kind(), server.log().len()), (RegistryErrorKind::Unauthorized, 3));
}

#[tokio::test]
async fn an_identity_token_is_exchanged_for_an_access_token() {
    let server = Server::start(|_, asked| match asked.what() {
        "POST /token" => reply(200, &[], r#"{"access_token":"t"}"#),
        _ => {
            let realm =
                format!("Bearer realm=\"http://{}/token\",service=\"s\"", asked.header("host").unwrap());
            wants_login(asked, &realm, "Bearer t")
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    std::fs::write(&file, format!(r#"{{"auths":{{"{}":{{"identitytoken":"i d"}}}}}}"#, server.host()))
        .unwrap();
    let registries = with(vec![plain(&server.host())], Credentials::new(vec![file]), timeouts());
    registries.repository(&server.host(), "a").unwrap().manifest("x").await.unwrap();
    let asked = server.asked().remove(1);
    assert_eq!(asked.header("authorization"), None);
    assert_eq!(
        asked.body,
        "service=s&scope=repository%3Aa%3Apull&grant_type=refresh_token&client_id=boxlite&refresh_token=i+d"
    );
}

#[tokio::test]
async fn a_redirect_to_another_host_carries_no_login() {
    let other = Server::start(|_, _| reply(200, &[], "{}")).await;
    let location = format!("Location: http://x:y@{}/blob?signed", other.host());
    let server = Server::start(move |_, asked| match asked.header("authorization") {
        Some(LOGIN) => reply(307, &[&location], ""),
        _ => reply(401, &["WWW-Authenticate: Basic"], ""),
    })
    .await;
    with_auth(&server, basic()).manifest("x").await.unwrap();
    assert_eq!(other.log(), ["GET /blob?signed"]);
    assert_eq!(other.asked()[0].header("authorization"), None);
    assert_eq!(other.asked()[0].header("referer"), None);
}

#[tokio::test]
async fn a_redirect_within_the_registry_keeps_the_login() {
    let server = Server::start(move |_, asked| match (asked.what(), asked.header("authorization")) {
        ("GET /moved", Some(LOGIN)) => reply(200, &[], "{}"),
        (_, Some(LOGIN)) => reply(307, &["Location: /moved"], ""),
        _ => reply(401, &["WWW-Authenticate: Basic"], ""),
    })
    .await;
    with_auth(&server, basic()).manifest("x").await.unwrap();
}

#[tokio::test]
async fn a_token_server_that_fails_is_tried_again_and_one_that_lies_is_not() {
    for (reply_of_realm, expected, requests) in [
        (reply as fn(u16, &[&str], &'static str) -> Reply, RegistryErrorKind::Server(503), 10),
        (|_, headers, _| reply(200, headers, "{}"), RegistryErrorKind::Protocol, 2),
        (|_, headers, _| reply(401, headers, ""), RegistryErrorKind::Unauthorized, 2),
        (|_, headers, _| reply(403, headers, ""), RegistryErrorKind::Denied, 2),
        (|_, _, _| raw(200, &["Content-Length: 9999999"], ""), RegistryErrorKind::Protocol, 2),
    ] {
        let server = Server::start(move |_, asked| {
            if asked.line.contains("/token") {
                return reply_of_realm(503, &[], "");
            }
            let realm =
                format!("WWW-Authenticate: Bearer realm=\"http://{}/token\"", asked.header("host").unwrap());
            reply(401, &[&realm], "")
        })
        .await;
        let error = with_auth(&server, basic()).manifest("x").await.unwrap_err();
        assert_eq!((error.kind(), server.log().len()), (expected, requests), "{}", report(&error));
    }
}

#[tokio::test]
async fn a_challenge_that_is_malformed_is_no_reason_to_send_a_login() {
    let server = Server::start(|_, asked| wants_login(asked, "Bearer realm=\"http://x", LOGIN)).await;
    let error = with_auth(&server, basic()).manifest("x").await.unwrap_err();
    assert_eq!((error.kind(), server.log().len()), (RegistryErrorKind::Protocol, 1));
}

#[tokio::test]
async fn a_login_is_checked_without_the_stored_one() {
    let server = Server::start(|_, asked| wants_login(asked, "Basic", LOGIN)).await;
    let registries = registries(vec![plain(&server.host())]);
    registries.check_login(&server.host(), "u", "p").await.unwrap();
    assert_eq!(server.log(), ["GET /v2/", "GET /v2/"]);
    let error = registries.check_login(&server.host(), "u", "wrong").await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Unauthorized);
    let server = with_tokens(1, 300).await;
    let registries = super::registries(vec![plain(&server.host())]);
    registries.check_login(&server.host(), "u", "p").await.unwrap();
    assert_eq!(server.log()[1], "GET /token?x=1&service=s%26t");
}
