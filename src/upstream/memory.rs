//! A stratum in memory: the double that tests use in place of a server.

use super::{Arrived, Upstream, UpstreamError, check_row, frame, layout};
use crate::model::{ChunkRef, ContentId, RepositoryName, limits};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Items of a stratum by their path. Holds what tests put in, and nothing leaves it.
#[derive(Debug, Default)]
pub struct MemoryStratum {
    items: Mutex<BTreeMap<String, Bytes>>,
}

impl MemoryStratum {
    /// Puts a root there, in place of an older one.
    pub fn put_root(&self, repository: &RepositoryName, root: impl Into<Bytes>) {
        self.items().insert(layout::root_path(repository), root.into());
    }

    /// Puts a segment there under its own name, which is returned.
    pub fn put_segment(&self, repository: &RepositoryName, segment: impl Into<Bytes>) -> ContentId {
        let segment = segment.into();
        let name = ContentId::of(&segment);
        self.put_segment_as(repository, &name, segment);
        name
    }

    /// Puts bytes there under the name of a segment that they need not be.
    pub fn put_segment_as(&self, repository: &RepositoryName, name: &ContentId, bytes: impl Into<Bytes>) {
        self.items().insert(layout::object_path(repository, name), bytes.into());
    }

    fn items(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn item(&self, path: &str) -> Result<Bytes, UpstreamError> {
        let missing = || UpstreamError::Status { url: path.to_owned(), status: 404 };
        self.items().get(path).cloned().ok_or_else(missing)
    }

    async fn chunk(&self, repository: &RepositoryName, chunk: &ChunkRef) -> Result<Bytes, UpstreamError> {
        check_row(chunk).map_err(|detail| UpstreamError::InvalidRow { chunk: chunk.id, detail })?;
        let path = layout::object_path(repository, &chunk.place.segment);
        let segment = self.item(&path)?;
        let (start, end) = (chunk.place.offset, chunk.place.offset + u64::from(chunk.place.stored_len));
        match (usize::try_from(start), usize::try_from(end)) {
            (Ok(start), Ok(end)) if end <= segment.len() => {
                frame::decode(segment.slice(start..end), *chunk, &path).await
            }
            _ if start >= segment.len() as u64 => Err(UpstreamError::Status { url: path, status: 416 }),
            _ => {
                let detail = format!("the object has {} bytes; bytes up to {end} are wanted", segment.len());
                Err(UpstreamError::Malformed { url: path, detail })
            }
        }
    }
}

impl Upstream for MemoryStratum {
    fn fetch_root<'a>(
        &'a self,
        repository: &'a RepositoryName,
    ) -> BoxFuture<'a, Result<Bytes, UpstreamError>> {
        async move {
            let path = layout::root_path(repository);
            let root = self.item(&path)?;
            if root.len() > limits::ROOT_MAX_BYTES {
                let detail = format!("the root has more than {} bytes", limits::ROOT_MAX_BYTES);
                return Err(UpstreamError::Malformed { url: path, detail });
            }
            Ok(root)
        }
        .boxed()
    }

    fn fetch_each<'a>(
        &'a self,
        repository: &'a RepositoryName,
        chunks: &'a [ChunkRef],
        arrived: &'a Arrived<'a>,
    ) -> BoxFuture<'a, Vec<Result<Bytes, UpstreamError>>> {
        async move {
            let mut results = Vec::with_capacity(chunks.len());
            for (position, chunk) in chunks.iter().enumerate() {
                let result = self.chunk(repository, chunk).await;
                if let Ok(bytes) = &result {
                    arrived(position, bytes);
                }
                results.push(result);
            }
            results
        }
        .boxed()
    }
}
