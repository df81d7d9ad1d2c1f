//! The content of an open file: which pieces of which chunks a read needs. Pure.

use crate::catalog::{Attributes, TreeError};
use crate::chunk::Piece;
use crate::model::{ChunkRef, limits};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// The chunks of one file, captured when it was opened.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) attributes: Attributes,
    chunks: Arc<[ChunkRef]>,
    /// Where each chunk ends in the file; ascending, the last is the file's size.
    ends: Box<[u64]>,
}

impl Content {
    /// Checks the list against the file's size: a catalog comes from outside.
    pub(super) fn new(attributes: Attributes, chunks: Arc<[ChunkRef]>) -> Result<Self, TreeError> {
        let mut end = 0_u64;
        let mut ends = Vec::with_capacity(chunks.len());
        for chunk in chunks.iter() {
            if chunk.plain_len == 0 || chunk.plain_len > limits::PLAIN_MAX_BYTES {
                let detail = format!("chunk {} has {} bytes", chunk.id, chunk.plain_len);
                return Err(TreeError::Damaged(detail));
            }
            // No overflow: fewer than 2^32 chunks fit into memory, of at most 2^29 bytes.
            end += u64::from(chunk.plain_len);
            ends.push(end);
        }
        if end != attributes.size {
            let (inode, size) = (attributes.inode.0, attributes.size);
            let detail = format!("the chunks of inode {inode} have {end} bytes, its size is {size}");
            return Err(TreeError::Damaged(detail));
        }
        Ok(Self { attributes, chunks, ends: ends.into() })
    }

    /// The chunks, in the order of their bytes.
    pub(super) fn chunks(&self) -> &Arc<[ChunkRef]> {
        &self.chunks
    }

    /// Number of the chunk that holds byte `offset`, or the number of chunks behind the end.
    pub(super) fn chunk_at(&self, offset: u64) -> usize {
        self.ends.partition_point(|end| *end <= offset)
    }

    /// The pieces that make up `len` bytes from `offset`, fewer where the file ends.
    pub(super) fn pieces(&self, offset: u64, len: u32) -> Vec<Piece> {
        let stop = offset.saturating_add(u64::from(len)).min(self.attributes.size);
        let mut pieces = Vec::new();
        let mut at = offset;
        for number in self.chunk_at(offset)..self.chunks.len() {
            if at >= stop {
                break;
            }
            let chunk = self.chunks[number];
            let begin = self.ends[number] - u64::from(chunk.plain_len);
            let until = stop.min(self.ends[number]);
            // Both lie within the chunk, whose length is a u32.
            let within = |position: u64| u32::try_from(position - begin).unwrap_or(chunk.plain_len);
            let (from, to) = (within(at), within(until));
            pieces.push(Piece { chunk, offset: from, len: to - from });
            at = until;
        }
        pieces
    }

    /// The chunks in `range`, to be fetched and stored.
    pub(super) fn touches(&self, range: Range<usize>) -> Vec<Piece> {
        self.chunks[range].iter().copied().map(Piece::touch).collect()
    }
}

/// Reads in a row that continue each other after which a reader counts as sequential (guess).
const SEQUENTIAL_READS: u32 = 2;
/// How far ahead of a sequential reader chunks are fetched, in bytes: four requests of 1 MiB (guess).
const AHEAD_BYTES: u64 = 4 << 20;
/// How far a read may lie from where the reader was expected and still continue it: the kernel's own read-ahead asks for
/// neighbouring ranges from several threads, in any order.
const LEEWAY_BYTES: u64 = 2 << 20;
/// Readers of one file that are told apart (guess): of more, those that read last are run ahead of.
const READERS: usize = 4;

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// Where the next read begins if the reader goes on.
    next: u64,
    in_a_row: u32,
    /// Number of the first chunk that was not yet asked for ahead.
    ahead: usize,
    /// Number of the first chunk that was asked for ahead and could not be had. It is asked for again with the next ones.
    failed: Option<usize>,
    /// When it read last, counted in reads of the file.
    read_at: u64,
}

#[derive(Debug, Default)]
struct Readers {
    reads: u64,
    progress: [Progress; READERS],
}

/// A file that is being read, and how. Reads carry no handle that could tell readers apart: a reader is who goes on where
/// somebody stopped.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) content: Content,
    readers: Mutex<Readers>,
}

impl OpenFile {
    pub(super) fn new(content: Content) -> Self {
        Self { content, readers: Mutex::default() }
    }

    /// Notes a read and says which chunks a sequential reader will want next; often none. If that may not be fetched now, it is said at
    /// a later read.
    pub(super) fn foresee(&self, offset: u64, len: u32, may_fetch: bool) -> Range<usize> {
        let content = &self.content;
        let stop = offset.saturating_add(u64::from(len));
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.reads += 1;
        let now = readers.reads;
        let (progress, continues) = readers.who_reads(offset);
        progress.read_at = now;
        progress.in_a_row = if continues { progress.in_a_row.saturating_add(1) } else { 0 };
        progress.next = if continues { progress.next.max(stop) } else { stop };
        if progress.in_a_row < SEQUENTIAL_READS {
            (progress.ahead, progress.failed) = (0, None);
            return 0..0;
        }
        let stop = progress.next;
        // Requests that arrive the wrong way round leave gaps, which are wanted next: it goes on where it ended.
        let first = if progress.ahead == 0 { content.chunk_at(stop) } else { progress.ahead };
        let last = content.chunk_at(stop.saturating_add(AHEAD_BYTES));
        // In runs of at least half the window, so that one request carries several chunks. What failed changes nothing about that: a
        // source that has nothing is asked no more often than one that has all.
        let asked_to = first.checked_sub(1).map_or(0, |number| content.ends[number]);
        let near = asked_to < stop.saturating_add(AHEAD_BYTES / 2);
        if first >= last || !near || !may_fetch {
            return 0..0;
        }
        progress.ahead = last;
        // What the reader has passed by now he had to fetch himself.
        let failed = progress.failed.take().map(|failed| failed.max(content.chunk_at(stop)));
        failed.map_or(first, |failed| failed.min(first))..last
    }

    /// What a read foresaw could not be fetched, or not all of it.
    pub(super) fn failed(&self, chunks: &Range<usize>) {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        // Of all whom it concerns: what is here costs nothing when it is asked for again.
        for one in readers.progress.iter_mut().filter(|one| one.ahead >= chunks.end) {
            one.failed = Some(one.failed.map_or(chunks.start, |failed| failed.min(chunks.start)));
        }
    }
}

impl Readers {
    /// The reader who goes on at `offset`, and whether there is one; else the place of who has read least lately.
    fn who_reads(&mut self, offset: u64) -> (&mut Progress, bool) {
        let goes_on = |one: &Progress| one.read_at > 0 && one.next.abs_diff(offset) <= LEEWAY_BYTES;
        let exactly = self.progress.iter().position(|one| one.read_at > 0 && one.next == offset);
        if let Some(found) = exactly.or_else(|| self.progress.iter().position(goes_on)) {
            // A jump back or ahead, however short, is no sequence when there was none before.
            let one = &mut self.progress[found];
            let continues = one.next == offset || one.in_a_row >= SEQUENTIAL_READS;
            return (one, continues);
        }
        let least = (0..READERS).min_by_key(|number| self.progress[*number].read_at).unwrap_or(0);
        self.progress[least] = Progress::default();
        (&mut self.progress[least], offset == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{FileKind, Inode};
    use crate::model::{ContentId, Place};
    use proptest::prelude::*;

    fn chunk(number: usize, plain_len: u32) -> ChunkRef {
        let id = ContentId::of(&number.to_le_bytes());
        ChunkRef { id, plain_len, place: Place { segment: id, ordinal: 0, offset: 0, stored_len: plain_len } }
    }

    fn file(lens: &[u32], size: u64) -> Result<Content, TreeError> {
        let attributes =
            Attributes { permissions: 0o644, size, links: 1, ..Attributes::blank(Inode(7), FileKind::File) };
        Content::new(attributes, lens.iter().enumerate().map(|(i, len)| chunk(i, *len)).collect())
    }

    #[test]
    fn chunks_that_contradict_the_size_are_refused_with_both_numbers() {
        let error = file(&[10, 20], 31).unwrap_err().to_string();
        assert!(error.contains("30") && error.contains("31"), "{error}");
        assert!(file(&[10, 0], 10).is_err(), "an empty chunk");
        assert!(file(&[u32::MAX], u64::from(u32::MAX)).is_err(), "a chunk beyond all bounds");
    }

    #[test]
    fn a_sequential_reader_is_run_ahead_of_and_a_random_one_is_not() {
        let wide = || file(&[1 << 20; 64], 64 << 20).unwrap();
        let reader = OpenFile::new(wide());
        let mut asked = Vec::new();
        for request in 0..64 {
            let ahead = reader.foresee(request << 20, 1 << 20, true);
            assert!(ahead.len() <= 4, "a bounded window");
            asked.extend(ahead);
        }
        assert_eq!(asked, (2..64).collect::<Vec<_>>(), "each chunk once, in order");
        let random = OpenFile::new(wide());
        for at in [5_u64, 60, 3, 40, 20, 50] {
            assert_eq!(random.foresee(at << 20, 4096, true), 0..0);
        }
    }

    #[test]
    fn what_could_not_be_fetched_ahead_is_asked_for_at_a_later_read() {
        let reader = OpenFile::new(file(&[1 << 20; 64], 64 << 20).unwrap());
        for request in 0..8 {
            assert_eq!(reader.foresee(request << 20, 1 << 20, false), 0..0);
        }
        assert_eq!(reader.foresee(8 << 20, 1 << 20, true), 9..13);
        let touched = reader.content.touches(9..13);
        assert!(touched.iter().all(Piece::is_touch) && touched[0].chunk == reader.content.chunks[9]);
    }

    #[test]
    fn what_was_asked_for_ahead_and_failed_is_asked_for_again_with_what_comes_next() {
        let reader = OpenFile::new(file(&[1 << 20; 64], 64 << 20).unwrap());
        let mut asked = Vec::new();
        for request in 0..64 {
            let ahead = reader.foresee(request << 20, 1 << 20, true);
            if !ahead.is_empty() {
                // All fails until chunk 30 is asked for, and then nothing does.
                if ahead.end <= 30 {
                    reader.failed(&ahead);
                }
                asked.push(ahead);
            }
        }
        assert!(asked.len() <= 32, "no more often than if all came: {asked:?}");
        for (before, next) in asked.iter().zip(&asked[1..]) {
            let lost = before.end <= 30;
            assert!(next.len() <= 4, "a bounded window: {next:?}");
            assert_eq!(next.start < before.end, lost, "{before:?}, {next:?}");
        }
    }

    #[test]
    fn two_readers_in_turn_and_requests_out_of_order_are_sequential_too() {
        let reader = OpenFile::new(file(&[1 << 20; 64], 64 << 20).unwrap());
        let mut asked = std::collections::BTreeSet::new();
        for request in 0..16 {
            for from in [0, 32] {
                // The kernel asks for two ranges at once, and they arrive the wrong way round now and then.
                let request = if request > 4 { request ^ 1 } else { request };
                let ahead = reader.foresee((from + request) << 20, 1 << 20, true);
                asked.extend(ahead);
            }
        }
        for number in (6..18).chain(38..50) {
            assert!(asked.contains(&number), "chunk {number}");
        }
    }

    proptest! {
        #[test]
        fn pieces_are_exactly_the_bytes_that_were_asked_for(
            lens in proptest::collection::vec(1_u32..50, 0..20),
            offset in 0_u64..600,
            len in 0_u32..600,
        ) {
            let size: u64 = lens.iter().map(|len| u64::from(*len)).sum();
            let content = file(&lens, size).unwrap();
            // The naive answer: a byte is its chunk and its position there.
            let all: Vec<(ContentId, u32)> = content
                .chunks
                .iter()
                .flat_map(|chunk| (0..chunk.plain_len).map(|at| (chunk.id, at)))
                .collect();
            let start = usize::try_from(offset.min(size)).unwrap();
            let stop = usize::try_from((offset + u64::from(len)).min(size)).unwrap();
            let pieces = content.pieces(offset, len);
            prop_assert!(pieces.iter().all(|piece| piece.len > 0));
            let got: Vec<_> = pieces
                .iter()
                .flat_map(|piece| (piece.offset..piece.offset + piece.len).map(|at| (piece.chunk.id, at)))
                .collect();
            prop_assert_eq!(&got, &all[start..stop.max(start)]);
        }
    }
}
