//! What is in use of a revision that goes stays readable, whatever else of it cannot be had.

use crate::double::{Body, MemorySource, MemoryTree, Naive, node};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use starling::catalog::{Attributes, DirectoryEntry, ExtendedAttributes, Inode, Tree, TreeError};
use starling::fs::{FileSystem, FsError};
use starling::model::ChunkRef;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A tree of which the chunks of some files are in a catalog that nobody sends.
struct Unsent {
    inner: MemoryTree,
    files: Mutex<BTreeSet<Inode>>,
}

impl Tree for Unsent {
    fn lookup<'a>(
        &'a self,
        directory: Inode,
        name: &'a [u8],
    ) -> BoxFuture<'a, Result<Option<Attributes>, TreeError>> {
        self.inner.lookup(directory, name)
    }
    fn list(&self, directory: Inode) -> BoxFuture<'_, Result<Arc<[DirectoryEntry]>, TreeError>> {
        self.inner.list(directory)
    }
    fn attributes(&self, inode: Inode) -> BoxFuture<'_, Result<Attributes, TreeError>> {
        self.inner.attributes(inode)
    }
    fn parent(&self, directory: Inode) -> BoxFuture<'_, Result<Inode, TreeError>> {
        self.inner.parent(directory)
    }
    fn link_target(&self, inode: Inode) -> BoxFuture<'_, Result<Arc<[u8]>, TreeError>> {
        self.inner.link_target(inode)
    }
    fn extended_attributes(&self, inode: Inode) -> BoxFuture<'_, Result<ExtendedAttributes, TreeError>> {
        self.inner.extended_attributes(inode)
    }
    fn chunks(&self, file: Inode) -> BoxFuture<'_, Result<Arc<[ChunkRef]>, TreeError>> {
        if self.files.lock().unwrap().contains(&file) {
            return std::future::pending().boxed();
        }
        self.inner.chunks(file)
    }
    fn locate(
        &self,
        inode: Inode,
        patience: Duration,
    ) -> BoxFuture<'_, Result<Option<Attributes>, TreeError>> {
        self.inner.locate(inode, patience)
    }
    fn totals(&self) -> (u64, u64) {
        self.inner.totals()
    }
}

#[tokio::test(start_paused = true)]
async fn a_catalog_that_nobody_sends_keeps_no_other_file_from_being_held() {
    const FILES: usize = 100;
    let mut naive = Naive::from([(Vec::new(), node(Body::Directory))]);
    for number in 0..FILES {
        let content = Body::File(format!("content {number}").into_bytes(), 1_000);
        naive.insert(format!("f{number}").into_bytes(), node(content));
    }
    let source = Arc::new(MemorySource::default());
    let tree = Arc::new(Unsent { inner: MemoryTree::new(&naive, &*source), files: Mutex::default() });
    let fs = FileSystem::new("test", Arc::clone(&tree) as Arc<dyn Tree>, Arc::clone(&source) as _);
    let mut known = Vec::new();
    for number in 0..FILES {
        let name = format!("f{number}");
        known.push(fs.lookup(Inode::ROOT, name.as_bytes()).await.unwrap().unwrap().inode);
    }
    let unsent = known.iter().copied().filter(|inode| inode.0 % 3 == 0).collect::<BTreeSet<_>>();
    assert!((1..FILES).contains(&unsent.len()));
    tree.files.lock().unwrap().clone_from(&unsent);
    for revision in 0..9 {
        let other = Naive::from([
            (Vec::new(), node(Body::Directory)),
            (b"only".to_vec(), node(Body::File(format!("revision {revision}").into_bytes(), 9))),
        ]);
        fs.switch(Arc::new(MemoryTree::new(&other, &*source))).await.unwrap();
        // The kernel keeps something of each.
        fs.lookup(Inode::ROOT, b"only").await.unwrap().unwrap();
    }
    for (number, inode) in known.iter().enumerate() {
        let read = fs.read(*inode, 0, 100).await;
        if unsent.contains(inode) {
            assert!(matches!(read, Err(FsError::Stale(_))), "{read:?}");
        } else {
            assert_eq!(&read.unwrap()[..], format!("content {number}").as_bytes());
        }
    }
}
