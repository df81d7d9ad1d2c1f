//! Objects and chunks at rest.

mod chunks;

pub use chunks::{ChunkStore, Origin, StoreError};
