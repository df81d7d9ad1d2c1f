//! The books: where each chunk was first obtained, and what readers were served.

use crate::model::ContentId;
use crate::store::Origin;
use serde::Serialize;
use std::collections::HashSet;
use std::ops::{Index, IndexMut};

/// Most chunks that are remembered as counted although they are not in the cache: 2^20 keys of 8 bytes, at most 18 MiB.
/// A node that loses more in one run counts those that it obtains again a second time.
const MAX_REMEMBERED: usize = 1 << 20;

/// One value for each [`Origin`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ByOrigin<T> {
    /// Found here when the process started.
    pub cache: T,
    /// From neighbours.
    pub peers: T,
    /// From strata.
    pub strata: T,
}

impl<T> Index<Origin> for ByOrigin<T> {
    type Output = T;
    fn index(&self, origin: Origin) -> &T {
        match origin {
            Origin::Cache => &self.cache,
            Origin::Peers => &self.peers,
            Origin::Strata => &self.strata,
        }
    }
}

impl<T> IndexMut<Origin> for ByOrigin<T> {
    fn index_mut(&mut self, origin: Origin) -> &mut T {
        match origin {
            Origin::Cache => &mut self.cache,
            Origin::Peers => &mut self.peers,
            Origin::Strata => &mut self.strata,
        }
    }
}

/// A number of chunks and their plain bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Chunks, or deliveries of pieces of them.
    pub chunks: u64,
    /// Plain bytes.
    pub bytes: u64,
}

impl Count {
    pub(super) fn add(&mut self, bytes: u64) {
        self.chunks += 1;
        self.bytes += bytes;
    }
}

/// Counts each distinct chunk once, where it was first obtained; and what the store did.
///
/// What is in the cache says itself whether it was counted: it is verified. Only what was counted and is not here
/// has to be remembered.
#[derive(Debug, Default)]
pub(super) struct Books {
    counted_and_gone: HashSet<u64>,
    obtained: ByOrigin<Count>,
    /// Deliveries, by the origin of the chunk.
    pub(super) hits: ByOrigin<Count>,
    /// Reads of what is not here.
    pub(super) misses: u64,
    /// Chunks that left with their pack.
    pub(super) evicted: u64,
    /// Chunks that were dropped because their bytes were wrong or could not be read.
    pub(super) damaged: u64,
    /// Chunks that the scrub hashed.
    pub(super) scrubbed: Count,
    /// Times that the scrub went through everything.
    pub(super) scrub_rounds: u64,
}

impl Books {
    /// Counts a chunk that has just become a verified one of the cache, unless it was counted in an earlier stay.
    pub(super) fn note_stored(&mut self, id: &ContentId, plain_len: u32, origin: Origin) {
        if !self.counted_and_gone.contains(&id.key()) {
            self.obtained[origin].add(u64::from(plain_len));
        }
    }

    /// Counts a chunk that the cache did not take, unless it was counted before.
    pub(super) fn note_refused(&mut self, id: &ContentId, plain_len: u32, origin: Origin) {
        if !self.counted_and_gone.contains(&id.key()) {
            self.obtained[origin].add(u64::from(plain_len));
            self.note_gone(id);
        }
    }

    /// A chunk that was counted is not in the cache any more.
    pub(super) fn note_gone(&mut self, id: &ContentId) {
        if self.counted_and_gone.len() < MAX_REMEMBERED {
            self.counted_and_gone.insert(id.key());
        }
    }

    /// What was counted.
    pub(super) fn obtained(&self) -> ByOrigin<Count> {
        self.obtained
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_counted_once_where_it_was_first_obtained() {
        let mut books = Books::default();
        let (a, b) = (ContentId::of(b"a"), ContentId::of(b"b"));
        books.note_stored(&a, 10, Origin::Peers);
        books.note_gone(&a);
        books.note_stored(&a, 10, Origin::Strata);
        books.note_refused(&a, 10, Origin::Strata);
        books.note_refused(&b, 5, Origin::Cache);
        books.note_refused(&b, 5, Origin::Strata);
        books.note_stored(&b, 5, Origin::Strata);
        let obtained = books.obtained();
        assert_eq!(obtained.peers, Count { chunks: 1, bytes: 10 });
        assert_eq!(obtained.strata, Count::default());
        assert_eq!(obtained[Origin::Cache], Count { chunks: 1, bytes: 5 });
    }
}
