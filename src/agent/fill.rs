//! Background fill: brings every chunk of a mounted revision into the cache, behind all that readers want.
//!
//! A fill goes through the revision's catalogs, or where a directory of it is mounted through what lies below that, and wishes for what
//! is not in the cache, many chunks at once, so that the mesh can choose which of them to fetch first. It does not give up: what no
//! source has is tried again, at growing intervals, until the mount ends or shows another revision. It ends without being complete only
//! where trying again would change nothing: what is to be brought is larger than the cache, or damaged.

use super::api::FillStatus;
use crate::catalog::{
    Attributes, Catalog, CatalogBudget, CatalogIndex, FileKind, Inode, MountedTree, Owners, PastRevision,
    Tree, TreeError, ViewError, view,
};
use crate::chunk::{ChunkSource, Piece, SourceError};
use crate::model::{ChunkRef, Class, ContentId, Revision};
use crate::store::ChunkStore;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, Stream, StreamExt as _};
use std::collections::HashSet;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Chunks that a fill wishes for at once: a little more than the mesh chooses from (a quarter gibibyte of 64 KiB
/// chunks), so that it always has a choice. One catalog's chunks may come on top.
const WISHES_MAX: usize = 4_608;
/// Catalogs, or lists of chunks, that are looked up ahead of the wishes (guess).
const LISTS_AT_ONCE: usize = 8;
/// First pause before what failed is tried again; doubled each time (a guess).
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest such pause (a guess).
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Where the chunks of a fill come from and go to.
#[derive(Clone)]
pub(super) struct FillParts {
    /// Fetches what is missing.
    pub(super) source: Arc<dyn ChunkSource>,
    /// Says what is there, and takes what was fetched.
    pub(super) store: Arc<dyn ChunkStore>,
    /// What catalogs take in memory counts here.
    pub(super) budget: Arc<CatalogBudget>,
    /// Bytes that the store may hold: a larger tree is not begun.
    pub(super) quota_bytes: u64,
}

/// A fill under way or done. It ends when this is dropped.
pub(super) struct Fill {
    revision: Revision,
    progress: Arc<Progress>,
    task: JoinHandle<()>,
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Default)]
struct Progress {
    /// 0 until it is known.
    total_bytes: AtomicU64,
    done_bytes: AtomicU64,
    complete: AtomicBool,
    problem: Mutex<Option<String>>,
}

impl Progress {
    fn note(&self, problem: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

impl Fill {
    /// Begins to fill the cache with the directory `path` of a revision; an empty one is all of it. Must be called inside a tokio
    /// runtime.
    pub(super) fn start(of: &PastRevision, path: &str, parts: FillParts) -> Self {
        let (of, path) = (of.clone(), path.to_owned());
        let revision = of.revision;
        let progress = Arc::<Progress>::default();
        let filling = Filling { parts, progress: Arc::clone(&progress) };
        let task = tokio::spawn(async move { filling.run(&of, &path).await });
        Self { revision, progress, task }
    }

    /// The revision that it brings.
    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    /// How far it is.
    pub(super) fn status(&self) -> FillStatus {
        let progress = &self.progress;
        // First: what is complete by then is seen to be.
        let is_over = self.task.is_finished();
        let complete = progress.complete.load(Ordering::Acquire);
        // Names of one file in several catalogs count once in the total.
        let total_bytes = progress.total_bytes.load(Ordering::Relaxed);
        let done_bytes = progress.done_bytes.load(Ordering::Relaxed).min(total_bytes);
        FillStatus {
            done_bytes: if complete { total_bytes } else { done_bytes },
            total_bytes,
            complete,
            ended: complete || is_over,
            problem: progress.problem.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

struct Filling {
    parts: FillParts,
    progress: Arc<Progress>,
}

/// There is nothing to go on with; why was noted.
struct Ended;

/// A source that is asked behind all readers, whoever asks.
pub(super) struct Behind(pub(super) Arc<dyn ChunkSource>);

impl ChunkSource for Behind {
    fn read(&self, pieces: Vec<Piece>, _: Class) -> BoxFuture<'_, Result<Vec<Bytes>, SourceError>> {
        self.0.read(pieces, Class::Fill)
    }

    fn origin(&self, chunk: &ContentId) -> Option<&'static str> {
        self.0.origin(chunk)
    }
}

impl Filling {
    async fn run(&self, of: &PastRevision, path: &str) {
        let filled = if path.is_empty() { self.fill(of).await } else { self.fill_part(of, path).await };
        if filled.is_ok() {
            self.progress.note(None);
            self.progress.complete.store(true, Ordering::Release);
        }
    }

    fn end(&self, problem: &dyn std::fmt::Display) -> Ended {
        self.progress.note(Some(problem.to_string()));
        Ended
    }

    /// Notes how much is to be brought. More than the cache takes is not begun.
    fn begin(&self, what: &str, total: u64) -> Result<(), Ended> {
        self.progress.total_bytes.store(total, Ordering::Relaxed);
        let quota = self.parts.quota_bytes;
        if total > quota {
            return Err(self.end(&format!(
                "{what} has {total} bytes and the cache takes {quota}: files are fetched when they are read"
            )));
        }
        Ok(())
    }

    async fn fill(&self, of: &PastRevision) -> Result<(), Ended> {
        self.begin("the tree", of.plain_bytes)?;
        let index = self.whole(of.catalog_index).await?;
        let index = CatalogIndex::from_bytes(&index).map_err(|error| self.damaged(&error))?;
        let lists = futures::stream::iter(index.catalogs().to_vec()).map(|catalog| async move {
            let bytes = self.whole(catalog).await?;
            let chunks = tokio::task::spawn_blocking(move || chunks_of(&bytes)).await;
            chunks.map_err(|error| self.end(&error))?.map_err(|error| self.damaged(&error))
        });
        self.bring_all(lists.buffer_unordered(LISTS_AT_ONCE)).await
    }

    /// Brings what lies below a directory, and the catalogs on the way.
    async fn fill_part(&self, of: &PastRevision, path: &str) -> Result<(), Ended> {
        let tree = self.part(of, path).await?;
        let (files, total) = self.files(&*tree).await?;
        self.begin(path, total)?;
        let tree = &*tree;
        let lists = futures::stream::iter(files).map(|file| async move {
            let chunks = self.ask(|| tree.chunks(file)).await?;
            Ok(chunks.to_vec())
        });
        self.bring_all(lists.buffered(LISTS_AT_ONCE)).await
    }

    /// The tree below a directory.
    async fn part(&self, of: &PastRevision, path: &str) -> Result<Arc<dyn Tree>, Ended> {
        let source: Arc<dyn ChunkSource> = Arc::new(Behind(Arc::clone(&self.parts.source)));
        let open = || MountedTree::open_revision(Arc::clone(&source), of, &self.parts.budget).boxed();
        let tree: Arc<dyn Tree> = Arc::new(self.ask(open).await?);
        let look = || {
            let tree = Arc::clone(&tree);
            async move {
                match view(tree, path, &Owners::default()).await {
                    Err(ViewError::Tree(error)) => Err(error),
                    seen => Ok(seen),
                }
            }
            .boxed()
        };
        self.ask(look).await?.map_err(|error| self.end(&error))
    }

    /// All files of a tree, each once, in the order of a walk; and their bytes.
    async fn files(&self, tree: &dyn Tree) -> Result<(Vec<Inode>, u64), Ended> {
        let (mut files, mut total) = (Vec::new(), 0_u64);
        // Files with one name are met once. A directory is met again where its publisher has named one catalog twice.
        let mut seen = HashSet::from([Inode::ROOT]);
        let mut todo = vec![Inode::ROOT];
        while let Some(directory) = todo.pop() {
            let entries = self.ask(|| tree.list(directory)).await?;
            for entry in entries.iter() {
                let Attributes { inode, kind, size, links, .. } = entry.attributes;
                match kind {
                    FileKind::Directory if seen.insert(inode) => todo.push(inode),
                    FileKind::File if links < 2 || seen.insert(inode) => {
                        files.push(inode);
                        total = total.saturating_add(size);
                    }
                    FileKind::Directory | FileKind::File | FileKind::Symlink => {}
                }
            }
        }
        Ok((files, total))
    }

    /// What a tree answers; asked again, at growing intervals, as long as its source only fails to deliver.
    async fn ask<'a, T>(
        &self,
        question: impl Fn() -> BoxFuture<'a, Result<T, TreeError>>,
    ) -> Result<T, Ended> {
        let mut pause = PAUSE_MIN;
        loop {
            match question().await {
                Ok(answer) => return Ok(answer),
                Err(TreeError::Source(
                    error @ (SourceError::Unavailable { .. } | SourceError::TimedOut { .. }),
                )) => {
                    tracing::debug!(%error, "fill");
                    self.progress.note(Some(error.to_string()));
                }
                Err(error) => return Err(self.end(&error)),
            }
            wait(&mut pause).await;
        }
    }

    /// Brings all chunks of all lists.
    async fn bring_all(&self, lists: impl Stream<Item = Result<Vec<ChunkRef>, Ended>>) -> Result<(), Ended> {
        let mut lists = pin!(lists);
        let mut wishes = FuturesUnordered::new();
        let mut walking = true;
        while walking || !wishes.is_empty() {
            tokio::select! {
                // Each chunk is a wish of its own: one that is late holds up no other.
                chunks = lists.next(), if walking && wishes.len() < WISHES_MAX => match chunks {
                    Some(chunks) => wishes.extend(chunks?.into_iter().map(|chunk| self.bring(chunk))),
                    None => walking = false,
                },
                Some(brought) = wishes.next(), if !wishes.is_empty() => brought?,
            }
        }
        Ok(())
    }

    fn damaged(&self, error: &dyn std::fmt::Display) -> Ended {
        self.end(&format!("damaged catalog: {error}"))
    }

    /// Brings one chunk into the store, however long it takes.
    async fn bring(&self, chunk: ChunkRef) -> Result<(), Ended> {
        let mut pause = PAUSE_MIN;
        while !self.parts.store.contains(&chunk.id) {
            self.read(Piece::touch(chunk)).await?;
            if self.parts.store.contains(&chunk.id) {
                break;
            }
            self.progress.note(Some("the cache does not keep what is fetched: is its disk full?".to_owned()));
            wait(&mut pause).await;
        }
        self.progress.done_bytes.fetch_add(u64::from(chunk.plain_len), Ordering::Relaxed);
        Ok(())
    }

    /// All bytes of a catalog or of the index.
    async fn whole(&self, chunk: ChunkRef) -> Result<Bytes, Ended> {
        self.read(Piece::whole(chunk)).await
    }

    async fn read(&self, piece: Piece) -> Result<Bytes, Ended> {
        let mut pause = PAUSE_MIN;
        loop {
            match self.parts.source.read(vec![piece], Class::Fill).await {
                Ok(pieces) => {
                    return pieces.into_iter().next().ok_or_else(|| self.end(&"its source gave nothing"));
                }
                Err(error @ SourceError::Stopping) => return Err(self.end(&error)),
                Err(error @ SourceError::Invalid { .. }) => return Err(self.damaged(&error)),
                Err(error) => {
                    tracing::debug!(%error, "fill");
                    self.progress.note(Some(error.to_string()));
                }
            }
            wait(&mut pause).await;
        }
    }
}

async fn wait(pause: &mut Duration) {
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(PAUSE_MAX);
}

/// The chunks of all files in a catalog, in its order.
pub(super) fn chunks_of(catalog: &[u8]) -> Result<Vec<ChunkRef>, crate::catalog::CatalogError> {
    let mut chunks = Vec::new();
    Catalog::open(catalog)?.each_chunks(|of_file| chunks.extend(of_file))?;
    Ok(chunks)
}

#[cfg(test)]
pub(super) mod tests;
