//! What is fetched ahead and fails does not count as fetched: it is fetched ahead again, but not at once.

use crate::double::{Altered, Body, MemorySource, MemoryTree, Naive, Shelf, node};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use starling::catalog::{Inode, PublishedTrace, Replay, Tree};
use starling::chunk::{ChunkSource, Piece, SourceError};
use starling::fs::FileSystem;
use starling::model::{ChunkRef, Class, ContentId};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::advance;

const MIB: usize = 1 << 20;

/// A source that has everything for who waits, and for others only as long as it is not `broken`. Nothing is here at once.
#[derive(Default)]
pub(crate) struct Moody {
    pub(crate) inner: MemorySource,
    broken: AtomicBool,
    /// What was to be fetched ahead, in order.
    ahead: Mutex<Vec<ContentId>>,
}

impl Moody {
    fn is_broken(&self, is_broken: bool) {
        self.broken.store(is_broken, Ordering::SeqCst);
    }

    /// What was to be fetched ahead since this was asked last.
    pub(crate) fn take(&self) -> Vec<ContentId> {
        std::mem::take(&mut *self.ahead.lock().unwrap())
    }
}

impl ChunkSource for Moody {
    fn read(&self, pieces: Vec<Piece>, class: Class) -> BoxFuture<'_, Result<Vec<Bytes>, SourceError>> {
        async move {
            tokio::task::yield_now().await;
            let touched = pieces.iter().filter(|piece| piece.is_touch()).map(|piece| piece.chunk.id);
            self.ahead.lock().unwrap().extend(touched);
            let fails = self.broken.load(Ordering::SeqCst) && pieces.iter().any(Piece::is_touch);
            if fails {
                let (chunk, detail) = (pieces[0].chunk.id, "told to fail".to_owned());
                return Err(SourceError::Unavailable { chunk, detail });
            }
            self.inner.read(pieces, class).await
        }
        .boxed()
    }
}

/// A mount of one file, which is read in requests of 1 MiB.
struct Mount {
    source: Arc<Moody>,
    fs: FileSystem,
    file: Inode,
}

impl Mount {
    async fn new(
        len: usize,
        others: impl FnOnce(&Moody, Inode) -> (Vec<ChunkRef>, Vec<PublishedTrace>),
    ) -> Self {
        let source = Arc::new(Moody::default());
        // No two chunks are alike.
        let bytes = (0..len).map(|at| u8::try_from(at / MIB).unwrap()).collect();
        let mut naive = Naive::from([(Vec::new(), node(Body::Directory))]);
        naive.insert(b"file".to_vec(), node(Body::File(bytes, MIB)));
        let inner = MemoryTree::new(&naive, &source.inner);
        let file = inner.lookup(Inode::ROOT, b"file").await.unwrap().unwrap().inode;
        let (laid, traces) = others(&source, file);
        let tree = Arc::new(Altered { laid, traces, ..Altered::new(inner) });
        let fs = FileSystem::new("ahead", tree, source.clone());
        assert_eq!(fs.lookup(Inode::ROOT, b"file").await.unwrap().unwrap().inode, file);
        Self { source, fs, file }
    }

    /// What reading a megabyte has fetched ahead.
    async fn read(&self, number: usize) -> Vec<ContentId> {
        let got = self.fs.read(self.file, (number * MIB) as u64, u32::try_from(MIB).unwrap()).await.unwrap();
        assert!(got.iter().all(|byte| usize::from(*byte) == number), "nobody who waits is hindered");
        // Others run until nothing is left to be done.
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.source.take()
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_sequential_reader_still_wants_is_fetched_ahead_again() {
    let mount = Mount::new(32 * MIB, |_, _| (Vec::new(), Vec::new())).await;
    let chunks: Vec<ContentId> = (0..32_u8).map(|number| ContentId::of(&vec![number; MIB])).collect();
    let number_of = |id: &ContentId| chunks.iter().position(|chunk| chunk == id).unwrap();
    mount.source.is_broken(true);
    let mut lost = 0;
    let mut next = 0;
    let mut fetches = 0;
    while next < 12 {
        let ahead = mount.read(next).await;
        fetches += usize::from(!ahead.is_empty());
        lost = ahead.iter().map(number_of).max().unwrap_or(lost);
        next += 1;
    }
    assert!(lost >= 12 && fetches <= 6, "no more often than if all came: {lost}, {fetches}");
    mount.source.is_broken(false);
    let mut ahead = Vec::new();
    for number in next..32 {
        ahead.extend(mount.read(number).await.iter().map(number_of));
    }
    let wanted: Vec<usize> = (lost..32).collect();
    assert_eq!(ahead, wanted, "what was lost and is still to be read, and the rest once");
}

#[tokio::test(start_paused = true)]
async fn what_lies_beside_a_file_is_fetched_again_after_a_rest_and_not_once_it_is_here() {
    let mount = Mount::new(1000, |source, _| (source.inner.store(b"beside", 10), Vec::new())).await;
    let beside = vec![ContentId::of(b"beside")];
    let read = async || {
        mount.fs.read(mount.file, 0, 1000).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        mount.source.take()
    };
    mount.source.is_broken(true);
    assert_eq!(read().await, beside);
    let mut again = 0;
    for _ in 0..20 {
        again += read().await.len();
        advance(Duration::from_secs(1)).await;
    }
    assert!((2..=4).contains(&again), "{again} times in 20 s");
    mount.source.is_broken(false);
    advance(Duration::from_secs(5)).await;
    assert_eq!(read().await, beside);
    for _ in 0..20 {
        assert!(read().await.is_empty(), "it is here");
        advance(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_trace_whose_replay_failed_is_replayed_again_soon_and_then_less_often() {
    let mount = Mount::new(1000, |source, file| {
        let replay = Replay::new(source.inner.store(b"read by a program", 100)).to_bytes();
        let replay = source.inner.store(&replay, replay.len())[0];
        let (name, recorded) = ("program".to_owned(), replay);
        (Vec::new(), vec![PublishedTrace { name, begins: vec![file], recorded, replay }])
    })
    .await;
    let replays_within = async |seconds: u64| {
        let mut replays = 0;
        for _ in 0..seconds {
            mount.fs.read(mount.file, 0, 10).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            replays += mount.source.take().len();
        }
        replays
    };
    mount.source.is_broken(true);
    // At once, and after 5, 10, 20 and 40 s.
    assert_eq!(replays_within(78).await, 5);
    let once_a_minute = 9..=10;
    assert!(once_a_minute.contains(&replays_within(10 * 60).await), "however long it fails");
    mount.source.is_broken(false);
    assert_eq!(replays_within(60).await, 1);
    assert!(once_a_minute.contains(&replays_within(10 * 60).await), "what it brought is here");
}
