//! What a TLS client says before it is encrypted: the server name of its ClientHello (RFC 8446, 4.1.2; RFC 6066, 3).

/// The longest ClientHello, in bytes.
const HELLO: usize = 48 << 10;
/// The longest fragment of a record: what RFC 8446 allows, and what ciphers add.
const FRAGMENT: usize = (16 << 10) + 2048;
const RECORD: usize = 5;
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;
/// A record of a handshake that is encrypted is longer: an explicit nonce, a Finished and a tag.
const ENCRYPTED: usize = 24;

const SERVER_NAME: u16 = 0;
const EARLY_DATA: u16 = 42;
const ENCRYPTED_HELLO: u16 = 0xfe0d;
const ENCRYPTED_NAME: u16 = 0xffce;

const NO_RECORD: &str = "it begins like TLS and is none";
const NO_HELLO: &str = "its TLS does not begin with a hello";
const BAD_HELLO: &str = "its TLS hello is malformed";
const TWO_HELLOS: &str = "its second TLS hello is for another server than the first one";

/// What a ClientHello says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) name: Option<String>,
    pub(super) encrypted: bool,
    early: bool,
}

/// A client's half of a connection.
///
/// ```text
///   First ──(a whole hello, judged)──▶ Watched ──(what can only be the rest of the handshake)──▶ open
///                                         │ ▲
///                                         └─┘ a second hello, as after a HelloRetryRequest: for the same server
/// ```
///
/// A client that offers early data may send a second hello at any time, so it is watched for ever.
#[derive(Debug, Default)]
pub(super) struct Client {
    /// The handshake message that is being put together, out of whole records.
    message: Vec<u8>,
    /// Where in what is held the next record begins.
    at: usize,
    first: Option<Hello>,
    changed: bool,
    /// How much of a record that nobody looks into is still to come.
    skip: usize,
}

/// What comes of a look.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It takes more bytes.
    More,
    /// The first hello; the bytes of all records up to here may go on once it is judged.
    Hello(usize, Hello),
    /// So many bytes may go on.
    Pass(usize),
    /// Everything may, from now on.
    Open,
}

impl Client {
    /// Looks at what is held.
    pub(super) fn look(&mut self, held: &[u8]) -> Result<Look, &'static str> {
        loop {
            if self.skip > 0 {
                let some = self.skip.min(held.len());
                self.skip -= some;
                return Ok(if some > 0 { Look::Pass(some) } else { Look::More });
            }
            let rest = &held[self.at.min(held.len())..];
            let Some(header) = rest.first_chunk::<RECORD>() else { return Ok(Look::More) };
            let (kind, length) = (header[0], usize::from(u16::from_be_bytes([header[3], header[4]])));
            if header[1] != 3 || length > FRAGMENT {
                return Err(NO_RECORD);
            }
            let fragment = rest.get(RECORD..RECORD + length);
            if let Some(first) = &self.first
                && self.message.is_empty()
            {
                match kind {
                    HANDSHAKE => match fragment.or(rest.get(RECORD..)) {
                        // Enough to tell what it is.
                        Some(seen) if seen.len() >= length.min(6) => {
                            if !may_be_hello(seen, length, self.changed)? {
                                return Ok(self.rest(first.early, RECORD + length));
                            }
                        }
                        _ => return Ok(Look::More),
                    },
                    CHANGE_CIPHER_SPEC | ALERT => {
                        self.changed |= kind == CHANGE_CIPHER_SPEC;
                        self.skip = RECORD + length;
                        continue;
                    }
                    APPLICATION_DATA => return Ok(self.rest(first.early, RECORD + length)),
                    _ => return Err(NO_RECORD),
                }
            } else if kind != HANDSHAKE {
                return Err(NO_HELLO);
            }
            let Some(fragment) = fragment else { return Ok(Look::More) };
            if fragment.is_empty() {
                return Err(BAD_HELLO);
            }
            self.message.extend_from_slice(fragment);
            self.at += RECORD + length;
            let Some(hello) = whole(&self.message)? else { continue };
            let hello = parse(hello).ok_or(BAD_HELLO)?;
            let passed = std::mem::take(&mut self.at);
            self.message.clear();
            match &self.first {
                None => {
                    self.first = Some(hello.clone());
                    return Ok(Look::Hello(passed, hello));
                }
                Some(first) if (&first.name, first.encrypted) == (&hello.name, hello.encrypted) => {
                    return Ok(Look::Pass(passed));
                }
                Some(_) => return Err(TWO_HELLOS),
            }
        }
    }

    fn rest(&mut self, early: bool, record: usize) -> Look {
        if early {
            self.skip = record;
            Look::Pass(0)
        } else {
            Look::Open
        }
    }
}

/// Whether a handshake record behind the first hello begins another one. What is encrypted can begin with any byte.
fn may_be_hello(seen: &[u8], length: usize, changed: bool) -> Result<bool, &'static str> {
    if !changed {
        return Ok(seen.first() == Some(&CLIENT_HELLO));
    }
    if length < ENCRYPTED {
        return Err(BAD_HELLO);
    }
    Ok(matches!(seen, [CLIENT_HELLO, 0, _, _, 3, 3, ..]))
}

/// The body of a ClientHello once all of it is there, and nothing else.
fn whole(message: &[u8]) -> Result<Option<&[u8]>, &'static str> {
    if message.first() != Some(&CLIENT_HELLO) {
        return Err(NO_HELLO);
    }
    let Some([_, a, b, c]) = message.first_chunk::<4>() else { return Ok(None) };
    let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
    if length > HELLO || message.len() > 4 + length {
        return Err(BAD_HELLO);
    }
    Ok(message.get(4..4 + length))
}

/// Reads with bounds.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// What stands behind its length of so many bytes.
    fn vector(&mut self, bytes: usize) -> Option<Reader<'a>> {
        let length = self.number(bytes)?;
        Some(Reader(self.take(length)?))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Reads a ClientHello. Every length has to be right to the byte: another reader must not find something else.
fn parse(body: &[u8]) -> Option<Hello> {
    let mut reader = Reader(body);
    let version = reader.number(2)?;
    reader.take(32)?;
    let session = reader.vector(1)?.0.len();
    let suites = reader.vector(2)?.0.len();
    let methods = reader.vector(1)?.0.len();
    if version >> 8 != 3 || session > 32 || suites < 2 || suites % 2 != 0 || methods == 0 {
        return None;
    }
    let mut hello = Hello { name: None, encrypted: false, early: false };
    if reader.is_empty() {
        return Some(hello);
    }
    let mut extensions = reader.vector(2)?;
    let mut seen = Vec::new();
    while !extensions.is_empty() {
        let kind = u16::try_from(extensions.number(2)?).ok()?;
        let content = extensions.vector(2)?;
        if seen.contains(&kind) || seen.len() > 256 {
            return None;
        }
        seen.push(kind);
        match kind {
            SERVER_NAME => hello.name = server_name(content)?,
            EARLY_DATA => hello.early = true,
            ENCRYPTED_HELLO | ENCRYPTED_NAME => hello.encrypted = true,
            _ => {}
        }
    }
    reader.is_empty().then_some(hello)
}

/// The one name of a list. An address in its place is no name (RFC 6066).
fn server_name(mut content: Reader<'_>) -> Option<Option<String>> {
    let mut list = content.vector(2)?;
    let kind = list.number(1)?;
    let name = list.vector(2)?.0;
    if kind != 0 || !list.is_empty() || !content.is_empty() {
        return None;
    }
    let name = super::host_name(name)?;
    Some(name.parse::<std::net::IpAddr>().is_err().then_some(name))
}

/// Hellos for tests.
#[cfg(test)]
pub(super) mod hellos {
    /// Something behind its length of so many bytes.
    fn vector(bytes: usize, content: &[u8]) -> Vec<u8> {
        let length = content.len().to_be_bytes();
        [&length[length.len() - bytes..], content].concat()
    }

    pub(crate) fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &vector(2, content)].concat()
    }

    pub(crate) fn name(name: &[u8]) -> Vec<u8> {
        extension(0, &vector(2, &[&[0][..], &vector(2, name)].concat()))
    }

    /// A handshake message.
    pub(crate) fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
        let body = [
            &[3, 3][..],
            &[7; 32],
            &vector(1, &[9; 32]),
            &vector(2, &[0x13, 1, 0x13, 2]),
            &vector(1, &[0]),
            &vector(2, &extensions.concat()),
        ]
        .concat();
        [&[1][..], &vector(3, &body)].concat()
    }

    /// As records of so many bytes each.
    pub(crate) fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|part| [&[22, 3, 1][..], &vector(2, part)].concat()).collect()
    }

    /// A plain one for this server.
    pub(crate) fn plain(server: &str) -> Vec<u8> {
        records(&message(&[extension(10, &[0, 2, 0, 29]), name(server.as_bytes())]), 16384)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(bytes: &[u8]) -> Result<Look, &'static str> {
        Client::default().look(bytes)
    }

    fn named(bytes: &[u8]) -> Option<String> {
        match first(bytes) {
            Ok(Look::Hello(passed, hello)) => {
                assert_eq!(passed, bytes.len());
                hello.name
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_server_name_is_found_in_lower_case() {
        assert_eq!(named(&hellos::plain("WWW.Example.com.")).as_deref(), Some("www.example.com"));
        assert_eq!(named(&hellos::records(&hellos::message(&[]), 999)), None);
        assert_eq!(named(&hellos::plain("1.2.3.4")), None);
    }

    #[test]
    fn a_hello_in_pieces_is_put_together_and_nothing_goes_on_before() {
        let message = hellos::message(&[hellos::name(b"a.example")]);
        for size in [1, 2, 3, 50, 1000] {
            let bytes = hellos::records(&message, size);
            let mut client = Client::default();
            for end in 0..bytes.len() {
                assert_eq!(client.look(&bytes[..end]), Ok(Look::More), "records of {size}, {end} bytes");
            }
            assert!(matches!(client.look(&bytes), Ok(Look::Hello(..))), "records of {size}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let two = hellos::message(&[hellos::name(b"a.example"), hellos::name(b"b.example")]);
        let mut longer = hellos::message(&[hellos::name(b"a.example")]);
        longer.push(0);
        let list = hellos::extension(0, b"\0\x0e\0\0\x04a.ex\0\0\x04b.ex");
        let other_kind = hellos::extension(0, b"\0\x07\x01\0\x04a.ex");
        let empty = hellos::extension(0, b"\0\0");
        let nul = hellos::name(b"a.example\0.evil");
        for (what, message) in [
            ("two names", two),
            ("bytes behind the hello", longer),
            ("a list of names", hellos::message(&[list])),
            ("a name of another kind", hellos::message(&[other_kind])),
            ("an empty list", hellos::message(&[empty])),
            ("a NUL byte", hellos::message(&[nul])),
            ("an empty name", hellos::message(&[hellos::name(b"")])),
            ("another message", b"\x02\0\0\x01x".to_vec()),
        ] {
            assert!(first(&hellos::records(&message, 9999)).is_err(), "{what}");
        }
        let mut long = hellos::plain("a.example");
        long[3] = 0xff;
        assert!(first(&long).is_err());
        assert!(first(&[22, 3, 1, 0, 0]).is_err(), "an empty record");
        let alert = [&hellos::records(&hellos::message(&[])[..20], 20)[..], &[21, 3, 1, 0, 2, 1, 0]].concat();
        assert!(first(&alert).is_err(), "an alert within the hello");
    }

    #[test]
    fn a_hidden_name_is_seen_to_be_hidden() {
        for kind in [ENCRYPTED_HELLO, ENCRYPTED_NAME] {
            let extensions = [hellos::name(b"a.example"), hellos::extension(kind, &[0; 40])];
            let Ok(Look::Hello(_, hello)) = first(&hellos::records(&hellos::message(&extensions), 9999))
            else {
                panic!("no hello")
            };
            assert!(hello.encrypted);
        }
    }

    /// Everything that goes on of what a client says after its first hello, until it may say anything.
    fn after(hello: &[u8], rest: &[u8]) -> Result<bool, &'static str> {
        let mut client = Client::default();
        assert!(matches!(client.look(hello), Ok(Look::Hello(..))));
        let mut held = rest;
        loop {
            match client.look(held)? {
                Look::Open => return Ok(true),
                Look::More => return Ok(false),
                Look::Pass(some) => held = &held[some..],
                Look::Hello(..) => panic!("a second first hello"),
            }
        }
    }

    #[test]
    fn a_second_hello_is_for_the_same_server() {
        let (same, other) = (hellos::plain("a.example"), hellos::plain("b.example"));
        let change = [20, 3, 3, 0, 1, 1];
        let data = [&[23, 3, 3, 0, 30][..], &[1; 30]].concat();
        assert_eq!(after(&same, &[&same[..], &data].concat()), Ok(true));
        for before in [&[][..], &change] {
            assert_eq!(after(&same, &[before, &same, &data].concat()), Ok(true));
            assert_eq!(after(&same, &[before, &other].concat()), Err(TWO_HELLOS));
            let pieces = hellos::records(&hellos::message(&[hellos::name(b"b.example")]), 30);
            assert!(after(&same, &[before, &pieces].concat()).is_err());
            let tiny = hellos::records(&hellos::message(&[hellos::name(b"b.example")]), 1);
            assert!(after(&same, &[before, &tiny].concat()).is_err());
        }
        // Early data does not end the watch.
        let early = hellos::message(&[hellos::name(b"a.example"), hellos::extension(EARLY_DATA, &[])]);
        let early = hellos::records(&early, 9999);
        assert_eq!(after(&early, &[&data[..], &data, &other].concat()), Err(TWO_HELLOS));
    }

    #[test]
    fn the_rest_of_an_older_handshake_opens_the_gate() {
        let hello = hellos::plain("a.example");
        let key_exchange = [22, 3, 3, 0, 6, 16, 0, 0, 2, 1, 2];
        assert_eq!(after(&hello, &key_exchange), Ok(true));
        // A resumed session: what follows is encrypted, and may begin with anything.
        let finished = [&[20, 3, 3, 0, 1, 1][..], &[22, 3, 3, 0, 40, 1], &[200; 39]].concat();
        assert_eq!(after(&hello, &finished), Ok(true));
    }
}
