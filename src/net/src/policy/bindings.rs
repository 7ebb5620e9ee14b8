//! Which names have led to which addresses.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most addresses, and the most names of one.
const ADDRESSES: usize = 65_536;
const NAMES: usize = 32;
/// A program looks a name up, and connects a while later, whatever the lifetime of the answer.
const SHORTEST: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Names that have led to addresses, and until when that counts.
#[derive(Debug, Default)]
pub struct Bindings {
    addresses: HashMap<IpAddr, Bound>,
    /// The addresses by the end of their last name.
    ends: BTreeSet<(Instant, IpAddr)>,
}

#[derive(Debug)]
struct Bound {
    /// The one that was bound last is the last one.
    names: Vec<(Arc<str>, Instant)>,
    ends: Instant,
}

impl Bindings {
    /// The name has led to the address, for this long: at least half a minute, at most a day. An end that is further away
    /// already stays.
    pub fn bind(&mut self, name: &str, address: IpAddr, lifetime: Duration, now: Instant) {
        let address = address.to_canonical();
        let end = now + lifetime.clamp(SHORTEST, LONGEST);
        if !self.addresses.contains_key(&address) {
            self.make_room(now);
        }
        let bound = self.addresses.entry(address).or_insert_with(|| Bound { names: Vec::new(), ends: end });
        self.ends.remove(&(bound.ends, address));
        bound.names.retain(|(_, ends)| *ends > now);
        let known = bound.names.iter().position(|(known, _)| **known == *name);
        let entry = match known {
            Some(at) => {
                let (name, ends) = bound.names.remove(at);
                (name, ends.max(end))
            }
            None => (Arc::from(name), end),
        };
        if bound.names.len() >= NAMES {
            bound.names.remove(0);
        }
        bound.names.push(entry);
        bound.ends = bound.names.iter().map(|(_, ends)| *ends).max().unwrap_or(end);
        self.ends.insert((bound.ends, address));
    }

    /// The names that have led to the address, the last one first.
    pub fn names(&self, address: IpAddr, now: Instant) -> impl Iterator<Item = &str> {
        let bound = self.addresses.get(&address.to_canonical());
        let names = bound.into_iter().flat_map(|bound| bound.names.iter().rev());
        names.filter(move |(_, ends)| *ends > now).map(|(name, _)| &**name)
    }

    /// The name that has led to the address last, for people to read.
    pub fn name_of(&self, address: IpAddr, now: Instant) -> Option<&str> {
        self.names(address, now).next()
    }

    fn make_room(&mut self, now: Instant) {
        while let Some((ends, address)) = self.ends.first().copied() {
            if ends > now && self.addresses.len() < ADDRESSES {
                return;
            }
            self.ends.remove(&(ends, address));
            self.addresses.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(1, 2, 3, 4));

    fn names(bindings: &Bindings, now: Instant) -> Vec<&str> {
        bindings.names(A, now).collect()
    }

    #[test]
    fn a_binding_lasts_as_long_as_its_answer_and_half_a_minute_at_least() {
        let (mut bindings, start) = (Bindings::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        bindings.bind("short.example", A, Duration::ZERO, start);
        bindings.bind("long.example", A, Duration::from_secs(100), start);
        assert_eq!(names(&bindings, after(29)), ["long.example", "short.example"]);
        assert_eq!(names(&bindings, after(99)), ["long.example"]);
        assert_eq!(names(&bindings, after(100)), [""; 0]);
        // A shorter answer does not take back what a longer one has said.
        bindings.bind("long.example", A, Duration::ZERO, after(50));
        assert_eq!(names(&bindings, after(99)), ["long.example"]);
    }

    #[test]
    fn an_ipv4_address_is_the_same_when_it_is_mapped() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        bindings.bind("a.example", "::ffff:1.2.3.4".parse().unwrap(), Duration::ZERO, now);
        assert_eq!(bindings.name_of(A, now), Some("a.example"));
    }

    #[test]
    fn a_flood_of_answers_is_bounded_and_the_newest_stay() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        for number in 0..70_000_u32 {
            let address = std::net::Ipv4Addr::from(number).into();
            bindings.bind("a.example", address, Duration::from_secs(60 + u64::from(number)), now);
        }
        assert_eq!((bindings.addresses.len(), bindings.ends.len()), (ADDRESSES, ADDRESSES));
        assert_eq!(bindings.name_of(std::net::Ipv4Addr::from(69_999).into(), now), Some("a.example"));
        assert_eq!(bindings.name_of(std::net::Ipv4Addr::from(0).into(), now), None);
        for number in 0..100 {
            bindings.bind(&format!("{number}.example"), A, Duration::ZERO, now);
        }
        assert_eq!(names(&bindings, now).len(), NAMES);
        assert_eq!(bindings.name_of(A, now), Some("99.example"));
    }
}
