//! Proves that a published tree is read back identical, that publishing again adds only what is new, and that nothing half-done is named.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod listing;

use proptest::prelude::*;
use starling::catalog::{Inode, MountedTree, Tree};
use starling::chunk::{ChunkSource, Chunking};
use starling::model::{Generator, RepositoryName, Rng, UnixTime};
use starling::publish::{Options, Outcome, PublishError, check, publish};
use starling::store::{DirectoryObjects, MemoryObjects, ObjectStore, StoredChunks};
use starling::trust::{Keys, Root, SignedRoot, Standing, VerifiedRoot};
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const NOW: UnixTime = UnixTime(1_800_000_000);

/// A repository in memory, a tree on disk, and the keys.
struct Bench {
    tree: tempfile::TempDir,
    keys: Keys,
    objects: Arc<dyn ObjectStore>,
    now: UnixTime,
}

fn name() -> RepositoryName {
    "sw.example.org".parse().unwrap()
}

impl Bench {
    fn new() -> Self {
        let keys = tempfile::tempdir().unwrap();
        let keys = Keys::open_or_create(keys.path(), &name(), NOW).unwrap();
        Self {
            tree: tempfile::tempdir().unwrap(),
            keys,
            objects: Arc::new(MemoryObjects::default()),
            now: NOW,
        }
    }

    fn options(&self) -> Options {
        Options {
            tree: self.tree.path().to_owned(),
            level: 3,
            chunking: Chunking::default(),
            checksum: false,
            force: false,
            tag: None,
            traces: Vec::new(),
            keep_traces: true,
        }
    }

    fn try_publish(&self, options: &Options) -> Result<Outcome, PublishError> {
        publish(&self.objects, &name(), &self.keys, options, self.now, &mut |_| ())
    }

    fn publish(&self) -> Outcome {
        self.try_publish(&self.options()).unwrap()
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.tree.path().join(name)
    }

    async fn mount(&self, root: &VerifiedRoot) -> (MountedTree, Arc<dyn ChunkSource>) {
        let source: Arc<dyn ChunkSource> = Arc::new(StoredChunks::new(Arc::clone(&self.objects)));
        (
            MountedTree::open(Arc::clone(&source), root.root(), MountedTree::BUDGET_BYTES).await.unwrap(),
            source,
        )
    }

    async fn assert_identical(&self, root: &VerifiedRoot) {
        let (tree, source) = self.mount(root).await;
        let found = listing::of_tree(&tree, &*source).await;
        let wanted = listing::of_disk(self.tree.path());
        assert_eq!(found, wanted);
    }

    fn check(&self) -> check::Summary {
        let root = self.objects.root().unwrap().unwrap();
        check::objects(&*self.objects, &name(), &self.keys.fingerprint(), self.now, &root).unwrap()
    }
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut generator = Generator::new(seed);
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| generator.next_u64().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

/// Sets the time to the nanosecond, `seconds` after 1970.
fn set_time(path: &Path, seconds: u64, nanos: u32) {
    let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
    fs::File::open(path).unwrap().set_modified(time).unwrap();
}

#[tokio::test]
async fn every_kind_of_entry_is_read_back_identical() {
    let bench = Bench::new();
    let at = |name: &str| bench.path(name);
    fs::create_dir_all(at("dir/sub/deep")).unwrap();
    fs::create_dir(at("empty-dir")).unwrap();
    fs::write(at("empty"), b"").unwrap();
    fs::write(at("small"), b"hello").unwrap();
    fs::write(at("dir/large"), noise(3_000_000, 1)).unwrap();
    fs::write(at("dir/zeros"), vec![0; 1_000_000]).unwrap();
    fs::write(bench.tree.path().join(OsStr::from_bytes(b"not \xff utf8\n")), b"x").unwrap();
    symlink("../small", at("dir/link")).unwrap();
    symlink(OsStr::from_bytes(b"/nowhere/\xfe"), at("dangling")).unwrap();
    fs::hard_link(at("small"), at("dir/sub/deep/same")).unwrap();
    fs::hard_link(at("small"), at("zz-same")).unwrap();
    fs::set_permissions(at("small"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(at("dir/sub"), fs::Permissions::from_mode(0o1770)).unwrap();
    set_time(&at("small"), 1_234_567_890, 123_456_789);
    set_time(&at("dir"), 1, 1);
    let has_xattrs = xattr::set(at("dir/large"), "user.origin", b"a\0b").is_ok();
    if !has_xattrs {
        assert!(std::env::var_os("STARLING_REQUIRE_ALL").is_none(), "no extended attributes here");
        eprintln!("skipped: extended attributes, which this file system does not have");
    }
    let outcome = bench.publish();
    assert_eq!((outcome.files, outcome.bytes), (7, 5 + 3_000_000 + 1_000_000 + 1));
    bench.assert_identical(&outcome.root).await;
    let (tree, _) = bench.mount(&outcome.root).await;
    let dir = tree.lookup(Inode::ROOT, b"dir").await.unwrap().unwrap().inode;
    let first = tree.lookup(Inode::ROOT, b"small").await.unwrap().unwrap();
    let sub = tree.lookup(dir, b"sub").await.unwrap().unwrap().inode;
    let deep = tree.lookup(sub, b"deep").await.unwrap().unwrap().inode;
    let same = tree.lookup(deep, b"same").await.unwrap().unwrap();
    assert_eq!((first.inode, first.links), (same.inode, 3), "names of one file share its inode");
    assert_eq!(tree.parent(deep).await.unwrap(), sub);
    assert_eq!(bench.check().revision.0, 1);
}

#[tokio::test]
async fn a_large_tree_is_split_and_a_change_ships_only_what_it_touches() {
    let bench = Bench::new();
    for dir in 0..30 {
        let path = bench.path(&format!("lib/d{dir:02}"));
        fs::create_dir_all(&path).unwrap();
        for file in 0..200 {
            fs::write(path.join(format!("f{file:03}")), format!("{dir} {file}")).unwrap();
        }
    }
    let first = bench.publish();
    bench.assert_identical(&first.root).await;
    let before = bench.check();
    assert!(before.catalogs > 10, "{} catalogs for 6 000 entries", before.catalogs);

    fs::write(bench.path("lib/d07/f007"), b"changed").unwrap();
    let second = bench.publish();
    bench.assert_identical(&second.root).await;
    assert_eq!((second.new_chunks, second.segments), (1, 3), "one chunk, its catalogs, the documents");
    assert!(second.new_stored_bytes < first.new_stored_bytes / 8, "{} bytes", second.new_stored_bytes);
    let after = bench.check();
    assert_eq!((after.revision.0, after.catalogs), (2, before.catalogs));

    // The inode of the changed file is new; of all others, and of directories, it is the old one.
    let ((old, _), (new, _)) = (bench.mount(&first.root).await, bench.mount(&second.root).await);
    let inode = async |tree: &MountedTree, path: &[&[u8]]| {
        let mut inode = Inode::ROOT;
        for name in path {
            inode = tree.lookup(inode, name).await.unwrap().unwrap().inode;
        }
        inode
    };
    for (path, is_same) in [
        (&[&b"lib"[..], b"d07"][..], true),
        (&[b"lib", b"d07", b"f007"], false),
        (&[b"lib", b"d07", b"f008"], true),
    ] {
        assert_eq!(inode(&old, path).await == inode(&new, path).await, is_same, "{path:?}");
    }
}

#[test]
fn nothing_changed_means_no_new_revision_unless_it_is_forced_or_tagged() {
    let bench = Bench::new();
    fs::write(bench.path("a"), b"a").unwrap();
    let first = bench.publish();
    let again = bench.publish();
    assert!(first.is_new_revision && !again.is_new_revision);
    assert_eq!(again.root.id(), first.root.id());
    let forced = bench.try_publish(&Options { force: true, ..bench.options() }).unwrap();
    let tagged = bench.try_publish(&Options { tag: Some("v1".to_owned()), ..bench.options() }).unwrap();
    assert_eq!([forced.root.root().revision.0, tagged.root.root().revision.0], [2, 3]);
    assert_eq!(tagged.root.root().previous, Some(forced.root.id()));
    let bad = Options { tag: Some("two words".to_owned()), ..bench.options() };
    assert!(matches!(bench.try_publish(&bad), Err(PublishError::Document(_))));
}

#[test]
fn an_unchanged_root_is_signed_anew_before_it_expires() {
    let mut bench = Bench::new();
    fs::write(bench.path("a"), b"a").unwrap();
    let first = bench.publish();
    bench.now = UnixTime(first.root.root().expires.0 - 1);
    let again = bench.publish();
    let (old, new): (&Root, &Root) = (first.root.root(), again.root.root());
    assert!(again.is_signed_anew && !again.is_new_revision);
    assert_eq!((new.revision, new.signings), (old.revision, old.signings + 1));
    assert!(new.expires > old.expires && again.root.standing() == Standing::Fresh);
}

#[tokio::test]
async fn a_file_with_the_same_size_and_time_is_read_only_when_told_so() {
    let bench = Bench::new();
    fs::write(bench.path("a"), b"one").unwrap();
    set_time(&bench.path("a"), 5, 6);
    bench.publish();
    fs::write(bench.path("a"), b"two").unwrap();
    set_time(&bench.path("a"), 5, 6);
    assert!(!bench.publish().is_new_revision);
    let outcome = bench.try_publish(&Options { checksum: true, ..bench.options() }).unwrap();
    assert!(outcome.is_new_revision);
    bench.assert_identical(&outcome.root).await;
}

#[test]
fn equal_content_is_stored_once() {
    let bench = Bench::new();
    let content = noise(2_000_000, 3);
    fs::write(bench.path("one"), &content).unwrap();
    let first = bench.publish();
    fs::write(bench.path("two"), &content).unwrap();
    let mut shifted = b"a little more".to_vec();
    shifted.extend_from_slice(&content);
    fs::write(bench.path("three"), &shifted).unwrap();
    let second = bench.publish();
    assert!(second.new_chunks < first.new_chunks / 3, "{} of {}", second.new_chunks, first.new_chunks);
}

#[test]
fn the_same_tree_gives_the_same_objects() {
    let bench = Bench::new();
    for n in 0..50 {
        fs::write(bench.path(&format!("f{n}")), noise(n * 3000, n as u64)).unwrap();
    }
    let list = |bench: &Bench| {
        let mut found = Vec::new();
        bench.objects.list(&mut |id, bytes| found.push((id, bytes))).unwrap();
        found
    };
    bench.publish();
    let first = list(&bench);
    let bench = Bench { objects: Arc::new(MemoryObjects::default()), ..bench };
    bench.publish();
    assert_eq!(list(&bench), first);
}

#[tokio::test]
async fn what_a_killed_publisher_left_is_used_and_what_is_lost_is_stored_again() {
    let stratum = tempfile::tempdir().unwrap();
    let objects = Arc::new(DirectoryObjects::new(stratum.path(), &name()));
    let _lock = objects.lock().unwrap();
    let bench = Bench { objects: objects.clone(), ..Bench::new() };
    fs::write(bench.path("a"), noise(1_000_000, 1)).unwrap();
    fs::write(bench.path("b"), noise(1_000_000, 2)).unwrap();
    // Killed before the root was replaced: all objects are there, some of them torn, and no root.
    bench.publish();
    let root = objects.directory().join("root");
    fs::remove_file(&root).unwrap();
    let mut names = Vec::new();
    objects.list(&mut |id, _| names.push(id)).unwrap();
    let path = |id| objects.directory().join(starling::chunk::object_path(id));
    fs::OpenOptions::new().write(true).open(path(&names[0])).unwrap().set_len(10).unwrap();
    let outcome = bench.publish();
    assert_eq!(outcome.root.root().revision.0, 1);
    bench.assert_identical(&outcome.root).await;
    bench.check();

    // A segment with chunks disappears: what it held is stored again, even though no file changed.
    let (tree, _) = bench.mount(&outcome.root).await;
    let file = tree.lookup(Inode::ROOT, b"a").await.unwrap().unwrap().inode;
    let segment = tree.chunks(file).await.unwrap()[0].place.segment;
    fs::remove_file(path(&segment)).unwrap();
    let outcome = bench.publish();
    assert!(outcome.is_new_revision);
    bench.check();
}

#[test]
fn special_files_are_left_out_and_counted() {
    let bench = Bench::new();
    fs::write(bench.path("a"), b"a").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(bench.path("socket")).unwrap();
    assert_eq!((bench.publish().skipped, bench.publish().files), (1, 1));
}

#[test]
fn a_file_that_keeps_changing_is_an_error_with_its_path_and_nothing_is_published() {
    let bench = Bench::new();
    fs::write(bench.path("busy"), noise(40_000_000, 1)).unwrap();
    let path = bench.path("busy");
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let writer = std::thread::spawn(move || {
        let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
        while !stopped.load(std::sync::atomic::Ordering::SeqCst) {
            file.write_all(b"more").unwrap();
        }
    });
    let result = bench.try_publish(&bench.options());
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    writer.join().unwrap();
    let error = result.unwrap_err();
    assert!(matches!(&error, PublishError::Changing { .. }), "{error}");
    assert!(error.to_string().contains("busy") && bench.objects.root().unwrap().is_none());
}

#[test]
fn a_root_of_other_keys_is_not_replaced() {
    let bench = Bench::new();
    fs::write(bench.path("a"), b"a").unwrap();
    let first = bench.publish();
    let stranger = Bench { objects: Arc::clone(&bench.objects), ..Bench::new() };
    assert!(matches!(stranger.try_publish(&stranger.options()), Err(PublishError::Root(_))));
    let root = bench.objects.root().unwrap().unwrap();
    let root = SignedRoot::verify(&root, &name(), &bench.keys.fingerprint(), NOW).unwrap();
    assert_eq!(root, first.root);
}

/// An entry of a random tree: where it goes, and what it is.
type Step = (Vec<u8>, u8, u8, u32);

fn build(top: &Path, steps: &[Step]) {
    for (position, (place, kind, letter, size)) in steps.iter().enumerate() {
        let mut path = top.to_path_buf();
        for part in place {
            path.push(format!("d{}", part % 3));
        }
        fs::create_dir_all(&path).unwrap();
        // Without the sign between them, 1 and 10 would be the same name as 11 and 0.
        let name = [&b"n\xf0"[..], format!("{letter}-{position}").as_bytes()].concat();
        path.push(OsStr::from_bytes(&name));
        match kind % 4 {
            0 => symlink(format!("target-{size}"), &path).unwrap(),
            1 if top.join("first").exists() => fs::hard_link(top.join("first"), &path).unwrap(),
            _ => fs::write(&path, noise(*size as usize, u64::from(*letter))).unwrap(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn random_trees_and_their_changes_are_read_back_identical(
        steps in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..5), any::<u8>(), 0_u8..9, 0_u32..200_000), 0..25),
        more in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..5), any::<u8>(), 10_u8..19, 0_u32..200_000), 0..10),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bench = Bench::new();
        fs::write(bench.path("first"), b"first").unwrap();
        for steps in [&steps, &more] {
            build(bench.tree.path(), steps);
            let outcome = bench.publish();
            runtime.block_on(bench.assert_identical(&outcome.root));
            bench.check();
        }
    }
}
