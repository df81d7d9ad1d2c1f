//! The disk cache as others see it, and how it is opened and closed.

use super::books::Books;
use super::files::Files;
use super::flush::FLUSH_EVERY;
use super::index::{Index, Slot, State};
use super::inner::{Inner, Writer, lock};
use super::look::Scrub;
use super::noted::Noted;
use super::pack::Pack;
use super::pins::Pins;
use super::room::PACK_TARGET_BYTES;
use super::{
    CacheConfig, CacheError, CacheStatistics, Checked, CheckedPart, Cleaned, PinError, PinInfo, UnitInfo,
};
use crate::ambient;
use crate::model::{Algorithm, ChunkRef, ContentId};
use crate::store::{ChunkStore, MayWait, Origin, StoreError};
use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

/// Plain chunks of all repositories on this machine's disk.
pub struct DiskCache {
    pub(super) inner: Arc<Inner>,
    /// Completes bodies. Ends with the cache.
    worker: Option<JoinHandle<()>>,
}

impl DiskCache {
    /// Opens the cache in `folder`, which is made if need be, and reads the headers of all packs and the lists of all
    /// bodies.
    ///
    /// # Errors
    /// [`CacheError`] when another process has it, the quota is out of bounds, or the folder cannot
    /// be used.
    pub fn open(folder: &Path, config: CacheConfig) -> Result<Self, CacheError> {
        if !(CacheConfig::QUOTA_MIN_BYTES..=CacheConfig::QUOTA_MAX_BYTES).contains(&config.quota_bytes) {
            return Err(CacheError::Quota { quota_bytes: config.quota_bytes });
        }
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |source| CacheError::Io { path, source }
        };
        let files = Files::new(folder);
        let opened = lock_folder(folder).and_then(|lock| {
            if flock(&lock, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
                return Ok(None);
            }
            let (index, next_number) = load(folder, &files)?;
            Ok(Some((lock, index, next_number)))
        });
        let (lock, index, next_number) = match opened {
            Ok(Some((lock, index, next_number))) => (Some(lock), index, next_number),
            Ok(None) => return Err(CacheError::InUse { path: folder.display().to_string() }),
            Err(error) if is_fault_of_the_disk(&error) => {
                tracing::error!(
                    cache = %folder.display(),
                    "the cache's disk cannot be used: {error}; nothing is cached until this is mended and the agent restarted"
                );
                (None, Index::new(Arc::clone(&files)), 0)
            }
            Err(error) => return Err(failed(folder)(error)),
        };
        let pins = Pins::load(folder);
        let mut noted = Noted::default();
        noted.set_pinned(pins.bodies());
        let inner = Arc::new(Inner {
            folder: folder.to_owned(),
            config,
            index: RwLock::new(index),
            writer: Mutex::new(Writer::new(next_number, lock.is_none())),
            noted: Mutex::new(noted),
            wake: Condvar::new(),
            stopping: AtomicBool::new(false),
            files,
            next_body: AtomicU32::new(0),
            scrub: Mutex::new(Scrub::default()),
            pins: Mutex::new(pins),
            books: Mutex::new(Books::default()),
            listener: Mutex::default(),
            read_warned: Mutex::default(),
            distrusted_until: AtomicU64::new(0),
            flush_at: Mutex::new(ambient::now() + FLUSH_EVERY),
            doubted: Mutex::default(),
            _lock: lock,
        });
        if inner._lock.is_some()
            && let Err(error) = inner.load_bodies()
        {
            tracing::warn!(cache = %folder.display(), "its bodies cannot be listed; they are left out, and not counted in the quota, until the next start: {error}");
        }
        inner.shrink_to_the_quota();
        let working = Arc::clone(&inner);
        let worker = std::thread::Builder::new().name("cache".to_owned()).spawn(move || working.work());
        // Without it, files are read through the agent and not by the kernel.
        let worker =
            worker.inspect_err(|error| tracing::warn!("the cache's worker cannot run: {error}")).ok();
        Ok(Self { inner, worker })
    }

    /// Counts a chunk that was obtained from `origin`, whether or not it could be stored.
    ///
    /// Each distinct chunk is counted once a run, whoever notes it: `insert` does for what it
    /// stores; call this for what it refused.
    pub fn note_obtained(&self, id: &ContentId, plain_len: u32, origin: Origin) {
        lock(&self.inner.books).note_refused(id, plain_len, origin);
    }

    /// What the cache holds and has done.
    pub fn statistics(&self) -> CacheStatistics {
        self.inner.statistics()
    }

    /// Makes what was inserted survive a power cut. Call it at a clean shutdown.
    ///
    /// # Errors
    /// When the disk fails; what is not safe is then found by its hash at the next start.
    pub fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    /// What lies where.
    pub fn units(&self) -> Vec<UnitInfo> {
        self.inner.units()
    }

    /// Hashes the chunks of the unit with this name, as [`DiskCache::units`] has it; `None` when there is none. What is
    /// damaged is dropped, and fetched again when it is read next. Begins at `from`: 0, or what the part before named. Ends with
    /// the chunk with which `most_bytes` were hashed or `most_time` is over.
    pub fn verify(&self, unit: &str, from: u32, most_bytes: u64, most_time: Duration) -> Option<CheckedPart> {
        self.inner.verify(unit, from, most_bytes, most_time)
    }

    /// Goes on with the scrub, until about `most_bytes` were read: first what was not verified in this run, then
    /// everything, round after round. Called again and again, at the pace that the disk may be used.
    pub fn scrub(&self, most_bytes: u64) -> Checked {
        self.inner.scrub(most_bytes)
    }

    /// Removes everything that is neither pinned nor in use.
    pub fn clean(&self) -> Cleaned {
        self.inner.clean()
    }

    /// Keeps the files of these lists of chunks from eviction, under a name and in place of what was pinned under it. They
    /// need not be here yet: [`DiskCache::gather`] each list, and then fetch what it lacks. `version` says to whoever asks
    /// of what the lists were made. What was pinned under the name before stays until [`DiskCache::end_replaced`], as far as there
    /// is room for both.
    ///
    /// # Errors
    /// [`PinError`]; nothing has changed then.
    pub fn pin(&self, name: &str, version: u64, lists: &[Arc<[ChunkRef]>]) -> Result<(), PinError> {
        self.inner.pin(name, version, lists, false)
    }

    /// Pins catalogs, which are counted apart from all else: they are little, and without them nothing else is of use.
    ///
    /// # Errors
    /// As [`DiskCache::pin`].
    pub fn pin_catalogs(&self, name: &str, version: u64, lists: &[Arc<[ChunkRef]>]) -> Result<(), PinError> {
        self.inner.pin(name, version, lists, true)
    }

    /// Lets go of what was pinned under a name before, where all that is pinned under it now is there and verified.
    ///
    /// # Errors
    /// [`PinError::Unread`] and [`PinError::Disk`].
    pub fn end_replaced(&self) -> Result<(), PinError> {
        self.inner.end_replaced()
    }

    /// Ends a pin. False when there is none of that name. What was pinned stays until room is needed.
    ///
    /// # Errors
    /// [`PinError::Unread`] and [`PinError::Disk`].
    pub fn unpin(&self, name: &str) -> Result<bool, PinError> {
        self.inner.unpin(name)
    }

    /// All pins.
    pub fn pins(&self) -> Vec<PinInfo> {
        self.inner.pins()
    }

    /// Notes one of the lists of a pin: what it lacks goes into its body when it comes. True when all of it is there and
    /// verified.
    pub fn gather(&self, chunks: &Arc<[ChunkRef]>) -> bool {
        self.inner.gather(chunks)
    }

    /// Waits until the worker has nothing to do.
    #[cfg(test)]
    pub(super) fn settle(&self) {
        while lock(&self.inner.noted).has_work() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

impl ChunkStore for DiskCache {
    fn origin(&self, id: &ContentId) -> Option<Origin> {
        self.inner.read_index().find(id).map(|(slot, _)| slot.state().origin())
    }

    fn contains(&self, id: &ContentId) -> bool {
        self.inner.contains(id)
    }

    fn read(&self, id: &ContentId, offset: u32, len: u32) -> Option<Bytes> {
        self.inner.deliver(id, Some((offset, len)))
    }

    fn read_all(&self, id: &ContentId) -> Option<Bytes> {
        self.inner.deliver(id, None)
    }

    fn read_now(&self, id: &ContentId, plain_len: u32, offset: u32, buffer: &mut [u8]) -> bool {
        self.inner.read_now(id, plain_len, offset, buffer)
    }

    fn body(&self, chunks: &Arc<[ChunkRef]>) -> Option<Arc<File>> {
        self.inner.body(chunks, true).ok().flatten()
    }

    fn body_now(&self, chunks: &Arc<[ChunkRef]>) -> Result<Option<Arc<File>>, MayWait> {
        self.inner.body(chunks, false)
    }

    fn insert(&self, id: &ContentId, bytes: &Bytes, origin: Origin) -> Result<(), StoreError> {
        self.inner.insert(id, bytes, origin)
    }

    fn on_removal(&self, listener: Box<dyn Fn(&ContentId) + Send + Sync>) {
        *lock(&self.inner.listener) = Some(listener.into());
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        {
            // Under the lock, so that the worker does not begin to wait just now.
            let _noted = lock(&self.inner.noted);
            self.inner.stopping.store(true, Ordering::Relaxed);
            self.inner.wake.notify_all();
        }
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
        if let Err(error) = self.sync() {
            tracing::warn!(cache = %self.inner.folder.display(), "not everything could be synced: {error}");
        }
        self.inner.files.close_all();
    }
}

/// The file that keeps other processes away, in a folder that is made if need be.
fn lock_folder(folder: &Path) -> io::Result<File> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join("lock");
    match OpenOptions::new().create(true).truncate(false).write(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            File::open(&path).map_err(|_| error)
        }
        opened => opened,
    }
}

/// What an operator did not get wrong: the disk is full, read-only or broken.
fn is_fault_of_the_disk(error: &io::Error) -> bool {
    let faults = [Errno::IO, Errno::ROFS, Errno::NOSPC, Errno::DQUOT, Errno::UCLEAN];
    faults.iter().any(|fault| error.raw_os_error() == Some(fault.raw_os_error()))
}

/// Reads the headers of all packs in `folder`, cuts torn ends off and removes empty packs. Also says which number comes after
/// those of all files there, whether they could be read or not.
fn load(folder: &Path, files: &Arc<Files>) -> io::Result<(Index, u32)> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        numbers.extend(entry?.file_name().to_str().and_then(Pack::number_of));
    }
    numbers.sort_unstable();
    let mut index = Index::new(Arc::clone(files));
    let mut last_is_whole = false;
    for number in &numbers {
        // One bad pack must not keep the others from serving.
        last_is_whole = match Pack::open(folder, *number) {
            Ok(pack) => load_pack(pack, &mut index)
                .inspect_err(|error| {
                    tracing::warn!(cache = %folder.display(), number, "a pack, or what follows in it, is left out: {error}");
                })
                .is_ok(),
            Err(error) => {
                leave_unopened(folder, *number, &mut index, &error);
                false
            }
        };
    }
    // Packs of earlier runs are not appended to when full; the last one usually is not.
    if let Some(last) = index.newest().filter(|pack| last_is_whole && pack.bytes() < PACK_TARGET_BYTES) {
        index.set_active(Some(last.number));
    }
    Ok((index, numbers.last().map_or(0, |last| last + 1)))
}

/// A pack that cannot be opened may be mended by somebody, so it stays; and what is on the disk counts.
fn leave_unopened(folder: &Path, number: u32, index: &mut Index, error: &io::Error) {
    let bytes = Pack::bytes_unopened(folder, number);
    if let Some(bytes) = bytes {
        index.add_unopened(number, bytes);
    }
    tracing::warn!(
        cache = %folder.display(), number, counted_bytes = bytes.unwrap_or_default(),
        "a pack cannot be opened and is left alone, but counted in the quota until the next start: {error}"
    );
}

fn load_pack(pack: Pack, index: &mut Index) -> io::Result<()> {
    let number = pack.number;
    let mut slots = Vec::new();
    let scanned = pack.scan(|found| {
        // Only BLAKE3 can be verified here. Others are fetched again.
        let verifiable = found.header.id.algorithm() == Algorithm::Blake3;
        if let Some(offset) = u32::try_from(found.offset).ok().filter(|_| verifiable) {
            let slot = Slot::new(number, offset, found.header.plain_len, State::Unverified);
            slots.push((found.header.id, slot));
        }
    });
    if let Ok(end) = scanned {
        if end < pack.bytes() {
            tracing::info!(
                pack = %pack.path().display(), torn_bytes = pack.bytes() - end,
                "the end of a pack was torn or damaged and is cut off"
            );
            pack.cut(end);
        }
        if end == 0 {
            return pack.unlink();
        }
    }
    // One that the disk does not give back counts all the same, so that it leaves when room is needed.
    index.add_pack(Arc::new(pack));
    slots.iter().for_each(|(id, slot)| index.put(id, *slot));
    scanned.map(drop)
}
