//! What one mount shows of a tree: the part below a directory, and whose files they are.

use super::PublishedTrace;
use super::tree::{
    Attributes, DirectoryEntry, ExtendedAttributes, FileKind, Inode, Tree, TreeError, TreeName,
};
use crate::model::{ChunkRef, ContentId};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Most numbers that a map names one by one (guess: the accounts of a site's software, generously).
const RULES_MAX: usize = 1_024;
/// What the kernel takes for no user and no group.
const NO_ID: u32 = u32::MAX;

/// Which owner is shown in the place of which. A number that is not named stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IdMap {
    /// From what the tree says to what is shown.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rules: BTreeMap<u32, u32>,
    /// What is shown for all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub others: Option<u32>,
}

impl IdMap {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.others.is_none()
    }

    /// Adds a rule as people write it: `FROM:TO`, or `*:TO` for all that no other rule names.
    ///
    /// # Errors
    /// In words, when it is no rule, or contradicts one that is there.
    pub fn add(&mut self, rule: &str) -> Result<(), String> {
        let wrong = || format!("`{rule}` is not FROM:TO, two numbers, or *:TO");
        let (from, to) = rule.split_once(':').ok_or_else(wrong)?;
        let to = to.parse().map_err(|_| wrong())?;
        let before = if from == "*" {
            self.others.replace(to)
        } else {
            self.rules.insert(from.parse().map_err(|_| wrong())?, to)
        };
        if let Some(before) = before.filter(|before| *before != to) {
            return Err(format!("{from} is to become both {before} and {to}"));
        }
        self.check()
    }

    /// Whether it is within bounds.
    ///
    /// # Errors
    /// In words.
    pub fn check(&self) -> Result<(), String> {
        let count = self.rules.len();
        if count > RULES_MAX {
            return Err(format!("{count} numbers are mapped one by one; {RULES_MAX} are the most"));
        }
        let named = self.rules.iter().flat_map(|(from, to)| [*from, *to]);
        if named.chain(self.others).any(|id| id == NO_ID) {
            return Err(format!("{NO_ID} (-1) is no user and no group: the largest is {}", NO_ID - 1));
        }
        Ok(())
    }

    fn apply(&self, id: u32) -> u32 {
        self.rules.get(&id).copied().or(self.others).unwrap_or(id)
    }
}

/// Whose the files are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// Users.
    pub uids: IdMap,
    /// Groups.
    pub gids: IdMap,
}

/// Why there is no such view of a tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// There is nothing of that name.
    #[error("there is no {0}")]
    NotThere(String),
    /// It is no directory.
    #[error("{0} is not a directory")]
    NotADirectory(String),
    /// It is a link, which leads elsewhere in another revision.
    #[error("{path} is a symbolic link to {target}")]
    Link {
        /// Where it stands.
        path: String,
        /// Where it leads.
        target: String,
    },
    /// Metadata could not be had.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// A tree seen through [`view`]. The directory at which it begins has the number of a root.
struct View {
    tree: Arc<dyn Tree>,
    top: Inode,
    owners: Owners,
}

/// The part of `tree` below the directory `path`, as if it were all, and with other owners. A path of no names is the whole
/// tree.
///
/// # Errors
/// [`ViewError`] when there is no such directory in this tree.
pub async fn view(tree: Arc<dyn Tree>, path: &str, owners: &Owners) -> Result<Arc<dyn Tree>, ViewError> {
    let mut top = Inode::ROOT;
    let mut walked = String::new();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        walked = format!("{walked}/{name}");
        let found = tree.lookup(top, name.as_bytes()).await?;
        let found = found.ok_or_else(|| ViewError::NotThere(walked.clone()))?;
        match found.kind {
            FileKind::Directory => top = found.inode,
            FileKind::File => return Err(ViewError::NotADirectory(walked)),
            FileKind::Symlink => {
                let target = tree.link_target(found.inode).await?;
                let target = String::from_utf8_lossy(&target).into_owned();
                return Err(ViewError::Link { path: walked, target });
            }
        }
    }
    if top == Inode::ROOT && owners.uids.is_empty() && owners.gids.is_empty() {
        return Ok(tree);
    }
    Ok(Arc::new(View { tree, top, owners: owners.clone() }))
}

impl View {
    fn inner(&self, inode: Inode) -> Inode {
        if inode == Inode::ROOT { self.top } else { inode }
    }

    fn outer(&self, inode: Inode) -> Inode {
        if inode == self.top { Inode::ROOT } else { inode }
    }

    fn shown(&self, found: Attributes) -> Attributes {
        Attributes {
            inode: self.outer(found.inode),
            uid: self.owners.uids.apply(found.uid),
            gid: self.owners.gids.apply(found.gid),
            ..found
        }
    }
}

impl Tree for View {
    fn lookup<'a>(
        &'a self,
        directory: Inode,
        name: &'a [u8],
    ) -> BoxFuture<'a, Result<Option<Attributes>, TreeError>> {
        Box::pin(async move {
            let found = self.tree.lookup(self.inner(directory), name).await?;
            Ok(found.map(|found| self.shown(found)))
        })
    }

    fn list(&self, directory: Inode) -> BoxFuture<'_, Result<Arc<[DirectoryEntry]>, TreeError>> {
        Box::pin(async move {
            let entries = self.tree.list(self.inner(directory)).await?;
            if self.owners == Owners::default() {
                // Names of its own directory, none of which is the top.
                return Ok(entries);
            }
            let entry = |entry: &DirectoryEntry| DirectoryEntry {
                name: Arc::clone(&entry.name),
                attributes: self.shown(entry.attributes),
            };
            Ok(entries.iter().map(entry).collect())
        })
    }

    fn is_here(&self, directory: Inode) -> bool {
        self.tree.is_here(self.inner(directory))
    }

    fn attributes(&self, inode: Inode) -> BoxFuture<'_, Result<Attributes, TreeError>> {
        Box::pin(async move { Ok(self.shown(self.tree.attributes(self.inner(inode)).await?)) })
    }

    fn parent(&self, directory: Inode) -> BoxFuture<'_, Result<Inode, TreeError>> {
        Box::pin(async move {
            if self.inner(directory) == self.top {
                return Ok(Inode::ROOT);
            }
            Ok(self.outer(self.tree.parent(directory).await?))
        })
    }

    fn link_target(&self, inode: Inode) -> BoxFuture<'_, Result<Arc<[u8]>, TreeError>> {
        self.tree.link_target(self.inner(inode))
    }

    fn extended_attributes(&self, inode: Inode) -> BoxFuture<'_, Result<ExtendedAttributes, TreeError>> {
        self.tree.extended_attributes(self.inner(inode))
    }

    fn may_have_attribute(&self, name: &[u8]) -> bool {
        self.tree.may_have_attribute(name)
    }

    fn chunks(&self, file: Inode) -> BoxFuture<'_, Result<Arc<[ChunkRef]>, TreeError>> {
        self.tree.chunks(self.inner(file))
    }

    fn locate(
        &self,
        inode: Inode,
        patience: Duration,
    ) -> BoxFuture<'_, Result<Option<Attributes>, TreeError>> {
        Box::pin(async move {
            let found = self.tree.locate(self.inner(inode), patience).await?;
            Ok(found.map(|found| self.shown(found)))
        })
    }

    fn path(&self, inode: Inode) -> BoxFuture<'_, Result<Vec<u8>, TreeError>> {
        // That of the whole tree: what is recorded here is published with all of it.
        self.tree.path(self.inner(inode))
    }

    fn laid_in(
        &self,
        file: Inode,
        segment: &ContentId,
        bytes: &Range<u64>,
        most_bytes: u64,
    ) -> Vec<ChunkRef> {
        self.tree.laid_in(self.inner(file), segment, bytes, most_bytes)
    }

    fn traces(&self) -> &[PublishedTrace] {
        // They begin with files, whose numbers are the same here.
        self.tree.traces()
    }

    fn totals(&self) -> (u64, u64) {
        self.tree.totals()
    }

    fn name(&self) -> Option<TreeName> {
        self.tree.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(rules: &[&str]) -> Result<IdMap, String> {
        let mut map = IdMap::default();
        rules.iter().try_for_each(|rule| map.add(rule))?;
        Ok(map)
    }

    #[test]
    fn rules_are_exact_before_they_are_general_and_what_no_rule_names_stays() {
        let exact = map(&["1000:0", "1001:5"]).unwrap();
        assert_eq!([1000, 1001, 7].map(|id| exact.apply(id)), [0, 5, 7]);
        let general = map(&["*:65534", "0:0"]).unwrap();
        assert_eq!([0, 1, u32::MAX].map(|id| general.apply(id)), [0, 65534, 65534]);
        assert!(IdMap::default().is_empty() && !general.is_empty());
    }

    #[test]
    fn what_is_no_rule_or_contradicts_another_is_refused_by_name() {
        for bad in ["", "1", "a:1", "1:b", "1:-1", "*", "4294967296:0", "1:2:3"] {
            assert!(map(&[bad]).unwrap_err().contains(bad), "{bad}");
        }
        assert!(map(&["1:2", "1:2"]).is_ok());
        assert!(map(&["1:2", "1:3"]).unwrap_err().contains("both 2 and 3"));
        let many: Vec<String> = (0..=RULES_MAX).map(|id| format!("{id}:0")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(map(&many).unwrap_err().contains("1025"));
        for of_nobody in ["0:4294967295", "4294967295:0", "*:4294967295"] {
            assert!(map(&[of_nobody]).unwrap_err().contains("no user and no group"), "{of_nobody}");
        }
        assert!(map(&["4294967294:4294967294"]).is_ok());
    }
}
