//! What this node has to do with each chunk, in two bytes a chunk.

use super::Chunk;
use crate::model::Class;

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

const HELD: u16 = u16::MAX;
const PENDING: [(u16, Class); 3] =
    [(u16::MAX - 3, Class::Read), (u16::MAX - 2, Class::Prefetch), (u16::MAX - 1, Class::Fill)];

/// Most fetches that have a number.
pub(super) const SLOTS_MAX: u16 = u16::MAX - 4;

/// A dense table by chunk number: 10 000 nodes with 1 024 chunks each must fit one process.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks(Vec<u16>);

impl Marks {
    pub(super) fn get(&self, chunk: Chunk) -> Mark {
        match self.0.get(chunk.0 as usize).copied().unwrap_or(0) {
            0 => Mark::Nothing,
            HELD => Mark::Held,
            slot if slot <= SLOTS_MAX => Mark::Fetching(slot - 1),
            pending => {
                Mark::Pending(PENDING.iter().find(|(code, _)| *code == pending).map_or(Class::Fill, |p| p.1))
            }
        }
    }

    /// One more than the largest number that was ever set.
    pub(super) fn end(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    /// All chunks that are in a state: what an audit looks at.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Chunk, Mark)> {
        let marked = (0_u32..).map(Chunk).zip(&self.0).filter(|(_, code)| **code != 0);
        marked.map(|(chunk, _)| (chunk, self.get(chunk)))
    }

    pub(super) fn set(&mut self, chunk: Chunk, mark: Mark) {
        let code = match mark {
            Mark::Nothing => 0,
            Mark::Held => HELD,
            Mark::Pending(class) => PENDING[class as usize].0,
            Mark::Fetching(slot) => slot + 1,
        };
        let index = chunk.0 as usize;
        if self.0.len() <= index {
            if code == 0 {
                return;
            }
            self.0.resize(index + 1, 0);
        }
        self.0[index] = code;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_read_back() {
        let mut marks = Marks::default();
        let classes = [Class::Read, Class::Prefetch, Class::Fill];
        let states = [Mark::Nothing, Mark::Held, Mark::Fetching(0), Mark::Fetching(SLOTS_MAX - 1)];
        for mark in states.into_iter().chain(classes.map(Mark::Pending)) {
            marks.set(Chunk(70), mark);
            assert_eq!((marks.get(Chunk(70)), marks.get(Chunk(9)), marks.get(Chunk(999))), {
                (mark, Mark::Nothing, Mark::Nothing)
            });
        }
    }
}
