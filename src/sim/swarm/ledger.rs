//! The checker of one node: what it was told, what it owes, and whether what it decides is allowed.
//!
//! It stands outside of the node and sees only what goes in and what comes out.

use crate::mesh::proto::{
    Answer, Ask, Chunk, Content, Core, Event, Failure, GiveUp, Input, NewsId, Output, POSSESSION_MAX, Peer,
    PeerUpdate, Peers, Settings, Source,
};
use crate::model::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Holders in one answer.
const HOLDERS_MAX: usize = 8;
/// Peers that are asked for one chunk at once: a source, and one beside it if it is slow.
const ASKED_MAX: usize = 2;
/// How late a want may end after its deadline: the loop is as late as the plan says, and a stalled node is excused.
const LATE_MAX: Duration = Duration::from_millis(50);
/// How long an ask may stay open. Searches end; this is how long they may take among liars (guess).
const ASK_MAX: Duration = Duration::from_secs(600);
/// How long who waits may hear nothing, beyond the settings' interval: short waits last for a second without a word, and
/// askers turn elsewhere after two.
const SILENCE_SLACK: Duration = Duration::from_secs(1);

/// After how long without any delivery somebody who was asked may be passed over: what a silent one is given.
const OWES_LONG: Duration = Duration::from_secs(2);

/// A rule that a node broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken(pub(super) String);

/// Breaks off with a rule and its facts unless the condition holds.
macro_rules! rule {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err($crate::sim::swarm::ledger::Broken(format!($($text)+)));
        }
    };
}
pub(super) use rule;

#[derive(Clone, Copy, Debug)]
struct Open {
    peer: Peer,
    chunk: Chunk,
    since: Time,
    last_word: Time,
    serving: bool,
}

/// What is known of one life of a node.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// What is wanted here, and by when, on the node's own clock.
    wants: BTreeMap<Chunk, Time>,
    /// Chunks whose verified bytes were handed in.
    held: BTreeSet<Chunk>,
    asks: BTreeSet<(Chunk, Peer)>,
    fetching: BTreeSet<Chunk>,
    incoming: BTreeMap<Ask, Open>,
    /// Who was asked for a chunk since somebody waits for it.
    tried: BTreeMap<Chunk, Vec<Peer>>,
    /// Who sent wrong bytes.
    lied: BTreeSet<Peer>,
    /// Since when somebody who was asked has delivered nothing.
    owes: BTreeMap<Peer, Time>,
    /// Who did so for long, and when he delivered again.
    owed: BTreeMap<Peer, Time>,
    spread: BTreeMap<NewsId, usize>,
    /// What the origin budget allows now, in bytes, and when that was reckoned.
    allowance: Option<(i128, Time)>,
    /// Since when somebody waits for a chunk.
    begun: BTreeMap<Chunk, Time>,
    /// What was asked for or fetched because of the event at hand.
    ordered: Vec<Chunk>,
    /// When the view of the peers last changed, and how often somebody came.
    view_changed: Time,
    came: usize,
    excused: Time,
}

impl Ledger {
    /// Whether verified bytes of the chunk are here.
    pub(super) fn holds(&self, chunk: Chunk) -> bool {
        self.held.contains(&chunk)
    }

    /// Until `now`, the node could not do anything: what is late because of that is no fault of its.
    pub(super) fn excuse(&mut self, now: Time) {
        self.excused = self.excused.max(now);
        for open in self.incoming.values_mut() {
            (open.since, open.last_word) = (open.since.max(now), open.last_word.max(now));
        }
    }

    /// Takes note of what the node is told. `now` is the node's clock.
    pub(super) fn event(&mut self, now: Time, event: &Event) -> Result<(), Broken> {
        let input = match event {
            Event::Input(input) => input,
            Event::Peers(update) => {
                self.view_changed = now;
                self.came += usize::from(matches!(update, PeerUpdate::Up { .. }));
                if let PeerUpdate::Down { peer } | PeerUpdate::Forgotten { peer } = update {
                    // Who is gone gets no answer.
                    self.incoming.retain(|_, open| open.peer != *peer || open.serving);
                }
                return Ok(());
            }
            Event::Content(_) => return Ok(()),
        };
        match *input {
            Input::Wanted { chunk, deadline, .. } => {
                self.begins(now, chunk);
                let known = self.wants.entry(chunk).or_insert(deadline);
                *known = deadline.max(*known);
            }
            Input::Unwanted { chunk } => {
                self.wants.remove(&chunk);
            }
            Input::Arrived { chunk, from } => {
                self.held.insert(chunk);
                if let Source::Peer(peer) = from
                    && self.owes.remove(&peer).is_some_and(|since| now.since(since) >= OWES_LONG)
                {
                    self.owed.insert(peer, now);
                }
                match from {
                    Source::Peer(peer) => self.asks.remove(&(chunk, peer)),
                    Source::Strata => self.fetching.remove(&chunk),
                };
            }
            Input::Stored { chunk } => {
                self.held.insert(chunk);
            }
            Input::Evicted { chunk } => {
                self.held.remove(&chunk);
            }
            Input::Failed { chunk, from: Source::Peer(peer), why } => {
                self.asks.remove(&(chunk, peer));
                if why == Failure::WrongBytes {
                    self.lied.insert(peer);
                }
            }
            Input::Failed { chunk, from: Source::Strata, .. } => {
                self.fetching.remove(&chunk);
            }
            // It only moves a deadline.
            Input::Progress { .. } => {}
            Input::Told { peer, chunk, ref answer, .. } => {
                if *answer != Answer::Wait {
                    self.asks.remove(&(chunk, peer));
                }
            }
            Input::Asked { peer, ask, chunk, .. } => {
                self.begins(now, chunk);
                let open = Open { peer, chunk, since: now, last_word: now, serving: false };
                rule!(self.incoming.insert(ask, open).is_none(), "the world uses {ask:?} twice");
            }
            Input::AskGone { ask } | Input::Served { ask, .. } => {
                self.incoming.remove(&ask);
            }
            Input::PeerUp { .. }
            | Input::PeerDown { .. }
            | Input::Providers { .. }
            | Input::NewsSeen { .. }
            | Input::Possession { .. }
            | Input::Tick => {}
        }
        Ok(())
    }

    fn begins(&mut self, now: Time, chunk: Chunk) {
        if !self.has_reason(chunk) {
            self.begun.insert(chunk, now);
            self.tried.remove(&chunk);
        }
    }

    /// Whether anybody waits for the chunk: a reader here, or an asker.
    pub(super) fn has_reason(&self, chunk: Chunk) -> bool {
        self.wants.contains_key(&chunk)
            || self.incoming.values().any(|open| open.chunk == chunk && !open.serving)
    }

    /// Judges one decision and takes note of it.
    pub(super) fn output(
        &mut self,
        now: Time,
        core: &Core,
        settings: &Settings,
        output: &Output,
    ) -> Result<(), Broken> {
        match output {
            Output::Ask { peer, chunk, .. } => {
                self.owes.entry(*peer).or_insert(now);
                self.asks_of(core, settings, *peer, *chunk)
            }
            Output::Cancel { peer, chunk } => {
                rule!(
                    self.asks.remove(&(*chunk, *peer)),
                    "it withdraws what it did not ask of {peer:?}: {chunk:?}"
                );
                Ok(())
            }
            Output::FetchUpstream { chunk } => {
                self.fetches(now, core, settings, *chunk)?;
                self.pays(now, settings, *chunk, core.content().len_bytes(*chunk))
            }
            Output::TellPossession { to, slices } => {
                rule!(core.peers().is_up(*to) && *to != core.peers().me(), "it tells {to:?} what it holds");
                let most = if settings.neighbours == 0 { 0 } else { POSSESSION_MAX };
                rule!(slices.len() <= most, "it tells of {} slices at once", slices.len());
                let held = |slice| self.held.iter().any(|chunk| core.content().slice(*chunk) == slice);
                let lie = slices.iter().find(|(slice, parts)| *parts != 0 && !held(*slice));
                rule!(lie.is_none(), "it claims {lie:?}, of which it holds nothing");
                Ok(())
            }
            Output::CancelUpstream { chunk } => {
                rule!(self.fetching.remove(chunk), "it stops a fetch that is not under way: {chunk:?}");
                Ok(())
            }
            Output::Serve { ask } => self.serves(core, settings, *ask),
            Output::Answer { ask, answer, .. } => self.answers(now, core, *ask, answer),
            Output::Deliver { chunk } => {
                rule!(self.held.contains(chunk), "it delivers {chunk:?}, of which it has no verified bytes");
                self.ends(now, *chunk, None)
            }
            Output::GiveUp { chunk, why } => self.ends(now, *chunk, Some(*why)),
            Output::Spread { news, to } => self.spreads(core, settings, *news, *to),
            Output::Distrust { peer } => {
                rule!(self.lied.contains(peer), "it distrusts {peer:?}, who sent no wrong bytes");
                Ok(())
            }
            Output::FindProviders { .. } | Output::Announce { .. } => Ok(()),
        }
    }

    fn asks_of(&mut self, core: &Core, settings: &Settings, peer: Peer, chunk: Chunk) -> Result<(), Broken> {
        rule!(peer != core.peers().me(), "it asks itself for {chunk:?}");
        rule!(core.peers().is_up(peer), "it asks {peer:?} for {chunk:?}, whom it believes dead");
        // With a minimum of copies, a home asks the next ranks for what they should copy, and copies are made for nobody.
        let copies = settings.min_copies > 1;
        rule!(copies || !self.held.contains(&chunk), "it asks {peer:?} for {chunk:?}, which it holds");
        if !copies {
            self.ordered.push(chunk);
        }
        rule!(self.asks.insert((chunk, peer)), "it asks {peer:?} twice at once for {chunk:?}");
        let at_once = self.asks.iter().filter(|(other, _)| *other == chunk).count();
        rule!(at_once <= ASKED_MAX, "it asks {at_once} peers at once for {chunk:?}");
        self.tried.entry(chunk).or_default().push(peer);
        Ok(())
    }

    fn fetches(&mut self, now: Time, core: &Core, settings: &Settings, chunk: Chunk) -> Result<(), Broken> {
        rule!(!self.held.contains(&chunk), "it fetches {chunk:?}, which it holds");
        self.ordered.push(chunk);
        let bytes: u64 = self.fetching.iter().map(|other| u64::from(core.content().len_bytes(*other))).sum();
        rule!(bytes < settings.upstream_bytes, "it fetches {chunk:?} while {bytes} bytes are under way");
        rule!(
            self.fetching.len() < settings.upstream_max as usize,
            "it fetches {chunk:?} while {} fetches are under way",
            self.fetching.len()
        );
        rule!(self.fetching.insert(chunk), "it fetches {chunk:?} twice at once");
        // A copy that is under way asked the lease home before anybody waited for it.
        if settings.min_copies > 1 { Ok(()) } else { self.has_lease(now, core, chunk) }
    }

    /// The origin budget is a bucket: what does not fit in it is taken from a full one, and paid for afterwards.
    fn pays(&mut self, now: Time, settings: &Settings, chunk: Chunk, len_bytes: u32) -> Result<(), Broken> {
        let (rate, burst) = (settings.origin_bytes_per_s, i128::from(settings.origin_burst_bytes));
        if rate == 0 {
            return Ok(());
        }
        let (before, then) = self.allowance.unwrap_or((burst, now));
        let nanos = i128::try_from(now.since(then).as_nanos()).unwrap_or(i128::MAX);
        let allowed = (before + nanos * i128::from(rate) / 1_000_000_000 + 1).min(burst);
        let needed = i128::from(len_bytes).min(burst);
        rule!(allowed >= needed, "it fetches {chunk:?} of {needed} bytes with {allowed} left of its budget");
        self.allowance = Some((allowed - i128::from(len_bytes), now));
        Ok(())
    }

    /// A stratum is asked under the lease only: by its home, or by who found that home failing (for this chunk or, with
    /// nothing delivered since it was asked, for others), or by whom a peer of another cell took for it. A search goes forward only: what it learns of peers on its way comes too late for it.
    fn has_lease(&self, now: Time, core: &Core, chunk: Chunk) -> Result<(), Broken> {
        let peers = core.peers();
        let Some(home) = peers.lease_home(core.content().slice(chunk), 0) else { return Ok(()) };
        if self.begun.get(&chunk).is_none_or(|begun| *begun <= self.view_changed) {
            return Ok(());
        }
        let tried = self.tried.get(&chunk).is_some_and(|tried| tried.contains(&home));
        let begun = self.begun.get(&chunk).copied().unwrap_or_default();
        let shirks = self.owes.get(&home).is_some_and(|since| now.since(*since) >= OWES_LONG)
            || self.owed.get(&home).is_some_and(|until| *until >= begun);
        let from_elsewhere = self.incoming.values().any(|open| {
            open.chunk == chunk && peers.nearness(open.peer) != crate::mesh::proto::Nearness::Cell
        });
        rule!(
            home == peers.me()
                || tried
                || shirks
                || !peers.is_up(home)
                || self.lied.contains(&home)
                || from_elsewhere,
            "it fetches {chunk:?} without the lease, which {home:?} has and was not asked for"
        );
        Ok(())
    }

    fn serves(&mut self, core: &Core, settings: &Settings, ask: Ask) -> Result<(), Broken> {
        let Some(open) = self.incoming.get(&ask).copied() else {
            return Err(Broken(format!("it serves {ask:?}, which is not open")));
        };
        rule!(!open.serving, "it serves {ask:?} twice");
        rule!(
            self.held.contains(&open.chunk),
            "it serves {:?} to {:?}, of which it has no verified bytes",
            open.chunk,
            open.peer
        );
        // No single upload counts for more than half of all.
        let most = (settings.upload_bytes / 2).max(1);
        let serving = || self.incoming.values().filter(|open| open.serving);
        let bytes: u64 =
            serving().map(|open| u64::from(core.content().len_bytes(open.chunk)).min(most)).sum();
        let count = serving().count();
        rule!(
            count < settings.uploads_max as usize && bytes < settings.upload_bytes,
            "it serves {ask:?} beyond its slots: {count} uploads of {bytes} bytes are under way"
        );
        if let Some(open) = self.incoming.get_mut(&ask) {
            open.serving = true;
        }
        Ok(())
    }

    fn answers(&mut self, now: Time, core: &Core, ask: Ask, answer: &Answer) -> Result<(), Broken> {
        let Some(open) = self.incoming.get_mut(&ask) else {
            return Err(Broken(format!("it answers {ask:?}, which is not open, with {answer:?}")));
        };
        rule!(!open.serving, "it answers {ask:?} with {answer:?} while it serves it");
        let (peer, chunk) = (open.peer, open.chunk);
        open.last_word = now;
        let holders = match answer {
            Answer::Wait => return Ok(()),
            Answer::Busy { holders } | Answer::Missing { holders } => holders,
        };
        self.incoming.remove(&ask);
        rule!(holders.len() <= HOLDERS_MAX, "it names {} holders", holders.len());
        rule!(!holders.contains(&peer), "it names {peer:?} to itself as a holder of {chunk:?}");
        for holder in holders {
            rule!(core.peers().knows(*holder), "it names {holder:?}, whom it does not know");
        }
        Ok(())
    }

    fn ends(&mut self, now: Time, chunk: Chunk, why: Option<GiveUp>) -> Result<(), Broken> {
        let Some(deadline) = self.wants.remove(&chunk) else {
            return Err(Broken(format!("it ends a want for {chunk:?} that is not open ({why:?})")));
        };
        let late = now.since(deadline.max(self.excused));
        rule!(late <= LATE_MAX, "the want for {chunk:?} ends {late:?} after its deadline ({why:?})");
        if why == Some(GiveUp::Deadline) {
            rule!(now >= deadline, "it gives {chunk:?} up {:?} before its deadline", deadline.since(now));
        }
        Ok(())
    }

    fn spreads(&mut self, core: &Core, settings: &Settings, news: NewsId, to: Peer) -> Result<(), Broken> {
        rule!(to != core.peers().me() && core.peers().knows(to), "it spreads {news:?} to {to:?}");
        let sent = self.spread.entry(news).or_default();
        *sent += 1;
        // Twice ln n + extra in a small cell, which is told as a whole; forgotten documents may come again.
        let members = core.peers().members();
        let most = (2 * (members.ilog2() as usize + 2 + usize::from(settings.news_extra)))
            + usize::from(settings.news_contacts)
            + usize::from(settings.news_repeats)
            + self.came;
        let again = self.spread.len() > settings.news_max as usize;
        rule!(again || self.spread[&news] <= most, "it spreads {news:?} to more than {most}");
        Ok(())
    }

    /// What must hold when all decisions on an event were made.
    pub(super) fn settled(&mut self) -> Result<(), Broken> {
        for chunk in std::mem::take(&mut self.ordered) {
            let open = self.fetching.contains(&chunk) || self.asks.iter().any(|(other, _)| *other == chunk);
            rule!(!open || self.has_reason(chunk), "it orders {chunk:?}, for which nobody waits");
        }
        Ok(())
    }

    /// What must hold at any time, looked at now and then.
    pub(super) fn audit(&self, now: Time, settings: &Settings) -> Result<(), Broken> {
        for (chunk, deadline) in &self.wants {
            let late = now.since((*deadline).max(self.excused));
            rule!(late <= LATE_MAX, "the want for {chunk:?} is open {late:?} after its deadline");
            rule!(!self.held.contains(chunk), "{chunk:?} is wanted and here, and not delivered");
        }
        // Copies are asked of who has none, and made though nobody waits.
        let copies = settings.min_copies > 1;
        for (chunk, peer) in self.asks.iter().filter(|_| !copies) {
            rule!(!self.held.contains(chunk), "{peer:?} is still asked for {chunk:?}, which is here");
            rule!(self.has_reason(*chunk), "{peer:?} is still asked for {chunk:?}, for which nobody waits");
        }
        for chunk in &self.fetching {
            rule!(self.has_reason(*chunk), "{chunk:?} is still fetched, for which nobody waits");
        }
        let keep_alive = Duration::from_millis(u64::from(settings.keep_alive_ms));
        for (ask, open) in self.incoming.iter().filter(|(_, open)| !open.serving) {
            let silent = now.since(open.last_word);
            rule!(
                silent <= keep_alive + SILENCE_SLACK,
                "{ask:?} for {:?} heard nothing for {silent:?}",
                open.chunk
            );
            let old = now.since(open.since);
            rule!(old <= ASK_MAX, "{ask:?} for {:?} is open since {old:?}", open.chunk);
        }
        Ok(())
    }

    /// What must be left when nothing is wanted and nobody asks.
    pub(super) fn is_idle(&self) -> Result<(), Broken> {
        rule!(self.wants.is_empty(), "wants are left: {:?}", self.wants.keys());
        rule!(self.asks.is_empty(), "asks are left: {:?}", self.asks);
        rule!(self.fetching.is_empty(), "fetches are left: {:?}", self.fetching);
        rule!(self.incoming.is_empty(), "asks of others are left: {:?}", self.incoming);
        Ok(())
    }
}
