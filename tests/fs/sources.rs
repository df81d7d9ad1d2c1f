//! What a node reads from, with all that goes wrong with it: strata that are out of reach or lie, a cache that drops things and whose disk
//! rots, catalogs that cannot be had.

use crate::double::{Altered, MemoryTree, Naive, Shelf};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use starling::cache::{CacheConfig, DiskCache};
use starling::catalog::{Tree, TreeError};
use starling::chunk::{ChunkSource, Piece, SourceError, encode};
use starling::fetch::{FetchPath, FetchSettings, Fetcher};
use starling::mesh::{Local, Mesh, MeshStart, News, NewsVerdict, UpstreamFailure, proto};
use starling::model::{ChunkRef, Class, ContentId, Generator, Place, RepositoryName, Rng};
use starling::store::{ChunkStore, Origin};
use starling::upstream::{Arrived, MemoryStratum, Several, Upstream, UpstreamError};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

/// How long a read waits while nobody can deliver, and how long otherwise.
const HASTY: Duration = Duration::from_millis(60);
const PATIENT: Duration = Duration::from_secs(30);
/// Of so many questions to the strata, and to a tree, one fails when the weather is mixed.
const STRATA_ONE_IN: usize = 3;
const TREE_ONE_IN: usize = 40;

fn repository() -> RepositoryName {
    "model.example.org".parse().unwrap()
}

/// How much goes wrong at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Nothing.
    Fair,
    /// Some questions fail; what is asked again succeeds.
    Mixed,
    /// No stratum delivers; catalogs fail as in mixed weather.
    Storm,
}

/// What goes wrong when, by a seed.
pub(crate) struct Trouble(Mutex<(Weather, Generator)>);

impl Trouble {
    fn weather(&self) -> Weather {
        self.0.lock().unwrap().0
    }

    /// Whether it strikes now, once in so many times, and a number that says how.
    fn strikes(&self, one_in: usize) -> Option<u64> {
        let (weather, random) = &mut *self.0.lock().unwrap();
        let strikes = *weather != Weather::Fair && random.below(one_in) == 0;
        strikes.then(|| random.next_u64())
    }
}

/// A stratum that has everything, and delivers what it likes.
struct Moody {
    right: MemoryStratum,
    /// Bytes that are not what their names say.
    wrong: MemoryStratum,
    trouble: Arc<Trouble>,
    failures: AtomicU64,
    lies: AtomicU64,
}

impl Upstream for Moody {
    fn fetch_root<'a>(&'a self, name: &'a RepositoryName) -> BoxFuture<'a, Result<Bytes, UpstreamError>> {
        self.right.fetch_root(name)
    }

    fn fetch_each<'a>(
        &'a self,
        name: &'a RepositoryName,
        chunks: &'a [ChunkRef],
        arrived: &'a Arrived<'a>,
    ) -> BoxFuture<'a, Vec<Result<Bytes, UpstreamError>>> {
        async move {
            let mut results = Vec::new();
            for (position, chunk) in chunks.iter().enumerate() {
                let one_in = if self.trouble.weather() == Weather::Storm { 1 } else { STRATA_ONE_IN };
                let from = match self.trouble.strikes(one_in) {
                    None => &self.right,
                    Some(how) if how.is_multiple_of(3) => {
                        self.failures.fetch_add(1, Ordering::Relaxed);
                        results.push(Err(UpstreamError::Status { url: "moody".to_owned(), status: 503 }));
                        continue;
                    }
                    Some(_) => {
                        self.lies.fetch_add(1, Ordering::Relaxed);
                        &self.wrong
                    }
                };
                let again = |_: usize, bytes: &Bytes| arrived(position, bytes);
                results.extend(from.fetch_each(name, std::slice::from_ref(chunk), &again).await);
            }
            results
        }
        .boxed()
    }
}

/// The node under the mesh.
struct Under {
    cache: Arc<DiskCache>,
    strata: Several,
}

impl Local for Under {
    fn holds(&self, id: &ContentId) -> bool {
        self.cache.contains(id)
    }
    fn load(&self, id: ContentId) -> BoxFuture<'_, Option<Bytes>> {
        async move { self.cache.read_all(&id) }.boxed()
    }
    fn keep(&self, id: ContentId, bytes: Bytes, _: bool) -> BoxFuture<'_, bool> {
        async move { self.cache.insert(&id, &bytes, Origin::Strata).is_ok() }.boxed()
    }
    fn fetch_upstream<'a>(
        &'a self,
        name: RepositoryName,
        chunks: Vec<ChunkRef>,
        arrived: &'a (dyn Fn(usize, &Bytes) + Send + Sync),
    ) -> BoxFuture<'a, Vec<Result<(), UpstreamFailure>>> {
        async move {
            let results = self.strata.fetch_each(&name, &chunks, arrived).await;
            let failure = |error: UpstreamError| UpstreamFailure::Unreachable(error.to_string());
            results.into_iter().map(|result| result.map(drop).map_err(failure)).collect()
        }
        .boxed()
    }
    fn judge(&self, _: News) -> BoxFuture<'_, NewsVerdict> {
        async { NewsVerdict::Known }.boxed()
    }
    fn all_news(&self) -> Vec<News> {
        Vec::new()
    }
}

/// A node that is alone: its cache on a disk, the fetch path, the mesh's core, and two strata.
pub(crate) struct Stack {
    cache: Arc<DiskCache>,
    strata: [Arc<Moody>; 2],
    trouble: Arc<Trouble>,
    patient: FetchPath,
    hasty: FetchPath,
    /// Whether each byte is checked at each read: then the disk may rot.
    verify_always: bool,
    folder: TempDir,
}

impl Stack {
    /// Needs a runtime.
    pub(crate) fn new(seed: u64, verify_always: bool) -> Arc<Self> {
        let trouble = Arc::new(Trouble(Mutex::new((Weather::Fair, Generator::stream(seed, 2)))));
        let strata = [(); 2].map(|()| {
            Arc::new(Moody {
                right: MemoryStratum::default(),
                wrong: MemoryStratum::default(),
                trouble: Arc::clone(&trouble),
                failures: AtomicU64::new(0),
                lies: AtomicU64::new(0),
            })
        });
        let folder = tempfile::tempdir().unwrap();
        let config = CacheConfig { free_floor_bytes: 0, verify_always, ..CacheConfig::default() };
        let cache = Arc::new(DiskCache::open(folder.path(), config).unwrap());
        let upstreams = strata.iter().map(|one| Box::new(Arc::clone(one)) as Box<dyn Upstream>).collect();
        let local = Arc::new(Under { cache: Arc::clone(&cache), strata: Several::new(upstreams) });
        let settings = proto::Settings { upstream_retry_ms: 5, ..proto::Settings::default() };
        let mesh = Mesh::start(MeshStart { local, network: None, settings, record: None }).unwrap();
        let path = |read_deadline| {
            let settings =
                FetchSettings { read_deadline, prefetch_deadline: HASTY, ..FetchSettings::default() };
            Fetcher::new(Arc::clone(&cache) as _, Arc::clone(&mesh) as _, settings).repository(repository())
        };
        let (patient, hasty) = (path(PATIENT), path(HASTY));
        Arc::new(Self { cache, strata, trouble, patient, hasty, verify_always, folder })
    }

    /// How often a stratum failed, how often one lied, and how many damaged chunks the cache found.
    pub(crate) fn troubles(&self) -> (u64, u64, u64) {
        let sum = |of: fn(&Moody) -> &AtomicU64| {
            self.strata.iter().map(|one| of(one).load(Ordering::Relaxed)).sum::<u64>()
        };
        (sum(|one| &one.failures), sum(|one| &one.lies), self.cache.statistics().damaged)
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.trouble.0.lock().unwrap().0 = weather;
    }
}

impl ChunkSource for Stack {
    fn read(&self, pieces: Vec<Piece>, class: Class) -> BoxFuture<'_, Result<Vec<Bytes>, SourceError>> {
        let is_storm = self.trouble.weather() == Weather::Storm;
        if is_storm { self.hasty.read(pieces, class) } else { self.patient.read(pieces, class) }
    }

    fn body(&self, chunks: &Arc<[ChunkRef]>) -> BoxFuture<'_, Option<Arc<File>>> {
        self.patient.body(chunks)
    }
}

impl Shelf for Stack {
    fn store(&self, bytes: &[u8], cut: usize) -> Vec<ChunkRef> {
        let put = |plain: &[u8]| {
            let id = ContentId::of(plain);
            let frame = encode(plain, 1).unwrap();
            let stored_len = u32::try_from(frame.len()).unwrap();
            // A whole frame of other bytes, one that is cut short, or one that is none.
            let mut other = plain.to_vec();
            other[plain.len() / 2] ^= 1;
            let mut lie = encode(&other, 1).unwrap();
            match id.key() % 3 {
                0 => lie.resize(frame.len(), 0),
                1 => lie.truncate(frame.len() / 2),
                _ => lie = frame.iter().map(|byte| byte ^ 0x55).collect(),
            }
            for one in &self.strata {
                one.right.put_segment_as(&repository(), &id, frame.clone());
                one.wrong.put_segment_as(&repository(), &id, lie.clone());
            }
            let place = Place { segment: id, ordinal: 0, offset: 0, stored_len };
            ChunkRef { id, plain_len: u32::try_from(plain.len()).unwrap(), place }
        };
        bytes.chunks(cut.max(1)).map(put).collect()
    }

    fn tree(&self, naive: &Naive) -> Arc<dyn Tree> {
        Arc::new(shaky(MemoryTree::new(naive, self), Arc::clone(&self.trouble)))
    }

    fn is_troubled(&self) -> bool {
        self.trouble.weather() != Weather::Fair
    }

    fn disturb(&self, random: &mut Generator) {
        match random.below(6) {
            0 | 1 => self.set_weather(Weather::Fair),
            2 => self.set_weather(Weather::Mixed),
            3 => self.set_weather(Weather::Storm),
            4 => {
                self.cache.clean();
            }
            _ if self.verify_always => rot(self.folder.path(), random),
            _ => {}
        }
    }
}

/// Flips a bit somewhere in each file of a cache that holds chunks.
fn rot(folder: &Path, random: &mut Generator) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rot(&path, random);
            continue;
        }
        // Lists and locks hold no chunks.
        let is_body = folder.ends_with("bodies") && path.extension().is_none();
        if !is_body && path.extension().is_none_or(|extension| extension != "pack") {
            continue;
        }
        // It may leave at any moment.
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else { continue };
        let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
        let (at, mut byte) = (random.below(len) as u64, [0]);
        if file.read_exact_at(&mut byte, at).is_ok() {
            file.write_all_at(&[byte[0] ^ 1 << random.below(8)], at).unwrap();
        }
    }
}

/// A tree whose catalogs cannot be had now and then.
fn shaky(tree: MemoryTree, trouble: Arc<Trouble>) -> Altered {
    Altered::failing(tree, move |_, _| {
        let how = trouble.strikes(TREE_ONE_IN)?;
        let (chunk, detail) = (ContentId::of(b"a catalog"), "the test hides it".to_owned());
        let error = TreeError::Source(SourceError::Unavailable { chunk, detail });
        if how.is_multiple_of(2) {
            return Some(std::future::ready(error).boxed());
        }
        let later = async move {
            tokio::task::yield_now().await;
            error
        };
        Some(later.boxed())
    })
}
