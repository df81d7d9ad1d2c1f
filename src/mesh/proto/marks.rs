//! What this node has to do with each chunk, in one byte a chunk.

use super::Chunk;
use super::footprint::tree_bytes;
use super::prefetch;
use super::rare::Rare;
use crate::model::Class;
use std::collections::BTreeMap;

/// The state of a chunk at this node. A chunk is in exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Neither stored nor wanted.
    Nothing,
    /// Stored: it can be served.
    Held,
    /// Wanted here, not begun.
    Pending(Class),
    /// Being fetched, in the slot of this number.
    Fetching(u16),
}

const HELD: u8 = u8::MAX;
const PENDING: [(u8, Class); 3] =
    [(u8::MAX - 3, Class::Read), (u8::MAX - 2, Class::Prefetch), (u8::MAX - 1, Class::Fill)];
/// The slot stands in [`Marks::apart`].
const APART: u8 = u8::MAX - 4;
/// Slots that have a code of their own: few nodes ever fetch more at once.
const SLOTS_HERE: u16 = APART as u16 - 1;

/// Most fetches that have a number.
pub(super) const SLOTS_MAX: u16 = u16::MAX - 4;

/// A dense table by chunk number: a million nodes with 256 chunks each must fit one process.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    codes: Vec<u8>,
    /// By chunk number, slots that have no code.
    apart: Rare<BTreeMap<u32, u16>>,
}

impl Marks {
    pub(super) fn get(&self, chunk: Chunk) -> Mark {
        match self.codes.get(chunk.0 as usize).copied().unwrap_or(0) {
            0 => Mark::Nothing,
            HELD => Mark::Held,
            APART => self.apart.get(&chunk.0).map_or(Mark::Nothing, |slot| Mark::Fetching(*slot)),
            slot if slot < APART => Mark::Fetching(u16::from(slot) - 1),
            pending => {
                Mark::Pending(PENDING.iter().find(|(code, _)| *code == pending).map_or(Class::Fill, |p| p.1))
            }
        }
    }

    /// One more than the largest number that was ever set.
    pub(super) fn end(&self) -> u32 {
        u32::try_from(self.codes.len()).unwrap_or(u32::MAX)
    }

    /// All chunks that are in a state: what an audit looks at.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Chunk, Mark)> {
        let marked = (0_u32..).map(Chunk).zip(&self.codes).filter(|(_, code)| **code != 0);
        marked.map(|(chunk, _)| (chunk, self.get(chunk)))
    }

    pub(super) fn set(&mut self, chunk: Chunk, mark: Mark) {
        let code = match mark {
            Mark::Nothing => 0,
            Mark::Held => HELD,
            Mark::Pending(class) => PENDING[class as usize].0,
            Mark::Fetching(slot) if slot < SLOTS_HERE => u8::try_from(slot + 1).unwrap_or(APART),
            Mark::Fetching(_) => APART,
        };
        let index = chunk.0 as usize;
        if self.codes.len() <= index {
            if code == 0 {
                return;
            }
            self.codes.resize(index + 1, 0);
        }
        let before = std::mem::replace(&mut self.codes[index], code);
        if let Mark::Fetching(slot) = mark
            && code == APART
        {
            self.apart.insert(chunk.0, slot);
        } else if before == APART {
            self.apart.remove(&chunk.0);
        }
    }

    /// See [`super::prefetch`].
    pub(super) fn prefetch(&self, chunk: Chunk) {
        prefetch(self.codes.as_ptr().wrapping_add(chunk.0 as usize));
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.codes.capacity() + tree_bytes::<u32, u16>(self.apart.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_read_back() {
        let mut marks = Marks::default();
        let classes = [Class::Read, Class::Prefetch, Class::Fill];
        let slots = [0, SLOTS_HERE - 1, SLOTS_HERE, SLOTS_HERE + 1, SLOTS_MAX - 1].map(Mark::Fetching);
        let states = [Mark::Nothing, Mark::Held].into_iter().chain(slots);
        for mark in states.chain(classes.map(Mark::Pending)) {
            marks.set(Chunk(70), mark);
            assert_eq!((marks.get(Chunk(70)), marks.get(Chunk(9)), marks.get(Chunk(999))), {
                (mark, Mark::Nothing, Mark::Nothing)
            });
            assert_eq!(
                marks.apart.len(),
                usize::from(matches!(mark, Mark::Fetching(slot) if slot >= SLOTS_HERE))
            );
        }
    }
}
