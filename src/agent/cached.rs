//! The cache for the control API: what is in it, checking it, emptying it, and the slow scrub.

use super::api::cache::{CacheCleaned, CacheReport, CacheUnit, CacheUnits, Verified, VerifyRequest};
use super::api::{Obtained, Refusal, RefusalKind};
use super::node::Node;
use crate::cache::policy::UnitKind;
use crate::cache::{DiskCache, UnitInfo};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// Bytes that the scrub reads at once (guess: a sixteenth of a pack, so that a slow disk is not held up for long).
const SCRUB_STEP_BYTES: u64 = 4 << 20;
/// How long the scrub waits when there is nothing to read (guess).
const SCRUB_PAUSE: Duration = Duration::from_secs(60);

/// Plain bytes that one request hashes at most (guess: four packs. Each request goes through the whole table of chunks once,
/// so that small ones would cost more than the hashing).
const VERIFY_STEP_BYTES: u64 = 256 << 20;
/// How long one request hashes, up to the end of the chunk that it is at, so that who watches sees it go on (guess).
const VERIFY_STEP: Duration = Duration::from_secs(1);
/// How long a request waits for those before it (guess: more commands than anybody starts at once).
const VERIFY_PATIENCE: Duration = Duration::from_secs(60);
/// Who hashes, and behind it all others in the order in which they came: several together would take the disk from the readers. One
/// process is one agent with one cache.
static VERIFY_TURN: Mutex<()> = Mutex::const_new(());

/// What the cache holds and has done.
pub(super) fn report(node: &Node) -> CacheReport {
    let cache = node.cache.statistics();
    CacheReport {
        folder: node.settings.cache_dir(),
        used_bytes: cache.bytes,
        quota_bytes: cache.quota_bytes,
        free_floor_bytes: node.settings.cache_free_floor_bytes.0,
        chunks: cache.entries,
        packs: cache.packs,
        bodies: cache.bodies,
        bodies_complete: cache.bodies_complete,
        delivered: Obtained {
            cache_bytes: cache.hits.cache.bytes,
            peers_bytes: cache.hits.peers.bytes,
            strata_bytes: cache.hits.strata.bytes,
        },
        misses: cache.misses,
        evicted_chunks: cache.evicted,
        damaged_chunks: cache.damaged,
        scrubbed_bytes: cache.scrubbed.bytes,
        scrub_rounds: cache.scrub_rounds,
        writing_paused: cache.writing_paused,
        pins: node.pins.list(),
        pins_problem: node.cache.pins_problem(),
    }
}

/// The packs and bodies, in the order in which they would leave, and behind them those that would not.
pub(super) fn units(cache: &DiskCache) -> CacheUnits {
    let mut units = cache.units();
    sort(&mut units);
    CacheUnits { units: units.into_iter().map(unit).collect() }
}

fn sort(units: &mut [UnitInfo]) {
    units.sort_by_key(|unit| {
        let stays = unit.being_written || unit.in_use || unit.pinned;
        // What was never used in this run is older than all others.
        (stays, std::cmp::Reverse(unit.idle.unwrap_or(Duration::MAX)), unit.written)
    });
}

fn unit(unit: UnitInfo) -> CacheUnit {
    CacheUnit {
        kind: match unit.kind {
            UnitKind::Pack => "pack",
            UnitKind::Body => "body",
        }
        .to_owned(),
        name: unit.name,
        bytes: unit.bytes,
        chunks: unit.chunks,
        unverified_chunks: unit.unverified,
        file_bytes: unit.file_bytes,
        complete: unit.complete,
        written: unit.written,
        idle_s: unit.idle.map(|idle| idle.as_secs()),
        being_written: unit.being_written,
        in_use: unit.in_use,
        pinned: unit.pinned,
    }
}

/// Hashes some of a unit, one request at a time.
pub(super) async fn verify(cache: Arc<DiskCache>, request: VerifyRequest) -> Result<Verified, Refusal> {
    let busy = |_| {
        let waited = VERIFY_PATIENCE.as_secs();
        let message = format!("other checks of the cache are under way; waited for {waited} s");
        Refusal::new(RefusalKind::Conflict, message)
            .hint("let them end and try again; if nobody else checks it, its disk does not answer")
    };
    let turn = tokio::time::timeout(VERIFY_PATIENCE, VERIFY_TURN.lock()).await.map_err(busy)?;
    let unit = request.unit.clone();
    let most_bytes = request.most_bytes.min(VERIFY_STEP_BYTES);
    let part = blocking(move || {
        // Until it is done, though whoever asked may be gone by then.
        let _turn = turn;
        cache.verify(&unit, request.from, most_bytes, VERIFY_STEP)
    });
    let part = part.await?.ok_or_else(|| {
        Refusal::new(RefusalKind::NotFound, format!("the cache has no {}: it may have left", request.unit))
    })?;
    let checked = part.checked;
    Ok(Verified {
        chunks: checked.chunks,
        bytes: checked.bytes,
        damaged_chunks: checked.damaged,
        next: part.next,
    })
}

/// Removes what is neither pinned nor in use.
pub(super) async fn clean(cache: Arc<DiskCache>) -> Result<CacheCleaned, Refusal> {
    let cleaned = blocking(move || cache.clean()).await?;
    Ok(CacheCleaned { freed_bytes: cleaned.bytes, kept_bytes: cleaned.kept_bytes })
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    let failed = |error| Refusal::new(RefusalKind::Internal, format!("the agent failed at it: {error}"));
    tokio::task::spawn_blocking(work).await.map_err(failed)
}

/// Hashes what is in the cache, again and again, at `bytes_per_s`; 0: never.
pub(super) async fn scrub(cache: Arc<DiskCache>, bytes_per_s: u64, ending: CancellationToken) {
    if bytes_per_s == 0 {
        return;
    }
    let mut pause = SCRUB_PAUSE;
    while ending.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        let scrubbed = cache.clone();
        let step =
            tokio::task::spawn_blocking(move || scrubbed.scrub(SCRUB_STEP_BYTES.min(bytes_per_s))).await;
        let Ok(checked) = step else { return };
        if checked.damaged > 0 {
            tracing::warn!(
                chunks = checked.damaged,
                "the scrub found damaged chunks in the cache; they are fetched again when they are read"
            );
        }
        pause = match checked.bytes {
            0 => SCRUB_PAUSE,
            bytes => Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheConfig;
    use crate::model::{ContentId, UnixTime};
    use crate::store::{ChunkStore as _, Origin};
    use bytes::Bytes;

    #[test]
    fn those_that_leave_first_are_listed_first_and_those_that_stay_behind_all_that_leave() {
        let recent = UnitInfo {
            name: "recent".into(),
            kind: UnitKind::Body,
            bytes: 1,
            chunks: 1,
            unverified: 0,
            file_bytes: Some(1),
            complete: true,
            written: UnixTime(5),
            idle: Some(Duration::from_secs(1)),
            being_written: false,
            in_use: false,
            pinned: false,
        };
        let unused = UnitInfo { idle: None, ..recent.clone() };
        let named = |name: &str, unit: &UnitInfo| UnitInfo { name: name.into(), ..unit.clone() };
        let mut units = [
            UnitInfo { pinned: true, ..named("pinned", &unused) },
            UnitInfo { in_use: true, written: UnixTime(6), ..named("in use", &unused) },
            UnitInfo { being_written: true, written: UnixTime(7), ..named("being written", &unused) },
            recent.clone(),
            named("unused", &unused),
            UnitInfo { written: UnixTime(4), ..named("unused and older", &unused) },
        ];
        sort(&mut units);
        let names = units.each_ref().map(|unit| unit.name.as_str());
        assert_eq!(names, ["unused and older", "unused", "recent", "pinned", "in use", "being written"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_cache_is_checked_in_parts_and_by_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Arc::new(DiskCache::open(folder.path(), CacheConfig::default()).unwrap());
        for number in 0..3_u8 {
            let bytes = Bytes::from(vec![number; 1000]);
            cache.insert(&ContentId::of(&bytes), &bytes, Origin::Peers).unwrap();
        }
        let unit = units(&cache).units.remove(0).name;
        let part = |from| verify(cache.clone(), VerifyRequest { unit: unit.clone(), from, most_bytes: 1500 });
        let first = part(0).await.unwrap();
        assert_eq!((first.chunks, first.bytes), (2, 2000));
        let rest = part(first.next.unwrap()).await.unwrap();
        assert_eq!((rest.chunks, rest.next), (1, None));
        // Another that does not end, as on a disk that hangs.
        let other = VERIFY_TURN.lock().await;
        let refused = part(0).await.unwrap_err();
        assert_eq!(refused.kind, RefusalKind::Conflict);
        assert!(refused.message.contains("are under way"), "{refused}");
        let waiting = tokio::spawn(part(0));
        tokio::time::sleep(VERIFY_PATIENCE / 2).await;
        assert!(!waiting.is_finished());
        drop(other);
        assert_eq!(waiting.await.unwrap().unwrap(), first);
    }
}
