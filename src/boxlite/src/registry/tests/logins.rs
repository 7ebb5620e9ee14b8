//! Files of logins and the helpers that they name.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::*;
use crate::registry::RegistryErrorKind;
use crate::registry::credentials::Login;
use crate::registry::host::Host;

const LONG: Duration = Duration::from_secs(30);

fn password(username: &str, password: &str) -> Option<Login> {
    Some(Login::Password { username: username.into(), password: password.into() })
}

fn file(folder: &Path, content: &str) -> PathBuf {
    let path = folder.join("config.json");
    std::fs::write(&path, content).unwrap();
    path
}

async fn find(content: &str, host: &str) -> Option<Login> {
    let folder = tempfile::tempdir().unwrap();
    let credentials = Credentials::new(vec![file(folder.path(), content)]);
    credentials.find(&Host::parse(host).unwrap(), LONG).await.unwrap()
}

/// Makes a helper that runs this script. Another process writes it: while we have it open for writing, a child that is
/// forked elsewhere in this program has it open too, and it cannot be executed.
fn helper(folder: &Path, script: &str) -> Credentials {
    let path = folder.join("docker-credential-x");
    let mut write = Command::new("sh");
    write
        .args(["-c", r#"printf '#!/bin/sh\n%s\n' "$2" > "$1" && chmod 700 "$1""#, "sh"])
        .arg(&path)
        .arg(script);
    assert!(write.status().unwrap().success());
    Credentials::new(vec![file(folder, r#"{"credsStore":"x"}"#)]).with_helpers(folder)
}

async fn ask(script: &str) -> Result<Option<Login>, String> {
    let folder = tempfile::tempdir().unwrap();
    let credentials = helper(folder.path(), script);
    let found = credentials.find(&Host::parse("h:1").unwrap(), LONG).await;
    found.map_err(|failure| {
        assert_eq!(failure.kind, RegistryErrorKind::Credentials);
        report(&failure)
    })
}

#[tokio::test]
async fn a_login_is_found_however_it_is_written() {
    let auths = |entry: &str| format!(r#"{{"auths":{{{entry}}},"HttpHeaders":{{"x":"y"}}}}"#);
    for entry in [
        r#""h:1":{"auth":"dTpwOnc="}"#,
        r#""h:1":{"auth":"dTpwOnc"}"#,
        r#""https://h:1/v2/":{"auth":"dTpwOnc="}"#,
        r#""h:1":{"username":"u","password":"p:w"}"#,
        r#""h:1":{},"http://h:1":{"auth":"dTpwOnc="}"#,
    ] {
        assert_eq!(find(&auths(entry), "h:1").await, password("u", "p:w"), "{entry}");
        assert_eq!(find(&auths(entry), "h:2").await, None);
    }
    let hub = auths(r#""https://index.docker.io/v1/":{"auth":"dTpw"}"#);
    assert_eq!(find(&hub, "docker.io").await, password("u", "p"));
    let identity = auths(r#""h":{"auth":"PHRva2VuPjo=","identitytoken":"i"}"#);
    assert_eq!(find(&identity, "h").await, Some(Login::Identity { token: "i".into() }));
    for nothing in ["", "{}", r#"{"auths":{"h":{}}}"#, r#"{"auths":{"h/team":{"auth":"dTpw"}}}"#] {
        assert_eq!(find(nothing, "h").await, None, "{nothing}");
    }
}

#[tokio::test]
async fn the_first_file_with_a_login_counts() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    Credentials::store(&path("b"), "h", "second", "p").unwrap();
    Credentials::store(&path("c"), "h", "third", "p").unwrap();
    let credentials = Credentials::new(vec![path("a"), path("b"), path("c")]);
    assert_eq!(credentials.find(&Host::parse("h").unwrap(), LONG).await.unwrap(), password("second", "p"));
}

#[tokio::test]
async fn a_file_that_is_broken_is_told_and_not_quoted() {
    for content in
        ["{", "[]", r#"{"auths":{"h":{"auth":"s3cret!"}}}"#, r#"{"auths":{"h":"s3cret"}}"#, "s3cret"]
    {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), content);
        let failure = Credentials::new(vec![path]).find(&Host::parse("h").unwrap(), LONG).await.unwrap_err();
        assert_eq!(failure.kind, RegistryErrorKind::Credentials);
        assert!(
            report(&failure).contains("config.json") && !format!("{failure:?}").contains("s3cret"),
            "{failure:?}"
        );
    }
}

#[test]
fn a_stored_login_leaves_the_rest_of_the_file_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(
        folder.path(),
        r#"{"credsStore":"","auths":{"https://h:1/v2/":{"auth":"eA=="},"i":{}},"x":[1]}"#,
    );
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let read = || serde_json::from_slice::<serde_json::Value>(&std::fs::read(&path).unwrap()).unwrap();
    Credentials::store(&path, "h:1", "u", "p").unwrap();
    let stored = serde_json::json!({"credsStore":"","auths":{"h:1":{"auth":"dTpw"},"i":{}},"x":[1]});
    assert_eq!(read(), stored);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(Credentials::remove(&path, "H:1").unwrap());
    assert_eq!(read(), serde_json::json!({"credsStore":"","auths":{"i":{}},"x":[1]}));
    assert!(!Credentials::remove(&path, "h:1").unwrap());
    assert!(!Credentials::remove(&folder.path().join("none"), "h:1").unwrap());
    Credentials::store(&path, "docker.io", "u", "p").unwrap();
    assert_eq!(read()["auths"]["https://index.docker.io/v1/"]["auth"], "dTpw");
}

#[test]
fn a_file_that_is_not_understood_is_left_as_it_is() {
    for content in ["{", "[]", r#"{"auths":[]}"#] {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), content);
        assert!(Credentials::store(&path, "h", "u", "p").is_err());
        assert!(Credentials::remove(&path, "h").is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
    }
    let folder = tempfile::tempdir().unwrap();
    for (host, user) in [("h/x", "u"), ("", "u"), ("h", ""), ("h", "a:b")] {
        assert!(Credentials::store(&folder.path().join("new"), host, user, "p").is_err());
    }
    assert!(!folder.path().join("new").exists());
}

#[tokio::test]
async fn a_helper_is_asked_with_the_host_and_its_answer_understood() {
    let echo = r#"read host; echo "{\"ServerURL\":\"\",\"Username\":\"$1\",\"Secret\":\"$host\"}""#;
    assert_eq!(ask(echo).await, Ok(password("get", "h:1")));
    let token = r#"echo '{"Username":"<token>","Secret":"i"}'"#;
    assert_eq!(ask(token).await, Ok(Some(Login::Identity { token: "i".into() })));
    let nothing = "echo credentials not found in native keychain; exit 1";
    assert_eq!(ask(nothing).await, Ok(None));
}

#[tokio::test]
async fn a_helper_that_fails_is_told() {
    for (script, words) in [
        ("echo locked >&2; exit 3", "locked"),
        ("echo '{'", "writes no login"),
        ("exit 0", "writes no login"),
        ("head -c 1000000 /dev/zero", "writes too much"),
    ] {
        let error = ask(script).await.unwrap_err();
        assert!(error.contains("docker-credential-x") && error.contains(words), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    for store in ["../x", "a/b", "a b", "missing"] {
        let path = file(folder.path(), &format!(r#"{{"credHelpers":{{"h":"{store}"}}}}"#));
        let credentials = Credentials::new(vec![path]).with_helpers(folder.path());
        let failure = credentials.find(&Host::parse("h").unwrap(), LONG).await.unwrap_err();
        assert_eq!(failure.kind, RegistryErrorKind::Credentials, "{store}");
        assert_eq!(credentials.find(&Host::parse("other").unwrap(), LONG).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_helper_that_hangs_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let credentials = helper(folder.path(), "exec sleep 1000");
    let failure = credentials.find(&Host::parse("h").unwrap(), Duration::from_millis(50)).await.unwrap_err();
    assert!(report(&failure).contains("does not end"), "{}", report(&failure));
}

#[tokio::test]
async fn a_helper_that_nobody_waits_for_is_killed_with_its_children() {
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    let script = format!("sleep 1000 & echo $$ $! > {0}.new; mv {0}.new {0}; wait", pids.display());
    let credentials = helper(folder.path(), &script);
    let task = tokio::spawn(async move { credentials.find(&Host::parse("h").unwrap(), 10 * LONG).await });
    let deadline = std::time::Instant::now() + LONG;
    while !pids.exists() {
        assert!(std::time::Instant::now() < deadline, "the helper does not start");
        tokio::task::yield_now().await;
    }
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    let alive = |pid: &str| match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.contains(") Z "),
        Err(_) => false,
    };
    let pids = std::fs::read_to_string(pids).unwrap();
    assert_eq!(pids.split_whitespace().count(), 2);
    while pids.split_whitespace().any(alive) {
        assert!(std::time::Instant::now() < deadline, "{pids} live on");
        tokio::task::yield_now().await;
    }
    let shell = pids.split_whitespace().next().unwrap();
    assert!(!Path::new("/proc").join(shell).exists(), "the helper itself has been reaped");
}
