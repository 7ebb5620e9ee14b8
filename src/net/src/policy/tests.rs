//! Ways around a policy.

mod plain;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use boxlite_control::{
    LinkSpec, NetworkPolicy, NetworkPreset, NetworkProtocol, NetworkRule, NetworkTarget, NetworkVerdict,
};

use super::*;

const TCP: NetworkProtocol = NetworkProtocol::Tcp;
const UDP: NetworkProtocol = NetworkProtocol::Udp;
const ICMP: NetworkProtocol = NetworkProtocol::Icmp;

/// A policy whose rules are texts such as `+example.com:443` and `-10.0.0.0/8`, and the names that have led somewhere.
struct World {
    policy: Policy,
    bindings: Bindings,
    now: Instant,
}

fn parse(text: &str) -> NetworkRule {
    let (verdict, text) = match text.split_at(1) {
        ("+", text) => (NetworkVerdict::Allow, text),
        (_, text) => (NetworkVerdict::Deny, text),
    };
    NetworkRule::parse(verdict, text).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn flow(protocol: NetworkProtocol, address: &str, port: u16) -> Flow {
    Flow { protocol, to: SocketAddr::new(ip(address), port) }
}

fn tls(name: &str) -> Stated {
    Stated::Tls { name: Some(name.to_owned()), encrypted: false }
}

fn http(name: &str) -> Stated {
    Stated::Http { name: Some(name.to_owned()) }
}

const NO_SNI: Stated = Stated::Tls { name: None, encrypted: false };
const NO_HOST: Stated = Stated::Http { name: None };

fn ech(name: &str) -> Stated {
    Stated::Tls { name: Some(name.to_owned()), encrypted: true }
}

impl World {
    fn new(preset: NetworkPreset, rules: &[&str]) -> Self {
        let rules = rules.iter().map(|text| parse(text)).collect();
        let policy = Policy::new(&NetworkPolicy { preset, rules }, &LinkSpec::default());
        Self { policy, bindings: Bindings::default(), now: Instant::now() }
    }

    fn none(rules: &[&str]) -> Self {
        Self::new(NetworkPreset::None, rules)
    }

    fn public(rules: &[&str]) -> Self {
        Self::new(NetworkPreset::Public, rules)
    }

    fn all(rules: &[&str]) -> Self {
        Self::new(NetworkPreset::All, rules)
    }

    fn bound(mut self, name: &str, address: &str) -> Self {
        self.bindings.bind(name, ip(address), Duration::from_secs(60), self.now);
        self
    }

    fn judge(&self, protocol: NetworkProtocol, address: &str, port: u16) -> Judgement {
        self.policy.judge(&flow(protocol, address, port), &self.bindings, self.now)
    }

    fn tcp(&self, address: &str, port: u16) -> Judgement {
        self.judge(TCP, address, port)
    }

    fn udp(&self, address: &str, port: u16) -> Judgement {
        self.judge(UDP, address, port)
    }

    fn ping(&self, address: &str) -> Judgement {
        self.judge(ICMP, address, 0)
    }

    fn stated(&self, address: &str, port: u16, stated: &Stated) -> Result<(), &'static str> {
        self.policy.judge_stated(&flow(TCP, address, port), stated, &self.bindings, self.now)
    }
}

use Judgement::{Allow, Deny, Inspect};

/// Public addresses, which documents do not own; nothing is sent to them.
const GOOD: &str = "93.184.215.14";
const EVIL: &str = "104.18.0.1";
const GOOD6: &str = "2606:2800:21f::1";

#[test]
fn public_allows_the_internet_and_nothing_else() {
    let world = World::public(&[]);
    for address in [GOOD, GOOD6, "8.8.8.8", "64:ff9b::808:808", "::ffff:8.8.8.8"] {
        assert_eq!(world.tcp(address, 443), Allow, "{address}");
        assert_eq!(world.udp(address, 53), Allow, "{address}");
        assert_eq!(world.ping(address), Allow, "{address}");
    }
    for address in [
        // Private, spelled in each way.
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "::ffff:10.0.0.1",
        "::ffff:0:10.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::1.1.1.1",
        "2002:a00:1::1",
        "2001:0:101:101::f5ff:fffe",
        "::10.0.0.1",
        "fd12::1",
        "fe80::1",
        "fec0::1",
        // Metadata servers.
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "fd00:ec2::254",
        "100.100.100.200",
        "168.63.129.16",
        "::ffff:168.63.129.16",
        "192.0.0.192",
        // Reserved.
        "192.0.2.1",
        "198.18.0.1",
        "240.0.0.1",
        "2001:db8::1",
        "100::1",
        "4000::1",
    ] {
        assert_eq!(world.tcp(address, 80), Deny(PRIVATE), "{address}");
        assert_eq!(world.udp(address, 80), Deny(PRIVATE), "{address}");
        assert_eq!(world.ping(address), Deny(PRIVATE), "{address}");
    }
}

#[test]
fn no_policy_allows_what_is_no_other_host() {
    for world in [World::all(&[]), World::none(&["+0.0.0.0/0", "+::/0", "+*"]), World::public(&[])] {
        for address in [
            // Unspecified, loopback, multicast, broadcast: Linux takes the first for itself.
            "0.0.0.0",
            "::",
            "::ffff:0.0.0.0",
            "0.0.0.1",
            "127.0.0.1",
            "127.1.2.3",
            "::1",
            "::ffff:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "2002:7f00:1::",
            "224.0.0.251",
            "239.1.2.3",
            "ff02::fb",
            "255.255.255.255",
            "::ffff:255.255.255.255",
            // The link: the gateway, the guest, the broadcast address, nobody, and the alias in another spelling.
            "192.168.127.1",
            "192.168.127.2",
            "192.168.127.255",
            "192.168.127.0",
            "192.168.127.77",
            "fd00:b0:c51:17e0::1",
            "fd00:b0:c51:17e0::2",
            "fd00:b0:c51:17e0::77",
            "::ffff:192.168.127.1",
            "::ffff:192.168.127.254",
            "64:ff9b::192.168.127.254",
            "2002:c0a8:7ffe::1",
        ] {
            for port in [22, 53, 80] {
                assert!(matches!(world.tcp(address, port), Deny(_)), "{address}:{port}");
                assert!(matches!(world.udp(address, port), Deny(_)), "{address}:{port}");
            }
            assert!(matches!(world.ping(address), Deny(_)), "{address}");
            assert!(!world.policy.may_answer("a.example", ip(address)), "{address}");
        }
    }
}

#[test]
fn nothing_is_allowed_without_a_rule_when_the_preset_is_none() {
    let world = World::none(&[]).bound("a.example", GOOD);
    assert_eq!(world.tcp(GOOD, 443), Deny(NO_RULE));
    assert_eq!(world.tcp("10.0.0.1", 443), Deny(NO_RULE));
    assert_eq!(world.udp(GOOD, 53), Deny(OTHER_DNS));
    assert_eq!(world.ping(GOOD), Deny(NO_RULE));
    assert_eq!(world.policy.may_resolve("a.example"), Err(NO_RULE));
    assert!(!world.policy.may_answer("a.example", ip(GOOD)));
}

#[test]
fn the_first_rule_that_fits_decides() {
    let world = World::none(&[
        "-1.0.0.0/8:25",
        "+1.1.1.1/tcp",
        "-1.1.0.0/16",
        "+1.0.0.0/8",
        "+[2606::]/16:80-90,443/udp",
    ]);
    assert_eq!(world.tcp("1.1.1.1", 25), Deny(BY_RULE));
    assert_eq!(world.tcp("1.1.1.1", 80), Allow);
    assert_eq!(world.udp("1.1.1.1", 80), Deny(BY_RULE));
    assert_eq!(world.tcp("1.1.2.1", 80), Deny(BY_RULE));
    assert_eq!(world.tcp("1.2.1.1", 80), Allow);
    assert_eq!(world.ping("1.2.1.1"), Allow);
    assert_eq!(world.udp(GOOD6, 85), Allow);
    assert_eq!(world.udp(GOOD6, 91), Deny(NO_RULE));
    assert_eq!(world.ping(GOOD6), Deny(NO_RULE));
}

#[test]
fn a_block_is_denied_in_each_spelling_of_its_addresses() {
    let world = World::all(&["-10.0.0.0/8", "-168.63.129.16", "-2001:4860::/32"]);
    for address in [
        "10.1.2.3",
        "::ffff:10.1.2.3",
        "::ffff:0:10.1.2.3",
        "64:ff9b::10.1.2.3",
        "64:ff9b:1::10.1.2.3",
        "::10.1.2.3",
        "2002:a01:203::1",
        "2001:0:a01:203::fefe:fefe",
        "2001:0:101:101::f5fe:fdfc",
        "168.63.129.16",
        "2001:4860::8888",
    ] {
        assert_eq!(world.tcp(address, 80), Deny(BY_RULE), "{address}");
    }
    assert_eq!(World::all(&["-::/0"]).tcp("::ffff:8.8.8.8", 80), Deny(BY_RULE));
    assert_eq!(World::all(&["-::/0"]).tcp("8.8.8.8", 80), Allow);
}

#[test]
fn a_block_that_is_allowed_is_not_allowed_inside_of_other_addresses() {
    let world = World::none(&["+10.0.0.0/8"]);
    for address in ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3"] {
        assert_eq!(world.tcp(address, 80), Allow, "{address}");
    }
    for address in ["2002:a01:203::1", "2001:0:a01:203::fefe:fefe", "::10.1.2.3", "64:ff9b:1::10.1.2.3"] {
        assert_eq!(world.tcp(address, 80), Deny(NO_RULE), "{address}");
    }
    // All of IPv6 is not IPv4 in another spelling.
    assert_eq!(World::none(&["+::/0"]).tcp("::ffff:10.1.2.3", 80), Deny(NO_RULE));
}

#[test]
fn everywhere_is_everywhere_public() {
    let world = World::none(&["+*:443"]);
    assert_eq!(world.tcp(GOOD, 443), Allow);
    assert_eq!(world.tcp("10.0.0.1", 443), Deny(PRIVATE));
    assert_eq!(world.tcp("192.168.127.254", 443), Deny(PRIVATE));
    assert_eq!(world.tcp(GOOD, 80), Deny(NO_RULE));
    assert_eq!(world.policy.may_resolve("a.example"), Ok(()));
    assert!(world.policy.may_answer("a.example", ip(GOOD)));
    assert!(!world.policy.may_answer("a.example", ip("10.0.0.1")));
    let world = World::all(&["-*"]);
    for address in [GOOD, "10.0.0.1", "192.168.127.254", "fe80::1"] {
        assert_eq!(world.tcp(address, 443), Deny(BY_RULE), "{address}");
        assert!(!world.policy.may_answer("a.example", ip(address)));
    }
    assert_eq!(world.policy.may_resolve("a.example"), Err(BY_RULE));
    assert_eq!(world.policy.may_resolve(LinkSpec::HOST_NAME), Err(NO_RULE));
}

#[test]
fn the_alias_of_the_host_needs_its_name_its_block_or_everything() {
    let (v4, v6) = ("192.168.127.254", "fd00:b0:c51:17e0::fe");
    for (world, expected) in [
        (World::public(&[]), Deny(PRIVATE)),
        (World::none(&["+*"]), Deny(PRIVATE)),
        (World::none(&["+*.boxlite.internal"]), Deny(NO_RULE)),
        (World::none(&["+a.example"]).bound("a.example", v4).bound("a.example", v6), Deny(NO_RULE)),
        (World::public(&["+host.boxlite.internal"]), Allow),
        (World::none(&["+host.boxlite.internal:80"]), Allow),
        (World::none(&["+host.boxlite.internal:81"]), Deny(NO_RULE)),
        (World::none(&["-*.internal", "+host.boxlite.internal"]), Deny(BY_RULE)),
        (World::none(&["+192.168.0.0/16", "+fd00:b0:c51:17e0::/64"]), Allow),
        (World::all(&[]), Allow),
        (World::all(&["-host.boxlite.internal"]), Deny(BY_RULE)),
        (World::all(&["-192.168.127.254", "-fd00:b0:c51:17e0::fe"]), Deny(BY_RULE)),
        // What it is asked for there may still be denied.
        (World::all(&["-evil.example"]), Inspect),
    ] {
        for address in [v4, v6] {
            assert_eq!(world.tcp(address, 80), expected, "{:?}", world.policy);
        }
        let reachable = matches!(expected, Allow | Inspect) || world.tcp(v4, 81) == Allow;
        assert_eq!(world.policy.may_resolve(LinkSpec::HOST_NAME).is_ok(), reachable, "{:?}", world.policy);
        assert_eq!(world.policy.may_answer(LinkSpec::HOST_NAME, ip(v4)), reachable);
        assert_eq!(world.policy.may_answer(LinkSpec::HOST_NAME, ip(v6)), reachable);
        assert!(!world.policy.may_answer(LinkSpec::HOST_NAME, ip(GOOD)));
        assert!(!world.policy.may_answer("a.example", ip(v4)));
    }
    let world = World::none(&["+host.boxlite.internal"]);
    assert_eq!((world.udp(v4, 80), world.ping(v4)), (Deny(NO_RULE), Deny(NO_RULE)));
    assert_eq!(World::none(&["+host.boxlite.internal/udp"]).udp(v6, 80), Allow);
    // Only one of the two is denied.
    let world = World::all(&["-192.168.127.254"]);
    assert!(!world.policy.may_answer(LinkSpec::HOST_NAME, ip(v4)));
    assert!(world.policy.may_answer(LinkSpec::HOST_NAME, ip(v6)));
}

#[test]
fn the_names_of_the_own_network_are_known_here() {
    let world = World::none(&["+*"]);
    assert_eq!(world.policy.may_resolve("gateway.boxlite.internal"), Ok(()));
    assert!(world.policy.may_answer("gateway.boxlite.internal", ip("192.168.127.1")));
    assert!(!world.policy.may_answer("gateway.boxlite.internal", ip(GOOD)));
    for name in ["boxlite.internal", "a.boxlite.internal", "a.host.boxlite.internal"] {
        assert_eq!(world.policy.may_resolve(name), Err(NO_SUCH_NAME), "{name}");
    }
    assert_eq!(world.policy.may_resolve("aboxlite.internal"), Ok(()));
}

#[test]
fn a_name_that_is_allowed_is_no_allowed_address() {
    let world = World::none(&["+good.example", "+*.good.example:443"]).bound("good.example", GOOD);
    // A raw address, and one that another name led to.
    assert_eq!(world.tcp(EVIL, 443), Deny(NO_RULE));
    assert_eq!(world.tcp(GOOD6, 443), Deny(NO_RULE));
    let world = world.bound("evil.example", EVIL).bound("a.good.example", GOOD6);
    assert_eq!(world.tcp(EVIL, 443), Deny(NO_RULE));
    assert_eq!(world.stated(EVIL, 443, &tls("good.example")), Err(NO_RULE));
    // What the name led to, for what it says.
    assert_eq!(world.tcp(GOOD, 443), Inspect);
    for stated in [tls("good.example"), http("good.example"), http(GOOD6)] {
        let expected = if stated == http(GOOD6) { Err(OTHER_ADDRESS) } else { Ok(()) };
        assert_eq!(world.stated(GOOD, 443, &stated), expected);
    }
    assert_eq!(world.stated(GOOD, 443, &Stated::Other), Ok(()));
    for (stated, why) in [
        (tls("evil.example"), NO_RULE),
        (http("evil.example"), NO_RULE),
        (tls("a.good.example"), NOT_BOUND),
        (tls("agood.example"), NO_RULE),
        (tls("good.example.evil.example"), NO_RULE),
        (ech("good.example"), ENCRYPTED),
        (Stated::Tls { name: None, encrypted: true }, ENCRYPTED),
        (NO_SNI, UNNAMED),
        (NO_HOST, UNNAMED),
        (http(GOOD), UNNAMED),
        (http("[::ffff:93.184.215.14]"), UNNAMED),
        (http("127.0.0.1"), OTHER_ADDRESS),
        (http("::1"), OTHER_ADDRESS),
        (http("2130706433"), NO_RULE),
        (http(""), MALFORMED),
        (http("good.example\0evil.example"), MALFORMED),
        (http("good.example,evil.example"), MALFORMED),
        (http("good.example:80"), MALFORMED),
        (http("good.example.."), MALFORMED),
    ] {
        assert_eq!(world.stated(GOOD, 443, &stated), Err(why), "{stated:?}");
    }
    assert_eq!(world.tcp(GOOD6, 443), Inspect);
    assert_eq!(world.tcp(GOOD6, 80), Deny(NO_RULE));
    assert_eq!(world.stated(GOOD6, 443, &tls("a.good.example")), Ok(()));
    // The address in other spellings.
    assert_eq!(world.tcp("::ffff:93.184.215.14", 443), Inspect);
    assert_eq!(world.stated("64:ff9b::93.184.215.14", 443, &tls("Good.Example.")), Ok(()));
}

#[test]
fn a_name_leads_to_an_address_until_the_answer_has_run_out() {
    let mut world = World::none(&["+good.example"]).bound("good.example", GOOD);
    world.now += Duration::from_secs(61);
    assert_eq!(world.tcp(GOOD, 443), Deny(NO_RULE));
    assert_eq!(world.stated(GOOD, 443, &tls("good.example")), Err(NO_RULE));
}

#[test]
fn a_name_that_is_allowed_means_udp_and_icmp_if_it_says_so() {
    let world = World::none(&["+good.example"]).bound("good.example", GOOD);
    assert_eq!((world.udp(GOOD, 443), world.ping(GOOD)), (Deny(NO_RULE), Deny(NO_RULE)));
    let world = World::none(&["+good.example:443/udp", "+good.example/icmp"]).bound("good.example", GOOD);
    assert_eq!((world.udp(GOOD, 443), world.ping(GOOD)), (Allow, Allow));
    assert_eq!((world.udp(GOOD, 80), world.tcp(GOOD, 443)), (Deny(NO_RULE), Deny(NO_RULE)));
    assert_eq!(world.ping(EVIL), Deny(NO_RULE));
}

#[test]
fn a_name_that_is_allowed_opens_no_private_network() {
    for private in
        ["10.0.0.1", "169.254.169.254", "168.63.129.16", "fd00::1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1"]
    {
        let world = World::none(&["+good.example"]).bound("good.example", private);
        assert_eq!(world.tcp(private, 80), Deny(PRIVATE), "{private}");
        assert!(!world.policy.may_answer("good.example", ip(private)), "{private}");
        let world = World::public(&["+good.example"]).bound("good.example", private);
        assert_eq!(world.tcp(private, 80), Deny(PRIVATE), "{private}");
    }
    // Unless a block of it is allowed as well, for the port.
    let world = World::none(&["+db.example", "-*", "+10.0.0.0/8:5432"]).bound("db.example", "10.0.0.1");
    assert_eq!(world.tcp("10.0.0.1", 5432), Inspect);
    assert_eq!(world.tcp("10.0.0.1", 80), Deny(PRIVATE));
    assert_eq!(world.tcp("10.0.0.2", 5432), Deny(BY_RULE));
    assert!(world.policy.may_answer("db.example", ip("10.0.0.1")));
    let world = World::all(&["+db.example", "-10.0.0.0/8"]).bound("db.example", "10.0.0.1");
    assert_eq!(world.tcp("10.0.0.1", 80), Inspect);
    assert_eq!(world.tcp("10.0.0.2", 80), Deny(BY_RULE));
}

#[test]
fn a_shared_address_is_judged_by_what_it_is_asked_for() {
    let shared = |rules: &[&str]| World::none(rules).bound("good.example", GOOD).bound("cdn.example", GOOD);
    let world = shared(&["+good.example"]);
    assert_eq!(world.tcp(GOOD, 443), Inspect);
    assert_eq!(world.stated(GOOD, 443, &tls("good.example")), Ok(()));
    assert_eq!(world.stated(GOOD, 443, &tls("cdn.example")), Err(NO_RULE));
    assert_eq!(world.stated(GOOD, 22, &Stated::Other), Ok(()));
    let world = shared(&["-cdn.example", "+good.example", "+*/udp"]);
    assert_eq!(world.tcp(GOOD, 443), Inspect);
    assert_eq!(world.stated(GOOD, 443, &tls("good.example")), Ok(()));
    assert_eq!(world.stated(GOOD, 443, &tls("cdn.example")), Err(BY_RULE));
    assert_eq!(world.stated(GOOD, 22, &Stated::Other), Err(BY_RULE));
    // Nobody sees for whom it is over UDP.
    assert_eq!(world.udp(GOOD, 443), Deny(BY_RULE));
    assert_eq!(world.udp(EVIL, 443), Allow);
}

#[test]
fn a_name_that_is_denied_is_denied_at_every_address() {
    let world = World::public(&["-evil.example", "-*.evil.example"]);
    assert_eq!(world.policy.may_resolve("evil.example"), Err(BY_RULE));
    assert_eq!(world.policy.may_resolve("a.b.evil.example"), Err(BY_RULE));
    assert_eq!(world.policy.may_resolve("good.example"), Ok(()));
    // The guest knows the address from elsewhere.
    assert_eq!(world.tcp(EVIL, 443), Inspect);
    for (stated, expected) in [
        (tls("evil.example"), Err(BY_RULE)),
        (tls("EVIL.example."), Err(BY_RULE)),
        (http("a.evil.example"), Err(BY_RULE)),
        (http("evil.example "), Err(MALFORMED)),
        (ech("good.example"), Err(ENCRYPTED)),
        (http("8.8.8.8"), Err(OTHER_ADDRESS)),
        (tls("good.example"), Ok(())),
        (http(EVIL), Ok(())),
        (NO_SNI, Ok(())),
        (NO_HOST, Ok(())),
        (Stated::Other, Ok(())),
    ] {
        assert_eq!(world.stated(EVIL, 443, &stated), expected, "{stated:?}");
    }
    // The name has led there, such as under an earlier policy.
    let world = world.bound("evil.example", EVIL);
    assert_eq!((world.tcp(EVIL, 443), world.udp(EVIL, 443)), (Deny(BY_RULE), Deny(BY_RULE)));
    assert_eq!(world.ping(EVIL), Deny(BY_RULE));
    assert_eq!(world.stated(EVIL, 443, &tls("good.example")), Err(BY_RULE));
    // Another name has led there, too.
    let world = world.bound("good.example", EVIL);
    assert_eq!((world.tcp(EVIL, 443), world.udp(EVIL, 443)), (Inspect, Deny(BY_RULE)));
    assert_eq!(world.stated(EVIL, 443, &tls("good.example")), Ok(()));
    assert_eq!(world.stated(EVIL, 443, &tls("evil.example")), Err(BY_RULE));
    assert_eq!(world.stated(EVIL, 443, &NO_SNI), Err(UNNAMED));
    assert_eq!(world.stated(EVIL, 443, &Stated::Other), Err(BY_RULE));
}

#[test]
fn a_block_that_is_allowed_before_a_denied_name_is_not_looked_into() {
    let before = World::public(&["+104.18.0.0/16", "-evil.example"]).bound("evil.example", EVIL);
    assert_eq!(before.tcp(EVIL, 443), Allow);
    assert_eq!(before.stated(EVIL, 443, &ech("evil.example")), Ok(()));
    let behind = World::public(&["-evil.example", "+104.18.0.0/16"]);
    assert_eq!(behind.tcp(EVIL, 443), Inspect);
    assert_eq!(behind.stated(EVIL, 443, &tls("evil.example")), Err(BY_RULE));
    assert_eq!(World::none(&["+*", "-evil.example"]).tcp(EVIL, 443), Inspect);
}

#[test]
fn an_allowed_name_that_is_not_bound_is_as_good_as_any_other() {
    let world = World::public(&["+good.example", "-*.example"]);
    assert_eq!(world.stated(EVIL, 443, &tls("good.example")), Err(NOT_BOUND));
    assert_eq!(world.stated(EVIL, 443, &tls("other.test")), Ok(()));
    let world = World::public(&["+good.example", "-evil.example"]);
    assert_eq!(world.stated(EVIL, 443, &tls("good.example")), Ok(()));
}

#[test]
fn dns_goes_to_no_other_server_where_names_matter() {
    for world in [
        World::none(&["+8.8.8.8", "+8.8.0.0/16:443"]),
        World::none(&["+*"]),
        World::none(&["+dns.example:53", "+dns.example:53/udp"]).bound("dns.example", "8.8.8.8"),
        World::public(&["-evil.example"]),
        World::public(&["+good.example"]),
        World::all(&["-evil.example"]),
    ] {
        for port in [53, 853, 5353] {
            for address in ["8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"] {
                assert_eq!(world.tcp(address, port), Deny(OTHER_DNS), "{address}:{port}");
                assert_eq!(world.udp(address, port), Deny(OTHER_DNS), "{address}:{port}");
                assert_eq!(world.stated(address, port, &tls("a.example")), Err(OTHER_DNS));
            }
        }
    }
    let world = World::none(&["+8.8.0.0/16", "+8.8.8.0/24:53,853/tcp", "+10.0.0.53:53", "+good.example"]);
    assert_eq!((world.tcp("8.8.8.8", 53), world.tcp("8.8.8.8", 853)), (Allow, Allow));
    assert_eq!((world.udp("8.8.8.8", 53), world.tcp("8.8.8.8", 5353)), (Deny(OTHER_DNS), Deny(OTHER_DNS)));
    assert_eq!((world.udp("10.0.0.53", 53), world.udp("10.0.0.53", 853)), (Allow, Deny(OTHER_DNS)));
    assert_eq!(World::none(&["-8.8.8.8", "+8.8.8.0/24:53"]).udp("8.8.8.8", 53), Deny(BY_RULE));
    // Where they do not, it does.
    for world in [World::public(&["-8.8.4.4"]), World::all(&[])] {
        assert_eq!((world.tcp("8.8.8.8", 853), world.udp("8.8.8.8", 53)), (Allow, Allow));
    }
}

#[test]
fn dns_over_https_is_denied_by_the_name_of_its_server() {
    let world = World::public(&["-dns.example", "-evil.example"]);
    assert_eq!(world.stated("8.8.8.8", 443, &tls("dns.example")), Err(BY_RULE));
    let world = World::none(&["+good.example"]);
    assert_eq!(world.tcp("8.8.8.8", 443), Deny(NO_RULE));
}

#[test]
fn names_resolve_if_their_addresses_may_be_allowed() {
    let may = |rules: &[&str], preset, name: &str| World::new(preset, rules).policy.may_resolve(name);
    let (none, public) = (NetworkPreset::None, NetworkPreset::Public);
    assert_eq!(may(&["+good.example:443"], none, "good.example"), Ok(()));
    assert_eq!(may(&["+good.example:443"], none, "a.good.example"), Err(NO_RULE));
    assert_eq!(may(&["+*.good.example"], none, "a.good.example"), Ok(()));
    assert_eq!(may(&["+*.good.example"], none, "good.example"), Err(NO_RULE));
    assert_eq!(may(&["+10.0.0.0/8"], none, "a.example"), Ok(()));
    assert_eq!(may(&["+*:443"], none, "a.example"), Ok(()));
    assert_eq!(may(&["-*", "+10.0.0.0/8"], none, "a.example"), Err(BY_RULE));
    assert_eq!(may(&["+good.example", "-*"], public, "good.example"), Ok(()));
    // Names carry data out, so one that leads nowhere is not asked for.
    assert_eq!(may(&["+good.example", "-*"], public, "data.evil.example"), Err(BY_RULE));
    assert_eq!(may(&["-*", "+good.example"], public, "good.example"), Err(BY_RULE));
    assert_eq!(may(&["+10.0.0.0/8", "-evil.example"], public, "evil.example"), Err(BY_RULE));
    assert_eq!(may(&["+www.evil.example", "-*.evil.example"], public, "www.evil.example"), Ok(()));
    assert_eq!(may(&["+www.evil.example", "-*.evil.example"], public, "a.evil.example"), Err(BY_RULE));
    // It is denied for some flows only.
    assert_eq!(may(&["-mail.example:25", "-*/udp"], public, "mail.example"), Ok(()));
    assert_eq!(may(&["-EVIL.example"], public, "Evil.Example."), Err(BY_RULE));
}

#[test]
fn answers_have_only_addresses_that_a_flow_could_be_allowed_to() {
    let may = |rules: &[&str], preset, address| {
        World::new(preset, rules).policy.may_answer("a.example", ip(address))
    };
    let (none, public, all) = (NetworkPreset::None, NetworkPreset::Public, NetworkPreset::All);
    assert!(may(&[], public, GOOD) && !may(&[], public, "10.0.0.1") && may(&[], all, "10.0.0.1"));
    assert!(may(&["+10.0.0.0/8:443"], none, "10.0.0.1") && !may(&["+10.0.0.0/8"], none, GOOD));
    assert!(may(&["+10.0.0.0/8"], none, "::ffff:10.0.0.1") && !may(&["-10.0.0.0/8"], all, "::ffff:10.0.0.1"));
    assert!(may(&["+*.example"], none, GOOD) && !may(&["+*.example"], none, "fe80::1"));
    assert!(may(&["-93.0.0.0/8:80"], public, GOOD) && !may(&["-93.0.0.0/8"], public, GOOD));
    assert!(
        !may(&[], public, "127.0.0.1")
            && !may(&[], all, "127.0.0.1")
            && !may(&["+127.0.0.0/8"], all, "127.0.0.1")
    );
}
