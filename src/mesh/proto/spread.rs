//! The oldest wants of a class, one by one.

use super::Chunk;
use std::collections::VecDeque;

/// Chunks in an order, at two bytes each while their numbers are near each other: those that a fill picks among mostly are.
#[derive(Clone, Debug)]
pub(super) enum Spread {
    /// By how much each is above `base`.
    Near {
        base: u32,
        above: VecDeque<u16>,
    },
    Far(VecDeque<Chunk>),
}

impl Default for Spread {
    fn default() -> Self {
        Self::NONE
    }
}

impl Spread {
    /// Empty.
    pub(super) const NONE: Self = Self::Near { base: 0, above: VecDeque::new() };

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Near { above, .. } => above.len(),
            Self::Far(chunks) => chunks.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn front(&self) -> Option<Chunk> {
        match self {
            Self::Near { base, above } => above.front().map(|above| Chunk(base + u32::from(*above))),
            Self::Far(chunks) => chunks.front().copied(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Chunk> {
        let (base, near, far) = match self {
            Self::Near { base, above } => (*base, Some(above), None),
            Self::Far(chunks) => (0, None, Some(chunks)),
        };
        let near = near.into_iter().flatten().map(move |above| Chunk(base + u32::from(*above)));
        near.chain(far.into_iter().flatten().copied())
    }

    /// Makes room for so many more: a quarter more rather than twice as many, for there are many nodes in a simulation.
    pub(super) fn reserve(&mut self, more: usize) {
        fn reserve<T>(list: &mut VecDeque<T>, more: usize) {
            if list.len() + more > list.capacity() {
                list.reserve_exact(more.max(list.len() / 4));
            }
        }
        match self {
            Self::Near { above, .. } => reserve(above, more),
            Self::Far(chunks) => reserve(chunks, more),
        }
    }

    pub(super) fn push_back(&mut self, chunk: Chunk) {
        if self.is_empty() {
            let above = match std::mem::take(self) {
                Self::Near { above, .. } => above,
                Self::Far(_) => VecDeque::new(),
            };
            *self = Self::Near { base: chunk.0, above };
        }
        if let Self::Near { base, .. } = self
            && chunk.0.checked_sub(*base).is_none_or(|above| above > u32::from(u16::MAX))
        {
            self.begin_elsewhere(chunk);
        }
        match self {
            Self::Near { base, above } => {
                above.push_back(u16::try_from(chunk.0.saturating_sub(*base)).unwrap_or(u16::MAX));
            }
            Self::Far(chunks) => chunks.push_back(chunk),
        }
    }

    /// Counts from another number, from which `chunk` is near as well, or if there is none, not at all.
    fn begin_elsewhere(&mut self, chunk: Chunk) {
        let all = || self.iter().map(|chunk| chunk.0).chain([chunk.0]);
        let (base, last) = (all().min().unwrap_or(0), all().max().unwrap_or(0));
        *self = if last - base <= u32::from(u16::MAX) {
            let above = self.iter().flat_map(|chunk| u16::try_from(chunk.0 - base)).collect();
            Self::Near { base, above }
        } else {
            Self::Far(self.iter().collect())
        };
    }

    /// Takes one out; the first one takes its place.
    pub(super) fn swap_remove_front(&mut self, index: usize) -> Option<Chunk> {
        match self {
            Self::Near { base, above } => {
                above.swap_remove_front(index).map(|above| Chunk(*base + u32::from(above)))
            }
            Self::Far(chunks) => chunks.swap_remove_front(index),
        }
    }

    /// Takes one out; all others keep their order.
    pub(super) fn remove(&mut self, index: usize) -> Option<Chunk> {
        match self {
            Self::Near { base, above } => above.remove(index).map(|above| Chunk(*base + u32::from(above))),
            Self::Far(chunks) => chunks.remove(index),
        }
    }

    /// Keeps those of which `keep`, asked in their order, says so.
    pub(super) fn retain(&mut self, mut keep: impl FnMut() -> bool) {
        match self {
            Self::Near { above, .. } => above.retain(|_| keep()),
            Self::Far(chunks) => chunks.retain(|_| keep()),
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::NONE;
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Self::Near { above, .. } => above.capacity() * size_of::<u16>(),
            Self::Far(chunks) => chunks.capacity() * size_of::<Chunk>(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Generator, Rng};

    #[test]
    fn it_is_the_same_list_whether_numbers_are_near_or_far() {
        for (jump, near) in [(300, true), (40_000, false), (u32::MAX / 200, false)] {
            let (mut spread, mut plain, mut rng) = (Spread::default(), VecDeque::new(), Generator::new(3));
            let (mut next, mut were_near, mut turns) = (5_u32, 0, 0);
            while next < u32::MAX / 2 && turns < 4_000 {
                turns += 1;
                match rng.below(6) {
                    0 if !plain.is_empty() => {
                        let index = rng.below(plain.len());
                        assert_eq!(spread.swap_remove_front(index), plain.swap_remove_front(index));
                    }
                    1 if !plain.is_empty() => {
                        let index = rng.below(plain.len());
                        assert_eq!(spread.remove(index), plain.remove(index));
                    }
                    2 if plain.len() > 60 => {
                        let kept: Vec<bool> = (0..plain.len()).map(|_| rng.below(8) == 0).collect();
                        let (mut one, mut other) = (kept.iter().copied(), kept.iter().copied());
                        spread.retain(|| one.next().unwrap());
                        plain.retain(|_| other.next().unwrap());
                    }
                    3 if rng.below(40) == 0 => {
                        spread.clear();
                        plain.clear();
                    }
                    _ => {
                        next += u32::try_from(rng.below(jump as usize)).unwrap();
                        // Now and then an older one comes again.
                        let chunk = if rng.below(9) == 0 { Chunk(next - next.min(50)) } else { Chunk(next) };
                        spread.reserve(1);
                        spread.push_back(chunk);
                        plain.push_back(chunk);
                    }
                }
                assert!(spread.iter().eq(plain.iter().copied()) && spread.len() == plain.len());
                assert_eq!(spread.front(), plain.front().copied());
                were_near += u32::from(matches!(spread, Spread::Near { .. }));
            }
            assert_eq!(were_near == turns, near, "{were_near} of {turns}");
        }
    }
}
