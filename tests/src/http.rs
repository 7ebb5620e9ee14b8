//! As much of HTTP/1.1 as the fault proxy and the tests of servers need: heads, and a call without a library.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// More than any head of these tests, and a bound on what a broken peer costs.
const LARGEST_HEAD: usize = 64 << 10;

/// How long a call of a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// The first line of a message and its header fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The first line, without its end.
    pub first: String,
    /// Names as they were sent, and values without the space around them.
    pub fields: Vec<(String, String)>,
}

impl Head {
    /// A head without fields.
    pub fn new(first: impl Into<String>) -> Self {
        Self { first: first.into(), fields: Vec::new() }
    }

    /// The next head of a connection, or `None` when it ended before one began.
    ///
    /// # Errors
    /// When the connection breaks, or what came is no head.
    pub fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut lines = Vec::new();
        let mut left = LARGEST_HEAD;
        loop {
            let mut line = Vec::new();
            let length = from.take(left as u64).read_until(b'\n', &mut line)?;
            left -= length;
            if !line.ends_with(b"\n") {
                return match (length, lines.is_empty()) {
                    (0, true) => Ok(None),
                    _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a head that does not end")),
                };
            }
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let mut lines = lines.into_iter();
        let first = lines.next().ok_or_else(|| io::Error::other("an empty head"))?;
        let field = |line: String| {
            let (name, value) =
                line.split_once(':').ok_or_else(|| io::Error::other("a field without a colon"))?;
            Ok((name.to_owned(), value.trim().to_owned()))
        };
        Ok(Some(Self { first, fields: lines.map(field).collect::<io::Result<_>>()? }))
    }

    /// This field's value, whatever the case of its name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }

    /// Removes a field.
    pub fn remove(&mut self, name: &str) {
        self.fields.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
    }

    /// Puts a field in the place of all that have its name.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.remove(name);
        self.fields.push((name.to_owned(), value.to_string()));
    }

    /// What `Content-Length` says.
    pub fn length(&self) -> Option<u64> {
        self.field("Content-Length")?.parse().ok()
    }

    /// The status of an answer; 0 when this is none.
    pub fn status(&self) -> u16 {
        self.first.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
    }

    /// Sends it.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut text = format!("{}\r\n", self.first);
        for (name, value) in &self.fields {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        to.write_all(text.as_bytes())
    }
}

/// An answer as it came, cut short or not.
#[derive(Debug)]
pub struct Answer {
    /// Its head.
    pub head: Head,
    /// What came behind the head until the server closed the connection. A chunked body is not taken apart.
    pub body: Vec<u8>,
    /// How the connection broke, if it did.
    pub broken: Option<io::ErrorKind>,
}

/// One GET on a connection of its own.
///
/// # Errors
/// When no head comes back.
pub fn get(address: &str, target: &str, fields: &[(&str, &str)]) -> io::Result<Answer> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let mut request = Head::new(format!("GET {target} HTTP/1.1"));
    request.set("Host", address);
    request.set("Connection", "close");
    fields.iter().for_each(|(name, value)| request.set(name, value));
    request.write(&mut connection)?;
    let mut reader = BufReader::new(connection);
    let head = Head::read(&mut reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut body = Vec::new();
    let broken = reader.read_to_end(&mut body).err().map(|error| error.kind());
    Ok(Answer { head, body, broken })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        let mut head = Head::new("GET /v2/ HTTP/1.1");
        head.set("Range", "bytes=5-");
        head.set("Content-Length", 7);
        let mut bytes = Vec::new();
        head.write(&mut bytes).unwrap();
        bytes.extend(b"body");
        let mut reader = bytes.as_slice();
        assert_eq!(Head::read(&mut reader).unwrap().unwrap(), head);
        assert_eq!(reader, b"body");
        assert_eq!((head.field("range"), head.length(), head.status()), (Some("bytes=5-"), Some(7), 0));
        assert_eq!(Head::new("HTTP/1.1 206 Partial Content").status(), 206);
    }

    #[test]
    fn an_end_before_a_head_is_none_and_one_within_it_is_an_error() {
        assert!(Head::read(&mut b"".as_slice()).unwrap().is_none());
        for broken in [
            "GET / HTTP/1.1",
            "GET / HTTP/1.1\r\n",
            "GET / HTTP/1.1\r\nHost",
            "\r\n",
            "x\r\nno colon\r\n\r\n",
        ] {
            assert!(Head::read(&mut broken.as_bytes()).is_err(), "{broken:?}");
        }
        let endless = vec![b'x'; LARGEST_HEAD + 1];
        assert!(Head::read(&mut endless.as_slice()).is_err());
    }
}
