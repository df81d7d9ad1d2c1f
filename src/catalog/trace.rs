//! What a program reads of a tree: recorded by path, published with the tree, replayed by chunks.
//!
//! A [`RecordedTrace`] names files by path and by content, and in each the chunks that were read, in the order of the first read of
//! each. It is what `starling trace record` writes; a publisher keeps it as it is, and finds out anew at each revision what of it
//! still holds. A [`Replay`] is the outcome for one revision: the chunks themselves, with their places, so that replaying needs no
//! catalog. The catalog index names both ([`PublishedTrace`]); `docs/repository-format.md` tells the bytes.

use super::Inode;
use super::documents::{DocumentError, TAG_MAX_BYTES, is_sane_object, is_tag, read, write};
use crate::model::{Algorithm, ChunkRef, ContentId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};

const RECORDED_MAGIC: &[u8; 8] = b"STARTRAC";
const REPLAY_MAGIC: &[u8; 8] = b"STARRPLY";
/// Most traces of a revision (guess: the programs that a fleet starts by the thousand).
pub const TRACES_MAX: usize = 64;
/// Most files of a trace (guess).
pub const TRACED_FILES_MAX: usize = 1 << 16;
/// Most runs of chunks of a trace (guess).
pub const TRACED_READS_MAX: usize = 1 << 17;
/// Most chunks of a replay (guess: 4 GiB of chunks of average length).
const REPLAYED_CHUNKS_MAX: usize = 1 << 16;
/// Longest path of a traced file, in bytes (Linux's own bound).
const PATH_MAX_BYTES: usize = 4_096;
/// Chunks up to which a file that changed counts as small, and is read as a whole all the same: 256 KiB of chunks of average length
/// (guess).
pub const TRACE_SMALL_CHUNKS: usize = 4;
/// Most files by which a trace is recognised: a program's own file is among the first few that its start opens.
pub const BEGINS_MAX: usize = 4;
/// Longest file with a trace, in bytes: far above what the bounds allow in practice.
pub const RECORDED_MAX_BYTES: usize = 64 << 20;

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedFile {
    /// Its path below the tree's root, without a slash in front.
    pub path: Box<[u8]>,
    /// Its content: [`content_of`] its chunks.
    pub content: ContentId,
}

/// Chunks of a file that were read one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedRead {
    /// Number of the file among [`RecordedTrace::files`].
    pub file: u32,
    /// The first chunk, counted from 0.
    pub first: u32,
    /// How many chunks.
    pub count: u32,
}

/// What a program read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedTrace {
    /// What it is called: as a tag, 1 to 128 printable ASCII characters without spaces.
    pub name: String,
    /// The files, in the order in which they were first read.
    pub files: Vec<TracedFile>,
    /// What was read of them, in order; no chunk twice.
    pub reads: Vec<TracedRead>,
}

/// Names a file's content: the hash of the hashes of its chunks.
pub fn content_of<'a>(chunks: impl IntoIterator<Item = &'a ContentId>) -> ContentId {
    let mut hasher = blake3::Hasher::new();
    for chunk in chunks {
        hasher.update(chunk.digest());
    }
    ContentId::blake3(*hasher.finalize().as_bytes())
}

impl RecordedTrace {
    const NAME: &'static str = "recorded trace";

    /// The name of a trace, as a user writes it.
    ///
    /// # Errors
    /// What a name may be.
    pub fn name_from(text: &str) -> Result<String, String> {
        if is_tag(text) {
            return Ok(text.to_owned());
        }
        Err(format!("the name of a trace is 1 to {TAG_MAX_BYTES} printable ASCII characters without spaces"))
    }

    /// The document.
    pub fn to_bytes(&self) -> Vec<u8> {
        write(RECORDED_MAGIC, self)
    }

    /// Reads a document.
    ///
    /// # Errors
    /// [`DocumentError`] when it contradicts the format.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DocumentError> {
        let malformed = |detail| DocumentError::Malformed { document: Self::NAME, detail };
        if bytes.len() > RECORDED_MAX_BYTES {
            return Err(malformed(format!("{} bytes", bytes.len())));
        }
        let trace: Self = read(Self::NAME, RECORDED_MAGIC, bytes)?;
        trace.check().map_err(malformed)?;
        Ok(trace)
    }

    /// Whether it is within the bounds, and refers to itself only.
    fn check(&self) -> Result<(), String> {
        let Self { name, files, reads } = self;
        if !is_tag(name) {
            return Err(format!("the name `{}`", name.chars().take(160).collect::<String>()));
        }
        if files.len() > TRACED_FILES_MAX || reads.len() > TRACED_READS_MAX {
            return Err(format!("{} files and {} reads", files.len(), reads.len()));
        }
        let is_path = |path: &[u8]| {
            let parts = || path.split(|byte| *byte == b'/');
            path.len() <= PATH_MAX_BYTES
                && parts().all(|part| !part.is_empty() && part != b"." && part != b"..")
        };
        if let Some(bad) = files.iter().find(|file| !is_path(&file.path) || file.path.contains(&0)) {
            return Err(format!("the path `{}`", bad.path.escape_ascii()));
        }
        if let Some(bad) = files.iter().find(|file| file.content.algorithm() != Algorithm::Blake3) {
            return Err(format!("the content {}", bad.content));
        }
        let is_inside = |read: &TracedRead| {
            (read.file as usize) < files.len()
                && read.count > 0
                && read.first.checked_add(read.count).is_some()
        };
        if let Some(bad) = reads.iter().find(|read| !is_inside(read)) {
            return Err(format!("{bad:?}"));
        }
        let different: HashSet<&[u8]> = files.iter().map(|file| &*file.path).collect();
        if different.len() < files.len() {
            return Err("a path twice".to_owned());
        }
        Ok(())
    }
}

/// What a replay fetches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// Catalogs and chunks of files, in the order in which they are wanted; none twice.
    chunks: Vec<ChunkRef>,
}

impl Replay {
    const NAME: &'static str = "replay";

    /// A replay of the first `REPLAYED_CHUNKS_MAX` different ones of `chunks`.
    pub fn new(chunks: impl IntoIterator<Item = ChunkRef>) -> Self {
        let mut seen = HashSet::new();
        let chunks =
            chunks.into_iter().filter(|chunk| seen.insert(chunk.id)).take(REPLAYED_CHUNKS_MAX).collect();
        Self { chunks }
    }

    /// What is fetched, in order.
    pub fn chunks(&self) -> &[ChunkRef] {
        &self.chunks
    }

    /// The document.
    pub fn to_bytes(&self) -> Vec<u8> {
        write(REPLAY_MAGIC, &self.chunks)
    }

    /// Longest document: above that of the most chunks, each of about 90 bytes.
    pub const MAX_BYTES: u32 = 8 << 20;

    /// Reads a document whose hash was verified.
    ///
    /// # Errors
    /// [`DocumentError`] when it contradicts the format.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DocumentError> {
        let chunks: Vec<ChunkRef> = read(Self::NAME, REPLAY_MAGIC, bytes)?;
        let malformed = |detail| Err(DocumentError::Malformed { document: Self::NAME, detail });
        if chunks.len() > REPLAYED_CHUNKS_MAX {
            return malformed(format!("{} chunks", chunks.len()));
        }
        // Catalogs are among them, which are longer than chunks of files.
        if let Some(bad) = chunks.iter().find(|chunk| !is_sane_object(chunk)) {
            return malformed(format!("{bad:?}"));
        }
        let different: HashSet<ContentId> = chunks.iter().map(|chunk| chunk.id).collect();
        if different.len() < chunks.len() {
            return malformed("a chunk twice".to_owned());
        }
        Ok(Self { chunks })
    }
}

/// A trace of a revision, as its catalog index names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedTrace {
    /// What it is called.
    pub name: String,
    /// The files by whose opening it is recognised, at most [`BEGINS_MAX`].
    pub begins: Vec<Inode>,
    /// The [`RecordedTrace`], for the publisher of the next revision.
    pub recorded: ChunkRef,
    /// The [`Replay`].
    pub replay: ChunkRef,
}

/// Checks the traces of an index.
pub(super) fn check_traces(traces: &[PublishedTrace]) -> Result<(), String> {
    if traces.len() > TRACES_MAX {
        return Err(format!("{} traces", traces.len()));
    }
    let mut names = BTreeMap::new();
    for trace in traces {
        let is_good = is_tag(&trace.name)
            && trace.begins.len() <= BEGINS_MAX
            && [&trace.recorded, &trace.replay].into_iter().all(is_sane_object);
        if !is_good || names.insert(&trace.name, ()).is_some() {
            return Err(format!("the trace `{}`", trace.name.chars().take(160).collect::<String>()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Place;
    use proptest::prelude::*;

    fn chunk(number: u32) -> ChunkRef {
        let id = ContentId::of(&number.to_le_bytes());
        ChunkRef { id, plain_len: 10, place: Place { segment: id, ordinal: 0, offset: 0, stored_len: 10 } }
    }

    fn trace() -> RecordedTrace {
        let file =
            |path: &[u8]| TracedFile { path: path.into(), content: content_of([&ContentId::of(path)]) };
        RecordedTrace {
            name: "bash".to_owned(),
            files: vec![file(b"usr/bin/bash"), file(b"lib/\xff")],
            reads: vec![
                TracedRead { file: 0, first: 0, count: 3 },
                TracedRead { file: 1, first: 2, count: 1 },
            ],
        }
    }

    #[test]
    fn what_was_recorded_is_read_again() {
        assert_eq!(RecordedTrace::from_bytes(&trace().to_bytes()), Ok(trace()));
        let replay = Replay::new([chunk(1), chunk(2), chunk(1)]);
        assert_eq!(replay.chunks(), [chunk(1), chunk(2)]);
        assert_eq!(Replay::from_bytes(&replay.to_bytes()), Ok(replay));
    }

    #[test]
    fn a_name_that_a_user_may_write_is_one_that_is_read_again() {
        let longest = "x".repeat(TAG_MAX_BYTES);
        let too_long = format!("{longest}x");
        for (text, is_good) in [
            ("bash", true),
            ("a/b", true),
            (longest.as_str(), true),
            (too_long.as_str(), false),
            ("", false),
            ("two words", false),
        ] {
            let named = RecordedTrace { name: text.to_owned(), ..trace() };
            assert_eq!(RecordedTrace::name_from(text).is_ok(), is_good, "{text}");
            assert_eq!(RecordedTrace::from_bytes(&named.to_bytes()).is_ok(), is_good, "{text}");
        }
        assert!(RecordedTrace::name_from("ü").unwrap_err().contains("1 to 128 printable"));
    }

    #[test]
    fn traces_that_contradict_the_format_are_refused() {
        let bad = |change: fn(&mut RecordedTrace)| {
            let mut trace = trace();
            change(&mut trace);
            assert!(RecordedTrace::from_bytes(&trace.to_bytes()).is_err(), "{trace:?}");
        };
        bad(|trace| trace.name = "two words".to_owned());
        bad(|trace| trace.name.clear());
        for path in [&b""[..], b"/etc", b"a//b", b"a/../b", b"./a", b"a/", b"a\0b", &[b'x'; 5_000]] {
            let mut trace = trace();
            trace.files[0].path = path.into();
            assert!(RecordedTrace::from_bytes(&trace.to_bytes()).is_err(), "{}", path.escape_ascii());
        }
        bad(|trace| trace.files[1].path = trace.files[0].path.clone());
        bad(|trace| trace.reads[0].file = 2);
        bad(|trace| trace.reads[0].count = 0);
        bad(|trace| trace.reads[0].first = u32::MAX);
        let twice = write(REPLAY_MAGIC, &vec![chunk(1), chunk(1)]);
        assert!(Replay::from_bytes(&twice).is_err());
        let empty = write(REPLAY_MAGIC, &vec![ChunkRef { plain_len: 0, ..chunk(1) }]);
        assert!(Replay::from_bytes(&empty).is_err());
        let mut later = trace().to_bytes();
        later[8] = 9;
        assert!(matches!(RecordedTrace::from_bytes(&later), Err(DocumentError::Version { found: 9, .. })));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            for magic in [RECORDED_MAGIC, REPLAY_MAGIC] {
                let bytes = [&magic[..], &1_u16.to_le_bytes(), &tail].concat();
                let _ = (RecordedTrace::from_bytes(&bytes), Replay::from_bytes(&bytes));
            }
        }

        #[test]
        fn any_trace_within_the_bounds_survives(
            names in proptest::collection::btree_set("[a-z]{1,8}(/[a-z]{1,8}){0,3}", 1..20),
            reads in proptest::collection::vec((0..20_u32, 0..1_000_u32, 1..100_u32), 0..50),
        ) {
            let files: Vec<TracedFile> = names
                .iter()
                .map(|name| TracedFile { path: name.as_bytes().into(), content: ContentId::of(name.as_bytes()) })
                .collect();
            let most = u32::try_from(files.len()).unwrap();
            let reads = reads.into_iter().map(|(file, first, count)| TracedRead { file: file % most, first, count });
            let trace = RecordedTrace { name: "x".to_owned(), files, reads: reads.collect() };
            prop_assert_eq!(RecordedTrace::from_bytes(&trace.to_bytes()), Ok(trace));
        }
    }
}
