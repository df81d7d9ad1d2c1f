//! The bytes of a chunk on their way out: in memory, or read from the store as they leave.
//!
//! What the kernel has in memory is read in small parts, each just before it is encrypted, on the task that sends it.
//! What it has to wait for the disk for is read by a thread that may wait.

use super::buffers::Buffer;
use crate::mesh::ports::Local;
use crate::model::ContentId;
use bytes::Bytes;
use std::sync::Arc;

/// Bytes that are read at once: few enough to stay in the processor's cache until they are encrypted, enough to make
/// the system call cheap (guess).
const PART_BYTES: usize = 64 << 10;

/// A chunk that is stored, or was when it was last looked at.
pub(in crate::mesh) struct Stored {
    local: Arc<dyn Local>,
    id: ContentId,
    len: u32,
    /// Where the next part begins.
    at: u32,
    /// The first part, once it was read.
    first: Option<Bytes>,
}

impl Stored {
    /// The chunk `id`, whose plain length is said to be `len`.
    pub(in crate::mesh) fn new(local: Arc<dyn Local>, id: ContentId, len: u32) -> Self {
        Self { local, id, len, at: 0, first: None }
    }

    fn read_now(&mut self, max: usize) -> Option<Bytes> {
        let len = max.min(PART_BYTES).min((self.len - self.at) as usize);
        let mut buffer = Buffer::take(len);
        if !self.local.read_now(&self.id, self.len, self.at, buffer.as_mut()) {
            return None;
        }
        self.at += u32::try_from(len).ok()?;
        Some(buffer.freeze())
    }

    /// Reads the first part if that takes no waiting. If not, [`Stored::load`] has to be called.
    pub(super) fn begin(&mut self) -> bool {
        if self.first.is_none() && self.at == 0 {
            self.first = self.read_now(PART_BYTES);
        }
        self.first.is_some()
    }

    /// Reads all of it, and waits for the disk; `None` when it is not there, or has another length.
    pub(super) async fn load(&self) -> Option<Bytes> {
        self.local.load(self.id).await.filter(|bytes| bytes.len() == self.len as usize)
    }
}

/// The bytes that have not left yet.
pub(in crate::mesh) enum Body {
    /// In memory.
    Here(Bytes),
    /// To be read.
    Stored(Stored),
}

impl Body {
    /// Length of what is left.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Here(bytes) => bytes.len(),
            Self::Stored(stored) => {
                (stored.len - stored.at) as usize + stored.first.as_ref().map_or(0, Bytes::len)
            }
        }
    }

    /// Takes the next part, of at most `max` bytes; `None` when the store has lost the rest.
    pub(super) async fn part(&mut self, max: usize) -> Option<Bytes> {
        match self {
            Self::Here(bytes) => Some(bytes.split_to(bytes.len().min(max))),
            Self::Stored(stored) => {
                if let Some(first) = &mut stored.first {
                    let part = first.split_to(first.len().min(max));
                    if first.is_empty() {
                        stored.first = None;
                    }
                    return Some(part);
                }
                if let Some(part) = stored.read_now(max) {
                    return Some(part);
                }
                // The rest has left the kernel's memory meanwhile.
                let mut rest = stored.load().await?.split_off(stored.at as usize);
                let part = rest.split_to(rest.len().min(max));
                *self = Self::Here(rest);
                Some(part)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::{News, NewsVerdict, UpstreamFailure};
    use crate::model::{ChunkRef, RepositoryName};
    use futures::FutureExt as _;
    use futures::future::BoxFuture;

    /// A store of one chunk, of which the kernel has the first bytes in memory.
    struct Half {
        bytes: Bytes,
        in_memory: usize,
        lost: bool,
    }

    impl Local for Half {
        fn holds(&self, _id: &ContentId) -> bool {
            true
        }

        fn load(&self, _id: ContentId) -> BoxFuture<'_, Option<Bytes>> {
            std::future::ready((!self.lost).then(|| self.bytes.clone())).boxed()
        }

        fn read_now(&self, _id: &ContentId, plain_len: u32, offset: u32, buffer: &mut [u8]) -> bool {
            let (from, to) = (offset as usize, offset as usize + buffer.len());
            let is_there = plain_len as usize == self.bytes.len() && to <= self.in_memory;
            if is_there {
                buffer.copy_from_slice(&self.bytes[from..to]);
            }
            is_there
        }

        fn keep(&self, _id: ContentId, _bytes: Bytes, _from_strata: bool) -> BoxFuture<'_, bool> {
            std::future::ready(false).boxed()
        }

        fn fetch_upstream<'a>(
            &'a self,
            _repository: RepositoryName,
            _chunks: Vec<ChunkRef>,
            _arrived: &'a (dyn Fn(usize, &Bytes) + Send + Sync),
        ) -> BoxFuture<'a, Vec<Result<(), UpstreamFailure>>> {
            std::future::ready(Vec::new()).boxed()
        }

        fn judge(&self, _news: News) -> BoxFuture<'_, NewsVerdict> {
            std::future::ready(NewsVerdict::Unjudged).boxed()
        }

        fn all_news(&self) -> Vec<News> {
            Vec::new()
        }
    }

    fn content() -> Bytes {
        (0..300_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect::<Vec<_>>().into()
    }

    async fn all(in_memory: usize, lost: bool, max: usize) -> Option<Bytes> {
        let bytes = content();
        let local = Arc::new(Half { bytes: bytes.clone(), in_memory, lost });
        let mut stored = Stored::new(local, ContentId::of(&bytes), 300_000);
        assert_eq!(stored.begin(), in_memory >= PART_BYTES);
        let mut body = Body::Stored(stored);
        let mut out = Vec::new();
        while body.len() > 0 {
            let part = body.part(max).await?;
            assert!((1..=max).contains(&part.len()));
            out.extend_from_slice(&part);
            assert_eq!(out.len() + body.len(), bytes.len());
        }
        Some(out.into())
    }

    #[tokio::test]
    async fn a_body_is_whole_wherever_its_parts_come_from() {
        for in_memory in [0, 70_000, 299_999, 300_000] {
            for max in [1_000, PART_BYTES, 1 << 20] {
                assert_eq!(all(in_memory, false, max).await, Some(content()), "{in_memory} {max}");
            }
        }
        assert_eq!(all(150_000, true, 1 << 20).await, None, "the store lost it on the way");
    }

    #[tokio::test]
    async fn a_reference_that_lies_about_the_length_gets_nothing() {
        let local = Arc::new(Half { bytes: content(), in_memory: 300_000, lost: false });
        let mut stored = Stored::new(local, ContentId::of(&content()), 1_000);
        assert!(!stored.begin());
        assert_eq!(stored.load().await, None);
    }
}
