//! Images, as the runtime offers them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::image::{
    Cancelled, ImageConfig, ImageError, ImageInfo, Platform, Progress, Pruned, PulledImage, Reference,
    Removed, StoredImage, Usage, Used, Watch, is_digest,
};
use crate::options::{BoxOptions, RootfsSpec};
use crate::runtime::{RuntimeInner, blocking};

/// Pulls, loads, saves, lists and removes images.
#[derive(Clone, Debug)]
pub struct ImageHandle {
    runtime: Arc<RuntimeInner>,
}

/// When a registry is asked for an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PullPolicy {
    /// When the image is not in the store, or is there for another platform than the one asked for.
    #[default]
    Missing,
    /// Always; what has not changed is not downloaded again.
    Always,
    /// Never: what is not in the store is an error.
    Never,
}

/// How to pull.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PullOptions {
    /// The platform of an image that is there for several, as `os/architecture[/variant]`. `None`: this machine's.
    pub platform: Option<String>,
}

/// All that is known of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageDetails {
    /// Names, digest, sizes.
    pub info: ImageInfo,
    /// How it wants to be run.
    pub config: ImageConfig,
}

/// Ends work on another thread once nobody waits for it any more.
#[derive(Debug, Default)]
pub(crate) struct Abandoned(Arc<AtomicBool>);

impl Abandoned {
    /// What the work asks.
    pub(crate) fn check(&self) -> impl Fn() -> Result<(), Cancelled> + Send + Sync + 'static {
        let flag = self.0.clone();
        move || if flag.load(Ordering::Relaxed) { Err(Cancelled) } else { Ok(()) }
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl ImageHandle {
    pub(crate) fn new(runtime: Arc<RuntimeInner>) -> Self {
        Self { runtime }
    }

    /// Pulls an image from its registry, also when it is in the store: then only what has changed is downloaded.
    /// Dropping the future stops the pull; what was downloaded by then is used by the next one.
    ///
    /// # Errors
    /// When the reference names no image, no registry has it or can be reached, the login is refused, the signature
    /// policy refuses the image, or the image is broken, hostile, too large or for other machines.
    pub async fn pull(&self, reference: &str) -> Result<PulledImage> {
        self.pull_with(reference, PullOptions::default(), |_| {}).await
    }

    /// As [`ImageHandle::pull`], with options. `progress` is told how far it is.
    ///
    /// # Errors
    /// As [`ImageHandle::pull`].
    pub async fn pull_with(
        &self,
        reference: &str,
        options: PullOptions,
        mut progress: impl FnMut(Progress) + Send + 'static,
    ) -> Result<PulledImage> {
        let (runtime, reference) = (self.runtime.clone(), reference.to_owned());
        let abandoned = Abandoned::default();
        let check = abandoned.check();
        blocking(move || {
            let platform = platform(options.platform.as_deref())?;
            let mut told = |step| {
                progress(step);
                check()
            };
            runtime.store.pull(&runtime.registries, &reference, &platform, &mut told).map_err(image_error)
        })
        .await
    }

    /// Loads every image of an OCI layout folder, an OCI archive or a `docker save` archive. `progress` is told how
    /// far it is.
    ///
    /// # Errors
    /// When the archive is broken, hostile, too large or refused by the signature policy. No image of it that was not
    /// complete is kept.
    pub async fn load(
        &self,
        path: impl Into<PathBuf>,
        mut progress: impl FnMut(Progress) + Send + 'static,
    ) -> Result<Vec<ImageInfo>> {
        let (runtime, path) = (self.runtime.clone(), path.into());
        let abandoned = Abandoned::default();
        let check = abandoned.check();
        blocking(move || {
            let mut told = |step| {
                progress(step);
                check()
            };
            runtime.store.load(&path, &mut told).map_err(image_error)
        })
        .await
    }

    /// Writes images into an OCI archive, with the digests that they came with. `out` is given back.
    ///
    /// # Errors
    /// When there is no such image, a layer of it is damaged, or `out` cannot be written.
    pub async fn save<W: Write + Send + 'static>(&self, references: &[String], out: W) -> Result<W> {
        let (runtime, references) = (self.runtime.clone(), references.to_vec());
        let abandoned = Abandoned::default();
        let check = abandoned.check();
        blocking(move || {
            let mut out = out;
            runtime.store.save(&references, &mut out, &mut |_| check()).map_err(image_error)?;
            Ok(out)
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

    /// All that is known of an image.
    ///
    /// # Errors
    /// When there is none.
    pub async fn inspect(&self, reference: &str) -> Result<ImageDetails> {
        let (runtime, reference) = (self.runtime.clone(), reference.to_owned());
        blocking(move || {
            let image = runtime.store.get(&reference).map_err(image_error)?;
            Ok(ImageDetails { info: image.info, config: image.config })
        })
        .await
    }

    /// Gives an image one more name. A name that led to another image leads to this one then.
    ///
    /// # Errors
    /// When there is no such image, or `name` is no name that can be given.
    pub async fn tag(&self, reference: &str, name: &str) -> Result<()> {
        let (runtime, reference, name) = (self.runtime.clone(), reference.to_owned(), name.to_owned());
        blocking(move || {
            let name: Reference = name.parse().map_err(|error| image_error(ImageError::Reference(error)))?;
            runtime.store.tag(&reference, &name).map_err(image_error)
        })
        .await
    }

    /// Removes a name, and the image with its last name. By digest, removes the image with all its names.
    ///
    /// # Errors
    /// When there is no such image, or a box uses it and this was its last name.
    pub async fn remove(&self, reference: &str) -> Result<Removed> {
        let (runtime, reference) = (self.runtime.clone(), reference.to_owned());
        blocking(move || runtime.remove_image(&reference)).await
    }

    /// What images take on the disk.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn usage(&self) -> Result<Usage> {
        let runtime = self.runtime.clone();
        blocking(move || runtime.image_usage()).await
    }

    /// Removes images without a name or, with `all`, every image that no box uses; and files that belong to no image.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn prune(&self, all: bool) -> Result<Pruned> {
        let runtime = self.runtime.clone();
        blocking(move || runtime.prune_images(all)).await
    }

    /// Whether this is a path to an image rather than a reference: it starts with `/`, `./` or `../`.
    pub fn is_path(text: &str) -> bool {
        let path = Path::new(text);
        path.is_absolute() || path.starts_with(".") || path.starts_with("..")
    }
}

impl RuntimeInner {
    /// The image that is asked for, and what it is called; pulled or loaded where that is asked for too.
    pub(crate) fn image(&self, options: &BoxOptions, watch: Watch<'_>) -> Result<(String, StoredImage)> {
        let reference = match &options.rootfs {
            RootfsSpec::Image(reference) => reference.clone(),
            RootfsSpec::RootfsPath(path) => {
                let digest = self.load_one(Path::new(path), watch)?;
                let image = self.store.get(&digest).map_err(image_error)?;
                return Ok((digest, image));
            }
        };
        let wanted = platform(options.platform.as_deref())?;
        if options.pull != PullPolicy::Always {
            match self.store.get_any(&self.registries, &reference) {
                // A digest is one image, for whatever it is.
                Ok(image) if image.is_for(&wanted) || is_digest(&reference) => {
                    return Ok((reference, image));
                }
                Ok(image) if options.pull == PullPolicy::Never => {
                    let message =
                        format!("the image {reference} is here for {}, not for {wanted}", image.platform());
                    return Err(Error::new(ErrorKind::NotFound, message));
                }
                Err(error) if options.pull == PullPolicy::Never || !error.is_not_found() => {
                    return Err(image_error(error));
                }
                _ => {}
            }
        }
        let pulled = self.store.pull(&self.registries, &reference, &wanted, watch).map_err(image_error)?;
        let image = self.store.get(&pulled.image.digest).map_err(image_error)?;
        Ok((reference, StoredImage { name: Some(pulled.reference), ..image }))
    }

    /// Asks the signature policy about an image, and the name that it is used by.
    pub(crate) fn check_policy(&self, digest: &str, name: Option<&str>) -> Result<()> {
        let name =
            name.map(str::parse).transpose().map_err(|error| image_error(ImageError::Reference(error)))?;
        self.store.check_policy(digest, name.as_ref()).map_err(image_error)
    }

    fn load_one(&self, path: &Path, watch: Watch<'_>) -> Result<String> {
        let mut loaded = self.store.load(path, watch).map_err(image_error)?;
        match (loaded.pop(), loaded.len()) {
            (Some(image), 0) => Ok(image.digest),
            (_, others) => Err(Error::new(
                ErrorKind::Image,
                format!("{} holds {} images, not one", path.display(), others + 1),
            )
            .with_hint("load it, then name the image")),
        }
    }

    /// Which boxes use which images. The home must be locked, or the answer is out of date.
    fn used(&self) -> Result<Used> {
        let mut used = Used::new();
        for (digest, name) in self.boxes.images_in_use()? {
            used.entry(digest).or_default().push(name);
        }
        Ok(used)
    }

    pub(crate) fn remove_image(&self, reference: &str) -> Result<Removed> {
        let _changing = self.home.lock()?;
        self.store.remove(reference, &self.used()?).map_err(image_error)
    }

    pub(crate) fn prune_images(&self, all: bool) -> Result<Pruned> {
        let _changing = self.home.lock()?;
        self.store.prune(all, &self.used()?).map_err(image_error)
    }

    pub(crate) fn image_usage(&self) -> Result<Usage> {
        self.store.usage(&self.used()?).map_err(image_error)
    }
}

/// The platform that is asked for.
pub(crate) fn platform(text: Option<&str>) -> Result<Platform> {
    match text {
        None => Ok(Platform::host()),
        Some(text) => text.parse().map_err(|error| image_error(ImageError::BadPlatform(error))),
    }
}

pub(crate) fn image_error(error: ImageError) -> Error {
    let kind = match &error {
        error if error.is_not_found() => ErrorKind::NotFound,
        ImageError::Registry { .. } | ImageError::Searched { .. } => ErrorKind::Network,
        ImageError::InUse { .. } => ErrorKind::InvalidState,
        ImageError::Reference(_)
        | ImageError::Digest(_)
        | ImageError::BadPlatform(_)
        | ImageError::TagWithDigest { .. } => ErrorKind::InvalidArgument,
        ImageError::Io { .. } | ImageError::Busy => ErrorKind::Storage,
        _ => ErrorKind::Image,
    };
    let hint = error.hint();
    let error = Error::new(kind, error.to_string()).with_source_of(error);
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}
