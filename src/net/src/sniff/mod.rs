//! What a connection says about its destination, found in the bytes of its client.

use crate::policy::Stated;

/// The most bytes of a client that wait for a judgement.
pub const HELD: usize = 64 << 10;

/// Judges what a connection states; an error is why it is refused.
pub type Judge<'a> = &'a mut dyn FnMut(&Stated) -> Result<(), &'static str>;

/// Stands between a client and its server, and lets through what was judged.
#[derive(Debug, Default)]
pub struct Gate {}

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
        let _ = (held, end, judge);
        todo!()
    }

    /// The server has said this. Its bytes are never held.
    ///
    /// # Errors
    ///
    /// As for the client.
    pub fn server(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let _ = bytes;
        todo!()
    }

    /// Whether everything passes from now on, without a look.
    pub fn is_open(&self) -> bool {
        todo!()
    }
}
