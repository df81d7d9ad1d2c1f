//! What is in use of a revision that goes stays readable, whatever else of it cannot be had.

use crate::ahead::Moody;
use crate::double::{Altered, Ask, Body, MemorySource, MemoryTree, Naive, Shelf, node};
use futures::FutureExt as _;
use starling::catalog::{Inode, PublishedTrace, Replay, Tree};
use starling::fs::{FileSystem, FsError};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A root directory and files in it.
fn files(named: impl IntoIterator<Item = (String, String)>) -> Naive {
    let file =
        |(name, text): (String, String)| (name.into_bytes(), node(Body::File(text.into_bytes(), 1_000)));
    [(Vec::new(), node(Body::Directory))].into_iter().chain(named.into_iter().map(file)).collect()
}

/// Shows nine revisions more, so that the first of all goes, although something of each is in use.
async fn switch_on(fs: &FileSystem, tree: impl Fn(Naive) -> Arc<dyn Tree>) {
    for revision in 0..9 {
        let naive = files([("only".to_owned(), format!("revision {revision}"))]);
        fs.switch(tree(naive)).await.unwrap();
        fs.lookup(Inode::ROOT, b"only").await.unwrap().unwrap();
    }
}

/// Counts those who wait.
struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn a_catalog_that_nobody_sends_keeps_no_other_file_from_being_held_and_few_are_asked_for_at_once() {
    const FILES: usize = 600;
    let naive = files((0..FILES).map(|number| (format!("f{number}"), format!("content {number}"))));
    let source = Arc::new(MemorySource::default());
    // The chunks of some files are in a catalog that nobody sends.
    let unsent = Arc::new(Mutex::new(BTreeSet::new()));
    let (waiting, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (files_unsent, most_waiting) = (Arc::clone(&unsent), Arc::clone(&most));
    let tree = Altered::failing(MemoryTree::new(&naive, &*source), move |ask, inode| {
        let is_unsent = ask == Ask::Chunks && files_unsent.lock().unwrap().contains(&inode);
        is_unsent.then(|| {
            most_waiting.fetch_max(1 + waiting.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
            let one = Waiting(Arc::clone(&waiting));
            async move {
                let _one = one;
                std::future::pending().await
            }
            .boxed()
        })
    });
    let fs = FileSystem::new("test", Arc::new(tree), Arc::clone(&source) as _);
    let mut known = Vec::new();
    for number in 0..FILES {
        let name = format!("f{number}");
        known.push(fs.lookup(Inode::ROOT, name.as_bytes()).await.unwrap().unwrap().inode);
    }
    let lost = known.iter().copied().filter(|inode| !inode.0.is_multiple_of(3)).collect::<BTreeSet<_>>();
    assert!((300..500).contains(&lost.len()), "far more than are asked for at once, and not all");
    unsent.lock().unwrap().clone_from(&lost);
    switch_on(&fs, |naive| Arc::new(MemoryTree::new(&naive, &*source))).await;
    for (number, inode) in known.iter().enumerate() {
        let read = fs.read(*inode, 0, 100).await;
        if lost.contains(inode) {
            assert!(matches!(read, Err(FsError::Stale(_))), "{read:?}");
        } else {
            assert_eq!(&read.unwrap()[..], format!("content {number}").as_bytes());
        }
    }
    let most = most.load(Ordering::SeqCst);
    assert!((1..=64).contains(&most), "{most} at once");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_held_is_not_taken_for_one_that_a_program_opens() {
    let source = Arc::new(Moody::default());
    let first = MemoryTree::new(&files([("file".to_owned(), "content".to_owned())]), &source.inner);
    let inode = first.lookup(Inode::ROOT, b"file").await.unwrap().unwrap().inode;
    let replay = Replay::new(source.inner.store(b"read by a program", 100)).to_bytes();
    let replay = source.inner.store(&replay, replay.len())[0];
    // Each revision has a trace that begins with it.
    let traced = |inner| -> Arc<dyn Tree> {
        let trace =
            PublishedTrace { name: "program".to_owned(), begins: vec![inode], recorded: replay, replay };
        Arc::new(Altered { traces: vec![trace], ..Altered::new(inner) })
    };
    let fs = FileSystem::new("test", traced(first), source.clone());
    fs.lookup(Inode::ROOT, b"file").await.unwrap().unwrap();
    switch_on(&fs, |naive| traced(MemoryTree::new(&naive, &source.inner))).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(source.take().is_empty(), "nothing is replayed");
    assert_eq!(&fs.read(inode, 0, 100).await.unwrap()[..], b"content", "it is held");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(source.take().len(), 1, "and who reads it begins the trace");
}
