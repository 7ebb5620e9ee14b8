//! The boot channel: length-prefixed [`BootReport`] messages from the guest, after its hello.
//!
//! Each message is its length as a 32-bit big-endian number, then the encoded message. A length above
//! [`limits::BOOT_REPORT`] ends the conversation before anything is allocated.

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::limits;
use crate::v1::BootReport;

/// Why a boot report could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// The connection failed or ended in the middle of a report.
    #[error("the boot channel failed")]
    Io(#[from] std::io::Error),
    /// A report is larger than allowed.
    #[error("a boot report of {0} bytes is larger than the {max} allowed", max = limits::BOOT_REPORT)]
    TooLarge(usize),
    /// The bytes are no boot report.
    #[error("a boot report does not decode")]
    Decode(#[from] prost::DecodeError),
}

/// Writes one report.
///
/// # Errors
/// When it is too large or the connection fails.
pub async fn send<S: AsyncWrite + Unpin>(stream: &mut S, report: &BootReport) -> Result<(), BootError> {
    let body = report.encode_to_vec();
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= limits::BOOT_REPORT);
    let length = length.ok_or(BootError::TooLarge(body.len()))?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(&body);
    stream.write_all(&frame).await?;
    stream.flush().await?;
    Ok(())
}

/// Reads one report; `None` at a clean end of the stream.
///
/// # Errors
/// When the report is too large, does not decode, or the connection fails in its middle.
pub async fn receive<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<BootReport>, BootError> {
    let mut length = [0; 4];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > limits::BOOT_REPORT {
        return Err(BootError::TooLarge(length));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(BootReport::decode(body.as_slice())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Ready, boot_report::Report};

    #[tokio::test]
    async fn reports_arrive_in_order_and_the_end_is_an_end() {
        let reports = [
            BootReport { report: Some(Report::Step("mount-base".into())) },
            BootReport { report: Some(Report::Ready(Ready { since_kernel_nanos: 7 })) },
        ];
        let mut wire = Vec::new();
        for report in &reports {
            send(&mut wire, report).await.unwrap();
        }
        let mut wire = wire.as_slice();
        for report in reports {
            assert_eq!(receive(&mut wire).await.unwrap(), Some(report));
        }
        assert_eq!(receive(&mut wire).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_length_of_four_gigabytes_is_refused_before_it_is_allocated() {
        let mut wire: &[u8] = &[0xff, 0xff, 0xff, 0xff, 0];
        assert!(matches!(receive(&mut wire).await, Err(BootError::TooLarge(_))));
    }

    #[tokio::test]
    async fn a_report_cut_in_its_middle_is_an_error() {
        let mut wire = Vec::new();
        send(&mut wire, &BootReport { report: Some(Report::Step("init".into())) }).await.unwrap();
        for end in 1..wire.len() {
            assert!(matches!(receive(&mut &wire[..end]).await, Err(BootError::Io(_))), "{end} bytes");
        }
    }
}
