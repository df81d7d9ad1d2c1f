//! Another revision under a live mount.
//!
//! First the new tree's catalogs are loaded for the directories that the kernel knows, so that the
//! change itself takes no network. Then the tree is exchanged: from that moment look-ups see the new
//! one. Then each directory that the kernel knew is compared between the revisions, and the kernel is
//! told which names, listings and attributes changed. What did not change stays cached.
//!
//! A look-up of the old tree that is still under way when the kernel is told does no harm: the kernel
//! serialises the news about a name with look-ups in its directory.

use super::error::FsError;
use super::system::FileSystem;
use super::table::Generation;
use crate::catalog::{DirectoryEntry, Inode, Tree, TreeError};
use futures::future::BoxFuture;
use std::cmp;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long the catalogs of a new revision are loaded ahead before it is shown anyway (guess).
const LOAD_AHEAD: Duration = Duration::from_secs(30);
/// How long directories are compared. One whose new catalog is not here by then is dropped from the
/// kernel's cache with everything below it (guess).
const COMPARE: Duration = Duration::from_secs(60);

/// What the kernel must no longer believe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stale {
    /// A name, or that there is none. Everything below it goes as well.
    Entry {
        /// The directory.
        directory: Inode,
        /// The name.
        name: Arc<[u8]>,
    },
    /// The attributes of an inode whose content did not change.
    Attributes(Inode),
    /// The list of a directory's names.
    Listing(Inode),
}

/// Tells the kernel what changed.
pub trait Notifier: Send + Sync + 'static {
    /// Returns when the kernel has taken note of everything in `what`, or the mount is gone.
    ///
    /// The kernel waits for look-ups in the directories concerned, so this must not run on a thread
    /// that answers the kernel.
    fn stale(&self, what: Vec<Stale>) -> BoxFuture<'_, ()>;
}

/// What a switch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switched {
    /// Directories that were compared.
    pub directories: usize,
    /// Things that the kernel was told to forget.
    pub told: usize,
    /// Directories that could not be compared and were dropped as a whole.
    pub dropped: usize,
}

impl FileSystem {
    /// Shows `tree` from now on. Calls wait for each other.
    ///
    /// When it returns, every new look-up, through the kernel too, sees the new tree. Open files keep
    /// their content.
    ///
    /// # Errors
    /// [`FsError::Metadata`] when the new root directory cannot be listed; nothing has changed then.
    pub async fn switch(&self, tree: Arc<dyn Tree>) -> Result<Switched, FsError> {
        let _one_at_a_time = self.switching.lock().await;
        let of_root = |cause| FsError::of_tree(Inode::ROOT, cause);
        tree.list(Inode::ROOT).await.map_err(of_root)?;
        let attributes = tree.attributes(Inode::ROOT).await.map_err(of_root)?;
        let _ = tokio::time::timeout(LOAD_AHEAD, self.load_ahead(&*tree)).await;

        let (next, directories) = self.table().advance(tree);
        self.foresight.show(&*next.1);
        let mut switched = Switched::default();
        if self.unknown_directories.swap(false, Ordering::Relaxed) {
            let stale = everything(&directories, &next).await;
            self.tell(stale, &mut switched).await;
        }
        let deadline = tokio::time::Instant::now() + COMPARE;
        for (directory, before) in directories {
            let compared = tokio::time::timeout_at(deadline, self.compare(directory, &before, &next)).await;
            let stale = match compared {
                Ok(Ok(stale)) => {
        let _ = tokio::time::timeout(LOAD_AHEAD, self.hold_what_goes()).await;
                    switched.directories += 1;
                    stale
                }
                Ok(Err(_)) | Err(_) => {
                    switched.dropped += 1;
                    let place = self.table().place(directory);
                    place.map(|(directory, name)| Stale::Entry { directory, name }).into_iter().collect()
                }
            };
            if directory == Inode::ROOT && before.1.attributes(Inode::ROOT).await.ok() != Some(attributes) {
                self.tell(vec![Stale::Attributes(Inode::ROOT)], &mut switched).await;
            }
            self.tell(stale, &mut switched).await;
        }
        Ok(switched)
    }

    async fn tell(&self, stale: Vec<Stale>, switched: &mut Switched) {
        switched.told += stale.len();
        let notifier = self.notifier();
        if let (Some(notifier), false) = (notifier, stale.is_empty()) {
            notifier.stale(stale).await;
        }
    }

    /// Enters the directories that the kernel knows in `tree`. Failures show when it counts.
    async fn load_ahead(&self, tree: &dyn Tree) {
        let directories = self.table().directories();
        for (directory, _) in directories {
            let Some(path) = self.table().path(directory) else { continue };
            if let Ok(Some(found)) = walk(tree, &path).await {
                let _ = tree.list(found).await;
            }
        }
    }

    /// What changed in `directory`; nothing when it is gone, for then its parent's names changed.
    async fn compare(
        &self,
        directory: Inode,
        before: &Generation,
        next: &Generation,
    ) -> Result<Vec<Stale>, FsError> {
        let (generation, _) = self.bring_along(directory).await?;
        if generation != next.0 {
            return Ok(Vec::new());
        }
        let of_directory = |cause| FsError::of_tree(directory, cause);
        let old = before.1.list(directory).await.map_err(of_directory)?;
        let new = next.1.list(directory).await.map_err(of_directory)?;
        let stale = differences(directory, &old, &new);
        let mut table = self.table();
        new.iter().for_each(|entry| {
            // Directories follow when they are compared themselves: by their path.
            if !table.is_directory(entry.attributes.inode) {
                table.rebind(entry.attributes.inode, next);
            }
        });
        Ok(stale)
    }
}

/// Every name of the root directory, before or now: with them goes whatever the kernel knows below. It is what is left to
/// say when directories may be known to the kernel that are not known here.
async fn everything(directories: &[(Inode, Generation)], next: &Generation) -> Vec<Stale> {
    let directory = Inode::ROOT;
    let mut names: BTreeSet<Arc<[u8]>> = BTreeSet::new();
    let before = directories.iter().find(|(inode, _)| *inode == directory).map(|(_, before)| before);
    for (_, tree) in before.into_iter().chain([next]) {
        // One that cannot be listed now was listed when it was shown first; its names are most likely those of the other.
        let listed = tree.list(directory).await.unwrap_or_default();
        names.extend(listed.iter().map(|entry| Arc::clone(&entry.name)));
    }
    let names = names.into_iter().map(|name| Stale::Entry { directory, name });
    names.chain([Stale::Listing(directory)]).collect()
}

/// Walks from the root down. `None` when there is no such directory.
pub(super) async fn walk(tree: &dyn Tree, path: &[Arc<[u8]>]) -> Result<Option<Inode>, TreeError> {
    let mut at = Inode::ROOT;
    for name in path {
        match tree.lookup(at, name).await? {
            Some(found) if found.kind == crate::catalog::FileKind::Directory => at = found.inode,
            _ => return Ok(None),
        }
    }
    Ok(Some(at))
}

/// Merges two sorted lists into what is no longer true.
fn differences(directory: Inode, old: &[DirectoryEntry], new: &[DirectoryEntry]) -> Vec<Stale> {
    let mut stale = Vec::new();
    let mut listing_changed = false;
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => break,
            (Some(_), None) => cmp::Ordering::Less,
            (None, Some(_)) => cmp::Ordering::Greater,
            (Some(was), Some(is)) => was.name.cmp(&is.name),
        };
        let was = if order.is_le() { old.next() } else { None };
        let is = if order.is_ge() { new.next() } else { None };
        match (was, is) {
            (Some(was), Some(is)) if was.attributes == is.attributes => {}
            (Some(was), Some(is)) if was.attributes.inode == is.attributes.inode => {
                stale.push(Stale::Attributes(is.attributes.inode));
            }
            (was, is) => {
                listing_changed = true;
                let name = was.or(is).map(|entry| Arc::clone(&entry.name));
                stale.extend(name.map(|name| Stale::Entry { directory, name }));
            }
        }
    }
    if listing_changed {
        stale.push(Stale::Listing(directory));
    }
    stale
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Attributes, FileKind};

    fn entry(name: &str, inode: u64, permissions: u16) -> DirectoryEntry {
        let attributes = Attributes {
            inode: Inode(inode),
            kind: FileKind::File,
            permissions,
            uid: 0,
            gid: 0,
            size: 0,
            links: 1,
            mtime_s: 0,
            mtime_ns: 0,
        };
        DirectoryEntry { name: name.as_bytes().into(), attributes }
    }

    #[test]
    fn only_what_changed_is_stale() {
        let old = [entry("a", 10, 0o644), entry("c", 12, 0o644), entry("d", 13, 0o644), entry("e", 14, 0)];
        let new = [entry("b", 11, 0o644), entry("c", 12, 0o600), entry("d", 99, 0o644), entry("e", 14, 0)];
        let directory = Inode(5);
        let gone = |name: &str| Stale::Entry { directory, name: name.as_bytes().into() };
        let expected =
            [gone("a"), gone("b"), Stale::Attributes(Inode(12)), gone("d"), Stale::Listing(directory)];
        assert_eq!(differences(directory, &old, &new), expected);
        assert_eq!(differences(directory, &old, &old), []);
        // A changed mode changes no listing.
        let mode = [entry("a", 10, 0o600)];
        assert_eq!(differences(directory, &old[..1], &mode), [Stale::Attributes(Inode(10))]);
    }
}
