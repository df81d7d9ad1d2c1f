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
/// Plain bytes from which on a file has a list of its own in a small cache: the cache's own bound for bodies.
const ALONE_MIN_BYTES: u64 = 128 << 10;
/// Most lists of one file each, of all pins: half of the bodies that pins may have.
const ALONE_MAX: u64 = DiskCache::MAX_PINNED_BODIES as u64 / 2;
/// Plain bytes of a list of several files in the mean, in a small cache (guess).
const SHARED_MIN_BYTES: u64 = 16 << 20;
/// Lists of several files, of all pins, in the mean: a quarter of the bodies. What is left of them is for the last list of each pin,
/// for chance, and for lists that end by their chunks.
const SHARED_MEAN: u64 = DiskCache::MAX_PINNED_BODIES as u64 / 4;
/// Chunks of a list of several files in the mean, where they are so small that the bytes do not count.
const SHARED_CHUNKS: u64 = 1 << 13;
/// A list of several files ends at the latest with so many times its mean of bytes or chunks: one in fifty gets there.
const SHARED_MOST: u64 = 4;
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
        let lists = lists(&*tree, &path, self.cache.pinned_max_bytes()).await?;
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
            PinError::TooManyPins { .. } => Refusal::new(RefusalKind::Conflict, error).hint(
                "end some (`starling cache unpin`), and pin one directory in place of several that lie in it",
            ),
            PinError::TooManyBodies { .. } => Refusal::new(RefusalKind::Conflict, error)
                .hint("pin less, or end another pin (`starling cache unpin`)"),
            PinError::Unfit => Refusal::new(RefusalKind::Invalid, error),
            PinError::Unread(_) => Refusal::new(RefusalKind::Internal, error)
                .hint("mend the cache's disk, or move that file away: it says what else is pinned"),
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
        let lists = lists(&*tree, path, self.cache.pinned_max_bytes()).await?;
        // Also of the same revision: with another quota, or by another version of this program, it is laid out otherwise.
        self.set(&pin.name, revision, &lists).await?;
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

/// The chunks of everything below `path` in lists, where at most so many bytes may be pinned.
async fn lists(tree: &dyn Tree, path: &str, pinned_max_bytes: u64) -> Result<Vec<Arc<[ChunkRef]>>, Refusal> {
    let unavailable = |error| Refusal::new(RefusalKind::Unavailable, error);
    let mut todo = vec![find(tree, path).await?];
    let mut seen: BTreeSet<Inode> = BTreeSet::new();
    let mut layout = Layout::new(pinned_max_bytes);
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
                    return Err(
                        Refusal::new(RefusalKind::Invalid, message).hint("pin the parts of it one by one")
                    );
                }
                layout.add(at.size, chunks);
            }
            FileKind::File | FileKind::Symlink => {}
        }
    }
    let lists = layout.finish();
    if lists.is_empty() {
        return Err(Refusal::new(RefusalKind::Invalid, format!("there is no content at {path}")));
    }
    Ok(lists)
}

/// Lays the files of a pin out in lists, each of which becomes a body in the cache.
///
/// There may be so many bodies, whatever the sizes of files. So what a list holds goes by the bytes that may be pinned: a file
/// of at least a 2 048th of them has a list of its own, and there is room for no more than 2 048 such files. The others lie one
/// after the other in lists of a 1 024th in the mean. Whatever fits by its bytes fits by its bodies, for one pin as for all
/// together, unless it is chunks of next to nothing.
///
/// Where a shared list ends, the content of the file that stands there decides, with a chance that grows with its bytes: a file
/// that comes, goes or changes changes the list that it lies in, and at most the next.
struct Layout {
    alone_bytes: u64,
    shared_bytes: u64,
    lists: Vec<Arc<[ChunkRef]>>,
    /// The list that has not ended yet.
    chunks: Vec<ChunkRef>,
    weight: u64,
    /// Each chunk is in one shared list.
    seen: BTreeSet<ContentId>,
}

impl Layout {
    fn new(pinned_max_bytes: u64) -> Self {
        Self {
            alone_bytes: (pinned_max_bytes / ALONE_MAX).max(ALONE_MIN_BYTES),
            shared_bytes: (pinned_max_bytes / SHARED_MEAN).max(SHARED_MIN_BYTES),
            lists: Vec::new(),
            chunks: Vec::new(),
            weight: 0,
            seen: BTreeSet::new(),
        }
    }

    fn add(&mut self, size: u64, chunks: Arc<[ChunkRef]>) {
        if size >= self.alone_bytes {
            self.lists.push(chunks);
            return;
        }
        let (mut weight, mut last) = (0, None);
        for chunk in chunks.iter() {
            if self.seen.insert(chunk.id) {
                let of_chunk = u64::from(chunk.plain_len).max(self.shared_bytes / SHARED_CHUNKS);
                self.chunks.push(*chunk);
                self.weight += of_chunk;
                (weight, last) = (weight + of_chunk, Some(chunk.id));
                if self.weight >= SHARED_MOST * self.shared_bytes {
                    self.end_list();
                }
            }
        }
        if last.is_some_and(|last| self.ends_with(&last, weight)) {
            self.end_list();
        }
    }

    /// Whether a list ends with a file of this weight, the last of whose new chunks this is. The digest is as good as a die.
    fn ends_with(&self, last: &ContentId, weight: u64) -> bool {
        let digest = last.digest();
        let thrown = u64::from(u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]));
        // Both sides are below 2^64: a quota has at most 2^40 bytes, so a list's mean has less than 2^32.
        thrown * self.shared_bytes < weight.min(self.shared_bytes) << 32
    }

    fn end_list(&mut self) {
        self.weight = 0;
        let chunks = std::mem::take(&mut self.chunks);
        if !chunks.is_empty() {
            self.lists.push(chunks.into());
        }
    }

    fn finish(mut self) -> Vec<Arc<[ChunkRef]>> {
        self.end_list();
        self.lists
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

    fn chunk(number: u32, plain_len: u32) -> ChunkRef {
        let place = Place { segment: ContentId::of(b"s"), ordinal: 0, offset: 0, stored_len: 1 };
        ChunkRef { id: ContentId::of(&number.to_le_bytes()), plain_len, place }
    }

    /// The lists of files of one chunk each, by number and size.
    fn laid_out(pinned_max_bytes: u64, files: impl Iterator<Item = (u32, u32)>) -> Vec<Arc<[ChunkRef]>> {
        let mut layout = Layout::new(pinned_max_bytes);
        files.for_each(|(number, size)| layout.add(size.into(), [chunk(number, size)].into()));
        layout.finish()
    }

    #[test]
    fn small_files_share_lists_and_no_chunk_is_in_two_of_them() {
        let mut layout = Layout::new(16 << 30);
        let large: Arc<[ChunkRef]> = [chunk(1, 10), chunk(9, 8 << 20)].into();
        layout.add(10 + (8 << 20), large.clone());
        layout.add(30, [chunk(1, 10), chunk(2, 10), chunk(1, 10)].into());
        layout.add(20, [chunk(2, 10), chunk(3, 10)].into());
        let lists = layout.finish();
        assert_eq!(lists[0], large);
        assert_eq!(lists[1..].concat(), [chunk(1, 10), chunk(2, 10), chunk(3, 10)]);
        // What never comes to an end by chance ends all the same.
        let mut layout = Layout::new(16 << 30);
        let ends = |number: &u32| layout.ends_with(&chunk(*number, 1).id, 7 << 20);
        let never: Vec<u32> = (0..).filter(|number| !ends(number)).take(20).collect();
        never.iter().for_each(|number| layout.add(7 << 20, [chunk(*number, 7 << 20)].into()));
        let lengths: Vec<_> = layout.finish().iter().map(|list| list.len()).collect();
        assert_eq!(lengths, [10, 10]);
    }

    #[test]
    fn what_fits_by_its_bytes_fits_by_its_bodies_whatever_its_files_are() {
        let folder = tempfile::tempdir().unwrap();
        let quota_bytes = 2 << 30;
        let config = crate::cache::CacheConfig { quota_bytes, free_floor_bytes: 0, ..Default::default() };
        let cache = DiskCache::open(folder.path(), config).unwrap();
        let limit = cache.pinned_max_bytes();
        let alone = u32::try_from(limit / ALONE_MAX).unwrap();
        // Just below what has a list of its own, such, what once had one, and small ones; with room for the lists themselves.
        for size in [alone - 1, alone, 128 << 10, 9_000, 1_000] {
            let count = u32::try_from((limit - (32 << 20)) / u64::from(size)).unwrap().min(1 << 20);
            let lists = laid_out(limit, (0..count).map(|number| (number, size)));
            let chunks: usize = lists.iter().map(|list| list.len()).sum();
            assert_eq!(chunks, count as usize);
            cache.pin("a.b:/x", size.into(), &lists).unwrap();
        }
        for quota_bytes in [20_u64 << 30, 1 << 40] {
            let limit = quota_bytes / 100 * 80;
            let size = u32::try_from(limit / ALONE_MAX - 1).unwrap().min(64 << 20);
            let count = u32::try_from(limit / u64::from(size)).unwrap();
            let lists = laid_out(limit, (0..count).map(|number| (number, size)));
            assert!(lists.len() < DiskCache::MAX_PINNED_BODIES / 2, "{} lists", lists.len());
        }
    }

    #[test]
    fn a_file_that_is_added_or_changed_changes_the_list_that_it_lies_in_and_hardly_another() {
        for (files, size) in [(40_000, 9_000), (3_000, 3 << 20), (6_000, 200 << 10), (300_000, 10)] {
            let lists = |files: &mut dyn Iterator<Item = u32>| -> BTreeSet<Arc<[ContentId]>> {
                let lists = laid_out(16 << 30, files.map(|number| (number, size)));
                lists.iter().map(|list| list.iter().map(|chunk| chunk.id).collect()).collect()
            };
            let before = lists(&mut (0..files));
            assert!(before.len() > 5, "{} lists of {size}", before.len());
            for at in [100, files / 2] {
                let added = lists(&mut (0..at).chain([1_000_000]).chain(at..files));
                let changed = lists(&mut (0..at).chain([1_000_000]).chain(at + 1..files));
                for after in [added, changed] {
                    let new: Vec<_> = after.difference(&before).collect();
                    let bytes: usize = new.iter().map(|list| list.len()).sum::<usize>() * size as usize;
                    assert!(new.len() <= 3 && bytes < 160 << 20, "{} of {}", new.len(), before.len());
                }
            }
        }
    }
}
