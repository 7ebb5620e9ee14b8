//! The JSON documents of an image: index, manifest and configuration, of OCI and of Docker, and Docker's `manifest.json`.
//!
//! Only what is needed is read; what programs write `null` for may be missing. See the OCI image specification.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::config::{ImageConfig, ImageHealthCheck};
use super::digest::Digest;
use super::error::ImageError;
use super::platform::Platform;
use super::stream::Compression;

/// The media types of documents that are written, by the OCI image specification.
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The largest document that is read.
pub(super) const DOCUMENT_MAX: u64 = 4 << 20;

/// What leads to a blob.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: Option<String>,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default)]
    pub(super) platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    pub(super) fn digest(&self) -> Result<Digest, ImageError> {
        Ok(self.digest.parse()?)
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// Not an image, but a statement about one.
    pub(super) fn is_attestation(&self) -> bool {
        self.annotation("vnd.docker.reference.type").is_some()
    }
}

/// An index or a manifest: which of both decides what it has, not what it is called.
#[derive(Debug)]
pub(super) enum Document {
    Index(Vec<Descriptor>),
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

impl Document {
    pub(super) fn parse(what: &str, bytes: &[u8]) -> Result<Self, ImageError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Raw {
            #[serde(default)]
            schema_version: Option<u32>,
            #[serde(default)]
            manifests: Option<Vec<Descriptor>>,
            #[serde(default)]
            config: Option<Descriptor>,
            #[serde(default)]
            layers: Option<Vec<Descriptor>>,
        }
        let raw: Raw = parse(what, bytes)?;
        if raw.schema_version.is_some_and(|version| version != 2) {
            return Err(broken(what, "it is not of schema version 2"));
        }
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), None, None) => Ok(Self::Index(manifests)),
            (None, Some(config), Some(layers)) => Ok(Self::Manifest { config, layers }),
            _ => Err(broken(what, "it is neither an index nor a manifest of an image")),
        }
    }
}

/// What a configuration says.
#[derive(Debug)]
pub(super) struct Configuration {
    pub(super) platform: Platform,
    pub(super) diff_ids: Vec<Digest>,
    pub(super) config: ImageConfig,
}

impl Configuration {
    pub(super) fn parse(what: &str, bytes: &[u8]) -> Result<Self, ImageError> {
        let raw: RawConfiguration = parse(what, bytes)?;
        let rootfs =
            raw.rootfs.ok_or_else(|| broken(what, "it has no rootfs: this is no image that runs"))?;
        let diff_ids = rootfs.diff_ids.unwrap_or_default();
        let platform =
            Platform::new(raw.os.unwrap_or_default(), raw.architecture.unwrap_or_default(), raw.variant);
        let run = raw.config.unwrap_or_default();
        let keys = |map: Option<BTreeMap<String, serde::de::IgnoredAny>>| {
            map.map(|map| map.into_keys().collect()).unwrap_or_default()
        };
        let config = ImageConfig {
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env: run.env.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
            user: run.user.unwrap_or_default(),
            exposed_ports: keys(run.exposed_ports),
            volumes: keys(run.volumes),
            labels: run.labels.unwrap_or_default(),
            stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
            health_check: run.healthcheck.map(RawHealthcheck::read),
            architecture: platform.architecture().to_owned(),
            os: platform.os().to_owned(),
            variant: platform.variant().map(str::to_owned),
            created: raw.created.filter(|created| !created.is_empty()),
        };
        let diff_ids = diff_ids.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
        Ok(Self { platform, diff_ids, config })
    }
}

#[derive(Deserialize)]
struct RawConfiguration {
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    config: Option<RawRun>,
    #[serde(default)]
    rootfs: Option<RawRootfs>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawRun {
    #[serde(default)]
    entrypoint: Option<Vec<String>>,
    #[serde(default)]
    cmd: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    working_dir: Option<String>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    #[serde(default)]
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    stop_signal: Option<String>,
    #[serde(default)]
    healthcheck: Option<RawHealthcheck>,
}

/// Docker's field, which the OCI specification reserves.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawHealthcheck {
    #[serde(default)]
    test: Option<Vec<String>>,
    #[serde(default)]
    interval: Option<i64>,
    #[serde(default)]
    timeout: Option<i64>,
    #[serde(default)]
    start_period: Option<i64>,
    #[serde(default)]
    start_interval: Option<i64>,
    #[serde(default)]
    retries: Option<i64>,
}

impl RawHealthcheck {
    fn read(self) -> ImageHealthCheck {
        // What cannot be is as if it had not been said.
        let nanos = |time: Option<i64>| time.and_then(|time| u64::try_from(time).ok()).unwrap_or_default();
        ImageHealthCheck {
            test: self.test.unwrap_or_default(),
            interval_nanos: nanos(self.interval),
            timeout_nanos: nanos(self.timeout),
            start_period_nanos: nanos(self.start_period),
            start_interval_nanos: nanos(self.start_interval),
            retries: self.retries.and_then(|retries| u32::try_from(retries).ok()).unwrap_or_default(),
        }
    }
}

/// One image in Docker's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerImage {
    pub(super) config: String,
    #[serde(default)]
    pub(super) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(super) layers: Option<Vec<String>>,
}

pub(super) fn parse<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| broken(what, &error.to_string()))
}

pub(super) fn broken(what: &str, reason: &str) -> ImageError {
    ImageError::Document { what: what.to_owned(), reason: super::error::shown(reason.as_bytes()) }
}

/// The media type of a layer that is compressed like this.
pub(super) fn layer_type(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "application/vnd.oci.image.layer.v1.tar",
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    }
}

/// Whether a blob of this type is a layer that can be applied. Docker's old archives give no types at all.
pub(super) fn is_layer(media_type: Option<&str>) -> bool {
    let Some(media_type) = media_type else { return true };
    matches!(
        media_type,
        "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    )
}
