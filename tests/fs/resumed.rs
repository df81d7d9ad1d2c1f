//! A file system that goes on where another process has ended: what the kernel still has is found, and no longer believed once
//! it is wrong.

use crate::double::{Altered, Ask, Body, MemorySource, MemoryTree, Naive, node};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use starling::catalog::{Inode, Tree};
use starling::chunk::SourceError;
use starling::fs::{FileSystem, FsError, Notifier, Stale};
use starling::model::ContentId;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Remembers what the kernel would be told.
#[derive(Default)]
struct Told(Mutex<Vec<Stale>>);

impl Notifier for Told {
    fn stale(&self, what: Vec<Stale>) -> BoxFuture<'_, ()> {
        self.0.lock().unwrap().extend(what);
        async {}.boxed()
    }
}

impl Told {
    fn take(&self) -> Vec<Stale> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// A tree of which one directory cannot be listed, and nothing searched.
fn holed(inner: MemoryTree, hole: Inode) -> Arc<dyn Tree> {
    Arc::new(Altered::failing(inner, move |ask, inode| match ask {
        Ask::List if inode == hole => {
            let (chunk, detail) = (ContentId::of(b"catalog"), "off line".to_owned());
            Some(std::future::ready(SourceError::Unavailable { chunk, detail }.into()).boxed())
        }
        Ask::Locate(patience) => {
            let chunk = ContentId::of(&inode.0.to_ne_bytes());
            let detail = "catalogs were being searched".to_owned();
            let waited_ms = u64::try_from(patience.as_millis()).unwrap();
            let searching = async move {
                // Nobody waits for what is not here.
                if !patience.is_zero() {
                    tokio::time::sleep(patience).await;
                }
                SourceError::TimedOut { chunk, waited_ms, detail }.into()
            };
            Some(searching.boxed())
        }
        _ => None,
    }))
}

/// Revisions of a small tree: each has a file of its own at `lib/x/foo`, deep below what never changes.
struct Revisions {
    source: Arc<MemorySource>,
}

impl Revisions {
    fn new() -> Self {
        Self { source: Arc::default() }
    }

    fn naive(revision: u64) -> Naive {
        let file = |text: String| node(Body::File(text.into_bytes(), 5));
        let mut naive = Naive::from([(Vec::new(), node(Body::Directory))]);
        naive.insert(b"lib".to_vec(), node(Body::Directory));
        naive.insert(b"lib/x".to_vec(), node(Body::Directory));
        naive.insert(b"lib/x/foo".to_vec(), file(format!("content of {revision}")));
        naive.insert(b"lib/x/same".to_vec(), file("never changes".to_owned()));
        naive.insert(format!("lib/of{revision}").into_bytes(), file(revision.to_string()));
        naive
    }

    fn tree(&self, revision: u64) -> Arc<dyn Tree> {
        Arc::new(MemoryTree::new(&Self::naive(revision), &*self.source))
    }

    /// What the kernel has from a process that showed it a revision: the directory, the file, and another that stays.
    async fn inodes(&self, revision: u64) -> [Inode; 3] {
        let tree = self.tree(revision);
        let mut directory = Inode::ROOT;
        for name in [&b"lib"[..], b"x"] {
            directory = tree.lookup(directory, name).await.unwrap().unwrap().inode;
        }
        let changing = tree.lookup(directory, b"foo").await.unwrap().unwrap().inode;
        let same = tree.lookup(directory, b"same").await.unwrap().unwrap().inode;
        [directory, changing, same]
    }

    fn resume(&self, revisions: &[u64], shown: u64) -> (FileSystem, Arc<Told>) {
        self.resume_after(revisions, shown, *revisions.last().unwrap())
    }

    /// `last`: the greatest number that the process before has given, perhaps to a tree that is lost.
    fn resume_after(&self, revisions: &[u64], shown: u64, last: u64) -> (FileSystem, Arc<Told>) {
        let trees = revisions.iter().map(|revision| (*revision, self.tree(*revision))).collect();
        let fs = FileSystem::resume("resumed", trees, shown, last, self.source.clone());
        let told = Arc::new(Told::default());
        fs.set_notifier(Some(told.clone()));
        (fs, told)
    }
}

async fn text(fs: &FileSystem, inode: Inode) -> Result<String, FsError> {
    Ok(String::from_utf8(fs.read(inode, 0, 100).await?.to_vec()).unwrap())
}

fn entry(directory: Inode, name: &str) -> Stale {
    Stale::Entry { directory, name: name.as_bytes().into() }
}

#[tokio::test]
async fn a_file_that_was_opened_before_keeps_its_content_through_the_first_switches() {
    let revisions = Revisions::new();
    let [_, changing, _] = revisions.inodes(1).await;
    let (fs, _) = revisions.resume(&[1], 1);
    for revision in 2..5 {
        fs.switch(revisions.tree(revision)).await.unwrap();
        assert_eq!(text(&fs, changing).await.unwrap(), "content of 1", "after the switch to {revision}");
    }
}

#[tokio::test]
async fn a_file_that_the_kernel_has_keeps_its_content_however_many_revisions_come_and_however_it_is_opened() {
    let revisions = Revisions::new();
    for is_resumed in [false, true] {
        let [x, changing, _] = revisions.inodes(1).await;
        let fs = if is_resumed {
            revisions.resume(&[1], 1).0
        } else {
            FileSystem::new("fresh", revisions.tree(1), revisions.source.clone())
        };
        if !is_resumed {
            let lib = fs.lookup(Inode::ROOT, b"lib").await.unwrap().unwrap().inode;
            fs.lookup(lib, b"x").await.unwrap().unwrap();
            fs.lookup(x, b"foo").await.unwrap().unwrap();
        }
        // Nobody says that it is open. A successor hears of it when somebody asks about it.
        let size = fs.attributes(changing).await.unwrap().size;
        let lib = fs.lookup(Inode::ROOT, b"lib").await.unwrap().unwrap().inode;
        for revision in 2..30 {
            fs.switch(revisions.tree(revision)).await.unwrap();
            // Of each revision something stays in use.
            let name = format!("of{revision}");
            fs.lookup(lib, name.as_bytes()).await.unwrap().unwrap();
        }
        assert_eq!(fs.statistics().old_trees, 8);
        assert_eq!(text(&fs, changing).await.unwrap(), "content of 1");
        assert_eq!(fs.attributes(changing).await.unwrap().size, size);
        fs.forget(changing, 1);
        assert!(
            matches!(fs.attributes(changing).await, Err(FsError::Stale(_))),
            "for nobody has it any more"
        );
    }
}

#[tokio::test]
async fn the_first_switch_tells_each_name_that_changed_however_deep_it_stands() {
    let revisions = Revisions::new();
    let [x, _, _] = revisions.inodes(1).await;
    let (fs, told) = revisions.resume(&[1], 1);
    fs.switch(revisions.tree(2)).await.unwrap();
    let told = told.take();
    assert!(told.contains(&entry(x, "foo")) && told.contains(&Stale::Listing(x)), "{told:?}");
    assert!(!told.contains(&entry(x, "same")), "what did not change stays cached: {told:?}");
    assert!(!told.contains(&entry(Inode::ROOT, "lib")), "{told:?}");
}

#[tokio::test]
async fn a_switch_that_was_cut_off_is_taken_back_and_the_next_one_takes_back_the_rest() {
    let revisions = Revisions::new();
    let ([x, foo_1, _], [_, foo_2, same]) = (revisions.inodes(1).await, revisions.inodes(2).await);
    // The process before has ended while it switched from 1 to 2.
    let (fs, told) = revisions.resume(&[1, 2], 1);
    fs.settle().await;
    assert!(told.take().contains(&entry(x, "foo")), "what the kernel may have of the new one");
    let lib = fs.lookup(Inode::ROOT, b"lib").await.unwrap().unwrap().inode;
    assert!(
        fs.lookup(lib, b"of1").await.unwrap().is_some() && fs.lookup(lib, b"of2").await.unwrap().is_none()
    );
    // Whoever got hold of a file of either reads on.
    assert_eq!(text(&fs, foo_1).await.unwrap(), "content of 1");
    assert_eq!(text(&fs, foo_2).await.unwrap(), "content of 2");
    assert_eq!(fs.generations(), [1, 2]);

    fs.switch(revisions.tree(3)).await.unwrap();
    assert_eq!(fs.generations().last(), Some(&3), "a number names one tree for ever");
    let told = told.take();
    for stale in [entry(lib, "of1"), entry(lib, "of2"), entry(lib, "of3"), entry(x, "foo")] {
        assert!(told.contains(&stale), "{stale:?} in {told:?}");
    }
    assert!(
        fs.lookup(lib, b"of3").await.unwrap().is_some() && fs.lookup(lib, b"of1").await.unwrap().is_none()
    );
    assert_eq!(text(&fs, foo_2).await.unwrap(), "content of 2");
    assert_eq!(text(&fs, same).await.unwrap(), "never changes");
}

#[tokio::test]
async fn of_a_switch_that_was_cut_off_to_a_tree_that_is_lost_nothing_is_believed_any_more() {
    let revisions = Revisions::new();
    let [x, _, _] = revisions.inodes(1).await;
    let lib = revisions.tree(1).lookup(Inode::ROOT, b"lib").await.unwrap().unwrap().inode;
    // What was shown, the trees of the switches that were cut off and can be opened, and the last number that one had.
    for (trees, last, is_lost) in
        [(vec![1], 2, true), (vec![1, 3], 3, true), (vec![1, 2], 2, false), (vec![1], 1, false)]
    {
        let (fs, told) = revisions.resume_after(&trees, 1, last);
        fs.settle().await;
        let told = told.take();
        // The tree that is lost may not have had them: then the kernel believes that they are absent.
        let names = [(Inode::ROOT, "lib"), (lib, "x"), (x, "foo"), (x, "same")];
        let forgotten = names.iter().filter(|(at, name)| told.contains(&entry(*at, name))).count();
        let listings = [Inode::ROOT, lib, x].map(|at| told.contains(&Stale::Listing(at)));
        if is_lost {
            assert_eq!((forgotten, listings), (names.len(), [true; 3]), "{trees:?}, {last}: {told:?}");
        } else {
            assert!(!told.contains(&entry(x, "same")), "{trees:?}, {last}: what is known stays: {told:?}");
        }
    }
}

/// Looks whether the kernel would believe what it is told while it hears what is stale.
struct Doubting(Arc<FileSystem>, Mutex<Vec<bool>>);

impl Notifier for Doubting {
    fn stale(&self, _: Vec<Stale>) -> BoxFuture<'_, ()> {
        async {
            let listing = self.0.read_directory(Inode::ROOT, 0).await.unwrap();
            let lasting =
                [self.0.answers_last(), self.0.names_last(Inode::ROOT), self.0.listing_lasts(&listing)];
            self.1.lock().unwrap().extend(lasting);
        }
        .boxed()
    }
}

#[tokio::test]
async fn no_answer_out_of_the_new_tree_lasts_before_the_kernel_knows_all_that_has_changed() {
    let revisions = Revisions::new();
    let fs = Arc::new(FileSystem::new("doubted", revisions.tree(1), revisions.source.clone()));
    let lib = fs.lookup(Inode::ROOT, b"lib").await.unwrap().unwrap().inode;
    let doubting = Arc::new(Doubting(Arc::clone(&fs), Mutex::default()));
    fs.set_notifier(Some(doubting.clone()));
    fs.switch(revisions.tree(2)).await.unwrap();
    let lasting = std::mem::take(&mut *doubting.1.lock().unwrap());
    assert!(!lasting.is_empty() && !lasting.contains(&true), "{lasting:?}");
    assert!(fs.answers_last() && fs.names_last(Inode::ROOT) && fs.names_last(lib));
    // One that could not begin has changed nothing.
    let hollow = holed(MemoryTree::new(&Revisions::naive(3), &*revisions.source), Inode::ROOT);
    fs.switch(hollow).await.unwrap_err();
    assert!(fs.answers_last());
    fs.set_notifier(None);
}

#[tokio::test]
async fn the_number_of_a_tree_that_cannot_be_opened_any_more_is_not_given_to_another() {
    let revisions = Revisions::new();
    // Somebody has begun to read a directory of 2 when the process before had switched to it, but not said so yet.
    let (before, _) = revisions.resume(&[1, 2], 2);
    let lib = before.lookup(Inode::ROOT, b"lib").await.unwrap().unwrap().inode;
    let listing = before.read_directory(lib, 0).await.unwrap();
    let offset = listing.from(0).nth(2).unwrap().next_offset;
    drop(before);

    let (fs, _) = revisions.resume_after(&[1], 1, 2);
    assert_eq!((fs.shown(), fs.last(), fs.generations()), (1, 2, vec![1]));
    fs.switch(revisions.tree(3)).await.unwrap();
    assert_eq!((fs.shown(), fs.last()), (3, 3));
    assert!(fs.lookup(Inode::ROOT, b"lib").await.unwrap().is_some());
    let goes_on = fs.read_directory(lib, offset).await.map(drop);
    assert!(
        matches!(goes_on, Err(FsError::Stale(_))),
        "the names of another revision would be wrong: {goes_on:?}"
    );
}

#[tokio::test]
async fn of_a_directory_that_cannot_be_compared_all_names_are_told() {
    let revisions = Revisions::new();
    let [x, _, _] = revisions.inodes(1).await;
    let naive = Revisions::naive(2);
    for is_resumed in [false, true] {
        let fs = if is_resumed {
            revisions.resume(&[1], 1).0
        } else {
            FileSystem::new("fresh", revisions.tree(1), revisions.source.clone())
        };
        let told = Arc::new(Told::default());
        fs.set_notifier(Some(told.clone()));
        let lib = fs.lookup(Inode::ROOT, b"lib").await.unwrap().unwrap().inode;
        if !is_resumed {
            fs.lookup(lib, b"x").await.unwrap().unwrap();
            fs.lookup(x, b"foo").await.unwrap().unwrap();
        }
        let switched = fs.switch(holed(MemoryTree::new(&naive, &*revisions.source), x)).await.unwrap();
        assert_eq!(switched.dropped, 1);
        let told = told.take();
        for stale in [entry(lib, "x"), entry(x, "foo"), entry(x, "same"), Stale::Listing(x)] {
            assert!(told.contains(&stale), "{stale:?} in {told:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_one_tree_has_here_is_found_although_another_cannot_be_searched() {
    let revisions = Revisions::new();
    let [_, changing, _] = revisions.inodes(1).await;
    let inner = MemoryTree::new(&Revisions::naive(2), &*revisions.source);
    let newer = holed(inner, Inode(0));
    let trees = vec![(1, revisions.tree(1)), (2, newer)];
    let fs = FileSystem::resume("resumed", trees, 2, 2, revisions.source.clone());
    let begun = tokio::time::Instant::now();
    assert_eq!(text(&fs, changing).await.unwrap(), "content of 1");
    assert_eq!(begun.elapsed(), Duration::ZERO, "nobody is waited for");
    // What nobody has is no error of anybody's only if all could be searched; and that is bounded over all trees.
    assert!(matches!(fs.attributes(Inode(5)).await, Err(FsError::Metadata { .. })));
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn who_is_in_the_middle_of_a_directory_keeps_no_revision_in_memory_and_believes_nothing_of_it() {
    let revisions = Revisions::new();
    let tree = revisions.tree(1);
    let gone = Arc::downgrade(&tree);
    let fs = FileSystem::new("listed", tree, revisions.source.clone());
    let lib = fs.lookup(Inode::ROOT, b"lib").await.unwrap().unwrap().inode;
    let listing = fs.read_directory(lib, 0).await.unwrap();
    let first = listing.from(0).nth(2).unwrap();
    let (name, offset) = (first.name.to_vec(), first.next_offset);
    assert!(fs.listing_lasts(&listing));
    fs.read_up_to(&listing, offset);
    drop(listing);
    fs.switch(revisions.tree(2)).await.unwrap();
    assert!(gone.upgrade().is_none(), "nothing of it is in use");
    let listing = fs.read_directory(lib, offset).await.unwrap();
    let rest: Vec<_> = listing.from(offset).collect();
    assert!(name == b"of1" && rest.len() == 1 && rest[0].name == b"x", "the names of then");
    assert!(!fs.listing_lasts(&listing));
    rest.iter().for_each(|entry| fs.remember_listed(&listing, entry));
    assert_eq!(fs.statistics().old_trees, 0);
}
