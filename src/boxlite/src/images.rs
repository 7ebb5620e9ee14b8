//! Images, as the runtime offers them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::image::{ImageError, ImageInfo, Progress};
use crate::runtime::{RuntimeInner, blocking};

/// Loads, lists and removes images.
#[derive(Clone, Debug)]
pub struct ImageHandle {
    runtime: Arc<RuntimeInner>,
}

impl ImageHandle {
    pub(crate) fn new(runtime: Arc<RuntimeInner>) -> Self {
        Self { runtime }
    }

    /// Loads every image of an OCI layout folder, an OCI archive or a `docker save` archive. `progress` is told how
    /// far it is.
    ///
    /// # Errors
    /// When the archive is broken, hostile or too large. No image of it that was not complete is kept.
    pub async fn load(
        &self,
        path: impl Into<PathBuf>,
        mut progress: impl FnMut(Progress) + Send + 'static,
    ) -> Result<Vec<ImageInfo>> {
        let (runtime, path) = (self.runtime.clone(), path.into());
        blocking(move || {
            let mut told = |step| {
                progress(step);
                Ok(())
            };
            runtime.store.load(&path, &mut told).map_err(image_error)
        })
        .await
    }

    /// All images.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn list(&self) -> Result<Vec<ImageInfo>> {
        let runtime = self.runtime.clone();
        blocking(move || runtime.store.list().map_err(image_error)).await
    }

    /// One image, by reference, digest or unique start of a digest.
    ///
    /// # Errors
    /// When there is none.
    pub async fn get(&self, reference: &str) -> Result<ImageInfo> {
        let (runtime, reference) = (self.runtime.clone(), reference.to_owned());
        blocking(move || runtime.store.info(&reference).map_err(image_error)).await
    }

    /// Whether this is a path to an image rather than a reference: it starts with `/`, `./` or `../`.
    pub fn is_path(text: &str) -> bool {
        let path = Path::new(text);
        path.is_absolute() || path.starts_with(".") || path.starts_with("..")
    }
}

pub(crate) fn image_error(error: ImageError) -> Error {
    let kind = if error.is_not_found() { ErrorKind::NotFound } else { ErrorKind::Image };
    let hint = error.hint();
    let error = Error::new(kind, error.to_string()).with_source_of(error);
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}
