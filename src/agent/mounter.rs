//! Opens trees over the fetch path and mounts them with FUSE.

use super::api::MountOptions;
use super::fill::FillParts;
use super::holdings::{Holdings, Notes};
use super::mounts::{Mounted, Mounter};
use super::offer::Offers;
use crate::ambient;
use crate::cache::DiskCache;
use crate::catalog::{MountedTree, RecordedTrace, Tree};
use crate::chunk::{ChunkSource, Piece, SourceError};
use crate::fetch::{Fetcher, LocalNode};
use crate::fs::{Belongs, FileSystem, MountError, detach_lazily, fuse};
use crate::mesh::Identity;
use crate::model::{ChunkRef, Class, RepositoryName};
use crate::trust::{Repositories, SignedRoot, VerifiedRoot};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
                tracing::warn!(repository = %self.repository, %error, "a read failed");
            }
            result
        }
        .boxed()
    }

    fn body(&self, chunks: &Arc<[ChunkRef]>) -> Option<Arc<File>> {
        self.source.body(chunks)
    }
}

/// The [`Mounter`] of a running agent.
pub(super) struct KernelMounter {
    pub(super) local: Arc<LocalNode>,
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) cache: Arc<DiskCache>,
    pub(super) offers: Offers,
    pub(super) book: Arc<ReadBook>,
    /// Who this node is in its mesh, if it is in one.
    pub(super) identity: Option<Arc<Identity>>,
    pub(super) registry: Arc<Repositories>,
    /// Where mounts are left to a successor; `None` where they end with the agent.
    pub(super) holdings: Option<Arc<Holdings>>,
    /// The setting `replay_bytes`.
    pub(super) replay_bytes: u64,
    /// Whether every byte is checked at every read, which keeps the kernel from reading files by itself.
    pub(super) verify_always: bool,
}

impl KernelMounter {
    /// Ends a mount of a predecessor that nobody takes over: who is inside gets errors, and the directory is free.
    fn lost<T>(&self, holdings: &Holdings, directory: &Path, why: &str) -> Option<T> {
        tracing::warn!(directory = %directory.display(), "a mount of the agent before is ended: {why}");
        tokio::task::block_in_place(|| {
            let _ = detach_lazily(directory);
            holdings.release(directory);
        });
        None
    }

    /// Opens the trees that a predecessor has shown and kept, and goes on with its mount.
    async fn take_over(
        &self,
        holdings: &Arc<Holdings>,
        directory: &Path,
        held: fuse::Held,
        notes: Notes,
    ) -> Result<(Arc<dyn Mounted>, VerifiedRoot), String> {
        let card =
            self.registry.card(&notes.repository).ok_or("the repository is not known here any more")?;
        let mut trees = Vec::new();
        let mut shown = None;
        for (number, bytes) in notes.roots().ok_or("its notes are damaged")? {
            let now = ambient::unix_now();
            let root = SignedRoot::verify(&bytes, &notes.repository, &card.fingerprint, now);
            let root = root.map_err(|error| error.to_string())?;
            trees.push((number, self.open(&root).await?));
            shown = Some(root);
        }
        let shown = shown.ok_or("its notes name no tree")?;
        let source = self.source(&notes.repository);
        let file_system = FileSystem::resume(notes.repository.as_str(), trees, source);
        let file_system = Arc::new(file_system.with_replays_of(self.replay_max_bytes()));
        let config = self.config(directory, &notes.options);
        let (runtime, mounting) = (tokio::runtime::Handle::current(), file_system.clone());
        let mounted = tokio::task::block_in_place(move || fuse::take_over(&config, mounting, runtime, held));
        let mounted = Mutex::new(Some(mounted.map_err(|error| error.to_string())?));
        let kept = Some((holdings.clone(), Mutex::new(notes)));
        let mount = KernelMount { file_system, directory: directory.to_owned(), mounted, kept };
        Ok((Arc::new(mount), shown))
    }

    /// What the replay of a trace may bring: never so much that it drives the rest out of a small cache.
    fn replay_max_bytes(&self) -> u64 {
        self.replay_bytes.min(self.cache.statistics().quota_bytes / 4)
    }

    fn config(&self, directory: &Path, options: &MountOptions) -> fuse::MountConfig {
        let passthrough = !self.verify_always;
        fuse::MountConfig { profile: options.profile, passthrough, ..fuse::MountConfig::new(directory) }
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

    fn open<'a>(&'a self, root: &'a VerifiedRoot) -> BoxFuture<'a, Result<Arc<dyn Tree>, String>> {
        let source = self.source(&root.root().repository);
        async move {
            match MountedTree::open(source, root.root(), MountedTree::BUDGET_BYTES).await {
                Ok(tree) => {
                    self.offers.begin(root.root());
                    Ok(Arc::new(tree) as Arc<dyn Tree>)
                }
                Err(error) => Err(error.to_string()),
            }
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
            quota_bytes: self.cache.statistics().quota_bytes,
        }
    }

    fn resume<'a>(
        &'a self,
        repository: &'a RepositoryName,
        directory: &'a Path,
        options: &'a MountOptions,
    ) -> BoxFuture<'a, Option<(Arc<dyn Mounted>, VerifiedRoot)>> {
        async move {
            let holdings = self.holdings.clone()?;
            let left = tokio::task::block_in_place(|| holdings.take(directory));
            let (held, notes) = match left {
                Ok(left) => left?,
                Err(error) => return self.lost(&holdings, directory, &error.to_string()),
            };
            if notes.repository != *repository || notes.options != *options {
                return self.lost(&holdings, directory, "something else is to be mounted there now");
            }
            match self.take_over(&holdings, directory, held, notes).await {
                Ok(mounted) => Some(mounted),
                Err(problem) => self.lost(&holdings, directory, &problem),
            }
        }
        .boxed()
    }

    fn let_go_but<'a>(&'a self, directories: &'a BTreeSet<PathBuf>) -> BoxFuture<'a, ()> {
        async move {
            let Some(holdings) = &self.holdings else { return };
            for directory in holdings.leftovers().iter().filter(|left| !directories.contains(*left)) {
                self.lost::<()>(holdings, directory, "it is not to be mounted any more");
            }
        }
        .boxed()
    }

    fn mount<'a>(
        &'a self,
        root: &'a VerifiedRoot,
        directory: &'a Path,
        options: &'a MountOptions,
        tree: Arc<dyn Tree>,
    ) -> BoxFuture<'a, Result<Arc<dyn Mounted>, MountError>> {
        let repository = root.root().repository.clone();
        let file_system = FileSystem::new(repository.as_str(), tree, self.source(&repository));
        let file_system = Arc::new(file_system.with_replays_of(self.replay_max_bytes()));
        let config = self.config(directory, options);
        let runtime = tokio::runtime::Handle::current();
        let shown = directory.display().to_string();
        let (holdings, root, options) = (self.holdings.clone(), root.clone(), options.clone());
        let directory = directory.to_owned();
        // Should nobody wait any more when it is done, the mount is dropped, and thereby detached.
        let mounting = tokio::task::spawn_blocking(move || {
            let mounted = fuse::mount(&config, file_system.clone(), runtime)?;
            let kept = holdings.map(|holdings| {
                let notes = Notes::new(repository, options, mounted.agreement().clone());
                (holdings, Mutex::new(notes))
            });
            let mount = KernelMount { file_system, directory, mounted: Mutex::new(Some(mounted)), kept };
            mount.note(|notes| notes.add(0, root.bytes()));
            Ok(Arc::new(mount) as Arc<dyn Mounted>)
        });
        async move {
            mounting.await.unwrap_or_else(|error| {
                Err(MountError::Failed { path: shown, action: "mount", cause: io::Error::other(error) })
            })
        }
        .boxed()
    }
}

/// A live mount of the kernel. `None` once it was unmounted or left.
struct KernelMount {
    file_system: Arc<FileSystem>,
    directory: PathBuf,
    mounted: Mutex<Option<fuse::Mounted>>,
    /// The keeper, and what it was told last of this mount; `None` where mounts end with the agent.
    kept: Option<(Arc<Holdings>, Mutex<Notes>)>,
}

impl KernelMount {
    fn lock(&self) -> MutexGuard<'_, Option<fuse::Mounted>> {
        // Only ever replaced as a whole.
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the keeper what is to be known of the mount after `change`. Where that fails, the mount is there all the same,
    /// and what the keeper holds of it is from before: then it holds nothing, rather than what is wrong.
    fn note(&self, change: impl FnOnce(&mut Notes)) {
        let Some((holdings, notes)) = &self.kept else { return };
        let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut notes);
        let held = self.lock().as_ref().map(fuse::Mounted::held);
        let told = match held {
            None => return,
            Some(held) => held.and_then(|held| holdings.hold(&self.directory, &held, &notes)),
        };
        if let Err(error) = told {
            let directory = self.directory.display();
            tracing::warn!(%directory, "the mount will not outlive this agent: {error}");
            holdings.release(&self.directory);
        }
    }
}

impl Mounted for KernelMount {
    fn switch<'a>(
        &'a self,
        root: &'a VerifiedRoot,
        tree: Arc<dyn Tree>,
    ) -> BoxFuture<'a, Result<(), String>> {
        async move {
            let next = self.file_system.generations().last().map_or(0, |last| last + 1);
            // A successor must know the tree before the kernel can have anything of it.
            tokio::task::block_in_place(|| self.note(|notes| notes.add(next, root.bytes())));
            let switched = self.file_system.switch(tree).await.map(drop).map_err(|error| error.to_string());
            let kept = self.file_system.generations();
            tokio::task::block_in_place(|| self.note(|notes| notes.keep(&kept)));
            switched
        }
        .boxed()
    }

    fn is_live(&self) -> bool {
        self.lock().as_ref().is_some_and(|mounted| !mounted.has_ended())
    }

    fn begin_recording(&self, belongs: Belongs) -> Option<u64> {
        self.file_system.begin_recording(belongs)
    }

    fn end_recording(
        &self,
        number: u64,
        name: String,
    ) -> BoxFuture<'_, Result<Option<(RecordedTrace, bool)>, String>> {
        async move { self.file_system.end_recording(number, &name).await.map_err(|error| error.to_string()) }
            .boxed()
    }

    fn leave(&self) -> bool {
        if self.kept.is_none() {
            return false;
        }
        if let Some(mounted) = self.lock().take() {
            mounted.leave();
        }
        true
    }

    fn unmount(&self, patience: Duration) -> BoxFuture<'_, io::Result<()>> {
        let Some(mounted) = self.lock().take() else { return async { Ok(()) }.boxed() };
        let kept = self.kept.as_ref().map(|(holdings, _)| holdings.clone());
        async move {
            let path = mounted.path().to_owned();
            let directory = self.directory.clone();
            let unmounted = tokio::task::spawn_blocking(move || {
                let unmounted = mounted.unmount(patience);
                if let (Ok(_), Some(holdings)) = (&unmounted, kept) {
                    holdings.release(&directory);
                }
                unmounted
            })
            .await;
            if unmounted.map_err(io::Error::other)?? == fuse::Unmounted::Lazily {
                tracing::warn!(directory = %path.display(), "was in use and is detached");
            }
            Ok(())
        }
        .boxed()
    }
}
