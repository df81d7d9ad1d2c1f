//! A directory as one reader sees it: a snapshot with stable offsets.

use crate::catalog::{Attributes, DirectoryEntry, Inode};
use std::collections::VecDeque;
use std::sync::Arc;

/// Directories that somebody has begun to read, and their entries together, that are kept (guess): some 12 MiB. Beyond, the
/// oldest is made again from its tree when it is asked about.
const BEGUN_MAX: usize = 64;
const BEGUN_ENTRIES_MAX: usize = 1 << 17;
/// Bits of an offset that number the entry; those above say of which generation of the tree.
const ENTRY_BITS: u32 = 32;
/// Generations that an offset tells apart; an offset is a signed number of 64 bits for the kernel.
const GENERATIONS: u64 = 1 << (63 - ENTRY_BITS);

/// The entry behind the last one, in every listing: who has read all names is at the end, whatever was published meanwhile.
const END: u64 = (1 << ENTRY_BITS) - 1;

/// Where a reader of a directory stands: in the directory of which generation of the tree, before which entry. As a number
/// it is what the kernel and `telldir` carry around, so no handle is needed to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// Counted modulo [`GENERATIONS`].
    pub(super) generation: u64,
    pub(super) entry: u64,
}

impl Position {
    /// `None` for the beginning, which is that of whatever is current.
    pub(super) fn of_offset(offset: u64) -> Option<Self> {
        let entry = offset & ((1 << ENTRY_BITS) - 1);
        (offset != 0).then_some(Self { generation: offset >> ENTRY_BITS, entry })
    }

    fn to_offset(self) -> u64 {
        (self.generation % GENERATIONS) << ENTRY_BITS | self.entry
    }

    /// Whether nothing comes there any more.
    pub(super) fn is_end(self) -> bool {
        self.entry == END
    }

    /// Whether it is meant for a listing of this generation.
    pub(super) fn is_of(self, generation: u64) -> bool {
        self.generation == generation % GENERATIONS
    }
}

/// The entries of a directory of one revision: `.`, `..`, then the names in their order.
#[derive(Clone)]
pub struct Listing {
    pub(super) generation: u64,
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
    /// The entries from `offset` on: 0, or one that an entry of this listing named.
    pub fn from(&self, offset: u64) -> impl Iterator<Item = ListedEntry<'_>> {
        let skip = Position::of_offset(offset).map_or(0, |position| position.entry);
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let dots = [(&b"."[..], self.directory.inode), (&b".."[..], self.parent)];
        let dots = dots.into_iter().map(|(name, inode)| (name, Attributes { inode, ..self.directory }, true));
        let dots = dots.skip(skip);
        let names = self.entries.get(skip.saturating_sub(2)..).unwrap_or_default();
        let names = names.iter().map(|entry| (&*entry.name, entry.attributes, false));
        let last = self.entries.len() as u64 + 2;
        (skip as u64 + 1..).zip(dots.chain(names)).map(move |(number, (name, attributes, is_dot))| {
            let entry = if number == last { END } else { number };
            let next = Position { generation: self.generation, entry };
            ListedEntry { next_offset: next.to_offset(), name, attributes, is_dot }
        })
    }
}

/// Listings that somebody has begun to read and not ended, as far as that can be told: who ends is not noted, since others may
/// be in the middle of the same one. They hold no tree: a reader who never ends must not keep a revision in memory.
#[derive(Default)]
pub(super) struct Listings {
    /// The one that was asked about last is the last.
    begun: VecDeque<Arc<Listing>>,
}

impl Listings {
    fn position(&self, directory: Inode, is_it: impl Fn(u64) -> bool) -> Option<usize> {
        self.begun.iter().position(|one| one.directory.inode == directory && is_it(one.generation))
    }

    pub(super) fn find(&mut self, directory: Inode, position: Position) -> Option<Arc<Listing>> {
        let found = self.position(directory, |generation| position.is_of(generation))?;
        let listing = self.begun.remove(found)?;
        self.begun.push_back(Arc::clone(&listing));
        Some(listing)
    }

    /// Keeps a listing of which a part was read.
    pub(super) fn keep(&mut self, listing: &Arc<Listing>) {
        if self.position(listing.directory.inode, |generation| generation == listing.generation).is_some() {
            return;
        }
        self.begun.push_back(Arc::clone(listing));
        let mut entries: usize = self.begun.iter().map(|one| one.entries.len()).sum();
        while self.begun.len() > BEGUN_MAX || self.begun.len() > 1 && entries > BEGUN_ENTRIES_MAX {
            let Some(first) = self.begun.pop_front() else { break };
            entries -= first.entries.len();
        }
    }
}
