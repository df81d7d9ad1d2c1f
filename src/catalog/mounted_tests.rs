//! A mounted tree against a naive model, also while catalogs come and go.

use super::read::tests::attributes;
use super::resident_tests::plain_catalog;
use super::*;
use crate::chunk::{ChunkSource, Chunking, Piece, SourceError};
use crate::model::{ChunkRef, Class, ContentId, Generator, Place, Revision, Rng as _, UnixTime};
use crate::trust::Root;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Longer than any test takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Holds plain chunks; counts and delays what is asked of it, and can be told to fail.
#[derive(Default)]
struct Plain {
    chunks: HashMap<ContentId, Bytes>,
    reads: AtomicUsize,
    broken: AtomicBool,
    /// Whether what is fetched ahead fails, and what was to be.
    broken_ahead: AtomicBool,
    ahead: std::sync::Mutex<Vec<ContentId>>,
    /// Whether it never answers.
    silent: AtomicBool,
    /// What is here, and read at once, even while it is silent.
    here: std::sync::Mutex<std::collections::HashSet<ContentId>>,
}

impl Plain {
    fn add(&mut self, bytes: Vec<u8>) -> ChunkRef {
        let id = ContentId::of(&bytes);
        let plain_len = u32::try_from(bytes.len()).unwrap();
        self.chunks.insert(id, bytes.into());
        ChunkRef { id, plain_len, place: Place { segment: id, ordinal: 0, offset: 0, stored_len: 1 } }
    }
}

impl ChunkSource for Plain {
    fn read(&self, pieces: Vec<Piece>, class: Class) -> BoxFuture<'_, Result<Vec<Bytes>, SourceError>> {
        Box::pin(async move {
            self.reads.fetch_add(1, Ordering::SeqCst);
            let is_ahead = class == Class::Prefetch;
            if is_ahead {
                self.ahead.lock().unwrap().extend(pieces.iter().map(|piece| piece.chunk.id));
            }
            // A tree looks first whether it is here at once, and waits then.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            let is_here = self.origin(&pieces[0].chunk.id).is_some();
            if self.silent.load(Ordering::SeqCst) && !is_here {
                std::future::pending::<()>().await;
            }
            let is_broken_ahead = is_ahead && self.broken_ahead.load(Ordering::SeqCst);
            if is_broken_ahead || self.broken.load(Ordering::SeqCst) {
                let chunk = pieces[0].chunk.id;
                return Err(SourceError::Unavailable { chunk, detail: "told to fail".to_owned() });
            }
            Ok(pieces.iter().map(|piece| self.chunks[&piece.chunk.id].clone()).collect())
        })
    }

    fn origin(&self, chunk: &ContentId) -> Option<&'static str> {
        self.here.lock().unwrap().contains(chunk).then_some("cache")
    }
}

/// A root directory with `nested` nested catalogs `n0`, `n1`, …, each with one file and in a segment of its own.
fn sample(nested: u64) -> (Arc<Plain>, Root) {
    sample_at(nested, |_, chunk| chunk.place)
}

/// The same with catalogs at other places.
fn sample_at(nested: u64, place: impl Fn(u64, &ChunkRef) -> Place) -> (Arc<Plain>, Root) {
    let mut source = Plain::default();
    let mut catalogs = Vec::new();
    let directory = |inode| attributes(inode, FileKind::Directory, 0);
    let mut top = CatalogWriter::new().unwrap();
    let add =
        |writer: &mut CatalogWriter, parent, name: &[u8], attributes: Attributes, content: NewContent<'_>| {
            let entry = NewEntry { parent, name, attributes: &attributes, xattrs: &[], content };
            writer.add(&entry).unwrap();
        };
    add(&mut top, 0, b"", directory(1), NewContent::Directory(1));
    for n in 0..nested {
        let mut writer = CatalogWriter::new().unwrap();
        add(&mut writer, 1, b"file", attributes(1000 + n, FileKind::File, 0), NewContent::File(&[]));
        let mut chunk = source.add(writer.finish().unwrap());
        chunk.place = place(n, &chunk);
        catalogs.push(chunk);
        add(&mut top, 1, format!("n{n:03}").as_bytes(), directory(10 + n), NewContent::Nested(chunk.id));
    }
    let root_catalog = source.add(top.finish().unwrap());
    catalogs.push(root_catalog);
    let catalog_index = source.add(CatalogIndex::new(catalogs).to_bytes());
    let root = Root {
        repository: "a".parse().unwrap(),
        revision: Revision(1),
        signings: 0,
        root_catalog,
        catalog_index,
        history: catalog_index,
        previous: None,
        inodes: 1 + 2 * nested,
        plain_bytes: 0,
        chunking: Chunking::default(),
        issued: UnixTime(0),
        expires: UnixTime(1),
    };
    (Arc::new(source), root)
}

async fn mount(source: &Arc<Plain>, root: &Root, budget_bytes: usize) -> MountedTree {
    MountedTree::open(Arc::clone(source) as Arc<dyn ChunkSource>, root, budget_bytes).await.unwrap()
}

#[tokio::test]
async fn what_is_loaded_answers_at_the_first_poll() {
    let (source, root) = sample(2);
    let tree = mount(&source, &root, MountedTree::BUDGET_BYTES).await;
    let found = tree.lookup(Inode::ROOT, b"n001").now_or_never().expect("ready at once");
    assert_eq!(found.unwrap().unwrap().inode, Inode(11));
    assert!(tree.lookup(Inode(11), b"file").now_or_never().is_none(), "that catalog is not here yet");
    assert_eq!(tree.lookup(Inode(11), b"file").await.unwrap().unwrap().inode, Inode(1001));
    assert!(tree.chunks(Inode(1001)).now_or_never().expect("ready at once").unwrap().is_empty());
    assert_eq!(tree.parent(Inode(11)).await.unwrap(), Inode::ROOT);
    let path = async |inode| String::from_utf8(tree.path(Inode(inode)).await.unwrap()).unwrap();
    assert_eq!([path(1001).await, path(11).await, path(1).await], ["n001/file", "n001", ""]);
    assert_eq!(tree.totals(), (5, 0));
}

#[tokio::test]
async fn a_catalog_is_loaded_once_however_many_wait() {
    let (source, root) = sample(1);
    let tree = mount(&source, &root, MountedTree::BUDGET_BYTES).await;
    tree.list(Inode::ROOT).await.unwrap();
    let before = source.reads.load(Ordering::SeqCst);
    let found = futures::future::join_all((0..50).map(|_| tree.lookup(Inode(10), b"file"))).await;
    assert!(found.iter().all(|found| matches!(found, Ok(Some(_)))));
    assert_eq!(source.reads.load(Ordering::SeqCst), before + 1);
}

#[tokio::test(start_paused = true)]
async fn catalogs_that_could_not_be_fetched_ahead_are_fetched_ahead_again_after_a_rest() {
    // A block of 64 KiB for each.
    let at = |n: u64, chunk: &ChunkRef| {
        let (segment, ordinal) = (ContentId::of(b"catalogs"), u32::try_from(n).unwrap());
        Place { segment, ordinal, offset: n << 16, ..chunk.place }
    };
    let (source, root) = sample_at(20, at);
    let tree = mount(&source, &root, MountedTree::BUDGET_BYTES).await;
    tree.list(Inode::ROOT).await.unwrap();
    // What entering a directory has fetched ahead, by the numbers of the directories.
    let enter = async |n: u64| -> Vec<usize> {
        tree.list(Inode(10 + n)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let ahead = std::mem::take(&mut *source.ahead.lock().unwrap());
        let index = &source.chunks[&root.catalog_index.id];
        let index = CatalogIndex::from_bytes(index).unwrap();
        let place_of = |id: &ContentId| index.catalogs()[index.position(id).unwrap()].place.offset >> 16;
        ahead.iter().map(|id| usize::try_from(place_of(id)).unwrap()).collect()
    };
    source.broken_ahead.store(true, Ordering::SeqCst);
    assert!(enter(0).await.is_empty() && enter(1).await.is_empty(), "two are no walk");
    assert_eq!(enter(2).await, [1, 2, 3, 4, 5]);
    assert!(enter(3).await.is_empty(), "it failed a moment ago");
    source.broken_ahead.store(false, Ordering::SeqCst);
    tokio::time::advance(Duration::from_secs(6)).await;
    let again = enter(4).await;
    assert!(again.contains(&5), "{again:?}");
    tokio::time::advance(Duration::from_secs(6)).await;
    assert!(!enter(5).await.contains(&6), "that is here");
}

#[tokio::test]
async fn a_failed_load_fails_all_who_wait_and_none_who_come_later() {
    let (source, root) = sample(1);
    let tree = mount(&source, &root, MountedTree::BUDGET_BYTES).await;
    tree.list(Inode::ROOT).await.unwrap();
    let before = source.reads.load(Ordering::SeqCst);
    source.broken.store(true, Ordering::SeqCst);
    let found = futures::future::join_all((0..50).map(|_| tree.list(Inode(10)))).await;
    assert!(found.iter().all(|found| matches!(found, Err(TreeError::Source(_)))));
    assert_eq!(source.reads.load(Ordering::SeqCst), before + 1);
    source.broken.store(false, Ordering::SeqCst);
    assert_eq!(tree.list(Inode(10)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn catalogs_beyond_the_budget_are_taken_down_and_loaded_again() {
    let (source, root) = sample(30);
    let whole = mount(&source, &root, MountedTree::BUDGET_BYTES).await;
    let budget = whole.memory().catalog_bytes + 1_500;
    let tree = mount(&source, &root, budget).await;
    for _ in 0..2 {
        for entry in tree.list(Inode::ROOT).await.unwrap().iter() {
            assert_eq!(tree.list(entry.attributes.inode).await.unwrap().len(), 1);
            let memory = tree.memory();
            assert!(memory.catalogs < 12 && memory.catalog_bytes <= budget, "{memory:?}");
        }
    }
    assert!(source.reads.load(Ordering::SeqCst) > 60);
    // What was handed out is known, whatever was taken down.
    assert_eq!(tree.memory().inodes, 61);
    for n in 0..30 {
        assert_eq!(tree.attributes(Inode(1000 + n)).await.unwrap().inode, Inode(1000 + n));
        assert_eq!(tree.parent(Inode(10 + n)).await, Ok(Inode::ROOT));
    }
}

async fn share(source: &Arc<Plain>, root: &Root, budget: &Arc<CatalogBudget>) -> MountedTree {
    let Root { revision, root_catalog, catalog_index, inodes, plain_bytes, issued, .. } = *root;
    let name = root_catalog.id;
    let of = PastRevision { revision, root: name, root_catalog, catalog_index, inodes, plain_bytes, issued };
    MountedTree::open_revision(Arc::clone(source) as Arc<dyn ChunkSource>, &of, budget).await.unwrap()
}

#[tokio::test]
async fn trees_share_a_budget_and_what_nobody_uses_makes_room_for_what_is_used() {
    let ((source, root), (other_source, other_root)) = (sample(30), sample(20));
    let walk = async |tree: &MountedTree| {
        for entry in tree.list(Inode::ROOT).await.unwrap().iter() {
            assert_eq!(tree.list(entry.attributes.inode).await.unwrap().len(), 1);
        }
    };
    let wide = CatalogBudget::new(usize::MAX);
    let whole = share(&source, &root, &wide).await;
    walk(&whole).await;
    let bytes = wide.used_bytes();
    assert_eq!(bytes, whole.memory().catalog_bytes);

    // Room for one of them.
    let budget = CatalogBudget::new(bytes);
    let (idle, busy) =
        (share(&source, &root, &budget).await, share(&other_source, &other_root, &budget).await);
    walk(&idle).await;
    let before = idle.memory();
    for _ in 0..3 {
        walk(&busy).await;
        assert!(budget.used_bytes() <= bytes);
    }
    let reads = other_source.reads.load(Ordering::SeqCst);
    walk(&busy).await;
    assert_eq!(other_source.reads.load(Ordering::SeqCst), reads, "it has all that it uses in memory");
    assert_eq!(busy.memory().catalogs, 21);
    assert!(idle.memory().catalogs < before.catalogs);
    assert_eq!(idle.memory().catalog_bytes + busy.memory().catalog_bytes, budget.used_bytes());
    // What was taken down is loaded again.
    walk(&idle).await;
    assert!(budget.used_bytes() <= bytes);
    drop(busy);
    assert_eq!(budget.used_bytes(), idle.memory().catalog_bytes);
    drop(idle);
    assert_eq!(budget.used_bytes(), 0);
}

#[test]
fn many_threads_that_load_at_once_keep_within_one_budget() {
    let (source, root) = sample(30);
    let budget = CatalogBudget::new(4_000);
    let look = |seed: u64| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let tree = share(&source, &root, &budget).await;
            tree.list(Inode::ROOT).await.unwrap();
            let mut random = Generator::new(seed);
            for _ in 0..2_000 {
                let directory = Inode(10 + random.below(30) as u64);
                assert_eq!(tree.list(directory).await.unwrap().len(), 1);
            }
        });
    };
    std::thread::scope(|scope| {
        (1..5).for_each(|seed| drop(scope.spawn(move || look(seed))));
    });
    assert_eq!(budget.used_bytes(), 0, "nothing was counted twice or forgotten");
}

#[tokio::test]
async fn a_tree_takes_at_most_110_bytes_an_entry_with_one_chunk_in_all() {
    let (mut source, mut catalogs) = (Plain::default(), Vec::new());
    let mut top = CatalogWriter::new().unwrap();
    let mut add = |parent, name: &[u8], inode, content: NewContent<'_>| {
        let attributes = attributes(inode, FileKind::Directory, 0);
        top.add(&NewEntry { parent, name, attributes: &attributes, xattrs: &[], content }).unwrap();
    };
    add(0, b"", 1, NewContent::Directory(1));
    for n in 0..10_u8 {
        let chunk = source.add(plain_catalog(2_000 * u32::from(n), 2_000));
        catalogs.push(chunk);
        add(1, &[b'a' + n], 2 + u64::from(n), NewContent::Nested(chunk.id));
    }
    let root_catalog = source.add(top.finish().unwrap());
    let catalog_index = source.add(CatalogIndex::new(catalogs).to_bytes());
    let (_, root) = sample(0);
    let (source, root) = (Arc::new(source), Root { root_catalog, catalog_index, ..root });
    let tree = mount(&source, &root, MountedTree::BUDGET_BYTES).await;
    assert_eq!(tree.locate(Inode(u64::MAX), PATIENCE).await, Ok(None));
    let memory = tree.memory();
    assert_eq!((memory.catalogs, memory.inodes), (11, 20_011));
    let bytes = (memory.catalog_bytes + memory.inode_bytes) / 20_000;
    assert!(bytes <= 110, "{bytes} bytes an entry");
}

#[tokio::test(start_paused = true)]
async fn what_is_here_is_searched_first_and_waits_for_nobody() {
    let (source, root) = sample(40);
    let index = CatalogIndex::from_bytes(&source.chunks[&root.catalog_index.id]).unwrap();
    let tree = mount(&source, &root, MountedTree::BUDGET_BYTES).await;
    source.silent.store(true, Ordering::SeqCst);
    // Of all nested catalogs one is here at a time, and nobody sends the others.
    let mut found = HashMap::new();
    for chunk in index.catalogs() {
        *source.here.lock().unwrap() = [chunk.id].into();
        for inode in (1000..1040).map(Inode) {
            if let Ok(Some(_)) = tree.locate(inode, Duration::ZERO).await {
                found.entry(inode).or_insert(chunk.id);
            }
        }
    }
    assert_eq!(found.len(), 40);
    source.silent.store(false, Ordering::SeqCst);
    let tree = mount(&source, &root, MountedTree::BUDGET_BYTES).await;
    source.silent.store(true, Ordering::SeqCst);
    *source.here.lock().unwrap() = [found[&Inode(1017)]].into();
    let located = tree.locate(Inode(1017), PATIENCE).await;
    assert_eq!(located.unwrap().unwrap().inode, Inode(1017), "patience is for what is not here");
}

#[tokio::test]
async fn an_inode_of_a_catalog_that_was_never_loaded_is_unknown_until_it_is_located() {
    let (source, root) = sample(40);
    let tree = mount(&source, &root, MountedTree::BUDGET_BYTES).await;
    let file = Inode(1033);
    assert_eq!(tree.attributes(file).await, Err(TreeError::UnknownInode(file)));
    assert_eq!(tree.locate(file, PATIENCE).await.unwrap().unwrap().inode, file);
    assert!(tree.chunks(file).await.unwrap().is_empty());
    assert_eq!(tree.locate(Inode(5), PATIENCE).await, Ok(None));
    let reads = source.reads.load(Ordering::SeqCst);
    // The index and the root catalog, and each other catalog once, but for those that were under way when it was found.
    assert!((2 + 40..2 + 40 + 16).contains(&reads), "{reads}");
    assert_eq!(tree.locate(Inode(6), PATIENCE).await, Ok(None));
    assert_eq!(source.reads.load(Ordering::SeqCst), reads, "nothing is left to be loaded");
}

#[tokio::test]
async fn locating_reports_what_could_not_be_had_only_when_nothing_was_found() {
    let (source, root) = sample(3);
    let tree = mount(&source, &root, MountedTree::BUDGET_BYTES).await;
    tree.list(Inode(11)).await.unwrap();
    source.broken.store(true, Ordering::SeqCst);
    assert!(matches!(tree.locate(Inode(1001), PATIENCE).await, Ok(Some(_))));
    assert!(matches!(tree.locate(Inode(1002), PATIENCE).await, Err(TreeError::Source(_))));
    source.broken.store(false, Ordering::SeqCst);
    assert!(matches!(tree.locate(Inode(1002), PATIENCE).await, Ok(Some(_))));
}

#[tokio::test]
async fn locating_gives_up_after_the_patience_of_the_caller() {
    let (source, root) = sample(3);
    let tree = mount(&source, &root, MountedTree::BUDGET_BYTES).await;
    source.silent.store(true, Ordering::SeqCst);
    let outcome = tree.locate(Inode(1002), Duration::from_millis(5)).await;
    assert!(matches!(outcome, Err(TreeError::Source(SourceError::TimedOut { waited_ms: 5, .. }))));
    source.silent.store(false, Ordering::SeqCst);
    assert!(matches!(tree.locate(Inode(1002), PATIENCE).await, Ok(Some(_))));
}

#[tokio::test]
async fn questions_of_the_wrong_kind_are_refused() {
    let (source, root) = sample(1);
    let tree = mount(&source, &root, MountedTree::BUDGET_BYTES).await;
    assert_eq!(tree.chunks(Inode::ROOT).await, Err(TreeError::WrongKind(Inode::ROOT)));
    assert_eq!(tree.link_target(Inode::ROOT).await, Err(TreeError::WrongKind(Inode::ROOT)));
    let directory = tree.lookup(Inode::ROOT, b"n000").await.unwrap().unwrap().inode;
    let file = tree.lookup(directory, b"file").await.unwrap().unwrap().inode;
    assert_eq!(tree.list(file).await, Err(TreeError::NotADirectory(file)));
    assert_eq!(tree.lookup(Inode::ROOT, b"absent").await, Ok(None));
}

#[tokio::test]
async fn a_nested_catalog_that_the_index_does_not_place_is_damage() {
    let (source, root) = sample(1);
    let mut source = Arc::into_inner(source).unwrap();
    let catalog_index = source.add(CatalogIndex::new(vec![root.root_catalog]).to_bytes());
    let tree = mount(&Arc::new(source), &Root { catalog_index, ..root }, 1 << 20).await;
    assert!(matches!(tree.list(Inode::ROOT).await, Err(TreeError::Damaged(_))));
}

/// An object of the naive tree.
struct Thing {
    attributes: Attributes,
    xattrs: Vec<Xattr>,
    body: Body,
}

enum Body {
    File(Vec<ChunkRef>),
    Link(Vec<u8>),
    Directory {
        entries: BTreeMap<Vec<u8>, usize>,
        parent: usize,
        /// Whether its entries lie in a catalog of their own.
        apart: bool,
    },
}

/// The naive tree: objects by number, the root first. A file with several names is one object.
struct Model(Vec<Thing>);

fn chunk(random: &mut Generator) -> ChunkRef {
    let id = ContentId::of(&random.next_u64().to_le_bytes());
    let segment = ContentId::of(&[u8::try_from(random.below(5)).unwrap()]);
    let plain_len = 1 + u32::try_from(random.below(1 << 20)).unwrap();
    let place = Place { segment, ordinal: 5, offset: random.next_u64() >> 20, stored_len: plain_len };
    ChunkRef { id, plain_len, place }
}

fn name(random: &mut Generator) -> Vec<u8> {
    match random.below(8) {
        0 => vec![b'x'; 1 + random.below(NAME_MAX_BYTES)],
        1 => vec![0xff, 0x80, 1 + u8::try_from(random.below(20)).unwrap()],
        _ => format!("n{}", random.below(40)).into_bytes(),
    }
}

impl Model {
    fn random(seed: u64) -> Self {
        let mut random = Generator::new(seed);
        let directory = |parent, apart| Body::Directory { entries: BTreeMap::new(), parent, apart };
        let mut model = Self(Vec::new());
        model.push(&mut random, directory(0, true));
        for _ in 0..random.below(300) {
            let parents: Vec<usize> = model.which(|body| matches!(body, Body::Directory { .. }));
            let files: Vec<usize> = model.which(|body| matches!(body, Body::File(_)));
            let parent = parents[random.below(parents.len())];
            let name = name(&mut random);
            let Body::Directory { entries, .. } = &model.0[parent].body else { unreachable!() };
            if entries.contains_key(&name) {
                continue;
            }
            let number = match random.below(8) {
                0 | 1 => {
                    let apart = random.below(2) == 0;
                    model.push(&mut random, directory(parent, apart))
                }
                2 => {
                    let target = vec![b't'; 1 + random.below(LINK_TARGET_MAX_BYTES)];
                    model.push(&mut random, Body::Link(target))
                }
                3 if !files.is_empty() => {
                    let number = files[random.below(files.len())];
                    model.0[number].attributes.links += 1;
                    number
                }
                _ => {
                    let chunks = (0..random.below(4)).map(|_| chunk(&mut random)).collect();
                    model.push(&mut random, Body::File(chunks))
                }
            };
            let Body::Directory { entries, .. } = &mut model.0[parent].body else { unreachable!() };
            entries.insert(name, number);
        }
        model
    }

    fn which(&self, is: impl Fn(&Body) -> bool) -> Vec<usize> {
        (0..self.0.len()).filter(|number| is(&self.0[*number].body)).collect()
    }

    fn push(&mut self, random: &mut Generator, body: Body) -> usize {
        let number = self.0.len();
        let (kind, size) = match &body {
            Body::File(chunks) => (FileKind::File, chunks.iter().map(|c| u64::from(c.plain_len)).sum()),
            Body::Link(target) => (FileKind::Symlink, target.len() as u64),
            Body::Directory { .. } => (FileKind::Directory, 0),
        };
        let mut attributes = attributes(1 + (number as u64) * 0x1234_5678_9abc, kind, size);
        attributes.permissions = u16::try_from(random.below(0o10000)).unwrap();
        attributes.uid = [0, 1000, u32::MAX][random.below(3)];
        attributes.mtime_s = [0, -1, i64::MIN, i64::MAX, 1_700_000_000][random.below(5)];
        let name: &[u8] = [&b"user.x"[..], b"system.posix_acl_access"][random.below(2)];
        let xattrs = (0..random.below(3).saturating_sub(1)).map(|_| (Box::from(name), Box::from(&b"y"[..])));
        self.0.push(Thing { attributes, xattrs: xattrs.collect(), body });
        number
    }

    /// Writes the catalog that begins at a directory, after those nested in it.
    fn write(&self, source: &mut Plain, catalogs: &mut Vec<ChunkRef>, top: usize) -> ChunkRef {
        let mut writer = CatalogWriter::new().unwrap();
        let thing = |number: usize| &self.0[number];
        let mut add = |parent, name: &[u8], thing: &Thing, content: NewContent<'_>| {
            let Thing { attributes, xattrs, .. } = thing;
            writer.add(&NewEntry { parent, name, attributes, xattrs, content }).unwrap();
        };
        if top == 0 {
            add(0, b"", thing(0), NewContent::Directory(Catalog::TOP));
        }
        let mut open = vec![top];
        let mut at = 0;
        while at < open.len() {
            let Body::Directory { entries, .. } = &thing(open[at]).body else { unreachable!() };
            at += 1;
            let parent = u32::try_from(at).unwrap();
            for (name, number) in entries {
                let content = match &thing(*number).body {
                    Body::File(chunks) => NewContent::File(chunks),
                    Body::Link(target) => NewContent::Symlink(target),
                    Body::Directory { apart: true, .. } => {
                        NewContent::Nested(self.write(source, catalogs, *number).id)
                    }
                    Body::Directory { apart: false, .. } => {
                        open.push(*number);
                        NewContent::Directory(u32::try_from(open.len()).unwrap())
                    }
                };
                add(parent, name, thing(*number), content);
            }
        }
        let chunk = source.add(writer.finish().unwrap());
        catalogs.push(chunk);
        chunk
    }

    fn publish(&self) -> (Arc<Plain>, Root) {
        let (mut source, mut catalogs) = (Plain::default(), Vec::new());
        let root_catalog = self.write(&mut source, &mut catalogs, 0);
        let catalog_index = source.add(CatalogIndex::new(catalogs).to_bytes());
        let (_, root) = sample(0);
        (Arc::new(source), Root { root_catalog, catalog_index, history: catalog_index, ..root })
    }

    /// Asks a tree everything about an object that it has handed out.
    async fn compare(&self, tree: &MountedTree, number: usize) {
        let thing = &self.0[number];
        let inode = thing.attributes.inode;
        assert_eq!(tree.attributes(inode).await, Ok(thing.attributes));
        assert_eq!(*tree.extended_attributes(inode).await.unwrap(), *thing.xattrs);
        assert!(thing.xattrs.iter().all(|(name, _)| tree.may_have_attribute(name)));
        assert!(!tree.may_have_attribute(b"security.selinux") && tree.may_have_attribute(b"user.none"));
        let (chunks, target) = (tree.chunks(inode).await, tree.link_target(inode).await);
        let (list, parent) = (tree.list(inode).await, tree.parent(inode).await);
        let wrong_kind = TreeError::WrongKind(inode);
        match &thing.body {
            Body::File(expected) => assert_eq!(*chunks.unwrap(), **expected),
            _ => assert_eq!(chunks, Err(wrong_kind.clone())),
        }
        match &thing.body {
            Body::Link(expected) => assert_eq!(*target.unwrap(), **expected),
            _ => assert_eq!(target, Err(wrong_kind)),
        }
        let Body::Directory { entries, parent: above, .. } = &thing.body else {
            assert_eq!(
                (list, parent),
                (Err(TreeError::NotADirectory(inode)), Err(TreeError::NotADirectory(inode)))
            );
            return;
        };
        assert_eq!(parent, Ok(self.0[*above].attributes.inode));
        let expected = entries.iter().map(|(name, number)| DirectoryEntry {
            name: Arc::from(&name[..]),
            attributes: self.0[*number].attributes,
        });
        assert_eq!(*list.unwrap(), *expected.collect::<Vec<_>>());
    }

    /// Wanders through a tree, coming back to what was seen before.
    async fn wander(&self, tree: &MountedTree, random: &mut Generator, steps: usize) {
        let mut seen = vec![0];
        for _ in 0..steps {
            let number = seen[random.below(seen.len())];
            self.compare(tree, number).await;
            let Body::Directory { entries, .. } = &self.0[number].body else { continue };
            let inode = self.0[number].attributes.inode;
            let name = match entries.keys().nth(random.below(entries.len() + 1)) {
                Some(name) => name.clone(),
                None => name(random),
            };
            let expected = entries.get(&name).map(|number| self.0[*number].attributes);
            assert_eq!(tree.lookup(inode, &name).await, Ok(expected));
            seen.extend(entries.get(&name));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_tree_says_what_a_naive_one_says(seed: u64, budget in prop_oneof![Just(0_usize), 1_usize..60_000, Just(1 << 30)]) {
        let model = Model::random(seed);
        let (source, root) = model.publish();
        let mut random = Generator::new(seed ^ 1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let tree = mount(&source, &root, budget).await;
            model.wander(&tree, &mut random, 200).await;
            // Another process's tree is asked about inodes that it never handed out.
            let tree = mount(&source, &root, budget).await;
            for _ in 0..20 {
                let number = random.below(model.0.len());
                let attributes = model.0[number].attributes;
                assert_eq!(tree.locate(attributes.inode, PATIENCE).await, Ok(Some(attributes)));
                model.compare(&tree, number).await;
            }
            assert_eq!(tree.locate(Inode(u64::MAX), PATIENCE).await, Ok(None));
            model.wander(&tree, &mut random, 50).await;
        });
    }
}
