//! Small tables for millions of rows: numbered rows in pages, and an index that finds numbers by hash.
//!
//! A growing vector copies itself and stands half empty; a hash map that keeps its keys keeps them twice. Here
//! rows never move, so a million rows of 48 bytes take 48 MB, and the index takes 6 to 7 bytes a row.

/// Rows of one page: 48 KiB for a row of 48 bytes.
const PAGE_ROWS: usize = 1_024;

/// Rows by number. Numbers of rows that were removed are given away again, so they stay dense.
///
/// A row does not know whether it is in use: who needs to tell keeps that in the row.
#[derive(Clone, Debug)]
pub struct Rows<T> {
    pages: Vec<Box<[T]>>,
    /// Numbers that were ever given away.
    len: u32,
    free: Vec<u32>,
}

impl<T: Clone + Default> Default for Rows<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), len: 0, free: Vec::new() }
    }
}

impl<T: Clone + Default> Rows<T> {
    /// Puts a row in and numbers it.
    ///
    /// # Panics
    /// Past 4 billion rows; every table of the house is bounded far below.
    pub fn insert(&mut self, row: T) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            if self.len as usize == self.pages.len() * PAGE_ROWS {
                self.pages.push(vec![T::default(); PAGE_ROWS].into_boxed_slice());
            }
            self.len = self.len.checked_add(1).expect("tables are bounded far below u32::MAX rows");
            self.len - 1
        });
        if let Some(place) = self.get_mut(number) {
            *place = row;
        }
        number
    }

    /// Takes a row out; its number may be given to another. What stays in its place is the default.
    pub fn remove(&mut self, number: u32) -> Option<T> {
        let row = std::mem::take(self.get_mut(number)?);
        self.free.push(number);
        Some(row)
    }

    /// The row with this number, in use or not. `None` past the last.
    pub fn get(&self, number: u32) -> Option<&T> {
        let index = number as usize;
        (number < self.len).then(|| &self.pages[index / PAGE_ROWS][index % PAGE_ROWS])
    }

    /// The row with this number, to be changed.
    pub fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        let index = number as usize;
        (number < self.len).then(|| &mut self.pages[index / PAGE_ROWS][index % PAGE_ROWS])
    }

    /// All numbers that were ever given away: `0..end`.
    pub fn end(&self) -> u32 {
        self.len
    }

    /// Rows in use.
    pub fn len(&self) -> usize {
        self.len as usize - self.free.len()
    }

    /// Whether no row is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that the table takes, without what rows point to.
    pub fn bytes(&self) -> usize {
        self.pages.len() * PAGE_ROWS * size_of::<T>()
            + self.pages.capacity() * size_of::<Box<[T]>>()
            + self.free.capacity() * size_of::<u32>()
    }
}

/// The byte of a hash that stands for an empty place.
const EMPTY: u8 = 0;

/// Finds numbers by the hash of what they stand for: open addressing with linear probing (Knuth, volume 3,
/// section 6.4, algorithms L and R), at most seven eighths full, growing by an eighth.
///
/// The index keeps neither keys nor hashes, only a byte of each. The caller compares, and hands in a function that
/// hashes a number's row again. Hashes must be well mixed, and keyed wherever others choose the keys.
#[derive(Clone, Debug, Default)]
pub struct NumberIndex {
    tags: Vec<u8>,
    numbers: Vec<u32>,
    len: usize,
}

impl NumberIndex {
    /// Numbers in the index.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory that the index takes.
    pub fn bytes(&self) -> usize {
        self.tags.capacity() + self.numbers.capacity() * size_of::<u32>()
    }

    /// The numbers that may have this hash: those that have, and a few others.
    pub fn candidates(&self, hash: u64) -> impl Iterator<Item = u32> {
        let (tag, start, len) = (tag(hash), self.home(hash), self.tags.len());
        (0..len)
            .map(move |step| (start + step) % len)
            .take_while(|place| self.tags[*place] != EMPTY)
            .filter(move |place| self.tags[*place] == tag)
            .map(|place| self.numbers[place])
    }

    /// The first candidate for which `is` holds.
    pub fn find(&self, hash: u64, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        self.candidates(hash).find(|number| is(*number))
    }

    /// Puts a number in. `hash_of` hashes the row of a number that is in already.
    pub fn insert(&mut self, hash: u64, number: u32, hash_of: impl Fn(u32) -> u64) {
        if (self.len + 1) * 8 > self.tags.len() * 7 {
            self.grow(hash_of);
        }
        self.place(hash, number);
        self.len += 1;
    }

    /// Takes a number out; `false` when it is not in under this hash.
    pub fn remove(&mut self, hash: u64, number: u32, hash_of: impl Fn(u32) -> u64) -> bool {
        let len = self.tags.len();
        let start = self.home(hash);
        let found = (0..len)
            .map(|step| (start + step) % len)
            .take_while(|place| self.tags[*place] != EMPTY)
            .find(|place| self.numbers[*place] == number);
        let Some(mut hole) = found else { return false };
        self.len -= 1;
        // Whoever comes after the hole and was pushed past it moves back, so that no search ends too early.
        let mut place = hole;
        loop {
            self.tags[hole] = EMPTY;
            loop {
                place = (place + 1) % len;
                if self.tags[place] == EMPTY {
                    return true;
                }
                let home = self.home(hash_of(self.numbers[place]));
                let distance = |from: usize, to: usize| (to + len - from) % len;
                if distance(home, place) >= distance(hole, place) {
                    break;
                }
            }
            (self.tags[hole], self.numbers[hole]) = (self.tags[place], self.numbers[place]);
            hole = place;
        }
    }

    fn grow(&mut self, hash_of: impl Fn(u32) -> u64) {
        let places = self.tags.len() + self.tags.len() / 8 + 16;
        let tags = std::mem::replace(&mut self.tags, vec![EMPTY; places]);
        let numbers = std::mem::replace(&mut self.numbers, vec![0; places]);
        for (tag, number) in tags.into_iter().zip(numbers) {
            if tag != EMPTY {
                self.place(hash_of(number), number);
            }
        }
    }

    /// Writes into the first empty place from its home on. There is one.
    fn place(&mut self, hash: u64, number: u32) {
        let len = self.tags.len();
        let start = self.home(hash);
        let empty = (0..len).map(|step| (start + step) % len).find(|place| self.tags[*place] == EMPTY);
        if let Some(place) = empty {
            (self.tags[place], self.numbers[place]) = (tag(hash), number);
        }
    }

    /// Where the search for a hash begins: the high bits, scaled to the table (Lemire 2016).
    fn home(&self, hash: u64) -> usize {
        let scaled = (u128::from(hash) * self.tags.len() as u128) >> 64;
        usize::try_from(scaled).unwrap_or(0)
    }
}

/// The low byte of a hash, without 0: independent of the high bits, which name the home.
fn tag(hash: u64) -> u8 {
    u8::try_from(hash % 255 + 1).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::mix;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn a_removed_rows_number_is_given_away_again_and_rows_do_not_move() {
        let mut rows = Rows::default();
        let numbers: Vec<u32> = (0..5_000u64).map(|n| rows.insert(n)).collect();
        assert_eq!((rows.len(), rows.end()), (5_000, 5_000));
        assert_eq!(rows.remove(numbers[77]), Some(77));
        assert_eq!(rows.get(numbers[77]), Some(&0), "the default stays");
        assert_eq!(rows.insert(9_999), numbers[77]);
        assert_eq!((rows.get(4_999), rows.get(5_000)), (Some(&4_999), None));
        assert!(rows.bytes() < 5_000 * 8 + PAGE_ROWS * 8 + 1_024);
    }

    #[test]
    fn the_index_of_a_million_takes_less_than_seven_bytes_each() {
        let mut index = NumberIndex::default();
        for number in 0..1_000_000 {
            index.insert(mix(u64::from(number)), number, |n| mix(u64::from(n)));
        }
        assert!(index.bytes() < 7_000_000, "{} bytes", index.bytes());
        assert!((0..1_000_000).all(|n| index.find(mix(u64::from(n)), |m| m == n) == Some(n)));
    }

    proptest! {
        /// Few hashes, so that runs are long and removals have to close holes.
        #[test]
        fn the_index_finds_what_is_in_it_and_nothing_else(
            steps in proptest::collection::vec((any::<bool>(), 0u32..64), 1..400),
            spread in 1u64..9,
        ) {
            let hash = |number: u32| mix(u64::from(number) % spread);
            let mut index = NumberIndex::default();
            let mut model = BTreeMap::new();
            for (add, number) in steps {
                if add && model.insert(number, ()).is_none() {
                    index.insert(hash(number), number, hash);
                } else if !add {
                    prop_assert_eq!(index.remove(hash(number), number, hash), model.remove(&number).is_some());
                }
                prop_assert_eq!(index.len(), model.len());
                for number in 0..64 {
                    let found = index.find(hash(number), |other| other == number).is_some();
                    prop_assert_eq!(found, model.contains_key(&number));
                }
                let all: Vec<u32> = index.candidates(hash(0)).collect();
                prop_assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len(), "none twice");
            }
        }
    }
}
