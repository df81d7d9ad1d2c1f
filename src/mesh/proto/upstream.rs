//! The strata, under this node's lease: a bounded number of bytes at once and a budget of bytes a second, one fetch a
//! chunk, few tries.
//!
//! Who has to wait stands in line: by class, then in the order of coming. The line delays and never refuses. Whoever
//! stands there for long looks for another source again, and keeps his place.

use super::budget::Budget;
use super::fetch::{At, Fetch, Stage};
use super::footprint::tree_bytes;
use super::marks::Mark;
use super::rare::Nothing;
use super::timer::Timer;
use super::{Chunk, Content, Failure, Node, Outbox, Output, Peers, Slice};
use crate::model::{Class, Rng, Time};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Doublings of the patience with the strata (guess: four times a lease is longer than most readers wait).
const UPSTREAM_DOUBLINGS_MAX: u8 = 2;
/// Chunks of which it is remembered that no source was found (guess).
const HOPELESS_MAX: usize = 64;

/// What is under way from the strata.
#[derive(Clone, Debug, Default)]
pub(super) struct Upstream {
    budget: Budget,
    /// Slots of the fetches that wait for room or for the budget; no longer than the table of fetches.
    line: Vec<u16>,
    /// How many fetches are under way from each slice.
    open: BTreeMap<Slice, u32>,
    /// The place in line that was given last.
    last_place: u64,
    /// Chunks that nobody had, until when askers are told so at once.
    hopeless: VecDeque<(Chunk, Time)>,
}

impl Nothing for Upstream {
    const NOTHING: &'static Self = &Self {
        budget: Budget::FULL,
        line: Vec::new(),
        open: BTreeMap::new(),
        last_place: 0,
        hopeless: VecDeque::new(),
    };
}

impl Upstream {
    pub(super) fn note_hopeless(&mut self, chunk: Chunk, until: Time) {
        if self.hopeless.len() >= HOPELESS_MAX {
            self.hopeless.pop_front();
        }
        self.hopeless.push_back((chunk, until));
    }

    pub(super) fn is_hopeless(&self, chunk: Chunk, now: Time) -> bool {
        self.hopeless.iter().any(|(other, until)| *other == chunk && *until > now)
    }
}

/// What an audit looks at.
impl Upstream {
    /// Fetches under way, counted by slices.
    pub(super) fn open(&self) -> u32 {
        self.open.values().sum()
    }

    /// Slots of the fetches in line.
    pub(super) fn line(&self) -> &[u16] {
        &self.line
    }

    pub(super) fn hopeless(&self) -> usize {
        self.hopeless.len()
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.line.capacity() * size_of::<u16>()
            + tree_bytes::<Slice, u32>(self.open.len())
            + self.hopeless.capacity() * size_of::<(Chunk, Time)>()
    }
}

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    /// The fetch has the lease: other regions first, if there are any, then the strata.
    pub(super) fn go_upstream(&mut self, mut fetch: Box<Fetch>, out: &mut Outbox) {
        if self.peers.has_other_regions() && !fetch.looked_up {
            return self.look_up(fetch, out);
        }
        if fetch.upstream_tries >= self.settings.upstream_tries {
            (fetch.stage, fetch.rank) = (Stage::LastResort, 0);
            return self.advance(fetch, out);
        }
        if fetch.rare.place == 0 {
            self.upstream.last_place += 1;
            fetch.rare.place = self.upstream.last_place;
        }
        fetch.at = At::Line;
        fetch.due = self.now + Duration::from_millis(u64::from(self.settings.origin_look_ms.max(1)));
        self.timers.arm(Timer::Fetch, fetch.due);
        self.upstream.line.push(fetch.slot);
        self.fetches.put(fetch);
        self.fill_upstream(out);
    }

    /// What is under way from the strata and less urgent than a read: number and bytes.
    fn ahead_of_reads(&self) -> (u32, u64) {
        let waits = |fetch: &&Fetch| fetch.at == At::Strata && fetch.class() != Class::Read;
        let add = |(count, bytes): (u32, u64), fetch: &Fetch| (count + 1, bytes + u64::from(fetch.len_bytes));
        self.fetches.iter().filter(waits).fold((0, 0), add)
    }

    /// Whether the next of `class` in line may go: a read does not wait for what is fetched ahead or to fill the cache.
    fn has_room_upstream(&self, class: Class) -> bool {
        self.pace.is_below_bounds(class, &self.settings)
            && (self.pace.may_fetch((0, 0), &self.settings)
                || class == Class::Read && self.pace.may_fetch(self.ahead_of_reads(), &self.settings))
    }

    /// Whether a fetch may go although the link has no room: others of its slice are under way, and somebody here reads it or is
    /// about to. It travels with them, where it would cost a request of its own later; and a slice is little.
    fn is_company(&self, fetch: &Fetch) -> bool {
        let class = fetch.want().map(|want| want.class).filter(|class| *class != Class::Fill);
        self.upstream.open.contains_key(&fetch.slice)
            && class.is_some_and(|class| self.pace.is_below_bounds(class, &self.settings))
    }

    /// The place in line of who may go next.
    fn next_in_line(&self) -> Option<usize> {
        let rank = |slot: &u16| self.fetches.get(*slot).map(|fetch| (fetch.class(), fetch.rare.place));
        let line = || self.upstream.line.iter().enumerate();
        let (first, index) = line().map(|(index, slot)| (rank(slot), index)).min()?;
        if self.has_room_upstream(first.map_or(Class::Fill, |(class, _)| class)) {
            return Some(index);
        }
        let company = |slot: &u16| self.fetches.get(*slot).is_some_and(|fetch| self.is_company(fetch));
        let found = line().filter(|(_, slot)| company(slot)).map(|(index, slot)| (rank(slot), index)).min();
        found.map(|(_, index)| index)
    }

    /// How urgent a chunk is that is being fetched; `None` when it is not.
    pub fn class_of(&self, chunk: Chunk) -> Option<Class> {
        let Mark::Fetching(slot) = self.marks.get(chunk) else { return None };
        self.fetches.get(slot).map(Fetch::class)
    }

    /// [`Timer::Origin`], and whenever there is room: lets the most urgent in line go, as far as the budget allows.
    pub(super) fn fill_upstream(&mut self, out: &mut Outbox) {
        while let Some(index) = self.next_in_line() {
            let slot = self.upstream.line[index];
            let Some(mut fetch) = self.fetches.take(slot) else { return };
            let (rate, burst) = (self.settings.origin_bytes_per_s, self.settings.origin_burst_bytes);
            if let Err(ready) = self.upstream.budget.take(self.now, fetch.len_bytes, rate, burst) {
                self.counts.origin_delays += u64::from(!std::mem::replace(&mut fetch.delayed, true));
                self.fetches.put(fetch);
                return self.timers.arm(Timer::Origin, ready);
            }
            self.upstream.line.swap_remove(index);
            fetch.at = At::Strata;
            self.pace.strata.begin(self.now, fetch.len_bytes);
            *self.upstream.open.entry(fetch.slice).or_default() += 1;
            // Who was too impatient once, because many homes share a slow stratum, waits twice as long.
            let longer = 1_u32 << fetch.upstream_tries.min(UPSTREAM_DOUBLINGS_MAX);
            fetch.due = self.now + longer * self.lease();
            fetch.upstream_tries += 1;
            self.counts.leases += 1;
            out.push(Output::FetchUpstream { chunk: fetch.chunk });
            self.timers.arm(Timer::Fetch, fetch.due);
            self.fetches.put(fetch);
        }
    }

    /// A fetch stood in line for long. Who has the chunk may have changed, so the search begins anew; only its place in
    /// line and its tries at the strata are kept.
    pub(super) fn look_again(&mut self, mut fetch: Box<Fetch>, out: &mut Outbox) {
        self.leave_upstream(&fetch, out);
        if let Some(home) = self.homes.get_mut(fetch.slice) {
            home.checked = false;
        }
        fetch.begin_anew();
        self.search(fetch, out);
    }

    /// The fetch no longer needs the strata: another may go.
    pub(super) fn leave_upstream(&mut self, fetch: &Fetch, out: &mut Outbox) {
        match fetch.at {
            At::Strata => {
                // What ended in time is `Held` by now.
                let ok = self.marks.get(fetch.chunk) == Mark::Held;
                self.pace.strata.end(self.now, fetch.len_bytes, ok);
                if let Some(open) = self.upstream.open.get_mut(&fetch.slice) {
                    *open -= 1;
                    if *open == 0 {
                        self.upstream.open.remove(&fetch.slice);
                    }
                }
                self.fill_upstream(out);
            }
            At::Line => self.upstream.line.retain(|slot| *slot != fetch.slot),
            _ => {}
        }
    }

    /// The strata did not deliver.
    pub(super) fn strata_failed(&mut self, chunk: Chunk, why: Failure, out: &mut Outbox) {
        let Some(mut fetch) = self.take_at(chunk, At::Strata) else { return };
        if why == Failure::Refused {
            fetch.upstream_tries = fetch.upstream_tries.max(self.settings.upstream_tries);
        }
        self.retry_upstream(fetch, out);
    }

    /// How long a lease is good without progress: all that is under way shares the link.
    fn lease(&self) -> Duration {
        let slowest = u64::from(self.settings.slowest_bytes_per_s.max(1));
        Duration::from_millis(u64::from(self.settings.lease_ms)) + self.pace.strata.takes(slowest)
    }

    /// The strata are at work on it: the lease is good for as long again.
    pub(super) fn strata_progress(&mut self, chunk: Chunk) {
        let Some(mut fetch) = self.take_at(chunk, At::Strata) else { return };
        fetch.still = self.now;
        fetch.due = fetch.due.max(self.now + self.lease());
        self.timers.arm(Timer::Fetch, fetch.due);
        self.fetches.put(fetch);
    }

    /// No progress for as long as a lease is good.
    pub(super) fn lease_lapsed(&mut self, fetch: Box<Fetch>, out: &mut Outbox) {
        self.counts.leases_lapsed += 1;
        out.push(Output::CancelUpstream { chunk: fetch.chunk });
        self.retry_upstream(fetch, out);
    }

    fn retry_upstream(&mut self, mut fetch: Box<Fetch>, out: &mut Outbox) {
        self.leave_upstream(&fetch, out);
        if fetch.upstream_tries >= self.settings.upstream_tries {
            fetch.at = At::Choosing;
            (fetch.stage, fetch.rank) = (Stage::LastResort, 0);
            return self.advance(fetch, out);
        }
        let half_us = u64::from(self.settings.upstream_retry_ms) * 500;
        let micros = half_us + self.rng.below(usize::try_from(half_us).unwrap_or(usize::MAX)) as u64;
        fetch.at = At::Pause;
        fetch.due = self.now + Duration::from_micros(micros);
        self.timers.arm(Timer::Fetch, fetch.due);
        self.fetches.put(fetch);
    }
}
