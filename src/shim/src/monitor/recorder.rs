//! The main command's output, written to the box's log.
//!
//! The recorder is a reader beside those that the output is for. It keeps up with the guest as long as the host's disk does,
//! and a disk that fails stops the log, never the box: what comes is read on and let go.

use std::path::PathBuf;

use boxlite_control::{OutputLog, OutputRecord, OutputStream};
use boxlite_portal::MAIN;
use boxlite_portal::client::Portal;
use boxlite_portal::v1;
use boxlite_portal::v1::attach_response::Event;
use tokio::task::JoinHandle;

use super::unix_nanos;
use crate::text;

/// Begins to record, and ends with the output or with the connection. Begun before the main command is started, it misses
/// nothing.
pub(super) fn start(portal: &Portal, path: PathBuf) -> JoinHandle<()> {
    let portal = portal.clone();
    tokio::spawn(async move {
        let request =
            v1::AttachRequest { execution_id: MAIN.to_owned(), observe: true, ..Default::default() };
        let mut stream = match portal.execution().attach(request).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => {
                // A main command that did not start has written nothing.
                tracing::debug!(
                    message = text::escape(status.message().as_bytes(), 200),
                    "nothing to record"
                );
                return;
            }
        };
        let mut log = match OutputLog::open(&path) {
            Ok(log) => Some(log),
            Err(error) => {
                tracing::error!(%error, "the main command's output is not kept");
                None
            }
        };
        // Dropping the stream tells the agent that all of it has arrived.
        while let Ok(Some(v1::AttachResponse { event: Some(Event::Output(output)) })) = stream.message().await
        {
            let stream = match output.stream() {
                v1::StreamKind::Stderr => OutputStream::Stderr,
                v1::StreamKind::Stdout | v1::StreamKind::Unspecified => OutputStream::Stdout,
            };
            let record = OutputRecord { stream, time_unix_nanos: unix_nanos(), bytes: output.data.into() };
            if let Some(open) = &mut log
                && let Err(error) = open.write(&record)
            {
                tracing::error!(%error, "the main command's output is not kept any more");
                log = None;
            }
        }
    })
}
