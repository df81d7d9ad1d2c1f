//! Which chunks a revision consists of, and in which order a trace reads them: for who reckons with a repository and mounts nothing.

use super::documents::{CatalogIndex, PastRevision};
use super::read::{Catalog, Target};
use super::trace::{RecordedTrace, Replay, TRACE_SMALL_CHUNKS, content_of};
use super::tree::TreeError;
use crate::chunk::{ChunkSource, Piece};
use crate::model::{ChunkRef, Class, ContentId};
use bytes::Bytes;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Catalogs that are asked for together, and their plain bytes.
const BATCH: usize = 64;
const BATCH_BYTES: u64 = 64 << 20;

/// What somebody must fetch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The chunks: documents, catalogs and those of files, each once. Of a trace in the order in which they are read.
    pub chunks: Vec<ChunkRef>,
    /// Names of files that have some of them; of a trace, the files that it reads.
    pub files: u64,
    /// Files of a trace that the revision has not, or not as they were recorded.
    pub left_out: u64,
}

/// Notes chunks that were neither known nor met before.
struct Met<'k> {
    known: &'k HashSet<ContentId>,
    ids: HashSet<ContentId>,
    chunks: Vec<ChunkRef>,
}

impl<'k> Met<'k> {
    fn new(known: &'k HashSet<ContentId>) -> Self {
        Self { known, ids: HashSet::new(), chunks: Vec::new() }
    }

    /// `true` if it is not known.
    fn note(&mut self, chunk: &ChunkRef) -> bool {
        let is_new = !self.known.contains(&chunk.id);
        if is_new && self.ids.insert(chunk.id) {
            self.chunks.push(*chunk);
        }
        is_new
    }
}

fn damaged(what: &str, error: &dyn std::fmt::Display) -> TreeError {
    TreeError::Damaged(format!("{what}: {error}"))
}

async fn whole(source: &dyn ChunkSource, chunks: &[ChunkRef]) -> Result<Vec<Bytes>, TreeError> {
    let pieces = chunks.iter().map(|chunk| Piece::whole(*chunk)).collect();
    let read = source.read(pieces, Class::Fill).await?;
    if read.len() != chunks.len() {
        return Err(damaged("a source", &"it gave other chunks than were asked for"));
    }
    Ok(read)
}

async fn one(source: &dyn ChunkSource, chunk: &ChunkRef) -> Result<Bytes, TreeError> {
    let read = whole(source, std::slice::from_ref(chunk)).await?;
    Ok(read.into_iter().next().unwrap_or_default())
}

async fn index_of(source: &dyn ChunkSource, of: &PastRevision) -> Result<CatalogIndex, TreeError> {
    let bytes = one(source, &of.catalog_index).await?;
    CatalogIndex::from_bytes(&bytes).map_err(|error| damaged("the catalog index", &error))
}

fn placed(index: &CatalogIndex, id: &ContentId) -> Result<ChunkRef, TreeError> {
    index
        .find(id)
        .ok_or_else(|| damaged("the catalog index", &format_args!("it does not place catalog {id}")))
}

/// All that who fills a cache with a revision fetches, as far as it is not among `known`.
///
/// # Errors
/// [`TreeError`] when a document or a catalog cannot be had, or contradicts the format.
pub async fn survey(
    source: &dyn ChunkSource,
    of: &PastRevision,
    known: &HashSet<ContentId>,
) -> Result<Survey, TreeError> {
    let index = index_of(source, of).await?;
    let (mut met, mut files) = (Met::new(known), 0);
    met.note(&of.catalog_index);
    let mut seen = HashSet::from([of.root_catalog.id]);
    let mut level = vec![placed(&index, &of.root_catalog.id)?];
    while !level.is_empty() {
        let mut next = Vec::new();
        let mut rest = &level[..];
        while !rest.is_empty() {
            let mut bytes = 0_u64;
            let fits = |chunk: &&ChunkRef| {
                bytes += u64::from(chunk.plain_len);
                bytes <= BATCH_BYTES
            };
            let count = rest.iter().take(BATCH).take_while(fits).count().max(1);
            let (batch, others) = rest.split_at(count);
            rest = others;
            for (chunk, bytes) in batch.iter().zip(whole(source, batch).await?) {
                let wrong = |error| damaged(&chunk.id.to_string(), &error);
                met.note(chunk);
                let catalog = Catalog::open(&bytes).map_err(wrong)?;
                let file = |chunks: Vec<ChunkRef>| {
                    let new = chunks.iter().filter(|chunk| met.note(chunk)).count();
                    files += u64::from(new > 0);
                };
                catalog.each_chunks(file).map_err(wrong)?;
                for id in catalog.nested().map_err(wrong)? {
                    if seen.insert(id) {
                        next.push(placed(&index, &id)?);
                    }
                }
            }
        }
        level = next;
    }
    Ok(Survey { chunks: met.chunks, files, left_out: 0 })
}

/// What who replays a trace of the revision fetches, from the opening of the tree on, as far as it is not among `known`. `None` when
/// no trace of this name was published with it.
///
/// # Errors
/// [`TreeError`] when a document cannot be had, or contradicts the format.
pub async fn survey_published(
    source: &dyn ChunkSource,
    of: &PastRevision,
    known: &HashSet<ContentId>,
    name: &str,
) -> Result<Option<Survey>, TreeError> {
    let index = index_of(source, of).await?;
    let Some(trace) = index.traces().iter().find(|trace| trace.name == name) else { return Ok(None) };
    let wrong = |error| damaged(name, &error);
    let recorded = RecordedTrace::from_bytes(&one(source, &trace.recorded).await?).map_err(wrong)?;
    let replay = Replay::from_bytes(&one(source, &trace.replay).await?).map_err(wrong)?;
    let mut met = Met::new(known);
    for chunk in
        [of.catalog_index, placed(&index, &of.root_catalog.id)?, trace.replay].iter().chain(replay.chunks())
    {
        met.note(chunk);
    }
    Ok(Some(Survey { chunks: met.chunks, files: recorded.files.len() as u64, left_out: 0 }))
}

/// What who reads as a trace was recorded fetches of the revision, from the opening of the tree on, as far as it is not among `known`.
/// Files that changed count as they would if the trace were published with the revision.
///
/// # Errors
/// [`TreeError`] when a document or a catalog cannot be had, or contradicts the format.
pub async fn survey_recorded(
    source: &dyn ChunkSource,
    of: &PastRevision,
    known: &HashSet<ContentId>,
    trace: &RecordedTrace,
) -> Result<Survey, TreeError> {
    let index = index_of(source, of).await?;
    let mut met = Met::new(known);
    met.note(&of.catalog_index);
    let mut walk = Walk { source, index, met, catalogs: HashMap::new(), directories: HashMap::new() };
    // By file of the trace: its chunks, and whether they are those that were recorded. Looked for when it is first read.
    let mut files: HashMap<u32, Option<(Vec<ChunkRef>, bool)>> = HashMap::new();
    let mut survey = Survey::default();
    for read in &trace.reads {
        if let Entry::Vacant(entry) = files.entry(read.file) {
            let traced = &trace.files[read.file as usize];
            let chunks = walk.find(of.root_catalog.id, &traced.path).await?;
            let found = chunks.and_then(|chunks| {
                let is_same = content_of(chunks.iter().map(|chunk| &chunk.id)) == traced.content;
                (is_same || chunks.len() <= TRACE_SMALL_CHUNKS).then_some((chunks, is_same))
            });
            if found.is_some() {
                survey.files += 1;
            } else {
                survey.left_out += 1;
            }
            entry.insert(found);
        }
        let Some(Some((chunks, is_same))) = files.get(&read.file) else { continue };
        let (first, count) = (read.first as usize, read.count as usize);
        let range =
            if *is_same { first..first.saturating_add(count).min(chunks.len()) } else { 0..chunks.len() };
        for chunk in chunks.get(range).unwrap_or_default() {
            walk.met.note(chunk);
        }
    }
    survey.chunks = walk.met.chunks;
    Ok(survey)
}

/// The entries of a directory.
type Entries = Arc<HashMap<Box<[u8]>, Target>>;

/// Looks paths up, with the catalogs that it meets on the way.
struct Walk<'a> {
    source: &'a dyn ChunkSource,
    index: CatalogIndex,
    met: Met<'a>,
    catalogs: HashMap<ContentId, Arc<Catalog>>,
    directories: HashMap<(ContentId, u32), Entries>,
}

impl Walk<'_> {
    async fn catalog(&mut self, id: ContentId) -> Result<Arc<Catalog>, TreeError> {
        if let Some(catalog) = self.catalogs.get(&id) {
            return Ok(Arc::clone(catalog));
        }
        let chunk = placed(&self.index, &id)?;
        self.met.note(&chunk);
        let bytes = one(self.source, &chunk).await?;
        let catalog = Arc::new(Catalog::open(&bytes).map_err(|error| damaged(&id.to_string(), &error))?);
        self.catalogs.insert(id, Arc::clone(&catalog));
        Ok(catalog)
    }

    async fn entries(&mut self, id: ContentId, directory: u32) -> Result<Entries, TreeError> {
        let catalog = self.catalog(id).await?;
        if let Some(entries) = self.directories.get(&(id, directory)) {
            return Ok(Arc::clone(entries));
        }
        let rows = catalog.list(directory).map_err(|error| damaged(&id.to_string(), &error))?;
        let entries: Entries =
            Arc::new(rows.into_iter().map(|row| (row.name[..].into(), row.target)).collect());
        self.directories.insert((id, directory), Arc::clone(&entries));
        Ok(entries)
    }

    /// The chunks of the file at a path, if there is one.
    async fn find(&mut self, root: ContentId, path: &[u8]) -> Result<Option<Vec<ChunkRef>>, TreeError> {
        let (mut id, mut directory) = (root, Catalog::TOP);
        let mut names = path.split(|byte| *byte == b'/').peekable();
        while let Some(name) = names.next() {
            match self.entries(id, directory).await?.get(name) {
                Some(Target::Directory(number)) => directory = *number,
                Some(Target::Nested(nested)) => (id, directory) = (*nested, Catalog::TOP),
                Some(Target::File) if names.peek().is_none() => {
                    let catalog = self.catalog(id).await?;
                    let chunks = catalog.chunks(directory, name);
                    return chunks.map(Some).map_err(|error| damaged(&id.to_string(), &error));
                }
                _ => return Ok(None),
            }
        }
        Ok(None)
    }
}
