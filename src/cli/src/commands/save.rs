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
        Some(path) => {
            // It gets its name once it is complete.
            let folder =
                path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let unwritable =
                |error: io::Error| Failure::Told(format!("cannot write {}: {error}", path.display()));
            let file =
                tempfile::Builder::new().prefix(".boxlite-save-").tempfile_in(folder).map_err(unwritable)?;
            let out = io::BufWriter::with_capacity(1 << 20, file);
            let mut out = images.save(&args.references, out).await?;
            out.flush().map_err(unwritable)?;
            let file = out.into_inner().map_err(|error| unwritable(error.into_error()))?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            fs::set_permissions(file.path(), mode).map_err(unwritable)?;
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
