//! The node: its state, its one entrance, and which part of it decides on what.

use super::announce::Announces;
use super::copies::Copies;
use super::counts::Counts;
use super::doubt::Doubts;
use super::fetch::{Fetch, Fetches};
use super::holders::{Hints, Homes, Loads};
use super::lookups::Lookups;
use super::marks::{Mark, Marks};
use super::news::News;
use super::pace::Pace;
use super::pending::Pending;
use super::possession::{Claims, Possession};
use super::speed::Speeds;
use super::timer::{KINDS_LEN, Timer, Timers};
use super::uploads::Uploads;
use super::upstream::Upstream;
use super::wants::Window;
use super::{
    Chunk, Content, Failure, Holders, Input, Nearness, Outbox, Output, Peer, Peers, Settings, Slice, Source,
};
use crate::model::{Rng, Time};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The decisions of one node.
///
/// # Contract
/// * [`Self::handle`] is the only way in. It does no I/O and reads no clock; `now` never goes back.
/// * The caller drains the [`Outbox`] after each call and carries every output out, in their order.
/// * The views ([`Peers`], [`Content`]) are changed before the input that reports the change.
/// * [`Self::next_deadline`] is asked after each call; when it is reached, [`Input::Tick`] is handed in. A tick too
///   many does no harm.
/// * Every [`Input::Wanted`] is answered by one [`Output::Deliver`] or [`Output::GiveUp`], at its deadline at the
///   latest (if ticks come), unless it is withdrawn. Every [`Input::Asked`] is answered by [`Output::Serve`] or an
///   [`Output::Answer`] that ends it, unless the asker goes.
/// * [`Output::Ask`] and [`Output::FetchUpstream`] are ended by an input or by their cancellation. What arrives
///   after that is taken all the same.
#[derive(Debug)]
#[repr(C)]
pub struct Node<P, C, R> {
    // What nearly every input is looked up in lies together, and first: whoever runs many nodes calls it into the cache in
    // time ([`super::prefetch`]).
    pub(super) now: Time,
    pub(super) timers: Timers,
    pub(super) settings: Arc<Settings>,
    pub(super) rng: R,
    pub(super) peers: P,
    pub(super) content: C,
    pub(super) marks: Marks,
    pub(super) fetches: Fetches,
    pub(super) homes: Homes,
    pub(super) uploads: Uploads,
    pub(super) loads: Loads,
    pub(super) speeds: Speeds,
    pub(super) hints: Hints,
    pub(super) doubts: Doubts,
    pub(super) distrusted: BTreeMap<Peer, Time>,
    pub(super) pace: Pace,
    pub(super) window: Window,
    /// Chunks stored of each slice, saturating.
    pub(super) held: Vec<u16>,
    pub(super) copies: Copies,
    // What the end of a fetch is noted in.
    pub(super) pending: Pending,
    pub(super) possession: Possession,
    pub(super) claims: Claims,
    // What seldom is needed.
    pub(super) upstream: Upstream,
    pub(super) lookups: Lookups,
    pub(super) announces: Announces,
    pub(super) news: News,
    pub(super) counts: Counts,
}

/// Peers whose misbehaviour is remembered (guess; 64 were too few among 134 who sent wrong bytes: each was asked again and again).
pub(super) const DISTRUSTED_MAX: usize = 1_024;

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    /// A node that stores and wants nothing yet.
    pub fn new(peers: P, content: C, rng: R, settings: impl Into<Arc<Settings>>) -> Self {
        let settings = settings.into();
        Self {
            peers,
            content,
            rng,
            speeds: Speeds::new(&settings),
            settings,
            now: Time::ZERO,
            marks: Marks::default(),
            held: Vec::new(),
            pending: Pending::default(),
            fetches: Fetches::default(),
            pace: Pace::default(),
            window: Window::default(),
            uploads: Uploads::default(),
            homes: Homes::default(),
            hints: Hints::default(),
            loads: Loads::default(),
            distrusted: BTreeMap::new(),
            doubts: Doubts::default(),
            upstream: Upstream::default(),
            lookups: Lookups::default(),
            announces: Announces::default(),
            news: News::default(),
            possession: Possession::default(),
            claims: Claims::default(),
            copies: Copies::default(),
            timers: Timers::new(),
            counts: Counts::default(),
        }
    }

    /// Something happened; what there is to do is appended to `out`.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Outbox) {
        debug_assert!(now >= self.now, "time goes back from {:?} to {now:?}", self.now);
        let late = |since: Time| now.since(since) > Duration::from_millis(u64::from(self.settings.ask_ms));
        if late(self.now) && self.timers.next().is_some_and(late) {
            self.doubts.note_woke(now);
        }
        self.now = self.now.max(now);
        match input {
            Input::Wanted { chunk, class, deadline } => self.wanted(chunk, class, deadline, out),
            Input::Unwanted { chunk } => self.unwanted(chunk, out),
            Input::Arrived { chunk, from } => self.arrived(chunk, from, out),
            Input::Failed { chunk, from: Source::Peer(peer), why } => self.peer_failed(chunk, peer, why, out),
            Input::Failed { chunk, from: Source::Strata, why } => self.strata_failed(chunk, why, out),
            Input::Progress { chunk } => self.strata_progress(chunk),
            Input::Told { peer, chunk, answer, load } => self.told(peer, chunk, answer, load, out),
            Input::Asked { peer, ask, chunk, class } => self.asked(peer, ask, chunk, class, out),
            Input::AskGone { ask } => self.ask_ended(ask, false, out),
            Input::Served { ask, ok } => self.ask_ended(ask, ok, out),
            Input::PeerUp { peer } => self.peer_up(peer, out),
            Input::PeerDown { peer } => self.peer_down(peer, out),
            Input::Providers { segment, peers } => self.providers(segment, &peers, out),
            Input::Stored { chunk } => self.stored(chunk, out),
            Input::Evicted { chunk } => self.evicted(chunk, out),
            Input::Possession { peer, slices } => self.possession_told(peer, &slices, out),
            Input::NewsSeen { news, from } => self.news_seen(news, from, out),
            Input::Tick => self.tick(out),
        }
    }

    /// When [`Input::Tick`] is due, if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Time> {
        self.timers.next()
    }

    /// What was decided how often.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether a chunk is on its way here, or is looked for.
    pub fn is_fetching(&self) -> bool {
        self.fetches.len() > 0
    }

    /// The view of the mesh.
    pub fn peers(&self) -> &P {
        &self.peers
    }

    /// The view of the mesh, to change it.
    pub fn peers_mut(&mut self) -> &mut P {
        &mut self.peers
    }

    /// The interned content.
    pub fn content(&self) -> &C {
        &self.content
    }

    /// The interned content, to change it.
    pub fn content_mut(&mut self) -> &mut C {
        &mut self.content
    }

    /// Whether the chunk is stored here, as far as was reported.
    pub fn holds(&self, chunk: Chunk) -> bool {
        self.marks.get(chunk) == Mark::Held
    }

    /// The number of `slice` now stands for another slice: what was remembered of the old one is dropped.
    pub fn forget_slice(&mut self, slice: Slice) {
        self.homes.forget_slice(slice);
        self.hints.forget_slice(slice);
        self.claims.forget_slice(slice);
        if let Some(parts) = self.possession.parts_mut(slice) {
            *parts = 0;
        }
        if let Some(held) = self.held.get_mut(slice.0 as usize) {
            *held = 0;
        }
    }

    fn tick(&mut self, out: &mut Outbox) {
        // Each kind once: what fires arms itself again, for later.
        let mut fired = [None; KINDS_LEN];
        for slot in &mut fired {
            *slot = self.timers.fire(self.now);
        }
        for timer in fired.into_iter().flatten() {
            match timer {
                Timer::Fetch => self.fetches_due(out),
                Timer::Aside => self.aside_due(out),
                Timer::Gathered => self.gathered(out),
                Timer::Pending => self.pending_due(out),
                Timer::Queue => self.queue_due(out),
                Timer::Waiters => self.waiters_due(out),
                Timer::Lookup => self.lookups_due(out),
                Timer::Announce => self.announce_due(out),
                Timer::Origin => self.fill_upstream(out),
                Timer::News => self.news_due(out),
                Timer::Possession => self.possession_due(out),
                Timer::Copies => self.copies_due(out),
            }
        }
    }

    /// The rank of `peer` among the homes of `slice` in the own cell, if it is low enough to count.
    pub(super) fn rank_of(&self, peer: Peer, slice: Slice) -> Option<u8> {
        (0..self.settings.home_ranks).find(|rank| self.peers.home(slice, usize::from(*rank)) == Some(peer))
    }

    /// Who is known to hold `chunk`, for an answer to `asker`: as home from memory, and who is being served.
    pub(super) fn known_holders(&mut self, chunk: Chunk, asker: Peer) -> Holders {
        let slice = self.content.slice(chunk);
        let near = self.peers.nearness(asker);
        let (peers, doubts, now) = (&self.peers, &self.doubts, self.now);
        let suits = |peer: Peer| {
            peer != asker
                && peers.is_up(peer)
                && !doubts.has(peer, now)
                && (near != Nearness::Cell || peers.nearness(peer) == Nearness::Cell)
        };
        let mut holders = match self.homes.get_mut(slice) {
            Some(home) => home.name(self.content.part(chunk), self.now, &self.settings, suits),
            None => Holders::new(),
        };
        if holders.is_empty() {
            holders
                .extend(self.uploads.served(chunk).filter(|peer| suits(*peer)).take(holders.inline_size()));
        }
        holders
    }

    /// Notes, as a home, that `peer` holds or is about to hold `chunk`.
    pub(super) fn note_holder(&mut self, chunk: Chunk, peer: Peer) {
        let slice = self.content.slice(chunk);
        if self.rank_of(self.peers.me(), slice).is_none() || self.peers.nearness(peer) == Nearness::Far {
            return;
        }
        let part = self.content.part(chunk);
        let home = self.homes.entry(slice, self.settings.slices_max);
        home.note(peer, part, self.now, &self.settings);
    }

    /// Whether `peer` may be asked at all.
    pub(super) fn usable(&self, fetch: &Fetch, peer: Peer) -> bool {
        peer != self.peers.me()
            && self.peers.is_up(peer)
            && !fetch.bad.contains(&peer)
            && !fetch.is_asked(peer)
            && !self.is_doubted(fetch, peer)
            && self.peers.may_read(peer, fetch.slice)
            && self.distrusted.get(&peer).is_none_or(|until| *until <= self.now)
    }

    /// Notes that `peer` lies, and has its connections closed.
    pub(super) fn distrust(&mut self, peer: Peer, out: &mut Outbox) {
        let now = self.now;
        self.distrusted.retain(|other, until| *other != peer && *until > now);
        while self.distrusted.len() >= DISTRUSTED_MAX {
            // Who would be asked again first, is now.
            let Some(first) = self.distrusted.iter().min_by_key(|(_, until)| **until) else { break };
            let first = *first.0;
            self.distrusted.remove(&first);
        }
        self.distrusted.insert(peer, now + Duration::from_secs(u64::from(self.settings.distrust_s)));
        self.homes.forget_peer(peer);
        self.hints.forget_peer(peer);
        self.claims.forget_peer(peer);
        out.push(Output::Distrust { peer });
    }

    fn peer_up(&mut self, peer: Peer, out: &mut Outbox) {
        if self.peers.nearness(peer) != Nearness::Far {
            // Who was cut off has been the home there meanwhile, and another cell may have had the lease.
            self.homes.check_anew();
        }
        self.tell_again(peer, out);
    }

    fn peer_down(&mut self, peer: Peer, out: &mut Outbox) {
        self.homes.forget_peer(peer);
        self.hints.forget_peer(peer);
        self.claims.forget_peer(peer);
        self.doubts.forget_peer(peer);
        self.drop_copy_asks(|other, _, _| other == peer, out);
        self.check_copies();
        self.asker_gone(peer, out);
        for slot in self.fetches.slots_where(|fetch| fetch.is_asked(peer)) {
            if let Some(chunk) = self.fetches.get(slot).map(|fetch| fetch.chunk) {
                // The connection may outlive the suspicion: nothing must come of it any more.
                out.push(Output::Cancel { peer, chunk });
                self.peer_failed(chunk, peer, Failure::Unreachable, out);
            }
        }
    }
}
