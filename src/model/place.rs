//! Where a chunk lies in a repository.

use super::{ContentId, limits};
use serde::{Deserialize, Serialize};

/// A chunk's place in a segment, as its catalog row states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The segment that holds the chunk's frame.
    pub segment: ContentId,
    /// Number of the frame in its segment, from 0.
    pub ordinal: u32,
    /// Where the frame begins, in bytes from the segment's start.
    pub offset: u64,
    /// Length of the compressed frame, in bytes.
    pub stored_len: u32,
}

impl Place {
    /// The slice of the segment in which the frame begins: the unit of placement and of lease.
    pub fn slice(&self) -> u32 {
        u32::try_from(self.offset / limits::SLICE_BYTES).unwrap_or(u32::MAX)
    }

    /// The sixty-fourth of its slice in which the frame begins, 0 to 63: what holders are remembered by.
    pub fn part(&self) -> u8 {
        ((self.offset % limits::SLICE_BYTES) / (limits::SLICE_BYTES / 64)) as u8
    }

    /// The first byte after the frame, or `None` when the row is nonsense.
    pub fn end(&self) -> Option<u64> {
        self.offset.checked_add(u64::from(self.stored_len))
    }
}

/// All that is needed to fetch and to verify one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkRef {
    /// BLAKE3 of the plain bytes.
    pub id: ContentId,
    /// Length of the plain bytes. A decoder never writes more.
    pub plain_len: u32,
    /// Where its frame is stored.
    pub place: Place,
}
