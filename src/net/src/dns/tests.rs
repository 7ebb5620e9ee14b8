//! A resolver between a guest and a server that says what it is told to.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{CNAME, TXT};
use hickory_proto::rr::{Name, RData};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;

/// Names that may be asked for end with `.example`; private addresses may not be answered.
#[derive(Debug, Default)]
struct Strict {
    link: LinkSpec,
    bound: Mutex<Vec<(String, IpAddr, Duration)>>,
}

impl Judge for Strict {
    fn may_resolve(&self, name: &str) -> Result<(), &'static str> {
        if name.ends_with(".example") { Ok(()) } else { Err("no rule allows it") }
    }

    fn may_answer(&self, _: &str, address: IpAddr) -> bool {
        crate::policy::is_public(address, &self.link)
    }

    fn bind(&self, name: &str, address: IpAddr, lifetime: Duration) {
        self.bound.lock().unwrap().push((name.to_owned(), address, lifetime));
    }

    fn link(&self) -> &LinkSpec {
        &self.link
    }
}

type Zone = HashMap<(&'static str, RecordType), Vec<Record>>;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn record(owner: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(name(owner), ttl, data)
}

fn a(owner: &str, ttl: u32, address: &str) -> Record {
    let data = match address.parse().unwrap() {
        IpAddr::V4(address) => RData::A(address.into()),
        IpAddr::V6(address) => RData::AAAA(address.into()),
    };
    record(owner, ttl, data)
}

fn said(zone: &Zone, question: &[u8], limit: usize) -> Vec<u8> {
    let question = Message::from_vec(question).unwrap();
    let query = question.queries[0].clone();
    let owner = message::text(&query.name);
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    answer.queries.push(query.clone());
    match zone.iter().find(|((name, kind), _)| *name == owner && *kind == query.query_type) {
        Some((_, records)) => answer.answers.clone_from(records),
        None => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    let bytes = answer.to_vec().unwrap();
    if bytes.len() <= limit {
        return bytes;
    }
    answer.answers.clear();
    answer.metadata.truncation = true;
    answer.to_vec().unwrap()
}

/// A server of a zone, which counts what it is asked. It lies with a wrong number first.
fn server(zone: Zone) -> (SocketAddr, Arc<AtomicUsize>) {
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
            break (udp, tcp);
        }
    };
    let (address, asked) = (udp.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let (zone, counter) = (Arc::new(zone), Arc::clone(&asked));
    let over_tcp = Arc::clone(&zone);
    std::thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((length, from)) = udp.recv_from(&mut bytes) {
            counter.fetch_add(1, Ordering::Relaxed);
            let answer = said(&zone, &bytes[..length], 1232);
            let mut lie = answer.clone();
            lie[0] ^= 1;
            for bytes in [&lie[..], b"noise", &answer] {
                udp.send_to(bytes, from).unwrap();
            }
        }
    });
    std::thread::spawn(move || {
        for stream in tcp.incoming().map_while(Result::ok) {
            let mut stream = stream;
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut question).unwrap();
            stream.write_all(&stream::frame(&said(&over_tcp, &question, 65535))).unwrap();
        }
    });
    (address, asked)
}

struct Guest {
    resolver: Resolver,
    rules: Arc<Strict>,
    denied: Arc<Mutex<Vec<(String, &'static str)>>>,
    asked: Arc<AtomicUsize>,
}

fn guest(zone: Zone) -> Guest {
    let (address, asked) = server(zone);
    let (rules, denied) = (Arc::new(Strict::default()), Arc::new(Mutex::new(Vec::new())));
    let told = Arc::clone(&denied);
    let on_denied = Box::new(move |name: &str, why| told.lock().unwrap().push((name.to_owned(), why)));
    let resolver = Resolver::start_with(&[address], Arc::clone(&rules) as Arc<dyn Judge>, on_denied).unwrap();
    Guest { resolver, rules, denied, asked }
}

impl Guest {
    fn ask_bytes(&self, message: Vec<u8>, stream: bool) -> Vec<u8> {
        assert!(self.resolver.ask(Question { id: 42, message, stream }));
        loop {
            let mut waiting = [PollFd::new(self.resolver.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut waiting, PollTimeout::from(20_000_u16)).unwrap(), 1, "no answer");
            if let Some(answer) = self.resolver.take() {
                assert_eq!(answer.id, 42);
                return answer.message;
            }
        }
    }

    fn ask(&self, owner: &str, kind: RecordType) -> Message {
        let mut message = Message::new(9, MessageType::Query, OpCode::Query);
        message.queries.push(Query::query(name(owner), kind));
        Message::from_vec(&self.ask_bytes(message.to_vec().unwrap(), true)).unwrap()
    }

    fn addresses(&self, owner: &str) -> Vec<String> {
        let answer = self.ask(owner, RecordType::A);
        answer.answers.iter().filter_map(|record| Some(record.data.ip_addr()?.to_string())).collect()
    }
}

#[test]
fn an_address_is_bound_to_the_name_that_was_asked_for_before_the_answer_is_there() {
    let chain = vec![
        record("www.a.example.", 100, RData::CNAME(CNAME(name("cdn.elsewhere.net.")))),
        a("cdn.elsewhere.net.", 50, "1.2.3.4"),
        a("cdn.elsewhere.net.", 50, "1.2.3.5"),
    ];
    let guest = guest(Zone::from([(("www.a.example", RecordType::A), chain)]));
    assert_eq!(guest.addresses("wWw.A.example."), ["1.2.3.4", "1.2.3.5"]);
    let lives = Duration::from_secs(50);
    let bound = |address: &str| ("www.a.example".to_owned(), address.parse().unwrap(), lives);
    assert_eq!(*guest.rules.bound.lock().unwrap(), [bound("1.2.3.4"), bound("1.2.3.5")]);
    // The second time it is known.
    guest.addresses("www.a.example.");
    assert_eq!(guest.asked.load(Ordering::Relaxed), 1);
}

#[test]
fn a_private_address_of_a_public_name_is_taken_out_and_told() {
    let records =
        vec![a("a.example.", 9, "10.0.0.1"), a("a.example.", 9, "1.2.3.4"), a("a.example.", 9, "127.0.0.1")];
    let only = vec![a("b.example.", 9, "169.254.169.254")];
    let guest =
        guest(Zone::from([(("a.example", RecordType::A), records), (("b.example", RecordType::A), only)]));
    assert_eq!(guest.addresses("a.example."), ["1.2.3.4"]);
    let answer = guest.ask("b.example.", RecordType::A);
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
    let denied = guest.denied.lock().unwrap();
    assert_eq!(denied.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a.example", "b.example"]);
    assert_eq!(guest.rules.bound.lock().unwrap().len(), 1);
}

#[test]
fn a_name_that_is_refused_is_not_asked_for_outside() {
    let guest = guest(Zone::new());
    let answer = guest.ask("secret.tunnel.evil.", RecordType::TXT);
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(guest.asked.load(Ordering::Relaxed), 0);
    assert_eq!(*guest.denied.lock().unwrap(), [("secret.tunnel.evil".to_owned(), "no rule allows it")]);
    assert_eq!(
        guest.ask("host.boxlite.internal.", RecordType::A).metadata.response_code,
        ResponseCode::NXDomain
    );
    assert_eq!(guest.ask("gateway.boxlite.internal.", RecordType::A).answers.len(), 1);
}

#[test]
fn a_long_answer_comes_whole_over_tcp() {
    let texts: Vec<_> = (0..40)
        .map(|number| record("t.example.", 9, RData::TXT(TXT::new(vec![format!("{number:>100}")]))))
        .collect();
    let guest = guest(Zone::from([(("t.example", RecordType::TXT), texts)]));
    assert_eq!(guest.ask("t.example.", RecordType::TXT).answers.len(), 40);
}

#[test]
fn hints_for_other_ways_to_a_server_are_not_given() {
    let guest = guest(Zone::new());
    for kind in [RecordType::HTTPS, RecordType::SVCB] {
        let answer = guest.ask("a.example.", kind);
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
    }
    for (kind, code) in [
        (RecordType::ANY, ResponseCode::NotImp),
        (RecordType::AXFR, ResponseCode::Refused),
        (RecordType::A, ResponseCode::NXDomain),
    ] {
        assert_eq!(guest.ask("a.example.", kind).metadata.response_code, code, "{kind}");
    }
    assert_eq!(guest.asked.load(Ordering::Relaxed), 1);
}

#[test]
fn a_server_that_is_silent_is_given_up_for_the_next_one() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (address, _) =
        server(Zone::from([(("a.example", RecordType::A), vec![a("a.example.", 9, "1.2.3.4")])]));
    let servers = [silent.local_addr().unwrap(), address];
    let rules = Arc::new(Strict::default());
    let resolver = Resolver::start_with(&servers, Arc::clone(&rules) as Arc<dyn Judge>, Box::new(|_, _| ()));
    let guest = Guest { resolver: resolver.unwrap(), rules, denied: Arc::default(), asked: Arc::default() };
    assert_eq!(guest.addresses("a.example."), ["1.2.3.4"]);
}

#[test]
fn only_so_many_questions_are_under_way_and_a_resolver_ends_with_them() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let servers = [silent.local_addr().unwrap()];
    let rules: Arc<dyn Judge> = Arc::new(Strict::default());
    let resolver = Resolver::start_with(&servers, rules, Box::new(|_, _| ())).unwrap();
    let mut message = Message::new(9, MessageType::Query, OpCode::Query);
    message.queries.push(Query::query(name("a.example."), RecordType::A));
    let message = message.to_vec().unwrap();
    let asked =
        (0..1000).filter(|id| resolver.ask(Question { id: *id, message: message.clone(), stream: false }));
    assert_eq!(asked.count(), UNDER_WAY);
    let began = Instant::now();
    drop(resolver);
    assert!(began.elapsed() < Duration::from_secs(1), "it waits for answers");
}

#[test]
fn noise_gets_no_answer_and_stops_nobody() {
    let guest = guest(Zone::from([(("a.example", RecordType::A), vec![a("a.example.", 9, "1.2.3.4")])]));
    assert!(guest.ask_bytes(b"noise".to_vec(), false).is_empty());
    assert!(guest.ask_bytes(Vec::new(), true).is_empty());
    assert_eq!(guest.addresses("a.example."), ["1.2.3.4"]);
}
