//! What every [`Upstream`] promises, and the fixtures for it.

use super::{Arrived, MemoryStratum, Upstream, UpstreamError, layout};
use crate::model::{ChunkRef, ContentId, Place, RepositoryName, limits};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use std::path::Path;
use std::sync::{Mutex, atomic::AtomicUsize, atomic::Ordering::SeqCst};
use std::time::Duration;

pub(super) fn repository() -> RepositoryName {
    "sw.example.org".parse().unwrap()
}

/// A repository whose root is larger than any root may be.
fn bloated() -> RepositoryName {
    "bloated.example.org".parse().unwrap()
}

/// Two segments of a few chunks each, one chunk larger than what is decoded inline.
pub(super) struct Fixture {
    pub(super) root: Bytes,
    pub(super) chunks: Vec<ChunkRef>,
    pub(super) plain: Vec<Bytes>,
    pub(super) segments: Vec<Bytes>,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let sizes: [&[usize]; 2] = [&[1, 70_000, 4096, 100_000], &[(1 << 20) + 12_345, 300]];
        let mut fixture = Self {
            root: Bytes::from_static(b"a signed root"),
            chunks: vec![],
            plain: vec![],
            segments: vec![],
        };
        for (s, sizes) in sizes.iter().enumerate() {
            let mut segment = Vec::new();
            let mut rows = Vec::new();
            for (ordinal, size) in sizes.iter().enumerate() {
                // Does not compress well, and differs from chunk to chunk.
                let plain: Bytes = (0..*size)
                    .map(|i| crate::model::mix((i + s * 7 + ordinal) as u64).to_le_bytes()[1])
                    .collect();
                let frame = zstd::bulk::compress(&plain, 3).unwrap();
                rows.push((
                    plain,
                    u32::try_from(ordinal).unwrap(),
                    segment.len() as u64,
                    u32::try_from(frame.len()).unwrap(),
                ));
                segment.extend_from_slice(&frame);
            }
            let name = ContentId::of(&segment);
            for (plain, ordinal, offset, stored_len) in rows {
                fixture.chunks.push(ChunkRef {
                    id: ContentId::of(&plain),
                    plain_len: u32::try_from(plain.len()).unwrap(),
                    place: Place { segment: name, ordinal, offset, stored_len },
                });
                fixture.plain.push(plain);
            }
            fixture.segments.push(segment.into());
        }
        fixture
    }

    pub(super) fn memory(&self) -> MemoryStratum {
        let memory = MemoryStratum::default();
        memory.put_root(&repository(), self.root.clone());
        memory.put_root(&bloated(), vec![7; limits::ROOT_MAX_BYTES + 1]);
        for segment in &self.segments {
            memory.put_segment(&repository(), segment.clone());
        }
        memory
    }

    /// The same names, but a bit of each frame is flipped.
    pub(super) fn tampered(&self) -> MemoryStratum {
        let memory = self.memory();
        for segment in &self.segments {
            let name = ContentId::of(segment);
            let mut bytes = segment.to_vec();
            for chunk in self.chunks.iter().filter(|chunk| chunk.place.segment == name) {
                let last = chunk.place.offset + u64::from(chunk.place.stored_len) - 1;
                bytes[usize::try_from(last).unwrap()] ^= 1;
            }
            memory.put_segment_as(&repository(), &name, bytes);
        }
        memory
    }

    /// Lays it out as `starling publish` does.
    pub(super) fn write_to(&self, dir: &Path) {
        let put = |path: String, bytes: &[u8]| {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        put(layout::root_path(&repository()), &self.root);
        put(layout::root_path(&bloated()), &vec![7; limits::ROOT_MAX_BYTES + 1]);
        for segment in &self.segments {
            put(layout::object_path(&repository(), &ContentId::of(segment)), segment);
        }
    }

    pub(super) fn assert_all(&self, results: &[Result<Bytes, UpstreamError>]) {
        assert_eq!(results.len(), self.plain.len());
        for (result, plain) in results.iter().zip(&self.plain) {
            assert!(result.as_ref().unwrap() == plain);
        }
    }
}

/// A decorator that fails and dawdles on command.
pub(super) struct Flaky {
    inner: MemoryStratum,
    chunk_failures: Mutex<(usize, u16)>,
    root_failures: Mutex<(usize, u16)>,
    root_delay: Mutex<Duration>,
    asked: Mutex<Vec<usize>>,
    roots_asked: AtomicUsize,
}

impl Flaky {
    pub(super) fn new(inner: MemoryStratum) -> Self {
        Self {
            inner,
            chunk_failures: Mutex::default(),
            root_failures: Mutex::default(),
            root_delay: Mutex::default(),
            asked: Mutex::default(),
            roots_asked: AtomicUsize::new(0),
        }
    }

    pub(super) fn fail_next_chunks(&self, chunks: usize, status: u16) {
        *self.chunk_failures.lock().unwrap() = (chunks, status);
    }

    pub(super) fn fail_next_roots(&self, roots: usize, status: u16) {
        *self.root_failures.lock().unwrap() = (roots, status);
    }

    pub(super) fn delay_roots(&self, delay: Duration) {
        *self.root_delay.lock().unwrap() = delay;
    }

    /// How many chunks each call asked for.
    pub(super) fn asked(&self) -> Vec<usize> {
        self.asked.lock().unwrap().clone()
    }

    pub(super) fn roots_asked(&self) -> usize {
        self.roots_asked.load(SeqCst)
    }

    fn failure(failures: &Mutex<(usize, u16)>) -> Option<UpstreamError> {
        let mut failures = failures.lock().unwrap();
        failures.0 = failures.0.checked_sub(1)?;
        Some(UpstreamError::Status { url: "flaky".into(), status: failures.1 })
    }
}

impl Upstream for Flaky {
    fn fetch_root<'a>(
        &'a self,
        repository: &'a RepositoryName,
    ) -> BoxFuture<'a, Result<Bytes, UpstreamError>> {
        async move {
            self.roots_asked.fetch_add(1, SeqCst);
            let delay = *self.root_delay.lock().unwrap();
            tokio::time::sleep(delay).await;
            match Self::failure(&self.root_failures) {
                Some(error) => Err(error),
                None => self.inner.fetch_root(repository).await,
            }
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
            self.asked.lock().unwrap().push(chunks.len());
            let mut results = self.inner.fetch_chunks(repository, chunks).await;
            for (position, result) in results.iter_mut().enumerate() {
                if let Some(error) = Self::failure(&self.chunk_failures) {
                    *result = Err(error);
                }
                if let Ok(bytes) = result {
                    arrived(position, bytes);
                }
            }
            results
        }
        .boxed()
    }
}

/// The suite. `upstream` serves what `fixture` holds.
pub(super) async fn assert_conforms(upstream: &dyn Upstream, fixture: &Fixture) {
    let repository = repository();
    assert_eq!(upstream.fetch_root(&repository).await.unwrap(), fixture.root);
    let absent: RepositoryName = "absent.example.org".parse().unwrap();
    let error = upstream.fetch_root(&absent).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Status { status: 404, .. }) && error.is_permanent(), "{error}");
    upstream.fetch_root(&bloated()).await.unwrap_err();

    fixture.assert_all(&upstream.fetch_chunks(&repository, &fixture.chunks).await);
    assert!(upstream.fetch_chunks(&repository, &[]).await.is_empty());

    // Each is told of once, with its bytes.
    let told = Mutex::new(Vec::new());
    let hear = |position: usize, bytes: &Bytes| told.lock().unwrap().push((position, bytes.clone()));
    fixture.assert_all(&upstream.fetch_each(&repository, &fixture.chunks, &hear).await);
    let mut told = told.into_inner().unwrap();
    told.sort_by_key(|(position, _)| *position);
    assert_eq!(told, fixture.plain.iter().cloned().enumerate().collect::<Vec<_>>());

    // Any order, with gaps, and asked for twice.
    let order = [5, 0, 3, 3, 1, 4];
    let chunks: Vec<_> = order.iter().map(|i| fixture.chunks[*i]).collect();
    let results = upstream.fetch_chunks(&repository, &chunks).await;
    for (i, result) in order.iter().zip(&results) {
        assert!(result.as_ref().unwrap() == &fixture.plain[*i], "chunk {i}");
    }

    // What is wrong with one chunk does not fail its neighbours.
    let good = fixture.chunks[2];
    let mut other_id = fixture.chunks[1];
    other_id.id = ContentId::of(b"something else");
    let mut too_short = fixture.chunks[3];
    too_short.plain_len -= 1;
    let mut too_long = fixture.chunks[0];
    too_long.plain_len += 1;
    let mut no_segment = fixture.chunks[5];
    no_segment.place.segment = ContentId::of(b"never published");
    let mut nonsense = fixture.chunks[4];
    nonsense.place.offset = u64::MAX;
    let mut past_end = fixture.chunks[5];
    past_end.place.offset += 1 << 20;
    let chunks = [other_id, too_short, good, too_long, no_segment, nonsense, past_end];
    let results = upstream.fetch_chunks(&repository, &chunks).await;
    let errors: Vec<_> = results.iter().map(|result| result.as_ref().err()).collect();
    assert!(
        matches!(errors[0], Some(UpstreamError::WrongBytes { chunk, .. }) if *chunk == other_id.id),
        "{errors:?}"
    );
    assert!(matches!(errors[1], Some(UpstreamError::WrongBytes { .. })), "{errors:?}");
    assert!(results[2].as_ref().unwrap() == &fixture.plain[2]);
    assert!(matches!(errors[3], Some(UpstreamError::WrongBytes { .. })), "{errors:?}");
    assert!(matches!(errors[4], Some(UpstreamError::Status { status: 404, .. })), "{errors:?}");
    assert!(matches!(errors[5], Some(UpstreamError::InvalidRow { .. })), "{errors:?}");
    assert!(errors[6].is_some_and(UpstreamError::is_permanent), "{errors:?}");
}

#[tokio::test]
async fn the_memory_double_conforms() {
    let fixture = Fixture::new();
    assert_conforms(&fixture.memory(), &fixture).await;
}

#[tokio::test]
async fn the_decorators_conform() {
    let fixture = Fixture::new();
    let several = super::Several::new(vec![Box::new(fixture.memory()), Box::new(fixture.memory())]);
    assert_conforms(&super::Retrying::new(several, super::RetryPolicy::default()), &fixture).await;
}
