//! The JSON of a policy, read as strictly as containers/image reads it: an unknown or doubled key is an error, so that
//! nothing that was meant to restrict is passed over.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::identity::Identity;
use super::key::{self, Key};

/// Entries of a list or an object.
const ENTRIES: usize = 10_000;

/// What a policy says.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) default: Vec<Requirement>,
    transports: Vec<(String, Scopes)>,
}

/// Scopes of a transport with their requirements.
type Scopes = Vec<(String, Vec<Requirement>)>;

/// What must hold of an image.
#[derive(Debug)]
pub(super) enum Requirement {
    AcceptAnything,
    Reject,
    SigstoreSigned(SigstoreSigned),
    /// Well-formed, and not offered here: what it is.
    Unsupported(String),
}

/// A signature by one of some keys, for some identity.
#[derive(Debug)]
pub(super) struct SigstoreSigned {
    sources: Vec<KeySource>,
    pub(super) identity: Identity,
}

#[derive(Debug)]
enum KeySource {
    File(PathBuf),
    Data(Vec<u8>),
}

impl Document {
    pub(super) fn accept_anything() -> Self {
        Self { default: vec![Requirement::AcceptAnything], transports: Vec::new() }
    }

    /// Tells why it is not understood.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            default: Requirements,
            #[serde(default)]
            transports: Option<Pairs<Pairs<Requirements>>>,
        }
        let raw: Raw = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let scopes =
            |scopes: Pairs<Requirements>| scopes.0.into_iter().map(|(name, list)| (name, list.0)).collect();
        let transports = raw.transports.map(|pairs| pairs.0).unwrap_or_default();
        Ok(Self {
            default: raw.default.0,
            transports: transports.into_iter().map(|(name, pairs)| (name, scopes(pairs))).collect(),
        })
    }

    /// The scopes of a transport.
    pub(super) fn transport(&self, name: &str) -> &[(String, Vec<Requirement>)] {
        self.transports
            .iter()
            .find(|(transport, _)| transport == name)
            .map_or(&[], |(_, scopes)| scopes.as_slice())
    }
}

impl SigstoreSigned {
    /// The keys, read now. Tells why one cannot be used.
    pub(super) fn keys(&self) -> Result<Vec<Key>, String> {
        let mut keys = Vec::new();
        for source in &self.sources {
            keys.extend(match source {
                KeySource::File(path) => key::read(path)?,
                KeySource::Data(pem) => {
                    key::parse(pem).map_err(|reason| format!("a key of the policy {reason}"))?
                }
            });
        }
        Ok(keys)
    }
}

/// A list that must not be empty.
struct Requirements(Vec<Requirement>);

impl<'de> Deserialize<'de> for Requirements {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let list = Vec::<RawRequirement>::deserialize(deserializer)?;
        if list.is_empty() || list.len() > ENTRIES {
            return Err(D::Error::custom("a list of requirements is empty or too long"));
        }
        list.into_iter()
            .map(Requirement::try_from)
            .collect::<Result<_, _>>()
            .map(Self)
            .map_err(D::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawRequirement {
    r#type: String,
    key_path: Option<PathBuf>,
    key_data: Option<String>,
    key_paths: Option<Vec<PathBuf>>,
    key_datas: Option<Vec<String>>,
    signed_identity: Option<Identity>,
    // What follows belongs to requirements that are not offered.
    key_type: Option<IgnoredAny>,
    base_layer_identity: Option<IgnoredAny>,
    fulcio: Option<IgnoredAny>,
    pki: Option<IgnoredAny>,
    rekor_public_key_path: Option<IgnoredAny>,
    rekor_public_key_data: Option<IgnoredAny>,
    rekor_public_key_paths: Option<IgnoredAny>,
    rekor_public_key_datas: Option<IgnoredAny>,
}

impl RawRequirement {
    fn has_keys(&self) -> usize {
        let given = [
            self.key_path.is_some(),
            self.key_data.is_some(),
            self.key_paths.is_some(),
            self.key_datas.is_some(),
        ];
        given.into_iter().filter(|given| *given).count()
    }

    fn has_more(&self) -> Option<&'static str> {
        let rekor = [
            &self.rekor_public_key_path,
            &self.rekor_public_key_data,
            &self.rekor_public_key_paths,
            &self.rekor_public_key_datas,
        ];
        if self.fulcio.is_some() {
            Some("certificates of Fulcio (`fulcio`)")
        } else if self.pki.is_some() {
            Some("certificates (`pki`)")
        } else if rekor.iter().any(|key| key.is_some()) {
            Some("an entry in a log of Rekor (`rekorPublicKey…`)")
        } else {
            None
        }
    }

    fn is_bare(&self) -> bool {
        self.has_keys() == 0
            && self.has_more().is_none()
            && self.signed_identity.is_none()
            && self.key_type.is_none()
            && self.base_layer_identity.is_none()
    }
}

impl TryFrom<RawRequirement> for Requirement {
    type Error = String;

    fn try_from(raw: RawRequirement) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("a requirement of type {} {what}", raw.r#type.escape_debug()));
        match raw.r#type.as_str() {
            "insecureAcceptAnything" | "reject" if !raw.is_bare() => wrong("has keys that belong to another"),
            "insecureAcceptAnything" => Ok(Self::AcceptAnything),
            "reject" => Ok(Self::Reject),
            "signedBy" => Ok(Self::Unsupported("signatures of GPG (`signedBy`)".into())),
            "signedBaseLayer" => {
                Ok(Self::Unsupported("signatures of base layers (`signedBaseLayer`)".into()))
            }
            "sigstoreSigned" => {
                if raw.key_type.is_some() || raw.base_layer_identity.is_some() {
                    return wrong("has keys that belong to another");
                }
                if let Some(what) = raw.has_more() {
                    return Ok(Self::Unsupported(what.into()));
                }
                if raw.has_keys() != 1 {
                    return wrong("needs exactly one of keyPath, keyPaths, keyData and keyDatas");
                }
                let paths = raw.key_path.into_iter().chain(raw.key_paths.unwrap_or_default());
                let mut sources: Vec<KeySource> = paths.map(KeySource::File).collect();
                for data in raw.key_data.into_iter().chain(raw.key_datas.unwrap_or_default()) {
                    let pem =
                        STANDARD.decode(data).map_err(|error| format!("keyData is no base64: {error}"))?;
                    sources.push(KeySource::Data(pem));
                }
                if sources.is_empty() {
                    return Err("a list of keys is empty".into());
                }
                Ok(Self::SigstoreSigned(SigstoreSigned {
                    sources,
                    identity: raw.signed_identity.unwrap_or_default(),
                }))
            }
            _ => wrong("is unknown"),
        }
    }
}

/// An object whose keys are free; none may be there twice.
struct Pairs<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs: Vec<(String, T)> = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    if pairs.len() == ENTRIES {
                        return Err(A::Error::custom("an object has too many keys"));
                    }
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format!(
                            "the key `{}` is there twice",
                            key.escape_debug()
                        )));
                    }
                    pairs.push((key, value));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Reader(PhantomData))
    }
}
