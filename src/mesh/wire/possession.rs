//! What a node tells its neighbours of what it holds.

use super::{SEGMENT_MAX_END, WireError, bounds};
use crate::model::{Algorithm, ContentId, limits};
use serde::{Deserialize, Serialize};

/// Most slices in one message.
pub const POSSESSION_MAX_SLICES: usize = crate::mesh::proto::POSSESSION_MAX;
/// Slices of the longest segment.
const SLICES_MAX: u64 = SEGMENT_MAX_END / limits::SLICE_BYTES;

/// A slice of which the speaker holds something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceHeld {
    /// The segment that it lies in.
    pub segment: ContentId,
    /// Its number there: offset / 1 MiB.
    pub slice: u32,
    /// Bit n: the speaker holds a chunk that begins in the n-th sixty-fourth of the slice. None set: nothing any more.
    pub parts: u64,
}

/// Whether count, names and numbers are possible at all.
pub(super) fn check(slices: &[SliceHeld]) -> Result<(), WireError> {
    if !(1..=POSSESSION_MAX_SLICES).contains(&slices.len()) {
        return Err(bounds("slices that are held", slices.len(), format!("1 to {POSSESSION_MAX_SLICES}")));
    }
    for held in slices {
        if held.segment.algorithm() != Algorithm::Blake3 {
            return Err(bounds("hash function", format!("{:?}", held.segment.algorithm()), "BLAKE3"));
        }
        if u64::from(held.slice) >= SLICES_MAX {
            return Err(bounds("number of a slice", held.slice, SLICES_MAX - 1));
        }
    }
    Ok(())
}
