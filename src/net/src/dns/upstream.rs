//! The host's own resolvers, and how they are asked.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::message;

/// How long a server may take, and how often one is asked in all.
const ANSWER: Duration = Duration::from_secs(2);
const TRIES: usize = 3;
/// Where the host says whom it asks, and how often that is looked at.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const LOOK: Duration = Duration::from_secs(1);
/// The most servers that are asked.
const SERVERS: usize = 3;
/// The longest datagram.
const DATAGRAM: usize = 4096;

/// Whom to ask.
#[derive(Debug)]
pub(super) struct Upstream {
    fixed: Vec<SocketAddr>,
    /// What resolv.conf said last.
    read: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    at: Option<Instant>,
    changed: Option<SystemTime>,
    servers: Vec<SocketAddr>,
}

impl Upstream {
    /// These servers; if there are none, those that resolv.conf names.
    pub(super) fn new(servers: &[SocketAddr]) -> Self {
        Self { fixed: servers.to_vec(), read: Mutex::default() }
    }

    fn servers(&self) -> Vec<SocketAddr> {
        if !self.fixed.is_empty() {
            return self.fixed.clone();
        }
        let mut known = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if known.at.is_none_or(|at| at.elapsed() >= LOOK) {
            known.at = Some(Instant::now());
            let changed = fs::metadata(RESOLV_CONF).and_then(|meta| meta.modified()).ok();
            if changed != known.changed || known.servers.is_empty() {
                known.changed = changed;
                known.servers = read(Path::new(RESOLV_CONF));
            }
        }
        known.servers.clone()
    }

    /// Asks one server after the other. `None`: none of them knows anything.
    pub(super) async fn ask(&self, name: &Name, kind: RecordType) -> Option<Message> {
        let servers = self.servers();
        let mut last = None;
        for server in servers.iter().cycle().take(if servers.is_empty() { 0 } else { TRIES }) {
            match timeout(ANSWER, exchange(*server, name, kind)).await {
                Ok(Ok(answer)) => match answer.metadata.response_code {
                    ResponseCode::NoError | ResponseCode::NXDomain => return Some(answer),
                    _ => last = Some(answer),
                },
                Ok(Err(error)) => tracing::debug!(%error, %server, "a name server cannot be asked"),
                Err(_) => tracing::debug!(%server, "a name server does not answer"),
            }
        }
        last
    }
}

fn read(path: &Path) -> Vec<SocketAddr> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        // A zone names an interface of the host's; such servers are rare, and left out.
        Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, 53))
    };
    text.lines().filter_map(server).take(SERVERS).collect()
}

async fn exchange(server: SocketAddr, name: &Name, kind: RecordType) -> io::Result<Message> {
    let mut seed = [0; 2];
    io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut seed)?;
    let id = u16::from_ne_bytes(seed);
    let unwritable = || io::Error::new(io::ErrorKind::InvalidInput, "the question cannot be written");
    let question = message::question(id, name, kind).ok_or_else(unwritable)?;
    // A port of the kernel's choosing for each question: who has to guess it has to guess the number as well.
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&question).await?;
    let mut bytes = vec![0; DATAGRAM];
    loop {
        let length = socket.recv(&mut bytes).await?;
        match message::answer_to(id, name, kind, &bytes[..length]) {
            Some(answer) if answer.metadata.truncation => break,
            Some(answer) => return Ok(answer),
            // Somebody guesses, or an answer is late.
            None => {}
        }
    }
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&super::stream::frame(&question)).await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    let other = || io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question");
    message::answer_to(id, name, kind, &bytes).ok_or_else(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_from_resolv_conf() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(
            file.path(),
            "# one\nsearch corp\nnameserver 127.0.0.53\n nameserver  fd00::1 \nnameserver fe80::1%eth0\n\
             nameserver nonsense\nnameservers 1.1.1.1\nnameserver 9.9.9.9\nnameserver 8.8.8.8\n",
        )
        .unwrap();
        let expected = ["127.0.0.53:53", "[fd00::1]:53", "9.9.9.9:53"];
        assert_eq!(read(file.path()), expected.map(|text| text.parse().unwrap()));
        assert_eq!(read(Path::new("/nonexistent")), []);
    }
}
