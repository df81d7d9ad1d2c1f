//! The port through which trees and file systems obtain bytes, wherever they come from.

use crate::model::{ChunkRef, Class, ContentId};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::fs::File;
use std::sync::Arc;

/// A run of plain bytes inside one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The chunk.
    pub chunk: ChunkRef,
    /// First byte wanted, from the start of the plain chunk.
    pub offset: u32,
    /// Bytes wanted; `offset + len` is at most the chunk's plain length.
    pub len: u32,
}

impl Piece {
    /// All of `chunk`.
    pub const fn whole(chunk: ChunkRef) -> Self {
        Self { chunk, offset: 0, len: chunk.plain_len }
    }

    /// Nothing of `chunk`: it is to be fetched and stored, without its bytes being moved.
    pub const fn touch(chunk: ChunkRef) -> Self {
        Self { chunk, offset: 0, len: 0 }
    }

    /// Whether no bytes are wanted.
    pub const fn is_touch(&self) -> bool {
        self.len == 0
    }
}

/// Why bytes could not be had. Every variant is final for this call: the source has already tried
/// whom it could within its deadline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Nobody who could be reached has the chunk.
    #[error("chunk {chunk}: no source has it ({detail})")]
    Unavailable {
        /// The chunk.
        chunk: ContentId,
        /// What was tried.
        detail: String,
    },
    /// The deadline passed first.
    #[error("chunk {chunk}: not here after {waited_ms} ms ({detail})")]
    TimedOut {
        /// The chunk.
        chunk: ContentId,
        /// How long the reader waited, in milliseconds.
        waited_ms: u64,
        /// What was tried.
        detail: String,
    },
    /// The catalog row itself is nonsense (a length or an offset out of bounds).
    #[error("chunk {chunk}: {detail}")]
    Invalid {
        /// The chunk.
        chunk: ContentId,
        /// The offending value.
        detail: String,
    },
    /// The node is shutting down.
    #[error("the agent is stopping")]
    Stopping,
}

/// Delivers plain, verified bytes of one repository's chunks.
///
/// Implementations verify before they deliver, coalesce equal wishes, and answer within a bounded
/// time. Dropping the future withdraws the wish. Cheap to call for what is already here: the
/// returned future is then ready at its first poll.
pub trait ChunkSource: Send + Sync + 'static {
    /// The bytes of `pieces`, in their order. What of them is held does not keep chunks in memory of which little is wanted. A
    /// prefetch's touch that fails is passed over: the others are fetched all the same, and the first failure is told at the end.
    fn read(&self, pieces: Vec<Piece>, class: Class) -> BoxFuture<'_, Result<Vec<Bytes>, SourceError>>;

    /// A file that holds exactly the plain bytes of `chunks`, verified in this run, for the kernel to read by itself; or
    /// `None` when there is none (yet), after having taken note that one is wanted. Fetches nothing.
    fn body(&self, chunks: &Arc<[ChunkRef]>) -> BoxFuture<'_, Option<Arc<File>>> {
        let _ = chunks;
        Box::pin(std::future::ready(None))
    }

    /// Where a chunk that is here came from, in a word; `None` when it is not here, or that is not known. Takes no waiting.
    fn origin(&self, chunk: &ContentId) -> Option<&'static str> {
        let _ = chunk;
        None
    }
}
