//! Things that come and go, under keys that are never mistaken for those of others that had the same place before.

/// Where something is, and the how many-th it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    index: u32,
    generation: u32,
}

/// Bits of a generation that fit into a packed key.
const GENERATION: u32 = 24;

impl Key {
    /// The key and a number of at most 8 bits, in one. Generations repeat after 16 million others in one place, which no
    /// event outlives.
    pub(crate) fn pack(self, kind: u8) -> u64 {
        u64::from(kind) << 56 | u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The other way round.
    pub(crate) fn unpack(packed: u64) -> (u8, Self) {
        let part = |shift: u32, bits: u32| packed >> shift & ((1 << bits) - 1);
        let number = |shift, bits| u32::try_from(part(shift, bits)).unwrap_or(u32::MAX);
        let kind = u8::try_from(part(56, 8)).unwrap_or(u8::MAX);
        (kind, Self { index: number(0, 32), generation: number(32, GENERATION) })
    }
}

/// The things.
#[derive(Debug)]
pub(crate) struct Table<T> {
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Table<T> {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Adds one.
    pub(crate) fn insert(&mut self, thing: T) -> Key {
        match self.free.pop() {
            Some(index) => {
                let place = &mut self.places[index as usize];
                place.1 = Some(thing);
                Key { index, generation: place.0 }
            }
            None => {
                let index = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
                self.places.push((0, Some(thing)));
                Key { index, generation: 0 }
            }
        }
    }

    /// The one of this key, if it is still there.
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (generation, thing) = self.places.get_mut(key.index as usize)?;
        thing.as_mut().filter(|_| *generation == key.generation)
    }

    /// Takes the one of this key out.
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let (generation, thing) = self.places.get_mut(key.index as usize)?;
        if *generation != key.generation {
            return None;
        }
        let thing = thing.take()?;
        *generation = (*generation + 1) & ((1 << GENERATION) - 1);
        self.free.push(key.index);
        Some(thing)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        let key =
            |index: usize, generation| Key { index: u32::try_from(index).unwrap_or(u32::MAX), generation };
        let places = self.places.iter().enumerate();
        places
            .filter_map(move |(index, (generation, thing))| Some((key(index, *generation), thing.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_does_not_outlive_its_thing() {
        let mut table = Table::default();
        let first = table.insert("first");
        assert_eq!(table.remove(first), Some("first"));
        let second = table.insert("second");
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get_mut(second), Some(&mut "second"));
        assert_eq!(table.iter().map(|(key, _)| key).collect::<Vec<_>>(), [second]);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_packed_key_is_the_same_one() {
        let mut table = Table::default();
        for _ in 0..3 {
            let key = table.insert(());
            assert_eq!(Key::unpack(key.pack(200)), (200, key));
            table.remove(key);
        }
    }
}
