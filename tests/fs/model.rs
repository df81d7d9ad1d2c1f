//! Random operations on random trees, compared with the naive answer, without FUSE.

use crate::double::{
    Body, MemorySource, MemoryTree, Naive, base, content, next_revision, parent, random_tree,
};
use starling::catalog::{Attributes, FileKind, Inode, Tree};
use starling::fs::{FileSystem, FsError};
use starling::model::{Generator, Rng};
use std::sync::Arc;

const SEEDS: u64 = 40;
const OPERATIONS: usize = 300;

/// A directory, the offset where its reader goes on, the names that are still to come, and references.
type HalfRead = (Inode, u64, Vec<Vec<u8>>, Vec<Inode>);

struct World {
    fs: FileSystem,
    source: Arc<MemorySource>,
    naive: Naive,
    random: Generator,
    /// Open files with the bytes that they had when they were opened, and their references.
    open: Vec<(Inode, Vec<u8>, Vec<Inode>)>,
    /// Directories that somebody is in the middle of reading.
    half_read: Vec<HalfRead>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Generator::stream(seed, 1);
        let naive = random_tree(&mut random);
        let source = Arc::new(MemorySource::default());
        let tree = Arc::new(MemoryTree::new(&naive, &source));
        let fs = FileSystem::new("model", tree, Arc::clone(&source) as _);
        Self { fs, source, naive, random, open: Vec::new(), half_read: Vec::new() }
    }

    fn some_path(&mut self) -> Vec<u8> {
        let number = self.random.below(self.naive.len());
        let mut path = self.naive.keys().nth(number).unwrap().clone();
        if self.random.below(10) == 0 {
            path.extend(b"/absent");
        }
        path
    }

    /// Looks a path up part by part. Returns what was found and every reference that was taken.
    async fn walk(&self, path: &[u8]) -> (Option<Attributes>, Vec<Inode>) {
        let mut at = self.fs.attributes(Inode::ROOT).await.unwrap();
        let mut taken = Vec::new();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            match self.fs.lookup(at.inode, name).await {
                Ok(Some(found)) => {
                    taken.push(found.inode);
                    at = found;
                }
                Ok(None) => return (None, taken),
                Err(FsError::NotADirectory(inode)) => {
                    assert!(inode == at.inode && at.kind != FileKind::Directory);
                    return (None, taken);
                }
                Err(other) => panic!("{other}"),
            }
        }
        (Some(at), taken)
    }

    fn forget(&self, taken: &[Inode]) {
        taken.iter().for_each(|inode| self.fs.forget(*inode, 1));
    }

    async fn stat(&mut self) {
        let path = self.some_path();
        let (found, taken) = self.walk(&path).await;
        assert_eq!(found.is_some(), self.naive.contains_key(&path), "{}", path.escape_ascii());
        if let Some(found) = found {
            let named = &self.naive[&path];
            let real = match &named.body {
                Body::HardLink(target) => &self.naive[target],
                _ => named,
            };
            assert_eq!((found.permissions, found.mtime_ns), (real.permissions, real.mtime.1));
            assert_eq!(self.fs.attributes(found.inode).await.unwrap(), found);
            match &real.body {
                Body::Symlink(target) => {
                    assert_eq!(*self.fs.link_target(found.inode).await.unwrap(), target[..]);
                    assert_eq!(self.fs.open(found.inode).await, Err(FsError::WrongKind(found.inode)));
                }
                Body::Directory => {
                    assert_eq!(self.fs.open(found.inode).await, Err(FsError::IsADirectory(found.inode)));
                }
                Body::File(bytes, _) => assert_eq!(found.size, bytes.len() as u64),
                Body::HardLink(_) => unreachable!("resolved"),
            }
        }
        self.forget(&taken);
    }

    async fn list(&mut self) {
        let path = self.some_path();
        let (found, taken) = self.walk(&path).await;
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
        let (offset, got) = self.read_names(found.inode, 0, expected.len()).await;
        assert_eq!(got.iter().map(|(_, name)| name.clone()).collect::<Vec<_>>(), expected);
        if !got.is_empty() {
            let (offset, name) = &got[self.random.below(got.len())];
            let listing = self.fs.read_directory(found.inode, *offset).await.unwrap();
            let again = listing.from(*offset).next().unwrap();
            assert_eq!(again.name, name, "an offset means the same entry again");
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
    ) -> (u64, Vec<(u64, Vec<u8>)>) {
        let mut got = Vec::new();
        loop {
            let listing = self.fs.read_directory(directory, offset).await.unwrap();
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
                return (offset, got);
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
        let (_, got) = self.read_names(directory, offset, rest.len() + 1).await;
        assert_eq!(got.into_iter().map(|(_, name)| name).collect::<Vec<_>>(), rest);
        self.forget(&taken);
    }

    async fn open(&mut self) {
        let path = self.some_path();
        let (found, taken) = self.walk(&path).await;
        match (found, content(&self.naive, &path)) {
            (Some(found), Some(bytes)) => {
                self.fs.open(found.inode).await.unwrap();
                self.open.push((found.inode, bytes.to_vec(), taken));
            }
            _ => self.forget(&taken),
        }
    }

    async fn read(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let number = self.random.below(self.open.len());
        let (offset, len) = (self.random.below(4000), self.random.below(4000));
        let (file, bytes, _) = &self.open[number];
        let got = self.fs.read(*file, offset as u64, u32::try_from(len).unwrap()).await.unwrap();
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
        self.naive = next_revision(&self.naive, &mut self.random);
        self.fs.switch(Arc::new(MemoryTree::new(&self.naive, &self.source))).await.unwrap();
    }
}

#[tokio::test]
async fn random_operations_get_the_naive_answer_also_across_revisions() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        for _ in 0..OPERATIONS {
            match world.random.below(20) {
                0 => world.switch().await,
                1..6 => world.list().await,
                6..9 => world.open().await,
                9..14 => world.read().await,
                14 | 15 => world.close(),
                16 => world.read_on().await,
                _ => world.stat().await,
            }
        }
        while !world.open.is_empty() {
            world.close();
        }
        while !world.half_read.is_empty() {
            world.read_on().await;
        }
        let left = world.fs.statistics();
        assert_eq!((left.known_inodes, left.open_files, left.old_trees), (1, 0, 0), "seed {seed}: {left:?}");
    }
}

#[tokio::test]
async fn an_open_file_outlives_its_revision_and_an_inode_too_old_is_stale() {
    let mut world = World::new(3);
    let path = world.naive.iter().find(|(_, node)| matches!(&node.body, Body::File(b, _) if b.len() > 10));
    let path = path.unwrap().0.clone();
    let bytes = content(&world.naive, &path).unwrap().to_vec();
    let (found, _taken) = world.walk(&path).await;
    let inode = found.unwrap().inode;
    world.fs.open(inode).await.unwrap();
    for round in 0..20_u8 {
        let Some(crate::double::Node { body: Body::File(changed, _), .. }) = world.naive.get_mut(&path)
        else {
            unreachable!("it stays a file")
        };
        changed.push(round);
        let tree: Arc<dyn Tree> = Arc::new(MemoryTree::new(&world.naive, &world.source));
        world.fs.switch(tree).await.unwrap();
        // Somebody holds on to a file of each revision.
        world.walk(&path).await;
    }
    assert!(world.fs.statistics().old_trees <= 8, "{:?}", world.fs.statistics());
    assert_eq!(world.fs.read(inode, 0, 4096).await.unwrap(), bytes);
    assert_eq!(world.fs.attributes(inode).await.unwrap().size, bytes.len() as u64);
    world.fs.close(inode);
    world.fs.forget(inode, 1);
    assert_eq!(world.fs.attributes(inode).await, Err(FsError::Stale(inode)));
    assert_eq!(world.fs.lookup(Inode(4711), b"x").await, Err(FsError::Stale(Inode(4711))));
}

#[tokio::test]
async fn a_read_that_no_source_can_serve_names_inode_range_and_chunk() {
    let mut world = World::new(5);
    let path = world.naive.iter().find(|(_, node)| matches!(&node.body, Body::File(b, _) if b.len() > 10));
    let path = path.unwrap().0.clone();
    let (found, _taken) = world.walk(&path).await;
    let file = found.unwrap().inode;
    world.fs.open(file).await.unwrap();
    world.source.lose_everything();
    let error = world.fs.read(file, 3, 5).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&file.0.to_string()) && text.contains("5 bytes at 3"), "{text}");
    assert!(text.contains("chunk") && text.contains("the test lost it"), "{text}");
    world.open.clear();
}
