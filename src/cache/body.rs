//! One body: the chunks of one file, laid out as they lie in it, so that the kernel can read the file straight from
//! the cache. Two files in `bodies/`, named by the hash of the file's list of chunks:
//!
//! - `HASH`, as long as the file, with a hole where a chunk is not here;
//! - `HASH.list`, the list, and for each chunk a byte that says whether it was written:
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..4 | `SLBL` |
//! | 4..8 | version, 1, little-endian |
//! | 8..12 | number of chunks `n`, little-endian |
//! | 12..16 | zero |
//! | then 36 each | BLAKE3 of the plain bytes, plain length (little-endian) |
//! | then `n` | 1: written; anything else: absent |
//!
//! `HASH` is the BLAKE3 of the `n` times 36 bytes, so the name checks the list. The byte is written after the chunk. A
//! power cut may keep it and lose the chunk: what lies in a hole counts as absent whatever its byte says, and wrong
//! bytes are found by their hash.

use super::files::{Files, drop_pages, open_existing, write_out};
use crate::ambient;
use crate::model::{Algorithm, ChunkRef, ContentId, Time, UnixTime, limits};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut, Read as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Plain bytes from which on a file gets a body (guess: two chunks of an ordinary file; below, the page cache serves as
/// well, and two files on disk for each cost more than they bring).
pub(super) const BODY_MIN_BYTES: u64 = 128 << 10;
/// Most chunks of a body: 64 GiB in chunks of a large file (1 MiB); its list has 2.3 MiB.
pub(super) const BODY_MAX_CHUNKS: usize = 1 << 16;

const MAGIC: [u8; 4] = *b"SLBL";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 16;
const ENTRY_BYTES: usize = 36;
/// Bytes of the longest list.
const LIST_MAX_BYTES: usize = HEAD_BYTES + BODY_MAX_CHUNKS * (ENTRY_BYTES + 1);
/// What stands for a chunk that was written.
const WRITTEN: u8 = 1;
const LIST_SUFFIX: &str = ".list";

/// The chunks of a file in their order, and its name as a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct List {
    pub(super) name: ContentId,
    digests: Box<[[u8; 32]]>,
    /// Where each chunk ends; ascending.
    ends: Box<[u64]>,
}

/// Why a file in `bodies/` is none of ours, or not whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("its list {0}")]
    List(&'static str),
    #[error("it has {found} bytes, its list says {expected}")]
    Length { found: u64, expected: u64 },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl BodyError {
    /// Whether it will not be better another time.
    pub(super) fn is_final(&self) -> bool {
        !matches!(self, Self::Io(error) if error.kind() != io::ErrorKind::NotFound)
    }
}

impl List {
    /// The list of a file that may have a body: at least [`BODY_MIN_BYTES`], and nothing that could not be verified here
    /// after a restart.
    pub(super) fn of(chunks: &[ChunkRef]) -> Option<Self> {
        let total: u64 = chunks.iter().map(|chunk| u64::from(chunk.plain_len)).sum();
        if total < BODY_MIN_BYTES { None } else { Self::of_any(chunks) }
    }

    /// The same, of however few bytes.
    pub(super) fn of_any(chunks: &[ChunkRef]) -> Option<Self> {
        if chunks.is_empty() || chunks.len() > BODY_MAX_CHUNKS {
            return None;
        }
        let mut entries = Vec::with_capacity(chunks.len() * ENTRY_BYTES);
        for chunk in chunks {
            if chunk.id.algorithm() != Algorithm::Blake3 {
                return None;
            }
            entries.extend_from_slice(chunk.id.digest());
            entries.extend_from_slice(&chunk.plain_len.to_le_bytes());
        }
        Self::parse(&entries)
    }

    /// `None` when a length is out of bounds.
    fn parse(entries: &[u8]) -> Option<Self> {
        let mut end = 0_u64;
        let (mut digests, mut ends) = (Vec::new(), Vec::new());
        for entry in entries.chunks_exact(ENTRY_BYTES) {
            let (digest, plain_len) = entry.split_at(32);
            let plain_len = u32::from_le_bytes(plain_len.try_into().ok()?);
            if plain_len == 0 || plain_len > limits::PLAIN_MAX_BYTES {
                return None;
            }
            end += u64::from(plain_len);
            digests.push(digest.try_into().ok()?);
            ends.push(end);
        }
        Some(Self { name: ContentId::of(entries), digests: digests.into(), ends: ends.into() })
    }

    /// Reads a list file: the list, and which chunks were written.
    fn decode(bytes: &[u8], name: &ContentId) -> Result<(Self, Vec<bool>), BodyError> {
        let word =
            |at: usize| bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
        if bytes.get(..4) != Some(&MAGIC) || word(12) != Some(0) {
            return Err(BodyError::List("is something else"));
        }
        if word(4) != Some(VERSION) {
            return Err(BodyError::List("was written by another version"));
        }
        let count = word(8).unwrap_or(0) as usize;
        if count == 0 || count > BODY_MAX_CHUNKS {
            return Err(BodyError::List("is empty or too long"));
        }
        let marks_at = HEAD_BYTES + count * ENTRY_BYTES;
        let entries = bytes.get(HEAD_BYTES..marks_at).ok_or(BodyError::List("is cut short"))?;
        if bytes.len() > marks_at + count {
            return Err(BodyError::List("goes on behind its end"));
        }
        let list = Self::parse(entries).ok_or(BodyError::List("has a length out of bounds"))?;
        if list.name != *name {
            return Err(BodyError::List("is not the one that its name says"));
        }
        // Of marks that were cut off nothing is known.
        let marks = (marks_at..marks_at + count).map(|at| bytes.get(at) == Some(&WRITTEN)).collect();
        Ok((list, marks))
    }

    /// A list file whose chunks are all absent.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.file_len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(self.len()).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for (number, digest) in self.digests.iter().enumerate() {
            bytes.extend_from_slice(digest);
            bytes.extend_from_slice(&self.plain_len(number).to_le_bytes());
        }
        bytes.resize(self.file_len(), 0);
        bytes
    }

    fn file_len(&self) -> usize {
        HEAD_BYTES + self.len() * (ENTRY_BYTES + 1)
    }

    fn mark_at(&self, number: usize) -> u64 {
        (HEAD_BYTES + self.len() * ENTRY_BYTES + number) as u64
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Plain bytes of the file.
    pub(super) fn total(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    pub(super) fn id(&self, number: usize) -> ContentId {
        ContentId::blake3(self.digests[number])
    }

    pub(super) fn range(&self, number: usize) -> Range<u64> {
        let begin = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        begin..self.ends[number]
    }

    pub(super) fn plain_len(&self, number: usize) -> u32 {
        let range = self.range(number);
        u32::try_from(range.end - range.start).unwrap_or(u32::MAX)
    }

    /// Bytes that the list takes on disk.
    pub(super) fn list_bytes(&self) -> u64 {
        self.file_len() as u64
    }
}

/// What is known of a chunk's place in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing is there.
    Absent,
    /// Bytes are there that were not verified in this run.
    Unverified,
    /// The right bytes are there.
    Verified,
}

struct State {
    contents: Box<[Content]>,
    /// Chunks that are not [`Content::Verified`].
    unverified: usize,
    /// Plain bytes that are there.
    plain_bytes: u64,
    /// Whether its files are there: the list's bytes count, too.
    counted: bool,
}

/// The files of a body, while they are open.
#[derive(Debug)]
pub(super) struct Open {
    plain: File,
    list: File,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No file was made yet.
    Noted,
    /// Its files are there.
    Made,
    /// It was removed. Its name may belong to another by now.
    Gone,
}

struct Handle {
    stage: Stage,
    open: Option<Arc<Open>>,
    /// What was written by, until the disk has taken it: only this descriptor is sure to be told when it does not.
    unflushed: Option<Arc<Open>>,
    /// What was handed out, as long as somebody has it.
    handed: Weak<File>,
}

/// A body, from when it is noted until nobody has it any more.
///
/// Only the writer writes, under its lock. Each lock in here is taken last.
pub(super) struct Body {
    /// Its number as a unit.
    pub(super) number: u32,
    pub(super) list: List,
    files: Arc<Files>,
    state: Mutex<State>,
    handle: Mutex<Handle>,
    last_used: AtomicU64,
    written: UnixTime,
    /// Whether something was written that was not synced.
    dirty: AtomicBool,
    /// How often it was written; what an earlier run wrote is once.
    writes: AtomicU64,
    /// How many of these the disk is known to have taken.
    flushed: AtomicU64,
    /// Whether it may not be evicted.
    pinned: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Body {
    /// The name that a file in `bodies/` gives a body, if it is a list.
    pub(super) fn name_of_list(file_name: &str) -> Option<ContentId> {
        Self::name_of_plain(file_name.strip_suffix(LIST_SUFFIX)?)
    }

    /// The name that a file in `bodies/` gives a body, if it is one.
    pub(super) fn name_of_plain(file_name: &str) -> Option<ContentId> {
        file_name.parse().ok().filter(|name: &ContentId| name.algorithm() == Algorithm::Blake3)
    }

    fn new(number: u32, list: List, files: Arc<Files>, stage: Stage, written: UnixTime) -> Self {
        let state = State {
            contents: vec![Content::Absent; list.len()].into(),
            unverified: list.len(),
            plain_bytes: 0,
            counted: false,
        };
        Self {
            number,
            list,
            files,
            state: Mutex::new(state),
            handle: Mutex::new(Handle { stage, open: None, unflushed: None, handed: Weak::new() }),
            last_used: AtomicU64::new(0),
            written,
            dirty: AtomicBool::new(false),
            writes: AtomicU64::new(u64::from(stage == Stage::Made)),
            flushed: AtomicU64::new(0),
            pinned: AtomicBool::new(false),
        }
    }

    /// One that has no files yet.
    pub(super) fn noted(number: u32, list: List, files: Arc<Files>) -> Self {
        Self::new(number, list, files, Stage::Noted, ambient::unix_now())
    }

    /// Finds a body of an earlier run again.
    pub(super) fn load(number: u32, name: &ContentId, files: &Arc<Files>) -> Result<Self, BodyError> {
        let (plain, list) = (files.plain_path(name), files.list_path(name));
        let mut bytes = Vec::new();
        File::open(&list)?.take(LIST_MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        let (list, marks) = List::decode(&bytes, name)?;
        let plain = File::open(&plain)?;
        let metadata = plain.metadata()?;
        if metadata.len() != list.total() {
            return Err(BodyError::Length { found: metadata.len(), expected: list.total() });
        }
        let written = UnixTime(u64::try_from(metadata.mtime()).unwrap_or(0));
        let body = Self::new(number, list, Arc::clone(files), Stage::Made, written);
        let holes = holes(&plain, body.list.total());
        let mut holes = holes.iter().peekable();
        for (number, _) in marks.iter().enumerate().filter(|(_, written)| **written) {
            let range = body.list.range(number);
            while holes.next_if(|hole| hole.end <= range.start).is_some() {}
            if holes.peek().is_none_or(|hole| hole.start >= range.end) {
                body.set(number, Content::Unverified);
            }
        }
        Ok(body)
    }

    /// Counts it among what is on disk from now on.
    pub(super) fn count(&self) {
        let mut state = lock(&self.state);
        if !std::mem::replace(&mut state.counted, true) {
            self.files.add_bytes(state.plain_bytes + self.list.list_bytes());
        }
    }

    /// Number of chunks in its list.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether the list has `id`, of that length, at `number`.
    pub(super) fn names(&self, number: usize, id: &ContentId, plain_len: u32) -> bool {
        number < self.len() && self.list.id(number) == *id && self.list.plain_len(number) == plain_len
    }

    pub(super) fn content(&self, number: usize) -> Content {
        lock(&self.state).contents[number]
    }

    /// Notes what lies at `number`.
    pub(super) fn set(&self, number: usize, content: Content) {
        self.change(number, |_| content);
    }

    /// What is there was verified. Nothing changes when it is gone meanwhile.
    pub(super) fn verified(&self, number: usize) {
        self.change(number, |now| if now == Content::Unverified { Content::Verified } else { now });
    }

    fn change(&self, number: usize, to: impl FnOnce(Content) -> Content) {
        let plain_len = u64::from(self.list.plain_len(number));
        let mut state = lock(&self.state);
        let before = state.contents[number];
        let content = to(before);
        state.contents[number] = content;
        match (before == Content::Verified, content == Content::Verified) {
            (false, true) => state.unverified -= 1,
            (true, false) => state.unverified += 1,
            _ => {}
        }
        match (before == Content::Absent, content == Content::Absent) {
            (true, false) => {
                state.plain_bytes += plain_len;
                if state.counted {
                    self.files.add_bytes(plain_len);
                }
            }
            (false, true) => {
                state.plain_bytes -= plain_len;
                if state.counted {
                    self.files.take_bytes(plain_len);
                }
            }
            _ => {}
        }
    }

    /// Whether all of the file is there, each chunk was verified in this run, and the disk has taken it.
    pub(super) fn is_verified(&self) -> bool {
        lock(&self.state).unverified == 0 && self.is_flushed()
    }

    fn is_flushed(&self) -> bool {
        self.flushed.load(Ordering::Acquire) >= self.writes.load(Ordering::Acquire)
    }

    /// Whether it would be whole and verified, but that it is not known that the disk has taken it.
    pub(super) fn lacks_flush_alone(&self) -> bool {
        lock(&self.state).unverified == 0 && !self.is_flushed()
    }

    /// Whether something of it is delivered unhashed of which it is not known that the disk has taken it.
    pub(super) fn needs_flush(&self) -> bool {
        !self.is_flushed() && lock(&self.state).unverified < self.len()
    }

    /// Whether it may be written now, as far as open files go.
    pub(super) fn may_be_written(&self) -> bool {
        !self.files.many_unflushed() || lock(&self.handle).unflushed.is_some()
    }

    /// Bytes on disk, as far as chunks and list go.
    pub(super) fn bytes(&self) -> u64 {
        lock(&self.state).plain_bytes + self.list.list_bytes()
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.pinned.load(Ordering::Relaxed)
    }

    pub(super) fn pin(&self, pinned: bool) {
        self.pinned.store(pinned, Ordering::Relaxed);
    }

    /// Plain bytes that are there.
    pub(super) fn plain_bytes(&self) -> u64 {
        lock(&self.state).plain_bytes
    }

    pub(super) fn written(&self) -> UnixTime {
        self.written
    }

    /// Notes that it was read or written just now.
    pub(super) fn touch(&self) {
        self.last_used.store(ambient::now().as_nanos().max(1), Ordering::Relaxed);
    }

    /// Last use in this run, or [`Time::ZERO`].
    pub(super) fn last_used(&self) -> Time {
        Time::from_nanos(self.last_used.load(Ordering::Relaxed))
    }

    pub(super) fn path(&self) -> PathBuf {
        self.files.plain_path(&self.list.name)
    }

    pub(super) fn is_made(&self) -> bool {
        lock(&self.handle).stage == Stage::Made
    }

    pub(super) fn is_gone(&self) -> bool {
        lock(&self.handle).stage == Stage::Gone
    }

    /// Makes its files, without a chunk in them, if they are not there. True when they were not.
    pub(super) fn make(&self) -> io::Result<bool> {
        let mut handle = lock(&self.handle);
        match handle.stage {
            Stage::Noted => {}
            Stage::Made => return Ok(false),
            Stage::Gone => return Err(io::ErrorKind::NotFound.into()),
        }
        let (plain, list) = (self.path(), self.files.list_path(&self.list.name));
        let made = (|| {
            std::fs::create_dir_all(self.files.folder())?;
            // What lies there was left out at the start or could not be removed. Somebody may have it open, mapped included: it is
            // never truncated.
            let make = |path: &Path| match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => OpenOptions::new().create_new(true).write(true).open(path),
            };
            // The list first: a body without one is nothing.
            make(&list)?.write_all_at(&self.list.encode(), 0)?;
            make(&plain)?.set_len(self.list.total())
        })();
        if made.is_err() {
            let _ = (std::fs::remove_file(&plain), std::fs::remove_file(&list));
            return made.map(|()| false);
        }
        handle.stage = Stage::Made;
        Ok(true)
    }

    /// Its files, opened if they are not. `None` when they are not there (any more).
    fn open(self: &Arc<Self>) -> io::Result<Arc<Open>> {
        let open = {
            let mut handle = lock(&self.handle);
            if let Some(open) = &handle.open {
                return Ok(Arc::clone(open));
            }
            let unflushed = handle.unflushed.as_ref().map(Arc::clone);
            // Under the lock: by the same name there may soon be another body, whose holes would be read as bytes.
            if handle.stage != Stage::Made {
                return Err(io::ErrorKind::NotFound.into());
            }
            let open = match unflushed {
                Some(open) => open,
                None => Arc::new(Open {
                    plain: open_existing(&self.path())?,
                    list: open_existing(&self.files.list_path(&self.list.name))?,
                }),
            };
            handle.open = Some(Arc::clone(&open));
            open
        };
        self.files.opened(self);
        Ok(open)
    }

    /// Closes its files, as soon as those who read have finished.
    pub(super) fn close(&self) {
        lock(&self.handle).open = None;
    }

    /// Closes its files before their turn; they are opened anew when they are needed.
    pub(super) fn let_go(&self) {
        self.close();
        self.files.forget(self);
    }

    /// `len` bytes from `offset` of the chunk at `number`, whatever lies there.
    pub(super) fn read(self: &Arc<Self>, number: usize, offset: u32, len: u32) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        let at = self.list.range(number).start + u64::from(offset);
        self.open()?.plain.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Fills `buffer` if the kernel has it in memory and the files are open.
    pub(super) fn read_now(&self, number: usize, offset: u32, buffer: &mut [u8]) -> bool {
        let Some(open) = lock(&self.handle).open.clone() else { return false };
        let at = self.list.range(number).start + u64::from(offset);
        let wanted = buffer.len();
        // Where the file system cannot tell, it refuses the flag.
        let read =
            rustix::io::preadv2(&open.plain, &mut [IoSliceMut::new(buffer)], at, ReadWriteFlags::NOWAIT);
        read == Ok(wanted)
    }

    /// Writes the verified bytes of the chunk at `number`. One caller at a time.
    pub(super) fn write(self: &Arc<Self>, number: usize, bytes: &[u8]) -> io::Result<()> {
        let open = self.open()?;
        open.plain.write_all_at(bytes, self.list.range(number).start)?;
        open.list.write_all_at(&[WRITTEN], self.list.mark_at(number))?;
        self.dirty.store(true, Ordering::Relaxed);
        {
            let mut handle = lock(&self.handle);
            self.writes.fetch_add(1, Ordering::Release);
            if handle.stage == Stage::Made && handle.unflushed.replace(open).is_none() {
                self.files.note_unflushed(true);
            }
        }
        self.set(number, Content::Verified);
        self.touch();
        Ok(())
    }

    /// What lies at `number` is wrong. It is not said whether the disk takes note.
    pub(super) fn drop_chunk(self: &Arc<Self>, number: usize) {
        self.set(number, Content::Absent);
        if let Ok(open) = self.open() {
            let _ = open.list.write_all_at(&[0], self.list.mark_at(number));
        }
    }

    /// The whole, verified file, to be read from the kernel or elsewhere, of which a byte could be read. The caller knows that it is
    /// verified. [`io::ErrorKind::WouldBlock`] where that would perhaps wait for the disk and may not.
    pub(super) fn hand_out(&self, may_wait: bool) -> io::Result<Arc<File>> {
        let probe = |file: &File| {
            let flags = if may_wait { ReadWriteFlags::empty() } else { ReadWriteFlags::NOWAIT };
            match rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut [0])], 0, flags) {
                Ok(1) => Ok(()),
                Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
                // Where the file system cannot tell, it refuses the flag.
                Err(Errno::OPNOTSUPP) if !may_wait => Err(io::ErrorKind::WouldBlock.into()),
                Err(error) => Err(io::Error::from(error)),
            }
        };
        // Who may wait does so without the lock: others must not wait for him.
        let held = lock(&self.handle).handed.upgrade();
        if let Some(file) = held {
            return probe(&file).map(|()| file);
        }
        let opened = Arc::new(open_to_hand_out(&self.path(), may_wait)?);
        probe(&opened)?;
        let mut handle = lock(&self.handle);
        // By the same name there may be another body by now.
        if handle.stage != Stage::Made {
            return Err(io::ErrorKind::NotFound.into());
        }
        if let Some(file) = handle.handed.upgrade() {
            return Ok(file);
        }
        if !self.files.may_hand_out(&opened) {
            return Err(Errno::MFILE.into());
        }
        handle.handed = Arc::downgrade(&opened);
        Ok(opened)
    }

    /// Whether somebody has the file that was handed out.
    pub(super) fn is_in_use(&self) -> bool {
        lock(&self.handle).handed.strong_count() > 0
    }

    /// Has the disk take what was written to the file. After an error, and until [`Body::doubt`], wrong bytes may be read.
    pub(super) fn flush(self: &Arc<Self>) -> io::Result<()> {
        let writes = self.writes.load(Ordering::Acquire);
        if self.is_flushed() || self.is_gone() {
            return Ok(());
        }
        write_out(&self.open()?.plain)?;
        self.note_flushed(writes);
        Ok(())
    }

    fn note_flushed(&self, writes: u64) {
        self.flushed.fetch_max(writes, Ordering::Release);
        let mut handle = lock(&self.handle);
        if self.is_flushed() && handle.unflushed.take().is_some() {
            self.files.note_unflushed(false);
        }
    }

    /// What was written may be lost, whatever is in memory: from now on everything is hashed before it is delivered again. Where this is
    /// called twice, and what is in memory dropped in between, nobody has hashed only that.
    pub(super) fn doubt(&self) {
        self.writes.fetch_add(1, Ordering::Release);
        let doubted = |now| if now == Content::Verified { Content::Unverified } else { now };
        (0..self.len()).for_each(|number| self.change(number, doubted));
    }

    /// Drops what the kernel has of the file in memory.
    pub(super) fn drop_pages(self: &Arc<Self>) {
        if let Ok(open) = self.open() {
            drop_pages(&open.plain);
        }
    }

    /// Makes what was written survive a power cut.
    pub(super) fn sync(self: &Arc<Self>) -> io::Result<()> {
        let writes = self.writes.load(Ordering::Acquire);
        if !self.dirty.swap(false, Ordering::Relaxed) || self.is_gone() {
            return Ok(());
        }
        let synced = self.open().and_then(|open| open.plain.sync_data().and_then(|()| open.list.sync_data()));
        match &synced {
            Ok(()) => self.note_flushed(writes),
            Err(_) => self.dirty.store(true, Ordering::Relaxed),
        }
        synced
    }

    /// Removes its files. Those who have them open read on.
    pub(super) fn remove(&self) -> io::Result<()> {
        let removed = {
            let mut handle = lock(&self.handle);
            handle.open = None;
            if handle.unflushed.take().is_some() {
                self.files.note_unflushed(false);
            }
            if std::mem::replace(&mut handle.stage, Stage::Gone) == Stage::Made {
                let plain = std::fs::remove_file(self.path());
                std::fs::remove_file(self.files.list_path(&self.list.name)).and(plain)
            } else {
                Ok(())
            }
        };
        self.files.forget(self);
        let mut state = lock(&self.state);
        if std::mem::replace(&mut state.counted, false) {
            self.files.take_bytes(state.plain_bytes + self.list.list_bytes());
        }
        removed
    }
}

/// Opens a file for reading. Without waiting it is found only if the kernel knows the whole way to it.
fn open_to_hand_out(path: &Path, may_wait: bool) -> io::Result<File> {
    if may_wait {
        return File::open(path);
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED);
    // An older kernel, or a container, may not know that.
    opened.map(File::from).map_err(|error| match error {
        Errno::NOSYS | Errno::PERM | Errno::INVAL | Errno::AGAIN => io::ErrorKind::WouldBlock.into(),
        error => error.into(),
    })
}

/// The holes of a file, ascending. None where the file system knows of none.
fn holes(file: &File, len: u64) -> Vec<Range<u64>> {
    let mut holes = Vec::new();
    let mut at = 0;
    while let Ok(hole) = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(at)) {
        if hole >= len {
            break;
        }
        // An error: there is no data behind it.
        at = rustix::fs::seek(file, rustix::fs::SeekFrom::Data(hole)).unwrap_or(len);
        holes.push(hole..at);
        if at >= len {
            break;
        }
    }
    holes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Place;

    fn list(lens: &[u32]) -> List {
        let place = Place { segment: ContentId::of(b"s"), ordinal: 0, offset: 0, stored_len: 1 };
        let chunk = |(number, plain_len): (usize, &u32)| {
            let id = ContentId::of(&number.to_le_bytes());
            ChunkRef { id, plain_len: *plain_len, place }
        };
        List::of(&lens.iter().enumerate().map(chunk).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_list_survives_the_disk_and_says_where_each_chunk_lies() {
        let list = list(&[100_000, 1, 60_000]);
        let mut bytes = list.encode();
        let last = bytes.len() - 1;
        bytes[last] = WRITTEN;
        assert_eq!(List::decode(&bytes, &list.name).unwrap(), (list.clone(), vec![false, false, true]));
        assert_eq!((list.range(1), list.total()), (100_000..100_001, 160_001));
        assert_eq!(list.mark_at(2), last as u64);
        // The marks are not part of what is checked: without them nothing is there.
        let (found, marks) = List::decode(&bytes[..bytes.len() - 3], &list.name).unwrap();
        assert_eq!((found, marks), (list, vec![false; 3]));
    }

    #[test]
    fn every_flipped_bit_of_a_list_is_noticed() {
        let list = list(&[100_000, 50_000]);
        let bytes = list.encode();
        for bit in 0..(HEAD_BYTES + 2 * ENTRY_BYTES) * 8 {
            let mut wrong = bytes.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert!(List::decode(&wrong, &list.name).is_err(), "bit {bit}");
        }
        for cut in 0..HEAD_BYTES + 2 * ENTRY_BYTES {
            assert!(List::decode(&bytes[..cut], &list.name).is_err(), "cut at {cut}");
        }
        assert!(List::decode(&[&bytes[..], &[0]].concat(), &list.name).is_err(), "too long");
    }

    #[test]
    fn what_could_not_be_verified_after_a_restart_gets_no_body() {
        let place = Place { segment: ContentId::of(b"s"), ordinal: 0, offset: 0, stored_len: 1 };
        let chunk = |id, plain_len| ChunkRef { id, plain_len, place };
        let large = chunk(ContentId::of(b"1"), 128 << 10);
        assert!(List::of(&[large]).is_some());
        assert!(List::of(&[chunk(large.id, (128 << 10) - 1)]).is_none(), "too small");
        let foreign = ContentId::new(Algorithm::Sha1, &[1; 20]).unwrap();
        assert!(List::of(&[large, chunk(foreign, 5)]).is_none());
        assert!(List::of(&[large, chunk(large.id, 0)]).is_none(), "an empty chunk is nonsense");
    }

    #[test]
    fn only_names_of_its_own_are_bodies() {
        let name = ContentId::of(b"x").to_string();
        assert_eq!(Body::name_of_plain(&name), Some(ContentId::of(b"x")));
        assert_eq!(Body::name_of_list(&format!("{name}.list")), Some(ContentId::of(b"x")));
        for other in ["", "README", "sha1-0000000000000000000000000000000000000000", &name[1..]] {
            assert_eq!((Body::name_of_plain(other), Body::name_of_list(other)), (None, None), "{other}");
        }
    }
}
