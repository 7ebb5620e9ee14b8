//! Blobs over connections that break, servers that lie about ranges, and trickles.

use std::time::Duration;

use super::server::{Asked, Reply, Server, bytes, raw, reply};
use super::*;
use crate::image::Digest;
use crate::registry::{RegistryError, RegistryErrorKind};

const SIZE: usize = 1000;

fn blob() -> Vec<u8> {
    (0..SIZE).map(|n| u8::try_from(n % 251).unwrap()).collect()
}

fn digest() -> Digest {
    Digest::of(&blob())
}

async fn read(repository: &Repository, from: usize) -> Result<Vec<u8>, RegistryError> {
    let mut stream = repository.blob(&digest(), SIZE as u64, from as u64).await?;
    let mut out = Vec::new();
    while let Some(bytes) = stream.next().await? {
        assert!(!bytes.is_empty());
        out.extend_from_slice(&bytes);
    }
    assert_eq!(stream.next().await.unwrap(), None, "the end stays the end");
    Ok(out)
}

fn from(asked: &Asked) -> Option<usize> {
    let range = asked.header("range")?;
    Some(range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap())
}

/// The right answer, of which only so many bytes are sent.
fn part(asked: &Asked, most: usize) -> Reply {
    let at = from(asked).unwrap_or(0);
    let length = format!("Content-Length: {}", SIZE - at);
    let range = format!("Content-Range: bytes {at}-{}/{SIZE}", SIZE - 1);
    let body = &blob()[at..SIZE.min(at + most)];
    match from(asked) {
        Some(_) => raw(206, &[&length, &range], body),
        None => raw(200, &[&length], body),
    }
}

async fn fails(
    script: impl Fn(usize, &Asked) -> Reply + Send + Sync + 'static,
) -> (RegistryErrorKind, usize, String) {
    let server = Server::start(script).await;
    let error = read(&repository(&server), 500).await.unwrap_err();
    (error.kind(), server.log().len(), report(&error))
}

#[tokio::test]
async fn a_blob_comes_whole_and_from_anywhere() {
    let server = Server::start(|_, asked| part(asked, SIZE)).await;
    let repository = repository(&server);
    assert_eq!(read(&repository, 0).await.unwrap(), blob());
    assert_eq!(read(&repository, 999).await.unwrap(), blob()[999..]);
    assert_eq!(server.log()[0], format!("GET /v2/a/b/blobs/{}", digest()));
    assert_eq!(server.asked()[0].header("range"), None);
    assert_eq!(server.asked()[1].header("range"), Some("bytes=999-"));
    assert_eq!(read(&repository, SIZE).await.unwrap(), b"");
    assert!(read(&repository, SIZE + 1).await.is_err());
    assert_eq!(server.log().len(), 2, "nothing is asked for nothing");
}

#[tokio::test]
async fn a_connection_that_breaks_is_continued_where_it_broke() {
    let server = Server::start(|number, asked| match number {
        0 => part(asked, 300),
        1 => reply(503, &[], ""),
        2 => part(asked, 1),
        _ => part(asked, SIZE),
    })
    .await;
    assert_eq!(read(&repository(&server), 0).await.unwrap(), blob());
    let ranges: Vec<_> = server.asked().iter().map(from).collect();
    assert_eq!(ranges, [None, Some(300), Some(300), Some(301)]);
}

#[tokio::test]
async fn a_body_without_a_length_that_ends_early_is_continued() {
    let server = Server::start(|number, asked| match number {
        0 => raw(200, &[], &blob()[..400]),
        _ => part(asked, SIZE),
    })
    .await;
    assert_eq!(read(&repository(&server), 0).await.unwrap(), blob());
    assert_eq!(server.asked().iter().map(from).collect::<Vec<_>>(), [None, Some(400)]);
}

#[tokio::test]
async fn one_byte_for_each_connection_is_not_enough() {
    let server = Server::start(|_, asked| part(asked, 1)).await;
    let error = read(&repository(&server), 0).await.unwrap_err();
    assert_eq!((error.kind(), server.log().len()), (RegistryErrorKind::Unreachable, 5));

    // With progress, the tries are counted anew.
    let server = Server::start(|_, asked| part(asked, 100)).await;
    let patient = Timeouts { progress: 200, tries: 3, ..timeouts() };
    let registries = with(vec![plain(&server.host())], Credentials::default(), patient);
    assert_eq!(read(&registries.repository(&server.host(), "a/b").unwrap(), 0).await.unwrap(), blob());
    assert_eq!(server.log().len(), 10);
}

#[tokio::test]
async fn a_server_without_ranges_is_read_from_the_beginning() {
    let server = Server::start(|_, _| reply(200, &[], blob())).await;
    assert_eq!(read(&repository(&server), 700).await.unwrap(), blob()[700..]);
    let server = Server::start(|number, asked| match (number, from(asked)) {
        (0, _) => part(asked, 10),
        (_, Some(_)) => reply(416, &[], ""),
        (_, None) => part(asked, SIZE),
    })
    .await;
    assert_eq!(read(&repository(&server), 0).await.unwrap(), blob());
    assert_eq!(server.asked().iter().map(from).collect::<Vec<_>>(), [None, Some(10), None]);
}

#[tokio::test]
async fn after_a_wrong_range_the_blob_is_read_from_the_beginning() {
    let server = Server::start(|_, asked| match from(asked) {
        Some(_) => reply(206, &["Content-Range: bytes 0-999/1000"], blob()),
        None => part(asked, SIZE),
    })
    .await;
    assert_eq!(read(&repository(&server), 500).await.unwrap(), blob()[500..]);
    assert_eq!(server.asked().iter().map(from).collect::<Vec<_>>(), [Some(500), None]);
}

#[tokio::test]
async fn a_range_that_is_not_the_one_wanted_is_not_believed() {
    for header in [
        "Content-Range: bytes 0-999/1000",
        "Content-Range: bytes 500-999/*",
        "Content-Range: bytes 500-998/1000",
        "Content-Range: bytes 500-999/1001",
        "Content-Range: bytes 499-998/1000",
        "Content-Range: bytes */1000",
        "X: y",
    ] {
        let (kind, tries, _) = fails(move |_, _| reply(206, &[header], &blob()[500..])).await;
        assert_eq!((kind, tries), (RegistryErrorKind::Protocol, 5), "{header}");
    }
    let (kind, tries, _) = fails(|_, _| reply(416, &[], "")).await;
    assert_eq!((kind, tries), (RegistryErrorKind::Server(416), 2), "not without a range");
}

#[tokio::test]
async fn a_length_that_differs_and_bytes_too_many_are_refused_at_once() {
    let range = "Content-Range: bytes 500-999/1000";
    let (kind, tries, text) = fails(move |_, _| reply(206, &[range], &blob()[501..])).await;
    assert_eq!((kind, tries), (RegistryErrorKind::Protocol, 1));
    assert!(text.contains("499 bytes"), "{text}");
    for longer in [[blob(), b"x".to_vec()].concat(), [blob(), blob()].concat()] {
        let known = longer.clone();
        let (kind, tries, _) = fails(move |_, _| reply(200, &[], &known)).await;
        assert_eq!((kind, tries), (RegistryErrorKind::Protocol, 1));
        let (kind, tries, text) = fails(move |_, _| raw(200, &[], &longer)).await;
        assert_eq!((kind, tries), (RegistryErrorKind::Protocol, 1));
        assert!(text.contains("more than the 1000 bytes"), "{text}");
    }
}

#[tokio::test]
async fn what_does_not_exist_is_known_before_the_first_byte() {
    let server = Server::start(|_, _| reply(404, &[], "")).await;
    let error = repository(&server).blob(&digest(), 1, 0).await.unwrap_err();
    assert_eq!((error.kind(), server.log().len()), (RegistryErrorKind::NotFound, 1));
}

#[tokio::test]
async fn a_stall_is_a_lost_connection() {
    let server = Server::start(|number, asked| match number {
        0 => Reply::Hang(bytes(200, &["Content-Length: 1000"], &blob()[..600])),
        _ => part(asked, SIZE),
    })
    .await;
    let impatient = Timeouts { stall: Duration::from_millis(200), ..timeouts() };
    let registries = with(vec![plain(&server.host())], Credentials::default(), impatient);
    assert_eq!(read(&registries.repository(&server.host(), "a/b").unwrap(), 0).await.unwrap(), blob());
    assert_eq!(from(&server.asked()[1]), Some(600));
}

#[tokio::test]
async fn the_registry_goes_on_where_its_mirror_failed() {
    let origin = Server::start(|_, asked| part(asked, SIZE)).await;
    let mirror = Server::start(|number, asked| match number {
        0 => part(asked, 300),
        _ => reply(500, &[], ""),
    })
    .await;
    let mut registry = plain(&origin.host());
    registry.mirrors = vec![mirror.host()];
    let registries = registries(vec![registry, plain(&mirror.host())]);
    assert_eq!(read(&registries.repository(&origin.host(), "a").unwrap(), 0).await.unwrap(), blob());
    assert_eq!(origin.asked().iter().map(from).collect::<Vec<_>>(), [Some(300)]);
}
