//! Traces that are published with a revision: those that the publisher is given, and those of the revision before.
//!
//! A recorded trace names files by path and content. What is unchanged counts as it was recorded. A small file that changed is read as
//! a whole all the same, most likely; of a larger one nobody knows which parts, so it is left out until it is recorded again. The
//! chunks of a trace are laid together, in the order in which they are wanted, where they lie scattered: then they travel in a
//! few requests. They are stored a second time for it, and catalogs name the new place.

use super::PublishError;
use super::pack::{Packed, Packer};
use super::previous::Previous;
use super::scan::{Content, ScannedTree};
use super::table::{ChunkTable, Number};
use crate::catalog::{
    BEGINS_MAX, CatalogIndex, Inode, PublishedTrace, RecordedTrace, Replay, TRACE_SMALL_CHUNKS, TRACES_MAX,
    content_of,
};
use crate::chunk::{Segment, SegmentBuilder, encode};
use crate::model::{ChunkRef, ContentId, Place};
use crate::store::{ObjectStore, read_chunk};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Bytes between two chunks that do not make them lie apart: what readers fetch for nothing rather than ask again.
const GAP_BYTES: u64 = 16 << 10;
/// Requests that a trace may cost in any case, and the bytes for which it may cost one more (guess: half of what is under way at once on
/// a link of 1 Gbit/s over a long way would be more; a few requests beside each other take no longer than one).
const RUNS_FREE: u64 = 3;
const RUN_BYTES: u64 = 1 << 20;

/// What a published trace comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceSummary {
    /// What it is called.
    pub name: String,
    /// Files that it names and the tree has.
    pub files: usize,
    /// Files that are gone, or changed too much.
    pub left_out: usize,
    /// Chunks that a replay fetches, catalogs included.
    pub chunks: usize,
    /// Their plain bytes.
    pub plain_bytes: u64,
}

/// A trace as it stands in the tree that is being published.
pub(super) struct Traced {
    recorded: RecordedTrace,
    /// Entries of its files, as far as they are there, in order.
    files: Vec<u32>,
    left_out: usize,
    /// Directories on the way to them, in the order in which they are entered.
    ways: Vec<u32>,
    /// What is read, in order, each once.
    chunks: Vec<Number>,
}

/// The traces of the revision: `given`, and those of the revision before whose names are not among them.
pub(super) fn gather(
    objects: &dyn ObjectStore,
    previous: Option<&Previous>,
    given: &[RecordedTrace],
    keep: bool,
) -> Result<Vec<RecordedTrace>, PublishError> {
    let mut traces: Vec<RecordedTrace> = Vec::new();
    let before = previous.filter(|_| keep).map_or(&[][..], |previous| previous.index.traces());
    for published in before.iter().filter(|one| given.iter().all(|trace| trace.name != one.name)) {
        // One that cannot be read is no reason not to publish.
        let read = read_chunk(objects, &published.recorded).map_err(|error| error.to_string());
        match read.and_then(|bytes| RecordedTrace::from_bytes(&bytes).map_err(|error| error.to_string())) {
            Ok(trace) => traces.push(trace),
            Err(error) => {
                tracing::warn!(trace = %published.name, error, "a trace of the revision before is left out");
            }
        }
    }
    for trace in given {
        traces.retain(|other| other.name != trace.name);
        traces.push(trace.clone());
    }
    if traces.len() > TRACES_MAX {
        return Err(PublishError::TooManyTraces { found: traces.len(), most: TRACES_MAX });
    }
    Ok(traces)
}

/// The entry at a path, and the directories on the way to it.
fn find(tree: &ScannedTree, path: &[u8]) -> Option<(u32, Vec<u32>)> {
    let (mut at, mut way) = (0_u32, Vec::new());
    for name in path.split(|byte| *byte == b'/') {
        let Content::Directory(children) = &tree.entries[at as usize].content else { return None };
        way.push(at);
        let found = children.binary_search_by(|child| (*tree.entries[*child as usize].name).cmp(name));
        at = children[found.ok()?];
    }
    Some((at, way))
}

/// Finds in the tree what a trace names.
pub(super) fn resolve(tree: &ScannedTree, table: &ChunkTable, recorded: RecordedTrace) -> Traced {
    let mut traced =
        Traced { recorded, files: Vec::new(), left_out: 0, ways: Vec::new(), chunks: Vec::new() };
    // Of each file the chunks, and whether they are those that were recorded.
    let mut files: Vec<Option<(&[Number], bool)>> = Vec::new();
    let mut ways = HashSet::new();
    for file in &traced.recorded.files {
        let found = find(tree, &file.path).and_then(|(entry, way)| {
            let first = match tree.entries[entry as usize].content {
                Content::SameAs(first) => first,
                _ => entry,
            };
            let Content::File(chunks) = &tree.entries[first as usize].content else { return None };
            let ids: Vec<ContentId> = chunks.iter().map(|chunk| table.id(*chunk)).collect();
            let is_same = content_of(&ids) == file.content;
            (is_same || chunks.len() <= TRACE_SMALL_CHUNKS).then_some((first, way, &**chunks, is_same))
        });
        let Some((entry, way, chunks, is_same)) = found else {
            traced.left_out += 1;
            files.push(None);
            continue;
        };
        traced.files.push(entry);
        traced.ways.extend(way.into_iter().filter(|directory| ways.insert(*directory)));
        files.push(Some((chunks, is_same)));
    }
    let mut seen = HashSet::new();
    for read in &traced.recorded.reads {
        let Some((chunks, is_same)) = files[read.file as usize] else { continue };
        let (first, count) = (read.first as usize, read.count as usize);
        let range =
            if is_same { first..first.saturating_add(count).min(chunks.len()) } else { 0..chunks.len() };
        let chunks = chunks.get(range).unwrap_or_default();
        traced.chunks.extend(chunks.iter().filter(|chunk| seen.insert(**chunk)));
    }
    traced
}

/// Whether fetching chunks that lie at these places, in this order, takes more requests than it must.
fn is_scattered(places: &[Place]) -> bool {
    let (mut runs, mut bytes) = (0, 0);
    let mut last: Option<(ContentId, u64)> = None;
    for place in places {
        let goes_on = last.is_some_and(|(segment, end)| {
            segment == place.segment && place.offset.checked_sub(end).is_some_and(|gap| gap <= GAP_BYTES)
        });
        runs += u64::from(!goes_on);
        bytes += u64::from(place.stored_len);
        last = place.end().map(|end| (place.segment, end));
    }
    runs > RUNS_FREE + bytes / RUN_BYTES
}

/// Lays the chunks of traces together where they lie scattered. `table` tells their new places then.
pub(super) fn lay_together(
    objects: &Arc<dyn ObjectStore>,
    table: &mut ChunkTable,
    traces: &[Traced],
    level: i32,
) -> Result<Packed, PublishError> {
    let mut packer = Packer::start(Arc::clone(objects), level)?;
    // One that two traces read lies with the first.
    let mut laid = HashSet::new();
    let mut read = || -> Result<(), PublishError> {
        for traced in traces {
            let own: Vec<Number> =
                traced.chunks.iter().copied().filter(|chunk| !laid.contains(chunk)).collect();
            let places: Vec<Place> = own.iter().map(|chunk| table.chunk(*chunk).place).collect();
            if is_scattered(&places) {
                for chunk in &own {
                    let bytes = read_chunk(&**objects, &table.chunk(*chunk))?;
                    packer.push(table.id(*chunk), bytes.to_vec());
                }
            }
            laid.extend(own);
        }
        Ok(())
    };
    let read = read();
    let packed = packer.finish();
    read?;
    let packed = packed?;
    for chunk in &packed.chunks {
        if let Some(number) = table.find(&chunk.id) {
            table.place(number, chunk.place);
        }
    }
    Ok(packed)
}

/// A trace that is ready to be stored.
pub(super) struct Draft {
    begins: Vec<Inode>,
    recorded: Vec<u8>,
    replay: Vec<u8>,
    pub(super) summary: TraceSummary,
}

/// Writes what is published of each trace. `catalog_of` tells the catalogs of directories that have one of their own.
pub(super) fn draft(
    tree: &ScannedTree,
    table: &ChunkTable,
    traces: &[Traced],
    catalog_of: &HashMap<u32, ContentId>,
    index: &CatalogIndex,
) -> Vec<Draft> {
    let begins_of = |number: usize| {
        let inode = |entry: &u32| tree.entries[*entry as usize].attributes.inode;
        let first = traces[number].files.iter().take(BEGINS_MAX);
        let others: BTreeSet<u32> = traces
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != number)
            .flat_map(|(_, other)| other.files.iter().copied())
            .collect();
        let own: Vec<Inode> = first.clone().filter(|entry| !others.contains(*entry)).map(inode).collect();
        if own.is_empty() { first.take(1).map(inode).collect() } else { own }
    };
    let draft = |(number, traced): (usize, &Traced)| {
        // That of the root is there before any file is opened.
        let nested = traced.ways.iter().filter(|directory| **directory != 0);
        let catalogs = nested.filter_map(|directory| index.find(catalog_of.get(directory)?));
        let chunks = traced.chunks.iter().map(|chunk| table.chunk(*chunk));
        let replay = Replay::new(catalogs.chain(chunks));
        let summary = TraceSummary {
            name: traced.recorded.name.clone(),
            files: traced.files.len(),
            left_out: traced.left_out,
            chunks: replay.chunks().len(),
            plain_bytes: replay.chunks().iter().map(|chunk| u64::from(chunk.plain_len)).sum(),
        };
        let (recorded, replay) = (traced.recorded.to_bytes(), replay.to_bytes());
        Draft { begins: begins_of(number), recorded, replay, summary }
    };
    traces.iter().enumerate().map(draft).collect()
}

/// Whether exactly these traces were published before.
pub(super) fn are_same(drafts: &[Draft], before: &[PublishedTrace]) -> bool {
    let same = |(draft, before): (&Draft, &PublishedTrace)| {
        let ids = (ContentId::of(&draft.recorded), ContentId::of(&draft.replay));
        (&draft.summary.name, &draft.begins, ids)
            == (&before.name, &before.begins, (before.recorded.id, before.replay.id))
    };
    drafts.len() == before.len() && drafts.iter().zip(before).all(same)
}

/// Stores the documents of traces in a segment of their own; none when there are none.
pub(super) fn store(
    objects: &dyn ObjectStore,
    drafts: &[Draft],
    level: i32,
) -> Result<(Vec<PublishedTrace>, u64), PublishError> {
    if drafts.is_empty() {
        return Ok((Vec::new(), 0));
    }
    let mut builder = SegmentBuilder::new();
    // What replays need comes first, so that it lies together.
    for document in drafts.iter().map(|one| &one.replay).chain(drafts.iter().map(|one| &one.recorded)) {
        let plain_len = u32::try_from(document.len()).expect("traces are bounded far below 4 GiB");
        let frame = encode(document, level).map_err(PublishError::Compress)?;
        builder.push(ContentId::of(document), plain_len, &frame);
    }
    let segment: Segment = builder.finish();
    objects.put(&segment.id, &segment.bytes)?;
    let (replays, recorded) = segment.chunks.split_at(drafts.len());
    let published = |(draft, (replay, recorded)): (&Draft, (&ChunkRef, &ChunkRef))| PublishedTrace {
        name: draft.summary.name.clone(),
        begins: draft.begins.clone(),
        recorded: *recorded,
        replay: *replay,
    };
    let traces = drafts.iter().zip(replays.iter().zip(recorded)).map(published).collect();
    Ok((traces, segment.bytes.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(segment: u8, offset: u64, stored_len: u32) -> Place {
        Place { segment: ContentId::of(&[segment]), ordinal: 0, offset, stored_len }
    }

    #[test]
    fn what_lies_together_in_order_stays_and_what_lies_apart_does_not() {
        let row: Vec<Place> = (0..100).map(|n| place(1, n * 1_000, 1_000)).collect();
        assert!(!is_scattered(&row) && !is_scattered(&[]));
        let backwards: Vec<Place> = row.iter().rev().copied().collect();
        assert!(is_scattered(&backwards));
        let apart: Vec<Place> = (0..100).map(|n| place(1, n * 100_000, 1_000)).collect();
        assert!(is_scattered(&apart));
        let large: Vec<Place> = (0..8).map(|n| place(n, 0, 4 << 20)).collect();
        assert!(!is_scattered(&large), "each is worth a request");
    }

    proptest! {
        #[test]
        fn what_was_laid_together_is_not_laid_again(lens in prop::collection::vec(1_u32..100_000, 1..200)) {
            let mut at = 0;
            let places: Vec<Place> = lens
                .iter()
                .map(|len| {
                    at += u64::from(*len);
                    place(1, at - u64::from(*len), *len)
                })
                .collect();
            prop_assert!(!is_scattered(&places));
        }
    }
}
