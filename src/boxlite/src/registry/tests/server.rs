//! An HTTP/1.1 server on a loopback address that answers as a script says and records what it was asked.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// Such as `GET /v2/ HTTP/1.1`.
    pub(super) line: String,
    head: String,
    pub(super) body: String,
}

impl Asked {
    /// Method and target.
    pub(super) fn what(&self) -> &str {
        self.line.trim_end_matches(" HTTP/1.1")
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// What to do with a request.
pub(super) enum Reply {
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// These bytes, then nothing until the client gives up.
    Hang(Vec<u8>),
    /// These bytes, then one more every few milliseconds.
    Trickle(Vec<u8>),
}

/// A whole response. Headers are lines without their ends.
pub(super) fn reply(status: u16, headers: &[&str], body: impl AsRef<[u8]>) -> Reply {
    let length = format!("Content-Length: {}", body.as_ref().len());
    let headers = [headers, &[length.as_str()]].concat();
    raw(status, &headers, body)
}

/// A response with these headers alone.
pub(super) fn raw(status: u16, headers: &[&str], body: impl AsRef<[u8]>) -> Reply {
    Reply::Raw(bytes(status, headers, body))
}

pub(super) fn bytes(status: u16, headers: &[&str], body: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n").into_bytes();
    for header in headers {
        out.extend_from_slice(format!("{header}\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body.as_ref());
    out
}

type Script = dyn Fn(usize, &Asked) -> Reply + Send + Sync;

/// Ends when it is dropped.
pub(super) struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// `script` is given the number of the request, from 0.
    pub(super) async fn start(script: impl Fn(usize, &Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (script, seen): (Arc<Script>, _) = (Arc::new(script), asked.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, script.clone(), seen.clone()));
            }
        });
        Self { address, asked, task }
    }

    pub(super) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Method and target of each request.
    pub(super) fn log(&self) -> Vec<String> {
        self.asked().iter().map(|asked| asked.what().to_owned()).collect()
    }
}

async fn serve(mut stream: tokio::net::TcpStream, script: Arc<Script>, seen: Arc<Mutex<Vec<Asked>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        // The first byte of TLS: hang up, as servers do that know nothing of it.
        if head.first() == Some(&0x16) {
            return;
        }
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let mut asked = Asked { line: head.lines().next().unwrap().to_owned(), head, body: String::new() };
    let length: usize = asked.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    if stream.read_exact(&mut body).await.is_err() {
        return;
    }
    asked.body = String::from_utf8(body).unwrap();
    let number = {
        let mut seen = seen.lock().unwrap();
        seen.push(asked.clone());
        seen.len() - 1
    };
    // A client that hangs up is part of some scripts.
    let (bytes, hang) = match script(number, &asked) {
        Reply::Raw(bytes) => (bytes, false),
        Reply::Hang(bytes) => (bytes, true),
        Reply::Trickle(bytes) => {
            let mut sent = stream.write_all(&bytes).await;
            while sent.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                sent = stream.write_all(b"x").await;
            }
            return;
        }
    };
    let sent = stream.write_all(&bytes).await.is_ok();
    let mut rest = Vec::new();
    if sent && hang {
        stream.read_to_end(&mut rest).await.ok();
    }
    stream.shutdown().await.ok();
}

/// The authority that has signed the certificate of [`tls`].
pub(super) const AUTHORITY: &str = include_str!("tls/ca.pem");

/// A server that speaks TLS and gives one answer to everything. It ends with the test program.
pub(super) fn tls(answer: Vec<u8>) -> String {
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(include_bytes!("tls/server.pem")).collect();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/server.key")).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(certificates.unwrap(), key)
            .unwrap();
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let host = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let session = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(session, stream.unwrap());
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            if head.ends_with(b"\r\n\r\n") {
                stream.write_all(&answer).and_then(|()| stream.flush()).ok();
                stream.conn.send_close_notify();
                stream.flush().ok();
            }
        }
    });
    host
}
