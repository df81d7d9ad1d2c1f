//! Why the file system refuses. The numbers of the system's errors are chosen in `fuse.rs` alone.

use crate::catalog::{Inode, TreeError};
use crate::chunk::SourceError;

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FsError {
    /// The kernel asks about an inode of a revision that is no longer kept, or that it never got.
    #[error("inode {} belongs to a revision that is no longer kept", .0.0)]
    Stale(Inode),
    /// A directory was needed.
    #[error("inode {} is not a directory", .0.0)]
    NotADirectory(Inode),
    /// A regular file was needed.
    #[error("inode {} is a directory", .0.0)]
    IsADirectory(Inode),
    /// A symbolic link, or a regular file, was needed.
    #[error("inode {} is of the wrong kind", .0.0)]
    WrongKind(Inode),
    /// A name is longer than any that a tree may hold.
    #[error("a name of {bytes} bytes; the longest has {max}")]
    NameTooLong {
        /// Its length.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// More files are open than the file system keeps.
    #[error("{0} files are open")]
    TooManyOpen(usize),
    /// Bytes of a file could not be had.
    #[error("inode {}, {len} bytes at {offset}: {cause}", .inode.0)]
    Content {
        /// The file.
        inode: Inode,
        /// First byte that was wanted.
        offset: u64,
        /// Bytes that were wanted.
        len: u32,
        /// What the source said; it names the chunk.
        cause: SourceError,
    },
    /// Metadata could not be had.
    #[error("inode {}: {cause}", .inode.0)]
    Metadata {
        /// The inode, or the directory of the name.
        inode: Inode,
        /// What the tree said.
        cause: TreeError,
    },
}

impl FsError {
    /// What the tree said about `inode`.
    pub(super) fn of_tree(inode: Inode, cause: TreeError) -> Self {
        match cause {
            TreeError::NotADirectory(inode) => Self::NotADirectory(inode),
            TreeError::WrongKind(inode) => Self::WrongKind(inode),
            cause => Self::Metadata { inode, cause },
        }
    }
}
