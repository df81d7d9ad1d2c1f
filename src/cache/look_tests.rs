//! Checking, scrubbing, cleaning and pinning.

use super::body_tests::{Made, bodies, body, content, insert, ordinary};
use super::tests::{as_after_a_kill, chunk, config, flip_a_bit, open, packs};
use super::{Checked, DiskCache, PinError};
use crate::model::{ChunkRef, ContentId, Place};
use crate::store::{ChunkStore, Origin};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Longer than any check takes here.
const LONG: Duration = Duration::from_secs(600);

/// Hashes a unit in one part.
fn all_of(cache: &DiskCache, unit: &str) -> Checked {
    let part = cache.verify(unit, 0, u64::MAX, LONG).unwrap();
    assert_eq!(part.next, None);
    part.checked
}

/// A pack with three chunks and a body with four.
fn filled(folder: &Path) -> (DiskCache, Made) {
    let cache = open(folder);
    for number in 100..103 {
        let (id, bytes) = chunk(number, 40_000);
        cache.insert(&id, &bytes, Origin::Peers).unwrap();
    }
    let made = ordinary(0);
    assert!(cache.body(&made.list).is_none());
    insert(&cache, &made.chunks);
    (cache, made)
}

#[test]
fn the_list_says_what_each_unit_is() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, made) = filled(folder.path());
    let held = cache.body(&made.list).unwrap();
    let units = cache.units();
    let total: u64 = units.iter().map(|unit| unit.bytes).sum();
    assert_eq!((units.len(), total), (2, cache.statistics().bytes));
    let [pack, body] = &units[..] else { panic!() };
    assert_eq!(
        (pack.name.as_str(), pack.chunks, pack.unverified, pack.being_written, pack.in_use),
        ("00000000.pack", 3, 0, true, false)
    );
    assert_eq!((body.chunks, body.file_bytes, body.complete), (4, Some(made.plain.len() as u64), true));
    assert!(body.in_use && !body.pinned && !body.being_written && body.idle.is_some());
    drop(held);
    drop(cache);
    let cache = open(folder.path());
    assert!(cache.units().iter().all(|unit| unit.unverified == unit.chunks && unit.idle.is_none()));
    assert!(cache.units().iter().all(|unit| !unit.complete));
}

#[test]
fn verify_hashes_everything_and_drops_what_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, made) = filled(folder.path());
    let check = |cache: &DiskCache| {
        let units = cache.units();
        units.iter().fold((0, 0), |(chunks, damaged), unit| {
            let checked = all_of(cache, &unit.name);
            (chunks + checked.chunks, damaged + checked.damaged)
        })
    };
    assert_eq!(check(&cache), (7, 0));
    assert!(cache.verify("nothing", 0, u64::MAX, LONG).is_none());
    // Under the agent: a plain byte in the pack, one in the body, and a header.
    flip_a_bit(&packs(folder.path())[0], super::record::HEADER_BYTES_U64 + 5);
    flip_a_bit(&packs(folder.path())[0], super::record::HEADER_BYTES_U64 + 40_000 + 20);
    flip_a_bit(&bodies(folder.path())[0], 5);
    assert_eq!(check(&cache), (7, 3));
    assert_eq!((cache.statistics().entries, cache.statistics().damaged), (4, 3));
    assert_eq!(check(&cache), (4, 0));
    assert!(body(&cache, &made).is_none(), "a chunk of it is missing");
    insert(&cache, &made.chunks[..1]);
    assert_eq!(content(&cache.body(&made.list).unwrap()), made.plain);
}

#[test]
fn a_unit_is_verified_in_parts_of_so_many_bytes_and_so_much_time() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, _) = filled(folder.path());
    flip_a_bit(&bodies(folder.path())[0], 175_000);
    let units = cache.units();
    let [pack, body] = &units[..] else { panic!() };
    let parts = |unit: &str, most_bytes, most_time| {
        let (mut parts, mut from) = (Vec::new(), Some(0));
        while let Some(place) = from {
            let part = cache.verify(unit, place, most_bytes, most_time).unwrap();
            assert!(part.next.is_none_or(|next| next > place));
            parts.push((part.checked.chunks, part.checked.damaged));
            from = part.next;
        }
        parts
    };
    // Chunks of 40 000 bytes, and of 70 001, 50 003, 999 and 60 007, in the last of which the bit was.
    assert_eq!(parts(&pack.name, 1, LONG), [(1, 0); 3]);
    assert_eq!(parts(&pack.name, 40_001, LONG), [(2, 0), (1, 0)]);
    assert_eq!(parts(&pack.name, u64::MAX, Duration::ZERO), [(1, 0); 3]);
    assert_eq!(parts(&body.name, 120_005, LONG), [(3, 0), (1, 1)]);
    assert_eq!(parts(&body.name, 0, LONG), [(1, 0), (1, 0), (1, 0), (0, 0)], "it was dropped");
}

#[test]
fn the_scrub_begins_with_what_is_unverified_and_goes_round() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, made) = filled(folder.path());
    let after = as_after_a_kill(folder.path());
    drop(cache);
    let cache = open(after.path());
    flip_a_bit(&packs(after.path())[0], super::record::HEADER_BYTES_U64 + 5);
    let mut damaged = 0;
    while cache.units().iter().any(|unit| unit.unverified > 0) {
        damaged += cache.scrub(50_000).damaged;
    }
    assert_eq!(damaged, 1);
    assert_eq!(cache.statistics().obtained.cache.chunks, 6);
    let first = cache.statistics().scrubbed;
    assert_eq!(first.chunks, 7, "everything once, and nothing twice so far");
    cache.settle();
    assert_eq!(content(&cache.body(&made.list).expect("verified by the scrub")), made.plain);
    assert!(cache.units().iter().any(|unit| unit.idle.is_none()), "a scrub is no use of a pack");
    // Later rot is found, too.
    flip_a_bit(&bodies(after.path())[0], 5);
    while cache.statistics().scrub_rounds == 0 {
        damaged += cache.scrub(50_000).damaged;
    }
    assert_eq!(damaged, 2);
    assert!(!cache.contains(&made.chunks[0].0));
}

#[test]
fn an_empty_cache_is_scrubbed_without_end_or_harm() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(open(folder.path()).scrub(1).bytes, 0);
}

#[test]
fn clean_leaves_what_is_pinned_or_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, held) = filled(folder.path());
    let (pinned, other) = (ordinary(20), ordinary(30));
    cache.pin("a.b:/x", 3, std::slice::from_ref(&pinned.list)).unwrap();
    for made in [&pinned, &other] {
        assert!(cache.body(&made.list).is_none());
        insert(&cache, &made.chunks);
    }
    let file = cache.body(&held.list).unwrap();
    let before = cache.statistics().bytes;
    let kept = cache.units().into_iter().filter(|unit| unit.in_use || unit.pinned).map(|unit| unit.name);
    let kept: Vec<String> = kept.collect();
    let cleaned = cache.clean();
    assert_eq!((cleaned.units, cleaned.kept_units), (2, 2));
    assert!(cache.units().iter().map(|unit| &unit.name).eq(&kept), "the list has said what stays");
    assert_eq!(cleaned.bytes + cleaned.kept_bytes, before);
    assert_eq!(cache.statistics().bytes, cleaned.kept_bytes);
    assert!(packs(folder.path()).is_empty() && bodies(folder.path()).len() == 2);
    assert!(cache.contains(&held.chunks[0].0) && cache.contains(&pinned.chunks[0].0));
    assert!(!cache.contains(&other.chunks[0].0));
    drop(file);
    cache.unpin("a.b:/x").unwrap();
    cache.clean();
    assert_eq!((cache.statistics().bytes, cache.statistics().entries), (0, 0));
    // And it goes on.
    insert(&cache, &other.chunks);
    assert_eq!(cache.read_all(&other.chunks[0].0).unwrap(), other.chunks[0].1);
}

#[test]
fn a_pin_gathers_its_chunks_and_outlives_evictions_and_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let reopen = || DiskCache::open(folder.path(), config(8 << 20)).unwrap();
    let cache = reopen();
    // Small files: a list of less than a body's least.
    let made = super::body_tests::file(&[(1, 3_000), (2, 5_000), (3, 100)]);
    insert(&cache, &made.chunks[..1]);
    cache.pin("a.b:/small", 7, std::slice::from_ref(&made.list)).unwrap();
    assert!(!cache.gather(&made.list));
    cache.settle();
    let pins = cache.pins();
    assert_eq!((pins.len(), pins[0].name.as_str(), pins[0].version), (1, "a.b:/small", 7));
    assert!(pins[0].here_bytes > 3_000 && pins[0].here_bytes < pins[0].bytes && !pins[0].complete);
    insert(&cache, &made.chunks);
    assert!(cache.gather(&made.list) && cache.pins()[0].complete);
    let crowd = |cache: &DiskCache, from: u64| {
        for number in from..from + 40 {
            let (id, bytes) = chunk(number, 500_000);
            cache.insert(&id, &bytes, Origin::Strata).unwrap();
        }
    };
    crowd(&cache, 100);
    assert!(made.chunks.iter().all(|(id, bytes)| cache.read_all(id).as_ref() == Some(bytes)));
    drop(cache);
    let cache = reopen();
    assert_eq!(cache.pins().len(), 1);
    crowd(&cache, 200);
    assert!(made.chunks.iter().all(|(id, bytes)| cache.read_all(id).as_ref() == Some(bytes)));
    assert!(cache.unpin("a.b:/small").unwrap() && !cache.unpin("a.b:/small").unwrap());
    crowd(&cache, 300);
    assert!(made.chunks.iter().all(|(id, _)| !cache.contains(id)));
    drop(cache);
    assert!(reopen().pins().is_empty());
}

#[test]
fn what_was_pinned_stays_until_what_takes_its_place_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let (old, new) = (ordinary(0), ordinary(10));
    let pin = |version, made: &super::body_tests::Made| {
        cache.pin("a.b:/x", version, std::slice::from_ref(&made.list)).unwrap();
        assert!(!cache.gather(&made.list));
    };
    pin(1, &old);
    insert(&cache, &old.chunks);
    pin(2, &new);
    insert(&cache, &new.chunks[..2]);
    let is_here = |made: &super::body_tests::Made| made.chunks.iter().all(|(id, _)| cache.contains(id));
    cache.end_replaced().unwrap();
    cache.clean();
    assert!(is_here(&old) && !cache.pins()[0].complete);
    // A version in between, of the same content, changes nothing.
    pin(3, &new);
    insert(&cache, &new.chunks);
    cache.clean();
    assert!(is_here(&old) && is_here(&new) && cache.pins()[0].complete);
    cache.end_replaced().unwrap();
    cache.clean();
    assert!(!is_here(&old) && is_here(&new));
}

#[test]
fn what_was_pinned_and_never_whole_does_not_pile_up() {
    for (catalogs, kept) in [(true, 0), (false, 1)] {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(folder.path());
        for version in 1..6 {
            let made = ordinary(10 * version);
            let pin = if catalogs { DiskCache::pin_catalogs } else { DiskCache::pin };
            pin(&cache, "a.b", version, std::slice::from_ref(&made.list)).unwrap();
            assert!(!cache.gather(&made.list));
            insert(&cache, &made.chunks[..2]);
            cache.end_replaced().unwrap();
        }
        cache.clean();
        assert_eq!(cache.statistics().entries, 2 + 2 * kept);
    }
}

#[test]
fn what_was_pinned_goes_at_once_where_there_is_no_room_for_both() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), config(8 << 20)).unwrap();
    let made: Vec<_> = (0..2).map(|number| super::body_tests::file(&[(number, 4 << 20)])).collect();
    cache.pin("a.b:/x", 1, std::slice::from_ref(&made[0].list)).unwrap();
    cache.gather(&made[0].list);
    insert(&cache, &made[0].chunks);
    cache.pin("a.b:/x", 2, std::slice::from_ref(&made[1].list)).unwrap();
    cache.clean();
    assert_eq!(cache.statistics().entries, 0);
}

#[test]
fn most_of_the_quota_may_be_pinned_and_not_all() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), config(8 << 20)).unwrap();
    let lists: Vec<_> = (0..4).map(|number| super::body_tests::file(&[(number, 2 << 20)]).list).collect();
    cache.pin("a.b:/x", 1, &lists[..3]).unwrap();
    let refused = cache.pin("a.b:/y", 1, &lists[3..]).unwrap_err();
    let PinError::TooLarge { wanted_bytes, pinned_bytes, limit_bytes, .. } = refused else {
        panic!("{refused}")
    };
    assert!(wanted_bytes > 2 << 20 && pinned_bytes > 6 << 20 && limit_bytes == (8 << 20) / 100 * 80);
    assert_eq!(cache.pins().len(), 1);
    // Catalogs are counted apart, and have less.
    let small = super::body_tests::file(&[(9, 500_000)]).list;
    cache.pin_catalogs("a.b", 1, std::slice::from_ref(&small)).unwrap();
    let refused = cache.pin_catalogs("c.d", 1, std::slice::from_ref(&lists[3])).unwrap_err();
    assert!(matches!(refused, PinError::TooLarge { percent: 10, .. }), "{refused}");
    assert!(cache.unpin("a.b").unwrap());
    // In place of what was pinned under that name.
    cache.pin("a.b:/x", 2, &lists[3..]).unwrap();
    cache.pin("a.b:/y", 1, &lists[..2]).unwrap();
    assert!(matches!(cache.pin("a.b:/z", 1, &[[].into()]), Err(PinError::Unfit)));
    assert_eq!(cache.pins().iter().map(|pin| pin.version).collect::<Vec<_>>(), [2, 1]);
}

#[test]
fn so_many_pins_and_bodies_may_be_and_the_error_says_which() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let place = Place { segment: ContentId::of(b"s"), ordinal: 0, offset: 0, stored_len: 1 };
    let list = |number: u32| -> Arc<[ChunkRef]> {
        [ChunkRef { id: ContentId::of(&number.to_le_bytes()), plain_len: 1, place }].into()
    };
    let lists: Vec<_> = (0..4097).map(list).collect();
    cache.pin("a.b:/few", 1, &lists[..97]).unwrap();
    let refused = cache.pin("a.b:/many", 1, &lists[97..]).unwrap_err();
    assert_eq!(refused, PinError::TooManyBodies { wanted: 4000, pinned: 97, limit: 4096 });
    cache.pin("a.b:/many", 1, &lists[98..]).unwrap();
    cache.unpin("a.b:/many").unwrap();
    (1..256).for_each(|number| cache.pin(&format!("a.b:/{number}"), 1, &lists[..1]).unwrap());
    assert_eq!(cache.pin("a.b:/one", 1, &lists[..1]), Err(PinError::TooManyPins { limit: 256 }));
    cache.pin("a.b:/few", 2, &lists[..1]).unwrap();
}

/// The pins by name.
fn pinned(cache: &DiskCache) -> Vec<String> {
    cache.pins().into_iter().map(|pin| pin.name).collect()
}

#[test]
fn a_damaged_list_of_pins_is_set_aside_before_another_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (list, aside) = (folder.path().join("pins.json"), |number: u32| {
        folder.path().join(format!("pins.json.damaged.{number}"))
    });
    for (number, damaged) in [(1, &b"{\"a\":"[..]), (2, b"[]"), (3, &[b' '; (8 << 20) + 1])] {
        fs::write(&list, damaged).unwrap();
        let cache = open(folder.path());
        assert!(pinned(&cache).is_empty() && cache.pins_problem().is_none());
        cache.pin_catalogs("a.b", 1, std::slice::from_ref(&ordinary(0).list)).unwrap();
        assert_eq!(fs::read(aside(number)).unwrap(), damaged);
        drop(cache);
        assert_eq!(pinned(&open(folder.path())), ["a.b"]);
    }
    assert_eq!(fs::read(aside(1)).unwrap(), b"{\"a\":", "it is not replaced by later ones");
}

#[test]
fn a_list_of_pins_that_the_disk_does_not_give_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (list, kept) = (folder.path().join("pins.json"), folder.path().join("kept"));
    let (old, new) = (ordinary(0), ordinary(10));
    let pin =
        |cache: &DiskCache, name: &str, made: &Made| cache.pin(name, 1, std::slice::from_ref(&made.list));
    let cache = open(folder.path());
    pin(&cache, "a.b:/old", &old).unwrap();
    cache.gather(&old.list);
    insert(&cache, &old.chunks);
    drop(cache);
    // A link to itself: root cannot read that either.
    fs::rename(&list, &kept).unwrap();
    std::os::unix::fs::symlink("pins.json", &list).unwrap();
    let cache = open(folder.path());
    assert!(cache.pins_problem().unwrap().contains("pins.json: "));
    let refused = pin(&cache, "a.b:/new", &new).unwrap_err();
    assert!(matches!(&refused, PinError::Unread(problem) if problem.contains("pins.json: ")), "{refused}");
    assert!(cache.unpin("a.b:/old").is_err() && cache.end_replaced().is_err());
    assert!(pinned(&cache).is_empty() && fs::symlink_metadata(&list).unwrap().is_symlink());
    // Mended: what it says counts, and stays when something is added.
    fs::rename(&kept, &list).unwrap();
    pin(&cache, "a.b:/new", &new).unwrap();
    assert_eq!((pinned(&cache), cache.pins_problem()), (vec!["a.b:/new".into(), "a.b:/old".into()], None));
    cache.clean();
    assert!(old.chunks.iter().all(|(id, _)| cache.contains(id)));
    drop(cache);
    assert_eq!(pinned(&open(folder.path())).len(), 2);
}

#[test]
fn pinning_the_same_again_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let pin = || cache.pin("a.b:/x", 1, std::slice::from_ref(&ordinary(0).list)).unwrap();
    let written = || fs::metadata(folder.path().join("pins.json")).unwrap().ino();
    pin();
    let before = written();
    pin();
    assert_eq!(written(), before);
}
