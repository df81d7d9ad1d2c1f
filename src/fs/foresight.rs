//! What is fetched before anybody asks for it: what a sequential reader wants next, what lies beside a small file that was
//! missing, and what a program read when a trace of it was recorded.
//!
//! All of it has the class of prefetches, which waits for no reader and for which no reader waits; it is bounded in bytes and in
//! number, and a failure is nobody's: it shows when somebody reads. What failed does not count as fetched: it is fetched ahead again when
//! there is reason to, but not at once.

use super::content::Content;
use crate::ambient;
use crate::catalog::{Inode, PublishedTrace, Replay, Tree};
use crate::chunk::{ChunkSource, Eagerness, Nearby, Piece};
use crate::model::{ChunkRef, Class, Time};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument as _;

/// Most fetches ahead of readers at once, of all files together, replays not counted (guess).
const MAX_AHEAD: usize = 8;
/// Longer files are fetched by themselves (guess: four chunks of average length).
const SMALL_MAX_BYTES: u64 = 256 << 10;
/// How files are taken along (guess: a block at first, which costs less than half a round trip of a long way; a quarter of a segment at last).
const EAGERNESS: Eagerness = Eagerness { patience: 0, first_bytes: 64 << 10, most_bytes: 2 << 20 };
/// Most replays under way at once (guess).
const MAX_REPLAYS: usize = 4;
/// A trace is not replayed again for so long (guess: what it brought is here).
const REPLAY_AGAIN: Duration = Duration::from_secs(60);
/// After a replay that failed, the next one may come so soon (guess), and after each further one that fails twice as late, up to
/// [`REPLAY_AGAIN`].
const REPLAY_FAILED_AGAIN: Duration = Duration::from_secs(5);
/// Plain bytes of a replay, where nothing else is said (guess).
pub(super) const REPLAY_MAX_BYTES: u64 = 256 << 20;

/// When a trace may be replayed.
struct Pace {
    /// Not before then.
    next: Time,
    /// How soon again, should it fail.
    if_it_fails: Duration,
}

/// A trace of the tree that is shown.
struct Trace {
    published: PublishedTrace,
    pace: Mutex<Pace>,
}

impl Trace {
    fn new(published: PublishedTrace) -> Self {
        let pace = Mutex::new(Pace { next: Time::ZERO, if_it_fails: REPLAY_FAILED_AGAIN });
        Self { published, pace }
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A replay has ended.
    fn replayed(&self, is_whole: bool) {
        let mut pace = self.pace();
        if is_whole {
            pace.if_it_fails = REPLAY_FAILED_AGAIN;
        } else {
            pace.next = ambient::now() + pace.if_it_fails;
            pace.if_it_fails = (2 * pace.if_it_fails).min(REPLAY_AGAIN);
        }
    }
}

/// The traces of the tree that is shown.
#[derive(Default)]
struct Traces {
    by_begin: HashMap<Inode, Vec<usize>>,
    traces: Vec<Arc<Trace>>,
}

/// What is fetched ahead for one mount.
pub(super) struct Foresight {
    nearby: Arc<Mutex<Nearby>>,
    ahead: Arc<Semaphore>,
    replays: Arc<Semaphore>,
    traces: RwLock<Arc<Traces>>,
    replay_max_bytes: u64,
}

impl Foresight {
    /// For a mount that shows `tree`. A replay takes at most so many plain bytes; with 0 none is made.
    pub(super) fn new(tree: &dyn Tree, replay_max_bytes: u64) -> Self {
        let foresight = Self {
            nearby: Arc::new(Mutex::new(Nearby::new(EAGERNESS))),
            ahead: Arc::new(Semaphore::new(MAX_AHEAD)),
            replays: Arc::new(Semaphore::new(MAX_REPLAYS)),
            traces: RwLock::default(),
            replay_max_bytes,
        };
        foresight.show(tree);
        foresight
    }

    /// Another tree is shown from now on.
    pub(super) fn show(&self, tree: &dyn Tree) {
        let mut traces = Traces::default();
        if self.replay_max_bytes > 0 {
            for (number, trace) in tree.traces().iter().enumerate() {
                traces.traces.push(Arc::new(Trace::new(trace.clone())));
                trace.begins.iter().for_each(|inode| traces.by_begin.entry(*inode).or_default().push(number));
            }
        }
        *self.traces.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(traces);
    }

    /// A file is opened, or read without: replays the traces that begin with it. Needs a runtime.
    pub(super) fn begins(&self, inode: Inode, source: &Arc<dyn ChunkSource>, label: &str) {
        let traces = {
            let traces = self.traces.read().unwrap_or_else(PoisonError::into_inner);
            if !traces.by_begin.contains_key(&inode) {
                return;
            }
            Arc::clone(&traces)
        };
        for number in traces.by_begin.get(&inode).into_iter().flatten() {
            let trace = &traces.traces[*number];
            let now = ambient::now();
            let mut pace = trace.pace();
            if now < pace.next {
                continue;
            }
            let (Ok(permit), Ok(runtime)) =
                (Arc::clone(&self.replays).try_acquire_owned(), Handle::try_current())
            else {
                return;
            };
            pace.next = now + REPLAY_AGAIN;
            let (source, trace, most) = (Arc::clone(source), Arc::clone(trace), self.replay_max_bytes);
            let span = tracing::debug_span!("replay", repo = %label, trace = %trace.published.name);
            let replaying = async move {
                let replayed = replay(&*source, &trace.published, most).await;
                trace.replayed(replayed.is_ok());
                match replayed {
                    Ok(chunks) => tracing::debug!(chunks, "replayed"),
                    Err(problem) => tracing::debug!(problem, "not replayed, or not all of it"),
                }
                drop(permit);
            };
            runtime.spawn(replaying.instrument(span));
        }
    }

    /// A file is read from its beginning, and what was read may have been missing: has fetched what lies beside it.
    pub(super) fn beside(
        &self,
        (inode, content): (Inode, &Content),
        is_missing: bool,
        tree: impl FnOnce() -> Option<Arc<dyn Tree>>,
        source: &Arc<dyn ChunkSource>,
        label: &str,
    ) {
        let Some(first) = content.chunks().first().filter(|_| content.attributes.size <= SMALL_MAX_BYTES)
        else {
            return;
        };
        // Before anything is noted: what nobody may fetch must not count as asked for.
        let Some(leave) = self.leave() else { return };
        let place = first.place;
        let runs = self.nearby.lock().unwrap_or_else(PoisonError::into_inner).read(
            &place,
            is_missing,
            ambient::now(),
        );
        let Some(tree) = (!runs.is_empty()).then(tree).flatten() else { return };
        let laid = runs.iter().flat_map(|run| tree.laid_in(inode, &place.segment, run, SMALL_MAX_BYTES));
        let pieces = laid.map(Piece::touch).collect();
        let nearby = Arc::clone(&self.nearby);
        leave.fetch(pieces, source, label, move || {
            let mut nearby = nearby.lock().unwrap_or_else(PoisonError::into_inner);
            nearby.failed(&place.segment, &runs, ambient::now());
        });
    }

    /// Leave to fetch something ahead, if few others do. Needs a runtime.
    pub(super) fn leave(&self) -> Option<Leave> {
        let runtime = Handle::try_current().ok()?;
        let permit = Arc::clone(&self.ahead).try_acquire_owned().ok()?;
        Some(Leave { permit, runtime })
    }
}

/// Leave to fetch ahead, once.
pub(super) struct Leave {
    permit: OwnedSemaphorePermit,
    runtime: Handle,
}

impl Leave {
    /// Has chunks fetched; `failed` is called if one of them could not be.
    pub(super) fn fetch(
        self,
        pieces: Vec<Piece>,
        source: &Arc<dyn ChunkSource>,
        label: &str,
        failed: impl FnOnce() + Send + 'static,
    ) {
        if pieces.is_empty() {
            return;
        }
        let Self { permit, runtime } = self;
        let source = Arc::clone(source);
        let span = tracing::debug_span!("prefetch", repo = %label, chunks = pieces.len());
        let ahead = async move {
            if source.read(pieces, Class::Prefetch).await.is_err() {
                failed();
            }
            drop(permit);
        };
        runtime.spawn(ahead.instrument(span));
    }
}

/// Fetches what a trace names, in its order, up to `most_bytes` plain bytes. Returns how many chunks these are; what cannot be had
/// keeps none of the others from coming.
async fn replay(source: &dyn ChunkSource, trace: &PublishedTrace, most_bytes: u64) -> Result<usize, String> {
    if trace.replay.plain_len > Replay::MAX_BYTES {
        return Err(format!("its list has {} bytes", trace.replay.plain_len));
    }
    let document = source.read(vec![Piece::whole(trace.replay)], Class::Prefetch).await;
    let document = document.map_err(|error| error.to_string())?;
    let replay = Replay::from_bytes(document.first().map_or(&[][..], |bytes| bytes));
    let replay = replay.map_err(|error| error.to_string())?;
    let mut bytes = 0_u64;
    let fits = |chunk: &&ChunkRef| {
        bytes += u64::from(chunk.plain_len);
        bytes <= most_bytes
    };
    let pieces: Vec<Piece> = replay.chunks().iter().take_while(fits).copied().map(Piece::touch).collect();
    let chunks = pieces.len();
    source.read(pieces, Class::Prefetch).await.map_err(|error| error.to_string())?;
    Ok(chunks)
}
