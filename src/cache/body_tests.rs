//! Bodies: what is promised of them, and a naive model.

use super::tests::{SmallDisk, as_after_a_kill, chunk, config, flip_a_bit, open, packs};
use super::{CacheConfig, DiskCache};
use crate::model::{ChunkRef, ContentId, Place};
use crate::store::{ChunkStore, Origin};
use bytes::Bytes;
use proptest::prelude::*;
use rustix::mount::MountFlags;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A file of chunks, by number and length.
pub(super) struct Made {
    pub(super) chunks: Vec<(ContentId, Bytes)>,
    pub(super) list: Arc<[ChunkRef]>,
    pub(super) plain: Vec<u8>,
}

pub(super) fn file(chunks: &[(u64, usize)]) -> Made {
    let place = Place { segment: ContentId::of(b"s"), ordinal: 0, offset: 0, stored_len: 1 };
    let chunks: Vec<_> = chunks.iter().map(|(number, len)| chunk(*number, *len)).collect();
    let plain_len = |bytes: &Bytes| u32::try_from(bytes.len()).unwrap();
    let list = chunks.iter().map(|(id, bytes)| ChunkRef { id: *id, plain_len: plain_len(bytes), place });
    let list = list.collect();
    let plain = chunks.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect();
    Made { chunks, list, plain }
}

/// Four chunks whose borders are on no block's border.
pub(super) fn ordinary(first: u64) -> Made {
    file(&[(first, 70_001), (first + 1, 50_003), (first + 2, 999), (first + 3, 60_007)])
}

pub(super) fn insert(cache: &DiskCache, chunks: &[(ContentId, Bytes)]) {
    for (id, bytes) in chunks {
        cache.insert(id, bytes, Origin::Strata).unwrap();
    }
    cache.settle();
}

pub(super) fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The body, after whatever the worker has to do for it.
pub(super) fn body(cache: &DiskCache, made: &Made) -> Option<Arc<File>> {
    let first = cache.body(&made.list);
    cache.settle();
    first.or_else(|| cache.body(&made.list))
}

pub(super) fn bodies(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder.join("bodies")) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = paths.filter(|path| path.extension().is_none()).collect();
    found.sort();
    found
}

fn list_of(body: &Path) -> PathBuf {
    body.with_extension("list")
}

#[test]
fn what_is_fetched_for_a_noted_file_lies_in_its_body_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let made = ordinary(0);
    assert!(cache.body(&made.list).is_none());
    assert!(bodies(folder.path()).is_empty(), "a note alone makes no file");
    insert(&cache, &made.chunks[1..]);
    assert!(cache.body(&made.list).is_none(), "a chunk is missing");
    insert(&cache, &made.chunks[..1]);
    let handed = cache.body(&made.list).expect("all is there");
    assert_eq!(content(&handed), made.plain);
    assert!(handed.write_at(b"x", 0).is_err(), "it is read only");
    assert!(packs(folder.path()).is_empty());
    for (id, bytes) in &made.chunks {
        assert_eq!(cache.read_all(id).unwrap(), bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        assert_eq!(cache.read(id, 7, len - 7).unwrap(), bytes.slice(7..));
        let mut buffer = [0; 100];
        if cache.read_now(id, len, 11, &mut buffer) {
            assert_eq!(buffer, bytes[11..111]);
        }
        assert!(!cache.read_now(id, len + 1, 0, &mut buffer));
        assert_eq!(cache.origin(id), Some(Origin::Strata));
    }
    let statistics = cache.statistics();
    assert_eq!((statistics.entries, statistics.bodies, statistics.bodies_complete), (4, 1, 1));
    let list = fs::metadata(list_of(&bodies(folder.path())[0])).unwrap().len();
    assert_eq!(statistics.bytes, made.plain.len() as u64 + list);
    assert_eq!(statistics.obtained.strata.bytes, made.plain.len() as u64);
}

#[test]
fn chunks_in_packs_are_copied_and_lie_in_the_body_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let made = ordinary(0);
    insert(&cache, &made.chunks);
    assert!(cache.body(&made.list).is_none());
    cache.settle();
    assert_eq!(content(&cache.body(&made.list).expect("copied")), made.plain);
    // Without the pack it is still there.
    fs::remove_file(&packs(folder.path())[0]).unwrap();
    drop(cache);
    let cache = open(folder.path());
    for (id, bytes) in &made.chunks {
        assert_eq!(cache.read_all(id).unwrap(), bytes);
    }
}

#[test]
fn one_copy_serves_and_another_takes_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    // The chunk 9 twice in one file, and in another, too.
    let first = file(&[(9, 60_000), (1, 70_000), (9, 60_000)]);
    let second = file(&[(2, 80_000), (9, 60_000)]);
    assert!(cache.body(&first.list).is_none() && cache.body(&second.list).is_none());
    insert(&cache, &first.chunks[..1]);
    assert_eq!(cache.statistics().bodies, 1, "in the one that was noted first");
    insert(&cache, &second.chunks[..1]);
    assert_eq!(content(&cache.body(&second.list).unwrap()), second.plain);
    assert!(cache.body(&first.list).is_none());
    insert(&cache, &first.chunks[1..2]);
    assert_eq!(content(&cache.body(&first.list).unwrap()), first.plain);
    assert_eq!(cache.statistics().entries, 3);
    assert!(packs(folder.path()).is_empty());
    // The first body is damaged where the table points to: the copy in the second serves, after a restart, too.
    let paths = bodies(folder.path());
    let path_of = |made: &Made| {
        let len = made.plain.len() as u64;
        paths.iter().find(|path| fs::metadata(path).unwrap().len() == len).unwrap().clone()
    };
    drop(cache);
    flip_a_bit(&path_of(&first), 0);
    flip_a_bit(&path_of(&first), 130_000);
    let cache = open(folder.path());
    let read = (0..3).find_map(|_| cache.read_all(&first.chunks[0].0));
    assert_eq!(read.unwrap(), first.chunks[0].1);
    assert!(body(&cache, &first).is_some_and(|file| content(&file) == first.plain), "mended from the copy");
    assert!(body(&cache, &second).is_some_and(|file| content(&file) == second.plain));
}

#[test]
fn after_a_kill_a_body_is_there_and_is_verified_before_it_is_handed_out() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let (whole, partial) = (ordinary(0), ordinary(10));
    assert!(cache.body(&whole.list).is_none() && cache.body(&partial.list).is_none());
    insert(&cache, &whole.chunks);
    insert(&cache, &partial.chunks[1..3]);
    let after = as_after_a_kill(folder.path());
    let again = open(after.path());
    assert_eq!(again.statistics().entries, 6);
    assert_eq!(again.statistics().bytes, cache.statistics().bytes);
    assert_eq!(again.statistics().bodies_complete, 0);
    assert!(again.body(&whole.list).is_none(), "nothing was verified in this run");
    again.settle();
    assert_eq!(content(&again.body(&whole.list).unwrap()), whole.plain);
    assert_eq!(again.statistics().obtained.cache.chunks, 4);
    // Reading verifies as well.
    let third = as_after_a_kill(folder.path());
    let third = open(third.path());
    for (id, bytes) in &whole.chunks {
        assert_eq!(third.read_all(id).unwrap(), bytes);
    }
    third.settle();
    assert_eq!(content(&third.body(&whole.list).unwrap()), whole.plain);
    // And the other goes on where it was.
    assert!(body(&again, &partial).is_none());
    assert!(!again.contains(&partial.chunks[0].0) && again.contains(&partial.chunks[1].0));
    insert(&again, &partial.chunks);
    assert_eq!(content(&again.body(&partial.list).unwrap()), partial.plain);
}

#[test]
fn what_lies_in_a_hole_is_absent_and_not_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let made = ordinary(0);
    assert!(cache.body(&made.list).is_none());
    insert(&cache, &made.chunks);
    drop(cache);
    // As after a power cut that kept the marks and lost the bytes.
    let path = bodies(folder.path()).remove(0);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    rustix::fs::fallocate(
        &file,
        rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
        0,
        64 << 10,
    )
    .unwrap();
    let cache = open(folder.path());
    assert!(!cache.contains(&made.chunks[0].0) && cache.contains(&made.chunks[1].0));
    assert!(body(&cache, &made).is_none());
    insert(&cache, &made.chunks[..1]);
    assert_eq!(content(&cache.body(&made.list).unwrap()), made.plain);
    assert_eq!(cache.statistics().damaged, 0);
}

#[test]
fn a_torn_or_foreign_body_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let (made, other) = (ordinary(0), ordinary(10));
    assert!(cache.body(&made.list).is_none() && cache.body(&other.list).is_none());
    insert(&cache, &made.chunks);
    insert(&cache, &other.chunks);
    let total = made.plain.len() as u64;
    type Tear = Box<dyn Fn(&Path)>;
    let tears: [(&str, Tear); 5] = [
        ("no list", Box::new(|body| fs::remove_file(list_of(body)).unwrap())),
        ("no body", Box::new(|body| fs::remove_file(body).unwrap())),
        ("a short body", Box::new(move |body| set_len(body, total - 1))),
        ("a torn list", Box::new(|body| set_len(&list_of(body), 30))),
        ("another list", Box::new(|body| flip_a_bit(&list_of(body), 20))),
    ];
    for (what, tear) in tears {
        let after = as_after_a_kill(folder.path());
        fs::write(after.path().join("bodies/README"), b"mine").unwrap();
        tear(&bodies(after.path())[0]);
        let again = open(after.path());
        assert_eq!(again.statistics().entries, 4, "{what}");
        assert_eq!(fs::read_dir(after.path().join("bodies")).unwrap().count(), 3, "{what}");
        assert_eq!(fs::read(after.path().join("bodies/README")).unwrap(), b"mine");
        for made in [&made, &other] {
            let _ = again.body(&made.list);
            insert(&again, &made.chunks);
            assert_eq!(content(&body(&again, made).unwrap()), made.plain, "{what}");
        }
    }
}

fn set_len(path: &Path, len: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

#[test]
fn a_flipped_bit_in_a_body_is_never_delivered_and_mended_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let made = ordinary(0);
    assert!(cache.body(&made.list).is_none());
    insert(&cache, &made.chunks);
    for by_reading in [true, false] {
        let after = as_after_a_kill(folder.path());
        flip_a_bit(&bodies(after.path())[0], 70_001 + 17);
        let again = open(after.path());
        let removed: Arc<Mutex<Vec<ContentId>>> = Arc::default();
        let sink = Arc::clone(&removed);
        again.on_removal(Box::new(move |id| sink.lock().unwrap().push(*id)));
        if by_reading {
            assert_eq!(
                again.read(&made.chunks[1].0, 100, 5),
                None,
                "not even a slice without the flipped bit"
            );
        }
        assert!(body(&again, &made).is_none());
        assert_eq!(*removed.lock().unwrap(), [made.chunks[1].0]);
        assert_eq!(again.statistics().damaged, 1);
        assert_eq!(again.read_all(&made.chunks[0].0).unwrap(), made.chunks[0].1);
        insert(&again, &made.chunks[1..2]);
        assert_eq!(content(&again.body(&made.list).unwrap()), made.plain);
        assert!(packs(after.path()).is_empty());
    }
}

#[test]
fn a_body_in_use_stays_and_another_leaves_with_its_chunks() {
    let folder = tempfile::tempdir().unwrap();
    let quota = 8 << 20;
    let cache = DiskCache::open(folder.path(), config(quota)).unwrap();
    let removed: Arc<Mutex<BTreeSet<ContentId>>> = Arc::default();
    let sink = Arc::clone(&removed);
    cache
        .on_removal(Box::new(move |id| assert!(sink.lock().unwrap().insert(*id), "{id} was reported twice")));
    let (used, unused) = (ordinary(0), ordinary(10));
    for made in [&used, &unused] {
        assert!(cache.body(&made.list).is_none());
        insert(&cache, &made.chunks);
    }
    let held = cache.body(&used.list).unwrap();
    assert!(cache.body(&unused.list).is_some());
    for number in 100..160 {
        let (id, bytes) = chunk(number, 500_000);
        cache.insert(&id, &bytes, Origin::Peers).unwrap();
        assert!(cache.statistics().bytes <= quota);
    }
    assert_eq!(content(&held), used.plain);
    assert!(used.chunks.iter().all(|(id, _)| cache.contains(id)));
    assert!(unused.chunks.iter().all(|(id, _)| !cache.contains(id) && removed.lock().unwrap().contains(id)));
    assert_eq!(bodies(folder.path()).len(), 1);
    assert!(cache.body(&used.list).is_some() && cache.body(&unused.list).is_none());
    // Nobody has it any more.
    drop(held);
    let reader = cache.body(&used.list).unwrap().try_clone().unwrap();
    for number in 200..260 {
        let (id, bytes) = chunk(number, 500_000);
        cache.insert(&id, &bytes, Origin::Peers).unwrap();
    }
    assert!(bodies(folder.path()).is_empty());
    assert_eq!(content(&reader), used.plain, "who has it open reads on");
    // It comes back under the same name.
    assert!(cache.body(&used.list).is_none());
    insert(&cache, &used.chunks);
    assert_eq!(content(&cache.body(&used.list).unwrap()), used.plain);
}

#[test]
fn a_new_body_does_not_touch_the_file_of_an_old_one_that_lies_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let made = ordinary(0);
    cache.body(&made.list);
    insert(&cache, &made.chunks);
    let handed = body(&cache, &made).unwrap();
    drop(cache);
    // The next run does not find it, as when its folder could not be read then.
    let (bodies, aside) = (folder.path().join("bodies"), folder.path().join("aside"));
    fs::rename(&bodies, &aside).unwrap();
    let cache = open(folder.path());
    fs::rename(&aside, &bodies).unwrap();
    assert!(cache.body(&made.list).is_none());
    insert(&cache, &made.chunks[..1]);
    assert_eq!(cache.statistics().bodies, 1);
    assert_eq!(content(&handed), made.plain, "whoever has the old file open reads on in it");
}

#[test]
fn a_body_that_cannot_be_read_at_the_start_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let made = ordinary(0);
    cache.body(&made.list);
    insert(&cache, &made.chunks);
    drop(cache);
    let plain = bodies(folder.path()).remove(0);
    fs::remove_file(list_of(&plain)).unwrap();
    fs::create_dir(list_of(&plain)).unwrap();
    let cache = open(folder.path());
    let statistics = cache.statistics();
    assert_eq!((statistics.entries, statistics.bodies, bodies(folder.path()).len()), (0, 1, 1));
    // What comes again is stored where that is possible.
    assert!(cache.body(&made.list).is_none());
    insert(&cache, &made.chunks);
    assert!(made.chunks.iter().all(|(id, bytes)| cache.read_all(id).as_ref() == Some(bytes)));
}

/// Bytes that the disk has given to the files of all bodies.
fn allocated(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder.join("bodies")).unwrap();
    let files = entries.map(|entry| entry.unwrap().metadata().unwrap()).filter(|found| found.is_file());
    files.map(|found| found.blocks() * 512).sum()
}

#[test]
fn a_body_that_cannot_be_read_counts_in_the_quota_until_another_is_in_its_place() {
    const QUOTA: u64 = 8 << 20;
    let folder = tempfile::tempdir().unwrap();
    let reopen = || DiskCache::open(folder.path(), config(QUOTA)).unwrap();
    let cache = reopen();
    let (made, other) = (file(&[(0, 1 << 20), (1, 900_000)]), ordinary(10));
    for made in [&made, &other] {
        assert!(cache.body(&made.list).is_none());
        insert(&cache, &made.chunks);
    }
    drop(cache);
    let largest = |path: &PathBuf| fs::metadata(path).unwrap().len();
    let plain = bodies(folder.path()).into_iter().max_by_key(largest).unwrap();
    fs::remove_file(list_of(&plain)).unwrap();
    fs::create_dir(list_of(&plain)).unwrap();
    let cache = reopen();
    assert_eq!((cache.statistics().bodies, cache.statistics().entries), (2, 4));
    assert!(cache.statistics().bytes > 1_900_000, "{}", cache.statistics().bytes);
    for number in 100..140 {
        let (id, bytes) = chunk(number, 500_000);
        cache.insert(&id, &bytes, Origin::Peers).unwrap();
        let in_packs: u64 = packs(folder.path()).iter().map(|pack| fs::metadata(pack).unwrap().len()).sum();
        let on_disk = in_packs + allocated(folder.path());
        // An ordinary body has blocks that are not full.
        assert!(on_disk <= QUOTA + 16_384, "{on_disk} bytes");
    }
    let cleaned = cache.clean();
    assert_eq!((cleaned.kept_units, cleaned.kept_bytes), (1, allocated(folder.path())));
    assert_eq!(
        (cache.statistics().bytes, fs::read(&plain).unwrap() == made.plain),
        (cleaned.kept_bytes, true)
    );
    // Another is made in its place.
    fs::remove_dir(list_of(&plain)).unwrap();
    assert!(cache.body(&made.list).is_none());
    insert(&cache, &made.chunks);
    assert_eq!(content(&cache.body(&made.list).unwrap()), made.plain);
    let list = fs::metadata(list_of(&plain)).unwrap().len();
    assert_eq!((cache.statistics().bodies, cache.statistics().bytes), (1, made.plain.len() as u64 + list));
}

#[test]
fn a_torn_body_that_cannot_be_removed_counts_in_the_quota_too() {
    let Some(disk) = SmallDisk::new(c"size=64m") else { return };
    let folder = disk.0.path().join("cache");
    let cache = open(&folder);
    let made = ordinary(0);
    assert!(cache.body(&made.list).is_none());
    insert(&cache, &made.chunks);
    drop(cache);
    set_len(&list_of(&bodies(&folder)[0]), 30);
    let remount = |flags| rustix::mount::mount_remount(disk.0.path(), flags, c"").unwrap();
    remount(MountFlags::RDONLY);
    let cache = open(&folder);
    let statistics = cache.statistics();
    assert_eq!((statistics.entries, statistics.bodies, statistics.bytes), (0, 1, allocated(&folder)));
    assert!(statistics.bytes >= made.plain.len() as u64, "{}", statistics.bytes);
    drop(cache);
    remount(MountFlags::empty());
    assert_eq!(open(&folder).statistics().bytes, 0);
    assert!(bodies(&folder).is_empty());
}

#[test]
fn open_files_leave_room_for_what_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), config(8 << 20)).unwrap();
    let mut held = Vec::new();
    for number in 0..5 {
        let made = file(&[(number, 1_500_000)]);
        assert!(cache.body(&made.list).is_none());
        insert(&cache, &made.chunks);
        held.extend(cache.body(&made.list));
        assert!(made.chunks.iter().all(|(id, bytes)| cache.read_all(id).as_ref() == Some(bytes)));
    }
    assert_eq!(held.len(), 4, "80 % of the quota");
    for number in 100..120 {
        let (id, bytes) = chunk(number, 500_000);
        cache.insert(&id, &bytes, Origin::Peers).unwrap();
    }
    drop(held);
}

#[test]
fn a_file_too_large_for_the_quota_gets_no_body() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), config(8 << 20)).unwrap();
    let large = file(&[(1, 1 << 20), (2, 1 << 20), (3, 1)]);
    assert!(cache.body(&large.list).is_none());
    insert(&cache, &large.chunks);
    assert!(body(&cache, &large).is_none());
    assert!(bodies(folder.path()).is_empty() && cache.contains(&large.chunks[2].0));
}

#[test]
fn descriptors_do_not_grow_with_the_number_of_bodies() {
    let folder = tempfile::tempdir().unwrap();
    let open_files = || {
        let links = fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        links.filter(|path| path.starts_with(folder.path())).count()
    };
    let made: Vec<_> = (0..150).map(|number| file(&[(number, 128 << 10)])).collect();
    for _ in 0..2 {
        let cache = open(folder.path());
        for made in &made {
            let _ = cache.body(&made.list);
            insert(&cache, &made.chunks);
            assert_eq!(content(&body(&cache, made).unwrap()), made.plain);
        }
        for made in &made {
            assert_eq!(cache.read_all(&made.chunks[0].0).unwrap(), made.chunks[0].1);
        }
        assert_eq!(cache.statistics().bodies_complete, 150);
        assert!(cache.statistics().bodies_open <= 64);
        assert!(open_files() <= 2 * 64 + 2, "{} files are open", open_files());
    }
}

#[test]
fn no_more_bodies_are_handed_out_than_leave_room_for_other_open_files() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    cache.inner.files.set_most_handed_out(3);
    let made: Vec<_> = (0..6).map(|number| file(&[(number, 128 << 10)])).collect();
    let mut held: Vec<_> = made
        .iter()
        .filter_map(|made| {
            assert!(cache.body(&made.list).is_none());
            insert(&cache, &made.chunks);
            cache.body(&made.list)
        })
        .collect();
    assert_eq!(held.len(), 3);
    // What is handed out once more is no further file, and what is refused is here all the same.
    assert!(Arc::ptr_eq(&cache.body(&made[1].list).unwrap(), &held[1]));
    assert!(cache.body(&made[5].list).is_none());
    assert_eq!(cache.read_all(&made[5].chunks[0].0).unwrap(), made[5].chunks[0].1);
    held.remove(0);
    held.push(cache.body(&made[5].list).expect("somebody has closed his"));
    assert!(cache.body(&made[4].list).is_none());
    drop(held);
    let again: Vec<_> = made.iter().filter_map(|made| cache.body(&made.list)).collect();
    assert_eq!(again.len(), 3);
}

#[test]
fn notes_are_bounded_and_the_oldest_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    for number in 0..1100 {
        assert!(cache.body(&file(&[(number, 128 << 10)]).list).is_none());
    }
    assert_eq!(super::inner::lock(&cache.inner.noted).wanted(), (1024, 1024));
    insert(&cache, &file(&[(0, 128 << 10)]).chunks);
    insert(&cache, &file(&[(1099, 128 << 10)]).chunks);
    assert_eq!((packs(folder.path()).len(), bodies(folder.path()).len()), (1, 1));
}

#[test]
fn a_body_that_cannot_be_written_is_given_up_and_its_chunks_are_stored_elsewhere() {
    // Room for the folders, the lock and one file more: a pack, but not the two files of a body.
    let Some(disk) = SmallDisk::new(c"size=64m,nr_inodes=5") else { return };
    let folder = disk.0.path().join("cache");
    let cache = DiskCache::open(&folder, config(64 << 20)).unwrap();
    let made = ordinary(0);
    assert!(cache.body(&made.list).is_none());
    insert(&cache, &made.chunks);
    assert!(body(&cache, &made).is_none());
    assert!(!cache.statistics().writing_paused);
    for (id, bytes) in &made.chunks {
        assert_eq!(cache.read_all(id).unwrap(), bytes);
    }
}

#[test]
fn a_full_disk_leaves_no_half_written_body() {
    let Some(disk) = SmallDisk::new(c"size=4m") else { return };
    let folder = disk.0.path().join("cache");
    // Nothing may leave to make room.
    let config = CacheConfig { minimum_bytes: 64 << 20, ..config(64 << 20) };
    let cache = DiskCache::open(&folder, config.clone()).unwrap();
    let made: Vec<_> = (0..30).map(|number| ordinary(10 * number)).collect();
    let mut refused = 0;
    for made in &made {
        assert!(cache.body(&made.list).is_none());
        for (id, bytes) in &made.chunks {
            refused += u32::from(cache.insert(id, bytes, Origin::Strata).is_err());
        }
    }
    cache.settle();
    assert!(refused > 0);
    let check = |cache: &DiskCache| {
        for made in &made {
            for (id, bytes) in &made.chunks {
                assert!(cache.read_all(id).is_none_or(|read| read == *bytes));
            }
            assert!(body(cache, made).is_none_or(|file| content(&file) == made.plain));
        }
        assert_eq!(cache.statistics().damaged, 0);
    };
    check(&cache);
    let entries = cache.statistics().entries;
    drop(cache);
    let cache = DiskCache::open(&folder, config).unwrap();
    assert_eq!(cache.statistics().entries, entries);
    check(&cache);
}

/// What happens to the cache of the model.
#[derive(Clone, Debug)]
enum Step {
    Insert(usize),
    Read(usize),
    /// Opens a file, with the worker's help or without.
    Body(usize, bool),
    /// Opens a file and keeps it open.
    Hold(usize),
    Release,
    /// Brings in chunks of no file, so that others have to leave.
    Crowd(u8),
    /// The process ends, in order or by a kill, and bits flip.
    Reopen(bool, Vec<(u16, u32)>),
}

const CHUNKS: usize = 24;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..CHUNKS).prop_map(Step::Insert),
        4 => (0..CHUNKS).prop_map(Step::Read),
        6 => (0..8_usize, any::<bool>()).prop_map(|(file, settle)| Step::Body(file, settle)),
        2 => (0..8_usize).prop_map(Step::Hold),
        1 => Just(Step::Release),
        1 => (1_u8..12).prop_map(Step::Crowd),
        2 => (any::<bool>(), proptest::collection::vec((any::<u16>(), any::<u32>()), 0..3))
            .prop_map(|(kill, flips)| Step::Reopen(kill, flips)),
    ];
    proptest::collection::vec(step, 1..60)
}

/// The files of the model: chunks of their own, chunks that they share, chunks that repeat.
fn model_files() -> Vec<Made> {
    let len = |number: usize| 20_000 + 7_919 * (number % 7) + usize::from(number.is_multiple_of(5)) * 50_000;
    (0..8_usize)
        .map(|number| {
            let of = |step: usize| (number * 3 + step * (1 + number % 4)) % CHUNKS;
            let chunks: Vec<_> = (0..7).map(|step| (of(step) as u64, len(of(step)))).collect();
            file(&chunks)
        })
        .collect()
}

fn model_chunk(files: &[Made], number: usize) -> (ContentId, Bytes) {
    let mut all: Vec<_> = files.iter().flat_map(|made| made.chunks.clone()).collect();
    all.sort_by_key(|(id, _)| *id);
    all.dedup_by_key(|(id, _)| *id);
    all[number % all.len()].clone()
}

fn watched(folder: &Path) -> (DiskCache, Arc<Mutex<Vec<ContentId>>>) {
    let cache = DiskCache::open(folder, config(CacheConfig::QUOTA_MIN_BYTES)).unwrap();
    let removed: Arc<Mutex<Vec<ContentId>>> = Arc::default();
    let sink = Arc::clone(&removed);
    cache.on_removal(Box::new(move |id| sink.lock().unwrap().push(*id)));
    (cache, removed)
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = packs(folder);
    found.extend(bodies(folder));
    found.extend(bodies(folder).iter().map(|body| list_of(body)));
    found
}

fn run_model(steps: &[Step]) {
    let mut folder = tempfile::tempdir().unwrap();
    let files = model_files();
    let (mut cache, mut removed) = watched(folder.path());
    let mut here: BTreeSet<ContentId> = BTreeSet::new();
    let mut held: Vec<(Arc<File>, usize)> = Vec::new();
    let mut crowd = 1000;
    for step in steps {
        match step {
            Step::Insert(number) => {
                let (id, bytes) = model_chunk(&files, *number);
                cache.insert(&id, &bytes, Origin::Peers).unwrap();
                cache.settle();
                here.insert(id);
            }
            Step::Read(number) => {
                let (id, bytes) = model_chunk(&files, *number);
                assert!(cache.read_all(&id).is_none_or(|read| read == bytes));
            }
            Step::Body(number, settle) => {
                let found =
                    if *settle { body(&cache, &files[*number]) } else { cache.body(&files[*number].list) };
                assert!(found.is_none_or(|file| content(&file) == files[*number].plain));
                cache.settle();
            }
            Step::Hold(number) => held.extend(body(&cache, &files[*number]).map(|file| (file, *number))),
            Step::Release => held.clear(),
            Step::Crowd(count) => {
                for _ in 0..*count {
                    crowd += 1;
                    let (id, bytes) = chunk(crowd, 700_000);
                    cache.insert(&id, &bytes, Origin::Strata).unwrap();
                    cache.settle();
                }
            }
            Step::Reopen(kill, flips) => {
                held.clear();
                if *kill {
                    let after = as_after_a_kill(folder.path());
                    drop(cache);
                    folder = after;
                } else {
                    drop(cache);
                }
                for (which, at) in flips {
                    let paths = files_below(folder.path());
                    let Some(path) = paths.get(usize::from(*which) % paths.len().max(1)) else { continue };
                    let len = fs::metadata(path).unwrap().len();
                    if len > 0 {
                        flip_a_bit(path, u64::from(*at) % len);
                    }
                }
                (cache, removed) = watched(folder.path());
                let now: BTreeSet<_> = (0..CHUNKS).map(|number| model_chunk(&files, number).0).collect();
                let now: BTreeSet<_> = now.into_iter().filter(|id| cache.contains(id)).collect();
                assert!(!flips.is_empty() || now.is_superset(&here), "lost without a reason");
                here = now;
            }
        }
        for id in std::mem::take(&mut *removed.lock().unwrap()) {
            here.remove(&id);
        }
        for number in 0..CHUNKS {
            let (id, _) = model_chunk(&files, number);
            assert_eq!(cache.contains(&id), here.contains(&id), "chunk {number} after {step:?}");
        }
        let bytes = cache.statistics().bytes;
        assert!(bytes <= CacheConfig::QUOTA_MIN_BYTES, "{bytes} bytes after {step:?}");
        for (file, number) in &held {
            assert_eq!(content(file), files[*number].plain);
        }
    }
    // At the end everything comes again, and every file is whole.
    held.clear();
    for made in &files {
        let _ = cache.body(&made.list);
        insert(&cache, &made.chunks);
        for (id, bytes) in &made.chunks {
            if cache.read_all(id).is_none() {
                cache.insert(id, bytes, Origin::Strata).unwrap();
            }
            assert_eq!(cache.read_all(id).unwrap(), *bytes);
        }
        assert_eq!(content(&body(&cache, made).expect("whole")), made.plain);
    }
    super::inner::lock(&cache.inner.noted).wanted();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn a_naive_model_is_kept(steps in steps()) {
        run_model(&steps);
    }
}
