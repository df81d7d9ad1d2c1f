//! The disk cache of plain chunks and its eviction policy.
//!
//! One [`DiskCache`] a machine holds the chunks of all repositories in append-only *packs* of about
//! 64 MiB, each record a header (`record.rs`) and the chunk's plain bytes. A table in memory says
//! which chunk lies where; it is rebuilt from the headers at start. Whole packs leave by least
//! recent use (`policy.rs`, pure).
//!
//! **Nothing unverified is delivered.** What is inserted was verified by the caller. What is found
//! at start is hashed before its first delivery; a chunk that does not match is dropped and counts
//! as absent.
//!
//! **After a crash.** A chunk is not synced to disk when it is inserted, only packs are when they are
//! full and when the cache is closed. After `kill -9` everything is there, since the kernel has it;
//! after a power cut, the last records may be torn: a record that is cut short ends its pack at the
//! next start, and one with the right length and wrong bytes is found by its hash. It costs a
//! refetch, never a wrong byte.
//!
//! **A full or failing disk** never fails a reader: `insert` returns the error, writing pauses for a
//! while, and the bytes go to the reader all the same.

mod books;
mod disk;
mod index;
mod pack;
pub mod policy;
mod record;
#[cfg(test)]
mod tests;

pub use books::{ByOrigin, Count};
pub use disk::DiskCache;

use serde::Serialize;

/// Settings of a [`DiskCache`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Most bytes on disk. At least [`CacheConfig::QUOTA_MIN_BYTES`].
    pub quota_bytes: u64,
    /// Bytes that stay free on the file system, for others.
    pub free_floor_bytes: u64,
    /// The cache never shrinks below this for the sake of the floor.
    pub minimum_bytes: u64,
}

impl CacheConfig {
    /// Smallest quota: eight packs of 1 MiB, so that evicting one leaves something (guess).
    pub const QUOTA_MIN_BYTES: u64 = 8 << 20;
    /// Largest quota: packs grow with it, and a record must begin within 4 GiB of its pack.
    pub const QUOTA_MAX_BYTES: u64 = 1 << 40;
}

impl Default for CacheConfig {
    /// 10 GiB, of which 256 MiB are kept even when less than 1 GiB of the disk is free (guesses).
    fn default() -> Self {
        Self { quota_bytes: 10 << 30, free_floor_bytes: 1 << 30, minimum_bytes: 256 << 20 }
    }
}

/// Why a cache could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Another process has it.
    #[error("{path} is used by another process: one agent a cache")]
    InUse {
        /// The cache's folder.
        path: String,
    },
    /// A quota out of bounds.
    #[error("a cache quota of {quota_bytes} bytes is out of bounds: {min} to {max}",
        min = CacheConfig::QUOTA_MIN_BYTES, max = CacheConfig::QUOTA_MAX_BYTES)]
    Quota {
        /// The offending value.
        quota_bytes: u64,
    },
    /// The folder cannot be used.
    #[error("{path}: {source}")]
    Io {
        /// The folder or file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What a cache holds and has done since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CacheStatistics {
    /// Chunks that are here.
    pub entries: u64,
    /// Bytes on disk, headers and dead chunks included.
    pub bytes: u64,
    /// Most bytes on disk.
    pub quota_bytes: u64,
    /// Pack files, which is the number of open files.
    pub packs: u64,
    /// Deliveries, and their bytes, by where the chunk had come from.
    pub hits: ByOrigin<Count>,
    /// Reads of what was not here.
    pub misses: u64,
    /// Distinct chunks and their plain bytes, where each was first obtained in this run.
    pub obtained: ByOrigin<Count>,
    /// Chunks that left with their pack.
    pub evicted: u64,
    /// Chunks that were dropped because their bytes were wrong or could not be read.
    pub damaged: u64,
    /// Whether writing pauses after an error of the disk.
    pub writing_paused: bool,
}
