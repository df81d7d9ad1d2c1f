//! Reads: the store first, then one shared fetch through the mesh.

use super::disk::Disk;
use super::flight::{Flight, Flights};
use super::recent::Recent;
use crate::ambient;
use crate::chunk::{ChunkSource, Piece, SourceError};
use crate::mesh::{Exchange, ObtainError};
use crate::model::{ChunkRef, Class, ContentId, RepositoryName, Time};
use crate::store::{ChunkStore, MayWait, Origin};
use crate::upstream::check_row;
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument as _;
use tracing::field::{Empty, display};

/// The unit in which bytes under way are counted: every fetch costs at least one.
const UNIT_BYTES: u32 = 64 << 10;
/// Bytes up to which what is in the kernel's memory is copied on the caller's thread.
const INLINE_READ_MAX_BYTES: u32 = 1 << 20;
/// Bytes up to which a piece of a chunk is copied (guess: a page). A slice would keep the whole chunk in memory.
const SHORT_BYTES: u32 = 4 << 10;
/// Pieces that are looked for in the store without letting others run, but for reads, which are short.
const LOOKS_AT_ONCE: usize = 64;
/// Joins of fetches that gave up before this reader's own deadline.
const JOINS_MAX: usize = 8;

/// Bounds of the fetch path.
#[derive(Clone, Debug)]
pub struct FetchSettings {
    /// How long a reader waits for a fetch. Default 30 s.
    pub read_deadline: Duration,
    /// How long any of them waits for the store's disk before, at most twice: for its turn, and for the answer. Then the chunk is
    /// fetched. Default 10 s (guess: what a disk needs that had come to rest).
    pub disk_deadline: Duration,
    /// How long a prefetch waits, from when it has its part of what may be wished for at once. Default 60 s (guess).
    pub prefetch_deadline: Duration,
    /// How long a fill waits. Default 600 s (guess: its window of a quarter gibibyte at 4 Mbit/s).
    pub fill_deadline: Duration,
    /// Chunks of one call that are fetched at once. Default 64: a read of the largest size has no more.
    pub chunks_at_once: usize,
    /// As many of a prefetch: what is wished for together travels together. Default 1 024 (guess: a few MiB of small files).
    pub prefetched_at_once: usize,
    /// Plain bytes wished for at once in the process, as much again by fills, a quarter of it by prefetches; also bounds
    /// the fetches, at one for 64 KiB. A larger chunk takes all of it. Far fewer are under way: the mesh begins them one after the other.
    /// Default 256 MiB.
    pub in_flight_bytes: u64,
    /// Memory for chunks that the store refused. Default 64 MiB.
    pub recent_bytes: usize,
}

impl Default for FetchSettings {
    fn default() -> Self {
        Self {
            read_deadline: Duration::from_secs(30),
            disk_deadline: Duration::from_secs(10),
            prefetch_deadline: Duration::from_secs(60),
            fill_deadline: Duration::from_secs(600),
            chunks_at_once: 64,
            prefetched_at_once: 1_024,
            in_flight_bytes: 256 << 20,
            recent_bytes: 64 << 20,
        }
    }
}

impl FetchSettings {
    fn at_once(&self, class: Class) -> usize {
        if class == Class::Prefetch { self.prefetched_at_once } else { self.chunks_at_once }
    }

    fn patience(&self, class: Class) -> Duration {
        match class {
            Class::Read => self.read_deadline,
            Class::Prefetch => self.prefetch_deadline,
            Class::Fill => self.fill_deadline,
        }
    }
}

/// What all repositories of the process share: the store, the mesh, and the fetches under way.
pub struct Fetcher {
    store: Arc<dyn ChunkStore>,
    disk: Disk,
    exchange: Arc<dyn Exchange>,
    settings: FetchSettings,
    flights: Mutex<Flights>,
    recent: Mutex<Recent>,
    /// By class: fills and prefetches would otherwise keep readers waiting.
    budgets: [(Arc<Semaphore>, u32); 3],
}

impl Fetcher {
    /// A fetch path over a store and a mesh.
    pub fn new(
        store: Arc<dyn ChunkStore>,
        exchange: Arc<dyn Exchange>,
        settings: FetchSettings,
    ) -> Arc<Self> {
        let units = settings.in_flight_bytes / u64::from(UNIT_BYTES);
        let units = u32::try_from(units).unwrap_or(u32::MAX >> 4).clamp(1, u32::MAX >> 4);
        let budget = |class| {
            let units = if class == Class::Prefetch { units.div_ceil(4) } else { units };
            (Arc::new(Semaphore::new(units as usize)), units)
        };
        Arc::new(Self {
            store,
            disk: Disk::new(settings.disk_deadline),
            exchange,
            flights: Mutex::default(),
            recent: Mutex::new(Recent::new(settings.recent_bytes)),
            budgets: [Class::Read, Class::Prefetch, Class::Fill].map(budget),
            settings,
        })
    }

    /// The source of one repository's chunks.
    pub fn repository(self: &Arc<Self>, repository: RepositoryName) -> FetchPath {
        FetchPath { fetcher: self.clone(), repository }
    }

    /// What is here: in the store, or lately refused by it.
    async fn held(&self, piece: &Piece) -> Option<Bytes> {
        let (id, offset, len) = (piece.chunk.id, piece.offset, piece.len);
        if piece.is_touch() {
            // A chunk of which nothing is wanted is not read, and what was found at start not hashed.
            let is_here = self.store.contains(&id) || lock(&self.recent).get(&id).is_some();
            return is_here.then(Bytes::new);
        }
        if len <= INLINE_READ_MAX_BYTES {
            let mut buffer = vec![0; len as usize];
            if self.store.read_now(&id, piece.chunk.plain_len, offset, &mut buffer) {
                return Some(buffer.into());
            }
        }
        let store = self.store.clone();
        let stored = if store.contains(&id) {
            // Whoever asks may be one of the few threads that answer a mount: it must not wait.
            self.disk.ask(move || store.read(&id, offset, len)).await.flatten()
        } else {
            // It only counts the miss; should it have come just now, the kernel has it in memory.
            store.read(&id, offset, len)
        };
        if stored.is_some() {
            return stored;
        }
        let recent = lock(&self.recent).get(&id)?;
        cut(&recent, piece).ok()
    }

    /// The part of what may be wished for at once that `chunk` takes. The semaphores are never closed.
    async fn part(&self, chunk: &ChunkRef, class: Class) -> Option<OwnedSemaphorePermit> {
        let (budget, units) = &self.budgets[class as usize];
        let cost = chunk.plain_len.div_ceil(UNIT_BYTES).clamp(1, *units);
        budget.clone().acquire_many_owned(cost).await.ok()
    }

    /// The fetch of `chunk`: the one that is under way, or a new one within the budget, of which `part` is its part already.
    async fn flight(
        &self,
        repository: &RepositoryName,
        chunk: ChunkRef,
        class: Class,
        deadline: Time,
        part: &mut Option<OwnedSemaphorePermit>,
    ) -> Flight {
        if let Some(flight) = lock(&self.flights).find(&chunk, class) {
            return flight;
        }
        let budget = match part.take() {
            Some(part) => Some(part),
            None => self.part(&chunk, class).await,
        };
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.find(&chunk, class) {
            return flight;
        }
        let (exchange, repository) = (self.exchange.clone(), repository.clone());
        let flight = async move {
            let outcome = exchange.obtain(&repository, chunk, class, deadline).await;
            drop(budget);
            outcome
        }
        // Whoever shares it later finds what happened under the one that began it.
        .in_current_span()
        .boxed()
        .shared();
        flights.add(chunk, class, &flight);
        flight
    }

    async fn fetch(
        &self,
        repository: &RepositoryName,
        piece: Piece,
        class: Class,
    ) -> Result<Bytes, SourceError> {
        let chunk = piece.chunk;
        // A long list of prefetches stands in line by itself: the time of each is counted from when its turn has come.
        let waits = class == Class::Prefetch && lock(&self.flights).find(&chunk, class).is_none();
        let mut part = if waits { self.part(&chunk, class).await } else { None };
        let began = ambient::now();
        let patience = self.settings.patience(class);
        let deadline = began + patience;
        let attempt = async {
            let mut last = ObtainError::Deadline("other readers gave up".to_owned());
            for _ in 0..JOINS_MAX {
                match self.flight(repository, chunk, class, deadline, &mut part).await.await {
                    // That fetch was begun for a reader with an earlier deadline.
                    Err(ObtainError::Deadline(detail)) if ambient::now() < deadline => {
                        last = ObtainError::Deadline(detail);
                        // Its entry goes when the last of its waiters has let go.
                        tokio::task::yield_now().await;
                    }
                    outcome => return outcome,
                }
            }
            Err(last)
        };
        let len = chunk.plain_len;
        let span =
            tracing::debug_span!("fetch", repo = %repository, chunk = %chunk.id, ?class, len, source = Empty);
        let outcome = tokio::time::timeout(patience, attempt)
            .instrument(span.clone())
            .await
            .unwrap_or_else(|_| Err(ObtainError::Deadline("the mesh did not answer".to_owned())));
        match outcome {
            Ok((bytes, from)) => {
                span.record("source", display(from));
                if !self.store.contains(&chunk.id) {
                    lock(&self.recent).put(chunk.id, bytes.clone());
                }
                cut(&bytes, &piece)
            }
            Err(ObtainError::Deadline(detail)) => {
                let waited = ambient::now().since(began).as_millis();
                let waited_ms = u64::try_from(waited).unwrap_or(u64::MAX);
                Err(SourceError::TimedOut { chunk: chunk.id, waited_ms, detail })
            }
            Err(ObtainError::Stopping) => Err(SourceError::Stopping),
            Err(error @ (ObtainError::NoSource(_) | ObtainError::TooMany)) => {
                Err(SourceError::Unavailable { chunk: chunk.id, detail: error.to_string() })
            }
        }
    }
}

/// The fetch path of one repository. Cheap to clone.
///
/// A read of what is here is ready at its first poll if the kernel has it in memory, it was verified before, and no piece is larger
/// than 1 MiB. All else is read on a thread that may wait for the disk.
#[derive(Clone)]
pub struct FetchPath {
    fetcher: Arc<Fetcher>,
    repository: RepositoryName,
}

impl ChunkSource for FetchPath {
    fn read(&self, pieces: Vec<Piece>, class: Class) -> BoxFuture<'_, Result<Vec<Bytes>, SourceError>> {
        async move {
            let fetcher = &*self.fetcher;
            let mut found = Vec::with_capacity(pieces.len());
            let mut missing = Vec::new();
            let passes_over = |piece: &Piece| class == Class::Prefetch && piece.is_touch();
            let mut passed_over = None;
            for (position, piece) in pieces.into_iter().enumerate() {
                if class != Class::Read && position % LOOKS_AT_ONCE == LOOKS_AT_ONCE - 1 {
                    tokio::task::yield_now().await;
                }
                match check(&piece) {
                    Err(error) if passes_over(&piece) => {
                        passed_over.get_or_insert(error);
                        found.push(Bytes::new());
                        continue;
                    }
                    checked => checked?,
                }
                let held = fetcher.held(&piece).await;
                if held.is_none() {
                    missing.push((position, piece));
                }
                found.push(held.unwrap_or_default());
            }
            let mut fetches = futures::stream::iter(missing)
                .map(|(position, piece)| async move {
                    match fetcher.fetch(&self.repository, piece, class).await {
                        Err(SourceError::Stopping) => Err(SourceError::Stopping),
                        Err(error) if passes_over(&piece) => Ok((position, Err(error))),
                        fetched => fetched.map(|bytes| (position, Ok(bytes))),
                    }
                })
                .buffer_unordered(fetcher.settings.at_once(class).max(1));
            while let Some((position, fetched)) = fetches.try_next().await? {
                match fetched {
                    Ok(bytes) => found[position] = bytes,
                    Err(error) => {
                        passed_over.get_or_insert(error);
                    }
                }
            }
            drop(fetches);
            passed_over.map_or(Ok(found), Err)
        }
        .boxed()
    }

    fn body(&self, chunks: &Arc<[ChunkRef]>) -> BoxFuture<'_, Option<Arc<File>>> {
        let chunks = chunks.clone();
        async move {
            let fetcher = &*self.fetcher;
            if fetcher.disk.is_ignored() {
                return None;
            }
            match fetcher.store.body_now(&chunks) {
                Ok(body) => body,
                Err(MayWait) => {
                    let store = fetcher.store.clone();
                    fetcher.disk.ask(move || store.body(&chunks)).await.flatten()
                }
            }
        }
        .boxed()
    }

    fn origin(&self, chunk: &ContentId) -> Option<&'static str> {
        self.fetcher.store.origin(chunk).map(Origin::word)
    }
}

fn check(piece: &Piece) -> Result<(), SourceError> {
    let invalid = |detail| Err(SourceError::Invalid { chunk: piece.chunk.id, detail });
    if let Err(detail) = check_row(&piece.chunk) {
        return invalid(detail);
    }
    if u64::from(piece.offset) + u64::from(piece.len) > u64::from(piece.chunk.plain_len) {
        return invalid(format!("{} bytes at {} of {}", piece.len, piece.offset, piece.chunk.plain_len));
    }
    Ok(())
}

/// The piece of a whole chunk, without copying it if it is long.
fn cut(chunk: &Bytes, piece: &Piece) -> Result<Bytes, SourceError> {
    if chunk.len() != piece.chunk.plain_len as usize {
        let detail = format!("it has {} bytes, its row says {}", chunk.len(), piece.chunk.plain_len);
        return Err(SourceError::Invalid { chunk: piece.chunk.id, detail });
    }
    let piece_of = chunk.slice(piece.offset as usize..piece.offset as usize + piece.len as usize);
    let is_short = piece.len <= SHORT_BYTES && piece.len < piece.chunk.plain_len;
    Ok(if is_short { Bytes::copy_from_slice(&piece_of) } else { piece_of })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
