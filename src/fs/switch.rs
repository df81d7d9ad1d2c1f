//! Another revision under a live mount.
//!
//! First the new tree's catalogs are loaded for the directories that the kernel knows, so that the
//! change itself takes no network. Then the tree is exchanged: from that moment look-ups see the new
//! one. Then each directory that the kernel knew is compared between the revisions, and the kernel is
//! told which names, listings and attributes changed. What did not change stays cached.
//!
//! After a take-over the kernel knows directories that are not known here. Then all directories whose old catalogs are here are
//! compared: what the kernel knows came out of them.
//!
//! Names are always told one by one, in the directory in which they stand. To be told that a directory's own name is stale is not
//! enough: the kernel drops what is below it only where nobody uses it, and when the directory is looked up again, what was in use
//! is found below it as before.
//!
//! A look-up of the old tree that is still under way when the kernel is told does no harm: the kernel
//! serialises the news about a name with look-ups in its directory.

use super::error::FsError;
use super::system::FileSystem;
use super::table::{Generation, Place};
use crate::catalog::{DirectoryEntry, FileKind, Inode, Tree, TreeError};
use futures::future::BoxFuture;
use std::cmp;
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long the catalogs of a new revision are loaded ahead before it is shown anyway (guess).
const LOAD_AHEAD: Duration = Duration::from_secs(30);
/// How long directories are compared (guess). Of one whose new catalog is not here by then, all names are dropped from the
/// kernel's cache.
const COMPARE: Duration = Duration::from_secs(60);
/// How long after that the old lists of such directories are waited for, all together; what is here is there at once (guess).
const LIST_AGAIN: Duration = Duration::from_secs(5);
/// Most directories that are compared although nobody knows whether the kernel knows them: 16 MiB of numbers (guess).
const WALKED_MAX: usize = 1 << 20;

/// How often a directory is compared when it cannot be, and the pause before it is compared again (guesses).
const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_millis(100);

/// What the kernel must no longer believe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stale {
    /// A name, or that there is none. What is below it goes as well, as far as nobody uses it.
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
        let unknown = self.unknown().clone();
        let _ = tokio::time::timeout(LOAD_AHEAD, self.load_ahead(&unknown, &*tree)).await;

        self.hold_what_goes(LOAD_AHEAD).await;
        // From before the first answer out of the new tree on. Who is cut off leaves it so until the next switch.
        self.is_switching.store(true, Ordering::SeqCst);
        let (next, directories) = self.table().advance(tree);
        self.foresight.show(&*next.1);
        let mut switched = Switched::default();
        let deadline = Instant::now() + COMPARE;
        for (directory, before) in &directories {
            let compared = async {
                for _ in 1..ATTEMPTS {
                    if let Ok(stale) = self.compare(*directory, before, &next).await {
                        return Ok(stale);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                self.compare(*directory, before, &next).await
            };
            let compared = timeout_at(deadline, compared).await;
            let place = self.table().place(*directory);
            let stale = match compared {
                Ok(Ok(stale)) => Some(stale),
                Ok(Err(_)) | Err(_) => None,
            };
            let stale =
                judged(stale, (*directory, place), [&before.1, &next.1], deadline, &mut switched).await;
            if *directory == Inode::ROOT && before.1.attributes(Inode::ROOT).await.ok() != Some(attributes) {
                self.tell(vec![Stale::Attributes(Inode::ROOT)], &mut switched).await;
            }
            self.tell(stale, &mut switched).await;
        }
        for (_, old) in &unknown {
            self.walk_and_tell(old, &next, deadline, &mut switched).await;
        }
        self.unknown().clear();
        self.is_switching.store(false, Ordering::SeqCst);
        Ok(switched)
    }

    /// Has the kernel forget what it may have from a tree to which a predecessor of this process was switching when it ended: what
    /// differs from the tree that is shown, or, if that tree is lost, all that it may have in the directories of the one that is shown. To be
    /// called once after [`FileSystem::resume`].
    pub async fn settle(&self) {
        let _one_at_a_time = self.switching.lock().await;
        let current = self.table().current();
        let unknown = self.unknown().clone();
        let deadline = Instant::now() + COMPARE;
        for (_, begun) in unknown.iter().filter(|(number, _)| *number > current.0) {
            self.walk_and_tell(begun, &current, deadline, &mut Switched::default()).await;
        }
        if self.has_lost {
            self.forget_all(&*current.1, deadline).await;
        }
        // Compared again with the next one: who is quick may have had something of it meanwhile.
    }

    fn unknown(&self) -> std::sync::MutexGuard<'_, Vec<Generation>> {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares all directories that are in both trees, as far as the old one has them here, and tells the kernel. Of
    /// inodes that it asks about only later, nothing is noted: they are found in the trees that have them.
    async fn walk_and_tell(
        &self,
        old: &Arc<dyn Tree>,
        next: &Generation,
        deadline: Instant,
        switched: &mut Switched,
    ) {
        // Directory, place, and whether the new tree has it.
        let mut open = VecDeque::from([(Inode::ROOT, None, true)]);
        while let Some((directory, place, is_there)) = open.pop_front() {
            let comparing = async {
                let was = old.list(directory).await?;
                let is = if is_there { next.1.list(directory).await? } else { Arc::default() };
                Ok::<_, TreeError>((was, is))
            };
            let compared = match timeout_at(deadline, comparing).await {
                Ok(Ok((was, is))) => {
                    self.bring_files_along(&is, next);
                    let stays: HashSet<Inode> =
                        directories(&is).map(|entry| entry.attributes.inode).collect();
                    for entry in directories(&was) {
                        let inode = entry.attributes.inode;
                        let (place, stays) = ((directory, Arc::clone(&entry.name)), stays.contains(&inode));
                        if old.is_here(inode) && open.len() < WALKED_MAX {
                            open.push_back((inode, Some(place), stays));
                        } else if stays {
                            // Nobody can have been inside lately.
                            self.tell(vec![Stale::Entry { directory, name: place.1 }], switched).await;
                        }
                    }
                    Some(differences(directory, &was, &is))
                }
                Ok(Err(_)) | Err(_) => None,
            };
            let stale = judged(compared, (directory, place), [old, &next.1], deadline, switched).await;
            self.tell(stale, switched).await;
        }
    }

    /// Tells the kernel to forget all names and listings in the directories of a tree that are here, from the top down: with a name goes
    /// what is below it and in no use, other names than these too.
    async fn forget_all(&self, tree: &dyn Tree, deadline: Instant) {
        let mut open = VecDeque::from([Inode::ROOT]);
        while let Some(directory) = open.pop_front() {
            let listed = timeout_at(deadline, tree.list(directory)).await;
            let list = listed.ok().and_then(Result::ok).unwrap_or_default();
            let below = directories(&list).map(|entry| entry.attributes.inode);
            open.extend(below.filter(|inode| tree.is_here(*inode)));
            open.truncate(WALKED_MAX);
            let names = list.iter().map(|entry| Stale::Entry { directory, name: Arc::clone(&entry.name) });
            let stale = names.chain([Stale::Listing(directory)]).collect();
            self.tell(stale, &mut Switched::default()).await;
        }
    }

    async fn tell(&self, stale: Vec<Stale>, switched: &mut Switched) {
        switched.told += stale.len();
        let notifier = self.notifier();
        if let (Some(notifier), false) = (notifier, stale.is_empty()) {
            notifier.stale(stale).await;
        }
    }

    /// Enters the directories that the kernel knows, or may know out of `unknown`, in `tree`. Failures show when it counts.
    async fn load_ahead(&self, unknown: &[Generation], tree: &dyn Tree) {
        let known = self.table().directories();
        for (directory, _) in known {
            let Some(path) = self.table().path(directory) else { continue };
            if let Ok(Some(found)) = walk(tree, &path).await {
                let _ = tree.list(found).await;
            }
        }
        for (_, old) in unknown {
            let mut open = VecDeque::from([Inode::ROOT]);
            while let Some(directory) = open.pop_front() {
                let Ok(was) = old.list(directory).await else { continue };
                let Ok(is) = tree.list(directory).await else { continue };
                let stays: HashSet<Inode> = directories(&is).map(|entry| entry.attributes.inode).collect();
                let below = directories(&was).map(|entry| entry.attributes.inode);
                open.extend(below.filter(|inode| stays.contains(inode) && old.is_here(*inode)));
                open.truncate(WALKED_MAX);
            }
        }
    }

    /// What changed in `directory`; all of it when it is gone.
    async fn compare(
        &self,
        directory: Inode,
        before: &Generation,
        next: &Generation,
    ) -> Result<Vec<Stale>, FsError> {
        let (generation, _) = self.bring_along(directory).await?;
        let of_directory = |cause| FsError::of_tree(directory, cause);
        let old = before.1.list(directory).await.map_err(of_directory)?;
        if generation != next.0 {
            // The kernel takes its name away, but what is open below stays below, and would come back with it in a later revision.
            return Ok(differences(directory, &old, &[]));
        }
        let new = next.1.list(directory).await.map_err(of_directory)?;
        self.bring_files_along(&new, next);
        Ok(differences(directory, &old, &new))
    }

    /// From now on `next` answers for the files that it has in a directory. Directories follow when they are compared themselves:
    /// by their path.
    fn bring_files_along(&self, entries: &[DirectoryEntry], next: &Generation) {
        let mut table = self.table();
        entries.iter().for_each(|entry| {
            if !table.is_directory(entry.attributes.inode) {
                table.rebind(entry.attributes.inode, next);
            }
        });
    }
}

fn directories(entries: &[DirectoryEntry]) -> impl Iterator<Item = &DirectoryEntry> {
    entries.iter().filter(|entry| entry.attributes.kind == FileKind::Directory)
}

/// What is to be told of a directory: what its comparison has brought, or where it could not be compared in time, everything that
/// the kernel may know of it.
async fn judged(
    compared: Option<Vec<Stale>>,
    (directory, place): (Inode, Option<Place>),
    trees: [&Arc<dyn Tree>; 2],
    deadline: Instant,
    switched: &mut Switched,
) -> Vec<Stale> {
    if let Some(stale) = compared {
        switched.directories += 1;
        return stale;
    }
    switched.dropped += 1;
    // Names that were there, and such as were known to be absent. One of the lists could be had mostly; should both be gone, names in use
    // stay, and the others go with the directory.
    let mut names = BTreeSet::new();
    for tree in trees {
        let list = timeout_at(deadline + LIST_AGAIN, tree.list(directory)).await;
        let list = list.ok().and_then(Result::ok).unwrap_or_default();
        names.extend(list.iter().map(|entry| Arc::clone(&entry.name)));
    }
    let names = names.into_iter().map(|name| Stale::Entry { directory, name });
    let own = place.map(|(directory, name)| Stale::Entry { directory, name });
    names.chain([Stale::Listing(directory)]).chain(own).collect()
}

/// Walks from the root down. `None` when there is no such directory.
pub(super) async fn walk(tree: &dyn Tree, path: &[Arc<[u8]>]) -> Result<Option<Inode>, TreeError> {
    let mut at = Inode::ROOT;
    for name in path {
        match tree.lookup(at, name).await? {
            Some(found) if found.kind == FileKind::Directory => at = found.inode,
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
    use crate::catalog::Attributes;

    fn entry(name: &str, inode: u64, permissions: u16) -> DirectoryEntry {
        let attributes =
            Attributes { permissions, links: 1, ..Attributes::blank(Inode(inode), FileKind::File) };
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
