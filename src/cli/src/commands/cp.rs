//! `boxlite cp`

use std::path::PathBuf;
use std::process::ExitCode;

use boxlite::{BoxliteRuntime, CopyOptions, CopySummary};

use super::find;
use crate::args::CpArgs;
use crate::exit::{self, Failure};
use crate::progress::Copied;

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Host(PathBuf),
    /// Standard input or output, as a tar archive.
    Stream,
    Box {
        target: String,
        path: String,
    },
}

impl End {
    /// As Docker reads it: a path says so by its first character, `BOX:PATH` is in a box, anything else is on the host.
    fn parse(text: &str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        match text.split_once(':') {
            Some((target, path)) if !text.starts_with(['/', '.']) && !target.is_empty() => {
                Self::Box { target: target.to_owned(), path: path.to_owned() }
            }
            _ => Self::Host(text.into()),
        }
    }
}

pub(crate) async fn run(runtime: &BoxliteRuntime, args: CpArgs) -> Result<ExitCode, Failure> {
    let mut options = CopyOptions::default();
    options.follow_symlinks = args.follow_link;
    options.overwrite = !args.no_overwrite;
    options.keep_owner = args.archive;
    options.owner = args.chown;
    let shown = Copied::new(args.quiet);
    let progress = shown.teller();
    let copied = match (End::parse(&args.source), End::parse(&args.dest)) {
        (End::Host(from), End::Box { target, path }) => {
            find(runtime, &target).await?.copy_into_with(from, &path, options, progress).await
        }
        (End::Box { target, path }, End::Host(to)) => {
            find(runtime, &target).await?.copy_out_with(&path, to, options, progress).await
        }
        (End::Stream, End::Box { target, path }) => {
            find(runtime, &target).await?.copy_in_stream(&path, tokio::io::stdin(), options).await
        }
        (End::Box { target, path }, End::Stream) => {
            find(runtime, &target).await?.copy_out_stream(&path, tokio::io::stdout(), options).await
        }
        (End::Box { .. }, End::Box { .. }) => {
            let text = "between two boxes go two copies, or `boxlite cp A:PATH - | boxlite cp - B:FOLDER`";
            return Err(Failure::Told(text.into()));
        }
        _ => {
            let text = "one of the two must be in a box: write BOX:PATH";
            return Err(Failure::Told(text.into()));
        }
    };
    shown.end();
    let copied = copied?;
    tell_what_is_missing(&copied);
    if !args.quiet {
        let CopySummary { entries, bytes, .. } = copied;
        let files = if entries == 1 { "1 file".to_owned() } else { format!("{entries} files") };
        exit::message(&format!("copied {files}, {}", crate::output::bytes(bytes)));
    }
    Ok(ExitCode::SUCCESS)
}

fn tell_what_is_missing(copied: &CopySummary) {
    for (count, what) in [
        (copied.skipped_sockets, "sockets were left out: no archive carries them"),
        (copied.skipped_devices, "device nodes were left out"),
        (copied.skipped_xattrs, "extended attributes were left out: the other side does not take them"),
        (copied.changed, "files changed while they were read"),
    ] {
        if count > 0 {
            exit::message(&format!("{count} {what}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_on_the_host_in_a_box_or_a_stream() {
        let inside = |target: &str, path: &str| End::Box { target: target.into(), path: path.into() };
        assert_eq!(End::parse("web:/etc/hosts"), inside("web", "/etc/hosts"));
        assert_eq!(End::parse("web:a:b"), inside("web", "a:b"));
        assert_eq!(End::parse("web:"), inside("web", ""));
        assert_eq!(End::parse("-"), End::Stream);
        for host in ["/a:b", "./a:b", "../x", "file", ":x"] {
            assert_eq!(End::parse(host), End::Host(host.into()), "{host}");
        }
    }
}
