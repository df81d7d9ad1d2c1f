//! When which key is announced: no storm at the start, no burst at the repetition, no key forgotten.
//!
//! Time and randomness go in, keys come out; the task does the announcing. A *fresh* key, of content that this
//! node has just obtained, goes out as soon as the rate allows. A key of content that was *found* here at the start
//! waits its random turn in a line that moves by one a second: others most likely hold its record from before the
//! restart. Repetitions are spread by chance over a quarter of the period.

use super::name::DhtKey;
use crate::model::{Generator, Rng as _, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Until an announcement is repeated, at most; at least three quarters of it. A third of a record's life, so that
/// two may fail.
pub(super) const REPEAT_EVERY: Duration = Duration::from_secs(4 * 3_600);
/// Until an announcement that reached nobody is repeated: at first, and at most.
const RETRY_FIRST: Duration = Duration::from_secs(2);
const RETRY_LATER: Duration = Duration::from_secs(300);
/// Announcements a second that are begun for long, and at once after a quiet time. One costs some 26 requests and 20 to
/// 60 ms of CPU, of which this node's share is half at most (measured, see `docs/mesh-protocol.md`): a tenth of a core
/// while it lasts.
const RATE_PER_S: u64 = 4;
const BURST: u64 = 32;
/// Pause between two keys that were found.
const FOUND_EACH: Duration = Duration::from_secs(1);
/// Longest wait of the first of them: nodes of a rack that start together do not announce together.
const FOUND_FIRST: Duration = Duration::from_secs(30);
/// Keys that this node may announce: 800 GB in segments. Beyond, a key is refused.
const KEYS_MAX: usize = 100_000;

/// Why a key is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mesh) enum Urgency {
    /// Its content was just obtained.
    Fresh,
    /// Its content was here before this run.
    Found,
}

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It was found and waits for its turn.
    Found,
    /// It is due then.
    Due(Time),
    /// It is being announced.
    Running,
}

/// The schedule of one node's announcements.
pub(super) struct Pace {
    keys: BTreeMap<DhtKey, State>,
    due: BTreeSet<(Time, DhtKey)>,
    /// How often in a row a key reached nobody.
    failures: BTreeMap<DhtKey, u32>,
    /// Keys that were found and wait, in no order, and when the next of them is due.
    found: Vec<DhtKey>,
    found_due: Time,
    /// Up to when the rate is used up; at most [`BURST`] announcements in the past.
    paid_until: Time,
    generator: Generator,
}

impl Pace {
    /// Nothing to announce yet.
    pub(super) fn new(generator: Generator) -> Self {
        Self {
            keys: BTreeMap::new(),
            due: BTreeSet::new(),
            failures: BTreeMap::new(),
            found: Vec::new(),
            found_due: Time::ZERO,
            paid_until: Time::ZERO,
            generator,
        }
    }

    /// Keys that are announced now and again.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Takes a key up. `false` when there are too many.
    pub(super) fn add(&mut self, key: DhtKey, urgency: Urgency, now: Time) -> bool {
        if let Some(state) = self.keys.get(&key) {
            if urgency == Urgency::Fresh && *state == State::Found {
                self.found.retain(|other| *other != key);
                self.schedule(key, now);
            }
            return true;
        }
        if self.keys.len() >= KEYS_MAX {
            return false;
        }
        match urgency {
            Urgency::Fresh => self.schedule(key, now),
            Urgency::Found => {
                if self.found.is_empty() {
                    self.found_due = self.found_due.max(now + self.below(FOUND_FIRST));
                }
                self.found.push(key);
                self.keys.insert(key, State::Found);
            }
        }
        true
    }

    /// All keys that wait to be repeated are due now.
    pub(super) fn anew(&mut self, now: Time) {
        for (_, key) in std::mem::take(&mut self.due) {
            self.schedule(key, now);
        }
    }

    /// Gives a key up.
    pub(super) fn remove(&mut self, key: DhtKey) {
        match self.keys.remove(&key) {
            Some(State::Due(time)) => {
                self.due.remove(&(time, key));
            }
            Some(State::Found) => self.found.retain(|other| *other != key),
            Some(State::Running) | None => {}
        }
        self.failures.remove(&key);
    }

    /// The key to announce now, if one is due and the rate allows it. Its end is to be told.
    pub(super) fn next(&mut self, now: Time) -> Option<DhtKey> {
        if self.next_deadline() > now {
            return None;
        }
        let key = match self.due.first() {
            Some((time, key)) if *time <= now => {
                let key = *key;
                self.due.pop_first();
                key
            }
            _ => {
                self.found_due = now + FOUND_EACH;
                let index = self.generator.below(self.found.len());
                self.found.swap_remove(index)
            }
        };
        let each = Duration::from_millis(1_000 / RATE_PER_S);
        let burst = each * u32::try_from(BURST).unwrap_or(u32::MAX);
        let earliest = Time::ZERO + now.since(Time::ZERO + burst);
        self.paid_until = self.paid_until.max(earliest) + each;
        self.keys.insert(key, State::Running);
        Some(key)
    }

    /// When [`Pace::next`] may have something.
    pub(super) fn next_deadline(&self) -> Time {
        let due = self.due.first().map_or(Time::NEVER, |(time, _)| *time);
        let found = if self.found.is_empty() { Time::NEVER } else { self.found_due };
        due.min(found).max(self.paid_until)
    }

    /// An announcement ended; whether it reached anybody.
    pub(super) fn ended(&mut self, key: DhtKey, ok: bool, now: Time) {
        if self.keys.get(&key) != Some(&State::Running) {
            return;
        }
        let pause = if ok {
            self.failures.remove(&key);
            REPEAT_EVERY * 3 / 4 + self.below(REPEAT_EVERY / 4)
        } else {
            let failures = self.failures.entry(key).or_default();
            *failures += 1;
            let longest = (RETRY_FIRST * 2u32.saturating_pow((*failures).min(16))).min(RETRY_LATER);
            longest / 2 + self.below(longest / 2)
        };
        self.schedule(key, now + pause);
    }

    fn schedule(&mut self, key: DhtKey, time: Time) {
        if let Some(State::Due(before)) = self.keys.insert(key, State::Due(time)) {
            self.due.remove(&(before, key));
        }
        self.due.insert((time, key));
    }

    fn below(&mut self, span: Duration) -> Duration {
        let millis = usize::try_from(span.as_millis()).unwrap_or(usize::MAX);
        Duration::from_millis(self.generator.below(millis) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ContentId;

    fn key(number: u64) -> DhtKey {
        DhtKey::segment(&ContentId::of(&number.to_le_bytes()))
    }

    fn pace() -> Pace {
        Pace::new(Generator::new(7))
    }

    /// Runs the schedule for a while; announcements take no time and succeed. One count a minute.
    fn run(pace: &mut Pace, from: Time, span: Duration) -> Vec<u32> {
        let mut minutes = vec![0; usize::try_from(span.as_secs() / 60).unwrap()];
        let mut now = from;
        while now < from + span {
            while let Some(key) = pace.next(now) {
                minutes[usize::try_from(now.since(from).as_secs() / 60).unwrap()] += 1;
                pace.ended(key, true, now);
            }
            now = pace.next_deadline().max(now);
        }
        minutes
    }

    #[test]
    fn fresh_keys_go_at_once_as_fast_as_the_rate_allows() {
        let mut pace = pace();
        let now = Time::ZERO + Duration::from_secs(1_000);
        for number in 0..1_000 {
            assert!(pace.add(key(number), Urgency::Fresh, now));
        }
        let minutes = run(&mut pace, now, Duration::from_secs(600));
        assert_eq!(minutes[0], u32::try_from(BURST).unwrap() + 60 * 4);
        assert_eq!((minutes[1], minutes.iter().sum::<u32>()), (240, 1_000));
    }

    /// The segments that the core of a node in a cell of `members` announces once it knows that it holds a million
    /// chunks of 64 KiB, in the order and at the times at which it does.
    fn announced(members: u32) -> Vec<(Time, u64)> {
        use crate::mesh::proto::{
            Chunk, ContentUpdate, Core, Event, Input, Outbox, Output, Peer, PeerUpdate, Segment, Settings,
            Slice, Start,
        };
        let start = Start { me: Peer(0), settings: Settings::default(), generator: Generator::new(3) };
        let (mut core, mut out) = (Core::new(start), Outbox::default());
        for peer in (0..members).map(Peer) {
            let key = crate::model::mix(u64::from(peer.0) + 77);
            let met = PeerUpdate::Met { peer, key, cell: 0, cell_key: 1, region: 0, weight: 100 };
            for update in [met, PeerUpdate::Up { peer }] {
                core.apply(Time::ZERO, Event::Peers(update), &mut out).unwrap();
            }
        }
        for chunk in 0..1_000_000 {
            // Sixteen chunks a slice, eight slices a segment.
            let (slice, segment) = (chunk / 16, chunk / 128);
            let learned = ContentUpdate::Learned {
                chunk: Chunk(chunk),
                slice: Slice(slice),
                segment: Segment(segment),
                slice_key: crate::model::mix(u64::from(slice) << 9),
                part: u8::try_from(chunk % 16 * 4).unwrap(),
                len_bytes: 64 << 10,
            };
            core.apply(Time::ZERO, Event::Content(learned), &mut out).unwrap();
            core.apply(Time::ZERO, Event::Input(Input::Stored { chunk: Chunk(chunk) }), &mut out).unwrap();
        }
        let (mut now, mut announced) = (Time::ZERO, Vec::new());
        loop {
            for output in out.drain() {
                if let Output::Announce { segment } = output {
                    announced.push((now, u64::from(segment.0)));
                }
            }
            match core.next_deadline().filter(|deadline| deadline.as_secs_f64() < 3_600.0) {
                Some(deadline) => now = now.max(deadline),
                None => return announced,
            }
            core.apply(now, Event::Input(Input::Tick), &mut out).unwrap();
        }
    }

    /// The core says what, the schedule when: both as they are, in virtual time.
    #[test]
    fn a_restart_with_a_million_chunks_is_no_storm_and_no_hour_has_more_than_its_share() {
        let mut days = Vec::new();
        for members in [1, 32] {
            let mut pace = pace();
            let segments = announced(members);
            let last = segments.last().unwrap().0;
            for (at, segment) in &segments {
                assert!(pace.add(key(*segment), Urgency::Found, *at));
            }
            let minutes = run(&mut pace, last, Duration::from_secs(24 * 3_600));
            assert!(minutes[..60].iter().all(|count| *count <= 61), "one a second: {minutes:?}");
            assert!(minutes.iter().all(|count| *count < 120), "repetitions are spread: {minutes:?}");
            let hours: Vec<u32> = minutes.chunks(60).map(|hour| hour.iter().sum()).collect();
            let day: u32 = hours.iter().sum();
            println!(
                "1 000 000 chunks, a cell of {members}: {} segments are announced by a node, {} times an hour in the mean, {} at most",
                segments.len(),
                day / 24,
                hours.iter().max().unwrap()
            );
            let each = f64::from(day) / segments.len() as f64;
            assert!((5.8..=8.2).contains(&each), "each every three to four hours, {each} times a day");
            days.push(day);
        }
        assert!(days[0] <= 64_000 && days[1] < days[0] / 3, "the members share the work: {days:?}");
    }

    #[test]
    fn what_reached_nobody_is_tried_again_ever_more_rarely() {
        let mut pace = pace();
        pace.add(key(1), Urgency::Fresh, Time::ZERO);
        let (mut now, mut pauses) = (Time::ZERO, Vec::new());
        for _ in 0..20 {
            let at = pace.next_deadline().max(now);
            pauses.push(at.since(now));
            now = at;
            let key = pace.next(now).unwrap();
            pace.ended(key, false, now);
        }
        assert!(pauses[1] < Duration::from_secs(5) && pauses[19] >= RETRY_LATER / 2, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= RETRY_LATER));
    }

    #[test]
    fn a_found_key_that_becomes_fresh_does_not_wait_its_turn_and_a_removed_one_is_not_announced() {
        let mut pace = pace();
        for number in 0..5_000 {
            pace.add(key(number), Urgency::Found, Time::ZERO);
        }
        pace.add(key(4_000), Urgency::Fresh, Time::ZERO);
        assert_eq!(pace.next(Time::ZERO), Some(key(4_000)));
        pace.remove(key(4_000));
        pace.ended(key(4_000), true, Time::ZERO);
        (0..5_000).for_each(|number| pace.remove(key(number)));
        assert_eq!((pace.next_deadline(), pace.len()), (Time::NEVER, 0));
    }

    #[test]
    fn the_number_of_keys_is_bounded() {
        let mut pace = pace();
        let added =
            (0..KEYS_MAX as u64 + 5).filter(|n| pace.add(key(*n), Urgency::Found, Time::ZERO)).count();
        assert_eq!(added, KEYS_MAX);
    }
}
