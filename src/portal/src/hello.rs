//! The first bytes of every connection.
//!
//! The encoding is fixed for ever: a peer of any age can read the version of a peer of any other age, and say which of
//! the two has to be updated.
//!
//! ```text
//!   offset  size  meaning
//!   0       4     "BXLP"
//!   4       2     protocol version, big-endian
//!   6       2     oldest version understood, big-endian
//!   8       1     length of the build name, at most 64
//!   9       n     build name, printable ASCII
//! ```

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{limits, version};

const MAGIC: [u8; 4] = *b"BXLP";
const HEADER: usize = 9;

/// Who a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The protocol version that the peer speaks; one of [`version`].
    pub version: u16,
    /// The oldest version that it understands.
    pub oldest: u16,
    /// What it was built from, such as `boxlite-guest 0.1.0`. Printable ASCII.
    pub build: String,
}

/// Why no conversation came about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// The connection failed or ended in the middle.
    #[error("the connection failed during the hello")]
    Io(#[from] std::io::Error),
    /// The peer said nothing in time.
    #[error("no hello arrived within {} s", limits::HELLO_TIMEOUT.as_secs())]
    Timeout,
    /// The peer speaks something else.
    #[error("the peer does not speak the portal protocol")]
    NotAPortal,
    /// The versions do not overlap.
    #[error("the {older} is too old: this side speaks portal version {ours}, `{build}` speaks {theirs}")]
    Incompatible {
        /// The side to update: `peer` or `local build`.
        older: &'static str,
        /// Our version.
        ours: u16,
        /// The peer's version.
        theirs: u16,
        /// The peer's build.
        build: String,
    },
}

impl Hello {
    /// The hello of this build; `build` is cut to 64 bytes of printable ASCII.
    pub fn new(build: &str) -> Self {
        let build = build.chars().filter(|c| (' '..='~').contains(c)).take(limits::BUILD).collect();
        Self { version: version::CURRENT, oldest: version::OLDEST, build }
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let build = &self.build.as_bytes()[..self.build.len().min(limits::BUILD)];
        let mut out = Vec::with_capacity(HEADER + build.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.version.to_be_bytes());
        out.extend_from_slice(&self.oldest.to_be_bytes());
        out.push(u8::try_from(build.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(build);
        out
    }

    /// Whether the two can talk.
    fn check(self) -> Result<Self, HelloError> {
        if self.version < version::OLDEST {
            return Err(self.incompatible("peer"));
        }
        if version::CURRENT < self.oldest {
            return Err(self.incompatible("local build"));
        }
        Ok(self)
    }

    fn incompatible(self, older: &'static str) -> HelloError {
        HelloError::Incompatible { older, ours: version::CURRENT, theirs: self.version, build: self.build }
    }
}

/// Reads the peer's hello.
///
/// # Errors
/// When the peer is silent, speaks something else, or has a version without overlap.
pub async fn receive<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Hello, HelloError> {
    let read = async {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header).await?;
        let [m0, m1, m2, m3, v0, v1, o0, o1, length] = header;
        let length = usize::from(length);
        if [m0, m1, m2, m3] != MAGIC || length > limits::BUILD {
            return Err(HelloError::NotAPortal);
        }
        let mut build = vec![0; length];
        stream.read_exact(&mut build).await?;
        if !build.iter().all(|b| (b' '..=b'~').contains(b)) {
            return Err(HelloError::NotAPortal);
        }
        let build = String::from_utf8(build).map_err(|_| HelloError::NotAPortal)?;
        Hello { version: u16::from_be_bytes([v0, v1]), oldest: u16::from_be_bytes([o0, o1]), build }.check()
    };
    tokio::time::timeout(limits::HELLO_TIMEOUT, read).await.map_err(|_| HelloError::Timeout)?
}

/// Sends a hello.
///
/// # Errors
/// When the connection fails.
pub async fn send<S: AsyncWrite + Unpin>(stream: &mut S, hello: &Hello) -> Result<(), HelloError> {
    stream.write_all(&hello.encode()).await?;
    stream.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Result<Hello, HelloError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut bytes = bytes;
        runtime.block_on(receive(&mut bytes))
    }

    #[test]
    fn the_encoding_is_fixed_for_ever() {
        let hello = Hello { version: 1, oldest: 1, build: "x 1".into() };
        assert_eq!(hello.encode(), b"BXLP\0\x01\0\x01\x03x 1");
    }

    #[test]
    fn a_hello_comes_back_as_it_was_sent() {
        let hello = Hello::new("boxlite-guest 0.1.0");
        assert_eq!(read(&hello.encode()).unwrap(), hello);
    }

    #[test]
    fn a_newer_peer_that_understands_us_is_accepted() {
        let newer = Hello { version: 900, oldest: version::CURRENT, build: "next".into() };
        assert_eq!(read(&newer.encode()).unwrap().version, 900);
    }

    #[test]
    fn a_peer_of_the_first_version_is_accepted_and_accepts_us() {
        let first = Hello { version: version::INITIAL, oldest: version::INITIAL, build: "first".into() };
        assert_eq!(read(&first.encode()).unwrap(), first);
        assert!(Hello::new("ours").oldest <= version::INITIAL, "the first version asks for no more");
    }

    #[test]
    fn the_error_names_the_side_to_update() {
        let newer = Hello { version: 900, oldest: 800, build: "next".into() };
        let error = read(&newer.encode()).unwrap_err().to_string();
        assert!(error.starts_with("the local build is too old"), "{error}");
        let older = Hello { version: 0, oldest: 0, build: "old".into() };
        let error = read(&older.encode()).unwrap_err().to_string();
        assert!(error.starts_with("the peer is too old"), "{error}");
    }

    #[test]
    fn a_truncated_hello_is_an_error_at_every_length() {
        let whole = Hello::new("boxlite 0.1.0").encode();
        for end in 0..whole.len() {
            assert!(matches!(read(&whole[..end]), Err(HelloError::Io(_))), "{end} bytes");
        }
    }

    #[test]
    fn a_build_name_with_control_characters_is_refused() {
        assert!(matches!(read(b"BXLP\0\x01\0\x01\x03\x1b[2"), Err(HelloError::NotAPortal)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_wait(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            // Any answer will do, as long as there is one.
            drop(read(&bytes));
        }
    }
}
