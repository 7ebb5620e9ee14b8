//! Where the other programs of an installation are.

use std::env;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result, storage};
use crate::options::{BoxliteOptions, env_vars};

/// The shim and the agent.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) shim: PathBuf,
    pub(crate) guest: PathBuf,
}

impl Programs {
    /// Finds both. An explicit path is taken as it is and must exist.
    pub(crate) fn find(options: &BoxliteOptions) -> Result<Self> {
        let beside = beside_this_program();
        let shim = find("boxlite-shim", env_vars::SHIM, options.shim.as_deref(), &beside, true)?;
        let mut near_shim: Vec<PathBuf> = shim.parent().map(Path::to_owned).into_iter().collect();
        near_shim.extend(beside);
        let guest = find("boxlite-guest", env_vars::GUEST, options.guest.as_deref(), &near_shim, false)?;
        Ok(Self { shim, guest })
    }
}

/// The folder of the running program, and the one above for test programs, which cargo puts into `deps`.
fn beside_this_program() -> Vec<PathBuf> {
    let program = env::current_exe().and_then(|p| p.canonicalize());
    let folder = program.ok().and_then(|p| p.parent().map(Path::to_owned));
    let above = folder.as_ref().filter(|f| f.ends_with("deps")).and_then(|f| f.parent()).map(Path::to_owned);
    folder.into_iter().chain(above).collect()
}

fn find(
    name: &str,
    variable: &str,
    asked: Option<&Path>,
    near: &[PathBuf],
    in_path: bool,
) -> Result<PathBuf> {
    let variable_value = env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(path) = asked.map(Path::to_owned).or(variable_value) {
        return path.canonicalize().map_err(|e| {
            Error::new(ErrorKind::Config, format!("there is no `{name}` at {}", path.display()))
                .with_source(e)
        });
    }
    let path_folders: Vec<PathBuf> = match env::var_os("PATH") {
        Some(path) if in_path => env::split_paths(&path).collect(),
        _ => Vec::new(),
    };
    let found = near.iter().chain(&path_folders).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| {
        let places: Vec<String> = near.iter().map(|f| f.display().to_string()).collect();
        Error::new(ErrorKind::Config, format!("`{name}` is not installed"))
            .with_details(vec![format!("looked in {}", places.join(", "))])
            .with_hint(format!("put it beside the program, or set {variable} to its path"))
    })
}

/// A name that changes when the file is replaced: cheap, and enough to find what was made from it.
pub(crate) fn identity(file: &Path) -> Result<String> {
    let meta = file.metadata().map_err(|e| storage(format!("cannot read {}", file.display()), e))?;
    Ok(format!(
        "{:x}-{:x}-{:x}-{:x}",
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.mtime_nsec() ^ meta.mtime() << 30
    ))
}
