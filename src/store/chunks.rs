//! The port for plain chunks on this node.

use crate::model::{ChunkRef, ContentId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::sync::Arc;

/// Where a chunk was first obtained, for the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Origin {
    /// It was in the store when the process started.
    Cache,
    /// A neighbour sent it.
    Peers,
    /// It came from a stratum.
    Strata,
}

impl Origin {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Peers => "peers",
            Self::Strata => "strata",
        }
    }
}

/// Why the store refused. None of these may fail a reader: the bytes are had from elsewhere.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full, or the quota leaves no room.
    #[error("no room for {wanted_bytes} bytes: {detail}")]
    Full {
        /// Bytes that were to be stored.
        wanted_bytes: u64,
        /// What is full.
        detail: String,
    },
    /// The disk failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The answer to a call that must not wait for a disk, and would perhaps have to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MayWait;

/// Plain chunks by name. Calls block for a disk access at most.
///
/// `insert` is given bytes that the caller verified. What was found at start is verified by the
/// store itself before its first delivery; a damaged chunk is dropped and reported as absent.
pub trait ChunkStore: Send + Sync + 'static {
    /// Whether the chunk is here. It may turn out damaged when it is read.
    fn contains(&self, id: &ContentId) -> bool;

    /// `len` bytes from `offset` of the chunk, or `None` when it is not here. A failing disk counts
    /// as absent and is reported once.
    fn read(&self, id: &ContentId, offset: u32, len: u32) -> Option<Bytes>;

    /// The whole chunk, or `None`.
    fn read_all(&self, id: &ContentId) -> Option<Bytes>;

    /// Fills `buffer` with the bytes from `offset` on of a chunk whose plain length is `plain_len` and which was verified
    /// in this run, if that takes no waiting for a disk. `false` says nothing but that [`ChunkStore::read_all`] may
    /// have to wait; `buffer` then holds anything.
    fn read_now(&self, id: &ContentId, plain_len: u32, offset: u32, buffer: &mut [u8]) -> bool {
        let _ = (id, plain_len, offset, buffer);
        false
    }

    /// A file that holds exactly the plain bytes of `chunks`, one after the other, each of which was verified in this run:
    /// what the kernel may read by itself. As long as it is held it stays as it is, even if the store evicts it.
    ///
    /// `None`: there is none (yet). The store may then take note that these chunks belong together, and have one the next
    /// time when all of them are here. Takes no waiting for a disk beyond opening a file.
    fn body(&self, chunks: &Arc<[ChunkRef]>) -> Option<Arc<File>> {
        let _ = chunks;
        None
    }

    /// The same, if that takes no waiting for a disk.
    ///
    /// # Errors
    /// [`MayWait`]: only [`ChunkStore::body`] can tell.
    fn body_now(&self, chunks: &Arc<[ChunkRef]>) -> Result<Option<Arc<File>>, MayWait> {
        let _ = chunks;
        Err(MayWait)
    }

    /// Where a chunk that is here was first obtained in this run, if that is known. Takes no waiting.
    fn origin(&self, id: &ContentId) -> Option<Origin> {
        let _ = id;
        None
    }

    /// Stores verified bytes. Storing what is here already changes nothing.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot; the store stays as it was.
    fn insert(&self, id: &ContentId, bytes: &Bytes, origin: Origin) -> Result<(), StoreError>;

    /// Called with the name of each chunk that leaves the store (evicted or found damaged). At most
    /// one listener; it must not call back into the store.
    fn on_removal(&self, listener: Box<dyn Fn(&ContentId) + Send + Sync>);
}
