//! `box.json`: what a box was created with.

use std::fs;
use std::io;
use std::path::Path;

use boxlite_control::ContainerSpec;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result, storage};

/// The version that is written; readable without knowing the rest.
const VERSION: u32 = 1;
/// The largest `box.json`, in bytes: arguments and environment together.
const LIMIT: u64 = 4 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BoxRecord {
    version: u32,
    pub(crate) id: String,
    pub(crate) name: Option<String>,
    pub(crate) created_unix_nanos: u64,
    pub(crate) image: String,
    pub(crate) image_digest: String,
    /// The full name by which the image was asked for: what a signature policy is asked about at each start.
    #[serde(default)]
    pub(crate) image_name: Option<String>,
    pub(crate) cpus: u8,
    pub(crate) memory_mib: u32,
    pub(crate) auto_remove: bool,
    pub(crate) detach: bool,
    pub(crate) container: ContainerSpec,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

impl BoxRecord {
    #[allow(clippy::too_many_arguments, reason = "one call, all of it is data")]
    pub(crate) fn new(
        id: String,
        name: Option<String>,
        created_unix_nanos: u64,
        image: String,
        (image_digest, image_name): (String, Option<String>),
        (cpus, memory_mib): (u8, u32),
        (auto_remove, detach): (bool, bool),
        container: ContainerSpec,
    ) -> Self {
        Self {
            version: VERSION,
            id,
            name,
            created_unix_nanos,
            image,
            image_digest,
            image_name,
            cpus,
            memory_mib,
            auto_remove,
            detach,
            container,
        }
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).ok().filter(|bytes| bytes.len() as u64 <= LIMIT).ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, "the box's arguments and environment are too large")
        })
    }

    /// `None` when there is no such file.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>> {
        let broken = |e: serde_json::Error| storage(format!("{} is damaged", path.display()), e);
        let Some(bytes) = read_bounded(path, LIMIT)? else { return Ok(None) };
        let VersionOnly { version } = serde_json::from_slice(&bytes).map_err(broken)?;
        if version != VERSION {
            let message = format!("{} has version {version}, this build reads {VERSION}", path.display());
            return Err(Error::new(ErrorKind::Storage, message).with_hint("use a newer boxlite"));
        }
        serde_json::from_slice(&bytes).map(Some).map_err(broken)
    }
}

/// Reads a whole file of at most `limit` bytes; `None` when there is none.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut file = io::Read::take(fs::File::open(path)?, limit + 1);
        io::Read::read_to_end(&mut file, &mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("larger than {limit} bytes")));
        }
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(storage(format!("cannot read {}", path.display()), e)),
    }
}
