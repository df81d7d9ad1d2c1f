//! When the node must be woken.

use crate::model::Time;

/// All timers, one a kind: each holds a moment at or before the earliest thing of its kind that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Timer {
    /// A fetch: its source is too slow, its pause is over, its wait was long enough, or its readers give up.
    Fetch,
    /// Wants may stand still.
    Aside,
    /// Fills that were gathered begin.
    Gathered,
    /// A pending want's readers give up.
    Pending,
    /// An ask waits for an upload slot for too long.
    Queue,
    /// Who waits for a fetch of this node must hear of it, or has waited long enough.
    Waiters,
    /// A look-up in the DHT gets no answer.
    Lookup,
    /// The next announcement may be made.
    Announce,
    /// The origin budget allows the next fetch from the strata.
    Origin,
    /// A document is handed on once more.
    News,
    /// Neighbours may be told what is held here.
    Possession,
    /// Copies may be begun, and next ranks asked to make some.
    Copies,
}

/// How many kinds of timers there are.
pub(super) const KINDS_LEN: usize = 12;

const KINDS: [Timer; KINDS_LEN] = [
    Timer::Fetch,
    Timer::Aside,
    Timer::Gathered,
    Timer::Pending,
    Timer::Queue,
    Timer::Waiters,
    Timer::Lookup,
    Timer::Announce,
    Timer::Origin,
    Timer::News,
    Timer::Possession,
    Timer::Copies,
];

/// The moments of all timers.
///
/// Arming only ever moves a timer forward; who is no longer due is found out when it fires. That costs a look
/// over the things of one kind once per time-out, where an ordered queue would cost something at every ask.
#[derive(Clone, Debug)]
pub(super) struct Timers([Time; KINDS_LEN]);

impl Timers {
    pub(super) fn new() -> Self {
        Self([Time::NEVER; KINDS_LEN])
    }

    /// Makes sure that `timer` fires at `at` or before.
    pub(super) fn arm(&mut self, timer: Timer, at: Time) {
        let due = &mut self.0[timer as usize];
        *due = at.min(*due);
    }

    /// The next timer that is due at `now`, disarmed.
    pub(super) fn fire(&mut self, now: Time) -> Option<Timer> {
        let timer = KINDS.into_iter().find(|timer| self.0[*timer as usize] <= now)?;
        self.0[timer as usize] = Time::NEVER;
        Some(timer)
    }

    /// When `timer` fires: what an audit looks at.
    pub(super) fn at(&self, timer: Timer) -> Time {
        self.0[timer as usize]
    }

    /// The earliest moment, if any timer is armed.
    pub(super) fn next(&self) -> Option<Time> {
        self.0.into_iter().min().filter(|at| *at != Time::NEVER)
    }
}
