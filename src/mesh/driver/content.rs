//! Numbers for content: the core knows chunks, slices and segments as small numbers, the wire and the
//! store know them by name.
//!
//! A chunk is interned by its whole [`ChunkRef`] and the repository that it is asked for in, so that a reference that
//! lies about a chunk's length, place or repository cannot spoil the honest one. A segment that lies in two repositories
//! is two to the core, each with homes among those who may read it. Numbers are used again: when the book is full, a
//! chunk that nobody wants, asks for or fetches makes room (second chance, Corbató 1968).
//!
//! What a peer asks for under a name need not lie there. A number is *vouched for* once a reader here found the chunk in
//! that repository's catalog, or it came from who gives it under that name alone: the strata, or a peer that was asked
//! for it so.
//!
//! A node may know a million chunks, so a row has 52 bytes: what the chunks of a slice or a segment share is
//! written there, and rows are found through an index that keeps no keys.

use super::super::proto::{Chunk, ContentUpdate, Repository, Segment, Slice};
use super::repositories::RepositoryBook;
use crate::model::{Algorithm, ChunkRef, ContentId, NumberIndex, Place, RepositoryName, Rows, limits, mix};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

/// Chunks that are looked at for one that may go, before an intern is refused.
const LOOKS_MAX: u32 = 1_024;
/// References with one chunk's name that are kept: an honest one for each segment and repository that holds the chunk
/// (most often one), the rest are lies. A further one takes the place of another that is not in use. When all are, what
/// a peer asks for is refused; what a reader here wants is not, for peers that lie must not keep it from anybody.
const REFERENCES_MAX: usize = 8;
/// Numbers of one segment that are found by its name alone: one for each repository in which it is asked for (most often
/// one). What peers tell of it reaches no others.
const NAMESAKES_MAX: usize = 8;

/// A chunk that has a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// How it is referred to.
    pub(super) chunk: ChunkRef,
    /// The repository in which it is asked for.
    pub(super) repository: RepositoryName,
    /// Whether the core was told that it is stored.
    pub(super) stored: bool,
    /// Whether it is known to lie in that repository.
    pub(super) vouched: bool,
}

/// A chunk, as it is kept. A number's row that is not in use has the algorithm 0.
#[derive(Clone, Copy, Default)]
struct Row {
    digest: [u8; 32],
    slice: u32,
    plain_len: u32,
    stored_len: u32,
    ordinal: u32,
    /// Where the frame begins in its slice (20 bits), the algorithm (4 bits), and three flags.
    packed: u32,
}

const OFFSET_BITS: u32 = limits::SLICE_BYTES.ilog2();
const ALGORITHM_SHIFT: u32 = 24;
const STORED: u32 = 1 << 28;
const USED: u32 = 1 << 29;
const VOUCHED: u32 = 1 << 30;

impl Row {
    fn new(chunk: &ChunkRef, slice: Slice) -> Self {
        let mut digest = [0; 32];
        digest[..chunk.id.digest().len()].copy_from_slice(chunk.id.digest());
        let offset = u32::try_from(chunk.place.offset % limits::SLICE_BYTES).unwrap_or(0);
        Self {
            digest,
            slice: slice.0,
            plain_len: chunk.plain_len,
            stored_len: chunk.place.stored_len,
            ordinal: chunk.place.ordinal,
            packed: offset | (chunk.id.algorithm() as u32) << ALGORITHM_SHIFT | USED,
        }
    }

    fn id(&self) -> Option<ContentId> {
        let algorithm = match self.packed >> ALGORITHM_SHIFT & 0xf {
            1 => Algorithm::Blake3,
            2 => Algorithm::Sha1,
            3 => Algorithm::Ripemd160,
            4 => Algorithm::Shake128,
            _ => return None,
        };
        ContentId::new(algorithm, &self.digest[..algorithm.digest_len()]).ok()
    }

    fn offset(&self) -> u64 {
        u64::from(self.packed & ((1 << OFFSET_BITS) - 1))
    }

    fn has(&self, flag: u32) -> bool {
        self.packed & flag != 0
    }

    fn set(&mut self, flag: u32, on: bool) {
        if on { self.packed |= flag } else { self.packed &= !flag }
    }
}

/// A slice, as it is kept.
#[derive(Clone, Copy)]
struct SliceRow {
    segment: Segment,
    /// Its number in the segment.
    number: u32,
    chunks: u32,
}

impl Default for SliceRow {
    fn default() -> Self {
        Self { segment: Segment(0), number: 0, chunks: 0 }
    }
}

struct SegmentEntry {
    id: ContentId,
    /// In which repository it is asked for.
    repository: Repository,
    slices: u32,
    /// Chunks of it that the core holds for stored.
    stored: u32,
    /// Whether a chunk of it was obtained in this run.
    obtained: bool,
    /// Whether it was announced.
    announced: bool,
}

/// What the caller tells the core after interning.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// The number of a chunk that was given away: evicted first if the core held it for stored.
    pub(super) forgotten: Option<(Chunk, bool)>,
    /// What was learned: the chunk, and where its slice belongs if that is new, too.
    pub(super) learned: SmallVec<[ContentUpdate; 2]>,
}

/// The book of content.
pub(super) struct ContentBook {
    chunks: Rows<Row>,
    /// Tasks and requests that still speak of a number: of the few that are in use.
    pins: HashMap<Chunk, u32>,
    /// By the hash of the chunk's name: all references with one name are candidates of one hash.
    by_id: NumberIndex,
    slices: Rows<SliceRow>,
    by_slice: HashMap<(Segment, u32), Slice>,
    segments: HashMap<Segment, SegmentEntry>,
    by_segment: HashMap<(ContentId, Repository), Segment>,
    /// Numbers of segments with one name, at most [`NAMESAKES_MAX`].
    namesakes: HashMap<ContentId, SmallVec<[Segment; 1]>>,
    /// The names of repositories, out of certificates as well.
    pub(super) repositories: RepositoryBook,
    /// Never used again, because the core remembers which numbers it announced.
    next_segment: u32,
    hand: u32,
    max: usize,
    /// See [`ContentBook::take_turns`].
    turns: Vec<(ContentId, bool)>,
    /// Keyed, because peers choose the names that they ask for.
    hasher: RandomState,
}

impl ContentBook {
    /// An empty book for at most `max` chunks.
    pub(super) fn new(max: usize) -> Self {
        Self {
            chunks: Rows::default(),
            pins: HashMap::new(),
            by_id: NumberIndex::default(),
            slices: Rows::default(),
            by_slice: HashMap::new(),
            segments: HashMap::new(),
            by_segment: HashMap::new(),
            namesakes: HashMap::new(),
            repositories: RepositoryBook::default(),
            next_segment: 0,
            hand: 0,
            max,
            turns: Vec::new(),
            hasher: RandomState::new(),
        }
    }

    /// The number of a chunk, and what the core has to be told first. `found`: a reader here found the reference, so it
    /// is no lie, and finds room beside those that are. `None`: the book is full of chunks that are in use, or the
    /// reference is out of all bounds.
    pub(super) fn intern(
        &mut self,
        chunk: ChunkRef,
        repository: &RepositoryName,
        found: bool,
    ) -> Option<(Chunk, Changes)> {
        let hash = self.hasher.hash_one(chunk.id);
        let same_name = self.with_id(&chunk.id);
        if let Some(known) = self.known(&same_name, &chunk, repository) {
            if let Some(row) = self.chunks.get_mut(known.0) {
                row.set(USED, true);
            }
            return Some((known, Changes::default()));
        }
        if chunk.place.slice() == u32::MAX {
            return None;
        }
        let mut changes = Changes::default();
        if same_name.len() >= REFERENCES_MAX {
            let idle = |number: &&Chunk| !self.pins.contains_key(number);
            let victim = same_name.iter().find(idle).copied();
            if victim.is_none() && !found {
                return None;
            }
            changes.forgotten = victim.and_then(|victim| Some((victim, self.remove(victim)?)));
        }
        if changes.forgotten.is_none() && self.chunks.len() >= self.max {
            changes.forgotten = Some(self.make_room()?);
        }
        let slice = self.intern_slice(chunk.place.segment, chunk.place.slice(), repository);
        let number = self.chunks.insert(Row::new(&chunk, slice));
        let (chunks, hasher) = (&self.chunks, &self.hasher);
        self.by_id.insert(hash, number, |number| hash_in(chunks, hasher, number));
        let row = self.slices.get(slice.0).copied().unwrap_or_default();
        changes.learned.push(ContentUpdate::Learned {
            chunk: Chunk(number),
            slice,
            segment: row.segment,
            slice_key: slice_key(&chunk.place.segment, chunk.place.slice()),
            part: chunk.place.part(),
            len_bytes: chunk.place.stored_len.max(1),
        });
        if row.chunks == 1
            && let Some(segment) = self.segments.get(&row.segment)
        {
            changes.learned.push(ContentUpdate::Belongs { slice, repository: segment.repository });
        }
        Some((Chunk(number), changes))
    }

    /// Of numbers with one name, the one with this reference in this repository.
    fn known(&self, same_name: &[Chunk], chunk: &ChunkRef, repository: &RepositoryName) -> Option<Chunk> {
        let repository = self.repositories.number(repository)?;
        let is = |number: &&Chunk| {
            self.repository_of(**number) == Some(repository) && self.reference(number.0) == Some(*chunk)
        };
        same_name.iter().find(is).copied()
    }

    /// The number of the repository in which a number's chunk is asked for.
    pub(super) fn repository_of(&self, number: Chunk) -> Option<Repository> {
        let slice = self.slices.get(self.chunks.get(number.0)?.slice)?;
        Some(self.segments.get(&slice.segment)?.repository)
    }

    /// The chunk is known to lie in the repository in which it is asked for.
    pub(super) fn vouch(&mut self, number: Chunk) {
        if let Some(row) = self.in_use(number) {
            row.set(VOUCHED, true);
        }
    }

    /// Whether the chunk is known to lie in the repository in which it is asked for.
    pub(super) fn is_vouched(&self, number: Chunk) -> bool {
        self.chunks.get(number.0).is_some_and(|row| row.has(VOUCHED))
    }

    /// Whether a chunk of this name is known to lie in any repository.
    pub(super) fn is_vouched_anywhere(&self, id: &ContentId) -> bool {
        self.with_id(id).into_iter().any(|number| self.is_vouched(number))
    }

    /// Everything that the core holds for stored, though it is not known to lie where it is asked for.
    pub(super) fn stored_unvouched(&self) -> Vec<Chunk> {
        let is =
            |number: &u32| self.chunks.get(*number).is_some_and(|row| row.has(STORED) && !row.has(VOUCHED));
        (0..self.chunks.end()).filter(is).map(Chunk).collect()
    }

    /// How a number's chunk is referred to.
    fn reference(&self, number: u32) -> Option<ChunkRef> {
        let row = self.chunks.get(number)?;
        let slice = self.slices.get(row.slice)?;
        let place = Place {
            segment: self.segments.get(&slice.segment)?.id,
            ordinal: row.ordinal,
            offset: u64::from(slice.number) * limits::SLICE_BYTES + row.offset(),
            stored_len: row.stored_len,
        };
        Some(ChunkRef { id: row.id()?, plain_len: row.plain_len, place })
    }

    /// The chunk behind a number.
    pub(super) fn get(&self, number: Chunk) -> Option<Entry> {
        let chunk = self.reference(number.0)?;
        let row = self.chunks.get(number.0)?;
        let segment = self.slices.get(row.slice).and_then(|slice| self.segments.get(&slice.segment))?;
        let repository = self.repositories.name(segment.repository)?.clone();
        Some(Entry { chunk, repository, stored: row.has(STORED), vouched: row.has(VOUCHED) })
    }

    /// The number of a chunk in a repository, if it has one.
    pub(super) fn number(&self, chunk: &ChunkRef, repository: &RepositoryName) -> Option<Chunk> {
        self.known(&self.with_id(&chunk.id), chunk, repository)
    }

    /// A chunk has just been obtained: its segment is news to others.
    pub(super) fn obtained(&mut self, number: Chunk) {
        if let Some(segment) = self.segment_entry(number) {
            segment.obtained = true;
        }
    }

    /// The core announces a segment. Its name, and whether something of it was obtained in this run.
    pub(super) fn announced(&mut self, number: Segment) -> Option<(ContentId, bool)> {
        let segment = self.segments.get_mut(&number)?;
        segment.announced = true;
        Some((segment.id, segment.obtained))
    }

    /// Announced segments of which nothing is stored any more, or again something, since the last call.
    pub(super) fn take_turns(&mut self) -> Vec<(ContentId, bool)> {
        std::mem::take(&mut self.turns)
    }

    fn segment_entry(&mut self, number: Chunk) -> Option<&mut SegmentEntry> {
        let slice = self.slices.get(self.chunks.get(number.0)?.slice)?;
        self.segments.get_mut(&slice.segment)
    }

    /// Counts what is stored of a segment.
    fn count_stored(&mut self, number: Chunk, stored: bool) {
        let Some(segment) = self.segment_entry(number) else { return };
        segment.stored = if stored { segment.stored + 1 } else { segment.stored.saturating_sub(1) };
        let turn = segment.stored == u32::from(stored) && segment.announced;
        let id = segment.id;
        if turn && (stored || !self.is_held(&id)) {
            self.turns.push((id, stored));
        }
    }

    /// Whether something of a segment is stored and announced, in whatever repository.
    fn is_held(&self, id: &ContentId) -> bool {
        let namesakes = self.namesakes.get(id).into_iter().flatten();
        namesakes.filter_map(|number| self.segments.get(number)).any(|row| row.announced && row.stored > 0)
    }

    /// The segment behind a number.
    pub(super) fn segment(&self, number: Segment) -> Option<ContentId> {
        self.segments.get(&number).map(|row| row.id)
    }

    /// The number of the segment that a chunk lies in.
    pub(super) fn segment_of(&self, number: Chunk) -> Option<Segment> {
        let slice = self.chunks.get(number.0)?.slice;
        self.slices.get(slice).map(|row| row.segment)
    }

    /// The segment that a slice lies in, and its number there.
    pub(super) fn slice_name(&self, number: Slice) -> Option<(ContentId, u32)> {
        let row = self.slices.get(number.0)?;
        Some((self.segment(row.segment)?, row.number))
    }

    /// The numbers of a slice: one for each repository in which it is asked for.
    pub(super) fn slice_numbers(&self, segment: &ContentId, slice: u32) -> impl Iterator<Item = Slice> {
        let namesakes = self.namesakes.get(segment).into_iter().flatten();
        namesakes.filter_map(move |number| self.by_slice.get(&(*number, slice)).copied())
    }

    /// All numbers whose chunks have this name, whatever their references say beside it.
    pub(super) fn with_id(&self, id: &ContentId) -> SmallVec<[Chunk; 1]> {
        let is = |number: &u32| self.chunks.get(*number).and_then(Row::id).as_ref() == Some(id);
        let found = self.by_id.candidates(self.hasher.hash_one(id)).filter(is).map(Chunk);
        let mut found: SmallVec<[Chunk; 1]> = found.collect();
        // Where they stand in the index depends on the hasher's key.
        found.sort_unstable();
        found
    }

    /// Notes whether the core holds a chunk for stored; says whether that is a change.
    pub(super) fn set_stored(&mut self, number: Chunk, stored: bool) -> bool {
        let changes = self.in_use(number).is_some_and(|row| {
            let changes = row.has(STORED) != stored;
            row.set(STORED, stored);
            changes
        });
        if changes {
            self.count_stored(number, stored);
        }
        changes
    }

    /// Keeps a number from being given away until as many [`ContentBook::unpin`]s.
    pub(super) fn pin(&mut self, number: Chunk) {
        if self.in_use(number).is_some() {
            *self.pins.entry(number).or_default() += 1;
        }
    }

    /// The end of a [`ContentBook::pin`].
    pub(super) fn unpin(&mut self, number: Chunk) {
        let Some(pins) = self.pins.get_mut(&number) else {
            debug_assert!(self.in_use(number).is_none(), "unpinned once too often");
            return;
        };
        *pins -= 1;
        if *pins == 0 {
            self.pins.remove(&number);
        }
    }

    fn in_use(&mut self, number: Chunk) -> Option<&mut Row> {
        self.chunks.get_mut(number.0).filter(|row| row.packed != 0)
    }

    fn intern_slice(&mut self, segment: ContentId, number: u32, repository: &RepositoryName) -> Slice {
        let known = self.repositories.number(repository);
        let known = known.and_then(|repository| self.by_segment.get(&(segment, repository)));
        let segment_number = match known {
            Some(known) => *known,
            None => self.new_segment(segment, repository),
        };
        let name = (segment_number, number);
        if let Some(slice) = self.by_slice.get(&name) {
            if let Some(row) = self.slices.get_mut(slice.0) {
                row.chunks += 1;
            }
            return *slice;
        }
        if let Some(row) = self.segments.get_mut(&segment_number) {
            row.slices += 1;
        }
        let slice = Slice(self.slices.insert(SliceRow { segment: segment_number, number, chunks: 1 }));
        self.by_slice.insert(name, slice);
        slice
    }

    fn new_segment(&mut self, id: ContentId, repository: &RepositoryName) -> Segment {
        let new = Segment(self.next_segment);
        self.next_segment = self.next_segment.wrapping_add(1);
        let repository = self.repositories.take(repository);
        let entry = SegmentEntry { id, repository, slices: 0, stored: 0, obtained: false, announced: false };
        self.segments.insert(new, entry);
        self.by_segment.insert((id, repository), new);
        let namesakes = self.namesakes.entry(id).or_default();
        if namesakes.len() < NAMESAKES_MAX {
            namesakes.push(new);
        }
        new
    }

    fn remove_segment(&mut self, number: Segment) {
        let Some(gone) = self.segments.remove(&number) else { return };
        self.by_segment.remove(&(gone.id, gone.repository));
        self.repositories.give_back(gone.repository);
        if let Some(namesakes) = self.namesakes.get_mut(&gone.id) {
            namesakes.retain(|other| *other != number);
            if namesakes.is_empty() {
                self.namesakes.remove(&gone.id);
            }
        }
    }

    /// Finds a chunk that nobody needs and takes it out: the first that was not used since the hand last
    /// passed, or else the first that is not in use.
    fn make_room(&mut self) -> Option<(Chunk, bool)> {
        let mut second_best = None;
        for _ in 0..LOOKS_MAX {
            self.hand = (self.hand + 1) % self.chunks.end().max(1);
            let candidate = Chunk(self.hand);
            if self.pins.contains_key(&candidate) {
                continue;
            }
            let Some(row) = self.in_use(candidate) else { continue };
            let used = row.has(USED);
            row.set(USED, false);
            if !used {
                second_best = Some(self.hand);
                break;
            }
            second_best.get_or_insert(self.hand);
        }
        let number = Chunk(second_best?);
        self.remove(number).map(|stored| (number, stored))
    }

    fn remove(&mut self, number: Chunk) -> Option<bool> {
        if self.chunks.get(number.0).is_some_and(|row| row.has(STORED)) {
            self.count_stored(number, false);
        }
        let (chunks, hasher) = (&self.chunks, &self.hasher);
        let hash_of = |number: u32| hash_in(chunks, hasher, number);
        self.by_id.remove(hash_of(number.0), number.0, hash_of);
        let row = self.chunks.remove(number.0)?;
        let slice = self.slices.get_mut(row.slice)?;
        slice.chunks -= 1;
        if slice.chunks == 0
            && let Some(gone) = self.slices.remove(row.slice)
        {
            self.by_slice.remove(&(gone.segment, gone.number));
            if let Some(segment) = self.segments.get_mut(&gone.segment) {
                segment.slices -= 1;
                if segment.slices == 0 {
                    self.remove_segment(gone.segment);
                }
            }
        }
        Some(row.has(STORED))
    }
}

fn hash_in(chunks: &Rows<Row>, hasher: &RandomState, number: u32) -> u64 {
    chunks.get(number).and_then(Row::id).map_or(0, |id| hasher.hash_one(id))
}

/// Rendezvous key of a slice: the same on all nodes.
fn slice_key(segment: &ContentId, slice: u32) -> u64 {
    mix(segment.key() ^ mix(u64::from(slice).wrapping_add(1)))
}

#[cfg(test)]
#[path = "content_tests.rs"]
mod tests;
