//! The disk cache of plain chunks and its eviction policy.
