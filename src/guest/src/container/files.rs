//! The three files of a container that its host writes: /etc/hosts, /etc/hostname and /etc/resolv.conf.
//!
//! They are bound over whatever the image has, as with Docker, and may be written to inside.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Names under /etc.
pub const NAMES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Writes the files into `folder` and gives where each lies and where it belongs.
///
/// # Errors
/// What the system says.
pub fn write(folder: &Path, hostname: &str) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    fs::create_dir_all(folder)?;
    let mut bound = Vec::new();
    for name in NAMES {
        let content = match name {
            "hosts" => hosts(hostname),
            "hostname" => format!("{hostname}\n"),
            // The box has no name server until it has a network.
            _ => String::new(),
        };
        let file = folder.join(name);
        fs::write(&file, content)?;
        bound.push((file, Path::new("/etc").join(name)));
    }
    Ok(bound)
}

fn hosts(hostname: &str) -> String {
    format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n\
         127.0.1.1\t{hostname}\n"
    )
}
