//! Background fill: brings every chunk of a mounted revision into the cache, behind all that readers want.
//!
//! A fill goes through the revision's catalogs and wishes for what is not in the cache, many chunks at once, so that the
//! mesh can choose which of them to fetch first. It does not give up: what no source has is tried again, at growing
//! intervals, until the mount ends or shows another revision.

use super::api::FillStatus;
use crate::catalog::{Catalog, CatalogIndex, PastRevision};
use crate::chunk::{ChunkSource, Piece, SourceError};
use crate::model::{ChunkRef, Class, Revision};
use crate::store::ChunkStore;
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Chunks that a fill wishes for at once: a little more than the mesh chooses from (a quarter gibibyte of 64 KiB
/// chunks), so that it always has a choice. One catalog's chunks may come on top.
const WISHES_MAX: usize = 4_608;
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
    total_bytes: u64,
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
    /// Begins to fill the cache with a revision. Must be called inside a tokio runtime.
    pub(super) fn start(of: &PastRevision, parts: FillParts) -> Self {
        let of = of.clone();
        let revision = of.revision;
        let progress = Arc::new(Progress { total_bytes: of.plain_bytes, ..Progress::default() });
        let filling = Filling { parts, progress: Arc::clone(&progress) };
        let task = tokio::spawn(async move { filling.run(&of).await });
        Self { revision, progress, task }
    }

    /// The revision that it brings.
    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    /// How far it is.
    pub(super) fn status(&self) -> FillStatus {
        let progress = &self.progress;
        let complete = progress.complete.load(Ordering::Acquire);
        // Names of one file in several catalogs count once in the total.
        let done_bytes = progress.done_bytes.load(Ordering::Relaxed).min(progress.total_bytes);
        FillStatus {
            done_bytes: if complete { progress.total_bytes } else { done_bytes },
            total_bytes: progress.total_bytes,
            complete,
            problem: progress.problem.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

struct Filling {
    parts: FillParts,
    progress: Arc<Progress>,
}

/// The agent stops, or the revision contradicts the format: there is nothing to go on with.
struct Ended;

impl Filling {
    async fn run(&self, of: &PastRevision) {
        let (total, quota) = (of.plain_bytes, self.parts.quota_bytes);
        if total > quota {
            return self.progress.note(Some(format!(
                "the tree has {total} bytes and the cache takes {quota}: files are fetched when they are read"
            )));
        }
        if self.fill(of).await.is_ok() {
            self.progress.note(None);
            self.progress.complete.store(true, Ordering::Release);
        }
    }

    async fn fill(&self, of: &PastRevision) -> Result<(), Ended> {
        let index = self.whole(of.catalog_index).await?;
        let index = CatalogIndex::from_bytes(&index).map_err(|error| self.damaged(&error))?;
        let mut catalogs = futures::stream::iter(index.catalogs().to_vec())
            .map(|catalog| async move {
                let bytes = self.whole(catalog).await?;
                let chunks = tokio::task::spawn_blocking(move || chunks_of(&bytes)).await;
                chunks.map_err(|_| Ended)?.map_err(|error| self.damaged(&error))
            })
            .buffer_unordered(8);
        let mut wishes = FuturesUnordered::new();
        let mut walking = true;
        while walking || !wishes.is_empty() {
            tokio::select! {
                // Each chunk is a wish of its own: one that is late holds up no other.
                chunks = catalogs.next(), if walking && wishes.len() < WISHES_MAX => match chunks {
                    Some(chunks) => wishes.extend(chunks?.into_iter().map(|chunk| self.bring(chunk))),
                    None => walking = false,
                },
                Some(brought) = wishes.next(), if !wishes.is_empty() => brought?,
            }
        }
        Ok(())
    }

    fn damaged(&self, error: &dyn std::fmt::Display) -> Ended {
        self.progress.note(Some(format!("damaged catalog: {error}")));
        Ended
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
                Ok(pieces) => return pieces.into_iter().next().ok_or(Ended),
                Err(SourceError::Stopping) => return Err(Ended),
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
