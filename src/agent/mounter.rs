//! Opens trees over the fetch path and mounts them with FUSE.

use super::fill::FillParts;
use super::mounts::{Mounted, Mounter};
use super::offer::Offers;
use crate::cache::DiskCache;
use crate::catalog::{MountedTree, Tree};
use crate::chunk::{ChunkSource, Piece, SourceError};
use crate::fetch::{Fetcher, LocalNode};
use crate::fs::{FileSystem, MountError, fuse};
use crate::mesh::{Identity, Mesh};
use crate::model::{ChunkRef, Class, RepositoryName};
use crate::trust::VerifiedRoot;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
            if let Err(error) = &result {
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
    local: Arc<LocalNode>,
    fetcher: Arc<Fetcher>,
    cache: Arc<DiskCache>,
    offers: Offers,
    book: Arc<ReadBook>,
    /// Who this node is in its mesh, if it is in one.
    identity: Option<Arc<Identity>>,
}

impl KernelMounter {
    pub(super) fn new(
        local: Arc<LocalNode>,
        fetcher: Arc<Fetcher>,
        cache: Arc<DiskCache>,
        mesh: Arc<Mesh>,
        book: Arc<ReadBook>,
        identity: Option<Arc<Identity>>,
    ) -> Self {
        let offers = Offers::new(mesh, cache.clone());
        Self { local, fetcher, cache, offers, book, identity }
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

    fn mount<'a>(
        &'a self,
        repository: &'a RepositoryName,
        directory: &'a Path,
        tree: Arc<dyn Tree>,
    ) -> BoxFuture<'a, Result<Arc<dyn Mounted>, MountError>> {
        let file_system = Arc::new(FileSystem::new(repository.as_str(), tree, self.source(repository)));
        let config = fuse::MountConfig::new(directory);
        let runtime = tokio::runtime::Handle::current();
        let shown = directory.display().to_string();
        // Should nobody wait any more when it is done, the mount is dropped, and thereby detached.
        let mounting = tokio::task::spawn_blocking(move || {
            let mounted = fuse::mount(&config, file_system.clone(), runtime)?;
            Ok(Arc::new(KernelMount { file_system, mounted: Mutex::new(Some(mounted)) }) as Arc<dyn Mounted>)
        });
        async move {
            mounting.await.unwrap_or_else(|error| {
                Err(MountError::Failed { path: shown, action: "mount", cause: io::Error::other(error) })
            })
        }
        .boxed()
    }
}

/// A live mount of the kernel. `None` once it was unmounted.
struct KernelMount {
    file_system: Arc<FileSystem>,
    mounted: Mutex<Option<fuse::Mounted>>,
}

impl KernelMount {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<fuse::Mounted>> {
        // Only ever replaced as a whole.
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mounted for KernelMount {
    fn switch(&self, tree: Arc<dyn Tree>) -> BoxFuture<'_, Result<(), String>> {
        async move { self.file_system.switch(tree).await.map(drop).map_err(|error| error.to_string()) }
            .boxed()
    }

    fn is_live(&self) -> bool {
        self.lock().as_ref().is_some_and(|mounted| !mounted.has_ended())
    }

    fn unmount(&self, patience: Duration) -> BoxFuture<'_, io::Result<()>> {
        let Some(mounted) = self.lock().take() else { return async { Ok(()) }.boxed() };
        async move {
            let path = mounted.path().to_owned();
            let unmounted = tokio::task::spawn_blocking(move || mounted.unmount(patience)).await;
            if unmounted.map_err(io::Error::other)?? == fuse::Unmounted::Lazily {
                tracing::warn!(directory = %path.display(), "was in use and is detached");
            }
            Ok(())
        }
        .boxed()
    }
}
