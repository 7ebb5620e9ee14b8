//! Pulling: from a reference to an image in the store, through a registry.
//!
//! ```text
//!   reference ─▶ manifest or index ─▶ platform's manifest ─▶ configuration ─▶ policy ─▶ layers ─▶ disk ─▶ record
//! ```
//!
//! Documents that are in the store are not asked for again: a pull of what is there costs one request. No layer is asked
//! for before the signature policy has accepted the image.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;
use tokio::runtime::Runtime;

use super::blobs::{Begun, Blobs};
use super::digest::Digest;
use super::error::ImageError;
use super::growth::Growth;
use super::install::{LOOK, Supply, TAKEN_LOOK, Told};
use super::manifest::{DOCUMENT_MAX, Descriptor, broken};
use super::platform::Platform;
use super::record::{Origin, Text, registry_origin};
use super::reference::Reference;
use super::resolve::{Documents, Resolver};
use super::store::{ImageInfo, ImageStore, StoredImage};
use super::{Progress, Watch};
use crate::policy::{self, Policy};
use crate::registry::{Registries, RegistryError, Repository};

/// Layers that are downloaded at once. More connections than registries' fair share gains nothing; fewer, and the latency
/// of each small layer adds up.
const DOWNLOADS: usize = 8;

/// What a pull came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PulledImage {
    /// The full name by which it was pulled, and is known now.
    pub reference: String,
    /// What is known of it.
    pub image: ImageInfo,
}

impl ImageStore {
    /// As [`ImageStore::get`]; of a name without a registry, what was pulled from the registries that are searched counts
    /// too.
    pub(crate) fn get_any(
        &self,
        registries: &Registries,
        reference: &str,
    ) -> Result<StoredImage, ImageError> {
        // In the order in which a pull asks for it.
        for name in candidates(registries, reference).unwrap_or_default() {
            match self.get(&name.to_string()) {
                Err(error) if error.is_not_found() => {}
                result => return result,
            }
        }
        self.get(reference)
    }

    /// Pulls an image and names it. Of a name without a registry, the registries that are to be searched are asked in turn,
    /// until one has it.
    pub(crate) fn pull(
        &self,
        registries: &Registries,
        reference: &str,
        platform: &Platform,
        watch: Watch<'_>,
    ) -> Result<PulledImage, ImageError> {
        if is_digest(reference) {
            // A registry is asked for a digest within a repository; as a name it would be somebody else's image.
            return Err(self.not_found(reference, &self.refs()?));
        }
        let names = candidates(registries, reference)?;
        // The runtime of this pull is driven by it alone.
        let registries = &registries.fresh();
        let policy = self.policy()?;
        self.sweep_drafts()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| ImageError::io("start the threads of", "a pull", error))?;
        let mut failures: Vec<ImageError> = Vec::new();
        for name in &names {
            let pull = Pull { store: self, registries, runtime: &runtime, policy: &policy, name, platform };
            match pull.run(watch) {
                // The next one may have it.
                Err(error) if error.is_elsewhere() => failures.push(error),
                result => return result,
            }
        }
        if failures.len() == 1 {
            return Err(failures.remove(0));
        }
        let absent = failures.iter().all(ImageError::is_not_found);
        let tried =
            names.iter().zip(&failures).map(|(name, error)| (name.registry().to_owned(), causes(error)));
        Err(ImageError::Searched {
            reference: super::error::shown(reference.as_bytes()),
            tried: tried.collect(),
            absent,
        })
    }
}

/// Whether this is a digest, with or without its algorithm, and no name.
pub(crate) fn is_digest(reference: &str) -> bool {
    reference.parse::<Digest>().is_ok() || Digest::from_hex(reference).is_some()
}

/// What led to an error, without the error itself.
fn causes(error: &ImageError) -> String {
    let mut words = Vec::new();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        words.push(cause.to_string());
        next = cause.source();
    }
    words.join(": ")
}

/// The full names that a reference may mean, in the order in which they are tried.
fn candidates(registries: &Registries, reference: &str) -> Result<Vec<Reference>, ImageError> {
    let name: Reference = reference.parse()?;
    if !Reference::is_short(reference) || registries.search().is_empty() {
        return Ok(vec![name]);
    }
    Ok(registries.search().iter().map(|host| name.at(host)).collect::<Result<_, _>>()?)
}

impl ImageError {
    /// Whether another registry may still have the image.
    fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Registry { .. })
    }
}

struct Pull<'a> {
    store: &'a ImageStore,
    registries: &'a Registries,
    runtime: &'a Runtime,
    policy: &'a Policy,
    name: &'a Reference,
    platform: &'a Platform,
}

impl Pull<'_> {
    fn run(&self, watch: Watch<'_>) -> Result<PulledImage, ImageError> {
        self.attempt(watch).map_err(|error| match error {
            ImageError::Cancelled(_)
            | ImageError::Registry { .. }
            | ImageError::Policy(_)
            | ImageError::Io { .. }
            | ImageError::Busy => error,
            error => ImageError::Pull {
                reference: self.name.familiar(),
                registry: self.name.registry().to_owned(),
                source: Box::new(error),
            },
        })
    }

    fn attempt(&self, watch: Watch<'_>) -> Result<PulledImage, ImageError> {
        let refused = ImageError::Policy;
        let signed = self.policy.verdict_without_signatures(&registry_origin(self.name)).map_err(refused)?;
        let repository = self
            .registries
            .repository(self.name.registry(), self.name.repository())
            .map_err(|error| registry_error(self.name, error))?;
        // From here on no blob that is found is removed by somebody else.
        let _using = self.store.use_blobs(watch)?;
        let top = self.wait(watch, repository.manifest(&self.name.version()))?;
        let documents = Remote { pull: self, repository: &repository, watch };
        let mut resolver = Resolver::new(documents, self.platform, &self.store.limits);
        let image = resolver.one(top.digest, top.bytes)?;
        let mut origin = Origin {
            transport: "docker".into(),
            name: self.name.to_string(),
            index: image.index.map(Text),
            signatures: Vec::new(),
        };
        if signed {
            for digest in [Some(image.digest), image.index].into_iter().flatten() {
                origin.signatures.extend(self.signatures(&repository, &digest, watch)?);
            }
        }
        origin.check(self.policy, image.digest)?;
        let mut supply = RegistrySupply {
            runtime: self.runtime,
            repository: repository.clone(),
            name: self.name,
            is_again: false,
        };
        self.store.install(&image, std::slice::from_ref(self.name), origin, &mut supply, watch)?;
        let image = self.store.info(&image.digest.to_string())?;
        Ok(PulledImage { reference: self.name.to_string(), image })
    }

    /// The signatures that the registry has of a manifest or index.
    fn signatures(
        &self,
        repository: &Repository,
        digest: &Digest,
        watch: Watch<'_>,
    ) -> Result<Vec<policy::Signature>, ImageError> {
        let tag = policy::attachment::tag(digest);
        let manifest = match self.wait(watch, repository.manifest(&tag)) {
            Ok(manifest) => manifest,
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut signatures = Vec::new();
        for (digest, size, signature) in
            policy::attachment::parse(&manifest.bytes).map_err(ImageError::Policy)?
        {
            let payload = self.wait(watch, repository.document(&digest, size))?;
            signatures.push(policy::Signature { payload, signature });
        }
        Ok(signatures)
    }

    /// Waits for an answer of the registry, and asks the caller now and then whether to go on.
    fn wait<T>(
        &self,
        watch: Watch<'_>,
        answer: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, ImageError> {
        let mut answer = pin!(answer);
        self.runtime.block_on(async {
            loop {
                match tokio::time::timeout(LOOK, &mut answer).await {
                    Ok(result) => return result.map_err(|error| registry_error(self.name, error)),
                    Err(_) => watch(Progress::Resolving)?,
                }
            }
        })
    }
}

fn registry_error(name: &Reference, source: RegistryError) -> ImageError {
    ImageError::Registry { reference: name.familiar(), source: Box::new(source) }
}

/// Documents of a registry; those that are in the store already are not asked for.
struct Remote<'a> {
    pull: &'a Pull<'a>,
    repository: &'a Repository,
    watch: Watch<'a>,
}

impl Remote<'_> {
    fn stored(&self, descriptor: &Descriptor) -> Result<Option<Vec<u8>>, ImageError> {
        self.pull.store.blobs.document(&descriptor.digest()?, DOCUMENT_MAX)
    }
}

impl Documents for Remote<'_> {
    fn manifest(&mut self, _: &str, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        if let Some(bytes) = self.stored(descriptor)? {
            return Ok(bytes);
        }
        let digest = descriptor.digest()?.to_string();
        Ok(self.pull.wait(self.watch, self.repository.manifest(&digest))?.bytes)
    }

    /// A configuration is a blob, so of several processes that want it, one fetches it and the others wait.
    fn configuration(&mut self, what: &str, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let (digest, size) = (descriptor.digest()?, descriptor.size);
        if size > DOCUMENT_MAX {
            return Err(broken(what, &format!("it has {size} bytes, {DOCUMENT_MAX} are allowed")));
        }
        let blobs = &self.pull.store.blobs;
        let growth = Growth::new(digest, size);
        let mut was_there = false;
        loop {
            if let Some(bytes) = self.stored(descriptor)? {
                return Ok(bytes);
            }
            match blobs.begin(&growth)? {
                // It came since we looked; if it did not, it is damaged, with its right size.
                Begun::Complete if !std::mem::replace(&mut was_there, true) => {}
                Begun::Complete => blobs.remove(&digest)?,
                Begun::Taken => {
                    (self.watch)(Progress::Waiting)?;
                    std::thread::park_timeout(TAKEN_LOOK);
                }
                Begun::Ours(mut partial) => {
                    let bytes = self.pull.wait(self.watch, self.repository.document(&digest, size))?;
                    // What an earlier attempt has left is the start of it, or makes it wrong and is removed.
                    let start = usize::try_from(partial.written()).unwrap_or(usize::MAX).min(bytes.len());
                    partial.append(&bytes[start..])?;
                    match partial.finish() {
                        Err(ImageError::Blob { .. }) if start > 0 => {}
                        finished => finished?,
                    }
                }
            }
        }
    }
}

/// Downloads blobs, several at once.
struct RegistrySupply<'a> {
    runtime: &'a Runtime,
    repository: Repository,
    name: &'a Reference,
    is_again: bool,
}

impl Supply for RegistrySupply<'_> {
    fn supply(&mut self, wanted: &[Arc<Growth>], blobs: &Blobs, told: &Told) -> Result<(), ImageError> {
        // What was damaged the first time may have been so at a mirror.
        if std::mem::replace(&mut self.is_again, true) {
            self.repository = self.repository.without_mirrors();
        }
        let this = &*self;
        let missing = wanted.iter().filter(|growth| !growth.is_complete());
        let downloads = stream::iter(missing)
            .map(|growth| this.download(growth, blobs, told))
            .buffer_unordered(DOWNLOADS)
            .try_collect::<()>();
        this.runtime.block_on(async {
            tokio::select! {
                result = downloads => result,
                () = told.stop.wait() => Err(super::Cancelled.into()),
            }
        })
    }
}

impl RegistrySupply<'_> {
    async fn download(&self, growth: &Arc<Growth>, blobs: &Blobs, told: &Told) -> Result<(), ImageError> {
        let mut partial = loop {
            match blobs.begin(growth)? {
                Begun::Complete => {
                    growth.there(blobs.open_blob(&growth.digest())?);
                    return Ok(());
                }
                Begun::Ours(partial) => break partial,
                Begun::Taken => tokio::time::sleep(TAKEN_LOOK).await,
            }
        };
        if partial.written() < growth.size() {
            let failed = |error| registry_error(self.name, error);
            let digest = growth.digest();
            let blob = self.repository.blob(&digest, growth.size(), partial.written());
            let mut blob = blob.await.map_err(failed)?;
            while let Some(bytes) = blob.next().await.map_err(failed)? {
                let before = partial.written();
                partial.append(&bytes)?;
                told.fetched(growth, before, partial.written());
            }
        }
        partial.finish()
    }
}
