//! The answers: look-ups, listings, attributes and reads.

use super::content::{Content, OpenFile};
use super::error::FsError;
use super::listing::{ListedEntry, Listing};
use super::switch::{Notifier, walk};
use super::table::{Generation, Table};
use crate::catalog::{Attributes, FileKind, Inode, Tree};
use crate::chunk::{ChunkSource, Piece, SourceError};
use crate::model::Class;
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Semaphore;
use tracing::Instrument as _;

/// Longest name, in bytes: what every Linux file system has.
pub(super) const NAME_MAX_BYTES: usize = 255;
/// Most handles that are open at once; the system's own limit of open files lies below (guess).
const MAX_HANDLES: usize = 1 << 20;
/// Most fetches ahead of readers at once, of all files together (guess).
const MAX_AHEAD: usize = 8;

/// A file or directory that the kernel has opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

/// How much the file system remembers for the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSystemStatistics {
    /// Inodes that the kernel knows, the root included.
    pub known_inodes: usize,
    /// Open files and directories.
    pub open_handles: usize,
    /// Trees of earlier revisions that are still in use.
    pub old_trees: usize,
}

#[derive(Clone)]
enum Open {
    File(Arc<OpenFile>),
    Directory(Arc<Listing>),
}

#[derive(Default)]
struct Handles {
    next: u64,
    open: HashMap<u64, Open>,
}

/// One mounted repository; make a new one for each mount, since an unmounted kernel forgets nothing.
///
/// Every method may be called from many threads at once. What is here is answered with a future that
/// is ready at its first poll. Each successful [`FileSystem::lookup`] and
/// [`FileSystem::remember_listed`] counts one reference of the kernel, which
/// [`FileSystem::forget`] takes back.
pub struct FileSystem {
    label: String,
    source: Arc<dyn ChunkSource>,
    table: Mutex<Table>,
    handles: Mutex<Handles>,
    notifier: Mutex<Option<Arc<dyn Notifier>>>,
    pub(super) switching: tokio::sync::Mutex<()>,
    ahead: Arc<Semaphore>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FileSystem {
    /// Shows `tree`; its files' bytes come from `source`. `label` names the repository in messages.
    pub fn new(label: impl Into<String>, tree: Arc<dyn Tree>, source: Arc<dyn ChunkSource>) -> Self {
        Self {
            label: label.into(),
            source,
            table: Mutex::new(Table::new(tree)),
            handles: Mutex::default(),
            notifier: Mutex::default(),
            switching: tokio::sync::Mutex::default(),
            ahead: Arc::new(Semaphore::new(MAX_AHEAD)),
        }
    }

    /// The repository's name, for messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Who is told about changes; the mount sets it.
    pub fn set_notifier(&self, notifier: Option<Arc<dyn Notifier>>) {
        *lock(&self.notifier) = notifier;
    }

    pub(super) fn notifier(&self) -> Option<Arc<dyn Notifier>> {
        lock(&self.notifier).clone()
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// How much is remembered for the kernel.
    pub fn statistics(&self) -> FileSystemStatistics {
        let open_handles = lock(&self.handles).open.len();
        let table = self.table();
        FileSystemStatistics { known_inodes: table.inodes(), open_handles, old_trees: table.old_trees() }
    }

    /// The tree that answers for a directory: the current one if the directory exists there, or the
    /// one that it came from.
    pub(super) async fn bring_along(&self, directory: Inode) -> Result<Generation, FsError> {
        let (own, current, path) = {
            let table = self.table();
            if !table.is_directory(directory) {
                // Known, but no directory; or not known at all.
                return Err(table
                    .tree_of(directory)
                    .map_or_else(|stale| stale, |_| FsError::NotADirectory(directory)));
            }
            let current = table.current();
            match table.tree_of(directory) {
                Ok(own) if own.0 == current.0 => return Ok(own),
                own => (own, current, table.path(directory)),
            }
        };
        let Some(path) = path else { return own };
        let found = walk(&*current.1, &path).await.map_err(|cause| FsError::of_tree(directory, cause))?;
        if found != Some(directory) {
            return own;
        }
        self.table().rebind(directory, &current);
        Ok(current)
    }

    /// The entry `name` of `directory`. If there is one, the kernel holds a reference more to it.
    ///
    /// # Errors
    /// [`FsError`] when the directory is none or stale, the name too long, or a catalog cannot be had.
    pub async fn lookup(&self, directory: Inode, name: &[u8]) -> Result<Option<Attributes>, FsError> {
        if name.len() > NAME_MAX_BYTES {
            return Err(FsError::NameTooLong { bytes: name.len(), max: NAME_MAX_BYTES });
        }
        let tree = self.bring_along(directory).await?;
        let found = tree.1.lookup(directory, name).await;
        let found = found.map_err(|cause| FsError::of_tree(directory, cause))?;
        if let Some(attributes) = &found {
            self.remember(&tree, directory, name, attributes);
        }
        Ok(found)
    }

    fn remember(&self, tree: &Generation, directory: Inode, name: &[u8], attributes: &Attributes) {
        let is_directory = attributes.kind == FileKind::Directory;
        let place = is_directory.then(|| (directory, Arc::from(name)));
        self.table().remember(attributes.inode, tree, place);
    }

    /// The kernel dropped `lookups` references to `inode`.
    pub fn forget(&self, inode: Inode, lookups: u64) {
        self.table().forget(inode, lookups);
    }

    /// The tree that answers for an inode of any kind.
    async fn tree_of(&self, inode: Inode) -> Result<Arc<dyn Tree>, FsError> {
        if self.table().is_directory(inode) {
            return Ok(self.bring_along(inode).await?.1);
        }
        Ok(self.table().tree_of(inode)?.1)
    }

    /// The attributes of `inode`.
    ///
    /// # Errors
    /// [`FsError::Stale`] for what the kernel should not know; [`FsError::Metadata`].
    pub async fn attributes(&self, inode: Inode) -> Result<Attributes, FsError> {
        let open = self.table().content(inode);
        if let Some(content) = open {
            // An open file has attributes even when its revision is no longer kept.
            let stale = self.table().tree_of(inode).is_err();
            if stale {
                return Ok(content.attributes);
            }
        }
        let tree = self.tree_of(inode).await?;
        tree.attributes(inode).await.map_err(|cause| FsError::of_tree(inode, cause))
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// [`FsError::WrongKind`] for what is no symbolic link, and as [`FileSystem::attributes`].
    pub async fn link_target(&self, inode: Inode) -> Result<Arc<[u8]>, FsError> {
        let tree = self.tree_of(inode).await?;
        tree.link_target(inode).await.map_err(|cause| FsError::of_tree(inode, cause))
    }

    /// The value of an extended attribute, or `None`.
    ///
    /// # Errors
    /// As [`FileSystem::attributes`].
    pub async fn extended_attribute(&self, inode: Inode, name: &[u8]) -> Result<Option<Box<[u8]>>, FsError> {
        let tree = self.tree_of(inode).await?;
        let all = tree.extended_attributes(inode).await.map_err(|cause| FsError::of_tree(inode, cause))?;
        Ok(all.iter().find(|(key, _)| **key == *name).map(|(_, value)| value.clone()))
    }

    /// The names of all extended attributes, each followed by a zero byte.
    ///
    /// # Errors
    /// As [`FileSystem::attributes`].
    pub async fn extended_attribute_names(&self, inode: Inode) -> Result<Vec<u8>, FsError> {
        let tree = self.tree_of(inode).await?;
        let all = tree.extended_attributes(inode).await.map_err(|cause| FsError::of_tree(inode, cause))?;
        Ok(all.iter().flat_map(|(name, _)| name.iter().copied().chain([0])).collect())
    }

    /// Number of inodes and plain bytes of the current revision.
    pub fn totals(&self) -> (u64, u64) {
        let (_, tree) = self.table().current();
        tree.totals()
    }

    fn opened(&self, what: Open) -> Result<Handle, FsError> {
        let mut handles = lock(&self.handles);
        if handles.open.len() >= MAX_HANDLES {
            return Err(FsError::TooManyHandles(handles.open.len()));
        }
        handles.next += 1;
        let handle = handles.next;
        handles.open.insert(handle, what);
        Ok(Handle(handle))
    }

    /// Opens a file: its list of chunks is captured, so that it keeps its content.
    ///
    /// # Errors
    /// [`FsError::IsADirectory`], [`FsError::WrongKind`], and as [`FileSystem::attributes`].
    pub async fn open(&self, inode: Inode) -> Result<Handle, FsError> {
        let known = self.table().content(inode);
        let content = match known {
            Some(content) => content,
            None => {
                if self.table().is_directory(inode) {
                    return Err(FsError::IsADirectory(inode));
                }
                let tree = self.tree_of(inode).await?;
                let of_file = |cause| FsError::of_tree(inode, cause);
                let attributes = tree.attributes(inode).await.map_err(of_file)?;
                if attributes.kind != FileKind::File {
                    return Err(FsError::WrongKind(inode));
                }
                let chunks = tree.chunks(inode).await.map_err(of_file)?;
                let content = Arc::new(Content::new(attributes, chunks).map_err(of_file)?);
                self.table().set_content(inode, &content);
                content
            }
        };
        self.opened(Open::File(Arc::new(OpenFile::new(content))))
    }

    fn handle(&self, handle: Handle) -> Result<Open, FsError> {
        let handles = lock(&self.handles);
        handles.open.get(&handle.0).cloned().ok_or(FsError::UnknownHandle(handle.0))
    }

    /// `len` bytes from `offset` of an open file; fewer only where the file ends.
    ///
    /// # Errors
    /// [`FsError::Content`] when the source gives up, which it does within a bounded time.
    pub async fn read(&self, handle: Handle, offset: u64, len: u32) -> Result<Bytes, FsError> {
        let Open::File(file) = self.handle(handle)? else { return Err(FsError::UnknownHandle(handle.0)) };
        let pieces = file.content.pieces(offset, len);
        if pieces.is_empty() {
            return Ok(Bytes::new());
        }
        self.fetch_ahead(file.foresee(offset, len));
        let inode = file.content.attributes.inode;
        let failed = |cause| FsError::Content { inode, offset, len, cause };
        let span = tracing::debug_span!("read", repo = %self.label, inode = inode.0, offset, len);
        let got = self.source.read(pieces.clone(), Class::Read).instrument(span).await.map_err(failed)?;
        join(&pieces, &got).map_err(failed)
    }

    /// Has chunks fetched that a sequential reader will want, if few others do. Needs a runtime.
    fn fetch_ahead(&self, pieces: Vec<Piece>) {
        if pieces.is_empty() {
            return;
        }
        let (Ok(permit), Ok(runtime)) =
            (Arc::clone(&self.ahead).try_acquire_owned(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let source = Arc::clone(&self.source);
        let span = tracing::debug_span!("prefetch", repo = %self.label, chunks = pieces.len());
        let ahead = async move {
            // A failure shows when the reader gets there.
            let _ = source.read(pieces, Class::Prefetch).await;
            drop(permit);
        };
        runtime.spawn(ahead.instrument(span));
    }

    /// Opens a directory: its entries are captured, so that offsets stay right.
    ///
    /// # Errors
    /// [`FsError::NotADirectory`], and as [`FileSystem::attributes`].
    pub async fn open_directory(&self, inode: Inode) -> Result<Handle, FsError> {
        let listing = self.list(inode).await?;
        self.opened(Open::Directory(Arc::new(listing)))
    }

    async fn list(&self, inode: Inode) -> Result<Listing, FsError> {
        let (generation, tree) = self.bring_along(inode).await?;
        let of_directory = |cause| FsError::of_tree(inode, cause);
        let entries = tree.list(inode).await.map_err(of_directory)?;
        let directory = tree.attributes(inode).await.map_err(of_directory)?;
        let parent = tree.parent(inode).await.map_err(of_directory)?;
        Ok(Listing { generation, tree, directory, parent, entries })
    }

    /// The snapshot of an open directory. Reading from offset 0 after a switch takes a new one, as
    /// `rewinddir` promises.
    ///
    /// # Errors
    /// As [`FileSystem::open_directory`].
    pub async fn read_directory(&self, handle: Handle, offset: u64) -> Result<Arc<Listing>, FsError> {
        let Open::Directory(listing) = self.handle(handle)? else {
            return Err(FsError::UnknownHandle(handle.0));
        };
        let (current, _) = self.table().current();
        if offset != 0 || listing.generation == current {
            return Ok(listing);
        }
        let fresh = Arc::new(self.list(listing.directory.inode).await?);
        if let Some(open) = lock(&self.handles).open.get_mut(&handle.0) {
            *open = Open::Directory(Arc::clone(&fresh));
        }
        Ok(fresh)
    }

    /// An entry of a listing went to the kernel with its attributes: a reference more, but for dots.
    pub fn remember_listed(&self, listing: &Listing, entry: &ListedEntry<'_>) {
        if !entry.is_dot {
            let tree = (listing.generation, Arc::clone(&listing.tree));
            self.remember(&tree, listing.directory.inode, entry.name, &entry.attributes);
        }
    }

    /// Closes a file or directory. Closing what is not open changes nothing.
    pub fn close(&self, handle: Handle) {
        lock(&self.handles).open.remove(&handle.0);
    }
}

/// Checks what the source delivered, and puts it together.
fn join(pieces: &[Piece], got: &[Bytes]) -> Result<Bytes, SourceError> {
    let right = got.len() == pieces.len()
        && pieces.iter().zip(got).all(|(piece, bytes)| bytes.len() == piece.len as usize);
    if !right {
        let lens: Vec<usize> = got.iter().map(Bytes::len).collect();
        let detail = format!("{} pieces were wanted, bytes of lengths {lens:?} came", pieces.len());
        return Err(SourceError::Invalid { chunk: pieces[0].chunk.id, detail });
    }
    if let [one] = got {
        return Ok(one.clone());
    }
    let mut all = BytesMut::with_capacity(got.iter().map(Bytes::len).sum());
    got.iter().for_each(|bytes| all.extend_from_slice(bytes));
    Ok(all.freeze())
}
