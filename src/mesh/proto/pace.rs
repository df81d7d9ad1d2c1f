//! How fast the own links are, and what may be under way at once because of it.
//!
//! The core sees no bytes, only when each chunk begins and ends. That is enough: over a time in which something is always
//! under way, what ended divided by the time is a lower bound of the link's speed, and the largest of the last such
//! figures is its estimate (as in BBR: Cardwell, Cheng, Gunn, Yeganeh, Jacobson, "BBR: congestion-based congestion
//! control", 2016). Times without transfers do not count; until the first figure nothing is assumed.
//!
//! From it follows how much is under way at once. A few pieces, however long, balance the links of a fleet: eight transfers
//! at a time on each link were measured to be enough where messages take no time. What fits into the way there and back
//! comes on top (the product of bandwidth and delay), for that much is on its way between the end of one transfer
//! and the beginning of the next. And nothing may be under way for long: where a piece takes long, there are
//! fewer. So a link of 20 Mbit/s with a full queue of 50 ms before it and one of 25 Gbit/s follow the same three rules.

use super::Settings;
use crate::model::{Class, Time};
use std::time::Duration;

/// Bytes that may be under way while the speed is not known: eight slices.
const UNKNOWN_BYTES: u64 = 1 << 18;
/// Shortest busy time that is measured (guess: several ways there and back, and many steps of any clock).
const SPAN_MIN: Duration = Duration::from_millis(25);
/// Bytes that must end within it, as a multiple of those under way: what was begun before it and ends within it may make
/// the estimate too large by the inverse (guess).
const TURNS_MIN: u64 = 2;
/// How long a figure counts: up to twice as long (guess: longer than the pauses of a busy neighbour).
const FRESH: Duration = Duration::from_secs(10);
/// Longest way there and back that counts (guess: what is longer was not on its way, but in somebody's hands).
const TRIP_MAX: Duration = Duration::from_millis(500);

/// The speed of one link in one direction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meter {
    /// Transfers under way, and their bytes.
    pub(super) count: u32,
    pub(super) bytes: u64,
    /// When the time that is being measured began, what has ended since, and the most that was under way.
    since: Time,
    ended: u64,
    most: u64,
    /// The largest figures in bytes a second: since `turned`, and in the time before.
    best: [u64; 2],
    turned: Time,
}

impl Meter {
    /// A transfer begins.
    pub(super) fn begin(&mut self, now: Time, len_bytes: u32) {
        if self.count == 0 {
            (self.since, self.ended, self.most) = (now, 0, 0);
        }
        self.count += 1;
        self.bytes += u64::from(len_bytes);
        self.most = self.most.max(self.bytes);
    }

    /// A transfer ends, having moved all or nothing.
    pub(super) fn end(&mut self, now: Time, len_bytes: u32, ok: bool) {
        debug_assert!(self.count > 0 && self.bytes >= u64::from(len_bytes), "it had begun: {self:?}");
        self.count = self.count.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(u64::from(len_bytes));
        self.ended += if ok { u64::from(len_bytes) } else { 0 };
        let span = now.since(self.since);
        if span < SPAN_MIN || self.ended < TURNS_MIN * self.most {
            return;
        }
        let rate = u128::from(self.ended) * 1_000_000_000 / span.as_nanos().max(1);
        if now.since(self.turned) > FRESH {
            (self.best, self.turned) = ([0, self.best[0]], now);
        }
        self.best[0] = self.best[0].max(u64::try_from(rate).unwrap_or(u64::MAX));
        (self.since, self.ended, self.most) = (now, 0, self.bytes);
    }

    /// Bytes a second, as far as it is known.
    pub(super) fn rate(&self) -> Option<u64> {
        Some(self.best[0].max(self.best[1])).filter(|rate| *rate > 0)
    }

    /// How long the link takes for all that is under way, at `slowest` bytes a second at least: an estimate from a time in
    /// which others stalled must not make this node patient.
    pub(super) fn takes(&self, slowest: u64) -> Duration {
        let rate = self.rate().unwrap_or(slowest).max(slowest);
        let nanos = u128::from(self.bytes) * 1_000_000_000 / u128::from(rate.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// What the link moves in `span`, if that is known.
    pub(super) fn within(&self, span: Duration) -> Option<u64> {
        let bytes = u128::from(self.rate()?) * span.as_nanos() / 1_000_000_000;
        Some(u64::try_from(bytes).unwrap_or(u64::MAX))
    }
}

/// What bounds the transfers under way on one link.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// That many in any case, however long they take.
    least: u32,
    /// That many if they take no longer than `span`; more only as far as they are on their way.
    even: u32,
    /// So many bytes, however many pieces they are, if they take no longer than `span`.
    even_bytes: u64,
    /// The time that all of them together may take.
    span: Duration,
    /// Bytes that count where the speed is not known.
    unknown_bytes: u64,
}

/// The meters of one node.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Uploads.
    pub(super) up: Meter,
    /// Asks of peers.
    pub(super) down: Meter,
    /// Fetches from the strata.
    pub(super) strata: Meter,
    /// From an ask to an answer without data: a running mean, in nanoseconds.
    trip_ns: u64,
}

impl Pace {
    /// A peer answered an ask at once, after `span`.
    pub(super) fn note_trip(&mut self, span: Duration) {
        let span = u64::try_from(span.min(TRIP_MAX).as_nanos()).unwrap_or(u64::MAX);
        // One sixteenth of the news, which steadies it over about as many answers.
        self.trip_ns = if self.trip_ns == 0 { span } else { self.trip_ns - self.trip_ns / 16 + span / 16 };
    }

    /// The way there and back, with the queues on it.
    fn trip(&self) -> Duration {
        Duration::from_nanos(self.trip_ns)
    }

    /// Whether one more may be under way beside `count` of `bytes` together.
    fn has_room(&self, meter: &Meter, (count, bytes): (u32, u64), bounds: Bounds) -> bool {
        if count < bounds.least {
            return true;
        }
        if bytes >= meter.within(bounds.span).unwrap_or(bounds.unknown_bytes) {
            return false;
        }
        // Beyond the even number, the bytes that are on their way.
        let beyond = bytes / u64::from(count.max(1)) * u64::from((count + 1).saturating_sub(bounds.even));
        count < bounds.even || bytes < bounds.even_bytes || beyond <= meter.within(self.trip()).unwrap_or(0)
    }

    /// What an upload of `len_bytes` counts: a catalog of hundreds of MiB must not keep all others waiting.
    pub(super) fn upload_len(len_bytes: u32, settings: &Settings) -> u32 {
        len_bytes.min(u32::try_from(settings.upload_bytes / 2).unwrap_or(u32::MAX).max(1))
    }

    /// Whether another upload may begin. A read may when others would have to wait, within half as many again.
    pub(super) fn may_upload(&self, class: Class, settings: &Settings) -> bool {
        let bounds = Bounds {
            least: settings.uploads_min,
            even: settings.uploads_even,
            even_bytes: settings.uploads_even_bytes,
            span: Duration::from_millis(u64::from(settings.uploads_ms)),
            unknown_bytes: UNKNOWN_BYTES,
        };
        let all = (self.up.count, self.up.bytes);
        let others = if class == Class::Read { (all.0 - all.0 / 3, all.1 - all.1 / 3) } else { all };
        all.0 < settings.uploads_max
            && all.1 < settings.upload_bytes
            && self.has_room(&self.up, others, bounds)
    }

    /// Whether another ask may wait for an upload, beside `count` of `bytes` together: a few, as long as their turn comes soon; and where
    /// many uploads run, a quarter of those.
    pub(super) fn may_queue(&self, (count, bytes): (usize, u64), settings: &Settings) -> bool {
        let soon = Duration::from_millis(u64::from(settings.uploads_ms) / 2);
        count == 0
            || (bytes < settings.upload_queue_bytes
                && ((count < settings.queue_even as usize
                    && bytes < self.up.within(soon).unwrap_or(settings.upload_queue_bytes))
                    || bytes < self.up.bytes / 4))
    }

    /// Whether another want may begin beside `under_way`: the number and the bytes of those as urgent or more that move, and of
    /// those that stand aside. The latter count for the bounds alone.
    pub(super) fn may_begin(
        &self,
        class: Class,
        [under_way, aside]: [(u32, u64); 2],
        settings: &Settings,
    ) -> bool {
        // What is fetched ahead is wished for together, and the fewer requests it takes the better: over a long way they decide.
        let unknown_bytes = match class {
            Class::Prefetch => settings.window_even_bytes.max(2 * UNKNOWN_BYTES),
            Class::Read | Class::Fill => 2 * UNKNOWN_BYTES,
        };
        let bounds = Bounds {
            least: settings.window_min,
            even: settings.window_even,
            even_bytes: settings.window_even_bytes,
            span: Duration::from_millis(u64::from(settings.window_ms)),
            unknown_bytes,
        };
        // A want waits twice: until somebody has time for it, and until it has come.
        let twice = (under_way.0.div_ceil(2), under_way.1 / 2);
        let halves = Bounds {
            least: bounds.least.div_ceil(2),
            even: bounds.even.div_ceil(2),
            even_bytes: bounds.even_bytes / 2,
            ..bounds
        };
        under_way.0 + aside.0 < settings.window_chunks
            && under_way.1 + aside.1 < settings.window_bytes
            && self.has_room(&self.down, twice, halves)
    }

    /// Whether another chunk of `class` may be taken from the strata without exceeding what is allowed whatever the link. Prefetches
    /// leave a quarter of it to others.
    pub(super) fn is_below_bounds(&self, class: Class, settings: &Settings) -> bool {
        let share = |most: u64| if class == Class::Prefetch { most - most / 4 } else { most };
        u64::from(self.strata.count) < share(settings.upstream_max.into())
            && self.strata.bytes < share(settings.upstream_bytes)
    }

    /// Whether the link has room for another chunk from the strata, where `less` of what is under way (number and bytes) does not count.
    pub(super) fn may_fetch(&self, less: (u32, u64), settings: &Settings) -> bool {
        let bounds = Bounds {
            least: settings.upstream_min,
            even: settings.upstream_max,
            even_bytes: 0,
            span: Duration::from_millis(u64::from(settings.upstream_ms)),
            unknown_bytes: settings.upstream_first_bytes,
        };
        let now = (self.strata.count.saturating_sub(less.0), self.strata.bytes.saturating_sub(less.1));
        self.has_room(&self.strata, now, bounds)
    }

    /// How long `count` chunks of `len_bytes` take on this node's link, within the bounds. Others' links are taken to be like
    /// this one.
    pub(super) fn transfer(&self, len_bytes: u32, count: u32, [least, most]: [Duration; 2]) -> Duration {
        let rate = self.down.rate().max(self.up.rate());
        let nanos = rate.map_or(0, |rate| u64::from(len_bytes).saturating_mul(1_000_000_000) / rate);
        Duration::from_nanos(nanos).saturating_mul(count).min(most).max(least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Generator, Rng};

    const CHUNK: u32 = 64 << 10;

    fn at(seconds: f64) -> Time {
        Time::ZERO + Duration::from_secs_f64(seconds)
    }

    /// Keeps `meter` busy with as many chunks as `may` allows on a link of `rate` bytes a second. Returns the most at once.
    fn run(pace: &mut Pace, rate: f64, seconds: f64, may: impl Fn(&Pace) -> bool) -> u32 {
        let (mut now, mut most) = (at(1.0).as_secs_f64(), 0);
        let end = now + seconds;
        while now < end {
            while may(pace) {
                pace.up.begin(at(now), CHUNK);
            }
            most = most.max(pace.up.count);
            // The chunks take turns, as on a link that is shared.
            now += f64::from(CHUNK) / rate;
            pace.up.end(at(now), CHUNK, true);
        }
        most
    }

    #[test]
    fn the_speed_of_any_link_is_found_within_half_and_idle_times_change_nothing() {
        for rate in [25e4, 25e5, 125e6, 3.1e9] {
            let mut pace = Pace::default();
            run(&mut pace, rate, 60.0 * f64::from(CHUNK) / rate + 0.2, |pace| pace.up.count < 8);
            let found = pace.up.rate().unwrap();
            assert!((rate * 0.9..rate * 1.5).contains(&(found as f64)), "{found} for {rate}");
            while pace.up.count > 0 {
                pace.up.end(at(100.0), CHUNK, false);
            }
            // Minutes later, one small transfer at a time.
            for second in 1..50 {
                pace.up.begin(at(100.0 + f64::from(second)), CHUNK);
                pace.up.end(at(100.01 + f64::from(second)), CHUNK, true);
            }
            assert_eq!(pace.up.rate(), Some(found));
        }
    }

    #[test]
    fn a_link_that_became_slower_is_believed_after_a_while() {
        let mut pace = Pace::default();
        run(&mut pace, 25e6, 2.0, |pace| pace.up.count < 8);
        let before = pace.up.rate().unwrap();
        let mut now = 3.0;
        for _ in 0..2_000 {
            now += f64::from(CHUNK) / 25e5;
            pace.up.begin(at(now), CHUNK);
            pace.up.end(at(now), CHUNK, true);
        }
        let after = pace.up.rate().unwrap();
        assert!(after < before / 5, "{after} after {before}");
    }

    #[test]
    fn slow_links_carry_few_at_once_and_what_is_on_its_way_comes_on_top() {
        let settings = Settings { uploads_even_bytes: 0, ..Settings::default() };
        let most_of = |settings: &Settings, rate: f64, trip: Duration| {
            let mut pace = Pace::default();
            pace.note_trip(trip);
            run(&mut pace, rate, 200.0 * f64::from(CHUNK) / rate + 0.5, |pace| {
                pace.may_upload(Class::Fill, settings)
            })
        };
        let most = |rate: f64, trip: Duration| most_of(&settings, rate, trip);
        // 100 kbit/s: one chunk takes five seconds.
        assert_eq!(most(12.5e3, Duration::from_millis(100)), settings.uploads_min, "as few as can be");
        let mut slow = Pace::default();
        run(&mut slow, 12.5e3, 200.0, |pace| pace.up.count < 4);
        slow.up.begin(at(300.0), CHUNK);
        assert!(!slow.may_upload(Class::Fill, &settings), "{slow:?}");
        let near = most(25e5, Duration::from_micros(200));
        let behind_a_queue = most(25e5, Duration::from_millis(150));
        assert!(
            near < behind_a_queue && behind_a_queue <= settings.uploads_even + 10,
            "{near} {behind_a_queue}"
        );
        // 25 Gbit/s and 500 µs: 24 chunks are on their way.
        assert!(most(3.1e9, Duration::from_micros(500)) >= settings.uploads_even + 20);
        // Small chunks: as many as make up the bytes, if the link takes no longer for them.
        let (small, soon) = (Settings::default(), Duration::from_micros(200));
        let as_bytes = u32::try_from(small.uploads_even_bytes / u64::from(CHUNK)).unwrap();
        assert_eq!(most_of(&small, 25e5, soon), as_bytes);
        let slower = most_of(&small, 12.5e5, soon);
        assert!(slower < as_bytes && slower > small.uploads_even, "{slower}");
    }

    #[test]
    fn a_read_is_served_when_fills_have_all_slots() {
        let settings = Settings::default();
        let mut pace = Pace::default();
        while pace.may_upload(Class::Fill, &settings) {
            pace.up.begin(at(1.0), CHUNK);
        }
        let fills = pace.up.count;
        while pace.may_upload(Class::Read, &settings) {
            pace.up.begin(at(1.0), CHUNK);
        }
        let reads = pace.up.count - fills;
        assert!((1..=fills / 2 + 1).contains(&reads), "{fills} fills and {reads} reads");
    }

    #[test]
    fn whatever_is_reported_counts_and_estimates_stay_sane() {
        let (mut rng, mut pace, mut open) = (Generator::new(3), Pace::default(), Vec::new());
        let mut now = Time::ZERO;
        for _ in 0..20_000 {
            now = now + Duration::from_nanos(rng.below(1_000_000) as u64);
            if open.is_empty() || rng.below(2) == 0 {
                let len = u32::try_from(rng.below(1 << 22)).unwrap();
                pace.strata.begin(now, len);
                open.push(len);
            } else {
                let len = open.swap_remove(rng.below(open.len()));
                pace.strata.end(now, len, rng.below(4) > 0);
            }
            pace.note_trip(Duration::from_millis(rng.below(5_000) as u64));
            assert_eq!((pace.strata.count as usize, pace.strata.bytes), {
                (open.len(), open.iter().map(|len| u64::from(*len)).sum())
            });
            assert!(pace.trip() <= TRIP_MAX);
        }
        assert!(pace.strata.rate().is_some());
    }

    #[test]
    fn times_follow_the_length_within_their_bounds() {
        let mut pace = Pace::default();
        let ms = Duration::from_millis;
        assert_eq!(pace.transfer(CHUNK, 1, [ms(2), ms(100)]), ms(2), "nothing is known");
        run(&mut pace, 25e5, 5.0, |pace| pace.up.count < 8);
        let one = pace.transfer(CHUNK, 1, [ms(2), ms(100)]);
        assert!((ms(17)..ms(30)).contains(&one), "{one:?}");
        assert_eq!(pace.transfer(1 << 30, 4, [ms(2), ms(100)]), ms(100));
    }
}
