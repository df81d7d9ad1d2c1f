//! Metadata of a tree: SQLite catalogs, and the port through which a file system walks them.
//!
//! [`CatalogWriter`] makes one catalog, [`Catalog`] reads one, [`split`] decides where a tree is divided
//! into several, [`CatalogIndex`] and [`History`] are the documents that a root names beside the root
//! catalog, and [`MountedTree`] walks all of it over a [`crate::chunk::ChunkSource`]: it reads each catalog once and keeps it in
//! compact columns (`resident.rs`). [`view`] shows a part of a
//! tree, with other owners. The byte formats are told in `docs/repository-format.md`.

mod documents;
mod inode_table;
mod mounted;
#[cfg(test)]
mod mounted_tests;
mod read;
mod resident;
#[cfg(test)]
mod resident_tests;
mod row;
mod schema;
mod shelf;
mod split;
mod survey;
mod trace;
mod tree;
mod view;
mod write;

pub use documents::{CatalogIndex, DocumentError, History, PastRevision};
pub use mounted::{MountedTree, TreeMemory};
pub use read::{Catalog, CatalogError, Row, Target};
pub use row::{XATTR_NAME_MAX_BYTES, XATTR_VALUE_MAX_BYTES, XATTRS_MAX_BYTES, Xattr, Xattrs};
pub use shelf::CatalogBudget;
pub use split::{Weight, split};
pub use survey::{Survey, survey, survey_published, survey_recorded};
pub use trace::{
    BEGINS_MAX, PublishedTrace, RECORDED_MAX_BYTES, RecordedTrace, Replay, TRACE_SMALL_CHUNKS,
    TRACED_FILES_MAX, TRACED_READS_MAX, TRACES_MAX, TracedFile, TracedRead, content_of,
};
pub use tree::{Attributes, DirectoryEntry, ExtendedAttributes, FileKind, Inode, Tree, TreeError, TreeName};
pub use view::{IdMap, Owners, ViewError, view};
pub use write::{CatalogWriter, NewContent, NewEntry, WriteError};

/// Longest name of an entry, in bytes (Linux's own bound).
pub const NAME_MAX_BYTES: usize = 255;
/// Longest target of a symbolic link, in bytes (Linux: a path with its NUL fits 4 096).
pub const LINK_TARGET_MAX_BYTES: usize = 4095;
/// Most entries of one directory (design).
pub const DIRECTORY_MAX_ENTRIES: usize = 1_000_000;
