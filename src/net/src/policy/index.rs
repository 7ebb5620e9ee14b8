//! Rules, found by what they are about: which of ten thousand decides is a matter of a few look-ups.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use boxlite_control::{NetworkPolicy, NetworkProtocol, NetworkRule, NetworkTarget, NetworkVerdict};

use super::address::{forms, mask};

/// A rule that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Which one: the lowest decides.
    pub(super) number: usize,
    pub(super) verdict: NetworkVerdict,
    pub(super) by: By,
    /// It names ports.
    pub(super) has_ports: bool,
}

/// What a rule fits by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Name,
    Block,
    Any,
}

/// The rules of a policy.
#[derive(Debug, Default)]
pub(super) struct Index {
    rules: Vec<NetworkRule>,
    names: HashMap<String, Vec<usize>>,
    below: HashMap<String, Vec<usize>>,
    blocks: HashMap<(IpAddr, u8), Vec<usize>>,
    prefixes4: BTreeSet<u8>,
    prefixes6: BTreeSet<u8>,
    any: Vec<usize>,
}

impl Index {
    pub(super) fn new(policy: &NetworkPolicy) -> Self {
        let mut index = Self { rules: policy.rules.clone(), ..Self::default() };
        for (number, rule) in policy.rules.iter().enumerate() {
            match &rule.target {
                NetworkTarget::Any => index.any.push(number),
                NetworkTarget::Name(name) => index.names.entry(name.clone()).or_default().push(number),
                NetworkTarget::Below(name) => index.below.entry(name.clone()).or_default().push(number),
                NetworkTarget::Block { address, prefix } => {
                    let prefixes =
                        if address.is_ipv4() { &mut index.prefixes4 } else { &mut index.prefixes6 };
                    prefixes.insert(*prefix);
                    index.blocks.entry((mask(*address, *prefix), *prefix)).or_default().push(number);
                }
            }
        }
        index
    }

    /// The rules, the first one first.
    pub(super) fn rules(&self) -> &[NetworkRule] {
        &self.rules
    }

    /// The first rule that fits a name and passes `filter`.
    pub(super) fn by_name(&self, name: &str, filter: impl Fn(&NetworkRule) -> bool) -> Option<Found> {
        let exact = self.names.get(name).into_iter();
        let parents = name.match_indices('.').filter_map(|(at, _)| self.below.get(&name[at + 1..]));
        self.first(exact.chain(parents), By::Name, filter)
    }

    /// The first rule that fits an address, in any of its forms, and passes `filter`.
    pub(super) fn by_block(&self, address: IpAddr, filter: impl Fn(&NetworkRule) -> bool) -> Option<Found> {
        let (first, second) = forms(address);
        let lists = [Some(first), second].into_iter().flatten().flat_map(|address| {
            let prefixes = if address.is_ipv4() { &self.prefixes4 } else { &self.prefixes6 };
            prefixes.iter().filter_map(move |prefix| self.blocks.get(&(mask(address, *prefix), *prefix)))
        });
        self.first(lists, By::Block, filter)
    }

    /// The first rule about everywhere that passes `filter`.
    pub(super) fn by_any(&self, filter: impl Fn(&NetworkRule) -> bool) -> Option<Found> {
        self.first(std::iter::once(&self.any), By::Any, filter)
    }

    fn first<'a>(
        &self,
        lists: impl Iterator<Item = &'a Vec<usize>>,
        by: By,
        filter: impl Fn(&NetworkRule) -> bool,
    ) -> Option<Found> {
        let fits = |number: &&usize| self.rules.get(**number).is_some_and(&filter);
        let number = lists.filter_map(|list| list.iter().find(fits)).min().copied()?;
        let rule = self.rules.get(number)?;
        let has_ports = !rule.ports.is_empty();
        Some(Found { number, verdict: rule.verdict, by, has_ports })
    }
}

/// Whether a rule is about this protocol and port.
pub(super) fn is_about(rule: &NetworkRule, protocol: NetworkProtocol, port: u16) -> bool {
    let ports = rule.ports.is_empty()
        || (protocol != NetworkProtocol::Icmp
            && rule.ports.iter().any(|(first, last)| (*first..=*last).contains(&port)));
    rule.protocol.is_none_or(|only| only == protocol) && ports
}

/// The one of two that decides.
pub(super) fn earlier(one: Option<Found>, other: Option<Found>) -> Option<Found> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if one.number <= other.number { one } else { other }),
        (one, other) => one.or(other),
    }
}
