use super::{CacheConfig, CacheError, DiskCache};
use crate::model::{ChunkRef, ContentId, Generator, Place, Rng};
use crate::store::{ChunkStore, Origin, StoreError, conformance};
use bytes::Bytes;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::mount::{MountFlags, UnmountFlags};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

const HEADER: u64 = super::record::HEADER_BYTES_U64;

pub(super) fn config(quota_bytes: u64) -> CacheConfig {
    CacheConfig { quota_bytes, free_floor_bytes: 0, minimum_bytes: 0, verify_always: false }
}

pub(super) fn open(folder: &Path) -> DiskCache {
    DiskCache::open(folder, config(64 << 20)).unwrap()
}

pub(super) fn chunk(number: u64, len: usize) -> (ContentId, Bytes) {
    let mut generator = Generator::stream(11, number);
    let bytes: Bytes = (0..len).map(|_| generator.next_u64().to_le_bytes()[0]).collect();
    (ContentId::of(&bytes), bytes)
}

pub(super) fn packs(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "pack"))
        .collect();
    found.sort();
    found
}

/// What a process that dies now leaves behind: the files as they are, no shutdown.
pub(super) fn as_after_a_kill(folder: &Path) -> TempDir {
    fn copy_all(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                fs::create_dir(&to).unwrap();
                copy_all(&entry.path(), &to);
            } else {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    let copy = tempfile::tempdir().unwrap();
    copy_all(folder, copy.path());
    copy
}

pub(super) fn flip_a_bit(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

/// A cache that deletes its folder.
struct Temporary {
    cache: DiskCache,
    _folder: TempDir,
}

impl ChunkStore for Temporary {
    fn contains(&self, id: &ContentId) -> bool {
        self.cache.contains(id)
    }
    fn read(&self, id: &ContentId, offset: u32, len: u32) -> Option<Bytes> {
        self.cache.read(id, offset, len)
    }
    fn read_all(&self, id: &ContentId) -> Option<Bytes> {
        self.cache.read_all(id)
    }
    fn insert(&self, id: &ContentId, bytes: &Bytes, origin: Origin) -> Result<(), StoreError> {
        self.cache.insert(id, bytes, origin)
    }
    fn body(&self, chunks: &Arc<[ChunkRef]>) -> Option<Arc<File>> {
        self.cache.body(chunks)
    }
    fn on_removal(&self, listener: Box<dyn Fn(&ContentId) + Send + Sync>) {
        self.cache.on_removal(listener);
    }
}

#[test]
fn the_disk_keeps_the_promises_of_the_port() {
    conformance::check(|quota_bytes| {
        let folder = tempfile::tempdir().unwrap();
        Temporary { cache: DiskCache::open(folder.path(), config(quota_bytes)).unwrap(), _folder: folder }
    });
}

#[test]
fn everything_is_there_after_a_kill_and_counts_as_from_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let chunks: Vec<_> = (0..20).map(|number| chunk(number, 100_000)).collect();
    for (id, bytes) in &chunks {
        cache.insert(id, bytes, Origin::Strata).unwrap();
    }
    let after = as_after_a_kill(folder.path());
    let again = open(after.path());
    for _ in 0..2 {
        for (id, bytes) in &chunks {
            assert_eq!(again.read(id, 500, 1000).unwrap(), bytes.slice(500..1500));
        }
    }
    let statistics = again.statistics();
    assert_eq!(statistics.entries, 20);
    assert_eq!((statistics.obtained.cache.chunks, statistics.obtained.cache.bytes), (20, 2_000_000));
    assert_eq!((statistics.hits.cache.chunks, statistics.hits.cache.bytes), (40, 40_000));
    assert_eq!(statistics.obtained.strata.chunks, 0);
    // And it goes on in the same pack.
    let (id, bytes) = chunk(99, 10);
    again.insert(&id, &bytes, Origin::Peers).unwrap();
    assert_eq!(packs(after.path()).len(), 1);
    drop(again);
    assert_eq!(open(after.path()).read_all(&id).unwrap(), bytes);
}

#[test]
fn a_record_torn_at_any_byte_costs_that_record_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let (first, last) = (chunk(1, 100), chunk(2, 40));
    cache.insert(&first.0, &first.1, Origin::Strata).unwrap();
    let before = fs::metadata(&packs(folder.path())[0]).unwrap().len();
    cache.insert(&last.0, &last.1, Origin::Strata).unwrap();
    let whole = fs::metadata(&packs(folder.path())[0]).unwrap().len();
    assert_eq!(whole - before, HEADER + 40);
    for torn in before..whole {
        let after = as_after_a_kill(folder.path());
        let pack = packs(after.path()).remove(0);
        OpenOptions::new().write(true).open(&pack).unwrap().set_len(torn).unwrap();
        let again = open(after.path());
        assert_eq!(again.read_all(&first.0).unwrap(), first.1, "torn at {torn}");
        assert!(!again.contains(&last.0), "torn at {torn}");
        again.insert(&last.0, &last.1, Origin::Peers).unwrap();
        drop(again);
        assert_eq!(open(after.path()).read_all(&last.0).unwrap(), last.1, "torn at {torn}");
    }
}

#[test]
fn a_flipped_bit_makes_a_chunk_absent_and_is_never_delivered() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let chunks = [chunk(1, 50), chunk(2, 50), chunk(3, 50)];
    for (id, bytes) in &chunks {
        cache.insert(id, bytes, Origin::Strata).unwrap();
    }
    // In the second record: first and last plain byte, and a byte of the digest in the header.
    let second = HEADER + 50;
    for (at, third_survives) in [(second + HEADER, true), (second + HEADER + 49, true), (second + 20, false)]
    {
        let after = as_after_a_kill(folder.path());
        flip_a_bit(&packs(after.path())[0], at);
        let again = open(after.path());
        let removed: Arc<Mutex<Vec<ContentId>>> = Arc::default();
        let sink = Arc::clone(&removed);
        again.on_removal(Box::new(move |id| sink.lock().unwrap().push(*id)));
        assert_eq!(again.read(&chunks[1].0, 10, 5), None, "not even a slice without the flipped bit");
        assert!(!again.contains(&chunks[1].0));
        assert_eq!(again.read_all(&chunks[0].0).unwrap(), chunks[0].1);
        assert_eq!(again.read_all(&chunks[2].0).is_some(), third_survives);
        let damaged = u64::from(third_survives);
        assert_eq!(again.statistics().damaged, damaged, "a bad header ends the pack at start");
        assert_eq!(removed.lock().unwrap().len() as u64, damaged);
        assert_eq!(again.statistics().obtained.peers.chunks, 0);
    }
}

#[test]
fn what_rots_after_it_was_verified_is_noticed_where_all_is_verified_always() {
    let folder = tempfile::tempdir().unwrap();
    let always = CacheConfig { verify_always: true, ..config(64 << 20) };
    let cache = DiskCache::open(folder.path(), always).unwrap();
    let ((id, bytes), (other, other_bytes)) = (chunk(1, 200_000), chunk(2, 10));
    cache.insert(&id, &bytes, Origin::Strata).unwrap();
    cache.insert(&other, &other_bytes, Origin::Strata).unwrap();
    assert_eq!(cache.read(&id, 5, 10).unwrap(), bytes.slice(5..15));
    assert!(!cache.read_now(&id, 200_000, 0, &mut [0; 10]), "it hashes nothing");
    flip_a_bit(&packs(folder.path())[0], HEADER + 150_000);
    assert!(cache.read(&id, 5, 10).is_none(), "the wrong byte is elsewhere in the chunk");
    assert!(!cache.contains(&id) && cache.read_all(&other).unwrap() == other_bytes);
    assert_eq!(cache.statistics().damaged, 1);
    let place = Place { segment: id, ordinal: 0, offset: 0, stored_len: 1 };
    let list: Arc<[ChunkRef]> = [ChunkRef { id, plain_len: 200_000, place }].into();
    cache.insert(&id, &bytes, Origin::Strata).unwrap();
    for _ in 0..2 {
        assert!(cache.body(&list).is_none(), "the kernel checks nothing");
        cache.settle();
    }
    assert_eq!(cache.statistics().bodies, 0);
}

#[test]
fn the_quota_holds_and_what_is_read_stays() {
    let folder = tempfile::tempdir().unwrap();
    let quota = 16 << 20;
    let cache = DiskCache::open(folder.path(), config(quota)).unwrap();
    let (kept, bytes) = chunk(0, 1000);
    cache.insert(&kept, &bytes, Origin::Peers).unwrap();
    for number in 1..200 {
        let (id, bytes) = chunk(number, 300_000);
        cache.insert(&id, &bytes, Origin::Strata).unwrap();
        assert!(cache.read_all(&kept).is_some(), "evicted although it was read last, at {number}");
        let on_disk: u64 = packs(folder.path()).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert!(on_disk <= quota, "{on_disk} bytes on disk");
        assert_eq!(cache.statistics().bytes, on_disk);
    }
    let statistics = cache.statistics();
    assert!(statistics.evicted > 100 && statistics.entries + statistics.evicted == 200);
    assert_eq!(statistics.obtained.strata.chunks, 199);
    drop(cache);
    // A smaller quota takes effect at the next start.
    let cache = DiskCache::open(folder.path(), config(8 << 20)).unwrap();
    assert!(cache.statistics().bytes <= 8 << 20);
}

#[test]
fn a_chunk_that_comes_back_is_not_counted_twice() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), config(8 << 20)).unwrap();
    for round in 0..2 {
        for number in 0..20 {
            let (id, bytes) = chunk(number, 1 << 20);
            cache.insert(&id, &bytes, if round == 0 { Origin::Strata } else { Origin::Peers }).unwrap();
        }
    }
    let (refused, bytes) = chunk(77, 123);
    cache.note_obtained(&refused, 123, Origin::Peers);
    cache.insert(&refused, &bytes, Origin::Strata).unwrap();
    let obtained = cache.statistics().obtained;
    assert_eq!((obtained.strata.chunks, obtained.strata.bytes), (20, 20 << 20));
    assert_eq!((obtained.peers.chunks, obtained.peers.bytes), (1, 123));
}

#[test]
fn two_processes_cannot_share_a_cache() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path());
    let second = DiskCache::open(folder.path(), config(64 << 20));
    assert!(matches!(second, Err(CacheError::InUse { path }) if path == folder.path().to_string_lossy()));
    drop(first);
    open(folder.path());
}

#[test]
fn a_quota_out_of_bounds_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for quota in [0, CacheConfig::QUOTA_MIN_BYTES - 1, u64::MAX] {
        let error = DiskCache::open(folder.path(), config(quota)).err().unwrap().to_string();
        assert!(error.contains(&quota.to_string()), "{error}");
    }
}

#[test]
fn foreign_files_are_neither_read_nor_removed() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("README"), b"mine").unwrap();
    fs::write(
        folder.path().join("0000000f.pack"),
        b"not a pack at all, but long enough to hold a header: xxxxxxxxx",
    )
    .unwrap();
    let cache = open(folder.path());
    assert_eq!(cache.statistics().entries, 0);
    assert_eq!(fs::read(folder.path().join("README")).unwrap(), b"mine");
    let (id, bytes) = chunk(1, 10);
    cache.insert(&id, &bytes, Origin::Peers).unwrap();
    assert_eq!(cache.read_all(&id).unwrap(), bytes);
}

#[test]
fn what_lies_in_the_way_of_a_pack_stops_no_caching() {
    let folder = tempfile::tempdir().unwrap();
    // None of them can be opened as a pack.
    for name in ["00000000.pack", "00000003.pack"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let (first, second) = (chunk(1, 2 << 20), chunk(2, 10));
    let cache = DiskCache::open(folder.path(), config(8 << 20)).unwrap();
    // And one that comes later.
    fs::create_dir(folder.path().join("00000005.pack")).unwrap();
    for (id, bytes) in [&first, &second] {
        cache.insert(id, bytes, Origin::Peers).unwrap();
    }
    drop(cache);
    let cache = DiskCache::open(folder.path(), config(8 << 20)).unwrap();
    assert_eq!(cache.read_all(&first.0).unwrap(), first.1);
    assert_eq!(cache.read_all(&second.0).unwrap(), second.1);
}

/// A file that cannot be opened for writing, by root either, as long as this lives.
struct Sealed {
    file: File,
    flags: IFlags,
}

impl Sealed {
    fn new(path: &Path) -> Option<Self> {
        let file = File::open(path).unwrap();
        let flags = ioctl_getflags(&file).unwrap_or(IFlags::empty());
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
        let is_open = || OpenOptions::new().read(true).write(true).open(path).is_ok();
        let sealed = !is_open() || ioctl_setflags(&file, flags | IFlags::IMMUTABLE).is_ok() && !is_open();
        let made = Self { file, flags };
        if !sealed {
            let why = "a file cannot be kept from being opened";
            assert!(std::env::var_os("STARLING_REQUIRE_ALL").is_none(), "skipped: {why}");
            println!("skipped: {why}");
        }
        sealed.then_some(made)
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        let _ = ioctl_setflags(&self.file, self.flags);
        let _ = self.file.set_permissions(fs::Permissions::from_mode(0o600));
    }
}

#[test]
fn a_pack_that_cannot_be_opened_counts_in_the_quota_and_is_left_alone() {
    const QUOTA: u64 = 8 << 20;
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), config(QUOTA)).unwrap();
    let chunks: Vec<_> = (0..3).map(|number| chunk(number, 1 << 20)).collect();
    for (id, bytes) in &chunks {
        cache.insert(id, bytes, Origin::Peers).unwrap();
    }
    let before = cache.statistics();
    drop(cache);
    let on_disk = || packs(folder.path()).iter().map(|pack| fs::metadata(pack).unwrap().len()).sum::<u64>();
    assert_eq!((packs(folder.path()).len(), on_disk()), (3, before.bytes));
    let sealed_path = packs(folder.path())[1].clone();
    let sealed_bytes = fs::metadata(&sealed_path).unwrap().len();
    let Some(sealed) = Sealed::new(&sealed_path) else { return };

    let cache = DiskCache::open(folder.path(), config(QUOTA)).unwrap();
    let now = cache.statistics();
    assert_eq!((now.entries, now.packs, now.bytes), (2, 3, before.bytes));
    for number in 10..40 {
        let (id, bytes) = chunk(number, 1 << 20);
        cache.insert(&id, &bytes, Origin::Peers).unwrap();
        assert!(on_disk() <= QUOTA, "{} bytes", on_disk());
    }
    cache.scrub(u64::MAX);
    assert_eq!(cache.statistics().bytes, on_disk());
    let cleaned = cache.clean();
    assert_eq!((cleaned.kept_units, cleaned.kept_bytes, on_disk()), (1, sealed_bytes, sealed_bytes));
    drop(cache);

    drop(sealed);
    let cache = DiskCache::open(folder.path(), config(QUOTA)).unwrap();
    assert_eq!(cache.statistics().bytes, sealed_bytes);
    assert_eq!(cache.read_all(&chunks[1].0).unwrap(), chunks[1].1);
}

/// A tmpfs that is unmounted even when the test fails.
pub(super) struct SmallDisk(pub(super) TempDir);

impl SmallDisk {
    pub(super) fn new(options: &std::ffi::CStr) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        match rustix::mount::mount(
            "starling-test",
            folder.path(),
            "tmpfs",
            MountFlags::empty(),
            Some(options),
        ) {
            Ok(()) => Some(Self(folder)),
            Err(error) => {
                let why = format!("a small tmpfs cannot be mounted: {error}");
                assert!(std::env::var_os("STARLING_REQUIRE_ALL").is_none(), "skipped: {why}");
                println!("skipped: {why}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_refuses_inserts_and_serves_reads() {
    let Some(disk) = SmallDisk::new(c"size=4m") else { return };
    let folder = disk.0.path().join("cache");
    let cache = DiskCache::open(&folder, config(64 << 20)).unwrap();
    let mut stored = Vec::new();
    let refused = (0..).map(|number| chunk(number, 300_000)).find_map(|(id, bytes)| {
        match cache.insert(&id, &bytes, Origin::Strata) {
            Ok(()) => {
                stored.push((id, bytes));
                None
            }
            Err(error) => Some((id, error)),
        }
    });
    let (refused, error) = refused.unwrap();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(stored.len() > 8 && !cache.contains(&refused));
    for (id, bytes) in &stored {
        assert_eq!(cache.read_all(id).unwrap(), *bytes);
    }
    drop(cache);
    let cache = DiskCache::open(&folder, config(64 << 20)).unwrap();
    assert_eq!(cache.statistics().entries, stored.len() as u64, "nothing half-written is left");
}

#[test]
fn a_failing_write_pauses_writing_and_disturbs_no_reader() {
    // Room for the folder, the lock and one pack: the second pack cannot be made.
    let Some(disk) = SmallDisk::new(c"size=64m,nr_inodes=4") else { return };
    let folder = disk.0.path().join("cache");
    let cache = DiskCache::open(&folder, config(8 << 20)).unwrap();
    let chunks: Vec<_> = (0..3).map(|number| chunk(number, 1 << 20)).collect();
    cache.insert(&chunks[0].0, &chunks[0].1, Origin::Strata).unwrap();
    let error = cache.insert(&chunks[1].0, &chunks[1].1, Origin::Strata).unwrap_err();
    assert!(matches!(error, StoreError::Full { wanted_bytes, .. } if wanted_bytes > 1 << 20), "{error}");
    assert!(cache.statistics().writing_paused && !cache.contains(&chunks[1].0));
    let paused = cache.insert(&chunks[2].0, &chunks[2].1, Origin::Strata).unwrap_err().to_string();
    assert!(paused.contains("pauses"), "{paused}");
    assert_eq!(cache.read_all(&chunks[0].0).unwrap(), chunks[0].1);
    // The bytes went to their reader all the same, and the books know it.
    cache.note_obtained(&chunks[1].0, 1 << 20, Origin::Strata);
    assert_eq!(cache.statistics().obtained.strata.chunks, 2);
}

#[test]
fn a_disk_that_was_read_only_at_the_start_is_written_once_it_can_be() {
    let Some(disk) = SmallDisk::new(c"size=64m") else { return };
    let folder = disk.0.path().join("cache");
    let chunks: Vec<_> = (0..3).map(|number| chunk(number, 70_000)).collect();
    let cache = open(&folder);
    cache.insert(&chunks[0].0, &chunks[0].1, Origin::Strata).unwrap();
    drop(cache);
    let remount = |flags| rustix::mount::mount_remount(disk.0.path(), flags, c"").unwrap();
    remount(MountFlags::RDONLY);
    let cache = open(&folder);
    assert!(cache.insert(&chunks[1].0, &chunks[1].1, Origin::Strata).is_err());
    remount(MountFlags::empty());
    let stored = (0..3).any(|_| {
        super::inner::lock(&cache.inner.writer).go_on();
        cache.insert(&chunks[1].0, &chunks[1].1, Origin::Strata).is_ok()
    });
    assert!(stored, "the pack that was opened for reading alone is tried again and again");
    cache.insert(&chunks[2].0, &chunks[2].1, Origin::Strata).unwrap();
    for (id, bytes) in &chunks {
        assert_eq!(cache.read_all(id).unwrap(), *bytes);
    }
}

#[test]
fn the_floor_makes_the_cache_give_way_before_the_disk_is_full() {
    let Some(disk) = SmallDisk::new(c"size=16m") else { return };
    let floor = 4 << 20;
    let config = CacheConfig { free_floor_bytes: floor, minimum_bytes: 1 << 20, ..config(64 << 20) };
    let folder = disk.0.path().join("cache");
    let cache = DiskCache::open(&folder, config.clone()).unwrap();
    // Packs of a 64 MiB quota have 8 MiB: one is full and may go when the floor is reached.
    for number in 0..40 {
        let (id, bytes) = chunk(number, 500_000);
        let _ = cache.insert(&id, &bytes, Origin::Strata);
        let free = rustix::fs::statvfs(&folder).unwrap();
        assert!(free.f_bavail * free.f_frsize >= floor, "below the floor at {number}");
    }
    assert!(cache.statistics().evicted > 0);
    assert!(!cache.statistics().writing_paused, "the disk itself never refused");
}
