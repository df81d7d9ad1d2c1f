//! The only file that reads the clocks and the kernel's random generator.
//!
//! Everything else takes time and randomness as values, or asks here; `clippy.toml` forbids the rest.
#![expect(clippy::disallowed_methods, reason = "this is the one place")]

use crate::model::{Generator, Time, UnixTime};
use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time since the first call in this process.
pub fn now() -> Time {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    Time::from_nanos(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}

/// Wall-clock time, for documents that outlive the process. A clock before 1970 counts as 1970.
pub fn unix_now() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |span| span.as_secs()))
}

/// Bytes that nobody can guess, for keys and secrets.
///
/// # Panics
/// When the kernel has no random numbers: no key may be made then.
pub fn secret<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel's random generator answers");
    bytes
}

/// A generator for decisions, seeded by the kernel.
pub fn generator() -> Generator {
    Generator::new(u64::from_le_bytes(secret()))
}

/// Lets one of many equal log lines a minute through, and counts the others: what a stranger can cause
/// again and again must not fill the disk.
#[derive(Debug, Default)]
pub struct Seldom {
    state: std::sync::Mutex<(Option<Time>, u64)>,
}

impl Seldom {
    /// Pause between two lines (guess: often enough to be noticed, seldom enough for any disk).
    const PAUSE: std::time::Duration = std::time::Duration::from_secs(60);

    /// Whether to write the line now: then how many were not written since the last.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(now())
    }

    fn admit_at(&self, now: Time) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if state.0.is_some_and(|last| now.since(last) < Self::PAUSE) {
            state.1 += 1;
            return None;
        }
        state.0 = Some(now);
        Some(std::mem::take(&mut state.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_lines_one_a_minute_is_written_and_the_others_are_counted() {
        let (seldom, second) = (Seldom::default(), std::time::Duration::from_secs(1));
        let at = |s: u32| Time::ZERO + s * second;
        assert_eq!(seldom.admit_at(at(0)), Some(0));
        assert_eq!((seldom.admit_at(at(1)), seldom.admit_at(at(59))), (None, None));
        assert_eq!(seldom.admit_at(at(60)), Some(2));
        assert_eq!(seldom.admit_at(at(120)), Some(0));
    }
}
