//! Look-ups of segments in the DHT: one for all chunks of a segment, remembered for a while.

use super::fetch::{At, Fetch};
use super::footprint::tree_bytes;
use super::timer::Timer;
use super::{Chunk, Content, Node, Outbox, Output, Peer, Peers, Segment};
use crate::model::{Rng, Time};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::time::Duration;

/// Providers of a segment that are remembered.
const PROVIDERS_MAX: usize = 8;

/// How many windows of fills are looked ahead of (simulated: with 10 Gbit/s and look-ups of 200 ms one window is too late).
const AHEAD_WINDOWS: u64 = 4;

#[derive(Clone, Debug)]
enum Lookup {
    /// The DHT was asked; it has until then.
    Running(Time),
    /// It answered; good until then.
    Known(SmallVec<[Peer; PROVIDERS_MAX]>, Time),
}

impl Lookup {
    fn until(&self) -> Time {
        let (Self::Running(until) | Self::Known(_, until)) = self;
        *until
    }
}

/// Look-ups by segment.
#[derive(Clone, Debug, Default)]
pub(super) struct Lookups {
    by_segment: BTreeMap<Segment, Lookup>,
    /// How many of them run.
    running: usize,
}

/// What an audit looks at.
impl Lookups {
    pub(super) fn len(&self) -> usize {
        self.by_segment.len()
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        tree_bytes::<Segment, Lookup>(self.by_segment.len())
    }

    /// Whether the look-ups under way are those that are counted.
    pub(super) fn adds_up(&self) -> bool {
        self.by_segment.values().filter(|lookup| matches!(lookup, Lookup::Running(_))).count() == self.running
    }

    pub(super) fn is_running(&self, segment: Segment) -> bool {
        matches!(self.by_segment.get(&segment), Some(Lookup::Running(_)))
    }

    /// When the first running look-up counts as unanswered.
    pub(super) fn due_at(&self) -> Option<Time> {
        self.by_segment
            .values()
            .filter(|lookup| matches!(lookup, Lookup::Running(_)))
            .map(Lookup::until)
            .min()
    }
}

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    /// Looks up who announced the fetch's segment, or uses what is known.
    pub(super) fn look_up(&mut self, mut fetch: Box<Fetch>, out: &mut Outbox) {
        let segment = self.content.segment(fetch.slice);
        fetch.looked_up = true;
        match self.lookups.by_segment.get(&segment) {
            Some(Lookup::Known(peers, until)) if *until > self.now => {
                fetch.tries = 0;
                fetch.add_candidates(peers.iter().copied());
                return self.advance(fetch, out);
            }
            Some(Lookup::Running(_)) => {}
            _ => {
                if !self.begin_lookup(segment, out) {
                    return self.advance(fetch, out);
                }
            }
        }
        fetch.at = At::Lookup;
        fetch.due = Time::NEVER;
        self.fetches.put(fetch);
    }

    /// Looks up the segment of a chunk that will be wanted soon, if this node will be asked for it because it holds the lease:
    /// otherwise all who want it wait for the look-up, each with a place of its window.
    pub(super) fn look_up_ahead(&mut self, chunk: Chunk, out: &mut Outbox) {
        if !self.peers.has_other_regions() {
            return;
        }
        let slice = self.content.slice(chunk);
        let segment = self.content.segment(slice);
        let is_new = !self.lookups.by_segment.contains_key(&segment);
        if is_new
            && self.peers.lease_home(slice, 0) == Some(self.peers.me())
            && self.lookups.running < self.settings.lookups_ahead as usize
        {
            self.begin_lookup(segment, out);
        }
    }

    /// The same for fills, a few windows ahead. Notes which of them this node is the home of.
    pub(super) fn look_ahead_of_fills(&mut self, out: &mut Outbox) {
        let looks_up = self.peers.has_other_regions();
        let windows = if looks_up { AHEAD_WINDOWS } else { 2 };
        let bytes = self.settings.fill_window_bytes.saturating_mul(windows);
        let (mut last, mut is_home) = (None, false);
        while !looks_up || self.lookups.running < self.settings.lookups_ahead as usize {
            let Some(chunk) = self.pending.see(bytes, |chunk| self.content.len_bytes(chunk)) else { return };
            let slice = self.content.slice(chunk);
            if last != Some(slice) {
                is_home = self.peers.home(slice, 0) == Some(self.peers.me());
                self.look_up_ahead(chunk, out);
            }
            last = Some(slice);
            if is_home {
                self.pending.note_own(chunk);
            }
        }
    }

    /// `false` when there is no room for it.
    fn begin_lookup(&mut self, segment: Segment, out: &mut Outbox) -> bool {
        if !self.make_room_for_lookup() {
            return false;
        }
        let until = self.now + Duration::from_millis(u64::from(self.settings.lookup_ms));
        self.lookups.by_segment.insert(segment, Lookup::Running(until));
        self.lookups.running += 1;
        self.timers.arm(Timer::Lookup, until);
        self.counts.lookups += 1;
        out.push(Output::FindProviders { segment });
        true
    }

    /// Drops an answer when there are too many. `false` when all are still running.
    fn make_room_for_lookup(&mut self) -> bool {
        if self.lookups.by_segment.len() < self.settings.lookups_max as usize {
            return true;
        }
        let known = self.lookups.by_segment.iter().filter(|(_, lookup)| matches!(lookup, Lookup::Known(..)));
        let oldest = known.min_by_key(|(_, lookup)| lookup.until()).map(|(segment, _)| *segment);
        oldest.is_some_and(|segment| self.lookups.by_segment.remove(&segment).is_some())
    }

    /// The DHT answered.
    pub(super) fn providers(&mut self, segment: Segment, peers: &[Peer], out: &mut Outbox) {
        if !matches!(self.lookups.by_segment.get(&segment), Some(Lookup::Running(_))) {
            return;
        }
        let me = self.peers.me();
        let mut found: SmallVec<[Peer; PROVIDERS_MAX]> = SmallVec::new();
        // A random run of the list, so that not everybody asks the first.
        let start = self.rng.below(peers.len());
        for index in 0..peers.len() {
            let peer = peers[(start + index) % peers.len()];
            if peer != me && !found.contains(&peer) && found.len() < PROVIDERS_MAX {
                found.push(peer);
            }
        }
        let until = self.now + Duration::from_secs(u64::from(self.settings.lookup_fresh_s));
        self.lookups.by_segment.insert(segment, Lookup::Known(found.clone(), until));
        self.lookups.running -= 1;
        let content = &self.content;
        let waits = |fetch: &Fetch| fetch.at == At::Lookup && content.segment(fetch.slice) == segment;
        for slot in self.fetches.slots_where(waits) {
            let Some(mut fetch) = self.fetches.take(slot) else { continue };
            fetch.tries = 0;
            fetch.add_candidates(found.iter().copied());
            self.advance(fetch, out);
        }
    }

    /// [`Timer::Lookup`]: look-ups without an answer count as empty.
    pub(super) fn lookups_due(&mut self, out: &mut Outbox) {
        let running = |lookup: &Lookup| matches!(lookup, Lookup::Running(_));
        let late = self
            .lookups
            .by_segment
            .iter()
            .filter(|(_, lookup)| running(lookup) && lookup.until() <= self.now);
        let late: Vec<Segment> = late.map(|(segment, _)| *segment).collect();
        for segment in late {
            self.providers(segment, &[], out);
        }
        let next = self.lookups.by_segment.values().filter(|lookup| running(lookup)).map(Lookup::until).min();
        self.timers.arm(Timer::Lookup, next.unwrap_or(Time::NEVER));
    }
}
