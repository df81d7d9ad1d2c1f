//! The cache in the control API.

use super::Obtained;
use crate::model::{RepositoryName, Revision, UnixTime};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `GET /v1/cache`: what the cache holds and has done since the agent started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheReport {
    /// Its folder.
    pub folder: PathBuf,
    /// Bytes that it uses on disk.
    pub used_bytes: u64,
    /// Bytes that it may use.
    pub quota_bytes: u64,
    /// Bytes that it leaves free on its disk.
    pub free_floor_bytes: u64,
    /// Chunks in it.
    pub chunks: u64,
    /// Packs: files with chunks as they came.
    pub packs: u64,
    /// Bodies: files with the chunks of one file as they lie in it.
    pub bodies: u64,
    /// Bodies that are whole and verified, so that the kernel can read them by itself.
    pub bodies_complete: u64,
    /// Plain bytes delivered to readers and neighbours, by where the chunk had come from.
    pub delivered: Obtained,
    /// Reads of chunks that it did not hold.
    pub misses: u64,
    /// Chunks that left to make room.
    pub evicted_chunks: u64,
    /// Chunks that were dropped because their bytes were wrong or could not be read.
    pub damaged_chunks: u64,
    /// Plain bytes that the scrub has hashed.
    pub scrubbed_bytes: u64,
    /// Times that the scrub went through everything.
    pub scrub_rounds: u64,
    /// Whether nothing is stored for a while, because the disk is full or failing.
    pub writing_paused: bool,
    /// What is kept from eviction.
    pub pins: Vec<PinStatus>,
    /// Why the list of that could not be read, so that nothing is kept. It is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pins_problem: Option<String>,
}

/// Something that is kept from eviction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinStatus {
    /// The repository.
    pub repository: RepositoryName,
    /// A file or a directory of it, from the root of the tree; `None`: its catalogs, which are kept as long as it
    /// is mounted or something of it is pinned.
    pub path: Option<String>,
    /// The revision whose files are kept. That of the newest follows as soon as they are known.
    pub revision: Revision,
    /// Bytes on disk once everything is there.
    pub bytes: u64,
    /// Bytes on disk now.
    pub here_bytes: u64,
    /// Whether everything is there and verified.
    pub complete: bool,
    /// What holds it up, if anything does. It is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// `GET /v1/cache/units`: the packs and bodies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheUnits {
    /// All. First those that may leave to make room, those that were not used for longest first: in this order they leave. Then those
    /// that do not: what is being written, in use or pinned.
    pub units: Vec<CacheUnit>,
}

/// A pack or a body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheUnit {
    /// The name of its file.
    pub name: String,
    /// What it is: `pack` or `body`.
    pub kind: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// Chunks that are read from it.
    pub chunks: u64,
    /// Those of them that were not verified since the agent started.
    pub unverified_chunks: u64,
    /// Of a body, the length of its file.
    pub file_bytes: Option<u64>,
    /// Whether it is a body that is whole and verified.
    pub complete: bool,
    /// When it was last written before the agent started, or begun since.
    pub written: UnixTime,
    /// Seconds since it was last used; `None`: not since the agent started.
    pub idle_s: Option<u64>,
    /// Whether it is the pack that chunks are appended to, which does not leave to make room. `POST /v1/cache/clean` removes it.
    #[serde(default)]
    pub being_written: bool,
    /// Whether it is a body that somebody has open, so that it does not leave at all.
    pub in_use: bool,
    /// Whether it is pinned, so that it does not leave at all.
    pub pinned: bool,
}

/// `POST /v1/cache/verify`: hashes the chunks of a unit, as many as one answer may take. Who wants all of them asks again, from
/// where the answer says. Of all who ask, one is served at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// Its name, as `GET /v1/cache/units` has it.
    pub unit: String,
    /// Where to begin in it: 0, or [`Verified::next`] of the answer before.
    pub from: u32,
    /// Plain bytes after which an answer is wished for. The agent has a bound of its own, in bytes and in time.
    pub most_bytes: u64,
}

/// Answer to `POST /v1/cache/verify`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Chunks that were hashed.
    pub chunks: u64,
    /// Their plain bytes.
    pub bytes: u64,
    /// Those that were wrong or could not be read. They were dropped and are fetched again when they are read.
    pub damaged_chunks: u64,
    /// Where to go on in the unit; `None`: that was the rest of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u32>,
}

/// Answer to `POST /v1/cache/clean`, which removes what is neither pinned nor in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheCleaned {
    /// Bytes that were freed on disk.
    pub freed_bytes: u64,
    /// Bytes of what is pinned or in use.
    pub kept_bytes: u64,
}

/// `POST /v1/cache/pins` pins, `DELETE /v1/cache/pins` ends a pin. Both are answered with a [`PinStatus`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinRequest {
    /// The repository.
    pub repository: RepositoryName,
    /// A file or a directory of it, from the root of the tree.
    pub path: String,
}
