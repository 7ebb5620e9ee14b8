//! Images made on the spot, as OCI layout folders.

use std::fs;
use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};

/// An image whose only content is one program.
pub fn single_program(program: &Path, name: &str) -> tempfile::TempDir {
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    let content = fs::read(program).expect("the program can be read");
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    layer.append_data(&mut header, name.trim_start_matches('/'), content.as_slice()).expect("a tar entry");
    of_layers(&[layer.into_inner().expect("a tar")], &json!({"Cmd": [name]}))
}

/// An image of these layers, which are not compressed, with this `config` section.
pub fn of_layers(layers: &[Vec<u8>], config: &serde_json::Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let blobs = folder.path().join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a folder");
    let put = |media_type: &str, bytes: &[u8]| {
        let digest = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>();
        fs::write(blobs.join(&digest), bytes).expect("a blob");
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
    };
    let tars: Vec<_> =
        layers.iter().map(|bytes| put("application/vnd.oci.image.layer.v1.tar", bytes)).collect();
    let ids: Vec<_> = tars.iter().map(|layer| layer["digest"].clone()).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": ids},
    });
    let config = put("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": tars,
    });
    let manifest = put("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(folder.path().join("index.json"), index.to_string()).expect("an index");
    fs::write(folder.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a layout");
    folder
}

/// A tar file of these files, each with the same content every time.
pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        layer.append_data(&mut header, name, *content).expect("a tar entry");
    }
    layer.into_inner().expect("a tar")
}

/// Bytes that no two places share, and that do not compress: what was lost or doubled on the way shows.
pub fn noise(seed: u8, length: usize) -> Vec<u8> {
    let blocks = (0_u32..).flat_map(|block| {
        let mut hash = Sha256::new();
        hash.update([seed]);
        hash.update(block.to_le_bytes());
        hash.finalize()
    });
    blocks.take(length).collect()
}
