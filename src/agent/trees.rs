//! The trees that are open: mounts of one revision share one, and all of them one budget of memory.

use super::shown::Shown;
use crate::catalog::{CatalogBudget, MountedTree, TreeError};
use crate::chunk::ChunkSource;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A tree that somebody shows, or did.
struct Open {
    /// Of which revision, of which repository. Not by the root's name alone: a history is its publisher's, and may name roots of
    /// others with catalogs of his own.
    shown: Shown,
    tree: Weak<MountedTree>,
}

/// All open trees of an agent. As many are noted as are shown.
pub(super) struct Trees {
    budget: Arc<CatalogBudget>,
    open: Mutex<Vec<Open>>,
}

impl Default for Trees {
    fn default() -> Self {
        Self { budget: CatalogBudget::new(MountedTree::BUDGET_BYTES), open: Mutex::default() }
    }
}

impl Trees {
    /// What catalogs in memory may take.
    pub(super) fn budget(&self) -> &Arc<CatalogBudget> {
        &self.budget
    }

    /// The tree of a revision: the one that others have open, else a new one over `source`.
    pub(super) async fn open(
        &self,
        shown: &Shown,
        source: Arc<dyn ChunkSource>,
    ) -> Result<Arc<MountedTree>, TreeError> {
        if let Some(tree) = self.known(shown, None) {
            return Ok(tree);
        }
        let tree = Arc::new(MountedTree::open_revision(source, &shown.of, &self.budget).await?);
        Ok(self.known(shown, Some(&tree)).unwrap_or(tree))
    }

    /// The tree of a revision that is open already. If none is, `new` is noted as the one.
    fn known(&self, shown: &Shown, new: Option<&Arc<MountedTree>>) -> Option<Arc<MountedTree>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same =
            |other: &&Open| other.shown.repository == shown.repository && other.shown.of == shown.of;
        let known = open.iter().filter(is_same).find_map(|other| other.tree.upgrade());
        if let (None, Some(new)) = (&known, new) {
            open.retain(|other| other.tree.strong_count() > 0);
            open.push(Open { shown: shown.clone(), tree: Arc::downgrade(new) });
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::super::fill::Behind;
    use super::super::fill::tests::world;
    use super::*;
    use crate::catalog::{Inode, Tree as _};

    #[tokio::test]
    async fn mounts_of_one_revision_share_its_tree_and_those_of_others_do_not() {
        let (root, far, _) = world(0, 1 << 20);
        let source: Arc<dyn ChunkSource> = Arc::new(Behind(far.clone()));
        let (trees, shown) = (Trees::default(), Shown::newest(&root));
        let (one, other) =
            tokio::join!(trees.open(&shown, source.clone()), trees.open(&shown, source.clone()));
        let (one, other) = (one.unwrap(), other.unwrap());
        assert!(Arc::ptr_eq(&one, &other), "also for those who come at once");
        assert_eq!(one.list(Inode::ROOT).await.unwrap().len(), 1);
        let (reads, used) = (far.reads(), trees.budget().used_bytes());
        assert!(used > 0 && Arc::ptr_eq(&one, &trees.open(&shown, source.clone()).await.unwrap()));
        assert_eq!((far.reads(), trees.budget().used_bytes()), (reads, used));

        // What another repository's history says of a root by this name is its own affair.
        let mut foreign = shown.clone();
        foreign.repository = "other.example.org".parse().unwrap();
        let apart = trees.open(&foreign, source.clone()).await.unwrap();
        foreign.repository = shown.repository.clone();
        foreign.of.inodes += 1;
        let differs = trees.open(&foreign, source.clone()).await.unwrap();
        assert!(!Arc::ptr_eq(&one, &apart) && !Arc::ptr_eq(&one, &differs));
        assert_eq!(trees.budget().used_bytes(), 3 * used, "they share the budget");

        drop((one, other, apart, differs));
        assert_eq!(trees.budget().used_bytes(), 0, "a tree takes its catalogs along");
        let again = trees.open(&shown, source).await.unwrap();
        assert!(far.reads() > reads && trees.budget().used_bytes() == used);
        assert_eq!(trees.open.lock().unwrap().len(), 1, "what is gone is not noted");
        drop(again);
    }
}
