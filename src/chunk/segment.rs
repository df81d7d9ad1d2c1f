//! Segments: frames one after the other, and an index at the end for check and repair.

use super::frame::DecodeError;
use crate::model::{ChunkRef, ContentId, Place, limits};
use bytes::Bytes;

/// Version of the segment format that is written and read.
pub const SEGMENT_VERSION: u32 = 1;
/// Length of the trailer, in bytes.
pub const SEGMENT_TRAILER_BYTES: usize = 32;
/// Length of an index entry, in bytes.
const ENTRY_BYTES: usize = 48;
const MAGIC: &[u8; 8] = b"STARSEGM";

/// Where a segment lies below its repository: `objects/`, two hexadecimal digits, `/`, the rest.
pub fn object_path(segment: &ContentId) -> String {
    let name = segment.to_string();
    format!("objects/{}/{}", &name[..2], &name[2..])
}

/// Why bytes are not a segment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// Too short, or the magic is missing.
    #[error("{bytes} bytes without a segment's trailer")]
    NotASegment {
        /// Bytes given.
        bytes: u64,
    },
    /// A later format.
    #[error("segment format version {found} is not known; this program reads version {SEGMENT_VERSION}")]
    Version {
        /// What the trailer states.
        found: u32,
    },
    /// Numbers of the trailer contradict each other or the length.
    #[error("the trailer states {frames} frames and an index at {index_offset} of {bytes} bytes")]
    Trailer {
        /// Frames stated.
        frames: u32,
        /// Start of the index stated.
        index_offset: u64,
        /// Length of the segment.
        bytes: u64,
    },
    /// A frame does not follow its predecessor, or has an impossible length.
    #[error("frame {ordinal}: {stored_len} bytes at {offset}, {plain_len} plain: not where it must be")]
    Entry {
        /// Number of the frame.
        ordinal: u32,
        /// Its stated offset.
        offset: u64,
        /// Its stated length.
        stored_len: u32,
        /// Its stated plain length.
        plain_len: u32,
    },
    /// The bytes hash to another name.
    #[error("segment {wanted}: the bytes hash to {found}")]
    OtherHash {
        /// What was wanted.
        wanted: ContentId,
        /// What came.
        found: ContentId,
    },
    /// A frame does not hold the chunk that its entry names.
    #[error("frame {ordinal}: {source}")]
    Frame {
        /// Number of the frame.
        ordinal: u32,
        /// What is wrong with it.
        source: DecodeError,
    },
}

/// One frame as the index states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentEntry {
    /// BLAKE3 of the plain chunk.
    pub id: ContentId,
    /// Where its frame begins, in bytes from the segment's start.
    pub offset: u64,
    /// Length of the frame, in bytes.
    pub stored_len: u32,
    /// Length of the plain chunk, in bytes.
    pub plain_len: u32,
}

/// A finished segment.
#[derive(Clone, Debug)]
pub struct Segment {
    /// BLAKE3 of `bytes`.
    pub id: ContentId,
    /// All of it.
    pub bytes: Bytes,
    /// Where its chunks lie, in their order.
    pub chunks: Vec<ChunkRef>,
}

/// Puts frames together until the segment is full.
///
/// Holds the segment in memory: at most [`limits::SEGMENT_TARGET_BYTES`] and one frame.
#[derive(Debug, Default)]
pub struct SegmentBuilder {
    bytes: Vec<u8>,
    entries: Vec<SegmentEntry>,
}

impl SegmentBuilder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the frame of one chunk.
    ///
    /// # Panics
    /// When the segment is full already, or the frame longer than any that a reader accepts.
    pub fn push(&mut self, id: ContentId, plain_len: u32, frame: &[u8]) {
        assert!(!self.is_full(), "a full segment is finished before more is added");
        let stored_len = u32::try_from(frame.len()).expect("frames are shorter than 4 GiB");
        assert!(possible(stored_len, plain_len), "{stored_len} bytes stored for {plain_len} plain");
        let offset = self.bytes.len() as u64;
        self.bytes.extend_from_slice(frame);
        self.entries.push(SegmentEntry { id, offset, stored_len, plain_len });
    }

    /// Whether the segment has reached its target and must be finished.
    pub fn is_full(&self) -> bool {
        self.bytes.len() as u64 >= limits::SEGMENT_TARGET_BYTES
            || self.entries.len() >= limits::SEGMENT_MAX_FRAMES as usize
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Appends index and trailer, names the segment, and leaves an empty builder behind.
    ///
    /// # Panics
    /// When nothing was added.
    pub fn finish(&mut self) -> Segment {
        assert!(!self.is_empty(), "a segment has at least one frame");
        let Self { mut bytes, entries } = std::mem::take(self);
        let index_offset = bytes.len() as u64;
        for entry in &entries {
            bytes.extend_from_slice(entry.id.digest());
            bytes.extend_from_slice(&entry.offset.to_le_bytes());
            bytes.extend_from_slice(&entry.stored_len.to_le_bytes());
            bytes.extend_from_slice(&entry.plain_len.to_le_bytes());
        }
        let frames = u32::try_from(entries.len()).expect("bounded by SEGMENT_MAX_FRAMES");
        bytes.extend_from_slice(&index_offset.to_le_bytes());
        bytes.extend_from_slice(&frames.to_le_bytes());
        bytes.extend_from_slice(&SEGMENT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&0_u64.to_le_bytes());
        bytes.extend_from_slice(MAGIC);
        let segment = ContentId::of(&bytes);
        let chunks = (0..)
            .zip(&entries)
            .map(|(ordinal, entry)| ChunkRef {
                id: entry.id,
                plain_len: entry.plain_len,
                place: Place { segment, ordinal, offset: entry.offset, stored_len: entry.stored_len },
            })
            .collect();
        Segment { id: segment, bytes: bytes.into(), chunks }
    }
}

/// Whether a frame of `stored_len` bytes can hold `plain_len` plain bytes.
fn possible(stored_len: u32, plain_len: u32) -> bool {
    (1..=limits::PLAIN_MAX_BYTES).contains(&plain_len)
        && stored_len > 0
        && stored_len <= plain_len.saturating_add(limits::FRAME_OVERHEAD_BYTES)
}

/// The end of a segment, from which its index is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentTrailer {
    /// Where the index begins, in bytes from the segment's start.
    pub index_offset: u64,
    /// Number of frames.
    pub frames: u32,
}

impl SegmentTrailer {
    /// Reads the last [`SEGMENT_TRAILER_BYTES`] bytes of a segment that is `segment_bytes` long.
    ///
    /// # Errors
    /// [`SegmentError`] when they are no trailer, of another version, or do not fit the length.
    pub fn parse(trailer: &[u8; SEGMENT_TRAILER_BYTES], segment_bytes: u64) -> Result<Self, SegmentError> {
        let number = |at: usize| u64::from_le_bytes(trailer[at..at + 8].try_into().expect("eight bytes"));
        let small = |at: usize| u32::from_le_bytes(trailer[at..at + 4].try_into().expect("four bytes"));
        let (index_offset, frames, found, zero) = (number(0), small(8), small(12), number(16));
        if &trailer[24..] != MAGIC {
            return Err(SegmentError::NotASegment { bytes: segment_bytes });
        }
        if found != SEGMENT_VERSION {
            return Err(SegmentError::Version { found });
        }
        let index_bytes = u64::from(frames) * ENTRY_BYTES as u64 + SEGMENT_TRAILER_BYTES as u64;
        let fits = index_offset.checked_add(index_bytes) == Some(segment_bytes);
        if !fits || frames == 0 || frames > limits::SEGMENT_MAX_FRAMES || zero != 0 {
            return Err(SegmentError::Trailer { frames, index_offset, bytes: segment_bytes });
        }
        Ok(Self { index_offset, frames })
    }
}

/// The index of a segment: which chunk lies where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentIndex {
    /// The frames in their order.
    pub entries: Vec<SegmentEntry>,
}

impl SegmentIndex {
    /// Reads the index of a whole segment. The frames themselves are not looked at.
    ///
    /// # Errors
    /// [`SegmentError`] when the bytes are no segment or the index contradicts itself.
    pub fn parse(segment: &[u8]) -> Result<Self, SegmentError> {
        let bytes = segment.len() as u64;
        let Some(trailer) = segment.last_chunk::<SEGMENT_TRAILER_BYTES>() else {
            return Err(SegmentError::NotASegment { bytes });
        };
        let trailer = SegmentTrailer::parse(trailer, bytes)?;
        let start = usize::try_from(trailer.index_offset).expect("less than the length of a slice");
        let index = &segment[start..segment.len() - SEGMENT_TRAILER_BYTES];
        let mut entries = Vec::with_capacity(trailer.frames as usize);
        let mut expected = 0;
        for (ordinal, entry) in (0_u32..).zip(index.chunks_exact(ENTRY_BYTES)) {
            let mut digest = [0; 32];
            digest.copy_from_slice(&entry[..32]);
            let offset = u64::from_le_bytes(entry[32..40].try_into().expect("eight bytes"));
            let stored_len = u32::from_le_bytes(entry[40..44].try_into().expect("four bytes"));
            let plain_len = u32::from_le_bytes(entry[44..48].try_into().expect("four bytes"));
            if offset != expected || !possible(stored_len, plain_len) {
                return Err(SegmentError::Entry { ordinal, offset, stored_len, plain_len });
            }
            expected = offset + u64::from(stored_len);
            entries.push(SegmentEntry { id: ContentId::blake3(digest), offset, stored_len, plain_len });
        }
        if expected != trailer.index_offset {
            let SegmentTrailer { frames, index_offset } = trailer;
            return Err(SegmentError::Trailer { frames, index_offset, bytes });
        }
        Ok(Self { entries })
    }

    /// Checks all of a segment: its name, its index, and every frame against the chunk that it must hold.
    ///
    /// # Errors
    /// [`SegmentError`] with the first fault.
    pub fn check(segment: &[u8], name: &ContentId) -> Result<Self, SegmentError> {
        let found = ContentId::of(segment);
        if found != *name {
            return Err(SegmentError::OtherHash { wanted: *name, found });
        }
        let index = Self::parse(segment)?;
        for (ordinal, entry) in (0..).zip(&index.entries) {
            let start = usize::try_from(entry.offset).expect("checked by parse");
            let frame = &segment[start..start + entry.stored_len as usize];
            super::decode(frame, &entry.id, entry.plain_len)
                .map_err(|source| SegmentError::Frame { ordinal, source })?;
        }
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::{decode, encode};
    use proptest::prelude::*;

    fn build(chunks: &[Vec<u8>]) -> Segment {
        let mut builder = SegmentBuilder::new();
        for chunk in chunks {
            let len = u32::try_from(chunk.len()).unwrap();
            builder.push(ContentId::of(chunk), len, &encode(chunk, 3).unwrap());
        }
        builder.finish()
    }

    #[test]
    fn a_later_version_is_refused_with_its_number() {
        let segment = build(&[b"x".to_vec()]);
        let mut bytes = segment.bytes.to_vec();
        let at = bytes.len() - 20;
        bytes[at] = 9;
        assert_eq!(SegmentIndex::parse(&bytes), Err(SegmentError::Version { found: 9 }));
    }

    #[test]
    fn a_segment_is_full_at_its_target() {
        let mut builder = SegmentBuilder::new();
        let frame = vec![0; 1 << 20];
        for full in [false, false, false, false, false, false, false, false, true] {
            assert_eq!(builder.is_full(), full);
            if !full {
                builder.push(ContentId::of(b""), 1 << 20, &frame);
            }
        }
        builder.finish();
        assert!(builder.is_empty() && !builder.is_full());
    }

    #[test]
    fn a_frame_under_a_wrong_name_is_found_by_the_check() {
        let mut builder = SegmentBuilder::new();
        builder.push(ContentId::of(b"another"), 1, &encode(b"x", 3).unwrap());
        let segment = builder.finish();
        let error = SegmentIndex::check(&segment.bytes, &segment.id).unwrap_err();
        assert!(matches!(error, SegmentError::Frame { ordinal: 0, .. }), "{error}");
    }

    fn some_chunks() -> impl Strategy<Value = Vec<Vec<u8>>> {
        proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..400), 1..30)
    }

    proptest! {
        #[test]
        fn every_chunk_is_where_the_segment_says(chunks in some_chunks()) {
            let segment = build(&chunks);
            let index = SegmentIndex::check(&segment.bytes, &segment.id).unwrap();
            prop_assert_eq!(index.entries.len(), chunks.len());
            for (chunk, at) in chunks.iter().zip(&segment.chunks) {
                let start = usize::try_from(at.place.offset).unwrap();
                let frame = &segment.bytes[start..start + at.place.stored_len as usize];
                prop_assert_eq!(&decode(frame, &at.id, at.plain_len).unwrap()[..], &chunk[..]);
            }
        }

        #[test]
        fn a_changed_byte_is_noticed(chunks in some_chunks(), at: usize, by in 1_u8..) {
            let segment = build(&chunks);
            let mut bytes = segment.bytes.to_vec();
            let at = at % bytes.len();
            bytes[at] = bytes[at].wrapping_add(by);
            prop_assert!(SegmentIndex::check(&bytes, &segment.id).is_err());
            let _ = SegmentIndex::parse(&bytes);
        }

        #[test]
        fn foreign_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), frames in 0_u32..9) {
            let _ = SegmentIndex::parse(&bytes);
            let start = bytes.len() as u64;
            bytes.resize(bytes.len() + frames as usize * ENTRY_BYTES, 0);
            bytes.extend_from_slice(&start.to_le_bytes());
            bytes.extend_from_slice(&frames.to_le_bytes());
            bytes.extend_from_slice(&1_u32.to_le_bytes());
            bytes.extend_from_slice(&[0; 8]);
            bytes.extend_from_slice(MAGIC);
            let _ = SegmentIndex::parse(&bytes);
        }
    }
}
