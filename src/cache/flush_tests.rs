//! A disk that takes less than the kernel promised.

#[path = "../../tests/common/thin_disk.rs"]
mod thin_disk;

use super::body_tests::{body, content, file, insert, ordinary};
use super::inner::lock;
use super::tests::{chunk, flip_a_bit, open, packs};
use super::unit::Unit;
use crate::store::{ChunkStore, Origin};
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::Ordering;
use thin_disk::ThinDisk;

fn thin_disk() -> Option<ThinDisk> {
    let made = ThinDisk::new().inspect_err(|why| {
        assert!(std::env::var_os("STARLING_REQUIRE_ALL").is_none(), "skipped: {why}");
        println!("skipped: {why}");
    });
    made.ok()
}

/// Drops what the kernel has in memory of the files below `folder`, as it does when it needs the room.
fn drop_pages(folder: &Path) {
    rustix::fs::sync();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            drop_pages(&path);
        } else {
            super::files::drop_pages(&File::open(path).unwrap());
        }
    }
}

#[test]
fn what_the_disk_did_not_take_is_never_delivered() {
    let Some(disk) = thin_disk() else { return };
    let folder = disk.at().join("cache");
    let cache = open(&folder);
    let before = chunk(50, 300_000);
    insert(&cache, std::slice::from_ref(&before));
    cache.sync().unwrap();
    disk.fill_beneath();
    let large = file(&[(0, 1 << 20), (1, 1 << 20), (2, 700_001)]);
    let small: Vec<_> = (60..70).map(|number| chunk(number, 200_000)).collect();
    insert(&cache, &small);
    assert!(cache.body(&large.list).is_none());
    insert(&cache, &large.chunks);
    assert!(cache.body(&large.list).is_none(), "the kernel would read it by itself");
    cache.settle();
    assert!(cache.statistics().writing_paused, "nobody writes on as if nothing had happened");
    drop_pages(&folder);
    let written = fs::read(super::body_tests::bodies(&folder)[0].as_path()).unwrap_or_default();
    assert!(written != large.plain, "the disk took it after all: this shows nothing");
    let mut lost = 0;
    for (id, bytes) in large.chunks.iter().chain(&small) {
        for _ in 0..2 {
            match cache.read(id, 11, 1000) {
                Some(read) => assert_eq!(read, bytes.slice(11..1011)),
                None => lost += 1,
            }
        }
        let mut buffer = [0; 100];
        let len = u32::try_from(bytes.len()).unwrap();
        assert!(!cache.read_now(id, len, 5, &mut buffer) || buffer == bytes[5..105]);
    }
    assert!(lost > 10, "{lost}");
    // What was there before serves on.
    assert_eq!(cache.read_all(&before.0).unwrap(), before.1);
    assert!(cache.body(&large.list).is_none());
}

#[test]
fn what_is_in_doubt_is_hashed_once_before_it_is_delivered_again() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let (right, wrong) = (chunk(50, 90_000), chunk(51, 90_000));
    insert(&cache, &[right.clone(), wrong.clone()]);
    let large = ordinary(0);
    assert!(cache.body(&large.list).is_none());
    insert(&cache, &large.chunks);
    assert_eq!(content(&cache.body(&large.list).unwrap()), large.plain);
    let obtained = cache.statistics().obtained;
    let pack = packs(folder.path()).remove(0);
    flip_a_bit(&pack, fs::metadata(&pack).unwrap().len() - 5);
    flip_a_bit(&super::body_tests::bodies(folder.path())[0], 80_000);
    assert!(cache.read_all(&wrong.0).is_some(), "what was verified once is delivered as it is");
    let units: Vec<Unit> = {
        let index = cache.inner.read_index();
        index.bodies().map(|body| Unit::Body(body.clone())).chain(index.newest().map(Unit::Pack)).collect()
    };
    assert!(units.iter().all(|unit| !unit.needs_flush() || matches!(unit, Unit::Pack(_))));
    units.iter().for_each(|unit| cache.inner.doubt(unit));
    assert!(!cache.read_now(&right.0, 90_000, 0, &mut [0; 10]), "not yet hashed");
    assert!(cache.body(&large.list).is_none());
    assert_eq!(cache.read_all(&wrong.0), None);
    assert_eq!(cache.read_all(&right.0).unwrap(), right.1);
    assert_eq!(cache.statistics().obtained, obtained, "nothing is counted twice");
    // The body is mended where it was wrong, and whole again.
    cache.settle();
    insert(&cache, &large.chunks);
    assert_eq!(content(&body(&cache, &large).unwrap()), large.plain);
    assert_eq!(cache.statistics().damaged, 2);
}

#[test]
fn after_an_error_everything_is_hashed_for_a_while_and_what_was_not_taken_once_more() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let chunks: Vec<_> = (50..53).map(|number| chunk(number, 90_000)).collect();
    insert(&cache, &chunks);
    let [first, second, third] = chunks.as_slice() else { unreachable!("three") };
    let pack = cache.inner.read_index().newest().map(Unit::Pack).unwrap();
    let path = packs(folder.path()).remove(0);
    let spoil = |number: u64| flip_a_bit(&path, number * (90_000 + 64) + 1_000);
    cache.inner.taken(&pack, Err(std::io::Error::other("lost"))).unwrap_err();
    for (id, bytes) in &chunks {
        assert_eq!(cache.read_all(id).as_ref(), Some(bytes), "the kernel has it in memory");
    }
    spoil(0);
    assert!(!cache.read_now(&first.0, 90_000, 0, &mut [0; 10]));
    assert_eq!(cache.read(&first.0, 0, 10), None, "it was verified, and is hashed all the same");
    // Shortly before the disk is trusted again.
    let soon = crate::ambient::now() + std::time::Duration::from_secs(50);
    cache.inner.distrusted_until.store(soon.as_nanos(), Ordering::Relaxed);
    cache.inner.flush_soon();
    cache.inner.flush_if_due();
    cache.inner.distrusted_until.store(0, Ordering::Relaxed);
    spoil(1);
    assert!(!cache.read_now(&second.0, 90_000, 0, &mut [0; 10]));
    assert_eq!(cache.read(&second.0, 0, 10), None, "hashed once more");
    assert!(cache.read_all(&third.0).is_some() && cache.read_now(&third.0, 90_000, 0, &mut [0; 10]));
    assert!(lock(&cache.inner.doubted).is_empty());
}

#[test]
fn all_that_was_written_is_made_to_reach_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let unflushed = || cache.inner.read_index().unflushed().len();
    let (partial, single) = (ordinary(0), chunk(50, 90_000));
    assert!(cache.body(&partial.list).is_none());
    insert(&cache, &partial.chunks[1..]);
    insert(&cache, std::slice::from_ref(&single));
    assert_eq!(unflushed(), 2, "a body that is not whole, and a pack");
    cache.inner.flush_soon();
    cache.inner.flush_if_due();
    assert_eq!(unflushed(), 0);
    // And after a restart, as soon as something in it was verified.
    drop(cache);
    let cache = open(folder.path());
    let unflushed = || cache.inner.read_index().unflushed().len();
    assert_eq!(unflushed(), 0);
    assert!(cache.read_all(&single.0).is_some() && cache.read_all(&partial.chunks[1].0).is_some());
    assert_eq!(unflushed(), 2);
    assert!(*lock(&cache.inner.flush_at) > crate::ambient::now(), "in half a minute");
    cache.insert(&chunk(51, 10).0, &chunk(51, 10).1, Origin::Peers).unwrap();
    cache.inner.flush_soon();
    cache.inner.flush_if_due();
    assert_eq!(unflushed(), 0);
}
