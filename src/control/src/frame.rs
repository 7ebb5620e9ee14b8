//! One JSON document after the other on a byte stream, each behind its length as a 32-bit big-endian number.

use std::io::Read;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The largest document, in bytes.
pub const LIMIT: usize = 4 << 20;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The stream failed or ended in the middle of a frame.
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    /// A frame is larger than [`LIMIT`].
    #[error("a frame of {0} bytes is larger than the {LIMIT} allowed")]
    TooLarge(usize),
    /// The document is not what was expected.
    #[error("a frame does not decode")]
    Json(#[from] serde_json::Error),
}

impl FrameError {
    /// The other end has gone. A connection that nobody had accepted when its listener was closed ends so, too.
    pub fn is_hang_up(&self) -> bool {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
        matches!(self, Self::Io(error) if matches!(error.kind(), BrokenPipe | ConnectionReset))
    }
}

/// The bytes of one frame.
///
/// # Errors
/// When the document is too large or cannot be written as JSON.
pub fn encode<T: Serialize>(document: &T) -> Result<Vec<u8>, FrameError> {
    let body = serde_json::to_vec(document)?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= LIMIT);
    let mut out = length.ok_or(FrameError::TooLarge(body.len()))?.to_be_bytes().to_vec();
    out.extend_from_slice(&body);
    Ok(out)
}

/// Writes one frame.
///
/// # Errors
/// When the document is too large or the stream fails.
pub async fn send<T: Serialize, S: AsyncWrite + Unpin>(
    stream: &mut S,
    document: &T,
) -> Result<(), FrameError> {
    stream.write_all(&encode(document)?).await?;
    stream.flush().await?;
    Ok(())
}

/// Reads one frame, blocking.
///
/// # Errors
/// When the frame is too large, does not decode, or the stream fails or ends.
pub fn read<T: DeserializeOwned>(stream: &mut impl Read) -> Result<T, FrameError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > LIMIT {
        return Err(FrameError::TooLarge(length));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

/// Reads one frame; `None` at a clean end of the stream. Not cancel safe: a cancelled read may have taken part of a
/// frame.
///
/// # Errors
/// When the frame is too large, does not decode, or the stream fails in its middle.
pub async fn receive<T: DeserializeOwned, S: AsyncRead + Unpin>(
    stream: &mut S,
) -> Result<Option<T>, FrameError> {
    let mut length = [0; 4];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > LIMIT {
        return Err(FrameError::TooLarge(length));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(serde_json::from_slice(&body)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_document_comes_back_and_the_end_is_an_end() {
        let mut wire = Vec::new();
        send(&mut wire, &("a", 7)).await.unwrap();
        let mut wire = wire.as_slice();
        assert_eq!(receive(&mut wire).await.unwrap(), Some(("a".to_owned(), 7)));
        assert_eq!(receive::<u8, _>(&mut wire).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_huge_length_is_refused_before_it_is_allocated() {
        let mut wire: &[u8] = &[0xff; 8];
        assert!(matches!(receive::<u8, _>(&mut wire).await, Err(FrameError::TooLarge(_))));
    }

    #[tokio::test]
    async fn a_truncated_frame_is_an_error_at_every_length() {
        let whole = encode(&"some text").unwrap();
        for end in 1..whole.len() {
            assert!(receive::<String, _>(&mut &whole[..end]).await.is_err(), "{end} bytes");
        }
    }
}
