//! `boxlite logs`

use std::io::Write;
use std::process::ExitCode;

use boxlite::{BoxliteRuntime, LogChunk, LogOptions, LogSource};

use super::find;
use crate::args::LogsArgs;
use crate::exit::Failure;
use crate::time;

pub(crate) async fn run(runtime: &BoxliteRuntime, args: LogsArgs) -> Result<ExitCode, Failure> {
    let tail = match args.tail.as_str() {
        "all" => None,
        text => Some(text.parse::<u64>().map_err(|_| {
            Failure::Told(format!("`{}` is no number of lines: use one, or all", text.escape_debug()))
        })?),
    };
    let target = find(runtime, &args.target).await?;
    if args.console {
        std::io::stdout().lock().write_all(&target.console().await?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let options = LogOptions { follow: args.follow, since: args.since, until: args.until, tail };
    let mut log = target.logs(options).await?;
    let mut lines = Lines::default();
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
    while let Some(chunk) = log.next().await? {
        let bytes = if args.timestamps { lines.stamp(&chunk) } else { chunk.bytes.to_vec() };
        // As when it was written: what went to standard error goes there.
        match chunk.source {
            LogSource::Stdout => out.write_all(&bytes)?,
            LogSource::Stderr => err.write_all(&bytes)?,
        }
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Which of the two streams is in the middle of a line.
#[derive(Debug, Default)]
struct Lines {
    inside: [bool; 2],
}

impl Lines {
    /// Begins each line with the time at which its first byte arrived.
    fn stamp(&mut self, chunk: &LogChunk) -> Vec<u8> {
        let inside = &mut self.inside[chunk.source as usize];
        let stamp = time::shown(chunk.time);
        let mut out = Vec::with_capacity(chunk.bytes.len() + stamp.len());
        for line in chunk.bytes.split_inclusive(|byte| *byte == b'\n') {
            if !*inside {
                out.extend_from_slice(stamp.as_bytes());
                out.push(b' ');
            }
            out.extend_from_slice(line);
            *inside = !line.ends_with(b"\n");
        }
        out
    }
}
