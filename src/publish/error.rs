//! Why nothing was published.

use crate::catalog::{CatalogError, DocumentError, WriteError};
use crate::store::{ObjectError, ReadChunkError};
use crate::trust::TrustError;
use std::path::PathBuf;

/// Why nothing was published. The old root, if there is one, stands.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Something in the tree cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// What.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file changed while it was read, each time it was tried.
    #[error("{path}: it changes while it is read ({attempts} attempts)")]
    Changing {
        /// The file.
        path: PathBuf,
        /// Attempts made.
        attempts: u32,
    },
    /// An entry cannot be held by a catalog.
    #[error("{path}: {detail}")]
    Unfit {
        /// The entry.
        path: PathBuf,
        /// The offending value.
        detail: String,
    },
    /// The tree has more entries than a publisher can number.
    #[error("the tree has more than {most} entries")]
    TooManyEntries {
        /// The bound.
        most: u32,
    },
    /// More traces than a revision may have.
    #[error("{found} traces; {most} are the most (those of the revision before count, too)")]
    TooManyTraces {
        /// How many there would be.
        found: usize,
        /// The bound.
        most: usize,
    },
    /// Compressing failed, for want of memory.
    #[error("zstd: {0}")]
    Compress(std::io::Error),
    /// An object cannot be stored.
    #[error(transparent)]
    Store(#[from] ObjectError),
    /// Part of the previous revision cannot be read.
    #[error("the previous revision: {0}")]
    PreviousChunk(#[from] ReadChunkError),
    /// A catalog of the previous revision contradicts the format.
    #[error("the previous revision: {0}")]
    PreviousCatalog(#[from] CatalogError),
    /// A document is refused (of the previous revision, or a tag that is none).
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A catalog cannot be written.
    #[error(transparent)]
    Catalog(#[from] WriteError),
    /// The root that is there is not of these keys, or cannot be followed by another.
    #[error("the root: {0}")]
    Root(#[from] TrustError),
    /// A worker thread cannot be had, or it ended abnormally.
    #[error("a worker: {0}")]
    Worker(String),
}
