//! The port that a file system walks: one immutable tree of one revision.

use super::PublishedTrace;
use crate::chunk::SourceError;
use crate::model::{ChunkRef, ContentId, Revision};
use futures::future::BoxFuture;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// An inode number. 1 is the root of the tree.
///
/// Numbers are chosen by the publisher and stable: an unchanged file keeps its number in the next
/// revision, a changed file gets a new one (so page caches never mix revisions), a directory keeps
/// the number of its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Inode(pub u64);

impl Inode {
    /// The root directory of every tree.
    pub const ROOT: Self = Self(1);
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
}

/// Attributes of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The inode.
    pub inode: Inode,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, set-id and sticky bits included (`mode & 0o7777`).
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Plain bytes of a file; length of a symbolic link's target; 0 for a directory.
    pub size: u64,
    /// Number of names.
    pub links: u32,
    /// Modification time, seconds since 1970 (may be negative).
    pub mtime_s: i64,
    /// Modification time, nanoseconds within the second.
    pub mtime_ns: u32,
}

impl Attributes {
    /// Those of an inode of which nothing but its number and kind is told: all else is 0.
    pub const fn blank(inode: Inode, kind: FileKind) -> Self {
        Self { inode, kind, permissions: 0, uid: 0, gid: 0, size: 0, links: 0, mtime_s: 0, mtime_ns: 0 }
    }
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The name: any bytes but `/` and NUL.
    pub name: Arc<[u8]>,
    /// What it names.
    pub attributes: Attributes,
}

/// Of which revision a tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeName {
    /// Its number.
    pub revision: Revision,
    /// Name of its signed root.
    pub root: ContentId,
}

/// Names and values of extended attributes, sorted by name.
pub type ExtendedAttributes = Arc<[(Box<[u8]>, Box<[u8]>)]>;

/// Why metadata could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// No catalog that was loaded so far has this inode.
    #[error("inode {} is not known", .0.0)]
    UnknownInode(Inode),
    /// A directory was needed.
    #[error("inode {} is not a directory", .0.0)]
    NotADirectory(Inode),
    /// A regular file or a symbolic link was needed.
    #[error("inode {} is of the wrong kind", .0.0)]
    WrongKind(Inode),
    /// A catalog could not be fetched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A catalog's content contradicts the format. The hash was right, so its publisher wrote it so.
    #[error("damaged catalog: {0}")]
    Damaged(String),
}

/// One immutable tree.
///
/// Nested catalogs are loaded when they are first entered; what is loaded answers without network,
/// with a future that is ready at its first poll. An inode must have been handed out by `lookup` or
/// `list` of the same tree, or found by `locate`, or be the root, before it is asked about.
pub trait Tree: Send + Sync + 'static {
    /// The entry `name` of `directory`, or `None`.
    fn lookup<'a>(
        &'a self,
        directory: Inode,
        name: &'a [u8],
    ) -> BoxFuture<'a, Result<Option<Attributes>, TreeError>>;

    /// All entries of `directory`, sorted by name, without `.` and `..`.
    fn list(&self, directory: Inode) -> BoxFuture<'_, Result<Arc<[DirectoryEntry]>, TreeError>>;

    /// Whether the entries of `directory` can be listed without asking others, as far as that is known. Its parent must have been
    /// listed a moment ago.
    fn is_here(&self, directory: Inode) -> bool {
        let _ = directory;
        true
    }

    /// The attributes of `inode`.
    fn attributes(&self, inode: Inode) -> BoxFuture<'_, Result<Attributes, TreeError>>;

    /// The parent of `directory`; the root is its own parent.
    fn parent(&self, directory: Inode) -> BoxFuture<'_, Result<Inode, TreeError>>;

    /// The target of a symbolic link.
    fn link_target(&self, inode: Inode) -> BoxFuture<'_, Result<Arc<[u8]>, TreeError>>;

    /// Extended attributes, sorted by name.
    fn extended_attributes(&self, inode: Inode) -> BoxFuture<'_, Result<ExtendedAttributes, TreeError>>;

    /// Whether an entry of what was loaded so far may have an extended attribute of that name. `false` is an answer about the
    /// tree as far as it was walked, which costs no look-up; `true` says nothing.
    fn may_have_attribute(&self, name: &[u8]) -> bool {
        let _ = name;
        true
    }

    /// The chunks of a file in the order of its bytes. Their plain lengths add up to the file's size.
    fn chunks(&self, file: Inode) -> BoxFuture<'_, Result<Arc<[ChunkRef]>, TreeError>>;

    /// Finds an inode that this tree never handed out, and its attributes: another process did, from whom a mount was taken
    /// over. `None` when the tree has no such inode. From then on it is as if it had been handed out.
    ///
    /// What is loaded is searched at once, like a look-up. After that catalogs that were never loaded are, a few at
    /// a time from the root downwards, until one has the inode: in the worst case the metadata of the whole tree is
    /// fetched (some 60 bytes an entry; from the cache where it is there) and read (about a microsecond an entry), and
    /// displaces other catalogs from memory as far as the budget is short. That happens once: inodes stay
    /// known, so the next search is at once.
    ///
    /// Without any patience ([`Duration::ZERO`]) only catalogs that are here are searched, and `None` may also mean that the inode is in
    /// another one.
    ///
    /// After `patience` it gives up with [`SourceError::TimedOut`]; what was loaded by then stays, and trying again goes on
    /// from there. A catalog that cannot be had is an error only when no other one has the inode. Needs a runtime.
    fn locate(
        &self,
        inode: Inode,
        patience: Duration,
    ) -> BoxFuture<'_, Result<Option<Attributes>, TreeError>>;

    /// The path of an inode below the root, without a slash in front. Of several names, one.
    fn path(&self, inode: Inode) -> BoxFuture<'_, Result<Vec<u8>, TreeError>> {
        Box::pin(async move { Err(TreeError::UnknownInode(inode)) })
    }

    /// The chunks of files near `file` in the tree that begin in these stored bytes of a segment, of files of at most `most_bytes`
    /// each, in the order in which they lie there. Looks only at what is loaded.
    fn laid_in(
        &self,
        file: Inode,
        segment: &ContentId,
        bytes: &Range<u64>,
        most_bytes: u64,
    ) -> Vec<ChunkRef> {
        let _ = (file, segment, bytes, most_bytes);
        Vec::new()
    }

    /// The traces that were published with the tree.
    fn traces(&self) -> &[PublishedTrace] {
        &[]
    }

    /// Number of inodes and plain bytes in the whole tree, for `statfs`.
    fn totals(&self) -> (u64, u64);

    /// Of which revision it is, if that is known.
    fn name(&self) -> Option<TreeName> {
        None
    }
}
