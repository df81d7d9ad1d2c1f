//! What the mesh needs of the node it runs on. The fetch path implements it; tests use a double.

use crate::model::{ChunkRef, Class, ContentId, NodeId, RepositoryName, Time};
use bytes::Bytes;
use futures::future::BoxFuture;

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

/// A document that spreads through the mesh. Both kinds are signed and verified before they spread.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum News {
    /// A repository's signed root, as published.
    Root(Vec<u8>),
    /// A repository card, signed by the mesh's authority.
    Card(Vec<u8>),
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

    /// Stores plain bytes that were verified against `id`, which arrived from a peer or the strata.
    /// `false`: the store refused (full, failing); the caller still delivers them.
    fn keep(&self, id: ContentId, bytes: Bytes, from_strata: bool) -> BoxFuture<'_, bool>;

    /// Takes chunks of one repository from its strata, verified. One result a chunk, in their order.
    /// Ends within a bounded time. Neighbouring frames are taken in one request.
    fn fetch_upstream(
        &self,
        repository: RepositoryName,
        chunks: Vec<ChunkRef>,
    ) -> BoxFuture<'_, Vec<Result<Bytes, UpstreamFailure>>>;

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
