//! A look at a node from inside: do its tables agree with each other, and does each stand within its bound?
//!
//! Nothing decides by it. Swarms (`sim/swarm`) call it again and again; it costs a walk over all tables.

use super::doubt::DOUBTED_MAX;
use super::fetch::{At, Fetch};
use super::marks::Mark;
use super::node::DISTRUSTED_MAX;
use super::possession::TELLERS_MAX;
use super::timer::Timer;
use super::{Content, Node, Peers};
use crate::model::{Rng, Time};
use std::collections::BTreeMap;

/// Asks of one fetch since an authority last answered: all ranks of all stages, each with its named holders, and to spare.
const TRIED_MAX: usize = 512;
/// [`super::fetch`]'s own bounds, as the audit expects them.
const BAD_MAX: usize = 24;
const CANDIDATES_MAX: usize = 8;
/// [`super::upstream`]'s memory of chunks that nobody had.
const HOPELESS_MAX: usize = 64;

/// What a node has under way. Memory of the past is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Wants that are not begun.
    pub pending: usize,
    /// Fetches, for whomever.
    pub fetches: usize,
    /// Asks of others.
    pub asks: usize,
    /// Of these, how many wait for a slot.
    pub queued: usize,
    /// Of these, how many are served.
    pub serving: usize,
    /// Fetches from the strata.
    pub upstream: usize,
    /// Announcements that wait for their turn.
    pub announcements: usize,
}

impl Usage {
    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}

/// What an audit found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// A table is larger than it may be.
    #[error("{what}: {found} where {most} is the bound")]
    Bound {
        /// Which.
        what: &'static str,
        /// Its size.
        found: u64,
        /// Its bound.
        most: u64,
    },
    /// Two tables say different things.
    #[error("{what}: {detail}")]
    Torn {
        /// Which.
        what: &'static str,
        /// What they say.
        detail: String,
    },
    /// Something is due and no timer will fire for it.
    #[error("{what} is due at {due:?} and its timer fires at {armed:?}")]
    Unarmed {
        /// What.
        what: &'static str,
        /// When it is due.
        due: Time,
        /// When the timer fires.
        armed: Time,
    },
}

fn within(what: &'static str, found: usize, most: usize) -> Result<(), AuditError> {
    let (found, most) = (found as u64, most as u64);
    if found <= most { Ok(()) } else { Err(AuditError::Bound { what, found, most }) }
}

fn agree(what: &'static str, holds: bool, detail: impl FnOnce() -> String) -> Result<(), AuditError> {
    if holds { Ok(()) } else { Err(AuditError::Torn { what, detail: detail() }) }
}

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    /// Checks all tables against each other and against [`super::Settings`], between two calls of [`Self::handle`].
    ///
    /// # Errors
    /// [`AuditError`] names the first table that is wrong.
    pub fn audit(&self) -> Result<Usage, AuditError> {
        self.audit_bounds()?;
        self.audit_marks()?;
        self.audit_fetches()?;
        self.audit_sums()?;
        self.audit_timers()?;
        Ok(Usage {
            pending: self.pending.len(),
            fetches: self.fetches.len(),
            asks: self.uploads.len(),
            queued: self.uploads.queued(),
            serving: self.pace.up.count as usize,
            upstream: self.pace.strata.count as usize,
            announcements: self.announces.len().1,
        })
    }

    fn audit_bounds(&self) -> Result<(), AuditError> {
        let settings = &self.settings;
        let wanted = self.fetches.iter().filter(|fetch| fetch.want().is_some()).count();
        within("wants", self.pending.len() + wanted, settings.wants_max as usize)?;
        // A want that many wait for already joins their fetch, so relays may come on top of a full window.
        within(
            "fetches for others",
            self.fetches.len() - wanted,
            (settings.relays_max + settings.window_chunks) as usize,
        )?;
        within("wants that stand aside", self.window.aside(), settings.aside_max as usize)?;
        within("asks", self.uploads.len(), settings.asks_max as usize)?;
        within("queue for uploads", self.uploads.queued(), settings.upload_queue_max as usize)?;
        within("uploads", self.pace.up.count as usize, settings.uploads_max as usize)?;
        within("fetches from the strata", self.pace.strata.count as usize, settings.upstream_max as usize)?;
        within("hopeless chunks", self.upstream.hopeless(), HOPELESS_MAX)?;
        within("slices with holders", self.homes.len(), settings.slices_max as usize)?;
        let holders = self.homes.most_holders();
        agree("holders", holders.is_some(), || "a ring is torn".to_owned())?;
        within("holders of a slice", holders.unwrap_or(0), usize::from(settings.holders_max))?;
        within("look-ups", self.lookups.len(), settings.lookups_max as usize)?;
        agree("look-ups", self.lookups.adds_up(), || {
            "another number of them runs than is counted".to_owned()
        })?;
        within("announcements", self.announces.len().0, settings.announces_max as usize)?;
        within("announcements that wait", self.announces.len().1, settings.announces_max as usize)?;
        let news = self.news.len();
        agree("news", news.is_some(), || "two books of different length".to_owned())?;
        within("news", news.unwrap_or(0), settings.news_max as usize)?;
        within("documents to repeat", self.news.repeats(), settings.news_max as usize)?;
        within("claims", self.claims.len().0, settings.claims_max as usize)?;
        within("tellers", self.claims.len().1, TELLERS_MAX)?;
        within("neighbours", self.possession.neighbours(), usize::from(settings.neighbours))?;
        self.copies.check().map_err(|(found, most)| AuditError::Bound { what: "copies", found, most })?;
        within("doubted peers", self.doubts.len(), DOUBTED_MAX)?;
        within("distrusted peers", self.distrusted.len(), DISTRUSTED_MAX)
    }

    /// Each chunk is in one state, and the tables of that state know it.
    fn audit_marks(&self) -> Result<(), AuditError> {
        let mut held: BTreeMap<u32, u32> = BTreeMap::new();
        let (mut fetching, mut pending) = (0, 0);
        for (chunk, mark) in self.marks.iter() {
            match mark {
                Mark::Held => *held.entry(self.content.slice(chunk).0).or_default() += 1,
                Mark::Fetching(slot) => {
                    fetching += 1;
                    let found = self.fetches.get(slot).map(|fetch| fetch.chunk);
                    agree("marks", found == Some(chunk), || {
                        format!("{chunk:?} is in slot {slot} with {found:?}")
                    })?;
                }
                Mark::Pending(_) => pending += 1,
                Mark::Nothing => {}
            }
        }
        agree("fetches", fetching == self.fetches.len(), || {
            format!("{fetching} marks, {} fetches", self.fetches.len())
        })?;
        agree("pending", pending == self.pending.len(), || {
            format!("{pending} marks, {} wants", self.pending.len())
        })?;
        for (chunk, class, _) in self.pending.iter() {
            let mark = self.marks.get(chunk);
            agree("pending", mark == Mark::Pending(class), || format!("{chunk:?} of {class:?} is {mark:?}"))?;
        }
        for (slice, count) in (0_u32..).zip(self.held.iter()) {
            let marks = held.get(&slice).copied().unwrap_or(0);
            let known = u32::from(count);
            agree("held", known == marks || count == u16::MAX, || {
                format!("{known} chunks of slice {slice} are counted, {marks} are marked")
            })?;
        }
        Ok(())
    }

    fn audit_fetches(&self) -> Result<(), AuditError> {
        agree("fetches", self.fetches.in_step(), || "a slot does not know when its fetch is due".to_owned())?;
        let mut waiters = 0;
        for fetch in self.fetches.iter() {
            agree("fetch", !fetch.is_orphan(), || format!("nobody waits for {:?}", fetch.chunk))?;
            agree("fetch", fetch.at != At::Choosing, || format!("{:?} stands nowhere", fetch.chunk))?;
            let waiters_max = self.settings.home_waiters_max.max(self.settings.waiters_max);
            within("waiters", fetch.waiters().len(), usize::from(waiters_max))?;
            within("bad sources", fetch.rare.bad.len(), BAD_MAX)?;
            within("named holders", fetch.candidates.len(), CANDIDATES_MAX)?;
            within("tried sources", fetch.tried.len(), TRIED_MAX)?;
            for waiter in fetch.waiters() {
                waiters += 1;
                agree("waiters", self.uploads.is_waiting_for(waiter.ask, fetch.chunk), || {
                    format!("{:?} waits for {:?} and is no ask", waiter.ask, fetch.chunk)
                })?;
            }
            if fetch.at == At::Lookup {
                let segment = self.content.segment(fetch.slice);
                agree("look-ups", self.lookups.is_running(segment), || {
                    format!("{:?} waits for {segment:?}, which nobody looks up", fetch.chunk)
                })?;
            }
        }
        let waiting = self.uploads.waiting();
        agree("waiters", waiters == waiting, || {
            format!("{waiting} asks wait, {waiters} waiters are in fetches")
        })
    }

    fn audit_sums(&self) -> Result<(), AuditError> {
        let wants =
            self.fetches.iter().filter_map(|fetch| Some((fetch.want()?.class, fetch.aside, fetch.len_bytes)));
        agree("window", self.window.adds_up(wants), || format!("{:?}", self.window))?;
        agree("uploads", self.uploads.adds_up((self.pace.up.count, self.pace.up.bytes)), || {
            format!("{:?}", self.uploads)
        })?;
        let at = |at: At| self.fetches.iter().filter(move |fetch| fetch.at == at);
        let bytes: u64 = at(At::Strata).map(|fetch| u64::from(fetch.len_bytes)).sum();
        let counted = (u32::try_from(at(At::Strata).count()).unwrap_or(u32::MAX), bytes);
        let known = (self.pace.strata.count, self.pace.strata.bytes);
        agree("upstream", counted == known, || format!("{known:?} known, {counted:?} under way"))?;
        let open = self.upstream.open();
        agree("slices", open == known.0, || format!("{open} in slices, {} under way", known.0))?;
        let mut line: Vec<u16> = self.upstream.line().to_vec();
        line.sort_unstable();
        let mut stand: Vec<u16> = at(At::Line).map(|fetch| fetch.slot).collect();
        stand.sort_unstable();
        agree("line", line == stand, || format!("{line:?} in line, {stand:?} stand there"))
    }

    /// Whatever is due has a timer that fires by then.
    fn audit_timers(&self) -> Result<(), AuditError> {
        let armed = |what, timer, due: Option<Time>| match due {
            Some(due) if due != Time::NEVER && self.timers.at(timer) > due => {
                Err(AuditError::Unarmed { what, due, armed: self.timers.at(timer) })
            }
            _ => Ok(()),
        };
        let of_fetch =
            |fetch: &Fetch| fetch.next_due().min(fetch.want().map_or(Time::NEVER, |want| want.deadline));
        armed("a fetch", Timer::Fetch, self.fetches.iter().map(of_fetch).min())?;
        armed("a pending want", Timer::Pending, self.pending.iter().map(|(_, _, deadline)| deadline).min())?;
        armed("an ask in the queue", Timer::Queue, self.uploads.queue_due_at())?;
        let waiters = self.fetches.iter().flat_map(Fetch::waiters);
        armed("a waiter", Timer::Waiters, waiters.map(|waiter| waiter.due).min())?;
        armed("a look-up", Timer::Lookup, self.lookups.due_at())?;
        armed("a document to repeat", Timer::News, self.news.repeat_due_at())?;
        let moves = self.fetches.iter().any(|fetch| fetch.want().is_some() && !fetch.aside);
        let unseen = moves && self.timers.at(Timer::Aside) == Time::NEVER;
        agree("window", !unseen, || "nobody looks whether wants stand still".to_owned())?;
        let announces = (self.announces.len().1 > 0).then_some(self.now);
        let late = announces.is_some() && self.timers.at(Timer::Announce) == Time::NEVER;
        // What is under way makes room when it ends.
        let room = self.pace.strata.count == 0;
        let stuck = room && !self.upstream.line().is_empty() && self.timers.at(Timer::Origin) == Time::NEVER;
        agree("line", !stuck, || "there is room at the strata, and nobody goes".to_owned())?;
        agree("announcements", !late, || format!("{} wait and no timer is armed", self.announces.len().1))
    }
}
