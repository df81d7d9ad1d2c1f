//! Random operations on random trees, compared with the naive answer, without FUSE: over a source that has everything, and over a
//! node whose strata fail and lie, whose cache drops things, and whose disk rots.

use crate::double::{
    Body, MemorySource, Naive, Shelf, base, content, next_revision, node, parent, random_tree,
};
use crate::sources::{Stack, Weather};
use starling::catalog::{Attributes, FileKind, Inode, TreeError};
use starling::fs::{FileSystem, FsError};
use starling::model::{Generator, Rng};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const SEEDS: u64 = 40;
const TROUBLED_SEEDS: u64 = 60;
const OPERATIONS: usize = 300;

/// A directory, the offset where its reader goes on, the names that are still to come, and references.
type HalfRead = (Inode, u64, Vec<Vec<u8>>, Vec<Inode>);
/// What was found at a path, and every reference that was taken.
type Walked = (Option<Attributes>, Vec<Inode>);

/// The seeds to run: `STARLING_SEEDS` asks for more, `STARLING_SEED` for one.
pub(crate) fn seeds(all: u64) -> Range<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    match number("STARLING_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("STARLING_SEEDS").unwrap_or(all).max(all),
    }
}

/// Names the seed when its test fails.
pub(crate) struct Seed(pub(crate) u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("it was seed {0}: STARLING_SEED={0} runs it alone", self.0);
        }
    }
}

struct World<S> {
    fs: FileSystem,
    source: Arc<S>,
    naive: Naive,
    random: Generator,
    /// Open files with the bytes that they had when they were opened, and their references.
    open: Vec<(Inode, Vec<u8>, Vec<Inode>)>,
    /// Directories that somebody is in the middle of reading.
    half_read: Vec<HalfRead>,
    /// Operations that ended with an I/O error.
    failed: AtomicU64,
}

impl World<MemorySource> {
    fn new(seed: u64) -> Self {
        Self::over(seed, Arc::default())
    }
}

impl<S: Shelf> World<S> {
    fn over(seed: u64, source: Arc<S>) -> Self {
        let mut random = Generator::stream(seed, 1);
        let naive = random_tree(&mut random);
        let fs = FileSystem::new("model", source.tree(&naive), Arc::clone(&source) as _);
        let (open, half_read) = (Vec::new(), Vec::new());
        Self { fs, source, naive, random, open, half_read, failed: AtomicU64::new(0) }
    }

    /// An answer, or `None` for an I/O error, which nothing but trouble excuses.
    fn answer<T>(&self, result: Result<T, FsError>) -> Option<T> {
        match result {
            Ok(answer) => Some(answer),
            Err(FsError::Content { .. } | FsError::Metadata { cause: TreeError::Source(_), .. })
                if self.source.is_troubled() =>
            {
                self.failed.fetch_add(1, Ordering::Relaxed);
                None
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn some_path(&mut self) -> Vec<u8> {
        let number = self.random.below(self.naive.len());
        let mut path = self.naive.keys().nth(number).unwrap().clone();
        if self.random.below(10) == 0 {
            path.extend(b"/absent");
        }
        path
    }

    /// Looks a path up part by part.
    async fn walk(&self, path: &[u8]) -> Option<Walked> {
        let mut at = self.answer(self.fs.attributes(Inode::ROOT).await)?;
        let mut taken = Vec::new();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            match self.fs.lookup(at.inode, name).await {
                Ok(Some(found)) => {
                    taken.push(found.inode);
                    at = found;
                }
                Ok(None) => return Some((None, taken)),
                Err(FsError::NotADirectory(inode)) => {
                    assert!(inode == at.inode && at.kind != FileKind::Directory);
                    return Some((None, taken));
                }
                Err(other) => {
                    self.forget(&taken);
                    self.answer(Err::<(), _>(other))?;
                }
            }
        }
        Some((Some(at), taken))
    }

    fn forget(&self, taken: &[Inode]) {
        taken.iter().for_each(|inode| self.fs.forget(*inode, 1));
    }

    async fn stat(&mut self) {
        let path = self.some_path();
        let Some((found, taken)) = self.walk(&path).await else { return };
        assert_eq!(found.is_some(), self.naive.contains_key(&path), "{}", path.escape_ascii());
        if let Some(found) = found {
            self.compare(&path, found).await;
        }
        self.forget(&taken);
    }

    /// What was found must be what there is.
    async fn compare(&self, path: &[u8], found: Attributes) {
        let named = &self.naive[path];
        let real = match &named.body {
            Body::HardLink(target) => &self.naive[target],
            _ => named,
        };
        assert_eq!((found.permissions, found.mtime_ns), (real.permissions, real.mtime.1));
        if let Some(again) = self.answer(self.fs.attributes(found.inode).await) {
            assert_eq!(again, found);
        }
        let opened = match &real.body {
            Body::Symlink(target) => {
                if let Some(got) = self.answer(self.fs.link_target(found.inode).await) {
                    assert_eq!(*got, target[..]);
                }
                FsError::WrongKind(found.inode)
            }
            Body::Directory => FsError::IsADirectory(found.inode),
            Body::File(bytes, _) => return assert_eq!(found.size, bytes.len() as u64),
            Body::HardLink(_) => unreachable!("resolved"),
        };
        match self.fs.open(found.inode).await {
            Err(error) if error == opened => {}
            other => assert!(self.answer(other).is_none(), "what is no file is not opened"),
        }
    }

    async fn list(&mut self) {
        let path = self.some_path();
        let Some((found, taken)) = self.walk(&path).await else { return };
        let Some(found) = found.filter(|found| found.kind == FileKind::Directory) else {
            return self.forget(&taken);
        };
        let names =
            self.naive.keys().filter(|other| !other.is_empty() && parent(other) == path).map(|p| base(p));
        let mut expected: Vec<Vec<u8>> = names.map(<[u8]>::to_vec).collect();
        expected.sort();
        expected.splice(0..0, [b".".to_vec(), b"..".to_vec()]);
        let stop = if self.random.below(4) == 0 { self.random.below(expected.len()) } else { expected.len() };
        let rest = expected.split_off(stop);
        let Some((offset, got)) = self.read_names(found.inode, 0, expected.len()).await else {
            return self.forget(&taken);
        };
        assert_eq!(got.iter().map(|(_, name)| name.clone()).collect::<Vec<_>>(), expected);
        if !got.is_empty() {
            let (offset, name) = &got[self.random.below(got.len())];
            if let Some(listing) = self.answer(self.fs.read_directory(found.inode, *offset).await) {
                let again = listing.from(*offset).next().unwrap();
                assert_eq!(again.name, name, "an offset means the same entry again");
            }
        }
        if rest.is_empty() || offset == 0 {
            self.forget(&taken);
        } else {
            self.half_read.push((found.inode, offset, rest, taken));
        }
    }

    /// Reads names in small buffers, from `offset` on, `limit` of them at most and until there are no more.
    async fn read_names(
        &mut self,
        directory: Inode,
        mut offset: u64,
        limit: usize,
    ) -> Option<(u64, Vec<(u64, Vec<u8>)>)> {
        let mut got = Vec::new();
        loop {
            let listing = self.answer(self.fs.read_directory(directory, offset).await)?;
            let room = (self.random.below(4) + 1).min(limit - got.len());
            let before = got.len();
            for entry in listing.from(offset).take(room).collect::<Vec<_>>() {
                self.fs.remember_listed(&listing, &entry);
                if !entry.is_dot {
                    self.fs.forget(entry.attributes.inode, 1);
                }
                got.push((offset, entry.name.to_vec()));
                offset = entry.next_offset;
            }
            self.fs.read_up_to(&listing, offset);
            if got.len() == before {
                return Some((offset, got));
            }
        }
    }

    /// Goes on with a directory: it has the names that it had, whatever was published meanwhile.
    async fn read_on(&mut self) {
        if self.half_read.is_empty() {
            return;
        }
        let number = self.random.below(self.half_read.len());
        let (directory, offset, rest, taken) = self.half_read.swap_remove(number);
        if let Some((_, got)) = self.read_names(directory, offset, rest.len() + 1).await {
            assert_eq!(got.into_iter().map(|(_, name)| name).collect::<Vec<_>>(), rest);
        }
        self.forget(&taken);
    }

    async fn open(&mut self) {
        let path = self.some_path();
        let Some((found, taken)) = self.walk(&path).await else { return };
        if let (Some(found), Some(bytes)) = (found, content(&self.naive, &path))
            && self.answer(self.fs.open(found.inode).await).is_some()
        {
            self.open.push((found.inode, bytes.to_vec(), taken));
        } else {
            self.forget(&taken);
        }
    }

    async fn read(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let number = self.random.below(self.open.len());
        let (offset, len) = (self.random.below(4000), self.random.below(4000));
        let (file, bytes, _) = &self.open[number];
        let got = self.fs.read(*file, offset as u64, u32::try_from(len).unwrap()).await;
        let Some(got) = self.answer(got) else { return };
        let expected = &bytes[offset.min(bytes.len())..(offset + len).min(bytes.len())];
        assert_eq!(got, expected, "{len} bytes at {offset} of {}", bytes.len());
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            let number = self.random.below(self.open.len());
            let (file, _, taken) = self.open.swap_remove(number);
            self.fs.close(file);
            self.forget(&taken);
        }
    }

    async fn switch(&mut self) {
        let next = next_revision(&self.naive, &mut self.random);
        let switched = self.fs.switch(self.source.tree(&next)).await;
        // One that fails has changed nothing.
        if self.answer(switched).is_some() {
            self.naive = next;
        }
    }

    async fn some_operations(&mut self) {
        for _ in 0..OPERATIONS {
            match self.random.below(22) {
                0 => self.switch().await,
                1..6 => self.list().await,
                6..9 => self.open().await,
                9..14 => self.read().await,
                14 | 15 => self.close(),
                16 => self.read_on().await,
                17 | 18 => self.source.disturb(&mut self.random),
                _ => self.stat().await,
            }
        }
    }

    /// Lets go of everything; nothing is remembered then.
    async fn end(&mut self) {
        while !self.open.is_empty() {
            self.close();
        }
        while !self.half_read.is_empty() {
            self.read_on().await;
        }
        let left = self.fs.statistics();
        assert_eq!((left.known_inodes, left.open_files, left.old_trees), (1, 0, 0), "{left:?}");
    }
}

#[tokio::test]
async fn random_operations_get_the_naive_answer_also_across_revisions() {
    for seed in seeds(SEEDS) {
        let _seed = Seed(seed);
        let mut world = World::new(seed);
        world.some_operations().await;
        world.end().await;
        assert_eq!(world.failed.into_inner(), 0);
    }
}

#[tokio::test]
async fn whatever_fails_or_lies_below_the_answer_is_the_naive_one_or_an_io_error() {
    let (mut failed, mut troubles) = (0, (0, 0, 0));
    for seed in seeds(TROUBLED_SEEDS) {
        let _seed = Seed(seed);
        // Where each byte is checked at each read, the disk rots as well.
        let stack = Stack::new(seed, seed % 2 == 0);
        let mut world = World::over(seed, Arc::clone(&stack));
        world.some_operations().await;
        stack.set_weather(Weather::Fair);
        for _ in 0..OPERATIONS / 10 {
            world.read().await;
            world.stat().await;
        }
        world.end().await;
        failed += world.failed.into_inner();
        let (failures, lies, damaged) = stack.troubles();
        troubles = (troubles.0 + failures, troubles.1 + lies, troubles.2 + damaged);
    }
    println!("{failed} operations failed; strata failed, lied, and chunks rotted: {troubles:?}");
    if std::env::var_os("STARLING_SEED").is_none() {
        let (failures, lies, damaged) = troubles;
        assert!(failed > 50 && failures > 50 && lies > 50 && damaged > 5, "nothing went wrong");
    }
}

#[tokio::test]
async fn an_open_file_outlives_its_revision_and_an_inode_too_old_is_stale() {
    let mut world = World::new(3);
    let path = world.naive.iter().find(|(_, node)| matches!(&node.body, Body::File(b, _) if b.len() > 10));
    let path = path.unwrap().0.clone();
    let bytes = content(&world.naive, &path).unwrap().to_vec();
    let (found, taken) = world.walk(&path).await.unwrap();
    let inode = found.unwrap().inode;
    world.fs.open(inode).await.unwrap();
    for round in 0..20_u8 {
        let Some(crate::double::Node { body: Body::File(changed, _), .. }) = world.naive.get_mut(&path)
        else {
            unreachable!("it stays a file")
        };
        changed.push(round);
        let tree = world.source.tree(&world.naive);
        world.fs.switch(tree).await.unwrap();
        // Somebody holds on to a file of each revision.
        world.walk(&path).await;
    }
    assert!(world.fs.statistics().old_trees <= 8, "{:?}", world.fs.statistics());
    assert_eq!(world.fs.read(inode, 0, 4096).await.unwrap(), bytes);
    assert_eq!(world.fs.attributes(inode).await.unwrap().size, bytes.len() as u64);
    world.fs.close(inode);
    // Whoever opens files without asking may have it open as long as the kernel knows it.
    assert_eq!(world.fs.read(inode, 0, 4096).await.unwrap(), bytes);
    assert_eq!(world.fs.attributes(inode).await.unwrap().size, bytes.len() as u64);
    world.forget(&taken);
    assert_eq!(world.fs.attributes(inode).await, Err(FsError::Stale(inode)));
    assert_eq!(world.fs.lookup(Inode(4711), b"x").await, Err(FsError::Stale(Inode(4711))));
}

#[tokio::test]
async fn who_reads_on_in_a_directory_of_a_revision_that_is_gone_takes_no_open_file_from_others() {
    let mut world = World::new(1);
    let revision = |round: usize| {
        let mut naive = Naive::from([(Vec::new(), node(Body::Directory))]);
        for name in [&b"a"[..], b"b", b"c"] {
            naive.insert(name.to_vec(), node(Body::File(format!("{round}").into_bytes(), 5)));
        }
        // Stays as it is.
        naive.insert(b"d".to_vec(), node(Body::File(b"d".to_vec(), 5)));
        naive
    };
    world.naive = revision(0);
    world.fs.switch(world.source.tree(&world.naive)).await.unwrap();
    let (found, taken) = world.walk(b"b").await.unwrap();
    let open = found.unwrap();
    world.fs.open(open.inode).await.unwrap();
    let (offset, _) = world.read_names(Inode::ROOT, 0, 3).await.unwrap();
    let mut others = Vec::new();
    for round in 1..=10 {
        world.naive = revision(round);
        world.fs.switch(world.source.tree(&world.naive)).await.unwrap();
        others.extend(world.walk(b"a").await.unwrap().1);
    }
    let listing = world.fs.read_directory(Inode::ROOT, offset).await.unwrap();
    let mut listed = Vec::new();
    for entry in listing.from(offset) {
        world.fs.remember_listed(&listing, &entry);
        listed.push((entry.name.to_vec(), entry.attributes.inode));
    }
    let names: Vec<&[u8]> = listed.iter().map(|(name, _)| &name[..]).collect();
    assert_eq!((names, listed[0].1), (vec![&b"b"[..], b"c", b"d"], open.inode));
    assert_eq!(world.fs.attributes(open.inode).await, Ok(open));
    assert_eq!(world.fs.read(open.inode, 0, 9).await.unwrap(), &b"0"[..]);
    // What did not change is looked up again by the kernel, and answers.
    let (found, again) = world.walk(b"d").await.unwrap();
    assert_eq!(world.fs.attributes(listed[2].1).await, Ok(found.unwrap()));
    world.fs.close(open.inode);
    let listed = listed.into_iter().map(|(_, inode)| inode).collect();
    [taken, others, listed, again].iter().for_each(|taken| world.forget(taken));
    let left = world.fs.statistics();
    assert_eq!((left.known_inodes, left.old_trees), (1, 0), "{left:?}");
}

#[tokio::test]
async fn files_in_use_outlive_their_revision_where_catalogs_fail_now_and_then() {
    const FILES: usize = 60;
    let stack = Stack::new(1, false);
    let mut world = World::over(1, Arc::clone(&stack));
    let name = |number: usize| format!("file{number}").into_bytes();
    let content_in = |round: usize, number: usize| format!("{number} in {round}").into_bytes();
    let revision = |round| {
        let file = |number| (name(number), node(Body::File(content_in(round, number), 10)));
        Naive::from_iter((0..FILES).map(file).chain([(Vec::new(), node(Body::Directory))]))
    };
    let mut first = Vec::new();
    for round in 0..=10 {
        stack.set_weather(Weather::Mixed);
        loop {
            match world.fs.switch(stack.tree(&revision(round))).await {
                Ok(_) => break,
                Err(error) => assert!(matches!(error, FsError::Metadata { .. }), "{error}"),
            }
        }
        stack.set_weather(Weather::Fair);
        world.naive = revision(round);
        // Of each revision something is in use; of the first, all of it, and nothing was opened or read.
        for number in 0..if round == 0 { FILES } else { 1 } {
            let (found, _) = world.walk(&name(number)).await.unwrap();
            if round == 0 {
                first.push(found.unwrap().inode);
            }
        }
    }
    assert_eq!(world.fs.statistics().old_trees, 8, "the first is gone");
    for (number, inode) in first.into_iter().enumerate() {
        assert_eq!(world.fs.read(inode, 0, 100).await.unwrap(), content_in(0, number));
    }
}

#[tokio::test]
async fn a_read_that_no_source_can_serve_names_inode_range_and_chunk() {
    let mut world = World::new(5);
    let path = world.naive.iter().find(|(_, node)| matches!(&node.body, Body::File(b, _) if b.len() > 10));
    let path = path.unwrap().0.clone();
    let (found, _taken) = world.walk(&path).await.unwrap();
    let file = found.unwrap().inode;
    world.fs.open(file).await.unwrap();
    world.source.lose_everything();
    let error = world.fs.read(file, 3, 5).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&file.0.to_string()) && text.contains("5 bytes at 3"), "{text}");
    assert!(text.contains("chunk") && text.contains("the test lost it"), "{text}");
    world.open.clear();
}
