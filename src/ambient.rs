//! The only file that reads the clocks and the kernel's random generator.
//!
//! Everything else takes time and randomness as values, or asks here; `clippy.toml` forbids the rest.
#![expect(clippy::disallowed_methods, reason = "this is the one place")]

use crate::model::{Generator, Time, UnixTime};
use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time since the first call in this process, by tokio's clock: in a runtime whose time is paused, which only
/// tests have, it stands still with that runtime's timers.
pub fn now() -> Time {
    static START: OnceLock<Instant> = OnceLock::new();
    #[cfg(test)]
    if let Some(elapsed) = seeded::elapsed() {
        return Time::ZERO + elapsed;
    }
    let start = *START.get_or_init(Instant::now);
    let elapsed = tokio::time::Instant::now().into_std().saturating_duration_since(start);
    Time::from_nanos(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}

/// Wall-clock time, for documents that outlive the process. A clock before 1970 counts as 1970.
pub fn unix_now() -> UnixTime {
    #[cfg(test)]
    if let Some(elapsed) = seeded::elapsed() {
        return UnixTime(seeded::START_UNIX_S + elapsed.as_secs());
    }
    UnixTime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |span| span.as_secs()))
}

/// Bytes that nobody can guess, for keys and secrets.
///
/// # Panics
/// When the kernel has no random numbers: no key may be made then.
pub fn secret<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[cfg(test)]
    if seeded::fill(&mut bytes) {
        return bytes;
    }
    getrandom::fill(&mut bytes).expect("the kernel's random generator answers");
    bytes
}

/// A generator for decisions, seeded by the kernel.
pub fn generator() -> Generator {
    Generator::new(u64::from_le_bytes(secret()))
}

/// Clocks and randomness of a test that must run alike each time: everything on its thread draws from one seed and
/// reads tokio's clock. Threads that tokio makes for blocking work are outside.
#[cfg(test)]
pub(crate) mod seeded {
    use crate::model::{Generator, Rng as _};
    use std::cell::RefCell;
    use std::time::Duration;
    use tokio::time::Instant;

    /// Wall-clock time at which every such test begins.
    pub(super) const START_UNIX_S: u64 = 1_800_000_000;

    struct World {
        start: Instant,
        generator: Generator,
    }

    thread_local! {
        static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
    }

    /// While it lives, its thread is seeded.
    pub(crate) struct Guard(());

    /// Seeds this thread. To be called inside a runtime whose time is paused.
    pub(crate) fn enter(seed: u64) -> Guard {
        let before = WORLD.replace(Some(World { start: Instant::now(), generator: Generator::new(seed) }));
        assert!(before.is_none(), "a test is seeded once");
        Guard(())
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            WORLD.take();
        }
    }

    pub(super) fn elapsed() -> Option<Duration> {
        WORLD.with_borrow(|world| world.as_ref().map(|world| world.start.elapsed()))
    }

    pub(super) fn fill(bytes: &mut [u8]) -> bool {
        WORLD.with_borrow_mut(|world| {
            let Some(world) = world else { return false };
            for piece in bytes.chunks_mut(8) {
                piece.copy_from_slice(&world.generator.next_u64().to_le_bytes()[..piece.len()]);
            }
            true
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_seeded_thread_reads_the_paused_clock_and_draws_from_its_seed() {
        let draw = || (crate::ambient::secret::<9>(), crate::ambient::now(), crate::ambient::unix_now());
        let mut drawn = Vec::new();
        for seed in [1, 1, 2] {
            let _guard = enter(seed);
            tokio::time::sleep(Duration::from_secs(100)).await;
            drawn.push(draw());
        }
        assert_eq!(drawn[0], drawn[1]);
        assert_ne!(drawn[0].0, drawn[2].0);
        assert_eq!((drawn[0].1.as_nanos(), drawn[0].2.0), (100_000_000_000, START_UNIX_S + 100));
        assert_ne!(draw().2.0, drawn[0].2.0, "outside the clock is the machine's");
    }
}
