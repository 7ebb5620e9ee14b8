//! What a policy asks of an image: one requirement, read strictly.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::error::{Malformed, shown};
use super::identity::SignedIdentity;
use super::json::{Fields, Json};

/// A requirement. Those of a scope must hold all together.
#[derive(Debug)]
pub(super) enum Requirement {
    /// `insecureAcceptAnything`.
    Accept,
    /// `reject`.
    Reject,
    /// `sigstoreSigned` by one of some keys.
    Signed { keys: KeySource, identity: SignedIdentity },
    /// One that is well-formed, but cannot be checked here: no image satisfies it.
    Unsupported { kind: &'static str, what: &'static str },
}

/// Where the keys of a requirement come from.
#[derive(Debug)]
pub(super) enum KeySource {
    /// Files, read whenever an image is checked.
    Files(Vec<PathBuf>),
    /// PEM that stands in the policy.
    Data(Vec<Vec<u8>>),
}

impl Requirement {
    /// The requirements of a scope. There must be one: nothing to check would mean everything is accepted.
    pub(super) fn parse_all(json: Json) -> Result<Vec<Self>, Malformed> {
        let list = json.list()?;
        if list.is_empty() {
            return Err(Malformed::new("there is no requirement"));
        }
        let numbered = list.into_iter().enumerate();
        numbered
            .map(|(at, json)| {
                Self::parse(json).map_err(|error| error.within(format_args!("requirement {}", at + 1)))
            })
            .collect()
    }

    fn parse(json: Json) -> Result<Self, Malformed> {
        let mut fields = json.object()?;
        let kind = fields.need("type")?.text()?;
        let requirement = match kind.as_str() {
            "insecureAcceptAnything" => Self::Accept,
            "reject" => Self::Reject,
            "sigstoreSigned" => sigstore_signed(&mut fields)?,
            "signedBy" => signed_by(&mut fields)?,
            "signedBaseLayer" => {
                SignedIdentity::parse(fields.need("baseLayerIdentity")?)
                    .map_err(|error| error.within("`baseLayerIdentity`"))?;
                Self::Unsupported { kind: "signedBaseLayer", what: "`signedBaseLayer`" }
            }
            other => return Err(Malformed::new(format!("the type `{}` is unknown", shown(other)))),
        };
        fields.end()?;
        Ok(requirement)
    }

    /// The word for it in the file.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Accept => "insecureAcceptAnything",
            Self::Reject => "reject",
            Self::Signed { .. } => "sigstoreSigned",
            Self::Unsupported { kind, .. } => kind,
        }
    }
}

fn sigstore_signed(fields: &mut Fields) -> Result<Requirement, Malformed> {
    let identity = signed_identity(fields)?;
    let path = fields.text("keyPath")?.map(|path| vec![path]);
    let paths = fields.texts("keyPaths")?;
    let data = fields.text("keyData")?.map(|data| vec![data]);
    let datas = fields.texts("keyDatas")?;
    let files = [path, paths].into_iter().flatten().map(files);
    let data = [data, datas].into_iter().flatten().map(data_of);
    let mut keys = files.chain(data).collect::<Result<Vec<_>, _>>()?;
    let fulcio = fields.take("fulcio").map(fulcio).transpose()?.is_some();
    let pki = fields.take("pki").map(pki).transpose()?.is_some();
    let logs = rekor(fields)?;
    if keys.len() + usize::from(fulcio) + usize::from(pki) != 1 {
        return Err(Malformed::new(
            "there must be exactly one of `keyPath`, `keyPaths`, `keyData`, `keyDatas`, `fulcio` and `pki`",
        ));
    }
    if fulcio && !logs {
        return Err(Malformed::new("`fulcio` needs a `rekorPublicKeyPath` or the like"));
    }
    let unsupported = |what| Ok(Requirement::Unsupported { kind: "sigstoreSigned", what });
    match keys.pop() {
        _ if fulcio => unsupported("`sigstoreSigned` with `fulcio`"),
        _ if pki => unsupported("`sigstoreSigned` with `pki`"),
        Some(_) if logs => unsupported("`sigstoreSigned` with a key of the transparency log Rekor"),
        Some(keys) => Ok(Requirement::Signed { keys, identity }),
        None => Err(Malformed::new("there is no key")),
    }
}

fn signed_by(fields: &mut Fields) -> Result<Requirement, Malformed> {
    const TYPES: [&str; 4] = ["GPGKeys", "signedByGPGKeys", "X509Certificates", "signedByX509CAs"];
    signed_identity(fields)?;
    let key_type = fields.need("keyType")?.text()?;
    if !TYPES.contains(&key_type.as_str()) {
        return Err(Malformed::new(format!("the key type `{}` is unknown", shown(&key_type))));
    }
    let path = fields.text("keyPath")?.is_some();
    let paths = fields.texts("keyPaths")?.is_some();
    let data = bytes(fields, "keyData")?;
    one_of(&[path, paths, data], "there must be exactly one of `keyPath`, `keyPaths` and `keyData`")?;
    Ok(Requirement::Unsupported { kind: "signedBy", what: "`signedBy`, a signature with GPG," })
}

fn signed_identity(fields: &mut Fields) -> Result<SignedIdentity, Malformed> {
    match fields.take("signedIdentity") {
        None => Ok(SignedIdentity::MatchRepoDigestOrExact),
        Some(json) => SignedIdentity::parse(json).map_err(|error| error.within("`signedIdentity`")),
    }
}

fn fulcio(json: Json) -> Result<(), Malformed> {
    let inner = || {
        let mut fields = json.object()?;
        let sources = [fields.text("caPath")?.is_some(), bytes(&mut fields, "caData")?];
        one_of(&sources, "there must be exactly one of `caPath` and `caData`")?;
        for name in ["oidcIssuer", "subjectEmail"] {
            fields.text(name)?.ok_or_else(|| Malformed::new(format!("`{name}` is missing")))?;
        }
        fields.end()
    };
    inner().map_err(|error: Malformed| error.within("`fulcio`"))
}

fn pki(json: Json) -> Result<(), Malformed> {
    let inner = || {
        let mut fields = json.object()?;
        let roots = [fields.text("caRootsPath")?.is_some(), bytes(&mut fields, "caRootsData")?];
        one_of(&roots, "there must be exactly one of `caRootsPath` and `caRootsData`")?;
        if let [true, true] =
            [fields.text("caIntermediatesPath")?.is_some(), bytes(&mut fields, "caIntermediatesData")?]
        {
            return Err(Malformed::new("there are both `caIntermediatesPath` and `caIntermediatesData`"));
        }
        let subjects = [fields.text("subjectEmail")?, fields.text("subjectHostname")?];
        if subjects.iter().all(Option::is_none) {
            return Err(Malformed::new("there must be `subjectEmail` or `subjectHostname`"));
        }
        fields.end()
    };
    inner().map_err(|error: Malformed| error.within("`pki`"))
}

/// Whether keys of the transparency log are given.
fn rekor(fields: &mut Fields) -> Result<bool, Malformed> {
    let path = fields.text("rekorPublicKeyPath")?.is_some();
    let paths = fields.texts("rekorPublicKeyPaths")?.is_some();
    let data = bytes(fields, "rekorPublicKeyData")?;
    let datas = fields.texts("rekorPublicKeyDatas")?.map(data_of).transpose()?.is_some();
    match [path, paths, data, datas].into_iter().filter(|given| *given).count() {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed::new("there is more than one of `rekorPublicKeyPath` and its likes")),
    }
}

fn one_of(given: &[bool], otherwise: &str) -> Result<(), Malformed> {
    if given.iter().filter(|given| **given).count() == 1 { Ok(()) } else { Err(Malformed::new(otherwise)) }
}

fn files(paths: Vec<String>) -> Result<KeySource, Malformed> {
    // A relative path would be another file wherever the program that embeds this is started.
    match paths.iter().find(|path| !Path::new(path).is_absolute()) {
        Some(path) => Err(Malformed::new(format!("the path of the key `{}` is not absolute", shown(path)))),
        None => Ok(KeySource::Files(paths.into_iter().map(PathBuf::from).collect())),
    }
}

fn data_of(texts: Vec<String>) -> Result<KeySource, Malformed> {
    texts.iter().map(|text| decoded(text)).collect::<Result<_, _>>().map(KeySource::Data)
}

/// Whether the field is there; if it is, it must be base64.
fn bytes(fields: &mut Fields, name: &str) -> Result<bool, Malformed> {
    let Some(text) = fields.text(name)? else { return Ok(false) };
    decoded(&text).map_err(|error| error.within(format_args!("`{name}`")))?;
    Ok(true)
}

fn decoded(base64: &str) -> Result<Vec<u8>, Malformed> {
    // The command `base64` breaks lines.
    let base64: String = base64.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    STANDARD.decode(base64).map_err(|_| Malformed::new("the data of a key are no base64"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Requirement, Malformed> {
        Requirement::parse(Json::parse(json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}")))
    }

    fn signed(fields: &str) -> Result<Requirement, Malformed> {
        parse(&format!(r#"{{"type":"sigstoreSigned",{fields}}}"#))
    }

    #[test]
    fn keys_come_from_exactly_one_place() {
        let sources = [
            r#""keyPath":"/k""#,
            r#""keyPaths":["/k","/l"]"#,
            r#""keyData":"eA==""#,
            r#""keyDatas":["eA==","eQ==\n"]"#,
        ];
        for (at, source) in sources.iter().enumerate() {
            let Requirement::Signed { keys, identity } = signed(source).unwrap() else { panic!("{source}") };
            assert!(matches!(identity, SignedIdentity::MatchRepoDigestOrExact));
            match keys {
                KeySource::Files(files) => assert_eq!((at < 2, files.len()), (true, 1 + at % 2)),
                KeySource::Data(data) => assert_eq!((at >= 2, data.len()), (true, 1 + at % 2)),
            }
            for other in sources.iter().filter(|other| *other != source) {
                let error = signed(&format!("{source},{other}")).unwrap_err().to_string();
                assert!(error.contains("exactly one of"), "{error}");
            }
        }
        assert!(signed(r#""signedIdentity":{"type":"matchExact"}"#).is_err());
    }

    #[test]
    fn keys_that_make_no_sense_are_errors() {
        for fields in [
            r#""keyPath":"""#,
            r#""keyPath":null"#,
            r#""keyPath":["/k"]"#,
            r#""keyPath":"k.pub""#,
            r#""keyPaths":[]"#,
            r#""keyPaths":"/k""#,
            r#""keyPaths":["/k","./l"]"#,
            r#""keyPaths":["/k",1]"#,
            r#""keyData":"""#,
            r#""keyData":"-----BEGIN""#,
            r#""keyDatas":["eA==","?"]"#,
            r#""keyPath":"/k","keypath":"/k""#,
            r#""keyPath":"/k","signedIdentity":null"#,
            r#""keyPath":"/k","signedIdentity":{"type":"no"}"#,
            r#""keyPath":"/k","keyType":"GPGKeys""#,
        ] {
            assert!(signed(fields).is_err(), "{fields}");
        }
    }

    #[test]
    fn what_is_well_formed_but_not_supported_is_told_apart_from_nonsense() {
        const FULCIO: &str = r#""fulcio":{"caPath":"/c","oidcIssuer":"https://i","subjectEmail":"a@b"}"#;
        const PKI: &str = r#""pki":{"caRootsPath":"/c","subjectHostname":"h"}"#;
        let well_formed = [
            format!(r#""type":"sigstoreSigned",{FULCIO},"rekorPublicKeyPath":"/r""#),
            format!(r#""type":"sigstoreSigned",{FULCIO},"rekorPublicKeyDatas":["eA=="]"#),
            format!(r#""type":"sigstoreSigned",{PKI}"#),
            r#""type":"sigstoreSigned",
                "pki":{"caRootsData":"eA==","caIntermediatesData":"eA==","subjectEmail":"a@b"}"#
                .into(),
            r#""type":"sigstoreSigned","keyPath":"/k","rekorPublicKeyData":"eA==""#.into(),
            r#""type":"sigstoreSigned","keyPath":"/k","rekorPublicKeyPaths":["/r"]"#.into(),
            r#""type":"signedBy","keyType":"GPGKeys","keyPath":"/k""#.into(),
            r#""type":"signedBy","keyType":"GPGKeys","keyPaths":["k"],"signedIdentity":{"type":"matchExact"}"#.into(),
            r#""type":"signedBy","keyType":"signedByX509CAs","keyData":"eA==""#.into(),
            r#""type":"signedBaseLayer","baseLayerIdentity":{"type":"matchRepository"}"#.into(),
        ];
        for fields in well_formed {
            let requirement =
                parse(&format!("{{{fields}}}")).unwrap_or_else(|error| panic!("{fields}: {error}"));
            assert!(matches!(requirement, Requirement::Unsupported { .. }), "{fields}");
            assert!(fields.contains(&format!(r#""type":"{}""#, requirement.kind())));
        }
        let nonsense = [
            format!(r#""type":"sigstoreSigned",{FULCIO}"#),
            format!(r#""type":"sigstoreSigned",{FULCIO},{PKI},"rekorPublicKeyPath":"/r""#),
            format!(r#""type":"sigstoreSigned",{FULCIO},"keyPath":"/k","rekorPublicKeyPath":"/r""#),
            format!(r#""type":"sigstoreSigned",{PKI},"keyPath":"/k""#),
            r#""type":"sigstoreSigned","fulcio":{"caPath":"/c","oidcIssuer":"i"},"rekorPublicKeyPath":"/r""#.into(),
            r#""type":"sigstoreSigned","rekorPublicKeyPath":"/r",
                "fulcio":{"caPath":"/c","caData":"eA==","oidcIssuer":"i","subjectEmail":"a"}"#
                .into(),
            r#""type":"sigstoreSigned","fulcio":null,"rekorPublicKeyPath":"/r""#.into(),
            r#""type":"sigstoreSigned","pki":{"caRootsPath":"/c"}"#.into(),
            r#""type":"sigstoreSigned","pki":{"subjectEmail":"a"}"#.into(),
            r#""type":"sigstoreSigned",
                "pki":{"caRootsPath":"/c","subjectEmail":"a","caIntermediatesPath":"/i","caIntermediatesData":"eA=="}"#
                .into(),
            r#""type":"sigstoreSigned","rekorPublicKeyPath":"/r""#.into(),
            r#""type":"sigstoreSigned","keyPath":"/k","rekorPublicKeyPath":"/r","rekorPublicKeyData":"eA==""#.into(),
            r#""type":"signedBy","keyPath":"/k""#.into(),
            r#""type":"signedBy","keyType":"GPG","keyPath":"/k""#.into(),
            r#""type":"signedBy","keyType":"GPGKeys""#.into(),
            r#""type":"signedBy","keyType":"GPGKeys","keyPath":"/k","keyData":"eA==""#.into(),
            r#""type":"signedBy","keyType":"GPGKeys","keyDatas":["eA=="]"#.into(),
            r#""type":"signedBaseLayer""#.into(),
            r#""type":"signedBaseLayer","baseLayerIdentity":{"type":"matchRepository"},"x":1"#.into(),
        ];
        for fields in nonsense {
            assert!(parse(&format!("{{{fields}}}")).is_err(), "{fields}");
        }
    }

    #[test]
    fn requirements_are_objects_of_a_known_type_and_no_other_key() {
        for json in [
            "null",
            "[]",
            r#""reject""#,
            "{}",
            r#"{"type":null}"#,
            r#"{"type":"Reject"}"#,
            r#"{"type":"insecureAcceptAnything","signedIdentity":{"type":"matchExact"}}"#,
            r#"{"type":"reject","reason":"x"}"#,
        ] {
            assert!(parse(json).is_err(), "{json}");
        }
        let list = |json: &str| Requirement::parse_all(Json::parse(json.as_bytes()).unwrap());
        assert!(list("[]").is_err());
        assert!(list(r#"{"type":"reject"}"#).is_err());
        let error = list(r#"[{"type":"reject"},{"type":"no"}]"#).unwrap_err().to_string();
        assert_eq!(error, "requirement 2: the type `no` is unknown");
    }
}
