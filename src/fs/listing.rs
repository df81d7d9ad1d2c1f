//! A directory as one reader sees it: a snapshot with stable offsets.

use crate::catalog::{Attributes, DirectoryEntry, Inode, Tree};
use std::sync::Arc;

/// The entries of a directory of one revision. Offset 0 is `.`, 1 is `..`, then the names follow in
/// their order; an offset means the same entry as long as the directory is open.
#[derive(Clone)]
pub struct Listing {
    pub(super) generation: u64,
    pub(super) tree: Arc<dyn Tree>,
    /// The directory itself.
    pub(super) directory: Attributes,
    pub(super) parent: Inode,
    pub(super) entries: Arc<[DirectoryEntry]>,
}

/// One entry of a [`Listing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedEntry<'a> {
    /// The offset of the entry behind this one.
    pub next_offset: u64,
    /// The name.
    pub name: &'a [u8],
    /// What it names. Of `..`, only inode and kind are right.
    pub attributes: Attributes,
    /// Whether it is `.` or `..`.
    pub is_dot: bool,
}

impl Listing {
    /// The entries from `offset` on.
    pub fn from(&self, offset: u64) -> impl Iterator<Item = ListedEntry<'_>> {
        let dots = [(&b"."[..], self.directory.inode), (&b".."[..], self.parent)];
        let dots = dots.into_iter().map(|(name, inode)| (name, Attributes { inode, ..self.directory }, true));
        let names = self.entries.iter().map(|entry| (&*entry.name, entry.attributes, false));
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        (1_u64..).zip(dots.chain(names)).skip(skip).map(|(next_offset, (name, attributes, is_dot))| {
            ListedEntry { next_offset, name, attributes, is_dot }
        })
    }
}
