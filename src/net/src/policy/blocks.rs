//! The rules by address block.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use boxlite_control::{NetworkRule, NetworkTarget};

use super::book::{Book, Kind};

/// Finds the rules whose blocks contain an address, in a time that grows with how deep blocks lie in each other.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    v4: Vec<Block>,
    v6: Vec<Block>,
}

/// A block. Two of them lie in each other, or have nothing in common; an inner one stands behind its outer ones.
#[derive(Debug)]
struct Block {
    first: u128,
    last: u128,
    /// The innermost of the blocks around it.
    around: Option<usize>,
    book: Book,
}

/// Outer blocks come before those that lie in them.
type Ordered<'a> = BTreeMap<(u128, Reverse<u128>), Vec<(u32, &'a NetworkRule)>>;

impl Blocks {
    /// Of those rules that are about blocks; all of them have their places, in order.
    pub(super) fn new<'a>(rules: impl Iterator<Item = (u32, &'a NetworkRule)>) -> Self {
        let [mut v4, mut v6] = [const { Ordered::new() }; 2];
        for (at, rule) in rules {
            let NetworkTarget::Block { address, prefix } = rule.target else { continue };
            let (is_v4, first, last) = ends(address, prefix);
            let ordered = if is_v4 { &mut v4 } else { &mut v6 };
            ordered.entry((first, Reverse(last))).or_default().push((at, rule));
        }
        Self { v4: nested(v4), v6: nested(v6) }
    }

    /// The rules of each block that contains the address, the innermost block first.
    pub(super) fn around(&self, address: IpAddr) -> impl Iterator<Item = &Book> {
        let (blocks, bits) = match address {
            IpAddr::V4(address) => (&self.v4, u128::from(u32::from(address))),
            IpAddr::V6(address) => (&self.v6, u128::from(address)),
        };
        // Whatever contains the address begins at or before it, and so contains the last block that does.
        let last = blocks.partition_point(|block| block.first <= bits).checked_sub(1);
        std::iter::successors(last.and_then(|at| blocks.get(at)), |block| {
            block.around.and_then(|at| blocks.get(at))
        })
        .filter(move |block| bits <= block.last)
        .map(|block| &block.book)
    }
}

/// Whether it is IPv4, and the first and the last address. What is IPv4-mapped counts as IPv4; a prefix that is too long
/// means one address.
pub(super) fn ends(address: IpAddr, prefix: u8) -> (bool, u128, u128) {
    let mapped = match address {
        IpAddr::V6(address) => address.to_ipv4_mapped(),
        IpAddr::V4(_) => None,
    };
    let (address, prefix) = match (mapped, prefix.checked_sub(96)) {
        (Some(address), Some(prefix)) => (IpAddr::V4(address), prefix),
        _ => (address, prefix),
    };
    let (bits, width) = match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    let hosts = match u32::from(prefix) {
        prefix if prefix >= width => 0,
        prefix => u128::MAX >> (128 - (width - prefix)),
    };
    (address.is_ipv4(), bits & !hosts, bits | hosts)
}

fn nested(ordered: Ordered<'_>) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::with_capacity(ordered.len());
    for ((first, Reverse(last)), rules) in ordered {
        let mut around = blocks.len().checked_sub(1);
        while let Some(outer) = around.and_then(|at| blocks.get(at)).filter(|outer| outer.last < first) {
            around = outer.around;
        }
        blocks.push(Block { first, last, around, book: Book::new(&rules, Kind::Address) });
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::book::{Look, NONE};
    use boxlite_control::NetworkVerdict;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn rule(address: IpAddr, prefix: u8) -> NetworkRule {
        NetworkRule {
            verdict: NetworkVerdict::Allow,
            target: NetworkTarget::Block { address, prefix },
            protocol: None,
            ports: Vec::new(),
        }
    }

    fn found(blocks: &Blocks, address: &str) -> Vec<u32> {
        blocks.around(address.parse().unwrap()).map(|book| book.first(Look::Ever).allow).collect()
    }

    #[test]
    fn every_block_around_an_address_is_found() {
        let rules: Vec<NetworkRule> = [
            "0.0.0.0/0",
            "10.1.0.0/16",
            "10.0.0.0/8",
            "10.1.2.3/32",
            "::/0",
            "::ffff:10.1.2.0/120",
            "10.1.0.0/16",
        ]
        .map(|text| NetworkRule::parse(NetworkVerdict::Allow, text).unwrap())
        .into();
        let blocks = Blocks::new((0..).zip(&rules));
        assert_eq!(found(&blocks, "10.1.2.3"), [3, 5, 1, 2, 0]);
        assert_eq!(found(&blocks, "10.1.2.4"), [5, 1, 2, 0]);
        assert_eq!(found(&blocks, "10.2.0.0"), [2, 0]);
        assert_eq!(found(&blocks, "255.255.255.255"), [0]);
        assert_eq!(found(&blocks, "::"), [4]);
        assert_eq!(found(&Blocks::default(), "10.0.0.0"), Vec::<u32>::new());
    }

    #[test]
    fn a_block_that_is_malformed_is_still_a_block() {
        let rules = [rule("10.1.2.3".parse().unwrap(), 8), rule("2001:db8::1".parse().unwrap(), 200)];
        let blocks = Blocks::new((0..).zip(&rules));
        assert_eq!(found(&blocks, "10.9.9.9"), [0]);
        assert_eq!(found(&blocks, "2001:db8::1"), [1]);
        assert_eq!(found(&blocks, "2001:db8::"), Vec::<u32>::new());
    }

    proptest! {
        #[test]
        fn the_blocks_found_are_those_that_a_look_at_each_finds(
            blocks in prop::collection::vec((0u128..64, 0u8..7), 0..24),
            v4: bool,
        ) {
            let address = |low: u128| match (v4, u32::try_from(low)) {
                (true, Ok(low)) => IpAddr::V4(Ipv4Addr::from(low)),
                _ => IpAddr::V6(Ipv6Addr::from(low)),
            };
            let width = if v4 { 32 } else { 128 };
            let rules: Vec<NetworkRule> =
                blocks.iter().map(|(low, hosts)| rule(address(low >> hosts << hosts), width - hosts)).collect();
            let ready = Blocks::new((0..).zip(&rules));
            for low in 0..70 {
                let found: Vec<u32> = ready.around(address(low)).map(|book| book.first(Look::Ever).allow).collect();
                let mut sorted = found.clone();
                sorted.sort_unstable();
                sorted.dedup();
                prop_assert_eq!(sorted.len(), found.len());
                let expected = (0..).zip(&blocks).find(|(_, (first, hosts))| first >> hosts == low >> hosts);
                let expected = expected.map_or(NONE, |(at, _)| at);
                prop_assert_eq!(found.into_iter().min().unwrap_or(NONE), expected);
            }
        }
    }
}
