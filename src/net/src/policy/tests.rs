//! What policies allow and deny.

use std::time::Duration;

use boxlite_control::{NetworkPolicy, NetworkPreset, NetworkRule, NetworkVerdict};
use proptest::prelude::*;

use super::*;

/// A policy from its text: rules begin with `+` or `-`.
fn policy(preset: NetworkPreset, rules: &[&str]) -> Policy {
    let rule = |text: &&str| {
        let verdict = if text.starts_with('+') { NetworkVerdict::Allow } else { NetworkVerdict::Deny };
        NetworkRule::parse(verdict, &text[1..]).unwrap()
    };
    let rules = rules.iter().map(rule).collect();
    Policy::new(&NetworkPolicy { preset, rules }, &LinkSpec::default())
}

fn bound(pairs: &[(&str, &str)]) -> Bindings {
    let mut bindings = Bindings::default();
    for (name, address) in pairs {
        bindings.bind(name, address.parse().unwrap(), Duration::from_secs(60), Instant::now());
    }
    bindings
}

fn flow(protocol: NetworkProtocol, to: &str) -> Flow {
    let to = to.parse().or_else(|_| to.parse().map(|address: IpAddr| (address, 443).into())).unwrap();
    Flow { protocol, to }
}

fn tcp(policy: &Policy, bindings: &Bindings, to: &str) -> Judgement {
    policy.judge(&flow(NetworkProtocol::Tcp, to), bindings, Instant::now())
}

fn udp(policy: &Policy, bindings: &Bindings, to: &str) -> Judgement {
    policy.judge(&flow(NetworkProtocol::Udp, to), bindings, Instant::now())
}

fn tls(name: &str) -> Stated {
    Stated::Tls { name: (!name.is_empty()).then(|| name.to_owned()), encrypted: false }
}

fn http(name: &str) -> Stated {
    Stated::Http { name: Some(name.to_owned()) }
}

fn stated(policy: &Policy, bindings: &Bindings, to: &str, stated: &Stated) -> Result<(), &'static str> {
    policy.judge_stated(&flow(NetworkProtocol::Tcp, to), stated, bindings, Instant::now())
}

fn is_denied(judgement: Judgement) -> bool {
    matches!(judgement, Judgement::Deny(_))
}

use Judgement::{Allow, Inspect};
use NetworkPreset::{All, None as Nothing, Public};

#[test]
fn the_presets_are_what_they_say() {
    let none = Bindings::default();
    for (preset, internet, private) in [(Nothing, false, false), (Public, true, false), (All, true, true)] {
        let policy = policy(preset, &[]);
        assert_eq!(tcp(&policy, &none, "1.1.1.1") == Allow, internet, "{preset:?}");
        assert_eq!(udp(&policy, &none, "[2600::1]:443") == Allow, internet, "{preset:?}");
        assert_eq!(tcp(&policy, &none, "10.0.0.1") == Allow, private, "{preset:?}");
        assert_eq!(tcp(&policy, &none, "192.168.127.254:80") == Allow, private, "{preset:?}");
        assert_eq!(policy.may_resolve("example.com").is_ok(), internet, "{preset:?}");
    }
}

#[test]
fn the_first_rule_that_fits_decides() {
    let none = Bindings::default();
    let policy = policy(Nothing, &["-1.1.1.1:25", "+1.1.1.0/24", "-*:443", "+*"]);
    assert!(is_denied(tcp(&policy, &none, "1.1.1.1:25")));
    assert_eq!(tcp(&policy, &none, "1.1.1.1:443"), Allow);
    assert_eq!(tcp(&policy, &none, "1.1.2.1:80"), Allow);
    assert!(is_denied(tcp(&policy, &none, "1.1.2.1:443")));
    assert!(is_denied(tcp(&policy, &none, "10.0.0.1:80")), "everywhere is the public Internet");
}

#[test]
fn a_block_that_is_allowed_may_be_private() {
    let none = Bindings::default();
    let policy = policy(Nothing, &["+10.1.0.0/16:5432/tcp"]);
    assert_eq!(tcp(&policy, &none, "10.1.2.3:5432"), Allow);
    assert!(is_denied(tcp(&policy, &none, "10.1.2.3:5433")));
    assert!(is_denied(udp(&policy, &none, "10.1.2.3:5432")));
    assert!(is_denied(tcp(&policy, &none, "10.2.2.3:5432")));
    assert!(
        policy.may_resolve("db.corp").is_ok() && policy.may_answer("db.corp", "10.1.2.3".parse().unwrap())
    );
    assert!(!policy.may_answer("db.corp", "10.2.2.3".parse().unwrap()));
}

#[test]
fn a_name_allows_the_addresses_that_it_has_led_to_for_who_asks_for_it() {
    let policy = policy(Nothing, &["+*.example.com:443"]);
    let bindings = bound(&[("www.example.com", "1.2.3.4"), ("evil.com", "1.2.3.4")]);
    assert_eq!(tcp(&policy, &bindings, "1.2.3.4:443"), Inspect);
    assert!(stated(&policy, &bindings, "1.2.3.4:443", &tls("www.example.com")).is_ok());
    assert!(policy.may_resolve("www.example.com").is_ok());
    assert!(policy.may_resolve("example.com").is_err() && policy.may_resolve("evil.com").is_err());
}

#[test]
fn there_is_no_way_around_a_list_of_names() {
    let policy = policy(Nothing, &["+api.example.com"]);
    let bindings = bound(&[("api.example.com", "1.2.3.4"), ("api.example.com", "10.0.0.5")]);
    for (what, to) in [
        ("a raw address", "5.6.7.8"),
        ("a raw IPv6 address", "2600::1"),
        ("a private address that the name has led to", "10.0.0.5"),
        ("its mapped form", "::ffff:10.0.0.5"),
        ("its NAT64 form", "64:ff9b::a00:5"),
        ("6to4", "2002:102:304::1"),
        ("Teredo", "2001:0:102:304::1"),
        ("loopback", "127.0.0.1"),
        ("mapped loopback", "::ffff:127.0.0.1"),
        ("nobody", "0.0.0.0"),
        ("metadata", "169.254.169.254:80"),
        ("metadata of IPv6", "[fd00:ec2::254]:80"),
        ("the host by its number", "192.168.127.254"),
        ("the host by its IPv6 number", "fd00:b0:c51:17e0::fe"),
        ("the gateway", "192.168.127.1:80"),
        ("another machine of the link", "192.168.127.77"),
        ("the link in IPv6", "fd00:b0:c51:17e0::77"),
        ("the link mapped", "::ffff:192.168.127.77"),
        ("multicast", "224.0.0.1"),
        ("broadcast", "255.255.255.255"),
        ("DNS at the allowed host", "1.2.3.4:53"),
        ("DNS over TLS", "1.2.3.4:853"),
        ("DNS elsewhere", "8.8.8.8:53"),
    ] {
        assert!(is_denied(tcp(&policy, &bindings, to)), "{what} over TCP");
        assert!(is_denied(udp(&policy, &bindings, to)), "{what} over UDP");
    }
    assert!(is_denied(udp(&policy, &bindings, "1.2.3.4:443")), "QUIC");
    let ping = Flow { protocol: NetworkProtocol::Icmp, to: "1.2.3.4:0".parse().unwrap() };
    assert!(is_denied(policy.judge(&ping, &bindings, Instant::now())), "an ICMP tunnel");
    for (what, says) in [
        ("another name", tls("evil.com")),
        ("no name", tls("")),
        ("a name below", tls("x.api.example.com")),
        ("a hidden name", Stated::Tls { name: Some("api.example.com".into()), encrypted: true }),
        ("another host", http("evil.com")),
        ("no host", Stated::Http { name: None }),
        ("the address as the host", http("1.2.3.4")),
        ("another address as the host", http("169.254.169.254")),
        ("the same in decimal", http("2852039166")),
        ("an IPv6 host", http("[::1]")),
        ("the gateway", http("gateway.boxlite.internal")),
    ] {
        assert!(stated(&policy, &bindings, "1.2.3.4", &says).is_err(), "{what}");
    }
    // Something that says nothing at all is held to the address alone.
    assert!(stated(&policy, &bindings, "1.2.3.4:22", &Stated::Other).is_ok());
    let nothing = Bindings::default();
    assert_eq!(
        stated(&policy, &nothing, "1.2.3.4", &tls("api.example.com")),
        Err("the name that it asks for has not led to this address")
    );
}

#[test]
fn a_denied_name_is_out_of_reach_in_a_policy_that_allows_the_rest() {
    let policy = policy(Public, &["-*.evil.com", "-evil.com"]);
    assert!(policy.may_resolve("www.evil.com").is_err() && policy.may_resolve("good.com").is_ok());
    let bindings = bound(&[("good.com", "1.2.3.4")]);
    for to in ["1.2.3.4", "5.6.7.8"] {
        assert_eq!(tcp(&policy, &bindings, to), Inspect);
        assert!(stated(&policy, &bindings, to, &tls("good.com")).is_ok());
        assert!(stated(&policy, &bindings, to, &tls("")).is_ok());
        assert!(stated(&policy, &bindings, to, &tls("www.evil.com")).is_err());
        assert!(stated(&policy, &bindings, to, &http("evil.com")).is_err());
        let hidden = Stated::Tls { name: Some("good.com".into()), encrypted: true };
        assert!(stated(&policy, &bindings, to, &hidden).is_err());
    }
    // QUIC does not say whom it asks, so a name has to have led there.
    assert_eq!(udp(&policy, &bindings, "1.2.3.4"), Allow);
    assert!(is_denied(udp(&policy, &bindings, "5.6.7.8")));
    assert!(is_denied(udp(&policy, &bindings, "8.8.8.8:53")));
    // A name that was resolved before it was denied.
    let before = bound(&[("evil.com", "1.2.3.4"), ("good.com", "1.2.3.4")]);
    assert!(is_denied(udp(&policy, &before, "1.2.3.4")));
    assert!(stated(&policy, &before, "1.2.3.4", &Stated::Other).is_err());
}

#[test]
fn a_block_that_is_allowed_before_a_name_is_denied_is_not_looked_into() {
    let none = Bindings::default();
    let before = policy(Public, &["+1.2.3.0/24", "-evil.com"]);
    assert_eq!(tcp(&before, &none, "1.2.3.4"), Allow);
    let behind = policy(Public, &["-evil.com", "+1.2.3.0/24"]);
    assert_eq!(tcp(&behind, &none, "1.2.3.4"), Inspect);
}

#[test]
fn udp_and_icmp_need_a_rule_that_names_them() {
    let bindings = bound(&[("a.example", "1.2.3.4")]);
    let quiet = policy(Nothing, &["+a.example"]);
    assert!(is_denied(udp(&quiet, &bindings, "1.2.3.4")));
    let said = policy(Nothing, &["+a.example:443/udp", "+a.example/icmp"]);
    assert_eq!(udp(&said, &bindings, "1.2.3.4:443"), Allow);
    assert!(is_denied(udp(&said, &bindings, "1.2.3.4:80")));
    assert!(is_denied(tcp(&said, &bindings, "1.2.3.4:443")));
    let ping = Flow { protocol: NetworkProtocol::Icmp, to: "1.2.3.4:0".parse().unwrap() };
    assert_eq!(said.judge(&ping, &bindings, Instant::now()), Allow);
}

#[test]
fn the_host_is_reached_by_who_names_it() {
    let none = Bindings::default();
    let host4 = "192.168.127.254:5432";
    let host6 = "[fd00:b0:c51:17e0::fe]:5432";
    for rules in [&["+host.boxlite.internal:5432"][..], &["+192.168.127.254:5432"], &["+192.168.127.0/24"]] {
        let policy = policy(Nothing, rules);
        assert_eq!(tcp(&policy, &none, host4), Allow, "{rules:?}");
        assert_eq!(tcp(&policy, &none, host6), Allow, "{rules:?}");
        assert!(policy.may_resolve("host.boxlite.internal").is_ok(), "{rules:?}");
    }
    for rules in [&["+*"][..], &["+host.boxlite.internal:80"], &["-*", "+host.boxlite.internal"], &[]] {
        assert!(is_denied(tcp(&policy(Public, rules), &none, host4)), "{rules:?}");
    }
    assert!(policy(Public, &[]).may_resolve("host.boxlite.internal").is_err());
}

#[test]
fn dns_elsewhere_takes_a_rule_with_its_very_port() {
    let none = Bindings::default();
    let by_port = policy(Nothing, &["+8.8.8.8:53"]);
    assert_eq!(udp(&by_port, &none, "8.8.8.8:53"), Allow);
    assert!(is_denied(udp(&policy(Nothing, &["+8.8.8.8"]), &none, "8.8.8.8:53")));
    assert_eq!(udp(&policy(Public, &[]), &none, "8.8.8.8:53"), Allow);
    assert!(is_denied(udp(&policy(Public, &["+a.example"]), &none, "8.8.8.8:53")));
}

#[test]
fn no_answer_leads_a_public_name_to_a_private_place() {
    for (preset, rules) in [(Public, &[][..]), (Nothing, &["+a.example"]), (Nothing, &["+*"])] {
        let policy = policy(preset, rules);
        assert!(policy.may_answer("a.example", "1.2.3.4".parse().unwrap()));
        for address in
            ["10.0.0.1", "127.0.0.1", "169.254.169.254", "::ffff:10.0.0.1", "fd00::1", "192.168.127.1"]
        {
            assert!(!policy.may_answer("a.example", address.parse().unwrap()), "{address}");
        }
    }
}

fn small_rule() -> impl Strategy<Value = String> {
    let target = prop_oneof![
        Just("*".to_owned()),
        "[ab](\\.[ab]){0,2}",
        "\\*\\.[ab](\\.[ab]){0,1}",
        (0_u8..4, 0_u8..3).prop_map(|(a, size)| match size {
            0 => format!("1.1.1.{a}"),
            1 => "1.1.1.0/30".to_owned(),
            _ => "1.1.0.0/16".to_owned(),
        }),
    ];
    let tail = prop_oneof![Just(""), Just(":80"), Just(":80-90"), Just(":80/tcp"), Just("/udp")];
    (target, tail, any::<bool>())
        .prop_map(|(target, tail, allow)| format!("{}{target}{tail}", if allow { '+' } else { '-' }))
}

proptest! {
    /// What one would write who had all the time of the world.
    #[test]
    fn the_index_finds_the_rule_that_a_walk_through_all_of_them_finds(
        rules in proptest::collection::vec(small_rule(), 0..12),
        name in "[ab](\\.[ab]){0,3}",
        last in 0_u8..5,
        port in prop_oneof![Just(80_u16), Just(85), Just(443)],
    ) {
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        let policy = policy(Public, &rules);
        let to = (IpAddr::from([1, 1, 1, last]), port).into();
        let flow = Flow { protocol: NetworkProtocol::Tcp, to };
        let found = policy.decide(&flow, Some(&name)).by.map(|found| found.number);
        let fits = |rule: &NetworkRule| {
            let target = match &rule.target {
                NetworkTarget::Any => true,
                NetworkTarget::Name(known) => *known == name,
                NetworkTarget::Below(parent) => name.ends_with(&format!(".{parent}")),
                NetworkTarget::Block { address, prefix } => address::in_block(flow.to.ip(), *address, *prefix),
            };
            target && is_about(rule, flow.protocol, port)
        };
        prop_assert_eq!(found, policy.index.rules().iter().position(fits));
    }
}
