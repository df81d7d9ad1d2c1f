//! Opened catalogs: loaded once however many wait, kept within a budget of memory.

use super::read::{Catalog, CatalogError};
use super::{CatalogIndex, TreeError};
use crate::chunk::{ChunkSource, Piece};
use crate::model::{ChunkRef, Class, ContentId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What an opened catalog costs beside its bytes: SQLite's connection with its look-aside memory and
/// statements (guess, from SQLite's default of 100 slots of 1 200 bytes).
const CONNECTION_BYTES: usize = 160 << 10;
/// Catalogs longer than this are opened on a thread that may block: looking through them takes tens of milliseconds.
const INLINE_MAX_BYTES: usize = 1 << 20;

/// A catalog of the revision, opened or not.
#[derive(Debug)]
pub(super) struct Slot {
    chunk: ChunkRef,
    open: Mutex<Option<Arc<Catalog>>>,
    /// The shelf's clock when it was last used.
    used: AtomicU64,
    /// SQLite has looked through it; its hash says that it is still the same.
    checked: AtomicBool,
    /// Loads that ended, well or badly.
    attempts: AtomicU64,
    /// Held while one loads for all; how the last load failed.
    loading: tokio::sync::Mutex<Option<TreeError>>,
}

#[derive(Debug, Default)]
struct Resident {
    slots: Vec<Arc<Slot>>,
    bytes: usize,
}

/// All catalogs of a revision. Its table holds a slot for each that was ever entered.
pub(super) struct Shelf {
    source: Arc<dyn ChunkSource>,
    index: CatalogIndex,
    budget_bytes: usize,
    clock: AtomicU64,
    slots: Mutex<HashMap<ContentId, Arc<Slot>>>,
    resident: Mutex<Resident>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No change under these locks can be left half-done by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn damaged(id: &ContentId, error: &CatalogError) -> TreeError {
    TreeError::Damaged(format!("{id}: {error}"))
}

impl Shelf {
    pub(super) fn new(source: Arc<dyn ChunkSource>, index: CatalogIndex, budget_bytes: usize) -> Self {
        Self {
            source,
            index,
            budget_bytes,
            clock: AtomicU64::new(1),
            slots: Mutex::default(),
            resident: Mutex::default(),
        }
    }

    /// The slot of a catalog that the index places.
    pub(super) fn slot(&self, id: &ContentId) -> Result<Arc<Slot>, TreeError> {
        if let Some(slot) = lock(&self.slots).get(id) {
            return Ok(Arc::clone(slot));
        }
        let chunk = self.index.find(id);
        let chunk =
            chunk.ok_or_else(|| TreeError::Damaged(format!("{id}: the catalog index does not place it")))?;
        Ok(self.slot_at(chunk))
    }

    /// The slot of a catalog whose place is known.
    pub(super) fn slot_at(&self, chunk: ChunkRef) -> Arc<Slot> {
        let fresh = || {
            Arc::new(Slot {
                chunk,
                open: Mutex::default(),
                used: AtomicU64::new(0),
                checked: AtomicBool::new(false),
                attempts: AtomicU64::new(0),
                loading: tokio::sync::Mutex::default(),
            })
        };
        Arc::clone(lock(&self.slots).entry(chunk.id).or_insert_with(fresh))
    }

    /// The opened catalog. Ready at the first poll when it is in memory.
    pub(super) async fn get(&self, slot: &Arc<Slot>) -> Result<Arc<Catalog>, TreeError> {
        if let Some(catalog) = self.opened(slot) {
            return Ok(catalog);
        }
        let attempts_before = slot.attempts.load(Ordering::SeqCst);
        let mut failure = slot.loading.lock().await;
        if let Some(catalog) = self.opened(slot) {
            return Ok(catalog);
        }
        // The load that this call waited for failed: so did this call. Trying again for each waiter
        // in turn would make the last one wait for all of them.
        if slot.attempts.load(Ordering::SeqCst) != attempts_before
            && let Some(error) = &*failure
        {
            return Err(error.clone());
        }
        let outcome = self.load(slot).await;
        slot.attempts.fetch_add(1, Ordering::SeqCst);
        *failure = outcome.as_ref().err().cloned();
        outcome
    }

    fn opened(&self, slot: &Slot) -> Option<Arc<Catalog>> {
        let catalog = lock(&slot.open).clone()?;
        slot.used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        Some(catalog)
    }

    async fn load(&self, slot: &Arc<Slot>) -> Result<Arc<Catalog>, TreeError> {
        let id = slot.chunk.id;
        let pieces = self.source.read(vec![Piece::whole(slot.chunk)], Class::Read).await?;
        let bytes = pieces.into_iter().next().unwrap_or_default();
        let checked = slot.checked.load(Ordering::Relaxed);
        let runtime = tokio::runtime::Handle::try_current().ok().filter(|_| bytes.len() > INLINE_MAX_BYTES);
        let catalog = match runtime {
            None => Catalog::open_again(&bytes, checked),
            Some(runtime) => runtime
                .spawn_blocking(move || Catalog::open_again(&bytes, checked))
                .await
                .map_err(|_| TreeError::Source(crate::chunk::SourceError::Stopping))?,
        };
        let catalog = Arc::new(catalog.map_err(|error| damaged(&id, &error))?);
        slot.checked.store(true, Ordering::Relaxed);
        self.keep(slot, &catalog);
        Ok(catalog)
    }

    /// Puts a catalog on the shelf and takes down those that were not used for longest.
    fn keep(&self, slot: &Arc<Slot>, catalog: &Arc<Catalog>) {
        let mut resident = lock(&self.resident);
        *lock(&slot.open) = Some(Arc::clone(catalog));
        slot.used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        resident.bytes += cost(catalog);
        resident.slots.push(Arc::clone(slot));
        while resident.bytes > self.budget_bytes && resident.slots.len() > 1 {
            // The newest stays, however large. At most a few thousand catalogs fit the budget.
            let others = resident.slots[..resident.slots.len() - 1].iter().enumerate();
            let oldest =
                others.min_by_key(|(_, slot)| slot.used.load(Ordering::Relaxed)).map_or(0, |(at, _)| at);
            let slot = resident.slots.remove(oldest);
            if let Some(catalog) = lock(&slot.open).take() {
                resident.bytes -= cost(&catalog);
            }
        }
    }

    /// Catalogs in memory now.
    #[cfg(test)]
    pub(super) fn resident(&self) -> usize {
        lock(&self.resident).slots.len()
    }
}

fn cost(catalog: &Catalog) -> usize {
    catalog.bytes() + CONNECTION_BYTES
}
