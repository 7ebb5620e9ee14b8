//! The proxy before a small server that knows one body and its ranges.

use std::sync::mpsc;

use serde_json::json;

use super::*;
use crate::http::{self, Answer};
use crate::story::{PATIENCE, eventually};

/// A server with one body under every path, one request a connection.
struct Server {
    address: SocketAddr,
    // Its end ends the server with its next connection.
    alive: Arc<()>,
}

impl Server {
    fn with(body: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, alive) = (listener.local_addr().unwrap(), Arc::new(()));
        let watch = Arc::downgrade(&alive);
        thread::spawn(move || {
            for client in listener.incoming() {
                if watch.upgrade().is_none() {
                    return;
                }
                drop(respond(&client.unwrap(), &body));
            }
        });
        Self { address, alive }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.alive = Arc::new(());
        drop(TcpStream::connect(self.address));
    }
}

fn respond(client: &TcpStream, body: &[u8]) -> io::Result<()> {
    let mut reader = BufReader::new(client);
    let request = Head::read(&mut reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let start = request.field("Range").map(|range| {
        range.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().expect("an open range")
    });
    let mut head = match start {
        None => Head::new("HTTP/1.0 200 OK"),
        Some(_) => Head::new("HTTP/1.0 206 Partial Content"),
    };
    if let Some(start) = start {
        head.set("Content-Range", format!("bytes {start}-{}/{}", body.len() - 1, body.len()));
    }
    let part = &body[start.unwrap_or(0)..];
    head.set("Content-Length", part.len());
    let mut to = client;
    head.write(&mut to)?;
    to.write_all(part)
}

fn body() -> Vec<u8> {
    (0..100_000_u32).flat_map(u32::to_le_bytes).collect()
}

/// What a GET through a proxy with this rule gives.
fn through(rule: Rule, fields: &[(&str, &str)]) -> (Answer, Vec<Seen>) {
    let server = Server::with(body());
    let proxy = Proxy::before(server.address);
    proxy.rule(rule);
    let answer = http::get(&proxy.host(), "/v2/blobs/x", fields).unwrap();
    (answer, proxy.seen())
}

const RANGE: (&str, &str) = ("Range", "bytes=1000-");

#[test]
fn without_a_rule_everything_passes_and_is_seen() {
    let server = Server::with(body());
    let proxy = Proxy::before(server.address);
    proxy.rule(Rule::on("/other", Fault::Silence));
    let answer = http::get(&proxy.host(), "/v2/blobs/x?y", &[RANGE, ("Authorization", "secret")]).unwrap();
    assert_eq!(
        (answer.head.status(), answer.head.field("content-range")),
        (206, Some("bytes 1000-399999/400000"))
    );
    assert!(answer.body == body()[1000..] && answer.broken.is_none(), "{:?}", answer.broken);
    let seen = &proxy.seen()[0];
    assert_eq!(
        (seen.method(), seen.target(), seen.status, seen.sent),
        ("GET", "/v2/blobs/x?y", Some(206), 399_000)
    );
    assert_eq!(seen.request.field("authorization"), Some("secret"));
    assert!(seen.is_blob() && !seen.broken);
    assert_eq!(proxy.blob_bytes(), 399_000);
    eventually("the connection has ended", PATIENCE, || proxy.shared.state().open.is_empty());
    proxy.forget();
    assert!(proxy.seen().is_empty());
}

#[test]
fn a_rule_is_used_as_often_as_it_says_and_the_first_that_fits_wins() {
    let server = Server::with(b"body".to_vec());
    let proxy = Proxy::before(server.address);
    proxy.rule(Rule::on("/b", Fault::Status(503, None)).times(1));
    proxy.rule(Rule::on("/b", Fault::Status(500, None)).of_ranges());
    proxy.rule(Rule::on("/b", Fault::Status(429, Some(7))).times(1));
    let get = |path: &str, fields: &[_]| http::get(&proxy.host(), path, fields).unwrap().head;
    assert_eq!(get("/a", &[]).status(), 200);
    assert_eq!(get("/b", &[]).status(), 503);
    let limited = get("/b", &[]);
    assert_eq!((limited.status(), limited.field("Retry-After")), (429, Some("7")));
    assert_eq!(get("/b", &[]).status(), 200);
    assert_eq!(get("/b", &[RANGE]).status(), 500);
    assert_eq!(get("/b", &[RANGE]).status(), 500);
    proxy.heal();
    assert_eq!(get("/b", &[("Range", "bytes=1-")]).status(), 206);
    assert_eq!(proxy.seen().iter().filter(|seen| seen.broken).count(), 4);
}

#[test]
fn a_body_is_cut_with_a_reset_or_closed_in_good_order() {
    let (answer, seen) = through(Rule::on("/", Fault::CutAfter(5000)), &[]);
    // What a reset overtakes is lost.
    assert!(answer.body.len() <= 5000 && body().starts_with(&answer.body), "{}", answer.body.len());
    assert_eq!((answer.broken, seen[0].sent), (Some(io::ErrorKind::ConnectionReset), 5000));
    let (answer, _) = through(Rule::on("/", Fault::CloseAfter(5000)), &[]);
    assert!(answer.body == body()[..5000] && answer.broken.is_none(), "{:?}", answer.broken);
    assert_eq!(answer.head.length(), Some(400_000));
}

#[test]
fn one_byte_is_inverted_wherever_it_stands() {
    for at in [0, 16_383, 16_384, 399_999] {
        let (answer, _) = through(Rule::on("/", Fault::Flip(at)), &[]);
        let mut expected = body();
        expected[usize::try_from(at).unwrap()] ^= 0xff;
        assert!(answer.body == expected, "{at}");
    }
}

#[test]
fn a_body_is_slowed_down_and_an_answer_delayed() {
    let start = std::time::Instant::now();
    let (answer, _) = through(Rule::on("/", Fault::Throttle(1_600_000)), &[]);
    assert!(answer.body == body() && start.elapsed() > Duration::from_millis(200), "{:?}", start.elapsed());
    let start = std::time::Instant::now();
    let (answer, _) = through(Rule::on("/", Fault::Delay(Duration::from_millis(50))), &[]);
    assert!(answer.body == body() && start.elapsed() >= Duration::from_millis(50));
}

#[test]
fn ranges_are_answered_in_every_wrong_way() {
    let (answer, _) = through(Rule::on("/", Fault::WrongContentRange), &[RANGE]);
    assert_eq!(
        (answer.head.status(), answer.head.field("content-range")),
        (206, Some("bytes 1001-399999/400000"))
    );
    assert!(answer.body == body()[1000..]);
    let (answer, _) = through(Rule::on("/", Fault::IgnoreRange), &[RANGE]);
    assert_eq!((answer.head.status(), answer.head.field("content-range")), (200, None));
    assert!(answer.body == body());
    let (answer, _) = through(Rule::on("/", Fault::RangeNotSatisfiable), &[RANGE]);
    assert_eq!((answer.head.status(), answer.body.len()), (416, 0));
}

#[test]
fn lengths_lie_in_both_directions() {
    let (answer, _) = through(Rule::on("/", Fault::LengthTooLarge(10)), &[]);
    assert_eq!((answer.head.length(), answer.body.len()), (Some(400_010), 400_000));
    let (answer, _) = through(Rule::on("/", Fault::LengthTooSmall(10)), &[]);
    assert_eq!((answer.head.length(), answer.body.len()), (Some(399_990), 399_990));
}

#[test]
fn chunks_end_too_early_or_never() {
    let (answer, _) = through(Rule::on("/", Fault::TruncatedChunks(10)), &[]);
    assert_eq!((answer.head.field("transfer-encoding"), answer.head.length()), (Some("chunked"), None));
    assert_eq!(answer.body, [b"a\r\n", &body()[..10], b"\r\n"].concat());

    let server = Server::with(b"body".to_vec());
    let proxy = Proxy::before(server.address);
    proxy.rule(Rule::on("/", Fault::Endless));
    let mut client = TcpStream::connect(proxy.address()).unwrap();
    Head::new("GET / HTTP/1.1").write(&mut client).unwrap();
    // More than all buffers hold, and nothing says that it will end.
    assert_eq!(io::copy(&mut (&client).take(64 << 20), &mut io::sink()).unwrap(), 64 << 20);
    drop(proxy);
}

#[test]
fn a_silent_server_answers_nothing_and_ends_with_the_proxy() {
    let server = Server::with(b"body".to_vec());
    let proxy = Proxy::before(server.address);
    proxy.rule(Rule::on("/", Fault::Silence));
    let mut client = TcpStream::connect(proxy.address()).unwrap();
    Head::new("GET / HTTP/1.1").write(&mut client).unwrap();
    eventually("the request came", PATIENCE, || proxy.seen().len() == 1);
    let (send, ended) = mpsc::channel();
    let reader = thread::spawn(move || send.send(client.read(&mut [0])));
    assert!(ended.recv_timeout(Duration::from_millis(50)).is_err(), "something came");
    drop(proxy);
    let read = ended.recv_timeout(PATIENCE).unwrap();
    assert!(!read.is_ok_and(|length| length > 0));
    drop(reader.join());
}

#[test]
fn a_redirect_leads_to_another_server() {
    let (answer, _) = through(Rule::on("/", Fault::Redirect(SocketAddr::from(([127, 0, 0, 1], 9)))), &[]);
    assert_eq!(
        (answer.head.status(), answer.head.field("location")),
        (307, Some("http://127.0.0.1:9/v2/blobs/x"))
    );
}

#[test]
fn a_document_is_rewritten_and_its_head_fits() {
    let server = Server::with(br#"{"layers":[{"size":5}]}"#.to_vec());
    let proxy = Proxy::before(server.address);
    proxy.rule(Rule::on("/manifests/", Fault::rewrite(|manifest| manifest["layers"][0]["size"] = json!(-1))));
    let answer = http::get(&proxy.host(), "/v2/a/manifests/x", &[]).unwrap();
    assert_eq!(answer.body, br#"{"layers":[{"size":-1}]}"#);
    assert_eq!(answer.head.length(), Some(24));
    let digest = Sha256::digest(&answer.body).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(answer.head.field("docker-content-digest"), Some(&*format!("sha256:{digest}")));
}

#[test]
fn a_connection_carries_several_requests() {
    let server = Server::with(b"body".to_vec());
    let proxy = Proxy::before(server.address);
    let mut client = TcpStream::connect(proxy.address()).unwrap();
    let mut reader = BufReader::new(client.try_clone().unwrap());
    for _ in 0..3 {
        Head::new("GET / HTTP/1.1").write(&mut client).unwrap();
        let head = Head::read(&mut reader).unwrap().unwrap();
        let mut body = vec![0; usize::try_from(head.length().unwrap()).unwrap()];
        reader.read_exact(&mut body).unwrap();
        assert_eq!(body, b"body");
    }
    assert_eq!(proxy.seen().len(), 3);
}

#[test]
fn it_is_a_clients_own_proxy_as_well() {
    let server = Server::with(b"body".to_vec());
    let proxy = Proxy::before(server.address);
    let answer = http::get(&proxy.host(), "http://registry.test:5000/v2/", &[]).unwrap();
    assert_eq!(answer.body, b"body");
    assert_eq!(proxy.seen()[0].target(), "http://registry.test:5000/v2/");

    let mut client = TcpStream::connect(proxy.address()).unwrap();
    let mut reader = BufReader::new(client.try_clone().unwrap());
    Head::new("CONNECT registry.test:443 HTTP/1.1").write(&mut client).unwrap();
    assert_eq!(Head::read(&mut reader).unwrap().unwrap().status(), 200);
    // What the server says without this proxy reading it.
    Head::new("GET / HTTP/1.1").write(&mut client).unwrap();
    assert_eq!(Head::read(&mut reader).unwrap().unwrap().first, "HTTP/1.0 200 OK");
}

#[test]
fn a_client_that_speaks_tls_is_told_at_once_that_nobody_here_does() {
    let server = Server::with(b"body".to_vec());
    let proxy = Proxy::before(server.address);
    let mut client = TcpStream::connect(proxy.address()).unwrap();
    // The start of a ClientHello, in which no line ends.
    client.write_all(&[22, 3, 1, 0, 200, 1, 0, 0, 196]).unwrap();
    let mut reader = BufReader::new(client);
    assert_eq!(Head::read(&mut reader).unwrap().unwrap().status(), 400);
    assert!(proxy.seen().is_empty());
}
