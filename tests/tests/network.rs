//! The network of a box: what goes through it, who publishes what, and what becomes of it when its process dies.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use boxlite_tests::story::{Story, eventually, kill};

const PATIENCE: Duration = Duration::from_secs(60);
/// What is sent each way.
const BULK: usize = 8 << 20;

/// Takes all that a client sends until it ends its half, and sends it back in another order.
fn mirror(address: &str) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || answer(stream));
        }
    });
    port
}

fn answer(mut stream: TcpStream) {
    let mut all = Vec::new();
    if stream.read_to_end(&mut all).is_ok() {
        all.reverse();
        drop(stream.write_all(&all));
    }
}

fn udp_mirror(address: &str) -> u16 {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut bytes = vec![0; 65536];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            bytes[..length].reverse();
            drop(socket.send_to(&bytes[..length], from));
        }
    });
    port
}

/// A client of both mirrors, in Python. It ends its half first, and reads the rest then.
const CLIENT: &str = r#"
import os, socket, sys
host, tcp, udp, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
data = os.urandom(size)
s = socket.create_connection((host, tcp), 60)
import threading
got = bytearray()
def take():
    while True:
        part = s.recv(1 << 20)
        if not part: break
        got.extend(part)
reader = threading.Thread(target=take); reader.start()
s.sendall(data); s.shutdown(socket.SHUT_WR); reader.join()
assert bytes(got) == data[::-1], "tcp: %d of %d bytes" % (len(got), size)
family = socket.AF_INET6 if ":" in host else socket.AF_INET
u = socket.socket(family, socket.SOCK_DGRAM); u.settimeout(10); u.connect((host, udp))
for length in (0, 1, 1400, 9000, 60000):
    u.send(data[:length]); assert u.recv(65536) == data[:length][::-1], "udp %d" % length
print("as it was sent")
"#;

#[test]
fn bytes_go_through_both_protocols_and_both_families_as_they_are() {
    let story = Story::empty();
    story.load("python.oci.tar");
    let (tcp4, udp4) = (mirror("127.0.0.1"), udp_mirror("127.0.0.1"));
    let (tcp6, udp6) = (mirror("::1"), udp_mirror("::1"));
    story
        .boxlite(["run", "-d", "--name", "b", "--network", "all", "python:3", "sleep", "1000"])
        .run()
        .success();
    let talk = |host: &str, tcp: u16, udp: u16| {
        let (tcp, udp, bulk) = (tcp.to_string(), udp.to_string(), BULK.to_string());
        let told =
            story.boxlite(["exec", "b", "python3", "-c", CLIENT, host, &tcp, &udp, &bulk]).run().success();
        assert_eq!(told.out(), "as it was sent\n");
    };
    talk("192.168.127.254", tcp4, udp4);
    talk("fd00:b0:c51:17e0::fe", tcp6, udp6);
    talk("host.boxlite.internal", tcp4, udp4);
    // Nobody listens there: an error at once, as it should be.
    let refused = "import socket,sys\ntry: socket.create_connection(('192.168.127.254', 1), 30)\n\
        except ConnectionRefusedError: print('refused')";
    let told = story.boxlite(["exec", "b", "python3", "-c", refused]).run().success();
    assert_eq!(told.out(), "refused\n");
    let inspected = story.boxlite(["network", "inspect", "b", "--format", "json"]).run().success();
    let inspected: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(inspected["tcp_connections"], 3, "{inspected}");
    assert!(inspected["tx_bytes"].as_u64().unwrap() > 3 * BULK as u64, "{inspected}");
    // The process of the machine has no socket of the Internet.
    let sockets = |table: &str| std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
    let tables: String = ["tcp", "tcp6", "udp", "udp6", "raw"].map(sockets).concat();
    let mut looked_at = 0;
    for (pid, line) in story.processes() {
        if line.contains("-machine microvm") || line.starts_with("boxlite-shim vmm") {
            looked_at += 1;
            assert!(socket_inodes(pid).iter().all(|inode| !tables.contains(inode)), "{line}");
        }
    }
    assert!(looked_at > 0);
}

/// The sockets of a process, as the tables of the kernel number them.
fn socket_inodes(pid: i32) -> Vec<String> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let inode = |link: std::path::PathBuf| {
        let text = link.to_string_lossy().into_owned();
        text.strip_prefix("socket:[")
            .and_then(|rest| rest.strip_suffix(']'))
            .map(|inode| format!(" {inode} "))
    };
    links.filter_map(inode).collect()
}

/// A server in the box: both mirrors, in Python.
const SERVER: &str = r#"
import socket, threading
t = socket.create_server(("", 8000)); u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("", 8000))
def serve(c):
    got = b""
    while True:
        part = c.recv(1 << 20)
        if not part: break
        got += part
    c.sendall(got[::-1]); c.close()
def udp():
    while True:
        data, peer = u.recvfrom(65536); u.sendto(data[::-1], peer)
threading.Thread(target=udp).start()
print("listening", flush=True)
while True: threading.Thread(target=serve, args=(t.accept()[0],)).start()
"#;

fn address_of(story: &Story, port: &str) -> SocketAddr {
    let told = story.boxlite(["port", "b", port]).run().success().out();
    told.lines().next().unwrap().parse().unwrap()
}

fn mirrored(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    // A connection that is reset has brought nothing.
    drop(stream.read_to_end(&mut back));
    back
}

#[test]
fn published_ports_lead_into_the_box_as_long_as_it_runs() {
    let story = Story::empty();
    story.load("python.oci.tar");
    let publish = ["run", "-d", "--name", "b", "-p", "8000", "-p", "[::1]:0:8000", "-p", "0:8000/udp"];
    story.boxlite(publish).args(["python:3", "python3", "-c", SERVER]).run().success();
    eventually("the server listens", PATIENCE, || {
        story.boxlite(["logs", "b"]).run().out().contains("listening")
    });
    let tcp = address_of(&story, "8000");
    assert!(tcp.ip().is_loopback() && tcp.port() != 0);
    let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut expected = bytes.clone();
    expected.reverse();
    assert!(mirrored(tcp, &bytes) == expected);
    let both = story.boxlite(["port", "b"]).run().success().out();
    let v6 = both.lines().find(|line| line.contains("[::1]")).unwrap().rsplit(' ').next().unwrap();
    assert_eq!(mirrored(v6.parse().unwrap(), b"abc"), b"cba");
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    udp.connect(address_of(&story, "8000/udp")).unwrap();
    udp.send(b"abc").unwrap();
    let mut back = [0; 8];
    assert_eq!(udp.recv(&mut back).unwrap(), 3);
    assert_eq!(&back[..3], b"cba");
    // Without a rule it reaches nothing itself, and names are none of its business.
    let out = "import socket\ntry: socket.create_connection(('192.168.127.254', 1), 30)\n\
        except ConnectionRefusedError: print('refused')\n\
        try: socket.getaddrinfo('example.com', 80)\nexcept socket.gaierror: print('no name')";
    let told = story.boxlite(["exec", "b", "python3", "-c", out]).run().success();
    assert_eq!(told.out(), "refused\nno name\n");

    // A port that is taken is an error before anything boots, and leaves nothing.
    let taken = tcp.port().to_string();
    let second = story
        .boxlite(["run", "-d", "--name", "c", "-p", &format!("{taken}:80"), "python:3", "true"])
        .run()
        .code(125);
    assert!(second.err().contains(&format!("cannot listen at 127.0.0.1:{taken}/tcp")), "{}", second.err());
    assert!(!second.err().contains("console"), "{}", second.err());

    story.boxlite(["rm", "-f", "b"]).run().success();
    assert!(TcpListener::bind(tcp).is_ok(), "the port is free");
}

#[test]
fn a_box_gets_its_network_back_when_its_process_is_killed() {
    let story = Story::empty();
    story.load("python.oci.tar");
    let port = mirror("127.0.0.1");
    let publish = ["run", "-d", "--name", "b", "--network", "all", "-p", "8000"];
    story.boxlite(publish).args(["python:3", "python3", "-c", SERVER]).run().success();
    eventually("the server listens", PATIENCE, || {
        story.boxlite(["logs", "b"]).run().out().contains("listening")
    });
    let address = address_of(&story, "8000");
    assert_eq!(mirrored(address, b"abc"), b"cba");
    let helper = |story: &Story| {
        let mut processes = story.processes().into_iter();
        processes.find(|(_, line)| line.starts_with("boxlite-shim net")).map(|(pid, _)| pid)
    };
    for number in 1..=2 {
        let killed = helper(&story).expect("the network is a process");
        kill(killed, 9);
        eventually("another one takes its place", PATIENCE, || {
            helper(&story).is_some_and(|pid| pid != killed)
        });
        // The same port, with the same box behind it.
        eventually("the port leads into the box", PATIENCE, || {
            TcpStream::connect(address).is_ok() && mirrored(address, b"abc") == b"cba"
        });
        let out = format!(
            "import socket; s = socket.create_connection(('192.168.127.254', {port}), 30); s.sendall(b'xyz'); \
             s.shutdown(socket.SHUT_WR); print(s.recv(9).decode())"
        );
        assert_eq!(story.boxlite(["exec", "b", "python3", "-c", &out]).run().success().out(), "zyx\n");
        let inspected = story.boxlite(["network", "inspect", "b", "--format", "json"]).run().success();
        let inspected: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
        assert_eq!(inspected["restarts"], number, "{inspected}");
    }
}
