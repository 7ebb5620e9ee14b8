//! OCI layouts and archives made of layers.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use boxlite::image::Digest;
use serde_json::{Value, json};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packed {
    Plain,
    Gzip,
    /// Two gzip members, one behind the other.
    TwoGzip,
    Zstd,
}

impl Packed {
    pub fn pack(self, bytes: &[u8]) -> Vec<u8> {
        let gzip = |bytes: &[u8]| {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(bytes).unwrap();
            out.finish().unwrap()
        };
        match self {
            Self::Plain => bytes.to_vec(),
            Self::Gzip => gzip(bytes),
            Self::TwoGzip => {
                let (a, b) = bytes.split_at(bytes.len() / 3);
                [gzip(a), gzip(b)].concat()
            }
            Self::Zstd => zstd::stream::encode_all(bytes, 1).unwrap(),
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip | Self::TwoGzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A layout folder in the making.
pub struct Layout {
    pub folder: PathBuf,
    manifests: Vec<Value>,
}

impl Layout {
    pub fn new(folder: &Path) -> Self {
        fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let layout = Self { folder: folder.to_owned(), manifests: Vec::new() };
        layout.write_index();
        layout
    }

    pub fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        fs::write(self.path(&digest), bytes).unwrap();
        digest
    }

    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs/sha256").join(digest.hex())
    }

    pub fn document(&self, media_type: &str, value: &Value) -> Value {
        let bytes = serde_json::to_vec(value).unwrap();
        let digest = self.blob(&bytes).to_string();
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Config and manifest of layers; its descriptor is in no index yet.
    pub fn manifest(&self, layers: &[(Vec<u8>, Packed)], config: &Value) -> Value {
        let diff_ids: Vec<String> = layers.iter().map(|(bytes, _)| Digest::of(bytes).to_string()).collect();
        let mut config = config.clone();
        config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        let layers: Vec<Value> = layers
            .iter()
            .map(|(bytes, packed)| {
                let blob = packed.pack(bytes);
                json!({ "mediaType": packed.media_type(), "digest": self.blob(&blob).to_string(), "size": blob.len() })
            })
            .collect();
        let config = self.document("application/vnd.oci.image.config.v1+json", &config);
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        self.document("application/vnd.oci.image.manifest.v1+json", &manifest)
    }

    pub fn add(&mut self, mut descriptor: Value, name: Option<&str>) {
        if let Some(name) = name {
            descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        }
        self.manifests.push(descriptor);
        self.write_index();
    }

    /// A whole image for this machine.
    pub fn image(&mut self, layers: &[(Vec<u8>, Packed)], name: &str) {
        let manifest = self.manifest(layers, &config());
        self.add(manifest, Some(name));
    }

    fn write_index(&self) {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        fs::write(self.folder.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    }
}

pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub fn config() -> Value {
    json!({
        "os": "linux",
        "architecture": architecture(),
        "created": "2024-05-06T07:08:09Z",
        "config": {
            "Entrypoint": ["/bin/app"], "Cmd": null, "Env": ["A=b"], "WorkingDir": "/w", "User": "7:8",
            "ExposedPorts": { "80/tcp": {} }, "Labels": { "k": "v" },
        },
    })
}
