//! How many chunks of each slice are stored here.

use super::Slice;
use super::footprint::tree_bytes;
use super::prefetch;
use super::rare::Rare;
use std::collections::BTreeMap;

/// A dense table by slice number, in a byte a slice: few slices ever have as many chunks as that does not hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    counts: Vec<u8>,
    /// By slice number, counts that are too large for a byte.
    large: Rare<BTreeMap<u32, u16>>,
}

/// The count stands in [`Held::large`].
const LARGE: u8 = u8::MAX;

impl Held {
    /// One more than the largest slice number of which anything was ever stored.
    pub(super) fn len(&self) -> usize {
        self.counts.len()
    }

    /// Saturating: at `u16::MAX` it is not known any more.
    pub(super) fn get(&self, slice: Slice) -> u16 {
        match self.counts.get(slice.0 as usize) {
            Some(&LARGE) => self.large.get(&slice.0).copied().unwrap_or(0),
            count => count.copied().unwrap_or(0).into(),
        }
    }

    /// By slice number.
    pub(super) fn iter(&self) -> impl Iterator<Item = u16> {
        (0_u32..).zip(&self.counts).map(|(slice, _)| self.get(Slice(slice)))
    }

    /// One more is stored.
    pub(super) fn add(&mut self, slice: Slice) {
        let (index, len) = (slice.0 as usize, self.counts.len());
        if len <= index {
            // An eighth more rather than twice as many: there are many nodes in a simulation.
            self.counts.reserve_exact((index + 1 - len).max(len / 8));
            self.counts.resize(index + 1, 0);
        }
        let count = self.get(slice).saturating_add(1);
        self.set(slice, count);
    }

    /// One less is stored. A saturated count stays, and the slice never counts as empty.
    pub(super) fn remove(&mut self, slice: Slice) {
        let count = self.get(slice);
        if count < u16::MAX {
            self.set(slice, count.saturating_sub(1));
        }
    }

    /// Nothing is stored.
    pub(super) fn forget(&mut self, slice: Slice) {
        self.set(slice, 0);
    }

    fn set(&mut self, slice: Slice, count: u16) {
        let Some(place) = self.counts.get_mut(slice.0 as usize) else { return };
        match u8::try_from(count) {
            Ok(count) if count < LARGE => {
                if *place == LARGE {
                    self.large.remove(&slice.0);
                }
                *place = count;
            }
            _ => {
                *place = LARGE;
                self.large.insert(slice.0, count);
            }
        }
    }

    /// See [`super::prefetch`].
    pub(super) fn prefetch(&self, slice: Slice) {
        prefetch(self.counts.as_ptr().wrapping_add(slice.0 as usize));
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.counts.capacity() + tree_bytes::<u32, u16>(self.large.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_beyond_a_byte_are_kept_and_saturate() {
        let mut held = Held::default();
        let slice = Slice(3);
        for count in 0..70_000_u32 {
            assert_eq!(u32::from(held.get(slice)), count.min(u16::MAX.into()));
            held.add(slice);
        }
        held.remove(slice);
        assert_eq!((held.get(slice), held.len(), held.get(Slice(9))), (u16::MAX, 4, 0), "it stays");
        held.forget(slice);
        (0..300).for_each(|_| held.add(slice));
        for count in (0..300).rev() {
            held.remove(slice);
            assert_eq!((held.get(slice), held.large.len()), (count, usize::from(count >= 255)));
        }
        held.remove(slice);
        held.forget(Slice(77));
        assert!(held.iter().eq([0; 4]) && held.get(slice) == 0);
    }
}
