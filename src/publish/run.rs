//! One publishing from end to end, in the write order.

use super::PublishError;
use super::assemble::{Assembler, divide};
use super::inodes::number;
use super::pack::{Packed, Packer};
use super::previous::Previous;
use super::scan::{ScannedTree, Scanner};
use super::table::ChunkTable;
use super::traces::{self, TraceSummary};
use crate::catalog::{CatalogIndex, History, PastRevision, RecordedTrace};
use crate::chunk::{Chunking, Segment, SegmentBuilder, encode};
use crate::model::{ChunkRef, ContentId, RepositoryName, Revision, UnixTime};
use crate::store::ObjectStore;
use crate::trust::{Keys, Root, SignedRoot, VerifiedRoot};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long a root is fresh (guess: a quarter; a publisher that publishes more rarely signs anew in between).
const ROOT_SPAN: Duration = Duration::from_secs(90 * 86_400);

/// What to publish and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory whose content becomes the revision.
    pub tree: PathBuf,
    /// zstd level, 1 to [`crate::chunk::MAX_LEVEL`].
    pub level: i32,
    /// How new files are cut.
    pub chunking: Chunking,
    /// Read files even when size and modification time are those of the previous revision.
    pub checksum: bool,
    /// Make a revision even when nothing changed.
    pub force: bool,
    /// Name the revision.
    pub tag: Option<String>,
    /// Traces to be published with it, in place of those of the same name.
    pub traces: Vec<RecordedTrace>,
    /// Publish the traces of the previous revision again, as far as they still hold.
    pub keep_traces: bool,
}

/// How far scanning has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Files.
    pub files: u64,
    /// Their plain bytes.
    pub bytes: u64,
}

/// What a publishing did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The root that is there now.
    pub root: VerifiedRoot,
    /// Whether it names a new revision.
    pub is_new_revision: bool,
    /// Whether the old revision was only signed anew, because its expiry came near.
    pub is_signed_anew: bool,
    /// Regular files in the tree, by name.
    pub files: u64,
    /// Their plain bytes, hard-linked ones counted once.
    pub bytes: u64,
    /// Sockets, devices and pipes that were left out.
    pub skipped: u64,
    /// Chunks of files that were not known.
    pub new_chunks: u64,
    /// Bytes of the segments that were stored.
    pub new_stored_bytes: u64,
    /// Segments that were stored.
    pub segments: u64,
    /// The traces that were published with it.
    pub traces: Vec<TraceSummary>,
}

/// Publishes a tree as the next revision of a repository.
///
/// The caller holds the publisher's lock of `objects`. Any error leaves the old root in place, and so does being killed.
///
/// # Errors
/// [`PublishError`].
pub fn publish(
    objects: &Arc<dyn ObjectStore>,
    repository: &RepositoryName,
    keys: &Keys,
    options: &Options,
    now: UnixTime,
    progress: &mut dyn FnMut(Progress),
) -> Result<Outcome, PublishError> {
    options
        .chunking
        .check()
        .map_err(|error| PublishError::Root(crate::trust::TrustError::Nonsense(error.to_string())))?;
    let mut previous = match objects.root()? {
        None => None,
        Some(bytes) => {
            let root = SignedRoot::verify(&bytes, repository, &keys.fingerprint(), now)?;
            Some(Previous::open(Arc::clone(objects), root)?)
        }
    };
    let mut table = ChunkTable::default();
    let known = match &mut previous {
        None => HashMap::new(),
        Some(previous) => previous.know(&mut table)?,
    };

    // Segments with new chunks.
    let mut packer = Packer::start(Arc::clone(objects), options.level)?;
    let scanner = Scanner::new(
        &mut table,
        &mut packer,
        previous.as_ref(),
        &options.chunking,
        options.checksum,
        progress,
    );
    let scanned = scanner.scan(options.tree.clone());
    let packed = packer.finish();
    // What storing failed with comes first: scanning may have failed in its wake.
    let content = packed?;
    let mut tree = scanned?;
    for chunk in &content.chunks {
        if let Some(number) = table.find(&chunk.id) {
            table.place(number, chunk.place);
        }
    }

    // Segments with chunks that traces want together.
    let recorded = traces::gather(&**objects, previous.as_ref(), &options.traces, options.keep_traces)?;
    let traced: Vec<_> = recorded.into_iter().map(|trace| traces::resolve(&tree, &table, trace)).collect();
    let laid = traces::lay_together(objects, &mut table, &traced, options.level)?;

    // Segments with new catalogs.
    let inodes = number(&mut tree, &table);
    let (catalogs, new_catalogs) = store_catalogs(objects, &tree, &table, &known, options.level)?;
    let drafts = traces::draft(&tree, &table, &traced, &catalogs.of, &catalogs.index);

    let unchanged = previous.as_ref().filter(|previous| {
        previous.root.root().root_catalog.id == catalogs.root.id
            && content.chunks.is_empty()
            && new_catalogs.chunks.is_empty()
            && traces::are_same(&drafts, previous.index.traces())
            && options.tag.is_none()
            && !options.force
    });
    if let Some(previous) = unchanged {
        return leave(&**objects, keys, &previous.root, now, &tree);
    }

    // The segments with traces, and with index and history, then the root.
    let revision = Revision(previous.as_ref().map_or(1, |previous| previous.root.root().revision.0 + 1));
    let history = history(previous.as_ref(), revision, options.tag.as_deref())?;
    let (traces, stored_traces) = traces::store(&**objects, &drafts, options.level)?;
    let segments =
        content.segments + laid.segments + new_catalogs.segments + u64::from(stored_traces > 0) + 1;
    let index = catalogs.index.with_traces(traces);
    let documents = store_documents(&**objects, &index, &history, options.level)?;
    let [catalog_index, history] = [documents.chunks[0], documents.chunks[1]];
    let root = Root {
        repository: repository.clone(),
        revision,
        signings: 0,
        root_catalog: catalogs.root,
        catalog_index,
        history,
        previous: previous.as_ref().map(|previous| previous.root.id()),
        inodes,
        plain_bytes: tree.bytes,
        chunking: options.chunking,
        issued: now,
        expires: now.after(ROOT_SPAN),
    };
    let root = replace_root(&**objects, keys, &root, now)?;
    let stored = content.stored_bytes + laid.stored_bytes + new_catalogs.stored_bytes + stored_traces;
    let stored = stored + documents.bytes.len() as u64;
    Ok(Outcome {
        is_new_revision: true,
        new_stored_bytes: stored,
        segments,
        traces: drafts.into_iter().map(|draft| draft.summary).collect(),
        ..outcome(root, &tree)
    })
}

fn outcome(root: VerifiedRoot, tree: &ScannedTree) -> Outcome {
    Outcome {
        root,
        is_new_revision: false,
        is_signed_anew: false,
        files: tree.files,
        bytes: tree.bytes,
        skipped: tree.skipped,
        new_chunks: tree.new_chunks,
        new_stored_bytes: 0,
        segments: 0,
        traces: Vec::new(),
    }
}

/// Nothing changed: the root stays, or is signed anew when half its time is over.
fn leave(
    objects: &dyn ObjectStore,
    keys: &Keys,
    old: &VerifiedRoot,
    now: UnixTime,
    tree: &ScannedTree,
) -> Result<Outcome, PublishError> {
    if old.root().expires > now.after(ROOT_SPAN / 2) {
        return Ok(outcome(old.clone(), tree));
    }
    let signings = old.root().signings.saturating_add(1);
    let root = Root { signings, issued: now, expires: now.after(ROOT_SPAN), ..old.root().clone() };
    let root = replace_root(objects, keys, &root, now)?;
    Ok(Outcome { is_signed_anew: true, ..outcome(root, tree) })
}

fn replace_root(
    objects: &dyn ObjectStore,
    keys: &Keys,
    root: &Root,
    now: UnixTime,
) -> Result<VerifiedRoot, PublishError> {
    let bytes = SignedRoot::sign(root, keys)?;
    // What a reader would refuse is not published.
    let verified = SignedRoot::verify(&bytes, &root.repository, &keys.fingerprint(), now)?;
    objects.put_root(&bytes)?;
    Ok(verified)
}

/// The catalogs of a revision, placed.
struct Catalogs {
    root: ChunkRef,
    index: CatalogIndex,
    /// By directory.
    of: HashMap<u32, ContentId>,
}

fn store_catalogs(
    objects: &Arc<dyn ObjectStore>,
    tree: &ScannedTree,
    table: &ChunkTable,
    known: &HashMap<ContentId, ChunkRef>,
    level: i32,
) -> Result<(Catalogs, Packed), PublishError> {
    let nested = divide(tree);
    let mut packer = Packer::start(Arc::clone(objects), level)?;
    let mut assembler = Assembler {
        tree,
        table,
        nested: &nested,
        known,
        packer: &mut packer,
        written: Vec::new(),
        catalog_of: HashMap::new(),
    };
    let assembled = assembler.catalog(0);
    let Assembler { written, catalog_of: of, .. } = assembler;
    let packed = packer.finish()?;
    let root = assembled?;
    let new: HashMap<ContentId, ChunkRef> = packed.chunks.iter().map(|chunk| (chunk.id, *chunk)).collect();
    let place =
        |id: &ContentId| *new.get(id).or_else(|| known.get(id)).expect("each catalog is known or packed");
    let index = CatalogIndex::new(written.iter().map(place).collect());
    Ok((Catalogs { root: place(&root), index, of }, packed))
}

fn history(
    previous: Option<&Previous>,
    revision: Revision,
    tag: Option<&str>,
) -> Result<History, PublishError> {
    let mut history = previous.map_or_else(History::default, |previous| previous.history.clone());
    if let Some(previous) = previous {
        history.push(PastRevision::of(&previous.root));
    }
    if let Some(tag) = tag {
        history.tag(tag, revision)?;
    }
    Ok(history)
}

fn store_documents(
    objects: &dyn ObjectStore,
    index: &CatalogIndex,
    history: &History,
    level: i32,
) -> Result<Segment, PublishError> {
    let mut builder = SegmentBuilder::new();
    for document in [index.to_bytes(), history.to_bytes()] {
        let plain_len = u32::try_from(document.len()).expect("documents are bounded far below 4 GiB");
        let frame = encode(&document, level).map_err(PublishError::Compress)?;
        builder.push(ContentId::of(&document), plain_len, &frame);
    }
    let segment = builder.finish();
    objects.put(&segment.id, &segment.bytes)?;
    Ok(segment)
}
