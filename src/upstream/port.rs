//! The port for reading what a publisher put on a stratum.

use super::UpstreamError;
use crate::model::{ChunkRef, RepositoryName};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::sync::Arc;

/// Hears of each chunk of a call as it arrives: its position in the call, and its verified bytes. It must not block.
pub type Arrived<'a> = dyn Fn(usize, &Bytes) + Send + Sync + 'a;

/// Reads the repositories of a stratum, or of several that stand for one.
///
/// Every call ends within a bounded time. Dropping a future ends its requests.
pub trait Upstream: Send + Sync + 'static {
    /// The signed root as it lies there: at most [`crate::model::limits::ROOT_MAX_BYTES`] bytes, not
    /// yet verified, for this port knows no keys.
    fn fetch_root<'a>(
        &'a self,
        repository: &'a RepositoryName,
    ) -> BoxFuture<'a, Result<Bytes, UpstreamError>>;

    /// The plain bytes of `chunks`, decoded and verified against their names. One result a chunk, in
    /// their order: one that fails does not fail the others. Each success is told to `arrived` at once and once, long
    /// before the last chunk of the call may be there.
    fn fetch_each<'a>(
        &'a self,
        repository: &'a RepositoryName,
        chunks: &'a [ChunkRef],
        arrived: &'a Arrived<'a>,
    ) -> BoxFuture<'a, Vec<Result<Bytes, UpstreamError>>>;

    /// As [`Upstream::fetch_each`], for who has use for all of them only.
    fn fetch_chunks<'a>(
        &'a self,
        repository: &'a RepositoryName,
        chunks: &'a [ChunkRef],
    ) -> BoxFuture<'a, Vec<Result<Bytes, UpstreamError>>> {
        self.fetch_each(repository, chunks, &|_, _| ())
    }
}

impl<U: Upstream + ?Sized> Upstream for Arc<U> {
    fn fetch_root<'a>(
        &'a self,
        repository: &'a RepositoryName,
    ) -> BoxFuture<'a, Result<Bytes, UpstreamError>> {
        (**self).fetch_root(repository)
    }

    fn fetch_each<'a>(
        &'a self,
        repository: &'a RepositoryName,
        chunks: &'a [ChunkRef],
        arrived: &'a Arrived<'a>,
    ) -> BoxFuture<'a, Vec<Result<Bytes, UpstreamError>>> {
        (**self).fetch_each(repository, chunks, arrived)
    }
}
