//! The disk cache of plain chunks and its eviction policy.
//!
//! One [`DiskCache`] a machine holds the chunks of all repositories in append-only *packs* of about
//! 64 MiB, each record a header (`record.rs`) and the chunk's plain bytes. A table in memory says
//! which chunk lies where; it is rebuilt at start. The chunks of a large file that is opened go into a *body* instead
//! (`body.rs`), where they lie as they lie in the file: once all of them are there and verified, the kernel reads the
//! file from it without asking the agent, and neighbours are served from it all the same. Whole packs and bodies
//! leave by least recent use (`policy.rs`, pure).
//!
//! **Nothing unverified is delivered.** What is inserted was verified by the caller. What is found
//! at start is hashed before its first delivery; a chunk that does not match is dropped and counts
//! as absent. [`CacheConfig::verify_always`] hashes before every delivery.
//!
//! **After a crash.** A chunk is not synced to disk when it is inserted, only packs are when they are
//! full and when the cache is closed. After `kill -9` everything is there, since the kernel has it;
//! after a power cut, the last records may be torn: a record that is cut short ends its pack at the
//! next start, and one with the right length and wrong bytes is found by its hash. It costs a
//! refetch, never a wrong byte.
//!
//! **What the disk does not take.** The kernel takes a write before the disk does, and when the disk then fails it forgets the
//! bytes as if they were there. So the disk is made to take what was written: a body before it counts as whole, all else
//! every half minute (`flush.rs`). Once it has not taken something, everything is hashed before it is delivered, for a while.
//!
//! **A full or failing disk** never fails a reader: `insert` returns the error, writing pauses for a
//! while, and the bytes go to the reader all the same. A read-only disk serves what it has; one that cannot be used at all
//! when the cache is opened is left alone, and the cache stays empty. While the disk cannot be read, no body is handed
//! out: the kernel would hand the error on to its reader.

mod body;
#[cfg(test)]
mod body_tests;
mod books;
mod disk;
mod files;
mod fill;
mod flush;
#[cfg(test)]
mod flush_tests;
mod index;
mod inner;
mod look;
#[cfg(test)]
mod look_tests;
mod noted;
mod pack;
mod pins;
pub mod policy;
mod record;
mod room;
#[cfg(test)]
mod tests;
mod unit;

pub use books::{ByOrigin, Count};
pub use disk::DiskCache;

use crate::model::UnixTime;
use serde::Serialize;
use std::time::Duration;

/// Settings of a [`DiskCache`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Most bytes on disk. At least [`CacheConfig::QUOTA_MIN_BYTES`].
    pub quota_bytes: u64,
    /// Bytes that stay free on the file system, for others.
    pub free_floor_bytes: u64,
    /// The cache never shrinks below this for the sake of the floor.
    pub minimum_bytes: u64,
    /// Whether every chunk is hashed before every delivery, and no body is handed out, rather than once after each start.
    pub verify_always: bool,
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
        Self {
            quota_bytes: 10 << 30,
            free_floor_bytes: 1 << 30,
            minimum_bytes: 256 << 20,
            verify_always: false,
        }
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
    /// Bytes on disk, headers, dead chunks, and packs and bodies that could not be opened included.
    pub bytes: u64,
    /// Most bytes on disk.
    pub quota_bytes: u64,
    /// Pack files, each of which is open, but for those that could not be opened.
    pub packs: u64,
    /// Bodies on disk, those that could not be read included.
    pub bodies: u64,
    /// Bodies that are whole and verified: the kernel can read their files.
    pub bodies_complete: u64,
    /// Bodies that the cache itself has open at the moment, two descriptors each.
    pub bodies_open: u64,
    /// Deliveries, and their bytes, by where the chunk had come from.
    pub hits: ByOrigin<Count>,
    /// Reads of what was not here.
    pub misses: u64,
    /// Distinct chunks and their plain bytes, where each was first obtained in this run.
    pub obtained: ByOrigin<Count>,
    /// Chunks that left with their pack or body.
    pub evicted: u64,
    /// Chunks that were dropped because their bytes were wrong or could not be read.
    pub damaged: u64,
    /// Chunks, and their plain bytes, that the scrub hashed.
    pub scrubbed: Count,
    /// Times that the scrub went through everything.
    pub scrub_rounds: u64,
    /// Whether writing pauses after an error of the disk.
    pub writing_paused: bool,
}

/// A unit of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitInfo {
    /// The name of its file.
    pub name: String,
    /// Its kind.
    pub kind: policy::UnitKind,
    /// Bytes on disk.
    pub bytes: u64,
    /// Chunks that are read from it.
    pub chunks: u64,
    /// Those of them that were not verified in this run.
    pub unverified: u64,
    /// Of a body, the length of its file.
    pub file_bytes: Option<u64>,
    /// Whether it is a body that is whole and verified.
    pub complete: bool,
    /// When it was last written before this run, or begun in it.
    pub written: UnixTime,
    /// How long it was not used; `None`: not at all in this run.
    pub idle: Option<Duration>,
    /// Whether it is the pack that chunks are appended to: it makes room for no others, but goes when the cache is cleaned.
    pub being_written: bool,
    /// Whether it is a body that somebody has open.
    pub in_use: bool,
    /// Whether it is pinned.
    pub pinned: bool,
}

/// What a check found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Chunks that were hashed.
    pub chunks: u64,
    /// Their plain bytes.
    pub bytes: u64,
    /// Those that were wrong or could not be read. They were dropped.
    pub damaged: u64,
}

/// How far a check of a unit came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckedPart {
    /// What was found.
    pub checked: Checked,
    /// Where the next part begins; `None`: that was the last.
    pub next: Option<u32>,
}

/// What is kept from eviction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinInfo {
    /// Its name.
    pub name: String,
    /// What it was given when it was pinned.
    pub version: u64,
    /// Bytes on disk once all of it is there.
    pub bytes: u64,
    /// Bytes on disk now.
    pub here_bytes: u64,
    /// Whether all of it is there and verified.
    pub complete: bool,
}

/// Why something is not pinned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// It would leave too little for what is read.
    #[error(
        "{wanted_bytes} bytes cannot be pinned beside {pinned_bytes} that are: at most {limit_bytes} ({percent} % of the quota)"
    )]
    TooLarge {
        /// Bytes of it.
        wanted_bytes: u64,
        /// Bytes of all other pins of its kind.
        pinned_bytes: u64,
        /// Most bytes of all pins of its kind.
        limit_bytes: u64,
        /// The part of the quota that this is, in hundredths.
        percent: u64,
    },
    /// There are as many pins as there may be.
    #[error("there are {limit} pins, and no more may be")]
    TooManyPins {
        /// Most pins.
        limit: usize,
    },
    /// It is too much in pieces.
    #[error("it would take {wanted} bodies in the cache beside {pinned} of other pins: at most {limit}")]
    TooManyBodies {
        /// Bodies of it.
        wanted: usize,
        /// Bodies of all other pins.
        pinned: usize,
        /// Most bodies of all pins.
        limit: usize,
    },
    /// A list is empty, too long, or has chunks that cannot be verified here.
    #[error("a file in it has chunks that the cache cannot verify by itself")]
    Unfit,
    /// The list of pins is there and cannot be read.
    #[error("the list of pins cannot be read, and is left as it is: {0}")]
    Unread(String),
    /// The list of pins cannot be written.
    #[error("the list of pins cannot be written: {0}")]
    Disk(String),
}

/// What was removed, and what was not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Packs and bodies that were removed.
    pub units: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// Those that are pinned or in use, or could not be opened.
    pub kept_units: u64,
    /// Their bytes on disk.
    pub kept_bytes: u64,
}
