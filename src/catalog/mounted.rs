//! The tree of one revision, walked over a source of chunks.

use super::read::{Catalog, no_top};
use super::resident::{Entry, Resident};
use super::row::{Asked, Xattrs};
use super::shelf::{CatalogBudget, Shelf};
use super::{
    Attributes, CatalogIndex, DirectoryEntry, FileKind, Inode, PastRevision, PublishedTrace, Tree, TreeError,
    TreeName,
};
use crate::chunk::{ChunkSource, Piece, SourceError};
use crate::model::{ChunkRef, Class, ContentId};
use crate::trust::Root;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Catalogs that [`Tree::locate`] asks for at once (guess: a round trip for many, and little memory).
const LOCATE_AT_ONCE: usize = 16;

/// The port [`Tree`] over the catalogs that a root names.
///
/// The catalog index and the root catalog are loaded when it is opened, nested catalogs when they are first
/// entered. Catalogs stay in memory within a budget, which trees may share, and are asked of the source again after that. Of each
/// entry of a catalog that was ever loaded, its inode number and a place in a table stay, 14 to 20 bytes; nothing is
/// remembered of what was handed out.
pub struct MountedTree {
    shelf: Arc<Shelf>,
    totals: (u64, u64),
    name: Option<TreeName>,
}

/// What a [`MountedTree`] takes in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeMemory {
    /// Catalogs that are in memory.
    pub catalogs: usize,
    /// Their bytes, which the budget bounds.
    pub catalog_bytes: usize,
    /// Inodes of all catalogs that were ever loaded.
    pub inodes: usize,
    /// Bytes of the table that finds them.
    pub inode_bytes: usize,
}

impl std::fmt::Debug for MountedTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MountedTree").field("totals", &self.totals).finish_non_exhaustive()
    }
}

/// A row, and the catalog that holds it.
struct Place {
    number: u32,
    catalog: Arc<Resident>,
    row: u32,
}

fn damaged(inode: Inode, detail: &str) -> TreeError {
    TreeError::Damaged(format!("inode {}: {detail}", inode.0))
}

fn unplaced(inode: Inode) -> TreeError {
    damaged(inode, "the catalog index does not place a catalog that is named there")
}

impl MountedTree {
    /// A budget for catalogs in memory that suits most trees, in bytes: some 1.3 million entries (guess).
    pub const BUDGET_BYTES: usize = 128 << 20;

    /// Opens the tree of `root`, a root that was verified. `budget_bytes` bounds the catalogs in memory, of this tree alone.
    ///
    /// # Errors
    /// [`TreeError`] when the catalog index or the root catalog cannot be had or contradict the format.
    pub async fn open(
        source: Arc<dyn ChunkSource>,
        root: &Root,
        budget_bytes: usize,
    ) -> Result<Self, TreeError> {
        let totals = (root.inodes, root.plain_bytes);
        let budget = CatalogBudget::new(budget_bytes);
        Self::load(source, root.catalog_index, root.root_catalog, totals, &budget).await
    }

    /// Opens the tree of a revision that a verified root names or that its history remembers.
    ///
    /// # Errors
    /// As [`MountedTree::open`].
    pub async fn open_revision(
        source: Arc<dyn ChunkSource>,
        of: &PastRevision,
        budget: &Arc<CatalogBudget>,
    ) -> Result<Self, TreeError> {
        let totals = (of.inodes, of.plain_bytes);
        let tree = Self::load(source, of.catalog_index, of.root_catalog, totals, budget).await?;
        Ok(Self { name: Some(TreeName { revision: of.revision, root: of.root }), ..tree })
    }

    async fn load(
        source: Arc<dyn ChunkSource>,
        index: ChunkRef,
        root_catalog: ChunkRef,
        totals: (u64, u64),
        budget: &Arc<CatalogBudget>,
    ) -> Result<Self, TreeError> {
        // Both at once: that of the root is read out of the store then.
        let both = [index, root_catalog].map(Piece::whole).to_vec();
        let pieces = source.read(both, Class::Read).await?;
        let index = CatalogIndex::from_bytes(pieces.first().map_or(&[][..], |bytes| bytes))
            .map_err(|error| TreeError::Damaged(error.to_string()))?;
        drop(pieces);
        let shelf = Shelf::new(source, index, root_catalog, budget);
        let catalog = shelf.get(shelf.top()).await?;
        let has_top = catalog.find(0, b"").map(|row| catalog.entry(row));
        if has_top != Some(Entry::Directory(Catalog::TOP)) {
            return Err(TreeError::Damaged(format!("{}: {}", root_catalog.id, no_top())));
        }
        Ok(Self { shelf, totals, name: None })
    }

    /// The names on the way from the root to an inode.
    async fn path_of(&self, inode: Inode) -> Result<Vec<u8>, TreeError> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut place = self.place(inode).await?;
        loop {
            let number = place.catalog.directory_of(place.row);
            if number == 0 {
                break;
            }
            names.push(place.catalog.name(place.row).to_vec());
            if number == Catalog::TOP && place.number != self.shelf.top() {
                let directory = self.shelf.directory(place.number);
                place = self.place(directory.ok_or(TreeError::UnknownInode(inode))?).await?;
            } else if let Some(row) = place.catalog.named_by(number) {
                place.row = row;
            } else {
                return Err(damaged(inode, "no directory has the number of the one that it lies in"));
            }
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    /// What it takes in memory now.
    pub fn memory(&self) -> TreeMemory {
        let [catalogs, catalog_bytes, inodes, inode_bytes] = self.shelf.memory();
        TreeMemory { catalogs, catalog_bytes, inodes, inode_bytes }
    }

    async fn place(&self, inode: Inode) -> Result<Place, TreeError> {
        let location = self.shelf.locate(inode).ok_or(TreeError::UnknownInode(inode))?;
        let catalog = self.shelf.get(location.catalog).await?;
        Ok(Place { number: location.catalog, catalog, row: location.row })
    }

    /// The catalog that holds the entries of a directory, and the directory's number there.
    async fn directory(&self, inode: Inode) -> Result<(Arc<Resident>, u32), TreeError> {
        let place = self.place(inode).await?;
        match place.catalog.entry(place.row) {
            Entry::Leaf => Err(TreeError::NotADirectory(inode)),
            Entry::Directory(number) => Ok((place.catalog, number)),
            Entry::Nested(Some(nested)) => Ok((self.shelf.get(nested).await?, Catalog::TOP)),
            Entry::Nested(None) => Err(unplaced(inode)),
        }
    }

    async fn find(&self, directory: Inode, name: &[u8]) -> Result<Option<Attributes>, TreeError> {
        let (catalog, number) = self.directory(directory).await?;
        let Some(row) = catalog.find(number, name) else { return Ok(None) };
        let attributes = catalog.attributes(row);
        if attributes.kind == FileKind::Directory && catalog.entry(row) == Entry::Nested(None) {
            return Err(unplaced(attributes.inode));
        }
        Ok(Some(attributes))
    }

    async fn entries(&self, directory: Inode) -> Result<Arc<[DirectoryEntry]>, TreeError> {
        let (catalog, number) = self.directory(directory).await?;
        let rows = catalog.list(number);
        if catalog.lacks_nested(&rows) {
            return Err(unplaced(directory));
        }
        let entry =
            |row| DirectoryEntry { name: catalog.name(row).into(), attributes: catalog.attributes(row) };
        Ok(rows.map(entry).collect())
    }

    async fn parent_of(&self, directory: Inode) -> Result<Inode, TreeError> {
        let place = self.place(directory).await?;
        if place.catalog.entry(place.row) == Entry::Leaf {
            return Err(TreeError::NotADirectory(directory));
        }
        let parent = match place.catalog.directory_of(place.row) {
            // The root of the tree is its own parent.
            0 => Some(Inode::ROOT),
            Catalog::TOP if place.number == self.shelf.top() => Some(Inode::ROOT),
            Catalog::TOP => self.shelf.directory(place.number),
            number => place.catalog.named_by(number).map(|row| place.catalog.inodes()[row as usize]),
        };
        parent.ok_or_else(|| damaged(directory, "no directory has the number of the one that it lies in"))
    }

    /// Loads catalogs from the root downwards until one has the inode: first those that are here, then, unless `only_here`, the
    /// others.
    async fn search(&self, inode: Inode, only_here: bool) -> Result<Option<Attributes>, TreeError> {
        let mut failed = HashSet::new();
        let mut failure = None;
        loop {
            match self.place(inode).await {
                Ok(place) => return Ok(Some(place.catalog.attributes(place.row))),
                Err(TreeError::UnknownInode(_)) => {}
                Err(error) => return Err(error),
            }
            let is_out = |number| failed.contains(&number);
            let mut next = self
                .shelf
                .never_loaded(LOCATE_AT_ONCE, |number| is_out(number) || !self.shelf.is_here(number));
            if next.is_empty() && !only_here {
                next = self.shelf.never_loaded(LOCATE_AT_ONCE, is_out);
            }
            if next.is_empty() {
                return failure.map_or(Ok(None), Err);
            }
            let load = async |number| (number, self.shelf.get(number).await);
            let mut loading: FuturesUnordered<_> = next.into_iter().map(load).collect();
            while let Some((number, outcome)) = loading.next().await {
                if let Err(error) = outcome {
                    failed.insert(number);
                    failure.get_or_insert(error);
                }
                // The others may take long.
                if self.shelf.locate(inode).is_some() {
                    break;
                }
            }
        }
    }
}

impl Tree for MountedTree {
    fn lookup<'a>(
        &'a self,
        directory: Inode,
        name: &'a [u8],
    ) -> BoxFuture<'a, Result<Option<Attributes>, TreeError>> {
        Box::pin(self.find(directory, name))
    }

    fn list(&self, directory: Inode) -> BoxFuture<'_, Result<Arc<[DirectoryEntry]>, TreeError>> {
        Box::pin(self.entries(directory))
    }

    fn is_here(&self, directory: Inode) -> bool {
        let Some(location) = self.shelf.locate(directory) else { return false };
        // One that was just taken down was here.
        let Some(catalog) = self.shelf.here(location.catalog) else { return true };
        match catalog.entry(location.row) {
            Entry::Nested(Some(nested)) => self.shelf.is_here(nested),
            Entry::Nested(None) => false,
            Entry::Directory(_) | Entry::Leaf => true,
        }
    }

    fn attributes(&self, inode: Inode) -> BoxFuture<'_, Result<Attributes, TreeError>> {
        Box::pin(async move {
            let place = self.place(inode).await?;
            Ok(place.catalog.attributes(place.row))
        })
    }

    fn parent(&self, directory: Inode) -> BoxFuture<'_, Result<Inode, TreeError>> {
        Box::pin(self.parent_of(directory))
    }

    fn link_target(&self, inode: Inode) -> BoxFuture<'_, Result<Arc<[u8]>, TreeError>> {
        Box::pin(async move {
            let place = self.place(inode).await?;
            place.catalog.link_target(place.row).map(Arc::from).ok_or(TreeError::WrongKind(inode))
        })
    }

    fn extended_attributes(&self, inode: Inode) -> BoxFuture<'_, Result<Xattrs, TreeError>> {
        Box::pin(async move {
            let place = self.place(inode).await?;
            place.catalog.xattrs(place.row).map_err(|detail| damaged(inode, &detail))
        })
    }

    fn may_have_attribute(&self, name: &[u8]) -> bool {
        Asked::of(name).is_none_or(|asked| asked.0 & self.shelf.asked().0 != 0)
    }

    fn chunks(&self, file: Inode) -> BoxFuture<'_, Result<Arc<[ChunkRef]>, TreeError>> {
        Box::pin(async move {
            let place = self.place(file).await?;
            let chunks = place.catalog.chunks(place.row).ok_or(TreeError::WrongKind(file))?;
            Ok(chunks.map_err(|detail| damaged(file, &detail))?.into())
        })
    }

    fn path(&self, inode: Inode) -> BoxFuture<'_, Result<Vec<u8>, TreeError>> {
        Box::pin(self.path_of(inode))
    }

    fn laid_in(
        &self,
        file: Inode,
        segment: &ContentId,
        bytes: &Range<u64>,
        most_bytes: u64,
    ) -> Vec<ChunkRef> {
        let location = self.shelf.locate(file);
        let catalog = location.and_then(|location| self.shelf.here(location.catalog));
        catalog.map_or_else(Vec::new, |catalog| catalog.laid_in(segment, bytes, most_bytes))
    }

    fn traces(&self) -> &[PublishedTrace] {
        self.shelf.traces()
    }

    fn locate(
        &self,
        inode: Inode,
        patience: Duration,
    ) -> BoxFuture<'_, Result<Option<Attributes>, TreeError>> {
        Box::pin(async move {
            if patience.is_zero() {
                return self.search(inode, true).await;
            }
            let searched = tokio::time::timeout(patience, self.search(inode, false)).await;
            searched.unwrap_or_else(|_| {
                let missing = self.shelf.never_loaded(1, |_| false);
                let chunk = self.shelf.chunk(missing.first().copied().unwrap_or(self.shelf.top()));
                let waited_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
                let detail = format!("catalogs were being searched for inode {}", inode.0);
                Err(TreeError::Source(SourceError::TimedOut { chunk, waited_ms, detail }))
            })
        })
    }

    fn totals(&self) -> (u64, u64) {
        self.totals
    }

    fn name(&self) -> Option<TreeName> {
        self.name
    }
}
