//! Bounds that several rooms share. A value from outside that exceeds one is refused before it is used.

/// Stored bytes of a segment after which the next is begun (design: about 8 MiB).
pub const SEGMENT_TARGET_BYTES: u64 = 8 << 20;
/// Stored bytes of a slice, the unit of placement in a cell (design: about 1 MiB).
pub const SLICE_BYTES: u64 = 1 << 20;
/// Largest plain chunk that a file is cut into: four times the largest average (FastCDC's own factor).
pub const CHUNK_MAX_BYTES: u32 = 4 << 20;
/// Largest catalog, which is one chunk: a million entries at about 128 bytes, with room for attributes.
pub const CATALOG_MAX_BYTES: u32 = 512 << 20;
/// Most plain bytes of any chunk, catalog or document.
pub const PLAIN_MAX_BYTES: u32 = CATALOG_MAX_BYTES;
/// Most bytes that the stored form of a chunk may have beyond its plain length (zstd's own bound is smaller).
pub const FRAME_OVERHEAD_BYTES: u32 = 4096 + (PLAIN_MAX_BYTES >> 8);
/// Most frames in one segment: 8 MiB of the smallest useful frames.
pub const SEGMENT_MAX_FRAMES: u32 = 1 << 20;
/// Requests that one stratum sees from a node at once; the rest wait their turn.
pub const STRATUM_REQUESTS: usize = 16;
/// Requests of one call for a stratum that run at once (guess: enough to hide a round trip).
pub const STRATUM_CALL_REQUESTS: u32 = 4;
/// Bytes between two frames that are fetched for nothing rather than by a request of their own: a small file that is here already, or on
/// its way. Less than most chunks of larger files have, for what many nodes read shall leave a stratum once.
pub const STRATUM_MAX_GAP: u64 = 16 << 10;
/// Most bytes of a signed root, keys document included.
pub const ROOT_MAX_BYTES: usize = 64 << 10;
/// Most members of a cell (design).
pub const CELL_MAX_MEMBERS: usize = 2_000;
