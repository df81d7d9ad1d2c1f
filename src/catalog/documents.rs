//! The two documents that a root names beside the root catalog: where all catalogs lie, and what was before.

use super::row::is_sane;
use super::trace::{PublishedTrace, check_traces};
use crate::model::{Algorithm, ChunkRef, ContentId, Revision, UnixTime, limits};
use crate::trust::VerifiedRoot;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const VERSION: u16 = 1;
/// Version of an index that names traces. One without them is written as version 1.
const TRACED_VERSION: u16 = 2;
const INDEX_MAGIC: &[u8; 8] = b"STARCIDX";
const HISTORY_MAGIC: &[u8; 8] = b"STARHIST";
/// Most catalogs of a revision: 2 000 million entries.
const CATALOGS_MAX: usize = 1_000_000;
/// Most revisions that a history keeps (guess: an hourly publisher's year).
const REVISIONS_MAX: usize = 10_000;
/// Most tags (guess).
const TAGS_MAX: usize = 1_000;
/// Longest name of a tag, in bytes.
pub(super) const TAG_MAX_BYTES: usize = 128;

/// Why a document is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// A later format.
    #[error("{document} format version {found} is not known to this program")]
    Version {
        /// Which document.
        document: &'static str,
        /// What it states.
        found: u16,
    },
    /// It is not laid out as it should be, or says nonsense.
    #[error("not a {document}: {detail}")]
    Malformed {
        /// Which document.
        document: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// A tag's name is out of bounds, or there are too many.
    #[error("tag `{0}`: use 1-128 printable ASCII characters without spaces; at most {TAGS_MAX} tags")]
    Tag(String),
}

fn write_as<T: Serialize>(magic: &[u8; 8], version: u16, document: &T) -> Vec<u8> {
    let head = [&magic[..], &version.to_le_bytes()].concat();
    postcard::to_extend(document, head).expect("plain values are always written")
}

/// A document of version 1.
pub(super) fn write<T: Serialize>(magic: &[u8; 8], document: &T) -> Vec<u8> {
    write_as(magic, VERSION, document)
}

/// The version that a document states, and what follows.
fn open<'a>(name: &'static str, magic: &[u8; 8], bytes: &'a [u8]) -> Result<(u16, &'a [u8]), DocumentError> {
    let malformed = |detail: &str| DocumentError::Malformed { document: name, detail: detail.to_owned() };
    let rest = bytes.strip_prefix(magic).ok_or_else(|| malformed("it does not begin with its magic"))?;
    let (version, rest) = rest.split_first_chunk().ok_or_else(|| malformed("it ends early"))?;
    Ok((u16::from_le_bytes(*version), rest))
}

fn parse<T: DeserializeOwned>(name: &'static str, body: &[u8]) -> Result<T, DocumentError> {
    let malformed = |detail: &str| DocumentError::Malformed { document: name, detail: detail.to_owned() };
    match postcard::take_from_bytes(body) {
        Ok((document, [])) => Ok(document),
        Ok(_) => Err(malformed("bytes are left over")),
        Err(error) => Err(malformed(&error.to_string())),
    }
}

/// Reads a document of version 1.
pub(super) fn read<T: DeserializeOwned>(
    name: &'static str,
    magic: &[u8; 8],
    bytes: &[u8],
) -> Result<T, DocumentError> {
    match open(name, magic, bytes)? {
        (VERSION, body) => parse(name, body),
        (found, _) => Err(DocumentError::Version { document: name, found }),
    }
}

pub(super) fn is_sane_object(chunk: &ChunkRef) -> bool {
    let names = [chunk.id, chunk.place.segment];
    is_sane(chunk, limits::PLAIN_MAX_BYTES) && names.iter().all(|id| id.algorithm() == Algorithm::Blake3)
}

/// Where every catalog of a revision lies, and which traces were published with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CatalogIndex {
    catalogs: Vec<ChunkRef>,
    traces: Vec<PublishedTrace>,
}

impl CatalogIndex {
    const NAME: &'static str = "catalog index";

    /// An index of these catalogs, each named once whatever the order.
    pub fn new(mut catalogs: Vec<ChunkRef>) -> Self {
        catalogs.sort_unstable_by_key(|catalog| catalog.id);
        catalogs.dedup_by_key(|catalog| catalog.id);
        Self { catalogs, traces: Vec::new() }
    }

    /// The same with traces.
    #[must_use]
    pub fn with_traces(self, traces: Vec<PublishedTrace>) -> Self {
        Self { traces, ..self }
    }

    /// The traces, in the order in which they were published.
    pub fn traces(&self) -> &[PublishedTrace] {
        &self.traces
    }

    /// Where a catalog lies.
    pub fn find(&self, id: &ContentId) -> Option<ChunkRef> {
        self.position(id).map(|at| self.catalogs[at])
    }

    /// The place of a catalog among [`CatalogIndex::catalogs`].
    pub(super) fn position(&self, id: &ContentId) -> Option<usize> {
        self.catalogs.binary_search_by_key(id, |catalog| catalog.id).ok()
    }

    /// All catalogs, sorted by hash.
    pub fn catalogs(&self) -> &[ChunkRef] {
        &self.catalogs
    }

    /// The document.
    pub fn to_bytes(&self) -> Vec<u8> {
        match &self.traces[..] {
            [] => write(INDEX_MAGIC, &self.catalogs),
            traces => write_as(INDEX_MAGIC, TRACED_VERSION, &(&self.catalogs, traces)),
        }
    }

    /// Reads a document whose hash was verified.
    ///
    /// # Errors
    /// [`DocumentError`] when it contradicts the format.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DocumentError> {
        let (catalogs, traces): (Vec<ChunkRef>, Vec<PublishedTrace>) =
            match open(Self::NAME, INDEX_MAGIC, bytes)? {
                (VERSION, body) => (parse(Self::NAME, body)?, Vec::new()),
                (TRACED_VERSION, body) => parse(Self::NAME, body)?,
                (found, _) => return Err(DocumentError::Version { document: Self::NAME, found }),
            };
        let malformed = |detail| Err(DocumentError::Malformed { document: Self::NAME, detail });
        if let Err(detail) = check_traces(&traces) {
            return malformed(detail);
        }
        if catalogs.len() > CATALOGS_MAX {
            return malformed(format!("{} catalogs", catalogs.len()));
        }
        if let Some(bad) = catalogs.iter().find(|catalog| !is_sane_object(catalog)) {
            return malformed(format!("{bad:?}"));
        }
        if let Some(pair) = catalogs.windows(2).find(|pair| pair[0].id >= pair[1].id) {
            return malformed(format!("{:?} is out of order", pair[1].id));
        }
        Ok(Self { catalogs, traces })
    }
}

/// A revision as the history keeps it: enough to mount it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastRevision {
    /// Its number.
    pub revision: Revision,
    /// Hash of its root (as last signed).
    pub root: ContentId,
    /// Its root catalog.
    pub root_catalog: ChunkRef,
    /// Its catalog index.
    pub catalog_index: ChunkRef,
    /// Number of its inodes.
    pub inodes: u64,
    /// Plain bytes of its files.
    pub plain_bytes: u64,
    /// When it was signed.
    pub issued: UnixTime,
}

impl PastRevision {
    /// What a history will keep of the revision of this root.
    pub fn of(root: &VerifiedRoot) -> Self {
        let (id, root) = (root.id(), root.root());
        Self {
            revision: root.revision,
            root: id,
            root_catalog: root.root_catalog,
            catalog_index: root.catalog_index,
            inodes: root.inodes,
            plain_bytes: root.plain_bytes,
            issued: root.issued,
        }
    }
}

/// The revisions before the one whose root names this document, and the tags.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    revisions: Vec<PastRevision>,
    tags: BTreeMap<String, Revision>,
}

impl History {
    const NAME: &'static str = "history";

    /// Past revisions, oldest first.
    pub fn revisions(&self) -> &[PastRevision] {
        &self.revisions
    }

    /// Names of revisions; the newest may be that of the root which names this history.
    pub fn tags(&self) -> &BTreeMap<String, Revision> {
        &self.tags
    }

    /// Adds the revision that is about to be succeeded. When the history is full, the oldest without a
    /// tag falls out.
    pub fn push(&mut self, past: PastRevision) {
        if self.revisions.len() >= REVISIONS_MAX {
            let tagged = |past: &PastRevision| self.tags.values().any(|revision| *revision == past.revision);
            let oldest = self.revisions.iter().position(|past| !tagged(past)).unwrap_or(0);
            self.revisions.remove(oldest);
        }
        self.revisions.push(past);
    }

    /// Names a revision, moving the tag if it is there already.
    ///
    /// # Errors
    /// [`DocumentError::Tag`] when the name is out of bounds or there are too many tags.
    pub fn tag(&mut self, name: &str, revision: Revision) -> Result<(), DocumentError> {
        let room = self.tags.len() < TAGS_MAX || self.tags.contains_key(name);
        if !is_tag(name) || !room {
            return Err(DocumentError::Tag(name.chars().take(160).collect()));
        }
        self.tags.insert(name.to_owned(), revision);
        Ok(())
    }

    /// The document.
    pub fn to_bytes(&self) -> Vec<u8> {
        write(HISTORY_MAGIC, self)
    }

    /// Reads a document whose hash was verified.
    ///
    /// # Errors
    /// [`DocumentError`] when it contradicts the format.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DocumentError> {
        let history: Self = read(Self::NAME, HISTORY_MAGIC, bytes)?;
        let malformed = |detail| Err(DocumentError::Malformed { document: Self::NAME, detail });
        let (revisions, tags) = (history.revisions.len(), history.tags.len());
        if revisions > REVISIONS_MAX || tags > TAGS_MAX {
            return malformed(format!("{revisions} revisions and {tags} tags"));
        }
        if let Some(bad) = history.tags.keys().find(|name| !is_tag(name)) {
            return Err(DocumentError::Tag(bad.chars().take(160).collect()));
        }
        let sane = |past: &&PastRevision| {
            !is_sane_object(&past.root_catalog) || !is_sane_object(&past.catalog_index)
        };
        if let Some(bad) = history.revisions.iter().find(sane) {
            return malformed(format!("{bad:?}"));
        }
        if let Some(pair) = history.revisions.windows(2).find(|pair| pair[0].revision >= pair[1].revision) {
            return malformed(format!("revision {} is out of order", pair[1].revision));
        }
        Ok(history)
    }
}

pub(super) fn is_tag(name: &str) -> bool {
    (1..=TAG_MAX_BYTES).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Place;
    use proptest::prelude::*;

    fn chunk(text: &str) -> ChunkRef {
        let place = Place { segment: ContentId::of(b"s"), ordinal: 0, offset: 0, stored_len: 5 };
        ChunkRef { id: ContentId::of(text.as_bytes()), plain_len: 4096, place }
    }

    fn past(revision: u64) -> PastRevision {
        PastRevision {
            revision: Revision(revision),
            root: ContentId::of(b"root"),
            root_catalog: chunk("catalog"),
            catalog_index: chunk("index"),
            inodes: 1,
            plain_bytes: 2,
            issued: UnixTime(3),
        }
    }

    #[test]
    fn an_index_finds_every_catalog_and_nothing_else() {
        let index = CatalogIndex::new(vec![chunk("b"), chunk("a"), chunk("c"), chunk("a")]);
        let index = CatalogIndex::from_bytes(&index.to_bytes()).unwrap();
        assert_eq!(index.catalogs().len(), 3);
        assert_eq!(index.find(&chunk("b").id), Some(chunk("b")));
        assert_eq!(index.find(&chunk("x").id), None);
    }

    #[test]
    fn traces_make_an_index_a_later_version_and_none_leave_it_as_it_was() {
        let plain = CatalogIndex::new(vec![chunk("a")]);
        assert_eq!(plain.to_bytes()[8..10], [1, 0]);
        let trace = PublishedTrace {
            name: "bash".to_owned(),
            begins: vec![crate::catalog::Inode(7)],
            recorded: chunk("recorded"),
            replay: chunk("replay"),
        };
        let traced = plain.clone().with_traces(vec![trace.clone()]);
        assert_eq!(traced.to_bytes()[8..10], [2, 0]);
        assert_eq!(CatalogIndex::from_bytes(&traced.to_bytes()), Ok(traced));
        let twice = plain.with_traces(vec![trace.clone(), trace.clone()]);
        assert!(CatalogIndex::from_bytes(&twice.to_bytes()).is_err());
        let many = vec![crate::catalog::Inode(7); crate::catalog::BEGINS_MAX + 1];
        let greedy = CatalogIndex::default().with_traces(vec![PublishedTrace { begins: many, ..trace }]);
        assert!(CatalogIndex::from_bytes(&greedy.to_bytes()).is_err());
    }

    #[test]
    fn a_full_history_drops_the_oldest_revision_without_a_tag() {
        let mut history = History::default();
        history.tag("kept", Revision(1)).unwrap();
        for revision in 1..=REVISIONS_MAX as u64 + 1 {
            history.push(past(revision));
        }
        let first: Vec<u64> = history.revisions()[..2].iter().map(|past| past.revision.0).collect();
        assert_eq!((first, history.revisions().len()), (vec![1, 3], REVISIONS_MAX));
        assert_eq!(History::from_bytes(&history.to_bytes()), Ok(history));
    }

    #[test]
    fn bad_tags_are_refused_with_their_name() {
        let mut history = History::default();
        for bad in ["", "a b", "ä", &"x".repeat(129)] {
            assert!(matches!(history.tag(bad, Revision(1)), Err(DocumentError::Tag(_))), "{bad}");
        }
    }

    #[test]
    fn documents_that_contradict_the_format_are_refused() {
        let mut later = History::default().to_bytes();
        later[8] = 7;
        assert!(matches!(History::from_bytes(&later), Err(DocumentError::Version { found: 7, .. })));
        assert!(CatalogIndex::from_bytes(&History::default().to_bytes()).is_err());
        let unsorted = write(INDEX_MAGIC, &vec![chunk("a"), chunk("a")]);
        assert!(CatalogIndex::from_bytes(&unsorted).is_err());
        let empty = ChunkRef { plain_len: 0, ..chunk("a") };
        assert!(CatalogIndex::from_bytes(&write(INDEX_MAGIC, &vec![empty])).is_err());
        let history = History { revisions: vec![past(2), past(1)], tags: BTreeMap::new() };
        assert!(History::from_bytes(&history.to_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            for magic in [INDEX_MAGIC, HISTORY_MAGIC] {
                for version in [VERSION, TRACED_VERSION] {
                    let bytes = [&magic[..], &version.to_le_bytes(), &tail].concat();
                    let _ = (CatalogIndex::from_bytes(&bytes), History::from_bytes(&bytes));
                }
            }
        }
    }
}
