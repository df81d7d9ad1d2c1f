//! Where each inode of a tree lies: one table over all catalogs that were ever loaded.
//!
//! It stays when catalogs are taken down, so that an inode that was handed out finds its catalog again. It costs 8
//! bytes a row for the number and 6 to 12 for the hash table, which keeps only the numbers of rows.

use super::Inode;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

/// A row of a catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// Number of the catalog.
    pub(super) catalog: u32,
    /// The row.
    pub(super) row: u32,
}

/// The inodes of one catalog.
#[derive(Debug)]
struct Part {
    /// Number of its first row, counted through all parts.
    first: u32,
    catalog: u32,
    inodes: Arc<[Inode]>,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct InodeTable {
    /// With a key of its own, for publishers choose the numbers.
    hasher: RandomState,
    /// Numbers of rows. Of rows with the same inode (hard links), only the first.
    rows: HashTable<u32>,
    /// By `first`.
    parts: Vec<Part>,
    /// Rows of all parts.
    end: u32,
}

/// The part that holds a row of the given number.
fn part_of(parts: &[Part], number: u32) -> &Part {
    let after = parts.partition_point(|part| part.first <= number);
    &parts[after.checked_sub(1).expect("the first part begins at 0")]
}

fn inode_of(parts: &[Part], number: u32) -> Inode {
    let part = part_of(parts, number);
    part.inodes[(number - part.first) as usize]
}

impl InodeTable {
    /// Adds the rows of a catalog that is not in yet. An inode that is there already stays where it is.
    ///
    /// # Errors
    /// What is too much, when the rows cannot be numbered.
    pub(super) fn add(&mut self, catalog: u32, inodes: &Arc<[Inode]>) -> Result<(), String> {
        let end = u32::try_from(inodes.len()).ok().and_then(|len| self.end.checked_add(len));
        let end = end.ok_or_else(|| format!("a tree of more than {} entries", u32::MAX))?;
        let first = std::mem::replace(&mut self.end, end);
        self.parts.push(Part { first, catalog, inodes: Arc::clone(inodes) });
        let Self { hasher, rows, parts, .. } = self;
        let (hasher, parts) = (&*hasher, &parts[..]);
        let hash_of = |number: &u32| hasher.hash_one(inode_of(parts, *number));
        rows.reserve(inodes.len(), hash_of);
        for (number, inode) in (first..).zip(inodes.iter()) {
            let is_same = |other: &u32| inode_of(parts, *other) == *inode;
            if let Entry::Vacant(vacant) = rows.entry(hasher.hash_one(*inode), is_same, hash_of) {
                vacant.insert(number);
            }
        }
        Ok(())
    }

    /// Where an inode lies; of hard links, one of them.
    pub(super) fn find(&self, inode: Inode) -> Option<Location> {
        let is_it = |number: &u32| inode_of(&self.parts, *number) == inode;
        let number = *self.rows.find(self.hasher.hash_one(inode), is_it)?;
        let part = part_of(&self.parts, number);
        Some(Location { catalog: part.catalog, row: number - part.first })
    }

    /// Inodes in it.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Bytes of memory that it takes, with the inodes.
    pub(super) fn bytes(&self) -> usize {
        self.rows.allocation_size()
            + self.parts.capacity() * size_of::<Part>()
            + self.end as usize * size_of::<Inode>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn every_inode_is_found_where_it_came_first(
            catalogs in proptest::collection::vec(proptest::collection::vec(0_u64..200, 0..60), 0..12),
        ) {
            let (mut table, mut naive) = (InodeTable::default(), HashMap::new());
            for (catalog, inodes) in (7..).zip(&catalogs) {
                let inodes: Arc<[Inode]> = inodes.iter().map(|number| Inode(*number)).collect();
                for (row, inode) in (0..).zip(inodes.iter()) {
                    naive.entry(*inode).or_insert(Location { catalog, row });
                }
                table.add(catalog, &inodes).unwrap();
                for number in 0..210 {
                    prop_assert_eq!(table.find(Inode(number)), naive.get(&Inode(number)).copied());
                }
            }
            prop_assert_eq!(table.len(), naive.len());
        }
    }

    #[test]
    fn a_million_names_of_one_inode_are_one_entry() {
        let mut table = InodeTable::default();
        table.add(0, &vec![Inode(5); 1_000_000].into()).unwrap();
        assert_eq!((table.len(), table.find(Inode(5))), (1, Some(Location { catalog: 0, row: 0 })));
    }

    #[test]
    fn an_inode_costs_at_most_twenty_bytes() {
        let mut table = InodeTable::default();
        for catalog in 0..75 {
            let inodes = (0..2_000).map(|row| Inode(u64::from(catalog) * 10_000 + row)).collect();
            table.add(catalog, &inodes).unwrap();
        }
        let bytes = table.bytes() / 150_000;
        assert!(bytes <= 20, "{bytes} bytes an inode");
    }
}
