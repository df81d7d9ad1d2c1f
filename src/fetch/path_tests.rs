//! Reads over a mesh that is scripted.

use super::*;
use crate::mesh::Obtained;
use crate::model::{ContentId, Place};
use crate::store::{Origin, StoreError};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use tokio::sync::Notify;

/// A mesh that has every chunk, but delivers only when its gate is open.
#[derive(Default)]
struct Script {
    chunks: Mutex<HashMap<ContentId, Bytes>>,
    open: AtomicBool,
    opened: Notify,
    begun: AtomicUsize,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

struct UnderWay<'a>(&'a AtomicUsize);
impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Script {
    fn open(&self) {
        self.open.store(true, SeqCst);
        self.opened.notify_waiters();
    }
    fn begun(&self) -> usize {
        self.begun.load(SeqCst)
    }
}

impl Exchange for Script {
    fn obtain(
        &self,
        _: &RepositoryName,
        chunk: ChunkRef,
        _: Class,
        _: Time,
    ) -> BoxFuture<'_, Result<(Bytes, Obtained), ObtainError>> {
        async move {
            self.begun.fetch_add(1, SeqCst);
            let now = self.under_way.fetch_add(1, SeqCst) + 1;
            self.most_under_way.fetch_max(now, SeqCst);
            let _under_way = UnderWay(&self.under_way);
            loop {
                let opened = self.opened.notified();
                if self.open.load(SeqCst) {
                    break;
                }
                opened.await;
            }
            tokio::task::yield_now().await;
            match lock(&self.chunks).get(&chunk.id) {
                Some(bytes) => Ok((bytes.clone(), Obtained::Strata)),
                None => Err(ObtainError::NoSource("nobody".to_owned())),
            }
        }
        .boxed()
    }
}

/// A store that holds what it was given at the start and refuses all else.
struct FullStore(HashMap<ContentId, Bytes>);

impl ChunkStore for FullStore {
    fn contains(&self, id: &ContentId) -> bool {
        self.0.contains_key(id)
    }
    fn read(&self, id: &ContentId, offset: u32, len: u32) -> Option<Bytes> {
        Some(self.0.get(id)?.slice(offset as usize..(offset + len) as usize))
    }
    fn read_all(&self, id: &ContentId) -> Option<Bytes> {
        self.0.get(id).cloned()
    }
    fn read_now(&self, id: &ContentId, _: u32, offset: u32, buffer: &mut [u8]) -> bool {
        let Some(bytes) = self.0.get(id) else { return false };
        buffer.copy_from_slice(&bytes[offset as usize..offset as usize + buffer.len()]);
        true
    }
    fn insert(&self, _: &ContentId, bytes: &Bytes, _: Origin) -> Result<(), StoreError> {
        Err(StoreError::Full { wanted_bytes: bytes.len() as u64, detail: "always".into() })
    }
    fn on_removal(&self, _: Box<dyn Fn(&ContentId) + Send + Sync>) {}
}

fn chunk(n: u8) -> (ChunkRef, Bytes) {
    let bytes = Bytes::from(vec![n; 1000]);
    let place = Place { segment: ContentId::of(b"s"), ordinal: u32::from(n), offset: 0, stored_len: 100 };
    (ChunkRef { id: ContentId::of(&bytes), plain_len: 1000, place }, bytes)
}

fn setup(stored: &[u8], settings: FetchSettings) -> (Arc<Script>, FetchPath) {
    let script = Arc::new(Script::default());
    for n in 0..20 {
        lock(&script.chunks).insert(chunk(n).0.id, chunk(n).1);
    }
    let store = FullStore(stored.iter().map(|n| (chunk(*n).0.id, chunk(*n).1)).collect());
    let fetcher = Fetcher::new(Arc::new(store), script.clone(), settings);
    (script, fetcher.repository("sw.example.org".parse().unwrap()))
}

async fn until(condition: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if condition() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it does not come");
}

#[tokio::test]
async fn a_hundred_readers_of_one_chunk_cause_one_fetch() {
    let (script, path) = setup(&[], FetchSettings::default());
    let readers: Vec<_> = (0..100)
        .map(|_| {
            let path = path.clone();
            tokio::spawn(async move { path.read(vec![Piece::whole(chunk(1).0)], Class::Read).await })
        })
        .collect();
    until(|| script.begun() > 0).await;
    script.open();
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap(), [chunk(1).1]);
    }
    assert_eq!(script.begun(), 1);
}

#[tokio::test]
async fn a_reader_that_leaves_does_not_end_the_fetch_and_the_last_one_does() {
    let (script, path) = setup(&[], FetchSettings::default());
    let reader = || {
        let path = path.clone();
        tokio::spawn(async move { path.read(vec![Piece::whole(chunk(1).0)], Class::Read).await })
    };
    let (first, second) = (reader(), reader());
    until(|| script.begun() == 1).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(script.under_way.load(SeqCst), 1);
    script.open();
    assert_eq!(second.await.unwrap().unwrap(), [chunk(1).1]);
    assert_eq!(script.begun(), 1);

    script.open.store(false, SeqCst);
    let other = path.clone();
    let last = tokio::spawn(async move { other.read(vec![Piece::whole(chunk(2).0)], Class::Read).await });
    until(|| script.begun() == 2).await;
    last.abort();
    let _ = last.await;
    assert_eq!(script.under_way.load(SeqCst), 0);
}

#[tokio::test]
async fn a_read_that_nobody_answers_ends_at_its_deadline() {
    let settings = FetchSettings { read_deadline: Duration::from_millis(30), ..FetchSettings::default() };
    let (_script, path) = setup(&[], settings);
    let error = path.read(vec![Piece::whole(chunk(1).0)], Class::Read).await.unwrap_err();
    assert!(matches!(error, SourceError::TimedOut { waited_ms, .. } if waited_ms >= 30), "{error:?}");
}

#[tokio::test]
async fn a_full_store_does_not_make_the_next_read_of_a_chunk_another_fetch() {
    let (script, path) = setup(&[], FetchSettings::default());
    script.open();
    for offset in [0, 100, 900] {
        let piece = Piece { chunk: chunk(1).0, offset, len: 100 };
        assert_eq!(path.read(vec![piece], Class::Read).await.unwrap()[0].len(), 100);
    }
    assert_eq!(script.begun(), 1);
}

#[tokio::test]
async fn hits_and_misses_come_back_in_the_order_of_the_call() {
    let (script, path) = setup(&[1, 3], FetchSettings::default());
    script.open();
    let order = [4, 1, 2, 3, 4, 0];
    let pieces = order.iter().map(|n| Piece { chunk: chunk(*n).0, offset: 5, len: 7 }).collect();
    let bytes = path.read(pieces, Class::Read).await.unwrap();
    assert_eq!(bytes, order.map(|n| Bytes::from(vec![n; 7])));
    assert_eq!(script.begun(), 3);
}

#[tokio::test]
async fn what_the_store_holds_is_ready_at_the_first_poll() {
    let (_script, path) = setup(&[1], FetchSettings::default());
    let read = path.read(vec![Piece::whole(chunk(1).0)], Class::Read).now_or_never();
    assert_eq!(read.unwrap().unwrap(), [chunk(1).1]);
}

#[tokio::test]
async fn rows_that_contradict_themselves_or_the_chunk_are_invalid() {
    let (script, path) = setup(&[], FetchSettings::default());
    script.open();
    let (row, _) = chunk(1);
    let outside = Piece { chunk: row, offset: 999, len: 2 };
    let overflow = Piece { chunk: row, offset: u32::MAX, len: u32::MAX };
    let huge = Piece::whole(ChunkRef { plain_len: u32::MAX, ..row });
    let shorter = Piece::whole(ChunkRef { plain_len: 999, ..row });
    for piece in [outside, overflow, huge, shorter] {
        let error = path.read(vec![piece], Class::Read).await.unwrap_err();
        assert!(matches!(error, SourceError::Invalid { .. }), "{error:?}");
    }
    let absent = ChunkRef { id: ContentId::of(b"nowhere"), ..row };
    let error = path.read(vec![Piece::whole(absent)], Class::Read).await.unwrap_err();
    assert!(matches!(error, SourceError::Unavailable { .. }), "{error:?}");
}

#[tokio::test]
async fn no_more_is_under_way_than_the_budget_allows() {
    let settings = FetchSettings { in_flight_bytes: 3 * u64::from(UNIT_BYTES), ..FetchSettings::default() };
    let (script, path) = setup(&[], settings);
    let reading = path.clone();
    let pieces: Vec<_> = (0..20).map(|n| Piece::whole(chunk(n).0)).collect();
    let reader = tokio::spawn(async move { reading.read(pieces, Class::Read).await });
    until(|| script.begun() == 3).await;
    script.open();
    assert_eq!(reader.await.unwrap().unwrap().len(), 20);
    assert_eq!((script.begun(), script.most_under_way.load(SeqCst)), (20, 3));
}

#[tokio::test]
async fn of_what_is_fetched_ahead_nothing_stays_in_memory_and_nothing_that_is_here_is_read() {
    struct Unread;
    impl ChunkStore for Unread {
        fn contains(&self, _: &ContentId) -> bool {
            true
        }
        fn read(&self, id: &ContentId, _: u32, _: u32) -> Option<Bytes> {
            panic!("{id} is read")
        }
        fn read_all(&self, id: &ContentId) -> Option<Bytes> {
            panic!("{id} is read")
        }
        fn insert(&self, _: &ContentId, _: &Bytes, _: Origin) -> Result<(), StoreError> {
            Ok(())
        }
        fn on_removal(&self, _: Box<dyn Fn(&ContentId) + Send + Sync>) {}
    }
    let touches = |count: u8| (0..count).map(|n| Piece::touch(chunk(n).0)).collect::<Vec<_>>();
    let fetcher = Fetcher::new(Arc::new(Unread), Arc::new(Script::default()), FetchSettings::default());
    let path = fetcher.repository("sw.example.org".parse().unwrap());
    let read = path.read(touches(200), Class::Prefetch);
    tokio::pin!(read);
    assert!(read.as_mut().now_or_never().is_none(), "others run in between");
    assert_eq!(read.await.unwrap(), vec![Bytes::new(); 200]);

    // Neither a touch nor a byte keeps the chunk that it is of.
    let (script, path) = setup(&[], FetchSettings::default());
    script.open();
    let mut pieces = touches(2);
    pieces[0].len = 1;
    let got = path.read(pieces, Class::Prefetch).await.unwrap();
    let whole = lock(&script.chunks)[&chunk(0).0.id].clone();
    assert!(got[0] == whole[..1] && !whole.as_ptr_range().contains(&got[0].as_ptr()));
    assert!(got[1].is_empty() && script.begun() == 2);
}

#[tokio::test]
async fn a_prefetch_passes_over_what_cannot_be_had_and_others_do_not() {
    let (script, path) = setup(&[], FetchSettings::default());
    script.open();
    let (row, _) = chunk(1);
    let absent = Piece::touch(ChunkRef { id: ContentId::of(b"nowhere"), ..row });
    let nonsense = Piece::touch(ChunkRef { plain_len: u32::MAX, ..row });
    let pieces = vec![absent, nonsense, Piece::touch(row), Piece::touch(chunk(2).0)];
    assert!(path.read(pieces, Class::Prefetch).await.is_err(), "what lacked is told");
    assert_eq!(script.begun(), 3, "and the others were fetched");
    let here = vec![Piece::touch(row), Piece::touch(chunk(2).0)];
    assert!(path.read(here, Class::Prefetch).await.is_ok());
    assert_eq!(script.begun(), 3);
    for piece in [absent, nonsense] {
        assert!(path.read(vec![piece], Class::Fill).await.is_err());
    }
    assert!(
        path.read(vec![Piece::whole(absent.chunk)], Class::Prefetch).await.is_err(),
        "who wants bytes is told"
    );
}

#[tokio::test]
async fn the_time_of_a_prefetch_begins_when_its_turn_has_come() {
    // A quarter of this is one chunk at once.
    let settings = FetchSettings {
        in_flight_bytes: 4 * u64::from(UNIT_BYTES),
        prefetch_deadline: Duration::from_millis(30),
        ..FetchSettings::default()
    };
    let (script, path) = setup(&[], settings);
    let pieces = (0..3).map(|n| Piece::touch(chunk(n).0)).collect();
    assert!(path.read(pieces, Class::Prefetch).await.is_err(), "nobody answers");
    assert_eq!((script.begun(), script.most_under_way.load(SeqCst)), (3, 1));
}

#[tokio::test]
async fn a_reference_that_lies_about_the_place_does_not_share_the_fetch_of_an_honest_one() {
    let (script, path) = setup(&[], FetchSettings::default());
    let (honest, bytes) = chunk(1);
    let place = Place { segment: ContentId::of(b"elsewhere"), ..honest.place };
    let read = |chunk| path.read(vec![Piece { chunk, offset: 0, len: 1000 }], Class::Read);
    let opened = async {
        until(|| script.begun() == 2).await;
        script.open();
    };
    let (lying, good, ()) = tokio::join!(read(ChunkRef { place, ..honest }), read(honest), opened);
    assert_eq!((lying.unwrap(), good.unwrap()), (vec![bytes.clone()], vec![bytes]));
    assert_eq!(script.begun(), 2);
}

/// A store whose disk says nothing to who asks it, until the test ends; what is in memory can be read.
#[derive(Default)]
struct StalledStore {
    in_memory: Vec<u8>,
    asked: Arc<AtomicUsize>,
    ended: Arc<(Mutex<bool>, std::sync::Condvar)>,
}

impl StalledStore {
    fn stall(&self) {
        self.asked.fetch_add(1, SeqCst);
        let (ended, told) = &*self.ended;
        // For ever, but that a test that has failed does not hang.
        let most = Duration::from_secs(20);
        drop(told.wait_timeout_while(lock(ended), most, |ended| !*ended).unwrap());
    }
}

impl ChunkStore for StalledStore {
    fn contains(&self, id: &ContentId) -> bool {
        (0..20).any(|n| chunk(n).0.id == *id)
    }
    fn read(&self, _: &ContentId, _: u32, _: u32) -> Option<Bytes> {
        self.stall();
        None
    }
    fn read_all(&self, _: &ContentId) -> Option<Bytes> {
        self.stall();
        None
    }
    fn read_now(&self, id: &ContentId, _: u32, offset: u32, buffer: &mut [u8]) -> bool {
        let Some(n) = self.in_memory.iter().find(|n| chunk(**n).0.id == *id) else { return false };
        buffer.copy_from_slice(&chunk(*n).1[offset as usize..offset as usize + buffer.len()]);
        true
    }
    fn body(&self, _: &Arc<[ChunkRef]>) -> Option<Arc<File>> {
        self.stall();
        None
    }
    fn insert(&self, _: &ContentId, _: &Bytes, _: Origin) -> Result<(), StoreError> {
        Ok(())
    }
    fn on_removal(&self, _: Box<dyn Fn(&ContentId) + Send + Sync>) {}
}

#[tokio::test]
async fn a_disk_that_stalls_keeps_neither_who_asks_nor_many_threads() {
    let script = Arc::new(Script::default());
    (0..20).for_each(|n| drop(lock(&script.chunks).insert(chunk(n).0.id, chunk(n).1)));
    script.open();
    let store = StalledStore { in_memory: vec![7], ..StalledStore::default() };
    let (asked, ended) = (store.asked.clone(), store.ended.clone());
    let settings = FetchSettings { disk_deadline: Duration::from_millis(300), ..FetchSettings::default() };
    let fetcher = Fetcher::new(Arc::new(store), script.clone(), settings);
    let path = fetcher.repository("sw.example.org".parse().unwrap());
    let list: Arc<[ChunkRef]> = [chunk(1).0].into();
    // On the thread that asks, as those of a mount do.
    let began = ambient::now();
    let mut first = path.read(vec![Piece::whole(chunk(1).0)], Class::Read);
    assert!((&mut first).now_or_never().is_none());
    assert!(path.body(&list).now_or_never().is_none());
    assert!(ambient::now().since(began) < Duration::from_secs(5), "the thread itself has waited");
    let many: Vec<_> = (0..200)
        .map(|n| {
            let path = path.clone();
            tokio::spawn(async move { path.read(vec![Piece::whole(chunk(n % 7).0)], Class::Read).await })
        })
        .collect();
    assert_eq!(first.await.unwrap(), [chunk(1).1]);
    for (n, one) in (0..).zip(many) {
        assert_eq!(one.await.unwrap().unwrap(), [chunk(n % 7).1]);
    }
    assert!(ambient::now().since(began) < Duration::from_secs(10));
    let lost = asked.load(SeqCst);
    assert!(lost <= 33, "{lost} threads wait for the disk");
    // It is not asked again; what is in memory needs no disk.
    assert_eq!(path.read(vec![Piece::whole(chunk(2).0)], Class::Read).await.unwrap(), [chunk(2).1]);
    assert!(path.body(&list).await.is_none());
    let warm = path.read(vec![Piece::whole(chunk(7).0)], Class::Read).now_or_never();
    assert_eq!(warm.unwrap().unwrap(), [chunk(7).1]);
    assert_eq!(asked.load(SeqCst), lost);
    *lock(&ended.0) = true;
    ended.1.notify_all();
}
