//! Objects and chunks at rest.

mod chunks;
#[cfg(test)]
pub(crate) mod conformance;
mod memory;

pub use chunks::{ChunkStore, Origin, StoreError};
pub use memory::MemoryChunks;
