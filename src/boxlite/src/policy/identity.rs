//! Which name a signature must give to an image: `signedIdentity` of a requirement.

use std::fmt;

use super::error::{Malformed, shown};
use super::json::Json;
use crate::image::{Digest, Reference};

/// A name of an image in a registry, in full, with what of tag and digest it was given with. No tag is added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    /// Host and repository.
    pub(super) name: String,
    pub(super) tag: Option<String>,
    pub(super) digest: Option<Digest>,
}

impl Named {
    /// Reads a name as Docker normalizes it: `busybox` is `docker.io/library/busybox`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (tagged, digest) = match text.split_once('@') {
            Some((tagged, digest)) => (tagged, Some(digest.parse().ok()?)),
            None => (text, None),
        };
        let tag =
            tagged.rsplit_once(':').map(|(_, tag)| tag).filter(|tag| !tag.contains('/')).map(str::to_owned);
        let reference: Reference = tagged.parse().ok()?;
        Some(Self { name: format!("{}/{}", reference.registry(), reference.repository()), tag, digest })
    }

    fn is_only_a_name(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }

    /// Whether a signature for `signed` counts for this image: the very same name if this one has a tag, the same
    /// repository if it has a digest instead, because then the digest says which image it is.
    fn is_signed_as(&self, signed: &Self) -> bool {
        if signed.is_only_a_name() {
            return false;
        }
        match (&self.tag, &self.digest) {
            (Some(_), _) => self == signed,
            (None, Some(_)) => self.name == signed.name,
            (None, None) => false,
        }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// The rule by which the name in a signature is compared.
#[derive(Debug)]
pub(super) enum SignedIdentity {
    MatchExact,
    MatchRepoDigestOrExact,
    MatchRepository,
    ExactReference(Named),
    ExactRepository(Named),
    RemapIdentity { prefix: String, signed_prefix: String },
}

impl SignedIdentity {
    pub(super) fn parse(json: Json) -> Result<Self, Malformed> {
        let mut fields = json.object()?;
        let kind = fields.need("type")?.text()?;
        let mut text = |name: &str| {
            fields
                .text(name)?
                .ok_or_else(|| Malformed::new(format!("`{name}` of `{}` is missing", shown(&kind))))
        };
        let named = |text: String| {
            Named::parse(&text).ok_or_else(|| Malformed::new(format!("`{}` is no image name", shown(&text))))
        };
        let identity = match kind.as_str() {
            "matchExact" => Self::MatchExact,
            "matchRepoDigestOrExact" => Self::MatchRepoDigestOrExact,
            "matchRepository" => Self::MatchRepository,
            "exactReference" => {
                let wanted = named(text("dockerReference")?)?;
                if wanted.is_only_a_name() {
                    return Err(Malformed::new(format!("`{wanted}` has neither tag nor digest")));
                }
                Self::ExactReference(wanted)
            }
            "exactRepository" => Self::ExactRepository(named(text("dockerRepository")?)?),
            "remapIdentity" => {
                let (prefix, signed_prefix) = (text("prefix")?, text("signedPrefix")?);
                if let Some(bad) = [&prefix, &signed_prefix].into_iter().find(|text| !is_prefix(text)) {
                    return Err(Malformed::new(format!(
                        "`{}` is no host, namespace or repository",
                        shown(bad)
                    )));
                }
                Self::RemapIdentity { prefix, signed_prefix }
            }
            other => return Err(Malformed::new(format!("the type `{}` is unknown", shown(other)))),
        };
        fields.end()?;
        Ok(identity)
    }

    /// Whether a signature for `signed` counts for `image`, which has no name when it comes from an archive.
    pub(super) fn accepts(&self, image: Option<&Named>, signed: &Named) -> bool {
        match self {
            Self::ExactReference(wanted) => !signed.is_only_a_name() && wanted == signed,
            Self::ExactRepository(wanted) => wanted.name == signed.name,
            _ => image.is_some_and(|image| self.accepts_named(image, signed)),
        }
    }

    fn accepts_named(&self, image: &Named, signed: &Named) -> bool {
        match self {
            Self::MatchExact => !image.is_only_a_name() && image == signed,
            Self::MatchRepository => image.name == signed.name,
            Self::RemapIdentity { prefix, signed_prefix } => {
                match remapped(&image.name, prefix, signed_prefix) {
                    Some(name) => Named { name, ..image.clone() }.is_signed_as(signed),
                    None => image.is_signed_as(signed),
                }
            }
            _ => image.is_signed_as(signed),
        }
    }
}

impl fmt::Display for SignedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MatchExact => f.write_str("matchExact"),
            Self::MatchRepoDigestOrExact => f.write_str("matchRepoDigestOrExact"),
            Self::MatchRepository => f.write_str("matchRepository"),
            Self::ExactReference(wanted) => write!(f, "exactReference {wanted}"),
            Self::ExactRepository(wanted) => write!(f, "exactRepository {}", wanted.name),
            Self::RemapIdentity { prefix, signed_prefix } => {
                write!(f, "remapIdentity {prefix} {signed_prefix}")
            }
        }
    }
}

/// `name` with `new` in place of `prefix`, if it begins with it and no part of it is cut in two.
fn remapped(name: &str, prefix: &str, new: &str) -> Option<String> {
    let rest = name.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/')).then(|| format!("{new}{rest}"))
}

/// A host, or one with parts of a repository after it, in the full form: with more parts it must be a name that
/// normalization leaves alone.
fn is_prefix(text: &str) -> bool {
    let longer = format!("{text}/x/x");
    Named::parse(&longer).is_some_and(|named| named.is_only_a_name() && named.name == longer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn identity(json: &str) -> Result<SignedIdentity, Malformed> {
        SignedIdentity::parse(Json::parse(json.as_bytes()).unwrap())
    }

    fn named(text: &str) -> Named {
        Named::parse(&text.replace("@D", &format!("@sha256:{HEX}"))).unwrap_or_else(|| panic!("{text}"))
    }

    /// Each case: the image, the name in the signature, and whether it is accepted.
    fn check(json: &str, cases: &[(&str, &str, bool)]) {
        let identity = identity(json).unwrap();
        for (image, signed, accepted) in cases {
            let image = (!image.is_empty()).then(|| named(image));
            assert_eq!(
                identity.accepts(image.as_ref(), &named(signed)),
                *accepted,
                "{identity}: {image:?} {signed}"
            );
        }
    }

    #[test]
    fn names_are_normalized_and_get_no_tag() {
        assert_eq!(named("busybox").to_string(), "docker.io/library/busybox");
        assert_eq!(named("busybox:1").to_string(), "docker.io/library/busybox:1");
        assert_eq!(named("h:5000/a/b:c@D").to_string(), format!("h:5000/a/b:c@sha256:{HEX}"));
        assert_eq!(named("h:5000/a").tag, None);
        for text in ["", "@", "a@sha256:00", "a@", "A/b:c", "a@D@D", "a:b:c"] {
            assert!(Named::parse(&text.replace("@D", &format!("@sha256:{HEX}"))).is_none(), "{text}");
        }
    }

    #[test]
    fn match_exact_wants_the_same_tag_or_digest() {
        check(
            r#"{"type":"matchExact"}"#,
            &[
                ("h.x/a:1", "h.x/a:1", true),
                ("h.x/a:1", "h.x/a:2", false),
                ("h.x/a:1", "h.x/a", false),
                ("h.x/a", "h.x/a", false),
                ("h.x/a@D", "h.x/a:1", false),
                ("h.x/a@D", "h.x/a@D", true),
                ("h.x/a:1", "h.x/b:1", false),
                ("docker.io/library/busybox:1", "busybox:1", true),
                ("", "h.x/a:1", false),
            ],
        );
    }

    #[test]
    fn match_repo_digest_or_exact_lets_a_digest_stand_for_any_tag() {
        check(
            r#"{"type":"matchRepoDigestOrExact"}"#,
            &[
                ("h.x/a:1", "h.x/a:1", true),
                ("h.x/a:1", "h.x/a:2", false),
                ("h.x/a:1", "h.x/a", false),
                ("h.x/a:1", "h.x/a@D", false),
                ("h.x/a@D", "h.x/a:1", true),
                ("h.x/a@D", "h.x/a", false),
                ("h.x/a@D", "h.x/b:1", false),
                ("h.x/a", "h.x/a:1", false),
                ("", "h.x/a:1", false),
            ],
        );
    }

    #[test]
    fn match_repository_looks_at_no_tag() {
        check(
            r#"{"type":"matchRepository"}"#,
            &[
                ("h.x/a:1", "h.x/a:2", true),
                ("h.x/a:1", "h.x/a", true),
                ("h.x/a@D", "h.x/a:1", true),
                ("h.x/a:1", "h.x/a/b:1", false),
                ("h.x/a:1", "h.x:1/a:1", false),
                ("", "h.x/a:1", false),
            ],
        );
    }

    #[test]
    fn exact_rules_look_at_the_signature_alone() {
        let cases = [
            ("", "h.x/a:1", true),
            ("o.x/b:2", "h.x/a:1", true),
            ("h.x/a:2", "h.x/a:2", false),
            ("", "h.x/a", false),
        ];
        check(r#"{"type":"exactReference","dockerReference":"h.x/a:1"}"#, &cases);
        let cases = [("", "h.x/a:1", true), ("o.x/b:2", "h.x/a", true), ("h.x/a/b:1", "h.x/a/b:1", false)];
        check(r#"{"type":"exactRepository","dockerRepository":"h.x/a"}"#, &cases);
    }

    #[test]
    fn remap_identity_replaces_whole_parts_of_a_prefix() {
        check(
            r#"{"type":"remapIdentity","prefix":"mirror:5000/v","signedPrefix":"vendor.x"}"#,
            &[
                ("mirror:5000/v/p/i:1", "vendor.x/p/i:1", true),
                ("mirror:5000/v/p/i:1", "vendor.x/p/i:2", false),
                ("mirror:5000/v/p/i:1", "mirror:5000/v/p/i:1", false),
                ("mirror:5000/v/p/i@D", "vendor.x/p/i:7", true),
                ("mirror:5000/vv/i:1", "mirror:5000/vv/i:1", true),
                ("mirror:5000/vv/i:1", "vendor.xv/i:1", false),
                ("other.x/i:1", "other.x/i:1", true),
                ("other.x/i:1", "vendor.x/i:1", false),
                ("", "vendor.x/p/i:1", false),
            ],
        );
        check(
            r#"{"type":"remapIdentity","prefix":"docker.io/library/busybox","signedPrefix":"h.x/bb"}"#,
            &[("busybox:1", "h.x/bb:1", true), ("busybox:1", "busybox:1", false)],
        );
    }

    #[test]
    fn rules_that_make_no_sense_are_errors() {
        for json in [
            "null",
            "[]",
            "{}",
            r#"{"type":null}"#,
            r#"{"type":"matchexact"}"#,
            r#"{"type":"matchExact","x":1}"#,
            r#"{"type":"matchExact","dockerReference":"h.x/a:1"}"#,
            r#"{"type":"exactReference"}"#,
            r#"{"type":"exactReference","dockerReference":"h.x/a"}"#,
            r#"{"type":"exactReference","dockerReference":""}"#,
            r#"{"type":"exactReference","dockerReference":"UPPER:1"}"#,
            r#"{"type":"exactReference","dockerRepository":"h.x/a"}"#,
            r#"{"type":"exactRepository","dockerRepository":"h.x/a b"}"#,
            r#"{"type":"remapIdentity","prefix":"h.x"}"#,
            r#"{"type":"remapIdentity","signedPrefix":"h.x"}"#,
            r#"{"type":"remapIdentity","prefix":"busybox","signedPrefix":"h.x"}"#,
            r#"{"type":"remapIdentity","prefix":"h.x/a:1","signedPrefix":"h.x"}"#,
            r#"{"type":"remapIdentity","prefix":"h.x/a/","signedPrefix":"h.x"}"#,
            r#"{"type":"remapIdentity","prefix":"h.x","signedPrefix":"/"}"#,
        ] {
            assert!(identity(json).is_err(), "{json}");
        }
        for prefix in ["h.x", "h.x:5000", "localhost", "docker.io", "docker.io/library", "h.x/a/b"] {
            assert!(is_prefix(prefix), "{prefix}");
        }
    }
}
