//! Objects and chunks at rest.
//!
//! [`ObjectStore`] is one repository on a stratum: segments under their hashes and the signed root.
//! [`StoredChunks`] reads chunks straight from it. [`ChunkStore`] is the port for plain chunks on a node.

mod chunks;
#[cfg(test)]
pub(crate) mod conformance;
mod directory;
mod memory;
mod memory_chunks;
mod objects;
mod stored;

pub use chunks::{ChunkStore, MayWait, Origin, StoreError};
pub use directory::{DirectoryObjects, PublisherLock};
pub use memory::MemoryObjects;
pub use memory_chunks::MemoryChunks;
pub use objects::{ObjectError, ObjectStore, Put};
pub use stored::{ReadChunkError, StoredChunks, read_chunk};
