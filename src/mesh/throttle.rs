//! What this node sends and takes of chunks at most, and who goes first when that is less than what is wanted.
//!
//! A token bucket each way, over all peers. Reads and prefetches wait for tokens in the order in which they come; a
//! background fill takes what they leave. While they wait, it has a bucket of its own, filled with a share of the limit: so
//! it slows readers down by that share at most, and never stands still.
//!
//! Only the bytes of chunks count: what members say to each other beside is bounded elsewhere, and small.

use crate::model::Class;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Least limit, in bytes a second: with it each of sixteen chunks that are under way at once still moves at 64 KiB/s, below
/// which peers take a transfer for an offence (`mesh/transfer.rs`).
pub const LIMIT_MIN_BYTES_PER_S: u64 = 1 << 20;
/// What may leave or come at once after a pause, as time at the limit (guess: a few round trips).
const BURST: Duration = Duration::from_millis(100);
/// Least burst, in bytes: the largest step that is written at once.
const BURST_MIN_BYTES: u64 = 256 << 10;
/// Longest pause before what is left is looked at again: others may have gone away meanwhile (guess).
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Limits of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// Bytes of chunks that are sent a second; 0 is no limit, else at least [`LIMIT_MIN_BYTES_PER_S`].
    pub upload_bytes_per_s: u64,
    /// Bytes of chunks that are taken a second; as above.
    pub download_bytes_per_s: u64,
    /// Per cent of either that a background fill has while reads wait, 1 to 100.
    pub background_percent: u8,
}

impl Default for RateLimits {
    /// No limits; a fifth for a fill (guess).
    fn default() -> Self {
        Self { upload_bytes_per_s: 0, download_bytes_per_s: 0, background_percent: 20 }
    }
}

/// What passed one way, and how long it waited for that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Bytes of chunks, also where there is no limit.
    pub bytes: u64,
    /// Time for which the node's own limit held them back, of all transfers together.
    pub waited: Duration,
}

/// One way's figures by class: reads, prefetches, fills.
#[derive(Debug, Default)]
struct WayBook([(AtomicU64, AtomicU64); 3]);

impl WayBook {
    fn snapshot(&self) -> [Passed; 3] {
        self.0.each_ref().map(|(bytes, waited_ns)| Passed {
            bytes: bytes.load(Ordering::Relaxed),
            waited: Duration::from_nanos(waited_ns.load(Ordering::Relaxed)),
        })
    }

    fn of(&self, class: Class) -> &(AtomicU64, AtomicU64) {
        &self.0[class as usize]
    }
}

/// What the limits did, to be read by others.
#[derive(Debug, Default)]
pub(super) struct PassBook {
    up: Arc<WayBook>,
    down: Arc<WayBook>,
}

impl PassBook {
    /// What was sent and what was taken, each by class in their order.
    pub(super) fn snapshot(&self) -> [[Passed; 3]; 2] {
        [self.up.snapshot(), self.down.snapshot()]
    }
}

/// Both ways of a node.
#[derive(Debug, Default)]
pub(super) struct Throttles {
    pub(super) up: Throttle,
    pub(super) down: Throttle,
}

impl Throttles {
    pub(super) fn new(limits: RateLimits) -> Self {
        let share = limits.background_percent;
        Self {
            up: Throttle::new(limits.upload_bytes_per_s, share),
            down: Throttle::new(limits.download_bytes_per_s, share),
        }
    }

    /// What passed so far, growing from 0.
    pub(super) fn book(&self) -> PassBook {
        PassBook { up: self.up.book.clone(), down: self.down.book.clone() }
    }
}

/// One way.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    limited: Option<Limited>,
    book: Arc<WayBook>,
}

#[derive(Debug)]
struct Limited {
    state: Mutex<State>,
    /// Who waits goes in turn: readers, and apart from them fills.
    readers: tokio::sync::Mutex<()>,
    fills: tokio::sync::Mutex<()>,
}

impl Throttle {
    /// At most `bytes_per_s` a second, without a limit when that is 0; `percent` of it for fills while readers wait.
    pub(super) fn new(bytes_per_s: u64, percent: u8) -> Self {
        if bytes_per_s == 0 {
            return Self::default();
        }
        let share = (bytes_per_s.saturating_mul(u64::from(percent)) / 100).max(1);
        let state = State { all: Bucket::new(bytes_per_s), fill: Bucket::new(share), readers_waiting: 0 };
        let limited = Limited {
            state: Mutex::new(state),
            readers: tokio::sync::Mutex::default(),
            fills: tokio::sync::Mutex::default(),
        };
        Self { limited: Some(limited), book: Arc::default() }
    }

    /// Waits until `bytes` may pass; how long that was. Dropping it gives nothing away.
    pub(super) async fn pass(&self, class: Class, bytes: usize) -> Duration {
        let (passed, waited_ns) = self.book.of(class);
        let waited = match &self.limited {
            None => Duration::ZERO,
            Some(limited) => {
                let wait = Wait { began: Instant::now(), waited_ns };
                limited.pass(class, bytes as u64).await;
                wait.began.elapsed()
            }
        };
        passed.fetch_add(bytes as u64, Ordering::Relaxed);
        waited
    }
}

/// A wait, which is noted also when its transfer is given up meanwhile.
struct Wait<'a> {
    began: Instant,
    waited_ns: &'a AtomicU64,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let nanos = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.waited_ns.fetch_add(nanos, Ordering::Relaxed);
    }
}

/// A reader that waits.
struct Waiting<'a>(&'a Limited);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().readers_waiting -= 1;
    }
}

impl Limited {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pass(&self, class: Class, bytes: u64) {
        let is_fill = class == Class::Fill;
        let _waiting = (!is_fill).then(|| {
            self.lock().readers_waiting += 1;
            Waiting(self)
        });
        let turn = if is_fill { &self.fills } else { &self.readers };
        let _turn = turn.lock().await;
        loop {
            // Not in the condition: the lock would be held over the pause.
            let pause = self.lock().take(is_fill, bytes, Instant::now());
            let Some(pause) = pause else { return };
            tokio::time::sleep(pause.min(PAUSE_MAX)).await;
        }
    }
}

#[derive(Debug)]
struct State {
    all: Bucket,
    /// What a fill may take while readers wait.
    fill: Bucket,
    readers_waiting: u32,
}

impl State {
    /// Takes `bytes`, or says how long to wait.
    fn take(&mut self, is_fill: bool, bytes: u64, now: Instant) -> Option<Duration> {
        if !is_fill || self.readers_waiting == 0 {
            return self.all.take(bytes, now);
        }
        let pause = self.fill.take(bytes, now);
        if pause.is_none() {
            // The readers wait for it.
            self.all.force(bytes, now);
        }
        pause
    }
}

/// Tokens are bytes. More than a burst is given when the bucket is full, and then owed.
#[derive(Debug)]
struct Bucket {
    bytes_per_s: u64,
    burst: i128,
    /// In bytes times nanoseconds, so that nothing is lost between two looks.
    tokens: i128,
    looked: Option<Instant>,
}

const SCALE: i128 = 1_000_000_000;

impl Bucket {
    fn new(bytes_per_s: u64) -> Self {
        let burst = u128::from(bytes_per_s) * BURST.as_millis() / 1_000;
        let burst =
            i128::try_from(burst).unwrap_or(i128::MAX / SCALE).max(i128::from(BURST_MIN_BYTES)) * SCALE;
        Self { bytes_per_s, burst, tokens: burst, looked: None }
    }

    fn fill(&mut self, now: Instant) {
        let since = self.looked.replace(now).map_or(Duration::ZERO, |before| now.duration_since(before));
        let nanos = i128::try_from(since.as_nanos()).unwrap_or(i128::MAX);
        let more = nanos.saturating_mul(i128::from(self.bytes_per_s));
        self.tokens = self.tokens.saturating_add(more).min(self.burst);
    }

    fn take(&mut self, bytes: u64, now: Instant) -> Option<Duration> {
        self.fill(now);
        let wanted = (i128::from(bytes) * SCALE).min(self.burst);
        let lacking = wanted - self.tokens;
        if lacking > 0 {
            let nanos = lacking / i128::from(self.bytes_per_s) + 1;
            return Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        }
        self.tokens -= i128::from(bytes) * SCALE;
        None
    }

    fn force(&mut self, bytes: u64, now: Instant) {
        self.fill(now);
        self.tokens -= i128::from(bytes) * SCALE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    const LIMIT: u64 = 10 << 20;
    const STEP: usize = 64 << 10;

    /// Passes steps of `class` for ever and counts their bytes.
    fn keep_passing(throttle: &Arc<Throttle>, class: Class) -> Arc<AtomicU64> {
        let passed = Arc::new(AtomicU64::new(0));
        let (throttle, counter) = (throttle.clone(), passed.clone());
        tokio::spawn(async move {
            loop {
                throttle.pass(class, STEP).await;
                counter.fetch_add(STEP as u64, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        passed
    }

    /// Bytes a second of each, over ten seconds, in thousandths of the limit.
    async fn shares(counters: &[Arc<AtomicU64>]) -> Vec<u64> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before: Vec<u64> = counters.iter().map(|counter| counter.load(Ordering::Relaxed)).collect();
        tokio::time::sleep(Duration::from_secs(10)).await;
        let after = counters.iter().map(|counter| counter.load(Ordering::Relaxed));
        after.zip(before).map(|(after, before)| (after - before) * 1_000 / (10 * LIMIT)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_holds_over_all_who_pass_and_is_used() {
        let throttle = Arc::new(Throttle::new(LIMIT, 20));
        let counters: Vec<_> = (0..5).map(|_| keep_passing(&throttle, Class::Read)).collect();
        let shares = shares(&counters).await;
        let sum: u64 = shares.iter().sum();
        assert!((980..=1_010).contains(&sum), "{shares:?}");
        assert!(shares.iter().all(|share| (190..=210).contains(share)), "each has its turn: {shares:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fill_has_its_share_while_readers_wait_and_everything_while_none_does() {
        let throttle = Arc::new(Throttle::new(LIMIT, 20));
        let fills: Vec<_> = (0..3).map(|_| keep_passing(&throttle, Class::Fill)).collect();
        let alone: u64 = shares(&fills).await.iter().sum();
        assert!((980..=1_010).contains(&alone), "{alone}");
        let reader = keep_passing(&throttle, Class::Read);
        let shares = shares(&[reader, fills[0].clone(), fills[1].clone(), fills[2].clone()]).await;
        let filled: u64 = shares[1..].iter().sum();
        assert!((180..=220).contains(&filled) && (780..=820).contains(&shares[0]), "{shares:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_after_a_pause_does_not_wait_and_one_that_gives_up_holds_nobody_back() {
        let throttle = Arc::new(Throttle::new(LIMIT, 20));
        assert_eq!(throttle.pass(Class::Read, STEP).await, Duration::ZERO);
        // More than the bucket holds is given at once, and paid for afterwards.
        let burst = usize::try_from(LIMIT).unwrap();
        throttle.pass(Class::Read, burst).await;
        let gives_up = tokio::time::timeout(Duration::from_millis(10), throttle.pass(Class::Read, STEP));
        assert!(gives_up.await.is_err());
        let waited = throttle.pass(Class::Fill, STEP).await;
        assert!(waited > Duration::from_millis(800) && waited < Duration::from_millis(1_200), "{waited:?}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(throttle.pass(Class::Prefetch, STEP).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nobody_waits() {
        let throttles = Throttles::new(RateLimits::default());
        for _ in 0..100 {
            assert_eq!(throttles.up.pass(Class::Fill, usize::MAX).await, Duration::ZERO);
            assert_eq!(throttles.down.pass(Class::Read, usize::MAX).await, Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_passed_and_how_long_it_waited_is_noted_by_way_and_class() {
        let limits = RateLimits { upload_bytes_per_s: LIMIT, ..RateLimits::default() };
        let throttles = Throttles::new(limits);
        let (book, burst) = (throttles.book(), usize::try_from(LIMIT).unwrap());
        throttles.up.pass(Class::Read, burst).await;
        let waited = throttles.up.pass(Class::Fill, STEP).await;
        let gives_up =
            tokio::time::timeout(Duration::from_millis(10), throttles.up.pass(Class::Prefetch, burst));
        assert!(gives_up.await.is_err());
        throttles.down.pass(Class::Prefetch, STEP).await;
        let [up, down] = book.snapshot();
        assert_eq!(up[0], Passed { bytes: LIMIT, waited: Duration::ZERO });
        assert_eq!(up[1], Passed { bytes: 0, waited: Duration::from_millis(10) }, "given up, and noted");
        assert_eq!(up[2], Passed { bytes: STEP as u64, waited });
        assert!(waited > Duration::from_millis(800));
        let unlimited = Passed { bytes: STEP as u64, waited: Duration::ZERO };
        assert_eq!(down, [Passed::default(), unlimited, Passed::default()]);
    }
}
