//! Proves that format version 1 stays readable: golden files are read and compared, and refused when they were tampered with.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod listing;

use starling::catalog::{CatalogIndex, History, MountedTree};
use starling::chunk::{ChunkSource, SegmentIndex, object_path};
use starling::model::{ContentId, RepositoryName, Revision, UnixTime};
use starling::publish::check::{self, CheckError};
use starling::store::{DirectoryObjects, ObjectStore, StoredChunks, read_chunk};
use starling::trust::{
    Fingerprint, Keys, Repositories, RepositoryCard, RootVerdict, SignedRoot, VerifiedRoot,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FINGERPRINT: &str = "2d114c0a2ecde84f559d99b49c7e16ae7eb006a4050b20064f8f600905d2cb32";
/// A day after the golden files were made.
const NOW: UnixTime = UnixTime(1_795_650_000);

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

fn name() -> RepositoryName {
    "golden.example".parse().unwrap()
}

fn fingerprint() -> Fingerprint {
    FINGERPRINT.parse().unwrap()
}

fn root_bytes() -> Vec<u8> {
    fs::read(golden().join("stratum/golden.example/root")).unwrap()
}

fn verify(bytes: &[u8]) -> VerifiedRoot {
    SignedRoot::verify(bytes, &name(), &fingerprint(), NOW).unwrap()
}

fn objects() -> DirectoryObjects {
    DirectoryObjects::new(&golden().join("stratum"), &name())
}

/// The listing, the many empty files of `/many` as one line with their number and the hash of theirs.
fn condense(lines: Vec<String>) -> String {
    let (many, mut lines): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line.contains(" /many/"));
    lines.push(format!("{} more below /many: {}", many.len(), ContentId::of(many.join("\n").as_bytes())));
    lines.join("\n") + "\n"
}

#[tokio::test]
async fn version_1_is_read_as_it_was_written() {
    let source: Arc<dyn ChunkSource> = Arc::new(StoredChunks::new(Arc::new(objects())));
    let root = verify(&root_bytes());
    let tree = MountedTree::open(Arc::clone(&source), root.root(), 1 << 20).await.unwrap();
    let found = condense(listing::of_tree(&tree, &*source).await);
    let wanted = fs::read_to_string(golden().join("listing.txt")).unwrap_or_default();
    if found != wanted {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("listing.txt");
        fs::write(&path, &found).unwrap();
        panic!("the golden repository reads differently now: see {}", path.display());
    }
}

#[test]
fn the_documents_of_version_1_say_what_they_said() {
    let root = verify(&root_bytes());
    let first = verify(&fs::read(golden().join("root-1")).unwrap());
    assert_eq!(root.root().revision, Revision(2));
    assert_eq!(root.root().previous, Some(first.id()));
    assert_eq!((root.root().inodes, root.root().plain_bytes), (2004, 262_908));
    let history = History::from_bytes(&read_chunk(&objects(), &root.root().history).unwrap()).unwrap();
    assert_eq!(history.tags().get("golden"), Some(&Revision(2)));
    let past = &history.revisions()[0];
    assert_eq!((past.revision, past.root), (Revision(1), first.id()));
    // A past revision is one look-up away: its catalogs are where the history says.
    let index = CatalogIndex::from_bytes(&read_chunk(&objects(), &past.catalog_index).unwrap()).unwrap();
    assert_eq!(index.find(&past.root_catalog.id), Some(first.root().root_catalog));
    assert_eq!(index.catalogs().len(), 2, "a nested catalog is part of the golden files");
}

#[test]
fn everything_that_the_golden_roots_name_is_in_order() {
    for root in [root_bytes(), fs::read(golden().join("root-1")).unwrap()] {
        let found =
            check::repository(&golden().join("stratum"), &name(), &fingerprint(), NOW, &root).unwrap();
        assert_eq!((found.catalogs, found.chunks), (2, 7 + found.revision.0));
    }
}

#[test]
fn the_golden_keys_are_read() {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden().join("keys")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let keys = Keys::open(dir.path(), &name(), NOW).unwrap();
    assert_eq!(keys.fingerprint(), fingerprint());
}

/// A copy of the golden stratum, to be damaged.
fn copy() -> (tempfile::TempDir, DirectoryObjects) {
    let dir = tempfile::tempdir().unwrap();
    let copied = DirectoryObjects::new(dir.path(), &name());
    objects()
        .list(&mut |id, bytes| {
            let path = copied.directory().join(object_path(&id));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, objects().read(&id, 0, u32::try_from(bytes).unwrap()).unwrap()).unwrap();
        })
        .unwrap();
    (dir, copied)
}

fn flip(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[usize::try_from(at).unwrap()] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn check_copy(copied: &DirectoryObjects, root: &[u8]) -> Result<check::Summary, CheckError> {
    check::objects(copied, &name(), &fingerprint(), NOW, root)
}

#[test]
fn a_tampered_chunk_and_a_tampered_segment_are_refused() {
    let mut segments = Vec::new();
    objects().list(&mut |id, bytes| segments.push((id, bytes))).unwrap();
    assert!(segments.len() >= 5);
    for (id, bytes) in segments {
        let (_dir, copied) = copy();
        let path = copied.directory().join(object_path(&id));
        let index = SegmentIndex::check(&fs::read(&path).unwrap(), &id).unwrap();
        // In a frame, in the index, in the trailer.
        for at in [u64::from(index.entries[0].stored_len) / 2, bytes - 40, bytes - 1] {
            flip(&path, at);
            assert!(SegmentIndex::check(&fs::read(&path).unwrap(), &id).is_err());
            flip(&path, at);
        }
        let entry = index.entries[0];
        let frame = copied.read(&id, entry.offset, entry.stored_len).unwrap();
        assert!(starling::chunk::decode(&frame, &entry.id, entry.plain_len).is_ok());
        let mut damaged = frame.to_vec();
        damaged[frame.len() / 2] ^= 1;
        assert!(starling::chunk::decode(&damaged, &entry.id, entry.plain_len).is_err());
        assert!(starling::chunk::decode(&frame[..frame.len() - 1], &entry.id, entry.plain_len).is_err());
    }
}

#[test]
fn a_repository_with_one_changed_byte_anywhere_does_not_pass_the_check() {
    let root = root_bytes();
    let (_dir, copied) = copy();
    let whole = check_copy(&copied, &root).unwrap();
    let mut refused = 0;
    let mut segments = Vec::new();
    copied.list(&mut |id, bytes| segments.push((id, bytes))).unwrap();
    for (id, bytes) in segments {
        let path = copied.directory().join(object_path(&id));
        flip(&path, bytes / 2);
        refused += u64::from(check_copy(&copied, &root).is_err());
        flip(&path, bytes / 2);
    }
    // Segments that only revision 1 needs are not this root's business.
    assert_eq!(refused, whole.segments);
}

#[tokio::test]
async fn a_tampered_catalog_is_refused() {
    let (_dir, copied) = copy();
    let root = verify(&root_bytes());
    let place = root.root().root_catalog.place;
    let path = copied.directory().join(object_path(&place.segment));
    flip(&path, place.offset + u64::from(place.stored_len) / 2);
    let source: Arc<dyn ChunkSource> = Arc::new(StoredChunks::new(Arc::new(copied)));
    let error = MountedTree::open(source, root.root(), 1 << 20).await.unwrap_err();
    assert!(error.to_string().contains(&root.root().root_catalog.id.to_string()), "{error}");
}

#[test]
fn a_tampered_root_is_refused_wherever_it_was_tampered_with() {
    let root = root_bytes();
    for at in 0..root.len() {
        let mut tampered = root.clone();
        tampered[at] ^= 1;
        assert!(SignedRoot::verify(&tampered, &name(), &fingerprint(), NOW).is_err(), "byte {at}");
        assert!(SignedRoot::verify(&root[..at], &name(), &fingerprint(), NOW).is_err(), "cut at {at}");
    }
}

#[test]
fn an_older_root_is_refused_after_a_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Repositories::open(dir.path()).unwrap();
    let card = RepositoryCard { name: name(), fingerprint: fingerprint(), strata: Vec::new(), issued: NOW };
    registry.add_by_hand(card).unwrap();
    assert!(matches!(registry.accept_root(&root_bytes()).unwrap(), RootVerdict::Fresh(_)));
    let older = fs::read(golden().join("root-1")).unwrap();
    assert!(matches!(registry.accept_root(&older).unwrap(), RootVerdict::Older));
}
