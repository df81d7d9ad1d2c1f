//! What every [`ChunkStore`] promises, checked against each implementation.

use super::{ChunkStore, MemoryChunks, Origin, StoreError};
use crate::model::{ContentId, Generator, Rng};
use bytes::Bytes;
use std::sync::{Arc, Mutex};

/// Runs the suite. `make` gives an empty store for about `quota_bytes`, of 16 MiB at least.
pub(crate) fn check<S: ChunkStore>(make: impl Fn(u64) -> S) {
    what_is_inserted_is_read_back(&make(16 << 20));
    what_is_absent_stays_absent(&make(16 << 20));
    inserting_twice_changes_nothing(&make(16 << 20));
    readers_and_writers_do_not_disturb_each_other(&Arc::new(make(64 << 20)));
    what_leaves_is_reported(&make(16 << 20));
}

fn chunk(number: u64, len: usize) -> (ContentId, Bytes) {
    let mut generator = Generator::stream(7, number);
    let bytes: Bytes = (0..len).map(|_| generator.next_u64().to_le_bytes()[0]).collect();
    (ContentId::of(&bytes), bytes)
}

fn what_is_inserted_is_read_back(store: &impl ChunkStore) {
    for (number, len) in [0_usize, 1, 63, 64, 4096, 100_000].into_iter().enumerate() {
        let (id, bytes) = chunk(number as u64, len);
        store.insert(&id, &bytes, Origin::Peers).unwrap();
        assert!(store.contains(&id));
        assert_eq!(store.read_all(&id).unwrap(), bytes);
        let half = len / 2;
        let tail = store.read(&id, u32::try_from(half).unwrap(), u32::try_from(len - half).unwrap());
        assert_eq!(tail.unwrap(), bytes.slice(half..));
    }
}

fn what_is_absent_stays_absent(store: &impl ChunkStore) {
    let (id, bytes) = chunk(1, 100);
    assert!(!store.contains(&id) && store.read_all(&id).is_none() && store.read(&id, 0, 1).is_none());
    store.insert(&id, &bytes, Origin::Strata).unwrap();
    assert!(store.read(&id, 0, 101).is_none(), "more than there is");
    assert!(store.read(&id, 101, 0).is_none(), "behind the end");
    assert!(store.read(&id, u32::MAX, u32::MAX).is_none(), "an overflow");
    assert_eq!(store.read(&id, 100, 0).unwrap().len(), 0);
}

fn inserting_twice_changes_nothing(store: &impl ChunkStore) {
    let (id, bytes) = chunk(2, 1000);
    store.insert(&id, &bytes, Origin::Strata).unwrap();
    store.insert(&id, &bytes, Origin::Peers).unwrap();
    assert_eq!(store.read_all(&id).unwrap(), bytes);
}

fn readers_and_writers_do_not_disturb_each_other<S: ChunkStore>(store: &Arc<S>) {
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let store = Arc::clone(store);
            scope.spawn(move || {
                for round in 0..50 {
                    // Every two workers share a stream, so that chunks are inserted twice at once.
                    let (id, bytes) = chunk(1000 * (worker / 2) + round, 3000);
                    store.insert(&id, &bytes, Origin::Peers).unwrap();
                    assert_eq!(store.read_all(&id).unwrap(), bytes);
                }
            });
        }
    });
}

fn what_leaves_is_reported(store: &impl ChunkStore) {
    let removed: Arc<Mutex<Vec<ContentId>>> = Arc::default();
    let sink = Arc::clone(&removed);
    store.on_removal(Box::new(move |id| sink.lock().unwrap().push(*id)));
    let mut inserted = Vec::new();
    for number in 0..40 {
        let (id, bytes) = chunk(number, 1 << 20);
        match store.insert(&id, &bytes, Origin::Strata) {
            Ok(()) => inserted.push(id),
            Err(StoreError::Full { wanted_bytes, .. }) => assert!(wanted_bytes >= 1 << 20),
            Err(other) => panic!("{other}"),
        }
    }
    let removed = removed.lock().unwrap();
    let here: Vec<_> = inserted.iter().filter(|id| store.contains(id)).collect();
    assert!(!here.is_empty() && here.len() <= 16, "{} chunks of 1 MiB in 16 MiB", here.len());
    assert_eq!(here.len() + removed.len(), inserted.len(), "each chunk that is gone was reported once");
    assert!(removed.iter().all(|id| !store.contains(id)));
}

#[test]
fn memory_keeps_the_promises_of_the_port() {
    check(MemoryChunks::new);
}
