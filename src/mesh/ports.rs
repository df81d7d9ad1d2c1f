//! What the mesh needs of the node it runs on. The fetch path implements it; tests use a double.

use crate::model::{ChunkRef, Class, ContentId, NodeId, RepositoryName, Time};
use crate::trust::{SignedCard, SignedRoot};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::fmt;

/// Why the strata did not deliver a chunk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamFailure {
    /// This node has no repository card for it, so it knows no stratum.
    #[error("no repository card for {0}")]
    UnknownRepository(RepositoryName),
    /// No stratum answered in time, or all refused.
    #[error("no stratum delivered: {0}")]
    Unreachable(String),
    /// A stratum delivered bytes that do not match the chunk's name.
    #[error("a stratum delivered wrong bytes: {0}")]
    WrongBytes(String),
}

/// A document that spreads through the mesh. All kinds are signed and verified before they spread.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum News {
    /// A repository's signed root, as published.
    Root(Vec<u8>),
    /// A repository card, signed by the mesh's authority.
    Card(Vec<u8>),
    /// The mesh's charter: its authority's keys. Judged by the mesh itself, never by [`Local::judge`].
    Charter(Vec<u8>),
    /// The mesh's list of revocations. Judged by the mesh itself, never by [`Local::judge`].
    Revocations(Vec<u8>),
}

impl News {
    /// The signed bytes.
    pub fn document(&self) -> &[u8] {
        match self {
            Self::Root(document)
            | Self::Card(document)
            | Self::Charter(document)
            | Self::Revocations(document) => document,
        }
    }

    /// The repository that the document says it is about; `None` when it concerns the whole mesh, or does not say.
    pub fn repository(&self) -> Option<RepositoryName> {
        match self {
            Self::Root(document) => SignedRoot::claimed_repository(document).ok(),
            Self::Card(document) => SignedCard::read_stored(document).ok().map(|card| card.name),
            Self::Charter(_) | Self::Revocations(_) => None,
        }
    }
}

/// What the node says of a document that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewsVerdict {
    /// Valid and newer than what was known: hand it on.
    Fresh,
    /// Valid but already known, or older.
    Known,
    /// The node cannot judge it (for example, no card for that repository yet). Not handed on.
    Unjudged,
    /// Forged or malformed: whoever sent it misbehaves.
    Invalid,
}

/// The node under the mesh: its store, its strata, its judgement of signed documents.
pub trait Local: Send + Sync + 'static {
    /// Whether the verified plain bytes of `id` are stored here.
    fn holds(&self, id: &ContentId) -> bool;

    /// The verified plain bytes of `id`, or `None` when they are not stored (any more).
    fn load(&self, id: ContentId) -> BoxFuture<'_, Option<Bytes>>;

    /// Fills `buffer` with the bytes from `offset` on of the verified chunk `id`, whose plain length is `plain_len`, if
    /// that takes no waiting for a disk. `false`, which says nothing but that [`Local::load`] may have to wait, leaves
    /// anything in `buffer`.
    fn read_now(&self, id: &ContentId, plain_len: u32, offset: u32, buffer: &mut [u8]) -> bool {
        let _ = (id, plain_len, offset, buffer);
        false
    }

    /// Stores plain bytes that were verified against `id`, which arrived from a peer or the strata.
    /// `false`: the store refused (full, failing); the caller still delivers them.
    fn keep(&self, id: ContentId, bytes: Bytes, from_strata: bool) -> BoxFuture<'_, bool>;

    /// Takes chunks of one repository from its strata, verified. Each is told to `arrived` with its position among
    /// `chunks` as soon as it is there, at most once; `arrived` does not block. The result says of each, in their order,
    /// whether it was. Ends within a bounded time. Neighbouring frames are taken in one request.
    fn fetch_upstream<'a>(
        &'a self,
        repository: RepositoryName,
        chunks: Vec<ChunkRef>,
        arrived: &'a (dyn Fn(usize, &Bytes) + Send + Sync),
    ) -> BoxFuture<'a, Vec<Result<(), UpstreamFailure>>>;

    /// Judges a document from `News` and, when it is fresh, adopts it durably.
    fn judge(&self, news: News) -> BoxFuture<'_, NewsVerdict>;

    /// The newest root of every known repository and all cards, from memory: what a new member is told.
    fn all_news(&self) -> Vec<News>;
}

/// Where bytes came from over the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obtained {
    /// A neighbour.
    Peer(NodeId),
    /// A stratum, asked by this node itself.
    Strata,
}

impl fmt::Display for Obtained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(node) => node.fmt(f),
            Self::Strata => f.write_str("strata"),
        }
    }
}

/// Why the mesh could not obtain a chunk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObtainError {
    /// Every source failed.
    #[error("no source: {0}")]
    NoSource(String),
    /// The deadline passed.
    #[error("deadline passed: {0}")]
    Deadline(String),
    /// Too much is wanted at once.
    #[error("too many fetches are under way")]
    TooMany,
    /// The mesh is shutting down.
    #[error("stopping")]
    Stopping,
}

/// The mesh as the fetch path sees it: it gets what the store does not hold.
pub trait Exchange: Send + Sync + 'static {
    /// Obtains one chunk by `deadline`, verified and offered to the store ([`Local::keep`]) already.
    /// Dropping the future withdraws the wish.
    fn obtain(
        &self,
        repository: &RepositoryName,
        chunk: ChunkRef,
        class: Class,
        deadline: Time,
    ) -> BoxFuture<'_, Result<(Bytes, Obtained), ObtainError>>;
}
