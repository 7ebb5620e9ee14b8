//! The configuration file: what is set once for a home.
//!
//! JSON, by default `config.json` in the home folder. Unknown keys are refused, so that a misspelt one does not pass for
//! one that holds.

use std::env;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
use crate::home::{AUTH, CONFIG, POLICY};
use crate::image::{Limits, PolicyFile};
use crate::options::{BoxliteOptions, env_vars};
use crate::record::read_bounded;
use crate::registry::{Credentials, ImageRegistry, ImageRegistryProxy, Registries};

/// The largest file that is read, in bytes.
const LIMIT: u64 = 1 << 20;
/// Where a signature policy is looked for, after the home folder: for the user, then for the machine, as
/// containers-policy.json(5) has it.
const USER_POLICY: &str = ".config/containers/policy.json";
const MACHINE_POLICY: &str = "/etc/containers/policy.json";

/// What the file says.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    image_registries: Vec<ImageRegistry>,
    image_registry_proxy: Option<ImageRegistryProxy>,
    signature_policy: Option<PathBuf>,
    image_limits: Option<Limits>,
}

/// What holds, of options and file together.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) registries: Vec<ImageRegistry>,
    pub(crate) search: Vec<String>,
    pub(crate) proxy: Option<ImageRegistryProxy>,
    pub(crate) policy: PolicyFile,
    pub(crate) limits: Limits,
}

impl Settings {
    /// Reads the file, if there is one. What the options say comes before it.
    pub(crate) fn read(options: &BoxliteOptions, home: &Path) -> Result<Self> {
        let named = options
            .config_file
            .clone()
            .or_else(|| env::var_os(env_vars::CONFIG).filter(|v| !v.is_empty()).map(Into::into));
        let path = named.clone().unwrap_or_else(|| home.join(CONFIG));
        let file = match read_bounded(&path, LIMIT)? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                Error::new(ErrorKind::Config, format!("cannot use the configuration {}", path.display()))
                    .with_source(error)
            })?,
            None if named.is_some() => {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!("there is no configuration {}", path.display()),
                ));
            }
            None => File::default(),
        };
        let mut registries = options.image_registries.clone();
        for registry in file.image_registries {
            if !registries.iter().any(|known| known.host == registry.host) {
                registries.push(registry);
            }
        }
        let policy = options.signature_policy.clone().or(file.signature_policy);
        let policy = policy.map_or_else(|| default_policy(home), PolicyFile::Named);
        Ok(Self {
            registries,
            search: options.search_registries.clone(),
            proxy: options.image_registry_proxy.clone().or(file.image_registry_proxy),
            policy,
            limits: options.image_limits.or(file.image_limits).unwrap_or_default(),
        })
    }
}

impl Settings {
    /// The registries, with the logins of this home and of Docker.
    pub(crate) fn registries(&self, home: &Path) -> Result<Registries> {
        let credentials = Credentials::new(auth_files(home));
        let registries = Registries::new(self.registries.clone(), self.proxy.clone(), credentials);
        registries.and_then(|registries| registries.searching(&self.search)).map_err(|error| {
            let hint = error.hint();
            let failed =
                Error::new(ErrorKind::Config, "cannot use the settings of registries").with_source(error);
            match hint {
                Some(hint) => failed.with_hint(hint),
                None => failed,
            }
        })
    }
}

/// Where logins are kept, in Docker's format: ours, then Docker's.
fn auth_files(home: &Path) -> Vec<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let docker = set("DOCKER_CONFIG").or_else(|| Some(set("HOME")?.join(".docker")));
    let docker = docker.map(|folder| folder.join("config.json"));
    [Some(home.join(AUTH)), docker].into_iter().flatten().collect()
}

/// Where a policy is looked for when none is named.
fn default_policy(home: &Path) -> PolicyFile {
    let user = env::var_os("HOME").filter(|home| !home.is_empty());
    let user = user.map(|home| PathBuf::from(home).join(USER_POLICY));
    PolicyFile::First(
        [Some(home.join(POLICY)), user, Some(MACHINE_POLICY.into())].into_iter().flatten().collect(),
    )
}
