//! What a connection says about its destination, found in the bytes of its client.
//!
//! ```text
//!             ┌─ a TLS record ──────▶ Tls ──┐
//!   Start ────┼─ an HTTP request ───▶ Http ─┼──▶ Open
//!             └─ anything else, judged ─────┘
//! ```
//!
//! A client can write anything. What could be taken for TLS or HTTP by a server is never taken for something else here, and
//! what could be read in two ways is refused.

mod http;
mod tls;

use crate::policy::Stated;

/// The most bytes of a client that wait for a judgement.
pub const HELD: usize = 64 << 10;

/// The longest first line of something that may become an HTTP request.
const LINE: usize = 8 << 10;

/// Judges what a connection states; an error is why it is refused.
pub type Judge<'a> = &'a mut dyn FnMut(&Stated) -> Result<(), &'static str>;

#[derive(Debug, Default)]
enum State {
    #[default]
    Start,
    Tls(tls::Client),
    Http(http::Client),
    Open,
}

/// Stands between a client and its server, and lets through what was judged.
#[derive(Debug, Default)]
pub struct Gate {
    state: State,
}

/// What the first bytes are of.
#[derive(Debug, PartialEq, Eq)]
enum First {
    Undecided,
    Tls,
    Http,
    Other,
}

impl Gate {
    /// A gate in front of which nothing has come yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes at the front of `held` may go on to the server. `held` is everything that has come from the client and
    /// has not gone on yet; the next call gets the rest again, with what has come behind it, at most [`HELD`] bytes.
    /// `end`: nothing comes behind it any more.
    ///
    /// # Errors
    ///
    /// Why the connection has to end, as a phrase: the judge said so, or what came can be understood in two ways.
    pub fn client(&mut self, held: &[u8], end: bool, judge: Judge<'_>) -> Result<usize, &'static str> {
        let mut passed = 0;
        loop {
            let rest = &held[passed..];
            let more = match &mut self.state {
                State::Open => return Ok(held.len()),
                State::Start => {
                    match first(rest)? {
                        First::Undecided if !end => return Ok(passed),
                        First::Undecided | First::Other => {
                            judge(&Stated::Other)?;
                            self.state = State::Open;
                        }
                        First::Tls => self.state = State::Tls(tls::Client::default()),
                        First::Http => self.state = State::Http(http::Client::default()),
                    }
                    continue;
                }
                State::Tls(client) => match client.look(rest)? {
                    tls::Look::More => None,
                    tls::Look::Pass(some) => Some(some),
                    tls::Look::Hello(some, hello) => {
                        judge(&Stated::Tls { name: hello.name, encrypted: hello.encrypted })?;
                        Some(some)
                    }
                    tls::Look::Open => {
                        self.state = State::Open;
                        Some(0)
                    }
                },
                State::Http(client) => match client.look(rest)? {
                    http::Look::More => None,
                    http::Look::Pass(some) => Some(some),
                    http::Look::Request(some, stated) => {
                        judge(&stated)?;
                        Some(some)
                    }
                    http::Look::Open => {
                        self.state = State::Open;
                        Some(0)
                    }
                },
            };
            match more {
                Some(some) => passed += some,
                None if end && passed < held.len() => {
                    return Err("it ends before it has said for whom it is");
                }
                None if held.len() - passed >= HELD => {
                    return Err("it says too much before it says for whom it is");
                }
                None => return Ok(passed),
            }
        }
    }

    /// The server has said this. Its bytes are never held.
    ///
    /// # Errors
    ///
    /// As for the client.
    pub fn server(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        match &mut self.state {
            State::Http(client) => client.server(bytes),
            State::Start | State::Tls(_) | State::Open => Ok(()),
        }
    }

    /// Whether everything passes from now on, without a look.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }
}

/// What the first bytes of a client are of.
fn first(held: &[u8]) -> Result<First, &'static str> {
    match held {
        [] | [tls::HANDSHAKE] => return Ok(First::Undecided),
        [tls::HANDSHAKE, 3, ..] => return Ok(First::Tls),
        // TLS of before 1999 in a shorter form, which some servers still understand.
        [0x80..=0xff, _, 1, 3, 0..=4, ..] => {
            return Err("its TLS hello is of a form that has long been retired");
        }
        [0x80..=0xff, rest @ ..] if rest.len() < 4 => {
            let may_be = matches!(rest, [] | [_] | [_, 1] | [_, 1, 3]);
            return Ok(if may_be { First::Undecided } else { First::Other });
        }
        // SOCKS, whose next words name the real destination.
        [4, 1 | 2, ..] | [5, 1..=9, ..] => return Err("it asks for a proxy"),
        [4 | 5] => return Ok(First::Undecided),
        // Servers skip white space before a request.
        [b'\r' | b'\n' | b' ' | b'\t', ..] => return Err("it begins with white space"),
        _ => {}
    }
    let end = held.iter().position(|byte| *byte == b'\n');
    let line = &held[..end.unwrap_or(held.len())];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let printable = line.iter().all(|byte| (b' '..=b'~').contains(byte) || *byte == b'\t');
    let token = line.iter().position(|byte| *byte == b' ' || *byte == b'\t').unwrap_or(line.len());
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    if !printable || token == 0 || !line[..token].iter().all(is_token) {
        // A version behind what is no token is still a request to somebody.
        return if has_version(line) { Err("it is nearly HTTP") } else { Ok(First::Other) };
    }
    match end {
        None if held.len() >= LINE => Err("its first line does not end"),
        None => Ok(First::Undecided),
        Some(_) if has_version(line) => Ok(First::Http),
        // The oldest HTTP has no version, and no host.
        Some(_) if line.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"get ")) => {
            Err("its HTTP request has no version")
        }
        Some(_) => Ok(First::Other),
    }
}

fn has_version(line: &[u8]) -> bool {
    line.windows(6).any(|six| six[0] == b' ' && six[1..].eq_ignore_ascii_case(b"HTTP/"))
}

/// A name as policies have it: lower case, without a dot at the end; `None` when it is none.
fn host_name(name: &[u8]) -> Option<String> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let fine = (1..=253).contains(&name.len()) && name.iter().all(allowed);
    std::str::from_utf8(name).ok().filter(|_| fine).map(str::to_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is stated, how much goes on, and whether it is refused; the bytes come in these pieces.
    fn through(bytes: &[u8], cuts: &[usize], end: bool) -> (Vec<Stated>, usize, Option<&'static str>) {
        let (mut gate, mut stated) = (Gate::new(), Vec::new());
        let (mut start, mut passed) = (0, 0);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        ends.sort_unstable();
        ends.push(bytes.len());
        for at in ends {
            let last = at == bytes.len();
            let mut judge = |what: &Stated| {
                stated.push(what.clone());
                Ok(())
            };
            match gate.client(&bytes[start..at], end && last, &mut judge) {
                Ok(some) => {
                    start += some;
                    passed += some;
                }
                Err(why) => return (stated, passed, Some(why)),
            }
        }
        (stated, passed, None)
    }

    fn name(stated: &[Stated]) -> Option<&str> {
        match stated.first()? {
            Stated::Tls { name, .. } | Stated::Http { name } => name.as_deref(),
            Stated::Other => Some("other"),
        }
    }

    #[test]
    fn protocols_are_told_apart_by_their_first_bytes() {
        let hello = tls::hellos::plain("a.example");
        for (bytes, expected) in [
            (&hello[..], "a.example"),
            (b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example"),
            (b"get / HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example"),
            (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", "other"),
            (b"EHLO me\r\n", "other"),
            (b"CONNECT {\"verbose\":false}\r\n", "other"),
            (b"*1\r\n$4\r\nPING\r\n", "other"),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", "other"),
            (b"\x80\x01\x02\x03\x04", "other"),
        ] {
            let (stated, passed, why) = through(bytes, &[], false);
            assert_eq!((name(&stated), passed, why), (Some(expected), bytes.len(), None), "{bytes:?}");
        }
    }

    #[test]
    fn nothing_that_a_server_may_take_for_tls_or_http_passes_as_something_else() {
        for bytes in [
            &b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
            b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /\r\n",
            b"(x) / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"\x80\x2e\x01\x03\x01\0\x15\0\0\0\x10",
            b"\x05\x01\0",
            b"\x04\x01\0\x50\x01\x02\x03\x04\0",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            let (stated, passed, why) = through(bytes, &[], true);
            assert!(why.is_some() && passed == 0 && !stated.contains(&Stated::Other), "{bytes:?}");
        }
    }

    #[test]
    fn what_ends_before_it_has_said_anything_is_judged_by_what_it_is() {
        assert_eq!(through(b"", &[], true).0, [Stated::Other]);
        assert_eq!(through(b"hello", &[], true).0, [Stated::Other]);
        assert_eq!(through(b"hello", &[], false), (vec![], 0, None));
        assert!(through(&tls::hellos::plain("a.example")[..50], &[], true).2.is_some());
        assert!(through(b"GET / HTTP/1.1\r\nHost: a\r\n", &[], true).2.is_some());
    }

    #[test]
    fn a_refused_request_does_not_go_on_and_the_one_before_does() {
        let bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n";
        let mut judge = |stated: &Stated| match stated {
            Stated::Http { name: Some(name) } if name == "a" => Ok(()),
            _ => Err("no"),
        };
        // What comes together is refused together.
        assert_eq!(Gate::new().client(bytes, false, &mut judge), Err("no"));
        let mut gate = Gate::new();
        assert_eq!(gate.client(&bytes[..27], false, &mut judge), Ok(27));
        assert_eq!(gate.client(&bytes[27..], false, &mut judge), Err("no"));
    }

    #[test]
    fn a_drip_of_bytes_is_bounded() {
        let endless = [b"GET /", &[b'x'; HELD][..]].concat();
        assert!(through(&endless, &[], false).2.is_some());
        let message = tls::hellos::message(&[tls::hellos::extension(21, &[0; 40_000])]);
        let long = tls::hellos::records(&message, 1);
        let cut = &long[..HELD];
        assert!(through(cut, &[], false).2.is_some());
    }

    fn samples() -> Vec<Vec<u8>> {
        vec![
            tls::hellos::plain("a.example"),
            [tls::hellos::plain("a.example"), tls::hellos::plain("b.example")].concat(),
            tls::hellos::records(&tls::hellos::message(&[tls::hellos::name(b"a.example")]), 7),
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n".to_vec(),
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_vec(),
            b"SSH-2.0-x y\r\nmore".to_vec(),
            vec![0x80, 3, 1, 2, 3],
        ]
    }

    proptest! {
        /// However the bytes are cut, the same is stated and the same goes on.
        #[test]
        fn how_the_bytes_are_cut_makes_no_difference(
            which in 0..7_usize,
            at in 0..400_usize,
            noise in proptest::collection::vec(any::<u8>(), 0..6),
            cuts in proptest::collection::vec(0..4000_usize, 0..8),
        ) {
            let mut bytes = samples()[which].clone();
            for (to, from) in bytes.iter_mut().skip(at).zip(&noise) {
                *to = *from;
            }
            let (whole, cut) = (through(&bytes, &[], false), through(&bytes, &cuts, false));
            prop_assert_eq!((&whole.0, whole.2.is_some()), (&cut.0, cut.2.is_some()));
            if whole.2.is_none() {
                prop_assert_eq!(whole.1, cut.1);
            }
        }
    }
}
