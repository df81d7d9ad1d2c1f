//! The inside of the disk cache: reading, inserting, and who may touch what when.
//!
//! Three locks, always taken in this order: `writer` (one appends, writes into bodies or evicts at a time), `noted` and
//! `index`. None of them is held while a reader reads, while something is synced, or while the listener runs.

use super::books::Books;
use super::files::Files;
use super::index::{BODY, Index, Slot, State};
use super::look::Scrub;
use super::noted::Noted;
use super::pack::Pack;
use super::pins::Pins;
use super::record::Header;
use super::unit::Unit;
use super::{CacheConfig, CacheStatistics};
use crate::ambient;
use crate::model::{ContentId, Time, limits};
use crate::store::{Origin, StoreError};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

/// How long writing pauses after the disk failed or was full (guess).
const PAUSE: Duration = Duration::from_secs(30);
/// At least this long between two warnings about the disk (guess).
const WARN_EVERY: Duration = Duration::from_secs(300);
/// How long after the disk could not be read the kernel is given no file of it (guess): it would hand the error on.
pub(super) const DISTRUST: Duration = Duration::from_secs(300);

type Listener = Arc<dyn Fn(&ContentId) + Send + Sync>;

/// What the cache and its worker share.
pub(super) struct Inner {
    pub(super) folder: PathBuf,
    pub(super) config: CacheConfig,
    pub(super) index: RwLock<Index>,
    pub(super) writer: Mutex<Writer>,
    pub(super) noted: Mutex<Noted>,
    /// Wakes the worker.
    pub(super) wake: Condvar,
    pub(super) stopping: AtomicBool,
    pub(super) files: Arc<Files>,
    /// The number of the next body, without its bit.
    pub(super) next_body: AtomicU32,
    pub(super) scrub: Mutex<Scrub>,
    /// Taken before all others.
    pub(super) pins: Mutex<Pins>,
    pub(super) books: Mutex<Books>,
    pub(super) listener: Mutex<Option<Listener>>,
    /// When a failing read was last warned about.
    pub(super) read_warned: Mutex<Option<Time>>,
    /// Until when the disk is distrusted, for it failed; in nanoseconds.
    pub(super) distrusted_until: AtomicU64,
    /// When the disk is next to take what was written.
    pub(super) flush_at: Mutex<Time>,
    /// What the disk did not take, by number, as long as it is distrusted for it.
    pub(super) doubted: Mutex<BTreeMap<u32, Unit>>,
    /// Locked as long as the cache is open. `None` when the disk could not be used at all: then there is nothing in it.
    pub(super) _lock: Option<File>,
}

/// Why something was not written.
pub(super) enum Refusal {
    /// The bounds leave no room for it. Another, smaller one may fit.
    NoRoom(StoreError),
    /// The disk is full or failing.
    Disk(StoreError),
}

impl Refusal {
    pub(super) fn disk(path: &Path, wanted_bytes: u64, source: io::Error) -> Self {
        Self::Disk(match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                StoreError::Full { wanted_bytes, detail: format!("{}: {source}", path.display()) }
            }
            _ => StoreError::Io { path: path.display().to_string(), source },
        })
    }
}

#[derive(Default)]
pub(super) struct Writer {
    /// Of the next pack.
    pub(super) next_number: u32,
    closed: bool,
    paused_until: Option<Time>,
    warned: Option<Time>,
}

impl Writer {
    /// `closed`: nothing is ever written.
    pub(super) fn new(next_number: u32, closed: bool) -> Self {
        Self { next_number, closed, ..Self::default() }
    }

    /// As if the pause were over.
    #[cfg(test)]
    pub(super) fn go_on(&mut self) {
        self.paused_until = None;
    }

    /// Nothing is written for so long, or longer.
    pub(super) fn pause_for(&mut self, span: Duration) {
        self.paused_until = self.paused_until.max(Some(ambient::now() + span));
    }

    /// For how long nothing is written.
    pub(super) fn pause(&self) -> Option<Duration> {
        let now = ambient::now();
        if self.closed {
            return Some(PAUSE);
        }
        self.paused_until.filter(|until| now < *until).map(|until| until.since(now))
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves no half-done state behind these locks: each change is one statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub(super) fn read_index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write_index(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn contains(&self, id: &ContentId) -> bool {
        self.read_index().contains(id)
    }

    pub(super) fn statistics(&self) -> CacheStatistics {
        // Who writes just now does not pause; and he is not waited for, as his disk may have stalled.
        let writing_paused = self.writer.try_lock().is_ok_and(|writer| writer.pause().is_some());
        let (entries, totals, complete) = {
            let index = self.read_index();
            let complete = index.bodies().filter(|body| body.is_verified()).count();
            (index.entries() as u64, index.totals(), complete as u64)
        };
        let books = lock(&self.books);
        CacheStatistics {
            entries,
            bytes: totals.bytes,
            quota_bytes: self.config.quota_bytes,
            packs: totals.packs as u64,
            bodies: totals.bodies as u64,
            bodies_complete: complete,
            bodies_open: self.files.open() as u64,
            hits: books.hits,
            misses: books.misses,
            obtained: books.obtained(),
            evicted: books.evicted,
            damaged: books.damaged,
            scrubbed: books.scrubbed,
            scrub_rounds: books.scrub_rounds,
            writing_paused,
        }
    }

    /// The slice of the chunk, verified, or `None` and everything that follows from that.
    pub(super) fn deliver(&self, id: &ContentId, range: Option<(u32, u32)>) -> Option<Bytes> {
        let found = self.read_index().find(id);
        let Some((slot, unit)) = found else {
            lock(&self.books).misses += 1;
            return None;
        };
        let (offset, len) = range.unwrap_or((0, slot.plain_len()));
        if offset.checked_add(len).is_none_or(|end| end > slot.plain_len()) {
            lock(&self.books).misses += 1;
            return None;
        }
        let bytes = self.read_or_drop(id, slot, &unit, offset, len)?;
        unit.touch();
        lock(&self.books).hits[slot.state().origin()].add(u64::from(len));
        Some(bytes)
    }

    /// The slice of the chunk in `slot`. What is wrong or cannot be read is dropped.
    pub(super) fn read_or_drop(
        &self,
        id: &ContentId,
        slot: Slot,
        unit: &Unit,
        offset: u32,
        len: u32,
    ) -> Option<Bytes> {
        match self.read_slot(id, slot, unit, offset, len) {
            Ok(Some(bytes)) => Some(bytes),
            Ok(None) => {
                self.drop_damaged(id, slot, "its bytes are not what its name says", unit);
                None
            }
            // That says nothing about the chunk.
            Err(error) if is_shortage(&error) => None,
            Err(error) => {
                self.note_unreadable();
                self.drop_damaged(id, slot, &error.to_string(), unit);
                None
            }
        }
    }

    /// The disk failed.
    pub(super) fn note_unreadable(&self) {
        self.distrusted_until.store((ambient::now() + DISTRUST).as_nanos(), Ordering::Relaxed);
    }

    /// Whether the disk failed just now.
    pub(super) fn distrusts_the_disk(&self) -> bool {
        self.distrust_left() > Duration::ZERO
    }

    /// For how long the disk is still distrusted.
    pub(super) fn distrust_left(&self) -> Duration {
        Time::from_nanos(self.distrusted_until.load(Ordering::Relaxed)).since(ambient::now())
    }

    /// Whether everything is hashed before it is delivered. So it is while the disk is distrusted: what was hashed in memory may be
    /// something else on the disk.
    fn hashes_always(&self) -> bool {
        self.config.verify_always || self.distrusts_the_disk()
    }

    /// `Ok(None)` when the disk holds something else than `id` there.
    fn read_slot(
        &self,
        id: &ContentId,
        slot: Slot,
        unit: &Unit,
        offset: u32,
        len: u32,
    ) -> io::Result<Option<Bytes>> {
        if !unit.names(id, slot)? {
            return Ok(None);
        }
        let is_verified = slot.state() != State::Unverified;
        if is_verified && !self.hashes_always() {
            return Ok(Some(unit.read(slot, offset, len)?.into()));
        }
        let whole = Bytes::from(unit.read(slot, 0, slot.plain_len())?);
        if ContentId::of(&whole) != *id {
            return Ok(None);
        }
        if !is_verified {
            self.note_verified(id, slot, unit);
        }
        Ok(Some(whole.slice(offset as usize..offset as usize + len as usize)))
    }

    /// The bytes in `slot` are right.
    pub(super) fn note_verified(&self, id: &ContentId, slot: Slot, unit: &Unit) {
        if let Unit::Body(body) = unit {
            self.note_verified_in(body, slot.place as usize);
        }
        if self.write_index().verified(id, slot) {
            lock(&self.books).note_stored(id, slot.plain_len(), Origin::Cache);
        }
    }

    pub(super) fn drop_damaged(&self, id: &ContentId, slot: Slot, why: &str, unit: &Unit) {
        let number = slot.place as usize;
        let in_body = match unit {
            Unit::Body(body) if body.names(number, id, slot.plain_len()) => Some(body),
            _ => None,
        };
        if let Some(body) = in_body.filter(|body| !body.is_gone()) {
            body.drop_chunk(number);
        }
        let Some(taken) = self.write_index().remove(id, slot) else { return };
        {
            let mut books = lock(&self.books);
            books.damaged += 1;
            if taken.state != State::Unverified {
                books.note_gone(id);
            }
        }
        self.warn_damaged(id, why, unit);
        if let Some(body) = in_body {
            // It is to be written in place when it comes again.
            self.note_again(body);
        }
        if !taken.replaced {
            self.tell_removed(&[*id]);
        }
    }

    /// Whether it is time for another warning about what was read.
    pub(super) fn may_warn_of_reading(&self) -> bool {
        let now = ambient::now();
        let mut warned = lock(&self.read_warned);
        let may = warned.is_none_or(|last| now.since(last) >= WARN_EVERY);
        if may {
            *warned = Some(now);
        }
        may
    }

    pub(super) fn warn_damaged(&self, id: &ContentId, why: &str, unit: &Unit) {
        if self.may_warn_of_reading() {
            tracing::warn!(
                chunk = %id, file = %unit.path().display(),
                "the cache dropped a chunk: {why}; it is fetched again (others like it are not logged for {} s)",
                WARN_EVERY.as_secs()
            );
        }
    }

    pub(super) fn tell_removed(&self, ids: &[ContentId]) {
        let listener = lock(&self.listener).clone();
        if let Some(listener) = listener {
            ids.iter().for_each(|id| listener(id));
        }
    }

    pub(super) fn read_now(&self, id: &ContentId, plain_len: u32, offset: u32, buffer: &mut [u8]) -> bool {
        let Some((slot, unit)) = self.read_index().find(id) else { return false };
        let len = buffer.len() as u64;
        let fits = slot.plain_len() == plain_len && u64::from(offset) + len <= u64::from(plain_len);
        if !fits || slot.state() == State::Unverified || self.hashes_always() {
            return false;
        }
        if !unit.read_now(id, slot, offset, buffer) {
            return false;
        }
        unit.touch();
        let hits = &mut lock(&self.books).hits[slot.state().origin()];
        hits.bytes += len;
        // The parts of a chunk are one delivery.
        hits.chunks += u64::from(offset == 0);
        true
    }

    pub(super) fn insert(&self, id: &ContentId, bytes: &Bytes, origin: Origin) -> Result<(), StoreError> {
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
            if let Some(pause) = writer.pause() {
                let seconds = pause.as_secs();
                let detail = format!("writing pauses for {seconds} s more after an error of the disk");
                return Err(StoreError::Full { wanted_bytes: header.record_bytes(), detail });
            }
            let stored = self.store(&mut writer, &header, bytes, origin, &mut gone);
            match &stored {
                Ok(_) => writer.paused_until = None,
                Err(Refusal::NoRoom(error)) => self.warn(&mut writer, error),
                Err(Refusal::Disk(error)) => {
                    writer.pause_for(PAUSE);
                    self.warn(&mut writer, error);
                }
            }
            stored.map_err(|refusal| match refusal {
                Refusal::NoRoom(error) | Refusal::Disk(error) => error,
            })
        };
        self.tell_removed(&gone);
        if let Some(closed) = stored?.map(Unit::Pack) {
            // What follows from an error is done; this chunk has its bytes from elsewhere.
            let _ = self.taken(&closed, closed.sync());
        }
        lock(&self.books).note_stored(id, header.plain_len, origin);
        let mut noted = lock(&self.noted);
        noted.arrived(id);
        if noted.has_work() {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Writes a chunk under the writer's lock: into the body that wants it, else into a pack. Adds the chunks that had
    /// to leave, and returns a pack to be synced.
    fn store(
        &self,
        writer: &mut Writer,
        header: &Header,
        bytes: &[u8],
        origin: Origin,
        gone: &mut Vec<ContentId>,
    ) -> Result<Option<Arc<Pack>>, Refusal> {
        let wanted = lock(&self.noted).place_of(&header.id, header.plain_len);
        if let Some((body, number)) = wanted.filter(|(body, _)| body.may_be_written()) {
            match self.write_into(&body, number, bytes, gone) {
                Ok(()) => {
                    let slot = Slot::in_body(&body, number, State::inserted(origin));
                    self.write_index().put(&header.id, slot);
                    return Ok(None);
                }
                Err(Refusal::NoRoom(error)) => return Err(Refusal::NoRoom(error)),
                // If the disk is at fault, the pack shows it.
                Err(Refusal::Disk(error)) => self.give_up(writer, &body, &error),
            }
        }
        self.append(writer, header, bytes, origin, gone)
    }

    fn append(
        &self,
        writer: &mut Writer,
        header: &Header,
        bytes: &[u8],
        origin: Origin,
        gone: &mut Vec<ContentId>,
    ) -> Result<Option<Arc<Pack>>, Refusal> {
        let wanted_bytes = header.record_bytes();
        self.make_room(wanted_bytes, None, gone)?;
        let failed = |path: &Path, source| Refusal::disk(path, wanted_bytes, source);
        let active = self.read_index().active();
        let pack = match active {
            Some(pack) => pack,
            None => {
                let begun = self.begin_pack(writer).map_err(|error| failed(&self.folder, error))?;
                let pack = Arc::new(begun);
                let mut index = self.write_index();
                index.add_pack(Arc::clone(&pack));
                index.set_active(Some(pack.number));
                pack
            }
        };
        let offset = match pack.append(header, bytes).map_err(|error| failed(pack.path(), error)) {
            Ok(offset) => offset,
            Err(refusal) => {
                self.turn_away_from(&pack, &refusal);
                return Err(refusal);
            }
        };
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

    /// Makes a pack of the next number that is free: something may lie there that was left out at the start.
    fn begin_pack(&self, writer: &mut Writer) -> io::Result<Pack> {
        while writer.next_number < BODY {
            let made = Pack::create(&self.folder, writer.next_number);
            writer.next_number += 1;
            if made.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
                continue;
            }
            return made;
        }
        Err(io::Error::other("all numbers of packs are used up"))
    }

    /// A pack could not be written. Unless the disk is merely full, the next chunk goes into another one: this may lie on a bad
    /// block, or have been opened while the disk was read-only.
    fn turn_away_from(&self, pack: &Arc<Pack>, refusal: &Refusal) {
        if matches!(refusal, Refusal::NoRoom(_) | Refusal::Disk(StoreError::Full { .. })) {
            return;
        }
        let mut index = self.write_index();
        index.set_active(None);
        if pack.bytes() == 0 {
            index.remove_pack(pack.number);
            drop(index);
            let _ = pack.unlink();
        }
    }

    /// Says that nothing can be stored, now and then.
    pub(super) fn warn(&self, writer: &mut Writer, error: &StoreError) {
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

/// The process is short of something, which is no fault of the file.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error();
    [Errno::MFILE, Errno::NFILE, Errno::NOMEM].iter().any(|short| errno == Some(short.raw_os_error()))
}
