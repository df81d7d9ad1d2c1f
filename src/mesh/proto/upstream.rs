//! The strata, under this node's lease: a bounded number of bytes at once, one fetch a chunk, few tries.

use super::fetch::{At, Fetch, Stage};
use super::timer::Timer;
use super::{Chunk, Content, Failure, Node, Outbox, Output, Peers};
use crate::model::{Rng, Time};
use std::collections::VecDeque;
use std::time::Duration;

/// Chunks of which it is remembered that no source was found (guess).
const HOPELESS_MAX: usize = 64;

/// What is under way from the strata.
#[derive(Clone, Debug, Default)]
pub(super) struct Upstream {
    bytes: u64,
    fetches: u32,
    /// Fetches that wait for room, in their order; no longer than the table of fetches.
    line: VecDeque<u16>,
    /// Chunks that nobody had, until when askers are told so at once.
    hopeless: VecDeque<(Chunk, Time)>,
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
    /// Fetches under way, and their bytes.
    pub(super) fn under_way(&self) -> (u32, u64) {
        (self.fetches, self.bytes)
    }

    pub(super) fn line(&self) -> &VecDeque<u16> {
        &self.line
    }

    pub(super) fn hopeless(&self) -> usize {
        self.hopeless.len()
    }
}

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    /// The fetch has the lease: other regions first, if there are any, then the strata.
    pub(super) fn go_upstream(&mut self, mut fetch: Fetch, out: &mut Outbox) {
        if self.peers.has_other_regions() && !fetch.looked_up {
            return self.look_up(fetch, out);
        }
        if fetch.upstream_tries >= self.settings.upstream_tries {
            (fetch.stage, fetch.rank) = (Stage::LastResort, 0);
            return self.advance(fetch, out);
        }
        fetch.at = At::Line;
        fetch.due = Time::NEVER;
        self.upstream.line.push_back(fetch.slot);
        self.fetches.put(fetch);
        self.fill_upstream(out);
    }

    /// Lets the most urgent in line go, as long as there is room.
    fn fill_upstream(&mut self, out: &mut Outbox) {
        while self.upstream.bytes < self.settings.upstream_bytes
            && self.upstream.fetches < self.settings.upstream_max
        {
            let class_of = |slot: u16| self.fetches.get(slot).map(Fetch::class);
            let line = self.upstream.line.iter().enumerate();
            let Some((_, index)) = line.map(|(index, slot)| (class_of(*slot), index)).min() else { return };
            let Some(slot) = self.upstream.line.remove(index) else { return };
            let due =
                self.fetches.get(slot).map(|fetch| self.patience(fetch.len_bytes, self.settings.lease_ms));
            let (Some(fetch), Some(due)) = (self.fetches.get_mut(slot), due) else { continue };
            fetch.at = At::Strata;
            fetch.due = due;
            fetch.upstream_tries += 1;
            self.upstream.bytes += u64::from(fetch.len_bytes);
            self.upstream.fetches += 1;
            out.push(Output::FetchUpstream { chunk: fetch.chunk });
            self.timers.arm(Timer::Fetch, due);
        }
    }

    /// The fetch no longer needs the strata: another may go.
    pub(super) fn leave_upstream(&mut self, fetch: &Fetch, out: &mut Outbox) {
        match fetch.at {
            At::Strata => {
                self.upstream.bytes -= u64::from(fetch.len_bytes);
                self.upstream.fetches -= 1;
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

    /// No progress for as long as a lease is good.
    pub(super) fn lease_lapsed(&mut self, fetch: Fetch, out: &mut Outbox) {
        out.push(Output::CancelUpstream { chunk: fetch.chunk });
        self.retry_upstream(fetch, out);
    }

    fn retry_upstream(&mut self, mut fetch: Fetch, out: &mut Outbox) {
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
