//! A blob as one run of bytes, over as many connections as it takes.
//!
//! A lost connection is made anew from where it was lost, first with a range; where ranges do not work, from the
//! beginning, and what is known already is read past. Every connection is a try, and tries are counted anew only behind
//! [`Timeouts::progress`](super::retry::Timeouts::progress) bytes: whatever the other side does, there are at most `tries`
//! connections for each such step, and each brings a minimum of bytes in its time or is given up.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::CONTENT_RANGE;

use super::error::{Failure, RegistryError, RegistryErrorKind, Retry, shown};
use super::retry::{Tries, random};
use super::session::Session;
use super::transport::Response;
use super::wire;
use crate::image::Digest;

/// A download. The bytes have not been verified: their reader does that.
pub(crate) struct BlobStream {
    /// Those that are left, the one in use first. The last is the registry itself.
    sessions: std::vec::IntoIter<Arc<Session>>,
    session: Arc<Session>,
    path: String,
    action: String,
    size: u64,
    /// The next byte that is wanted.
    position: u64,
    body: Option<Body>,
    /// Whether ranges have worked so far, or were not tried.
    ranges: bool,
    tries: Tries,
}

impl std::fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobStream")
            .field("path", &self.path)
            .field("position", &self.position)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

struct Body {
    response: Response,
    /// Bytes to read past before those that are wanted.
    skip: u64,
    /// Whether HTTP itself says where the body ends: it then ends where the blob does.
    is_sized: bool,
}

impl BlobStream {
    /// Connects, so that what does not exist is known at once. `sessions` is not empty.
    pub(super) async fn open(
        sessions: Vec<Arc<Session>>,
        repository: &str,
        digest: &Digest,
        size: u64,
        from: u64,
        action: String,
    ) -> Result<Self, RegistryError> {
        let mut sessions = sessions.into_iter();
        let Some(session) = sessions.next() else {
            return Err(RegistryError::settings("there is no registry to ask"));
        };
        let path = format!("{repository}/blobs/{digest}");
        let tries = Tries::new(session.transport().timeouts(), session.most_tries(), from);
        let mut stream =
            Self { sessions, session, path, action, size, position: from, body: None, ranges: true, tries };
        if from > size {
            let failure = Failure::protocol(format!("byte {from} of a blob of {size} bytes was asked for"));
            return Err(stream.error(failure));
        }
        while stream.body.is_none() && stream.position < size {
            stream.connect().await?;
        }
        Ok(stream)
    }

    /// The next bytes, never none of them; `None` behind the last. Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let Some(body) = &mut self.body else {
                if self.position == self.size {
                    return Ok(None);
                }
                self.connect().await?;
                continue;
            };
            if self.position == self.size {
                let over = body.is_sized || !matches!(body.response.chunk().await, Ok(Some(_)));
                self.body = None;
                if over {
                    return Ok(None);
                }
                self.failed(self.too_much()).await?;
                continue;
            }
            let failure = match body.response.chunk().await {
                Ok(Some(mut bytes)) => {
                    let skipped = body.skip.min(bytes.len() as u64);
                    body.skip -= skipped;
                    let skipped = usize::try_from(skipped).unwrap_or(bytes.len());
                    let bytes = bytes.split_off(skipped);
                    if bytes.is_empty() {
                        continue;
                    }
                    if bytes.len() as u64 <= self.size - self.position {
                        self.position += bytes.len() as u64;
                        return Ok(Some(bytes));
                    }
                    self.too_much()
                }
                Ok(None) => {
                    let message =
                        format!("{} ended the blob at byte {} of {}", self.at(), self.position, self.size);
                    Failure::new(RegistryErrorKind::Unreachable, message).retry(Retry::Soon)
                }
                Err(failure) => failure,
            };
            self.body = None;
            self.failed(failure).await?;
        }
    }

    fn at(&self) -> String {
        self.session.host().to_string()
    }

    fn too_much(&self) -> Failure {
        Failure::protocol(format!("{} sends more than the {} bytes of the blob", self.at(), self.size))
    }

    fn error(&self, failure: Failure) -> RegistryError {
        RegistryError::new(&self.action, Some(self.session.host()), failure)
    }

    /// Waits before the next try, or goes on to the next session; fails where there is none.
    async fn failed(&mut self, failure: Failure) -> Result<(), RegistryError> {
        let timeouts = *self.session.transport().timeouts();
        let most = self.session.most_tries();
        if let Some(delay) = self.tries.failed(&timeouts, most, self.position, &failure, random()) {
            let (registry, position) = (self.session.host(), self.position);
            tracing::debug!(%registry, position, error = %failure, ?delay, "a blob goes on");
            tokio::time::sleep(delay).await;
            return Ok(());
        }
        let Some(next) = self.sessions.next() else { return Err(self.error(failure)) };
        self.session.failed(&failure);
        self.session = next;
        self.ranges = true;
        self.tries = Tries::new(&timeouts, self.session.most_tries(), self.position);
        Ok(())
    }

    /// One connection. Afterwards there is a body, or a failure has been counted.
    async fn connect(&mut self) -> Result<(), RegistryError> {
        match self.attempt().await {
            Ok(body) => {
                self.body = Some(body);
                Ok(())
            }
            Err(failure) => self.failed(failure).await,
        }
    }

    async fn attempt(&mut self) -> Result<Body, Failure> {
        let range = (self.ranges && self.position > 0).then_some(self.position);
        let response = self.session.request(&self.path, None, range).await?;
        let again = |message: String| Failure::protocol(message).retry(Retry::Soon);
        let at = self.at();
        let skip = match (response.status().as_u16(), range) {
            (200, _) => self.position,
            (206, Some(from)) => {
                let wanted = format!("bytes {from}-{}/{}", self.size - 1, self.size);
                let header =
                    response.header(&CONTENT_RANGE).map(|value| value.as_bytes()).unwrap_or_default();
                if !header.eq_ignore_ascii_case(wanted.as_bytes()) {
                    self.ranges = false;
                    let header = shown(&String::from_utf8_lossy(header));
                    return Err(again(format!("{at} sends the range `{header}` instead of `{wanted}`")));
                }
                0
            }
            (206, None) => return Err(again(format!("{at} sends a part of the blob, unasked"))),
            (416, Some(from)) => {
                self.ranges = false;
                return Err(again(format!("{at} has no byte {from} of the blob")));
            }
            _ => return Err(wire::failure(&at, response).await),
        };
        let rest = self.size - (self.position - skip);
        if let Some(length) = response.content_length().filter(|length| *length != rest) {
            return Err(Failure::protocol(format!(
                "{at} has {length} bytes of the blob where {rest} are expected"
            )));
        }
        Ok(Body { is_sized: response.content_length().is_some(), response, skip })
    }
}
