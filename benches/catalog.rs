//! What a tree's metadata costs: memory, loading, and questions that it is asked.
//!
//! `cargo bench --bench catalog -- [--entries 150000] [--catalog-entries 2000] [--rounds 3]`. The tree has files with names of
//! 15 bytes, one chunk and a time of their own each, in directories of 50, in nested catalogs of 2 000. Prints the bytes
//! an entry, by the tree's own account and by the process's resident memory, how long it takes to load all of it, and
//! what a look-up, a listed entry, attributes and a list of chunks take.
#![allow(clippy::unwrap_used, reason = "a measurement may panic")]
#![allow(clippy::disallowed_methods, reason = "a measurement takes the real time")]

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use starling::catalog::{
    Attributes, CatalogIndex, CatalogWriter, FileKind, Inode, MountedTree, NewContent, NewEntry, Tree,
};
use starling::chunk::{ChunkSource, Chunking, Piece, SourceError};
use starling::model::{ChunkRef, Class, ContentId, Generator, Place, Revision, Rng, UnixTime};
use starling::trust::Root;
use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Entries of a directory.
const DIRECTORY_ENTRIES: u32 = 50;
/// Questions of a kind that are asked.
const QUESTIONS: u32 = 1_000_000;

/// Catalogs in memory, handed out at once.
#[derive(Default)]
struct Memory(HashMap<ContentId, Bytes>);

impl Memory {
    fn add(&mut self, bytes: Vec<u8>) -> ChunkRef {
        let id = ContentId::of(&bytes);
        let plain_len = u32::try_from(bytes.len()).unwrap();
        self.0.insert(id, bytes.into());
        ChunkRef { id, plain_len, place: Place { segment: id, ordinal: 0, offset: 0, stored_len: 1 } }
    }

    fn bytes(&self) -> usize {
        self.0.values().map(Bytes::len).sum()
    }
}

impl ChunkSource for Memory {
    fn read(&self, pieces: Vec<Piece>, _: Class) -> BoxFuture<'_, Result<Vec<Bytes>, SourceError>> {
        std::future::ready(Ok(pieces.iter().map(|piece| self.0[&piece.chunk.id].clone()).collect())).boxed()
    }
}

fn attributes(inode: u64, kind: FileKind, size: u64, number: u32) -> Attributes {
    Attributes {
        inode: Inode(inode),
        kind,
        permissions: 0o644,
        uid: 0,
        gid: 0,
        size,
        links: 1,
        mtime_s: 1_700_000_000 + i64::from(number),
        mtime_ns: number.wrapping_mul(2_654_435_761) % 1_000_000_000,
    }
}

fn file_name(number: u32) -> String {
    format!("file-{number:06}.dat")
}

fn directory(number: u32) -> Attributes {
    let inode = ContentId::of(&[&b"directory"[..], &number.to_le_bytes()].concat()).key() >> 1 | 2;
    attributes(inode, FileKind::Directory, 0, number)
}

/// Writes the catalog of the files `first..first + entries`, in directories.
fn nested(first: u32, entries: u32) -> Vec<u8> {
    let mut writer = CatalogWriter::new().unwrap();
    let directories = entries.div_ceil(DIRECTORY_ENTRIES);
    let mut add = |parent, name: &str, attributes: Attributes, content: NewContent<'_>| {
        let name = name.as_bytes();
        writer.add(&NewEntry { parent, name, attributes: &attributes, xattrs: &[], content }).unwrap();
    };
    for at in 0..directories {
        let attributes = directory(first + at * DIRECTORY_ENTRIES);
        add(1, &format!("d{at:03}"), attributes, NewContent::Directory(2 + at));
    }
    for at in 0..entries {
        let number = first + at;
        let id = ContentId::of(&number.to_le_bytes());
        let place = Place {
            segment: ContentId::of(&(number / 256).to_le_bytes()),
            ordinal: number % 256,
            offset: u64::from(number % 256) * 30_000,
            stored_len: 30_000 + number % 1_000,
        };
        let plain_len = 40_000 + number % 20_000;
        let chunks = [ChunkRef { id, plain_len, place }];
        let attributes = attributes(id.key() >> 1 | 2, FileKind::File, plain_len.into(), number);
        add(2 + at / DIRECTORY_ENTRIES, &file_name(number), attributes, NewContent::File(&chunks));
    }
    writer.finish().unwrap()
}

fn publish(entries: u32, each: u32) -> (Memory, Root) {
    let mut source = Memory::default();
    let mut catalogs = Vec::new();
    let mut top = CatalogWriter::new().unwrap();
    let mut add = |parent, name: &[u8], attributes: Attributes, content: NewContent<'_>| {
        top.add(&NewEntry { parent, name, attributes: &attributes, xattrs: &[], content }).unwrap();
    };
    add(0, b"", attributes(1, FileKind::Directory, 0, 0), NewContent::Directory(1));
    for (number, first) in (0_u32..entries).step_by(each as usize).enumerate() {
        let chunk = source.add(nested(first, each.min(entries - first)));
        catalogs.push(chunk);
        let number = u32::try_from(number).unwrap();
        let name = format!("n{number:05}");
        add(1, name.as_bytes(), directory(u32::MAX - number), NewContent::Nested(chunk.id));
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
        inodes: entries.into(),
        plain_bytes: 0,
        chunking: Chunking::default(),
        issued: UnixTime(0),
        expires: UnixTime(1),
    };
    (source, root)
}

fn resident_bytes() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0
}

fn argument(name: &str, default: u32) -> u32 {
    let args: Vec<String> = std::env::args().collect();
    let at = args.iter().position(|arg| arg == name);
    at.and_then(|at| args.get(at + 1)).map_or(default, |value| value.parse().expect("a number"))
}

fn each(what: &str, took: Duration, count: u32) {
    println!("{what:<44} {:>8.0} ns", took.as_secs_f64() * 1e9 / f64::from(count));
}

/// Answers that are here are ready at the first poll.
fn now<T>(future: BoxFuture<'_, T>) -> T {
    future.now_or_never().expect("all catalogs are in memory")
}

/// A file: directory, name and inode.
type Found = (Inode, Arc<[u8]>, Inode);

/// All files, the entries that were listed, and how long that took.
fn walk(tree: &MountedTree) -> (Vec<Found>, u32, Duration) {
    let (mut files, mut open, mut listed) = (Vec::new(), vec![Inode::ROOT], 0);
    let mut listing = Duration::ZERO;
    while let Some(directory) = open.pop() {
        let begun = Instant::now();
        let entries = now(tree.list(directory));
        listing += begun.elapsed();
        for entry in entries.unwrap().iter() {
            listed += 1;
            match entry.attributes.kind {
                FileKind::Directory => open.push(entry.attributes.inode),
                _ => files.push((directory, entry.name.clone(), entry.attributes.inode)),
            }
        }
    }
    (files, listed, listing)
}

fn ask(tree: &MountedTree) {
    walk(tree);
    let (files, listed, listing) = walk(tree);
    each("an entry listed", listing, listed);
    let mut random = Generator::new(1);
    let picks: Vec<usize> = (0..QUESTIONS).map(|_| random.below(files.len())).collect();
    let time = |what: &str, question: &dyn Fn(&Found)| {
        let begun = Instant::now();
        picks.iter().for_each(|pick| question(&files[*pick]));
        each(what, begun.elapsed(), QUESTIONS);
    };
    time("a look-up of a random name", &|(directory, name, inode)| {
        assert_eq!(now(tree.lookup(*directory, name)).unwrap().unwrap().inode, *inode);
    });
    time("a look-up of an absent name", &|(directory, _, _)| {
        assert_eq!(now(tree.lookup(*directory, b"file-nowhere.so")), Ok(None));
    });
    time("attributes of a random inode", &|(_, _, inode)| {
        assert_eq!(now(tree.attributes(*inode)).unwrap().inode, *inode);
    });
    time("the chunks of a random file", &|(_, _, inode)| {
        assert_eq!(now(tree.chunks(*inode)).unwrap().len(), 1);
    });
}

fn main() {
    starling::agent::keep_small();
    let (entries, each) = (argument("--entries", 150_000), argument("--catalog-entries", 2_000));
    let (source, root) = publish(entries, each);
    let per_entry = |bytes: f64| bytes / f64::from(entries);
    println!("{entries} entries, {:.1} bytes an entry in SQLite", per_entry(source.bytes() as f64));
    let source: Arc<dyn ChunkSource> = Arc::new(source);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for _ in 0..argument("--rounds", 3) {
        let before = resident_bytes();
        let begun = Instant::now();
        let tree = runtime.block_on(async {
            let tree = MountedTree::open(source.clone(), &root, MountedTree::BUDGET_BYTES).await.unwrap();
            assert_eq!(tree.locate(Inode(u64::MAX), Duration::from_secs(60)).await, Ok(None));
            tree
        });
        println!("loading all of it {:>40.1} ms", begun.elapsed().as_secs_f64() * 1e3);
        let (memory, resident) = (tree.memory(), resident_bytes() - before);
        let counted = per_entry((memory.catalog_bytes + memory.inode_bytes) as f64);
        let table = per_entry(memory.inode_bytes as f64);
        println!("{counted:.1} bytes an entry ({table:.1} of them for the table of inodes)");
        println!("{:.1} bytes an entry more resident, in {} catalogs", per_entry(resident), memory.catalogs);
        ask(&tree);
    }
}
