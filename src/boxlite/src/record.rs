//! What a box was asked to be, as the database keeps it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use boxlite_control::{ContainerSpec, HealthSpec, RestartPolicy};
use serde::de::Error as _;
use serde::{Deserialize, Serialize};

use crate::error::{Result, storage};
use crate::network::NetworkRecord;
use crate::volume::VolumeRecord;

/// The version that is written; readable without knowing the rest.
const VERSION: u32 = 2;
/// The version of the time when a box's record was the file `box.json` in its folder; what it lacks has a default.
const FILE_VERSION: u32 = 1;
/// The largest record, in bytes: arguments and environment together.
const LIMIT: usize = 4 << 20;
/// SIGTERM, the same on every Linux.
const SIGTERM: u32 = 15;
/// Docker's default.
const STOP_GRACE_MILLIS: u64 = 10_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BoxRecord {
    pub(crate) version: u32,
    pub(crate) id: String,
    /// A column of its own, so that the database keeps names apart.
    #[serde(skip_serializing, default)]
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
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) restart: RestartPolicy,
    #[serde(default)]
    pub(crate) health: Option<HealthSpec>,
    /// 0: never.
    #[serde(default)]
    pub(crate) idle_timeout_millis: u64,
    /// 0: never.
    #[serde(default)]
    pub(crate) max_duration_millis: u64,
    #[serde(default = "yes")]
    pub(crate) auto_resume: bool,
    #[serde(default = "sigterm")]
    pub(crate) stop_signal: u32,
    #[serde(default = "stop_grace")]
    pub(crate) stop_grace_millis: u64,
    #[serde(default = "yes")]
    pub(crate) log: bool,
    /// Volumes; memory is in `container.mounts`.
    #[serde(default)]
    pub(crate) volumes: Vec<VolumeRecord>,
    #[serde(default)]
    pub(crate) network: Option<NetworkRecord>,
}

fn yes() -> bool {
    true
}

fn sigterm() -> u32 {
    SIGTERM
}

fn stop_grace() -> u64 {
    STOP_GRACE_MILLIS
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

impl BoxRecord {
    /// A box of this image, with the defaults of all else.
    pub(crate) fn new(
        id: String,
        created_unix_nanos: u64,
        (image, image_digest, image_name): (String, String, Option<String>),
        container: ContainerSpec,
    ) -> Self {
        Self {
            version: VERSION,
            id,
            name: None,
            created_unix_nanos,
            image,
            image_digest,
            image_name,
            cpus: 1,
            memory_mib: 1024,
            auto_remove: false,
            detach: false,
            container,
            labels: BTreeMap::new(),
            restart: RestartPolicy::No,
            health: None,
            idle_timeout_millis: 0,
            max_duration_millis: 0,
            auto_resume: true,
            stop_signal: SIGTERM,
            stop_grace_millis: STOP_GRACE_MILLIS,
            log: true,
            volumes: Vec::new(),
            network: None,
        }
    }

    /// Fails when it is too large.
    pub(crate) fn encode(&self) -> serde_json::Result<String> {
        let text = serde_json::to_string(&Self { version: VERSION, ..self.clone() })?;
        if text.len() > LIMIT {
            return Err(serde_json::Error::custom("its arguments and environment are too large"));
        }
        Ok(text)
    }

    pub(crate) fn decode(text: &str) -> serde_json::Result<Self> {
        let VersionOnly { version } = serde_json::from_str(text)?;
        if !(FILE_VERSION..=VERSION).contains(&version) {
            return Err(serde_json::Error::custom(format!(
                "it has version {version}, and this build reads {FILE_VERSION} to {VERSION}"
            )));
        }
        serde_json::from_str(text)
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        let image = ("busybox".to_owned(), format!("sha256:{}", "a".repeat(64)), None);
        Self::new("0123456789ab".into(), 1_700_000_000_000_000_000, image, ContainerSpec::default())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A record as the first version wrote it into `box.json`.
    const FIRST: &str = r#"{
        "version": 1, "id": "00c0ffee0000", "name": "web", "created_unix_nanos": 1700000000000000000,
        "image": "busybox:latest", "image_digest": "sha256:00", "cpus": 2, "memory_mib": 512,
        "auto_remove": false, "detach": true,
        "container": {
            "hostname": "web",
            "main": {"args": ["sleep", "1h"], "env": ["A=1"], "cwd": "/", "user": "", "terminal": null, "stdin": true},
            "capabilities_add": [], "capabilities_drop": [], "await_attach": false
        }
    }"#;

    #[test]
    fn a_record_of_the_first_version_is_read_with_the_defaults_of_what_it_lacks() {
        let record = BoxRecord::decode(FIRST).unwrap();
        assert_eq!((record.name.as_deref(), record.cpus, record.memory_mib), (Some("web"), 2, 512));
        assert_eq!((record.stop_signal, record.stop_grace_millis, record.log), (15, 10_000, true));
        assert_eq!(record.restart, RestartPolicy::No);
    }

    #[test]
    fn a_record_comes_back_without_its_name_and_in_the_newest_version() {
        let record = BoxRecord::decode(FIRST).unwrap();
        let again = BoxRecord::decode(&record.encode().unwrap()).unwrap();
        assert_eq!(again, BoxRecord { version: VERSION, name: None, ..record });
    }

    #[test]
    fn a_later_version_and_a_huge_record_are_refused() {
        let later = FIRST.replacen(r#""version": 1"#, r#""version": 3"#, 1);
        assert!(BoxRecord::decode(&later).unwrap_err().to_string().contains("version 3"));
        let mut record = BoxRecord::for_tests();
        record.container.main.args = vec!["x".repeat(LIMIT)];
        assert!(record.encode().unwrap_err().to_string().contains("too large"));
    }
}
