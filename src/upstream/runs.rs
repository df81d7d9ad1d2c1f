//! Which chunks travel in one request.

use super::UpstreamError;
use crate::model::limits::{self, STRATUM_MAX_GAP};
use crate::model::{Algorithm, ChunkRef, ContentId};
use smallvec::{SmallVec, smallvec};
use std::ops::Range;

/// Most stored bytes of one request, unless a single frame is larger: two whole segments, so that a
/// broken connection costs little.
const RUN_MAX_BYTES: u64 = 16 << 20;
/// Most frames of one request (guess: 8 MiB of 8 KiB frames).
const RUN_MAX_FRAMES: usize = 1024;
/// Bytes between frames of one request that are fetched for nothing in any case, in sum (guess: they take less time than a round trip).
/// Beyond that, no more is fetched for nothing than for somebody: budgets count what is wanted.
const RUN_WASTE_BYTES: u64 = 64 << 10;
/// Largest offset that a frame may end at. A segment ends with the frame that exceeds
/// [`limits::SEGMENT_TARGET_BYTES`], so twice the largest frame is far above anything published.
const SEGMENT_MAX_BYTES: u64 = 2 * limits::PLAIN_MAX_BYTES as u64;

/// A frame and the chunks of the call that it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// The chunk.
    pub(super) chunk: ChunkRef,
    /// Positions in the call: more than one when a chunk was asked for twice.
    pub(super) answers: SmallVec<[usize; 1]>,
}

/// Frames that lie near each other in one segment, in order, with small gaps at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The segment.
    pub(super) segment: ContentId,
    /// Where the first frame begins and the last ends, in bytes from the segment's start.
    pub(super) bytes: Range<u64>,
    /// At least one.
    pub(super) frames: Vec<Frame>,
}

impl Run {
    /// Stored bytes.
    pub(super) fn len(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    /// Whether `gap` more bytes may be fetched for nothing.
    fn may_waste(&self, gap: u64) -> bool {
        let wanted: u64 = self.frames.iter().map(|frame| u64::from(frame.chunk.place.stored_len)).sum();
        let waste = self.len() - wanted + gap;
        gap <= STRATUM_MAX_GAP && (gap == 0 || waste <= wanted.max(RUN_WASTE_BYTES))
    }
}

/// Whether a chunk's row makes sense: what every reader checks before it acts on one.
///
/// # Errors
/// The offending value, in words.
pub fn check_row(chunk: &ChunkRef) -> Result<(), String> {
    let place = &chunk.place;
    if chunk.id.algorithm() != Algorithm::Blake3 || place.segment.algorithm() != Algorithm::Blake3 {
        return Err(format!("{} in {} is not named by BLAKE3", chunk.id, place.segment));
    }
    if chunk.plain_len == 0 || chunk.plain_len > limits::PLAIN_MAX_BYTES {
        return Err(format!("{} plain bytes, allowed are 1 to {}", chunk.plain_len, limits::PLAIN_MAX_BYTES));
    }
    if place.stored_len == 0
        || place.stored_len > chunk.plain_len.saturating_add(limits::FRAME_OVERHEAD_BYTES)
    {
        return Err(format!("{} stored bytes for {} plain", place.stored_len, chunk.plain_len));
    }
    if place.ordinal >= limits::SEGMENT_MAX_FRAMES {
        return Err(format!("frame {} of at most {}", place.ordinal, limits::SEGMENT_MAX_FRAMES));
    }
    match place.end() {
        Some(end) if end <= SEGMENT_MAX_BYTES => Ok(()),
        _ => Err(format!("{} bytes at offset {} of a segment", place.stored_len, place.offset)),
    }
}

/// Groups the chunks of a call by segment and joins those that lie near each other. Also tells which rows are nonsense.
pub(super) fn plan(chunks: &[ChunkRef]) -> (Vec<Run>, Vec<(usize, UpstreamError)>) {
    let mut refused = Vec::new();
    let mut order: Vec<usize> = Vec::with_capacity(chunks.len());
    for (position, chunk) in chunks.iter().enumerate() {
        match check_row(chunk) {
            Ok(()) => order.push(position),
            Err(detail) => refused.push((position, UpstreamError::InvalidRow { chunk: chunk.id, detail })),
        }
    }
    order.sort_by_key(|&position| {
        let place = &chunks[position].place;
        (place.segment, place.offset, chunks[position], position)
    });
    let mut runs: Vec<Run> = Vec::new();
    for position in order {
        let chunk = chunks[position];
        let end = chunk.place.offset + u64::from(chunk.place.stored_len);
        if let Some(run) = runs.last_mut().filter(|run| run.segment == chunk.place.segment) {
            if let Some(last) = run.frames.last_mut().filter(|last| last.chunk == chunk) {
                last.answers.push(position);
                continue;
            }
            // Rows that overlap contradict each other: they do not travel together.
            let gap = chunk.place.offset.checked_sub(run.bytes.end);
            if gap.is_some_and(|gap| run.may_waste(gap))
                && run.frames.len() < RUN_MAX_FRAMES
                && end - run.bytes.start <= RUN_MAX_BYTES
            {
                run.bytes.end = end;
                run.frames.push(Frame { chunk, answers: smallvec![position] });
                continue;
            }
        }
        runs.push(Run {
            segment: chunk.place.segment,
            bytes: chunk.place.offset..end,
            frames: vec![Frame { chunk, answers: smallvec![position] }],
        });
    }
    (runs, refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Place;
    use proptest::prelude::*;

    fn chunk(segment: u8, ordinal: u32, offset: u64, stored_len: u32) -> ChunkRef {
        let place = Place { segment: ContentId::of(&[segment]), ordinal, offset, stored_len };
        ChunkRef { id: ContentId::of(&offset.to_le_bytes()), plain_len: 1 << 20, place }
    }

    #[test]
    fn neighbours_travel_together_and_only_small_gaps_are_fetched() {
        const FAR: u64 = 10 + STRATUM_MAX_GAP + 1;
        let chunks = [
            chunk(1, 2, FAR, 10),
            chunk(1, 0, 0, 10),
            chunk(2, 0, 0, 5),
            chunk(1, 3, FAR + 10 + STRATUM_MAX_GAP, 5),
            chunk(1, 2, FAR, 10),
        ];
        let (runs, refused) = plan(&chunks);
        assert!(refused.is_empty());
        let mut seen: Vec<_> = runs
            .iter()
            .map(|run| {
                (
                    run.segment,
                    run.bytes.clone(),
                    run.frames.iter().map(|f| f.answers.to_vec()).collect::<Vec<_>>(),
                )
            })
            .collect();
        seen.sort_by_key(|(segment, bytes, _)| (*segment != ContentId::of(&[1]), bytes.start));
        assert_eq!(
            seen,
            [
                (ContentId::of(&[1]), 0..10, vec![vec![1]]),
                (ContentId::of(&[1]), FAR..FAR + 15 + STRATUM_MAX_GAP, vec![vec![0, 4], vec![3]]),
                (ContentId::of(&[2]), 0..5, vec![vec![2]]),
            ]
        );
    }

    #[test]
    fn no_more_is_fetched_for_nothing_than_for_somebody() {
        // Many tiny frames, far from each other: a request of its own for each few of them.
        let tiny: Vec<_> = (0..64).map(|n| chunk(1, n, u64::from(n) * 16_000, 100)).collect();
        let (runs, _) = plan(&tiny);
        let waste = |run: &Run| run.len() - 100 * run.frames.len() as u64;
        assert!(
            runs.iter().all(|run| waste(run) <= RUN_WASTE_BYTES) && runs.len() < 20,
            "{} runs",
            runs.len()
        );
        // Frames that are larger than the gaps between them travel together however many they are.
        let large: Vec<_> = (0..64).map(|n| chunk(1, n, u64::from(n) * 30_000, 20_000)).collect();
        assert_eq!(plan(&large).0.len(), 1);
    }

    #[test]
    fn nonsense_rows_are_named_and_do_not_fail_the_others() {
        let good = chunk(1, 0, 0, 10);
        let mut endless = good;
        endless.place.offset = u64::MAX - 3;
        let mut bloated = good;
        bloated.plain_len = 5;
        bloated.place.stored_len = 6 + limits::FRAME_OVERHEAD_BYTES;
        let mut huge = good;
        huge.plain_len = u32::MAX;
        let mut nothing = good;
        nothing.place.stored_len = 0;
        let (runs, refused) = plan(&[endless, good, bloated, huge, nothing]);
        assert_eq!(runs.len(), 1);
        assert_eq!(refused.iter().map(|(position, _)| *position).collect::<Vec<_>>(), [0, 2, 3, 4]);
        assert!(refused[0].1.to_string().contains(&(u64::MAX - 3).to_string()));
    }

    proptest! {
        #[test]
        fn every_chunk_is_answered_once_and_runs_are_whole_and_bounded(
            rows in prop::collection::vec((0..3u8, 0..40u32, prop::sample::select(vec![1u32, 10, 1 << 20])), 0..60)
        ) {
            let chunks: Vec<_> = rows
                .iter()
                .map(|(segment, ordinal, len)| chunk(*segment, *ordinal, u64::from(*ordinal) * u64::from(*len), *len))
                .collect();
            let (runs, refused) = plan(&chunks);
            prop_assert!(refused.is_empty());
            let mut answered = vec![0; chunks.len()];
            for run in &runs {
                prop_assert!(run.frames.len() <= RUN_MAX_FRAMES);
                prop_assert!(run.frames.len() == 1 || run.len() <= RUN_MAX_BYTES);
                let mut at = run.bytes.start;
                for frame in &run.frames {
                    let gap = frame.chunk.place.offset.checked_sub(at);
                    prop_assert!(gap.is_some_and(|gap| gap <= STRATUM_MAX_GAP));
                    at = frame.chunk.place.end().unwrap();
                    for position in &frame.answers {
                        prop_assert_eq!(chunks[*position], frame.chunk);
                        answered[*position] += 1;
                    }
                }
                prop_assert_eq!(at, run.bytes.end);
            }
            prop_assert!(answered.iter().all(|times| *times == 1));
        }
    }
}
