//! Numbers the inodes: an unchanged entry keeps its number, a changed file gets a new one.

use super::scan::{Content, ScannedTree};
use super::table::ChunkTable;
use crate::catalog::{FileKind, Inode};
use std::collections::HashSet;

/// Numbers every entry, in walk order: a directory's entries by name, then the entries of its subdirectories.
/// Returns how many inodes there are.
pub(super) fn number(tree: &mut ScannedTree, table: &ChunkTable) -> u64 {
    let mut taken = HashSet::with_capacity(tree.entries.len());
    tree.entries[0].attributes.inode = Inode::ROOT;
    let mut inodes = 1;
    let mut open = vec![(0_u32, Vec::new())];
    let mut later = Vec::new();
    while let Some((directory, path)) = open.pop() {
        let Content::Directory(children) = &tree.entries[directory as usize].content else {
            unreachable!("only directories are opened");
        };
        let children = children.clone();
        let mut directories = Vec::new();
        for child in children {
            let path = [&path, &b"/"[..], &tree.entries[child as usize].name].concat();
            if let Content::SameAs(_) = tree.entries[child as usize].content {
                later.push(child);
                continue;
            }
            let inode =
                (0..).map(|salt| hash(tree, table, child, &path, salt)).find(|inode| taken.insert(*inode));
            let inode = inode.expect("there are more hashes than entries");
            let entry = &mut tree.entries[child as usize];
            entry.attributes.inode = Inode(inode);
            inodes += 1;
            if entry.attributes.kind == FileKind::Directory {
                directories.push((child, path));
            }
        }
        open.extend(directories.into_iter().rev());
    }
    for child in later {
        if let Content::SameAs(first) = tree.entries[child as usize].content {
            tree.entries[child as usize].attributes = tree.entries[first as usize].attributes;
        }
    }
    inodes
}

/// 63 bits of a hash, never 0 or 1.
fn hash(tree: &ScannedTree, table: &ChunkTable, entry: u32, path: &[u8], salt: u64) -> u64 {
    let entry = &tree.entries[entry as usize];
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(path);
    let attributes = &entry.attributes;
    match &entry.content {
        Content::File(chunks) => {
            add(b"file");
            chunks.iter().for_each(|chunk| add(table.id(*chunk).digest()));
        }
        Content::Symlink(target) => {
            add(b"symlink");
            add(target);
        }
        Content::Directory(_) => add(b"directory"),
        Content::SameAs(_) => unreachable!("further names are numbered by their first"),
    }
    if attributes.kind != FileKind::Directory {
        add(&attributes.permissions.to_le_bytes());
        for number in [attributes.uid, attributes.gid, attributes.links, attributes.mtime_ns] {
            add(&number.to_le_bytes());
        }
        add(&attributes.size.to_le_bytes());
        add(&attributes.mtime_s.to_le_bytes());
        for (name, value) in entry.xattrs.iter() {
            add(name);
            add(value);
        }
    }
    if salt > 0 {
        add(&salt.to_le_bytes());
    }
    let digest = hasher.finalize();
    let first = digest.as_bytes().first_chunk().expect("a digest has 32 bytes");
    let number = u64::from_le_bytes(*first) >> 1;
    // 0 is "no inode" to the kernel, 1 the root.
    if number > Inode::ROOT.0 { number } else { hash_of_small(number) }
}

/// Where the two numbers that may not be used go.
fn hash_of_small(number: u64) -> u64 {
    (i64::MAX.cast_unsigned()) - number
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Attributes, Xattrs};
    use crate::publish::scan::Entry;

    fn tree(mtime_s: i64) -> ScannedTree {
        let entry = |name: &[u8], kind, content, mtime_s| Entry {
            name: name.into(),
            attributes: Attributes {
                permissions: 0o644,
                links: 1,
                mtime_s,
                ..Attributes::blank(Inode(0), kind)
            },
            xattrs: Xattrs::from([]),
            content,
        };
        let entries = vec![
            entry(b"", FileKind::Directory, Content::Directory([1, 2, 3].into()), mtime_s),
            entry(b"a", FileKind::Directory, Content::Directory([4].into()), mtime_s),
            entry(b"b", FileKind::File, Content::File([].into()), 7),
            entry(b"c", FileKind::File, Content::File([].into()), mtime_s),
            entry(b"again", FileKind::File, Content::SameAs(2), 7),
        ];
        ScannedTree { entries, ..ScannedTree::default() }
    }

    fn numbers(mtime_s: i64) -> Vec<u64> {
        let mut tree = tree(mtime_s);
        assert_eq!(number(&mut tree, &ChunkTable::default()), 4);
        tree.entries.iter().map(|entry| entry.attributes.inode.0).collect()
    }

    #[test]
    fn unchanged_entries_and_directories_keep_their_numbers_and_changed_files_do_not() {
        let (before, after) = (numbers(1), numbers(2));
        assert_eq!(before[0], 1);
        assert_eq!((before[1], before[2], before[4]), (after[1], after[2], after[4]));
        assert_ne!(before[3], after[3]);
    }

    #[test]
    fn names_of_one_file_share_its_number_and_all_others_differ() {
        let numbers = numbers(1);
        assert_eq!(numbers[2], numbers[4]);
        let distinct: HashSet<_> = numbers.iter().collect();
        assert_eq!(distinct.len(), 4);
        assert!(numbers[1..].iter().all(|number| *number > 1 && *number <= i64::MAX.cast_unsigned()));
    }

    #[test]
    fn the_two_reserved_numbers_are_never_given() {
        assert!([0, 1].map(hash_of_small).iter().all(|number| *number > 1));
    }
}
