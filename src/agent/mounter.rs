//! Opens trees over the fetch path and mounts them with FUSE.

use super::api::{Choice, MountOptions};
use super::fill::FillParts;
use super::holdings::{Holdings, Notes};
use super::mounts::{Left, Life, Mounted, Mounter, OpenError};
use super::offer::Offers;
use super::shown::Shown;
use super::trees::Trees;
use crate::cache::DiskCache;
use crate::catalog::{History, RecordedTrace, Tree, ViewError, view};
use crate::chunk::{ChunkSource, Piece, SourceError};
use crate::fetch::{Fetcher, LocalNode};
use crate::fs::{Belongs, FileSystem, MountError, Profile, clear_dead, fuse, is_mounted};
use crate::mesh::Identity;
use crate::model::{ChunkRef, Class, ContentId, RepositoryName};
use crate::trust::VerifiedRoot;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often, and after what pauses, it is looked whether a session has ended whose mount is gone (guess: half a second in all).
const ENDING_LOOKS: usize = 50;
const ENDING_PAUSE: Duration = Duration::from_millis(10);
/// How long earlier revisions that a predecessor kept are opened, while readers wait (guess): they lie in the cache.
const OPEN_OLD_WITHIN: Duration = Duration::from_secs(10);

/// Reads that failed, over all mounts.
#[derive(Debug, Default)]
pub(super) struct ReadBook {
    failed: AtomicU64,
}

impl ReadBook {
    /// How many failed so far.
    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// A source whose failures are counted and logged: a failed read is a defect, or an outage.
struct Watched {
    source: Arc<dyn ChunkSource>,
    repository: RepositoryName,
    book: Arc<ReadBook>,
}

impl ChunkSource for Watched {
    fn read(&self, pieces: Vec<Piece>, class: Class) -> BoxFuture<'_, Result<Vec<Bytes>, SourceError>> {
        let read = self.source.read(pieces, class);
        async move {
            let result = read.await;
            // What is fetched ahead nobody waits for: should it be read, that read tells.
            if let Err(error) = &result
                && class == Class::Read
            {
                self.book.failed.fetch_add(1, Ordering::Relaxed);
                // Who reads is told, and what he is told stands in the log.
                tracing::debug!(repository = %self.repository, %error, "a read failed");
            }
            result
        }
        .boxed()
    }

    fn body(&self, chunks: &Arc<[ChunkRef]>) -> BoxFuture<'_, Option<Arc<File>>> {
        self.source.body(chunks)
    }

    fn origin(&self, chunk: &ContentId) -> Option<&'static str> {
        self.source.origin(chunk)
    }
}

/// The [`Mounter`] of a running agent.
pub(super) struct KernelMounter {
    pub(super) local: Arc<LocalNode>,
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) cache: Arc<DiskCache>,
    pub(super) offers: Offers,
    pub(super) book: Arc<ReadBook>,
    pub(super) trees: Trees,
    /// Who this node is in its mesh, if it is in one.
    pub(super) identity: Option<Arc<Identity>>,
    /// Where mounts are left to a successor; `None` where they end with the agent.
    pub(super) holdings: Option<Arc<Holdings>>,
    /// The setting `replay_bytes`.
    pub(super) replay_bytes: u64,
    /// Whether every byte is checked at every read, which keeps the kernel from reading files by itself.
    pub(super) verify_always: bool,
    /// The setting `quick_wake`.
    pub(super) quick_wake: bool,
}

impl KernelMounter {
    /// Ends a mount of a predecessor that nobody takes over: who is inside gets errors, and the directory is free. Whatever else
    /// is mounted there by now stays.
    fn lost(&self, holdings: &Holdings, directory: &Path, why: &str) -> Left {
        tracing::warn!(directory = %directory.display(), "a mount of the agent before is ended: {why}");
        tokio::task::block_in_place(|| {
            // With the last descriptor it is dead, and what is dead is cleared away.
            holdings.release(directory);
            let _ = clear_dead(directory);
        });
        Left::Nothing
    }

    /// Opens the trees that a predecessor has kept, each with its number: the one that it showed, and of the others those that can
    /// be had.
    async fn open_kept(&self, notes: &Notes) -> Result<Vec<(u64, Arc<dyn Tree>)>, String> {
        let (number, shown) = notes.shown();
        let current = self.open(shown, &notes.options).await.map_err(|error| error.to_string())?;
        let old = notes.trees.iter().filter(|(other, _)| other != number).map(async |(number, shown)| {
            let opened = tokio::time::timeout(OPEN_OLD_WITHIN, self.open(shown, &notes.options)).await;
            let problem = match opened {
                Ok(Ok(tree)) => return Some((*number, tree)),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it takes too long".to_owned(),
            };
            tracing::warn!(
                repository = %notes.repository,
                revision = %shown.revision(),
                "what is still in use of an earlier revision is stale, for it cannot be opened: {problem}"
            );
            None
        });
        let mut trees: Vec<_> =
            join_all(old).await.into_iter().flatten().chain([(*number, current)]).collect();
        trees.sort_unstable_by_key(|(number, _)| *number);
        Ok(trees)
    }

    /// Goes on with the mount of a predecessor.
    fn take_over(
        &self,
        holdings: &Arc<Holdings>,
        directory: &Path,
        held: fuse::Held,
        notes: Notes,
        trees: Vec<(u64, Arc<dyn Tree>)>,
    ) -> Result<(Arc<dyn Mounted>, Shown), String> {
        let (_, shown) = notes.shown().clone();
        let source = self.source(&notes.repository);
        let (name, number) = (notes.repository.as_str(), notes.shown().0);
        let file_system = FileSystem::resume(name, trees, number, notes.last(), source);
        let file_system = tagged(file_system, &notes.options).with_replays_of(self.replay_max_bytes());
        let file_system = Arc::new(file_system);
        let config = self.config(directory, &notes.options);
        let (runtime, mounting) = (tokio::runtime::Handle::current(), file_system.clone());
        let mounted = tokio::task::block_in_place(move || fuse::take_over(&config, mounting, runtime, held));
        let mounted = Mutex::new(Some(mounted.map_err(|error| error.to_string())?));
        let settling = file_system.clone();
        tokio::spawn(async move { settling.settle().await });
        let kept = Some(Kept::new(holdings.clone(), notes));
        let mount = KernelMount { file_system, directory: directory.to_owned(), mounted, kept };
        Ok((Arc::new(mount), shown))
    }

    /// What the replay of a trace may bring: never so much that it drives the rest out of a small cache.
    fn replay_max_bytes(&self) -> u64 {
        self.replay_bytes.min(self.cache.statistics().quota_bytes / 4)
    }

    fn config(&self, directory: &Path, options: &MountOptions) -> fuse::MountConfig {
        let passthrough = !self.verify_always;
        let MountOptions { profile, restrict, .. } = *options;
        let quick_wake = self.quick_wake;
        fuse::MountConfig { profile, passthrough, quick_wake, restrict, ..fuse::MountConfig::new(directory) }
    }

    fn source(&self, repository: &RepositoryName) -> Arc<dyn ChunkSource> {
        Arc::new(Watched {
            source: Arc::new(self.fetcher.repository(repository.clone())),
            repository: repository.clone(),
            book: self.book.clone(),
        })
    }
}

impl Mounter for KernelMounter {
    fn find_root<'a>(&'a self, repository: &'a RepositoryName) -> BoxFuture<'a, Result<(), String>> {
        async move { self.local.refresh_root(repository).await.map(drop).map_err(|e| e.to_string()) }.boxed()
    }

    fn history<'a>(&'a self, root: &'a VerifiedRoot) -> BoxFuture<'a, Result<History, String>> {
        let source = self.source(&root.root().repository);
        async move {
            let wanted = vec![Piece::whole(root.root().history)];
            let read = source.read(wanted, Class::Read).await.map_err(|error| error.to_string())?;
            History::from_bytes(read.first().map_or(&[][..], |bytes| bytes)).map_err(|e| e.to_string())
        }
        .boxed()
    }

    fn open<'a>(
        &'a self,
        shown: &'a Shown,
        options: &'a MountOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Tree>, OpenError>> {
        let source = self.source(&shown.repository);
        let failed = |error: crate::catalog::TreeError| OpenError::Catalogs(error.to_string());
        async move {
            let tree = self.trees.open(shown, source).await.map_err(failed)? as Arc<dyn Tree>;
            let seen = view(tree, &options.path, &options.owners()).await.map_err(|error| match error {
                ViewError::Tree(error) => failed(error),
                error => OpenError::Path(error),
            })?;
            self.offers.begin(shown);
            Ok(seen)
        }
        .boxed()
    }

    fn is_out_of_scope(&self, repository: &RepositoryName) -> bool {
        self.identity.as_ref().is_some_and(|identity| !identity.membership().scope.covers(repository))
    }

    fn fill_parts(&self, repository: &RepositoryName) -> FillParts {
        FillParts {
            source: Arc::new(self.fetcher.repository(repository.clone())),
            store: self.cache.clone(),
            budget: self.trees.budget().clone(),
            quota_bytes: self.cache.statistics().quota_bytes,
        }
    }

    fn resume<'a>(
        &'a self,
        repository: &'a RepositoryName,
        directory: &'a Path,
        options: &'a MountOptions,
    ) -> BoxFuture<'a, Left> {
        async move {
            let Some(holdings) = self.holdings.clone() else { return Left::Nothing };
            let mut notes = match tokio::task::block_in_place(|| holdings.notes(directory)) {
                Ok(Some(notes)) => notes,
                Ok(None) => return Left::Nothing,
                Err(error) => return self.lost(&holdings, directory, &error.to_string()),
            };
            // Fewer rights it is given while it lives; more it must be mounted for.
            if options.restrict.hold_all_of(notes.options.restrict) {
                notes.options.restrict = options.restrict;
            }
            if notes.repository != *repository || notes.options != *options {
                return self.lost(&holdings, directory, "something else is to be mounted there now");
            }
            if !is_mounted(directory, repository.as_str()) {
                tokio::task::block_in_place(|| holdings.release(directory));
                return Left::Unmounted;
            }
            let trees = match self.open_kept(&notes).await {
                Ok(trees) => trees,
                Err(problem) if holdings.may_wait() => return Left::NotYet(problem),
                Err(problem) => return self.lost(&holdings, directory, &problem),
            };
            let Some(held) = holdings.take(directory, &notes) else { return Left::Nothing };
            match self.take_over(&holdings, directory, held, notes, trees) {
                Ok((mounted, shown)) => Left::Resumed(mounted, shown),
                Err(problem) => self.lost(&holdings, directory, &problem),
            }
        }
        .boxed()
    }

    fn leftovers(&self) -> Vec<PathBuf> {
        let leftovers = |holdings: &Arc<Holdings>| tokio::task::block_in_place(|| holdings.leftovers());
        self.holdings.as_ref().map_or_else(Vec::new, leftovers)
    }

    fn let_go<'a>(&'a self, directory: &'a Path) -> BoxFuture<'a, ()> {
        async move {
            let Some(holdings) = &self.holdings else { return };
            if tokio::task::block_in_place(|| holdings.let_go(directory)) {
                let directory = directory.display();
                tracing::warn!(%directory, "a mount of the agent before is ended: it is not to be mounted any more");
            }
        }
        .boxed()
    }

    fn clear<'a>(&'a self, directory: &'a Path) -> BoxFuture<'a, ()> {
        let directory = directory.to_owned();
        async move {
            let cleared = tokio::task::spawn_blocking(move || clear_dead(&directory)).await;
            if let Ok(Err(error)) = cleared {
                tracing::debug!("what an agent before has left is still there: {error}");
            }
        }
        .boxed()
    }

    fn mount<'a>(
        &'a self,
        shown: &'a Shown,
        directory: &'a Path,
        options: &'a MountOptions,
        tree: Arc<dyn Tree>,
    ) -> BoxFuture<'a, Result<Arc<dyn Mounted>, MountError>> {
        let repository = shown.repository.clone();
        let file_system = FileSystem::new(repository.as_str(), tree, self.source(&repository));
        let file_system = Arc::new(tagged(file_system, options).with_replays_of(self.replay_max_bytes()));
        let config = self.config(directory, options);
        let runtime = tokio::runtime::Handle::current();
        let path = directory.display().to_string();
        let (holdings, shown, options) = (self.holdings.clone(), shown.clone(), options.clone());
        let directory = directory.to_owned();
        // Should nobody wait any more when it is done, the mount is dropped, and thereby detached.
        let mounting = tokio::task::spawn_blocking(move || {
            let mounted = fuse::mount(&config, file_system.clone(), runtime)?;
            let kept = holdings.map(|holdings| {
                let notes = Notes::new(options, mounted.agreement().clone(), shown);
                Kept::new(holdings, notes)
            });
            let mount = KernelMount { file_system, directory, mounted: Mutex::new(Some(mounted)), kept };
            mount.note(|_| ());
            Ok(Arc::new(mount) as Arc<dyn Mounted>)
        });
        async move {
            mounting.await.unwrap_or_else(|error| {
                Err(MountError::Failed { path, action: "mount", cause: io::Error::other(error) })
            })
        }
        .boxed()
    }
}

/// Has the file system tell by which tag it was asked for.
fn tagged(file_system: FileSystem, options: &MountOptions) -> FileSystem {
    match &options.show {
        Choice::Tag(tag) => file_system.with_tag(tag),
        Choice::Newest | Choice::Revision(_) | Choice::Date(_) => file_system,
    }
}

/// A live mount of the kernel. `None` once it was unmounted or left.
struct KernelMount {
    file_system: Arc<FileSystem>,
    directory: PathBuf,
    mounted: Mutex<Option<fuse::Mounted>>,
    /// What the keeper is told; `None` where mounts end with the agent.
    kept: Option<Kept>,
}

/// What the keeper has of a mount.
struct Kept {
    holdings: Arc<Holdings>,
    notes: Mutex<Notes>,
    /// The keeper that holds it, with these notes.
    by: Mutex<Option<u64>>,
}

impl Kept {
    fn new(holdings: Arc<Holdings>, notes: Notes) -> Self {
        let by = Mutex::new(holdings.current());
        Self { holdings, notes: Mutex::new(notes), by }
    }

    fn by(&self) -> MutexGuard<'_, Option<u64>> {
        // A number.
        self.by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_held(&self) -> bool {
        let by = *self.by();
        by.is_some() && by == self.holdings.current()
    }
}

impl KernelMount {
    fn lock(&self) -> MutexGuard<'_, Option<fuse::Mounted>> {
        // Only ever replaced as a whole.
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the keeper what is to be known of the mount after `change`. Where that fails, the mount is there all the same,
    /// and what the keeper holds of it is from before: then it holds nothing, rather than what is wrong.
    fn note(&self, change: impl FnOnce(&mut Notes)) {
        let Some(kept) = &self.kept else { return };
        let mut notes = kept.notes.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut notes);
        let held = self.lock().as_ref().map(fuse::Mounted::held);
        let told = match held {
            None => return,
            Some(held) => held.and_then(|held| kept.holdings.hold(&self.directory, &held, &notes)),
        };
        match told {
            Ok(by) => *kept.by() = Some(by),
            Err(error) => {
                let directory = self.directory.display();
                if kept.by().take().is_some() {
                    tracing::warn!(%directory, "the mount does not outlive this agent any more: {error}");
                }
                if kept.holdings.current().is_some() {
                    kept.holdings.release(&self.directory);
                }
            }
        }
    }

    /// Has the keeper hold it, should it not, or be another one; whether it does.
    fn is_kept(&self) -> bool {
        let Some(kept) = &self.kept else { return false };
        if !kept.is_held() {
            self.note(|_| ());
        }
        kept.is_held()
    }
}

impl Mounted for KernelMount {
    fn switch<'a>(&'a self, shown: &'a Shown, tree: Arc<dyn Tree>) -> BoxFuture<'a, Result<(), String>> {
        async move {
            let next = self.file_system.last() + 1;
            // A successor must know the tree before the kernel can have anything of it.
            tokio::task::block_in_place(|| self.note(|notes| notes.begin_switch(next, shown)));
            let switched = self.file_system.switch(tree).await.map(drop).map_err(|error| error.to_string());
            let (shown, kept) = (self.file_system.shown(), self.file_system.generations());
            tokio::task::block_in_place(|| self.note(|notes| notes.end_switch(shown, &kept)));
            switched
        }
        .boxed()
    }

    fn life(&self) -> Life {
        let mounted = self.lock();
        let Some(mounted) = &*mounted else { return Life::Unmounted };
        let is_listed = || is_mounted(mounted.path(), self.file_system.label());
        // Of what was unmounted a moment ago, the session is about to end; of what somebody is still inside of it does not.
        for _ in 0..ENDING_LOOKS {
            if mounted.has_ended() || is_listed() {
                break;
            }
            tokio::task::block_in_place(|| std::thread::sleep(ENDING_PAUSE));
        }
        match (mounted.has_ended(), is_listed()) {
            (false, _) => Life::Live,
            // What was ended from outside, but not by unmounting, still stands in the list of mounts.
            (true, true) => Life::Dead,
            (true, false) => Life::Unmounted,
        }
    }

    fn profile(&self) -> Profile {
        self.lock().as_ref().map_or_else(Profile::default, fuse::Mounted::profile)
    }

    fn lacks(&self) -> Vec<String> {
        self.lock().as_ref().map_or_else(Vec::new, fuse::Mounted::lacks)
    }

    fn begin_recording(&self, process: u32, belongs: Belongs) -> Option<u64> {
        self.file_system.begin_recording(process, belongs)
    }

    fn end_orphaned_recordings(&self) {
        self.file_system.end_orphaned_recordings();
    }

    fn end_recording(
        &self,
        number: u64,
        name: String,
    ) -> BoxFuture<'_, Result<Option<(RecordedTrace, bool)>, String>> {
        async move { self.file_system.end_recording(number, &name).await.map_err(|error| error.to_string()) }
            .boxed()
    }

    fn keep(&self) {
        tokio::task::block_in_place(|| self.is_kept());
    }

    fn leave(&self) -> bool {
        if !tokio::task::block_in_place(|| self.is_kept()) {
            return false;
        }
        if let Some(mounted) = self.lock().take() {
            mounted.leave();
        }
        true
    }

    fn unmount_if_idle(&self) -> BoxFuture<'_, bool> {
        let Some(mounted) = self.lock().take() else { return async { true }.boxed() };
        let kept = self.kept.as_ref().map(|kept| kept.holdings.clone());
        async move {
            let directory = self.directory.clone();
            let unmounting = tokio::task::spawn_blocking(move || {
                let still_there = mounted.unmount_if_idle();
                if let (None, Some(holdings)) = (&still_there, kept) {
                    holdings.release(&directory);
                }
                still_there
            });
            // Lost with a panic, it is detached by its drop.
            let still_there = unmounting.await.unwrap_or(None);
            let is_gone = still_there.is_none();
            *self.lock() = still_there;
            is_gone
        }
        .boxed()
    }

    fn unmount(&self, patience: Duration) -> BoxFuture<'_, io::Result<()>> {
        let Some(mounted) = self.lock().take() else { return async { Ok(()) }.boxed() };
        let kept = self.kept.as_ref().map(|kept| kept.holdings.clone());
        async move {
            let path = mounted.path().to_owned();
            let directory = self.directory.clone();
            let unmounting = tokio::task::spawn_blocking(move || {
                let unmounted = mounted.unmount(patience);
                if let (Ok(_), Some(holdings)) = (&unmounted, kept) {
                    holdings.release(&directory);
                }
                (unmounted, mounted)
            });
            let (unmounted, mounted) = unmounting.await.map_err(io::Error::other)?;
            let unmounted = unmounted.inspect_err(|_| {
                // It is still there, and served.
                *self.lock() = Some(mounted);
            })?;
            if unmounted == fuse::Unmounted::Lazily {
                tracing::warn!(directory = %path.display(), "was in use and is detached");
            }
            Ok(())
        }
        .boxed()
    }
}
