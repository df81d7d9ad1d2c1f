//! The disk cache: packs on disk, the table in memory, and who may touch what when.
//!
//! Two locks, always taken in this order: `writer` (one appends, evicts or rotates at a time) and
//! `index`. Neither is held while a reader reads, while a pack is synced, or while the listener runs.

use super::books::Books;
use super::index::{Index, Slot, State};
use super::pack::{Found, Pack};
use super::policy::{self, Limits, Verdict};
use super::record::Header;
use super::{CacheConfig, CacheError, CacheStatistics};
use crate::ambient;
use crate::model::{Algorithm, ContentId, Time, limits};
use crate::store::{ChunkStore, Origin, StoreError};
use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

/// Bytes after which a pack is closed and the next begun (design: about 64 MiB).
const PACK_TARGET_BYTES: u64 = 64 << 20;
/// Packs that a quota is divided into when 64 MiB would make more: each is an open file (guess).
const PACKS_PER_QUOTA: u64 = 512;
/// Packs that even a small quota is divided into, so that evicting one leaves something (guess).
const PACKS_AT_LEAST: u64 = 8;
/// Most packs, whatever their sizes: twice the number that a quota is divided into.
const MAX_PACKS: usize = 1024;
/// How long writing pauses after the disk failed or was full (guess).
const PAUSE: Duration = Duration::from_secs(30);
/// At least this long between two warnings about the disk (guess).
const WARN_EVERY: Duration = Duration::from_secs(300);

type Listener = Arc<dyn Fn(&ContentId) + Send + Sync>;

/// Plain chunks of all repositories on this machine's disk.
pub struct DiskCache {
    folder: PathBuf,
    config: CacheConfig,
    index: RwLock<Index>,
    writer: Mutex<Writer>,
    books: Mutex<Books>,
    listener: Mutex<Option<Listener>>,
    /// When a failing read was last warned about.
    read_warned: Mutex<Option<Time>>,
    /// Locked as long as the cache is open.
    _lock: File,
}

/// Why a record was not appended.
enum Refusal {
    /// The bounds leave no room for it. Another, smaller one may fit.
    NoRoom(StoreError),
    /// The disk is full or failing: writing pauses.
    Disk(StoreError),
}

#[derive(Default)]
struct Writer {
    next_number: u32,
    paused_until: Option<Time>,
    warned: Option<Time>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves no half-done state behind these locks: each change is one statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DiskCache {
    /// Opens the cache in `folder`, which is made if need be, and reads the headers of all packs.
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
        std::fs::create_dir_all(folder).map_err(failed(folder))?;
        let lock_path = folder.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(failed(&lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(CacheError::InUse { path: folder.display().to_string() });
            }
            Err(errno) => return Err(failed(&lock_path)(errno.into())),
        }
        let index = load(folder).map_err(failed(folder))?;
        let next_number = index.newest().map_or(0, |pack| pack.number.saturating_add(1));
        let cache = Self {
            folder: folder.to_owned(),
            config,
            index: RwLock::new(index),
            writer: Mutex::new(Writer { next_number, ..Writer::default() }),
            books: Mutex::default(),
            listener: Mutex::default(),
            read_warned: Mutex::default(),
            _lock: lock,
        };
        cache.shrink_to_the_quota();
        Ok(cache)
    }

    /// Where a chunk that is here came from.
    pub fn origin(&self, id: &ContentId) -> Option<Origin> {
        self.read_index().find(id).map(|(slot, _)| slot.state().origin())
    }

    /// Counts a chunk that was obtained from `origin`, whether or not it could be stored.
    ///
    /// Each distinct chunk is counted once a run, whoever notes it: `insert` does for what it
    /// stores; call this for what it refused.
    pub fn note_obtained(&self, id: &ContentId, plain_len: u32, origin: Origin) {
        lock(&self.books).note_refused(id, plain_len, origin);
    }

    /// What the cache holds and has done.
    pub fn statistics(&self) -> CacheStatistics {
        let paused = lock(&self.writer).paused_until.is_some_and(|until| ambient::now() < until);
        let (entries, bytes, packs) = {
            let index = self.read_index();
            (index.entries() as u64, index.bytes(), index.packs() as u64)
        };
        let books = lock(&self.books);
        CacheStatistics {
            entries,
            bytes,
            quota_bytes: self.config.quota_bytes,
            packs,
            hits: books.hits,
            misses: books.misses,
            obtained: books.obtained(),
            evicted: books.evicted,
            damaged: books.damaged,
            writing_paused: paused,
        }
    }

    /// Makes what was inserted survive a power cut. Call it at a clean shutdown.
    ///
    /// # Errors
    /// When the disk fails; what is not safe is then found by its hash at the next start.
    pub fn sync(&self) -> io::Result<()> {
        let active = self.read_index().active();
        active.map_or(Ok(()), |pack| pack.sync())
    }

    fn read_index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_index(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn limits(&self) -> Limits {
        Limits {
            quota_bytes: self.config.quota_bytes,
            free_floor_bytes: self.config.free_floor_bytes,
            minimum_bytes: self.config.minimum_bytes,
            max_packs: MAX_PACKS,
        }
    }

    fn pack_target_bytes(&self) -> u64 {
        let quota = self.config.quota_bytes;
        PACK_TARGET_BYTES.min(quota / PACKS_AT_LEAST).max(quota / PACKS_PER_QUOTA)
    }

    /// A smaller quota than in the last run takes effect at once, as far as whole packs go.
    fn shrink_to_the_quota(&self) {
        let uses = self.read_index().uses();
        // The floor is looked after when there is something to store.
        let limits = Limits { free_floor_bytes: 0, ..self.limits() };
        if let Verdict::Evict(gone) = policy::make_room(&uses, &limits, 0, u64::MAX) {
            self.evict(&gone);
        }
    }

    /// Bytes that are free on the file system; all of them when it does not say.
    fn free_bytes(&self) -> u64 {
        rustix::fs::statvfs(&self.folder)
            .map_or(u64::MAX, |status| status.f_bavail.saturating_mul(status.f_frsize))
    }

    /// The slice of the chunk, verified, or `None` and everything that follows from that.
    fn deliver(&self, id: &ContentId, range: Option<(u32, u32)>) -> Option<Bytes> {
        let found = self.read_index().find(id);
        let Some((slot, pack)) = found else {
            lock(&self.books).misses += 1;
            return None;
        };
        let (offset, len) = range.unwrap_or((0, slot.plain_len()));
        if offset.checked_add(len).is_none_or(|end| end > slot.plain_len()) {
            lock(&self.books).misses += 1;
            return None;
        }
        match self.read_slot(id, slot, &pack, offset, len) {
            Ok(Some(bytes)) => {
                pack.touch();
                lock(&self.books).hits[slot.state().origin()].add(u64::from(len));
                Some(bytes)
            }
            Ok(None) => {
                self.drop_damaged(id, slot, "its bytes are not what its name says", &pack);
                None
            }
            Err(error) => {
                self.drop_damaged(id, slot, &error.to_string(), &pack);
                None
            }
        }
    }

    /// `Ok(None)` when the disk holds something else than `id` there.
    fn read_slot(
        &self,
        id: &ContentId,
        slot: Slot,
        pack: &Pack,
        offset: u32,
        len: u32,
    ) -> io::Result<Option<Bytes>> {
        let record = u64::from(slot.offset);
        let header = pack.header_at(id, record)?;
        if header.is_none_or(|header| header.plain_len != slot.plain_len()) {
            return Ok(None);
        }
        if slot.state() != State::Unverified {
            return Ok(Some(pack.read(record, offset, len)?.into()));
        }
        let whole = Bytes::from(pack.read(record, 0, slot.plain_len())?);
        if ContentId::of(&whole) != *id {
            return Ok(None);
        }
        if self.write_index().verified(id, slot) {
            lock(&self.books).note_stored(id, slot.plain_len(), Origin::Cache);
        }
        Ok(Some(whole.slice(offset as usize..offset as usize + len as usize)))
    }

    fn drop_damaged(&self, id: &ContentId, slot: Slot, why: &str, pack: &Pack) {
        let Some(state) = self.write_index().remove(id, slot) else { return };
        {
            let mut books = lock(&self.books);
            books.damaged += 1;
            if state != State::Unverified {
                books.note_gone(id);
            }
        }
        let now = ambient::now();
        let mut warned = lock(&self.read_warned);
        if warned.is_none_or(|last| now.since(last) >= WARN_EVERY) {
            *warned = Some(now);
            tracing::warn!(
                chunk = %id, pack = %pack.path().display(),
                "the cache dropped a chunk: {why}; it is fetched again (others like it are not logged for {} s)",
                WARN_EVERY.as_secs()
            );
        }
        drop(warned);
        self.tell_removed(&[*id]);
    }

    fn tell_removed(&self, ids: &[ContentId]) {
        let listener = lock(&self.listener).clone();
        if let Some(listener) = listener {
            ids.iter().for_each(|id| listener(id));
        }
    }

    /// Removes packs and returns the chunks that left with them. The caller tells the listener,
    /// once it holds no lock.
    fn remove_packs(&self, numbers: &[u64]) -> Vec<ContentId> {
        let mut gone = Vec::new();
        for number in numbers.iter().filter_map(|number| u32::try_from(*number).ok()) {
            let before = self.read_index().entries();
            let Some(pack) = self.read_index().pack(number) else { continue };
            // The names stand only in the headers: the table would be twice as large with them.
            let mut names: Vec<Found> = Vec::new();
            if let Err(error) = pack.scan(|found| names.push(found)) {
                tracing::warn!(pack = %pack.path().display(), "cannot read all names of an evicted pack: {error}");
            }
            let mut index = self.write_index();
            names.retain(|found| index.lies_at(&found.header.id, number, found.offset));
            let counted: Vec<ContentId> =
                names.iter().map(|found| found.header.id).filter(|id| index.is_verified(id)).collect();
            index.remove_pack(number);
            let removed = before.saturating_sub(index.entries()) as u64;
            drop(index);
            let mut books = lock(&self.books);
            books.evicted += removed;
            counted.iter().for_each(|id| books.note_gone(id));
            drop(books);
            if let Err(error) = pack.unlink() {
                tracing::warn!(pack = %pack.path().display(), "cannot remove an evicted pack: {error}");
            }
            gone.extend(names.iter().map(|found| found.header.id));
        }
        gone
    }

    fn evict(&self, numbers: &[u64]) {
        let gone = self.remove_packs(numbers);
        self.tell_removed(&gone);
    }

    /// Appends under the writer's lock. Returns the chunks that had to leave and a pack to be synced.
    fn append(
        &self,
        writer: &mut Writer,
        header: &Header,
        bytes: &[u8],
        origin: Origin,
        gone: &mut Vec<ContentId>,
    ) -> Result<Option<Arc<Pack>>, Refusal> {
        let wanted_bytes = header.record_bytes();
        let full = |detail: String| StoreError::Full { wanted_bytes, detail };
        let uses = self.read_index().uses();
        match policy::make_room(&uses, &self.limits(), wanted_bytes, self.free_bytes()) {
            Verdict::Evict(numbers) => *gone = self.remove_packs(&numbers),
            Verdict::Refuse(shortage) => return Err(Refusal::NoRoom(full(shortage.to_string()))),
        }
        let failed = |path: &Path, source: io::Error| {
            Refusal::Disk(match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    full(format!("{}: {source}", path.display()))
                }
                _ => StoreError::Io { path: path.display().to_string(), source },
            })
        };
        let active = self.read_index().active();
        let pack = match active {
            Some(pack) => pack,
            None => {
                let made = Pack::create(&self.folder, writer.next_number);
                let pack = Arc::new(made.map_err(|error| failed(&self.folder, error))?);
                writer.next_number = writer.next_number.saturating_add(1);
                let mut index = self.write_index();
                index.add_pack(Arc::clone(&pack));
                index.set_active(Some(pack.number));
                pack
            }
        };
        let offset = pack.append(header, bytes).map_err(|error| failed(pack.path(), error))?;
        let offset = u32::try_from(offset).expect("packs are closed long before 4 GiB");
        pack.touch();
        let full_pack = pack.bytes() >= self.pack_target_bytes();
        let mut index = self.write_index();
        index.put(&header.id, Slot::new(pack.number, offset, header.plain_len, State::inserted(origin)));
        if full_pack {
            index.set_active(None);
        }
        Ok(full_pack.then_some(pack))
    }

    /// Says that nothing can be stored, now and then.
    fn warn(&self, writer: &mut Writer, error: &StoreError) {
        let now = ambient::now();
        if writer.warned.is_none_or(|last| now.since(last) >= WARN_EVERY) {
            writer.warned = Some(now);
            tracing::warn!(
                cache = %self.folder.display(),
                "the cache cannot store: {error}; reads go on without it (it goes on trying; said again in {} s at the earliest)",
                WARN_EVERY.as_secs()
            );
        }
    }
}

impl ChunkStore for DiskCache {
    fn contains(&self, id: &ContentId) -> bool {
        self.read_index().contains(id)
    }

    fn read(&self, id: &ContentId, offset: u32, len: u32) -> Option<Bytes> {
        self.deliver(id, Some((offset, len)))
    }

    fn read_all(&self, id: &ContentId) -> Option<Bytes> {
        self.deliver(id, None)
    }

    fn read_now(&self, id: &ContentId, plain_len: u32, offset: u32, buffer: &mut [u8]) -> bool {
        let Some((slot, pack)) = self.read_index().find(id) else { return false };
        let len = buffer.len() as u64;
        let fits = slot.plain_len() == plain_len && u64::from(offset) + len <= u64::from(plain_len);
        if !fits || slot.state() == State::Unverified {
            return false;
        }
        if !pack.read_now(id, slot, offset, buffer) {
            return false;
        }
        pack.touch();
        let hits = &mut lock(&self.books).hits[slot.state().origin()];
        hits.bytes += len;
        // The parts of a chunk are one delivery.
        hits.chunks += u64::from(offset == 0);
        true
    }

    fn insert(&self, id: &ContentId, bytes: &Bytes, origin: Origin) -> Result<(), StoreError> {
        if self.contains(id) {
            return Ok(());
        }
        let too_large = || StoreError::Full {
            wanted_bytes: bytes.len() as u64,
            detail: format!("a chunk has at most {} bytes", limits::PLAIN_MAX_BYTES),
        };
        let plain_len = u32::try_from(bytes.len()).ok().filter(|len| *len <= limits::PLAIN_MAX_BYTES);
        let header = Header { id: *id, plain_len: plain_len.ok_or_else(too_large)? };
        let mut gone = Vec::new();
        let stored = {
            let mut writer = lock(&self.writer);
            if self.contains(id) {
                return Ok(());
            }
            if let Some(until) = writer.paused_until.filter(|until| ambient::now() < *until) {
                let seconds = until.since(ambient::now()).as_secs();
                let detail = format!("writing pauses for {seconds} s more after an error of the disk");
                return Err(StoreError::Full { wanted_bytes: header.record_bytes(), detail });
            }
            let stored = self.append(&mut writer, &header, bytes, origin, &mut gone);
            match &stored {
                Ok(_) => writer.paused_until = None,
                Err(Refusal::NoRoom(error)) => self.warn(&mut writer, error),
                Err(Refusal::Disk(error)) => {
                    writer.paused_until = Some(ambient::now() + PAUSE);
                    self.warn(&mut writer, error);
                }
            }
            stored.map_err(|refusal| match refusal {
                Refusal::NoRoom(error) | Refusal::Disk(error) => error,
            })
        };
        self.tell_removed(&gone);
        if let Some(closed) = stored?
            && let Err(error) = closed.sync()
        {
            tracing::warn!(pack = %closed.path().display(), "a full pack could not be synced: {error}");
        }
        lock(&self.books).note_stored(id, header.plain_len, origin);
        Ok(())
    }

    fn on_removal(&self, listener: Box<dyn Fn(&ContentId) + Send + Sync>) {
        *lock(&self.listener) = Some(listener.into());
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        if let Err(error) = self.sync() {
            tracing::warn!(cache = %self.folder.display(), "the last pack could not be synced: {error}");
        }
    }
}

/// Reads the headers of all packs in `folder`, cuts torn ends off and removes empty packs.
fn load(folder: &Path) -> io::Result<Index> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        numbers.extend(entry?.file_name().to_str().and_then(Pack::number_of));
    }
    numbers.sort_unstable();
    let mut index = Index::default();
    for number in numbers {
        // One bad pack must not keep the others from serving.
        if let Err(error) = load_pack(folder, number, &mut index) {
            tracing::warn!(cache = %folder.display(), number, "a pack is left out: {error}");
        }
    }
    // Packs of earlier runs are not appended to when full; the last one usually is not.
    if let Some(last) = index.newest().filter(|pack| pack.bytes() < PACK_TARGET_BYTES) {
        index.set_active(Some(last.number));
    }
    Ok(index)
}

fn load_pack(folder: &Path, number: u32, index: &mut Index) -> io::Result<()> {
    let pack = Pack::open(folder, number)?;
    let mut slots = Vec::new();
    let end = pack.scan(|found| {
        // Only BLAKE3 can be verified here. Others are fetched again.
        let verifiable = found.header.id.algorithm() == Algorithm::Blake3;
        if let Some(offset) = u32::try_from(found.offset).ok().filter(|_| verifiable) {
            let slot = Slot::new(number, offset, found.header.plain_len, State::Unverified);
            slots.push((found.header.id, slot));
        }
    })?;
    if end < pack.bytes() {
        tracing::info!(
            pack = %pack.path().display(), torn_bytes = pack.bytes() - end,
            "the end of a pack was torn or damaged and is cut off"
        );
        pack.cut(end)?;
    }
    if end == 0 {
        return pack.unlink();
    }
    index.add_pack(Arc::new(pack));
    slots.iter().for_each(|(id, slot)| index.put(id, *slot));
    Ok(())
}
