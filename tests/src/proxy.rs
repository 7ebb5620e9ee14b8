//! A proxy before a registry that breaks what passes through it, as rules say, and remembers every request.
//!
//! It stands in the registry's place for a client that is given its address. It also serves as the proxy of a client
//! that is told to use one: a request for another host, and a CONNECT, lead to the same registry.
//!
//! ```text
//! client ── Proxy::address() ── first rule that fits and is not used up ── registry
//! ```

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::http::Head;

/// The largest document that is held in memory to be rewritten.
const LARGEST_DOCUMENT: u64 = 8 << 20;
/// Pieces in which a body is passed on.
const PIECE: usize = 16 << 10;
/// The first byte of a client that speaks TLS.
const TLS_HANDSHAKE: u8 = 22;

/// What a rule does to an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Resets the connection behind this many bytes of the body.
    CutAfter(u64),
    /// Closes the connection in good order behind this many bytes of the body.
    CloseAfter(u64),
    /// Waits before the answer begins.
    Delay(Duration),
    /// Passes on so many bytes of the body a second.
    Throttle(u64),
    /// Inverts one byte of the body.
    Flip(u64),
    /// Answers with this status in the registry's place, with `Retry-After` in seconds if there is one.
    Status(u16, Option<u32>),
    /// Says of a range that it begins one byte later than it does.
    WrongContentRange,
    /// Answers a request for a range with 200 and everything.
    IgnoreRange,
    /// Answers that there is no such range.
    RangeNotSatisfiable,
    /// Promises so many bytes more than there are, then closes.
    LengthTooLarge(u64),
    /// Promises so many bytes fewer than there are, and sends no more than that.
    LengthTooSmall(u64),
    /// Sends the body in chunks and closes behind so many bytes, without the last chunk.
    TruncatedChunks(u64),
    /// Sends the body in chunks, and then zeros for ever.
    Endless,
    /// Reads the request, and never answers.
    Silence,
    /// Sends the client to this server for the same path.
    Redirect(SocketAddr),
    /// Changes a document, whose length and digest in the head are then those of what is sent.
    Rewrite(Rewrite),
}

/// A change of a JSON document.
#[derive(Clone)]
pub struct Rewrite(Arc<dyn Fn(&mut Value) + Send + Sync>);

impl fmt::Debug for Rewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rewrite")
    }
}

impl Fault {
    /// [`Fault::Rewrite`].
    pub fn rewrite(change: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        Self::Rewrite(Rewrite(Arc::new(change)))
    }
}

/// Which requests meet which fault.
#[derive(Clone, Debug)]
pub struct Rule {
    part: String,
    ranges: bool,
    left: Option<usize>,
    fault: Fault,
}

impl Rule {
    /// Every request whose path has this part meets this fault.
    pub fn on(part: impl Into<String>, fault: Fault) -> Self {
        Self { part: part.into(), ranges: false, left: None, fault }
    }

    /// Only the first so many.
    pub fn times(mut self, times: usize) -> Self {
        self.left = Some(times);
        self
    }

    /// Only requests for a range.
    pub fn of_ranges(mut self) -> Self {
        self.ranges = true;
        self
    }

    fn fits(&self, request: &Head) -> bool {
        self.left != Some(0)
            && target(request).contains(&self.part)
            && (!self.ranges || request.field("Range").is_some())
    }
}

/// A request that came, and what became of it so far.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The request.
    pub request: Head,
    /// Status of the answer once it began.
    pub status: Option<u16>,
    /// Bytes of the body that were given to the kernel for the client.
    pub sent: u64,
    /// Whether a rule was applied.
    pub broken: bool,
}

impl Seen {
    /// `GET`, `HEAD`, …
    pub fn method(&self) -> &str {
        self.request.first.split(' ').next().unwrap_or_default()
    }

    /// Path and query; what a client asks of its own proxy has scheme and host before it.
    pub fn target(&self) -> &str {
        target(&self.request)
    }

    /// Whether it asked for (a part of) a layer or a configuration.
    pub fn is_blob(&self) -> bool {
        self.method() == "GET" && self.target().contains("/blobs/")
    }
}

fn target(request: &Head) -> &str {
    request.first.split(' ').nth(1).unwrap_or_default()
}

/// A running proxy, which ends when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<Seen>,
    /// Handles to break connections with that a thread waits upon, both sides'.
    open: Vec<TcpStream>,
    ended: bool,
}

impl Proxy {
    /// A proxy without rules before this server.
    pub fn before(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared { upstream, state: Mutex::default(), ended: Condvar::new() });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Host and port, as a reference names them.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Adds a rule behind those that are there.
    pub fn rule(&self, rule: Rule) {
        self.shared.state().rules.push(rule);
    }

    /// Removes all rules: from the next request on nothing is broken.
    pub fn heal(&self) {
        self.shared.state().rules.clear();
    }

    /// The requests so far, in the order in which they came.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.state().seen.clone()
    }

    /// Forgets the requests so far.
    ///
    /// # Panics
    /// When one is under way: what becomes of it would be lost.
    pub fn forget(&self) {
        let mut state = self.shared.state();
        assert!(state.open.is_empty(), "a connection is open");
        state.seen.clear();
    }

    /// Bytes of bodies of blobs that were sent so far.
    pub fn blob_bytes(&self) -> u64 {
        self.seen().iter().filter(|seen| seen.is_blob()).map(|seen| seen.sent).sum()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state();
            state.ended = true;
            for stream in &state.open {
                // It may have been closed by the other side.
                drop(stream.shutdown(Shutdown::Both));
            }
        }
        self.shared.ended.notify_all();
        // Wakes the acceptor, which then sees the end.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            drop(acceptor.join());
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut connections: Vec<JoinHandle<()>> = Vec::new();
    for client in listener.incoming() {
        if shared.state().ended {
            break;
        }
        let Ok(client) = client else { continue };
        connections.retain(|connection| !connection.is_finished());
        let shared = Arc::clone(shared);
        connections.push(thread::spawn(move || {
            // However a connection ends, the client sees it, and the test what the client makes of it.
            drop(serve(&client, &shared));
        }));
    }
    for connection in connections {
        drop(connection.join());
    }
}

/// A connection that the end of the proxy breaks, whoever reads or writes it.
struct Breakable<'a> {
    shared: &'a Shared,
    key: (SocketAddr, SocketAddr),
}

impl<'a> Breakable<'a> {
    fn new(stream: &TcpStream, shared: &'a Shared) -> io::Result<Self> {
        let mut state = shared.state();
        if state.ended {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let key = (stream.local_addr()?, stream.peer_addr()?);
        state.open.push(stream.try_clone()?);
        drop(state);
        Ok(Self { shared, key })
    }
}

impl Drop for Breakable<'_> {
    fn drop(&mut self) {
        let (ours, theirs) = self.key;
        // A stream whose other side has gone has no peer any more.
        let same = |stream: &TcpStream| {
            stream.local_addr().is_ok_and(|address| address == ours)
                && stream.peer_addr().map_or(true, |address| address == theirs)
        };
        let mut state = self.shared.state();
        if let Some(at) = state.open.iter().position(same) {
            state.open.swap_remove(at);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Notes a request; its place in the list, and the fault that it meets.
    fn note(&self, request: &Head) -> (usize, Option<Fault>) {
        let mut state = self.state();
        let rule = state.rules.iter_mut().find(|rule| rule.fits(request));
        let fault = rule.map(|rule| {
            rule.left = rule.left.map(|left| left - 1);
            rule.fault.clone()
        });
        let broken = fault.is_some();
        state.seen.push(Seen { request: request.clone(), status: None, sent: 0, broken });
        (state.seen.len() - 1, fault)
    }

    fn answered(&self, number: usize, status: u16) {
        self.state().seen[number].status = Some(status);
    }

    fn sent(&self, number: usize, bytes: usize) {
        self.state().seen[number].sent += bytes as u64;
    }

    /// Waits, yet no longer than the proxy lives; whether it still does.
    fn pause(&self, time: Duration) -> bool {
        let state = self.state();
        let waited = self.ended.wait_timeout_while(state, time, |state| !state.ended);
        !waited.unwrap_or_else(std::sync::PoisonError::into_inner).0.ended
    }
}

/// What follows an answer on its connection.
#[derive(PartialEq, Eq)]
enum Next {
    Request,
    Close,
    Reset,
}

fn serve(client: &TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    let _open = Breakable::new(client, shared)?;
    let mut reader = BufReader::new(client);
    if reader.fill_buf()?.first() == Some(&TLS_HANDSHAKE) {
        // As a server answers that expects HTTP: whoever tries TLS first must not wait for more.
        let mut to = client;
        return Head::new("HTTP/1.0 400 Bad Request").write(&mut to);
    }
    loop {
        let Some(request) = Head::read(&mut reader)? else { return Ok(()) };
        let (number, fault) = shared.note(&request);
        let mut exchange = Exchange { shared, number, client, request };
        let next = if exchange.request.first.starts_with("CONNECT ") && fault.is_none() {
            exchange.tunnel(&mut reader)?
        } else {
            exchange.answer(&mut reader, fault)?
        };
        let last =
            exchange.request.field("Connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        match next {
            Next::Request if !last => {}
            Next::Request | Next::Close => return client.shutdown(Shutdown::Both),
            Next::Reset => {
                // With nothing to linger for, closing resets. The handle in the list must not outlive this one.
                let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
                setsockopt(client, sockopt::Linger, &at_once)?;
                return Ok(());
            }
        }
    }
}

/// One request and its answer.
struct Exchange<'a> {
    shared: &'a Shared,
    number: usize,
    client: &'a TcpStream,
    request: Head,
}

impl Exchange<'_> {
    fn tunnel(&mut self, reader: &mut BufReader<&TcpStream>) -> io::Result<Next> {
        let upstream = TcpStream::connect(self.shared.upstream)?;
        let _open = Breakable::new(&upstream, self.shared)?;
        self.begin(&Head::new("HTTP/1.1 200 Connection established"))?;
        thread::scope(|scope| {
            let back = scope.spawn(|| {
                let copied = self.pass(&mut &upstream, &mut |piece| self.send(piece));
                drop(self.client.shutdown(Shutdown::Write));
                copied
            });
            let copied = io::copy(reader, &mut &upstream);
            drop(upstream.shutdown(Shutdown::Write));
            drop((copied, back.join()));
        });
        Ok(Next::Close)
    }

    fn answer(&mut self, reader: &mut BufReader<&TcpStream>, fault: Option<Fault>) -> io::Result<Next> {
        match &fault {
            Some(Fault::Status(status, retry)) => return self.refuse(*status, "Retry-After", retry.as_ref()),
            Some(Fault::RangeNotSatisfiable) => return self.refuse(416, "Content-Range", Some(&"bytes */1")),
            Some(Fault::Redirect(to)) => {
                let place = format!("http://{to}{}", path(target(&self.request)));
                return self.refuse(307, "Location", Some(&place));
            }
            Some(Fault::Silence) => {
                // Until the client loses its patience.
                return reader.read(&mut [0]).map(|_| Next::Close);
            }
            Some(Fault::Delay(time)) if !self.shared.pause(*time) => return Ok(Next::Close),
            _ => {}
        }
        let upstream = TcpStream::connect(self.shared.upstream)?;
        let _open = Breakable::new(&upstream, self.shared)?;
        self.forward(reader, &upstream, matches!(fault, Some(Fault::IgnoreRange)))?;
        let mut body = BufReader::new(&upstream);
        let mut head = Head::read(&mut body)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        head.first = head.first.replacen("HTTP/1.0", "HTTP/1.1", 1);
        head.remove("Connection");
        self.pass_on(head, &mut body, fault)
    }

    /// Sends the request on as HTTP/1.0, so that the answer is neither in chunks nor followed by another one.
    fn forward(
        &self,
        reader: &mut BufReader<&TcpStream>,
        upstream: &TcpStream,
        whole: bool,
    ) -> io::Result<()> {
        let mut request = self.request.clone();
        let method = request.first.split(' ').next().unwrap_or_default().to_owned();
        if request.field("Transfer-Encoding").is_some() {
            return Err(io::Error::other("a request in chunks is beyond this proxy"));
        }
        request.first = format!("{method} {} HTTP/1.0", path(target(&self.request)));
        request.set("Connection", "close");
        request.remove("Proxy-Authorization");
        if whole {
            request.remove("Range");
        }
        let mut to = upstream;
        request.write(&mut to)?;
        io::copy(&mut reader.take(request.length().unwrap_or(0)), &mut to)?;
        Ok(())
    }

    fn pass_on(&self, mut head: Head, body: &mut dyn Read, fault: Option<Fault>) -> io::Result<Next> {
        let empty = self.request.first.starts_with("HEAD ") || [204, 304].contains(&head.status());
        let length = head.length();
        if empty {
            self.begin(&head)?;
            return Ok(Next::Request);
        }
        match fault {
            None | Some(Fault::Delay(_) | Fault::IgnoreRange) => {
                self.begin(&head)?;
                self.pass(body, &mut |piece| self.send(piece))?;
            }
            Some(Fault::CutAfter(count)) => {
                self.begin(&head)?;
                self.pass(&mut body.take(count), &mut |piece| self.send(piece))?;
                return Ok(Next::Reset);
            }
            Some(Fault::CloseAfter(count)) => {
                self.begin(&head)?;
                self.pass(&mut body.take(count), &mut |piece| self.send(piece))?;
                return Ok(Next::Close);
            }
            Some(Fault::Throttle(rate)) => {
                self.begin(&head)?;
                self.pass(body, &mut |piece| self.send_slowly(piece, rate))?;
            }
            Some(Fault::Flip(at)) => {
                self.begin(&head)?;
                let mut from = 0;
                self.pass(body, &mut |piece| {
                    let place = at.checked_sub(from).and_then(|place| usize::try_from(place).ok());
                    if let Some(byte) = place.and_then(|place| piece.get_mut(place)) {
                        *byte = !*byte;
                    }
                    from += piece.len() as u64;
                    self.send(piece)
                })?;
            }
            Some(Fault::WrongContentRange) => {
                if let Some(range) = head.field("Content-Range").map(later) {
                    head.set("Content-Range", range);
                }
                self.begin(&head)?;
                self.pass(body, &mut |piece| self.send(piece))?;
            }
            Some(Fault::LengthTooLarge(more)) => {
                head.set("Content-Length", length.unwrap_or(0) + more);
                self.begin(&head)?;
                self.pass(body, &mut |piece| self.send(piece))?;
                return Ok(Next::Close);
            }
            Some(Fault::LengthTooSmall(fewer)) => {
                let promised = length.unwrap_or(0).saturating_sub(fewer);
                head.set("Content-Length", promised);
                self.begin(&head)?;
                self.pass(&mut body.take(promised), &mut |piece| self.send(piece))?;
            }
            Some(Fault::TruncatedChunks(count)) => {
                self.begin_chunks(head)?;
                self.pass(&mut body.take(count), &mut |piece| self.send_chunk(piece))?;
                return Ok(Next::Close);
            }
            Some(Fault::Endless) => {
                self.begin_chunks(head)?;
                self.pass(&mut body.chain(io::repeat(0)), &mut |piece| self.send_chunk(piece))?;
            }
            Some(Fault::Rewrite(Rewrite(change))) => return self.rewrite(head, body, &*change),
            Some(fault) => unreachable!("{fault:?} is answered without the registry"),
        }
        // Without a length the end of the connection is the end of the body.
        Ok(if length.is_some() { Next::Request } else { Next::Close })
    }

    fn rewrite(&self, mut head: Head, body: &mut dyn Read, change: &dyn Fn(&mut Value)) -> io::Result<Next> {
        let mut document = Vec::new();
        body.take(LARGEST_DOCUMENT).read_to_end(&mut document)?;
        let mut value = serde_json::from_slice(&document)?;
        change(&mut value);
        let document = serde_json::to_vec(&value)?;
        let digest: String = Sha256::digest(&document).iter().map(|byte| format!("{byte:02x}")).collect();
        head.set("Content-Length", document.len());
        head.set("Docker-Content-Digest", format!("sha256:{digest}"));
        head.remove("Etag");
        self.begin(&head)?;
        self.send(&document)?;
        Ok(Next::Request)
    }

    /// Answers in the registry's place.
    fn refuse(&self, status: u16, field: &str, value: Option<&impl ToString>) -> io::Result<Next> {
        let mut head = Head::new(format!("HTTP/1.1 {status} Broken"));
        head.set("Content-Length", 0);
        // A body of the request may follow that nobody reads.
        head.set("Connection", "close");
        if let Some(value) = value {
            head.set(field, value.to_string());
        }
        self.begin(&head)?;
        Ok(Next::Close)
    }

    fn begin(&self, head: &Head) -> io::Result<()> {
        self.shared.answered(self.number, head.status());
        let mut client = self.client;
        head.write(&mut client)
    }

    fn begin_chunks(&self, mut head: Head) -> io::Result<()> {
        head.remove("Content-Length");
        head.set("Transfer-Encoding", "chunked");
        self.begin(&head)
    }

    /// Reads to the end and hands over each piece.
    fn pass(&self, from: &mut dyn Read, each: &mut dyn FnMut(&mut [u8]) -> io::Result<()>) -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        loop {
            match from.read(&mut buffer)? {
                0 => return Ok(()),
                length => each(&mut buffer[..length])?,
            }
        }
    }

    fn send(&self, piece: &[u8]) -> io::Result<()> {
        let mut client = self.client;
        client.write_all(piece)?;
        self.shared.sent(self.number, piece.len());
        Ok(())
    }

    fn send_slowly(&self, piece: &[u8], rate: u64) -> io::Result<()> {
        // So many a second in twenty steps, so that a wait is short and a test sees it flow.
        let step = usize::try_from(rate / 20).unwrap_or(usize::MAX).clamp(1, PIECE);
        for part in piece.chunks(step) {
            self.send(part)?;
            let time = Duration::from_secs(1) * u32::try_from(part.len()).unwrap_or(u32::MAX);
            if !self.shared.pause(time / u32::try_from(rate).unwrap_or(u32::MAX).max(1)) {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
        Ok(())
    }

    fn send_chunk(&self, piece: &[u8]) -> io::Result<()> {
        let mut client = self.client;
        write!(client, "{:x}\r\n", piece.len())?;
        self.send(piece)?;
        client.write_all(b"\r\n")
    }
}

/// A target without scheme and host.
fn path(target: &str) -> &str {
    match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    }
}

/// `bytes 5-9/10` as `bytes 6-9/10`.
fn later(range: &str) -> String {
    let Some((start, rest)) = range.trim_start_matches("bytes ").split_once('-') else {
        return range.to_owned();
    };
    format!("bytes {}-{rest}", start.parse::<u64>().map_or(0, |start| start + 1))
}

#[cfg(test)]
#[path = "proxy_tests.rs"]
mod tests;
