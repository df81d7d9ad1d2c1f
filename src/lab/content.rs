//! What is distributed: a tree of incompressible files, drawn from a seed.

use super::error::LabError;
use super::scenario::Content;
use crate::model::{Generator, Rng as _};
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Bytes that are compared in one piece: what FUSE carries in one request.
const PIECE_BYTES: u64 = 1 << 20;
/// Bytes that a random reader takes at once: a few chunks (a guess).
const BLOCK_BYTES: u64 = 128 << 10;
/// Files in one folder.
const FOLDER_FILES: u32 = 1_000;

/// A file of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// Its path below the root of the tree.
    pub(super) path: PathBuf,
    /// Its length in bytes.
    pub(super) bytes: u64,
}

/// The tree.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) root: PathBuf,
    pub(super) items: Vec<Item>,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) item: usize,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl Tree {
    /// Writes the tree below `root`.
    pub(super) fn make(root: &Path, content: &Content, seed: u64) -> Result<Self, LabError> {
        let items = items(content, seed);
        let mut generator = Generator::new(seed);
        for item in &items {
            let path = root.join(&item.path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(LabError::file(parent))?;
            }
            write_random(&path, item.bytes, &mut generator).map_err(LabError::file(&path))?;
        }
        Ok(Self { root: root.to_owned(), items })
    }

    /// All files as wholes, in the order of the recording: the same for all who name the same seed.
    pub(super) fn recorded(&self, seed: u64) -> Vec<Part> {
        let whole = |(item, found): (usize, &Item)| Part { item, offset: 0, bytes: found.bytes };
        shuffled(self.items.iter().enumerate().map(whole).collect(), seed)
    }

    /// All blocks of all files in a random order.
    pub(super) fn at_random(&self, seed: u64) -> Vec<Part> {
        let blocks = self.items.iter().enumerate().flat_map(|(item, found)| {
            (0..found.bytes.div_ceil(BLOCK_BYTES)).map(move |block| {
                let offset = block * BLOCK_BYTES;
                Part { item, offset, bytes: BLOCK_BYTES.min(found.bytes - offset) }
            })
        });
        shuffled(blocks.collect(), seed)
    }

    /// Reads a part below `mount` and compares it with the source.
    pub(super) fn compare(&self, mount: &Path, part: Part, buffers: &mut Buffers) -> Result<(), Difference> {
        let item = &self.items[part.item];
        let failed = |source| Difference::Unreadable { path: item.path.clone(), source };
        let source = |source| Difference::Source { path: item.path.clone(), source };
        let copy = File::open(mount.join(&item.path)).map_err(failed)?;
        let original = File::open(self.root.join(&item.path)).map_err(source)?;
        let length = copy.metadata().map_err(failed)?.len();
        if length != item.bytes {
            return Err(Difference::Length { path: item.path.clone(), found: length, expected: item.bytes });
        }
        let (mut offset, end) = (part.offset, part.offset + part.bytes);
        while offset < end {
            let length = usize::try_from(PIECE_BYTES.min(end - offset)).unwrap_or(1);
            let (read, expected) = (&mut buffers.read[..length], &mut buffers.expected[..length]);
            copy.read_exact_at(read, offset).map_err(failed)?;
            original.read_exact_at(expected, offset).map_err(source)?;
            if read != expected {
                return Err(Difference::Content { path: item.path.clone(), offset });
            }
            offset += length as u64;
        }
        Ok(())
    }
}

/// Room for two pieces.
pub(super) struct Buffers {
    read: Vec<u8>,
    expected: Vec<u8>,
}

impl Buffers {
    pub(super) fn new() -> Self {
        let piece = || vec![0; usize::try_from(PIECE_BYTES).unwrap_or(0)];
        Self { read: piece(), expected: piece() }
    }
}

/// What a reader should never see.
#[derive(Debug, thiserror::Error)]
pub(super) enum Difference {
    #[error("{}: {source}", .path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{} has {found} bytes instead of {expected}", .path.display())]
    Length { path: PathBuf, found: u64, expected: u64 },
    #[error("{} has wrong bytes at {offset} or up to 1 MiB after it", .path.display())]
    Content { path: PathBuf, offset: u64 },
    #[error("the source itself: {}: {source}", .path.display())]
    Source { path: PathBuf, source: std::io::Error },
}

/// Names and lengths: weights between 1 and `spread`, evenly on a scale of powers.
fn items(content: &Content, seed: u64) -> Vec<Item> {
    let mut generator = Generator::new(!seed);
    let files = content.files;
    let weights: Vec<f64> = (0..files)
        .map(|_| {
            let even =
                f64::from(u32::try_from(generator.next_u64() >> 32).unwrap_or(0)) / f64::from(u32::MAX);
            f64::from(content.spread).powf(even)
        })
        .collect();
    let sum: f64 = weights.iter().sum();
    let mut left = content.bytes;
    let mut found = Vec::new();
    for (number, weight) in (0..files).zip(weights) {
        let after = u64::from(files - number - 1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rounded down; the last file takes the rest"
        )]
        let wanted = (content.bytes as f64 * weight / sum) as u64;
        // Each of those that follow gets a byte at least.
        let bytes = if after == 0 { left } else { wanted.clamp(1, left - after) };
        left -= bytes;
        let path = format!("d{:03}/f{number:05}", number / FOLDER_FILES);
        found.push(Item { path: path.into(), bytes });
    }
    found
}

fn write_random(path: &Path, bytes: u64, generator: &mut Generator) -> std::io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut left = bytes;
    while left > 0 {
        let word = generator.next_u64().to_le_bytes();
        let take = usize::try_from(left.min(8)).unwrap_or(8);
        file.write_all(&word[..take])?;
        left -= take as u64;
    }
    file.flush()
}

/// Fisher and Yates.
fn shuffled(mut parts: Vec<Part>, seed: u64) -> Vec<Part> {
    let mut generator = Generator::new(seed);
    for last in (1..parts.len()).rev() {
        parts.swap(last, generator.below(last + 1));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lengths_add_up_and_differ_as_asked() {
        for (bytes, files, spread) in [(1 << 20, 1, 1), (10_000_001, 37, 100), (5, 5, 1_000)] {
            let content = Content { bytes, files, spread, chunk_bytes: None };
            let items = items(&content, 3);
            assert_eq!(items.len(), files as usize);
            assert_eq!(items.iter().map(|item| item.bytes).sum::<u64>(), bytes);
            assert!(items.iter().all(|item| item.bytes > 0));
        }
    }

    #[test]
    fn every_byte_is_read_once_and_a_wrong_one_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let content = Content { bytes: 700_000, files: 5, spread: 10, chunk_bytes: None };
        let (root, copy) = (dir.path().join("tree"), dir.path().join("copy"));
        let tree = Tree::make(&root, &content, 9).unwrap();
        Tree::make(&copy, &content, 9).unwrap();
        let mut buffers = Buffers::new();
        for parts in [tree.recorded(1), tree.at_random(2)] {
            assert_eq!(parts.iter().map(|part| part.bytes).sum::<u64>(), content.bytes);
            for part in &parts {
                tree.compare(&copy, *part, &mut buffers).unwrap();
            }
        }
        assert_eq!(tree.recorded(4), tree.recorded(4));
        assert_ne!(tree.at_random(4), tree.at_random(5));
        let victim = copy.join(&tree.items[2].path);
        let mut bytes = fs::read(&victim).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&victim, bytes).unwrap();
        let wrong =
            tree.recorded(1).into_iter().filter(|part| tree.compare(&copy, *part, &mut buffers).is_err());
        assert_eq!(wrong.map(|part| part.item).collect::<Vec<_>>(), [2]);
    }
}
