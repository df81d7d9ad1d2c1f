//! Chunks: cutting, hashing, compressing, verifying, and the port through which the rest of the node
//! asks for their bytes.

mod source;

pub use source::{ChunkSource, Piece, SourceError};
