//! Reads and verifies everything that a root names.

use crate::catalog::{Catalog, CatalogError, CatalogIndex, DocumentError, History, RecordedTrace, Replay};
use crate::chunk::{SegmentError, SegmentIndex};
use crate::model::{ChunkRef, ContentId, RepositoryName, Revision, UnixTime};
use crate::store::{DirectoryObjects, ObjectError, ObjectStore, ReadChunkError, read_chunk};
use crate::trust::{Fingerprint, SignedRoot, Standing, TrustError};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// What is wrong with a repository: the first fault found.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The root is refused.
    #[error("the root: {0}")]
    Root(#[from] TrustError),
    /// A chunk is missing or damaged.
    #[error("chunk {id} in segment {segment}: {source}")]
    Chunk {
        /// The chunk.
        id: ContentId,
        /// Where it should lie.
        segment: ContentId,
        /// What is wrong.
        source: Box<ReadChunkError>,
    },
    /// A segment is missing or cannot be read.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A segment is damaged.
    #[error("segment {id}: {source}")]
    Segment {
        /// The segment.
        id: ContentId,
        /// What is wrong.
        source: SegmentError,
    },
    /// A chunk's place is not the one that its segment's own index states.
    #[error("chunk {0:?} does not lie where it is said to")]
    Place(ChunkRef),
    /// A catalog contradicts the format.
    #[error("catalog {id}: {source}")]
    Catalog {
        /// The catalog.
        id: ContentId,
        /// What is wrong.
        source: CatalogError,
    },
    /// A catalog is named but not placed by the catalog index.
    #[error("the catalog index does not place catalog {0}")]
    Unplaced(ContentId),
    /// The catalog index, the history or a trace contradicts the format.
    #[error(transparent)]
    Document(#[from] DocumentError),
}

/// What was found in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The root's revision.
    pub revision: Revision,
    /// Whether the root has expired.
    pub standing: Standing,
    /// Catalogs.
    pub catalogs: u64,
    /// Distinct chunks of files.
    pub chunks: u64,
    /// Plain bytes of these.
    pub plain_bytes: u64,
    /// Segments that they, the catalogs and the documents lie in.
    pub segments: u64,
    /// Bytes of these.
    pub stored_bytes: u64,
}

/// Verifies that the document `root` is a good root of the repository `name` below `stratum`, and that everything
/// it names is there and whole: documents, catalogs, segments, and every chunk of every file.
///
/// # Errors
/// [`CheckError`] with the first fault.
pub fn repository(
    stratum: &Path,
    name: &RepositoryName,
    fingerprint: &Fingerprint,
    now: UnixTime,
    root: &[u8],
) -> Result<Summary, CheckError> {
    objects(&DirectoryObjects::new(stratum, name), name, fingerprint, now, root)
}

/// As [`repository`], wherever the objects lie.
///
/// # Errors
/// [`CheckError`] with the first fault.
pub fn objects(
    objects: &dyn ObjectStore,
    name: &RepositoryName,
    fingerprint: &Fingerprint,
    now: UnixTime,
    root: &[u8],
) -> Result<Summary, CheckError> {
    let root = SignedRoot::verify(root, name, fingerprint, now)?;
    let document = |chunk: &ChunkRef| read(objects, chunk);
    History::from_bytes(&document(&root.root().history)?)?;
    let index = CatalogIndex::from_bytes(&document(&root.root().catalog_index)?)?;

    // All chunks of the revision, by segment: each segment is read once.
    let mut by_segment: BTreeMap<ContentId, HashSet<ChunkRef>> = BTreeMap::new();
    let mut name_chunk = |chunk: ChunkRef| by_segment.entry(chunk.place.segment).or_default().insert(chunk);
    name_chunk(root.root().history);
    name_chunk(root.root().catalog_index);
    for trace in index.traces() {
        name_chunk(trace.recorded);
        name_chunk(trace.replay);
        RecordedTrace::from_bytes(&document(&trace.recorded)?)?;
        let replay = Replay::from_bytes(&document(&trace.replay)?)?;
        for chunk in replay.chunks() {
            name_chunk(*chunk);
        }
    }
    let (mut open, mut seen) = (vec![root.root().root_catalog.id], HashSet::new());
    let mut files = HashSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let chunk = index.find(&id).ok_or(CheckError::Unplaced(id))?;
        name_chunk(chunk);
        let damaged = |source| CheckError::Catalog { id, source };
        let catalog = Catalog::open(&read(objects, &chunk)?).map_err(damaged)?;
        if id == root.root().root_catalog.id {
            catalog.top().map_err(damaged)?;
        }
        let rows = |chunks: Vec<ChunkRef>| {
            for chunk in chunks {
                name_chunk(chunk);
                files.insert((chunk.id, chunk.plain_len));
            }
        };
        catalog.each_chunks(rows).map_err(damaged)?;
        // What a mount would refuse does not pass either.
        catalog.check_rows().map_err(damaged)?;
        open.extend(catalog.nested().map_err(damaged)?);
    }
    let mut stored_bytes = 0;
    for (segment, chunks) in &by_segment {
        stored_bytes += check_segment(objects, segment, chunks)?;
    }
    Ok(Summary {
        revision: root.root().revision,
        standing: root.standing(),
        catalogs: seen.len() as u64,
        chunks: files.len() as u64,
        plain_bytes: files.iter().map(|(_, plain_len)| u64::from(*plain_len)).sum(),
        segments: by_segment.len() as u64,
        stored_bytes,
    })
}

fn read(objects: &dyn ObjectStore, chunk: &ChunkRef) -> Result<bytes::Bytes, CheckError> {
    let wrong =
        |error| CheckError::Chunk { id: chunk.id, segment: chunk.place.segment, source: Box::new(error) };
    read_chunk(objects, chunk).map_err(wrong)
}

/// Verifies a segment, all its frames, and that `chunks` lie in it where they are said to. Returns its length.
fn check_segment(
    objects: &dyn ObjectStore,
    segment: &ContentId,
    chunks: &HashSet<ChunkRef>,
) -> Result<u64, CheckError> {
    let bytes = objects.length(segment)?.ok_or(ObjectError::Missing(*segment))?;
    let wrong = |source| CheckError::Segment { id: *segment, source };
    let len = u32::try_from(bytes).map_err(|_| wrong(SegmentError::NotASegment { bytes }))?;
    let index = SegmentIndex::check(&objects.read(segment, 0, len)?, segment).map_err(wrong)?;
    for chunk in chunks {
        let is_there = index.entries.get(chunk.place.ordinal as usize).is_some_and(|entry| {
            let place = &chunk.place;
            (entry.id, entry.plain_len, entry.offset, entry.stored_len)
                == (chunk.id, chunk.plain_len, place.offset, place.stored_len)
        });
        if !is_there {
            return Err(CheckError::Place(*chunk));
        }
    }
    Ok(bytes)
}
