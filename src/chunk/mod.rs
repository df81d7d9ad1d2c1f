//! Chunks: cutting, hashing, compressing, verifying, and the port through which the rest of the node
//! asks for their bytes.
//!
//! The byte formats of frames and segments are told in `docs/repository-format.md`.

mod cut;
mod frame;
mod nearby;
mod segment;
mod source;

pub use cut::{Chunking, ChunkingError, cut};
pub use frame::{DecodeError, Encoder, MAX_LEVEL, decode, encode, verify};
pub use nearby::{Eagerness, Nearby};
pub use segment::{
    SEGMENT_TRAILER_BYTES, SEGMENT_VERSION, Segment, SegmentBuilder, SegmentEntry, SegmentError,
    SegmentIndex, SegmentTrailer, object_path,
};
pub use source::{ChunkSource, Piece, SourceError};
