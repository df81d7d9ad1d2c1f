//! The answers: look-ups, listings, attributes and reads.

use super::content::{Content, OpenFile};
use super::error::FsError;
use super::files::{Files, HELD_MAX, OPEN_MAX};
use super::foresight::{Foresight, REPLAY_MAX_BYTES};
use super::listing::{ListedEntry, Listing, Listings, Position};
use super::magic::is_magic;
use super::recorder::{Belongs, Recorders};
use super::switch::{Notifier, walk};
use super::table::{Generation, Table};
use crate::catalog::{
    Attributes, FileKind, Inode, RecordedTrace, TracedFile, TracedRead, Tree, TreeError, content_of,
};
use crate::chunk::{ChunkSource, Piece, SourceError};
use crate::model::{Class, ContentId};
use crate::seldom::Seldom;
use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, StreamExt as _, stream};
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tracing::Instrument as _;

/// Longest name, in bytes: what every Linux file system has.
pub(super) const NAME_MAX_BYTES: usize = 255;
/// How long an inode is searched for that a predecessor of this process has handed out: less than a reader's patience.
const RECALL_WITHIN: Duration = Duration::from_secs(25);
/// How long each tree is searched at least, so that all have their turn.
const RECALL_AT_LEAST: Duration = Duration::from_millis(100);
/// Of a mount's warnings that readers get an I/O error, one passes in this time (guess: a sample is enough for who looks for the cause).
const IO_ERRORS_PAUSE: Duration = Duration::from_secs(2);
/// How often the catalog is asked for of a file that is in use and whose revision goes, and the pause before it is asked for again (guesses).
const HOLD_ATTEMPTS: usize = 5;
const HOLD_PAUSE: Duration = Duration::from_millis(100);
/// Of so many such files the catalogs are asked for at once (guess).
const HOLD_AT_ONCE: usize = 64;
/// How long one of them is waited for at first, and how many times longer each time that it is asked for again. What is here is had at
/// once: of `HELD_MAX` that nobody sends, the first turn takes 5 s of the 30. What comes from afar has time in the end (guesses).
const HOLD_TURN: Duration = Duration::from_millis(20);
const HOLD_TURN_GROWS: u32 = 4;
/// How often a file that is being opened is looked up again after it was dropped at once.
const OPEN_ATTEMPTS: usize = 3;

/// How much the file system remembers for the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSystemStatistics {
    /// Inodes that the kernel knows, the root included.
    pub known_inodes: usize,
    /// How often files are open.
    pub open_files: usize,
    /// Trees of earlier revisions that are still in use.
    pub old_trees: usize,
}

/// What is known of an extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtendedAttribute {
    /// Its value.
    Value(Box<[u8]>),
    /// This inode has none of that name.
    Absent,
    /// Nothing that was looked at so far has one of that name: as good as a file system that does not know such attributes.
    Unknown,
}

/// One mounted repository; make a new one for each mount, since an unmounted kernel forgets nothing.
///
/// Every method may be called from many threads at once. What is here is answered with a future that
/// is ready at its first poll. There are no handles: an inode number means one content for ever, and a position in a directory
/// says of which revision it is, so another process can go on where one has ended. Each successful [`FileSystem::lookup`] and
/// [`FileSystem::remember_listed`] counts one reference of the kernel, which
/// [`FileSystem::forget`] takes back.
pub struct FileSystem {
    label: String,
    /// Of errors that readers get.
    io_errors: Seldom,
    /// The tag by which its revision was chosen.
    tag: Option<String>,
    source: Arc<dyn ChunkSource>,
    table: Mutex<Table>,
    files: Mutex<Files>,
    listings: Mutex<Listings>,
    notifier: Mutex<Option<Arc<dyn Notifier>>>,
    pub(super) switching: tokio::sync::Mutex<()>,
    pub(super) foresight: Foresight,
    recorders: Recorders,
    /// Whether the kernel may know inodes that this process never told it of.
    resumed: bool,
    /// Trees of which it may know directories that are not known here: after a resumption, until the next switch.
    pub(super) unknown: Mutex<Vec<Generation>>,
    /// Whether it may also know something of a tree that is lost.
    pub(super) has_lost: bool,
    /// Whether a switch is under way: should this process end in it, there was none.
    pub(super) is_switching: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FileSystem {
    /// Shows `tree`; its files' bytes come from `source`. `label` names the repository in messages.
    pub fn new(label: impl Into<String>, tree: Arc<dyn Tree>, source: Arc<dyn ChunkSource>) -> Self {
        Self::over(label.into(), Table::new(tree), source, None)
    }

    /// Goes on where another process has ended: `trees` are those that it kept, by the numbers that it gave them, and `shown` is
    /// the number of the one that it showed. With one of a greater number, it was cut off while it switched to that one; the kernel
    /// may have something of it, which [`FileSystem::settle`] takes back, be that tree among them or lost. `last` is the greatest number
    /// that any of its trees had, those that are lost included: no other tree gets one of these. Inodes that the kernel has from the other process are found when
    /// it asks about them.
    ///
    /// # Panics
    /// Without the tree that is shown.
    pub fn resume(
        label: impl Into<String>,
        trees: Vec<(u64, Arc<dyn Tree>)>,
        shown: u64,
        last: u64,
        source: Arc<dyn ChunkSource>,
    ) -> Self {
        let unknown: Vec<_> = trees.iter().filter(|(number, _)| *number >= shown).cloned().collect();
        // A number that is missing was that of a tree to which it was switching, or of one to which it could not: too much is forgotten then.
        let begun = last.saturating_sub(shown);
        let has_lost = unknown.len() as u64 <= begun;
        Self {
            has_lost,
            ..Self::over(label.into(), Table::resume(trees, shown, last), source, Some(unknown))
        }
    }

    fn over(
        label: String,
        table: Table,
        source: Arc<dyn ChunkSource>,
        unknown: Option<Vec<Generation>>,
    ) -> Self {
        let foresight = Foresight::new(&*table.current().1, REPLAY_MAX_BYTES);
        Self {
            label,
            io_errors: Seldom::new(IO_ERRORS_PAUSE),
            tag: None,
            source,
            table: Mutex::new(table),
            files: Mutex::default(),
            listings: Mutex::default(),
            notifier: Mutex::default(),
            switching: tokio::sync::Mutex::default(),
            foresight,
            recorders: Recorders::default(),
            resumed: unknown.is_some(),
            unknown: Mutex::new(unknown.unwrap_or_default()),
            has_lost: false,
            is_switching: AtomicBool::new(false),
        }
    }

    /// Lets the replay of a trace take at most so many plain bytes; with 0 none is replayed.
    #[must_use]
    pub fn with_replays_of(mut self, most_bytes: u64) -> Self {
        let (_, tree) = self.table().current();
        self.foresight = Foresight::new(&*tree, most_bytes);
        self
    }

    /// Has it tell that its revision was chosen by this tag.
    #[must_use]
    pub fn with_tag(self, tag: &str) -> Self {
        Self { tag: Some(tag.to_owned()), ..self }
    }

    pub(super) fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Where a chunk that is here came from, in a word.
    pub(super) fn origin(&self, chunk: &ContentId) -> Option<&'static str> {
        self.source.origin(chunk)
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
        let open_files = lock(&self.files).opens();
        let table = self.table();
        FileSystemStatistics { known_inodes: table.inodes(), open_files, old_trees: table.old_trees() }
    }

    /// The number of the tree that is shown.
    pub fn shown(&self) -> u64 {
        self.table().current().0
    }

    /// The greatest number that a tree of this mount ever had. The next tree that is shown has the number after it.
    pub fn last(&self) -> u64 {
        self.table().last()
    }

    /// The numbers of the trees that are kept, oldest first.
    pub fn generations(&self) -> Vec<u64> {
        self.table().generations().iter().rev().map(|(number, _)| *number).collect()
    }

    /// Makes an inode known that the kernel has from a predecessor of this process. What is known, and what is in no tree,
    /// stays as it is.
    async fn recall(&self, inode: Inode) -> Result<(), FsError> {
        if !self.resumed || self.table().tree_of(inode).is_ok() {
            return Ok(());
        }
        let of_inode = |cause| FsError::of_tree(inode, cause);
        let generations = self.table().generations();
        let until = tokio::time::Instant::now() + RECALL_WITHIN;
        let mut failure = None;
        // In all of them what is here is searched before anybody is asked for the rest of one.
        let here = generations.iter().map(|generation| (generation, true));
        for (generation, only_here) in here.chain(generations.iter().map(|generation| (generation, false))) {
            let patience = until.saturating_duration_since(tokio::time::Instant::now()).max(RECALL_AT_LEAST);
            let patience = if only_here { Duration::ZERO } else { patience };
            let found = match generation.1.locate(inode, patience).await {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                // What is here may be damaged, and be had from others; and another tree may have it.
                Err(_) if only_here => continue,
                Err(cause) => {
                    failure.get_or_insert(cause);
                    continue;
                }
            };
            // A directory stands somewhere, and so does each above it; all of them the kernel has from the predecessor.
            let mut at = found;
            while at.kind == FileKind::Directory && at.inode != Inode::ROOT {
                let parent = generation.1.parent(at.inode).await.map_err(of_inode)?;
                let names = generation.1.list(parent).await.map_err(of_inode)?;
                let own = names.iter().find(|entry| entry.attributes.inode == at.inode);
                let Some(own) = own else { return Err(FsError::Stale(inode)) };
                let known = self.table().tree_of(at.inode).is_ok();
                if known {
                    break;
                }
                self.table().inherit(at.inode, generation, Some((parent, Arc::clone(&own.name))));
                at = generation.1.attributes(parent).await.map_err(of_inode)?;
            }
            if found.kind != FileKind::Directory {
                self.table().inherit(inode, generation, None);
            }
            return Ok(());
        }
        failure.map_or(Ok(()), |cause| Err(of_inode(cause)))
    }

    /// The tree that answers for a directory: the current one if the directory exists there, or the
    /// one that it came from.
    pub(super) async fn bring_along(&self, directory: Inode) -> Result<Generation, FsError> {
        self.recall(directory).await?;
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
        self.forget_counted(inode, lookups);
    }

    /// As [`FileSystem::forget`]. Returns how many references were known of.
    pub(super) fn forget_counted(&self, inode: Inode, lookups: u64) -> u64 {
        let counted = self.table().forget(inode, lookups);
        if lookups >= counted {
            lock(&self.files).let_go(inode);
        }
        counted
    }

    /// Has files stay readable that are in use, although the revision from which they are is about to go. Ends after
    /// `patience`: what could not be held by then is stale, and the log says of how many files that is true.
    pub(super) async fn hold_what_goes(&self, patience: Duration) {
        let going = self.table().about_to_go();
        let mut held = 0;
        let all = async {
            let (mut open, mut turn) = (going.iter().take(HELD_MAX).copied().collect::<Vec<_>>(), HOLD_TURN);
            for _ in 0..HOLD_ATTEMPTS {
                // A catalog that nobody has must not keep the files of the others waiting: it is asked for again behind them.
                let (mut again, within) = (Vec::new(), turn);
                let mut asked = stream::iter(open)
                    .map(|inode| async move { (inode, self.hold(inode, within).await) })
                    .buffer_unordered(HOLD_AT_ONCE);
                while let Some((inode, is_held)) = asked.next().await {
                    match is_held {
                        Some(is_held) => held += usize::from(is_held),
                        None => again.push(inode),
                    }
                }
                if again.is_empty() {
                    break;
                }
                tokio::time::sleep(HOLD_PAUSE).await;
                (open, turn) = (again, turn * HOLD_TURN_GROWS);
            }
        };
        let _ = tokio::time::timeout(patience, all).await;
        let lost = going.len() - held;
        if lost > 0 {
            tracing::warn!(
                repository = self.label,
                files = lost,
                "an old revision is in use but no longer kept, and not all of its files could be: these are stale"
            );
        }
    }

    /// Says in the log why a reader gets an I/O error. Who reads in a loop fills no log: one line passes in a while.
    pub(super) fn tell_io_error(&self, why: impl std::fmt::Display) {
        if let Some(held_back) = self.io_errors.pass() {
            tracing::warn!(repository = self.label, held_back, "a reader gets an I/O error: {why}");
        }
    }

    /// Has a file stay whose revision is about to go; whether it does, or `None` when its catalog was not to be had within `patience`.
    async fn hold(&self, inode: Inode, patience: Duration) -> Option<bool> {
        match tokio::time::timeout(patience, self.known_file(inode)).await {
            Ok(Ok(_)) => Some(lock(&self.files).hold(inode)),
            // A link: who has it has read it.
            Ok(Err(FsError::WrongKind(_))) => Some(true),
            Ok(Err(FsError::Metadata { cause: TreeError::Source(_), .. })) | Err(_) => None,
            Ok(Err(_)) => Some(false),
        }
    }

    /// The tree that answers for an inode of any kind.
    async fn tree_of(&self, inode: Inode) -> Result<Arc<dyn Tree>, FsError> {
        self.recall(inode).await?;
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
        let is_kept = self.table().tree_of(inode).is_ok();
        // An open file has attributes even when its revision is no longer kept.
        if let Some(attributes) = self.attributes_of_open(inode).filter(|_| !is_kept) {
            return Ok(attributes);
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

    /// The value of an extended attribute. Those named `user.starling.…` come from no tree, and no list has
    /// them (`magic.rs`).
    ///
    /// # Errors
    /// As [`FileSystem::attributes`].
    pub async fn extended_attribute(&self, inode: Inode, name: &[u8]) -> Result<ExtendedAttribute, FsError> {
        let tree = self.tree_of(inode).await?;
        if is_magic(name) {
            let value = self.magic(&*tree, inode, name).await?;
            let value = value.map(|value| ExtendedAttribute::Value(value.into_bytes().into()));
            return Ok(value.unwrap_or(ExtendedAttribute::Absent));
        }
        let all = tree.extended_attributes(inode).await.map_err(|cause| FsError::of_tree(inode, cause))?;
        let found = all.iter().find(|(key, _)| **key == *name);
        Ok(match found {
            Some((_, value)) => ExtendedAttribute::Value(value.clone()),
            None if tree.may_have_attribute(name) => ExtendedAttribute::Absent,
            None => ExtendedAttribute::Unknown,
        })
    }

    /// The names of all extended attributes, each followed by a zero byte.
    ///
    /// # Errors
    /// As [`FileSystem::attributes`].
    pub async fn extended_attribute_names(&self, inode: Inode) -> Result<Vec<u8>, FsError> {
        let tree = self.tree_of(inode).await?;
        let all = tree.extended_attributes(inode).await.map_err(|cause| FsError::of_tree(inode, cause))?;
        // What a tree holds under such a name could be listed, but not read.
        let names = all.iter().map(|(name, _)| name).filter(|name| !is_magic(name));
        Ok(names.flat_map(|name| name.iter().copied().chain([0])).collect())
    }

    /// Number of inodes and plain bytes of the current revision.
    pub fn totals(&self) -> (u64, u64) {
        let (_, tree) = self.table().current();
        tree.totals()
    }

    fn attributes_of_open(&self, inode: Inode) -> Option<Attributes> {
        let files = lock(&self.files);
        files.get(inode).filter(|_| files.is_open(inode)).map(|file| file.content.attributes)
    }

    /// The content of a file that somebody opens, or reads without.
    async fn file(&self, inode: Inode) -> Result<Arc<OpenFile>, FsError> {
        self.foresight.begins(inode, &self.source, &self.label);
        self.known_file(inode).await
    }

    /// The content of a file, from what is at hand or from its tree.
    async fn known_file(&self, inode: Inode) -> Result<Arc<OpenFile>, FsError> {
        let known = lock(&self.files).get(inode);
        if let Some(file) = known {
            return Ok(file);
        }
        self.recall(inode).await?;
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
        let content = Content::new(attributes, chunks).map_err(of_file)?;
        Ok(lock(&self.files).remember(inode, OpenFile::new(content)))
    }

    /// Opens a file: its list of chunks is kept until it is closed, so that it keeps its content. Returns its size in bytes.
    ///
    /// # Errors
    /// [`FsError::IsADirectory`], [`FsError::WrongKind`], [`FsError::TooManyOpen`], and as [`FileSystem::attributes`].
    pub async fn open(&self, inode: Inode) -> Result<u64, FsError> {
        // Between the two it may be dropped again, if very many others are read.
        for _ in 0..OPEN_ATTEMPTS {
            let size = self.file(inode).await?.content.attributes.size;
            let mut files = lock(&self.files);
            if files.opens() >= OPEN_MAX {
                return Err(FsError::TooManyOpen(files.opens()));
            }
            if files.open(inode) {
                return Ok(size);
            }
        }
        Err(FsError::TooManyOpen(OPEN_MAX))
    }

    /// All bytes of a file as a file of the local disk, if it has them as one: what the kernel can read without this process.
    ///
    /// # Errors
    /// As [`FileSystem::open`].
    pub async fn body(&self, inode: Inode) -> Result<Option<Arc<File>>, FsError> {
        let file = self.file(inode).await?;
        Ok(self.source.body(file.content.chunks()).await)
    }

    /// `len` bytes from `offset` of a file, which need not be open; fewer only where the file ends.
    ///
    /// # Errors
    /// [`FsError::Content`] when the source gives up, which it does within a bounded time, and as [`FileSystem::open`].
    pub async fn read(&self, inode: Inode, offset: u64, len: u32) -> Result<Bytes, FsError> {
        let file = self.file(inode).await?;
        let pieces = file.content.pieces(offset, len);
        if pieces.is_empty() {
            return Ok(Bytes::new());
        }
        let failed = |cause| FsError::Content { inode, offset, len, cause };
        let span = tracing::debug_span!("read", repo = %self.label, inode = inode.0, offset, len);
        let mut reading = self.source.read(pieces.clone(), Class::Read).instrument(span);
        // What is here is ready at once. What is not is wished for before anything is fetched ahead.
        let ready = (&mut reading).now_or_never();
        if offset == 0 {
            let tree = || self.table().tree_of(inode).ok().map(|(_, tree)| tree);
            self.foresight.beside((inode, &file.content), ready.is_none(), tree, &self.source, &self.label);
        }
        let leave = self.foresight.leave();
        let ahead = file.foresee(offset, len, leave.is_some());
        if let Some(leave) = leave.filter(|_| !ahead.is_empty()) {
            let (pieces, reader) = (file.content.touches(ahead.clone()), Arc::clone(&file));
            leave.fetch(pieces, &self.source, &self.label, move || reader.failed(&ahead));
        }
        let got = match ready {
            Some(got) => got,
            None => reading.await,
        };
        join(&pieces, &got.map_err(failed)?).map_err(failed)
    }

    /// Begins to record, for a process, what the tasks read for which `belongs` holds: for the process itself as long as it is there.
    /// The recording's number; `None` when too many run.
    pub fn begin_recording(&self, process: u32, belongs: Belongs) -> Option<u64> {
        self.recorders.begin(process, belongs)
    }

    /// Ends the recordings whose process is gone.
    pub fn end_orphaned_recordings(&self) {
        self.recorders.end_orphans();
    }

    /// Whether what a task reads is recorded: then the kernel must ask for all of it.
    pub fn is_recorded(&self, task: u32) -> bool {
        self.recorders.is_recorded(task)
    }

    /// A task reads `len` bytes from `offset` of a file; of a read that fails nothing is noted.
    pub async fn note_read(&self, task: u32, inode: Inode, offset: u64, len: u32) {
        let Ok(file) = self.file(inode).await else { return };
        let stop = offset.saturating_add(u64::from(len));
        let chunks = (file.content.chunk_at(offset), file.content.chunk_at(stop.saturating_sub(1)));
        let end = (chunks.1 + 1).min(file.content.chunks().len());
        if chunks.0 < end {
            self.recorders.note(task, inode, &file.content, (chunks.0, end));
        }
    }

    /// Ends a recording: what was read, under the name `name`, and whether it was more than a trace holds. Files that are not in the
    /// revision any more that is shown are left out.
    ///
    /// # Errors
    /// [`FsError::Metadata`] when a catalog cannot be had that was read before.
    pub async fn end_recording(
        &self,
        number: u64,
        name: &str,
    ) -> Result<Option<(RecordedTrace, bool)>, FsError> {
        let Some(recording) = self.recorders.end(number) else { return Ok(None) };
        let (_, tree) = self.table().current();
        let mut trace = RecordedTrace { name: name.to_owned(), ..RecordedTrace::default() };
        let mut numbers = vec![None; recording.files.len()];
        for ((inode, chunks), number) in recording.files.iter().zip(&mut numbers) {
            let path = match tree.path(*inode).await {
                Ok(path) => path,
                Err(TreeError::UnknownInode(_)) => continue,
                Err(cause) => return Err(FsError::of_tree(*inode, cause)),
            };
            *number = u32::try_from(trace.files.len()).ok();
            trace.files.push(TracedFile { path: path.into(), content: content_of(chunks) });
        }
        let read = |read: &TracedRead| Some(TracedRead { file: numbers[read.file as usize]?, ..*read });
        trace.reads = recording.reads.iter().filter_map(read).collect();
        Ok(Some((trace, recording.is_full)))
    }

    async fn list(&self, inode: Inode, of: Generation) -> Result<Listing, FsError> {
        let (generation, tree) = of;
        let of_directory = |cause| FsError::of_tree(inode, cause);
        let entries = tree.list(inode).await.map_err(of_directory)?;
        let directory = tree.attributes(inode).await.map_err(of_directory)?;
        let parent = tree.parent(inode).await.map_err(of_directory)?;
        Ok(Listing { generation, directory, parent, entries })
    }

    /// The listing of a directory in which `offset` lies: at 0 that of the current revision, at an offset that an entry
    /// named the one of that entry. Whoever reads on keeps the names that there were when he began.
    ///
    /// # Errors
    /// [`FsError::Stale`] when the revision in which the reader began is no longer kept; as [`FileSystem::attributes`].
    pub async fn read_directory(&self, directory: Inode, offset: u64) -> Result<Arc<Listing>, FsError> {
        let Some(position) = Position::of_offset(offset) else {
            let current = self.bring_along(directory).await?;
            return Ok(Arc::new(self.list(directory, current).await?));
        };
        if position.is_end() {
            return Ok(Arc::new(self.nothing_more(directory)));
        }
        let kept = lock(&self.listings).find(directory, position);
        if let Some(listing) = kept {
            return Ok(listing);
        }
        let own = self.bring_along(directory).await?;
        let meant = if position.is_of(own.0) { Some(own) } else { self.table().generation_at(position) };
        let listing = self.list(directory, meant.ok_or(FsError::Stale(directory))?).await?;
        Ok(Arc::new(listing))
    }

    /// What there is behind the last entry of any listing.
    fn nothing_more(&self, directory: Inode) -> Listing {
        let generation = self.table().current().0;
        let directory = Attributes::blank(directory, FileKind::Directory);
        Listing { generation, directory, parent: Inode::ROOT, entries: Arc::default() }
    }

    /// Entries of `listing` went to the kernel, up to before `offset`; if that is not the end, it will want the next ones.
    pub fn read_up_to(&self, listing: &Arc<Listing>, offset: u64) {
        if offset != 0 && listing.from(offset).next().is_some() {
            lock(&self.listings).keep(listing);
        }
    }

    /// Whether the kernel may believe for long what it is told now. Not while the tree is switched: should this process end before
    /// that is done, its successor shows the tree before, and may have no other to tell what the kernel has of this one.
    pub fn answers_last(&self) -> bool {
        !self.is_switching.load(Ordering::SeqCst)
    }

    /// Whether it may believe for long what it is told of a directory's names: they are those of the newest revision, and not as they were
    /// before the directory went.
    pub fn names_last(&self, directory: Inode) -> bool {
        let table = self.table();
        self.answers_last() && table.tree_of(directory).is_ok_and(|own| own.0 == table.current().0)
    }

    /// Whether it may believe a listing for long. What one of an older revision says of a name, nobody may believe any more.
    pub fn listing_lasts(&self, listing: &Listing) -> bool {
        self.answers_last() && self.table().current().0 == listing.generation
    }

    /// An entry of a listing went to the kernel with its attributes: a reference more, but for dots.
    pub fn remember_listed(&self, listing: &Listing, entry: &ListedEntry<'_>) {
        if entry.is_dot {
            return;
        }
        let (directory, attributes) = (listing.directory.inode, &entry.attributes);
        let is_directory = attributes.kind == FileKind::Directory;
        let place = is_directory.then(|| (directory, Arc::from(entry.name)));
        let mut table = self.table();
        match table.generation(listing.generation) {
            Some(tree) => table.remember(attributes.inode, &tree, place),
            None => table.remember_gone(attributes.inode, listing.generation, place),
        }
    }

    /// Closes a file. Closing what is not open changes nothing.
    pub fn close(&self, inode: Inode) {
        lock(&self.files).close(inode);
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
