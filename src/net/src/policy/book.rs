//! The rules that have one target in common: which of them is the first to fit, without a look at each.

use std::collections::{BTreeMap, BTreeSet};

use boxlite_control::{NetworkProtocol, NetworkRule, NetworkVerdict};

/// The place of a rule in the policy, or this: none.
pub(super) const NONE: u32 = u32::MAX;

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Rules that fit a flow of this protocol to this port.
    Flow(NetworkProtocol, u16),
    /// Rules that allow any flow at all, and rules that deny every flow.
    Ever,
}

/// The first rules that fit, by their places in the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct First {
    /// The first that denies.
    pub(super) deny: u32,
    /// The first that allows.
    pub(super) allow: u32,
    /// The first that allows and names its ports.
    pub(super) listed: u32,
}

impl First {
    pub(super) const NONE: Self = Self { deny: NONE, allow: NONE, listed: NONE };

    pub(super) fn min(self, other: Self) -> Self {
        Self {
            deny: self.deny.min(other.deny),
            allow: self.allow.min(other.allow),
            listed: self.listed.min(other.listed),
        }
    }
}

/// What a target is, as far as it decides which flows a rule without a protocol fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Address,
    /// A rule that allows a name fits UDP and ICMP only if it says so.
    Name,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Book {
    tcp: Table,
    udp: Table,
    icmp: Table,
    /// The first rule that allows anything.
    allow: Option<u32>,
    /// The first rule that denies everything.
    deny: Option<u32>,
}

/// For each port the first rules. A segment lasts until the next; what is before the first has none.
type Table = Box<[Segment]>;

#[derive(Debug)]
struct Segment {
    from: u16,
    first: First,
}

impl Book {
    /// Of these rules with their places, in order.
    pub(super) fn new(rules: &[(u32, &NetworkRule)], kind: Kind) -> Self {
        let at =
            |fits: fn(&NetworkRule) -> bool| rules.iter().find(|(_, rule)| fits(rule)).map(|(at, _)| *at);
        Self {
            tcp: table(rules, kind, NetworkProtocol::Tcp),
            udp: table(rules, kind, NetworkProtocol::Udp),
            icmp: table(rules, kind, NetworkProtocol::Icmp),
            allow: at(|rule| rule.verdict == NetworkVerdict::Allow),
            deny: at(|rule| {
                rule.verdict == NetworkVerdict::Deny && rule.protocol.is_none() && rule.ports.is_empty()
            }),
        }
    }

    pub(super) fn first(&self, look: Look) -> First {
        let (table, port) = match look {
            Look::Flow(NetworkProtocol::Tcp, port) => (&self.tcp, port),
            Look::Flow(NetworkProtocol::Udp, port) => (&self.udp, port),
            Look::Flow(NetworkProtocol::Icmp, _) => (&self.icmp, 0),
            Look::Ever => {
                let [deny, allow] = [self.deny, self.allow].map(|at| at.unwrap_or(NONE));
                return First { deny, allow, listed: NONE };
            }
        };
        let behind = table.partition_point(|segment| segment.from <= port);
        behind.checked_sub(1).and_then(|at| table.get(at)).map_or(First::NONE, |segment| segment.first)
    }
}

/// Whether the rule fits flows of the protocol, to some port.
pub(super) fn fits(rule: &NetworkRule, kind: Kind, protocol: NetworkProtocol) -> bool {
    let by_name_allowed = kind == Kind::Name && rule.verdict == NetworkVerdict::Allow;
    let named = match rule.protocol {
        Some(named) => named == protocol,
        None => !by_name_allowed || protocol == NetworkProtocol::Tcp,
    };
    named && (protocol != NetworkProtocol::Icmp || rule.ports.is_empty())
}

fn table(rules: &[(u32, &NetworkRule)], kind: Kind, protocol: NetworkProtocol) -> Table {
    // Which rules begin and end to fit at a port; an end is one port behind the last.
    let mut turns: BTreeMap<u32, Vec<(bool, u32, &NetworkRule)>> = BTreeMap::new();
    for (at, rule) in rules.iter().filter(|(_, rule)| fits(rule, kind, protocol)) {
        for (low, end) in merged(&rule.ports) {
            turns.entry(low).or_default().push((true, *at, rule));
            turns.entry(end).or_default().push((false, *at, rule));
        }
    }
    let [mut denies, mut allows, mut listed] = [const { BTreeSet::new() }; 3];
    let mut segments = Vec::with_capacity(turns.len());
    for (from, turns) in turns {
        for (begins, at, rule) in turns {
            let turn = |set: &mut BTreeSet<u32>| if begins { set.insert(at) } else { set.remove(&at) };
            turn(if rule.verdict == NetworkVerdict::Deny { &mut denies } else { &mut allows });
            if rule.verdict == NetworkVerdict::Allow && !rule.ports.is_empty() {
                turn(&mut listed);
            }
        }
        let [deny, allow, listed] =
            [&denies, &allows, &listed].map(|set| set.first().copied().unwrap_or(NONE));
        // The end of a range that goes up to the last port is behind every port.
        if let Ok(from) = u16::try_from(from) {
            segments.push(Segment { from, first: First { deny, allow, listed } });
        }
    }
    segments.into_boxed_slice()
}

/// The ranges in order, none of them touching another, each with the port behind its end.
fn merged(ports: &[(u16, u16)]) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = ports
        .iter()
        .filter(|(low, high)| low <= high)
        .map(|(low, high)| ((*low).into(), u32::from(*high) + 1))
        .collect();
    if ports.is_empty() {
        ranges.push((0, 1 << 16));
    }
    ranges.sort_unstable();
    ranges.dedup_by(|later, earlier| {
        let touches = later.0 <= earlier.1;
        if touches {
            earlier.1 = earlier.1.max(later.1);
        }
        touches
    });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use boxlite_control::NetworkTarget;
    use proptest::prelude::*;

    fn any_rule() -> impl Strategy<Value = NetworkRule> {
        let ports = prop::collection::vec(prop_oneof![(0u16..12, 0u16..12), (65530u16.., 65530u16..)], 0..4);
        let protocol = prop::option::of(prop_oneof![
            Just(NetworkProtocol::Tcp),
            Just(NetworkProtocol::Udp),
            Just(NetworkProtocol::Icmp)
        ]);
        (any::<bool>(), protocol, ports).prop_map(|(allow, protocol, ports)| NetworkRule {
            verdict: if allow { NetworkVerdict::Allow } else { NetworkVerdict::Deny },
            target: NetworkTarget::Any,
            protocol,
            ports,
        })
    }

    proptest! {
        #[test]
        fn the_first_rules_are_those_that_a_look_at_each_finds(
            rules in prop::collection::vec(any_rule(), 0..8),
            by_name: bool,
        ) {
            let kind = if by_name { Kind::Name } else { Kind::Address };
            let rules: Vec<(u32, &NetworkRule)> = (5..).zip(&rules).collect();
            let book = Book::new(&rules, kind);
            for protocol in [NetworkProtocol::Tcp, NetworkProtocol::Udp, NetworkProtocol::Icmp] {
                for port in (0..14).chain(65528..=65535) {
                    let port = if protocol == NetworkProtocol::Icmp { 0 } else { port };
                    let find = |verdict, listed: bool| {
                        let found = rules.iter().find(|(_, rule)| {
                            rule.verdict == verdict
                                && fits(rule, kind, protocol)
                                && (rule.ports.is_empty() && !listed
                                    || rule.ports.iter().any(|(low, high)| (low..=high).contains(&&port)))
                        });
                        found.map_or(NONE, |(at, _)| *at)
                    };
                    let expected = First {
                        deny: find(NetworkVerdict::Deny, false),
                        allow: find(NetworkVerdict::Allow, false),
                        listed: find(NetworkVerdict::Allow, true),
                    };
                    prop_assert_eq!(book.first(Look::Flow(protocol, port)), expected, "{:?} {}", protocol, port);
                }
            }
        }
    }

    #[test]
    fn many_rules_with_one_target_are_no_long_list() {
        let rule = |port| NetworkRule {
            verdict: NetworkVerdict::Allow,
            target: NetworkTarget::Any,
            protocol: None,
            ports: vec![(port, port), (port, port), (port, port.saturating_add(3))],
        };
        let rules: Vec<NetworkRule> = (1..=10_000).map(rule).collect();
        let rules: Vec<(u32, &NetworkRule)> = (0..).zip(&rules).collect();
        let book = Book::new(&rules, Kind::Address);
        assert!(book.tcp.len() <= 10_004, "{}", book.tcp.len());
        assert_eq!(book.first(Look::Flow(NetworkProtocol::Udp, 5000)).allow, 4996);
        assert_eq!(book.first(Look::Flow(NetworkProtocol::Udp, 10_005)), First::NONE);
    }
}
