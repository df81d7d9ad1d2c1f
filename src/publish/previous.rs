//! The revision that is there already: which chunks need not be stored, which files need not be read.

use super::PublishError;
use super::table::ChunkTable;
use crate::catalog::{Attributes, Catalog, CatalogIndex, History, Row, Target};
use crate::model::{ChunkRef, ContentId};
use crate::store::{ObjectStore, read_chunk};
use crate::trust::VerifiedRoot;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Catalogs that stay opened between the two passes over them, in bytes. Beyond that they are read twice.
const KEPT_BYTES: usize = 256 << 20;

/// The previous revision, opened.
pub(super) struct Previous {
    objects: Arc<dyn ObjectStore>,
    pub(super) root: VerifiedRoot,
    pub(super) history: History,
    pub(super) index: CatalogIndex,
    kept: HashMap<ContentId, Arc<Catalog>>,
    /// Lengths of the segments that were asked for; 0 for one that is missing.
    segments: HashMap<ContentId, u64>,
}

/// A directory of the previous revision.
#[derive(Clone)]
pub(super) struct PastDirectory {
    catalog: Arc<Catalog>,
    number: u32,
}

/// The entries of a directory of the previous revision, by name.
#[derive(Default)]
pub(super) struct PastEntries {
    rows: BTreeMap<Arc<[u8]>, Row>,
    directory: Option<PastDirectory>,
}

impl Previous {
    /// Opens the revision of a verified root.
    pub(super) fn open(objects: Arc<dyn ObjectStore>, root: VerifiedRoot) -> Result<Self, PublishError> {
        let history = History::from_bytes(&read_chunk(&*objects, &root.root().history)?)?;
        let index = CatalogIndex::from_bytes(&read_chunk(&*objects, &root.root().catalog_index)?)?;
        Ok(Self { objects, root, history, index, kept: HashMap::new(), segments: HashMap::new() })
    }

    /// Enters into `table` every chunk of every file that is still there, and returns the catalogs that are.
    ///
    /// A chunk whose segment is missing or too short is left out, so that it is stored again.
    pub(super) fn know(
        &mut self,
        table: &mut ChunkTable,
    ) -> Result<HashMap<ContentId, ChunkRef>, PublishError> {
        let mut catalogs = HashMap::new();
        let mut kept_bytes = 0;
        for chunk in self.index.catalogs().to_vec() {
            let catalog = self.catalog(&chunk.id)?;
            let mut chunks = Vec::new();
            catalog.each_chunks(|found| chunks.extend(found))?;
            for chunk in &chunks {
                if self.is_there(chunk)? {
                    table.know(chunk);
                }
            }
            if self.is_there(&chunk)? {
                catalogs.insert(chunk.id, chunk);
            }
            kept_bytes += catalog.bytes();
            if kept_bytes <= KEPT_BYTES {
                self.kept.insert(chunk.id, catalog);
            }
        }
        Ok(catalogs)
    }

    fn is_there(&mut self, chunk: &ChunkRef) -> Result<bool, PublishError> {
        let segment = chunk.place.segment;
        let length = match self.segments.get(&segment) {
            Some(length) => *length,
            None => {
                let length = self.objects.length(&segment)?.unwrap_or(0);
                if length == 0 {
                    tracing::warn!(%segment, "a segment of the previous revision is missing; what it held is stored again");
                }
                self.segments.insert(segment, length);
                length
            }
        };
        Ok(chunk.place.end().is_some_and(|end| end <= length))
    }

    fn catalog(&self, id: &ContentId) -> Result<Arc<Catalog>, PublishError> {
        if let Some(catalog) = self.kept.get(id) {
            return Ok(Arc::clone(catalog));
        }
        let chunk = self.index.find(id).ok_or(crate::store::ObjectError::Missing(*id))?;
        Ok(Arc::new(Catalog::open(&read_chunk(&*self.objects, &chunk)?)?))
    }

    /// The root directory.
    pub(super) fn top(&self) -> Result<PastDirectory, PublishError> {
        let catalog = self.catalog(&self.root.root().root_catalog.id)?;
        Ok(PastDirectory { catalog, number: Catalog::TOP })
    }

    /// The entries of a directory.
    pub(super) fn entries(&self, directory: &PastDirectory) -> Result<PastEntries, PublishError> {
        let rows = directory.catalog.list(directory.number)?;
        let rows = rows.into_iter().map(|row| (Arc::clone(&row.name), row)).collect();
        Ok(PastEntries { rows, directory: Some(directory.clone()) })
    }

    /// The subdirectory `name`, if there was one.
    pub(super) fn subdirectory(
        &self,
        entries: &PastEntries,
        name: &[u8],
    ) -> Result<Option<PastDirectory>, PublishError> {
        let (Some(row), Some(directory)) = (entries.rows.get(name), &entries.directory) else {
            return Ok(None);
        };
        Ok(match row.target {
            Target::Directory(number) => {
                Some(PastDirectory { catalog: Arc::clone(&directory.catalog), number })
            }
            Target::Nested(id) => Some(PastDirectory { catalog: self.catalog(&id)?, number: Catalog::TOP }),
            Target::File | Target::Symlink => None,
        })
    }
}

impl PastEntries {
    /// The chunks of the file `name`, if there was one that `is_same` accepts.
    pub(super) fn chunks(
        &self,
        name: &[u8],
        is_same: impl FnOnce(&Attributes) -> bool,
    ) -> Result<Option<Vec<ChunkRef>>, PublishError> {
        let row = self.rows.get(name).filter(|row| row.target == Target::File && is_same(&row.attributes));
        let (Some(_), Some(directory)) = (row, &self.directory) else { return Ok(None) };
        Ok(Some(directory.catalog.chunks(directory.number, name)?))
    }
}
