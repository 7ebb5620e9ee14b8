//! What is mounted in a box, as people write it.

use std::str::FromStr;

use boxlite::{TmpfsSpec, VolumeSpec};

use crate::args::parse_size;

/// `-v SOURCE:TARGET[:OPTIONS]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume(pub(crate) VolumeSpec);

/// `--tmpfs TARGET[:OPTIONS]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tmpfs(pub(crate) TmpfsSpec);

/// `--mount type=…,…`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mount {
    Volume(VolumeSpec),
    Tmpfs(TmpfsSpec),
}

/// A path says so by its first character; anything else is the name of a volume.
fn volume(source: &str, target: &str) -> VolumeSpec {
    if source.starts_with(['/', '.', '~']) {
        VolumeSpec::host(source, target)
    } else {
        VolumeSpec::managed(source, target)
    }
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let (spec, options) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(target), None, None, None) if target.starts_with('/') => {
                (VolumeSpec::managed("", target), "")
            }
            (Some(source), Some(target), options, None) if !source.is_empty() => {
                (volume(source, target), options.unwrap_or_default())
            }
            _ => {
                return Err(format!(
                    "`{text}` is no volume: write HOST:PATH, NAME:PATH or PATH, then `:ro` if wanted"
                ));
            }
        };
        let mut spec = spec;
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" => spec.read_only = true,
                "rw" => spec.read_only = false,
                "create" => spec.create = true,
                other => {
                    return Err(format!("`{other}` is no option of a volume: there are ro, rw and create"));
                }
            }
        }
        Ok(Self(spec))
    }
}

impl FromStr for Tmpfs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (target, options) = text.split_once(':').unwrap_or((text, ""));
        let mut spec = TmpfsSpec::new(target);
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("size", size)) => spec.size_bytes = Some(parse_size(size, 1)?),
                Some(("mode", mode)) => spec.mode = Some(octal(mode)?),
                None if option == "ro" => spec.read_only = true,
                None if option == "rw" => spec.read_only = false,
                _ => {
                    return Err(format!(
                        "`{option}` is no option of memory: there are size=…, mode=…, ro and rw"
                    ));
                }
            }
        }
        Ok(Self(spec))
    }
}

fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8).map_err(|_| format!("`{text}` is no mode: write octal digits, such as 1777"))
}

impl FromStr for Mount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut kind = "volume";
        let (mut source, mut target, mut size, mut mode) = (None, None, None, None);
        let (mut read_only, mut create) = (false, false);
        for field in text.split(',') {
            let (key, value) = field.split_once('=').unwrap_or((field, "true"));
            let flag = || match value {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                other => Err(format!("`{key}={other}`: write true or false")),
            };
            match key {
                "type" => kind = value,
                "source" | "src" => source = Some(value),
                "target" | "destination" | "dst" => target = Some(value),
                "readonly" | "ro" => read_only = flag()?,
                "create" => create = flag()?,
                "tmpfs-size" => size = Some(parse_size(value, 1)?),
                "tmpfs-mode" => mode = Some(octal(value)?),
                other => {
                    return Err(format!(
                        "`{other}` is no field of a mount: there are type, source, target, readonly, create, tmpfs-size and tmpfs-mode"
                    ));
                }
            }
        }
        let target = target.ok_or_else(|| format!("`{text}` has no target"))?;
        let only_memory = |what: &str| format!("`{text}`: {what} goes with type=tmpfs");
        let spec = match (kind, source) {
            ("tmpfs", None) if !create => {
                let mut spec = TmpfsSpec::new(target);
                (spec.size_bytes, spec.mode, spec.read_only) = (size, mode, read_only);
                return Ok(Self::Tmpfs(spec));
            }
            ("tmpfs", _) => return Err(format!("`{text}`: memory has no source")),
            ("bind", Some(source)) => VolumeSpec::host(source, target),
            ("bind", None) => return Err(format!("`{text}` has no source")),
            ("volume", source) => VolumeSpec::managed(source.unwrap_or_default(), target),
            (other, _) => {
                return Err(format!("`{other}` is no type of mount: there are bind, volume and tmpfs"));
            }
        };
        if size.is_some() || mode.is_some() {
            return Err(only_memory(if size.is_some() { "tmpfs-size" } else { "tmpfs-mode" }));
        }
        Ok(Self::Volume(spec.read_only(read_only).create(create)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume_of(text: &str) -> VolumeSpec {
        text.parse::<Volume>().unwrap().0
    }

    #[test]
    fn a_volume_is_a_place_a_name_or_the_boxs_own() {
        assert_eq!(volume_of("/src:/dst"), VolumeSpec::host("/src", "/dst"));
        assert_eq!(volume_of("./src:/dst:ro"), VolumeSpec::host("./src", "/dst").read_only(true));
        assert_eq!(
            volume_of("~/x:/dst:create,ro"),
            VolumeSpec::host("~/x", "/dst").read_only(true).create(true)
        );
        assert_eq!(volume_of("data:/dst:rw"), VolumeSpec::managed("data", "/dst"));
        assert_eq!(volume_of("/dst"), VolumeSpec::managed("", "/dst"));
        for bad in ["", "data", ":/dst", "/a:/b:zz", "/a:/b:ro:x", "/a:/b:z"] {
            assert!(bad.parse::<Volume>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mount_says_what_it_is() {
        let mount = |text: &str| text.parse::<Mount>();
        assert_eq!(
            mount("type=bind,src=/a,dst=/b,readonly").unwrap(),
            Mount::Volume(VolumeSpec::host("/a", "/b").read_only(true))
        );
        assert_eq!(mount("source=v,target=/b").unwrap(), Mount::Volume(VolumeSpec::managed("v", "/b")));
        assert_eq!(mount("type=volume,target=/b").unwrap(), Mount::Volume(VolumeSpec::managed("", "/b")));
        let memory = TmpfsSpec::new("/t").size(64 << 20).mode(0o700);
        assert_eq!(
            mount("type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=700").unwrap(),
            Mount::Tmpfs(memory)
        );
        for bad in [
            "type=bind,target=/b",
            "type=bind,source=/a",
            "type=tmpfs,source=/a,target=/b",
            "type=npipe,source=/a,target=/b",
            "type=bind,source=/a,target=/b,tmpfs-size=1m",
            "type=bind,source=/a,target=/b,bind-propagation=shared",
            "type=bind,source=/a,target=/b,readonly=perhaps",
            "type=tmpfs,target=/b,create",
        ] {
            assert!(mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn memory_has_options() {
        let memory = |text: &str| text.parse::<Tmpfs>().map(|tmpfs| tmpfs.0);
        assert_eq!(memory("/run").unwrap(), TmpfsSpec::new("/run"));
        assert_eq!(
            memory("/run:size=1g,mode=755").unwrap(),
            TmpfsSpec::new("/run").size(1 << 30).mode(0o755)
        );
        assert!(memory("/run:size=x").is_err());
        assert!(memory("/run:noexec").is_err());
    }
}
