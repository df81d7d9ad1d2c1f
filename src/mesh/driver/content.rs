//! Numbers for content: the core knows chunks, slices and segments as small numbers, the wire and the
//! store know them by name.
//!
//! A chunk is interned by its whole [`ChunkRef`], so that a reference that lies about a chunk's length
//! or place cannot spoil the honest one. Numbers are used again: when the book is full, a chunk that
//! nobody wants, asks for or fetches makes room (second chance, Corbató 1968).

use super::super::proto::{Chunk, ContentUpdate, Segment, Slice};
use crate::model::{ChunkRef, ContentId, RepositoryName, mix};
use smallvec::SmallVec;
use std::collections::HashMap;

/// Chunks that are looked at for one that may go, before an intern is refused.
const LOOKS_MAX: usize = 1_024;

/// A chunk that has a number.
pub(super) struct Entry {
    pub(super) chunk: ChunkRef,
    /// Under which name it was last wanted or asked for.
    pub(super) repository: RepositoryName,
    /// Whether the core was told that it is stored.
    pub(super) stored: bool,
    /// Tasks and requests that still speak of this number.
    pins: u32,
    slice: Slice,
    used: bool,
}

struct SliceEntry {
    segment: Segment,
    name: (ContentId, u32),
    chunks: u32,
}

struct SegmentEntry {
    id: ContentId,
    slices: u32,
}

/// Rows by number, with the numbers that are free.
struct Table<T> {
    rows: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Table<T> {
    const fn new() -> Self {
        Self { rows: Vec::new(), free: Vec::new() }
    }

    fn insert(&mut self, row: T) -> u32 {
        if let Some(number) = self.free.pop() {
            self.rows[number as usize] = Some(row);
            return number;
        }
        let number = u32::try_from(self.rows.len()).expect("the book is bounded far below u32::MAX");
        self.rows.push(Some(row));
        number
    }

    fn get(&self, number: u32) -> Option<&T> {
        self.rows.get(number as usize)?.as_ref()
    }

    fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.rows.get_mut(number as usize)?.as_mut()
    }

    fn remove(&mut self, number: u32) -> Option<T> {
        let row = self.rows.get_mut(number as usize)?.take()?;
        self.free.push(number);
        Some(row)
    }
}

/// What the caller tells the core after interning.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// The number of a chunk that was given away: evicted first if the core held it for stored.
    pub(super) forgotten: Option<(Chunk, bool)>,
    /// What was learned.
    pub(super) learned: Option<ContentUpdate>,
}

/// The book of content.
pub(super) struct ContentBook {
    chunks: Table<Entry>,
    by_ref: HashMap<ChunkRef, Chunk>,
    by_id: HashMap<ContentId, SmallVec<[Chunk; 1]>>,
    slices: Table<SliceEntry>,
    by_slice: HashMap<(ContentId, u32), Slice>,
    segments: HashMap<Segment, SegmentEntry>,
    by_segment: HashMap<ContentId, Segment>,
    /// Never used again, because the core remembers which numbers it announced.
    next_segment: u32,
    hand: usize,
    max: usize,
}

impl ContentBook {
    /// An empty book for at most `max` chunks.
    pub(super) fn new(max: usize) -> Self {
        Self {
            chunks: Table::new(),
            by_ref: HashMap::new(),
            by_id: HashMap::new(),
            slices: Table::new(),
            by_slice: HashMap::new(),
            segments: HashMap::new(),
            by_segment: HashMap::new(),
            next_segment: 0,
            hand: 0,
            max,
        }
    }

    /// The number of a chunk, and what the core has to be told first. `None`: the book is full of
    /// chunks that are in use.
    pub(super) fn intern(
        &mut self,
        chunk: ChunkRef,
        repository: &RepositoryName,
    ) -> Option<(Chunk, Changes)> {
        if let Some(number) = self.by_ref.get(&chunk) {
            let entry = self.chunks.get_mut(number.0).expect("an indexed chunk has a row");
            entry.used = true;
            if entry.repository != *repository {
                entry.repository = repository.clone();
            }
            return Some((*number, Changes::default()));
        }
        let mut changes = Changes::default();
        if self.by_ref.len() >= self.max {
            changes.forgotten = Some(self.make_room()?);
        }
        let slice = self.intern_slice(chunk.place.segment, chunk.place.slice());
        let entry =
            Entry { chunk, repository: repository.clone(), stored: false, pins: 0, slice, used: true };
        let number = Chunk(self.chunks.insert(entry));
        self.by_ref.insert(chunk, number);
        self.by_id.entry(chunk.id).or_default().push(number);
        changes.learned = Some(ContentUpdate::Learned {
            chunk: number,
            slice,
            segment: self.slices.get(slice.0).map_or(Segment(0), |row| row.segment),
            slice_key: slice_key(&chunk.place.segment, chunk.place.slice()),
            part: chunk.place.part(),
            len_bytes: chunk.place.stored_len.max(1),
        });
        Some((number, changes))
    }

    /// The chunk behind a number.
    pub(super) fn get(&self, number: Chunk) -> Option<&Entry> {
        self.chunks.get(number.0)
    }

    /// The number of a chunk, if it has one.
    pub(super) fn number(&self, chunk: &ChunkRef) -> Option<Chunk> {
        self.by_ref.get(chunk).copied()
    }

    /// The segment behind a number.
    pub(super) fn segment(&self, number: Segment) -> Option<ContentId> {
        self.segments.get(&number).map(|row| row.id)
    }

    /// The number of the segment that a chunk lies in.
    pub(super) fn segment_of(&self, number: Chunk) -> Option<Segment> {
        let slice = self.chunks.get(number.0)?.slice;
        self.slices.get(slice.0).map(|row| row.segment)
    }

    /// The segment that a slice lies in, and its number there.
    pub(super) fn slice_name(&self, number: Slice) -> Option<(ContentId, u32)> {
        self.slices.get(number.0).map(|row| row.name)
    }

    /// The number of a slice, if it has one.
    pub(super) fn slice_number(&self, segment: &ContentId, slice: u32) -> Option<Slice> {
        self.by_slice.get(&(*segment, slice)).copied()
    }

    /// All numbers whose chunks have this name, whatever their references say beside it.
    pub(super) fn with_id(&self, id: &ContentId) -> SmallVec<[Chunk; 1]> {
        self.by_id.get(id).cloned().unwrap_or_default()
    }

    /// Notes whether the core holds a chunk for stored; says whether that is a change.
    pub(super) fn set_stored(&mut self, number: Chunk, stored: bool) -> bool {
        self.chunks
            .get_mut(number.0)
            .is_some_and(|entry| std::mem::replace(&mut entry.stored, stored) != stored)
    }

    /// Keeps a number from being given away until as many [`ContentBook::unpin`]s.
    pub(super) fn pin(&mut self, number: Chunk) {
        if let Some(entry) = self.chunks.get_mut(number.0) {
            entry.pins += 1;
        }
    }

    /// The end of a [`ContentBook::pin`].
    pub(super) fn unpin(&mut self, number: Chunk) {
        if let Some(entry) = self.chunks.get_mut(number.0) {
            debug_assert!(entry.pins > 0, "unpinned once too often");
            entry.pins = entry.pins.saturating_sub(1);
        }
    }

    fn intern_slice(&mut self, segment: ContentId, number: u32) -> Slice {
        if let Some(slice) = self.by_slice.get(&(segment, number)) {
            if let Some(row) = self.slices.get_mut(slice.0) {
                row.chunks += 1;
            }
            return *slice;
        }
        let segment_number = match self.by_segment.get(&segment) {
            Some(known) => *known,
            None => {
                let new = Segment(self.next_segment);
                self.next_segment = self.next_segment.wrapping_add(1);
                self.segments.insert(new, SegmentEntry { id: segment, slices: 0 });
                self.by_segment.insert(segment, new);
                new
            }
        };
        if let Some(row) = self.segments.get_mut(&segment_number) {
            row.slices += 1;
        }
        let name = (segment, number);
        let slice = Slice(self.slices.insert(SliceEntry { segment: segment_number, name, chunks: 1 }));
        self.by_slice.insert(name, slice);
        slice
    }

    /// Finds a chunk that nobody needs and takes it out: the first that was not used since the hand last
    /// passed, or else the first that is not in use.
    fn make_room(&mut self) -> Option<(Chunk, bool)> {
        let mut second_best = None;
        for _ in 0..LOOKS_MAX {
            self.hand = (self.hand + 1) % self.chunks.rows.len().max(1);
            let Some(entry) = self.chunks.rows[self.hand].as_mut().filter(|entry| entry.pins == 0) else {
                continue;
            };
            if !std::mem::take(&mut entry.used) {
                second_best = Some(self.hand);
                break;
            }
            second_best.get_or_insert(self.hand);
        }
        let number = Chunk(u32::try_from(second_best?).ok()?);
        self.remove(number).map(|stored| (number, stored))
    }

    fn remove(&mut self, number: Chunk) -> Option<bool> {
        let entry = self.chunks.remove(number.0)?;
        self.by_ref.remove(&entry.chunk);
        if let Some(numbers) = self.by_id.get_mut(&entry.chunk.id) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.by_id.remove(&entry.chunk.id);
            }
        }
        let slice = self.slices.get_mut(entry.slice.0)?;
        slice.chunks -= 1;
        if slice.chunks == 0
            && let Some(gone) = self.slices.remove(entry.slice.0)
        {
            self.by_slice.remove(&gone.name);
            if let Some(segment) = self.segments.get_mut(&gone.segment) {
                segment.slices -= 1;
                if segment.slices == 0
                    && let Some(gone) = self.segments.remove(&gone.segment)
                {
                    self.by_segment.remove(&gone.id);
                }
            }
        }
        Some(entry.stored)
    }
}

/// Rendezvous key of a slice: the same on all nodes.
fn slice_key(segment: &ContentId, slice: u32) -> u64 {
    mix(segment.key() ^ mix(u64::from(slice).wrapping_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Place;

    fn chunk(number: u8, offset: u64) -> ChunkRef {
        let place = Place { segment: ContentId::of(&[number / 10]), ordinal: 0, offset, stored_len: 10 };
        ChunkRef { id: ContentId::of(&[number]), plain_len: 10, place }
    }

    fn repository() -> RepositoryName {
        "a.example".parse().unwrap()
    }

    fn intern(book: &mut ContentBook, chunk: ChunkRef) -> (Chunk, Changes) {
        book.intern(chunk, &repository()).unwrap()
    }

    #[test]
    fn a_reference_that_lies_gets_a_number_of_its_own() {
        let mut book = ContentBook::new(10);
        let honest = chunk(1, 0);
        let (a, _) = intern(&mut book, honest);
        let (b, _) = intern(&mut book, ChunkRef { plain_len: 11, ..honest });
        assert_ne!(a, b);
        assert_eq!(intern(&mut book, honest), (a, Changes::default()));
        assert_eq!(book.with_id(&honest.id).as_slice(), [a, b]);
    }

    #[test]
    fn the_same_slice_has_one_number_and_the_same_key_everywhere() {
        let (mut one, mut two) = (ContentBook::new(10), ContentBook::new(10));
        let learned = |changes: Changes| match changes.learned.unwrap() {
            ContentUpdate::Learned { slice, segment, slice_key, part, .. } => {
                (slice, segment, slice_key, part)
            }
            other => unreachable!("{other:?}"),
        };
        let first = learned(intern(&mut one, chunk(1, 0)).1);
        let same_slice = learned(intern(&mut one, chunk(2, 1 << 19)).1);
        let next_slice = learned(intern(&mut one, chunk(3, 1 << 20)).1);
        assert_eq!((first.0, first.1, first.2), (same_slice.0, same_slice.1, same_slice.2));
        assert_eq!((first.3, same_slice.3), (0, 32));
        assert_eq!(first.1, next_slice.1);
        assert_ne!(first.2, next_slice.2);
        intern(&mut two, chunk(50, 0));
        assert_eq!(learned(intern(&mut two, chunk(3, 1 << 20)).1).2, next_slice.2);
    }

    #[test]
    fn a_full_book_gives_away_what_is_not_in_use_and_refuses_when_all_is() {
        let mut book = ContentBook::new(3);
        let numbers: Vec<Chunk> = (0..3).map(|n| intern(&mut book, chunk(n, 0)).0).collect();
        for number in &numbers[..2] {
            book.pin(*number);
        }
        assert!(book.set_stored(numbers[2], true));
        let (new, changes) = intern(&mut book, chunk(30, 0));
        assert_eq!(changes.forgotten, Some((numbers[2], true)), "stored: to be evicted first");
        assert_eq!((new, book.by_ref.len()), (numbers[2], 3), "the number is used again");
        assert_eq!(book.get(new).unwrap().chunk, chunk(30, 0));
        assert!(book.with_id(&chunk(2, 0).id).is_empty());
        book.pin(new);
        assert!(book.intern(chunk(31, 0), &repository()).is_none());
        book.unpin(numbers[0]);
        assert!(book.intern(chunk(31, 0), &repository()).is_some());
    }

    #[test]
    fn segments_and_slices_go_with_their_last_chunk() {
        let mut book = ContentBook::new(1);
        for number in 0..100 {
            intern(&mut book, chunk(number, u64::from(number) << 20));
        }
        assert_eq!((book.by_slice.len(), book.segments.len(), book.slices.rows.len()), (1, 1, 1));
    }
}
