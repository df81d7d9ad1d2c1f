//! Writes the catalogs of a numbered tree, nested ones before those that name them.

use super::PublishError;
use super::pack::Packer;
use super::scan::{Content, Entry, ScannedTree};
use super::table::ChunkTable;
use crate::catalog::{CatalogWriter, NewContent, NewEntry, split};
use crate::model::{ChunkRef, ContentId};
use std::collections::{HashMap, VecDeque};

/// Which directories get catalogs of their own, by entry. The root always does.
pub(super) fn divide(tree: &ScannedTree) -> Vec<bool> {
    let mut nested = vec![false; tree.entries.len()];
    let mut weights = vec![0; tree.entries.len()];
    // Children have larger numbers than their directory, so backwards they come first.
    for (number, entry) in tree.entries.iter().enumerate().rev() {
        let Content::Directory(children) = &entry.content else { continue };
        let directories = || {
            children.iter().map(|child| *child as usize).filter(|child| is_directory(&tree.entries[*child]))
        };
        let below: Vec<u64> = directories().map(|child| weights[child]).collect();
        let (threshold, weight) = split(children.len() as u64, &below);
        weights[number] = weight;
        if let Some(threshold) = threshold {
            for child in directories() {
                nested[child] = weights[child] >= threshold;
            }
        }
    }
    nested[0] = true;
    nested
}

fn is_directory(entry: &Entry) -> bool {
    matches!(entry.content, Content::Directory(_))
}

/// Writes catalogs, each once; those that the previous revision has are not stored again.
pub(super) struct Assembler<'a> {
    pub(super) tree: &'a ScannedTree,
    pub(super) table: &'a ChunkTable,
    pub(super) nested: &'a [bool],
    /// Catalogs of the previous revision that are still there.
    pub(super) known: &'a HashMap<ContentId, ChunkRef>,
    pub(super) packer: &'a mut Packer,
    /// All catalogs of this revision, in the order in which they were written.
    pub(super) written: Vec<ContentId>,
    /// The catalog of each directory that has one of its own.
    pub(super) catalog_of: HashMap<u32, ContentId>,
}

impl Assembler<'_> {
    /// Writes the catalog of the directory `top` and, before it, those nested in it. Recursion is as deep as a path
    /// can be, 2 048 levels.
    pub(super) fn catalog(&mut self, top: u32) -> Result<ContentId, PublishError> {
        let mut writer = CatalogWriter::new()?;
        if top == 0 {
            self.row(&mut writer, 0, 0, NewContent::Directory(1))?;
        }
        let mut open = VecDeque::from([(top, 1)]);
        let mut last = 1;
        while let Some((directory, number)) = open.pop_front() {
            let tree = self.tree;
            let Content::Directory(children) = &tree.entries[directory as usize].content else {
                unreachable!("only directories are opened");
            };
            for child in children.iter().copied() {
                let is_nested = self.nested[child as usize];
                let mut entry = &tree.entries[child as usize];
                if let Content::SameAs(first) = entry.content {
                    entry = &tree.entries[first as usize];
                }
                match &entry.content {
                    Content::File(chunks) => {
                        let chunks: Vec<ChunkRef> =
                            chunks.iter().map(|chunk| self.table.chunk(*chunk)).collect();
                        self.row(&mut writer, number, child, NewContent::File(&chunks))?;
                    }
                    Content::Symlink(target) => {
                        self.row(&mut writer, number, child, NewContent::Symlink(target))?;
                    }
                    Content::Directory(_) if is_nested => {
                        let id = self.catalog(child)?;
                        self.row(&mut writer, number, child, NewContent::Nested(id))?;
                    }
                    Content::Directory(_) => {
                        last += 1;
                        open.push_back((child, last));
                        self.row(&mut writer, number, child, NewContent::Directory(last))?;
                    }
                    Content::SameAs(_) => unreachable!("the first name of an inode is no further name"),
                }
            }
        }
        let bytes = writer.finish()?;
        let id = ContentId::of(&bytes);
        if !self.known.contains_key(&id) {
            self.packer.push(id, bytes);
        }
        self.written.push(id);
        self.catalog_of.insert(top, id);
        Ok(id)
    }

    fn row(
        &self,
        writer: &mut CatalogWriter,
        parent: u32,
        entry: u32,
        content: NewContent<'_>,
    ) -> Result<(), PublishError> {
        let Entry { name, attributes, xattrs, .. } = &self.tree.entries[entry as usize];
        Ok(writer.add(&NewEntry { parent, name, attributes, xattrs, content })?)
    }
}
