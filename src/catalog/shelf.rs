//! Catalogs in memory: loaded once however many wait, kept within a budget that many trees share; and where each inode lies.

use super::inode_table::{InodeTable, Location};
use super::read::CatalogError;
use super::resident::Resident;
use super::row::Asked;
use super::{CatalogIndex, Inode, PublishedTrace, TreeError};
use crate::ambient;
use crate::chunk::{ChunkSource, Eagerness, Nearby, Piece, SourceError};
use crate::model::{ChunkRef, Class, ContentId};
use futures::FutureExt as _;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};

/// Catalogs longer than this are read on a thread that may block: it takes tens of milliseconds.
const INLINE_MAX_BYTES: usize = 1 << 20;

/// How catalogs are fetched ahead: who enters three directories with catalogs of their own walks the tree (guess). Catalogs have some
/// 100 KiB, so the first step takes one or two along.
const EAGERNESS: Eagerness = Eagerness { patience: 2, first_bytes: 256 << 10, most_bytes: 2 << 20 };
/// Longer catalogs are not fetched ahead: some 30 000 entries (guess).
const BESIDE_MAX_BYTES: u32 = 4 << 20;

/// A catalog of the revision, in memory or not.
#[derive(Debug)]
struct Slot {
    chunk: ChunkRef,
    here: RwLock<Option<Arc<Resident>>>,
    /// The budget's clock when it was last used.
    used: AtomicU64,
    /// The inode of each row, since it was first loaded. Its hash says that it is still the same.
    inodes: OnceLock<Arc<[Inode]>>,
    /// The directory whose entries it holds. Known before it is first loaded, for the way to it leads through that
    /// directory; where two have the same entries, one of them.
    directory: OnceLock<Inode>,
    /// Loads that ended, well or badly.
    attempts: AtomicU64,
    /// Held while one loads for all; how the last load failed.
    loading: tokio::sync::Mutex<Option<TreeError>>,
}

impl Slot {
    fn new(chunk: ChunkRef) -> Self {
        Self {
            chunk,
            here: RwLock::default(),
            used: AtomicU64::new(0),
            inodes: OnceLock::new(),
            directory: OnceLock::new(),
            attempts: AtomicU64::new(0),
            loading: tokio::sync::Mutex::default(),
        }
    }

    fn set(&self, catalog: Option<Arc<Resident>>) -> Option<Arc<Resident>> {
        std::mem::replace(&mut *self.here.write().unwrap_or_else(PoisonError::into_inner), catalog)
    }
}

/// What catalogs in memory may take, over all trees that share it.
///
/// Whoever loads a catalog and passes the bound takes down those that were not used for longest, whose ever they are: a tree that nobody
/// looks into gives its memory to those that are in use. A look-up only reads the clock, which moves on when a catalog is loaded:
/// nothing needs to be told apart that happened between two loads, but whether a catalog was used since.
#[derive(Debug)]
pub struct CatalogBudget {
    max_bytes: usize,
    used_bytes: AtomicUsize,
    clock: AtomicU64,
    /// All shelves that share it. Held while catalogs are taken down.
    shelves: Mutex<Vec<Weak<Shelf>>>,
}

impl CatalogBudget {
    /// A budget of so many bytes. One catalog, the newest, stays however large.
    pub fn new(max_bytes: usize) -> Arc<Self> {
        let (used_bytes, clock) = (AtomicUsize::new(0), AtomicU64::new(0));
        Arc::new(Self { max_bytes, used_bytes, clock, shelves: Mutex::default() })
    }

    /// Bytes that catalogs in memory take now.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }

    fn add(&self, shelf: &Arc<Shelf>) {
        let mut shelves = lock(&self.shelves);
        shelves.retain(|shelf| shelf.strong_count() > 0);
        shelves.push(Arc::downgrade(shelf));
    }

    /// The moment of a load.
    fn loaded(&self) -> u64 {
        self.clock.fetch_add(2, Ordering::Relaxed) + 2
    }

    /// The moment of a use: after the last load, and before the next.
    fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed) + 1
    }

    /// Takes down what was not used for longest until the rest fits. `newest` of `shelf` stays.
    fn make_room(&self, shelf: &Shelf, newest: u32) {
        if self.used_bytes() <= self.max_bytes {
            return;
        }
        let shelves: Vec<Arc<Shelf>> = {
            let shelves = lock(&self.shelves);
            shelves.iter().filter_map(Weak::upgrade).collect()
        };
        // Some ten thousand catalogs of ordinary size fit the budget, and a load takes far longer than this.
        let mut oldest: Vec<(u64, usize, u32)> = Vec::new();
        for (at, other) in shelves.iter().enumerate() {
            let is_newest = |number: u32| std::ptr::eq(&**other, shelf) && number == newest;
            let numbers = lock(&other.kept).numbers.clone();
            let others = numbers.into_iter().filter(|number| !is_newest(*number));
            oldest.extend(others.map(|number| (other.slot(number).used.load(Ordering::Relaxed), at, number)));
        }
        oldest.sort_unstable();
        for (_, at, number) in oldest {
            if self.used_bytes() <= self.max_bytes {
                break;
            }
            shelves[at].take_down(number);
        }
    }
}

/// Which catalogs are in memory.
#[derive(Debug, Default)]
struct Kept {
    numbers: Vec<u32>,
    bytes: usize,
}

/// All catalogs of a revision, by number: those of the index in its order, then the root catalog.
pub(super) struct Shelf {
    source: Arc<dyn ChunkSource>,
    index: Arc<CatalogIndex>,
    top: ChunkRef,
    budget: Arc<CatalogBudget>,
    /// A slot for each catalog that was ever named.
    slots: Box<[OnceLock<Box<Slot>>]>,
    inodes: RwLock<InodeTable>,
    /// [`Asked`] of all catalogs that were ever loaded.
    asked: AtomicU8,
    kept: Mutex<Kept>,
    nearby: Arc<Mutex<Nearby>>,
}

impl Drop for Shelf {
    fn drop(&mut self) {
        self.budget.used_bytes.fetch_sub(lock(&self.kept).bytes, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No change under this lock can be left half-done by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn damaged(id: &ContentId, error: &CatalogError) -> TreeError {
    TreeError::Damaged(format!("{id}: {error}"))
}

impl Shelf {
    /// The catalogs of `index` and the root catalog `top`. `budget` bounds those in memory.
    pub(super) fn new(
        source: Arc<dyn ChunkSource>,
        index: CatalogIndex,
        top: ChunkRef,
        budget: &Arc<CatalogBudget>,
    ) -> Arc<Self> {
        let slots = (0..=index.catalogs().len()).map(|_| OnceLock::new()).collect();
        let shelf = Arc::new(Self {
            source,
            index: Arc::new(index),
            top,
            budget: Arc::clone(budget),
            slots,
            inodes: RwLock::default(),
            asked: AtomicU8::new(0),
            kept: Mutex::default(),
            nearby: Arc::new(Mutex::new(Nearby::new(EAGERNESS))),
        });
        budget.add(&shelf);
        shelf
    }

    /// Number of the root catalog.
    pub(super) fn top(&self) -> u32 {
        u32::try_from(self.index.catalogs().len()).expect("an index is bounded far below")
    }

    fn slot(&self, number: u32) -> &Slot {
        let at = number as usize;
        let chunk = || self.index.catalogs().get(at).copied().unwrap_or(self.top);
        self.slots[at].get_or_init(|| Box::new(Slot::new(chunk())))
    }

    /// Where an inode lies, if a catalog that was ever loaded has it.
    pub(super) fn locate(&self, inode: Inode) -> Option<Location> {
        self.inodes.read().unwrap_or_else(PoisonError::into_inner).find(inode)
    }

    /// The traces that the index names.
    pub(super) fn traces(&self) -> &[PublishedTrace] {
        self.index.traces()
    }

    /// Extended attributes that entries of the catalogs that were ever loaded have, of those for which programs ask everywhere.
    pub(super) fn asked(&self) -> Asked {
        Asked(self.asked.load(Ordering::Relaxed))
    }

    /// The directory whose entries a nested catalog holds.
    pub(super) fn directory(&self, number: u32) -> Option<Inode> {
        self.slot(number).directory.get().copied()
    }

    /// The catalog. Ready at the first poll when it is in memory.
    pub(super) async fn get(&self, number: u32) -> Result<Arc<Resident>, TreeError> {
        match self.here(number) {
            Some(catalog) => Ok(catalog),
            // Rare, and large: kept out of the futures of those who need not wait.
            None => Box::pin(self.load_for_all(number)).await,
        }
    }

    /// The catalog, if it is in memory.
    pub(super) fn here(&self, number: u32) -> Option<Arc<Resident>> {
        let slot = self.slot(number);
        let catalog = slot.here.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        slot.used.store(self.budget.now(), Ordering::Relaxed);
        Some(catalog)
    }

    /// Whether a catalog can be had without asking others: it is in memory, or its source has it.
    pub(super) fn is_here(&self, number: u32) -> bool {
        self.here(number).is_some() || self.source.origin(&self.slot(number).chunk.id).is_some()
    }

    async fn load_for_all(&self, number: u32) -> Result<Arc<Resident>, TreeError> {
        let slot = self.slot(number);
        let attempts_before = slot.attempts.load(Ordering::SeqCst);
        let mut failure = slot.loading.lock().await;
        if let Some(catalog) = self.here(number) {
            return Ok(catalog);
        }
        // The load that this call waited for failed: so did this call. Trying again for each waiter
        // in turn would make the last one wait for all of them.
        if slot.attempts.load(Ordering::SeqCst) != attempts_before
            && let Some(error) = &*failure
        {
            return Err(error.clone());
        }
        let outcome = self.load(number).await;
        slot.attempts.fetch_add(1, Ordering::SeqCst);
        *failure = outcome.as_ref().err().cloned();
        outcome
    }

    async fn load(&self, number: u32) -> Result<Arc<Resident>, TreeError> {
        let slot = self.slot(number);
        let id = slot.chunk.id;
        let mut reading = self.source.read(vec![Piece::whole(slot.chunk)], Class::Read);
        // What is here is ready at once.
        let ready = (&mut reading).now_or_never();
        self.fetch_beside(&slot.chunk, ready.is_none());
        let pieces = match ready {
            Some(pieces) => pieces?,
            None => reading.await?,
        };
        let bytes = pieces.into_iter().next().unwrap_or_default();
        let is_long = bytes.len() > INLINE_MAX_BYTES;
        let (index, known) = (Arc::clone(&self.index), slot.inodes.get().is_some());
        let number_of = move |id: &ContentId| index.position(id).and_then(|at| u32::try_from(at).ok());
        let read = move || Resident::load(&bytes, known, number_of);
        let catalog = match tokio::runtime::Handle::try_current().ok().filter(|_| is_long) {
            None => read(),
            Some(runtime) => {
                runtime.spawn_blocking(read).await.map_err(|_| TreeError::Source(SourceError::Stopping))?
            }
        };
        let mut catalog = catalog.map_err(|error| damaged(&id, &error))?;
        match slot.inodes.get() {
            Some(inodes) if catalog.share_inodes(inodes) => {}
            Some(_) => return Err(TreeError::Damaged(format!("{id}: it was read otherwise before"))),
            None => {
                let entered = self.enter(number, &catalog);
                entered.map_err(|detail| TreeError::Damaged(format!("{id}: {detail}")))?;
            }
        }
        let catalog = Arc::new(catalog);
        self.keep(number, &catalog);
        Ok(catalog)
    }

    /// Has catalogs fetched that lie beside one that is being loaded, if others near it had to be fetched before: a walk takes
    /// many in one request.
    fn fetch_beside(&self, chunk: &ChunkRef, is_missing: bool) {
        // Before anything is noted: what nobody fetches must not count as asked for.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let segment = chunk.place.segment;
        let runs = lock(&self.nearby).read(&chunk.place, is_missing, ambient::now());
        if runs.is_empty() {
            return;
        }
        let catalogs = self.index.catalogs();
        let is_near = |other: &&ChunkRef| {
            let place = &other.place;
            place.segment == segment
                && other.plain_len <= BESIDE_MAX_BYTES
                && runs.iter().any(|run| run.contains(&place.offset))
        };
        let mut near: Vec<ChunkRef> = catalogs.iter().filter(is_near).copied().collect();
        near.sort_unstable_by_key(|other| other.place.offset);
        let pieces = near.into_iter().map(Piece::touch).collect();
        let (source, nearby) = (Arc::clone(&self.source), Arc::clone(&self.nearby));
        runtime.spawn(async move {
            // Nobody is told of a failure: it shows when it is needed.
            if source.read(pieces, Class::Prefetch).await.is_err() {
                lock(&nearby).failed(&segment, &runs, ambient::now());
            }
        });
    }

    /// Notes what stays known of a catalog when it is taken down. The caller holds its `loading`.
    fn enter(&self, number: u32, catalog: &Resident) -> Result<(), String> {
        // Before anybody can find an entry of it.
        self.asked.fetch_or(catalog.asked().0, Ordering::Relaxed);
        self.inodes.write().unwrap_or_else(PoisonError::into_inner).add(number, catalog.inodes())?;
        for (directory, nested) in catalog.nested() {
            self.slot(nested).directory.get_or_init(|| directory);
        }
        self.slot(number).inodes.get_or_init(|| Arc::clone(catalog.inodes()));
        Ok(())
    }

    /// Puts a catalog on the shelf, and has others taken down if there are too many.
    fn keep(&self, number: u32, catalog: &Arc<Resident>) {
        {
            let mut kept = lock(&self.kept);
            let slot = self.slot(number);
            slot.used.store(self.budget.loaded(), Ordering::Relaxed);
            slot.set(Some(Arc::clone(catalog)));
            kept.bytes += catalog.bytes();
            kept.numbers.push(number);
            self.budget.used_bytes.fetch_add(catalog.bytes(), Ordering::Relaxed);
        }
        // Without the lock: others may be making room on this shelf.
        self.budget.make_room(self, number);
    }

    /// Takes a catalog down, if it is on the shelf.
    fn take_down(&self, number: u32) {
        let mut kept = lock(&self.kept);
        let Some(at) = kept.numbers.iter().position(|known| *known == number) else { return };
        kept.numbers.swap_remove(at);
        if let Some(catalog) = self.slot(number).set(None) {
            kept.bytes -= catalog.bytes();
            self.budget.used_bytes.fetch_sub(catalog.bytes(), Ordering::Relaxed);
        }
    }

    /// Catalogs that are named but were never loaded, at most `most`, without those for which `except` holds.
    pub(super) fn never_loaded(&self, most: usize, except: impl Fn(u32) -> bool) -> Vec<u32> {
        let named = (0..).zip(self.slots.iter()).filter_map(|(number, slot)| Some((number, slot.get()?)));
        let fresh = named.filter(|(_, slot)| slot.inodes.get().is_none());
        fresh.map(|(number, _)| number).filter(|number| !except(*number)).take(most).collect()
    }

    /// Catalogs in memory and their bytes; inodes that are known and the bytes of their table.
    pub(super) fn memory(&self) -> [usize; 4] {
        let (catalogs, catalog_bytes) = {
            let kept = lock(&self.kept);
            (kept.numbers.len(), kept.bytes)
        };
        let inodes = self.inodes.read().unwrap_or_else(PoisonError::into_inner);
        [catalogs, catalog_bytes, inodes.len(), inodes.bytes()]
    }

    /// The chunk of a catalog, for messages.
    pub(super) fn chunk(&self, number: u32) -> ContentId {
        self.slot(number).chunk.id
    }
}
