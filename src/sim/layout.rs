//! How the content lies: in which slice each chunk, and how many bytes it has.

use super::profile::ContentProfile;
use super::scenario::Scenario;
use crate::mesh::proto::{Chunk, Content, Segment, Slice};
use crate::model::limits;
use std::sync::Arc;

/// Slices of a segment of even content (8 MiB of 1 MiB).
const SEGMENT_SLICES: u32 = 8;

/// The content of a run. Cheap to clone: each machine has one.
#[derive(Clone, Debug)]
pub(super) enum Layout {
    /// Reckoned, for it is asked for with every message.
    Even(Even),
    /// Looked up.
    Profiled(Arc<Profiled>),
}

/// Slices of one length, each of a few chunks of one length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Even {
    chunks: u32,
    slice_chunks: u32,
    chunk_bytes: u32,
    last_bytes: u32,
}

/// What a profile says, as it is asked for.
#[derive(Debug)]
pub(super) struct Profiled {
    chunks: Vec<Row>,
    /// By slice.
    segments: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    slice: u32,
    len_bytes: u32,
    part: u8,
}

impl Layout {
    pub(super) fn new(scenario: &Scenario) -> Self {
        match scenario.profile() {
            Some(profile) => Self::Profiled(Arc::new(Profiled::new(profile))),
            None => Self::Even(Even::new(scenario)),
        }
    }

    pub(super) fn chunks(&self) -> u32 {
        match self {
            Self::Even(even) => even.chunks,
            Self::Profiled(profiled) => u32::try_from(profiled.chunks.len()).unwrap_or(u32::MAX),
        }
    }
}

impl Even {
    fn new(scenario: &Scenario) -> Self {
        let chunk_bytes = scenario.chunk_bytes();
        let rest = scenario.content.bytes % u64::from(chunk_bytes);
        let last_bytes = u32::try_from(rest).ok().filter(|rest| *rest > 0).unwrap_or(chunk_bytes);
        let slice_chunks = scenario.content.slice_bytes / chunk_bytes;
        Self { chunks: scenario.chunks(), slice_chunks, chunk_bytes, last_bytes }
    }

    fn part(self, chunk: Chunk) -> u8 {
        let part = u64::from(chunk.0 % self.slice_chunks) * 64 / u64::from(self.slice_chunks);
        u8::try_from(part).unwrap_or(0)
    }
}

impl Profiled {
    fn new(profile: &ContentProfile) -> Self {
        let (slices, segments) = profile.slice_numbers();
        // As `Place::part` has it.
        let part = |offset: u64| (offset % limits::SLICE_BYTES) / (limits::SLICE_BYTES / 64);
        let row = |(chunk, slice): (&super::ProfiledChunk, u32)| Row {
            slice,
            len_bytes: chunk.stored_len,
            part: u8::try_from(part(chunk.offset)).unwrap_or(0),
        };
        Self { chunks: profile.chunks().iter().zip(slices).map(row).collect(), segments }
    }

    fn row(&self, chunk: Chunk) -> Row {
        self.chunks[chunk.0 as usize]
    }
}

impl Content for Layout {
    fn slice(&self, chunk: Chunk) -> Slice {
        match self {
            Self::Even(even) => Slice(chunk.0 / even.slice_chunks),
            Self::Profiled(profiled) => Slice(profiled.row(chunk).slice),
        }
    }

    fn segment(&self, slice: Slice) -> Segment {
        match self {
            Self::Even(_) => Segment(slice.0 / SEGMENT_SLICES),
            Self::Profiled(profiled) => Segment(profiled.segments[slice.0 as usize]),
        }
    }

    fn part(&self, chunk: Chunk) -> u8 {
        match self {
            Self::Even(even) => even.part(chunk),
            Self::Profiled(profiled) => profiled.row(chunk).part,
        }
    }

    fn len_bytes(&self, chunk: Chunk) -> u32 {
        match self {
            Self::Even(even) if chunk.0 + 1 == even.chunks => even.last_bytes,
            Self::Even(even) => even.chunk_bytes,
            Self::Profiled(profiled) => profiled.row(chunk).len_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ProfileSubject, ProfiledChunk};
    use super::*;
    use crate::model::{ContentId, Place};

    #[test]
    fn a_profiled_chunk_lies_where_the_place_in_its_repository_says() {
        let places: Vec<Place> =
            [(0_u64, 900_000_u32), (900_000, 200_000), (1_100_000, 5), (5_000_000, 70_000)]
                .into_iter()
                .map(|(offset, stored_len)| Place {
                    segment: ContentId::of(b"one"),
                    ordinal: 0,
                    offset,
                    stored_len,
                })
                .collect();
        let chunk =
            |place: &Place| ProfiledChunk { segment: 0, offset: place.offset, stored_len: place.stored_len };
        let subject = ProfileSubject {
            repository: "a.test".to_owned(),
            revision: 1,
            since: None,
            trace: None,
            files: 1,
            distinct_chunks: 4,
            plain_bytes: 1,
        };
        let profile = ContentProfile::new(subject, places.iter().map(chunk).collect(), None).unwrap();
        let layout = Layout::Profiled(Arc::new(Profiled::new(&profile)));
        let mut slices = Vec::new();
        for (number, place) in (0..).zip(&places) {
            let chunk = Chunk(number);
            assert_eq!((layout.part(chunk), layout.len_bytes(chunk)), (place.part(), place.stored_len));
            if !slices.contains(&place.slice()) {
                slices.push(place.slice());
            }
            let slice = u32::try_from(slices.len() - 1).unwrap();
            assert_eq!((layout.slice(chunk), layout.segment(Slice(slice))), (Slice(slice), Segment(0)));
        }
        assert_eq!((layout.chunks(), slices), (4, vec![0, 1, 4]));
    }
}
