//! How long peers take: an estimate of the 95th percentile of each one's answers, in a few bytes a peer.
//!
//! A quantile is followed by steps (Ma, Muthukrishnan, Sandler: "Frugal streaming for estimating quantiles", 2013): what
//! is above the estimate raises it by 19 steps, what is below lowers it by one, so that it rests where one of twenty is
//! above. Steps are taken on the logarithm of the time, so that one step fits microseconds and seconds alike, and old
//! answers count ever less. Times are counted for each 64 KiB, and one such unit more for the way there and back.

use super::{Peer, Settings, prefetch};
use crate::model::{Class, Time};
use std::time::Duration;

/// Steps of the logarithm in one doubling.
const STEPS: u64 = 64;
/// Steps up for a longer time, against one down for a shorter: 95 of 100.
const UP: u16 = 19;
/// Answers that only widen the estimate, to twice the longest of them, before it is followed by steps (guess).
const FIRST: u8 = 8;
/// Bytes that count as one unit.
const UNIT_BYTES: u32 = 64 << 10;
/// What one hedge costs, in hundredths; each ask earns [`Settings::hedge_percent`] of them.
const HEDGE_COST: u32 = 100;

/// A running 95th percentile, as 64 times the logarithm of nanoseconds a unit.
#[derive(Clone, Copy, Debug, Default)]
struct Quantile {
    log: u16,
    seen: u8,
}

impl Quantile {
    fn note(&mut self, log: u16) {
        if self.seen < FIRST {
            self.seen += 1;
            self.log = self.log.max(log.saturating_add(64));
        } else if log > self.log {
            self.log = self.log.saturating_add(UP);
        } else {
            self.log -= 1.min(self.log);
        }
    }

    fn is_settled(self) -> bool {
        self.seen >= FIRST
    }
}

/// 64 times the logarithm of `x`, straight between powers of two.
fn log2(x: u64) -> u16 {
    let whole = u64::from(x.max(1).ilog2());
    let fraction = (u128::from(x.max(1) - (1 << whole)) * u128::from(STEPS)) >> whole;
    u16::try_from(u128::from(whole * STEPS) + fraction).unwrap_or(u16::MAX)
}

/// The inverse of [`log2`].
fn exp2(log: u16) -> u64 {
    let (whole, fraction) = (u64::from(log) / STEPS, u64::from(log) % STEPS);
    let Some(power) = 1_u64.checked_shl(u32::try_from(whole).unwrap_or(u32::MAX)) else { return u64::MAX };
    u64::try_from(u128::from(power) + u128::from(power) * u128::from(fraction) / u128::from(STEPS))
        .unwrap_or(u64::MAX)
}

fn units(len_bytes: u32) -> u64 {
    u64::from(len_bytes / UNIT_BYTES) + 1
}

/// Not aligned, for there are many nodes in a simulation.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
struct Speed {
    peer: Peer,
    log: u16,
    seen: u8,
}

impl Speed {
    fn new(peer: Peer, Quantile { log, seen }: Quantile) -> Self {
        Self { peer, log, seen }
    }

    fn quantile(self) -> Quantile {
        Quantile { log: self.log, seen: self.seen }
    }
}

/// The pace of peers that answered lately, and how many more hedges may be made. Direct-mapped: a further peer
/// displaces another.
#[derive(Clone, Debug)]
pub(super) struct Speeds {
    entries: Vec<Speed>,
    all: Quantile,
    credit: u32,
}

impl Speeds {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { entries: Vec::new(), all: Quantile::default(), credit: most_credit(settings) }
    }

    /// See [`super::prefetch`].
    pub(super) fn prefetch(&self, peer: Peer) {
        prefetch(self.entries.as_ptr().wrapping_add(peer.0 as usize % self.entries.len().max(1)));
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Speed>()
    }

    /// Notes that `peer` delivered `len_bytes` after `span`.
    pub(super) fn note(&mut self, peer: Peer, len_bytes: u32, span: Duration, slots: u16) {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let log = log2(nanos / units(len_bytes));
        let slots = usize::from(slots.max(1));
        if self.entries.len() != slots {
            self.entries.resize(slots, Speed::new(Peer(u32::MAX), Quantile::default()));
        }
        let entry = &mut self.entries[peer.0 as usize % slots];
        let mut own = if { entry.peer } == peer { entry.quantile() } else { Quantile::default() };
        own.note(log);
        *entry = Speed::new(peer, own);
        self.all.note(log);
    }

    /// What `peer` stays below in 95 of 100 cases, as 64 times the logarithm of nanoseconds a unit: that of all peers while
    /// it is hardly known, and `None` while nobody is.
    fn log_of(&self, peer: Peer) -> Option<u16> {
        let entry = match self.entries.len() {
            0 => None,
            slots => Some(self.entries[peer.0 as usize % slots]).filter(|speed| { speed.peer } == peer),
        };
        let all = self.all.is_settled().then_some(self.all.log);
        match entry.map(Speed::quantile) {
            Some(own) if own.is_settled() => Some(own.log),
            Some(own) => all.map(|all| all.max(own.log)),
            None => all,
        }
    }

    /// How long `peer` takes for `len_bytes` in 95 of 100 cases at most. `None`: nothing is known of anybody.
    pub(super) fn usual(&self, peer: Peer, len_bytes: u32) -> Option<Duration> {
        self.log_of(peer).map(|log| Duration::from_nanos(exp2(log).saturating_mul(units(len_bytes))))
    }

    /// An ask that is no hedge was made.
    pub(super) fn earn(&mut self, settings: &Settings) {
        self.credit = (self.credit + u32::from(settings.hedge_percent)).min(most_credit(settings));
    }

    /// Whether another hedge may be made.
    pub(super) fn can_pay(&self) -> bool {
        self.credit >= HEDGE_COST
    }

    /// A hedge was made.
    pub(super) fn pay(&mut self) {
        self.credit = self.credit.saturating_sub(HEDGE_COST);
    }
}

fn most_credit(settings: &Settings) -> u32 {
    if settings.hedge_percent == 0 { 0 } else { HEDGE_COST * u32::from(settings.hedge_burst) }
}

/// When a source that was asked at `since` is slow enough to ask another beside it, and when it counts as stalled.
/// A fill is never urgent: it asks another only when its source stalls.
pub(super) fn hedge_times(
    usual: Option<Duration>,
    class: Class,
    since: Time,
    settings: &Settings,
) -> (Time, Time) {
    let silent = Duration::from_millis(u64::from(settings.ask_ms));
    let stalled = since + usual.map_or(silent, |usual| silent.max(2 * usual));
    let least = Duration::from_millis(u64::from(settings.hedge_min_ms));
    let slow = usual.map_or(stalled, |usual| since + usual.max(least));
    (if class == Class::Fill { stalled } else { slow.min(stalled) }, stalled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Generator, Rng};

    #[test]
    fn the_logarithm_and_its_inverse_agree() {
        for x in [1_u64, 2, 3, 1_000, 77_777, 1 << 40, (1 << 40) + (1 << 39)] {
            let again = exp2(log2(x));
            assert!(again <= x && x - again <= x / 32, "{x} became {again}");
        }
        assert!(log2(u64::MAX) < u16::MAX && exp2(u16::MAX) == u64::MAX);
    }

    #[test]
    fn the_estimate_finds_the_95th_percentile_and_follows_a_change() {
        let (mut rng, mut quantile) = (Generator::new(4), Quantile::default());
        // Uniform between 0 and 10 ms, then ten times as much.
        for scale in [10_000_000, 100_000_000] {
            let mut above = 0;
            for round in 0..6_000 {
                let log = log2(rng.below(scale) as u64);
                above += u32::from(round >= 4_000 && log > quantile.log);
                quantile.note(log);
            }
            assert!((60..140).contains(&above), "{above} of 2 000 at scale {scale}");
        }
    }

    #[test]
    fn a_peer_is_measured_by_itself_and_a_new_one_by_all() {
        let mut speeds = Speeds::new(&Settings::default());
        assert_eq!(speeds.usual(Peer(1), 9), None);
        for _ in 0..100 {
            speeds.note(Peer(1), 1 << 20, Duration::from_millis(170), 8);
            speeds.note(Peer(2), 1 << 20, Duration::from_millis(17), 8);
        }
        let ms = |peer, len| speeds.usual(Peer(peer), len).unwrap().as_millis();
        assert!((160..350).contains(&ms(1, 1 << 20)) && (15..35).contains(&ms(2, 1 << 20)));
        assert!(ms(1, 4 << 20) > 3 * ms(1, 1 << 20), "longer chunks take longer");
        assert!((80..350).contains(&ms(3, 1 << 20)), "like the slower ones: {}", ms(3, 1 << 20));
    }

    #[test]
    fn hedges_are_a_share_of_asks_and_a_few_more() {
        let settings = Settings::default();
        let mut speeds = Speeds::new(&settings);
        let mut made = 0;
        for _ in 0..10_000 {
            speeds.earn(&settings);
            if speeds.can_pay() {
                speeds.pay();
                made += 1;
            }
        }
        assert!((500..=500 + u32::from(settings.hedge_burst)).contains(&made), "{made}");
        assert!(!Speeds::new(&Settings { hedge_percent: 0, ..settings }).can_pay());
    }
}
