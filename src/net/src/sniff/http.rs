//! What an HTTP/1 client asks for: every request of a connection (RFC 9110, RFC 9112).
//!
//! ```text
//!   Head ──(judged)──▶ Body ─────────────────────────────▶ Head
//!          │           ChunkSize ─▶ ChunkData ─▶ ChunkEnd    ▲
//!          │              └─(0)─▶ Trailers ──────────────────┤
//!          └─(websocket)─▶ Upgrading ──(the server declines)─┘
//!                              └──────(101)──▶ open
//! ```
//!
//! The parser is stricter than servers are: what some of them would take for something else is refused.

use super::host_name;
use crate::policy::Stated;

/// The longest head, line of a chunk, and trailers, in bytes.
const HEAD: usize = 32 << 10;
const CHUNK_LINE: usize = 4 << 10;
const TRAILERS: usize = 8 << 10;
/// The start of a response that is looked at.
const STATUS: usize = 12;

const BAD_HEAD: &str = "its HTTP request is malformed";
const LONG: &str = "its HTTP request is too long";
const TWO_HOSTS: &str = "its HTTP request names two hosts";
const PROXY: &str = "it asks for a proxy";
const HTTP2: &str = "it speaks HTTP/2 without TLS";
const FRAMING: &str = "the length of its HTTP request is not clear";
const UPGRADE: &str = "it changes to a protocol that cannot be looked into";

/// Where a client is.
#[derive(Debug, Default)]
enum State {
    #[default]
    Head,
    Body(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    /// The start of the server's answer.
    Upgrading(Vec<u8>),
    Open,
}

/// A client's half of a connection.
#[derive(Debug, Default)]
pub(super) struct Client {
    state: State,
    /// How much of a head that is not whole has been searched for its end.
    searched: usize,
    requests: u64,
}

/// What comes of a look.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It takes more bytes.
    More,
    /// A request; its bytes may go on once it is judged.
    Request(usize, Stated),
    /// So many bytes may go on.
    Pass(usize),
    /// Everything may, from now on.
    Open,
}

impl Client {
    /// Looks at what is held.
    pub(super) fn look(&mut self, held: &[u8]) -> Result<Look, &'static str> {
        match &mut self.state {
            State::Open => return Ok(Look::Open),
            State::Upgrading(_) => return Ok(Look::More),
            _ if held.is_empty() => return Ok(Look::More),
            State::Head => {}
            State::Body(left) | State::ChunkData(left) => {
                let some = usize::try_from(*left).unwrap_or(usize::MAX).min(held.len());
                *left -= some as u64;
                if *left == 0 {
                    let chunk = matches!(self.state, State::ChunkData(_));
                    self.state = if chunk { State::ChunkEnd } else { State::Head };
                }
                return Ok(Look::Pass(some));
            }
            State::ChunkEnd => {
                return match held {
                    [b'\r', b'\n', ..] => {
                        self.state = State::ChunkSize;
                        Ok(Look::Pass(2))
                    }
                    [b'\r'] => Ok(Look::More),
                    _ => Err(FRAMING),
                };
            }
            State::ChunkSize => {
                let Some((line, passed)) = line(held, CHUNK_LINE)? else { return Ok(Look::More) };
                let size = chunk_size(line)?;
                self.state = if size == 0 { State::Trailers } else { State::ChunkData(size) };
                return Ok(Look::Pass(passed));
            }
            State::Trailers => {
                let Some(end) = end(held, 0, TRAILERS, true)? else { return Ok(Look::More) };
                for line in lines(&held[..end]) {
                    let (name, _) = field(line)?;
                    if ["host", "content-length", "transfer-encoding"]
                        .iter()
                        .any(|no| name.eq_ignore_ascii_case(no))
                    {
                        return Err(FRAMING);
                    }
                }
                self.state = State::Head;
                return Ok(Look::Pass(end));
            }
        }
        let Some(end) = end(held, self.searched, HEAD, false)? else {
            self.searched = held.len().saturating_sub(3);
            return Ok(Look::More);
        };
        self.searched = 0;
        self.requests += 1;
        let request = Request::parse(&held[..end])?;
        self.state = match request.body {
            _ if request.upgrades && self.requests > 1 => return Err(UPGRADE),
            Body::Length(0) if request.upgrades => State::Upgrading(Vec::new()),
            _ if request.upgrades => return Err(UPGRADE),
            Body::Length(0) => State::Head,
            Body::Length(length) => State::Body(length),
            Body::Chunked => State::ChunkSize,
        };
        Ok(Look::Request(end, Stated::Http { name: request.host }))
    }

    /// The server says this.
    pub(super) fn server(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let State::Upgrading(start) = &mut self.state else { return Ok(()) };
        let some = bytes.len().min(STATUS - start.len());
        start.extend_from_slice(&bytes[..some]);
        if start.len() == STATUS {
            let changed = start.starts_with(b"HTTP/1.") && start.ends_with(b" 101");
            self.state = if changed { State::Open } else { State::Head };
        }
        Ok(())
    }
}

/// How long the body of a request is.
#[derive(Debug, PartialEq, Eq)]
enum Body {
    Length(u64),
    Chunked,
}

#[derive(Debug)]
struct Request {
    host: Option<String>,
    body: Body,
    upgrades: bool,
}

impl Request {
    fn parse(head: &[u8]) -> Result<Self, &'static str> {
        let mut lines = lines(head);
        let (target, minor, method) = request_line(lines.next().ok_or(BAD_HEAD)?)?;
        let (mut host, mut length, mut chunked, mut upgrades) = (None, None, false, false);
        for line in lines {
            let (name, value) = field(line)?;
            match name.to_ascii_lowercase().as_str() {
                "host" if host.is_some() => return Err(TWO_HOSTS),
                "host" => host = Some(authority(value)?),
                "content-length" if length.is_some() => return Err(FRAMING),
                "content-length" => length = Some(number(value)?),
                "transfer-encoding" if chunked || !value.eq_ignore_ascii_case(b"chunked") => {
                    return Err(FRAMING);
                }
                "transfer-encoding" => chunked = true,
                "http2-settings" => return Err(HTTP2),
                "upgrade" if value.eq_ignore_ascii_case(b"websocket") => upgrades = true,
                "upgrade" if value.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"h2c")) => {
                    return Err(HTTP2);
                }
                "upgrade" => return Err(UPGRADE),
                _ => {}
            }
        }
        let body = match (length, chunked) {
            (Some(_), true) => return Err(FRAMING),
            (None, true) if minor == 0 => return Err(FRAMING),
            (None, true) => Body::Chunked,
            (length, false) => Body::Length(length.unwrap_or(0)),
        };
        if host.is_none() && minor == 1 {
            return Err("its HTTP request does not say for which host it is");
        }
        let host = host.flatten();
        match target {
            _ if method == b"CONNECT" => return Err(PROXY),
            b"*" if method == b"OPTIONS" => {}
            [b'/', ..] => {}
            absolute => {
                // For a proxy, or for who does not look: it has to be what the host says.
                let named = absolute_authority(absolute).ok_or(BAD_HEAD)?;
                if authority(named)? != host {
                    return Err(TWO_HOSTS);
                }
            }
        }
        Ok(Self { host, body, upgrades })
    }
}

/// The target, the minor version, and the method.
fn request_line(line: &[u8]) -> Result<(&[u8], u8, &[u8]), &'static str> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (method, target, version) = (parts.next(), parts.next(), parts.next());
    let (Some(method), Some(target), Some(version), None) = (method, target, version, parts.next()) else {
        return Err(BAD_HEAD);
    };
    let minor = match version {
        b"HTTP/1.0" => 0,
        b"HTTP/1.1" => 1,
        [b'H', b'T', b'T', b'P', b'/', b'2', ..] => return Err(HTTP2),
        _ => return Err(BAD_HEAD),
    };
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) || target.is_empty() {
        return Err(BAD_HEAD);
    }
    Ok((target, minor, method))
}

/// A field's name and value.
fn field(line: &[u8]) -> Result<(&str, &[u8]), &'static str> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or(BAD_HEAD)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err(BAD_HEAD);
    }
    let name = std::str::from_utf8(name).map_err(|_| BAD_HEAD)?;
    let blank = |byte: &u8| *byte == b' ' || *byte == b'\t';
    let start = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    Ok((name, &value[start..end]))
}

/// The host of `host[:port]`, as policies have names; `None` when it is empty.
fn authority(value: &[u8]) -> Result<Option<String>, &'static str> {
    if value.is_empty() {
        return Ok(None);
    }
    let (host, port) = match value {
        [b'[', ..] => {
            let close = value.iter().position(|byte| *byte == b']').ok_or(BAD_HEAD)?;
            (&value[..=close], &value[close + 1..])
        }
        _ => value.split_at(value.iter().position(|byte| *byte == b':').unwrap_or(value.len())),
    };
    let port_is_one = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !port_is_one {
        return Err(BAD_HEAD);
    }
    if let [b'[', address @ .., b']'] = host {
        let address =
            std::str::from_utf8(address).ok().and_then(|text| text.parse::<std::net::Ipv6Addr>().ok());
        return address.map(|address| Some(address.to_string())).ok_or(BAD_HEAD);
    }
    host_name(host).map(Some).ok_or(BAD_HEAD)
}

/// The authority of a target in absolute form.
fn absolute_authority(target: &[u8]) -> Option<&[u8]> {
    let scheme = |scheme: &[u8]| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    let rest = scheme(b"http://").or_else(|| scheme(b"https://"))?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    Some(&rest[..end])
}

fn number(value: &[u8]) -> Result<u64, &'static str> {
    let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits);
    text.and_then(|text| text.parse().ok()).ok_or(FRAMING)
}

/// The size of a chunk; what may stand behind it says nothing.
fn chunk_size(line: &[u8]) -> Result<u64, &'static str> {
    let end = line.iter().position(|byte| *byte == b';').unwrap_or(line.len());
    let size = &line[..end];
    let digits = !size.is_empty() && size.len() <= 15 && size.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(size).ok().filter(|_| digits);
    text.and_then(|text| u64::from_str_radix(text, 16).ok()).ok_or(FRAMING)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The lines of a head, without the empty one at its end.
fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    head.split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .filter(|line| !line.is_empty())
}

/// The first line and the bytes that it takes with its end.
fn line(held: &[u8], longest: usize) -> Result<Option<(&[u8], usize)>, &'static str> {
    match held.iter().position(|byte| *byte == b'\n') {
        Some(at) if at <= longest => {
            let line = held[..at].strip_suffix(b"\r").ok_or(BAD_HEAD)?;
            check(line)?;
            Ok(Some((line, at + 1)))
        }
        None if held.len() <= longest => Ok(None),
        _ => Err(LONG),
    }
}

/// Where a head ends, behind its empty line. With `empty_is_one`, nothing but the empty line is a head, too.
fn end(
    held: &[u8],
    searched: usize,
    longest: usize,
    empty_is_one: bool,
) -> Result<Option<usize>, &'static str> {
    if empty_is_one && held.starts_with(b"\r\n") {
        return Ok(Some(2));
    }
    let found = held[searched..].windows(4).position(|four| four == b"\r\n\r\n").map(|at| searched + at + 4);
    match found {
        Some(end) if end <= longest => {
            for line in held[..end - 2].split(|byte| *byte == b'\n') {
                // The piece behind the last line break is empty.
                let line = line.strip_suffix(b"\r").or(line.is_empty().then_some(line)).ok_or(BAD_HEAD)?;
                check(line)?;
            }
            Ok(Some(end))
        }
        // Who ends lines otherwise would make a server see an end that is not seen here.
        None if held.len() <= longest && !has_bare_end(held) => Ok(None),
        None if held.len() <= longest => Err(BAD_HEAD),
        _ => Err(LONG),
    }
}

fn has_bare_end(held: &[u8]) -> bool {
    held.windows(2).any(|two| two[1] == b'\n' && two[0] != b'\r') || held.first() == Some(&b'\n')
}

/// No line has control characters in it.
fn check(line: &[u8]) -> Result<(), &'static str> {
    let fine = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    if line.iter().all(fine) { Ok(()) } else { Err(BAD_HEAD) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All hosts that are asked for, or why it is refused.
    fn hosts(bytes: &[u8]) -> Result<Vec<Option<String>>, &'static str> {
        let (mut client, mut held, mut hosts) = (Client::default(), bytes, Vec::new());
        loop {
            match client.look(held)? {
                Look::More => return if held.is_empty() { Ok(hosts) } else { Err("unfinished") },
                Look::Open => return Ok(hosts),
                Look::Pass(some) => held = &held[some..],
                Look::Request(some, Stated::Http { name }) => {
                    hosts.push(name);
                    held = &held[some..];
                }
                Look::Request(..) => panic!("no HTTP"),
            }
        }
    }

    #[test]
    fn every_request_of_a_connection_is_seen() {
        let bytes = b"GET / HTTP/1.1\r\nHost: A.example:80\r\n\r\n\
            POST /x HTTP/1.1\r\nhost:b.example.\r\nContent-Length: 5\r\n\r\nhello\
            PUT /y HTTP/1.1\r\nHost: c.example\r\nTransfer-Encoding: Chunked\r\n\r\n\
            5;x=y\r\nGET /\r\n10\r\n0123456789abcdef\r\n0\r\nX-Sum: 1\r\n\r\n\
            OPTIONS * HTTP/1.1\r\nHost: d.example\r\n\r\n\
            GET http://E.example/x HTTP/1.1\r\nHost: e.example\r\n\r\n\
            GET / HTTP/1.0\r\n\r\n";
        let names = ["a.example", "b.example", "c.example", "d.example", "e.example"];
        let expected: Vec<_> = names.map(|name| Some(name.to_owned())).into_iter().chain([None]).collect();
        assert_eq!(hosts(bytes), Ok(expected));
    }

    #[test]
    fn what_a_server_could_take_for_something_else_is_refused() {
        for (what, bytes) in [
            ("two hosts", &b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"[..]),
            ("no host", b"GET / HTTP/1.1\r\n\r\n"),
            ("a blank before the colon", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
            ("a folded line", b"GET / HTTP/1.1\r\nHost:\r\n a\r\n\r\n"),
            ("a folded second line", b"GET / HTTP/1.1\r\nX: y\r\n Host: a\r\nHost: b\r\n\r\n"),
            ("bare line feeds", b"GET / HTTP/1.1\nHost: a\n\n"),
            ("one bare line feed", b"GET / HTTP/1.1\r\nX: y\nHost: b\r\nHost: a\r\n\r\n"),
            ("a bare carriage return", b"GET / HTTP/1.1\r\nX: y\rHost: b\r\nHost: a\r\n\r\n"),
            ("a NUL byte", b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n"),
            ("an absolute target for another host", b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("a user in the target", b"GET http://a@b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("a strange target", b"GET a/b HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("two targets", b"GET / /x HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("a proxy", b"CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n"),
            ("two lengths", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx"),
            ("a list of lengths", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx"),
            ("a signed length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx"),
            (
                "length and chunks",
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            ),
            ("another coding", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n"),
            ("two codings", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
            (
                "a tab before the coding's end",
                b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
            ),
            ("chunks in HTTP/1.0", b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (
                "an endless chunk",
                b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
            ),
            (
                "a chunk with 0x",
                b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n",
            ),
            (
                "a chunk without its end",
                b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n",
            ),
            (
                "a host in the trailers",
                b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\n\r\n",
            ),
            ("HTTP/2 by upgrade", b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n"),
            ("TLS by upgrade", b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: TLS/1.0\r\n\r\n"),
            ("HTTP/2 at once", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            ("another version", b"GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
            ("a port that is none", b"GET / HTTP/1.1\r\nHost: a:80b\r\n\r\n"),
            ("a user in the host", b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"),
            (
                "an upgrade behind others",
                b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
            ),
        ] {
            let refused = hosts(bytes);
            assert!(refused.is_err() && refused != Err("unfinished"), "{what}: {refused:?}");
        }
        assert_eq!(hosts(&[b"GET / HTTP/1.1\r\nX: ", &[b'y'; 40_000][..]].concat()), Err(LONG));
    }

    #[test]
    fn what_is_sent_before_the_server_agrees_to_a_websocket_waits() {
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\r\n";
        let smuggled = b"GET / HTTP/1.1\r\nHost: b\r\n\r\n";
        for (answer, open) in [(&b"HTTP/1.1 101 Switching\r\n"[..], true), (b"HTTP/1.1 400 Bad\r\n", false)] {
            let mut client = Client::default();
            assert!(matches!(client.look(request), Ok(Look::Request(..))));
            assert_eq!(client.look(smuggled), Ok(Look::More));
            for byte in answer {
                client.server(&[*byte]).unwrap();
            }
            let look = client.look(smuggled).unwrap();
            assert_eq!(look == Look::Open, open);
            assert_eq!(matches!(look, Look::Request(..)), !open);
        }
    }
}
