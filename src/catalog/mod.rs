//! Metadata of a tree: SQLite catalogs, and the port through which a file system walks them.

mod tree;

pub use tree::{Attributes, DirectoryEntry, FileKind, Inode, Tree, TreeError};
