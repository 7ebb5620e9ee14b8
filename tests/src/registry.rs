//! A real registry on a loopback port: Debian's `docker-registry` on a storage of its own.
//!
//! It is filled by writing its storage, so that manifests and layers are what the layout holds, byte for byte, and
//! nothing is copied. It can also be pushed to.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::story::{PATIENCE, eventually};

/// Who may enter a registry with a login.
pub const USER: &str = "boxlite";
/// The user's password.
pub const PASSWORD: &str = "open sesame";
/// The same, as `htpasswd -B` writes it; with the least cost, for the registry computes it with each request.
const HTPASSWD: &str = "boxlite:$2b$04$abcdefghijklmnopqrstuu/LVz6MZlItEy42I2juLihZ66HnQx/cy\n";

/// A name that leads to no loopback address; the certificate of a registry with TLS is for it as well.
pub const FAR_NAME: &str = "registry.test";

/// A running registry, which ends when this is dropped or the test dies.
#[derive(Debug)]
pub struct Registry {
    // Its standard input is a lifeline.
    server: Child,
    folder: TempDir,
    address: SocketAddr,
}

/// What a registry asks of its clients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// It speaks TLS alone, with a certificate of a private authority: [`Registry::authority`].
    pub tls: bool,
    /// It wants [`USER`] and [`PASSWORD`].
    pub login: bool,
}

/// A request that the registry has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Status of the answer; 206 when it was asked for a range.
    pub status: u16,
    /// Bytes of the answer's body.
    pub bytes: u64,
}

impl Registry {
    /// An empty registry, which speaks HTTP and lets anybody in.
    pub fn start() -> Self {
        Self::with(Manner::default())
    }

    /// An empty registry.
    pub fn with(manner: Manner) -> Self {
        let folder =
            tempfile::Builder::new().prefix("boxlite-registry-").tempdir().expect("a temporary folder");
        let config = folder.path().join("config.yml");
        fs::write(&config, configuration(folder.path(), manner)).expect("a configuration");
        fs::write(folder.path().join("htpasswd"), HTPASSWD).expect("a password file");
        if manner.tls {
            certify(folder.path());
        }
        let log = File::create(folder.path().join("log")).expect("a log");
        // A lifeline rather than PR_SET_PDEATHSIG, which follows the thread that starts a process and not the test:
        // when the test ends, however that happens, the shell reads an end of file.
        let server = Command::new("sh")
            .args(["-c", "docker-registry serve \"$1\" <&- & cat; kill -9 $!; wait", "sh"])
            .arg(&config)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("a shell");
        let mut registry = Self { server, folder, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        registry.await_address();
        registry
    }

    /// The registry chooses its port itself and says in its log which: none is taken by others in between.
    fn await_address(&mut self) {
        let mut address = None;
        eventually("the registry listens", PATIENCE, || {
            let log = self.log();
            assert!(!log.contains("\"level\":\"fatal\""), "the registry does not start:\n{log}");
            address = log.split("listening on ").nth(1).and_then(|rest| {
                let end = rest.find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit())?;
                rest[..end].parse().ok()
            });
            address.is_some()
        });
        self.address = address.expect("found above");
    }

    /// Host and port, as a reference names them: `127.0.0.1:41234`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Certificate of the authority that signed this registry's, in PEM.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// Puts all tags of an OCI layout into a repository. The layout must stay as long as the registry runs.
    pub fn add(&self, layout: &Path, repository: &str) {
        let layout = fs::canonicalize(layout).expect("a layout");
        let index = fs::read(layout.join("index.json")).expect("an index");
        let index: Value = serde_json::from_slice(&index).expect("JSON");
        for entry in index["manifests"].as_array().expect("a list") {
            let tag = entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap_or("latest");
            self.name(repository, tag, entry["digest"].as_str().expect("a digest"));
        }
        for blob in fs::read_dir(layout.join("blobs/sha256")).expect("blobs").flatten() {
            let name = blob.file_name().into_string().expect("a digest");
            let place = self.store().join("blobs/sha256").join(&name[..2]).join(&name);
            fs::create_dir_all(&place).expect("a folder");
            if !place.join("data").exists() {
                symlink(blob.path(), place.join("data")).expect("a link");
            }
            // A registry has a list of layers and one of manifests. That each blob stands in both does no harm.
            self.link(repository, &format!("_layers/sha256/{name}"), &format!("sha256:{name}"));
            self.link(repository, &format!("_manifests/revisions/sha256/{name}"), &format!("sha256:{name}"));
        }
    }

    /// Puts one of the images that the test set-up made into a repository of its name.
    pub fn add_image(&self, name: &str) {
        self.add(&crate::story::images().join(format!("{name}.oci")), name);
    }

    /// Lets a tag of a repository lead to a manifest that it has.
    pub fn name(&self, repository: &str, tag: &str, digest: &str) {
        self.link(repository, &format!("_manifests/tags/{tag}/current"), digest);
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("docker/registry/v2")
    }

    fn link(&self, repository: &str, place: &str, digest: &str) {
        let folder = self.store().join("repositories").join(repository).join(place);
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("link"), digest).expect("a link");
    }

    /// The file of a blob, for tests that damage it.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let name = digest.trim_start_matches("sha256:");
        self.store().join("blobs/sha256").join(&name[..2]).join(name).join("data")
    }

    /// What it has written: its own messages and the access log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path().join("log")).expect("a log")).into_owned()
    }

    /// The requests that it has answered, in the order of their ends.
    pub fn requests(&self) -> Vec<Request> {
        self.log().lines().filter_map(access).collect()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.server.stdin.take());
        // The shell ends when the server has: nothing is left that writes to the folder.
        drop(self.server.wait());
    }
}

fn configuration(folder: &Path, manner: Manner) -> String {
    let folder = folder.display();
    let mut text = format!(
        "version: 0.1\n\
         log: {{level: info, formatter: json}}\n\
         storage: {{filesystem: {{rootdirectory: {folder}}}, delete: {{enabled: true}}}}\n\
         http:\n  addr: 127.0.0.1:0\n  secret: tests\n"
    );
    if manner.tls {
        text += &format!("  tls: {{certificate: {folder}/server.pem, key: {folder}/server.key}}\n");
    }
    if manner.login {
        text += &format!("auth: {{htpasswd: {{realm: tests, path: {folder}/htpasswd}}}}\n");
    }
    text
}

/// An authority and a certificate that it signed. One that signs itself would be both, which clients may refuse.
fn certify(folder: &Path) {
    let names = format!("subjectAltName=IP:127.0.0.1,IP:::1,DNS:localhost,DNS:{FAR_NAME}\n");
    fs::write(folder.join("names"), names).expect("a file");
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let authority =
        ["req", "-x509", "-keyout", "authority.key", "-out", "authority.pem", "-subj", "/CN=tests"];
    openssl(folder, &[&authority[..], &new_key].concat());
    let request = ["req", "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=registry"];
    openssl(folder, &[&request[..], &new_key].concat());
    let signed = ["x509", "-req", "-in", "server.csr", "-CA", "authority.pem", "-CAkey", "authority.key"];
    openssl(folder, &[&signed[..], &["-CAcreateserial", "-extfile", "names", "-out", "server.pem"]].concat());
}

/// Runs `openssl` in a folder.
pub fn openssl(folder: &Path, words: &[&str]) {
    let output = Command::new("openssl").args(words).current_dir(folder).output().expect("openssl runs");
    assert!(output.status.success(), "openssl {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A line of the access log, in the format of Apache: `… "GET /v2/ HTTP/1.1" 200 2 "" "curl"`.
fn access(line: &str) -> Option<Request> {
    let (client, rest) = line.split_once(" \"")?;
    // The registry's own messages are JSON.
    if client.starts_with('{') {
        return None;
    }
    let (request, rest) = rest.split_once("\" ")?;
    let mut words = request.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut numbers = rest.split(' ');
    let (status, bytes) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    Some(Request { method, target, status, bytes })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::{http, layout};

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

    fn basic(user: &str, password: &str) -> String {
        let output = Command::new("sh")
            .args(["-c", "printf %s \"$1\" | base64 -w0", "sh"])
            .arg(format!("{user}:{password}"))
            .output();
        format!("Basic {}", String::from_utf8(output.unwrap().stdout).unwrap())
    }

    #[test]
    fn what_was_added_is_served_byte_for_byte_and_logged() {
        let registry = Registry::start();
        let image = layout::of_layers(&[b"not really a layer".to_vec()], &json!({}));
        registry.add(image.path(), "some/image");
        let host = registry.host();
        let manifest = http::get(&host, "/v2/some/image/manifests/latest", &[("Accept", MANIFEST)]).unwrap();
        assert_eq!(manifest.head.status(), 200);
        let parsed: Value = serde_json::from_slice(&manifest.body).unwrap();
        let digest = parsed["layers"][0]["digest"].as_str().unwrap();
        let path = format!("/v2/some/image/blobs/{digest}");
        let blob = http::get(&host, &path, &[]).unwrap();
        assert_eq!((blob.head.status(), blob.body.as_slice()), (200, &b"not really a layer"[..]));
        let part = http::get(&host, &path, &[("Range", "bytes=4-9")]).unwrap();
        assert_eq!((part.head.status(), part.body.as_slice()), (206, &b"really"[..]));
        assert_eq!(http::get(&host, "/v2/other/manifests/latest", &[]).unwrap().head.status(), 404);

        eventually("all is logged", Duration::from_secs(10), || registry.requests().len() == 4);
        let requests = registry.requests();
        let told: Vec<_> = requests.iter().map(|request| (request.status, &*request.target)).collect();
        assert_eq!(told[1..3], [(200, &*path), (206, &*path)]);
        assert_eq!((requests[2].bytes, &*requests[2].method), (6, "GET"));
    }

    #[test]
    fn a_login_is_asked_for_and_accepted() {
        let registry = Registry::with(Manner { login: true, ..Manner::default() });
        let refused = http::get(&registry.host(), "/v2/", &[]).unwrap();
        assert_eq!(refused.head.status(), 401);
        assert!(refused.head.field("WWW-Authenticate").unwrap().starts_with("Basic "));
        let wrong = basic(USER, "wrong");
        assert_eq!(
            http::get(&registry.host(), "/v2/", &[("Authorization", &wrong)]).unwrap().head.status(),
            401
        );
        let right = basic(USER, PASSWORD);
        assert_eq!(
            http::get(&registry.host(), "/v2/", &[("Authorization", &right)]).unwrap().head.status(),
            200
        );
    }

    #[test]
    fn its_certificate_is_good_with_its_authority_and_with_nothing_else() {
        let registry = Registry::with(Manner { tls: true, ..Manner::default() });
        let verify = |options: &[&str]| {
            let call = Command::new("openssl")
                .args([
                    "s_client",
                    "-verify_return_error",
                    "-verify_ip",
                    "127.0.0.1",
                    "-connect",
                    &registry.host(),
                ])
                .args(options)
                .stdin(Stdio::null())
                .output();
            call.unwrap().status.success()
        };
        assert!(verify(&["-CAfile", registry.authority().to_str().unwrap()]));
        assert!(!verify(&[]));
    }

    #[test]
    fn the_server_ends_with_its_handle() {
        let registry = Registry::start();
        let host = registry.host();
        assert_eq!(http::get(&host, "/v2/", &[]).unwrap().head.status(), 200);
        drop(registry);
        assert_eq!(http::get(&host, "/v2/", &[]).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn lines_that_are_no_requests_are_passed_over() {
        let line =
            r#"127.0.0.1 - - [24/Nov/2026:19:00:00 +0000] "GET /v2/a/blobs/x HTTP/1.1" 206 17 "" "a \" b""#;
        let request = access(line).unwrap();
        assert_eq!((&*request.target, request.status, request.bytes), ("/v2/a/blobs/x", 206, 17));
        for line in
            ["", r#"{"msg":"a \"GET / HTTP/1.1\" 200 5 b"}"#, "127.0.0.1 \"GET", "127.0.0.1 \"GET / x\" y z"]
        {
            assert_eq!(access(line), None, "{line}");
        }
    }
}
