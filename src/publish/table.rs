//! Every chunk of the revision once: its name, its length, and its place as soon as it is known.

use crate::model::{ChunkRef, ContentId, Place};
use std::collections::HashMap;

/// A chunk's number in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Number(u32);

/// All chunks that this publishing knows or has seen.
#[derive(Debug, Default)]
pub(super) struct ChunkTable {
    numbers: HashMap<ContentId, Number>,
    chunks: Vec<(ContentId, u32, Option<Place>)>,
}

impl ChunkTable {
    /// Most chunks: what a number can count.
    const MOST: usize = u32::MAX as usize;

    /// Adds a chunk of the previous revision; the first place given stays.
    pub(super) fn know(&mut self, chunk: &ChunkRef) {
        if let Some((number, true)) = self.number(chunk.id, chunk.plain_len) {
            self.place(number, chunk.place);
        }
    }

    /// The number of a chunk, and whether it is new to the table; `None` when the table is full.
    pub(super) fn number(&mut self, id: ContentId, plain_len: u32) -> Option<(Number, bool)> {
        if let Some(number) = self.numbers.get(&id) {
            return Some((*number, false));
        }
        let number = Number(u32::try_from(self.chunks.len()).ok()?);
        if self.chunks.len() == Self::MOST {
            return None;
        }
        self.chunks.push((id, plain_len, None));
        self.numbers.insert(id, number);
        Some((number, true))
    }

    /// The number of a chunk that is in the table.
    pub(super) fn find(&self, id: &ContentId) -> Option<Number> {
        self.numbers.get(id).copied()
    }

    /// States where a chunk lies.
    pub(super) fn place(&mut self, number: Number, place: Place) {
        self.chunks[number.0 as usize].2 = Some(place);
    }

    /// The name of a chunk.
    pub(super) fn id(&self, number: Number) -> ContentId {
        self.chunks[number.0 as usize].0
    }

    /// The whole of a chunk.
    ///
    /// # Panics
    /// When its place was never stated: it was neither known nor packed.
    pub(super) fn chunk(&self, number: Number) -> ChunkRef {
        let (id, plain_len, place) = self.chunks[number.0 as usize];
        ChunkRef { id, plain_len, place: place.expect("packed before catalogs are written") }
    }
}
