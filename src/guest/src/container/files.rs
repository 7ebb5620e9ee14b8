//! The three files of a container that its host writes: /etc/hosts, /etc/hostname and /etc/resolv.conf.
//!
//! They are bound over whatever the image has, as with Docker, and may be written to inside.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use crate::network::Names;

/// Names under /etc.
pub const NAMES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Writes the files into `folder` and gives where each lies and where it belongs.
///
/// # Errors
/// What the system says.
pub fn write(folder: &Path, hostname: &str, names: Option<&Names>) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    fs::create_dir_all(folder)?;
    let mut bound = Vec::new();
    for name in NAMES {
        let content = match name {
            "hosts" => hosts(hostname, names),
            "hostname" => format!("{hostname}\n"),
            // A box without a network has nobody to ask.
            _ => names.map(resolv_conf).unwrap_or_default(),
        };
        let file = folder.join(name);
        fs::write(&file, content)?;
        bound.push((file, Path::new("/etc").join(name)));
    }
    Ok(bound)
}

fn hosts(hostname: &str, names: Option<&Names>) -> String {
    let own = names.and_then(|names| names.own);
    let own = own.unwrap_or(IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1)));
    let mut text = format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n\
         {own}\t{hostname}\n"
    );
    for (address, names) in names.iter().flat_map(|names| &names.hosts) {
        text.push_str(&format!("{address}\t{}\n", names.join(" ")));
    }
    text
}

fn resolv_conf(names: &Names) -> String {
    let servers = names.nameservers.iter().map(|server| format!("nameserver {server}\n"));
    let mut text: String = servers.collect();
    if !names.search.is_empty() {
        text.push_str(&format!("search {}\n", names.search.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_with_a_network_knows_whom_to_ask_and_who_is_there() {
        let names = Names {
            nameservers: vec!["192.168.127.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            search: vec!["corp.example".into()],
            hosts: vec![("192.168.127.254".parse().unwrap(), vec!["host.a".into(), "host.b".into()])],
            own: Some("192.168.127.2".parse().unwrap()),
        };
        assert_eq!(
            resolv_conf(&names),
            "nameserver 192.168.127.1\nnameserver fd00::1\nsearch corp.example\n"
        );
        let hosts = hosts("box", Some(&names));
        assert!(hosts.contains("\n192.168.127.2\tbox\n192.168.127.254\thost.a host.b\n"), "{hosts}");
    }

    #[test]
    fn a_box_without_a_network_knows_itself() {
        let folder = tempfile::tempdir().unwrap();
        let files = write(folder.path(), "box", None).unwrap();
        assert_eq!(files.len(), NAMES.len());
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(read("hosts").ends_with("127.0.1.1\tbox\n") && read("resolv.conf").is_empty());
    }
}
