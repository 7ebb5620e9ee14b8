//! `boxlite save`

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use boxlite::BoxliteRuntime;

use crate::args::SaveArgs;
use crate::exit::Failure;

pub(crate) async fn run(runtime: &BoxliteRuntime, args: SaveArgs) -> Result<ExitCode, Failure> {
    let images = runtime.images();
    match args.output.filter(|path| path.as_os_str() != "-") {
        Some(path) if fs::metadata(&path).is_ok_and(|meta| !meta.is_file()) => {
            // A device or a pipe is written to, not replaced.
            let unwritable =
                |error: io::Error| Failure::Told(format!("cannot write {}: {error}", path.display()));
            let out = fs::OpenOptions::new().write(true).open(&path).map_err(unwritable)?;
            let out = images.save(&args.references, io::BufWriter::with_capacity(1 << 20, out)).await?;
            out.into_inner().map_err(|error| unwritable(error.into_error()))?;
        }
        Some(path) => {
            // It gets its name once it is complete; a link keeps leading to it.
            let path = fs::canonicalize(&path).unwrap_or(path);
            let folder =
                path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let unwritable =
                |error: io::Error| Failure::Told(format!("cannot write {}: {error}", path.display()));
            let file = tempfile::Builder::new()
                .prefix(".boxlite-save-")
                .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
                .tempfile_in(folder)
                .map_err(unwritable)?;
            let out = io::BufWriter::with_capacity(1 << 20, file);
            let mut out = images.save(&args.references, out).await?;
            out.flush().map_err(unwritable)?;
            let file = out.into_inner().map_err(|error| unwritable(error.into_error()))?;
            file.persist(&path).map_err(|error| unwritable(error.error))?;
        }
        None if io::stdout().is_terminal() => {
            let text = "an archive is nothing for a terminal\nhint: `boxlite save -o FILE`, or send the output somewhere";
            return Err(Failure::Told(text.into()));
        }
        None => {
            let out = io::BufWriter::with_capacity(1 << 20, io::stdout());
            images.save(&args.references, out).await?.flush()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
