//! Manifests and small blobs: digests, limits, statuses, redirects, mirrors, schemes and certificates.

use std::time::Duration;

use super::server::{AUTHORITY, Reply, Server, bytes, raw, reply, tls};
use super::*;
use crate::image::Digest;
use crate::registry::{DOCUMENT_MAX, RegistryErrorKind};

const BODY: &[u8] = b"{\"schemaVersion\":2}";

async fn kind_of(reply: impl Fn() -> Reply + Send + Sync + 'static) -> (RegistryErrorKind, usize, String) {
    let server = Server::start(move |_, _| reply()).await;
    let error = repository(&server).manifest("latest").await.unwrap_err();
    (error.kind(), server.log().len(), report(&error))
}

#[tokio::test]
async fn a_manifest_comes_with_its_kind_and_digest() {
    let server =
        Server::start(|_, _| reply(200, &["Content-Type: application/x; charset=utf-8"], BODY)).await;
    let manifest = repository(&server).manifest("v1.0").await.unwrap();
    assert_eq!(manifest.bytes, BODY);
    assert_eq!(manifest.digest, Digest::of(BODY));
    let asked = server.asked().remove(0);
    assert_eq!(asked.what(), "GET /v2/a/b/manifests/v1.0");
    assert_eq!(asked.header("accept-encoding"), Some("identity"));
    assert_eq!(asked.header("authorization"), None);
    for kind in
        ["oci.image.index.v1+json", "oci.image.manifest.v1+json", "manifest.list.v2+json", "manifest.v2+json"]
    {
        assert!(asked.header("accept").unwrap().contains(kind), "{kind}");
    }
}

#[tokio::test]
async fn a_document_that_is_not_what_its_digest_says_is_refused() {
    let server = Server::start(|_, _| reply(200, &[], BODY)).await;
    let repository = repository(&server);
    let right = Digest::of(BODY);
    assert_eq!(repository.manifest(&right.to_string()).await.unwrap().digest, right);
    assert_eq!(repository.document(&right, BODY.len() as u64).await.unwrap(), BODY);
    let wrong = Digest::of(b"x");
    let error = repository.manifest(&wrong.to_string()).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Protocol);
    let error = repository.document(&wrong, BODY.len() as u64).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Protocol);
    let header = format!("Docker-Content-Digest: {wrong}");
    let (kind, _, _) = kind_of(move || reply(200, &[&header], BODY)).await;
    assert_eq!(kind, RegistryErrorKind::Protocol);
}

#[tokio::test]
async fn a_document_of_any_size_takes_bounded_memory() {
    let large = format!("Content-Length: {}", DOCUMENT_MAX + 1);
    let (kind, tries, _) = kind_of(move || raw(200, &[&large], b"")).await;
    assert_eq!((kind, tries), (RegistryErrorKind::Protocol, 1));
    let body = vec![b' '; usize::try_from(DOCUMENT_MAX).unwrap() + 1];
    let (kind, tries, _) = kind_of(move || raw(200, &[], &body)).await;
    assert_eq!((kind, tries), (RegistryErrorKind::Protocol, 1));
    let server = Server::start(|_, _| reply(200, &[], BODY)).await;
    let error = repository(&server).document(&Digest::of(BODY), DOCUMENT_MAX + 1).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Protocol);
    assert!(server.log().is_empty());
}

#[tokio::test]
async fn what_may_pass_is_tried_five_times_and_nothing_else_is() {
    for status in [408, 425, 429, 500, 502, 503, 504] {
        let (kind, tries, _) = kind_of(move || reply(status, &[], "")).await;
        assert_eq!(tries, 5, "{status}");
        let expected =
            if status == 429 { RegistryErrorKind::RateLimited } else { RegistryErrorKind::Server(status) };
        assert_eq!(kind, expected);
    }
    for (status, expected) in [
        (400, RegistryErrorKind::Server(400)),
        (401, RegistryErrorKind::Unauthorized),
        (403, RegistryErrorKind::Denied),
        (404, RegistryErrorKind::NotFound),
        (204, RegistryErrorKind::Server(204)),
    ] {
        let (kind, tries, _) = kind_of(move || reply(status, &[], "")).await;
        assert_eq!((kind, tries), (expected, 1), "{status}");
    }
}

#[tokio::test]
async fn a_registry_that_recovers_is_not_noticed() {
    let server = Server::start(|number, _| match number {
        0 => reply(503, &["Retry-After: 0"], ""),
        1 => Reply::Raw(Vec::new()),
        2 => raw(200, &["Content-Length: 100"], "cut"),
        _ => reply(200, &[], BODY),
    })
    .await;
    assert_eq!(repository(&server).manifest("latest").await.unwrap().bytes, BODY);
    assert_eq!(server.log().len(), 4);
}

#[tokio::test]
async fn a_registry_that_asks_to_wait_for_an_hour_is_left_alone() {
    let (kind, tries, text) = kind_of(|| reply(429, &["Retry-After: 3600"], "")).await;
    assert_eq!((kind, tries), (RegistryErrorKind::RateLimited, 1));
    assert!(text.contains("3600 s"), "{text}");
}

#[tokio::test]
async fn an_error_names_image_and_cause_and_cannot_write_to_the_terminal() {
    let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"\u001b[2Jno"}]}"#;
    let server = Server::start(move |_, _| reply(404, &[], body)).await;
    let error = repository(&server).manifest("v9").await.unwrap_err();
    let host = server.host();
    let expected =
        format!("cannot get {host}/a/b:v9: {host} has no such thing: MANIFEST_UNKNOWN: \\u{{1b}}[2Jno");
    assert_eq!(report(&error), expected);
}

#[tokio::test]
async fn a_body_that_is_encoded_unasked_is_refused() {
    let (kind, _, _) = kind_of(|| reply(200, &["Content-Encoding: gzip"], "x")).await;
    assert_eq!(kind, RegistryErrorKind::Protocol);
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let small = Duration::from_millis(30);
    for (head, stalls) in [(Vec::new(), false), (bytes(200, &["Content-Length: 9"], "x"), true)] {
        let server = Server::start(move |_, _| Reply::Hang(head.clone())).await;
        let mut timeouts = Timeouts { tries: 2, ..timeouts() };
        if stalls {
            timeouts.stall = small;
        } else {
            (timeouts.connect, timeouts.headers) = (small, small);
        }
        let registries = with(vec![plain(&server.host())], Credentials::default(), timeouts);
        let error = registries.repository(&server.host(), "a").unwrap().manifest("x").await.unwrap_err();
        assert_eq!(error.kind(), RegistryErrorKind::Timeout, "{}", report(&error));
    }
}

#[tokio::test]
async fn a_trickle_is_given_up_however_long_it_goes_on() {
    let server = Server::start(|_, _| Reply::Trickle(bytes(200, &["Content-Length: 1000000"], ""))).await;
    for (stall, document, words) in [(200, 60_000, "too slowly"), (60_000, 200, "too long")] {
        let (stall, document) = (Duration::from_millis(stall), Duration::from_millis(document));
        let timeouts = Timeouts { tries: 1, stall, document, ..timeouts() };
        let registries = with(vec![plain(&server.host())], Credentials::default(), timeouts);
        let error = registries.repository(&server.host(), "a").unwrap().manifest("x").await.unwrap_err();
        assert_eq!(error.kind(), RegistryErrorKind::Timeout, "{}", report(&error));
        assert!(report(&error).contains(words), "{}", report(&error));
    }
}

#[tokio::test]
async fn every_operation_can_run_in_a_task() {
    fn is_send<T: Send>(_: &T) {}
    let server = Server::start(|_, _| reply(200, &[], BODY)).await;
    let (registries, repository) = (registries(vec![plain(&server.host())]), repository(&server));
    let digest = Digest::of(BODY);
    is_send(&repository.manifest("x"));
    is_send(&repository.document(&digest, 19));
    is_send(&repository.blob(&digest, 19, 0));
    is_send(&registries.check_login("h", "u", "p"));
    let mut stream = repository.blob(&digest, 19, 0).await.unwrap();
    is_send(&stream.next());
    tokio::spawn(async move { repository.manifest("x").await }).await.unwrap().unwrap();
}

#[tokio::test]
async fn redirects_are_followed_ten_times_and_no_further() {
    let server = Server::start(|number, _| match number {
        10 => reply(200, &[], BODY),
        _ => reply(307, &["Location: /elsewhere"], ""),
    })
    .await;
    assert_eq!(repository(&server).manifest("x").await.unwrap().bytes, BODY);
    let (kind, tries, _) = kind_of(|| reply(302, &["Location: /loop"], "")).await;
    assert_eq!((kind, tries), (RegistryErrorKind::Protocol, 11));
    for location in ["Location: ftp://x/", "Location: http://", "X: y", "Location: file:///etc/passwd"] {
        let (kind, tries, _) = kind_of(move || reply(302, &[location], "")).await;
        assert_eq!((kind, tries), (RegistryErrorKind::Protocol, 1), "{location}");
    }
}

#[tokio::test]
async fn a_redirect_from_https_to_http_is_not_followed() {
    let other = Server::start(|_, _| reply(200, &[], BODY)).await;
    let location = format!("Location: http://{}/x", other.host());
    let host = tls(bytes(307, &[&location, "Content-Length: 0"], ""));
    let mut registry = ImageRegistry::new(&host);
    registry.skip_verify = true;
    let error = registries(vec![registry]).repository(&host, "a").unwrap().manifest("x").await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Protocol);
    assert!(other.log().is_empty());
}

#[tokio::test]
async fn a_mirror_goes_first_and_is_passed_over_when_it_fails() {
    let origin = Server::start(|_, _| reply(200, &[], BODY)).await;
    let missing = Server::start(|_, _| reply(404, &[], "")).await;
    let broken = Server::start(|_, _| reply(500, &[], "")).await;
    let liar = Server::start(|_, _| reply(200, &[], "a lie of 19 bytes..")).await;
    let mut registry = plain(&origin.host());
    registry.mirrors = vec![missing.host(), broken.host(), liar.host()];
    let mut all: Vec<_> = [&missing, &broken, &liar].iter().map(|server| plain(&server.host())).collect();
    all.push(registry);
    let repository = registries(all).repository(&origin.host(), "a").unwrap();
    let digest = Digest::of(BODY);
    assert_eq!(repository.manifest(&digest.to_string()).await.unwrap().bytes, BODY);
    assert_eq!(repository.document(&digest, 19).await.unwrap(), BODY);
    let counts: Vec<_> =
        [&missing, &broken, &liar, &origin].iter().map(|server| server.log().len()).collect();
    assert_eq!(counts, [2, 4, 2, 2]);
    repository.without_mirrors().manifest("x").await.unwrap();
    assert_eq!(missing.log().len(), 2);
}

#[tokio::test]
async fn a_mirror_that_has_it_spares_the_registry() {
    let origin = Server::start(|_, _| reply(500, &[], "")).await;
    let mirror = Server::start(|_, _| reply(200, &[], BODY)).await;
    let mut registry = plain(&origin.host());
    registry.mirrors = vec![mirror.host()];
    let repository =
        registries(vec![registry, plain(&mirror.host())]).repository(&origin.host(), "a").unwrap();
    repository.manifest("x").await.unwrap();
    assert!(origin.log().is_empty());
}

#[tokio::test]
async fn a_loopback_registry_that_speaks_no_tls_is_used_over_http() {
    let server = Server::start(|_, _| reply(200, &[], BODY)).await;
    let registries = registries(Vec::new());
    for _ in 0..2 {
        registries.repository(&server.host(), "a").unwrap().manifest("x").await.unwrap();
    }
    assert_eq!(server.log().len(), 2);
    let plain = registries.shared.plain.lock().unwrap();
    assert_eq!(plain.values().collect::<Vec<_>>(), [&true], "remembered");
}

#[tokio::test]
async fn a_registry_that_is_configured_for_https_is_not_used_over_http() {
    let server = Server::start(|_, _| reply(200, &[], BODY)).await;
    let registries = registries(vec![ImageRegistry::new(server.host())]);
    let error = registries.repository(&server.host(), "a").unwrap().manifest("x").await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Unreachable);
    assert!(server.log().is_empty());
}

#[tokio::test]
async fn a_certificate_that_nobody_trusts_is_no_reason_to_do_without() {
    let length = format!("Content-Length: {}", BODY.len());
    let host = tls(bytes(200, &[&length], BODY));
    let error = registries(Vec::new()).repository(&host, "a").unwrap().manifest("x").await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Certificate, "{}", report(&error));
    assert!(error.hint().unwrap().contains("ca_file"));

    let folder = tempfile::tempdir().unwrap();
    let mut registry = ImageRegistry::new(&host);
    let get = async |registry: &ImageRegistry| {
        registries(vec![registry.clone()]).repository(&host, "a").unwrap().manifest("x").await
    };
    registry.ca_file = Some(folder.path().join("ca.pem"));
    for (content, is_good) in [(None, false), (Some("x"), false), (Some(AUTHORITY), true)] {
        if let Some(content) = content {
            std::fs::write(folder.path().join("ca.pem"), content).unwrap();
        }
        match get(&registry).await {
            Ok(manifest) => assert!(is_good && manifest.bytes == BODY),
            Err(error) => {
                assert!(!is_good && error.kind() == RegistryErrorKind::Settings, "{}", report(&error))
            }
        }
    }
    registry.ca_file = None;
    registry.skip_verify = true;
    assert_eq!(get(&registry).await.unwrap().bytes, BODY);
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let host = {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let error =
        registries(vec![plain(&host)]).repository(&host, "a").unwrap().manifest("x").await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Unreachable);
    assert!(report(&error).ends_with("Connection refused (os error 111)"), "{}", report(&error));
}

#[tokio::test]
async fn a_proxy_is_asked_for_hosts_that_are_elsewhere() {
    let proxy = Server::start(|_, _| reply(200, &[], BODY)).await;
    let direct = Server::start(|_, _| reply(200, &[], BODY)).await;
    let url = Some(format!("http://u:p@{}", proxy.host()));
    let settings = crate::registry::ImageRegistryProxy { http_proxy: url, ..Default::default() };
    let proxies = Proxies::new(Some(&settings), |_| None).unwrap();
    let hosts = vec![plain("registry.invalid"), plain(&direct.host())];
    let registries = Registries::with(hosts, proxies, Credentials::default(), timeouts()).unwrap();
    registries.repository("registry.invalid", "a").unwrap().manifest("x").await.unwrap();
    registries.repository(&direct.host(), "a").unwrap().manifest("x").await.unwrap();
    let asked = proxy.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].what(), "GET http://registry.invalid/v2/a/manifests/x");
    assert_eq!(asked[0].header("proxy-authorization"), Some("Basic dTpw"));
    assert_eq!(direct.log(), ["GET /v2/a/manifests/x"]);
}

#[tokio::test]
async fn a_proxy_for_https_is_asked_for_a_tunnel() {
    let proxy = Server::start(|_, _| reply(502, &[], "")).await;
    let settings =
        crate::registry::ImageRegistryProxy { https_proxy: Some(proxy.host()), ..Default::default() };
    let proxies = Proxies::new(Some(&settings), |_| None).unwrap();
    let registries = Registries::with(Vec::new(), proxies, Credentials::default(), timeouts()).unwrap();
    let error = registries.repository("registry.invalid", "a").unwrap().manifest("x").await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Unreachable, "{}", report(&error));
    assert_eq!(proxy.log(), ["CONNECT registry.invalid:443"; 5]);
}

#[test]
fn registries_are_searched_in_the_order_of_the_settings() {
    let registry = |host: &str, search| ImageRegistry { search, ..ImageRegistry::new(host) };
    let all = vec![registry("z.example", true), registry("m.example", false), registry("A.example", true)];
    assert_eq!(registries(all).search(), ["z.example", "a.example"]);
    assert!(registries(Vec::new()).search().is_empty());
}

#[test]
fn names_that_would_change_a_path_are_refused_before_anything_is_sent() {
    let registries = registries(Vec::new());
    for repository in ["", "/", "a//b", "../a", "a/..", "A", "a?b", "a#b", "a%2fb", "a b", "a\\b"] {
        assert!(registries.repository("h", repository).is_err(), "{repository}");
    }
    for host in ["", "h/a", "u@h", "h:x"] {
        assert!(registries.repository(host, "a").is_err(), "{host}");
    }
    let twice = vec![ImageRegistry::new("H:1"), ImageRegistry::new("h:1")];
    assert!(Registries::new(twice, Some(Default::default()), Credentials::default()).is_err());
}
