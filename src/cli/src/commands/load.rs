//! `boxlite load`

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use boxlite::BoxliteRuntime;

use crate::args::LoadArgs;
use crate::exit::Failure;
use crate::output;
use crate::progress::Layers;

pub(crate) async fn run(runtime: &BoxliteRuntime, args: LoadArgs) -> Result<ExitCode, Failure> {
    let spooled;
    let path = match args.input.or(args.path).filter(|path| path.as_os_str() != "-") {
        Some(path) => path,
        None => {
            spooled = spool(runtime.home_dir().join("tmp")).await?;
            PathBuf::from(format!("/proc/self/fd/{}", spooled.as_raw_fd()))
        }
    };
    // An archive is read in seconds: a log gets no lines of it.
    let layers = Layers::new("archive", args.quiet || !io::stderr().is_terminal());
    let loaded = runtime.images().load(path, layers.teller()).await;
    layers.end();
    for image in loaded? {
        let names =
            if image.references.is_empty() { vec![image.digest.clone()] } else { image.references.clone() };
        for name in names {
            output::line(&if args.quiet { name } else { format!("Loaded image: {name}") })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Standard input as a file, since an archive is not read in order. The file has no name, so that nothing is left of it
/// however this process ends.
async fn spool(folder: PathBuf) -> Result<File, Failure> {
    if io::stdin().is_terminal() {
        let text =
            "no archive was given\nhint: `boxlite load -i FILE`, or pass the archive through standard input";
        return Err(Failure::Told(text.into()));
    }
    let copy = move || {
        let mut file = tempfile::tempfile_in(folder)?;
        io::copy(&mut io::stdin().lock(), &mut file)?;
        file.flush()?;
        Ok(file)
    };
    let copied: io::Result<_> = tokio::task::spawn_blocking(copy).await.map_err(io::Error::other)?;
    copied.map_err(|error| Failure::Told(format!("cannot read the archive from standard input: {error}")))
}
