use super::*;
use crate::catalog::{Attributes, CatalogWriter, FileKind, Inode, NewContent, NewEntry};
use crate::chunk::Chunking;
use crate::model::{ContentId, Place, UnixTime};
use crate::store::{MemoryChunks, Origin};
use crate::trust::{Root, VerifiedRoot};
use futures::future::BoxFuture;
use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;

/// Fetches into a store what it has, unless it fails: the fetch path's double.
pub(in crate::agent) struct Far {
    chunks: HashMap<ContentId, Bytes>,
    store: Arc<MemoryChunks>,
    /// Reads that fail before the first that does not.
    failures: AtomicUsize,
    reads: AtomicUsize,
}

impl ChunkSource for Far {
    fn read(&self, pieces: Vec<Piece>, class: Class) -> BoxFuture<'_, Result<Vec<Bytes>, SourceError>> {
        assert_eq!(class, Class::Fill, "nothing of a fill stands in a reader's way");
        async move {
            self.reads.fetch_add(1, Ordering::SeqCst);
            let chunk = pieces[0].chunk.id;
            if self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
                return Err(SourceError::Unavailable { chunk, detail: "told to fail".to_owned() });
            }
            let whole = self.chunks[&chunk].clone();
            // A store that refuses costs the next reader a fetch, no more.
            let _ = self.store.insert(&chunk, &whole, Origin::Peers);
            Ok(vec![whole.slice(..pieces[0].len as usize)])
        }
        .boxed()
    }
}

impl Far {
    /// How often it was asked.
    pub(in crate::agent) fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }
}

const CHUNK_BYTES: u32 = 1000;

fn chunk(bytes: &[u8]) -> ChunkRef {
    let id = ContentId::of(bytes);
    let plain_len = u32::try_from(bytes.len()).unwrap();
    let place = Place { segment: id, ordinal: 0, offset: 0, stored_len: plain_len };
    ChunkRef { id, plain_len, place }
}

/// A revision with one file of ten chunks, and a source of it with `failures` into a store of `room_bytes`.
pub(in crate::agent) fn world(failures: usize, room_bytes: u64) -> (VerifiedRoot, Arc<Far>, FillParts) {
    world_with(false, failures, room_bytes)
}

/// With `part`, there is also a directory of that name, with a file of two other chunks that has two names there.
fn world_with(part: bool, failures: usize, room_bytes: u64) -> (VerifiedRoot, Arc<Far>, FillParts) {
    let mut chunks = HashMap::new();
    let mut keep = |bytes: Vec<u8>| {
        let reference = chunk(&bytes);
        chunks.insert(reference.id, Bytes::from(bytes));
        reference
    };
    let content: Vec<_> = (0..10_u8).map(|n| keep(vec![n; CHUNK_BYTES as usize])).collect();
    let below = if part { 20..22_u8 } else { 0..0 };
    let below: Vec<_> = below.map(|n| keep(vec![n; CHUNK_BYTES as usize])).collect();
    let size = 10 * u64::from(CHUNK_BYTES);
    let attributes = |inode, kind, size| Attributes {
        permissions: 0o755,
        size,
        links: 1,
        ..Attributes::blank(Inode(inode), kind)
    };
    let mut writer = CatalogWriter::new().unwrap();
    let mut entries = vec![
        (0, &b""[..], attributes(1, FileKind::Directory, 0), NewContent::Directory(1)),
        (1, b"file", attributes(2, FileKind::File, size), NewContent::File(&content)),
    ];
    let twice = Attributes { links: 2, ..attributes(4, FileKind::File, 2 * u64::from(CHUNK_BYTES)) };
    if part {
        entries.extend([
            (1, &b"part"[..], attributes(3, FileKind::Directory, 0), NewContent::Directory(2)),
            (2, b"again", twice, NewContent::File(&below)),
            (2, b"one", twice, NewContent::File(&below)),
        ]);
    }
    for (parent, name, attributes, content) in entries {
        writer.add(&NewEntry { parent, name, attributes: &attributes, xattrs: &[], content }).unwrap();
    }
    let root_catalog = keep(writer.finish().unwrap());
    let catalog_index = keep(CatalogIndex::new(vec![root_catalog]).to_bytes());
    let root = root(root_catalog, catalog_index, if part { size + twice.size } else { size });
    let store = Arc::new(MemoryChunks::new(room_bytes));
    let failures = AtomicUsize::new(failures);
    let far = Arc::new(Far { chunks, store: store.clone(), failures, reads: AtomicUsize::new(0) });
    let budget = CatalogBudget::new(1 << 20);
    let parts = FillParts { source: far.clone(), store, budget, quota_bytes: 1 << 20 };
    (root, far, parts)
}

fn root(root_catalog: ChunkRef, catalog_index: ChunkRef, plain_bytes: u64) -> VerifiedRoot {
    let dir = tempfile::tempdir().unwrap();
    let name = "sw.example.org".parse().unwrap();
    let now = crate::ambient::unix_now();
    let keys = crate::trust::Keys::open_or_create(dir.path(), &name, now).unwrap();
    let root = Root {
        repository: name.clone(),
        revision: Revision(1),
        signings: 0,
        root_catalog,
        catalog_index,
        history: catalog_index,
        previous: None,
        inodes: 2,
        plain_bytes,
        chunking: Chunking::default(),
        issued: now,
        expires: UnixTime(now.0 + 3600),
    };
    let signed = crate::trust::SignedRoot::sign(&root, &keys).unwrap();
    crate::trust::SignedRoot::verify(&signed, &name, &keys.fingerprint(), now).unwrap()
}

async fn settled(fill: &Fill) -> FillStatus {
    // Virtual time: an hour of pauses passes at once.
    for _ in 0..36_000 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if fill.status().ended {
            break;
        }
    }
    fill.status()
}

#[tokio::test(start_paused = true)]
async fn a_fill_brings_every_chunk_once_however_often_its_source_fails() {
    let (root, far, parts) = world(25, 1 << 20);
    let store = parts.store.clone();
    let fill = Fill::start(&PastRevision::of(&root), "", parts);
    let status = settled(&fill).await;
    assert_eq!((status.complete, status.ended, status.problem), (true, true, None));
    assert_eq!((status.done_bytes, status.total_bytes), (10_000, 10_000));
    assert!(far.chunks.keys().all(|id| store.contains(id)));
    assert_eq!(far.reads.load(Ordering::SeqCst), 25 + far.chunks.len());
}

#[tokio::test(start_paused = true)]
async fn what_the_cache_does_not_keep_is_told_and_tried_again_at_growing_intervals() {
    let (root, far, parts) = world(0, 6_000);
    let fill = Fill::start(&PastRevision::of(&root), "", parts);
    let status = settled(&fill).await;
    assert!(!status.complete && !status.ended && status.problem.unwrap().contains("disk full"));
    assert!((1..10_000).contains(&status.done_bytes), "{}", status.done_bytes);
    // Twelve chunks for an hour, about once a minute each.
    assert!(far.reads.load(Ordering::SeqCst) < 12 * 70, "{:?}", far.reads);
}

#[tokio::test(start_paused = true)]
async fn a_tree_that_is_larger_than_the_cache_is_not_begun() {
    let (root, far, parts) = world(0, 1 << 20);
    let fill = Fill::start(&PastRevision::of(&root), "", FillParts { quota_bytes: 9_999, ..parts });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let status = fill.status();
    let problem = status.problem.unwrap();
    assert!(status.ended && !status.complete, "whoever waits for it need not wait any more");
    assert!(problem.contains("10000") && problem.contains("9999"), "{problem}");
    assert_eq!(far.reads.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_catalog_ends_a_fill_with_the_reason() {
    let (root, far, parts) = world(0, 1 << 20);
    let mut chunks = far.chunks.clone();
    chunks.insert(
        root.root().root_catalog.id,
        Bytes::from(vec![7; root.root().root_catalog.plain_len as usize]),
    );
    let source = Arc::new(Far {
        chunks,
        store: far.store.clone(),
        failures: AtomicUsize::new(0),
        reads: AtomicUsize::new(0),
    });
    let fill = Fill::start(&PastRevision::of(&root), "", FillParts { source, ..parts });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let status = fill.status();
    assert!(status.ended && !status.complete && status.problem.unwrap().contains("damaged catalog"));
}

#[tokio::test(start_paused = true)]
async fn a_fill_of_a_directory_brings_what_lies_below_it_and_nothing_else() {
    let (root, far, parts) = world_with(true, 5, 1 << 20);
    let store = parts.store.clone();
    // It fits, though the tree does not.
    let parts = FillParts { quota_bytes: 2_000, ..parts };
    let fill = Fill::start(&PastRevision::of(&root), "/part", parts.clone());
    let status = settled(&fill).await;
    assert_eq!((status.complete, status.ended, status.problem), (true, true, None));
    assert_eq!((status.done_bytes, status.total_bytes), (2_000, 2_000));
    let has = |n: u8| store.contains(&ContentId::of(&[n; CHUNK_BYTES as usize]));
    assert!((20..22).all(has) && !(0..10).any(has));
    assert!(store.contains(&root.root().root_catalog.id));

    let reads = far.reads();
    let small = FillParts { quota_bytes: 1_999, ..parts.clone() };
    let status = settled(&Fill::start(&PastRevision::of(&root), "/part", small)).await;
    let problem = status.problem.unwrap();
    assert!(problem.contains("/part has 2000 bytes") && problem.contains("1999"), "{problem}");
    assert!(status.ended && !status.complete && far.reads() < reads + 5, "only metadata was looked at");

    let status = settled(&Fill::start(&PastRevision::of(&root), "/nowhere", parts)).await;
    assert!(status.ended && status.problem.unwrap().contains("there is no /nowhere"));
}
