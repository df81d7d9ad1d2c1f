//! What is fetched before anybody asks for it: what a sequential reader wants next, what lies beside a small file that was
//! missing, and what a program read when a trace of it was recorded.
//!
//! All of it has the class of prefetches, which waits for no reader and for which no reader waits; it is bounded in bytes and in
//! number, and a failure is nobody's: it shows when somebody reads.

use super::content::Content;
use crate::ambient;
use crate::catalog::{Inode, PublishedTrace, Replay, Tree};
use crate::chunk::{ChunkSource, Eagerness, Nearby, Piece};
use crate::model::{ChunkRef, Class, Time};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
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
/// Plain bytes of a replay, where nothing else is said (guess).
pub(super) const REPLAY_MAX_BYTES: u64 = 256 << 20;

/// The traces of the tree that is shown.
#[derive(Default)]
struct Traces {
    by_begin: HashMap<Inode, Vec<usize>>,
    traces: Vec<(PublishedTrace, Mutex<Option<Time>>)>,
}

/// What is fetched ahead for one mount.
pub(super) struct Foresight {
    nearby: Mutex<Nearby>,
    ahead: Arc<Semaphore>,
    replays: Arc<Semaphore>,
    traces: RwLock<Arc<Traces>>,
    replay_max_bytes: u64,
}

impl Foresight {
    /// For a mount that shows `tree`. A replay takes at most so many plain bytes; with 0 none is made.
    pub(super) fn new(tree: &dyn Tree, replay_max_bytes: u64) -> Self {
        let foresight = Self {
            nearby: Mutex::new(Nearby::new(EAGERNESS)),
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
                traces.traces.push((trace.clone(), Mutex::default()));
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
            let (trace, last) = &traces.traces[*number];
            let now = ambient::now();
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|last| now.since(last) < REPLAY_AGAIN) {
                continue;
            }
            let (Ok(permit), Ok(runtime)) =
                (Arc::clone(&self.replays).try_acquire_owned(), Handle::try_current())
            else {
                return;
            };
            *last = Some(now);
            let (source, trace, most) = (Arc::clone(source), trace.clone(), self.replay_max_bytes);
            let span = tracing::debug_span!("replay", repo = %label, trace = %trace.name);
            let replaying = async move {
                match replay(&*source, &trace, most).await {
                    Ok(chunks) => tracing::debug!(chunks, "replayed"),
                    Err(problem) => tracing::debug!(problem, "not replayed"),
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
        leave.fetch(laid.map(Piece::touch).collect(), source, label);
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
    /// Has chunks fetched.
    pub(super) fn fetch(self, pieces: Vec<Piece>, source: &Arc<dyn ChunkSource>, label: &str) {
        if pieces.is_empty() {
            return;
        }
        let Self { permit, runtime } = self;
        let source = Arc::clone(source);
        let span = tracing::debug_span!("prefetch", repo = %label, chunks = pieces.len());
        let ahead = async move {
            let _ = source.read(pieces, Class::Prefetch).await;
            drop(permit);
        };
        runtime.spawn(ahead.instrument(span));
    }
}

/// Fetches what a trace names, in its order, up to `most_bytes` plain bytes. Returns how many chunks these are.
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
