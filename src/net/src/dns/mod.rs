//! The resolver at the gateway.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::rules::Rules;

pub(crate) mod stream;

/// A question of the guest, as it came.
#[derive(Debug)]
pub struct Question {
    /// The asker's own mark, which the answer carries.
    pub id: u64,
    /// The DNS message (RFC 1035), without a length in front.
    pub message: Vec<u8>,
    /// It came over TCP: an answer may be as long as 65535 bytes.
    pub stream: bool,
}

/// The answer to a question.
#[derive(Debug)]
pub struct Answer {
    /// The mark of the question.
    pub id: u64,
    /// The DNS message, without a length in front. Empty: there is no answer, not even one that says so.
    pub message: Vec<u8>,
}

/// Called for each name that the policy refuses, with the name and why: from the resolver's thread, and must not block.
pub type OnDenied = Box<dyn Fn(&str, &'static str) + Send + Sync>;

/// A resolver on a thread of its own, which ends when this is dropped.
#[derive(Debug)]
pub struct Resolver {}

impl Resolver {
    /// Starts the thread. `servers` are asked; when there are none, those of the host's `/etc/resolv.conf`.
    ///
    /// # Errors
    ///
    /// When there can be no thread or no descriptor.
    pub fn start(servers: &[SocketAddr], rules: Arc<Rules>, on_denied: OnDenied) -> io::Result<Self> {
        let _ = (servers, rules, on_denied);
        todo!()
    }

    /// Asks. `false`: too many questions are under way, and this one is dropped.
    pub fn ask(&self, question: Question) -> bool {
        let _ = question;
        todo!()
    }

    /// The next answer that is there.
    pub fn take(&self) -> Option<Answer> {
        todo!()
    }
}

impl AsFd for Resolver {
    /// Readable (level) while there may be answers to take.
    fn as_fd(&self) -> BorrowedFd<'_> {
        todo!()
    }
}
