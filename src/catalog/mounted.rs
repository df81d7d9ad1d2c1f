//! The tree of one revision, walked over a source of chunks.

use super::read::{Catalog, Row, Target};
use super::row::Xattrs;
use super::shelf::{Shelf, Slot, damaged};
use super::{Attributes, CatalogIndex, DirectoryEntry, FileKind, Inode, Tree, TreeError};
use crate::chunk::{ChunkSource, Piece};
use crate::model::{ChunkRef, Class};
use crate::trust::Root;
use futures::future::BoxFuture;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where the entries of a directory lie.
#[derive(Clone)]
struct Directory {
    slot: Arc<Slot>,
    number: u32,
}

/// How an inode that was handed out is found again.
struct Node {
    attributes: Attributes,
    parent: Inode,
    /// The directory that holds its row, and its name there.
    row: Directory,
    name: Arc<[u8]>,
    /// Its own entries, when it is a directory.
    directory: Option<Directory>,
}

/// The port [`Tree`] over the catalogs that a root names.
///
/// The catalog index and the root catalog are loaded when it is opened, nested catalogs when they are first
/// entered. Opened catalogs stay in memory within a budget and are asked of the source again after
/// that. One small record is kept for each inode handed out, until [`MountedTree::forget`]: as many as
/// the kernel knows, if the caller passes the kernel's forgetting on.
pub struct MountedTree {
    shelf: Shelf,
    nodes: Mutex<HashMap<Inode, Arc<Node>>>,
    totals: (u64, u64),
}

impl std::fmt::Debug for MountedTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MountedTree").field("totals", &self.totals).finish_non_exhaustive()
    }
}

impl MountedTree {
    /// A budget for opened catalogs that suits most trees, in bytes: some hundred catalogs of ordinary size (guess).
    pub const BUDGET_BYTES: usize = 128 << 20;

    /// Opens the tree of `root`, a root that was verified. `budget_bytes` bounds the opened catalogs in memory.
    ///
    /// # Errors
    /// [`TreeError`] when the catalog index or the root catalog cannot be had or contradict the format.
    pub async fn open(
        source: Arc<dyn ChunkSource>,
        root: &Root,
        budget_bytes: usize,
    ) -> Result<Self, TreeError> {
        let pieces = source.read(vec![Piece::whole(root.catalog_index)], Class::Read).await?;
        let index = CatalogIndex::from_bytes(pieces.first().map_or(&[][..], |bytes| bytes))
            .map_err(|error| TreeError::Damaged(error.to_string()))?;
        let shelf = Shelf::new(source, index, budget_bytes);
        let slot = shelf.slot_at(root.root_catalog);
        let catalog = shelf.get(&slot).await?;
        let attributes = catalog.top().map_err(|error| damaged(&root.root_catalog.id, &error))?;
        let top = Node {
            attributes,
            parent: Inode::ROOT,
            row: Directory { slot: Arc::clone(&slot), number: 0 },
            name: Arc::from(&b""[..]),
            directory: Some(Directory { slot, number: Catalog::TOP }),
        };
        let nodes = Mutex::new(HashMap::from([(Inode::ROOT, Arc::new(top))]));
        Ok(Self { shelf, nodes, totals: (root.inodes, root.plain_bytes) })
    }

    /// Drops what is remembered of an inode that the kernel has forgotten. It must be handed out
    /// again before it is asked about. The root is never forgotten.
    pub fn forget(&self, inode: Inode) {
        if inode != Inode::ROOT {
            self.lock().remove(&inode);
        }
    }

    /// Inodes remembered now.
    pub fn remembered(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Inode, Arc<Node>>> {
        // Each change is one insertion or removal.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, inode: Inode) -> Result<Arc<Node>, TreeError> {
        self.lock().get(&inode).cloned().ok_or(TreeError::UnknownInode(inode))
    }

    fn directory(&self, inode: Inode) -> Result<Directory, TreeError> {
        self.node(inode)?.directory.clone().ok_or(TreeError::NotADirectory(inode))
    }

    /// A record for a row of `directory`, whose inode is `parent`.
    fn remember(&self, directory: &Directory, parent: Inode, row: &Row) -> Result<Arc<Node>, TreeError> {
        let own = match row.target {
            Target::File | Target::Symlink => None,
            Target::Directory(number) => Some(Directory { slot: Arc::clone(&directory.slot), number }),
            Target::Nested(id) => Some(Directory { slot: self.shelf.slot(&id)?, number: Catalog::TOP }),
        };
        Ok(Arc::new(Node {
            attributes: row.attributes,
            parent,
            row: directory.clone(),
            name: Arc::clone(&row.name),
            directory: own,
        }))
    }

    /// Asks the row of an inode for more than its attributes.
    async fn ask<T>(
        &self,
        inode: Inode,
        kind: Option<FileKind>,
        question: impl FnOnce(&Catalog, u32, &[u8]) -> Result<T, super::CatalogError> + Send,
    ) -> Result<T, TreeError> {
        let node = self.node(inode)?;
        if kind.is_some_and(|kind| kind != node.attributes.kind) {
            return Err(TreeError::WrongKind(inode));
        }
        let catalog = self.shelf.get(&node.row.slot).await?;
        question(&catalog, node.row.number, &node.name)
            .map_err(|error| TreeError::Damaged(format!("inode {}: {error}", inode.0)))
    }

    async fn find(&self, parent: Inode, name: &[u8]) -> Result<Option<Attributes>, TreeError> {
        let directory = self.directory(parent)?;
        let catalog = self.shelf.get(&directory.slot).await?;
        let row = catalog
            .find(directory.number, name)
            .map_err(|error| TreeError::Damaged(format!("inode {}: {error}", parent.0)))?;
        let Some(row) = row else { return Ok(None) };
        let inode = row.attributes.inode;
        let known = self.lock().contains_key(&inode);
        if !known {
            let node = self.remember(&directory, parent, &row)?;
            self.lock().entry(inode).or_insert(node);
        }
        Ok(Some(row.attributes))
    }

    async fn entries(&self, parent: Inode) -> Result<Arc<[DirectoryEntry]>, TreeError> {
        let directory = self.directory(parent)?;
        let catalog = self.shelf.get(&directory.slot).await?;
        let rows = catalog
            .list(directory.number)
            .map_err(|error| TreeError::Damaged(format!("inode {}: {error}", parent.0)))?;
        let nodes = rows.iter().map(|row| self.remember(&directory, parent, row));
        let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
        let mut known = self.lock();
        for node in nodes {
            known.entry(node.attributes.inode).or_insert(node);
        }
        Ok(rows
            .into_iter()
            .map(|row| DirectoryEntry { name: row.name, attributes: row.attributes })
            .collect())
    }
}

impl Tree for MountedTree {
    fn lookup<'a>(
        &'a self,
        directory: Inode,
        name: &'a [u8],
    ) -> BoxFuture<'a, Result<Option<Attributes>, TreeError>> {
        Box::pin(self.find(directory, name))
    }

    fn list(&self, directory: Inode) -> BoxFuture<'_, Result<Arc<[DirectoryEntry]>, TreeError>> {
        Box::pin(self.entries(directory))
    }

    fn attributes(&self, inode: Inode) -> BoxFuture<'_, Result<Attributes, TreeError>> {
        Box::pin(async move { Ok(self.node(inode)?.attributes) })
    }

    fn parent(&self, directory: Inode) -> BoxFuture<'_, Result<Inode, TreeError>> {
        Box::pin(async move {
            let node = self.node(directory)?;
            if node.directory.is_some() { Ok(node.parent) } else { Err(TreeError::NotADirectory(directory)) }
        })
    }

    fn link_target(&self, inode: Inode) -> BoxFuture<'_, Result<Arc<[u8]>, TreeError>> {
        Box::pin(async move {
            let target = self.ask(inode, Some(FileKind::Symlink), Catalog::link_target).await?;
            Ok(target.into())
        })
    }

    fn extended_attributes(&self, inode: Inode) -> BoxFuture<'_, Result<Xattrs, TreeError>> {
        Box::pin(self.ask(inode, None, Catalog::xattrs))
    }

    fn chunks(&self, file: Inode) -> BoxFuture<'_, Result<Arc<[ChunkRef]>, TreeError>> {
        Box::pin(async move {
            let chunks = self.ask(file, Some(FileKind::File), Catalog::chunks).await?;
            Ok(chunks.into())
        })
    }

    fn totals(&self) -> (u64, u64) {
        self.totals
    }
}

#[cfg(test)]
mod tests {
    use super::super::read::tests::attributes;
    use super::super::{CatalogWriter, NewContent, NewEntry};
    use super::*;
    use crate::chunk::{Chunking, SourceError};
    use crate::model::{ContentId, Place, Revision, UnixTime};
    use bytes::Bytes;
    use futures::FutureExt as _;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Holds plain chunks; counts and delays what is asked of it, and can be told to fail.
    #[derive(Default)]
    struct Plain {
        chunks: HashMap<ContentId, Bytes>,
        reads: AtomicUsize,
        broken: std::sync::atomic::AtomicBool,
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
        fn read(&self, pieces: Vec<Piece>, _: Class) -> BoxFuture<'_, Result<Vec<Bytes>, SourceError>> {
            Box::pin(async move {
                self.reads.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                if self.broken.load(Ordering::SeqCst) {
                    let chunk = pieces[0].chunk.id;
                    return Err(SourceError::Unavailable { chunk, detail: "told to fail".to_owned() });
                }
                Ok(pieces.iter().map(|piece| self.chunks[&piece.chunk.id].clone()).collect())
            })
        }
    }

    /// A root directory with `nested` nested catalogs `n0`, `n1`, …, each with one file.
    fn sample(nested: u64) -> (Arc<Plain>, Root) {
        let mut source = Plain::default();
        let mut catalogs = Vec::new();
        let directory = |inode| attributes(inode, FileKind::Directory, 0);
        let mut top = CatalogWriter::new().unwrap();
        let add = |writer: &mut CatalogWriter,
                   parent,
                   name: &[u8],
                   attributes: Attributes,
                   content: NewContent<'_>| {
            let entry = NewEntry { parent, name, attributes: &attributes, xattrs: &[], content };
            writer.add(&entry).unwrap();
        };
        add(&mut top, 0, b"", directory(1), NewContent::Directory(1));
        for n in 0..nested {
            let mut writer = CatalogWriter::new().unwrap();
            add(&mut writer, 1, b"file", attributes(1000 + n, FileKind::File, 0), NewContent::File(&[]));
            let chunk = source.add(writer.finish().unwrap());
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
        let tree = mount(&source, &root, 1 << 20).await;
        for _ in 0..2 {
            for entry in tree.list(Inode::ROOT).await.unwrap().iter() {
                assert_eq!(tree.list(entry.attributes.inode).await.unwrap().len(), 1);
                assert!(tree.shelf.resident() < 8, "{} catalogs", tree.shelf.resident());
            }
        }
        assert!(source.reads.load(Ordering::SeqCst) > 60);
    }

    #[tokio::test]
    async fn forgotten_inodes_are_unknown_until_they_are_handed_out_again() {
        let (source, root) = sample(3);
        let tree = mount(&source, &root, MountedTree::BUDGET_BYTES).await;
        tree.list(Inode::ROOT).await.unwrap();
        assert_eq!(tree.remembered(), 4);
        for inode in [Inode::ROOT, Inode(10), Inode(11), Inode(12)] {
            tree.forget(inode);
        }
        assert_eq!(tree.remembered(), 1);
        assert_eq!(tree.attributes(Inode(10)).await, Err(TreeError::UnknownInode(Inode(10))));
        tree.lookup(Inode::ROOT, b"n000").await.unwrap();
        assert!(tree.attributes(Inode(10)).await.is_ok());
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
}
