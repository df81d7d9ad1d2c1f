//! Mounts that many use at once, or in the middle of something.

use crate::double::{Body, MemorySource, MemoryTree, Naive, node};
use crate::mounted::can_mount;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use starling::chunk::{ChunkSource, Piece, SourceError};
use starling::fs::FileSystem;
use starling::fs::fuse::{MountConfig, mount};
use starling::model::Class;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// Longer than anything takes that is not stuck.
const PATIENCE: Duration = Duration::from_secs(30);

/// Gives nothing as long as it is told to be silent.
#[derive(Default)]
struct Silent {
    inner: Arc<MemorySource>,
    is_silent: AtomicBool,
}

impl ChunkSource for Silent {
    fn read(&self, pieces: Vec<Piece>, class: Class) -> BoxFuture<'_, Result<Vec<Bytes>, SourceError>> {
        async move {
            while self.is_silent.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            self.inner.read(pieces, class).await
        }
        .boxed()
    }
}

fn tree_of(text: &str) -> Naive {
    let mut naive = Naive::from([(Vec::new(), node(Body::Directory))]);
    naive.insert(b"many".to_vec(), node(Body::Directory));
    for number in 0..3_000 {
        let file = node(Body::File(format!("{text} {number}").into_bytes(), 50));
        naive.insert(format!("many/a-name-of-some-length-{number:04}").into_bytes(), file);
    }
    naive
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn what_is_here_is_answered_however_many_wait_for_what_is_not() {
    if !can_mount() {
        return;
    }
    let (runtime, folder, source) = (runtime(), tempfile::tempdir().unwrap(), Arc::new(Silent::default()));
    let tree = Arc::new(MemoryTree::new(&tree_of("old"), &*source.inner));
    let fs = Arc::new(FileSystem::new("test.example.org", tree, source.clone()));
    let config = MountConfig { max_waiting: 3, threads: 2, ..MountConfig::new(folder.path()) };
    let mounted = mount(&config, fs, runtime.handle().clone()).unwrap();
    source.is_silent.store(true, Ordering::SeqCst);
    let at = folder.path().join("many");
    let file = |number: u32| at.join(format!("a-name-of-some-length-{number:04}"));
    let readers: Vec<_> = (0..10)
        .map(|number| {
            std::thread::spawn({
                let path = file(number);
                move || fs::read(path)
            })
        })
        .collect();
    // So many are told at once that it is too much.
    for _ in 0..6_000 {
        if readers.iter().filter(|reader| reader.is_finished()).count() >= 7 {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let (tell, told) = sync_channel(1);
    let other = file(2_000);
    std::thread::spawn(move || tell.send(fs::metadata(other).map(|found| found.len())));
    let found = told.recv_timeout(PATIENCE);
    // Nobody is left waiting, however this ends.
    source.is_silent.store(false, Ordering::SeqCst);
    assert_eq!(found.expect("an answer").unwrap(), "old 2000".len() as u64);
    let outcomes: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
    let right = outcomes.iter().flatten().filter(|bytes| bytes.starts_with(b"old ")).count();
    let errors: Vec<_> =
        outcomes.iter().filter_map(|outcome| outcome.as_ref().err()?.raw_os_error()).collect();
    assert_eq!((right, errors), (3, vec![rustix::io::Errno::IO.raw_os_error(); 7]));
    mounted.unmount(PATIENCE).unwrap();
}

#[test]
fn who_lists_a_directory_during_a_switch_makes_nobody_believe_in_what_was_before() {
    if !can_mount() {
        return;
    }
    let (runtime, folder, source) =
        (runtime(), tempfile::tempdir().unwrap(), Arc::new(MemorySource::default()));
    let (old, new) = (tree_of("old"), tree_of("another content"));
    let tree = Arc::new(MemoryTree::new(&old, &*source));
    let fs = Arc::new(FileSystem::new("test.example.org", tree, source.clone()));
    let mounted = mount(&MountConfig::new(folder.path()), fs.clone(), runtime.handle().clone()).unwrap();
    let at = folder.path().join("many");
    let mut listing = fs::read_dir(&at).unwrap();
    let first = listing.next().unwrap().unwrap();
    runtime.block_on(fs.switch(Arc::new(MemoryTree::new(&new, &*source)))).unwrap();
    let mut names: Vec<_> = listing.map(|entry| entry.unwrap().file_name()).collect();
    names.push(first.file_name());
    assert_eq!(names.len(), 3_000, "he gets all the names that there were");
    for name in names {
        let text = fs::read_to_string(at.join(&name)).unwrap();
        assert!(text.starts_with("another content"), "{}: {text}", name.display());
    }
    mounted.unmount(PATIENCE).unwrap();
}
