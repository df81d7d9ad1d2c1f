//! Somebody who reads the content in its order.

use crate::mesh::proto::Chunk;
use crate::model::{Class, Time};

/// Waits for one chunk after the other (`Read`), with the next few on their way (`Prefetch`).
#[derive(Clone, Debug)]
pub(super) struct Reader {
    have: Vec<bool>,
    /// The chunk that it waits for.
    next: u32,
    ahead: u32,
    /// The first chunk that was not wanted for it yet.
    unwanted: u32,
    started: bool,
    deadline: Time,
}

impl Reader {
    /// At the beginning of `chunks` chunks.
    pub(super) fn new(chunks: u32, ahead: u32) -> Self {
        let have = vec![false; chunks as usize];
        Self { have, next: 0, ahead, unwanted: 0, started: false, deadline: Time::NEVER }
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.have.capacity()
    }

    /// A chunk is here. `false` if it was before.
    pub(super) fn note(&mut self, chunk: Chunk) -> bool {
        !std::mem::replace(&mut self.have[chunk.0 as usize], true)
    }

    /// By when all must be read.
    pub(super) fn deadline(&self) -> Time {
        self.deadline
    }

    /// Whether what it waits for is here.
    pub(super) fn may_go_on(&self) -> bool {
        self.started && self.have.get(self.next as usize).is_some_and(|here| *here)
    }

    /// Reads what is here. Returns what it wants now that it did not want before.
    pub(super) fn go_on(&mut self, deadline: Time) -> Vec<(Chunk, Class)> {
        let before = (self.started, self.next);
        (self.started, self.deadline) = (true, deadline);
        while self.may_go_on() {
            self.next += 1;
        }
        let chunks = u32::try_from(self.have.len()).unwrap_or(u32::MAX);
        let mut wanted = Vec::new();
        if self.next < chunks && before != (true, self.next) {
            wanted.push((Chunk(self.next), Class::Read));
        }
        let end = self.next.saturating_add(self.ahead).saturating_add(1).min(chunks);
        let first = self.unwanted.max(self.next + 1);
        wanted.extend(
            (first..end)
                .filter(|chunk| !self.have[*chunk as usize])
                .map(|chunk| (Chunk(chunk), Class::Prefetch)),
        );
        self.unwanted = self.unwanted.max(end);
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_for_one_and_wants_a_few_ahead_each_once() {
        let mut reader = Reader::new(6, 2);
        let (read, ahead) = (|chunk| (Chunk(chunk), Class::Read), |chunk| (Chunk(chunk), Class::Prefetch));
        assert_eq!(reader.go_on(Time::NEVER), [read(0), ahead(1), ahead(2)]);
        assert!(reader.note(Chunk(1)) && !reader.note(Chunk(1)) && !reader.may_go_on());
        assert!(reader.note(Chunk(0)) && reader.may_go_on());
        assert_eq!(reader.go_on(Time::NEVER), [read(2), ahead(3), ahead(4)]);
        for chunk in 2..6 {
            assert!(reader.note(Chunk(chunk)));
        }
        assert_eq!(reader.go_on(Time::NEVER), []);
        assert!(!reader.may_go_on());
    }
}
