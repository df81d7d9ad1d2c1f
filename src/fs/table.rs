//! What the kernel knows: inodes with their look-up counts, and the trees that answer for them.
//!
//! The table is as large as the kernel's own cache of inodes, which the kernel bounds and empties by
//! `forget`. Each inode is bound to the *generation* of the tree that it came from; a tree is kept as
//! long as an inode is bound to it.

use super::error::FsError;
use super::listing::Position;
use crate::catalog::{Inode, Tree};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Old trees that are kept for what the kernel still holds of them. Beyond, the oldest goes, and its
/// directories are stale (guess: a mount that nobody leaves sees eight revisions come).
const MAX_OLD_TREES: usize = 8;
/// Deepest directory that is looked for in another revision: a path of 4096 bytes has no more parts.
const MAX_DEPTH: usize = 2048;

/// Where a directory stands: its parent and its name there.
pub(super) type Place = (Inode, Arc<[u8]>);

/// 16 bytes: there is one for each inode in the kernel's cache.
struct Known {
    generation: u64,
    lookups: u64,
}

struct Kept {
    tree: Arc<dyn Tree>,
    /// Inodes that are bound to it.
    bound: usize,
    /// Whether the kernel may have inodes of it that are not known here. That ends only when it is the oldest of too many.
    inherited: bool,
}

impl Kept {
    fn is_in_use(&self) -> bool {
        self.bound > 0 || self.inherited
    }
}

/// A tree and its generation.
pub(super) type Generation = (u64, Arc<dyn Tree>);

/// Inodes that the kernel knows, and trees.
pub(super) struct Table {
    current: u64,
    /// The greatest number that a tree ever had: the kernel may hold something of each, kept or not, so none is given twice.
    last: u64,
    trees: BTreeMap<u64, Kept>,
    known: HashMap<Inode, Known>,
    /// Of known directories but the root.
    places: HashMap<Inode, Place>,
}

impl Table {
    pub(super) fn new(tree: Arc<dyn Tree>) -> Self {
        let root = Known { generation: 0, lookups: 1 };
        Self {
            current: 0,
            last: 0,
            trees: BTreeMap::from([(0, Kept { tree, bound: 1, inherited: false })]),
            known: HashMap::from([(Inode::ROOT, root)]),
            places: HashMap::new(),
        }
    }

    /// What a predecessor has left: its trees by generation, which of them it showed, and the last number that it gave. They are kept
    /// whether an inode is bound to them or not, for nobody knows which the kernel has.
    ///
    /// # Panics
    /// Without the tree that is shown.
    pub(super) fn resume(trees: Vec<Generation>, current: u64, last: u64) -> Self {
        let kept =
            |(number, tree)| (number, Kept { tree, bound: usize::from(number == current), inherited: true });
        let trees: BTreeMap<u64, Kept> = trees.into_iter().map(kept).collect();
        assert!(trees.contains_key(&current), "a mount shows a tree");
        let last = trees.keys().copied().fold(last, u64::max);
        let root = Known { generation: current, lookups: 1 };
        Self { current, last, trees, known: HashMap::from([(Inode::ROOT, root)]), places: HashMap::new() }
    }

    /// All kept trees, the newest first.
    pub(super) fn generations(&self) -> Vec<Generation> {
        self.trees.iter().rev().map(|(number, kept)| (*number, Arc::clone(&kept.tree))).collect()
    }

    /// The greatest number that a tree ever had.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The tree that new look-ups see.
    pub(super) fn current(&self) -> Generation {
        let kept = self.trees.get(&self.current).expect("the current tree is always kept");
        (self.current, Arc::clone(&kept.tree))
    }

    /// The tree that answers for `inode`.
    pub(super) fn tree_of(&self, inode: Inode) -> Result<Generation, FsError> {
        let known = self.known.get(&inode).ok_or(FsError::Stale(inode))?;
        let kept = self.trees.get(&known.generation).ok_or(FsError::Stale(inode))?;
        Ok((known.generation, Arc::clone(&kept.tree)))
    }

    pub(super) fn is_directory(&self, inode: Inode) -> bool {
        inode == Inode::ROOT || self.places.contains_key(&inode)
    }

    /// The names from the root down to `directory`, or `None` when a parent was forgotten.
    pub(super) fn path(&self, directory: Inode) -> Option<Vec<Arc<[u8]>>> {
        let mut names = Vec::new();
        let mut at = directory;
        while at != Inode::ROOT {
            let (parent, name) = self.places.get(&at)?;
            if names.len() == MAX_DEPTH {
                return None;
            }
            names.push(Arc::clone(name));
            at = *parent;
        }
        names.reverse();
        Some(names)
    }

    /// Where a directory stands; `None` for the root and what is no known directory.
    pub(super) fn place(&self, directory: Inode) -> Option<Place> {
        self.places.get(&directory).cloned()
    }

    /// Counts one look-up of `inode`, which the tree `from` handed out.
    pub(super) fn remember(&mut self, inode: Inode, from: &Generation, place: Option<Place>) {
        if let (Some(place), true) = (place, inode != Inode::ROOT) {
            self.places.insert(inode, place);
        }
        match self.known.get_mut(&inode) {
            Some(known) => {
                known.lookups += 1;
                self.rebind(inode, from);
            }
            None => {
                self.known.insert(inode, Known { generation: from.0, lookups: 1 });
                self.bind(from);
            }
        }
    }

    /// Counts one look-up of `inode`, of a tree that is no longer kept. The kernel believes nothing of it and looks it up before it uses it;
    /// who has it open is answered as before, which no other tree could do.
    pub(super) fn remember_gone(&mut self, inode: Inode, generation: u64, place: Option<Place>) {
        if let (Some(place), true) = (place, inode != Inode::ROOT) {
            self.places.insert(inode, place);
        }
        let known = self.known.entry(inode).or_insert(Known { generation, lookups: 0 });
        known.lookups += 1;
    }

    /// Notes an inode that the kernel has from a predecessor: how many references, nobody knows, so none is counted.
    pub(super) fn inherit(&mut self, inode: Inode, from: &Generation, place: Option<Place>) {
        let lookups = self.known.get(&inode).map_or(0, |known| known.lookups);
        self.remember(inode, from, place);
        if let Some(known) = self.known.get_mut(&inode) {
            known.lookups = lookups;
        }
    }

    /// From now on `to` answers for `inode`, unless it is older than the tree that does.
    pub(super) fn rebind(&mut self, inode: Inode, to: &Generation) {
        let Some(known) = self.known.get_mut(&inode) else { return };
        if known.generation < to.0 {
            let before = std::mem::replace(&mut known.generation, to.0);
            self.bind(to);
            self.unbind(before);
        }
    }

    /// The kernel dropped `lookups` references. Returns how many were counted: fewer than that, if a predecessor gave it some. Then
    /// it has none any more, for it drops all of those at once.
    pub(super) fn forget(&mut self, inode: Inode, lookups: u64) -> u64 {
        let Some(known) = self.known.get_mut(&inode).filter(|_| inode != Inode::ROOT) else { return 0 };
        let before = known.lookups;
        known.lookups = before.saturating_sub(lookups);
        if known.lookups == 0 {
            let generation = known.generation;
            self.known.remove(&inode);
            self.places.remove(&inode);
            self.unbind(generation);
        }
        before
    }

    /// What is no directory and bound to the tree that goes when the next one comes, if one does.
    pub(super) fn about_to_go(&self) -> Vec<Inode> {
        let Some((oldest, _)) = self.trees.first_key_value().filter(|_| self.old_trees() >= MAX_OLD_TREES)
        else {
            return Vec::new();
        };
        let bound = self
            .known
            .iter()
            .filter(|(inode, known)| known.generation == *oldest && !self.is_directory(**inode));
        bound.map(|(inode, _)| *inode).collect()
    }

    /// Makes `tree` the current one. Returns its generation and all known directories, each with the
    /// tree that answered for it.
    pub(super) fn advance(&mut self, tree: Arc<dyn Tree>) -> (Generation, Vec<(Inode, Generation)>) {
        let directories = self.directories();
        self.last += 1;
        let next = (self.last, tree);
        let before = std::mem::replace(&mut self.current, next.0);
        self.trees.insert(next.0, Kept { tree: Arc::clone(&next.1), bound: 0, inherited: false });
        self.rebind(Inode::ROOT, &next);
        if self.trees.get(&before).is_some_and(|kept| !kept.is_in_use()) {
            self.trees.remove(&before);
        }
        while self.old_trees() > MAX_OLD_TREES {
            if let Some((generation, kept)) = self.trees.pop_first() {
                tracing::warn!(
                    generation,
                    inodes = kept.bound,
                    "an old revision is in use but no longer kept: its directories are stale, its files are read on"
                );
            }
        }
        (next, directories)
    }

    /// All known directories whose tree is kept.
    pub(super) fn directories(&self) -> Vec<(Inode, Generation)> {
        let known = [Inode::ROOT].into_iter().chain(self.places.keys().copied());
        known.filter_map(|inode| Some((inode, self.tree_of(inode).ok()?))).collect()
    }

    /// The tree of a generation, if it is kept.
    pub(super) fn generation(&self, number: u64) -> Option<Generation> {
        self.trees.get(&number).map(|kept| (number, Arc::clone(&kept.tree)))
    }

    /// The newest kept tree of which a position in a directory may speak.
    pub(super) fn generation_at(&self, position: Position) -> Option<Generation> {
        let (generation, kept) =
            self.trees.iter().rev().find(|(generation, _)| position.is_of(**generation))?;
        Some((*generation, Arc::clone(&kept.tree)))
    }

    /// Inodes that the kernel knows, the root included.
    pub(super) fn inodes(&self) -> usize {
        self.known.len()
    }

    /// Trees that are kept besides the current one.
    pub(super) fn old_trees(&self) -> usize {
        self.trees.len() - 1
    }

    fn bind(&mut self, to: &Generation) {
        let new = || Kept { tree: Arc::clone(&to.1), bound: 0, inherited: false };
        self.trees.entry(to.0).or_insert_with(new).bound += 1;
    }

    fn unbind(&mut self, from: u64) {
        let Some(kept) = self.trees.get_mut(&from) else { return };
        kept.bound -= 1;
        if !kept.is_in_use() && from != self.current {
            self.trees.remove(&from);
        }
    }
}
