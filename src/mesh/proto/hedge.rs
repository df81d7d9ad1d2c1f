//! A second source beside a slow one.
//!
//! When a source takes longer than it does in 95 of 100 cases, another is asked for the same chunk (Dean, Barroso: "The
//! tail at scale", 2013). Whoever delivers first wins, and the other is told. When the first fails, the second is already
//! under way. Hedges are a small share of all asks, so that slowness which all share does not make more work for all.
//! They never reach the strata: only a fetch without a source goes there.

use super::fetch::{Asked, At, Fetch, Stage};
use super::marks::Mark;
use super::speed::hedge_times;
use super::timer::Timer;
use super::{Answer, Chunk, Content, Node, Outbox, Output, Peer, Peers};
use crate::model::{Rng, Time};
use std::time::Duration;

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    /// Puts back a fetch that stands at a peer, and wakes when that is slow.
    pub(super) fn watch(&mut self, mut fetch: Box<Fetch>) {
        if let At::Peer(peer) = fetch.at {
            let usual = self.speeds.usual(peer, fetch.len_bytes);
            let slow = hedge_times(usual, fetch.class(), fetch.since, &self.settings).0;
            // One that was asked as the second may be slow or late already: not at once, so that ticks bring time forward.
            let soon = self.now + Duration::from_millis(1);
            fetch.hedge_at = slow.max(soon);
            fetch.due = fetch.due.max(soon);
        }
        self.timers.arm(Timer::Fetch, fetch.next_due());
        self.fetches.put(fetch);
    }

    /// Takes the fetch out if `peer` is its second source.
    pub(super) fn take_hedged(&mut self, chunk: Chunk, peer: Peer) -> Option<Box<Fetch>> {
        let Mark::Fetching(slot) = self.marks.get(chunk) else { return None };
        let hedge = self.fetches.get(slot)?.hedge()?;
        if hedge.peer == peer { self.fetches.take(slot) } else { None }
    }

    /// The second source is too slow, or the first is.
    pub(super) fn hedge_due(&mut self, fetch: Box<Fetch>, out: &mut Outbox) {
        match fetch.hedge() {
            Some(&hedge) => {
                out.push(Output::Cancel { peer: hedge.peer, chunk: fetch.chunk });
                self.doubt(hedge.peer, hedge.since);
                self.hedge_over(fetch, true, out);
            }
            None => self.ask_second(fetch, out),
        }
    }

    /// Asks a second source beside the first, if it is slow and there is somebody to ask.
    fn ask_second(&mut self, mut fetch: Box<Fetch>, out: &mut Outbox) {
        let At::Peer(main) = fetch.at else { return self.fetches.put(fetch) };
        let usual = self.speeds.usual(main, fetch.len_bytes);
        let (slow, stalled) = hedge_times(usual, fetch.class(), fetch.since, &self.settings);
        fetch.hedge_at = Time::NEVER;
        if slow > self.now {
            // Its class has changed since.
            fetch.hedge_at = slow;
        } else if !self.speeds.can_pay() {
            self.counts.hedges_held += 1;
        } else if let Some((peer, named)) = self.second_source(&mut fetch, self.now >= stalled) {
            self.speeds.pay();
            self.counts.hedges += 1;
            let due = self.patience(fetch.len_bytes);
            fetch.tried.push(peer);
            let ask = Duration::from_millis(u64::from(self.settings.ask_ms));
            self.doubts.note_asked(peer, self.now, due.since(self.now) + ask);
            let behind = self.behind(&fetch, named);
            fetch.rare.hedge = Some(Asked { peer, since: self.now, due, named, waits: false, behind });
            out.push(Output::Ask { peer, chunk: fetch.chunk, class: fetch.class() });
        } else if self.now < stalled {
            fetch.hedge_at = stalled;
        }
        self.timers.arm(Timer::Fetch, fetch.next_due());
        self.fetches.put(fetch);
    }

    /// Whom to ask beside the first source: somebody named; or the next authority, unless the first said that it gets
    /// the chunk, for then the next would only turn to the first. Also tells whether it was named.
    fn second_source(&mut self, fetch: &mut Fetch, stalled: bool) -> Option<(Peer, bool)> {
        if let Some(peer) = self.choose(fetch) {
            return Some((peer, true));
        }
        let in_reach = match fetch.stage {
            Stage::Homes | Stage::Lease => true,
            // The last of those who are peeked at ends the stage, and that is for the first source's answer to do.
            Stage::Peek | Stage::PeekCells => fetch.peeks > 0,
            Stage::Upstream | Stage::LastResort => false,
        };
        if !in_reach || (fetch.waits && !stalled) {
            return None;
        }
        // Who said `Busy` and named the first source names others: it is asked once more.
        let asked = |peer: Peer| fetch.tried.iter().filter(|tried| **tried == peer).count();
        if let Some(peer) = fetch.again().filter(|peer| asked(*peer) < 2 && self.usable(fetch, *peer)) {
            return Some((peer, false));
        }
        self.next_authority(fetch).map(|peer| (peer, false))
    }

    /// The second source says something instead of data.
    pub(super) fn hedge_told(&mut self, mut fetch: Box<Fetch>, answer: Answer, out: &mut Outbox) {
        let Some(hedge) = fetch.hedge().copied() else { return self.fetches.put(fetch) };
        match answer {
            Answer::Wait => {
                if self.now.since(hedge.since) > self.wait_max(hedge.named)
                    || self.shirks(&fetch, hedge.peer, hedge.since, hedge.behind)
                {
                    out.push(Output::Cancel { peer: hedge.peer, chunk: fetch.chunk });
                    self.doubt(hedge.peer, hedge.since);
                    return self.hedge_over(fetch, true, out);
                }
                let due = self.patience(fetch.len_bytes);
                fetch.rare.hedge = Some(Asked { waits: true, due, ..hedge });
                self.timers.arm(Timer::Fetch, due);
                self.fetches.put(fetch);
            }
            Answer::Busy { holders } => {
                if !hedge.named {
                    fetch.tries = 0;
                }
                self.note_advice(&mut fetch, &holders);
                self.hedge_over(fetch, false, out);
            }
            Answer::Missing { holders } => {
                self.note_advice(&mut fetch, &holders);
                self.hedge_over(fetch, true, out);
            }
        }
    }

    /// The second source did not deliver: somebody else may.
    pub(super) fn hedge_over(&mut self, mut fetch: Box<Fetch>, bad: bool, out: &mut Outbox) {
        if let Some(hedge) = fetch.take_hedge()
            && bad
        {
            fetch.mark_bad(hedge.peer);
        }
        self.ask_second(fetch, out);
    }
}
