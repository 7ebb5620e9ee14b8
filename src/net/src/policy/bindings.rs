//! Which names have led to which addresses.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::address::Address;
use super::names::{MAX_NAME, plain};

/// The most addresses that are known.
const ADDRESSES: usize = 65_536;
/// The most names of one address.
const NAMES: usize = 32;
/// The most names of all addresses together. With the length of a name it bounds the memory: some 50 MB.
const ALL_NAMES: usize = 2 * ADDRESSES;
/// The shortest life: programs connect a while after they have asked.
const SHORTEST: Duration = Duration::from_secs(30);
/// The longest life.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Which names have led to which addresses, and until when.
///
/// There are at most 65,536 addresses with at most 32 names each, and 131,072 names altogether. When one too many comes,
/// those that end the soonest go.
#[derive(Debug, Default)]
pub struct Bindings {
    /// The names of an address, the one that was bound last at the end. None of the lists is empty.
    names: HashMap<IpAddr, Vec<Binding>>,
    /// The same bindings, by their ends.
    ends: BTreeSet<(Instant, IpAddr, Arc<str>)>,
}

#[derive(Debug)]
struct Binding {
    name: Arc<str>,
    end: Instant,
}

impl Bindings {
    /// The name has led to the address, for this long: but for 30 s at least, and for a day at most. What is bound already
    /// is bound for longer, never for shorter.
    pub fn bind(&mut self, name: &str, address: IpAddr, lifetime: Duration, now: Instant) {
        let name = plain(name);
        if name.len() > MAX_NAME {
            return;
        }
        let address = Address::of(address).key();
        let lifetime = lifetime.clamp(SHORTEST, LONGEST);
        let end = now.checked_add(lifetime).unwrap_or(now);
        self.forget_ended(now);
        let binding = match self.take(address, &name) {
            Some(old) => Binding { end: old.end.max(end), name: old.name },
            None => Binding { end, name: Arc::from(&*name) },
        };
        self.make_room(address);
        self.ends.insert((binding.end, address, Arc::clone(&binding.name)));
        self.names.entry(address).or_default().push(binding);
    }

    /// The name that has led to the address last, for people to read.
    pub fn name_of(&self, address: IpAddr, now: Instant) -> Option<&str> {
        self.names_of(Address::of(address).key(), now).next_back()
    }

    /// The names that lead to the address, which is a [key](Address::key).
    pub(super) fn names_of(
        &self,
        key: IpAddr,
        now: Instant,
    ) -> impl DoubleEndedIterator<Item = &str> + Clone {
        let names = self.names.get(&key).map(Vec::as_slice).unwrap_or_default();
        names.iter().filter(move |binding| now < binding.end).map(|binding| &*binding.name)
    }

    fn forget_ended(&mut self, now: Instant) {
        while self.ends.first().is_some_and(|(end, ..)| *end <= now) {
            self.forget_first();
        }
    }

    /// Forgets the binding that ends the soonest.
    fn forget_first(&mut self) {
        if let Some((_, address, name)) = self.ends.pop_first() {
            self.take(address, &name);
        }
    }

    fn make_room(&mut self, address: IpAddr) {
        if let Some(names) = self.names.get(&address).filter(|names| names.len() >= NAMES) {
            let first = names.iter().min_by_key(|binding| binding.end).map(|first| Arc::clone(&first.name));
            if let Some(name) = first {
                self.take(address, &name);
            }
        }
        while self.ends.len() >= ALL_NAMES
            || self.names.len() >= ADDRESSES && !self.names.contains_key(&address)
        {
            self.forget_first();
        }
    }

    /// Takes a binding out.
    fn take(&mut self, address: IpAddr, name: &str) -> Option<Binding> {
        let names = self.names.get_mut(&address)?;
        let at = names.iter().position(|binding| &*binding.name == name)?;
        let binding = names.remove(at);
        if names.is_empty() {
            self.names.remove(&address);
        }
        self.ends.remove(&(binding.end, address, Arc::clone(&binding.name)));
        Some(binding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const MINUTE: Duration = Duration::from_secs(60);

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from(number).into()
    }

    fn names(bindings: &Bindings, number: u32, now: Instant) -> Vec<&str> {
        bindings.names_of(address(number), now).collect()
    }

    #[test]
    fn a_binding_lives_for_half_a_minute_to_a_day() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        bindings.bind("short.example", address(1), Duration::ZERO, now);
        bindings.bind("long.example", address(1), Duration::MAX, now);
        assert_eq!(names(&bindings, 1, now + Duration::from_secs(29)), ["short.example", "long.example"]);
        assert_eq!(names(&bindings, 1, now + Duration::from_secs(30)), ["long.example"]);
        assert_eq!(names(&bindings, 1, now + LONGEST), Vec::<&str>::new());
    }

    #[test]
    fn a_binding_is_never_shortened() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        bindings.bind("a.example", address(1), 10 * MINUTE, now);
        bindings.bind("a.example", address(1), MINUTE, now + MINUTE);
        assert_eq!(names(&bindings, 1, now + 9 * MINUTE), ["a.example"]);
        bindings.bind("a.example", address(1), 10 * MINUTE, now + 9 * MINUTE);
        assert_eq!(names(&bindings, 1, now + 18 * MINUTE), ["a.example"]);
        assert_eq!(bindings.ends.len(), 1);
    }

    #[test]
    fn the_name_for_people_is_the_last_one_that_led_there() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        assert_eq!(bindings.name_of(address(1), now), None);
        bindings.bind("a.example", address(1), 5 * MINUTE, now);
        bindings.bind("B.Example.", address(1), MINUTE, now);
        assert_eq!(bindings.name_of(address(1), now), Some("b.example"));
        assert_eq!(bindings.name_of(address(1), now + 2 * MINUTE), Some("a.example"));
        bindings.bind("a.example", address(1), MINUTE, now);
        assert_eq!(bindings.name_of(address(1), now), Some("a.example"));
    }

    #[test]
    fn an_address_is_known_in_each_of_its_spellings() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        bindings.bind("a.example", "64:ff9b::1.2.3.4".parse().unwrap(), MINUTE, now);
        assert_eq!(bindings.name_of("1.2.3.4".parse().unwrap(), now), Some("a.example"));
        assert_eq!(bindings.name_of("::ffff:1.2.3.4".parse().unwrap(), now), Some("a.example"));
    }

    #[test]
    fn an_address_keeps_the_names_that_last() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        for number in 0..100 {
            bindings.bind(&format!("{number}.example"), address(1), MINUTE * (number % 50 + 1), now);
        }
        let left = names(&bindings, 1, now);
        assert_eq!(left.len(), NAMES);
        assert!(
            left.contains(&"99.example") && left.contains(&"49.example") && !left.contains(&"50.example")
        );
        assert_eq!(bindings.ends.len(), NAMES);
    }

    #[test]
    fn the_soonest_to_end_go_when_there_are_too_many_addresses() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        bindings.bind("lasting.example", address(0), LONGEST, now);
        for number in 1..=70_000 {
            bindings.bind("a.example", address(number), MINUTE + Duration::from_millis(number.into()), now);
        }
        assert_eq!(bindings.names.len(), ADDRESSES);
        assert_eq!(names(&bindings, 0, now), ["lasting.example"]);
        assert_eq!(names(&bindings, 70_000, now), ["a.example"]);
        assert_eq!(names(&bindings, 1, now), Vec::<&str>::new());
    }

    #[test]
    fn names_altogether_are_bounded_and_what_has_ended_goes() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        for number in 0..140_000 {
            bindings.bind(&format!("{number}.example"), address(number / 30), MINUTE, now);
        }
        assert_eq!(bindings.ends.len(), ALL_NAMES);
        assert_eq!(bindings.names.values().map(Vec::len).sum::<usize>(), ALL_NAMES);
        bindings.bind(&"a".repeat(254), address(1), MINUTE, now + MINUTE);
        bindings.bind("b.example", Ipv6Addr::LOCALHOST.into(), MINUTE, now + MINUTE);
        assert_eq!((bindings.names.len(), bindings.ends.len()), (1, 1));
    }
}
