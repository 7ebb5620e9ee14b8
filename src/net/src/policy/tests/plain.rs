//! The policy against a plain reading of its rules.

use proptest::prelude::*;

use super::*;
use crate::policy::blocks::ends;

/// What the module says, rule by rule.
struct Plain<'a> {
    preset: NetworkPreset,
    rules: &'a [NetworkRule],
    bindings: &'a Bindings,
    now: Instant,
}

/// What a rule or the preset says about a flow, taken for that of a name or of none: what allows it, or whether a rule by
/// name denies it.
type Verdict<'a> = Result<Option<(usize, &'a NetworkTarget)>, bool>;

impl Plain<'_> {
    fn contains(target: &NetworkTarget, address: IpAddr) -> bool {
        let NetworkTarget::Block { address: first, prefix } = target else { return false };
        let (is_v4, first, last) = ends(*first, *prefix);
        let bits = match address {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address),
        };
        is_v4 == address.is_ipv4() && (first..=last).contains(&bits)
    }

    fn is_about(target: &NetworkTarget, name: &str) -> bool {
        match target {
            NetworkTarget::Name(target) => target == name,
            NetworkTarget::Below(target) => name.ends_with(&format!(".{target}")),
            NetworkTarget::Any | NetworkTarget::Block { .. } => false,
        }
    }

    fn by_name(rule: &NetworkRule) -> bool {
        matches!(rule.target, NetworkTarget::Name(_) | NetworkTarget::Below(_))
    }

    fn for_flow(rule: &NetworkRule, flow: &Flow) -> bool {
        let listed = |port| rule.ports.iter().any(|(low, high)| *low <= port && port <= *high);
        rule.protocol.is_none_or(|protocol| protocol == flow.protocol)
            && (rule.ports.is_empty() || flow.protocol != ICMP && listed(flow.to.port()))
    }

    fn walk(&self, flow: &Flow, name: Option<(&str, bool)>) -> Verdict<'_> {
        let address = Address::of(flow.to.ip());
        let alias = LinkSpec::default().is_host(flow.to.ip());
        let public = address.class() == Class::Public;
        let dns = flow.protocol != ICMP
            && [53, 853, 5353].contains(&flow.to.port())
            && (self.preset == NetworkPreset::None || self.rules.iter().any(Self::by_name));
        let same = |target: &NetworkTarget| address.same().any(|address| Self::contains(target, address));
        let within = |target: &NetworkTarget| address.within().any(|address| Self::contains(target, address));
        let allows_private = |rule: &NetworkRule| {
            rule.verdict == NetworkVerdict::Allow && Self::for_flow(rule, flow) && same(&rule.target)
        };
        for (at, rule) in self.rules.iter().enumerate().filter(|(_, rule)| Self::for_flow(rule, flow)) {
            let target = &rule.target;
            let about = name.is_some_and(|(name, _)| Self::is_about(target, name));
            match (rule.verdict, target) {
                (NetworkVerdict::Deny, NetworkTarget::Any) => return Err(false),
                (NetworkVerdict::Deny, NetworkTarget::Block { .. }) if same(target) || within(target) => {
                    return Err(false);
                }
                (NetworkVerdict::Deny, _) if about => return Err(true),
                (NetworkVerdict::Allow, NetworkTarget::Any) if public && !dns => {
                    return Ok(Some((at, target)));
                }
                (NetworkVerdict::Allow, NetworkTarget::Block { .. })
                    if same(target) && (!dns || !rule.ports.is_empty()) =>
                {
                    return Ok(Some((at, target)));
                }
                (NetworkVerdict::Allow, _) if about && !dns => {
                    let host = alias && *target == NetworkTarget::Name(LinkSpec::HOST_NAME.to_owned());
                    let reachable = !alias
                        && (public
                            || self.preset == NetworkPreset::All
                            || self.rules.iter().any(allows_private));
                    let says_so = flow.protocol == TCP || rule.protocol == Some(flow.protocol);
                    if name.is_some_and(|(_, bound)| bound) && says_so && (host || reachable) {
                        return Ok(Some((at, target)));
                    }
                }
                _ => {}
            }
        }
        match self.preset {
            NetworkPreset::All if !dns => Ok(None),
            NetworkPreset::Public if !dns && public => Ok(None),
            _ => Err(false),
        }
    }

    fn names(&self, flow: &Flow) -> Vec<&str> {
        if LinkSpec::default().is_host(flow.to.ip()) {
            return vec![LinkSpec::HOST_NAME];
        }
        self.bindings.names_of(Address::of(flow.to.ip()).key(), self.now).collect()
    }

    /// `None`: it is denied. Else whether it is looked at, and whether a name of it is denied by name.
    fn judge(&self, flow: &Flow) -> Option<(bool, bool)> {
        let link = LinkSpec::default();
        let address = Address::of(flow.to.ip());
        let on_link = address.same().chain(address.within()).any(|address| link.has(address));
        if matches!(address.class(), Class::Never(_)) || on_link && !link.is_host(flow.to.ip()) {
            return None;
        }
        let denial =
            self.rules.iter().position(|rule| Self::by_name(rule) && rule.verdict == NetworkVerdict::Deny);
        let unnamed = self.walk(flow, None);
        match unnamed {
            Ok(Some((at, NetworkTarget::Block { .. }))) if denial.is_none_or(|denial| at < denial) => {
                return Some((false, false));
            }
            Ok(_) if denial.is_none() => return Some((false, false)),
            _ => {}
        }
        let names = self.names(flow);
        let verdicts: Vec<Verdict<'_>> =
            names.iter().map(|name| self.walk(flow, Some((name, true)))).collect();
        let by_name = |verdict: &Verdict<'_>| {
            matches!(verdict, Ok(Some((_, NetworkTarget::Name(_) | NetworkTarget::Below(_)))))
        };
        if link.is_host(flow.to.ip()) && verdicts.iter().any(by_name) {
            return Some((false, false));
        }
        let denied = verdicts.contains(&Err(true));
        let allowed = verdicts.iter().any(Result::is_ok) || verdicts.is_empty() && unnamed.is_ok();
        match flow.protocol {
            _ if !allowed => None,
            NetworkProtocol::Tcp => Some((true, denied)),
            _ if denied => None,
            _ => Some((false, false)),
        }
    }

    fn judge_stated(&self, flow: &Flow, stated: &Stated) -> bool {
        let (denied, name) = match (self.judge(flow), stated) {
            (None, _) => return false,
            (Some((false, _)), _) => return true,
            (Some(_), Stated::Tls { encrypted: true, .. }) => return false,
            (Some((_, denied)), Stated::Other) => return !denied,
            (Some((_, denied)), Stated::Tls { name, .. } | Stated::Http { name }) => (denied, name),
        };
        match name.as_deref() {
            None => self.walk(flow, None).is_ok() && !denied,
            Some(name) => self.walk(flow, Some((name, self.names(flow).contains(&name)))).is_ok(),
        }
    }
}

const SOME_NAMES: [&str; 7] =
    ["a.example", "b.example", "x.a.example", "example", "c.test", "y.c.test", LinkSpec::HOST_NAME];
const SOME_ADDRESSES: [&str; 14] = [
    "1.1.1.1",
    "1.1.2.2",
    "10.0.0.1",
    "169.254.169.254",
    "::ffff:1.1.1.1",
    "64:ff9b::10.0.0.1",
    "2002:101:101::1",
    "2606:4700::1",
    "fd00::1",
    "192.168.127.254",
    "fd00:b0:c51:17e0::fe",
    "192.168.127.1",
    "127.0.0.1",
    "2002:a00:1::1",
];
const SOME_BLOCKS: [&str; 11] = [
    "1.1.1.1",
    "1.1.0.0/16",
    "1.0.0.0/8",
    "0.0.0.0/0",
    "10.0.0.0/8",
    "192.168.127.254",
    "::/0",
    "2606::/16",
    "fd00::/8",
    "64:ff9b::/96",
    "2002::/16",
];
const SOME_PORTS: [u16; 6] = [0, 53, 80, 443, 853, 65535];

fn some<T: Copy + std::fmt::Debug + 'static>(of: &'static [T]) -> impl Strategy<Value = T> {
    prop::sample::select(of)
}

fn some_rule() -> impl Strategy<Value = NetworkRule> {
    let name = || some(&SOME_NAMES).prop_map(str::to_owned);
    let target = prop_oneof![
        2 => Just(NetworkTarget::Any),
        4 => name().prop_map(NetworkTarget::Name),
        3 => name().prop_map(NetworkTarget::Below),
        5 => some(&SOME_BLOCKS).prop_map(|text| NetworkRule::parse(NetworkVerdict::Allow, text).unwrap().target),
    ];
    let ports = prop::collection::vec((some(&SOME_PORTS), some(&SOME_PORTS)), 0..2);
    let protocol = prop_oneof![3 => Just(None), 1 => some(&[TCP, UDP, ICMP]).prop_map(Some)];
    (any::<bool>(), target, protocol, ports).prop_map(|(allow, target, protocol, ports)| NetworkRule {
        verdict: if allow { NetworkVerdict::Allow } else { NetworkVerdict::Deny },
        target,
        protocol,
        ports,
    })
}

fn some_policy() -> impl Strategy<Value = NetworkPolicy> {
    let preset = some(&[NetworkPreset::None, NetworkPreset::Public, NetworkPreset::All]);
    let rules = prop::collection::vec(some_rule(), 0..10);
    (preset, rules).prop_map(|(preset, rules)| NetworkPolicy { preset, rules })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_policy_judges_as_its_rules_read(
        policy in some_policy(),
        bound in prop::collection::vec((some(&SOME_NAMES), some(&SOME_ADDRESSES)), 0..8),
    ) {
        let now = Instant::now();
        let mut bindings = Bindings::default();
        for (name, address) in bound {
            bindings.bind(name, ip(address), Duration::ZERO, now);
        }
        let ready = Policy::new(&policy, &LinkSpec::default());
        let plain = Plain { preset: policy.preset, rules: &policy.rules, bindings: &bindings, now };
        for address in SOME_ADDRESSES {
            for (protocol, port) in [(ICMP, 0), (UDP, 53), (UDP, 443), (TCP, 53), (TCP, 80), (TCP, 443), (TCP, 65535)] {
                let flow = flow(protocol, address, port);
                let judged = match ready.judge(&flow, &bindings, now) {
                    Allow => Some(false),
                    Inspect => Some(true),
                    Deny(_) => None,
                };
                prop_assert_eq!(judged, plain.judge(&flow).map(|(looked_at, _)| looked_at), "{:?}", flow);
                if protocol != TCP {
                    continue;
                }
                let names = SOME_NAMES.map(tls);
                for stated in names.iter().chain([&NO_SNI, &NO_HOST, &ech("a.example"), &Stated::Other]) {
                    let allowed = ready.judge_stated(&flow, stated, &bindings, now).is_ok();
                    prop_assert_eq!(allowed, plain.judge_stated(&flow, stated), "{:?} {:?}", flow, stated);
                    // What is refused without a word is refused with every word.
                    prop_assert!(!allowed || judged.is_some());
                }
            }
        }
    }

    #[test]
    fn an_address_that_is_allowed_by_a_name_may_be_answered_for_it(policy in some_policy()) {
        let now = Instant::now();
        let ready = Policy::new(&policy, &LinkSpec::default());
        for address in SOME_ADDRESSES {
            for name in SOME_NAMES {
                let mut bindings = Bindings::default();
                bindings.bind(name, ip(address), Duration::ZERO, now);
                let alias = LinkSpec::default().is_host(ip(address));
                if alias != (name == LinkSpec::HOST_NAME) {
                    prop_assert!(!ready.may_answer(name, ip(address)));
                    continue;
                }
                for port in [22, 80, 443, 65535] {
                    let judged = ready.judge(&flow(TCP, address, port), &bindings, now);
                    // A rule of some ports may deny the name and leave the address to others.
                    prop_assert!(
                        matches!(judged, Deny(_)) || ready.may_answer(name, ip(address)),
                        "{} {} {}", name, address, port
                    );
                }
            }
        }
    }

    #[test]
    fn nothing_that_a_guest_states_breaks_the_judge(
        policy in some_policy(),
        name in any::<String>(),
        address in any::<u128>(),
        port: u16,
        encrypted: bool,
    ) {
        let now = Instant::now();
        let ready = Policy::new(&policy, &LinkSpec::default());
        let mut bindings = Bindings::default();
        let address = IpAddr::from(address.to_be_bytes());
        bindings.bind(&name, address, Duration::MAX, now);
        let flow = Flow { protocol: TCP, to: SocketAddr::new(address, port) };
        let judged = ready.judge(&flow, &bindings, now);
        let stated = Stated::Tls { name: Some(name.clone()), encrypted };
        let result = ready.judge_stated(&flow, &stated, &bindings, now);
        prop_assert!(!matches!(judged, Deny(_)) || result.is_err());
        if ready.may_resolve(&name).is_err() && policy.preset != NetworkPreset::None {
            prop_assert!(policy.rules.iter().any(|rule| rule.verdict == NetworkVerdict::Deny) || name.ends_with("internal"));
        }
        ready.may_answer(&name, address);
    }
}
