//! Pins: files and directories of repositories that stay in the cache, and the catalogs of what is pinned or mounted.
//!
//! A pin follows its repository. When a newer revision is known, the files of that are found, brought into the cache
//! behind all that readers want, and kept in place of the old ones. The catalogs of pinned and mounted repositories are
//! kept, too, as far as they are there: without them nothing of a tree can be read off line.

use super::api::cache::{PinRequest, PinStatus};
use super::api::{Refusal, RefusalKind};
use super::cached::blocking;
use super::mounts::MountTable;
use super::why::find;
use crate::cache::{DiskCache, PinError, PinInfo};
use crate::catalog::{CatalogIndex, FileKind, Inode, Tree};
use crate::chunk::{ChunkSource, Piece, SourceError};
use crate::model::{ChunkRef, Class, ContentId, RepositoryName, Revision};
use futures::stream::StreamExt as _;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How often pins are looked after without being asked (guess).
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Plain bytes from which on a file has a list of its own: the cache's own bound for bodies.
const LARGE_BYTES: u64 = 128 << 10;
/// Most plain bytes of small files that share a list (guess: a pack's worth).
const SHARED_BYTES: u64 = 64 << 20;
/// Most chunks in one list of small files.
const SHARED_CHUNKS: usize = 1 << 14;
/// One in so many small files, chosen by its content, ends a list (guess: some 16 MiB of source code): so a file that is added or
/// removed changes the list that it lies in and no other.
const SHARED_FILES: u16 = 1 << 11;
/// Most chunks of one pin, about 100 bytes each while it is looked after (guess: 64 GiB of ordinary files).
const CHUNKS_MAX: usize = 1 << 20;
/// Chunks that are fetched at once for a pin.
const AT_ONCE: usize = 64;

/// Looks after the pins of an agent's cache.
pub(super) struct Pins {
    cache: Arc<DiskCache>,
    mounts: Arc<MountTable>,
    wake: Notify,
    /// What holds a pin up, by its name.
    problems: Mutex<BTreeMap<String, String>>,
}

/// The name of a pin in the cache: `REPOSITORY:PATH`, `REPOSITORY` for the catalogs of its newest revision, or `REPOSITORY@N` for
/// those of one that is mounted for good.
fn name_of(repository: &RepositoryName, path: Option<&str>) -> String {
    path.map_or_else(|| repository.to_string(), |path| format!("{repository}:{path}"))
}

fn parse(name: &str) -> Option<(RepositoryName, Option<&str>)> {
    let (repository, path) = name.split_once(':').map_or((name, None), |(name, path)| (name, Some(path)));
    let repository = match path {
        Some(_) => repository,
        None => repository.split_once('@').map_or(repository, |(repository, _)| repository),
    };
    Some((repository.parse().ok()?, path))
}

/// A path as it is remembered: `/a/b`, and `/` for all.
fn normal(path: &str) -> String {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    format!("/{}", names.join("/"))
}

impl Pins {
    pub(super) fn new(cache: Arc<DiskCache>, mounts: Arc<MountTable>) -> Self {
        Self { cache, mounts, wake: Notify::new(), problems: Mutex::default() }
    }

    /// All pins.
    pub(super) fn list(&self) -> Vec<PinStatus> {
        self.cache.pins().iter().filter_map(|pin| self.status(pin)).collect()
    }

    fn status(&self, pin: &PinInfo) -> Option<PinStatus> {
        let (repository, path) = parse(&pin.name)?;
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        Some(PinStatus {
            repository,
            path: path.map(str::to_owned),
            revision: Revision(pin.version),
            bytes: pin.bytes,
            here_bytes: pin.here_bytes,
            complete: pin.complete,
            problem: problems.get(&pin.name).cloned(),
        })
    }

    /// Notes what holds a pin up; whether nothing did before.
    fn note(&self, name: &str, problem: Option<String>) -> bool {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match problem {
            Some(problem) => problems.insert(name.to_owned(), problem),
            None => problems.remove(name),
        };
        before.is_none()
    }

    fn named(&self, name: &str) -> Result<PinStatus, Refusal> {
        let pins = self.cache.pins();
        let pin = pins.iter().find(|pin| pin.name == name).and_then(|pin| self.status(pin));
        pin.ok_or_else(|| Refusal::new(RefusalKind::NotFound, format!("{name} is not pinned")))
    }

    /// Pins what the newest revision has there, and begins to bring it.
    pub(super) async fn pin(&self, request: PinRequest) -> Result<PinStatus, Refusal> {
        let path = normal(&request.path);
        let name = name_of(&request.repository, Some(&path));
        let (tree, revision) = self.mounts.newest_tree(&request.repository).await?;
        let lists = lists(&*tree, &path).await?;
        self.set(&name, revision, &lists).await?;
        self.note(&name, None);
        self.wake.notify_one();
        self.named(&name)
    }

    async fn set(&self, name: &str, revision: Revision, lists: &[Arc<[ChunkRef]>]) -> Result<(), Refusal> {
        let (cache, named, lists) = (self.cache.clone(), name.to_owned(), lists.to_vec());
        let of_catalogs = matches!(parse(name), Some((_, None)));
        let pin = if of_catalogs { DiskCache::pin_catalogs } else { DiskCache::pin };
        let pinned = blocking(move || pin(&cache, &named, revision.0, &lists)).await?;
        pinned.map_err(|error| match error {
            PinError::TooLarge { .. } => Refusal::new(RefusalKind::Conflict, error)
                .hint("pin less, end another pin (`starling cache unpin`), or raise `cache_quota_bytes`"),
            PinError::TooMany { .. } => {
                Refusal::new(RefusalKind::Conflict, error).hint("pin whole directories")
            }
            PinError::Unfit => Refusal::new(RefusalKind::Invalid, error),
            PinError::Disk(_) => Refusal::new(RefusalKind::Internal, error),
        })
    }

    /// Ends a pin.
    pub(super) async fn unpin(&self, request: PinRequest) -> Result<PinStatus, Refusal> {
        let name = name_of(&request.repository, Some(&normal(&request.path)));
        let status = self.named(&name)?;
        self.end(&name).await?;
        self.wake.notify_one();
        Ok(status)
    }

    async fn end(&self, name: &str) -> Result<(), Refusal> {
        let (cache, named) = (self.cache.clone(), name.to_owned());
        let ended = blocking(move || cache.unpin(&named)).await?;
        self.note(name, None);
        ended.map(drop).map_err(|error| Refusal::new(RefusalKind::Internal, error))
    }

    /// Looks after all pins until the agent ends.
    pub(super) async fn tend(&self, ending: CancellationToken) {
        let look = async {
            loop {
                for pin in self.cache.pins() {
                    if let Some((repository, Some(path))) = parse(&pin.name) {
                        let problem = self.look_after(&pin, &repository, path).await.err();
                        self.note(&pin.name, problem.map(|refusal| refusal.to_string()));
                    }
                }
                self.end_replaced().await;
                let _ = tokio::time::timeout(LOOK_EVERY, self.wake.notified()).await;
                // Not at the start: whoever mounts then wants other things first.
                self.keep_catalogs().await;
            }
        };
        ending.run_until_cancelled(look).await.unwrap_or(());
    }

    /// Brings what a pin lacks. Nothing to do while it is complete and its revision the newest.
    async fn look_after(
        &self,
        pin: &PinInfo,
        repository: &RepositoryName,
        path: &str,
    ) -> Result<(), Refusal> {
        let newest = self.mounts.newest_revision(repository);
        if pin.complete && newest == Some(Revision(pin.version)) {
            return Ok(());
        }
        let (tree, revision) = self.mounts.newest_tree(repository).await?;
        let lists = lists(&*tree, path).await?;
        if revision != Revision(pin.version) {
            self.set(&pin.name, revision, &lists).await?;
        }
        let source = self.mounts.source(repository);
        // What cannot be had holds up nothing else; the first problem is told.
        let mut brought = Ok(());
        for list in &lists {
            brought = brought.and(self.bring(&*source, list).await);
        }
        brought
    }

    /// What a pin was made of before goes once the new is there.
    async fn end_replaced(&self) {
        let cache = self.cache.clone();
        let ended = blocking(move || cache.end_replaced()).await;
        match ended.map(|ended| ended.map_err(|error| error.to_string())) {
            Ok(Ok(())) => {}
            Ok(Err(problem)) => tracing::debug!(problem, "what pins were made of before stays"),
            Err(refusal) => tracing::debug!(%refusal, "what pins were made of before stays"),
        }
    }

    async fn bring(&self, source: &dyn ChunkSource, list: &Arc<[ChunkRef]>) -> Result<(), Refusal> {
        if self.gather(list).await? {
            return Ok(());
        }
        let lacking = list.iter().filter(|chunk| !self.holds(&chunk.id)).copied().collect();
        let fetched = fetch_all(source, lacking).await;
        fetched.map_err(|error| Refusal::new(RefusalKind::Unavailable, error))
    }

    fn holds(&self, id: &ContentId) -> bool {
        crate::store::ChunkStore::contains(&*self.cache, id)
    }

    async fn gather(&self, list: &Arc<[ChunkRef]>) -> Result<bool, Refusal> {
        let (cache, list) = (self.cache.clone(), list.clone());
        blocking(move || cache.gather(&list)).await
    }

    /// Keeps the catalogs of what is mounted or pinned, as far as they are here, and lets go of all others.
    async fn keep_catalogs(&self) {
        let pins = self.cache.pins();
        let pinned = pins.iter().filter_map(|pin| parse(&pin.name)).filter(|(_, path)| path.is_some());
        let newest: BTreeSet<RepositoryName> =
            pinned.map(|(repository, _)| repository).chain(self.mounts.following()).collect();
        let newest = newest.into_iter().filter_map(|repository| {
            let (revision, index) = self.mounts.catalog_index(&repository)?;
            Some((name_of(&repository, None), (repository, revision, index)))
        });
        let chosen = self.mounts.chosen().into_iter().map(|(repository, of)| {
            let name = format!("{}@{}", name_of(&repository, None), of.revision);
            (name, (repository, of.revision, of.catalog_index))
        });
        let wanted: BTreeMap<String, (RepositoryName, Revision, ChunkRef)> = newest.chain(chosen).collect();
        for pin in &pins {
            let is_of_catalogs = matches!(parse(&pin.name), Some((_, None)));
            if is_of_catalogs
                && !wanted.contains_key(&pin.name)
                && let Err(problem) = self.end(&pin.name).await
            {
                tracing::debug!(name = pin.name, %problem, "its catalogs are still kept");
            }
        }
        let is_over = |name: &str| matches!(parse(name), Some((_, None))) && !wanted.contains_key(name);
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| !is_over(name));
        for (name, (repository, revision, index)) in &wanted {
            let known = pins.iter().find(|pin| pin.name == *name);
            match self.keep_catalogs_of(repository, *revision, *index, name, known).await {
                Ok(()) => _ = self.note(name, None),
                Err(problem) if problem.kind == RefusalKind::Conflict => {
                    if self.note(name, Some(problem.to_string())) {
                        tracing::warn!(
                            name,
                            "its catalogs are not kept, so it may not be readable off line: {problem}"
                        );
                    }
                }
                Err(problem) => tracing::debug!(name, %problem, "its catalogs are not kept"),
            }
        }
    }

    async fn keep_catalogs_of(
        &self,
        repository: &RepositoryName,
        revision: Revision,
        index: ChunkRef,
        name: &str,
        known: Option<&PinInfo>,
    ) -> Result<(), Refusal> {
        let is_new = known.is_none_or(|pin| Revision(pin.version) != revision);
        if !is_new && known.is_some_and(|pin| pin.complete) {
            return Ok(());
        }
        let unavailable = |error: &dyn std::fmt::Display| Refusal::new(RefusalKind::Unavailable, error);
        let read = self.mounts.source(repository).read(vec![Piece::whole(index)], Class::Prefetch).await;
        let bytes = read.map_err(|error| unavailable(&error))?.pop().unwrap_or_default();
        let index_of = CatalogIndex::from_bytes(&bytes).map_err(|error| unavailable(&error))?;
        let mut chunks: BTreeMap<ContentId, ChunkRef> = BTreeMap::from([(index.id, index)]);
        chunks.extend(index_of.catalogs().iter().map(|catalog| (catalog.id, *catalog)));
        let list: Arc<[ChunkRef]> = chunks.into_values().collect();
        if is_new {
            self.set(name, revision, std::slice::from_ref(&list)).await?;
        }
        self.gather(&list).await.map(drop)
    }
}

/// Has all of them fetched and stored that can be had. The error is the first.
async fn fetch_all(source: &dyn ChunkSource, chunks: Vec<ChunkRef>) -> Result<(), SourceError> {
    let fetches =
        futures::stream::iter(chunks).map(|chunk| source.read(vec![Piece::touch(chunk)], Class::Fill));
    let mut fetches = fetches.buffer_unordered(AT_ONCE);
    let mut brought = Ok(());
    while let Some(fetched) = fetches.next().await {
        if let Err(SourceError::Stopping) = fetched {
            return Err(SourceError::Stopping);
        }
        brought = brought.and(fetched.map(drop));
    }
    brought
}

/// The chunks of everything below `path`: a list for each large file, and others for the small ones together.
async fn lists(tree: &dyn Tree, path: &str) -> Result<Vec<Arc<[ChunkRef]>>, Refusal> {
    let unavailable = |error| Refusal::new(RefusalKind::Unavailable, error);
    let mut todo = vec![find(tree, path).await?];
    let mut seen: BTreeSet<Inode> = BTreeSet::new();
    let (mut lists, mut shared) = (Vec::new(), Shared::default());
    let mut count = 0;
    while let Some(at) = todo.pop() {
        match at.kind {
            FileKind::Directory => {
                let entries = tree.list(at.inode).await.map_err(unavailable)?;
                // From the back, so that they are gone through in their order.
                todo.extend(entries.iter().rev().map(|entry| entry.attributes));
            }
            FileKind::File if seen.insert(at.inode) => {
                let chunks = tree.chunks(at.inode).await.map_err(unavailable)?;
                count += chunks.len();
                if count > CHUNKS_MAX {
                    let message = format!("{path} has more than {CHUNKS_MAX} chunks");
                    return Err(Refusal::new(RefusalKind::Invalid, message).hint("pin parts of it"));
                }
                if at.size >= LARGE_BYTES {
                    lists.push(chunks);
                } else {
                    lists.extend(shared.add(&chunks));
                }
            }
            FileKind::File | FileKind::Symlink => {}
        }
    }
    lists.extend(shared.finish());
    if lists.is_empty() {
        return Err(Refusal::new(RefusalKind::Invalid, format!("there is no content at {path}")));
    }
    Ok(lists)
}

/// Gathers the chunks of small files, each once.
#[derive(Default)]
struct Shared {
    chunks: Vec<ChunkRef>,
    bytes: u64,
    seen: BTreeSet<ContentId>,
}

impl Shared {
    /// Adds a file's chunks, and gives a list where one ends.
    fn add(&mut self, chunks: &[ChunkRef]) -> Option<Arc<[ChunkRef]>> {
        for chunk in chunks {
            if self.seen.insert(chunk.id) {
                self.bytes += u64::from(chunk.plain_len);
                self.chunks.push(*chunk);
            }
        }
        let is_full = self.bytes >= SHARED_BYTES || self.chunks.len() >= SHARED_CHUNKS;
        let ends_here = |chunk: &ChunkRef| {
            let digest = chunk.id.digest();
            u16::from_le_bytes([digest[0], digest[1]]).is_multiple_of(SHARED_FILES)
        };
        if is_full || chunks.last().is_some_and(ends_here) { self.finish() } else { None }
    }

    fn finish(&mut self) -> Option<Arc<[ChunkRef]>> {
        self.bytes = 0;
        let chunks = std::mem::take(&mut self.chunks);
        (!chunks.is_empty()).then(|| chunks.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Place;

    #[test]
    fn a_pin_is_named_by_repository_and_path() {
        let repository: RepositoryName = "sw.example.org".parse().unwrap();
        for (given, path) in [("", "/"), ("/", "/"), ("a//b/", "/a/b"), ("/a:b", "/a:b")] {
            assert_eq!(normal(given), path);
            let name = name_of(&repository, Some(path));
            assert_eq!(parse(&name), Some((repository.clone(), Some(path))));
        }
        for name in ["sw.example.org", "sw.example.org@7"] {
            assert_eq!(parse(name), Some((repository.clone(), None)));
        }
    }

    /// Has nothing of the chunks whose number in their segment is even.
    #[derive(Default)]
    struct Half(Mutex<BTreeSet<u32>>);

    impl ChunkSource for Half {
        fn read(
            &self,
            pieces: Vec<Piece>,
            _: Class,
        ) -> futures::future::BoxFuture<'_, Result<Vec<bytes::Bytes>, SourceError>> {
            Box::pin(async move {
                let Piece { chunk, .. } = pieces[0];
                self.0.lock().unwrap().insert(chunk.place.ordinal);
                let (chunk, number) = (chunk.id, chunk.place.ordinal);
                if number.is_multiple_of(2) {
                    return Err(SourceError::Unavailable { chunk, detail: number.to_string() });
                }
                Ok(vec![bytes::Bytes::new()])
            })
        }
    }

    #[tokio::test]
    async fn what_cannot_be_had_holds_up_nothing_else_of_a_pin() {
        let chunk = |ordinal: u32| {
            let id = ContentId::of(&ordinal.to_le_bytes());
            ChunkRef { id, plain_len: 1, place: Place { segment: id, ordinal, offset: 0, stored_len: 1 } }
        };
        let source = Half::default();
        let error = fetch_all(&source, (0..300).map(chunk).collect()).await.unwrap_err();
        assert!(matches!(error, SourceError::Unavailable { detail, .. } if detail == "0"));
        assert_eq!(source.0.lock().unwrap().len(), 300);
    }

    #[test]
    fn small_files_share_lists_and_no_chunk_is_in_two_of_them() {
        let place = Place { segment: ContentId::of(b"s"), ordinal: 0, offset: 0, stored_len: 1 };
        let chunk =
            |number: u32, plain_len| ChunkRef { id: ContentId::of(&number.to_le_bytes()), plain_len, place };
        let mut shared = Shared::default();
        assert_eq!(shared.add(&[chunk(1, 10), chunk(2, 10), chunk(1, 10)]), None);
        let full = shared.add(&[chunk(2, 10), chunk(3, 64 << 20)]).unwrap();
        assert_eq!(full.iter().map(|chunk| chunk.id).collect::<Vec<_>>(), [1, 2, 3].map(|n| chunk(n, 0).id));
        assert_eq!(shared.add(&[chunk(3, 64 << 20), chunk(4, 1)]), None);
        assert_eq!(shared.finish().unwrap().len(), 1);
        assert_eq!(shared.finish(), None);
    }

    #[test]
    fn a_file_that_is_added_changes_the_list_that_it_lies_in_and_no_other() {
        let place = Place { segment: ContentId::of(b"s"), ordinal: 0, offset: 0, stored_len: 1 };
        let lists = |files: &mut dyn Iterator<Item = u32>| -> BTreeSet<Vec<ContentId>> {
            let mut shared = Shared::default();
            let chunk =
                |number: u32| ChunkRef { id: ContentId::of(&number.to_le_bytes()), plain_len: 9_000, place };
            let mut lists: Vec<_> = files.filter_map(|number| shared.add(&[chunk(number)])).collect();
            lists.extend(shared.finish());
            lists.iter().map(|list| list.iter().map(|chunk| chunk.id).collect()).collect()
        };
        let before = lists(&mut (0..40_000));
        let after = lists(&mut (0..100).chain([1_000_000]).chain(100..40_000));
        assert!(before.len() > 5, "{} lists", before.len());
        assert!(
            before.difference(&after).count() <= 3,
            "{} of {}",
            before.difference(&after).count(),
            before.len()
        );
    }
}
