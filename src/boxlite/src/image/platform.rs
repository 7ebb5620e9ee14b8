//! The machine that an image is made for.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// An operating system and a processor in Go's words, as `linux/amd64` or `linux/arm/v7`: the `platform` of the OCI image
/// index specification.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

/// A text names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no platform of the form `os/architecture` or `os/architecture/variant`, such as linux/amd64"
)]
pub struct PlatformError {
    text: String,
}

impl Platform {
    /// This machine's.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    pub(super) fn new(os: String, architecture: String, variant: Option<String>) -> Self {
        Self { os, architecture, variant }
    }

    /// The operating system, `linux`.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// The processor, such as `amd64` or `arm64`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The variant of the processor, such as `v7`.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// Whether an image for `self` is what is asked for with `wanted`. Where no variant is asked for, any will do; the one
    /// 64-bit ARM that there is may be called `v8` or nothing.
    pub(super) fn satisfies(&self, wanted: &Self) -> bool {
        self.os == wanted.os
            && self.architecture == wanted.architecture
            && wanted.normal_variant().is_none_or(|variant| self.normal_variant() == Some(variant))
    }

    fn normal_variant(&self) -> Option<&str> {
        let variant = self.variant.as_deref().filter(|variant| !variant.is_empty());
        variant.filter(|variant| (self.architecture.as_str(), *variant) != ("arm64", "v8"))
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let fail = || PlatformError { text: super::error::shown(text.as_bytes()) };
        let word = |part: &str| {
            !part.is_empty()
                && part.len() <= 32
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(|part| word(part)) {
            return Err(fail());
        }
        // What people and kernels call them, beside Go's words.
        let architecture = |name: &str| match name.to_ascii_lowercase().as_str() {
            "x86_64" | "x86-64" => "amd64".to_owned(),
            "aarch64" => "arm64".to_owned(),
            name => name.to_owned(),
        };
        match parts[..] {
            [os, cpu] => Ok(Self::new(os.to_ascii_lowercase(), architecture(cpu), None)),
            [os, cpu, variant] => {
                Ok(Self::new(os.to_ascii_lowercase(), architecture(cpu), Some(variant.to_ascii_lowercase())))
            }
            _ => Err(fail()),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |text: &str| super::error::shown(text.as_bytes());
        write!(f, "{}/{}", shown(&self.os), shown(&self.architecture))?;
        match &self.variant {
            Some(variant) if !variant.is_empty() => write!(f, "/{}", shown(variant)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn platforms_are_read_as_people_write_them() {
        assert_eq!(of("linux/amd64").to_string(), "linux/amd64");
        assert_eq!(of("linux/x86_64"), of("linux/amd64"));
        assert_eq!(of("Linux/aarch64"), of("linux/arm64"));
        assert_eq!(of("linux/arm/v7").to_string(), "linux/arm/v7");
        for bad in ["", "amd64", "linux/", "/amd64", "a/b/c/d", "linux/amd 64", "linux/a\u{1b}"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_variant_counts_only_where_one_is_asked_for() {
        for (have, wanted, fits) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm/v6", "linux/arm/v7", false),
            ("linux/arm", "linux/arm/v7", false),
            ("linux/arm/v7", "linux/arm", true),
            ("windows/amd64", "linux/amd64", false),
            ("linux/arm64", "linux/amd64", false),
        ] {
            assert_eq!(of(have).satisfies(&of(wanted)), fits, "{have} {wanted}");
        }
    }
}
