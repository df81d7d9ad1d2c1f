//! A tree and a source of chunks in memory, and the naive tree that they are made from.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use starling::catalog::{
    Attributes, DirectoryEntry, ExtendedAttributes, FileKind, Inode, PublishedTrace, Tree, TreeError,
    TreeName,
};
use starling::chunk::{ChunkSource, Piece, SourceError};
use starling::model::{ChunkRef, Class, ContentId, Generator, Place, Rng};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Smallest file of which there is a body.
pub(crate) const BODY_MIN_BYTES: usize = 1 << 20;

/// A file system object in the naive tree: the only definition of what is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Directory,
    Symlink(Vec<u8>),
    /// Content, and the lengths that it is cut into.
    File(Vec<u8>, usize),
    /// Another name of the file at this path.
    HardLink(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) body: Body,
    pub(crate) permissions: u16,
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Path without a leading slash -> object. The root is the empty path.
pub(crate) type Naive = BTreeMap<Vec<u8>, Node>;

pub(crate) fn node(body: Body) -> Node {
    let permissions = if body == Body::Directory { 0o755 } else { 0o644 };
    Node { body, permissions, mtime: (1_700_000_000, 123_456_789), xattrs: Vec::new() }
}

pub(crate) fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |at| &path[..at])
}

pub(crate) fn base(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(path, |at| &path[at + 1..])
}

/// The bytes of a naive file, through hard links.
pub(crate) fn content<'a>(naive: &'a Naive, path: &[u8]) -> Option<&'a [u8]> {
    match &naive.get(path)?.body {
        Body::File(bytes, _) => Some(bytes),
        Body::HardLink(target) => content(naive, target),
        _ => None,
    }
}

/// How many names each object has, by the path that is not a hard link.
pub(crate) fn link_counts(naive: &Naive) -> BTreeMap<Vec<u8>, usize> {
    let mut counts = BTreeMap::new();
    for (path, node) in naive {
        let real = if let Body::HardLink(target) = &node.body { target } else { path };
        *counts.entry(real.clone()).or_insert(0) += 1;
    }
    counts
}

struct Object {
    attributes: Attributes,
    parent: Inode,
    entries: Arc<[DirectoryEntry]>,
    target: Arc<[u8]>,
    chunks: Arc<[ChunkRef]>,
    xattrs: ExtendedAttributes,
}

/// The naive tree behind the port. It insists that an inode was handed out before it is asked about.
pub(crate) struct MemoryTree {
    objects: BTreeMap<Inode, Object>,
    handed_out: Mutex<BTreeSet<Inode>>,
}

fn inode_of(path: &[u8], node: &Node) -> Inode {
    if path.is_empty() {
        return Inode::ROOT;
    }
    // A directory is named by its path, anything else also by what it is.
    let identity = match &node.body {
        Body::Directory => path.to_vec(),
        body => format!("{path:?} {body:?} {:?}", node.mtime).into_bytes(),
    };
    Inode(ContentId::of(&identity).key() | 1 << 40)
}

impl MemoryTree {
    /// Builds the tree and puts its chunks into `source`.
    pub(crate) fn new(naive: &Naive, source: &impl Shelf) -> Self {
        let resolve = |path: &Vec<u8>| match &naive[path].body {
            Body::HardLink(target) => target.clone(),
            _ => path.clone(),
        };
        let links = link_counts(naive);
        let mut objects: BTreeMap<Inode, Object> = BTreeMap::new();
        let mut lists: BTreeMap<Vec<u8>, Vec<(Vec<u8>, Inode)>> = BTreeMap::new();
        for path in naive.keys() {
            let real = resolve(path);
            let node = &naive[&real];
            let inode = inode_of(&real, node);
            let links = links[&real];
            let (kind, size, target, chunks) = match &node.body {
                Body::Directory => (FileKind::Directory, 0, Vec::new(), Vec::new()),
                Body::Symlink(target) => (FileKind::Symlink, target.len(), target.clone(), Vec::new()),
                Body::File(bytes, cut) => {
                    (FileKind::File, bytes.len(), Vec::new(), source.store(bytes, *cut))
                }
                Body::HardLink(_) => unreachable!("resolved"),
            };
            let attributes = Attributes {
                inode,
                kind,
                permissions: node.permissions,
                uid: 0,
                gid: 0,
                size: size as u64,
                links: u32::try_from(if kind == FileKind::Directory { 2 } else { links }).unwrap(),
                mtime_s: node.mtime.0,
                mtime_ns: node.mtime.1,
            };
            let xattrs = node.xattrs.iter().map(|(k, v)| (k.clone().into(), v.clone().into())).collect();
            let parent = inode_of(parent(&real), &naive[parent(&real)]);
            let (target, chunks, entries) = (target.into(), chunks.into(), Arc::default());
            objects.insert(inode, Object { attributes, parent, entries, target, chunks, xattrs });
            if !path.is_empty() {
                lists.entry(self::parent(path).to_vec()).or_default().push((base(path).to_vec(), inode));
            }
        }
        for (path, mut list) in lists {
            list.sort();
            let entries = list
                .into_iter()
                .map(|(name, inode)| DirectoryEntry {
                    name: name.into(),
                    attributes: objects[&inode].attributes,
                })
                .collect();
            objects.get_mut(&inode_of(&path, &naive[&path])).unwrap().entries = entries;
        }
        Self { objects, handed_out: Mutex::new(BTreeSet::from([Inode::ROOT])) }
    }

    fn object(&self, inode: Inode) -> Result<&Object, TreeError> {
        if !self.handed_out.lock().unwrap().contains(&inode) {
            return Err(TreeError::UnknownInode(inode));
        }
        self.objects.get(&inode).ok_or(TreeError::UnknownInode(inode))
    }

    fn of_kind(&self, inode: Inode, kind: FileKind) -> Result<&Object, TreeError> {
        let object = self.object(inode)?;
        match (object.attributes.kind == kind, kind) {
            (true, _) => Ok(object),
            (false, FileKind::Directory) => Err(TreeError::NotADirectory(inode)),
            (false, _) => Err(TreeError::WrongKind(inode)),
        }
    }
}

fn ready<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, T> {
    std::future::ready(value).boxed()
}

impl Tree for MemoryTree {
    fn lookup<'a>(
        &'a self,
        directory: Inode,
        name: &'a [u8],
    ) -> BoxFuture<'a, Result<Option<Attributes>, TreeError>> {
        let found = self.of_kind(directory, FileKind::Directory).map(|object| {
            let number = object.entries.binary_search_by(|entry| (*entry.name).cmp(name)).ok()?;
            let entry = &object.entries[number];
            self.handed_out.lock().unwrap().insert(entry.attributes.inode);
            Some(entry.attributes)
        });
        ready(found)
    }

    fn list(&self, directory: Inode) -> BoxFuture<'_, Result<Arc<[DirectoryEntry]>, TreeError>> {
        ready(self.of_kind(directory, FileKind::Directory).map(|object| {
            let mut handed_out = self.handed_out.lock().unwrap();
            handed_out.extend(object.entries.iter().map(|entry| entry.attributes.inode));
            Arc::clone(&object.entries)
        }))
    }

    fn attributes(&self, inode: Inode) -> BoxFuture<'_, Result<Attributes, TreeError>> {
        ready(self.object(inode).map(|object| object.attributes))
    }

    fn parent(&self, directory: Inode) -> BoxFuture<'_, Result<Inode, TreeError>> {
        ready(self.of_kind(directory, FileKind::Directory).map(|object| object.parent))
    }

    fn link_target(&self, inode: Inode) -> BoxFuture<'_, Result<Arc<[u8]>, TreeError>> {
        ready(self.of_kind(inode, FileKind::Symlink).map(|object| Arc::clone(&object.target)))
    }

    fn extended_attributes(
        &self,
        inode: Inode,
    ) -> BoxFuture<'_, Result<Arc<[(Box<[u8]>, Box<[u8]>)]>, TreeError>> {
        ready(self.object(inode).map(|object| Arc::clone(&object.xattrs)))
    }

    fn may_have_attribute(&self, name: &[u8]) -> bool {
        name.starts_with(b"user.")
            || self.objects.values().any(|object| object.xattrs.iter().any(|(key, _)| **key == *name))
    }

    fn chunks(&self, file: Inode) -> BoxFuture<'_, Result<Arc<[ChunkRef]>, TreeError>> {
        ready(self.of_kind(file, FileKind::File).map(|object| Arc::clone(&object.chunks)))
    }

    fn locate(&self, inode: Inode, _: Duration) -> BoxFuture<'_, Result<Option<Attributes>, TreeError>> {
        let found = self.objects.get(&inode).map(|object| object.attributes);
        if found.is_some() {
            self.handed_out.lock().unwrap().insert(inode);
        }
        ready(Ok(found))
    }

    fn totals(&self) -> (u64, u64) {
        let bytes = self.objects.values().map(|object| object.attributes.size).sum();
        (self.objects.len() as u64, bytes)
    }
}

/// What a tree is asked about an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Lookup,
    List,
    Attributes,
    Parent,
    LinkTarget,
    ExtendedAttributes,
    Chunks,
    Locate(Duration),
}

/// An error in the place of an answer: at once, later or never.
pub(crate) type Failure = BoxFuture<'static, TreeError>;

/// A tree that answers as another one does, but for what a test has fail, and for what it says lies in front of all else and was
/// traced.
pub(crate) struct Altered {
    pub(crate) inner: MemoryTree,
    pub(crate) fails: Box<dyn Fn(Ask, Inode) -> Option<Failure> + Send + Sync>,
    pub(crate) laid: Vec<ChunkRef>,
    pub(crate) traces: Vec<PublishedTrace>,
}

impl Altered {
    /// One that answers as `inner` does.
    pub(crate) fn new(inner: MemoryTree) -> Self {
        Self { inner, fails: Box::new(|_, _| None), laid: Vec::new(), traces: Vec::new() }
    }

    /// One some of whose answers are errors.
    pub(crate) fn failing(
        inner: MemoryTree,
        fails: impl Fn(Ask, Inode) -> Option<Failure> + Send + Sync + 'static,
    ) -> Self {
        Self { fails: Box::new(fails), ..Self::new(inner) }
    }

    fn ask<'a, T: Send + 'a>(
        &'a self,
        ask: Ask,
        inode: Inode,
        answer: impl FnOnce(&'a MemoryTree) -> BoxFuture<'a, Result<T, TreeError>>,
    ) -> BoxFuture<'a, Result<T, TreeError>> {
        match (self.fails)(ask, inode) {
            Some(failure) => failure.map(Err).boxed(),
            None => answer(&self.inner),
        }
    }
}

impl Tree for Altered {
    fn lookup<'a>(
        &'a self,
        directory: Inode,
        name: &'a [u8],
    ) -> BoxFuture<'a, Result<Option<Attributes>, TreeError>> {
        self.ask(Ask::Lookup, directory, |tree| tree.lookup(directory, name))
    }
    fn list(&self, directory: Inode) -> BoxFuture<'_, Result<Arc<[DirectoryEntry]>, TreeError>> {
        self.ask(Ask::List, directory, |tree| tree.list(directory))
    }
    fn is_here(&self, directory: Inode) -> bool {
        self.inner.is_here(directory)
    }
    fn attributes(&self, inode: Inode) -> BoxFuture<'_, Result<Attributes, TreeError>> {
        self.ask(Ask::Attributes, inode, |tree| tree.attributes(inode))
    }
    fn parent(&self, directory: Inode) -> BoxFuture<'_, Result<Inode, TreeError>> {
        self.ask(Ask::Parent, directory, |tree| tree.parent(directory))
    }
    fn link_target(&self, inode: Inode) -> BoxFuture<'_, Result<Arc<[u8]>, TreeError>> {
        self.ask(Ask::LinkTarget, inode, |tree| tree.link_target(inode))
    }
    fn extended_attributes(&self, inode: Inode) -> BoxFuture<'_, Result<ExtendedAttributes, TreeError>> {
        self.ask(Ask::ExtendedAttributes, inode, |tree| tree.extended_attributes(inode))
    }
    fn may_have_attribute(&self, name: &[u8]) -> bool {
        self.inner.may_have_attribute(name)
    }
    fn chunks(&self, file: Inode) -> BoxFuture<'_, Result<Arc<[ChunkRef]>, TreeError>> {
        self.ask(Ask::Chunks, file, |tree| tree.chunks(file))
    }
    fn locate(
        &self,
        inode: Inode,
        patience: Duration,
    ) -> BoxFuture<'_, Result<Option<Attributes>, TreeError>> {
        self.ask(Ask::Locate(patience), inode, |tree| tree.locate(inode, patience))
    }
    fn path(&self, inode: Inode) -> BoxFuture<'_, Result<Vec<u8>, TreeError>> {
        self.inner.path(inode)
    }
    fn laid_in(&self, _: Inode, _: &ContentId, bytes: &Range<u64>, _: u64) -> Vec<ChunkRef> {
        if bytes.start == 0 { self.laid.clone() } else { Vec::new() }
    }
    fn traces(&self) -> &[PublishedTrace] {
        &self.traces
    }
    fn totals(&self) -> (u64, u64) {
        self.inner.totals()
    }
    fn name(&self) -> Option<TreeName> {
        self.inner.name()
    }
}

/// What trees and their bytes come from.
pub(crate) trait Shelf: ChunkSource {
    /// Cuts a file into chunks of this length, and has them from now on.
    fn store(&self, bytes: &[u8], cut: usize) -> Vec<ChunkRef>;

    /// The naive tree behind the port.
    fn tree(&self, naive: &Naive) -> Arc<dyn Tree>;

    /// Whether an I/O error is excused.
    fn is_troubled(&self) -> bool {
        false
    }

    /// Has something happen to it, or end.
    fn disturb(&self, random: &mut Generator) {
        let _ = random;
    }
}

/// Chunks in memory. Some calls are answered at once, the others from another task.
#[derive(Default)]
pub(crate) struct MemorySource {
    chunks: Mutex<BTreeMap<ContentId, Bytes>>,
    calls: Mutex<u64>,
    /// Where bodies are made, if there are any.
    bodies: Mutex<Option<PathBuf>>,
}

impl Shelf for MemorySource {
    fn store(&self, bytes: &[u8], cut: usize) -> Vec<ChunkRef> {
        let mut chunks = self.chunks.lock().unwrap();
        bytes
            .chunks(cut.max(1))
            .map(|piece| {
                let id = ContentId::of(piece);
                chunks.entry(id).or_insert_with(|| Bytes::copy_from_slice(piece));
                let plain_len = u32::try_from(piece.len()).unwrap();
                let place = Place { segment: id, ordinal: 0, offset: 0, stored_len: plain_len };
                ChunkRef { id, plain_len, place }
            })
            .collect()
    }

    fn tree(&self, naive: &Naive) -> Arc<dyn Tree> {
        Arc::new(MemoryTree::new(naive, self))
    }
}

impl MemorySource {
    /// Loses every chunk: from now on every read times out.
    pub(crate) fn lose_everything(&self) {
        self.chunks.lock().unwrap().clear();
    }

    /// From now on files of at least [`BODY_MIN_BYTES`] have bodies, in `folder`; `None` for no longer.
    pub(crate) fn make_bodies(&self, folder: Option<&Path>) {
        *self.bodies.lock().unwrap() = folder.map(Path::to_owned);
    }

    fn get(&self, piece: &Piece) -> Result<Bytes, SourceError> {
        let chunk = piece.chunk.id;
        let chunks = self.chunks.lock().unwrap();
        let detail = "the test lost it".to_owned();
        let bytes = chunks.get(&chunk).ok_or(SourceError::TimedOut { chunk, waited_ms: 1, detail })?;
        Ok(bytes.slice(piece.offset as usize..(piece.offset + piece.len) as usize))
    }
}

impl ChunkSource for MemorySource {
    fn read(&self, pieces: Vec<Piece>, _class: Class) -> BoxFuture<'_, Result<Vec<Bytes>, SourceError>> {
        let call = {
            let mut calls = self.calls.lock().unwrap();
            *calls += 1;
            *calls
        };
        async move {
            if call.is_multiple_of(2) {
                tokio::task::yield_now().await;
            }
            pieces.iter().map(|piece| self.get(piece)).collect()
        }
        .boxed()
    }

    fn body(&self, chunks: &Arc<[ChunkRef]>) -> BoxFuture<'_, Option<Arc<File>>> {
        let made = || {
            let folder = self.bodies.lock().unwrap().clone()?;
            let pieces = chunks.iter().map(|chunk| self.get(&Piece::whole(*chunk)));
            let bytes = pieces.collect::<Result<Vec<_>, _>>().ok()?.concat();
            (bytes.len() >= BODY_MIN_BYTES).then(|| {
                let path = folder.join(ContentId::of(&bytes).to_string());
                std::fs::write(&path, bytes).unwrap();
                Arc::new(File::open(path).unwrap())
            })
        };
        std::future::ready(made()).boxed()
    }
}

fn some_bytes(random: &mut Generator, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(random.next_u64().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A tree of a given seed.
pub(crate) fn random_tree(random: &mut Generator) -> Naive {
    let mut naive = Naive::from([(Vec::new(), node(Body::Directory))]);
    for _ in 0..random.below(60) + 5 {
        add(&mut naive, random);
    }
    naive
}

fn add(naive: &mut Naive, random: &mut Generator) {
    let directories: Vec<Vec<u8>> = paths(naive, |body| *body == Body::Directory);
    let files = paths(naive, |body| matches!(body, Body::File(..)));
    let mut path = directories[random.below(directories.len())].clone();
    if !path.is_empty() {
        path.push(b'/');
    }
    // Few names, so that revisions collide; one of them is no UTF-8.
    path.extend([&b"a"[..], b"b", b"c c", b"\xff\xfe", b"long.name", b"x", b"y", b"z"][random.below(8)]);
    if naive.contains_key(&path) {
        return;
    }
    let body = match random.below(6) {
        0 | 1 => Body::Directory,
        2 => Body::Symlink(some_bytes(random, 1).iter().map(|b| b | 1).collect()),
        3 if !files.is_empty() => Body::HardLink(files[random.below(files.len())].clone()),
        _ => {
            let len = random.below(3000);
            Body::File(some_bytes(random, len), random.below(700) + 1)
        }
    };
    let mut made = node(body);
    made.mtime.1 = u32::try_from(random.below(1_000_000_000)).unwrap();
    naive.insert(path, made);
}

fn paths(naive: &Naive, which: impl Fn(&Body) -> bool) -> Vec<Vec<u8>> {
    naive.iter().filter(|(_, node)| which(&node.body)).map(|(path, _)| path.clone()).collect()
}

/// The next revision: some objects go, some come, some files change.
pub(crate) fn next_revision(naive: &Naive, random: &mut Generator) -> Naive {
    let mut next = naive.clone();
    for path in naive.keys().filter(|path| !path.is_empty()) {
        match random.below(8) {
            0 => {
                next.remove(path);
            }
            1 => {
                if let Some(Node { body: Body::File(bytes, _), .. }) = next.get_mut(path) {
                    bytes.extend(b"changed");
                }
            }
            2 => {
                if let Some(node) = next.get_mut(path) {
                    node.permissions ^= 0o111;
                }
            }
            _ => {}
        }
    }
    // What lost its parent or its link's target goes as well, until nothing does.
    loop {
        let orphans: Vec<Vec<u8>> = next
            .iter()
            .filter(|(path, node)| {
                let lost_parent = next.get(parent(path)).is_none_or(|node| node.body != Body::Directory);
                let lost_target = matches!(&node.body, Body::HardLink(to) if !next.contains_key(to));
                !path.is_empty() && lost_parent || lost_target
            })
            .map(|(path, _)| path.clone())
            .collect();
        if orphans.is_empty() {
            break;
        }
        orphans.iter().for_each(|path| {
            next.remove(path);
        });
    }
    for _ in 0..random.below(12) {
        add(&mut next, random);
    }
    next
}
