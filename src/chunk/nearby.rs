//! What is fetched along with something small that was missing: what lies beside it on the strata. Pure.
//!
//! A publisher lays together what lies together in the tree, so who reads one small file or catalog of a segment will read
//! others of it. A segment is looked at in blocks. The first fetch in a segment takes few blocks around, each further one
//! twice as many: one file that is read costs little for nothing, and a program that reads thousands soon has all of them in a
//! few requests. Who reads on in the order in which it was laid is run ahead of in the same way. No block is asked for twice, until nothing
//! was read of its segment for a while: by then what was fetched may have been dropped. What could not be had does not count as asked
//! for, and its segment rests for a moment, so that a source that has nothing is not asked at every read.

use crate::model::{ContentId, Place, Time};
use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

/// A block, in stored bytes.
const BLOCK_BYTES: u64 = 64 << 10;
/// Blocks of a segment that are told apart. What lies behind them (no segment of files is as long) is not fetched ahead.
const BLOCKS_MAX: u64 = 1_024;
/// Segments that are remembered; of more, the one that was read least lately goes (guess: those of a large tree that is read now).
const SEGMENTS_MAX: usize = 256;
/// After so long without a read, nothing is known of a segment any more (guess).
const FRESH: Duration = Duration::from_secs(60);

/// After a fetch that failed, nothing is fetched ahead in its segment for so long (guess: readers find out by themselves meanwhile).
const REST: Duration = Duration::from_secs(5);

/// How much is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eagerness {
    /// Fetches in a segment before anything is taken along.
    pub patience: u32,
    /// What the first fetch after that takes along, in stored bytes.
    pub first_bytes: u64,
    /// What a fetch takes along at most.
    pub most_bytes: u64,
}

/// What is known of one segment.
#[derive(Clone, Debug, Default)]
struct Segment {
    /// A bit a block: whether it was asked for.
    asked: Vec<u64>,
    /// Fetches so far.
    fetches: u32,
    read_at: Time,
    /// When a fetch failed last.
    failed_at: Option<Time>,
}

impl Segment {
    fn is_asked(&self, block: u64) -> bool {
        let word = self.asked.get(usize::try_from(block / 64).unwrap_or(usize::MAX));
        word.is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    /// Marks blocks as asked; those that were not, as runs of bytes.
    fn ask(&mut self, blocks: Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for block in blocks.start..blocks.end.min(BLOCKS_MAX) {
            if self.is_asked(block) {
                continue;
            }
            let word = usize::try_from(block / 64).unwrap_or(0);
            if self.asked.len() <= word {
                self.asked.resize(word + 1, 0);
            }
            self.asked[word] |= 1 << (block % 64);
            let bytes = block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
            match runs.last_mut() {
                Some(last) if last.end == bytes.start => last.end = bytes.end,
                _ => runs.push(bytes),
            }
        }
        runs
    }

    /// These blocks count as not asked for.
    fn take_back(&mut self, run: &Range<u64>) {
        for block in run.start / BLOCK_BYTES..run.end.div_ceil(BLOCK_BYTES).min(BLOCKS_MAX) {
            if let Some(word) = self.asked.get_mut(usize::try_from(block / 64).unwrap_or(usize::MAX)) {
                *word &= !(1 << (block % 64));
            }
        }
    }
}

/// The segments that are being read.
#[derive(Debug)]
pub struct Nearby {
    eagerness: Eagerness,
    segments: HashMap<ContentId, Segment>,
}

impl Nearby {
    /// Nothing was read yet.
    pub fn new(eagerness: Eagerness) -> Self {
        Self { eagerness, segments: HashMap::new() }
    }

    /// Notes that something small that begins at `place` is read, and whether it has to be fetched. Says which stored bytes of
    /// the same segment are to be fetched ahead: what begins there; most often nothing.
    pub fn read(&mut self, place: &Place, is_missing: bool, now: Time) -> Vec<Range<u64>> {
        let block = place.offset / BLOCK_BYTES;
        if block >= BLOCKS_MAX {
            return Vec::new();
        }
        if !self.segments.contains_key(&place.segment) {
            if !is_missing {
                return Vec::new();
            }
            self.make_room();
        }
        let Eagerness { patience, first_bytes, most_bytes } = self.eagerness;
        let segment = self.segments.entry(place.segment).or_default();
        if now.since(segment.read_at) > FRESH {
            *segment = Segment::default();
        }
        segment.read_at = now;
        if segment.failed_at.is_some_and(|failed| now.since(failed) < REST) {
            return Vec::new();
        }
        let warmth = segment.fetches.saturating_sub(patience);
        let bytes = first_bytes.saturating_mul(1 << warmth.min(16)).min(most_bytes);
        let blocks = (bytes / BLOCK_BYTES).max(1);
        if is_missing && !segment.is_asked(block) {
            segment.fetches = segment.fetches.saturating_add(1);
            if segment.fetches <= patience {
                return Vec::new();
            }
            // A few in front of it, too: not everybody reads in the order in which it was laid.
            return segment.ask(block.saturating_sub(blocks / 4)..block + blocks);
        }
        // Half of what would be fetched lies ahead still, or the end: it is early enough.
        let ahead = block + blocks.div_ceil(2);
        if segment.fetches <= patience || segment.is_asked(ahead) || !segment.is_asked(block) {
            return Vec::new();
        }
        segment.fetches = segment.fetches.saturating_add(1);
        segment.ask(block..ahead + blocks)
    }

    /// What [`Nearby::read`] said of a segment could not be fetched, or not all of it.
    pub fn failed(&mut self, segment: &ContentId, runs: &[Range<u64>], now: Time) {
        if let Some(segment) = self.segments.get_mut(segment) {
            segment.failed_at = Some(now);
            runs.iter().for_each(|run| segment.take_back(run));
        }
    }

    fn make_room(&mut self) {
        if self.segments.len() >= SEGMENTS_MAX
            && let Some(oldest) =
                self.segments.iter().min_by_key(|(id, one)| (one.read_at, **id)).map(|(id, _)| *id)
        {
            self.segments.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EAGERNESS: Eagerness = Eagerness { patience: 0, first_bytes: 64 << 10, most_bytes: 2 << 20 };

    fn place(segment: u8, offset: u64) -> Place {
        Place { segment: ContentId::of(&[segment]), ordinal: 0, offset, stored_len: 1 }
    }

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn bytes(runs: &[Range<u64>]) -> u64 {
        runs.iter().map(|run| run.end - run.start).sum()
    }

    #[test]
    fn one_file_takes_little_along_and_many_take_all_in_a_few_fetches() {
        let mut nearby = Nearby::new(EAGERNESS);
        let mut asked = nearby.read(&place(1, 10), true, at(1));
        assert_eq!((asked.len(), bytes(&asked)), (1, BLOCK_BYTES));
        // A program that reads 8 MiB of 4 KiB files in no order: what was asked for is here when it is read.
        let mut fetches = 1;
        for step in 0..2_048_u64 {
            let offset = step * 1_237 % 2_048 * 4_096;
            let missing = !asked.iter().any(|run| run.contains(&offset));
            let runs = nearby.read(&place(1, offset), missing, at(1));
            fetches += u32::from(!runs.is_empty());
            asked.extend(runs);
        }
        assert!(fetches < 24, "{fetches} fetches");
    }

    #[test]
    fn who_reads_in_order_is_run_ahead_of_and_waits_a_few_times() {
        let mut nearby = Nearby::new(EAGERNESS);
        let (mut end, mut waits, mut fetches) = (0, 0, 0);
        for offset in (0..8_u64 << 20).step_by(4_096) {
            let missing = offset >= end;
            waits += u32::from(missing);
            let runs = nearby.read(&place(1, offset), missing, at(1));
            fetches += u32::from(!runs.is_empty());
            end = runs.iter().map(|run| run.end).max().unwrap_or(end).max(end);
        }
        assert!(waits <= 2 && fetches < 24, "{waits} waits, {fetches} fetches");
    }

    #[test]
    fn the_patient_take_nothing_along_at_first() {
        let mut nearby = Nearby::new(Eagerness { patience: 2, ..EAGERNESS });
        let read = |nearby: &mut Nearby, offset| bytes(&nearby.read(&place(1, offset), true, at(1)));
        assert_eq!([read(&mut nearby, 0), read(&mut nearby, 1 << 20)], [0, 0]);
        assert_eq!(read(&mut nearby, 2 << 20), EAGERNESS.first_bytes);
    }

    #[test]
    fn what_was_read_long_ago_is_asked_for_again_and_what_is_here_never() {
        let mut nearby = Nearby::new(EAGERNESS);
        assert!(nearby.read(&place(1, 0), false, at(1)).is_empty());
        assert!(!nearby.read(&place(1, 0), true, at(1)).is_empty());
        let behind = nearby.read(&place(1, 0), true, at(2));
        assert!(behind.iter().all(|run| run.start >= BLOCK_BYTES), "that block is on its way: {behind:?}");
        assert!(!nearby.read(&place(1, 0), true, at(100)).is_empty());
    }

    #[test]
    fn what_failed_is_asked_for_again_after_a_rest_and_what_came_is_not() {
        let mut nearby = Nearby::new(EAGERNESS);
        let first = nearby.read(&place(1, 0), true, at(1));
        let far = nearby.read(&place(1, 8 << 20), true, at(1));
        nearby.failed(&place(1, 0).segment, &first, at(2));
        for offset in [0, 1, 16 << 20] {
            assert!(nearby.read(&place(1, offset), true, at(3)).is_empty(), "it rests");
        }
        assert!(!nearby.read(&place(2, 0), true, at(3)).is_empty(), "others do not");
        let again = nearby.read(&place(1, 0), true, at(2) + REST);
        assert!(again.first().is_some_and(|run| run.start == 0), "{again:?}");
        let near = nearby.read(&place(1, 8 << 20), true, at(2) + REST);
        let far = far.first().unwrap();
        assert!(near.iter().all(|run| run.end <= far.start || run.start >= far.end), "{near:?}");
        // However often it fails and is read: once in so long.
        let mut fetches = 0;
        for ms in 0..20_000 {
            let now = at(20) + Duration::from_millis(ms);
            let runs = nearby.read(&place(3, 0), true, now);
            if !runs.is_empty() {
                fetches += 1;
                nearby.failed(&place(3, 0).segment, &runs, now);
            }
        }
        assert_eq!(fetches, 4);
        nearby.failed(&ContentId::of(b"nobody reads it"), std::slice::from_ref(&(0..u64::MAX)), at(1));
    }

    proptest! {
        #[test]
        fn no_block_is_asked_for_twice_and_all_is_bounded(
            reads in prop::collection::vec((0..=255_u8, 0..80_u64 << 20, any::<bool>()), 1..300)
        ) {
            let mut nearby = Nearby::new(EAGERNESS);
            let mut asked = std::collections::BTreeSet::new();
            for (segment, offset, missing) in reads {
                let runs = nearby.read(&place(segment % 8, offset), missing, at(1));
                prop_assert!(bytes(&runs) <= 2 * EAGERNESS.most_bytes);
                for run in runs {
                    prop_assert!(run.end <= BLOCKS_MAX * BLOCK_BYTES);
                    for block in run.step_by(usize::try_from(BLOCK_BYTES).unwrap()) {
                        prop_assert!(asked.insert((segment % 8, block)));
                    }
                }
            }
            for segment in 0..=255_u8 {
                nearby.read(&place(segment, 0), true, at(2));
            }
            prop_assert!(nearby.segments.len() <= SEGMENTS_MAX);
        }
    }
}
