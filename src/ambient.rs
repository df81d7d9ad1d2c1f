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
